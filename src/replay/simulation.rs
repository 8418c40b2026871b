//! Lets the time of a replay pass: requests arrive, a policy chooses, engines work.
//!
//! [`run`] is called by `plan` for each trace, policy and load. It goes from event to event (a request arrives, an iteration of an
//! engine ends), so it takes time by the iterations of all engines and not by the seconds that pass. The same arguments give the
//! same outcome. Memory is bounded by the trace and the engines' capacity.

use super::engine::{Engine, Progress};
use super::memory::Memory;
pub use super::outcome::Outcome;
use super::router::{Policy, Router};
use super::trace::Trace;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

/// The fleet that a trace is replayed on.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How many engines.
    pub backends: usize,
    /// KV tokens that each engine's fast memory holds.
    pub capacity_tokens: usize,
    /// KV tokens that it keeps in all, where there is a slower tier.
    pub offload_tokens: Option<usize>,
    /// Of everything that goes by chance.
    pub seed: u64,
}

/// When requests arrive.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arrivals {
    /// All at the start, in their order: how fast a fleet can be.
    AllAtOnce,
    /// At their own times divided by this: requests per second of the run over those of the trace.
    Scaled(f64),
}

/// How many events pass before it is asked again whether to stop.
const EVENTS_PER_QUESTION: usize = 1024;

/// Replays `trace` under `policy`. `stop` is asked now and then, with the number of requests that have ended; `None` when it says so.
#[must_use]
pub fn run(
    trace: &Trace,
    settings: &Settings,
    policy: Policy,
    arrivals: Arrivals,
    stop: &dyn Fn(usize) -> bool,
) -> Option<Outcome> {
    let mut simulation = Simulation::new(trace, settings, policy, arrivals);
    simulation.pass(stop).then(|| simulation.finish())
}

/// What happens. Of what happens at the same time, requests arrive first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Event {
    Arrival(usize),
    IterationEnd(usize),
}

struct Simulation<'a> {
    trace: &'a Trace,
    router: Router,
    engines: Vec<Engine>,
    /// One per engine, or the one that all share.
    memories: Vec<Memory>,
    /// Whether an iteration of the engine runs.
    running: Vec<bool>,
    events: BinaryHeap<Reverse<(Duration, Event)>>,
    /// The request that waits for the end of this one.
    successors: Vec<Option<usize>>,
    arrived: Vec<Duration>,
    cached_tokens: Vec<usize>,
    /// Kept to be filled again.
    progress: Vec<Progress>,
    outcome: Outcome,
}

impl<'a> Simulation<'a> {
    fn new(trace: &'a Trace, settings: &Settings, policy: Policy, arrivals: Arrivals) -> Self {
        let (requests, backends) = (trace.requests.len(), settings.backends.max(1));
        let settings = Settings { backends, ..*settings };
        let (memories, share) = if policy == Policy::Pooled { (1, backends) } else { (backends, 1) };
        let offload_tokens = settings.offload_tokens.map(|tokens| share * tokens);
        let memory = |_| Memory::new(share * settings.capacity_tokens, offload_tokens);
        let successors = match arrivals {
            Arrivals::AllAtOnce => vec![None; requests],
            Arrivals::Scaled(_) => successors(trace),
        };
        let mut waits = vec![false; requests];
        successors.iter().flatten().for_each(|&request| waits[request] = true);
        let arrival = |(request, of): (usize, &super::trace::Request)| {
            let at = match arrivals {
                Arrivals::AllAtOnce => Duration::ZERO,
                // A rate that is none lets all come at once.
                Arrivals::Scaled(by) => {
                    Duration::try_from_secs_f64(of.at.as_secs_f64() / by).unwrap_or_default()
                }
            };
            Reverse((at, Event::Arrival(request)))
        };
        Self {
            trace,
            router: Router::new(policy, &settings, trace.block_tokens, requests),
            engines: (0..backends).map(|_| Engine::default()).collect(),
            memories: (0..memories).map(memory).collect(),
            running: vec![false; backends],
            events: trace
                .requests
                .iter()
                .enumerate()
                .filter(|(request, _)| !waits[*request])
                .map(arrival)
                .collect(),
            successors,
            arrived: vec![Duration::ZERO; requests],
            cached_tokens: vec![0; requests],
            progress: Vec::new(),
            outcome: Outcome {
                ttft_s: vec![0.0; requests],
                requests: vec![0; backends],
                ..Outcome::default()
            },
        }
    }

    /// Lets everything happen; false when it was stopped before.
    fn pass(&mut self, stop: &dyn Fn(usize) -> bool) -> bool {
        for passed in 0_usize.. {
            if passed.is_multiple_of(EVENTS_PER_QUESTION) && stop(self.outcome.completed_s.len()) {
                return false;
            }
            match self.events.pop() {
                Some(Reverse((now, Event::Arrival(request)))) => self.arrive(request, now),
                Some(Reverse((now, Event::IterationEnd(backend)))) => self.end_iteration(backend, now),
                None => break,
            }
        }
        true
    }

    fn arrive(&mut self, request: usize, now: Duration) {
        self.arrived[request] = now;
        let of = &self.trace.requests[request];
        let backend = self.router.route(request, of, now, &self.memories);
        self.outcome.requests[backend] += 1;
        self.outcome.prompt_tokens += of.input_tokens as u64;
        self.engines[backend].enqueue(request);
        if !self.running[backend] {
            self.begin_iteration(backend, now);
        }
    }

    fn begin_iteration(&mut self, backend: usize, now: Duration) {
        let memory = backend.min(self.memories.len() - 1);
        let took = self.engines[backend].begin(self.trace, &mut self.memories[memory]);
        self.running[backend] = took.is_some();
        if let Some(took) = took {
            self.events.push(Reverse((now + took, Event::IterationEnd(backend))));
        }
    }

    fn end_iteration(&mut self, backend: usize, now: Duration) {
        let memory = backend.min(self.memories.len() - 1);
        let mut progress = std::mem::take(&mut self.progress);
        self.engines[backend].end(self.trace, &mut self.memories[memory], &mut progress);
        for step in progress.drain(..) {
            match step {
                Progress::FirstToken { request, cached_tokens } => {
                    self.outcome.ttft_s[request] = now.saturating_sub(self.arrived[request]).as_secs_f64();
                    self.outcome.hit_tokens += cached_tokens as u64;
                    self.cached_tokens[request] = cached_tokens;
                    self.router.first_token(request, &self.trace.requests[request], now);
                }
                Progress::Completed { request } => self.complete(request, now),
            }
        }
        self.progress = progress;
        self.begin_iteration(backend, now);
    }

    fn complete(&mut self, request: usize, now: Duration) {
        self.outcome.completed_s.push(now.as_secs_f64());
        self.router.completed(request, &self.trace.requests[request], self.cached_tokens[request]);
        if let Some(next) = self.successors[request] {
            let gap = self.trace.requests[next].gap.unwrap_or_default();
            self.events.push(Reverse((now + gap, Event::Arrival(next))));
        }
    }

    fn finish(mut self) -> Outcome {
        self.outcome.busy_s = self.engines.iter().map(|engine| engine.busy().as_secs_f64()).collect();
        self.outcome
    }
}

/// For each request the one that its client sends when it has ended.
fn successors(trace: &Trace) -> Vec<Option<usize>> {
    let mut successors = vec![None; trace.requests.len()];
    let mut latest = HashMap::new();
    for (request, of) in trace.requests.iter().enumerate() {
        let Some(session) = of.session else { continue };
        if let (Some(before), Some(_)) = (latest.insert(session, request), of.gap) {
            successors[before] = Some(request);
        }
    }
    successors
}

#[cfg(test)]
mod tests {
    use super::super::trace::{BlockKey, Request};
    use super::*;
    use crate::config;
    use proptest::prelude::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    const BLOCK_TOKENS: usize = 100;
    const SETTINGS: Settings =
        Settings { backends: 2, capacity_tokens: 50_000, offload_tokens: None, seed: 1 };

    fn request(at_ms: u64, keys: impl Iterator<Item = u64>, output_tokens: usize) -> Request {
        let keys: Vec<_> = keys.map(|key| BlockKey(key.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
        let input_tokens = keys.len() * BLOCK_TOKENS;
        let at = Duration::from_millis(at_ms);
        Request { at, input_tokens, output_tokens, keys: keys.into(), session: None, gap: None }
    }

    fn trace(requests: Vec<Request>) -> Trace {
        Trace { name: "t".to_owned(), block_tokens: BLOCK_TOKENS, requests }
    }

    fn replay(trace: &Trace, policy: &str, arrivals: Arrivals) -> Outcome {
        run(trace, &SETTINGS, Policy::of_name(policy).unwrap(), arrivals, &|_| false).unwrap()
    }

    fn prefill_s(tokens: f64) -> f64 {
        0.012 + tokens / 15_000.0 * (1.0 + tokens / 2.0 / 53_400.0)
    }

    fn close(is: f64, should: f64) -> bool {
        (is - should).abs() < 1e-8
    }

    #[test]
    fn a_request_waits_for_the_iteration_that_runs_when_it_comes() {
        let requests = vec![request(0, 0..30, 1), request(0, 30..60, 1), request(100, 60..70, 1)];
        let outcome = replay(&trace(requests), "round_robin", Arrivals::Scaled(2.0));
        let (long, short) = (prefill_s(3000.0), prefill_s(1000.0));
        assert!(
            close(outcome.ttft_s[0], long) && close(outcome.ttft_s[2], long - 0.05 + short),
            "{outcome:?}"
        );
        assert_eq!((outcome.requests, outcome.prompt_tokens, outcome.hit_tokens), (vec![2, 1], 7000, 0));
        assert!(close(outcome.busy_s[0], long + short) && close(outcome.completed_s[2], long + short));
    }

    #[test]
    fn a_repeated_prompt_goes_where_it_is_cached_under_every_policy_that_knows() {
        let requests = (0..4).map(|turn| request(turn * 10_000, 0..30, 1)).collect();
        let trace = trace(requests);
        let hits = |policy| replay(&trace, policy, Arrivals::Scaled(1.0)).hit_tokens;
        for policy in ["pmc", "lmetric", "exact_match", "cache_aware", "pooled", "consistent_hash"] {
            assert_eq!(hits(policy), 3 * 2999, "{policy}");
        }
        assert_eq!(hits("round_robin"), 2 * 2999);
    }

    #[test]
    fn the_pool_is_one_memory_for_all() {
        let requests = vec![request(0, 0..30, 1), request(10_000, 0..30, 1), request(10_000, 0..30, 1)];
        let outcome = replay(&trace(requests), "pooled", Arrivals::Scaled(1.0));
        assert_eq!((outcome.hit_tokens, outcome.requests), (2 * 2999, vec![2, 1]));
    }

    #[test]
    fn the_next_turn_of_a_session_comes_after_the_end_of_the_one_before() {
        let turn = |at_ms, blocks, gap_ms: Option<u64>| {
            let gap = gap_ms.map(Duration::from_millis);
            Request { session: Some(7), gap, ..request(at_ms, 0..blocks, 11) }
        };
        let requests = vec![turn(2000, 10, None), turn(2001, 20, Some(500)), turn(2002, 30, Some(0))];
        let outcome = replay(&trace(requests), "pmc", Arrivals::Scaled(2.0));
        let ends = &outcome.completed_s;
        assert!(
            close(ends[0] - 1.0 - outcome.ttft_s[0], 0.1205 + 35e-9 * (10.0 * 1000.0 + 55.0)),
            "{outcome:?}"
        );
        assert!(
            ends[1] > ends[0] + 0.5 + outcome.ttft_s[1] && ends[1] < ends[0] + 0.5 + outcome.ttft_s[1] + 0.13
        );
        assert_eq!(outcome.hit_tokens, 1000 + 2000, "each finds all of the one before");
        let at_once =
            replay(&trace(vec![turn(0, 10, None), turn(9, 20, Some(500))]), "pmc", Arrivals::AllAtOnce);
        assert!(at_once.completed_s[1] < 0.5, "a fleet shows how fast it can be when nobody thinks");
    }

    #[test]
    fn it_ends_when_it_is_told_to() {
        let request = |number: u64| request(number * 100, number * 10..number * 10 + 10, 2);
        let trace = trace((0..2000).map(request).collect());
        let policy = Policy::Serving(config::Policy::Pmc);
        let until = |done_max| run(&trace, &SETTINGS, policy, Arrivals::Scaled(1.0), &|done| done > done_max);
        assert!(until(500).is_none() && until(2000).is_some());
    }

    /// Requests of up to 60 blocks of which `share` in 10 begin like an earlier one.
    fn mixed(requests: u64, share: u32, seed: u64) -> Trace {
        let mut random = StdRng::seed_from_u64(seed);
        let request = |number: u64| {
            let family =
                if random.random_ratio(share, 10) { random.random_range(0..20) } else { 1000 + number };
            let (at_ms, blocks) = (number * random.random_range(100..200), random.random_range(1..60));
            request(at_ms, (0..blocks).map(|block| family << 32 | block), random.random_range(0..300))
        };
        let mut requests: Vec<_> = (0..requests).map(request).collect();
        requests.sort_by_key(|request| request.at);
        trace(requests)
    }

    #[test]
    fn without_reuse_nothing_is_lost_against_least_requests() {
        for seed in 0..2 {
            let trace = mixed(800, 0, seed);
            for load in [0.7, 1.0, 1.3] {
                let [pmc, least] = ["pmc", "least_requests"]
                    .map(|policy| replay(&trace, policy, Arrivals::Scaled(load)).ttft_mean_s());
                assert!(pmc <= least, "{pmc} s instead of {least} s at {load}");
            }
        }
    }

    #[test]
    fn reuse_shortens_the_wait() {
        let trace = mixed(800, 7, 1);
        let ttft = |policy| replay(&trace, policy, Arrivals::Scaled(1.2)).ttft_mean_s();
        let (pooled, pmc, least) = (ttft("pooled"), ttft("pmc"), ttft("least_requests"));
        assert!(pooled < pmc && 1.5 * pmc < least, "{pooled} {pmc} {least}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn every_request_ends_and_nothing_stays_booked(
            requests in 0_u64..120,
            seed in 0_u64..1000,
            policy in prop::sample::select(Policy::names().collect::<Vec<_>>()),
            offload in prop::option::of(6000_usize..20_000),
            at_once in any::<bool>(),
        ) {
            let trace = mixed(requests, 6, seed);
            let settings = Settings { backends: 3, capacity_tokens: 6000, offload_tokens: offload, seed };
            let arrivals = if at_once { Arrivals::AllAtOnce } else { Arrivals::Scaled(3.0) };
            let policy = Policy::of_name(policy).unwrap();
            let mut simulation = Simulation::new(&trace, &settings, policy, arrivals);
            prop_assert!(simulation.pass(&|_| false));
            prop_assert!(simulation.router.is_idle() && simulation.memories.iter().all(Memory::is_unused));
            let outcome = simulation.finish();
            prop_assert_eq!(outcome.completed_s.len(), trace.requests.len());
            prop_assert_eq!(outcome.requests.iter().sum::<usize>(), trace.requests.len());
            prop_assert!(outcome.completed_s.is_sorted() && outcome.ttft_s.iter().all(|seconds| *seconds >= 0.012));
            prop_assert!(outcome.hit_tokens <= outcome.prompt_tokens);
            prop_assert_eq!(Some(outcome), run(&trace, &settings, policy, arrivals, &|_| false), "by seed");
        }
    }
}
