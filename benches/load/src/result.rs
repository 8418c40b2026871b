//! What one run measured, as it is kept: written by `run`, read by `report` and `compare`.
//!
//! Pure data. A file of another [`FORMAT`] is refused when it is read. Bounded by the length of a run: one [`Second`] each.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::cpu::CpuUse;
use crate::machine::Machine;

/// The version of this shape; raised when a field changes its meaning.
pub(crate) const FORMAT: u32 = 1;

/// The result of one run.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct RunResult {
    pub(crate) format: u32,
    /// What the run is called in reports: `--label`, else the target.
    pub(crate) label: String,
    pub(crate) revision: String,
    /// When it began, RFC 3339 in UTC.
    pub(crate) started: String,
    /// Of this program.
    pub(crate) version: String,
    pub(crate) machine: Machine,
    /// What was asked for, by the names of the command line; holds the seed.
    pub(crate) configuration: BTreeMap<String, String>,
    /// For how long answers were counted.
    pub(crate) seconds: f64,
    /// Whether it was ended before its time.
    pub(crate) interrupted: bool,
    /// Complete and correct answers.
    pub(crate) requests: u64,
    pub(crate) requests_per_second: f64,
    /// Events of streams.
    pub(crate) events: u64,
    /// Requests that the target turned away: 429 and 503.
    pub(crate) shed: u64,
    /// Requests that failed otherwise, by kind.
    pub(crate) errors: BTreeMap<String, u64>,
    pub(crate) first_error: Option<String>,
    /// From when a request was due (in a closed loop: sent) to the end of its answer.
    pub(crate) latency: Option<Distribution>,
    /// From when a request was due to the first event of its stream.
    pub(crate) ttft: Option<Distribution>,
    /// Between two events of a stream.
    pub(crate) gap: Option<Distribution>,
    /// How late requests were sent, against when they were due; none in a closed loop.
    pub(crate) lag: Option<Distribution>,
    /// Set when the generator fell behind itself, so that the figures tell of it and not of the target: what to do about it.
    pub(crate) behind: Option<String>,
    /// As the engines told; none where none did.
    pub(crate) tokens: Option<Tokens>,
    /// By what an answer says of who served it.
    pub(crate) backends: BTreeMap<String, BackendShare>,
    /// The busiest backend's requests, divided by the mean.
    pub(crate) imbalance: Option<f64>,
    /// Of the process that `--pid` names, and all below it.
    pub(crate) cpu: Option<CpuUse>,
    /// Second by second.
    pub(crate) series: Vec<Second>,
}

/// A distribution of times, in microseconds.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Distribution {
    pub(crate) count: u64,
    pub(crate) mean_us: f64,
    pub(crate) p50_us: f64,
    pub(crate) p90_us: f64,
    pub(crate) p95_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) max_us: f64,
    /// Percentile and time, from 0 to 100, closer together towards the end: what a chart draws.
    pub(crate) curve: Vec<(f64, f64)>,
    /// The whole histogram of nanoseconds in the interchange format of `HdrHistogram` (V2, base64).
    pub(crate) histogram: String,
}

/// Tokens of all counted requests.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct Tokens {
    pub(crate) prompt: u64,
    /// Of the prompts' tokens those that an engine had cached.
    pub(crate) cached: u64,
    pub(crate) completion: u64,
    /// `cached` / `prompt`.
    pub(crate) hit_ratio: f64,
}

/// What one backend served.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct BackendShare {
    pub(crate) requests: u64,
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_tokens: u64,
}

/// One second of a run.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct Second {
    /// Requests that were sent in it.
    pub(crate) sent: u64,
    /// Correct answers that ended in it.
    pub(crate) answered: u64,
    /// Requests that failed or were turned away in it.
    pub(crate) failed: u64,
    /// Of those that ended in it; none where there were none.
    pub(crate) latency_p50_us: Option<f64>,
    pub(crate) latency_p99_us: Option<f64>,
    pub(crate) ttft_p50_us: Option<f64>,
    pub(crate) ttft_p99_us: Option<f64>,
}
