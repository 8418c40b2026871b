//! One connection: requests in, answers out, in order, with the faults and gates that apply.
//!
//! Watches the client while an answer is under way, so that its leaving drops the answer at once. Nothing is buffered
//! beyond 16 KiB of small events: a client that does not read holds the stream up.

use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::FutureExt;
use futures::stream::{BoxStream, StreamExt};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::answer::{Answer, Body};
use super::books::{End, Entry};
use super::fault::{Cut, Fault, GARBAGE};
use super::gate::Place;
use super::request::{Head, Link, Request, Unread};
use super::{Service, Shared};

/// Small events are written together up to this size.
const WRITE_BYTES: usize = 16 * 1024;

/// A socket that can be reset.
pub(super) trait Wire: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Makes closing the socket a reset.
    fn reset(&self) -> io::Result<()>;
}

impl Wire for TcpStream {
    fn reset(&self) -> io::Result<()> {
        SockRef::from(self).set_linger(Some(Duration::ZERO))
    }
}

impl Wire for UnixStream {
    /// A Unix socket knows no reset; it is closed.
    fn reset(&self) -> io::Result<()> {
        Ok(())
    }
}

/// What becomes of the connection after an exchange.
enum After {
    Next,
    /// Closed by the next request that arrives.
    Stale,
    Close,
    Reset,
}

impl From<Cut> for After {
    fn from(cut: Cut) -> Self {
        if cut == Cut::Reset { Self::Reset } else { Self::Close }
    }
}

/// Serves a connection to its end.
pub(super) async fn serve<W: Wire>(wire: W, shared: Arc<Shared>, service: Arc<dyn Service>) {
    let connected = shared.books.connect();
    let mut connection = Connection {
        link: Link::new(wire),
        out: Vec::new(),
        shared: &shared,
        service: &*service,
        id: connected.id,
    };
    loop {
        match connection.exchange().await {
            Ok(After::Next) => {}
            Ok(After::Stale) => {
                // Whether it is a request or the end, the connection ends here.
                let _ = connection.link.begins().await;
                return;
            }
            Ok(After::Close) => return connection.close().await,
            Ok(After::Reset) => {
                // A socket that cannot be reset is closed, which the client takes for a failure as well.
                let _ = connection.link.wire.reset();
                return;
            }
            Err(Unread::Left) => return,
            Err(Unread::Bad(status)) => {
                shared.books.refuse();
                let answer =
                    Answer::text(status, "text/plain; charset=utf-8", "Invalid HTTP request received.");
                answer.write_head(&mut connection.out, false, true);
                connection.out.extend_from_slice(b"Invalid HTTP request received.");
                let _ = connection.flush().await;
                return connection.close().await;
            }
        }
    }
}

struct Connection<'a, W> {
    link: Link<W>,
    /// Bytes to write.
    out: Vec<u8>,
    shared: &'a Shared,
    service: &'a dyn Service,
    id: u64,
}

impl<W: Wire> Connection<'_, W> {
    /// Waits for the first byte of the next request, as long as the connection may be idle.
    async fn next(&mut self) -> Result<(), Unread> {
        match self.shared.settings.keep_alive {
            None => self.link.begins().await,
            Some(limit) => tokio::time::timeout(limit, self.link.begins()).await.unwrap_or(Err(Unread::Left)),
        }
    }

    async fn exchange(&mut self) -> Result<After, Unread> {
        self.next().await?;
        let head = self.link.head().await?;
        let work = self.service.is_work(head.method(), head.path());
        let mut entry = self.shared.books.open(head.path());
        let fault = self.fault(&head, work);
        if let Some(Fault::EarlyStatus { code }) = fault {
            entry.close(End::Failed);
            self.write_status(code, None, true).await?;
            return Ok(After::Close);
        }
        let body = self.link.body(&head).await.inspect_err(|unread| {
            if matches!(unread, Unread::Bad(_)) {
                entry.close(End::Failed);
            }
        })?;
        self.shared.books.record(&head, &body, self.id);
        let request = Request { head, body };
        if let Some(fault) = &fault
            && let Some(after) = self.fail(fault, &request.head, &mut entry).await?
        {
            return Ok(after);
        }
        let answer = self.answer(&request, work).await?;
        let after =
            self.write(&request, answer, fault.as_ref().and_then(Fault::cut), work, &mut entry).await?;
        Ok(match (after, fault) {
            (After::Next, Some(Fault::CloseIdle)) => After::Stale,
            (after, _) => after,
        })
    }

    fn fault(&self, head: &Head, work: bool) -> Option<Fault> {
        let by_header = || {
            let text = head.header("x-mock-fault").filter(|_| self.shared.settings.faults_by_header)?;
            // A name that is none must not pass for a healthy answer.
            Some(text.parse().unwrap_or(Fault::Status { code: 400, retry_after: None }))
        };
        self.shared.faults.take(head.path(), work).or_else(by_header)
    }

    /// Does what a fault does before an answer; `None` when an answer follows nevertheless.
    async fn fail(&mut self, fault: &Fault, head: &Head, entry: &mut Entry) -> Result<Option<After>, Unread> {
        match fault {
            Fault::Delay(delay) => {
                tokio::select! {
                    () = tokio::time::sleep(*delay) => return Ok(None),
                    () = self.link.left() => return Err(Unread::Left),
                }
            }
            Fault::StallBeforeResponse => {
                self.link.left().await;
                return Err(Unread::Left);
            }
            Fault::CloseIdle | Fault::EarlyStatus { .. } => return Ok(None),
            fault if fault.cut().is_some() => return Ok(None),
            _ => {}
        }
        entry.close(End::Failed);
        match fault {
            Fault::Status { code, retry_after } => {
                let close = !head.keep_alive();
                self.write_status(*code, *retry_after, close).await?;
                Ok(Some(if close { After::Close } else { After::Next }))
            }
            Fault::ResetBeforeResponse => Ok(Some(After::Reset)),
            Fault::Garbage => self.write_raw(GARBAGE).await,
            Fault::Raw(bytes) => self.write_raw(bytes).await,
            _ => Ok(Some(After::Close)),
        }
    }

    async fn write_status(&mut self, code: u16, retry_after: Option<u32>, close: bool) -> io::Result<()> {
        let body = format!(
            r#"{{"error":{{"message":"injected fault","type":"InternalServerError","param":null,"code":{code}}}}}"#
        );
        let mut answer = Answer::json(code, body.clone());
        if let Some(seconds) = retry_after {
            answer = answer.with("retry-after", seconds.to_string());
        }
        answer.write_head(&mut self.out, false, close);
        self.out.extend_from_slice(body.as_bytes());
        self.flush().await
    }

    async fn write_raw(&mut self, bytes: &[u8]) -> Result<Option<After>, Unread> {
        self.out.extend_from_slice(bytes);
        self.flush().await?;
        Ok(Some(After::Close))
    }

    async fn answer(&mut self, request: &Request, work: bool) -> Result<Answer, Unread> {
        let (gates, path) = (&self.shared.gates, request.head.path());
        let answer = async {
            let answer = self.service.answer(request).await;
            gates.pass(Place::Headers, path, work).await;
            if matches!(answer.body, Body::Whole(_)) {
                gates.pass(Place::FirstToken, path, work).await;
            }
            answer
        };
        tokio::select! {
            biased;
            answer = answer => Ok(answer),
            () = self.link.left() => Err(Unread::Left),
        }
    }

    async fn write(
        &mut self,
        request: &Request,
        answer: Answer,
        cut: Option<(usize, Cut)>,
        work: bool,
        entry: &mut Entry,
    ) -> Result<After, Unread> {
        let streamed = matches!(answer.body, Body::Events(_));
        let chunked = streamed && request.head.knows_chunks();
        let close = !request.head.keep_alive() || (streamed && !chunked);
        answer.write_head(&mut self.out, chunked, close);
        let no_body = request.head.method() == "HEAD";
        match (answer.body, cut) {
            (Body::Whole(body), Some((_, cut))) => {
                self.out.extend(body.iter().take(body.len() / 2));
                return self.cut(cut, entry).await;
            }
            (Body::Whole(body), None) if !no_body => self.out.extend_from_slice(&body),
            (Body::Events(events), cut) if !no_body => {
                if self.shared.gates.hold_up(Place::FirstToken, request.head.path(), work) {
                    self.flush().await?;
                    tokio::select! {
                        () = self.shared.gates.pass(Place::FirstToken, request.head.path(), work) => {}
                        () = self.link.left() => return Err(Unread::Left),
                    }
                }
                if let Some(cut) = self.stream(events, chunked, cut).await? {
                    return self.cut(cut, entry).await;
                }
                if chunked {
                    self.out.extend_from_slice(b"0\r\n\r\n");
                }
            }
            _ => {}
        }
        entry.close(End::Served);
        if self.flush().await.is_err() {
            entry.reopen();
            return Err(Unread::Left);
        }
        Ok(if close { After::Close } else { After::Next })
    }

    /// Ends an answer in its middle.
    async fn cut(&mut self, cut: Cut, entry: &mut Entry) -> Result<After, Unread> {
        if cut == Cut::Stall {
            self.flush().await?;
            self.link.left().await;
            return Err(Unread::Left);
        }
        entry.close(End::Failed);
        self.flush().await?;
        Ok(cut.into())
    }

    /// Writes the events to their end or to the cut, leaving the last of them in `out`.
    async fn stream(
        &mut self,
        mut events: BoxStream<'static, Bytes>,
        chunked: bool,
        cut: Option<(usize, Cut)>,
    ) -> Result<Option<Cut>, Unread> {
        for count in 0_usize.. {
            if let Some((after, cut)) = cut
                && count == after
            {
                return Ok(Some(cut));
            }
            if self.out.len() >= WRITE_BYTES {
                self.flush().await?;
            }
            let event = if let Some(event) = events.next().now_or_never() {
                event
            } else {
                self.flush().await?;
                tokio::select! {
                    biased;
                    event = events.next() => event,
                    () = self.link.left() => return Err(Unread::Left),
                }
            };
            let Some(event) = event else { break };
            if chunked {
                // Writing to a Vec cannot fail.
                let _ = write!(self.out, "{:x}\r\n", event.len());
            }
            self.out.extend_from_slice(&event);
            if chunked {
                self.out.extend_from_slice(b"\r\n");
            }
        }
        Ok(None)
    }

    async fn flush(&mut self) -> io::Result<()> {
        let written = self.link.wire.write_all(&self.out).await;
        self.out.clear();
        written?;
        self.link.wire.flush().await
    }

    /// Ends the connection in order. Bytes that are still arriving would turn a close into a reset and could destroy
    /// the answer, so they are read until the client closes as well.
    async fn close(mut self) {
        if self.link.wire.shutdown().await.is_ok() {
            self.link.drain().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::BoxFuture;
    use tokio::io::{AsyncReadExt, DuplexStream};

    use super::super::Settings;
    use super::*;

    impl Wire for DuplexStream {
        fn reset(&self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Answers a hundred events of 1 MiB, and counts those that were asked for.
    struct Endless(Arc<AtomicUsize>);

    impl Service for Endless {
        fn answer<'a>(&'a self, _: &'a Request) -> BoxFuture<'a, Answer> {
            let made = Arc::clone(&self.0);
            let events = futures::stream::iter(0..100).map(move |_| {
                made.fetch_add(1, Ordering::Relaxed);
                Bytes::from(vec![b'x'; 1024 * 1024])
            });
            Box::pin(async { Answer::events(events.boxed()) })
        }

        fn is_work(&self, _: &str, _: &str) -> bool {
            true
        }
    }

    #[tokio::test]
    async fn no_event_is_made_before_the_client_has_read_the_last_but_one() {
        let (mut client, wire) = tokio::io::duplex(1024);
        let made = Arc::new(AtomicUsize::new(0));
        let server = serve(wire, Shared::new(Settings::default()), Arc::new(Endless(Arc::clone(&made))));
        let reader = async {
            client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
            let mut megabyte = vec![0; 1024 * 1024];
            for read in 1..=10 {
                client.read_exact(&mut megabyte).await.unwrap();
                assert!(made.load(Ordering::Relaxed) <= read + 2);
            }
            drop(client);
        };
        tokio::join!(server, reader);
        assert!(made.load(Ordering::Relaxed) <= 12);
    }
}
