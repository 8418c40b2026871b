//! Why a call brought nothing, and what follows from it: whether it counts, whether it may be made again.
//!
//! Made by every client of this room, read by its callers. It holds a few plain values and never a part of an answer, of
//! a header or of an address: real servers echo prompts and tokens in their error bodies.

/// A call that brought nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{operation}: {reason}")]
pub struct CallError {
    /// What was asked for, as in `lookup`.
    pub operation: &'static str,
    /// Why it brought nothing.
    pub reason: Reason,
}

/// Why a call brought nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// No connection: nothing was sent.
    #[error("cannot connect")]
    Connect,
    /// The connection ended before the answer did.
    #[error("the connection broke")]
    Broken,
    /// No whole answer in time.
    #[error("no answer in time")]
    Timeout,
    /// Another status than one of success.
    #[error("status {0}")]
    Status(u16),
    /// An answer that says something else than the protocol does.
    #[error("the answer is not understood: {0}")]
    Undecodable(&'static str),
    /// An answer longer than it may be.
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
    /// The breaker lets no call through.
    #[error("not called, the breaker is open")]
    BreakerOpen,
    /// As many calls as may be in flight were in flight until the deadline.
    #[error("not called, too many calls in flight")]
    Busy,
    /// The call was given up by us.
    #[error("cancelled")]
    Cancelled,
    /// This protocol has no such operation.
    #[error("not offered by this server's protocol")]
    Unsupported,
    /// No usable address or request was given.
    #[error("not called, no usable endpoint is configured")]
    NoEndpoint,
}

impl CallError {
    /// A call of `operation` that failed for `reason`.
    #[must_use]
    pub fn new(operation: &'static str, reason: Reason) -> Self {
        Self { operation, reason }
    }

    pub(super) fn from_reqwest(operation: &'static str, error: &reqwest::Error) -> Self {
        let reason = match error {
            // A connection that came too late was no connection: nothing was sent.
            error if error.is_connect() => Reason::Connect,
            error if error.is_timeout() => Reason::Timeout,
            error if error.is_builder() => Reason::NoEndpoint,
            _ => Reason::Broken,
        };
        Self { operation, reason }
    }

    /// The reason as a label.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.reason {
            Reason::Connect => "connect",
            Reason::Broken => "broken",
            Reason::Timeout => "timeout",
            Reason::Status(_) => "status",
            Reason::Undecodable(_) => "undecodable",
            Reason::TooLong(_) => "too_long",
            Reason::BreakerOpen => "breaker_open",
            Reason::Busy => "busy",
            Reason::Cancelled => "cancelled",
            Reason::Unsupported => "unsupported",
            Reason::NoEndpoint => "no_endpoint",
        }
    }

    /// The status, where there was one.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self.reason {
            Reason::Status(code) => Some(code),
            _ => None,
        }
    }

    /// Whether it tells that the server is not well. What tells of the request alone, or of ourselves, is neutral.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        match self.reason {
            Reason::Connect
            | Reason::Broken
            | Reason::Timeout
            | Reason::Undecodable(_)
            | Reason::TooLong(_) => true,
            Reason::Status(code) => code == 429 || code >= 500,
            Reason::BreakerOpen
            | Reason::Busy
            | Reason::Cancelled
            | Reason::Unsupported
            | Reason::NoEndpoint => false,
        }
    }

    /// Whether a lookup, which changes nothing, may succeed when it is made again.
    #[must_use]
    pub fn may_retry_lookup(&self) -> bool {
        match self.reason {
            Reason::Connect | Reason::Broken | Reason::Timeout => true,
            Reason::Status(code) => code == 429 || code >= 500,
            _ => false,
        }
    }

    /// Whether an action may be made again: only where nothing of it was sent.
    #[must_use]
    pub fn may_retry_action(&self) -> bool {
        self.reason == Reason::Connect
    }
}
