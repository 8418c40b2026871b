//! One cluster as a request sees it: its fleet, its balancer, the ways to its backends and its metrics.
//!
//! Built by `app`, shared by all requests. Holds no state of its own.

use super::balancer::Balancer;
use super::hint::{Hint, Hints};
use super::peer::{self, Candidate, Peer, Rules};
use super::upstream::Upstream;
use crate::config::Balancing;
use crate::metrics::{BackendMetrics, ClusterMetrics};
use crate::state::fleet::Fleet;
use http::HeaderName;
use pingora_proxy::Session;
use std::sync::Arc;

/// How many draws a pick may take, per backend: selections by chance and by weight repeat themselves.
const DRAWS_PER_BACKEND: usize = 8;

/// A cluster and all that a try at one of its backends needs.
pub struct Cluster {
    /// How a backend is chosen.
    pub rules: Rules,
    /// What is asked about caches; `None` where nothing is.
    pub hints: Option<Hints>,
    /// Whether answers tell which backend was chosen, and why.
    pub decision_header: bool,
    /// The header whose value `consistent_hash` goes by; without it the client's address.
    pub hash_header: Option<HeaderName>,
    /// The backends and their books.
    pub fleet: Arc<Fleet>,
    /// Pingora's selection over the same backends.
    pub balancer: Arc<Balancer>,
    /// The way to each backend, by index.
    pub upstreams: Vec<Upstream>,
    /// The metrics of the cluster.
    pub metrics: ClusterMetrics,
    /// The metrics of each backend, by index.
    pub backend_metrics: Vec<BackendMetrics>,
}

impl Cluster {
    /// The configured name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.fleet.cluster
    }

    /// The backends that may take a try now: healthy, with a known address, not among `tried`. Where none is left and
    /// `same_allowed`, those that were tried count too (a connection that had gone stale says nothing of the backend).
    #[must_use]
    pub fn candidates(&self, tried: &[usize], same_allowed: bool) -> Vec<Candidate> {
        let healthy = |fresh_only: bool| -> Vec<Candidate> {
            let backends = self.fleet.backends().iter();
            let free = backends.filter(|backend| {
                backend.is_healthy()
                    && backend.resolved().is_some()
                    && !(fresh_only && tried.contains(&backend.index))
            });
            free.map(|backend| Candidate {
                index: backend.index,
                requests: backend.load().requests,
                weight: backend.weight,
            })
            .collect()
        };
        let fresh = healthy(true);
        if fresh.is_empty() && same_allowed { healthy(false) } else { fresh }
    }

    /// What `consistent_hash` goes by; empty where nothing is hashed.
    #[must_use]
    pub fn hash_key(&self, session: &Session) -> Vec<u8> {
        if self.rules.balancing != Balancing::ConsistentHash {
            return Vec::new();
        }
        let header = self.hash_header.as_ref().and_then(|name| session.req_header().headers.get(name));
        let address =
            || session.client_addr().and_then(|address| address.as_inet()).map(|inet| inet.ip().to_string());
        match header {
            Some(value) => value.as_bytes().to_vec(),
            None => address().unwrap_or_default().into_bytes(),
        }
    }

    /// Chooses the backend of a try.
    #[must_use]
    pub fn choose(&self, candidates: &[Candidate], hint: &Hint, hash_key: &[u8]) -> Option<Peer> {
        let draws_max = self.upstreams.len() * DRAWS_PER_BACKEND;
        let is_candidate = |index| candidates.iter().any(|candidate| candidate.index == index);
        let pick = self.balancer.pick(hash_key, draws_max, is_candidate);
        peer::choose(self.rules, candidates, hint, pick)
    }
}
