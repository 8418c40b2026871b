//! Wakes a task at a time to some tens of microseconds, where the runtime's timers are late by one or two milliseconds.
//!
//! Used by `player`, whose times count from when a request is due. Bounded by the tasks that wait at the same moment; where no
//! timer can be had, the runtime's does.
use std::cell::RefCell;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::time::{self, Instant};

/// The runtime's timers are trusted up to here.
const LATE_MAX: Duration = Duration::from_millis(3);

/// Timers of the kernel that are free.
#[derive(Default)]
pub(crate) struct Alarms(RefCell<Vec<Alarm>>);

/// A timer, and a second handle of it to wait for: it reads like a pipe.
struct Alarm {
    timer: TimerFd,
    expired: Receiver,
}

impl Alarm {
    fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        let expired = Receiver::from_owned_fd_unchecked(timer.as_fd().try_clone_to_owned()?)?;
        Ok(Self { timer, expired })
    }
}

impl Alarms {
    /// Waits until then; not at all for what is past.
    pub(crate) async fn wait_until(&self, due: Instant) {
        time::sleep_until(due.checked_sub(LATE_MAX).unwrap_or(due)).await;
        let left = due.saturating_duration_since(Instant::now());
        if !left.is_zero() && self.wait(left).await.is_err() {
            time::sleep_until(due).await;
        }
    }

    async fn wait(&self, left: Duration) -> io::Result<()> {
        let free = self.0.borrow_mut().pop();
        let mut alarm = free.map_or_else(Alarm::new, Ok)?;
        let expiration = Expiration::OneShot(TimeSpec::from_duration(left));
        alarm.timer.set(expiration, TimerSetTimeFlags::empty())?;
        // It tells how often it expired.
        alarm.expired.read_u64_le().await?;
        self.0.borrow_mut().push(alarm);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_is_woken_early_and_timers_are_used_again() {
        let alarms = Alarms::default();
        for ms in [0, 1, 2, 5] {
            let due = Instant::now() + Duration::from_millis(ms);
            tokio::join!(alarms.wait_until(due), alarms.wait_until(due));
            assert!(Instant::now() >= due, "{ms}");
        }
        assert!(alarms.0.borrow().len() <= 2);
        alarms.wait_until(Instant::now()).await;
    }
}
