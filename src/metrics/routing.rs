//! The metrics of routing by prefixes, and the handles that one cluster holds of them.
//!
//! Called by `proxy` (choices, and what came of them), `background` (what engines say of their caches) and, for what is read
//! at a scrape, by `app`. Reasons, sources and outcomes come from enumerations.

use super::Maker;
use prometheus::{GaugeVec, IntCounter, IntCounterVec, IntGaugeVec, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// All of them, by cluster.
pub(super) struct RoutingVecs {
    models_forgotten: IntCounterVec,
    decisions: IntCounterVec,
    predicted: IntCounterVec,
    reported: IntCounterVec,
    unkeyed: IntCounterVec,
    evicted: IntCounterVec,
    withdrawn: IntCounterVec,
    truncated: IntCounterVec,
    cleared: IntCounterVec,
    capacity_polls: IntCounterVec,
    shadow_bytes: IntGaugeVec,
    backends: BackendVecs,
}

/// What is shown of each backend.
#[derive(Clone)]
struct BackendVecs {
    weight: GaugeVec,
    blocks: IntGaugeVec,
    tokens: IntGaugeVec,
    capacity: IntGaugeVec,
    prefill_rate: GaugeVec,
}

/// The metrics of one cluster's routing, resolved once.
#[derive(Clone)]
pub struct RoutingMetrics {
    cluster: String,
    /// Models whose tokens per byte were forgotten to make room.
    pub models_forgotten: IntCounter,
    /// Choices, by the place of their reason among those given.
    pub decisions: Box<[IntCounter]>,
    /// Tokens that were said to be cached where the request went, by the place of who said so among those given; of requests
    /// whose engine reported cached tokens.
    pub predicted_cached_tokens: Box<[IntCounter]>,
    /// Tokens that the engine found in its cache, of the same requests.
    pub reported_cached_tokens: IntCounter,
    /// Blocks beyond those that are told apart.
    pub unkeyed_blocks: IntCounter,
    evicted: Total,
    withdrawn: Total,
    truncated: Total,
    cleared: IntCounterVec,
    capacity_polls: IntCounterVec,
    shadow_bytes: prometheus::IntGauge,
    backends: BackendVecs,
}

/// What the shadow of a cache holds, at a scrape.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Shadow {
    /// Blocks.
    pub blocks: usize,
    /// Tokens of these, and of what is never found again.
    pub tokens: usize,
    /// Tokens that it has room for.
    pub capacity_tokens: usize,
}

/// A counter that follows one kept elsewhere.
#[derive(Clone)]
struct Total {
    counter: IntCounter,
    seen: Arc<AtomicU64>,
}

impl Total {
    fn new(counter: IntCounter) -> Self {
        Self { counter, seen: Arc::default() }
    }

    /// Of totals that are told at once the larger counts, and nothing counts twice.
    fn follow(&self, total: u64) {
        let seen = self.seen.fetch_max(total, Ordering::Relaxed);
        self.counter.inc_by(total.saturating_sub(seen));
    }
}

impl RoutingVecs {
    pub(super) fn new(make: &Maker<'_>) -> Result<Self> {
        let blocks = |name: &str, help: &str| make.counters(name, help, &["cluster"]);
        Ok(Self {
            models_forgotten: make.counters(
                "routing_models_forgotten_total",
                "Models whose tokens per byte were forgotten to make room.",
                &["cluster"],
            )?,
            decisions: make.counters(
                "decisions_total",
                "Choices of a backend for a try, by reason.",
                &["cluster", "reason"],
            )?,
            predicted: make.counters(
                "predicted_cached_tokens_total",
                "Tokens said to be cached where a request went, by who said so; where the engine reported any.",
                &["cluster", "source"],
            )?,
            reported: make.counters(
                "reported_cached_tokens_total",
                "Tokens that engines reported as cached, of the same requests.",
                &["cluster"],
            )?,
            unkeyed: blocks("prefix_unkeyed_blocks_total", "Blocks of prompts beyond prefix.blocks_max.")?,
            evicted: blocks("shadow_evicted_blocks_total", "Blocks forgotten for want of capacity.")?,
            withdrawn: blocks("shadow_withdrawn_blocks_total", "Blocks forgotten because a try failed.")?,
            truncated: blocks("shadow_truncated_blocks_total", "Blocks forgotten because LMCache had less.")?,
            cleared: make.counters(
                "shadow_cleared_total",
                "Caches of which all was forgotten, by cause.",
                &["cluster", "cause"],
            )?,
            capacity_polls: make.counters(
                "capacity_polls_total",
                "Reads of what an engine says of its cache, by outcome.",
                &["cluster", "outcome"],
            )?,
            shadow_bytes: make.gauge_vec(
                "shadow_bytes",
                "Memory that the shadows of the engines' caches take.",
                &["cluster"],
            )?,
            backends: BackendVecs::new(make)?,
        })
    }

    pub(super) fn cluster(
        &self,
        cluster: &str,
        reasons: impl Iterator<Item = &'static str>,
        sources: impl Iterator<Item = &'static str>,
    ) -> RoutingMetrics {
        let count = |vec: &IntCounterVec| vec.with_label_values(&[cluster]);
        let total = |vec: &IntCounterVec| Total::new(count(vec));
        RoutingMetrics {
            models_forgotten: count(&self.models_forgotten),
            decisions: reasons.map(|name| self.decisions.with_label_values(&[cluster, name])).collect(),
            predicted_cached_tokens: sources
                .map(|name| self.predicted.with_label_values(&[cluster, name]))
                .collect(),
            reported_cached_tokens: count(&self.reported),
            unkeyed_blocks: count(&self.unkeyed),
            evicted: total(&self.evicted),
            withdrawn: total(&self.withdrawn),
            truncated: total(&self.truncated),
            cleared: self.cleared.clone(),
            capacity_polls: self.capacity_polls.clone(),
            shadow_bytes: self.shadow_bytes.with_label_values(&[cluster]),
            backends: self.backends.clone(),
            cluster: cluster.to_owned(),
        }
    }
}

impl BackendVecs {
    fn new(make: &Maker<'_>) -> Result<Self> {
        let labels = &["cluster", "backend"];
        Ok(Self {
            weight: make.ratios(
                "source_weight",
                "How much of what a source says of a backend's cache is believed, 0 to 1.",
                &["cluster", "backend", "source"],
            )?,
            blocks: make.gauge_vec(
                "shadow_blocks",
                "Blocks that the backend is believed to hold.",
                labels,
            )?,
            tokens: make.gauge_vec(
                "shadow_tokens",
                "Tokens that take room there, as is believed.",
                labels,
            )?,
            capacity: make.gauge_vec(
                "shadow_capacity_tokens",
                "Tokens that the backend's cache is taken to hold.",
                labels,
            )?,
            prefill_rate: make.ratios(
                "backend_prefill_tokens_per_second",
                "Tokens of prompts that the backend computes in a second, as its streams have shown.",
                labels,
            )?,
        })
    }
}

impl RoutingMetrics {
    /// Counts a read of what an engine says of its cache.
    pub fn capacity_poll(&self, outcome: &str) {
        self.capacity_polls.with_label_values(&[&self.cluster, outcome]).inc();
    }

    /// Counts a cache of which all was forgotten.
    pub fn cleared(&self, cause: &str) {
        self.cleared.with_label_values(&[&self.cluster, cause]).inc();
    }

    /// Counts what the shadows have forgotten so far, in blocks, and shows what memory they take.
    pub fn set_shadows(&self, evicted: u64, withdrawn: u64, truncated: u64, bytes: usize) {
        self.evicted.follow(evicted);
        self.withdrawn.follow(withdrawn);
        self.truncated.follow(truncated);
        self.shadow_bytes.set(gauge(bytes));
    }

    /// Shows what a backend is believed to hold.
    pub fn set_shadow(&self, backend: &str, shadow: Shadow) {
        let labels = [self.cluster.as_str(), backend];
        let BackendVecs { blocks, tokens, capacity, .. } = &self.backends;
        blocks.with_label_values(&labels).set(gauge(shadow.blocks));
        tokens.with_label_values(&labels).set(gauge(shadow.tokens));
        capacity.with_label_values(&labels).set(gauge(shadow.capacity_tokens));
    }

    /// Shows how much is believed of what a source says of a backend.
    pub fn set_weight(&self, backend: &str, source: &str, weight: f64) {
        self.backends.weight.with_label_values(&[&self.cluster, backend, source]).set(weight);
    }

    /// Shows how fast a backend computes prompts.
    pub fn set_prefill_rate(&self, backend: &str, tokens_per_second: f64) {
        self.backends.prefill_rate.with_label_values(&[&self.cluster, backend]).set(tokens_per_second);
    }
}

fn gauge(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_total_is_counted_once_whoever_tells_it() {
        let total = Total::new(IntCounter::new("blocks", "Blocks.").unwrap());
        for told in [3, 7, 5, 7, 8] {
            total.follow(told);
        }
        assert_eq!(total.counter.get(), 8);
    }
}
