//! Hands a body that was read beforehand to Pingora, on the first try and on every further one.
//!
//! Pingora 0.9.1 replays at most 64 KiB of a body that was read before the backend was chosen; anything longer is never
//! sent and both sides wait for ever. So once the body is here, the downstream session is replaced by one that owns the
//! real session and answers the questions about the body itself: "done", and "here it is" to each try. Everything else
//! goes to the real session, but for the events of a stream, which go straight to the connection. It also keeps the request's
//! deadlines, being polled for as long as a try runs, and lets the body go when the response header passes, since no try
//! can follow that.
//!
//! Rests on `ServerSession::Custom`, which Pingora does not document: hence the pinned version, and the matrix of sizes
//! and framings in `tests/it/bodies.rs`.

use super::bell::Bell;
use super::connection::Connection;
use super::deadline::Deadlines;
use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use http::{HeaderMap, Method, StatusCode, header};
use parking_lot::Mutex;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::custom::{CustomMessageWrite, server::Session as CustomSession};
use pingora::protocols::http::{HttpTask, ServerSession};
use pingora::protocols::{Digest, l4::socket::SocketAddr};
use pingora::{Error, ErrorType, Result};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;

type CustomMessageReader = Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>;

/// Gives the real session back when the request is over.
pub struct Installed(Arc<Mutex<Option<Returned>>>);

/// What is there when a request is over.
struct Returned {
    session: ServerSession,
    chunk_bytes: usize,
}

/// A stand-in that is never asked anything: it only fills the place while sessions change hands.
fn vacant() -> ServerSession {
    ServerSession::new_custom(Box::new(()))
}

/// Replaces `session` by one that answers for `body`.
pub fn install(session: &mut ServerSession, body: Bytes, mut deadlines: Deadlines) -> Installed {
    let place = Arc::new(Mutex::new(None));
    swap_alarm(session, &mut deadlines);
    let bell = Connection::of(session).map(|_| Bell::rung());
    let inner = std::mem::replace(session, vacant());
    let replay =
        Replay { inner, body, deadlines, bell, chunks_to: None, chunk_bytes: 0, place: Arc::clone(&place) };
    *session = ServerSession::new_custom(Box::new(replay));
    Installed(place)
}

/// The alarm of the connection serves a request, too: set for the one before, it mostly need not be set anew.
fn swap_alarm(session: &ServerSession, deadlines: &mut Deadlines) {
    if let Some(connection) = Connection::of(session) {
        connection.swap_alarm(deadlines.alarm());
    }
}

impl Installed {
    /// Puts the real session back into its place, for keep-alive and for the end of the stream. How many bytes of the answer
    /// went to the client without its knowing.
    pub fn uninstall(self, session: &mut ServerSession) -> usize {
        drop(std::mem::replace(session, vacant()));
        self.0.lock().take().map_or(0, |returned| {
            *session = returned.session;
            returned.chunk_bytes
        })
    }
}

struct Replay {
    inner: ServerSession,
    body: Bytes,
    deadlines: Deadlines,
    /// Rung where there is something to look at, be it the client's socket or a deadline: with most events of a stream there is
    /// not. `None` over HTTP/2, where whoever writes is woken for the client.
    bell: Option<Bell>,
    /// Where the parts of an answer go that comes in chunks, past the real session.
    chunks_to: Option<Connection>,
    /// How many bytes of it did.
    chunk_bytes: usize,
    place: Arc<Mutex<Option<Returned>>>,
}

impl Drop for Replay {
    fn drop(&mut self) {
        swap_alarm(&self.inner, &mut self.deadlines);
        let session = std::mem::replace(&mut self.inner, vacant());
        *self.place.lock() = Some(Returned { session, chunk_bytes: self.chunk_bytes });
    }
}

impl Replay {
    /// There is something to look at.
    fn ring(&self) {
        self.bell.as_ref().inspect(|bell| bell.ring());
    }
}

/// Sends one part of an answer, within `limit`.
async fn send_chunk(connection: &Connection, chunk: &[u8], limit: Option<Duration>) -> Result<()> {
    let mut sending = pin!(connection.send_chunk(chunk));
    // Mostly the socket has room, and nobody needs a clock.
    let sent = match (futures::poll!(sending.as_mut()), limit) {
        (Poll::Ready(sent), _) => sent,
        (Poll::Pending, None) => sending.await,
        (Poll::Pending, Some(limit)) => match pingora::time::timeout(limit, sending).await {
            Ok(sent) => sent,
            Err(_elapsed) => return Error::e_explain(ErrorType::WriteTimedout, "while sending a chunk"),
        },
    };
    sent.map_err(|error| Error::because(ErrorType::WriteError, "while sending a chunk", error))
}

/// The connection under `session`, where the answer that has begun comes in chunks.
fn chunks_to(session: &ServerSession) -> Option<&Connection> {
    let header = session.response_written()?;
    let bodiless = [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&header.status)
        || header.status.is_informational()
        || session.req_header().method == Method::HEAD;
    let mut codings = header.headers.get_all(header::TRANSFER_ENCODING).into_iter();
    let chunked = codings.next().is_some_and(|coding| coding == "chunked") && codings.next().is_none();
    Connection::of(session).filter(|_| chunked && !bodiless)
}

fn no_custom_messages<T>() -> Result<T> {
    Error::e_explain(ErrorType::InternalError, "there are no custom messages")
}

#[async_trait]
impl CustomSession for Replay {
    fn is_body_done(&mut self) -> bool {
        true
    }

    fn is_body_empty(&mut self) -> bool {
        self.body.is_empty()
    }

    fn enable_retry_buffering(&mut self) {
        self.deadlines.try_started(Instant::now());
        self.ring();
    }

    fn retry_buffer_truncated(&self) -> bool {
        false
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        (!self.body.is_empty()).then(|| self.body.clone())
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        Ok(None)
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        Ok(())
    }

    async fn read_body_or_idle(&mut self, _no_body_expected: bool) -> Result<Option<Bytes>> {
        let happened = poll_fn(|cx| {
            if self.bell.as_mut().is_some_and(|bell| !bell.has_rung(cx)) {
                return Poll::Pending;
            }
            let mut cx = self.bell.as_ref().map_or(Context::from_waker(cx.waker()), Bell::context);
            if let Poll::Ready(gone) = pin!(self.inner.read_body_or_idle(true)).poll(&mut cx) {
                return Poll::Ready(gone);
            }
            self.deadlines.poll_missed(&cx).map(|missed| Err(missed.into_error()))
        })
        .await;
        self.ring();
        happened
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let is_of_the_answer = |task: &HttpTask| match task {
            HttpTask::Header(header, _) => !header.status.is_informational(),
            HttpTask::Failed(_) => false,
            _ => true,
        };
        let has_begun = tasks.iter().any(is_of_the_answer);
        if has_begun {
            // No try can follow: the prompt is let go.
            self.body = Bytes::new();
        }
        let end = match (&self.chunks_to, tasks.as_slice()) {
            // One chunk of a stream, the usual thing.
            (Some(connection), [HttpTask::Body(Some(chunk), false)]) if !chunk.is_empty() => {
                let limit = self.inner.get_write_timeout();
                send_chunk(connection, chunk, limit).await.map_err(Error::into_down)?;
                self.chunk_bytes += chunk.len();
                Ok(false)
            }
            _ => {
                let end = Box::pin(self.inner.response_duplex_vec(tasks)).await;
                self.chunks_to = chunks_to(&self.inner).cloned();
                end
            }
        };
        if has_begun && self.deadlines.heard(Instant::now()) {
            self.ring();
        }
        end
    }

    async fn finish(&mut self) -> Result<()> {
        self.inner.finish_body().await
    }

    // From here on the real session answers.

    fn req_header(&self) -> &RequestHeader {
        self.inner.req_header()
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        self.inner.req_header_mut()
    }

    async fn write_response_header(&mut self, header: Box<ResponseHeader>, _end: bool) -> Result<()> {
        self.inner.write_response_header(header).await
    }

    async fn write_response_header_ref(&mut self, header: &ResponseHeader, _end: bool) -> Result<()> {
        self.inner.write_response_header_ref(header).await
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        self.inner.write_response_body(data, end).await
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.inner.write_response_trailers(trailers).await
    }

    fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.inner.set_read_timeout(timeout);
    }

    fn get_read_timeout(&self) -> Option<Duration> {
        self.inner.get_read_timeout()
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.inner.set_write_timeout(timeout);
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.inner.get_write_timeout()
    }

    fn set_total_drain_timeout(&mut self, timeout: Option<Duration>) {
        self.inner.set_total_drain_timeout(timeout);
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.inner.get_total_drain_timeout()
    }

    fn request_summary(&self) -> String {
        self.inner.request_summary()
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.inner.response_written()
    }

    async fn shutdown(&mut self, _code: u32, _context: &str) {
        self.inner.shutdown().await;
    }

    fn body_bytes_sent(&self) -> usize {
        self.inner.body_bytes_sent() + self.chunk_bytes
    }

    fn body_bytes_read(&self) -> usize {
        self.inner.body_bytes_read()
    }

    fn digest(&self) -> Option<&Digest> {
        self.inner.digest()
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        self.inner.digest_mut()
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.inner.client_addr()
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.inner.server_addr()
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        self.inner.to_h1_raw()
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_reader(&mut self) -> Option<CustomMessageReader> {
        None
    }

    fn restore_custom_message_reader(&mut self, _reader: CustomMessageReader) -> Result<()> {
        no_custom_messages()
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        None
    }

    fn restore_custom_message_writer(&mut self, _writer: Box<dyn CustomMessageWrite>) -> Result<()> {
        no_custom_messages()
    }
}
