//! Reads how much each engine's KV cache holds, and whether it was emptied: the engine has started anew, or sleeps.
//!
//! Run as a service by `app`, one per cluster. An engine is read at the start, every period, and within a second once it is
//! back or while it sleeps; engines whose health checks fail are not asked. Each call has its deadline. A capacity that is
//! configured stays, and so does the one in use where an engine tells none, or one that cannot be. That an engine sleeps is
//! set as its absence: its health checks succeed, and requests would hang.

use crate::clients::call::CallError;
use crate::clients::vllm::{self, EngineCache};
use crate::config::{CAPACITY_TOKENS_MAX, Secret};
use crate::metrics::RoutingMetrics;
use crate::state::blocks::Blocks;
use crate::state::fleet::{Absence, Backend, Fleet};
use async_trait::async_trait;
use futures::future::join_all;
use parking_lot::Mutex;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior};

/// The longest wait for one engine.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How often it is seen who is back.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How an engine is asked.
pub struct Engine {
    /// `http://host:port`.
    pub base: String,
    /// Its API key.
    pub api_key: Option<Secret>,
    /// Whether its capacity is configured, and not to be learned.
    pub capacity_is_configured: bool,
}

/// The service that reads.
pub struct CapacityService {
    fleet: Arc<Fleet>,
    engines: Vec<Engine>,
    blocks: Arc<Blocks>,
    period: Duration,
    metrics: RoutingMetrics,
    seen: Vec<Mutex<Seen>>,
}

/// What was known of an engine when it was read last.
#[derive(Default)]
struct Seen {
    read_at: Option<Instant>,
    returns: usize,
    said: Option<EngineCache>,
}

impl CapacityService {
    /// A service that reads these engines, by index of their backends, every `period`, and tells `blocks`.
    #[must_use]
    pub fn new(
        fleet: Arc<Fleet>,
        engines: Vec<Engine>,
        blocks: Arc<Blocks>,
        period: Duration,
        metrics: RoutingMetrics,
    ) -> Self {
        let seen = fleet.backends().iter().map(|_| Mutex::default()).collect();
        Self { fleet, engines, blocks, period, metrics, seen }
    }

    /// Reads the engines that are due at `now`, all at once.
    pub async fn tick(&self, client: &reqwest::Client, now: Instant) {
        let all = self.fleet.backends().iter().zip(&self.engines).zip(&self.seen);
        let due = all.filter(|((backend, _), seen)| seen.lock().is_due(backend, self.period, now));
        join_all(due.map(|((backend, engine), seen)| self.read(client, backend, engine, seen, now))).await;
    }

    async fn read(
        &self,
        client: &reqwest::Client,
        backend: &Backend,
        engine: &Engine,
        seen: &Mutex<Seen>,
        now: Instant,
    ) {
        // Who is back once more while it answers is read again.
        let returns = backend.returns();
        let answer = vllm::cache(client, &engine.base, engine.api_key.as_ref()).await;
        let outcome = match &answer {
            Ok(said) => self.capacity(backend, engine, said),
            Err(error) => error.kind(),
        };
        self.metrics.capacity_poll(outcome);
        if let Err(error) = &answer {
            let (cluster, backend) = (&self.fleet.cluster, &backend.id);
            tracing::debug!(cluster, backend, %error, "what an engine's cache holds is not known");
        }
        let mut seen = seen.lock();
        let emptied = seen.emptied(returns, &answer);
        if let Some(cause) = emptied {
            self.blocks.clear(backend.index);
            self.metrics.cleared(cause);
        }
        match &answer {
            Ok(EngineCache { asleep: Some(asleep), .. }) => self.tell_sleep(backend, *asleep),
            Err(_) if emptied.is_some() => self.tell_sleep(backend, false),
            _ => {}
        }
        // One that did not answer this time can be compared the next time, unless it counts as another already.
        let known = seen.said.filter(|_| emptied.is_none());
        *seen = Seen { read_at: Some(now), returns, said: answer.ok().or(known) };
    }

    /// Sets what the engine says that it holds, if that can be; what became of it.
    fn capacity(&self, backend: &Backend, engine: &Engine, said: &EngineCache) -> &'static str {
        let Some(tokens) = said.capacity_tokens else { return "absent" };
        let tokens = usize::try_from(tokens).unwrap_or(usize::MAX);
        if !(1..=CAPACITY_TOKENS_MAX).contains(&tokens) {
            return "implausible";
        }
        if !engine.capacity_is_configured && self.blocks.capacity(backend.index) != tokens {
            self.blocks.set_capacity(backend.index, tokens);
            tracing::info!(
                cluster = self.fleet.cluster,
                backend = backend.id,
                tokens,
                "capacity of a backend's cache"
            );
        }
        "ok"
    }

    fn tell_sleep(&self, backend: &Backend, asleep: bool) {
        if asleep != backend.is(Absence::Sleeping) {
            backend.set(Absence::Sleeping, asleep);
            let (cluster, backend) = (&self.fleet.cluster, &backend.id);
            tracing::info!(cluster, backend, asleep, "a backend sleeps, or is awake again");
        }
    }
}

impl Seen {
    fn is_due(&self, backend: &Backend, period: Duration, now: Instant) -> bool {
        let at_once = backend.returns() != self.returns || backend.is(Absence::Sleeping);
        backend.is_healthy() && (at_once || self.read_at.is_none_or(|read_at| now >= read_at + period))
    }

    /// Why nothing that the engine had cached is there any more. Of an engine that was gone for a while and does not tell
    /// otherwise it is taken that it has started anew.
    fn emptied(&self, returns: usize, answer: &Result<EngineCache, CallError>) -> Option<&'static str> {
        let was_gone = returns != self.returns;
        let Ok(said) = answer else { return was_gone.then_some("restarted") };
        let was_asleep = self.said.and_then(|before| before.asleep);
        if said.asleep == Some(true) && was_asleep != Some(true) {
            return Some("asleep");
        }
        let is_new = self.said.and_then(|before| is_new(&before, said)).unwrap_or(was_gone);
        is_new.then_some("restarted")
    }
}

/// Whether an engine has started between two reads; `None` = it does not tell.
fn is_new(before: &EngineCache, now: &EngineCache) -> Option<bool> {
    if let Some((before, now)) = before.counting_since.zip(now.counting_since) {
        return Some(before.to_bits() != now.to_bits());
    }
    let (before, now) = before.prompt_tokens.zip(now.prompt_tokens)?;
    (now < before).then_some(true)
}

#[async_trait]
impl BackgroundService for CapacityService {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let client = match vllm::client(TIMEOUT) {
            Ok(client) => client,
            Err(error) => return tracing::error!(%error, "the engines' capacities are unknown"),
        };
        let mut looks = tokio::time::interval(LOOK_EVERY.min(self.period));
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = shutdown.changed() => return,
                _ = looks.tick() => self.tick(&client, Instant::now()).await,
            }
        }
    }
}
