//! The service that runs the jobs which requests of one cluster hand over.
//!
//! Started by `app`, one per cluster with the KV-cache filter. Bounded by `queue_jobs_max` and `queue_bytes_max` (the
//! inbox) and `workers_max` (jobs that tokenize or look up at a time, and as many that act, so that slow actions hold
//! nothing else up). No request waits for it, and it touches none. When the process ends it
//! gives up what waits, and lets a control action that was sent come to its end.

use super::actions::Actions;
use super::course::{self, Desk};
use crate::clients::breaker::Breaker;
use crate::clients::lmcache::Lmcache;
use crate::clients::vllm::Tokenizer;
use crate::config::{KvCache, Secret};
use crate::metrics::KvCacheMetrics;
use crate::state::flights::Flights;
use crate::state::inbox::Inbox;
use crate::state::lifecycle::Lifecycle;
use crate::state::load::Loads;
use crate::state::tokens::TokenCache;
use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// For so long jobs gather before they are taken, so that not every request wakes the service.
const BATCH_DELAY: Duration = Duration::from_millis(5);

/// The service of one cluster.
pub struct JobsService {
    /// What is to be done, and its bounds.
    pub config: KvCache,
    /// The key that the tokenizer asks for.
    pub tokenizer_key: Option<Secret>,
    /// The breaker before the tokenizer.
    pub tokenizer_breaker: Arc<Breaker>,
    /// The breaker before LMCache, which the lookups of requests share.
    pub lmcache_breaker: Arc<Breaker>,
    /// Where the jobs come from.
    pub inbox: Arc<Inbox>,
    /// Where tokens go, and what is known already.
    pub token_cache: Arc<TokenCache>,
    /// What the backends are called by LMCache, and how loaded they are.
    pub loads: Arc<Loads>,
    /// Kept from ending while a control action runs.
    pub lifecycle: Arc<Lifecycle>,
    /// Where all of it is counted.
    pub metrics: KvCacheMetrics,
}

impl JobsService {
    fn desk(&self) -> reqwest::Result<Desk> {
        let config = &self.config;
        let lmcache = Arc::new(Lmcache::new(config, Arc::clone(&self.lmcache_breaker))?);
        let (lifecycle, metrics) = (Arc::clone(&self.lifecycle), self.metrics.clone());
        Ok(Desk {
            tokenizer: Tokenizer::new(
                config,
                self.tokenizer_key.as_ref(),
                Arc::clone(&self.tokenizer_breaker),
            )?,
            actions: Actions::new(
                self.lmcache_breaker.cluster(),
                config,
                Arc::clone(&lmcache),
                lifecycle,
                metrics,
            ),
            lmcache,
            token_cache: Arc::clone(&self.token_cache),
            loads: Arc::clone(&self.loads),
            tokenizing: Flights::default(),
            looking_up: Flights::default(),
            metrics: self.metrics.clone(),
            stopping: CancellationToken::new(),
            acting: Arc::new(Semaphore::new(config.workers_max)),
            config: config.clone(),
        })
    }

    /// Takes jobs until the process ends, and waits for those that run then.
    async fn run(&self, desk: Arc<Desk>, mut shutdown: ShutdownWatch) {
        let mut running = JoinSet::new();
        let mut not_before = Instant::now();
        let arrived = async |not_before| {
            self.inbox.arrived().await;
            tokio::time::sleep_until(not_before).await;
        };
        let workers = Arc::new(Semaphore::new(self.config.workers_max));
        loop {
            let free = workers.available_permits();
            tokio::select! {
                _ = shutdown.changed() => break,
                Some(_ended) = running.join_next() => {}
                _one_is_free = workers.acquire(), if free == 0 => {}
                () = arrived(not_before), if free > 0 => {
                    for job in self.inbox.take(free) {
                        let worker = Arc::clone(&workers).try_acquire_owned().ok();
                        running.spawn(course::run(Arc::clone(&desk), job, worker));
                    }
                    if self.inbox.waiting() == 0 {
                        not_before = Instant::now() + BATCH_DELAY;
                    }
                }
            }
        }
        desk.stopping.cancel();
        for _given_up in 0..self.inbox.close() {
            self.metrics.job_dropped("shutdown");
        }
        while running.join_next().await.is_some() {}
    }
}

#[async_trait]
impl BackgroundService for JobsService {
    async fn start(&self, shutdown: ShutdownWatch) {
        match self.desk() {
            Ok(desk) => self.run(Arc::new(desk), shutdown).await,
            Err(error) => {
                tracing::error!(%error, "[kvcache] nothing is tokenized, looked up or done");
                self.inbox.close();
            }
        }
    }
}
