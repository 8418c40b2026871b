//! A client's connection: how long it may be silent, how long a header may take and be, and where the bytes of a request go.
//!
//! Made by [`super::guard`], which waits with it for each request and hands it to Pingora as the stream of the next one. What
//! Pingora has no limit for is limited here, since its timeouts count from read to read and would let a client drip for ever;
//! refusals are answered with 400, 405, 408, 414 or 431 and a close. A body whose length is plain does not pass through
//! Pingora, which would copy it twice: [`super::body`] takes it from here. HTTP/2 passes untouched, having limits of its own.

mod address;
mod chunk;
mod head;
mod wire;

use super::alarm::Alarm;
use crate::config::{Limits, Timeouts};
pub use address::Address;
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use pingora::protocols::http::ServerSession;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream,
    TimingDigest, UniqueID, UniqueIDType,
};
use prometheus::IntCounterVec;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use wire::Wire;

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

/// A connection under the limits of its phase. Clones are the same connection, which ends with the last of them.
#[derive(Clone)]
pub struct Connection {
    wire: Arc<Mutex<Wire>>,
    /// Whether it takes several pieces in one write.
    is_vectored: bool,
}

impl Connection {
    /// Takes over `inner`, of which nothing has been read.
    #[must_use]
    pub fn new(inner: Stream, limits: HeaderLimits) -> Self {
        let is_h2 = matches!(inner.selected_alpn_proto(), Some(ALPN::H2));
        let digest = inner.get_socket_digest();
        let client = digest.as_ref().and_then(|digest| Some(digest.peer_addr()?.as_inet()?.ip().into()));
        let is_vectored = inner.is_write_vectored();
        Self { wire: Arc::new(Mutex::new(Wire::new(inner, client, limits, is_h2))), is_vectored }
    }

    /// The connection under `session`, where it is one of HTTP/1.
    #[must_use]
    pub fn of(session: &ServerSession) -> Option<&Self> {
        session.stream()?.as_any().downcast_ref()
    }

    /// Who is at its other end, where that has an address.
    #[must_use]
    pub fn client(&self) -> Option<Address> {
        self.wire.lock().client.clone()
    }

    /// Waits for the next request, in little memory; false = there is none.
    pub async fn request_begins(&self) -> bool {
        poll_fn(|cx| self.wire.lock().poll_begin(cx)).await
    }

    /// Waits for the first request; whether it begins as HTTP/2 does.
    pub async fn begins_as_h2(&self) -> bool {
        poll_fn(|cx| self.wire.lock().poll_preface(cx)).await && self.wire.lock().begins_as_h2()
    }

    /// The spine takes over a request: until it ends nothing is limited here.
    pub fn begin_request(&self) {
        self.wire.lock().begin_request();
    }

    /// The request is over. If its body was not read, the connection is too.
    pub fn end_request(&self) {
        self.wire.lock().end_request();
    }

    /// Exchanges the alarm for the time between requests with another one.
    pub fn swap_alarm(&self, other: &mut Alarm) {
        std::mem::swap(&mut self.wire.lock().alarm, other);
    }

    /// The length of the body of this request; `None` where only Pingora knows where it ends.
    #[must_use]
    pub fn body_bytes(&self) -> Option<usize> {
        self.wire.lock().body_left()
    }

    /// The body, if all of it is here; nothing is copied.
    #[must_use]
    pub fn take_body(&self) -> Option<Bytes> {
        self.wire.lock().take_body()
    }

    /// Waits for more of the body, which is added to `body` as far as it has room; 0 = that was all.
    ///
    /// # Errors
    /// When the client leaves before its end.
    pub async fn read_body(&self, body: &mut BytesMut) -> io::Result<usize> {
        poll_fn(|cx| self.wire.lock().poll_body(cx, body)).await
    }

    /// Whether Pingora may have read some of the next request, since it alone knows where this one ends.
    #[must_use]
    pub fn is_loose(&self) -> bool {
        self.wire.lock().is_loose()
    }
}

impl AsyncRead for Connection {
    /// Heads and what is left to Pingora; an empty read, which means the end, when a limit was reached.
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.wire.lock().poll_read(cx, buf)
    }
}

#[async_trait]
impl Peek for Connection {
    /// Reads only as long as the bytes are those of HTTP/2's preface, so that the shortest request is not held up.
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        poll_fn(|cx| self.wire.lock().poll_preface(cx)).await;
        self.wire.lock().peek(buf);
        Ok(true)
    }
}

// From here on the inner stream answers.

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.wire.lock().poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire.lock().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire.lock().inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire.lock().inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.is_vectored
    }
}

#[async_trait]
impl Shutdown for Connection {
    async fn shutdown(&mut self) {
        // A client that is gone already does not hear of the end.
        let _ended = poll_fn(|cx| Pin::new(&mut self.wire.lock().inner).poll_shutdown(cx)).await;
    }
}

impl UniqueID for Connection {
    fn id(&self) -> UniqueIDType {
        self.wire.lock().inner.id()
    }
}

impl Ssl for Connection {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.wire.lock().inner.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.wire.lock().inner.selected_alpn_proto()
    }
}

impl GetTimingDigest for Connection {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.wire.lock().inner.get_timing_digest()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.wire.lock().inner.get_read_pending_time()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.wire.lock().inner.get_write_pending_time()
    }
}

impl GetProxyDigest for Connection {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.wire.lock().inner.get_proxy_digest()
    }
}

impl GetSocketDigest for Connection {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.wire.lock().inner.get_socket_digest()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::wire::H2_PREFACE;
    use super::*;
    use std::pin::pin;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::Instant;

    const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n";
    /// The same as Pingora is to see it.
    const POST_SEEN: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 00\r\n\r\n";
    const CHUNKED: &str = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";

    fn connection() -> (Connection, DuplexStream, IntCounterVec) {
        let (ours, theirs) = duplex(1 << 20);
        let refused = crate::metrics::Metrics::new().unwrap().connections_refused;
        let limits = Limits { header_bytes_max: 1024, ..Limits::default() };
        let timeouts = Timeouts {
            idle: Duration::from_mins(1),
            header: Duration::from_secs(10),
            drain: Duration::from_secs(2),
            ..Timeouts::default()
        };
        let limits = HeaderLimits::new(&limits, &timeouts, refused.clone());
        (Connection::new(Box::new(ours), limits), theirs, refused)
    }

    async fn answer(mut theirs: DuplexStream) -> String {
        let mut text = String::new();
        theirs.read_to_string(&mut text).await.unwrap();
        text
    }

    /// Reads so many bytes as Pingora does.
    async fn read(ours: &mut Connection, bytes: usize) -> String {
        let mut text = vec![0; bytes];
        ours.read_exact(&mut text).await.unwrap();
        String::from_utf8(text).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_ends_without_an_answer() {
        let (mut ours, theirs, refused) = connection();
        let started = Instant::now();
        assert!(!ours.request_begins().await);
        assert_eq!(started.elapsed(), Duration::from_mins(1));
        assert_eq!(ours.read(&mut [0; 10]).await.unwrap(), 0, "and it stays ended");
        assert_eq!(refused.with_label_values(&["idle"]).get(), 1);
        drop(ours);
        assert_eq!(answer(theirs).await, "");
    }

    #[tokio::test(start_paused = true)]
    async fn a_dripping_header_is_answered_408_at_its_total_deadline() {
        let (mut ours, mut theirs, _) = connection();
        let started = Instant::now();
        let dripping = async {
            for _ in 0..12 {
                theirs.write_all(b"G").await.unwrap();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            theirs
        };
        let reading = async {
            assert!(ours.request_begins().await);
            assert_eq!(ours.read(&mut [0; 10]).await.unwrap(), 0);
            drop(ours);
            started.elapsed()
        };
        let (theirs, elapsed) = tokio::join!(dripping, reading);
        assert!(answer(theirs).await.starts_with("HTTP/1.1 408 "));
        assert_eq!(elapsed, Duration::from_secs(12), "ten, and two to read what follows");
    }

    #[tokio::test(start_paused = true)]
    async fn every_request_has_the_whole_of_the_limits() {
        let (mut ours, mut theirs, refused) = connection();
        let head = format!("GET / HTTP/1.1\r\na: {}\r\n\r\n", "x".repeat(800));
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_secs(50)).await;
            theirs.write_all(head.as_bytes()).await.unwrap();
            assert_eq!(read(&mut ours, head.len()).await, head);
            // A request that lasts, on which nothing more is read.
            ours.begin_request();
            tokio::time::sleep(Duration::from_secs(100)).await;
            ours.end_request();
            assert!(futures::poll!(pin!(ours.read(&mut [0; 1]))).is_pending());
        }
        let ended = Instant::now();
        assert!(!ours.request_begins().await);
        assert_eq!(ended.elapsed(), Duration::from_mins(1));
        assert_eq!(refused.with_label_values(&["idle"]).get(), 0, "it was served");
    }

    #[tokio::test(start_paused = true)]
    async fn an_endless_header_is_answered_431_and_an_endless_target_414() {
        for (beginning, status) in [("GET / HTTP/1.1\r\na: ", "431"), ("GET /", "414")] {
            let (mut ours, mut theirs, _) = connection();
            theirs.write_all(beginning.as_bytes()).await.unwrap();
            theirs.write_all(&[b'x'; 4096]).await.unwrap();
            assert_eq!(ours.read(&mut [0; 512]).await.unwrap(), 0);
            drop(ours);
            assert!(answer(theirs).await.starts_with(&format!("HTTP/1.1 {status} ")));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn during_a_request_nothing_is_limited() {
        let (mut ours, mut theirs, _) = connection();
        theirs.write_all(CHUNKED.as_bytes()).await.unwrap();
        read(&mut ours, CHUNKED.len()).await;
        ours.begin_request();
        theirs.write_all(&[b'x'; 4096]).await.unwrap();
        read(&mut ours, 4096).await;
        let waits = tokio::time::timeout(Duration::from_hours(1), ours.read(&mut [0; 1])).await;
        assert!(waits.is_err());
    }

    #[tokio::test]
    async fn peeking_neither_loses_bytes_nor_waits_for_more_than_it_needs() {
        for (sent, is_h2) in [(&b"GET / HTTP/1.0\r\n\r\n"[..], false), (H2_PREFACE, true), (b"PRI", false)] {
            let (mut ours, mut theirs, _) = connection();
            theirs.write_all(sent).await.unwrap();
            if sent == b"PRI" {
                AsyncWriteExt::shutdown(&mut theirs).await.unwrap();
            }
            assert_eq!(ours.begins_as_h2().await, is_h2);
            let mut peeked = [0; 24];
            assert!(ours.try_peek(&mut peeked).await.unwrap());
            assert_eq!(peeked == H2_PREFACE, is_h2);
            assert_eq!(read(&mut ours, sent.len()).await.as_bytes(), sent);
        }
    }

    /// What the spine gets of the body, in `room` at a time.
    async fn body(ours: &Connection, room: usize) -> io::Result<String> {
        let mut all = BytesMut::new();
        loop {
            all.reserve(room);
            if ours.read_body(&mut all).await? == 0 {
                return Ok(String::from_utf8(all.to_vec()).unwrap());
            }
        }
    }

    #[tokio::test]
    async fn a_plain_body_is_not_for_pingora_and_what_follows_is_for_the_next_request() {
        let all = format!("{POST}0123456789{POST}9876543210");
        for cut in 0..all.len() {
            let (mut ours, mut theirs, _) = connection();
            let (first, second) = all.split_at(cut);
            theirs.write_all(first.as_bytes()).await.unwrap();
            let exchange = async {
                for expected in ["0123456789", "9876543210"] {
                    assert!(ours.request_begins().await);
                    assert_eq!(read(&mut ours, POST.len()).await, POST_SEEN);
                    ours.begin_request();
                    assert_eq!(ours.body_bytes(), Some(10));
                    let whole = ours.take_body();
                    let whole = match whole {
                        Some(whole) => String::from_utf8(whole.to_vec()).unwrap(),
                        None => body(&ours, 3).await.unwrap(),
                    };
                    assert_eq!((whole.as_str(), ours.body_bytes()), (expected, Some(0)), "cut at {cut}");
                    assert!(futures::poll!(pin!(ours.read(&mut [0; 1]))).is_pending(), "the client is there");
                    ours.end_request();
                }
            };
            let writing = async {
                tokio::task::yield_now().await;
                theirs.write_all(second.as_bytes()).await.unwrap();
            };
            tokio::join!(exchange, writing);
        }
    }

    #[tokio::test]
    async fn a_client_that_leaves_is_noticed_in_its_body_and_after_it() {
        let (mut ours, mut theirs, _) = connection();
        theirs.write_all(POST.as_bytes()).await.unwrap();
        theirs.write_all(b"01234").await.unwrap();
        read(&mut ours, POST.len()).await;
        drop(theirs);
        assert_eq!(body(&ours, 100).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);

        let (mut ours, mut theirs, _) = connection();
        theirs.write_all(POST.as_bytes()).await.unwrap();
        theirs.write_all(b"0123456789").await.unwrap();
        read(&mut ours, POST.len()).await;
        assert_eq!(body(&ours, 100).await.unwrap(), "0123456789");
        assert!(futures::poll!(pin!(ours.read(&mut [0; 1]))).is_pending());
        drop(theirs);
        assert_eq!(ours.read(&mut [0; 1]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn after_a_body_that_nobody_took_there_is_no_other_request() {
        let (mut ours, mut theirs, _) = connection();
        theirs.write_all(POST.as_bytes()).await.unwrap();
        theirs.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        read(&mut ours, POST.len()).await;
        ours.begin_request();
        ours.end_request();
        assert!(!ours.request_begins().await);
        assert_eq!(ours.read(&mut [0; 100]).await.unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn after_chunks_everything_is_for_pingora_and_its_heads_are_still_limited() {
        let (mut ours, mut theirs, refused) = connection();
        let all = format!("{CHUNKED}1\r\nx\r\n0\r\n\r\n{POST}");
        theirs.write_all(all.as_bytes()).await.unwrap();
        read(&mut ours, CHUNKED.len()).await;
        ours.begin_request();
        assert_eq!((ours.body_bytes(), ours.is_loose()), (None, true));
        let rest = all.strip_prefix(CHUNKED).unwrap();
        assert_eq!(read(&mut ours, rest.len()).await, rest, "and so the next request");
        ours.end_request();
        assert!(ours.request_begins().await, "Pingora has it already");
        theirs.write_all(&[b'x'; 4096]).await.unwrap();
        ours.read_exact(&mut [0; 2000]).await.unwrap();
        assert_eq!(ours.read(&mut [0; 2000]).await.unwrap(), 0);
        assert_eq!(refused.with_label_values(&["header_too_large"]).get(), 1);
        let started = Instant::now();
        let (mut silent, mut theirs, refused) = connection();
        theirs.write_all(CHUNKED.as_bytes()).await.unwrap();
        read(&mut silent, CHUNKED.len()).await;
        silent.begin_request();
        silent.end_request();
        assert_eq!(silent.read(&mut [0; 1]).await.unwrap(), 0);
        assert_eq!((started.elapsed().as_secs(), refused.with_label_values(&["idle"]).get()), (60, 0));
    }
}
