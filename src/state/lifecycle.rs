//! Where the process stands between start and end, and how many requests are still running.
//!
//! Written by `shutdown` (the phase) and `proxy` (an [`InFlight`] per request); read by `admin` (`/readyz`) and `proxy`
//! (answers carry `Connection: close` while the process drains). It signals; it ends nothing itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::sync::Notify;

/// The phase of the process and the number of requests in flight.
#[derive(Debug, Default)]
pub struct Lifecycle {
    draining: AtomicBool,
    in_flight: AtomicUsize,
    drained: Notify,
}

impl Lifecycle {
    /// A running process without requests.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// From now on the process wants no new work: `/readyz` says so and connections are not kept alive.
    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    /// Whether the process is on its way out.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
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
            let notified = self.drained.notified();
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
        if self.0.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 && self.0.is_draining() {
            self.0.drained.notify_waiters();
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
        lifecycle.start_draining();
        let waiting = lifecycle.drained();
        tokio::pin!(waiting);
        drop(one);
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        drop(other);
        waiting.await;
        assert_eq!(lifecycle.in_flight(), 0);
    }
}
