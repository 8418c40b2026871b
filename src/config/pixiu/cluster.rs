//! Clusters and their endpoints. One without endpoints, whose endpoints Pixiu would learn from a registry, is left out.

use super::Notes;
use super::fields::{Fields, items, refused};
use super::listener::Listeners;
use super::output::{self, Map, scalar, text};
use crate::config::error::Fault;
use crate::config::spot::Spot;
use crate::config::tree::{Node, Scalar};

/// A cluster that has endpoints.
pub(super) struct Cluster<'a> {
    pub(super) spot: Spot<'a>,
    pub(super) name: &'a Scalar,
    balancing: (usize, &'static str),
    endpoints: Vec<Map>,
}

pub(super) fn list<'a>(
    spot: Option<Spot<'a>>,
    resources: &Fields<'a>,
    notes: &mut Notes,
) -> Result<Vec<Cluster<'a>>, Fault> {
    let place = spot.clone().unwrap_or_else(|| resources.spot().key("clusters"));
    let mut clusters = Vec::new();
    for spot in items(spot)? {
        let cluster = cluster(&spot, notes)?;
        if cluster.endpoints.is_empty() {
            notes.add(&spot, "left out: a cluster without endpoints");
        } else {
            clusters.push(cluster);
        }
    }
    if clusters.is_empty() {
        return Err(place.fault("no cluster has endpoints; they are needed in the file"));
    }
    Ok(clusters)
}

/// The list `clusters`.
pub(super) fn output(clusters: Vec<Cluster<'_>>, listeners: &Listeners<'_>, notes: &mut Notes) -> Node {
    let line = clusters.first().map_or(1, |cluster| cluster.spot.line());
    let mut out = Vec::new();
    for cluster in clusters {
        let filters = listeners.filters_of(&cluster, notes);
        let line = cluster.spot.line();
        let mut map = Map::at(line).with("name", text(line, &cluster.name.text, &cluster.name.written));
        let balancing = scalar(cluster.balancing.0, cluster.balancing.1);
        match filters.and_then(|filters| filters.kvcache.clone()) {
            Some(kvcache) => {
                map.set("policy", scalar(kvcache.line(), "lmcache_only"));
                map.set("fallback", balancing);
                map.set("kvcache", kvcache);
            }
            None => map.set("policy", balancing),
        }
        let tls = filters.is_some_and(|filters| filters.tls);
        let backends = cluster
            .endpoints
            .into_iter()
            .map(|endpoint| if tls { endpoint.with("tls", Map::at(line)) } else { endpoint });
        map.set("backends", output::list(line, backends));
        out.push(map);
    }
    output::list(line, out)
}

fn cluster<'a>(spot: &Spot<'a>, notes: &mut Notes) -> Result<Cluster<'a>, Fault> {
    let mut fields = Fields::of(spot)?;
    let Some((_, name)) = fields.text("name")? else { return Err(spot.fault("the key name is missing")) };
    let balancing = balancing(&mut fields, spot, notes)?;
    let mut endpoints = Vec::new();
    for (n, spot) in items(fields.take("endpoints"))?.iter().enumerate() {
        endpoints.push(endpoint(spot, n + 1, notes)?);
    }
    fields.finish(notes);
    Ok(Cluster { spot: spot.clone(), name, balancing, endpoints })
}

/// The rule that chooses a backend. Pixiu chooses by chance where it does not know the word.
fn balancing(
    fields: &mut Fields<'_>,
    cluster: &Spot<'_>,
    notes: &mut Notes,
) -> Result<(usize, &'static str), Fault> {
    let Some((spot, policy)) = fields.text("lb_policy")? else { return Ok((cluster.line(), "random")) };
    let word: String = policy.text.chars().filter(char::is_ascii_alphabetic).collect();
    let balancing = match word.to_ascii_lowercase().as_str() {
        "roundrobin" | "wightrobin" | "weightrobin" | "weightedroundrobin" => "round_robin",
        "rand" | "random" | "weightrandom" | "weightedrandom" => "random",
        "ringhashing" | "ringhash" | "maglevhashing" | "maglev" | "iphash" | "consistenthash" => {
            "consistent_hash"
        }
        "leastrequest" | "leastrequests" => "least_requests",
        _ => {
            notes.add(&spot, &format!("{} is not known: random, as there", spot.shown()));
            "random"
        }
    };
    Ok((spot.line(), balancing))
}

fn endpoint(spot: &Spot<'_>, number: usize, notes: &mut Notes) -> Result<Map, Fault> {
    let mut fields = Fields::of(spot)?;
    let id = match fields.text("id")? {
        Some((spot, id)) if !id.text.is_empty() => text(spot.line(), &id.text, &id.written),
        _ => scalar(spot.line(), number.to_string()),
    };
    fields.take("name");
    let address = match fields.take("socket_address") {
        Some(address) => address_of(&address, notes)?,
        None => return Err(spot.fault("the key socket_address is missing")),
    };
    let mut out = Map::at(spot.line()).with("id", id).with("address", address);
    if let Some(spot) = fields.take("llm_meta") {
        let mut fields = Fields::of(&spot)?;
        let key = fields.text("api_key")?.filter(|(_, key)| !key.text.is_empty());
        if let Some((spot, key)) = key {
            out.set("api_key", text(spot.line(), &key.text, &key.written));
        }
        fields.finish(notes);
    }
    fields.finish(notes);
    Ok(out)
}

/// `host:port` of a backend, whose host may be the first of its domains.
fn address_of(spot: &Spot<'_>, notes: &mut Notes) -> Result<Node, Fault> {
    let mut fields = Fields::of(spot)?;
    let host = fields.text("address")?.filter(|(_, host)| !host.text.trim().is_empty());
    let host = match host {
        Some(host) => host,
        None => match fields.text_of_first("domains")? {
            Some(host) => host,
            None => return Err(spot.fault("the key address is missing")),
        },
    };
    let Some((port_spot, port)) = fields.text("port")? else {
        return Err(spot.fault("the key port is missing"));
    };
    fields.finish(notes);
    let (spot, host) = host;
    if port.text.trim().parse::<u16>().is_err() {
        return Err(refused(&port_spot, "1 to 65535"));
    }
    let (open, close) = if host.text.contains(':') { ("[", "]") } else { ("", "") };
    let address = |host: &str, port: &str| format!("{open}{}{close}:{}", host.trim(), port.trim());
    Ok(text(spot.line(), address(&host.text, &port.text), address(&host.written, &port.written)))
}
