//! How long a request may take: until its first byte, between two, and in all.
//!
//! Held by [`super::replay`], which is polled for as long as a try runs; by a timer that is moved only when it
//! fires. It tells which deadline is over; what follows is decided by the spine.

use super::alarm::Alarm;
use crate::config::Timeouts;
use pingora::{BError, Error, ErrorType};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;

/// The deadline that a request missed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Missed {
    /// The backend sent no response header in time.
    FirstByte,
    /// The backend fell silent in the middle of its answer.
    BetweenBytes,
    /// The request as a whole took too long.
    Total,
}

const FIRST_BYTE: ErrorType = ErrorType::Custom("first byte deadline");
const BETWEEN_BYTES: ErrorType = ErrorType::Custom("between bytes deadline");
const TOTAL: ErrorType = ErrorType::Custom("total deadline");

impl Missed {
    /// The error that carries this verdict through Pingora.
    #[must_use]
    pub fn into_error(self) -> BError {
        Error::new(match self {
            Self::FirstByte => FIRST_BYTE,
            Self::BetweenBytes => BETWEEN_BYTES,
            Self::Total => TOTAL,
        })
    }

    /// The verdict that an error carries, if it carries one.
    #[must_use]
    pub fn of(error: &Error) -> Option<Self> {
        match error.etype() {
            kind if *kind == FIRST_BYTE => Some(Self::FirstByte),
            kind if *kind == BETWEEN_BYTES => Some(Self::BetweenBytes),
            kind if *kind == TOTAL => Some(Self::Total),
            _ => None,
        }
    }
}

/// The deadlines of one request.
pub struct Deadlines {
    first_byte: Duration,
    between_bytes: Duration,
    ends: Instant,
    /// When the running try started or the backend sent something last.
    heard: Instant,
    answering: bool,
    alarm: Alarm,
}

impl Deadlines {
    /// Deadlines for a request that arrived at `started`.
    #[must_use]
    pub fn new(timeouts: &Timeouts, started: Instant) -> Self {
        let ends = started + timeouts.total;
        Self {
            first_byte: timeouts.first_byte,
            between_bytes: timeouts.between_bytes,
            ends,
            heard: started,
            answering: false,
            alarm: Alarm::default(),
        }
    }

    /// A try starts: the wait for its first byte begins.
    pub fn try_started(&mut self, now: Instant) {
        self.heard = now;
        self.answering = false;
    }

    /// The backend sent a part of its answer. Whether it was the first: something else is waited for then.
    pub fn heard(&mut self, now: Instant) -> bool {
        self.heard = now;
        !std::mem::replace(&mut self.answering, true)
    }

    fn due(&self) -> (Instant, Missed) {
        let (wait, missed) = if self.answering {
            (self.between_bytes, Missed::BetweenBytes)
        } else {
            (self.first_byte, Missed::FirstByte)
        };
        let due = self.heard + wait;
        if due < self.ends { (due, missed) } else { (self.ends, Missed::Total) }
    }

    /// Ready when a deadline is over. To be asked again where something else is waited for.
    pub fn poll_missed(&mut self, cx: &Context<'_>) -> Poll<Missed> {
        let (due, missed) = self.due();
        self.alarm.poll_over(due, cx).map(|()| missed)
    }

    /// What tells when one is over; any other, which may be set, does as well.
    pub fn alarm(&mut self) -> &mut Alarm {
        &mut self.alarm
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    fn timeouts() -> Timeouts {
        Timeouts {
            first_byte: Duration::from_secs(10),
            between_bytes: Duration::from_secs(2),
            total: Duration::from_secs(15),
            ..Timeouts::default()
        }
    }

    async fn missed(deadlines: &mut Deadlines) -> Missed {
        poll_fn(|cx| deadlines.poll_missed(cx)).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_backend_misses_the_first_byte_and_a_new_try_waits_again() {
        let started = Instant::now();
        let mut deadlines = Deadlines::new(&timeouts(), started);
        assert_eq!(missed(&mut deadlines).await, Missed::FirstByte);
        assert_eq!(started.elapsed(), Duration::from_secs(10));
        deadlines.try_started(Instant::now());
        assert_eq!(missed(&mut deadlines).await, Missed::Total);
        assert_eq!(started.elapsed(), Duration::from_secs(15));
    }

    #[tokio::test(start_paused = true)]
    async fn every_chunk_moves_the_deadline_between_bytes() {
        let started = Instant::now();
        let mut deadlines = Deadlines::new(&timeouts(), started);
        for _ in 0..5 {
            tokio::time::advance(Duration::from_secs(1)).await;
            deadlines.heard(Instant::now());
        }
        assert_eq!(missed(&mut deadlines).await, Missed::BetweenBytes);
        assert_eq!(started.elapsed(), Duration::from_secs(7));
        assert_eq!(Missed::of(&Missed::BetweenBytes.into_error()), Some(Missed::BetweenBytes));
    }
}
