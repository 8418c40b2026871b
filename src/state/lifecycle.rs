//! Where the process stands between start and end, and how many requests are still running.
//!
//! Written by `shutdown` (the phase) and `proxy` (an [`InFlight`] per request); read by `admin` (`/readyz`) and `proxy`
//! (connections are not kept alive once the process is on its way out). It signals; it ends nothing itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use tokio::sync::Notify;

/// Where the process stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Phase {
    /// Its listeners are not open yet.
    Starting,
    /// It serves.
    Running,
    /// A successor takes the listeners over: it serves on, without keeping connections alive.
    Handover,
    /// It wants no new work.
    Draining,
}

/// The phase of the process and the number of requests in flight.
#[derive(Debug, Default)]
pub struct Lifecycle {
    phase: AtomicU8,
    in_flight: AtomicUsize,
    changed: Notify,
}

impl Lifecycle {
    /// A starting process without requests.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The phase of the process.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::SeqCst) {
            0 => Phase::Starting,
            1 => Phase::Running,
            2 => Phase::Handover,
            _ => Phase::Draining,
        }
    }

    /// Moves the process on; there is no way back.
    pub fn enter_phase(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::SeqCst);
    }

    /// Whether the process is on its way out, so that connections are not to be kept.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        !matches!(self.phase(), Phase::Starting | Phase::Running)
    }

    /// Counts one request until the returned guard is dropped.
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        InFlight(Arc::clone(self))
    }

    /// The requests that are running now.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// Waits until no request is running.
    pub async fn drained(&self) {
        loop {
            let notified = self.changed.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if self.in_flight() == 0 {
                return;
            }
            notified.await;
        }
    }
}

/// One running request; dropping it takes the request out of the count.
#[derive(Debug)]
pub struct InFlight(Arc<Lifecycle>);

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.0.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.changed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn drained_waits_for_the_last_request() {
        let lifecycle = Lifecycle::new();
        let (one, other) = (lifecycle.enter(), lifecycle.enter());
        lifecycle.enter_phase(Phase::Draining);
        let waiting = lifecycle.drained();
        tokio::pin!(waiting);
        drop(one);
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        drop(other);
        waiting.await;
        assert_eq!(lifecycle.in_flight(), 0);
    }

    #[test]
    fn there_is_no_way_back() {
        let lifecycle = Lifecycle::new();
        lifecycle.enter_phase(Phase::Draining);
        lifecycle.enter_phase(Phase::Handover);
        assert_eq!(lifecycle.phase(), Phase::Draining);
    }
}
