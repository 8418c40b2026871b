//! What became of a replay, and the figures that are told of it. Pure.
//!
//! Filled by `simulation`; read by `report`.

/// What became of a replay.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Seconds from arrival to the first token, in the order of the trace.
    pub ttft_s: Vec<f64>,
    /// Prompt tokens that were found in a cache.
    pub hit_tokens: u64,
    /// Prompt tokens of all requests.
    pub prompt_tokens: u64,
    /// Seconds that each backend worked.
    pub busy_s: Vec<f64>,
    /// Requests that each backend took.
    pub requests: Vec<usize>,
    /// Seconds from the start to the end of each request, sorted.
    pub completed_s: Vec<f64>,
}

impl Outcome {
    /// Prompt tokens found in a cache, of all; 0 for an empty trace.
    #[must_use]
    pub fn hit_ratio(&self) -> f64 {
        ratio(count(self.hit_tokens), count(self.prompt_tokens))
    }

    /// Mean of [`Outcome::ttft_s`].
    #[must_use]
    pub fn ttft_mean_s(&self) -> f64 {
        mean(&self.ttft_s)
    }

    /// The time to first token that the share `q` (0 to 1) of the requests does not exceed.
    #[must_use]
    pub fn ttft_quantile_s(&self, q: f64) -> f64 {
        let mut sorted = self.ttft_s.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let needed = (q * count(sorted.len() as u64)).ceil();
        let below = sorted.iter().zip(1_u32..).find(|(_, rank)| f64::from(*rank) >= needed);
        below.map_or(0.0, |(seconds, _)| *seconds)
    }

    /// Busy seconds of the busiest backend over their mean; 1 = all work the same.
    #[must_use]
    pub fn imbalance(&self) -> f64 {
        ratio(self.busy_s.iter().copied().fold(0.0, f64::max), mean(&self.busy_s))
    }

    /// Requests per second over the first 90 % of the completions, so that a tail on few backends does not count.
    #[must_use]
    pub fn saturated_rate(&self) -> f64 {
        let first = self.completed_s.len() * 9 / 10;
        let until = first.checked_sub(1).and_then(|last| self.completed_s.get(last)).copied();
        ratio(count(first as u64), until.unwrap_or_default())
    }
}

fn mean(values: &[f64]) -> f64 {
    ratio(values.iter().sum(), count(values.len() as u64))
}

fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

#[expect(clippy::cast_precision_loss, reason = "counts of a trace are far below 2^52")]
fn count(of: u64) -> f64 {
    of as f64
}
