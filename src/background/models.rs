//! Keeps the list of models that each cluster serves.
//!
//! Every period the first healthy backend of each cluster is asked; the backends of a cluster serve the same models. A
//! cluster that cannot be asked keeps its last list.

use crate::clients::vllm;
use crate::config::Secret;
use crate::metrics::Metrics;
use crate::state::fleet::Fleet;
use crate::state::models::{self, ModelList};
use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use std::sync::Arc;
use std::time::Duration;

/// How long one backend may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Where the models of one cluster are asked for.
pub struct Source {
    /// The backends, for their health.
    pub fleet: Arc<Fleet>,
    /// `http://host:port` and the API key of each backend, by index.
    pub backends: Vec<(String, Option<Secret>)>,
}

/// The service that asks.
pub struct ModelsService {
    /// One per cluster, in configuration order.
    pub sources: Vec<Source>,
    /// Where the answers go.
    pub list: Arc<ModelList>,
    /// The longest answer that is taken.
    pub bytes_max: usize,
    /// How often each cluster is asked.
    pub period: Duration,
    /// Where failures are counted.
    pub metrics: Arc<Metrics>,
}

impl ModelsService {
    /// Asks every cluster once.
    pub async fn tick(&self, client: &reqwest::Client) {
        for (index, source) in self.sources.iter().enumerate() {
            match self.ask(client, source).await {
                Some(models) => self.list.set(index, models),
                None => self.metrics.model_lists_failed.with_label_values(&[&source.fleet.cluster]).inc(),
            }
        }
    }

    async fn ask(&self, client: &reqwest::Client, source: &Source) -> Option<Vec<models::Model>> {
        let healthy = source.fleet.backends().iter().filter(|backend| backend.is_healthy());
        for backend in healthy {
            let Some((base, api_key)) = source.backends.get(backend.index) else {
                continue;
            };
            let answer = vllm::models(client, base, api_key.as_ref(), self.bytes_max).await;
            match answer.map(|answer| models::parse(&answer)) {
                Ok(Some(models)) => return Some(models),
                Ok(None) => tracing::debug!(backend = backend.id, "no model list in the answer"),
                Err(error) => tracing::debug!(backend = backend.id, %error, "no model list"),
            }
        }
        None
    }
}

#[async_trait]
impl BackgroundService for ModelsService {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let client = match vllm::client(TIMEOUT) {
            Ok(client) => client,
            Err(error) => return tracing::error!(%error, "model lists are not fetched"),
        };
        let mut period = tokio::time::interval(self.period);
        loop {
            tokio::select! {
                _ = shutdown.changed() => return,
                _ = period.tick() => self.tick(&client).await,
            }
        }
    }
}
