//! What may be tried again on another backend, and how often.
//!
//! Asked by the spine after each failed try. A completion is not idempotent in cost but has no side effects, so it may be
//! repeated as long as no byte of an answer was seen; never after a deadline, since the engine is still at work.

use crate::config::RetryOn;
use http::StatusCode;
use pingora::{Error, ErrorType};
use std::sync::atomic::{AtomicI64, Ordering};

/// Why a try failed, where that is a cause for another.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cause {
    /// No connection could be made.
    Connect,
    /// A pooled connection had been closed by the backend.
    Stale,
    /// A fresh connection broke after the request had been sent.
    Reset,
    /// The backend answered 502, 503 or 504 without asking for a pause.
    Status(u16),
}

/// The error that carries an answer's status from the response filter to the decision.
const STATUS: ErrorType = ErrorType::Custom("status that may be retried");

impl Cause {
    /// The cause that a failure amounts to; `reused`: the connection came from the pool.
    #[must_use]
    pub fn of(error: &Error, reused: bool) -> Option<Self> {
        use ErrorType as E;
        match error.etype() {
            E::ConnectTimedout
            | E::ConnectRefused
            | E::ConnectNoRoute
            | E::ConnectError
            | E::TLSHandshakeFailure
            | E::TLSHandshakeTimedout
            | E::InvalidCert
            | E::HandshakeError
            | E::SocketError => Some(Self::Connect),
            E::ReadError | E::WriteError | E::ConnectionClosed => {
                Some(if reused { Self::Stale } else { Self::Reset })
            }
            kind if *kind == STATUS => {
                error.context.as_ref().and_then(|status| status.as_str().parse().ok()).map(Self::Status)
            }
            _ => None,
        }
    }

    /// The cause that an answer's status amounts to, if it does.
    #[must_use]
    pub fn of_status(status: StatusCode) -> Option<Self> {
        matches!(status.as_u16(), 502..=504).then_some(Self::Status(status.as_u16()))
    }

    /// The error by which the response filter asks for another try.
    #[must_use]
    pub fn status_error(status: u16) -> Box<Error> {
        let mut error = Error::explain(STATUS, status.to_string()).into_up();
        error.set_retry(true);
        error
    }

    /// Its name in metrics and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Stale => "stale",
            Self::Reset => "reset",
            Self::Status(502) => "502",
            Self::Status(503) => "503",
            Self::Status(_) => "504",
        }
    }

    /// Whether the configuration wants a retry for it.
    #[must_use]
    pub fn is_among(self, on: &[RetryOn]) -> bool {
        let wanted = match self {
            Self::Connect => RetryOn::Connect,
            Self::Stale => RetryOn::Stale,
            Self::Reset => RetryOn::Reset,
            Self::Status(502) => RetryOn::Status502,
            Self::Status(503) => RetryOn::Status503,
            Self::Status(504) => RetryOn::Status504,
            Self::Status(_) => return false,
        };
        on.contains(&wanted)
    }

    /// Whether a backend did work for the failed try, so that repeating it has a price.
    fn costs(self) -> bool {
        self != Self::Connect
    }
}

/// Retries allowed before any request has paid in, so that a quiet gateway retries too.
const RESERVE: i64 = 10;
/// Retries that can be saved up at most.
const SAVED_MAX: i64 = 100;
const UNIT: i64 = 1000;

/// Keeps retries to a share of the requests, so that retrying cannot multiply an overload.
///
/// Each request pays `ratio` of a retry in; each retry that costs a backend something takes one out.
#[derive(Debug)]
pub struct RetryBudget {
    balance: AtomicI64,
    deposit: i64,
}

impl RetryBudget {
    /// A budget of `ratio` retries per request (0 to 1).
    #[must_use]
    pub fn new(ratio: f64) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "a ratio between 0 and 1")]
        let deposit = (ratio.clamp(0.0, 1.0) * 1000.0).round() as i64;
        Self { balance: AtomicI64::new(RESERVE * UNIT), deposit }
    }

    /// A request arrived.
    pub fn pay_in(&self) {
        if self.balance.load(Ordering::Relaxed) < SAVED_MAX * UNIT {
            self.balance.fetch_add(self.deposit, Ordering::Relaxed);
        }
    }

    /// Whether one more try for `cause` is allowed; takes its price.
    #[must_use]
    pub fn allows(&self, cause: Cause) -> bool {
        let pay = |balance: i64| (balance >= UNIT).then(|| balance - UNIT);
        !cause.costs() || self.balance.fetch_update(Ordering::Relaxed, Ordering::Relaxed, pay).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_share_of_the_requests_after_the_reserve() {
        let budget = RetryBudget::new(0.2);
        let spent = (0..100).filter(|_| budget.allows(Cause::Stale)).count();
        assert_eq!(spent, 10, "the reserve");
        (0..50).for_each(|_| budget.pay_in());
        let spent = (0..100).filter(|_| budget.allows(Cause::Status(503))).count();
        assert_eq!(spent, 10, "a fifth of fifty");
        assert!(budget.allows(Cause::Connect), "a connect failure costs nobody anything");
    }

    #[test]
    fn what_is_saved_up_is_bounded() {
        let budget = RetryBudget::new(1.0);
        (0..10_000).for_each(|_| budget.pay_in());
        assert_eq!((0..1000).filter(|_| budget.allows(Cause::Reset)).count(), 100);
    }

    #[test]
    fn a_status_travels_through_pingoras_error() {
        assert_eq!(Cause::of(&Cause::status_error(503), false), Some(Cause::Status(503)));
        assert!(!Cause::Status(500).is_among(&[RetryOn::Status502, RetryOn::Status503]));
    }

    #[test]
    fn a_broken_connection_is_stale_only_when_it_was_pooled() {
        let error = Error::new(ErrorType::ConnectionClosed);
        assert_eq!(Cause::of(&error, true), Some(Cause::Stale));
        assert_eq!(Cause::of(&error, false), Some(Cause::Reset));
        assert_eq!(
            Cause::of(&Error::new(ErrorType::ReadTimedout), true),
            None,
            "the engine is still at work"
        );
    }
}
