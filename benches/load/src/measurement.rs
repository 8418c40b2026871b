//! What is counted while a window is open, and the summary that is made of it.
//!
//! Connections record into one `Recorder`; `window` opens and closes it. Bounded by three histograms, whatever the
//! number of requests. An answer counts in the window in which it ends, so that closing a window cuts nothing off.
use std::cell::{Cell, RefCell};
use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::cpu::{CpuUse, Spent};

/// What went wrong with one request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("cannot connect: {0}")]
    Connect(std::io::Error),
    #[error("connection lost: {0}")]
    Connection(#[from] std::io::Error),
    #[error("connection closed before the answer was complete")]
    Closed,
    #[error("no complete answer within {0:?}")]
    Timeout(Duration),
    #[error("status {0}")]
    Status(u16),
    #[error(transparent)]
    Malformed(#[from] crate::answer::Malformed),
    #[error("complete answer, but it does not end as the engine's does")]
    Incomplete,
}

impl Failure {
    /// The key under which it is counted.
    fn kind(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect",
            Self::Connection(_) => "connection",
            Self::Closed => "closed",
            Self::Timeout(_) => "timeout",
            Self::Status(_) => "status",
            Self::Malformed(_) => "malformed",
            Self::Incomplete => "incomplete",
        }
    }
}

/// How many requests may still start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Quota {
    Endless,
    Requests(u64),
    Spent,
}

/// The books of one window; shared by the connections of one thread.
pub(crate) struct Recorder {
    open: Cell<bool>,
    quota: Cell<Quota>,
    started: Cell<usize>,
    tally: RefCell<Tally>,
}

struct Tally {
    requests: u64,
    events: u64,
    errors: BTreeMap<&'static str, u64>,
    first_error: Option<String>,
    latency: Histogram<u64>,
    ttft: Histogram<u64>,
    gap: Histogram<u64>,
}

impl Recorder {
    pub(crate) fn new(quota: Quota) -> Result<Self, hdrhistogram::CreationError> {
        let histogram = || Histogram::new_with_bounds(1, NANOS_MAX, 3);
        let tally = Tally {
            requests: 0,
            events: 0,
            errors: BTreeMap::new(),
            first_error: None,
            latency: histogram()?,
            ttft: histogram()?,
            gap: histogram()?,
        };
        Ok(Self {
            open: Cell::new(false),
            quota: Cell::new(quota),
            started: Cell::new(0),
            tally: tally.into(),
        })
    }

    pub(crate) fn open(&self) {
        self.open.set(true);
    }

    /// No answer is counted any more and no request starts.
    pub(crate) fn close(&self) {
        self.open.set(false);
        self.quota.set(Quota::Spent);
    }

    /// The number of the next request, if there is to be one.
    pub(crate) fn take_turn(&self) -> Option<usize> {
        match self.quota.get() {
            Quota::Endless => {}
            Quota::Spent | Quota::Requests(0) => return None,
            Quota::Requests(left) => self.quota.set(Quota::Requests(left - 1)),
        }
        Some(self.started.replace(self.started.get() + 1))
    }

    /// `events` more arrived, `since` after the request was sent (the first ones) or after the last ones.
    pub(crate) fn events(&self, events: u64, since: Duration, first: bool) {
        if !self.open.get() {
            return;
        }
        let mut tally = self.tally.borrow_mut();
        tally.events += events;
        let histogram = if first { &mut tally.ttft } else { &mut tally.gap };
        histogram.saturating_record(nanos(since));
        // Events that came in one read followed each other without a gap.
        tally.gap.saturating_record_n(1, events - 1);
    }

    pub(crate) fn answered(&self, latency: Duration) {
        if self.open.get() {
            let mut tally = self.tally.borrow_mut();
            tally.requests += 1;
            tally.latency.saturating_record(nanos(latency));
        }
    }

    /// Failures count at any time, or one that outlasts the window would go unseen.
    pub(crate) fn failed(&self, failure: &Failure) {
        let mut tally = self.tally.borrow_mut();
        *tally.errors.entry(failure.kind()).or_default() += 1;
        tally.first_error.get_or_insert_with(|| failure.to_string());
    }

    pub(crate) fn summary(&self, elapsed: Duration, cpu: Option<Spent>, interrupted: bool) -> Summary {
        let tally = self.tally.borrow();
        let seconds = elapsed.as_secs_f64();
        Summary {
            seconds,
            requests: tally.requests,
            requests_per_second: real(tally.requests) / seconds,
            events: tally.events,
            events_per_second: real(tally.events) / seconds,
            errors: tally.errors.clone(),
            first_error: tally.first_error.clone(),
            latency: Quantiles::of(&tally.latency),
            ttft: Quantiles::of(&tally.ttft),
            gap: Quantiles::of(&tally.gap),
            cpu: cpu.map(|cpu| CpuUse::of(cpu, elapsed, tally.requests, tally.events)),
            interrupted,
        }
    }
}

/// The result of one window.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Summary {
    pub(crate) seconds: f64,
    pub(crate) requests: u64,
    pub(crate) requests_per_second: f64,
    pub(crate) events: u64,
    pub(crate) events_per_second: f64,
    pub(crate) errors: BTreeMap<&'static str, u64>,
    pub(crate) first_error: Option<String>,
    pub(crate) latency: Option<Quantiles>,
    /// Until the first event of a stream.
    pub(crate) ttft: Option<Quantiles>,
    /// Between two events of a stream.
    pub(crate) gap: Option<Quantiles>,
    pub(crate) cpu: Option<CpuUse>,
    pub(crate) interrupted: bool,
}

impl Summary {
    pub(crate) fn errors_total(&self) -> u64 {
        self.errors.values().sum()
    }
}

/// A distribution of times, in microseconds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Quantiles {
    pub(crate) count: u64,
    pub(crate) mean_us: f64,
    pub(crate) p50_us: f64,
    pub(crate) p90_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) max_us: f64,
}

impl Quantiles {
    fn of(histogram: &Histogram<u64>) -> Option<Self> {
        let at = |quantile| real(histogram.value_at_quantile(quantile)) / 1e3;
        (!histogram.is_empty()).then(|| Self {
            count: histogram.len(),
            mean_us: histogram.mean() / 1e3,
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            max_us: real(histogram.max()) / 1e3,
        })
    }
}

/// Ten minutes: longer than any request may take.
const NANOS_MAX: u64 = 600_000_000_000;

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A count as a number to divide.
#[expect(clippy::cast_precision_loss, reason = "counts and nanoseconds of one window stay far below 2^52")]
pub(crate) fn real(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_count_in_the_open_window_and_failures_always() {
        let recorder = Recorder::new(Quota::Endless).unwrap();
        recorder.answered(Duration::from_millis(9));
        recorder.open();
        recorder.answered(Duration::from_micros(100));
        recorder.answered(Duration::from_micros(300));
        recorder.failed(&Failure::Status(503));
        recorder.close();
        recorder.failed(&Failure::Closed);
        recorder.answered(Duration::from_millis(9));
        let summary = recorder.summary(
            Duration::from_secs(2),
            Some(Spent { own: Duration::from_millis(1), core: None }),
            false,
        );
        assert_eq!((summary.requests, summary.errors_total()), (2, 2));
        assert_eq!(summary.errors.get("status"), Some(&1));
        assert_eq!(summary.first_error.as_deref(), Some("status 503"));
        assert!((summary.requests_per_second - 1.0).abs() < 1e-9);
        assert!((summary.cpu.unwrap().us_per_request.unwrap() - 500.0).abs() < 1e-9);
        assert!((summary.latency.unwrap().p50_us - 100.0).abs() < 0.2);
    }

    #[test]
    fn events_that_arrive_together_have_no_gap() {
        let recorder = Recorder::new(Quota::Endless).unwrap();
        recorder.open();
        recorder.events(1, Duration::from_millis(5), true);
        recorder.events(3, Duration::from_millis(2), false);
        let summary = recorder.summary(Duration::from_secs(1), None, false);
        assert_eq!(summary.events, 4);
        assert_eq!(summary.ttft.unwrap().count, 1);
        let gap = summary.gap.unwrap();
        assert_eq!(gap.count, 3);
        assert!(gap.p50_us < 1.0 && gap.max_us > 1999.0);
    }

    #[test]
    fn a_quota_is_handed_out_once() {
        let recorder = Recorder::new(Quota::Requests(2)).unwrap();
        assert_eq!(recorder.take_turn(), Some(0));
        assert_eq!(recorder.take_turn(), Some(1));
        assert_eq!(recorder.take_turn(), None);
        let endless = Recorder::new(Quota::Endless).unwrap();
        assert!(endless.take_turn().is_some());
        endless.close();
        assert_eq!(endless.take_turn(), None);
    }
}
