//! Policies that a replay can follow, and the books that they go by: the same stages and state that serve, with simulated time.
//!
//! Called by `simulation` for each request as it arrives, shows its first token and ends. What serves is chosen by
//! `proxy::peer` from candidates that `state` fills; `baseline.rs` has the rules that exist only here. Like the gateway it knows
//! of engines only what was sent to them and what comes back. The exceptions say so: [`Policy::ExactMatch`] is told which
//! engine holds the most, as LMCache's lookup would, and [`Policy::Pooled`] what the one cache holds.

use super::baseline::{RepeatedPrompts, RoutingHistory};
use super::memory::{Memory, Prompt};
use super::simulation::Settings;
use super::trace::Request;
use crate::config::{self, Balancing};
use crate::proxy::balancer::Balancer;
use crate::proxy::demand::Demand;
use crate::proxy::hint::{Hint, Why};
use crate::proxy::peer::{self, Candidate, Rules};
use crate::state::blocks::{Blocks, Expected};
use crate::state::fleet::{Backend, Fleet, Index, Lease};
use crate::state::trust::{Source, Trust};
use futures::FutureExt;
use http::Extensions;
use pingora::protocols::l4::socket::SocketAddr as PingoraAddress;
use pingora_load_balancing::discovery::Static;
use pingora_load_balancing::{Backend as Target, Backends};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The rule that chooses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Policy {
    /// One that serves.
    Serving(config::Policy),
    /// A prompt that came before goes to the backend that holds the most of it, any other one to the next in turn: what asking
    /// LMCache for known token ids only comes to.
    ExactMatch,
    /// The rule of the same name of `SGLang`'s router: the longest match of its routing history, within bounds of imbalance.
    CacheAware,
    /// One cache for all backends, chosen by predicted marginal cost: what no placement of prompts can beat.
    Pooled,
}

impl Policy {
    const NAMES: &[(&str, Self)] = &[
        ("pmc", Self::Serving(config::Policy::Pmc)),
        ("lmetric", Self::Serving(config::Policy::Lmetric)),
        ("least_requests", Self::Serving(config::Policy::LeastRequests)),
        ("power_of_two", Self::Serving(config::Policy::PowerOfTwo)),
        ("consistent_hash", Self::Serving(config::Policy::ConsistentHash)),
        ("round_robin", Self::Serving(config::Policy::RoundRobin)),
        ("random", Self::Serving(config::Policy::Random)),
        ("exact_match", Self::ExactMatch),
        ("cache_aware", Self::CacheAware),
        ("pooled", Self::Pooled),
    ];

    /// The policy of this name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, policy)| *policy)
    }

    /// The names of all policies that can be replayed.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Self::NAMES.iter().map(|(name, _)| *name)
    }

    /// Its name on the command line and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, policy)| *policy == self).map_or("lmcache_only", |(name, _)| *name)
    }

    /// The rule that serves it, where it has none of its own.
    fn serving(self) -> config::Policy {
        match self {
            Self::Serving(policy) => policy,
            Self::ExactMatch => config::Policy::RoundRobin,
            Self::CacheAware => config::Policy::LeastRequests,
            Self::Pooled => config::Policy::Pmc,
        }
    }
}

/// Blocks that `consistent_hash` goes by, where a request has no session: the default of `hash_prefix_blocks`.
const HASH_PREFIX_BLOCKS: usize = 4;
/// How many draws a pick may take, per backend.
const DRAWS_PER_BACKEND: usize = 8;

/// Where addresses begin (10.0.0.0): Pingora tells backends apart by them, and nothing is ever sent there.
const NETWORK: u32 = 10 << 24;

/// A request that is in flight.
#[derive(Debug)]
struct Try {
    candidate: Candidate,
    lease: Lease,
    expected: Option<Expected>,
}

/// See the head of this file. Requests are known by their place in the trace.
pub(super) struct Router {
    policy: Policy,
    rules: Rules,
    block_tokens: usize,
    fleet: Arc<Fleet>,
    blocks: Arc<Blocks>,
    trust: Trust,
    balancer: Balancer,
    repeated: RepeatedPrompts,
    history: RoutingHistory,
    random: StdRng,
    /// What stands for the start of the trace; nothing depends on when that is.
    epoch: Instant,
    tries: Vec<Option<Try>>,
}

impl Router {
    pub(super) fn new(policy: Policy, settings: &Settings, block_tokens: usize, requests: usize) -> Self {
        let address = |index: usize| {
            SocketAddr::from((Ipv4Addr::from_bits(NETWORK + u32::try_from(index).unwrap_or_default()), 1))
        };
        let backends = (0..settings.backends).map(|index| (index.to_string(), address(index).to_string(), 1));
        let fleet = Fleet::new("replay", backends);
        let balancing = policy.serving().balancing(Balancing::RoundRobin);
        let capacity = settings.offload_tokens.unwrap_or_default().max(settings.capacity_tokens);
        Self {
            policy,
            rules: Rules { policy: policy.serving(), balancing, preferred_in_flight_max: 0.0 },
            block_tokens,
            blocks: Arc::new(Blocks::new(&vec![capacity; settings.backends])),
            trust: Trust::new(settings.backends),
            balancer: balancer(&fleet, balancing),
            fleet,
            repeated: RepeatedPrompts::default(),
            history: RoutingHistory::default(),
            random: StdRng::seed_from_u64(settings.seed),
            epoch: Instant::now(),
            tries: (0..requests).map(|_| None).collect(),
        }
    }

    /// The backend that `request` is sent to at `now`, since the start. `memories` are the engines', or the one that they share.
    pub(super) fn route(
        &mut self,
        place: usize,
        request: &Request,
        now: Duration,
        memories: &[Memory],
    ) -> usize {
        let now = self.epoch + now;
        let keys = Arc::clone(&request.keys);
        let demand = Demand { tokens: request.input_tokens, block_tokens: self.block_tokens, keys };
        let candidates = self.candidates(&demand, memories, now);
        let index = match self.policy {
            Policy::Serving(_) | Policy::Pooled => None,
            Policy::ExactMatch => self.repeated.holder(&prompt(&demand), memories),
            Policy::CacheAware => self.history.prefer(&prompt(&demand), &candidates),
        };
        let index = index.unwrap_or_else(|| self.choose(request, &demand, &candidates));
        if self.policy == Policy::CacheAware {
            self.history.record(&request.keys, index);
        }
        let candidate = candidates[index];
        let lease = self.fleet.backends()[index].lease(candidate.uncached_tokens, true, now);
        let expected = self.shadows().then(|| self.blocks.expect(index, &demand.keys, self.block_tokens));
        self.tries[place] = Some(Try { candidate, lease, expected });
        index
    }

    /// The request's first token is back.
    pub(super) fn first_token(&mut self, place: usize, request: &Request, now: Duration) {
        let Some(running) = &mut self.tries[place] else { return };
        running.lease.first_token(self.epoch + now);
        if let Some(mut expected) = running.expected.take() {
            expected.confirm();
            let in_blocks = request.keys.len() * self.block_tokens;
            self.blocks.spend(expected.backend(), request.input_tokens.saturating_sub(in_blocks));
        }
    }

    /// The request has ended, and its engine tells how many of its prompt's tokens were cached.
    pub(super) fn completed(&mut self, place: usize, request: &Request, cached_tokens: usize) {
        let Some(Try { candidate, .. }) = self.tries[place].take() else { return };
        if self.shadows() {
            self.blocks.spend(candidate.index, request.output_tokens);
            self.trust.learn(candidate.index, Source::Shadow, candidate.said.shadow, cached_tokens);
        }
    }

    /// Whether nothing is in flight.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        let now = self.epoch;
        self.tries.iter().all(Option::is_none)
            && self
                .fleet
                .backends()
                .iter()
                .all(|backend| backend.load(now) == crate::state::fleet::Load::default())
    }

    /// Whether it goes by what was sent where.
    fn shadows(&self) -> bool {
        matches!(self.policy, Policy::Serving(policy) if policy.weighs_caches())
    }

    fn candidates(&self, demand: &Demand, memories: &[Memory], now: Instant) -> Vec<Candidate> {
        let held = if self.shadows() { self.blocks.held(&demand.keys) } else { Vec::new() };
        let pooled = if self.policy == Policy::Pooled { memories[0].held(&prompt(demand)) } else { 0 };
        let candidate = |(index, backend): (usize, &Arc<Backend>)| {
            let load = backend.load(now);
            let blocks = held.get(index).copied().unwrap_or_default();
            let said = demand.said(index, blocks, false, &Hint::none(Why::Off));
            let believed = Demand::believe(said, index, &self.trust);
            Candidate {
                index,
                requests: load.requests,
                pending_tokens: load.pending_tokens,
                uncached_tokens: demand.tokens - believed.tokens.max(pooled),
                weight: backend.weight,
                said,
                source: believed.source,
            }
        };
        self.fleet.backends().iter().enumerate().map(candidate).collect()
    }

    fn choose(&mut self, request: &Request, demand: &Demand, candidates: &[Candidate]) -> usize {
        let pick =
            self.balancer.pick(&hash_key(request, demand), candidates.len() * DRAWS_PER_BACKEND, |_| true);
        let peer = peer::choose(self.rules, candidates, &Hint::none(Why::Off), pick, self.random.next_u64());
        peer.map_or(0, |peer| peer.index)
    }
}

fn prompt(demand: &Demand) -> Prompt<'_> {
    Prompt { keys: &demand.keys, block_tokens: demand.block_tokens, tokens: demand.tokens }
}

/// What `consistent_hash` goes by: the session, else the prompt's prefix.
fn hash_key(request: &Request, demand: &Demand) -> Vec<u8> {
    let prefix =
        || demand.keys.get(HASH_PREFIX_BLOCKS.min(demand.keys.len()).checked_sub(1)?).map(|key| key.0);
    request.session.or_else(prefix).map_or_else(Vec::new, |key| key.to_le_bytes().to_vec())
}

/// Pingora's selection over the fleet.
fn balancer(fleet: &Fleet, balancing: Balancing) -> Balancer {
    let targets = fleet.backends().iter().filter_map(|backend| {
        let mut ext = Extensions::new();
        ext.insert(Index(backend.index));
        Some(Target { addr: PingoraAddress::Inet(backend.resolved()?), weight: backend.weight, ext })
    });
    let balancer =
        Balancer::new(balancing, Backends::new(Static::new(targets.collect())), Duration::MAX, None);
    let resolved = balancer.resolve().now_or_never();
    debug_assert!(resolved.is_some(), "nothing is awaited");
    balancer
}

#[cfg(test)]
mod tests {
    use super::super::trace::BlockKey;
    use super::*;

    #[test]
    fn every_policy_is_known_by_its_name() {
        for name in Policy::names() {
            assert_eq!(Policy::of_name(name).unwrap().name(), name);
        }
        assert_eq!(Policy::of_name("fastest"), None);
    }

    #[test]
    fn the_books_are_kept_as_the_gateway_keeps_them() {
        let settings =
            Settings { backends: 2, capacity_tokens: 10_000, offload_tokens: Some(20_000), seed: 0 };
        let mut router = Router::new(Policy::Serving(config::Policy::Pmc), &settings, 100, 3);
        let keys = (1..=10_u64).map(|key| BlockKey(key << 40 | key)).collect();
        let (at, input_tokens, output_tokens) = (Duration::ZERO, 1050, 700);
        let request = Request { at, input_tokens, output_tokens, keys, session: None, gap: None };
        let booked = |router: &Router, backend: usize| {
            let load = router.fleet.backends()[backend].load(router.epoch);
            (load.requests, load.pending_tokens, router.blocks.tokens(backend))
        };
        assert_eq!(router.blocks.capacity(1), 20_000);
        assert_eq!(router.route(0, &request, at, &[]), 0);
        assert_eq!(booked(&router, 0), (1, 1050, 1000));
        assert_eq!(router.route(1, &request, at, &[]), 1, "it would wait for the first one");
        router.first_token(0, &request, at);
        assert_eq!(booked(&router, 0), (1, 0, 1050));
        assert_eq!(router.route(2, &request, at, &[]), 0);
        assert_eq!(booked(&router, 0), (2, 50, 1050));
        router.completed(0, &request, 0);
        assert_eq!(booked(&router, 0), (1, 50, 1750));
        assert_eq!(
            router.trust.weight(0, Source::Shadow).to_bits(),
            1.0_f64.to_bits(),
            "nothing was predicted"
        );
        router.completed(2, &request, 0);
        assert!(router.trust.weight(0, Source::Shadow) < 1.0, "the engine did not have it");
        router.completed(1, &request, 0);
        assert!(router.is_idle());
    }

    #[test]
    fn pingoras_selection_knows_the_whole_fleet() {
        let settings = Settings { backends: 300, capacity_tokens: 1, offload_tokens: None, seed: 0 };
        let router = Router::new(Policy::Serving(config::Policy::RoundRobin), &settings, 1, 0);
        let mut picks: Vec<_> = (0..300).filter_map(|_| router.balancer.pick(&[], 1, |_| true)).collect();
        picks.sort_unstable();
        assert_eq!(picks, (0..300).collect::<Vec<_>>());
    }
}
