//! The books of one window: what became of the requests of a plan, and the outcome that is kept of it.
//!
//! Filled by `player`. Requests that are due while the window settles are played and not counted, but for their
//! failures. Bounded by three histograms, the number of backends and one time per answer.
use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::cpu::CpuUse;
use crate::measurement::{Errors, Failure, Quantiles, Times, real};
use crate::player::{Answered, Books};

/// The books of one window.
pub(crate) struct Tally {
    opened: Instant,
    settled: Instant,
    requests: u64,
    ends: Vec<Duration>,
    errors: Errors,
    ttft: Times,
    latency: Times,
    lateness: Times,
    tokens: Tokens,
    backends: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Default, Serialize)]
struct Tokens {
    prompt: u64,
    cached: u64,
    answer: u64,
}

/// The result of one window.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Outcome {
    /// Requests of the plan; those of a session that failed are not sent.
    planned: usize,
    /// Good answers, counted ones and those of the time of settling.
    pub(crate) answered: usize,
    /// Good answers that are counted below.
    pub(crate) requests: u64,
    #[serde(flatten)]
    pub(crate) errors: Errors,
    /// Over the first nine tenths of all good answers: what the fleet can take, if it was offered more.
    answers_per_second: Option<f64>,
    /// From when a request was due to the first event of its answer.
    pub(crate) ttft: Option<Quantiles>,
    /// From when a request was due to the end of its answer.
    pub(crate) latency: Option<Quantiles>,
    /// From when a request was due to when it was sent.
    pub(crate) lateness: Option<Quantiles>,
    tokens: Tokens,
    /// Cached tokens of all tokens of prompts, as the engines tell.
    pub(crate) hit_ratio: Option<f64>,
    /// Requests by the engine that answered.
    pub(crate) backends: BTreeMap<String, u64>,
    /// The busiest engine's requests, divided by the mean.
    pub(crate) imbalance: Option<f64>,
    /// Of the gateway, the engines and this program together.
    pub(crate) cpu: CpuUse,
    pub(crate) gateway_cpu: CpuUse,
}

impl Tally {
    pub(crate) fn new(opened: Instant, settling: Duration) -> Result<Self, hdrhistogram::CreationError> {
        Ok(Self {
            opened,
            settled: opened + settling,
            requests: 0,
            ends: Vec::new(),
            errors: Errors::default(),
            ttft: Times::new()?,
            latency: Times::new()?,
            lateness: Times::new()?,
            tokens: Tokens::default(),
            backends: BTreeMap::new(),
        })
    }

    /// Good answers so far, and the first failure.
    pub(crate) fn so_far(&self) -> (usize, Option<&str>) {
        (self.ends.len(), self.errors.first.as_deref())
    }

    /// What went wrong so far.
    pub(crate) fn errors(&self) -> &Errors {
        &self.errors
    }

    /// The outcome, of a plan of so many requests and a fleet of so many engines.
    pub(crate) fn outcome(&self, planned: usize, engines: usize, [cpu, gateway_cpu]: [CpuUse; 2]) -> Outcome {
        let Tokens { prompt, cached, .. } = self.tokens;
        let busiest = self.backends.values().max().copied();
        let engines = real(engines as u64);
        Outcome {
            planned,
            answered: self.ends.len(),
            requests: self.requests,
            errors: self.errors.clone(),
            answers_per_second: self.rate(),
            ttft: self.ttft.quantiles(),
            latency: self.latency.quantiles(),
            lateness: self.lateness.quantiles(),
            tokens: self.tokens.clone(),
            hit_ratio: (prompt > 0).then(|| real(cached) / real(prompt)),
            backends: self.backends.clone(),
            imbalance: busiest.map(|busiest| real(busiest) * engines / real(self.requests)),
            cpu,
            gateway_cpu,
        }
    }

    /// Answers come in the order of their ends.
    fn rate(&self) -> Option<f64> {
        let counted = self.ends.len() * 9 / 10;
        let until = self.ends.get(counted.checked_sub(1)?)?;
        Some(real(counted as u64) / until.as_secs_f64())
    }
}

impl Books for Tally {
    fn sent(&mut self, _due: Instant, _now: Instant) {}

    fn gap(&mut self, _due: Instant, _events: u64, _since: Duration, _now: Instant) {}

    /// An engine that does not tell its usage would make a wrong hit ratio.
    fn answered(&mut self, answered: Answered) {
        let Answered { due, sent, first_event, end, usage, backend, .. } = answered;
        let Some(usage) = usage else { return self.errors.add(&Failure::Usage) };
        self.ends.push(end - self.opened);
        if due < self.settled {
            return;
        }
        self.requests += 1;
        self.ttft.record(first_event.unwrap_or(end) - due);
        self.latency.record(end - due);
        self.lateness.record(sent - due);
        self.tokens.prompt += usage.prompt_tokens;
        self.tokens.cached += usage.cached_tokens();
        self.tokens.answer += usage.completion_tokens;
        if let Some(backend) = backend {
            *self.backends.entry(backend).or_default() += 1;
        }
    }

    fn shed(&mut self, _due: Instant, status: u16, _retry_after: Option<u64>, _now: Instant) {
        self.errors.add(&Failure::Status(status));
    }

    fn failed(&mut self, _due: Instant, failure: &Failure, _now: Instant) {
        self.errors.add(failure);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cpu::Spent;

    fn cpu() -> [CpuUse; 2] {
        [(); 2].map(|()| CpuUse::of(Spent::default(), Duration::from_secs(10), 0, 0))
    }

    /// A window of ten requests, a second apart, that all took `ttft` and went in turn to two of four engines.
    pub(in super::super) fn outcome(ttft: Duration) -> Outcome {
        let opened = Instant::now();
        let mut tally = Tally::new(opened, Duration::from_secs(2)).unwrap();
        for second in 0..10 {
            let due = opened + Duration::from_secs(second);
            let usage =
                r#"{"prompt_tokens":100,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":25}}"#;
            tally.answered(Answered {
                due,
                sent: due + Duration::from_millis(1),
                first_event: Some(due + ttft),
                end: due + Duration::from_secs(1),
                events: 5,
                usage: serde_json::from_str(usage).unwrap(),
                backend: Some(format!("vllm-{}", second % 2)),
            });
        }
        tally.shed(opened, 503, None, opened);
        tally.outcome(11, 4, cpu())
    }

    #[test]
    fn what_is_due_while_the_window_settles_is_not_counted() {
        let outcome = outcome(Duration::from_millis(200));
        assert_eq!((outcome.planned, outcome.answered, outcome.requests), (11, 10, 8));
        assert_eq!((outcome.ttft.unwrap().count, outcome.errors.total()), (8, 1));
        assert_eq!(outcome.backends.values().sum::<u64>(), 8);
    }

    #[test]
    fn times_count_from_when_a_request_was_due() {
        let outcome = outcome(Duration::from_millis(200));
        let mean = |quantiles: Option<Quantiles>| quantiles.unwrap().mean_us / 1e3;
        assert!((mean(outcome.ttft) - 200.0).abs() < 1.0);
        assert!((mean(outcome.lateness) - 1.0).abs() < 0.01);
        assert!((mean(outcome.latency) - 1000.0).abs() < 1.0);
    }

    #[test]
    fn hits_imbalance_and_rate_are_shares() {
        let outcome = outcome(Duration::from_millis(200));
        assert!((outcome.hit_ratio.unwrap() - 0.25).abs() < 1e-9);
        // Two of four engines have all: twice the mean.
        assert!((outcome.imbalance.unwrap() - 2.0).abs() < 1e-9);
        assert!((outcome.answers_per_second.unwrap() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_window_without_answers_has_no_figures() {
        let tally = Tally::new(Instant::now(), Duration::ZERO).unwrap();
        let outcome = tally.outcome(0, 8, cpu());
        assert!(outcome.ttft.is_none() && outcome.hit_ratio.is_none() && outcome.imbalance.is_none());
        assert_eq!(tally.so_far(), (0, None));
    }
}
