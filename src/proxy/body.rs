//! Bytes in: reads the whole request body before a backend is chosen, under a size, a deadline and a shared budget.
//!
//! Called once per request by the spine. A body that is turned away is drained within bounds, so that a client which
//! sends everything before it reads still sees the answer. Handing the body on is the business of [`super::replay`].

use super::reject::Reject;
use crate::config::{Limits, Timeouts};
use crate::state::budget::{Budget, Share};
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, EXPECT};
use pingora::protocols::http::ServerSession;
use pingora::{Error, Result};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};

/// The least and the most memory that a body of several chunks is given at first, so that a declared length alone
/// costs nothing; beyond it memory grows with what has arrived.
const FIRST_ALLOCATION_BYTES: std::ops::RangeInclusive<usize> = 64 * 1024..=1024 * 1024;

/// A whole request body and its share of the process's budget.
pub struct Body {
    /// The bytes; cloning them copies nothing.
    pub bytes: Bytes,
    /// Their place in the budget, to be kept as long as the bytes.
    pub share: Share,
}

/// Why there is no body.
pub enum Failure {
    /// The client is to be told.
    Reject(Reject),
    /// The client is gone or broke the protocol; the connection ends.
    Broken(Box<Error>),
}

/// Reads the body to its end.
///
/// # Errors
/// [`Failure::Reject`] with 413 before anything is read where the declared length is too large, 413 as soon as too much
/// has arrived, 408 when `timeouts.body` is over, 503 when the budget is spent; [`Failure::Broken`] when reading fails.
pub async fn read(
    session: &mut ServerSession,
    limits: &Limits,
    timeouts: &Timeouts,
    budget: &Arc<Budget>,
) -> Result<Body, Failure> {
    let declared = declared_bytes(session);
    if declared.is_some_and(|bytes| bytes > limits.body_bytes_max) {
        return Err(Failure::Reject(Reject::body_too_large(limits.body_bytes_max)));
    }
    if expects_continue(session) {
        ask_for_body(session).await.map_err(|e| Failure::Broken(e.into_down()))?;
    }
    let reading = collect(session, declared, limits.body_bytes_max, budget.share());
    match timeout(timeouts.body, reading).await {
        Ok(outcome) => outcome,
        Err(_elapsed) => Err(Failure::Reject(Reject::body_timeout())),
    }
}

/// Answers `100 Continue`. Pingora takes any header that is written before the body was read for a final one, and would
/// close the connection after the request.
async fn ask_for_body(session: &mut ServerSession) -> Result<()> {
    let keepalive = session.get_keepalive();
    let asked = session.write_continue_response().await;
    session.set_keepalive(keepalive);
    asked
}

async fn collect(
    session: &mut ServerSession,
    declared: Option<usize>,
    bytes_max: usize,
    mut share: Share,
) -> Result<Body, Failure> {
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(chunk) = session.read_request_body().await.map_err(|e| Failure::Broken(e.into_down()))? {
        if first.len() + all.len() + chunk.len() > bytes_max {
            return Err(Failure::Reject(Reject::body_too_large(bytes_max)));
        }
        if !share.grow(chunk.len()) {
            return Err(Failure::Reject(Reject::buffers_full()));
        }
        if all.is_empty() && first.is_empty() {
            first = chunk;
            continue;
        }
        if all.is_empty() {
            all.reserve(
                declared.unwrap_or(0).clamp(*FIRST_ALLOCATION_BYTES.start(), *FIRST_ALLOCATION_BYTES.end()),
            );
            all.extend_from_slice(&std::mem::take(&mut first));
        }
        all.extend_from_slice(&chunk);
    }
    let bytes = if all.is_empty() { first } else { all.freeze() };
    Ok(Body { bytes, share })
}

/// Reads and throws away what is left of a refused body, up to `bytes_max` bytes and for at most `time_max`.
pub async fn drain(session: &mut ServerSession, bytes_max: usize, time_max: Duration) {
    let deadline = Instant::now() + time_max;
    let mut bytes = 0;
    while bytes < bytes_max {
        match timeout_at(deadline, session.read_request_body()).await {
            Ok(Ok(Some(chunk))) => bytes += chunk.len(),
            Ok(Ok(None) | Err(_)) | Err(_) => return,
        }
    }
}

fn declared_bytes(session: &ServerSession) -> Option<usize> {
    session.get_header(CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// Whether the client waits for `100 Continue` before it sends. Pingora does not answer it by itself.
fn expects_continue(session: &ServerSession) -> bool {
    session.get_header(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}
