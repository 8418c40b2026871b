//! The metrics of routing by prefixes, and the handles that one cluster holds of them.
//!
//! Called by `proxy` and, for what is read at a scrape, by `app`.

use super::Maker;
use prometheus::{IntCounter, IntCounterVec, Result};

/// All of them, by cluster.
pub(super) struct RoutingVecs {
    models_forgotten: IntCounterVec,
}

/// The metrics of one cluster's routing.
#[derive(Clone)]
pub struct RoutingMetrics {
    /// Models whose tokens per byte were forgotten to make room.
    pub models_forgotten: IntCounter,
}

impl RoutingVecs {
    pub(super) fn new(make: &Maker<'_>) -> Result<Self> {
        Ok(Self {
            models_forgotten: make.counters(
                "routing_models_forgotten_total",
                "Models whose tokens per byte were forgotten to make room.",
                &["cluster"],
            )?,
        })
    }

    pub(super) fn cluster(&self, cluster: &str) -> RoutingMetrics {
        RoutingMetrics { models_forgotten: self.models_forgotten.with_label_values(&[cluster]) }
    }
}
