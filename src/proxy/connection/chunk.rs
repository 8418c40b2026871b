//! A chunk of an answer, framed as HTTP/1.1 has it (RFC 9112, section 7.1).
//!
//! Sent by [`super::super::replay`], one for each event of a stream, and written by [`super::wire`]. Bytes are borrowed.

use super::Connection;
use bytes::Buf;
use std::future::poll_fn;
use std::io;

const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
/// Digits of the longest chunk there could be.
const DIGITS_MAX: usize = 16;

/// The line before a chunk, which tells its size.
struct SizeLine {
    line: [u8; DIGITS_MAX + 2],
    begins: usize,
}

impl SizeLine {
    /// The line before a chunk of so many bytes.
    fn new(bytes: usize) -> Self {
        let mut line = *b"0000000000000000\r\n";
        let (mut begins, mut left) = (DIGITS_MAX, bytes);
        for digit in line.iter_mut().take(DIGITS_MAX).rev() {
            *digit = DIGITS[left % DIGITS.len()];
            left /= DIGITS.len();
            begins -= 1;
            if left == 0 {
                break;
            }
        }
        Self { line, begins }
    }

    /// All that goes onto the wire.
    fn around<'a>(&'a self, chunk: &'a [u8]) -> impl Buf + use<'a> {
        self.line.get(self.begins..).unwrap_or_default().chain(chunk).chain(&b"\r\n"[..])
    }
}

impl Connection {
    /// Sends a part of an answer that comes in chunks: what Pingora would do, in less than half the time.
    ///
    /// # Errors
    /// When the client is gone.
    pub async fn send_chunk(&self, chunk: &[u8]) -> io::Result<()> {
        let line = SizeLine::new(chunk.len());
        let mut left = line.around(chunk);
        poll_fn(|cx| self.wire.lock().poll_send(cx, &mut left)).await
    }
}

#[cfg(test)]
mod tests {
    use super::super::HeaderLimits;
    use super::*;
    use crate::config::{Limits, Timeouts};
    use tokio::io::{AsyncReadExt, DuplexStream, duplex};

    /// A connection whose client takes a few bytes at a time.
    fn connection() -> (Connection, DuplexStream) {
        let (ours, theirs) = duplex(7);
        let refused = crate::metrics::Metrics::new().unwrap().connections_refused;
        let limits = HeaderLimits::new(&Limits::default(), &Timeouts::default(), refused);
        (Connection::new(Box::new(ours), limits), theirs)
    }

    #[test]
    fn a_chunk_is_between_its_length_in_hexadecimal_digits_and_the_end_of_a_line() {
        for bytes in [1, 9, 10, 15, 16, 17, 255, 256, 4095, 65_536, usize::MAX] {
            let line = SizeLine::new(bytes);
            let mut framed = line.around(b"abc");
            let framed = framed.copy_to_bytes(framed.remaining());
            assert_eq!(framed, format!("{bytes:X}\r\nabc\r\n"));
        }
    }

    #[tokio::test]
    async fn chunks_are_sent_however_little_the_client_takes_at_a_time() {
        let (ours, mut theirs) = connection();
        let sending = async {
            for bytes in [1, 3, 100] {
                ours.send_chunk("x".repeat(bytes).as_bytes()).await.unwrap();
            }
            drop(ours);
        };
        let mut seen = String::new();
        let ((), read) = tokio::join!(sending, theirs.read_to_string(&mut seen));
        read.unwrap();
        assert_eq!(seen, format!("1\r\nx\r\n3\r\nxxx\r\n64\r\n{}\r\n", "x".repeat(100)));
        let (ours, theirs) = connection();
        drop(theirs);
        assert!(ours.send_chunk(b"x").await.is_err());
    }
}
