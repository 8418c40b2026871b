//! A timer that is mostly moved or dropped before it rings: no clock of the kernel is set for it.
//!
//! Used by [`super::deadline`] and [`super::connection`], which hold one per request and per connection. A timer of tokio's would
//! have each wait for sockets end at a time, for which the kernel sets and clears a timer of its own: more than a microsecond
//! for each event of a stream. Pingora has a thread that looks every 10 ms what is due; an alarm rings by that, up to 20 ms late.

use futures::task::AtomicWaker;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;
use tokio::time::Instant;

/// Pingora keeps what was dropped until it would have rung, and a place for every 10 ms up to then; so nothing is asked for that
/// is further away than this.
const NAP_MAX: Duration = Duration::from_mins(1);

type Nap = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

#[cfg(not(test))]
fn nap(time: Duration) -> Nap {
    Box::pin(pingora::time::sleep(time))
}

/// Time stands still in tests, and Pingora's does not.
#[cfg(test)]
fn nap(time: Duration) -> Nap {
    Box::pin(tokio::time::sleep(time))
}

/// Rings at an instant.
pub struct Alarm {
    due: Instant,
    nap: Nap,
    bell: Arc<Bell>,
    /// That of the bell.
    waker: Waker,
    /// Whom the bell wakes.
    waiting: Option<Waker>,
}

/// What the nap wakes: it is asked only when it has, and not with each event of whoever waits.
struct Bell {
    rung: AtomicBool,
    waiting: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.waiting.wake();
    }
}

impl Alarm {
    /// To ring at `due`.
    #[must_use]
    pub fn at(due: Instant) -> Self {
        // Rung once, so that the nap is asked for the first time.
        let bell = Arc::new(Bell { rung: AtomicBool::new(true), waiting: AtomicWaker::new() });
        let nap = nap(due.saturating_duration_since(Instant::now()).min(NAP_MAX));
        Self { due, nap, waker: Arc::clone(&bell).into(), bell, waiting: None }
    }

    /// When it rings.
    #[must_use]
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Ready when its time has come. To be set anew then, not asked again.
    pub fn poll_ring(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let is_known = self.waiting.as_ref().is_some_and(|waiting| waiting.will_wake(cx.waker()));
        if is_known && !self.bell.rung.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        loop {
            self.bell.waiting.register(cx.waker());
            self.waiting = Some(cx.waker().clone());
            if !self.bell.rung.swap(false, Ordering::Acquire) {
                return Poll::Pending;
            }
            if self.nap.as_mut().poll(&mut Context::from_waker(&self.waker)).is_pending() {
                return Poll::Pending;
            }
            if self.due <= Instant::now() {
                return Poll::Ready(());
            }
            *self = Self::at(self.due);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test(start_paused = true)]
    async fn it_rings_when_its_time_has_come_however_far_away_that_is() {
        let start = Instant::now();
        for seconds in [0, 1, 60, 61, 3600] {
            let due = Instant::now() + Duration::from_secs(seconds);
            let mut alarm = Alarm::at(due);
            poll_fn(|cx| alarm.poll_ring(cx)).await;
            assert_eq!((Instant::now(), alarm.due()), (due, due));
        }
        assert_eq!(start.elapsed(), Duration::from_secs(3722));
    }
}
