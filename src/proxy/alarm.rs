//! A timer that is mostly moved or dropped before it rings: no clock of the kernel is set for it.
//!
//! Used by [`super::deadline`] and [`super::connection`], which hold one per request and per connection. A timer of tokio's would
//! have each wait for sockets end at a time, for which the kernel sets and clears a timer of its own: more than a microsecond
//! for each event of a stream. Pingora has a thread that looks every 10 ms what is due; an alarm rings by that, up to 20 ms late.

use super::bell::Bell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
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
    /// What the nap rings.
    bell: Bell,
}

impl Alarm {
    /// To ring at `due`.
    #[must_use]
    pub fn at(due: Instant) -> Self {
        let nap = nap(due.saturating_duration_since(Instant::now()).min(NAP_MAX));
        Self { due, nap, bell: Bell::rung() }
    }

    /// When it rings.
    #[must_use]
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Ready when its time has come. To be set anew then, not asked again.
    pub fn poll_ring(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.bell.has_rung(cx) {
            if self.nap.as_mut().poll(&mut self.bell.context()).is_pending() {
                break;
            }
            if self.due <= Instant::now() {
                return Poll::Ready(());
            }
            *self = Self::at(self.due);
        }
        Poll::Pending
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
