//! Reads one HTTP/1.1 answer piece by piece: where it ends, how many events it held, whether it was whole.
//!
//! Fed by `client`; pure. Of the body it keeps the last bytes only, as many as it is told to, so its memory is constant, unless
//! it is told to keep all of it, which is bounded. It understands `content-length` and chunked bodies; a body that ends with the
//! connection is refused.
use std::rc::Rc;

use memchr::{memchr, memchr_iter};

const HEADERS_MAX: usize = 64;
/// A chunk-size or trailer line longer than this is not HTTP that we want to measure.
const LINE_BYTES_MAX: usize = 1024;
/// How an engine ends an event stream, but for the empty line and whether there is a space.
const STREAM_ENDS: [&[u8]; 2] = [b"data: [DONE]", b"data:[DONE]"];
/// As much of the end is always kept: the line, and its end and that of an empty line after it.
const TAIL_BYTES_MIN: usize = 16;
/// A kept body is not longer than this.
const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The header in which a mock engine tells its name.
pub(crate) const SERVED_BY: &str = "x-served-by";

#[derive(Debug)]
enum State {
    Head,
    Length(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailer,
    Complete,
}

/// What a line of an event stream is, as far as it has arrived.
#[derive(Clone, Copy, Debug)]
enum Line {
    /// Nothing, or the first half of its end.
    Blank,
    /// A colon begins it: it only keeps the connection alive.
    Comment,
    Data,
}

impl Line {
    /// The same line with more of it.
    fn and(self, more: &[u8]) -> Self {
        match (self, more.iter().find(|byte| **byte != b'\r')) {
            (Self::Blank, Some(b':')) => Self::Comment,
            (Self::Blank, Some(_)) => Self::Data,
            (line, _) => line,
        }
    }
}

/// Why an answer cannot be read any further.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("malformed answer: {0}")]
pub(crate) struct Malformed(&'static str);

impl Malformed {
    /// A head that the reader has no room for.
    pub(crate) const TOO_LONG: Self = Self("head too long");
}

/// The answer to one request, as far as it has arrived.
#[derive(Debug)]
pub(crate) struct Answer {
    state: State,
    status: u16,
    closes: bool,
    events: u64,
    line: Line,
    /// The event under way has a line that is no comment.
    has_data: bool,
    tail: Vec<u8>,
    tail_bytes: usize,
    body: Option<Vec<u8>>,
    backend_header: Option<Rc<str>>,
    served_by: Option<String>,
    retry_after: Option<u64>,
}

impl Answer {
    pub(crate) fn new() -> Self {
        Self {
            state: State::Head,
            status: 0,
            closes: false,
            events: 0,
            line: Line::Blank,
            has_data: false,
            tail: Vec::with_capacity(2 * TAIL_BYTES_MIN),
            tail_bytes: TAIL_BYTES_MIN,
            body: None,
            backend_header: None,
            served_by: None,
            retry_after: None,
        }
    }

    /// Keeps the body, if that is wanted.
    pub(crate) fn keeping_body(self, wanted: bool) -> Self {
        Self { body: wanted.then(Vec::new), ..self }
    }

    /// Keeps so many bytes of the body's end.
    pub(crate) fn keeping_tail(self, bytes: usize) -> Self {
        Self { tail_bytes: bytes.max(TAIL_BYTES_MIN), ..self }
    }

    /// Takes the engine's name from this header, up to a semicolon.
    pub(crate) fn named_by(self, header: Rc<str>) -> Self {
        Self { backend_header: Some(header), ..self }
    }

    /// Takes what it can of `input` and says how many bytes that was; the rest has to be offered again with more.
    pub(crate) fn feed(&mut self, input: &[u8]) -> Result<usize, Malformed> {
        let mut rest = input;
        while !self.is_complete() {
            match self.step(rest)? {
                Some(used) => rest = rest.get(used..).unwrap_or_default(),
                None => break,
            }
        }
        Ok(input.len() - rest.len())
    }

    pub(crate) fn is_complete(&self) -> bool {
        matches!(self.state, State::Complete)
    }

    /// Zero until the head has arrived.
    pub(crate) fn status(&self) -> u16 {
        self.status
    }

    /// The server will close the connection after this answer.
    pub(crate) fn closes(&self) -> bool {
        self.closes
    }

    /// The body as far as it has arrived; empty unless it is kept.
    pub(crate) fn body(&self) -> &[u8] {
        self.body.as_deref().unwrap_or_default()
    }

    /// The end of the body as far as it has arrived.
    pub(crate) fn tail(&self) -> &[u8] {
        &self.tail
    }

    /// The engine that answered, if it tells.
    pub(crate) fn served_by(&self) -> Option<&str> {
        self.served_by.as_deref()
    }

    /// After how many seconds to come again, if it tells.
    pub(crate) fn retry_after(&self) -> Option<u64> {
        self.retry_after
    }

    /// Server-sent events seen so far: blocks that end in an empty line, and are more than comments.
    pub(crate) fn events(&self) -> u64 {
        self.events
    }

    /// The body ended as an event stream of an engine ends.
    pub(crate) fn ends_stream(&self) -> bool {
        let tail = self.tail.trim_ascii_end();
        STREAM_ENDS.iter().any(|end| tail.ends_with(end))
    }

    /// The body ended as a JSON object ends.
    pub(crate) fn ends_object(&self) -> bool {
        self.tail.trim_ascii_end().ends_with(b"}")
    }

    /// One step of the grammar; `None` means that more bytes are needed.
    fn step(&mut self, input: &[u8]) -> Result<Option<usize>, Malformed> {
        match self.state {
            State::Head => self.head(input),
            State::Length(left) => self.data(input, left, State::Length, State::Complete),
            State::ChunkData(left) => self.data(input, left, State::ChunkData, State::ChunkEnd),
            State::ChunkSize => {
                let Some((line, used)) = line(input)? else {
                    return Ok(None);
                };
                let size = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
                let size = str::from_utf8(size).ok().and_then(|size| u64::from_str_radix(size, 16).ok());
                self.state = match size {
                    None => return Err(Malformed("chunk size")),
                    Some(0) => State::Trailer,
                    Some(size) => State::ChunkData(size),
                };
                Ok(Some(used))
            }
            State::ChunkEnd => match line(input)? {
                None => Ok(None),
                Some((b"", used)) => {
                    self.state = State::ChunkSize;
                    Ok(Some(used))
                }
                Some(_) => Err(Malformed("chunk longer than its size")),
            },
            State::Trailer => {
                let Some((line, used)) = line(input)? else {
                    return Ok(None);
                };
                if line.is_empty() {
                    self.state = State::Complete;
                }
                Ok(Some(used))
            }
            State::Complete => Ok(None),
        }
    }

    fn head(&mut self, input: &[u8]) -> Result<Option<usize>, Malformed> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut head = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(used) = head.parse(input).map_err(|_| Malformed("head"))? else {
            return Ok(None);
        };
        let status = head.code.unwrap_or_default();
        if (100..200).contains(&status) {
            return Ok(Some(used));
        }
        self.status = status;
        let value = |name: &str| {
            head.headers
                .iter()
                .find(|header| header.name.eq_ignore_ascii_case(name))
                .map(|header| header.value)
        };
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        let name = value(self.backend_header.as_deref().unwrap_or(SERVED_BY));
        let name = name.map(|name| name.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii());
        self.served_by = name.filter(|name| !name.is_empty()).map(text);
        self.retry_after = value("retry-after").and_then(|value| text(value).trim().parse().ok());
        self.closes = value("connection").is_some_and(|value| value.eq_ignore_ascii_case(b"close"));
        let chunked = value("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case(b"chunked"));
        self.state = if chunked {
            State::ChunkSize
        } else {
            let length = value("content-length").and_then(|value| str::from_utf8(value).ok()?.parse().ok());
            match length.ok_or(Malformed("neither content-length nor chunked"))? {
                0 => State::Complete,
                length => State::Length(length),
            }
        };
        Ok(Some(used))
    }

    fn data(
        &mut self,
        input: &[u8],
        left: u64,
        more: fn(u64) -> State,
        end: State,
    ) -> Result<Option<usize>, Malformed> {
        let wanted = usize::try_from(left).unwrap_or(usize::MAX);
        let taken = input.get(..wanted).unwrap_or(input);
        if taken.is_empty() {
            return Ok(None);
        }
        self.observe(taken);
        if let Some(body) = &mut self.body {
            if body.len() + taken.len() > BODY_BYTES_MAX {
                return Err(Malformed("body too long to be kept"));
            }
            body.extend_from_slice(taken);
        }
        self.state = match left - u64::try_from(taken.len()).unwrap_or(left) {
            0 => end,
            left => more(left),
        };
        Ok(Some(taken.len()))
    }

    /// Counts empty lines and remembers the end, across any cut.
    fn observe(&mut self, data: &[u8]) {
        let mut start = 0;
        for at in memchr_iter(b'\n', data) {
            match self.line.and(data.get(start..at).unwrap_or_default()) {
                Line::Blank => self.events += u64::from(std::mem::take(&mut self.has_data)),
                Line::Comment => {}
                Line::Data => self.has_data = true,
            }
            (self.line, start) = (Line::Blank, at + 1);
        }
        self.line = self.line.and(data.get(start..).unwrap_or_default());
        let kept = data.get(data.len().saturating_sub(self.tail_bytes)..).unwrap_or(data);
        self.tail.extend_from_slice(kept);
        self.tail.drain(..self.tail.len().saturating_sub(self.tail_bytes));
    }
}

/// The first line without its end, and the bytes it takes with it.
fn line(input: &[u8]) -> Result<Option<(&[u8], usize)>, Malformed> {
    match memchr(b'\n', input) {
        Some(at) if at > LINE_BYTES_MAX => Err(Malformed("line too long")),
        Some(at) => {
            let line = input.get(..at).unwrap_or_default();
            Ok(Some((line.strip_suffix(b"\r").ok_or(Malformed("line without CRLF"))?, at + 1)))
        }
        None if input.len() > LINE_BYTES_MAX => Err(Malformed("line too long")),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] =
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
        c\r\ndata: {\"a\"}\n\r\n1;x=y\r\n\n\r\n1b\r\ndata: {\"b\"}\n\ndata: [DONE]\n\n\r\n0\r\n\r\n";

    /// Feeds `bytes` in pieces of `size`, offering again what was not taken, as a connection does.
    fn read(bytes: &[u8], size: usize) -> Result<(Answer, Vec<u8>), Malformed> {
        let mut answer = Answer::new();
        let mut pending = Vec::new();
        for piece in bytes.chunks(size) {
            pending.extend_from_slice(piece);
            let used = answer.feed(&pending)?;
            pending.drain(..used);
        }
        Ok((answer, pending))
    }

    #[test]
    fn a_stream_is_read_the_same_however_it_is_cut() {
        for size in 1..STREAM.len() {
            let (answer, pending) = read(STREAM, size).unwrap();
            assert!(answer.is_complete() && answer.ends_stream() && pending.is_empty(), "size {size}");
            assert_eq!((answer.status(), answer.events()), (200, 3), "size {size}");
        }
    }

    #[test]
    fn a_body_is_kept_only_on_demand_and_never_beyond_its_bound() {
        let mut answer = Answer::new().keeping_body(true);
        answer.feed(STREAM).unwrap();
        assert_eq!(answer.body(), b"data: {\"a\"}\n\ndata: {\"b\"}\n\ndata: [DONE]\n\n");
        assert!(read(STREAM, 10).unwrap().0.body().is_empty());
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", BODY_BYTES_MAX + 1);
        let mut long = Answer::new().keeping_body(true);
        long.feed(head.as_bytes()).unwrap();
        assert!(long.feed(&vec![b'x'; BODY_BYTES_MAX]).is_ok() && long.feed(b"x").is_err());
    }

    #[test]
    fn the_engine_is_known_by_its_header() {
        let text = b"HTTP/1.1 200 OK\r\nX-Served-By: vllm-7\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(read(text, 1000).unwrap().0.served_by(), Some("vllm-7"));
        let text = b"HTTP/1.1 429 No\r\nx-decision: b ; hit=3\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n";
        let mut answer = Answer::new().named_by("X-Decision".into());
        answer.feed(text).unwrap();
        assert_eq!((answer.served_by(), answer.retry_after()), (Some("b"), Some(7)));
    }

    #[test]
    fn as_much_of_the_end_is_kept_as_is_wanted() {
        let (mut answer, mut pending) = (Answer::new().keeping_tail(20), Vec::new());
        for piece in STREAM.chunks(3) {
            pending.extend_from_slice(piece);
            let used = answer.feed(&pending).unwrap();
            pending.drain(..used);
        }
        assert_eq!(answer.tail(), b"\"b\"}\n\ndata: [DONE]\n\n");
        assert!(answer.ends_stream());
    }

    #[test]
    fn lines_may_end_with_crlf_and_comments_are_no_events() {
        let body =
            ": wait\r\n\r\ndata: {\"a\"}\r\n\r\n: wait\r\n\r\nevent: x\r\ndata:1\r\n\r\ndata: [DONE]\r\n\r\n";
        let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        for size in 1..text.len() {
            let (answer, _) = read(text.as_bytes(), size).unwrap();
            assert!(answer.is_complete() && answer.ends_stream(), "size {size}");
            assert_eq!(answer.events(), 3, "size {size}");
        }
    }

    #[test]
    fn a_stream_is_whole_only_with_its_last_byte() {
        for end in 0..STREAM.len() {
            assert!(
                !read(&STREAM[..end], 7).unwrap_or((Answer::new(), Vec::new())).0.is_complete(),
                "end {end}"
            );
        }
    }

    #[test]
    fn a_stream_without_done_is_noticed() {
        let text = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nd: 1\n\r\n0\r\n\r\n";
        let (answer, _) = read(text, 100).unwrap();
        assert!(answer.is_complete() && !answer.ends_stream());
    }

    #[test]
    fn bytes_of_the_next_answer_are_left_alone() {
        let text = b"HTTP/1.1 503 Busy\r\nContent-Length: 3\r\nConnection: Close\r\n\r\n{ }HTTP";
        let (answer, pending) = read(text, 1000).unwrap();
        assert!(answer.is_complete() && answer.closes() && answer.ends_object());
        assert_eq!((answer.status(), pending.as_slice()), (503, b"HTTP".as_slice()));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            b"SSH-2.0-OpenSSH_9.2\r\n\r\n".as_slice(),
            b"HTTP/1.1 200 OK\r\n\r\nuntil close",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nabc\r\n",
        ] {
            assert!(read(text, 1000).is_err(), "{}", text.escape_ascii());
        }
    }
}
