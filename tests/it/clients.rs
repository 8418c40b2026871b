//! Clients written by hand, in every framing that a body may have: nothing is smoothed between a test and the gateway.

use crate::world::{World, within};
use bytes::Bytes;
use h2::SendStream;
use h2::client::{ResponseFuture, SendRequest};
use http::{Request, Uri};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use sha2::{Digest, Sha256};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

pub(crate) const KIB: usize = 1024;
pub(crate) const MIB: usize = 1024 * KIB;
pub(crate) const PATH: &str = "/v1/completions";

/// Sizes of writes, none of which fits a buffer.
const PIECES: [usize; 5] = [1, 1_000, 65_535, 17, 300_007];

/// A client of HTTP/1.1 written by hand: no library between the test and the socket.
pub(crate) struct Http1<S = TcpStream> {
    pub(crate) stream: S,
    buffer: Vec<u8>,
}

/// An answer taken apart.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The status line and the fields, in lower case.
    pub(crate) head: String,
    /// Without its framing.
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find_map(|(own, value)| (own == name).then_some(value))
    }
}

impl Http1 {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::over(stream)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Http1<S> {
    pub(crate) fn over(stream: S) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        within(self.stream.write_all(bytes.as_ref())).await.unwrap();
    }

    /// Sends one byte at intervals until the gateway answers.
    pub(crate) async fn drip(&mut self) -> Answer {
        let (mut reader, mut writer) = tokio::io::split(&mut self.stream);
        let dripping = async {
            loop {
                // Once the gateway has closed its side this may fail: the answer says why.
                let _sent = writer.write_all(b"x").await.is_ok();
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let mut first = [0];
        tokio::select! {
            () = dripping => {}
            read = within(reader.read_exact(&mut first)) => assert_eq!(read.unwrap(), 1),
        }
        self.buffer.extend_from_slice(&first);
        self.answer().await
    }

    /// The next answer; `100 Continue` is one.
    pub(crate) async fn answer(&mut self) -> Answer {
        within(self.read_answer(true)).await
    }

    /// The next answer where it has no body whatever its head says.
    pub(crate) async fn answer_to_head(&mut self) -> Answer {
        within(self.read_answer(false)).await
    }

    /// The head of the next answer, whose body follows later.
    pub(crate) async fn head(&mut self) -> Answer {
        within(self.read_head()).await
    }

    /// The body of the answer whose head was read, which comes in chunks.
    pub(crate) async fn chunks(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let line = within(self.take_until(b"\r\n")).await;
            let size = usize::from_str_radix(str::from_utf8(&line).unwrap().trim_end(), 16).unwrap();
            let chunk = within(self.take(size + 2)).await;
            body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                return body;
            }
        }
    }

    /// Waits for the end of the connection, before which nothing may come.
    pub(crate) async fn ends(&mut self) {
        let mut rest = std::mem::take(&mut self.buffer);
        // A reset is an end as well.
        let _ended_in_order = within(self.stream.read_to_end(&mut rest)).await.is_ok();
        assert_eq!(String::from_utf8_lossy(&rest), "", "nothing but the end was expected");
    }

    async fn read_answer(&mut self, has_body: bool) -> Answer {
        let mut answer = self.read_head().await;
        if !has_body || answer.status < 200 {
            return answer;
        }
        if answer.header("transfer-encoding") == Some("chunked") {
            answer.body = self.chunks().await;
            return answer;
        }
        let length = answer.header("content-length").map_or(0, |length| length.parse().unwrap());
        answer.body = self.take(length).await;
        answer
    }

    async fn read_head(&mut self) -> Answer {
        let head = String::from_utf8(self.take_until(b"\r\n\r\n").await).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head: head.to_ascii_lowercase(), body: Vec::new() }
    }

    async fn take_until(&mut self, end: &[u8]) -> Vec<u8> {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|window| window == end) {
                return self.buffer.drain(..at + end.len()).collect();
            }
            self.more().await;
        }
    }

    async fn take(&mut self, bytes: usize) -> Vec<u8> {
        while self.buffer.len() < bytes {
            self.more().await;
        }
        self.buffer.drain(..bytes).collect()
    }

    async fn more(&mut self) {
        let count = self.stream.read_buf(&mut self.buffer).await.unwrap();
        let so_far = String::from_utf8_lossy(&self.buffer);
        assert!(count > 0, "the connection ended after {so_far:?}");
    }
}

/// How a client says where its body ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Framing {
    Length,
    Chunked,
    /// Sends its body only once it is told to.
    Expect,
    H2Length,
    H2Unknown,
}

pub(crate) const FRAMINGS: [Framing; 5] =
    [Framing::Length, Framing::Chunked, Framing::Expect, Framing::H2Length, Framing::H2Unknown];

/// Bytes without a pattern, the same each time.
pub(crate) fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut body = vec![0; bytes];
    StdRng::seed_from_u64(seed).fill_bytes(&mut body);
    body
}

pub(crate) fn sha256(body: &[u8]) -> String {
    format!("{:x}", Sha256::digest(body))
}

pub(crate) fn pieces(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = body;
    PIECES.iter().cycle().map_while(move |size| {
        let (piece, after) = rest.split_at(rest.len().min(*size));
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

pub(crate) fn chunked<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut out = Vec::new();
    for chunk in chunks {
        out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n\r\n");
    out
}

pub(crate) fn head(path: &str, fields: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: gateway\r\n{fields}\r\n")
}

pub(crate) fn with_length(bytes: usize) -> String {
    head(PATH, &format!("Content-Length: {bytes}\r\n"))
}

pub(crate) fn with_chunks() -> String {
    head(PATH, "Transfer-Encoding: chunked\r\n")
}

/// A connection of HTTP/2 without TLS.
pub(crate) struct Http2 {
    pub(crate) sender: SendRequest<Bytes>,
    _driver: JoinSet<Result<(), h2::Error>>,
}

impl Http2 {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let tcp = TcpStream::connect(address).await.unwrap();
        let (sender, connection) = h2::client::handshake(tcp).await.unwrap();
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        Self { sender, _driver: driver }
    }

    pub(crate) async fn begin(&mut self, length: Option<usize>) -> (ResponseFuture, SendStream<Bytes>) {
        let mut request = Request::post(format!("http://gateway{PATH}").parse::<Uri>().unwrap());
        if let Some(length) = length {
            request = request.header("content-length", length);
        }
        self.sender = within(self.sender.clone().ready()).await.unwrap();
        self.sender.send_request(request.body(()).unwrap(), false).unwrap()
    }

    pub(crate) async fn post(
        &mut self,
        length: Option<usize>,
        body: &[u8],
    ) -> http::Response<h2::RecvStream> {
        let (response, mut stream) = self.begin(length).await;
        within(send_all(&mut stream, body)).await;
        within(response).await.unwrap()
    }
}

/// Sends a body to its end, as far as the other side wants it.
pub(crate) async fn send_all(stream: &mut SendStream<Bytes>, body: &[u8]) {
    for piece in pieces(body) {
        let mut piece = Bytes::copy_from_slice(piece);
        while !piece.is_empty() {
            stream.reserve_capacity(piece.len());
            let Some(Ok(capacity)) = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await else {
                return;
            };
            if stream.send_data(piece.split_to(capacity.min(piece.len())), false).is_err() {
                return;
            }
        }
    }
    // The other side may have answered and closed the stream meanwhile.
    let _ended = stream.send_data(Bytes::new(), true).is_ok();
}

/// One connection of each kind, kept for all requests.
pub(crate) struct Clients {
    pub(crate) http1: Http1,
    pub(crate) http2: Http2,
}

impl Clients {
    pub(crate) async fn connect(world: &World) -> Self {
        Self { http1: Http1::connect(world.address).await, http2: Http2::connect(world.address).await }
    }

    pub(crate) async fn post(&mut self, framing: Framing, body: &[u8]) -> u16 {
        let client = &mut self.http1;
        match framing {
            Framing::H2Length => return self.http2.post(Some(body.len()), body).await.status().as_u16(),
            Framing::H2Unknown => return self.http2.post(None, body).await.status().as_u16(),
            Framing::Length => {
                client.send(with_length(body.len())).await;
                for piece in pieces(body) {
                    client.send(piece).await;
                }
            }
            Framing::Chunked => {
                client.send(with_chunks()).await;
                for piece in pieces(&chunked(body.chunks(10_007))) {
                    client.send(piece).await;
                }
            }
            Framing::Expect => {
                let fields = format!("Content-Length: {}\r\nExpect: 100-continue\r\n", body.len());
                client.send(head(PATH, &fields)).await;
                assert_eq!(client.answer().await.status, 100);
                client.send(body).await;
            }
        }
        client.answer().await.status
    }
}
