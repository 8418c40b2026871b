//! How much the engines of a cluster have to do, and the host that the gateway runs on.
//!
//! Written by `background::load`; read by `background` before it decides about cached prompts. Bounded by the configured
//! backends. What is too old is not given out: then the host's own load stands in.

use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// After so many periods without news a backend's load is too old.
const STALE_PERIODS: u32 = 3;

/// A load, each part from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// What there is to do, against what can be done.
    pub load_ratio: f64,
    /// What is in use of the memory that matters: an engine's KV cache, a host's main memory.
    pub memory_ratio: f64,
}

/// Whose load it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Source {
    /// The engine's own.
    Engine,
    /// That of the gateway's host.
    Host,
    /// Nobody's; it is 0.
    Nobody,
}

impl Source {
    /// As a label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Engine => "engine",
            Self::Host => "host",
            Self::Nobody => "nobody",
        }
    }
}

/// The last known loads.
#[derive(Debug)]
pub struct Loads {
    instances: Vec<String>,
    stale_after: Duration,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    backends: Vec<Option<Sample>>,
    host: Option<Load>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    load: Load,
    /// The most requests that it was ever seen to work on.
    running_most: f64,
    at: Instant,
}

impl Loads {
    /// Loads of backends that LMCache knows by these names, in the order of their fleet, looked at every `period`.
    #[must_use]
    pub fn new(instances: Vec<String>, period: Duration) -> Arc<Self> {
        let known = Known { backends: vec![None; instances.len()], host: None };
        Arc::new(Self { instances, stale_after: period * STALE_PERIODS, known: Mutex::new(known) })
    }

    /// Whether a backend is known to LMCache by this name.
    #[must_use]
    pub fn knows(&self, instance: &str) -> bool {
        self.instances.iter().any(|known| known == instance)
    }

    /// Records what the backend at `index` says of itself, and returns what follows from it.
    pub fn record(
        &self,
        index: usize,
        running: f64,
        waiting: f64,
        cache_usage: Option<f64>,
        now: Instant,
    ) -> Load {
        let mut known = self.known.lock();
        let Some(backend) = known.backends.get_mut(index) else { return Load::default() };
        let running_most = backend.map_or(0.0, |sample| sample.running_most).max(running);
        let load_ratio = match (waiting > 0.0, running_most > 0.0) {
            (true, _) => 1.0,
            (false, true) => running / running_most,
            (false, false) => 0.0,
        };
        let load = Load { load_ratio, memory_ratio: cache_usage.unwrap_or_default() };
        *backend = Some(Sample { load, running_most, at: now });
        load
    }

    /// Records the load of the gateway's host.
    pub fn record_host(&self, load: Load) {
        self.known.lock().host = Some(load);
    }

    /// The load of an instance, as near as it is known.
    #[must_use]
    pub fn of(&self, instance: &str, now: Instant) -> (Load, Source) {
        let known = self.known.lock();
        let fresh = |sample: &Sample| now.saturating_duration_since(sample.at) < self.stale_after;
        let index = self.instances.iter().position(|known| known == instance);
        let engine = index.and_then(|index| known.backends.get(index).copied().flatten()).filter(fresh);
        match (engine, known.host) {
            (Some(sample), _) => (sample.load, Source::Engine),
            (None, Some(host)) => (host, Source::Host),
            (None, None) => (Load::default(), Source::Nobody),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_secs(2);

    fn loads() -> Arc<Loads> {
        Loads::new(vec!["a".to_owned(), "b".to_owned()], PERIOD)
    }

    #[test]
    fn an_engine_is_loaded_by_what_it_was_ever_seen_to_do() {
        let (loads, now) = (loads(), Instant::now());
        let seen = [(0.0, 0.0, 0.0), (8.0, 0.0, 1.0), (2.0, 0.0, 0.25), (1.0, 1.0, 1.0), (16.0, 0.0, 1.0)];
        for (running, waiting, expected) in seen.into_iter().chain([(4.0, 0.0, 0.25)]) {
            let load = loads.record(0, running, waiting, None, now);
            assert_eq!(load, Load { load_ratio: expected, memory_ratio: 0.0 }, "{running} and {waiting}");
        }
        let other = loads.record(1, 4.0, 0.0, Some(0.5), now);
        assert_eq!(other, Load { load_ratio: 1.0, memory_ratio: 0.5 }, "each engine has its own measure");
    }

    #[test]
    fn the_host_stands_in_for_engines_of_which_nothing_is_known() {
        let (loads, now) = (loads(), Instant::now());
        let host = Load { load_ratio: 0.1, memory_ratio: 0.2 };
        assert_eq!(loads.of("a", now), (Load::default(), Source::Nobody));
        loads.record_host(host);
        assert_eq!(loads.of("a", now), (host, Source::Host));
        let engine = loads.record(0, 1.0, 1.0, Some(0.9), now);
        assert_eq!(loads.of("a", now), (engine, Source::Engine));
        assert_eq!(["b", "stranger"].map(|instance| loads.of(instance, now).1), [Source::Host; 2]);
    }

    #[test]
    fn an_engine_without_news_for_three_periods_is_unknown() {
        let (loads, now) = (loads(), Instant::now());
        loads.record_host(Load::default());
        let engine = loads.record(0, 1.0, 1.0, Some(0.9), now);
        let just = now + 3 * PERIOD - Duration::from_nanos(1);
        assert_eq!(loads.of("a", just), (engine, Source::Engine));
        assert_eq!(loads.of("a", now + 3 * PERIOD).1, Source::Host);
    }
}
