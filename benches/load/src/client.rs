//! One keep-alive connection that sends a request, waits for the whole answer and starts again.
//!
//! Driven by `window`, one task each, and lent by `player`. The requests are bytes made beforehand and the
//! answers are scanned where they arrive: the generator shares its core with the engines, so it does as little as it
//! can per request.
use std::{rc::Rc, time::Duration};

use tokio::time::{self, Instant};

use crate::answer::{Answer, Malformed};
use crate::measurement::{Failure, Recorder};
use crate::socket::{Address, Socket};

const READ_BYTES: usize = 32 * 1024;
/// After a failure, so that a target that refuses everything does not turn the loop into a busy one.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(20);

/// What the connections of a window send.
pub(crate) struct Requests {
    pub(crate) bytes: Vec<Vec<u8>>,
    pub(crate) stream: bool,
    pub(crate) timeout: Duration,
}

/// A connection to one address; opened when it is needed.
pub(crate) struct Connection {
    address: Address,
    socket: Option<Socket>,
    buffer: Vec<u8>,
}

impl Connection {
    pub(crate) fn to(address: impl Into<Address>) -> Self {
        Self { address: address.into(), socket: None, buffer: vec![0; READ_BYTES] }
    }

    /// Whether a request may be sent on the connection that is open: the other side has not closed it, as far as we know.
    pub(crate) fn is_usable(&self) -> bool {
        self.socket.as_ref().is_some_and(Socket::is_silent)
    }

    /// Sends requests until the recorder has no more turns.
    pub(crate) async fn drive(mut self, requests: Rc<Requests>, recorder: Rc<Recorder>) {
        while let Some(turn) = recorder.take_turn() {
            if let Err(failure) = self.request(&requests, turn, &recorder).await {
                recorder.failed(&failure);
                time::sleep(PAUSE_AFTER_FAILURE).await;
            }
        }
    }

    /// One request; a failure closes the connection.
    pub(crate) async fn request(
        &mut self,
        requests: &Requests,
        turn: usize,
        recorder: &Recorder,
    ) -> Result<(), Failure> {
        let bytes =
            requests.bytes.get(turn % requests.bytes.len().max(1)).map(Vec::as_slice).unwrap_or_default();
        let sent = Instant::now();
        let (mut events, mut last) = (0, sent);
        let seen = |answer: &Answer| {
            if requests.stream && answer.events() > events {
                let now = Instant::now();
                recorder.events(answer.events() - events, now - last, events == 0);
                (events, last) = (answer.events(), now);
            }
        };
        let answer = self.exchange(bytes, Answer::new(), requests.timeout, seen).await?;
        let checked = check(&answer, requests.stream);
        match &checked {
            Ok(()) => recorder.answered(sent.elapsed()),
            Err(_) => drop(self.socket.take()),
        }
        checked
    }

    /// Sends `request` and feeds `answer` to its end, which `seen` looks at whenever there is more of it. A failure
    /// closes the connection.
    pub(crate) async fn exchange(
        &mut self,
        request: &[u8],
        mut answer: Answer,
        timeout: Duration,
        seen: impl FnMut(&Answer),
    ) -> Result<Answer, Failure> {
        let timed = time::timeout(timeout, self.transfer(request, &mut answer, seen)).await;
        let result = timed.unwrap_or(Err(Failure::Timeout(timeout)));
        if result.is_err() || answer.closes() {
            self.socket.take();
        }
        result.map(|()| answer)
    }

    async fn transfer(
        &mut self,
        request: &[u8],
        answer: &mut Answer,
        mut seen: impl FnMut(&Answer),
    ) -> Result<(), Failure> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => Socket::connect(&self.address).await.map_err(Failure::Connect)?,
        };
        let socket = self.socket.insert(socket);
        socket.write_all(request).await?;
        let mut pending = 0;
        while !answer.is_complete() {
            let free = self.buffer.get_mut(pending..).unwrap_or_default();
            if free.is_empty() {
                return Err(Malformed::TOO_LONG.into());
            }
            let filled = match socket.read(free).await? {
                0 => return Err(Failure::Closed),
                read => pending + read,
            };
            let used = answer.feed(self.buffer.get(..filled).unwrap_or_default())?;
            self.buffer.copy_within(used..filled, 0);
            pending = filled - used;
            seen(answer);
        }
        if pending == 0 { Ok(()) } else { Err(Failure::Incomplete) }
    }
}

/// Whether a complete answer is a good one.
pub(crate) fn check(answer: &Answer, stream: bool) -> Result<(), Failure> {
    match answer.status() {
        200 if stream && answer.ends_stream() || !stream && answer.ends_object() => Ok(()),
        200 => Err(Failure::Incomplete),
        status => Err(Failure::Status(status)),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::measurement::{Quota, Summary};

    /// Sends `turns` requests to a server that gives one of `answers` to each, and closes after the last.
    async fn meet(answers: &[&'static str], turns: u64, stream: bool) -> Summary {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connection = Connection::to(listener.local_addr().unwrap());
        let requests = Requests { bytes: vec![b"ping".to_vec()], stream, timeout: Duration::from_secs(30) };
        let recorder = Rc::new(Recorder::new(Quota::Requests(turns)).unwrap());
        recorder.open();
        let server = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            drop(listener);
            for answer in answers {
                let mut request = [0; 4];
                socket.read_exact(&mut request).await.unwrap();
                socket.write_all(answer.as_bytes()).await.unwrap();
            }
        };
        tokio::join!(connection.drive(Rc::new(requests), Rc::clone(&recorder)), server);
        recorder.summary(Duration::from_secs(1), None, false)
    }

    #[tokio::test]
    async fn a_connection_is_kept_and_its_loss_is_counted() {
        let object = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
        let summary =
            meet(&[object, object, "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"], 4, false).await;
        assert_eq!(summary.requests, 2);
        assert_eq!(summary.errors.by_kind.get("closed"), Some(&1));
        assert_eq!(summary.errors.by_kind.get("connect"), Some(&1));
    }

    #[tokio::test]
    async fn a_connection_that_the_other_side_closed_is_not_used_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut connection = Connection::to(listener.local_addr().unwrap());
        assert!(!connection.is_usable());
        let server = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            socket.read_exact(&mut [0; 4]).await.unwrap();
            socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await.unwrap();
            socket
        };
        let asked = connection.exchange(b"ping", Answer::new(), Duration::from_secs(30), |_| {});
        let (answer, socket) = tokio::join!(asked, server);
        assert!(answer.is_ok_and(|answer| answer.is_complete()) && connection.is_usable());
        drop(socket);
        while connection.is_usable() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_status_other_than_200_is_an_error() {
        let summary = meet(&["HTTP/1.1 503 Busy\r\ncontent-length: 2\r\n\r\n{}"], 1, false).await;
        assert_eq!((summary.requests, summary.errors.by_kind.get("status")), (0, Some(&1)));
        assert_eq!(summary.errors.first.as_deref(), Some("status 503"));
    }

    #[tokio::test]
    async fn a_stream_has_to_end_with_done() {
        let whole = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1b\r\ndata: {\"b\"}\n\ndata: [DONE]\n\n\r\n0\r\n\r\n";
        let cut = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nc\r\ndata: {\"b\"}\n\r\n0\r\n\r\n";
        let summary = meet(&[whole, cut], 2, true).await;
        assert_eq!((summary.requests, summary.events), (1, 2));
        assert_eq!(summary.errors.by_kind.get("incomplete"), Some(&1));
    }
}
