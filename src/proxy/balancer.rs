//! Pingora's selection, one variant per policy that needs it.
//!
//! Asked by the spine for its pick; run by `background` as the service that resolves names and checks health. It holds
//! the selection's own state (the turn, the ring) and nothing of ours.

use crate::config::Balancing;
use crate::state::fleet::Index;
use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::ServiceReadyNotifier;
use pingora::services::background::BackgroundService;
use pingora_load_balancing::selection::{BackendIter, BackendSelection, Consistent, RoundRobin};
use pingora_load_balancing::{Backends, LoadBalancer};
use std::time::Duration;

/// The balancer of one cluster.
pub enum Balancer {
    /// In turn; also behind the policies that go by load or by chance, whose ties it breaks.
    RoundRobin(LoadBalancer<RoundRobin>),
    /// A ketama ring.
    Consistent(LoadBalancer<Consistent>),
}

fn running<S: BackendSelection + 'static>(
    backends: Backends,
    health_period: Duration,
    resolve_period: Option<Duration>,
) -> LoadBalancer<S>
where
    S::Iter: BackendIter,
{
    let mut balancer = LoadBalancer::from_backends(backends);
    balancer.health_check_frequency = Some(health_period);
    balancer.update_frequency = resolve_period;
    balancer.parallel_health_check = true;
    balancer
}

impl Balancer {
    /// The selection that `balancing` needs, over `backends`; names are resolved again every `resolve_period`.
    #[must_use]
    pub fn new(
        balancing: Balancing,
        backends: Backends,
        health_period: Duration,
        resolve_period: Option<Duration>,
    ) -> Self {
        match balancing {
            Balancing::RoundRobin | Balancing::LeastRequests | Balancing::PowerOfTwo | Balancing::Random => {
                Self::RoundRobin(running(backends, health_period, resolve_period))
            }
            Balancing::ConsistentHash => Self::Consistent(running(backends, health_period, resolve_period)),
        }
    }

    /// Resolves names once and makes the selection anew. The service does so by itself.
    pub async fn resolve(&self) {
        let outcome = match self {
            Self::RoundRobin(balancer) => balancer.update().await,
            Self::Consistent(balancer) => balancer.update().await,
        };
        debug_assert!(outcome.is_ok(), "the resolver does not fail");
    }

    /// Checks every backend once. The service does so by itself.
    pub async fn check_health(&self) {
        let backends = match self {
            Self::RoundRobin(balancer) => balancer.backends(),
            Self::Consistent(balancer) => balancer.backends(),
        };
        backends.run_health_check(true).await;
    }

    /// The index of the backend that the selection takes for `key` among those that `accept` lets through.
    /// `draws_max` bounds the search.
    pub fn pick(&self, key: &[u8], draws_max: usize, accept: impl Fn(usize) -> bool) -> Option<usize> {
        let index =
            |backend: &pingora_load_balancing::Backend| backend.ext.get::<Index>().map(|index| index.0);
        let accepts = |backend: &_, _healthy| index(backend).is_some_and(&accept);
        let backend = match self {
            Self::RoundRobin(balancer) => balancer.select_with(key, draws_max, accepts),
            Self::Consistent(balancer) => balancer.select_with(key, draws_max, accepts),
        };
        backend.as_ref().and_then(index)
    }
}

#[async_trait]
impl BackgroundService for Balancer {
    async fn start_with_ready_notifier(&self, shutdown: ShutdownWatch, ready: ServiceReadyNotifier) {
        match self {
            Self::RoundRobin(balancer) => balancer.run(shutdown, Some(ready)).await,
            Self::Consistent(balancer) => balancer.run(shutdown, Some(ready)).await,
        }
    }
}
