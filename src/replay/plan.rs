//! What is replayed on which fleet, and the runs that this takes.
//!
//! [`Plan::new`] reads the traces and refuses what makes no sense before anything runs; [`Plan::run`] is called once by `main`. The
//! runs share nothing and are spread over the processor's cores; what comes out is in the order of what was asked for, whichever ends first. It
//! ends early when it is told to, with what is finished.

use super::report::{Replayed, Report, Row, Setup};
use super::router::Policy;
use super::simulation::{self, Arrivals, Outcome, Settings};
use super::sustainable::{self, Sustainable};
use super::trace::{self, Reading, Trace, TraceError};
use crate::arguments::Replay;
use crate::config;
use indicatif::ProgressBar;
use std::cell::Cell;
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The rule whose saturated rate is load 1.
const YARDSTICK: Policy = Policy::Serving(config::Policy::RoundRobin);
/// About how many runs a search for the sustainable rate takes; for the progress bar alone.
const SEARCH_RUNS: usize = 8;

/// Why nothing is replayed.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The flags contradict each other.
    #[error("{0}")]
    Usage(String),
    /// A trace cannot be read.
    #[error(transparent)]
    Trace(#[from] TraceError),
}

/// What is replayed on which fleet.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Each with what is to be said about it. No two have the same name.
    pub traces: Vec<(Trace, Vec<String>)>,
    /// The fleet.
    pub settings: Settings,
    /// The rules to compare, each once; the last is the pooled ceiling.
    pub policies: Vec<Policy>,
    /// Each once; 1 = all that round robin can serve.
    pub loads: Vec<f64>,
    /// The 90th percentile of the time to the first token, in seconds, up to which a rate is sustainable; `None` = that is not asked.
    pub ttft_p90_max_s: Option<f64>,
    /// Whether rounded times are spread.
    pub spread: bool,
}

/// Who wants to know how far it is, and may end it.
#[derive(Clone, Copy)]
pub struct Watch<'a> {
    /// Set when it shall end.
    pub stop: &'a AtomicBool,
    /// Shows how much is done, in requests.
    pub bar: &'a ProgressBar,
}

/// A trace, and what load 1 of it is.
struct Yardstick<'a> {
    trace: &'a Trace,
    /// Requests per second at load 1.
    saturated_rate: f64,
    /// Requests per second of the trace itself; infinite when all come at once.
    own_rate: f64,
}

impl Plan {
    /// The plan of a command line.
    ///
    /// # Errors
    /// When the flags contradict each other, or a trace cannot be read.
    pub fn new(flags: &Replay) -> Result<Self, PlanError> {
        if flags.offload.is_some_and(|tokens| tokens < flags.capacity) {
            let said = "--offload is what an engine holds in all: fewer tokens than --capacity make no sense";
            return Err(PlanError::Usage(said.to_owned()));
        }
        let mut policies = Vec::new();
        for name in &flags.policy {
            let policy = Policy::of_name(name)
                .ok_or_else(|| PlanError::Usage(format!("policy {name} cannot be replayed")))?;
            if policy != Policy::Pooled && !policies.contains(&policy) {
                policies.push(policy);
            }
        }
        policies.push(Policy::Pooled);
        let mut loads: Vec<f64> = flags.load.clone();
        loads.sort_unstable_by(f64::total_cmp);
        loads.dedup();
        let spread = !flags.no_spread;
        let reading = Reading { block_tokens: flags.block_tokens, spread, seed: flags.seed };
        let mut traces: Vec<(Trace, Vec<String>)> = Vec::new();
        for file in &flags.traces {
            let (trace, notes) = trace::load(file, &reading)?;
            if traces.iter().any(|(known, _)| known.name == trace.name) {
                let name = trace.name;
                return Err(PlanError::Usage(format!(
                    "two traces are called {name}: nobody could tell their results apart"
                )));
            }
            traces.push((trace, notes));
        }
        let settings = Settings {
            backends: flags.backends,
            capacity_tokens: flags.capacity,
            offload_tokens: flags.offload,
            seed: flags.seed,
        };
        let ttft_p90_max_s = (!flags.no_sustainable).then_some(flags.ttft_p90_max);
        Ok(Self { traces, settings, policies, loads, ttft_p90_max_s, spread })
    }

    /// How many requests all runs have together, about.
    #[must_use]
    pub fn requests(&self) -> u64 {
        let searches = if self.ttft_p90_max_s.is_some() { SEARCH_RUNS } else { 0 };
        let runs = 1 + self.policies.len() * (self.loads.len() + searches);
        self.traces.iter().map(|(trace, _)| (runs * trace.requests.len()) as u64).sum()
    }

    /// Replays everything, or until it is stopped.
    #[must_use]
    pub fn run(&self, watch: Watch<'_>) -> Report {
        let saturated = in_parallel(&self.traces, |(trace, _)| {
            let outcome = self.replay(trace, YARDSTICK, Arrivals::AllAtOnce, watch)?;
            Some(Yardstick { trace, saturated_rate: outcome.saturated_rate(), own_rate: own_rate(trace) })
        });
        let known = || saturated.iter().flatten();
        let asked = known().flat_map(|of| self.loads.iter().map(move |&load| (of, load)));
        let replays: Vec<_> = asked
            .flat_map(|(of, load)| self.policies.iter().map(move |&policy| (of, load, policy)))
            .collect();
        let rows = in_parallel(&replays, |(of, load, policy)| self.row(of, *load, *policy, watch));
        // The searches come last: what was asked for by name shall be there when it is interrupted.
        let asked = known().filter(|of| self.ttft_p90_max_s.is_some() && of.can_be_stretched());
        let searches: Vec<_> =
            asked.flat_map(|of| self.policies.iter().map(move |&policy| (of, policy))).collect();
        let found = in_parallel(&searches, |(of, policy)| self.search(of, *policy, watch));
        let interrupted = saturated.iter().any(Option::is_none)
            || rows.iter().any(Option::is_none)
            || found.iter().any(Option::is_none);

        let mut results: Vec<Row> = rows.into_iter().flatten().collect();
        for ((of, policy), found) in searches.iter().zip(found) {
            let Some(found) = found else { continue };
            let same = |row: &&mut Row| row.trace == of.trace.name && row.policy == policy.name();
            results.iter_mut().filter(same).for_each(|row| row.sustain(found, of.saturated_rate));
        }
        let told = self.traces.iter().zip(&saturated).map(|((trace, notes), yardstick)| Replayed {
            trace: trace.name.clone(),
            requests: trace.requests.len(),
            block_tokens: trace.block_tokens,
            rate_per_s: Some(own_rate(trace)).filter(|rate| rate.is_finite()),
            saturated_rate_per_s: yardstick.as_ref().map(|of| of.saturated_rate),
            notes: notes.clone(),
        });
        let setup = Setup::new(&self.settings, self.ttft_p90_max_s, self.spread);
        Report::new(interrupted, setup, told.collect(), results)
    }

    fn row(&self, of: &Yardstick<'_>, load: f64, policy: Policy, watch: Watch<'_>) -> Option<Row> {
        let outcome = self.replay(of.trace, policy, of.arrivals(load), watch)?;
        let rate = of.can_be_stretched().then_some(load * of.saturated_rate);
        Some(Row::new(&of.trace.name, policy, &self.settings, (load, rate), &outcome))
    }

    fn search(&self, of: &Yardstick<'_>, policy: Policy, watch: Watch<'_>) -> Option<Sustainable> {
        let limit = self.ttft_p90_max_s?;
        let mut runs = 0;
        let found = sustainable::find(|load| {
            runs += 1;
            if runs > SEARCH_RUNS {
                watch.bar.inc_length(of.trace.requests.len() as u64);
            }
            let outcome = self.replay(of.trace, policy, of.arrivals(load), watch)?;
            Some(outcome.ttft_quantile_s(0.9) <= limit)
        });
        watch.bar.inc((SEARCH_RUNS.saturating_sub(runs) * of.trace.requests.len()) as u64);
        found
    }

    /// One run.
    fn replay(&self, trace: &Trace, policy: Policy, arrivals: Arrivals, watch: Watch<'_>) -> Option<Outcome> {
        let shown = Cell::new(0);
        let stop = |done: usize| {
            watch.bar.inc(done.saturating_sub(shown.replace(done)) as u64);
            watch.stop.load(Ordering::Relaxed)
        };
        let outcome = simulation::run(trace, &self.settings, policy, arrivals, &stop)?;
        watch.bar.inc(trace.requests.len().saturating_sub(shown.get()) as u64);
        Some(outcome)
    }
}

impl Yardstick<'_> {
    /// Whether its requests can come faster or slower: not when all come at once.
    fn can_be_stretched(&self) -> bool {
        self.own_rate.is_finite() && self.saturated_rate > 0.0
    }

    /// When requests arrive at a load.
    fn arrivals(&self, load: f64) -> Arrivals {
        if self.can_be_stretched() {
            Arrivals::Scaled(load * self.saturated_rate / self.own_rate)
        } else {
            Arrivals::AllAtOnce
        }
    }
}

/// Requests per second of a trace.
fn own_rate(trace: &Trace) -> f64 {
    let count = u32::try_from(trace.requests.len()).unwrap_or(u32::MAX);
    let last = trace.requests.last().map_or(0.0, |request| request.at.as_secs_f64());
    f64::from(count) / last
}

/// Does all jobs on as many threads as there are cores; what comes of each, in their order.
fn in_parallel<'a, J: Sync, R: Send>(
    jobs: &'a [J],
    work: impl Fn(&'a J) -> Option<R> + Sync,
) -> Vec<Option<R>> {
    let next = AtomicUsize::new(0);
    let worker = || {
        let take = || {
            let index = next.fetch_add(1, Ordering::Relaxed);
            jobs.get(index).map(|job| (index, work(job)))
        };
        std::iter::from_fn(take).collect::<Vec<_>>()
    };
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(jobs.len());
    let mut done = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        let joined = workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        joined.flatten().collect::<Vec<_>>()
    });
    done.sort_unstable_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, outcome)| outcome).collect()
}
