//! What the admin listener tells of the running gateway: metrics, state, the last decisions.
//!
//! Called through the closures that [`App::admin`] hands over.

use super::App;
use crate::metrics::Shadow;
use crate::proxy::cluster::Cluster;
use crate::state::fleet::Absence;
use crate::state::trust::Source;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

impl App {
    pub(super) fn render_metrics(&self) -> String {
        let gauges = &self.metrics.gauges;
        let gauge = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        for cluster in &self.clusters {
            if let Some(hints) = &cluster.hints {
                hints.render_metrics(Instant::now());
            }
            for backend in cluster.fleet.backends() {
                let labels = [cluster.name(), backend.id.as_str()];
                let load = backend.load(Instant::now());
                gauges.backend_healthy.with_label_values(&labels).set(i64::from(backend.is_healthy()));
                gauges.backend_requests.with_label_values(&labels).set(gauge(load.requests));
                let pending = gauges.backend_pending_tokens.with_label_values(&labels);
                pending.set(gauge(load.pending_tokens));
            }
            show_routing(cluster);
        }
        gauges.buffered_bytes.set(gauge(self.budget.used()));
        gauges.requests_in_flight.set(gauge(self.lifecycle.in_flight()));
        gauges.connections.set(gauge(self.connections.count()));
        self.metrics.to_text().unwrap_or_else(|error| format!("# {error}\n"))
    }

    pub(super) fn render_state(&self) -> String {
        let clusters = self.clusters.iter().map(|cluster| {
            let backends = cluster.fleet.backends().iter().map(|backend| {
                let load = backend.load(Instant::now());
                json!({
                    "id": backend.id,
                    "address": backend.address,
                    "resolved": backend.resolved(),
                    "weight": backend.weight,
                    "healthy": backend.is_healthy(),
                    "requests_in_flight": load.requests,
                    "absence": backend.absence().map(Absence::name),
                    "pending_tokens": load.pending_tokens,
                    "prefill_tokens_per_second": backend.prefill_rate(),
                    "cache": cache(cluster, backend.index),
                })
            });
            json!({
                "name": cluster.name(),
                "policy": cluster.rules.policy,
                "backends": backends.collect::<Vec<_>>(),
            })
        });
        let state = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "phase": format!("{:?}", self.lifecycle.phase()).to_ascii_lowercase(),
            "requests_in_flight": self.lifecycle.in_flight(),
            "connections": self.connections.count(),
            "buffered_bytes": self.budget.used(),
            "clusters": clusters.collect::<Vec<_>>(),
        });
        format!("{state:#}\n")
    }

    pub(super) fn render_decisions(&self) -> String {
        let decisions = self.decisions.newest_first();
        let lines = decisions.iter().filter_map(|decision| serde_json::to_string(&**decision).ok());
        let lines = lines.collect::<Vec<_>>().join(",\n");
        format!("{{\"forgotten\": {}, \"decisions\": [\n{lines}\n]}}\n", self.decisions.forgotten())
    }
}

/// Shows what a cluster believes of its engines' caches, and how fast they are.
fn show_routing(cluster: &Cluster) {
    let (blocks, routing) = (&cluster.blocks, &cluster.routing);
    routing.set_shadows(blocks.evicted(), blocks.withdrawn(), blocks.truncated(), blocks.bytes());
    for backend in cluster.fleet.backends() {
        let (id, index) = (&backend.id, backend.index);
        let shadow = Shadow {
            blocks: blocks.blocks(index),
            tokens: blocks.tokens(index),
            capacity_tokens: blocks.capacity(index),
        };
        routing.set_shadow(id, shadow);
        for source in Source::ALL {
            routing.set_weight(id, source.name(), cluster.trust.weight(index, source));
        }
        if let Some(rate) = backend.prefill_rate() {
            routing.set_prefill_rate(id, rate);
        }
    }
}

/// What a cluster believes of a backend's cache.
fn cache(cluster: &Cluster, backend: usize) -> Value {
    let weights: Map<String, Value> = Source::ALL
        .into_iter()
        .map(|source| (source.name().to_owned(), cluster.trust.weight(backend, source).into()))
        .collect();
    json!({
        "capacity_tokens": cluster.blocks.capacity(backend),
        "tokens": cluster.blocks.tokens(backend),
        "blocks": cluster.blocks.blocks(backend),
        "weights": weights,
    })
}
