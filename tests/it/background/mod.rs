//! The work in the background that no request waits for: jobs, what they decide and do, and how loaded engines are.
//!
//! The service runs in the test's own runtime, one thread, against the mocks. Nothing depends on how long something
//! takes: gates hold calls, and where time has to pass the clock is moved.

mod actions;
mod bounds;
mod ending;
mod evictions;
mod load;
mod sharing;
mod steps;

use crate::world::{until, within};
use kvway::background::jobs::JobsService;
use kvway::clients::breaker::Breaker;
use kvway::config::{CacheStrategy, CircuitBreaker, KvCache, Retry, TokenCache as TokenCacheConfig};
use kvway::metrics::Metrics;
use kvway::state::inbox::{Found, Inbox, Job, Prompt, Text};
use kvway::state::lifecycle::Lifecycle;
use kvway::state::load::Loads;
use kvway::state::tokens::{Counters, PromptKey, TokenCache};
use mocks::{Controller, ControllerOptions, Engine, EngineOptions};
use pingora::services::background::BackgroundService;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Longer than a test takes.
const LONG: Duration = Duration::from_mins(5);

/// The service of a cluster whose backends LMCache knows as `a` and `b`, with a tokenizer and an LMCache.
struct Service {
    engine: Engine,
    controller: Controller,
    inbox: Arc<Inbox>,
    tokens: Arc<TokenCache>,
    loads: Arc<Loads>,
    lifecycle: Arc<Lifecycle>,
    metrics: Arc<Metrics>,
    shutdown: watch::Sender<bool>,
    running: JoinSet<()>,
}

/// A section that pins, remembers tokens, looks every prompt up and tries nothing twice; its times are long.
fn section() -> KvCache {
    KvCache {
        enabled: true,
        request_timeout: LONG,
        control_timeout: LONG,
        action_interval: LONG,
        lookup_tokens_min: 0,
        retry: Retry { max_attempts: 1, ..Retry::default() },
        circuit_breaker: CircuitBreaker { failure_threshold: 100, ..CircuitBreaker::default() },
        token_cache: TokenCacheConfig { enabled: true, ..TokenCacheConfig::default() },
        cache_strategy: CacheStrategy {
            enable_pinning: true,
            hot_content_threshold: 1,
            ..Default::default()
        },
        ..KvCache::default()
    }
}

impl Service {
    /// With a controller at which `a` holds everything.
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut KvCache)) -> Self {
        let controller = ControllerOptions { prefer: Some("a".to_owned()), ..ControllerOptions::default() };
        Self::with_controller(controller, change)
    }

    fn with_controller(controller: ControllerOptions, change: impl FnOnce(&mut KvCache)) -> Self {
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let engine = Engine::start(EngineOptions::default()).unwrap();
        let controller = Controller::start(controller).unwrap();
        let mut config = section();
        config.vllm_endpoint = Some(format!("http://{}", engine.address()));
        config.lmcache_endpoint = Some(format!("http://{}", controller.address()));
        change(&mut config);
        let metrics = Arc::new(Metrics::new().unwrap());
        let of_cluster = metrics.kvcache("chat");
        let transitions = &of_cluster.breaker_transitions;
        let breaker =
            |name| Arc::new(Breaker::new(name, "chat", &config.circuit_breaker, transitions.clone()));
        let counters = Counters {
            hits: of_cluster.token_cache.hits.clone(),
            misses: of_cluster.token_cache.misses.clone(),
            evictions: of_cluster.token_cache.evictions.clone(),
        };
        let service = JobsService {
            tokenizer_key: None,
            tokenizer_breaker: breaker("tokenizer"),
            lmcache_breaker: breaker("lmcache"),
            inbox: Inbox::new(config.queue_jobs_max, config.queue_bytes_max),
            token_cache: Arc::new(TokenCache::new(&config.token_cache, counters)),
            loads: Loads::new(vec!["a".to_owned(), "b".to_owned()], LONG),
            lifecycle: Lifecycle::new(),
            metrics: of_cluster.clone(),
            config,
        };
        let (shutdown, watch) = watch::channel(false);
        let (inbox, tokens) = (Arc::clone(&service.inbox), Arc::clone(&service.token_cache));
        let (loads, lifecycle) = (Arc::clone(&service.loads), Arc::clone(&service.lifecycle));
        let mut running = JoinSet::new();
        running.spawn(async move { service.start(watch).await });
        Self { engine, controller, inbox, tokens, loads, lifecycle, metrics, shutdown, running }
    }

    fn push(&self, job: Job) {
        assert_eq!(self.inbox.push(job), Ok(()));
    }

    /// Waits until `jobs` run and each of them has gone as far as it can without news from outside.
    async fn working(&self, jobs: usize) {
        until(|| self.inbox.running() == jobs).await;
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }

    /// Waits until no job waits or runs.
    async fn idle(&self) {
        until(|| self.inbox.waiting() + self.inbox.running() == 0).await;
    }

    /// Runs a job to its end.
    async fn run(&self, job: Job) {
        self.push(job);
        self.idle().await;
    }

    /// Ends the service, and waits until it has ended.
    async fn end(&mut self) {
        self.shutdown.send_replace(true);
        within(self.running.join_next()).await.unwrap().unwrap();
    }

    /// How many requests the tokenizer and LMCache have met on `path`.
    fn calls(&self, path: &str) -> u64 {
        self.engine.stats().path(path).received + self.controller.stats().path(path).received
    }

    /// The bodies that LMCache has received on `path`.
    fn bodies(&self, path: &str) -> Vec<Value> {
        let received = self.controller.received().into_iter().filter(|call| call.path_and_query == path);
        received.map(|call| serde_json::from_slice(&call.body).unwrap()).collect()
    }

    /// The value of a counter, named without its prefix and with its labels other than the cluster in order.
    fn count(&self, name: &str, labels: &str) -> u64 {
        let text = self.metrics.to_text().unwrap();
        let of_name = |line: &&str| line.starts_with(&format!("kvway_kvcache_{name}{{"));
        let labels = labels.split(',').filter(|label| !label.is_empty()).map(|label| {
            let (key, value) = label.split_once('=').unwrap();
            format!(r#"{key}="{value}""#)
        });
        let labels: Vec<String> = labels.collect();
        let matching =
            text.lines().filter(of_name).filter(|line| labels.iter().all(|label| line.contains(label)));
        matching.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    /// How many jobs ended so.
    fn ended(&self, outcome: &str) -> u64 {
        self.count("jobs_total", &format!("outcome={outcome}"))
    }
}

/// A hot job whose prompt is to be tokenized and looked up.
fn job(key: u128, text: &str) -> Job {
    let body = serde_json::json!({"model": "tiny", "prompt": text}).to_string();
    Job {
        key: PromptKey(key),
        model: "tiny".into(),
        cache_salt: None,
        prompt: Prompt::Text(Text { body: body.into(), authorization: None, share: None }),
        found: Vec::new(),
        hot: true,
        handed_over: Instant::now(),
        aborted: CancellationToken::new(),
    }
}

/// A hot job whose prompt was found at an instance.
fn found_at(key: u128, instance: &str) -> Job {
    let found = Found { instance: instance.to_owned(), location: "cpu".to_owned(), tokens: 3 };
    Job { prompt: Prompt::Tokens(vec![1, 2, 3].into()), found: vec![found], ..job(key, "") }
}

/// Lets time pass at once.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}
