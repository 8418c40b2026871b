//! Where a request of HTTP/1 ends, told from its head. Pure.
//!
//! Asked by [`super::wire`] as a head arrives. It answers only where there is one way to read it, by the same parser that
//! Pingora uses; everything else (chunks, lengths that contradict each other, expectations, what is malformed) is left to
//! Pingora as it came.

use std::mem::MaybeUninit;
use std::ops::Range;

/// Heads with more fields are left to Pingora, which takes as many.
const FIELDS_MAX: usize = 256;
/// Longer numbers are left to Pingora, which knows whether they fit.
const LENGTH_DIGITS_MAX: usize = 15;
/// Fields that make more of a request than a head and so many bytes.
const UNPLAIN: [&str; 3] = ["transfer-encoding", "expect", "upgrade"];

/// What the bytes so far are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Head {
    /// The beginning of a head.
    Partial,
    /// A head of `bytes`, which `body_bytes` of a body follow; `length` is where that number stands.
    Plain { bytes: usize, body_bytes: usize, length: Option<Range<usize>> },
    /// Something that Pingora is to judge.
    Other,
}

/// Reads the beginning of `bytes`.
pub(super) fn read(bytes: &[u8]) -> Head {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut []);
    let head = match request.parse_with_uninit_headers(bytes, &mut fields) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) => return Head::Partial,
        Err(_) => return Head::Other,
    };
    if request.version != Some(1) || request.method == Some("CONNECT") {
        return Head::Other;
    }
    let mut length = None;
    for field in request.headers.iter() {
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        if UNPLAIN.into_iter().any(is) || (is("content-length") && length.replace(field.value).is_some()) {
            return Head::Other;
        }
    }
    let Some(digits) = length else { return Head::Plain { bytes: head, body_bytes: 0, length: None } };
    match number(digits) {
        Some(body_bytes) => Head::Plain { bytes: head, body_bytes, length: place(bytes, digits) },
        None => Head::Other,
    }
}

fn number(digits: &[u8]) -> Option<usize> {
    let plain = (1..=LENGTH_DIGITS_MAX).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    str::from_utf8(digits).ok().filter(|_| plain)?.parse().ok()
}

/// Where in `all` its part `part` is.
fn place(all: &[u8], part: &[u8]) -> Option<Range<usize>> {
    let start = part.as_ptr().addr().checked_sub(all.as_ptr().addr())?;
    Some(start..start + part.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(head: &str, body_bytes: usize) -> Head {
        let digits = head.to_ascii_lowercase().find("content-length:").map(|at| {
            let start = at + "content-length:".len();
            let value = head.get(start..).unwrap();
            let start = start + value.len() - value.trim_start_matches(' ').len();
            start..start + value.trim_start_matches(' ').find(['\r', '\n', ' ']).unwrap()
        });
        Head::Plain { bytes: head.len(), body_bytes, length: digits }
    }

    #[test]
    fn a_length_is_told_with_its_place_and_none_is_no_body() {
        for (head, body_bytes) in [
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 120\r\nAccept: */*\r\n\r\n", 120),
            ("POST / HTTP/1.1\r\ncontent-length:7  \r\n\r\n", 7),
            ("POST / HTTP/1.1\nCONTENT-LENGTH: 007\n\n", 7),
            ("GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n", 0),
        ] {
            assert_eq!(read(format!("{head}body").as_bytes()), plain(head, body_bytes), "{head}");
            for end in 0..head.len() {
                assert_eq!(read(&head.as_bytes()[..end]), Head::Partial, "{head} to {end}");
            }
        }
    }

    #[test]
    fn whatever_can_be_read_in_two_ways_is_left_to_pingora() {
        for head in [
            "POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: identity\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 1\r\nContent-Length: 2\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 1, 1\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: +1\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 0x1\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length:\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 9999999999999999\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length : 1\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 1\r\n 2\r\n\r\n",
            "POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\n",
            "GET / HTTP/1.1\r\nupgrade: websocket\r\n\r\n",
            "POST / HTTP/1.0\r\ncontent-length: 1\r\n\r\n",
            "CONNECT a:1 HTTP/1.1\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "nonsense\r\n\r\n",
        ] {
            assert_eq!(read(head.as_bytes()), Head::Other, "{head}");
        }
    }
}
