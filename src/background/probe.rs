//! Health and addresses of a cluster's backends, as Pingora's balancer asks for them.
//!
//! Pingora's load balancer runs both on its own schedule; this file says what is resolved and what is checked, and mirrors
//! the results into the fleet. A name that does not resolve keeps its last address, and a backend without any is skipped.

use crate::config::Health;
use crate::state::fleet::{Backend, Fleet, Index};
use async_trait::async_trait;
use futures::future::join_all;
use http::Extensions;
use parking_lot::Mutex;
use pingora::protocols::l4::socket::SocketAddr as PingoraAddress;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};
use pingora_load_balancing::discovery::ServiceDiscovery;
use pingora_load_balancing::health_check::{HealthCheck, HttpHealthCheck};
use pingora_load_balancing::{Backend as Target, Backends};
use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How often names are resolved again.
pub const RESOLVE_PERIOD: Duration = Duration::from_secs(10);
/// How long resolving a name may take.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(2);

/// The fleet as Pingora's balancer takes it; `peers` are the connections for checks, by index.
///
/// # Errors
/// When the health path cannot be part of a request.
pub fn backends(fleet: &Arc<Fleet>, health: &Health, peers: Vec<HttpPeer>) -> Result<Backends> {
    let mut backends = Backends::new(Box::new(Resolver(Arc::clone(fleet))));
    backends.set_health_check(Box::new(FleetCheck::new(fleet, health, peers)?));
    Ok(backends)
}

/// How often the fleet's names need resolving; never, where all are addresses.
#[must_use]
pub fn resolve_period(fleet: &Fleet) -> Option<Duration> {
    let has_names = fleet.backends().iter().any(|backend| backend.address.parse::<SocketAddr>().is_err());
    has_names.then_some(RESOLVE_PERIOD)
}

struct Resolver(Arc<Fleet>);

#[async_trait]
impl ServiceDiscovery for Resolver {
    async fn discover(&self) -> Result<(BTreeSet<Target>, HashMap<u64, bool>)> {
        join_all(self.0.backends().iter().map(|backend| resolve(&self.0.cluster, backend))).await;
        let target = |backend: &Arc<Backend>| {
            let mut ext = Extensions::new();
            ext.insert(Index(backend.index));
            Some(Target { addr: PingoraAddress::Inet(backend.resolved()?), weight: backend.weight, ext })
        };
        Ok((self.0.backends().iter().filter_map(target).collect(), HashMap::new()))
    }
}

/// Looks a name up. Of several addresses the one in use is kept as long as it is still among them.
async fn resolve(cluster: &str, backend: &Backend) {
    if backend.address.parse::<SocketAddr>().is_ok() {
        return;
    }
    let found = match timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host(&backend.address)).await {
        Ok(Ok(addresses)) => addresses.collect::<BTreeSet<_>>(),
        Ok(Err(_)) | Err(_) => BTreeSet::new(),
    };
    let in_use = backend.resolved();
    if in_use.is_some_and(|address| found.contains(&address)) {
        return;
    }
    if let Some(address) = found.first() {
        tracing::info!(cluster, backend = backend.id, %address, "backend resolved");
        backend.set_resolved(*address);
        backend.set_healthy(true);
    } else {
        let keeps_last_address = in_use.is_some();
        tracing::warn!(
            cluster,
            backend = backend.id,
            keeps_last_address,
            "a backend's name does not resolve"
        );
    }
}

/// The check of one backend, and why it failed last.
struct Check {
    check: HttpHealthCheck,
    last_failure: Mutex<String>,
}

/// A failure in a few words, without an address.
fn failure(error: &Error) -> String {
    match error.etype() {
        ErrorType::CustomCode(_, status) => format!("status {status}"),
        other => other.as_str().to_owned(),
    }
}

struct FleetCheck {
    fleet: Arc<Fleet>,
    checks: Vec<Check>,
    timeout: Duration,
    failures: usize,
    successes: usize,
}

impl FleetCheck {
    fn new(fleet: &Arc<Fleet>, health: &Health, peers: Vec<HttpPeer>) -> Result<Self> {
        let check = |(backend, peer): (&Arc<Backend>, HttpPeer)| {
            let mut check = HttpHealthCheck::new(&backend.address, false);
            check.peer_template = peer;
            let path =
                health.path.parse().map_err(|_| Error::explain(ErrorType::InternalError, "health.path"))?;
            check.req.set_uri(path);
            Ok(Check { check, last_failure: Mutex::default() })
        };
        Ok(Self {
            fleet: Arc::clone(fleet),
            checks: fleet.backends().iter().zip(peers).map(check).collect::<Result<_>>()?,
            timeout: health.timeout,
            failures: health.failures,
            successes: health.successes,
        })
    }

    fn index(target: &Target) -> Option<usize> {
        target.ext.get::<Index>().map(|index| index.0)
    }

    fn backend(&self, target: &Target) -> Option<&Arc<Backend>> {
        self.fleet.backends().get(Self::index(target)?)
    }
}

#[async_trait]
impl HealthCheck for FleetCheck {
    async fn check(&self, target: &Target) -> Result<()> {
        let check = Self::index(target).and_then(|index| self.checks.get(index));
        let Check { check, last_failure } =
            check.ok_or_else(|| Error::explain(ErrorType::InternalError, "unknown backend"))?;
        let elapsed = |_| Error::explain(ErrorType::ReadTimedout, "health check");
        let outcome = timeout(self.timeout, check.check(target)).await.map_err(elapsed).flatten();
        if let Err(error) = &outcome {
            *last_failure.lock() = failure(error);
        }
        outcome
    }

    async fn health_status_change(&self, target: &Target, healthy: bool) {
        let Some(backend) = self.backend(target) else { return };
        backend.set_healthy(healthy);
        let (cluster, backend) = (&self.fleet.cluster, &backend.id);
        if healthy {
            tracing::info!(cluster, backend, "a backend is healthy again");
        } else {
            let last_failure = Self::index(target)
                .and_then(|index| self.checks.get(index))
                .map(|check| check.last_failure.lock().clone());
            tracing::warn!(
                cluster,
                backend,
                last_failure,
                "a backend is unhealthy and gets no more requests"
            );
        }
    }

    fn health_threshold(&self, success: bool) -> usize {
        if success { self.successes } else { self.failures }
    }
}
