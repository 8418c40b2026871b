//! Reading requests: heads as they came, bodies by their framing. Bounded at 1 MiB and 64 MiB.
//!
//! Lenient where `httparse` is, because the books keep the head byte for byte and a test can judge it.

use std::io;
use std::ops::Range;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::Framing;

const HEAD_MAX_BYTES: usize = 1024 * 1024;
const BODY_MAX_BYTES: usize = 64 * 1024 * 1024;
const HEADERS_MAX: usize = 256;
/// How much of a next request is read while an answer is under way.
const AHEAD_MAX_BYTES: usize = 64 * 1024;

/// The head of a request: its bytes and where things are in them.
#[derive(Debug)]
pub(crate) struct Head {
    bytes: Bytes,
    method: Range<usize>,
    target: Range<usize>,
    headers: Vec<(Range<usize>, Range<usize>)>,
    version_minor: u8,
}

/// Text of bytes that ought to be text.
pub(super) fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Head {
    /// Parses a head at the start of `buffer` and takes it out; `None` while it is incomplete.
    fn take(buffer: &mut BytesMut) -> Result<Option<Self>, httparse::Error> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        let httparse::Status::Complete(length) = request.parse(buffer)? else {
            return Ok(None);
        };
        let start = buffer.as_ptr().addr();
        let range = |part: &[u8]| {
            let from = part.as_ptr().addr() - start;
            from..from + part.len()
        };
        let method = range(request.method.unwrap_or_default().as_bytes());
        let target = range(request.path.unwrap_or_default().as_bytes());
        let version_minor = request.version.unwrap_or(1);
        let headers = request
            .headers
            .iter()
            .map(|header| {
                (
                    range(header.name.as_bytes()),
                    if header.value.is_empty() { 0..0 } else { range(header.value) },
                )
            })
            .collect();
        let bytes = buffer.split_to(length).freeze();
        Ok(Some(Self { bytes, method, target, headers, version_minor }))
    }

    fn text(&self, range: &Range<usize>) -> &str {
        self.bytes.get(range.clone()).and_then(|bytes| str::from_utf8(bytes).ok()).unwrap_or_default()
    }

    pub(crate) fn bytes(&self) -> Bytes {
        self.bytes.clone()
    }

    pub(crate) fn method(&self) -> &str {
        self.text(&self.method)
    }

    pub(crate) fn target(&self) -> &str {
        self.text(&self.target)
    }

    pub(crate) fn path(&self) -> &str {
        self.target().split('?').next().unwrap_or_default()
    }

    pub(crate) fn headers(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.headers
            .iter()
            .map(|(name, value)| (self.text(name), self.bytes.get(value.clone()).unwrap_or_default()))
    }

    /// The first header of this name, when it is text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers().find(|(own, _)| own.eq_ignore_ascii_case(name))?;
        str::from_utf8(value).ok()
    }

    pub(crate) fn framing(&self) -> Framing {
        if self.header("transfer-encoding").is_some() {
            Framing::Chunked
        } else if self.header("content-length").is_some() {
            Framing::ContentLength
        } else {
            Framing::None
        }
    }

    /// Whether the answer may be chunked.
    pub(super) fn knows_chunks(&self) -> bool {
        self.version_minor >= 1
    }

    /// Whether the client wants to use the connection again.
    pub(super) fn keep_alive(&self) -> bool {
        match self.header("connection") {
            Some(value) if value.eq_ignore_ascii_case("close") => false,
            Some(value) if value.eq_ignore_ascii_case("keep-alive") => true,
            _ => self.version_minor >= 1,
        }
    }
}

/// A request that was read to its end.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) head: Head,
    pub(crate) body: Bytes,
}

/// A connection with what was read ahead from it.
#[derive(Debug)]
pub(super) struct Link<W> {
    pub(super) wire: W,
    buffer: BytesMut,
}

/// Why no request could be read.
#[derive(Debug)]
pub(super) enum Unread {
    /// The client left.
    Left,
    /// It sent something else than a request: the status to answer.
    Bad(u16),
}

impl From<io::Error> for Unread {
    fn from(_: io::Error) -> Self {
        Self::Left
    }
}

impl<W: AsyncRead + AsyncWrite + Unpin> Link<W> {
    pub(super) fn new(wire: W) -> Self {
        Self { wire, buffer: BytesMut::with_capacity(8 * 1024) }
    }

    async fn more(&mut self) -> Result<(), Unread> {
        if self.wire.read_buf(&mut self.buffer).await? == 0 { Err(Unread::Left) } else { Ok(()) }
    }

    /// Waits for the first byte of a request.
    pub(super) async fn begins(&mut self) -> Result<(), Unread> {
        if self.buffer.is_empty() { self.more().await } else { Ok(()) }
    }

    pub(super) async fn head(&mut self) -> Result<Head, Unread> {
        loop {
            if !self.buffer.is_empty()
                && let Some(head) = Head::take(&mut self.buffer).map_err(|_| Unread::Bad(400))?
            {
                return Ok(head);
            }
            if self.buffer.len() > HEAD_MAX_BYTES {
                return Err(Unread::Bad(431));
            }
            self.more().await?;
        }
    }

    pub(super) async fn body(&mut self, head: &Head) -> Result<Bytes, Unread> {
        if head.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue")) {
            self.wire.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        match head.framing() {
            Framing::None => Ok(Bytes::new()),
            Framing::Chunked => self.chunks().await,
            Framing::ContentLength => {
                let length = head.header("content-length").and_then(|value| value.trim().parse().ok());
                self.exactly(length.ok_or(Unread::Bad(400))?).await
            }
        }
    }

    async fn exactly(&mut self, length: usize) -> Result<Bytes, Unread> {
        if length > BODY_MAX_BYTES {
            return Err(Unread::Bad(413));
        }
        self.buffer.reserve(length.saturating_sub(self.buffer.len()));
        while self.buffer.len() < length {
            self.more().await?;
        }
        Ok(self.buffer.split_to(length).freeze())
    }

    async fn chunks(&mut self) -> Result<Bytes, Unread> {
        let mut body = BytesMut::new();
        loop {
            let size = match httparse::parse_chunk_size(&self.buffer) {
                Err(_) => return Err(Unread::Bad(400)),
                Ok(httparse::Status::Partial) => {
                    self.more().await?;
                    continue;
                }
                Ok(httparse::Status::Complete((line, size))) => {
                    self.buffer.advance(line);
                    usize::try_from(size).map_err(|_| Unread::Bad(413))?
                }
            };
            if size == 0 {
                while !self.line().await?.is_empty() {} // trailers
                return Ok(body.freeze());
            }
            if size.saturating_add(body.len()) > BODY_MAX_BYTES {
                return Err(Unread::Bad(413));
            }
            body.extend_from_slice(&self.exactly(size).await?);
            if !self.line().await?.is_empty() {
                return Err(Unread::Bad(400));
            }
        }
    }

    /// Takes one line without its end.
    async fn line(&mut self) -> Result<Bytes, Unread> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.buffer) {
                let line = self.buffer.split_to(end + 1).freeze();
                return Ok(line.slice(..line.trim_ascii_end().len()));
            }
            if self.buffer.len() > HEAD_MAX_BYTES {
                return Err(Unread::Bad(431));
            }
            self.more().await?;
        }
    }

    /// Ends when the client has left. Reads ahead meanwhile, up to a bound.
    pub(super) async fn left(&mut self) {
        while self.buffer.len() < AHEAD_MAX_BYTES {
            if self.more().await.is_err() {
                return;
            }
        }
        std::future::pending::<()>().await;
    }

    /// Reads and forgets until the client has left.
    pub(super) async fn drain(&mut self) {
        while self.more().await.is_ok() {
            self.buffer.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(bytes: &'static [u8]) -> Result<(Head, Bytes), Unread> {
        let (client, server) = tokio::io::duplex(64);
        let mut link = Link::new(server);
        let send = async move {
            let mut client = client;
            client.write_all(bytes).await.unwrap();
            client
        };
        let receive = async {
            let head = link.head().await?;
            let body = link.body(&head).await?;
            Ok((head, body))
        };
        let (_client, request) = tokio::join!(send, receive);
        request
    }

    #[tokio::test]
    async fn headers_keep_their_order_and_case() {
        let (head, _) =
            read(b"GET /a?b=1 HTTP/1.1\r\nHost: x\r\nX-Two:  2 \r\nx-empty:\r\n\r\n").await.unwrap();
        let headers: Vec<_> = head.headers().collect();
        assert_eq!(headers, [("Host", &b"x"[..]), ("X-Two", b"2"), ("x-empty", b"")]);
        assert_eq!((head.method(), head.target(), head.path()), ("GET", "/a?b=1", "/a"));
    }

    #[tokio::test]
    async fn a_chunked_body_loses_its_framing_and_trailers() {
        let bytes = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\nT: 1\r\n\r\n";
        let (head, body) = read(bytes).await.unwrap();
        assert_eq!((head.framing(), &body[..]), (Framing::Chunked, &b"abcde"[..]));
    }

    #[tokio::test]
    async fn a_chunk_longer_than_its_size_is_refused() {
        let bytes = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n";
        assert!(matches!(read(bytes).await, Err(Unread::Bad(400))));
    }
}
