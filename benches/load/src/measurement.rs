//! What is counted while a window is open, and the summary that is made of it.
//!
//! Connections record into one `Recorder`; `window` opens and closes it. Bounded by three histograms, whatever the
//! number of requests. An answer counts in the window in which it ends, so that closing a window cuts nothing off.
//! `routing` and `run` keep other books, out of the same [`Times`].
use std::cell::{Cell, RefCell};
use std::{collections::BTreeMap, iter, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD as BASE64};
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer, V2Serializer};
use serde::Serialize;

use crate::cpu::{CpuUse, Spent};
use crate::result::Distribution;

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
    #[error("complete answer, but it does not tell its usage")]
    Usage,
}

impl Failure {
    /// The key under which it is counted, where statuses are told apart.
    pub(crate) fn kind_of_status(&self) -> String {
        match self {
            Self::Status(status) => format!("status {status}"),
            _ => self.kind().to_owned(),
        }
    }

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
            Self::Usage => "usage",
        }
    }
}

/// What went wrong in one window.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Errors {
    #[serde(rename = "errors")]
    pub(crate) by_kind: BTreeMap<&'static str, u64>,
    #[serde(rename = "first_error")]
    pub(crate) first: Option<String>,
}

impl Errors {
    pub(crate) fn add(&mut self, failure: &Failure) {
        *self.by_kind.entry(failure.kind()).or_default() += 1;
        self.first.get_or_insert_with(|| failure.to_string());
    }

    pub(crate) fn total(&self) -> u64 {
        self.by_kind.values().sum()
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
    errors: Errors,
    latency: Times,
    ttft: Times,
    gap: Times,
}

impl Recorder {
    pub(crate) fn new(quota: Quota) -> Result<Self, hdrhistogram::CreationError> {
        let tally = Tally {
            requests: 0,
            events: 0,
            errors: Errors::default(),
            latency: Times::new()?,
            ttft: Times::new()?,
            gap: Times::new()?,
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
        let times = if first { &mut tally.ttft } else { &mut tally.gap };
        times.record(since);
        // Events that came in one read followed each other without a gap.
        tally.gap.0.saturating_record_n(1, events - 1);
    }

    pub(crate) fn answered(&self, latency: Duration) {
        if self.open.get() {
            let mut tally = self.tally.borrow_mut();
            tally.requests += 1;
            tally.latency.record(latency);
        }
    }

    /// Failures count at any time, or one that outlasts the window would go unseen.
    pub(crate) fn failed(&self, failure: &Failure) {
        self.tally.borrow_mut().errors.add(failure);
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
            latency: tally.latency.quantiles(),
            ttft: tally.ttft.quantiles(),
            gap: tally.gap.quantiles(),
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
    #[serde(flatten)]
    pub(crate) errors: Errors,
    pub(crate) latency: Option<Quantiles>,
    /// Until the first event of a stream.
    pub(crate) ttft: Option<Quantiles>,
    /// Between two events of a stream.
    pub(crate) gap: Option<Quantiles>,
    pub(crate) cpu: Option<CpuUse>,
    pub(crate) interrupted: bool,
}

/// A distribution of times, in microseconds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Quantiles {
    pub(crate) count: u64,
    pub(crate) mean_us: f64,
    pub(crate) p50_us: f64,
    pub(crate) p90_us: f64,
    pub(crate) p95_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) max_us: f64,
}

/// Times as they are measured, in constant memory: to three digits, up to ten minutes.
pub(crate) struct Times(Histogram<u64>);

impl Times {
    pub(crate) fn new() -> Result<Self, hdrhistogram::CreationError> {
        Ok(Self(Histogram::new_with_bounds(1, NANOS_MAX, 3)?))
    }

    pub(crate) fn record(&mut self, time: Duration) {
        self.0.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// The same time so many times.
    pub(crate) fn record_n(&mut self, time: Duration, count: u64) {
        self.0.saturating_record_n(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), count);
    }

    /// Forgets all.
    pub(crate) fn clear(&mut self) {
        self.0.reset();
    }

    /// `None` before anything is recorded.
    pub(crate) fn quantile_us(&self, quantile: f64) -> Option<f64> {
        (!self.0.is_empty()).then(|| real(self.0.value_at_quantile(quantile)) / 1e3)
    }

    /// All that is recorded, as it is kept; `None` before anything is.
    pub(crate) fn distribution(&self) -> Option<Distribution> {
        let at = |quantile| self.quantile_us(quantile);
        let mut bytes = Vec::new();
        // Writing into memory cannot fail, and the histogram is far smaller than the format's bound.
        let _written = V2Serializer::new().serialize(&self.0, &mut bytes);
        let points = self.0.iter_quantiles(CURVE_POINTS_PER_HALVING);
        let points =
            points.map(|point| (100.0 * point.quantile_iterated_to(), real(point.value_iterated_to()) / 1e3));
        let least = (0.0, real(self.0.min()) / 1e3);
        Some(Distribution {
            count: self.0.len(),
            mean_us: self.0.mean() / 1e3,
            p50_us: at(0.5)?,
            p90_us: at(0.9)?,
            p95_us: at(0.95)?,
            p99_us: at(0.99)?,
            max_us: real(self.0.max()) / 1e3,
            curve: iter::once(least).chain(points.filter(|(percentile, _)| *percentile > 0.0)).collect(),
            histogram: BASE64.encode(bytes),
        })
    }

    /// `None` before anything is recorded.
    pub(crate) fn quantiles(&self) -> Option<Quantiles> {
        let at = |quantile| real(self.0.value_at_quantile(quantile)) / 1e3;
        (!self.0.is_empty()).then(|| Quantiles {
            count: self.0.len(),
            mean_us: self.0.mean() / 1e3,
            p50_us: at(0.5),
            p90_us: at(0.9),
            p95_us: at(0.95),
            p99_us: at(0.99),
            max_us: real(self.0.max()) / 1e3,
        })
    }
}

/// So many points of a curve for each halving of the distance to 100 %.
const CURVE_POINTS_PER_HALVING: u32 = 5;
/// Ten minutes: longer than any request may take.
const NANOS_MAX: u64 = 600_000_000_000;

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
            Some(Spent { own: Duration::from_millis(1), all: None }),
            false,
        );
        assert_eq!((summary.requests, summary.errors.total()), (2, 2));
        assert_eq!(summary.errors.by_kind.get("status"), Some(&1));
        assert_eq!(summary.errors.first.as_deref(), Some("status 503"));
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
    fn a_distribution_holds_a_rising_curve_and_the_whole_histogram() {
        let mut times = Times::new().unwrap();
        assert!(times.distribution().is_none());
        (1..=1000).for_each(|ms| times.record(Duration::from_millis(ms)));
        let kept = times.distribution().unwrap();
        assert!((kept.p95_us - 950_000.0).abs() < 1000.0 && (kept.max_us - 1e6).abs() < 1000.0);
        assert!(kept.curve.is_sorted_by(|before, after| before.0 < after.0 && before.1 <= after.1));
        let (first, last) = (kept.curve[0], *kept.curve.last().unwrap());
        assert!(first.0 < 0.1 && (first.1 - 1000.0).abs() < 1.0, "{first:?}");
        assert!((last.0 - 100.0).abs() < 1e-9 && (last.1 - kept.max_us).abs() < 1000.0, "{last:?}");
        assert!(kept.curve.len() < 100, "{}", kept.curve.len());
        let bytes = BASE64.decode(kept.histogram).unwrap();
        let read: Histogram<u64> =
            hdrhistogram::serialization::Deserializer::new().deserialize(&mut bytes.as_slice()).unwrap();
        assert_eq!((read.len(), read.max()), (1000, times.0.max()));
        times.clear();
        assert!(times.quantile_us(0.5).is_none());
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
