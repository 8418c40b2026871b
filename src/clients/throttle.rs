//! One line per kind of line and period, and how many were kept back in between.
//!
//! Used by the clients for the log of their failures. Bounded: kinds are names in the code. It writes nothing.

use parking_lot::Mutex;
use std::time::Duration;
use tokio::time::Instant;

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

impl Throttle {
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
