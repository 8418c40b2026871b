//! The metrics of the KV-cache filter, and the handles that one cluster holds of them.
//!
//! Called by `proxy` (hints, hot prompts, dropped jobs) and `background` (all else). Outcomes come from enumerations and
//! from the kinds of a failed call; instances that LMCache names are counted and never become a label.

use super::Maker;
use prometheus::{
    GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Result,
};

/// Upper bounds, in seconds, for a lookup that a request waits for.
const LOOKUP_SECONDS: &[f64] = &[
    0.0005, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2,
    0.5, 1.0,
];

/// Upper bounds, in seconds, for a call to the tokenizer.
const TOKENIZER_SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Who asked for a lookup.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum By {
    /// A request that waits for the answer.
    Request,
    /// A job in the background.
    Background,
    /// Who asks what would be chosen.
    Explain,
}

impl By {
    fn label(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Background => "background",
            Self::Explain => "explain",
        }
    }
}

/// All of them, by cluster.
pub(super) struct KvCacheVecs {
    jobs: IntCounterVec,
    jobs_dropped: IntCounterVec,
    jobs_waiting: IntGaugeVec,
    jobs_running: IntGaugeVec,
    queue_bytes: IntGaugeVec,
    tokenizer_calls: IntCounterVec,
    tokenizer_seconds: HistogramVec,
    lookups: IntCounterVec,
    lookup_seconds: HistogramVec,
    actions: IntCounterVec,
    decisions: IntCounterVec,
    load_polls: IntCounterVec,
    load_ratio: GaugeVec,
    memory_ratio: GaugeVec,
    breaker_state: IntGaugeVec,
    breaker_transitions: IntCounterVec,
    token_cache: TokenCacheVecs,
    hotness: HotnessVecs,
    actions_forgotten: IntCounterVec,
    hints: IntCounterVec,
    unknown_instances: IntCounterVec,
}

struct HotnessVecs {
    hot: IntCounterVec,
    prompts: IntGaugeVec,
    forgotten: IntCounterVec,
}

struct TokenCacheVecs {
    hits: IntCounterVec,
    misses: IntCounterVec,
    evictions: IntCounterVec,
    entries: IntGaugeVec,
    bytes: IntGaugeVec,
}

/// The metrics of one cluster's remembered tokens.
#[derive(Clone)]
pub struct TokenCacheMetrics {
    /// Requests whose prompt had remembered tokens.
    pub hits: IntCounter,
    /// Requests whose prompt had none.
    pub misses: IntCounter,
    /// Prompts whose tokens were forgotten to make room, or for their age.
    pub evictions: IntCounter,
    /// Prompts whose tokens are remembered.
    pub entries: IntGauge,
    /// What remembered tokens occupy.
    pub bytes: IntGauge,
}

/// The metrics of the accesses that one cluster counts.
#[derive(Clone)]
pub struct HotnessMetrics {
    /// Requests whose prompt was hot.
    pub hot: IntCounter,
    /// Prompts whose accesses are remembered.
    pub prompts: IntGauge,
    /// Prompts whose accesses were forgotten to make room.
    pub forgotten: IntCounter,
}

/// The metrics of one cluster's KV-cache filter, resolved once.
#[derive(Clone)]
pub struct KvCacheMetrics {
    cluster: String,
    jobs: IntCounterVec,
    jobs_dropped: IntCounterVec,
    tokenizer_calls: IntCounterVec,
    lookups: IntCounterVec,
    actions: IntCounterVec,
    decisions: IntCounterVec,
    load_polls: IntCounterVec,
    load_ratio: GaugeVec,
    memory_ratio: GaugeVec,
    breaker_state: IntGaugeVec,
    hints: IntCounterVec,
    /// Changes of circuit breakers, by cluster, breaker and new state.
    pub breaker_transitions: IntCounterVec,
    /// Jobs that wait for the background.
    pub jobs_waiting: IntGauge,
    /// Jobs that run.
    pub jobs_running: IntGauge,
    /// Bytes of request bodies that jobs hold.
    pub queue_bytes: IntGauge,
    /// Time of a call to the tokenizer.
    pub tokenizer_seconds: Histogram,
    /// Time of a lookup that a request waited for.
    pub lookup_seconds: Histogram,
    /// Remembered tokens.
    pub token_cache: TokenCacheMetrics,
    /// Counted accesses.
    pub hotness: HotnessMetrics,
    /// Actions of which it was forgotten within their interval, to make room, that they were taken.
    pub actions_forgotten: IntCounter,
    /// Instances named by LMCache that no backend is.
    pub unknown_instances: IntCounter,
}

impl KvCacheMetrics {
    fn count(&self, counters: &IntCounterVec, outcome: &str) {
        counters.with_label_values(&[self.cluster.as_str(), outcome]).inc();
    }

    /// The cluster.
    #[must_use]
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Counts a job that ended.
    pub fn job(&self, outcome: &str) {
        self.count(&self.jobs, outcome);
    }

    /// Counts a job that was not taken, or not begun.
    pub fn job_dropped(&self, reason: &str) {
        self.count(&self.jobs_dropped, reason);
    }

    /// Counts a call to the tokenizer: `ok`, or the kind of failure.
    pub fn tokenizer_call(&self, outcome: &str) {
        self.count(&self.tokenizer_calls, outcome);
    }

    /// Counts a lookup: `match`, `no_match`, or the kind of failure.
    pub fn lookup(&self, by: By, outcome: &str) {
        self.lookups.with_label_values(&[self.cluster.as_str(), by.label(), outcome]).inc();
    }

    /// Counts an action that was decided on, by what became of it.
    pub fn action(&self, action: &str, outcome: &str) {
        self.actions.with_label_values(&[self.cluster.as_str(), action, outcome]).inc();
    }

    /// Counts a decision by whose load it was made with.
    pub fn decision(&self, load_source: &str) {
        self.count(&self.decisions, load_source);
    }

    /// Counts a look at a backend's load: `ok`, or the kind of failure.
    pub fn load_poll(&self, outcome: &str) {
        self.count(&self.load_polls, outcome);
    }

    /// Shows the load of one backend.
    pub fn set_load(&self, backend: &str, load_ratio: f64, memory_ratio: f64) {
        let labels = [self.cluster.as_str(), backend];
        self.load_ratio.with_label_values(&labels).set(load_ratio);
        self.memory_ratio.with_label_values(&labels).set(memory_ratio);
    }

    /// Shows where a breaker stands: 0 closed, 1 half open, 2 open.
    pub fn set_breaker_state(&self, breaker: &str, state: i64) {
        self.breaker_state.with_label_values(&[self.cluster.as_str(), breaker]).set(state);
    }

    /// Counts a request by what is known of the caches that hold its prompt: `hint`, or why there is none.
    pub fn hint(&self, outcome: &str) {
        self.count(&self.hints, outcome);
    }

    /// Shows these outcomes of hints from the start, before there are any.
    pub fn show_hints<'a>(&self, outcomes: impl Iterator<Item = &'a str>) {
        for outcome in outcomes {
            self.hints.with_label_values(&[self.cluster.as_str(), outcome]).inc_by(0);
        }
    }
}

impl KvCacheVecs {
    pub(super) fn new(make: &Maker<'_>) -> Result<Self> {
        let counters = |name: &str, help: &str| make.counters(name, help, &["cluster"]);
        let gauges = |name: &str, help: &str| make.gauge_vec(name, help, &["cluster"]);
        let outcomes = |name: &str, help: &str| make.counters(name, help, &["cluster", "outcome"]);
        let ratios = |name: &str, help: &str| make.ratios(name, help, &["cluster", "backend"]);
        let seconds = |name: &str, help: &str, bounds| make.histograms(name, help, &["cluster"], bounds);
        Ok(Self {
            jobs: outcomes("kvcache_jobs_total", "Jobs of the background that ended.")?,
            jobs_dropped: make.counters(
                "kvcache_jobs_dropped_total",
                "Jobs that were not taken, or not begun, by reason.",
                &["cluster", "reason"],
            )?,
            jobs_waiting: gauges("kvcache_jobs_waiting", "Jobs that wait for the background.")?,
            jobs_running: gauges("kvcache_jobs_running", "Jobs of the background that run.")?,
            queue_bytes: gauges("kvcache_queue_bytes", "Bytes of request bodies that jobs hold.")?,
            tokenizer_calls: outcomes("kvcache_tokenizer_calls_total", "Calls to the tokenizer.")?,
            tokenizer_seconds: seconds(
                "kvcache_tokenizer_seconds",
                "Time of a call to the tokenizer.",
                TOKENIZER_SECONDS,
            )?,
            lookups: make.counters(
                "kvcache_lookups_total",
                "Lookups at LMCache, by who asked and what came of it.",
                &["cluster", "by", "outcome"],
            )?,
            lookup_seconds: seconds(
                "kvcache_lookup_seconds",
                "Time of a lookup that a request waited for.",
                LOOKUP_SECONDS,
            )?,
            actions: make.counters(
                "kvcache_actions_total",
                "Actions on cached prompts that were decided on, by what became of them.",
                &["cluster", "action", "outcome"],
            )?,
            decisions: make.counters(
                "kvcache_decisions_total",
                "Decisions about actions, by whose load they were made with.",
                &["cluster", "load_source"],
            )?,
            load_polls: outcomes("kvcache_load_polls_total", "Looks at the load of a backend.")?,
            load_ratio: ratios("kvcache_load_ratio", "Load of a backend, 0 to 1, as decisions see it.")?,
            memory_ratio: ratios("kvcache_memory_ratio", "Share of a backend's KV cache in use, 0 to 1.")?,
            breaker_state: make.gauge_vec(
                "kvcache_breaker_state",
                "0 while calls go through, 1 while some are tried, 2 while none are made.",
                &["cluster", "breaker"],
            )?,
            breaker_transitions: make.counters(
                "kvcache_breaker_transitions_total",
                "Changes of a circuit breaker, by its new state.",
                &["cluster", "breaker", "state"],
            )?,
            token_cache: TokenCacheVecs::new(make)?,
            hotness: HotnessVecs::new(make)?,
            actions_forgotten: counters(
                "kvcache_actions_forgotten_total",
                "Actions that may be repeated before their interval is over: they were forgotten to make room.",
            )?,
            hints: outcomes(
                "kvcache_hints_total",
                "Requests, by what is known of caches with their prompt.",
            )?,
            unknown_instances: counters(
                "kvcache_unknown_instances_total",
                "Instances named by LMCache that no backend of the cluster is.",
            )?,
        })
    }

    pub(super) fn cluster(&self, cluster: &str) -> KvCacheMetrics {
        let counter = |counters: &IntCounterVec| counters.with_label_values(&[cluster]);
        let gauge = |gauges: &IntGaugeVec| gauges.with_label_values(&[cluster]);
        KvCacheMetrics {
            cluster: cluster.to_owned(),
            jobs: self.jobs.clone(),
            jobs_dropped: self.jobs_dropped.clone(),
            tokenizer_calls: self.tokenizer_calls.clone(),
            lookups: self.lookups.clone(),
            actions: self.actions.clone(),
            decisions: self.decisions.clone(),
            load_polls: self.load_polls.clone(),
            load_ratio: self.load_ratio.clone(),
            memory_ratio: self.memory_ratio.clone(),
            breaker_state: self.breaker_state.clone(),
            breaker_transitions: self.breaker_transitions.clone(),
            hints: self.hints.clone(),
            jobs_waiting: gauge(&self.jobs_waiting),
            jobs_running: gauge(&self.jobs_running),
            queue_bytes: gauge(&self.queue_bytes),
            tokenizer_seconds: self.tokenizer_seconds.with_label_values(&[cluster]),
            lookup_seconds: self.lookup_seconds.with_label_values(&[cluster]),
            token_cache: self.token_cache.cluster(cluster),
            hotness: self.hotness.cluster(cluster),
            actions_forgotten: counter(&self.actions_forgotten),
            unknown_instances: counter(&self.unknown_instances),
        }
    }
}

impl HotnessVecs {
    fn new(make: &Maker<'_>) -> Result<Self> {
        let counters = |name: &str, help: &str| make.counters(name, help, &["cluster"]);
        let prompts = "Prompts whose accesses are remembered.";
        Ok(Self {
            hot: counters("kvcache_hot_prompts_total", "Requests whose prompt was hot.")?,
            prompts: make.gauge_vec("kvcache_hotness_prompts", prompts, &["cluster"])?,
            forgotten: counters(
                "kvcache_hotness_forgotten_total",
                "Prompts whose accesses were forgotten to make room.",
            )?,
        })
    }

    fn cluster(&self, cluster: &str) -> HotnessMetrics {
        HotnessMetrics {
            hot: self.hot.with_label_values(&[cluster]),
            prompts: self.prompts.with_label_values(&[cluster]),
            forgotten: self.forgotten.with_label_values(&[cluster]),
        }
    }
}

impl TokenCacheVecs {
    fn new(make: &Maker<'_>) -> Result<Self> {
        let counters = |name: &str, help: &str| make.counters(name, help, &["cluster"]);
        let gauges = |name: &str, help: &str| make.gauge_vec(name, help, &["cluster"]);
        Ok(Self {
            hits: counters("kvcache_token_cache_hits_total", "Requests whose prompt had remembered tokens.")?,
            misses: counters("kvcache_token_cache_misses_total", "Requests whose prompt had none.")?,
            evictions: counters(
                "kvcache_token_cache_evictions_total",
                "Prompts whose tokens were forgotten to make room, or for their age.",
            )?,
            entries: gauges("kvcache_token_cache_entries", "Prompts whose tokens are remembered.")?,
            bytes: gauges("kvcache_token_cache_bytes", "What remembered tokens occupy.")?,
        })
    }

    fn cluster(&self, cluster: &str) -> TokenCacheMetrics {
        TokenCacheMetrics {
            hits: self.hits.with_label_values(&[cluster]),
            misses: self.misses.with_label_values(&[cluster]),
            evictions: self.evictions.with_label_values(&[cluster]),
            entries: self.entries.with_label_values(&[cluster]),
            bytes: self.bytes.with_label_values(&[cluster]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn a_cluster_counts_under_its_own_name() {
        let metrics = Metrics::new().unwrap();
        let (one, other) = (metrics.kvcache("one"), metrics.kvcache("other"));
        one.lookup(By::Request, "match");
        other.lookup(By::Background, "no_match");
        one.action("pin", "ok");
        one.job("done");
        one.breaker_transitions.with_label_values(&["one", "lmcache", "open"]).inc();
        one.set_breaker_state("lmcache", 2);
        one.set_load("vllm-0", 0.5, 0.25);
        let text = metrics.to_text().unwrap();
        for series in [
            r#"kvway_kvcache_lookups_total{by="request",cluster="one",outcome="match"} 1"#,
            r#"kvway_kvcache_lookups_total{by="background",cluster="other",outcome="no_match"} 1"#,
            r#"kvway_kvcache_actions_total{action="pin",cluster="one",outcome="ok"} 1"#,
            r#"kvway_kvcache_jobs_total{cluster="one",outcome="done"} 1"#,
            r#"kvway_kvcache_breaker_transitions_total{breaker="lmcache",cluster="one",state="open"} 1"#,
            r#"kvway_kvcache_breaker_state{breaker="lmcache",cluster="one"} 2"#,
            r#"kvway_kvcache_memory_ratio{backend="vllm-0",cluster="one"} 0.25"#,
            r#"kvway_kvcache_jobs_waiting{cluster="other"} 0"#,
        ] {
            assert!(text.contains(series), "{series} is not in\n{text}");
        }
    }
}
