//! A mock vLLM engine: HTTP as recorded, with canned answers or with a simulated KV cache behind them.
//!
//! Tests hold an [`Engine`], which is also a [`Server`]: its counters, gates and faults come from there. Canned mode
//! costs as little as possible, for benchmarks of what stands in front of it; [`Mode::Simulated`] takes time, queues and
//! caches, for showing what routing is worth. It runs no model.

mod answers;
mod ask;
mod batch;
mod cache;
mod generation;
mod metrics;
mod reply;
mod service;
mod simulation;
mod tokenize;
mod tokenizer;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use service::Core;
pub use simulation::SimulatedOptions;

use crate::server::{Answer, Server, Settings, Shared};

/// What an engine is.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct EngineOptions {
    /// Its name, for `x-served-by` and [`Engine::id`].
    pub id: String,
    /// The one model it serves.
    pub model: String,
    /// Where that model says it comes from.
    pub root: String,
    /// How it comes to its answers.
    pub mode: Mode,
    /// Seed of ids and of generated text.
    pub seed: u64,
    /// Whether `/tokenize` and `/detokenize` exist; without, they answer 404.
    pub tokenize: bool,
    /// The longest answer that may be asked for, in tokens.
    pub max_model_len: u64,
    /// How many events a stream has, and how they come.
    pub sse: SseOptions,
    /// The bearer key that guards `/v1`.
    pub api_key: Option<String>,
    /// Whether requests are kept for [`Server::received`], with their hash.
    pub record: bool,
    /// How long a connection may be idle before it is closed; a real engine gives 5 s, `None` is for ever.
    pub keep_alive: Option<Duration>,
    /// Whether a request may ask for its fault with `x-mock-fault`.
    pub faults_by_header: bool,
    /// Whether answers carry `x-served-by`.
    pub served_by: bool,
    /// Whether generated JSON carries `served_by`.
    pub served_by_in_body: bool,
    /// Whether `usage` reports cached tokens.
    pub cached_tokens: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            id: "vllm-0".to_owned(),
            model: "tiny".to_owned(),
            root: "models/tiny-llama".to_owned(),
            mode: Mode::Canned,
            seed: 0,
            tokenize: true,
            max_model_len: 131_072,
            sse: SseOptions::default(),
            api_key: None,
            record: true,
            keep_alive: None,
            faults_by_header: false,
            served_by: false,
            served_by_in_body: false,
            cached_tokens: false,
        }
    }
}

impl EngineOptions {
    fn check_model(&self, model: Option<&str>) -> Result<(), Answer> {
        match model {
            Some(model) if model != self.model => Err(answers::no_such_model(model, self)),
            _ => Ok(()),
        }
    }
}

/// How an engine comes to its answers.
#[derive(Debug, Clone)]
pub enum Mode {
    /// The recorded ones, at once.
    Canned,
    /// Generated ones, in the time that an engine with a KV cache takes.
    Simulated(SimulatedOptions),
}

/// The stream of an answer.
#[derive(Debug, Clone)]
pub struct SseOptions {
    /// Tokens of an answer whose request names no `max_tokens`, each an event.
    pub events: usize,
    /// Time between tokens of a canned stream.
    pub gap: Duration,
    /// Bytes by which the text of every token is made longer.
    pub event_padding_bytes: usize,
}

impl Default for SseOptions {
    fn default() -> Self {
        Self { events: 16, gap: Duration::ZERO, event_padding_bytes: 0 }
    }
}

/// Whether an engine sleeps: health stays good then, and requests hang.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SleepState {
    /// It answers.
    #[default]
    Awake,
    /// Level 1.
    WeightsOffloaded,
    /// Level 2.
    DiscardAll,
}

impl SleepState {
    fn name(self) -> &'static str {
        match self {
            Self::Awake => "awake",
            Self::WeightsOffloaded => "weights_offloaded",
            Self::DiscardAll => "discard_all",
        }
    }
}

/// Numbers to show on `/metrics` in place of the true ones.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// `vllm:num_requests_running`.
    pub running: u32,
    /// `vllm:num_requests_waiting`.
    pub waiting: u32,
    /// `vllm:kv_cache_usage_perc`, 0 to 1.
    pub kv_cache_usage: f64,
}

/// A running mock engine. Dropping it ends it.
///
/// ```no_run
/// use mocks::{Engine, EngineOptions, Fault};
///
/// # async fn example() -> std::io::Result<()> {
/// let engine = Engine::start(EngineOptions::default())?;
/// engine.fail_next(1, Fault::CutStreamAfter(3));
/// let gate = engine.hold_first_token();
/// // … send a request to engine.address() …
/// gate.waiting(1).await;
/// gate.release();
/// engine.until(|stats| stats.path("/v1/chat/completions").failed == 1).await;
/// # Ok(())
/// # }
/// ```
pub struct Engine {
    server: Server,
    core: Arc<Core>,
}

impl Engine {
    /// Starts on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When no port can be bound.
    pub fn start(options: EngineOptions) -> io::Result<Self> {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into(), options)
    }

    /// Starts at an address, also where an earlier mock has just stopped.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn start_at(address: SocketAddr, options: EngineOptions) -> io::Result<Self> {
        let EngineOptions { record, faults_by_header, keep_alive, .. } = options;
        let shared = Shared::new(Settings { record, faults_by_header, keep_alive });
        let core = Arc::new(Core::new(options, Arc::clone(&shared)));
        let server = Server::start(address, shared, Arc::clone(&core) as _)?;
        Ok(Self { server, core })
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.core.options.id
    }

    /// What `/health` answers: 200 or 503.
    pub fn set_health(&self, healthy: bool) {
        self.core.set_health(healthy);
    }

    /// Sends the engine to sleep or wakes it.
    pub fn set_sleep(&self, state: SleepState) {
        self.core.set_sleep(state);
    }

    /// Shows this load on `/metrics`; `None` shows the true one.
    pub fn pretend_load(&self, load: Option<Load>) {
        self.core.pretend_load(load);
    }

    /// Closes the listener and all connections at once, and waits until that is done.
    pub async fn stop(self) {
        self.server.stop().await;
    }
}

impl Deref for Engine {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}
