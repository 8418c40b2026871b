//! The state of a client's connection: how far the bytes of a request have come, and who is to have them.
//!
//! Held by [`super::Connection`] under a lock that nobody keeps across an await. A head is held back until it is whole and
//! then given to Pingora; the body behind it is not, where its length is plain: the spine takes it from here, straight from
//! the socket into the memory where it stays. Pingora is told that there is none, by zeros in the place of its length. What
//! follows a body waits for the next request. Bounded by `limits.header_bytes_max` and [`READ_AHEAD_BYTES`].

use super::super::alarm::Alarm;
use super::super::reject::Reject;
use super::head::{self, Head};
use super::{Address, HeaderLimits};
use bytes::{Buf, Bytes, BytesMut};
use pingora::protocols::Stream;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tokio_util::io::poll_read_buf;

/// How a client of HTTP/2 begins.
pub(super) const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What is read at once before it is known what it is: most heads, and short prompts with them. The memory is taken only
/// while something is there.
const READ_AHEAD_BYTES: usize = 4096;
/// What is read of a request that comes before the one before it is answered; the rest waits in the socket.
const PIPELINED_BYTES: usize = 512;
/// A chunk: the line before it, its bytes, its end.
const PIECES_MAX: usize = 3;
/// What a refused client may still send before it is cut off.
const LINGER_BYTES_MAX: usize = 1024 * 1024;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    /// Nothing of a request is here.
    Idle,
    /// A head is arriving; whether a line has ended since it was looked at last.
    Head { line_ended: bool },
    /// A request whose end is known: what is left of its head, for Pingora, and of its body, for the spine.
    Request { head_left: usize, body_left: usize },
    /// HTTP/2: what comes is for Pingora as it is.
    Through,
    /// The client was refused: what it still sends is thrown away.
    Refused,
}

pub(super) struct Wire {
    pub(super) inner: Stream,
    pub(super) client: Option<Address>,
    limits: HeaderLimits,
    phase: Phase,
    /// Whether the spine knows of the request.
    in_request: bool,
    /// Pingora alone knows where requests begin and end, since one came whose end is not plain: from then on it may have
    /// read some of the next one already.
    loose: bool,
    served: bool,
    /// How long the phase may last, and until when; `None` = it was not waited for.
    allowed: Duration,
    deadline: Option<Instant>,
    pub(super) alarm: Alarm,
    /// What was read and not yet taken.
    ahead: BytesMut,
    /// The bytes of a head that only passed.
    loose_bytes: usize,
    /// What a refused client has sent since.
    thrown_away: usize,
}

impl Wire {
    pub(super) fn new(inner: Stream, client: Option<Address>, limits: HeaderLimits, is_h2: bool) -> Self {
        Self {
            allowed: limits.idle,
            deadline: None,
            inner,
            client,
            limits,
            phase: if is_h2 { Phase::Through } else { Phase::Idle },
            in_request: is_h2,
            loose: false,
            served: false,
            alarm: Alarm::default(),
            ahead: BytesMut::new(),
            loose_bytes: 0,
            thrown_away: 0,
        }
    }

    /// The spine has begun with the request whose head was given last.
    pub(super) fn begin_request(&mut self) {
        self.in_request = true;
    }

    /// The request is over: the wait for the next one begins. One whose body was not taken was the last.
    pub(super) fn end_request(&mut self) {
        self.in_request = false;
        self.served = true;
        match self.phase {
            Phase::Request { body_left: 1.., .. } => self.enter(Phase::Refused, Duration::ZERO),
            Phase::Request { .. } if !self.ahead.is_empty() => {
                self.enter(Phase::Head { line_ended: true }, self.limits.header);
            }
            Phase::Refused => {}
            _ => self.enter(Phase::Idle, self.limits.idle),
        }
    }

    /// Whether Pingora is to be asked for the next request at once, since it may have it.
    pub(super) fn is_loose(&self) -> bool {
        self.loose
    }

    /// The bytes of the body that the spine is to take from here; `None` where Pingora has it.
    pub(super) fn body_left(&self) -> Option<usize> {
        match self.phase {
            Phase::Request { body_left, .. } => Some(body_left),
            _ => None,
        }
    }

    fn enter(&mut self, phase: Phase, allowed: Duration) {
        self.phase = phase;
        (self.allowed, self.deadline) = (allowed, None);
    }

    /// Ready when the phase has lasted too long, from when it was waited for first.
    fn poll_deadline(&mut self, cx: &Context<'_>) -> Poll<()> {
        let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + self.allowed);
        self.alarm.poll_over(deadline, cx)
    }

    /// Reads more ahead; 0 = the client has ended.
    fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.ahead.reserve(READ_AHEAD_BYTES);
        let read = poll_read_buf(Pin::new(&mut self.inner), cx, &mut self.ahead);
        if self.ahead.is_empty() {
            self.ahead = BytesMut::new();
        }
        read
    }

    /// Ready when something of a request is here (true) or nothing will come (false).
    pub(super) fn poll_begin(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if self.phase != Phase::Idle || self.loose {
            return Poll::Ready(self.phase != Phase::Refused);
        }
        match self.poll_ahead(cx) {
            Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(false),
            Poll::Ready(Ok(_)) => {
                self.enter(Phase::Head { line_ended: true }, self.limits.header);
                Poll::Ready(true)
            }
            Poll::Pending => {
                ready!(self.poll_deadline(cx));
                self.end_silence();
                Poll::Ready(false)
            }
        }
    }

    /// Whether what is here is how HTTP/2 begins, as far as it goes.
    pub(super) fn begins_as_h2(&self) -> bool {
        let seen = self.ahead.get(..H2_PREFACE.len()).unwrap_or(&self.ahead);
        !seen.is_empty() && H2_PREFACE.starts_with(seen)
    }

    /// Ready when as much is here as the preface of HTTP/2 has, or as shows that this is none; false = the client has ended before.
    pub(super) fn poll_preface(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        while self.ahead.len() < H2_PREFACE.len() && (self.ahead.is_empty() || self.begins_as_h2()) {
            if self.ahead.is_empty() {
                if !ready!(self.poll_begin(cx)) {
                    return Poll::Ready(false);
                }
            } else {
                match self.poll_ahead(cx) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(false),
                    Poll::Ready(Ok(_)) => {}
                    Poll::Pending => {
                        ready!(self.poll_deadline(cx));
                        return Poll::Ready(false);
                    }
                }
            }
        }
        Poll::Ready(true)
    }

    /// The first bytes that are here; where they are HTTP/2's preface, everything is passed on from now.
    pub(super) fn peek(&mut self, buf: &mut [u8]) {
        buf.fill(0);
        for (to, from) in buf.iter_mut().zip(&self.ahead) {
            *to = *from;
        }
        if self.ahead.starts_with(H2_PREFACE) {
            self.phase = Phase::Through;
            self.in_request = true;
        }
    }

    /// What Pingora reads.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.phase {
                Phase::Idle | Phase::Head { .. } if self.loose => return self.poll_loose(cx, buf),
                Phase::Idle => {
                    if !ready!(self.poll_begin(cx)) {
                        return Poll::Ready(Ok(()));
                    }
                }
                // A head ends with a line: one that drips is not read again with each byte.
                Phase::Head { line_ended: false } => ready!(self.poll_more_of_head(cx))?,
                Phase::Head { line_ended: true } => match head::read(&self.ahead) {
                    Head::Partial => ready!(self.poll_more_of_head(cx))?,
                    Head::Plain { bytes, body_bytes, length } => {
                        if let Some(digits) = length.and_then(|length| self.ahead.get_mut(length)) {
                            digits.fill(b'0');
                        }
                        self.phase = Phase::Request { head_left: bytes, body_left: body_bytes };
                    }
                    Head::Other => self.loose = true,
                },
                Phase::Request { head_left: 0, .. } => return self.poll_end(cx),
                Phase::Request { head_left, body_left } => {
                    let given = self.give(buf, head_left);
                    self.phase = Phase::Request { head_left: head_left - given, body_left };
                    return Poll::Ready(Ok(()));
                }
                Phase::Through => return self.poll_through(cx, buf),
                Phase::Refused => return self.poll_linger(cx).map(Ok),
            }
        }
    }

    fn poll_through(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        }
        self.give(buf, usize::MAX);
        Poll::Ready(Ok(()))
    }

    /// What comes is for Pingora as it is, under the limits of a header while the spine has no request.
    fn poll_loose(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.in_request {
            return self.poll_through(cx, buf);
        }
        let before = buf.filled().len();
        match self.poll_through(cx, buf) {
            Poll::Ready(Ok(())) => {
                let arrived = buf.filled().get(before..).unwrap_or_default();
                if self.phase == Phase::Idle && !arrived.is_empty() {
                    self.enter(Phase::Head { line_ended: true }, self.limits.header);
                    self.loose_bytes = 0;
                }
                // A read may hold the beginning of the body, so only what came before it counts for sure.
                let too_long = self.loose_bytes > self.limits.bytes_max;
                self.loose_bytes += arrived.len();
                if !too_long {
                    return Poll::Ready(Ok(()));
                }
                buf.set_filled(before);
                self.refuse(cx, &Reject::header_too_large());
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

    fn give(&mut self, buf: &mut ReadBuf<'_>, bytes_max: usize) -> usize {
        let given = self.ahead.len().min(buf.remaining()).min(bytes_max);
        buf.put_slice(&self.ahead.split_to(given));
        given
    }

    /// Reads on in a head that is not whole, or refuses its client.
    fn poll_more_of_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ahead.len() > self.limits.bytes_max {
            let whole_line = self.ahead.contains(&b'\n');
            let reject = if whole_line { Reject::header_too_large() } else { Reject::target_too_long() };
            self.refuse(cx, &reject);
            return Poll::Ready(Ok(()));
        }
        match self.poll_ahead(cx) {
            // What there is goes to Pingora, which finds it cut off.
            Poll::Ready(Ok(0)) => self.loose = true,
            Poll::Ready(Ok(read)) => {
                let line_ended = self.ahead.iter().rev().take(read).any(|byte| *byte == b'\n');
                self.phase = Phase::Head { line_ended };
            }
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => {
                self.phase = Phase::Head { line_ended: false };
                ready!(self.poll_deadline(cx));
                self.refuse(cx, &Reject::header_timeout());
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Pingora waits whether the client leaves. What comes instead belongs to the next request.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            return Poll::Pending;
        }
        let mut scratch = [MaybeUninit::uninit(); PIPELINED_BYTES];
        let mut early = ReadBuf::uninit(&mut scratch);
        ready!(Pin::new(&mut self.inner).poll_read(cx, &mut early))?;
        if early.filled().is_empty() {
            return Poll::Ready(Ok(()));
        }
        self.ahead.extend_from_slice(early.filled());
        Poll::Pending
    }

    /// The body, where all of it came with the head: nothing is copied.
    pub(super) fn take_body(&mut self) -> Option<Bytes> {
        let Phase::Request { head_left: 0, body_left } = self.phase else { return None };
        if self.ahead.len() < body_left {
            return None;
        }
        self.phase = Phase::Request { head_left: 0, body_left: 0 };
        Some(self.ahead.split_to(body_left).freeze())
    }

    /// More of the body, at the end of `body`, as far as it has room; 0 = that was all.
    ///
    /// # Errors
    /// When the client leaves before its end.
    pub(super) fn poll_body(&mut self, cx: &mut Context<'_>, body: &mut BytesMut) -> Poll<io::Result<usize>> {
        let Phase::Request { head_left: 0, body_left } = self.phase else { return Poll::Ready(Ok(0)) };
        if body_left == 0 {
            return Poll::Ready(Ok(0));
        }
        let read = if self.ahead.is_empty() {
            // A read that is filled is followed by one more, to see that nothing is left: so there is room for a byte too many.
            let mut room = bytes::BufMut::limit(&mut *body, body_left.saturating_add(1));
            let read = ready!(poll_read_buf(Pin::new(&mut self.inner), cx, &mut room))?;
            if read == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            if read > body_left {
                self.ahead.extend_from_slice(&body.split_off(body.len() - 1));
            }
            read.min(body_left)
        } else {
            let head = self.ahead.split_to(self.ahead.len().min(body_left));
            body.extend_from_slice(&head);
            head.len()
        };
        self.phase = Phase::Request { head_left: 0, body_left: body_left - read };
        Poll::Ready(Ok(read))
    }

    /// What Pingora writes; but what it says to a head that is none, an empty 400 or 405 before the spine hears of the
    /// request, is replaced by an answer of ours and counted.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if !self.in_request && matches!(self.phase, Phase::Head { .. } | Phase::Request { .. }) {
            let reject = if buf.starts_with(b"HTTP/1.1 405 ") {
                Reject::method_not_allowed()
            } else {
                Reject::bad_request("The request header is malformed.")
            };
            self.refuse(cx, &reject);
        }
        if self.phase == Phase::Refused {
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    /// Writes what is left and sends it off.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>, left: &mut impl Buf) -> Poll<io::Result<()>> {
        let mut inner = Pin::new(&mut self.inner);
        while left.has_remaining() {
            let mut pieces = [io::IoSlice::new(&[]); PIECES_MAX];
            let count = left.chunks_vectored(&mut pieces);
            let pieces = pieces.get(..count).unwrap_or_default();
            match ready!(inner.as_mut().poll_write_vectored(cx, pieces))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => left.advance(written),
            }
        }
        inner.poll_flush(cx)
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

    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.ahead = BytesMut::new();
        let mut scratch = [0; 8192];
        while self.thrown_away < LINGER_BYTES_MAX {
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(&mut self.inner).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    self.thrown_away += buffer.filled().len();
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return self.poll_deadline(cx),
            }
        }
        Poll::Ready(())
    }
}
