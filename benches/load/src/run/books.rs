//! The books of one run: all that is counted, and what becomes of it in the result.
//!
//! Filled by `player`. In an open loop a request counts if it was due after the warm-up; in a closed one an answer counts if it
//! ended while the window was open, so that closing it cuts nothing off. Failures count at any time, or one that outlasts a
//! window would go unseen. Bounded by a few histograms, the number of backends and one entry per second.
use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::CreationError;
use tokio::time::Instant;

use super::series::Series;
use crate::measurement::{Failure, Times, real};
use crate::player::{self, Answered};
use crate::result::{BackendShare, Distribution, Second, Tokens};

/// A request that goes out later than this is late.
pub(super) const LATE: Duration = Duration::from_millis(20);
/// Backends that are told apart; what others serve is counted together.
const BACKENDS_MAX: usize = 1000;
const OTHERS: &str = "others";

/// What is counted so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Counts {
    pub(super) sent: u64,
    /// Good answers; those that are not counted below, too.
    pub(super) answered: u64,
    pub(super) failed: u64,
    pub(super) shed: u64,
}

/// The books.
pub(super) struct Books {
    open_loop: bool,
    counted_from: Instant,
    closed: Option<Instant>,
    so_far: Counts,
    requests: u64,
    events: u64,
    shed: u64,
    retry_after_max: Option<u64>,
    errors: BTreeMap<String, u64>,
    first_error: Option<String>,
    latency: Times,
    ttft: Times,
    gap: Times,
    lag: Times,
    late: u64,
    tokens: Option<Tokens>,
    backends: BTreeMap<String, BackendShare>,
    series: Series,
}

/// What the books say in the end.
pub(super) struct Closing {
    pub(super) requests: u64,
    pub(super) events: u64,
    pub(super) shed: u64,
    pub(super) retry_after_max: Option<u64>,
    pub(super) errors: BTreeMap<String, u64>,
    pub(super) first_error: Option<String>,
    pub(super) latency: Option<Distribution>,
    pub(super) ttft: Option<Distribution>,
    pub(super) gap: Option<Distribution>,
    pub(super) lag: Option<Distribution>,
    /// Requests that were late.
    pub(super) late: u64,
    pub(super) tokens: Option<Tokens>,
    pub(super) backends: BTreeMap<String, BackendShare>,
    pub(super) imbalance: Option<f64>,
    pub(super) series: Vec<Second>,
    /// How long was counted.
    pub(super) elapsed: Duration,
}

impl Books {
    pub(super) fn new(open_loop: bool, counted_from: Instant) -> Result<Self, CreationError> {
        Ok(Self {
            open_loop,
            counted_from,
            closed: None,
            so_far: Counts::default(),
            requests: 0,
            events: 0,
            shed: 0,
            retry_after_max: None,
            errors: BTreeMap::new(),
            first_error: None,
            latency: Times::new()?,
            ttft: Times::new()?,
            gap: Times::new()?,
            lag: Times::new()?,
            late: 0,
            tokens: None,
            backends: BTreeMap::new(),
            series: Series::new(counted_from)?,
        })
    }

    /// No answer of a closed loop counts from now on.
    pub(super) fn close(&mut self, now: Instant) {
        self.closed.get_or_insert(now);
    }

    pub(super) fn so_far(&self) -> Counts {
        self.so_far
    }

    /// Whether a request that was due then counts, now.
    fn counts(&self, due: Instant, now: Instant) -> bool {
        if self.open_loop {
            due >= self.counted_from
        } else {
            now >= self.counted_from && self.closed.is_none()
        }
    }

    fn took_tokens(&mut self, answered: &Answered) {
        if let Some(usage) = &answered.usage {
            let tokens = self.tokens.get_or_insert_default();
            tokens.prompt += usage.prompt_tokens;
            tokens.cached += usage.cached_tokens();
            tokens.completion += usage.completion_tokens;
        }
        let Some(name) = answered.backend.as_deref() else { return };
        let known = self.backends.len() < BACKENDS_MAX || self.backends.contains_key(name);
        let name = if known { name } else { OTHERS };
        let share = match self.backends.get_mut(name) {
            Some(share) => share,
            None => self.backends.entry(name.to_owned()).or_default(),
        };
        share.requests += 1;
        if let Some(usage) = &answered.usage {
            share.prompt_tokens += usage.prompt_tokens;
            share.cached_tokens += usage.cached_tokens();
        }
    }

    /// Takes out all that was counted, until `now` or until the window was closed.
    pub(super) fn finish(&mut self, now: Instant) -> Closing {
        let until = self.closed.unwrap_or(now);
        let mut tokens = self.tokens.take();
        if let Some(tokens) = &mut tokens {
            tokens.hit_ratio = real(tokens.cached) / real(tokens.prompt.max(1));
        }
        let busiest = self.backends.values().map(|share| share.requests).max();
        let all: u64 = self.backends.values().map(|share| share.requests).sum();
        let count = real(self.backends.len() as u64);
        Closing {
            requests: self.requests,
            events: self.events,
            shed: self.shed,
            retry_after_max: self.retry_after_max,
            errors: std::mem::take(&mut self.errors),
            first_error: self.first_error.take(),
            latency: self.latency.distribution(),
            ttft: self.ttft.distribution(),
            gap: self.gap.distribution(),
            lag: self.lag.distribution(),
            late: self.late,
            tokens,
            backends: std::mem::take(&mut self.backends),
            imbalance: busiest.map(|busiest| real(busiest) * count / real(all)),
            series: self.series.finish(until),
            elapsed: until.saturating_duration_since(self.counted_from),
        }
    }
}

impl player::Books for Books {
    fn sent(&mut self, due: Instant, now: Instant) {
        self.so_far.sent += 1;
        if self.open_loop && self.counts(due, now) {
            let lag = now.saturating_duration_since(due);
            self.lag.record(lag);
            self.late += u64::from(lag > LATE);
        }
        if self.closed.is_none() {
            self.series.sent(now);
        }
    }

    fn gap(&mut self, due: Instant, events: u64, since: Duration, now: Instant) {
        if self.counts(due, now) {
            self.gap.record(since);
            // Events that came in one read followed each other without a gap.
            self.gap.record_n(Duration::from_nanos(1), events - 1);
        }
    }

    fn answered(&mut self, answered: Answered) {
        self.so_far.answered += 1;
        let Answered { due, first_event, end, events, .. } = answered;
        if !self.counts(due, end) {
            return;
        }
        self.requests += 1;
        self.events += events;
        let (latency, ttft) = (end - due, first_event.map(|first| first - due));
        self.latency.record(latency);
        if let Some(ttft) = ttft {
            self.ttft.record(ttft);
        }
        self.series.answered(end, latency, ttft);
        self.took_tokens(&answered);
    }

    fn shed(&mut self, due: Instant, _status: u16, retry_after: Option<u64>, now: Instant) {
        self.so_far.shed += 1;
        if self.counts(due, now) {
            self.shed += 1;
            self.retry_after_max = self.retry_after_max.max(retry_after);
            self.series.failed(now);
        }
    }

    fn failed(&mut self, _due: Instant, failure: &Failure, now: Instant) {
        self.so_far.failed += 1;
        *self.errors.entry(failure.kind_of_status()).or_default() += 1;
        self.first_error.get_or_insert_with(|| failure.to_string());
        if self.closed.is_none() {
            self.series.failed(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::player::Books as _;

    fn answered(due: Instant, end: Instant, backend: &str, cached: u64) -> Answered {
        let usage = format!(
            r#"{{"prompt_tokens":100,"completion_tokens":5,"prompt_tokens_details":{{"cached_tokens":{cached}}}}}"#
        );
        let usage = serde_json::from_str(&usage).unwrap();
        let first_event = Some(due + (end - due) / 2);
        Answered { due, sent: due, first_event, end, events: 7, usage, backend: Some(backend.to_owned()) }
    }

    #[test]
    fn in_an_open_loop_what_was_due_after_the_warm_up_counts_from_when_it_was_due() {
        let opened = Instant::now();
        let at = |ms| opened + Duration::from_millis(ms);
        let mut books = Books::new(true, at(1000)).unwrap();
        for (due, sent, end, backend, cached) in [
            (900, 900, 1500, "a", 100),
            (1000, 1003, 1400, "a", 0),
            (1100, 1109, 3300, "b", 75),
            (1200, 1200, 1300, "a", 75),
        ] {
            books.sent(at(due), at(sent));
            books.answered(answered(at(due), at(end), backend, cached));
        }
        books.shed(at(1300), 429, Some(7), at(1400));
        books.shed(at(500), 429, Some(99), at(1400));
        books.failed(at(1300), &Failure::Status(500), at(3500));
        let so_far = Counts { sent: 4, answered: 4, failed: 1, shed: 2 };
        assert_eq!(books.so_far(), so_far);
        let closing = books.finish(at(4000));
        assert_eq!((closing.requests, closing.events, closing.shed), (3, 21, 1));
        assert_eq!((closing.retry_after_max, closing.elapsed), (Some(7), Duration::from_secs(3)));
        assert_eq!(closing.errors, BTreeMap::from([("status 500".to_owned(), 1)]));
        assert_eq!(closing.first_error.as_deref(), Some("status 500"));
        let (latency, lag, ttft) = (closing.latency.unwrap(), closing.lag.unwrap(), closing.ttft.unwrap());
        assert_eq!((latency.count, lag.count, ttft.count), (3, 3, 3));
        assert!((latency.max_us - 2_200_000.0).abs() < 3000.0 && (ttft.max_us - 1_100_000.0).abs() < 2000.0);
        assert!((lag.max_us - 9000.0).abs() < 10.0);
        let tokens = Tokens { prompt: 300, cached: 150, completion: 15, hit_ratio: 0.5 };
        assert_eq!(closing.tokens, Some(tokens));
        let share = BackendShare { requests: 2, prompt_tokens: 200, cached_tokens: 75 };
        assert_eq!(closing.backends["a"], share);
        assert!((closing.imbalance.unwrap() - 4.0 / 3.0).abs() < 1e-9);
        assert_eq!(closing.series.len(), 4);
    }

    #[test]
    fn in_a_closed_loop_answers_count_that_end_in_the_window_and_failures_always() {
        let opened = Instant::now();
        let at = |ms| opened + Duration::from_millis(ms);
        let mut books = Books::new(false, at(1000)).unwrap();
        books.answered(answered(at(0), at(900), "a", 0));
        books.gap(at(0), 3, Duration::from_millis(2), at(900));
        books.answered(answered(at(900), at(1100), "a", 0));
        books.gap(at(900), 3, Duration::from_millis(2), at(1100));
        books.close(at(2000));
        books.answered(answered(at(1900), at(2100), "a", 0));
        books.failed(at(1900), &Failure::Closed, at(2200));
        let closing = books.finish(at(2300));
        assert_eq!((closing.requests, closing.elapsed), (1, Duration::from_secs(1)));
        assert_eq!(closing.errors["closed"], 1);
        assert!(closing.lag.is_none(), "nothing is due in a closed loop");
        // Two of three events came together with the one before.
        let gap = closing.gap.unwrap();
        assert!(gap.count == 3 && gap.p50_us < 1.0 && gap.max_us > 1999.0);
    }

    #[test]
    fn backends_are_bounded() {
        let now = Instant::now();
        let mut books = Books::new(true, now).unwrap();
        for number in 0..BACKENDS_MAX + 5 {
            books.answered(answered(now, now, &format!("b{number}"), 0));
        }
        let closing = books.finish(now);
        assert_eq!((closing.backends.len(), closing.backends[OTHERS].requests), (BACKENDS_MAX + 1, 5));
    }
}
