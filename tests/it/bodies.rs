//! Bodies arrive whole, once and framed by their length, whatever their size and framing; or they are refused in order.

use crate::connections::{Answer, Http1};
use crate::world::{Plan, World, within};
use bytes::Bytes;
use h2::SendStream;
use h2::client::SendRequest;
use http::{Request, StatusCode, Uri};
use mocks::{Engine, EngineOptions, Fault, Framing as Framed, Received};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use sha2::{Digest, Sha256};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
const PATH: &str = "/v1/completions";

/// Around the 64 KiB at which Pingora stops replaying, and far beyond.
const SIZES: [usize; 8] = [10, 60 * KIB, 65_535, 65_536, 65_537, 70 * KIB, MIB, 8 * MIB];
/// Sizes of writes, none of which fits a buffer.
const PIECES: [usize; 5] = [1, 1_000, 65_535, 17, 300_007];

/// How a client says where its body ends.
#[derive(Clone, Copy, Debug)]
enum Framing {
    Length,
    Chunked,
    /// Sends its body only once it is told to.
    Expect,
    H2Length,
    H2Unknown,
}

const FRAMINGS: [Framing; 5] = [
    Framing::Length,
    Framing::Chunked,
    Framing::Expect,
    Framing::H2Length,
    Framing::H2Unknown,
];

/// Bytes without a pattern, the same each time.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut body = vec![0; bytes];
    StdRng::seed_from_u64(seed).fill_bytes(&mut body);
    body
}

fn sha256(body: &[u8]) -> String {
    Sha256::digest(body)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn pieces(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = body;
    PIECES.iter().cycle().map_while(move |size| {
        let (piece, after) = rest.split_at(rest.len().min(*size));
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

fn chunked<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut out = Vec::new();
    for chunk in chunks {
        out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n\r\n");
    out
}

fn head(path: &str, fields: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: gateway\r\n{fields}\r\n")
}

fn with_length(bytes: usize) -> String {
    head(PATH, &format!("Content-Length: {bytes}\r\n"))
}

fn with_chunks() -> String {
    head(PATH, "Transfer-Encoding: chunked\r\n")
}

/// A connection of HTTP/2 without TLS.
struct Http2 {
    sender: SendRequest<Bytes>,
    _driver: JoinSet<Result<(), h2::Error>>,
}

impl Http2 {
    async fn connect(address: SocketAddr) -> Self {
        let tcp = TcpStream::connect(address).await.unwrap();
        let (sender, connection) = h2::client::handshake(tcp).await.unwrap();
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        Self {
            sender,
            _driver: driver,
        }
    }

    async fn begin(&mut self, length: Option<usize>) -> (h2::client::ResponseFuture, SendStream<Bytes>) {
        let mut request = Request::post(format!("http://gateway{PATH}").parse::<Uri>().unwrap());
        if let Some(length) = length {
            request = request.header("content-length", length);
        }
        self.sender = within(self.sender.clone().ready()).await.unwrap();
        self.sender
            .send_request(request.body(()).unwrap(), false)
            .unwrap()
    }

    async fn post(&mut self, length: Option<usize>, body: &[u8]) -> http::Response<h2::RecvStream> {
        let (response, mut stream) = self.begin(length).await;
        within(send_all(&mut stream, body)).await;
        within(response).await.unwrap()
    }
}

/// Sends a body to its end, as far as the other side wants it.
async fn send_all(stream: &mut SendStream<Bytes>, body: &[u8]) {
    for piece in pieces(body) {
        let mut piece = Bytes::copy_from_slice(piece);
        while !piece.is_empty() {
            stream.reserve_capacity(piece.len());
            let Some(Ok(capacity)) = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await else {
                return;
            };
            if stream
                .send_data(piece.split_to(capacity.min(piece.len())), false)
                .is_err()
            {
                return;
            }
        }
    }
    // The other side may have answered and closed the stream meanwhile.
    let _ended = stream.send_data(Bytes::new(), true).is_ok();
}

/// One connection of each kind, kept for all requests.
struct Clients {
    http1: Http1,
    http2: Http2,
}

impl Clients {
    async fn connect(world: &World) -> Self {
        Self {
            http1: Http1::connect(world.address).await,
            http2: Http2::connect(world.address).await,
        }
    }

    async fn post(&mut self, framing: Framing, body: &[u8]) -> u16 {
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

async fn world_of(engines: usize, sections: &str) -> World {
    World::with(Plan {
        engines: vec![EngineOptions::default(); engines],
        sections: sections.to_owned(),
        // Every request of this client goes to the same backend first.
        cluster: "policy: consistent_hash".to_owned(),
        ..Plan::default()
    })
    .await
}

/// Two engines, every request tried again on the second; the index of the one that is tried first.
async fn world_with_retries() -> (World, usize) {
    let world = world_of(
        2,
        "retries: {budget_ratio: 1, on: [connect, stale, reset, \"503\"]}",
    )
    .await;
    assert_eq!(world.chat().await.status(), 200);
    let first = world
        .engines
        .iter()
        .position(|engine| !engine.received().is_empty())
        .unwrap();
    (world, first)
}

fn assert_arrived(engine: &Engine, body: &[u8], case: &str) {
    let received: Received = engine
        .received()
        .pop()
        .unwrap_or_else(|| panic!("{case}: nothing arrived"));
    assert_eq!(received.body_bytes, body.len(), "{case}");
    assert_eq!(received.body_sha256, sha256(body), "{case}");
    assert_eq!(received.framing, Framed::ContentLength, "{case}");
    let lengths: Vec<_> = received
        .headers
        .iter()
        .filter(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .collect();
    assert_eq!(
        (lengths.len(), &lengths[0].1),
        (1, &body.len().to_string()),
        "{case}"
    );
    assert_eq!(
        (received.header("transfer-encoding"), received.header("expect")),
        (None, None),
        "{case}"
    );
}

/// Sends every size in every framing, each kind over one connection; the body arrives at all of `engines`.
async fn post_all(world: &World, engines: &[&Engine]) {
    let mut clients = Clients::connect(world).await;
    for (seed, size) in SIZES.into_iter().enumerate() {
        let body = noise(seed as u64, size);
        for framing in FRAMINGS {
            let case = format!("{size} bytes, {framing:?}");
            engines.iter().for_each(|engine| engine.forget());
            assert_eq!(clients.post(framing, &body).await, 200, "{case}");
            engines
                .iter()
                .for_each(|engine| assert_arrived(engine, &body, &case));
            assert_eq!(world.app.budget.used(), 0, "{case}");
        }
    }
}

#[tokio::test]
async fn every_body_arrives_on_the_first_try() {
    let world = world_of(1, "").await;
    post_all(&world, &[&world.engines[0]]).await;
}

#[tokio::test]
async fn every_body_arrives_after_a_503() {
    let (world, first) = world_with_retries().await;
    world.engines[first].fail_always(Some(Fault::Status {
        code: 503,
        retry_after: None,
    }));
    post_all(&world, &[&world.engines[0], &world.engines[1]]).await;
}

#[tokio::test]
async fn every_body_arrives_after_a_connection_that_broke() {
    let (world, first) = world_with_retries().await;
    world.engines[first].fail_always(Some(Fault::CloseBeforeResponse));
    post_all(&world, &[&world.engines[0], &world.engines[1]]).await;
}

#[tokio::test]
async fn every_body_arrives_after_a_connection_that_was_refused() {
    let (mut world, first) = world_with_retries().await;
    world.engines.remove(first).stop().await;
    post_all(&world, &[&world.engines[0]]).await;
}

#[tokio::test]
async fn a_client_that_sends_byte_by_byte_is_served() {
    let world = world_of(1, "").await;
    let mut client = Http1::connect(world.address).await;
    let body = noise(1, 300);
    for request in [
        [with_length(body.len()).into_bytes(), body.clone()].concat(),
        [with_chunks().into_bytes(), chunked(body.chunks(7))].concat(),
    ] {
        for byte in request {
            client.send([byte]).await;
        }
        assert_eq!(client.answer().await.status, 200);
        assert_arrived(&world.engines[0], &body, "byte by byte");
    }
}

#[tokio::test]
async fn a_body_of_exactly_the_limit_passes_and_one_byte_more_does_not() {
    let world = world_of(1, "limits: {body_bytes_max: 100KiB}").await;
    let mut clients = Clients::connect(&world).await;
    let body = noise(1, 100 * KIB);
    for framing in FRAMINGS {
        assert_eq!(clients.post(framing, &body).await, 200, "{framing:?}");
        assert_arrived(&world.engines[0], &body, "the limit");
    }
    world.engines[0].forget();
    let longer = noise(2, 100 * KIB + 1);

    // What is too long by its own account is refused before it is sent.
    let mut declared = Http1::connect(world.address).await;
    declared.send(with_length(longer.len())).await;
    assert_too_large(&declared.answer().await);
    declared.stream.shutdown().await.unwrap();
    declared.ends().await;
    let mut h2 = Http2::connect(world.address).await;
    let (response, _stream) = h2.begin(Some(longer.len())).await;
    assert_eq!(
        within(response).await.unwrap().status(),
        StatusCode::PAYLOAD_TOO_LARGE
    );

    let mut undeclared = Http1::connect(world.address).await;
    undeclared.send(with_chunks()).await;
    undeclared.send(chunked(longer.chunks(1000))).await;
    assert_too_large(&undeclared.answer().await);
    undeclared.ends().await;
    assert_eq!(clients.post(Framing::H2Unknown, &longer).await, 413);
    assert_eq!(
        clients.post(Framing::H2Unknown, &body).await,
        200,
        "the connection goes on"
    );
    assert_eq!(
        world.engines[0].received().len(),
        1,
        "nothing of the refused has reached a backend"
    );
    assert_eq!(world.app.budget.used(), 0);
}

fn assert_too_large(answer: &Answer) {
    assert_eq!(
        (answer.status, answer.header("connection")),
        (413, Some("close")),
        "{answer:?}"
    );
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(body["error"]["code"], "body_too_large");
}

#[tokio::test]
async fn a_client_that_sends_everything_before_it_reads_sees_the_413() {
    let world = world_of(1, "limits: {body_bytes_max: 1MiB}").await;
    let body = noise(1, 12 * MIB);
    for request in [
        [with_length(body.len()).into_bytes(), body.clone()].concat(),
        [with_chunks().into_bytes(), chunked(body.chunks(100_000))].concat(),
    ] {
        let mut client = Http1::connect(world.address).await;
        client.send(request).await;
        assert_too_large(&client.answer().await);
        client.ends().await;
    }
    let mut h2 = Http2::connect(world.address).await;
    for length in [Some(body.len()), None] {
        let response = h2.post(length, &body).await;
        assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE, "{length:?}");
        let mut answer = response.into_body();
        let text = within(answer.data()).await.unwrap().unwrap();
        assert!(text.starts_with(b"{\"error\""), "{text:?}");
    }
    assert!(world.engines[0].received().is_empty());
    assert_eq!(world.app.budget.used(), 0);
}

#[tokio::test]
async fn what_is_too_large_is_never_asked_for() {
    let world = world_of(1, "limits: {body_bytes_max: 1KiB}\ntimeouts: {drain: 50ms}").await;
    let mut client = Http1::connect(world.address).await;
    client
        .send(head(PATH, "Content-Length: 1025\r\nExpect: 100-continue\r\n"))
        .await;
    assert_too_large(&client.answer().await);
    client.ends().await;
    let mut lost = Http1::connect(world.address).await;
    lost.send(head("/x", "Content-Length: 10\r\nExpect: 100-continue\r\n"))
        .await;
    assert_eq!(
        lost.answer().await.status,
        100,
        "a body that may come is asked for"
    );
}

#[tokio::test]
async fn a_dripping_body_is_answered_408_at_its_total_deadline() {
    let world = world_of(1, "timeouts: {body: 200ms, drain: 50ms}").await;
    for request in [with_length(MIB), with_chunks() + "ffffff\r\n"] {
        let started = Instant::now();
        let mut client = Http1::connect(world.address).await;
        client.send(request).await;
        let answer = client.drip().await;
        assert_eq!((answer.status, answer.header("connection")), (408, Some("close")));
        assert!(started.elapsed() >= Duration::from_millis(200));
        client.ends().await;
    }
    let mut h2 = Http2::connect(world.address).await;
    let (response, mut stream) = h2.begin(None).await;
    stream.send_data(Bytes::from_static(b"x"), false).unwrap();
    assert_eq!(
        within(response).await.unwrap().status(),
        StatusCode::REQUEST_TIMEOUT
    );
    world.drained().await;
    assert_eq!(world.app.budget.used(), 0);
}

#[tokio::test]
async fn a_body_for_which_there_is_no_room_is_answered_503() {
    let world = world_of(1, "limits: {body_bytes_max: 1MiB, buffered_bytes_max: 1MiB}").await;
    let body = noise(1, 600 * KIB);
    for framing in FRAMINGS {
        let gate = world.engines[0].hold_headers();
        let mut first = Http1::connect(world.address).await;
        first.send(with_length(body.len())).await;
        first.send(&body).await;
        gate.waiting(1).await;
        assert_eq!(world.app.budget.used(), body.len());

        let mut second = Http1::connect(world.address).await;
        second.send(with_chunks()).await;
        second.send(chunked(body.chunks(1000))).await;
        let answer = second.answer().await;
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
        second.ends().await;
        assert_eq!(
            Clients::connect(&world).await.post(framing, &body).await,
            503,
            "{framing:?}"
        );
        assert_eq!(world.app.budget.used(), body.len(), "{framing:?}");

        gate.release();
        assert_eq!(first.answer().await.status, 200);
        assert_eq!(world.app.budget.used(), 0);
        assert_eq!(
            Clients::connect(&world).await.post(framing, &body).await,
            200,
            "{framing:?}"
        );
    }
}

#[tokio::test]
async fn a_body_is_let_go_when_the_header_of_its_answer_passes() {
    let world = world_of(1, "").await;
    let (before, during) = (
        world.engines[0].hold_headers(),
        world.engines[0].hold_first_token(),
    );
    let body = format!(
        r#"{{"model":"tiny","stream":true,"max_tokens":3,"prompt":"{}"}}"#,
        "x".repeat(MIB)
    );
    let mut client = Http1::connect(world.address).await;
    client.send(with_length(body.len())).await;
    client.send(&body).await;
    before.waiting(1).await;
    assert_eq!(world.app.budget.used(), body.len());
    before.release();
    let answer = client.head().await;
    assert_eq!(
        (answer.status, answer.header("transfer-encoding")),
        (200, Some("chunked"))
    );
    during.waiting(1).await;
    assert_eq!((world.app.budget.used(), world.app.lifecycle.in_flight()), (0, 1));
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_its_body_leaves_nothing_behind() {
    let world = world_of(1, "").await;
    for reset in [false, true] {
        let mut client = Http1::connect(world.address).await;
        client
            .send(head(PATH, "Content-Length: 1000000\r\nExpect: 100-continue\r\n"))
            .await;
        assert_eq!(client.answer().await.status, 100);
        client.send(noise(1, 500_000)).await;
        if reset {
            client.stream.set_zero_linger().unwrap();
        }
    }
    let mut chunks = Http1::connect(world.address).await;
    chunks
        .send(head(
            PATH,
            "Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n",
        ))
        .await;
    assert_eq!(chunks.answer().await.status, 100);
    chunks.send("fffff\r\n").await;
    chunks.send(noise(2, 300_000)).await;
    drop(chunks);

    let mut h2 = Http2::connect(world.address).await;
    let (_response, mut stream) = h2.begin(Some(MIB)).await;
    stream.send_data(noise(3, 60_000).into(), false).unwrap();
    stream.send_reset(h2::Reason::CANCEL);
    let (_response, mut stream) = h2.begin(None).await;
    stream.send_data(noise(4, 60_000).into(), false).unwrap();
    // Answered after the streams before it were begun.
    assert_eq!(h2.post(None, b"{}").await.status(), 200);
    drop(h2);
    world.drained().await;
    assert_eq!(world.app.budget.used(), 0);
    assert_eq!(world.engines[0].received().len(), 1, "half a body is no request");
    let log = world.access_log().await;
    let gone = log
        .iter()
        .filter(|entry| entry["outcome"] == "client_gone")
        .count();
    assert_eq!((gone, log.len()), (5, 6), "{log:?}");
}

#[test]
fn any_chunking_yields_the_same_bytes() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let world = runtime.block_on(world_of(1, "limits: {header_bytes_max: 1KiB}"));
    let client = tokio::sync::Mutex::new(runtime.block_on(Http1::connect(world.address)));
    let body = prop::collection::vec(any::<u8>(), 0..100_000);
    let sizes = || prop::collection::vec(1_usize..20_000, 1..10);
    let quirks = prop::sample::select(vec!["", ";a=b", "  ", ";quoted=\"x;y\""]);
    let trailers = prop::sample::select(vec!["", "x-sum: 1\r\n"]);
    let config = ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(body in body, chunks in sizes(), writes in sizes(), quirk in quirks, trailer in trailers)| {
        let mut wire = with_chunks().into_bytes();
        for chunk in cut(&body, &chunks) {
            wire.extend_from_slice(format!("{:X}{quirk}\r\n", chunk.len()).as_bytes());
            wire.extend_from_slice(chunk);
            wire.extend_from_slice(b"\r\n");
        }
        wire.extend_from_slice(format!("0\r\n{trailer}\r\n").as_bytes());
        let answer = runtime.block_on(async {
            let mut client = client.lock().await;
            for piece in cut(&wire, &writes) {
                client.send(piece).await;
            }
            client.answer().await
        });
        prop_assert_eq!(answer.status, 200);
        assert_arrived(&world.engines[0], &body, "any chunking");
    });
}

/// `bytes` in pieces of these sizes, over and over.
fn cut<'a>(bytes: &'a [u8], sizes: &[usize]) -> Vec<&'a [u8]> {
    let (mut rest, mut cut) = (bytes, Vec::new());
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, after) = rest.split_at(rest.len().min(*size));
        cut.push(piece);
        rest = after;
    }
    cut
}

#[tokio::test]
async fn whatever_stands_in_a_body_is_passed_on_unchanged() {
    let world = world_of(1, "").await;
    let mut clients = Clients::connect(&world).await;
    let keys: String = (0..60_000).map(|key| format!("\"k{key}\":{key},")).collect();
    let abuse: Vec<(&str, Vec<u8>)> = vec![
        (
            "deep arrays",
            [b"[".repeat(100_000), b"]".repeat(100_000)].concat(),
        ),
        ("deep arrays without an end", b"[".repeat(100_000)),
        ("deep objects", b"{\"a\":".repeat(100_000)),
        (
            "deep under the model",
            [br#"{"model":"#.to_vec(), b"[".repeat(100_000)].concat(),
        ),
        (
            "deep under another key",
            [br#"{"messages":"#.to_vec(), b"[".repeat(300_000)].concat(),
        ),
        (
            "invalid UTF-8",
            b"{\"model\":\"\xff\xfe\",\"prompt\":\"\xc3\x28\"}".to_vec(),
        ),
        ("UTF-8 with a mark", "\u{feff}{\"model\":\"tiny\"}".into()),
        (
            "duplicate keys",
            br#"{"model":"tiny","model":"tiny","model":7,"stream":true,"stream":false}"#.to_vec(),
        ),
        (
            "huge numbers",
            br#"{"max_tokens":1e400,"seed":123456789012345678901234567890,"top_p":-0.0e-999}"#.to_vec(),
        ),
        (
            "lone surrogates",
            br#"{"model":"\ud800","prompt":"\udfff\ud83d"}"#.to_vec(),
        ),
        ("no numbers", br#"{"temperature":NaN,"top_p":Infinity}"#.to_vec()),
        (
            "wrong types",
            br#"{"model":{"a":[1]},"stream":"yes","messages":null,"prompt":true}"#.to_vec(),
        ),
        ("many keys", format!("{{{keys}\"model\":\"tiny\"}}").into()),
        ("trailing bytes", b"{\"model\":\"tiny\"}}}}\0\0".to_vec()),
        ("nothing but space", b" ".repeat(100_000)),
        ("half a string", br#"{"model":"ti"#.to_vec()),
        (
            "a long model",
            format!(r#"{{"model":"{}"}}"#, "m".repeat(MIB)).into(),
        ),
    ];
    for (name, body) in abuse {
        for framing in [Framing::Length, Framing::Chunked, Framing::H2Length] {
            let status = clients.post(framing, &body).await;
            assert!(status < 500, "{name}, {framing:?}: {status}");
            assert_arrived(&world.engines[0], &body, name);
        }
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let world = world_of(1, "").await;
    let mut client = Http1::connect(world.address).await;
    let bodies: Vec<_> = (0..10)
        .map(|number| noise(number, [0, 10, 70 * KIB, 300][number as usize % 4]))
        .collect();
    let mut wire = Vec::new();
    for (number, body) in bodies.iter().enumerate() {
        let fields = format!("X-Request-Id: {number}\r\n");
        if number % 3 == 0 {
            wire.extend_from_slice(head(PATH, &format!("{fields}Transfer-Encoding: chunked\r\n")).as_bytes());
            wire.extend_from_slice(&chunked(body.chunks(900)));
        } else {
            wire.extend_from_slice(
                head(PATH, &format!("{fields}Content-Length: {}\r\n", body.len())).as_bytes(),
            );
            wire.extend_from_slice(body);
        }
    }
    client.send(wire).await;
    for number in 0..10 {
        let answer = client.answer().await;
        assert_eq!(
            (answer.status, answer.header("x-request-id")),
            (200, Some(number.to_string().as_str()))
        );
        assert!(!answer.body.is_empty());
    }
    let received = world.engines[0].received();
    let arrived: Vec<_> = received
        .iter()
        .map(|request| request.body_sha256.clone())
        .collect();
    assert_eq!(
        arrived,
        bodies.iter().map(|body| sha256(body)).collect::<Vec<_>>()
    );
}
