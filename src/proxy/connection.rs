//! A client's connection while it owes us a header: how long it may be silent, how long a header may take and be.
//!
//! Wraps the stream that [`super::guard`] hands to Pingora, whose own timeouts count from read to read and would let a
//! client drip for ever. The spine tells when a request has begun and ended; in between every read passes untouched, and
//! HTTP/2 passes altogether (it has limits of its own). Refusals are answered with 400, 405, 408, 414 or 431 and a close.

use super::reject::Reject;
use crate::config::{Limits, Timeouts};
use async_trait::async_trait;
use pingora::protocols::http::ServerSession;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream,
    TimingDigest, UniqueID, UniqueIDType,
};
use prometheus::IntCounterVec;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// How a client of HTTP/2 begins.
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What a refused client may still send before it is cut off.
const LINGER_BYTES_MAX: usize = 1024 * 1024;

/// What bounds a header.
#[derive(Clone)]
pub struct HeaderLimits {
    idle: Duration,
    header: Duration,
    linger: Duration,
    bytes_max: usize,
    /// Counts refusals by reason.
    refused: IntCounterVec,
}

impl HeaderLimits {
    /// The limits that the configuration sets.
    #[must_use]
    pub fn new(limits: &Limits, timeouts: &Timeouts, refused: IntCounterVec) -> Self {
        Self {
            idle: timeouts.idle,
            header: timeouts.header,
            linger: timeouts.drain,
            bytes_max: limits.header_bytes_max,
            refused,
        }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    /// Nothing of a request is here.
    Idle,
    /// A header is arriving.
    Header,
    /// The client was refused: what it still sends is thrown away.
    Refused,
}

/// A connection under the limits of its phase.
pub struct Connection {
    inner: Stream,
    limits: HeaderLimits,
    /// Set from outside while a request runs; then nothing here limits anything.
    in_request: AtomicBool,
    /// Set from outside when a request has ended: the wait for the next one begins with the next read.
    request_ended: AtomicBool,
    served: bool,
    phase: Phase,
    deadline: Instant,
    timer: Option<Pin<Box<Sleep>>>,
    /// Bytes of the header so far, and whether its first line is complete.
    bytes: usize,
    first_line_complete: bool,
    /// Bytes that were peeked at and not yet read.
    peeked: Vec<u8>,
}

/// Tells the connection under `session`, where it is one of HTTP/1, that a request has begun or ended.
pub fn set_in_request(session: &ServerSession, in_request: bool) {
    let stream = session.stream().map(AsRef::as_ref);
    if let Some(connection) = stream.and_then(|stream| stream.as_any().downcast_ref::<Connection>()) {
        connection.in_request.store(in_request, Ordering::Relaxed);
        connection.request_ended.store(!in_request, Ordering::Relaxed);
    }
}

impl Connection {
    /// Wraps `inner`, of which nothing has been read.
    #[must_use]
    pub fn new(inner: Stream, limits: HeaderLimits) -> Self {
        let is_h2 = matches!(inner.selected_alpn_proto(), Some(ALPN::H2));
        Self {
            deadline: Instant::now() + limits.idle,
            inner,
            limits,
            in_request: AtomicBool::new(is_h2),
            request_ended: AtomicBool::new(false),
            served: false,
            phase: Phase::Idle,
            timer: None,
            bytes: 0,
            first_line_complete: false,
            peeked: Vec::new(),
        }
    }

    fn enter(&mut self, phase: Phase, allowed: Duration) {
        self.phase = phase;
        self.deadline = Instant::now() + allowed;
        self.bytes = 0;
        self.first_line_complete = false;
    }

    /// Ready when the deadline of the phase is over. The timer is moved only when it must fire earlier.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let deadline = self.deadline;
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
            if deadline < timer.deadline() || (timer.is_elapsed() && deadline > timer.deadline()) {
                timer.as_mut().reset(deadline);
            }
            ready!(timer.as_mut().poll(cx));
            if Instant::now() >= self.deadline {
                return Poll::Ready(());
            }
        }
    }

    /// Answers once, as far as the socket takes it, and throws away what follows.
    fn refuse(&mut self, cx: &mut Context<'_>, reject: &Reject) {
        self.limits.refused.with_label_values(&[reject.reason]).inc();
        let body = reject.body();
        let head = format!(
            "HTTP/1.1 {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            reject.status,
            body.len()
        );
        let answer = [head.as_bytes(), &body].concat();
        // A few hundred bytes fit the socket's buffer; a client that does not read at all gets no answer.
        let _sent = Pin::new(&mut self.inner).poll_write(cx, &answer).is_ready();
        let _closed = Pin::new(&mut self.inner).poll_shutdown(cx).is_ready();
        self.enter(Phase::Refused, self.limits.linger);
    }

    /// Ends a connection on which nothing came; counted as refused unless a request was served before.
    fn end_silence(&mut self) {
        if !self.served {
            self.limits.refused.with_label_values(&["idle"]).inc();
        }
        self.enter(Phase::Refused, Duration::ZERO);
    }

    /// Counts what has arrived of a header, and says what is wrong with it.
    fn header_arrived(&mut self, arrived: &[u8]) -> Option<Reject> {
        if self.phase == Phase::Idle {
            self.enter(Phase::Header, self.limits.header);
        }
        // A read may hold the beginning of the body, so only what came before it counts for sure.
        let too_long = self.bytes > self.limits.bytes_max;
        self.bytes += arrived.len();
        self.first_line_complete |= arrived.contains(&b'\n');
        too_long.then(|| {
            if self.first_line_complete { Reject::header_too_large() } else { Reject::target_too_long() }
        })
    }

    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut scratch = [0; 8192];
        while self.bytes < LINGER_BYTES_MAX {
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(&mut self.inner).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => self.bytes += buffer.filled().len(),
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return self.poll_deadline(cx),
            }
        }
        Poll::Ready(())
    }

    fn poll_header(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match Pin::new(&mut self.inner).poll_read(cx, buf) {
            Poll::Ready(Ok(())) => {
                let arrived = buf.filled().get(before..).unwrap_or_default();
                if arrived.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                let Some(reject) = self.header_arrived(arrived) else {
                    return Poll::Ready(Ok(()));
                };
                buf.set_filled(before);
                self.refuse(cx, &reject);
            }
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => {
                ready!(self.poll_deadline(cx));
                if self.phase == Phase::Idle {
                    self.end_silence();
                    return Poll::Ready(Ok(()));
                }
                self.refuse(cx, &Reject::header_timeout());
            }
        }
        self.poll_linger(cx).map(Ok)
    }
}

impl AsyncRead for Connection {
    /// As the inner stream; an empty read, which means the end, when a limit was reached.
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.peeked.is_empty() {
            let given = this.peeked.len().min(buf.remaining());
            let rest = this.peeked.split_off(given);
            buf.put_slice(&this.peeked);
            this.peeked = rest;
            return Poll::Ready(Ok(()));
        }
        if *this.in_request.get_mut() {
            return Pin::new(&mut this.inner).poll_read(cx, buf);
        }
        if std::mem::take(this.request_ended.get_mut()) {
            this.served = true;
            this.enter(Phase::Idle, this.limits.idle);
        }
        if this.phase == Phase::Refused {
            return this.poll_linger(cx).map(Ok);
        }
        this.poll_header(cx, buf)
    }
}

#[async_trait]
impl Peek for Connection {
    /// Reads only as long as the bytes are those of HTTP/2's preface, so that the shortest request is not held up.
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        use tokio::io::AsyncReadExt;
        let mut seen = Vec::with_capacity(buf.len());
        while seen.len() < buf.len() && H2_PREFACE.starts_with(&seen) {
            let mut chunk = [0; 64];
            let room = (buf.len() - seen.len()).min(chunk.len());
            let Some(space) = chunk.get_mut(..room) else { break };
            match self.read(space).await? {
                0 => break,
                count => seen.extend_from_slice(chunk.get(..count).unwrap_or_default()),
            }
        }
        buf.fill(0);
        for (to, from) in buf.iter_mut().zip(&seen) {
            *to = *from;
        }
        if seen == H2_PREFACE {
            self.in_request.store(true, Ordering::Relaxed);
        }
        self.peeked = seen;
        Ok(true)
    }
}

// From here on the inner stream answers.

impl AsyncWrite for Connection {
    /// As the inner stream; but what Pingora itself says to a header that is none, an empty 400 or 405 before the spine
    /// hears of the request, is replaced by an answer of ours and counted.
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.phase == Phase::Header && !*this.in_request.get_mut() && !*this.request_ended.get_mut() {
            let reject = if buf.starts_with(b"HTTP/1.1 405 ") {
                Reject::method_not_allowed()
            } else {
                Reject::bad_request("The request header is malformed.")
            };
            this.refuse(cx, &reject);
        }
        if this.phase == Phase::Refused {
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut this.inner).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[async_trait]
impl Shutdown for Connection {
    async fn shutdown(&mut self) {
        self.inner.shutdown().await;
    }
}

impl UniqueID for Connection {
    fn id(&self) -> UniqueIDType {
        self.inner.id()
    }
}

impl Ssl for Connection {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.inner.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.inner.selected_alpn_proto()
    }
}

impl GetTimingDigest for Connection {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.inner.get_timing_digest()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.inner.get_read_pending_time()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.inner.get_write_pending_time()
    }
}

impl GetProxyDigest for Connection {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.inner.get_proxy_digest()
    }
}

impl GetSocketDigest for Connection {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.inner.get_socket_digest()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("phase", &self.phase).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    fn connection() -> (Connection, DuplexStream) {
        let (ours, theirs) = duplex(1 << 20);
        let refused = crate::metrics::Metrics::new().unwrap().connections_refused;
        let limits = Limits { header_bytes_max: 1024, ..Limits::default() };
        let timeouts = Timeouts {
            idle: Duration::from_mins(1),
            header: Duration::from_secs(10),
            drain: Duration::from_secs(2),
            ..Timeouts::default()
        };
        (Connection::new(Box::new(ours), HeaderLimits::new(&limits, &timeouts, refused)), theirs)
    }

    async fn answer(mut theirs: DuplexStream) -> String {
        let mut text = String::new();
        theirs.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_ends_without_an_answer() {
        let (mut ours, theirs) = connection();
        let started = Instant::now();
        assert_eq!(ours.read(&mut [0; 10]).await.unwrap(), 0);
        assert_eq!(started.elapsed(), Duration::from_mins(1));
        assert_eq!(ours.read(&mut [0; 10]).await.unwrap(), 0, "and it stays ended");
        assert_eq!(ours.limits.refused.with_label_values(&["idle"]).get(), 1);
        drop(ours);
        assert_eq!(answer(theirs).await, "");
    }

    #[tokio::test(start_paused = true)]
    async fn a_dripping_header_is_answered_408_at_its_total_deadline() {
        let (mut ours, mut theirs) = connection();
        let started = Instant::now();
        let dripping = async {
            for _ in 0..12 {
                theirs.write_all(b"G").await.unwrap();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            theirs
        };
        let reading = async {
            while ours.read(&mut [0; 10]).await.unwrap() > 0 {}
            drop(ours);
            started.elapsed()
        };
        let (theirs, elapsed) = tokio::join!(dripping, reading);
        assert!(answer(theirs).await.starts_with("HTTP/1.1 408 "));
        assert_eq!(elapsed, Duration::from_secs(12), "ten, and two to read what follows");
    }

    #[tokio::test(start_paused = true)]
    async fn every_request_has_the_whole_of_the_limits() {
        let (mut ours, mut theirs) = connection();
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_secs(50)).await;
            theirs.write_all(&[b'x'; 500]).await.unwrap();
            ours.read_exact(&mut [0; 500]).await.unwrap();
            // A request that lasts, on which nothing more is read.
            ours.in_request.store(true, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_secs(100)).await;
            ours.in_request.store(false, Ordering::Relaxed);
            ours.request_ended.store(true, Ordering::Relaxed);
            assert!(futures::poll!(pin!(ours.read(&mut [0; 1]))).is_pending());
        }
        let ended = Instant::now();
        assert_eq!(ours.read(&mut [0; 1]).await.unwrap(), 0);
        assert_eq!(ended.elapsed(), Duration::from_mins(1));
        assert_eq!(ours.limits.refused.with_label_values(&["idle"]).get(), 0, "it was served");
    }

    #[tokio::test(start_paused = true)]
    async fn an_endless_header_is_answered_431_and_an_endless_target_414() {
        for (beginning, status) in [("GET / HTTP/1.1\r\na: ", "431"), ("GET /", "414")] {
            let (mut ours, mut theirs) = connection();
            theirs.write_all(beginning.as_bytes()).await.unwrap();
            theirs.write_all(&[b'x'; 4096]).await.unwrap();
            while ours.read(&mut [0; 512]).await.unwrap() > 0 {}
            drop(ours);
            assert!(answer(theirs).await.starts_with(&format!("HTTP/1.1 {status} ")));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn during_a_request_nothing_is_limited() {
        let (mut ours, mut theirs) = connection();
        ours.in_request.store(true, Ordering::Relaxed);
        theirs.write_all(&[b'x'; 4096]).await.unwrap();
        let mut all = [0; 4096];
        ours.read_exact(&mut all).await.unwrap();
        let waits = tokio::time::timeout(Duration::from_hours(1), ours.read(&mut all)).await;
        assert!(waits.is_err());
    }

    #[tokio::test]
    async fn peeking_neither_loses_bytes_nor_waits_for_more_than_it_needs() {
        for (sent, is_h2) in [(&b"GET / HTTP/1.0\r\n\r\n"[..], false), (H2_PREFACE, true), (b"PRI", false)] {
            let (mut ours, mut theirs) = connection();
            theirs.write_all(sent).await.unwrap();
            if sent == b"PRI" {
                AsyncWriteExt::shutdown(&mut theirs).await.unwrap();
            }
            let mut peeked = [0; 24];
            assert!(ours.try_peek(&mut peeked).await.unwrap());
            assert_eq!(peeked == H2_PREFACE, is_h2);
            let mut read = vec![0; sent.len()];
            ours.read_exact(&mut read).await.unwrap();
            assert_eq!(read, sent);
        }
    }
}
