//! One cluster as a request sees it: its fleet, its balancer, the ways to its backends and its metrics.
//!
//! Built by `app`, shared by all requests. Holds no state of its own.

use super::balancer::Balancer;
use super::connection::Address;
use super::demand::Demand;
use super::hint::{Hint, Hints};
use super::peer::{self, Candidate, Peer, Rules};
use super::prompt::Prompt;
use super::upstream::Upstream;
use crate::config::Balancing;
use crate::metrics::{BackendMetrics, ClusterMetrics, RoutingMetrics};
use crate::state::blocks::{BlockKey, Blocks};
use crate::state::fleet::{Absence, Backend, Fleet};
use crate::state::ratio::Ratios;
use crate::state::trust::{Source, Trust};
use http::HeaderName;
use pingora::http::RequestHeader;
use std::sync::Arc;
use tokio::time::Instant;

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
    /// The header whose value `consistent_hash` goes by.
    pub hash_header: Option<HeaderName>,
    /// The blocks of the prompt that it goes by without that header; `None` = it goes by the client's address.
    pub hash_prefix_blocks: Option<usize>,
    /// The backends and their books.
    pub fleet: Arc<Fleet>,
    /// What the backends are believed to have cached, from what was sent to them.
    pub blocks: Arc<Blocks>,
    /// How far what is believed has come true.
    pub trust: Trust,
    /// Tokens per byte of each model's prompts.
    pub ratios: Ratios,
    /// Pingora's selection over the same backends.
    pub balancer: Arc<Balancer>,
    /// The way to each backend, by index.
    pub upstreams: Vec<Upstream>,
    /// The metrics of the cluster.
    pub metrics: ClusterMetrics,
    /// The metrics of its routing.
    pub routing: RoutingMetrics,
    /// The metrics of each backend, by index.
    pub backend_metrics: Vec<BackendMetrics>,
}

/// One choice among candidates, with all that it went by beside the hint.
#[derive(Clone, Debug)]
pub struct Choice {
    /// Those that could be chosen, in configuration order.
    pub candidates: Vec<Candidate>,
    /// What Pingora's balancer would have taken, where it was asked.
    pub pick: Option<usize>,
    /// What chance went by.
    pub random: u64,
    /// The backend chosen; `None` = there was no candidate.
    pub peer: Option<Peer>,
}

impl Choice {
    /// The backend chosen, and what was known of it.
    #[must_use]
    pub fn chosen(&self) -> Option<(Peer, Candidate)> {
        let peer = self.peer?;
        let candidate = self.candidates.iter().find(|candidate| candidate.index == peer.index)?;
        Some((peer, *candidate))
    }
}

impl Cluster {
    /// The configured name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.fleet.cluster
    }

    /// Whether a backend is left that may take a try; see [`Self::candidates`].
    #[must_use]
    pub fn has_candidate(&self, tried: &[usize], same_allowed: bool) -> bool {
        self.fleet
            .backends()
            .iter()
            .any(|backend| absence(backend).is_none() && (same_allowed || !tried.contains(&backend.index)))
    }

    /// The backends that may take a try now: present, with a known address, not among `tried`. Where none is left and
    /// `same_allowed`, those that were tried count too (a connection that had gone stale says nothing of the backend).
    /// Each with its load at `now` and with what it would have to compute for `demand`.
    #[must_use]
    pub fn candidates(
        &self,
        tried: &[usize],
        same_allowed: bool,
        demand: &Demand,
        hint: &Hint,
        now: Instant,
    ) -> Vec<Candidate> {
        let held =
            if self.rules.policy.weighs_caches() { self.blocks.held(&demand.keys) } else { Vec::new() };
        let candidate = |backend: &Arc<Backend>| {
            let (index, load) = (backend.index, backend.load(now));
            let blocks = held.get(index).copied().unwrap_or_default();
            let in_flight = hint.names(index) && self.is_in_flight(index, &demand.keys, blocks);
            let said = demand.said(index, blocks, in_flight, hint);
            let cached = Demand::believe(said, index, &self.trust);
            Candidate {
                index,
                requests: load.requests,
                pending_tokens: load.pending_tokens,
                uncached_tokens: demand.tokens - cached.tokens,
                weight: backend.weight,
                said,
                source: cached.source,
            }
        };
        let present = || self.fleet.backends().iter().filter(|backend| absence(backend).is_none());
        let mut fresh = Vec::with_capacity(self.fleet.backends().len());
        fresh.extend(present().filter(|backend| !tried.contains(&backend.index)).map(candidate));
        if fresh.is_empty() && same_allowed { present().map(candidate).collect() } else { fresh }
    }

    /// Whether the last of the first `held` blocks is at a backend because of a try in flight.
    fn is_in_flight(&self, backend: usize, keys: &[BlockKey], held: usize) -> bool {
        let last = held.checked_sub(1).and_then(|at| keys.get(at));
        last.is_some_and(|key| self.blocks.is_expected(backend, *key))
    }

    /// Takes what LMCache says is not there out of the shadows, where it is trusted. Only the largest of its counts says
    /// what is not there: a controller credits each chunk to one holder, so that others may have more than they are
    /// credited with, but nobody more than the most.
    pub fn correct(&self, demand: &Demand, hint: &Hint) {
        let Some(most) = hint.matches.iter().map(|found| found.tokens).max() else { return };
        let blocks = most.div_ceil(demand.block_tokens.max(1));
        for found in hint.matches.iter().filter(|found| found.tokens == most) {
            if self.trust.is_trusted(found.index, Source::Lmcache) {
                self.blocks.truncate(found.index, &demand.keys, blocks);
            }
        }
    }

    /// The backends that take no requests now, and why.
    pub fn absent(&self) -> impl Iterator<Item = (&str, &'static str)> {
        self.fleet.backends().iter().filter_map(|backend| Some((backend.id.as_str(), absence(backend)?)))
    }

    /// What a body of `body_bytes` demands of whoever answers it, where `prompt` was read from it and `hint` found for it.
    #[must_use]
    pub fn demand(&self, prompt: &Prompt, hint: &Hint, body_bytes: usize) -> Demand {
        let ratio = self.ratios.get(prompt.model.as_deref().unwrap_or_default());
        if self.rules.policy.weighs_caches() || prompt.prefix.is_some() {
            Demand::of(prompt, hint.prompt_tokens, ratio)
        } else {
            Demand::of_unread(body_bytes, ratio)
        }
    }

    /// Chooses among `candidates`; `random` decides where chance does. Where the balancer goes by turns and may decide, this is
    /// one.
    #[must_use]
    pub fn choose(&self, candidates: Vec<Candidate>, hint: &Hint, hash_key: &[u8], random: u64) -> Choice {
        let pick =
            peer::may_balance(self.rules, &candidates).then(|| self.pick(&candidates, hash_key)).flatten();
        let peer = peer::choose(self.rules, &candidates, hint, pick, random);
        Choice { candidates, pick, random, peer }
    }

    /// What `consistent_hash` goes by: the session, the prompt's prefix or the client; empty where nothing is hashed.
    #[must_use]
    pub fn hash_key(&self, request: &RequestHeader, client: Option<&Address>, demand: &Demand) -> Vec<u8> {
        if self.rules.balancing != Balancing::ConsistentHash {
            return Vec::new();
        }
        if let Some(value) = self.hash_header.as_ref().and_then(|name| request.headers.get(name)) {
            return value.as_bytes().to_vec();
        }
        let prefix = self.hash_prefix_blocks.and_then(|blocks| {
            // A key stands for all blocks up to its own.
            demand.keys.get(blocks.min(demand.keys.len()).checked_sub(1)?)
        });
        match prefix {
            Some(key) => key.0.to_le_bytes().to_vec(),
            None => client.map(|client| client.value().as_bytes()).unwrap_or_default().to_vec(),
        }
    }

    /// What Pingora's balancer would take among `candidates`.
    fn pick(&self, candidates: &[Candidate], hash_key: &[u8]) -> Option<usize> {
        let draws_max = self.upstreams.len() * DRAWS_PER_BACKEND;
        let is_candidate = |index| candidates.iter().any(|candidate| candidate.index == index);
        self.balancer.pick(hash_key, draws_max, is_candidate)
    }
}

/// Why a backend takes no requests now; `None` = it does.
fn absence(backend: &Backend) -> Option<&'static str> {
    let unresolved = || (!backend.is_resolved()).then_some("unresolved");
    backend.absence().map(Absence::name).or_else(unresolved)
}
