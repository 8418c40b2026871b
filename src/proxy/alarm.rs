//! A timer that is mostly moved or dropped before it rings: no clock of the kernel is set for it.
//!
//! Used by [`super::connection`], which holds one between requests and lends it to the [`super::deadline`] of each. A timer of tokio's would
//! have each wait for sockets end at a time, for which the kernel sets and clears a timer of its own: more than a microsecond
//! for each event of a stream. Pingora has a thread that looks every 10 ms what is due; an alarm rings by that, up to 20 ms late.

use super::bell::Bell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
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

/// Tells when a deadline is over that mostly moves on before it is.
#[derive(Default)]
pub struct Alarm(Option<Set>);

struct Set {
    rings_at: Instant,
    nap: Nap,
    /// What the nap rings.
    bell: Bell,
}

impl Set {
    fn at(due: Instant) -> Self {
        let now = Instant::now();
        let rings_at = due.min(now + NAP_MAX);
        Self { rings_at, nap: nap(rings_at.saturating_duration_since(now)), bell: Bell::rung() }
    }

    fn poll_ring(&mut self, cx: &Context<'_>) -> Poll<()> {
        if !self.bell.has_rung(cx) {
            return Poll::Pending;
        }
        self.nap.as_mut().poll(&mut self.bell.context())
    }
}

impl Alarm {
    /// Ready when `due` is over. It is set anew only when it would ring too late: mostly it rings early, and then is set again.
    pub fn poll_over(&mut self, due: Instant, cx: &Context<'_>) -> Poll<()> {
        loop {
            let set = self.0.take().filter(|set| set.rings_at <= due);
            ready!(self.0.insert(set.unwrap_or_else(|| Set::at(due))).poll_ring(cx));
            self.0 = None;
            if due <= Instant::now() {
                return Poll::Ready(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test(start_paused = true)]
    async fn it_rings_when_its_time_has_come_however_far_away_that_is() {
        let (start, mut alarm) = (Instant::now(), Alarm::default());
        for seconds in [0, 1, 60, 61, 3600] {
            let due = Instant::now() + Duration::from_secs(seconds);
            poll_fn(|cx| alarm.poll_over(due, cx)).await;
            assert_eq!(Instant::now(), due);
        }
        assert_eq!(start.elapsed(), Duration::from_secs(3722));
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_may_move_to_and_fro_while_it_is_waited_for() {
        let (start, mut alarm) = (Instant::now(), Alarm::default());
        let after = |seconds| start + Duration::from_secs(seconds);
        for due in [after(10), after(30), after(20)] {
            assert!(futures::poll!(poll_fn(|cx| alarm.poll_over(due, cx))).is_pending());
        }
        poll_fn(|cx| alarm.poll_over(after(5), cx)).await;
        assert_eq!(Instant::now(), after(5));
        poll_fn(|cx| alarm.poll_over(start, cx)).await;
    }
}
