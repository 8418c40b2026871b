//! Looks at how much the engines of a cluster have to do, and the host.
//!
//! Run as a service by `app`, one per cluster whose strategy asks for it. Every period all backends are asked at once;
//! each has its deadline. It decides nothing: what it saw is in `state::load`.

use crate::clients::throttle::Throttle;
use crate::clients::vllm;
use crate::config::Secret;
use crate::metrics::KvCacheMetrics;
use crate::state::fleet::{Backend, Fleet};
use crate::state::load::{Load, Loads};
use async_trait::async_trait;
use futures::future::join_all;
use parking_lot::Mutex;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior};

/// The longest wait for one engine, unless the period is shorter.
const TIMEOUT: Duration = Duration::from_secs(5);
/// From one line about engines that do not answer to the next.
const TOLD_EVERY: Duration = Duration::from_mins(1);

/// The service that looks.
pub struct LoadService {
    fleet: Arc<Fleet>,
    /// `http://host:port` and the API key of each backend, by index.
    backends: Vec<(String, Option<Secret>)>,
    loads: Arc<Loads>,
    period: Duration,
    metrics: KvCacheMetrics,
    failures: Throttle,
    host: Mutex<Option<Cpu>>,
}

impl LoadService {
    /// A service that looks at these backends, given as `http://host:port` and API key by index, every `period`.
    #[must_use]
    pub fn new(
        fleet: Arc<Fleet>,
        backends: Vec<(String, Option<Secret>)>,
        loads: Arc<Loads>,
        period: Duration,
        metrics: KvCacheMetrics,
    ) -> Self {
        let failures = Throttle::new(TOLD_EVERY);
        Self { fleet, backends, loads, period, metrics, failures, host: Mutex::new(Cpu::now()) }
    }

    /// Looks once.
    pub async fn tick(&self, client: &reqwest::Client) {
        self.look_at_host();
        let backends = self.fleet.backends().iter().zip(&self.backends);
        join_all(backends.map(|(backend, (base, key))| self.look(client, backend, base, key.as_ref()))).await;
    }

    async fn look(&self, client: &reqwest::Client, backend: &Backend, base: &str, key: Option<&Secret>) {
        match vllm::load(client, base, key).await {
            Ok(said) => {
                self.metrics.load_poll("ok");
                let (index, now) = (backend.index, Instant::now());
                let load = self.loads.record(index, said.running, said.waiting, said.cache_usage, now);
                self.metrics.set_load(&backend.id, load.load_ratio, load.memory_ratio);
            }
            Err(error) => {
                self.metrics.load_poll(error.kind());
                if let Some(kept_back) = self.failures.admit(error.operation, Instant::now()) {
                    let (cluster, backend) = (&self.fleet.cluster, &backend.id);
                    tracing::warn!(cluster, backend, kept_back, "[kvcache] {error}");
                }
            }
        }
    }

    fn look_at_host(&self) {
        let now = Cpu::now();
        let before = std::mem::replace(&mut *self.host.lock(), now);
        let load_ratio = before.zip(now).and_then(|(before, now)| before.busy_ratio(now));
        if let (Some(load_ratio), Some(memory_ratio)) = (load_ratio, memory_ratio()) {
            self.loads.record_host(Load { load_ratio, memory_ratio });
        }
    }
}

#[async_trait]
impl BackgroundService for LoadService {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let client = match vllm::client(TIMEOUT.min(self.period)) {
            Ok(client) => client,
            Err(error) => return tracing::error!(%error, "[kvcache] the engines' load is unknown"),
        };
        let mut period = tokio::time::interval(self.period);
        period.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = shutdown.changed() => return,
                _ = period.tick() => self.tick(&client).await,
            }
        }
    }
}

/// What the host's processors did since it started, in ticks of the clock.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cpu {
    idle: u64,
    all: u64,
}

impl Cpu {
    /// The share of the time from here to `later` in which the processors worked; `None` within one tick.
    fn busy_ratio(self, later: Self) -> Option<f64> {
        let all = later.all.checked_sub(self.all).filter(|all| *all > 0)?;
        let idle = later.idle.saturating_sub(self.idle).min(all);
        Some(ratio(all - idle, all))
    }
}

#[cfg(target_os = "linux")]
impl Cpu {
    fn now() -> Option<Self> {
        use procfs::CurrentSI;
        let total = procfs::KernelStats::current().ok()?.total;
        let idle = total.idle + total.iowait.unwrap_or_default();
        let kernel = total.system + total.irq.unwrap_or_default() + total.softirq.unwrap_or_default();
        Some(Self { idle, all: idle + total.user + total.nice + kernel + total.steal.unwrap_or_default() })
    }
}

#[cfg(target_os = "linux")]
fn memory_ratio() -> Option<f64> {
    use procfs::Current;
    let memory = procfs::Meminfo::current().ok()?;
    let used = memory.mem_total.saturating_sub(memory.mem_available?);
    (memory.mem_total > 0).then(|| ratio(used, memory.mem_total))
}

#[cfg(not(target_os = "linux"))]
impl Cpu {
    fn now() -> Option<Self> {
        None
    }
}

#[cfg(not(target_os = "linux"))]
fn memory_ratio() -> Option<f64> {
    None
}

#[expect(clippy::cast_precision_loss, reason = "a ratio needs no more than 52 bits")]
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_in_which_processors_wait_is_not_counted_as_work() {
        let before = Cpu { idle: 100, all: 200 };
        for (later, busy) in [
            (Cpu { idle: 175, all: 300 }, Some(0.25)),
            (Cpu { idle: 100, all: 300 }, Some(1.0)),
            (Cpu { idle: 200, all: 300 }, Some(0.0)),
            (before, None),
            (Cpu { idle: 0, all: 10 }, None),
        ] {
            assert_eq!(before.busy_ratio(later), busy, "{later:?}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_host_tells_what_it_does() {
        let cpu = Cpu::now().unwrap();
        assert!(cpu.all >= cpu.idle && cpu.all > 0);
        assert!(memory_ratio().is_some_and(|ratio| ratio > 0.0 && ratio < 1.0));
    }
}
