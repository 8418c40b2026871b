//! The log of failed calls, kept short: one line per operation and period, and how many were kept back since the last.
//!
//! Used by the clients. Bounded: operations are names in the code.

use super::breaker::Breaker;
use super::call::CallError;
use parking_lot::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// From one line about failures of an operation to the next.
const PERIOD: Duration = Duration::from_secs(5);

/// Lets one line of each kind through per period.
pub struct Throttle {
    period: Duration,
    kinds: Mutex<Vec<Kind>>,
}

struct Kind {
    name: &'static str,
    quiet_until: Instant,
    kept_back: u64,
}

impl Default for Throttle {
    fn default() -> Self {
        Self::new(PERIOD)
    }
}

impl Throttle {
    /// Tells of a failed call, unless one like it was told of a moment ago.
    pub(super) fn tell(&self, breaker: &Breaker, error: &CallError) {
        if let Some(kept_back) = self.admit(error.operation, Instant::now()) {
            tracing::warn!(cluster = breaker.cluster(), kept_back, "[kvcache] {error}");
        }
    }

    /// One that has let nothing through yet.
    #[must_use]
    pub fn new(period: Duration) -> Self {
        Self { period, kinds: Mutex::default() }
    }

    /// Whether a line of this kind is to be written now: `Some` with the number of those kept back since the last one.
    pub fn admit(&self, name: &'static str, now: Instant) -> Option<u64> {
        let mut kinds = self.kinds.lock();
        let quiet_until = now + self.period;
        let Some(kind) = kinds.iter_mut().find(|kind| kind.name == name) else {
            kinds.push(Kind { name, quiet_until, kept_back: 0 });
            return Some(0);
        };
        if now < kind.quiet_until {
            kind.kept_back += 1;
            return None;
        }
        kind.quiet_until = quiet_until;
        Some(std::mem::take(&mut kind.kept_back))
    }
}
