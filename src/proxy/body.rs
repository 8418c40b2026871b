//! Bytes in: reads the whole request body before a backend is chosen, under a size, a deadline and a shared budget.
//!
//! Called once per request by the spine. A body that is turned away is drained within bounds, so that a client which
//! sends everything before it reads still sees the answer. Handing the body on is the business of [`super::replay`].

use super::connection::Connection;
use super::reject::Reject;
use crate::config::{Limits, Timeouts};
use crate::state::budget::{Budget, Share};
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, EXPECT};
use pingora::protocols::http::ServerSession;
use pingora::{Error, ErrorType, Result};
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
    let plain = Connection::of(session).and_then(|connection| Some((connection, connection.body_bytes()?)));
    let plain = plain.map(|(connection, bytes)| (connection.clone(), bytes));
    let declared = plain.as_ref().map_or_else(|| declared_bytes(session), |(_, bytes)| Some(*bytes));
    if declared.is_some_and(|bytes| bytes > limits.body_bytes_max) {
        return Err(Failure::Reject(Reject::body_too_large(limits.body_bytes_max)));
    }
    if expects_continue(session) {
        ask_for_body(session).await.map_err(|e| Failure::Broken(e.into_down()))?;
    }
    let mut body =
        Collected { all: BytesMut::new(), bytes_max: limits.body_bytes_max, share: budget.share() };
    if let Some(bytes) = plain.as_ref().and_then(|(connection, _)| connection.take_body()) {
        body.grow(0, bytes.len())?;
        return Ok(Body { bytes, share: body.share });
    }
    let reading = async {
        match plain {
            Some((connection, declared)) => collect_plain(&connection, declared, body).await,
            None => collect(session, declared, body).await,
        }
    };
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

/// What a body has been put together of so far, within its bounds.
struct Collected {
    all: BytesMut,
    bytes_max: usize,
    share: Share,
}

impl Collected {
    /// Takes `bytes` more into account.
    fn grow(&mut self, so_far: usize, bytes: usize) -> Result<(), Failure> {
        if so_far + bytes > self.bytes_max {
            return Err(Failure::Reject(Reject::body_too_large(self.bytes_max)));
        }
        if !self.share.grow(bytes) {
            return Err(Failure::Reject(Reject::buffers_full()));
        }
        Ok(())
    }

    fn into_body(self) -> Body {
        Body { bytes: self.all.freeze(), share: self.share }
    }
}

/// Straight from the connection, into the memory where it stays.
async fn collect_plain(
    connection: &Connection,
    declared: usize,
    mut body: Collected,
) -> Result<Body, Failure> {
    // With a byte more than is needed, see `Wire::poll_body`.
    body.all.reserve(declared.min(*FIRST_ALLOCATION_BYTES.end()) + 1);
    loop {
        match connection.read_body(&mut body.all).await {
            Ok(0) => return Ok(body.into_body()),
            Ok(read) => body.grow(body.all.len() - read, read)?,
            Err(error) => {
                let error = Error::because(ErrorType::ConnectionClosed, "reading body", error);
                return Err(Failure::Broken(error.into_down()));
            }
        }
        if body.all.len() == body.all.capacity() {
            let more = declared - body.all.len() + 1;
            body.all.reserve(more.min(body.all.len()));
        }
    }
}

/// By way of Pingora: in chunks, or over HTTP/2.
async fn collect(
    session: &mut ServerSession,
    declared: Option<usize>,
    mut body: Collected,
) -> Result<Body, Failure> {
    let mut first = Bytes::new();
    while let Some(chunk) = session.read_request_body().await.map_err(|e| Failure::Broken(e.into_down()))? {
        body.grow(first.len() + body.all.len(), chunk.len())?;
        if body.all.is_empty() && first.is_empty() {
            first = chunk;
            continue;
        }
        if body.all.is_empty() {
            body.all.reserve(
                declared.unwrap_or(0).clamp(*FIRST_ALLOCATION_BYTES.start(), *FIRST_ALLOCATION_BYTES.end()),
            );
            body.all.extend_from_slice(&std::mem::take(&mut first));
        }
        body.all.extend_from_slice(&chunk);
    }
    if body.all.is_empty() { Ok(Body { bytes: first, share: body.share }) } else { Ok(body.into_body()) }
}

/// Reads and throws away what is left of a refused body, up to `bytes_max` bytes and for at most `time_max`.
pub async fn drain(session: &mut ServerSession, bytes_max: usize, time_max: Duration) {
    let deadline = Instant::now() + time_max;
    let mut bytes = 0;
    while bytes < bytes_max {
        match timeout_at(deadline, throw_away(session)).await {
            Ok(Some(read)) => bytes += read,
            Ok(None) | Err(_) => return,
        }
    }
}

/// Throws away a part of the body; how many bytes, unless that was all.
async fn throw_away(session: &mut ServerSession) -> Option<usize> {
    match Connection::of(session).filter(|connection| connection.body_bytes().is_some()) {
        Some(connection) => {
            let mut scratch = BytesMut::with_capacity(*FIRST_ALLOCATION_BYTES.start());
            connection.read_body(&mut scratch).await.ok().filter(|read| *read > 0)
        }
        None => session.read_request_body().await.ok().flatten().map(|chunk| chunk.len()),
    }
}

fn declared_bytes(session: &ServerSession) -> Option<usize> {
    session.get_header(CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// Whether the client waits for `100 Continue` before it sends. Pingora does not answer it by itself.
fn expects_continue(session: &ServerSession) -> bool {
    session.get_header(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}
