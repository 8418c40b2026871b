//! Answers: what a [`Service`](super::Service) gives to the connection, and how its head is written.

use std::borrow::Cow;
use std::io::Write as _;
use std::time::SystemTime;

use bytes::Bytes;
use futures::stream::BoxStream;
use http::StatusCode;

/// The body of an answer.
pub(super) enum Body {
    /// All of it.
    Whole(Bytes),
    /// Server-sent events, one item each; pulled only as fast as the client reads.
    Events(BoxStream<'static, Bytes>),
}

/// An answer before it is written.
pub(crate) struct Answer {
    pub(super) status: u16,
    headers: Vec<(&'static str, Cow<'static, str>)>,
    pub(super) body: Body,
}

impl Answer {
    /// An answer without a body.
    pub(crate) fn empty(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Body::Whole(Bytes::new()) }
    }

    pub(crate) fn json(status: u16, body: impl Into<Bytes>) -> Self {
        Self::text(status, "application/json", body)
    }

    pub(crate) fn text(status: u16, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        Self { status, headers: vec![("content-type", content_type.into())], body: Body::Whole(body.into()) }
    }

    pub(crate) fn events(events: BoxStream<'static, Bytes>) -> Self {
        let content_type = "text/event-stream; charset=utf-8";
        Self { status: 200, headers: vec![("content-type", content_type.into())], body: Body::Events(events) }
    }

    #[must_use]
    pub(crate) fn with(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Appends the head to `out`, in the order in which uvicorn writes it.
    pub(super) fn write_head(&self, out: &mut Vec<u8>, chunked: bool, close: bool) {
        let reason = StatusCode::from_u16(self.status).ok().and_then(|code| code.canonical_reason());
        // Writing to a Vec cannot fail.
        let _ = write!(
            out,
            "HTTP/1.1 {} {}\r\ndate: {}\r\nserver: uvicorn\r\n",
            self.status,
            reason.unwrap_or("Unknown"),
            httpdate::HttpDate::from(SystemTime::now()),
        );
        if let Body::Whole(body) = &self.body {
            let _ = write!(out, "content-length: {}\r\n", body.len());
        }
        for (name, value) in &self.headers {
            let _ = write!(out, "{name}: {value}\r\n");
        }
        if chunked {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
        }
        if close {
            out.extend_from_slice(b"connection: close\r\n");
        }
        out.extend_from_slice(b"\r\n");
    }
}
