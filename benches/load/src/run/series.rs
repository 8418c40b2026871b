//! What happened in each second of a run. Filled by `books`, in the order of time; bounded by one [`Second`] each.
use std::time::Duration;

use hdrhistogram::CreationError;
use tokio::time::Instant;

use crate::measurement::Times;
use crate::result::Second;

/// The seconds that are over, and the one under way.
pub(super) struct Series {
    opened: Instant,
    over: Vec<Second>,
    now: Second,
    latency: Times,
    ttft: Times,
}

impl Series {
    pub(super) fn new(opened: Instant) -> Result<Self, CreationError> {
        let (latency, ttft) = (Times::new()?, Times::new()?);
        Ok(Self { opened, over: Vec::new(), now: Second::default(), latency, ttft })
    }

    pub(super) fn sent(&mut self, at: Instant) {
        if self.reach(at) {
            self.now.sent += 1;
        }
    }

    pub(super) fn answered(&mut self, at: Instant, latency: Duration, ttft: Option<Duration>) {
        if self.reach(at) {
            self.now.answered += 1;
            self.latency.record(latency);
            if let Some(ttft) = ttft {
                self.ttft.record(ttft);
            }
        }
    }

    pub(super) fn failed(&mut self, at: Instant) {
        if self.reach(at) {
            self.now.failed += 1;
        }
    }

    /// All seconds up to this moment; the last may be a part of one.
    pub(super) fn finish(&mut self, at: Instant) -> Vec<Second> {
        if self.reach(at) {
            self.end_second();
        }
        std::mem::take(&mut self.over)
    }

    /// Ends the seconds before `at`; whether `at` is within the series.
    fn reach(&mut self, at: Instant) -> bool {
        let Some(since) = at.checked_duration_since(self.opened) else { return false };
        let number = usize::try_from(since.as_secs()).unwrap_or(usize::MAX);
        while self.over.len() < number {
            self.end_second();
        }
        true
    }

    fn end_second(&mut self) {
        let at = |times: &Times, quantile| times.quantile_us(quantile);
        let mut second = std::mem::take(&mut self.now);
        second.latency_p50_us = at(&self.latency, 0.5);
        second.latency_p99_us = at(&self.latency, 0.99);
        second.ttft_p50_us = at(&self.ttft, 0.5);
        second.ttft_p99_us = at(&self.ttft, 0.99);
        self.over.push(second);
        self.latency.clear();
        self.ttft.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_second_has_its_own_and_one_without_answers_has_no_times() {
        let opened = Instant::now();
        let mut series = Series::new(opened).unwrap();
        let at = |ms| opened + Duration::from_millis(ms);
        if let Some(before) = opened.checked_sub(Duration::from_millis(1)) {
            series.sent(before);
        }
        series.sent(at(0));
        series.sent(at(999));
        series.answered(at(999), Duration::from_millis(500), Some(Duration::from_millis(20)));
        series.failed(at(2500));
        series.answered(at(2600), Duration::from_millis(100), None);
        let series = series.finish(at(2700));
        let counts: Vec<_> = series.iter().map(|one| (one.sent, one.answered, one.failed)).collect();
        assert_eq!(counts, [(2, 1, 0), (0, 0, 0), (0, 1, 1)]);
        assert!((series[0].latency_p99_us.unwrap() - 500_000.0).abs() < 1000.0);
        assert!((series[0].ttft_p50_us.unwrap() - 20_000.0).abs() < 100.0);
        assert!(series[1].latency_p50_us.is_none() && series[2].ttft_p50_us.is_none());
        assert!((series[2].latency_p50_us.unwrap() - 100_000.0).abs() < 1000.0);
    }
}
