//! Listeners, and the routes of their `dgp.filter.httpconnectionmanager`; or the short form, which has only its filters.
//!
//! Routes and timeouts hold for all listeners here and for one there: the first that says something is heard, and the
//! notes tell of the others. Pixiu takes the longest path that fits, whatever the order of the routes, so they are sorted.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::time::Duration;

use super::Notes;
use super::cluster::Cluster;
use super::fields::{Fields, Found, items, refused};
use super::filter::Filters;
use super::output::{self, Map, scalar, text};
use crate::config::error::Fault;
use crate::config::spot::Spot;
use crate::config::tree::{Node, Scalar};

const MANAGER: &str = "dgp.filter.httpconnectionmanager";
/// Where the short form listens.
const SHORT_FORM_ADDRESS: &str = "0.0.0.0:8888";
/// What Pixiu answers where a route leads to no cluster.
const CLUSTER_NOT_FOUND: i64 = 503;

/// What the listeners say together.
pub(super) struct Listeners<'a> {
    /// The list `listeners`.
    pub(super) addresses: Node,
    managers: Vec<Manager<'a>>,
    pub(super) idle_timeout: Option<(usize, Duration)>,
    pub(super) read_timeout: Option<(usize, Duration)>,
    pub(super) write_timeout: Option<(usize, Duration)>,
    /// Of `dgp.filter.llm.proxy`.
    pub(super) answer_timeout: Option<(usize, Duration)>,
}

/// The routes of a listener, and the filters that their requests pass.
struct Manager<'a> {
    routes: Vec<Route<'a>>,
    filters: Filters,
}

struct Route<'a> {
    spot: Spot<'a>,
    path: String,
    cluster: (Spot<'a>, &'a Scalar),
    status: Option<(Spot<'a>, i64)>,
}

impl<'a> Listeners<'a> {
    pub(super) fn read(spot: &Spot<'a>, notes: &mut Notes) -> Result<Self, Fault> {
        let mut listeners = Self::empty(output::list(spot.line(), [] as [Node; 0]));
        let mut addresses = Vec::new();
        for listener in items(Some(spot.clone()))? {
            addresses.extend(listeners.listener(&listener, notes)?);
        }
        if addresses.is_empty() {
            return Err(spot.fault("no listener that speaks HTTP"));
        }
        listeners.addresses = output::list(spot.line(), addresses);
        Ok(listeners)
    }

    /// The filters and perhaps routes stand at the top; otherwise everything goes to the first cluster.
    pub(super) fn of_short_form(
        fields: &mut Fields<'a>,
        clusters: &[Cluster<'a>],
        notes: &mut Notes,
    ) -> Result<Self, Fault> {
        let Some(filters) = fields.take("http_filters") else {
            let message =
                "neither static_resources nor listeners nor http_filters: this is no Pixiu configuration";
            return Err(Fault::new(message).at(fields.spot().line()));
        };
        let line = filters.line();
        let mut listeners = Self::empty(output::list(
            line,
            [Map::at(line).with("address", scalar(line, SHORT_FORM_ADDRESS))],
        ));
        let routes = match fields.take("route_config") {
            Some(config) => routes(&config, notes)?,
            None => clusters.first().map(Route::to).into_iter().collect(),
        };
        for cluster in clusters.iter().skip(1).filter(|cluster| !leads_to(&routes, cluster)) {
            notes.add(
                &cluster.spot,
                "no route leads here: the short form sends everything to the first cluster",
            );
        }
        let filters = Filters::read(Some(filters), notes)?;
        listeners.answer_timeout = filters.timeout;
        listeners.managers.push(Manager { routes, filters });
        Ok(listeners)
    }

    fn empty(addresses: Node) -> Self {
        Self {
            addresses,
            managers: Vec::new(),
            idle_timeout: None,
            read_timeout: None,
            write_timeout: None,
            answer_timeout: None,
        }
    }

    /// Its address, if it speaks HTTP.
    fn listener(&mut self, spot: &Spot<'a>, notes: &mut Notes) -> Result<Option<Map>, Fault> {
        let mut fields = Fields::of(spot)?;
        let protocol = fields.text("protocol_type")?.map(|(_, protocol)| protocol.text.to_ascii_uppercase());
        if let Some(protocol) = protocol.filter(|it| !matches!(it.as_str(), "" | "HTTP" | "HTTP2")) {
            notes.add(
                spot,
                &format!("left out: {protocol} is not served; for TLS see listeners.tls of kvway.yaml"),
            );
            return Ok(None);
        }
        fields.take("name");
        let address = match fields.take("address") {
            Some(address) => address_of(&address, notes)?,
            None => return Err(spot.fault("the key address is missing")),
        };
        if let Some(config) = fields.take("config") {
            self.timeouts(&config, notes)?;
        }
        for chain in items(fields.take("filter_chains"))? {
            let mut chain = Fields::of(&chain)?;
            for filter in items(chain.take("filters"))? {
                self.network_filter(&filter, notes)?;
            }
            chain.finish(notes);
        }
        fields.finish(notes);
        Ok(Some(Map::at(address.line).with("address", address)))
    }

    fn timeouts(&mut self, config: &Spot<'a>, notes: &mut Notes) -> Result<(), Fault> {
        let mut fields = Fields::of(config)?;
        for (key, kept) in [
            ("idle_timeout", &mut self.idle_timeout),
            ("read_timeout", &mut self.read_timeout),
            ("write_timeout", &mut self.write_timeout),
        ] {
            keep_first(fields.duration(key)?, kept, notes);
        }
        fields.finish(notes);
        Ok(())
    }

    fn network_filter(&mut self, spot: &Spot<'a>, notes: &mut Notes) -> Result<(), Fault> {
        let mut fields = Fields::of(spot)?;
        let name = fields.text("name")?.map_or("", |(_, name)| name.text.trim());
        let config = fields.take("config");
        fields.finish(notes);
        let (MANAGER, Some(config)) = (name, config) else {
            notes.add(spot, &format!("ignored: the filter {name}"));
            return Ok(());
        };
        let mut fields = Fields::of(&config)?;
        let routes = match fields.take("route_config") {
            Some(config) => routes(&config, notes)?,
            None => Vec::new(),
        };
        let filters = Filters::read(fields.take("http_filters"), notes)?;
        fields.finish(notes);
        match (self.answer_timeout, filters.timeout) {
            (Some((first, kept)), Some((_, timeout))) if kept != timeout => notes.add(
                spot,
                &format!("dgp.filter.llm.proxy: its timeout is ignored for that on line {first}, which holds for all"),
            ),
            (kept, timeout) => self.answer_timeout = kept.or(timeout),
        }
        self.managers.push(Manager { routes, filters });
        Ok(())
    }

    /// The filters of the first listener that has a route to the cluster; notes where another would have others.
    pub(super) fn filters_of(&self, cluster: &Cluster<'_>, notes: &mut Notes) -> Option<&Filters> {
        let mut managers = self.managers.iter().filter(|manager| leads_to(&manager.routes, cluster));
        let first = &managers.next()?.filters;
        for other in managers {
            let line = |filters: &Filters| filters.kvcache.as_ref().map(Map::line);
            if line(&other.filters) != line(first) || other.filters.tls != first.tls {
                notes
                    .add(&cluster.spot, "several listeners lead here: the filters of the first hold for all");
            }
        }
        Some(first)
    }

    /// The list `routes`.
    pub(super) fn routes(&self, clusters: &[Cluster<'_>], notes: &mut Notes) -> Result<Node, Fault> {
        let mut routes: Vec<&Route<'_>> = self.managers.iter().flat_map(|manager| &manager.routes).collect();
        routes.sort_by_key(|route| Reverse(route.path.len()));
        let mut kept: Vec<&Route<'_>> = Vec::new();
        for route in routes {
            match kept.iter().find(|first| first.path == route.path) {
                Some(first) if first.cluster.1.text == route.cluster.1.text => {}
                Some(first) => {
                    let line = first.spot.line();
                    notes.add(&route.spot, &format!("left out: the route on line {line} takes its requests"));
                }
                None => kept.push(route),
            }
        }
        let line = self.addresses.line;
        if kept.is_empty() {
            return Err(Fault::new(
                "no route leads anywhere: dgp.filter.httpconnectionmanager needs route_config.routes",
            )
            .at(line));
        }
        Ok(output::list(line, kept.iter().map(|route| route.output(clusters, notes)).collect::<Vec<_>>()))
    }
}

impl<'a> Route<'a> {
    /// Everything to this cluster.
    fn to(cluster: &Cluster<'a>) -> Self {
        Self {
            spot: cluster.spot.clone(),
            path: "/".to_owned(),
            cluster: (cluster.spot.clone(), cluster.name),
            status: None,
        }
    }

    fn output(&self, clusters: &[Cluster<'_>], notes: &mut Notes) -> Map {
        let (line, (spot, cluster)) = (self.spot.line(), &self.cluster);
        let mut out = Map::at(line)
            .with("path", text(line, &self.path, &self.path))
            .with("cluster", text(spot.line(), &cluster.text, &cluster.written));
        let known = clusters.iter().any(|known| known.name.text == cluster.text);
        let status = self.status.as_ref().filter(|(_, status)| (400..=599).contains(status));
        if let Some((spot, status)) = status {
            out.set("cluster_not_found_status", scalar(spot.line(), status.to_string()));
        } else if !known {
            notes.add(spot, &format!("no such cluster: its requests are answered with {CLUSTER_NOT_FOUND}"));
            out.set("cluster_not_found_status", scalar(line, CLUSTER_NOT_FOUND.to_string()));
        }
        out
    }
}

fn leads_to(routes: &[Route<'_>], cluster: &Cluster<'_>) -> bool {
    routes.iter().any(|route| route.cluster.1.text == cluster.name.text)
}

fn keep_first(found: Found<'_, Duration>, kept: &mut Option<(usize, Duration)>, notes: &mut Notes) {
    let Some((spot, timeout)) = found else { return };
    match kept {
        Some((line, first)) if *first != timeout => {
            notes.add(&spot, &format!("ignored for that on line {line}, which holds for all listeners"));
        }
        Some(_) => {}
        None => *kept = Some((spot.line(), timeout)),
    }
}

/// `ip:port` of a listener.
fn address_of(spot: &Spot<'_>, notes: &mut Notes) -> Result<Node, Fault> {
    let mut fields = Fields::of(spot)?;
    let Some(socket) = fields.take("socket_address") else {
        return Err(spot.fault("the key socket_address is missing"));
    };
    fields.take("name");
    fields.finish(notes);
    let mut fields = Fields::of(&socket)?;
    let host = fields.text("address")?;
    let Some((port_spot, port)) = fields.text("port")? else {
        return Err(socket.fault("the key port is missing"));
    };
    fields.take("protocol_type");
    fields.finish(notes);
    let (host, host_written) = match &host {
        None => ("0.0.0.0", "0.0.0.0"),
        Some((_, host)) if host.text.trim().is_empty() => ("0.0.0.0", "0.0.0.0"),
        Some((_, host)) if host.text.trim() == "localhost" => ("127.0.0.1", "127.0.0.1"),
        Some((spot, host)) if host.text.trim().parse::<IpAddr>().is_err() => {
            return Err(refused(spot, "an IP address or localhost"));
        }
        Some((_, host)) => (host.text.trim(), host.written.trim()),
    };
    let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
    let address = |host: &str, port: &str| format!("{open}{host}{close}:{}", port.trim());
    Ok(text(port_spot.line(), address(host, &port.text), address(host_written, &port.written)))
}

fn routes<'a>(config: &Spot<'a>, notes: &mut Notes) -> Result<Vec<Route<'a>>, Fault> {
    let mut fields = Fields::of(config)?;
    let items = items(fields.take("routes"))?;
    fields.take("dynamic");
    fields.finish(notes);
    let mut routes = Vec::new();
    for spot in items {
        routes.extend(route(&spot, notes)?);
    }
    Ok(routes)
}

fn route<'a>(spot: &Spot<'a>, notes: &mut Notes) -> Result<Option<Route<'a>>, Fault> {
    let mut fields = Fields::of(spot)?;
    let (found, action) = (fields.take("match"), fields.take("route"));
    fields.take("id");
    fields.finish(notes);
    let path = match &found {
        Some(found) => path(found, notes)?,
        None => None,
    };
    let Some(path) = path else {
        notes.add(spot, "left out: it has neither a prefix nor a path without variables");
        return Ok(None);
    };
    let Some(action) = action else { return Err(spot.fault("the key route is missing")) };
    let mut fields = Fields::of(&action)?;
    let Some(cluster) = fields.text("cluster")? else {
        return Err(action.fault("the key cluster is missing"));
    };
    let status = fields.count("cluster_not_found_response_code")?;
    fields.finish(notes);
    Ok(Some(Route { spot: spot.clone(), path, cluster, status }))
}

/// The prefix or path of a route, without a slash at its end.
fn path(found: &Spot<'_>, notes: &mut Notes) -> Result<Option<String>, Fault> {
    let mut fields = Fields::of(found)?;
    let prefix = fields.text("prefix")?.filter(|(_, prefix)| !prefix.text.is_empty());
    let exact = fields.text("path")?.filter(|(_, path)| !path.text.is_empty());
    if let Some(methods) = fields.take("methods") {
        notes.add(&methods, "without effect: all methods are taken");
    }
    fields.finish(notes);
    if let (None, Some((spot, _))) = (&prefix, &exact) {
        notes.add(spot, "what is below it is taken as well");
    }
    let Some((_, scalar)) = prefix.or(exact) else { return Ok(None) };
    let trimmed = scalar.text.trim().trim_end_matches("/**").trim_end_matches("/*").trim_matches('/');
    let fixed = trimmed.split('/').all(|part| !part.starts_with(':') && !part.contains('*'));
    Ok(fixed.then(|| format!("/{trimmed}")))
}
