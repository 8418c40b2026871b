//! What the admin listener tells of the running gateway: metrics and state.
//!
//! Called through the closures that [`App::admin`] hands over.

use super::App;
use crate::state::fleet::Absence;
use serde_json::json;
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
}
