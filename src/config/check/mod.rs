//! What no single value can know: that names are unique, that routes lead somewhere, that bounds fit together.
//!
//! Called by [`Config::parse`](super::Config::parse) after every value has been read. Reports the first problem, at the
//! line of the culprit. What can never act but does no harm is no fault, and told by [`warnings`].

mod kvcache;
mod warning;

use std::collections::HashMap;
use std::net::SocketAddr;

pub(super) use warning::warnings;

use super::error::Fault;
use super::spot::Spot;
use super::values::{duration_text, size_text};
use super::{Backend, Cluster, Config, Retries};

const LISTENERS_MAX: usize = 16;
const CLUSTERS_MAX: usize = 64;
const BACKENDS_MAX: usize = 1024;
const ROUTES_MAX: usize = 1024;

pub(super) fn check(config: &Config, root: &Spot<'_>) -> Result<(), Fault> {
    listeners(config, root)?;
    bounds(config, root)?;
    retries(&config.retries, &root.key("retries").key("on"))?;
    clusters(&config.clusters, &root.key("clusters"))?;
    routes(config, root)
}

fn listeners(config: &Config, root: &Spot<'_>) -> Result<(), Fault> {
    let spot = root.key("listeners");
    count(config.listeners.len(), LISTENERS_MAX, &spot)?;
    let listeners = config.listeners.iter().enumerate();
    let mut taken: Vec<(SocketAddr, Spot<'_>)> =
        listeners.map(|(n, listener)| (listener.address, spot.index(n).key("address"))).collect();
    if let Some(address) = config.admin.address {
        taken.push((address, root.key("admin").key("address")));
    }
    // Of two that collide, the later is reported: what the file says, rather than a default.
    taken.sort_by_key(|(_, spot)| spot.is_written());
    for (n, (address, spot)) in taken.iter().enumerate() {
        if let Some((_, first)) = taken.iter().take(n).find(|(first, _)| collide(first, address)) {
            return Err(spot.fault(format!("{} is already taken by {}", spot.shown(), first.named())));
        }
    }
    Ok(())
}

/// Whether two sockets cannot listen side by side.
fn collide(a: &SocketAddr, b: &SocketAddr) -> bool {
    let same_ip = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() != 0 && a.port() == b.port() && a.is_ipv4() == b.is_ipv4() && same_ip
}

fn bounds(config: &Config, root: &Spot<'_>) -> Result<(), Fault> {
    let (limits, timeouts) = (&config.limits, &config.timeouts);
    if limits.buffered_bytes_max < limits.body_bytes_max {
        let buffered = root.key("limits").key("buffered_bytes_max");
        let body = root.key("limits").key("body_bytes_max").shown_or(&size_text(limits.body_bytes_max));
        let shown = buffered.shown_or(&size_text(limits.buffered_bytes_max));
        return Err(buffered.fault(format!("{shown} is not allowed (at least body_bytes_max, {body})")));
    }
    if timeouts.total < timeouts.first_byte {
        let (first_byte, total) = (root.key("timeouts").key("first_byte"), root.key("timeouts").key("total"));
        let first_byte_shown = first_byte.shown_or(&duration_text(timeouts.first_byte));
        let total_shown = total.shown_or(&duration_text(timeouts.total));
        return Err(if total.is_written() {
            total.fault(format!("{total_shown} is not allowed (at least first_byte, {first_byte_shown})"))
        } else {
            first_byte.fault(format!("{first_byte_shown} is not allowed (at most total, {total_shown})"))
        });
    }
    Ok(())
}

fn retries(retries: &Retries, spot: &Spot<'_>) -> Result<(), Fault> {
    match retries.on.iter().enumerate().find(|(n, on)| retries.on.iter().take(*n).any(|first| first == *on)) {
        Some((n, _)) => {
            Err(spot.index(n).fault(format!("{} stands in the list twice", spot.index(n).shown())))
        }
        None => Ok(()),
    }
}

fn clusters(clusters: &[Cluster], spot: &Spot<'_>) -> Result<(), Fault> {
    count(clusters.len(), CLUSTERS_MAX, spot)?;
    let spots = || (0..clusters.len()).map(|n| spot.index(n));
    let names = clusters.iter().map(|cluster| cluster.name.clone());
    unique(names.zip(spots().map(|spot| spot.key("name"))))?;
    for (cluster, spot) in clusters.iter().zip(spots()) {
        kvcache::check(&cluster.kvcache, &spot.key("kvcache"))?;
        let spot = spot.key("backends");
        count(cluster.backends.len(), BACKENDS_MAX, &spot)?;
        let spots = || (0..cluster.backends.len()).map(|n| spot.index(n));
        let ids = cluster.backends.iter().map(|backend| backend.id.clone());
        unique(ids.zip(spots().map(|spot| spot.key("id"))))?;
        let addresses = cluster.backends.iter().map(|backend| canonical(&backend.address));
        unique(addresses.zip(spots().map(|spot| spot.key("address"))))?;
        unique(cluster.backends.iter().zip(spots()).map(known_to_lmcache))?;
    }
    Ok(())
}

/// The name by which LMCache knows a backend, and where it stands.
fn known_to_lmcache<'a>((backend, spot): (&Backend, Spot<'a>)) -> (String, Spot<'a>) {
    match &backend.lmcache_instance_id {
        Some(name) => (name.clone(), spot.key("lmcache_instance_id")),
        None => (backend.id.clone(), spot.key("id")),
    }
}

/// One text for one address: DNS names know no case, and IPv6 has many ways to be written.
fn canonical(address: &str) -> String {
    match address.parse::<SocketAddr>() {
        Ok(address) => address.to_string(),
        Err(_) => address.to_ascii_lowercase().replace(".:", ":"),
    }
}

fn routes(config: &Config, root: &Spot<'_>) -> Result<(), Fault> {
    let spot = root.key("routes");
    if !spot.is_written() && config.routes.is_empty() {
        return Err(Fault::new(
            "the key routes is missing; only with a single cluster does it have a default",
        )
        .at(root.line()));
    }
    count(config.routes.len(), ROUTES_MAX, &spot)?;
    for (n, route) in config.routes.iter().enumerate() {
        let spot = spot.index(n);
        let known = config.clusters.iter().any(|cluster| cluster.name == route.cluster);
        if !known && route.cluster_not_found_status.is_none() {
            let clusters = root.key("clusters");
            let known: Vec<_> =
                (0..config.clusters.len()).map(|n| clusters.index(n).key("name").shown()).collect();
            let spot = spot.key("cluster");
            return Err(spot.fault(format!(
                "{} is not a cluster (known: {})",
                spot.shown(),
                known.join(", ")
            )));
        }
        if let Some(first) = config.routes.iter().take(n).position(|first| first.hides(route)) {
            let first = root.key("routes").index(first).named();
            return Err(spot.fault(format!("never reached: {first} takes all its requests")));
        }
    }
    Ok(())
}

fn count(found: usize, max: usize, spot: &Spot<'_>) -> Result<(), Fault> {
    match found {
        0 => Err(spot.fault(format!("the list is empty (1 to {max} entries are allowed)"))),
        _ if found > max => Err(spot.fault(format!("{found} entries are not allowed (1 to {max})"))),
        _ => Ok(()),
    }
}

/// Refuses a value that stands twice, at its second place. As many are kept as the file has of them, which [`count`] bounds.
fn unique<'a>(values: impl Iterator<Item = (String, Spot<'a>)>) -> Result<(), Fault> {
    let mut first: HashMap<String, Spot<'a>> = HashMap::new();
    for (value, spot) in values {
        if let Some(first) = first.get(&value) {
            return Err(spot.fault(format!("{} is already taken by {}", spot.shown(), first.named())));
        }
        first.insert(value, spot);
    }
    Ok(())
}
