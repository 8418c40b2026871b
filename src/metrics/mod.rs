//! Every metric of the process in one place, with its help text.
//!
//! May be named by all rooms and names none. Labels are bounded: clusters and backends come from the configuration,
//! the rest from enumerations; nothing that a client sends becomes a label.

mod kvcache;
mod routing;

pub use kvcache::{By, HotnessMetrics, KvCacheMetrics, TokenCacheMetrics};
pub use routing::{RoutingMetrics, Shadow};

use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry,
    TextEncoder,
};
use std::sync::OnceLock;

/// Upper bounds, in seconds, for times from a connection on the same host to a long generation.
const SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
    600.0,
];

/// Upper bounds, in seconds, for the time between two chunks of a stream.
const GAP_SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 10.0];

/// All metrics and the registry that exports them.
pub struct Metrics {
    registry: Registry,
    /// Answers to clients.
    pub requests: IntCounterVec,
    /// Time from the request's header to the end of the answer.
    pub request_seconds: HistogramVec,
    /// Tries sent to backends.
    pub upstream_requests: IntCounterVec,
    /// The same under the name that dubbo-go-pixiu gives them, if asked for.
    pixiu_requests: Option<IntCounterVec>,
    /// Time from the request's header to the first token: the first data of a stream, the header of any other answer.
    pub first_token_seconds: HistogramVec,
    /// Time between two chunks of a stream.
    pub token_gap_seconds: HistogramVec,
    /// Tokens as the engines counted them.
    pub tokens: IntCounterVec,
    /// Tries after the first.
    pub retries: IntCounterVec,
    /// Retries that were wanted and not made.
    pub retries_refused: IntCounterVec,
    /// Requests that were answered by the gateway itself instead of a backend.
    pub rejected: IntCounterVec,
    /// Connections that were closed before a request was understood.
    pub connections_refused: IntCounterVec,
    /// Access log lines that did not fit the buffer.
    pub access_log_dropped: IntCounter,
    /// Model lists that could not be taken from a backend.
    pub model_lists_failed: IntCounterVec,
    /// State read at the moment of the scrape.
    pub gauges: Gauges,
    kvcache: kvcache::KvCacheVecs,
    routing: routing::RoutingVecs,
}

/// Gauges that are set from the state when the metrics are read.
pub struct Gauges {
    /// 1 while the health checks find the backend well.
    pub backend_healthy: IntGaugeVec,
    /// Tries in flight at the backend.
    pub backend_requests: IntGaugeVec,
    /// Uncached prompt tokens sent to the backend whose first token has not come back.
    pub backend_pending_tokens: IntGaugeVec,
    /// Body bytes held by the process.
    pub buffered_bytes: prometheus::IntGauge,
    /// Requests in flight.
    pub requests_in_flight: prometheus::IntGauge,
    /// Client connections.
    pub connections: prometheus::IntGauge,
}

/// The label of what is to be expected of an answer.
const USUAL: &str = "200";

/// A counter by its last label, of which the usual one is looked up once.
#[derive(Clone)]
struct ByOutcome {
    all: IntCounterVec,
    /// The labels before it.
    labels: Vec<String>,
    usual: OnceLock<IntCounter>,
}

impl ByOutcome {
    fn new(all: &IntCounterVec, labels: &[&str]) -> Self {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        Self { all: all.clone(), labels, usual: OnceLock::new() }
    }

    fn inc(&self, outcome: &str) {
        let find = || {
            let labels: Vec<&str> = self.labels.iter().map(String::as_str).chain([outcome]).collect();
            self.all.with_label_values(&labels)
        };
        if outcome == USUAL {
            self.usual.get_or_init(find).inc();
        } else {
            find().inc();
        }
    }
}

/// The metrics of one backend, resolved once so that a request looks nothing up.
#[derive(Clone)]
pub struct BackendMetrics {
    upstream_requests: ByOutcome,
    pixiu_requests: Option<IntCounter>,
    /// See [`Metrics::first_token_seconds`].
    pub first_token_seconds: Histogram,
    /// See [`Metrics::token_gap_seconds`].
    pub token_gap_seconds: Histogram,
}

impl BackendMetrics {
    /// Counts one try that ended with `outcome` (a status code or the kind of failure).
    pub fn tried(&self, outcome: &str) {
        self.upstream_requests.inc(outcome);
        self.pixiu_requests.iter().for_each(IntCounter::inc);
    }
}

/// The metrics of one cluster, resolved once.
#[derive(Clone)]
pub struct ClusterMetrics {
    requests: ByOutcome,
    /// See [`Metrics::request_seconds`].
    pub request_seconds: Histogram,
    /// Tokens of prompts.
    pub prompt_tokens: IntCounter,
    /// Tokens of prompts that were found in the engine's cache.
    pub cached_tokens: IntCounter,
    /// Tokens generated.
    pub completion_tokens: IntCounter,
}

impl ClusterMetrics {
    /// Counts an answer to a client with this status.
    pub fn answered(&self, status: &str) {
        self.requests.inc(status);
    }
}

impl Metrics {
    /// Registers every metric.
    ///
    /// # Errors
    /// When two metrics share a name or a name is malformed: a mistake in this file.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let make = Maker { registry: &registry };
        let metrics = Self {
            requests: make.counters("requests_total", "Answers to clients.", &["cluster", "code"])?,
            request_seconds: make.histograms(
                "request_seconds",
                "Time from the request's header to the end of the answer.",
                &["cluster"],
                SECONDS,
            )?,
            upstream_requests: make.counters(
                "upstream_requests_total",
                "Tries sent to backends, by status code or kind of failure.",
                &["cluster", "backend", "address", "outcome"],
            )?,
            pixiu_requests: None,
            first_token_seconds: make.histograms(
                "first_token_seconds",
                "Time from the request's header to the first data of a stream, or the header of another answer.",
                &["cluster", "backend"],
                SECONDS,
            )?,
            token_gap_seconds: make.histograms(
                "token_gap_seconds",
                "Time between two chunks of a streamed answer.",
                &["cluster", "backend"],
                GAP_SECONDS,
            )?,
            tokens: make.counters(
                "tokens_total",
                "Tokens, from the engines' usage.",
                &["cluster", "kind"],
            )?,
            retries: make.counters(
                "retries_total",
                "Tries after the first, by cause.",
                &["cluster", "cause"],
            )?,
            retries_refused: make.counters(
                "retries_refused_total",
                "Retries that were wanted and not made, by reason.",
                &["cluster", "reason"],
            )?,
            rejected: make.counters(
                "rejected_total",
                "Requests that the gateway answered itself.",
                &["reason"],
            )?,
            connections_refused: make.counters(
                "connections_refused_total",
                "Connections closed before a request was understood: a limit, or a malformed header.",
                &["reason"],
            )?,
            access_log_dropped: make
                .counter("access_log_dropped_lines_total", "Access log lines that did not fit the buffer.")?,
            model_lists_failed: make.counters(
                "model_lists_failed_total",
                "Model lists that could not be taken from a cluster's backends.",
                &["cluster"],
            )?,
            gauges: make.gauges()?,
            kvcache: kvcache::KvCacheVecs::new(&make)?,
            routing: routing::RoutingVecs::new(&make)?,
            registry: registry.clone(),
        };
        make.process()?;
        Ok(metrics)
    }

    /// Counts tries under the name and label of dubbo-go-pixiu as well.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_pixiu_names(mut self) -> prometheus::Result<Self> {
        let options = Opts::new(
            "pixiu_llm_upstream_requests_total",
            "Tries sent to backends, as dubbo-go-pixiu names them.",
        );
        let counters = IntCounterVec::new(options, &["endpoint_address"])?;
        self.registry.register(Box::new(counters.clone()))?;
        self.pixiu_requests = Some(counters);
        Ok(self)
    }

    /// The handles of one backend.
    #[must_use]
    pub fn backend(&self, cluster: &str, id: &str, address: &str) -> BackendMetrics {
        BackendMetrics {
            upstream_requests: ByOutcome::new(&self.upstream_requests, &[cluster, id, address]),
            pixiu_requests: self.pixiu_requests.as_ref().map(|all| all.with_label_values(&[address])),
            first_token_seconds: self.first_token_seconds.with_label_values(&[cluster, id]),
            token_gap_seconds: self.token_gap_seconds.with_label_values(&[cluster, id]),
        }
    }

    /// The handles of one cluster.
    #[must_use]
    pub fn cluster(&self, cluster: &str) -> ClusterMetrics {
        let tokens = |kind: &str| self.tokens.with_label_values(&[cluster, kind]);
        ClusterMetrics {
            requests: ByOutcome::new(&self.requests, &[cluster]),
            request_seconds: self.request_seconds.with_label_values(&[cluster]),
            prompt_tokens: tokens("prompt"),
            cached_tokens: tokens("cached"),
            completion_tokens: tokens("completion"),
        }
    }

    /// The handles of one cluster's KV-cache filter.
    #[must_use]
    pub fn kvcache(&self, cluster: &str) -> KvCacheMetrics {
        self.kvcache.cluster(cluster)
    }

    /// The handles of one cluster's routing, for these reasons of a choice and sources of what is believed.
    #[must_use]
    pub fn routing(
        &self,
        cluster: &str,
        reasons: impl Iterator<Item = &'static str>,
        sources: impl Iterator<Item = &'static str>,
    ) -> RoutingMetrics {
        self.routing.cluster(cluster, reasons, sources)
    }

    /// Everything in the Prometheus text format.
    ///
    /// # Errors
    /// When the encoder fails, which a well-formed registry does not cause.
    pub fn to_text(&self) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

/// Builds metrics and registers them in one step, all under the prefix `kvway_`.
struct Maker<'a> {
    registry: &'a Registry,
}

impl Maker<'_> {
    fn register<C: prometheus::core::Collector + Clone + 'static>(
        &self,
        collector: C,
    ) -> prometheus::Result<C> {
        self.registry.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
        self.register(IntCounterVec::new(Opts::new(format!("kvway_{name}"), help), labels)?)
    }

    fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.register(IntCounter::new(format!("kvway_{name}"), help)?)
    }

    fn gauge(&self, name: &str, help: &str) -> prometheus::Result<prometheus::IntGauge> {
        self.register(prometheus::IntGauge::new(format!("kvway_{name}"), help)?)
    }

    fn gauge_vec(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
        self.register(IntGaugeVec::new(Opts::new(format!("kvway_{name}"), help), labels)?)
    }

    fn ratios(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<GaugeVec> {
        self.register(GaugeVec::new(Opts::new(format!("kvway_{name}"), help), labels)?)
    }

    fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        bounds: &[f64],
    ) -> prometheus::Result<HistogramVec> {
        let options = HistogramOpts::new(format!("kvway_{name}"), help).buckets(bounds.to_vec());
        self.register(HistogramVec::new(options, labels)?)
    }

    /// What holds for the process as a whole.
    fn process(&self) -> prometheus::Result<()> {
        let build = self.gauge_vec("build_info", "1; the labels tell the build.", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        #[cfg(target_os = "linux")]
        self.registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(())
    }

    fn gauges(&self) -> prometheus::Result<Gauges> {
        let backend = &["cluster", "backend"];
        Ok(Gauges {
            backend_healthy: self.gauge_vec(
                "backend_healthy",
                "1 while health checks find it well.",
                backend,
            )?,
            backend_requests: self.gauge_vec("backend_requests_in_flight", "Tries in flight.", backend)?,
            backend_pending_tokens: self.gauge_vec(
                "backend_pending_tokens",
                "Uncached prompt tokens sent whose first token has not come back.",
                backend,
            )?,
            buffered_bytes: self.gauge("buffered_bytes", "Request body bytes held by the process.")?,
            requests_in_flight: self.gauge("requests_in_flight", "Requests in flight.")?,
            connections: self.gauge("connections", "Client connections.")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_pixiu_are_there_only_if_asked_for() {
        const NAME: &str = "pixiu_llm_upstream_requests_total";
        assert!(!Metrics::new().unwrap().to_text().unwrap().contains(NAME));
        let metrics = Metrics::new().unwrap().with_pixiu_names().unwrap();
        let (one, same) = (metrics.backend("c", "a", "h:1"), metrics.backend("d", "a", "h:1"));
        let _idle = metrics.backend("c", "b", "h:2");
        one.tried("200");
        same.tried("connect");
        let text = metrics.to_text().unwrap();
        let lines: Vec<_> = text.lines().filter(|line| line.starts_with(NAME)).collect();
        let line = |address, value| format!("{NAME}{{endpoint_address=\"{address}\"}} {value}");
        assert_eq!(lines, [line("h:1", 2), line("h:2", 0)]);
    }

    #[test]
    fn every_metric_has_a_help_text_and_the_prefix() {
        let metrics = Metrics::new().unwrap();
        metrics.backend("c", "b", "h:1").tried("200");
        let text = metrics.to_text().unwrap();
        assert!(text.contains(
            r#"kvway_upstream_requests_total{address="h:1",backend="b",cluster="c",outcome="200"} 1"#
        ));
        for line in text.lines().filter(|line| line.starts_with("# HELP kvway_")) {
            assert!(line.split(' ').count() > 3, "no help: {line}");
        }
    }
}
