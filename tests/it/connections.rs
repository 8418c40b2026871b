//! Connections over real sockets: what may come before a request, how many there may be, and what they share.

use crate::clients::{Answer, Http1};
use crate::world::{Plan, World, within};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

const GET: &str = "GET /version HTTP/1.1\r\nHost: gateway\r\n\r\n";

async fn world(sections: &str) -> World {
    World::with(Plan { sections: sections.to_owned(), ..Plan::default() }).await
}

fn refused(world: &World, reason: &str) -> f64 {
    world.metric(&format!("kvway_connections_refused_total{{reason=\"{reason}\"}}"))
}

fn assert_refused_once(world: &World, reason: &str) {
    let count = refused(world, reason);
    assert!((count - 1.0).abs() < f64::EPSILON, "{reason} was counted {count} times");
}

/// A connection on which a request was served, so that it is surely open.
async fn open(world: &World) -> Http1 {
    let mut client = Http1::connect(world.address).await;
    client.send(GET).await;
    assert_eq!(client.answer().await.status, 200);
    client
}

#[tokio::test]
async fn a_silent_connection_is_closed_and_counted_once() {
    let world = world("timeouts: {idle: 50ms}").await;
    let mut client = Http1::connect(world.address).await;
    client.ends().await;
    assert_refused_once(&world, "idle");
}

#[tokio::test]
async fn an_idle_connection_is_closed_in_silence_after_its_requests() {
    let world = world("timeouts: {idle: 50ms}").await;
    let mut client = open(&world).await;
    client.ends().await;
    assert!(refused(&world, "idle") < f64::EPSILON, "it was served, not refused");
}

#[tokio::test]
async fn a_connection_outlives_a_request_that_takes_longer_than_a_header_may() {
    let world = world("timeouts: {header: 50ms}").await;
    let gates: Vec<_> = world.engines.iter().map(|engine| engine.hold_path("/version")).collect();
    let mut client = Http1::connect(world.address).await;
    client.send(GET).await;
    // Nothing is awaited here: the time itself is what must not matter.
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(gates);
    assert_eq!(client.answer().await.status, 200);
    tokio::time::sleep(Duration::from_millis(100)).await;
    client.send(GET).await;
    assert_eq!(client.answer().await.status, 200);
}

#[tokio::test]
async fn a_dripping_header_is_answered_408_at_its_total_deadline() {
    let world = world("timeouts: {header: 200ms, drain: 50ms}").await;
    let started = Instant::now();
    let mut client = Http1::connect(world.address).await;
    client.send("GET / HTTP/1.1\r\na: ").await;
    assert_eq!(client.drip().await.status, 408);
    assert!(started.elapsed() >= Duration::from_millis(200));
    client.ends().await;
    assert_refused_once(&world, "header_timeout");
}

#[tokio::test]
async fn an_endless_header_or_target_is_refused_while_others_are_served() {
    let world = world("limits: {header_bytes_max: 16KiB}\ntimeouts: {drain: 50ms}").await;
    for (beginning, status, reason) in [
        ("GET / HTTP/1.1\r\na: ", 431, "header_too_large"),
        ("GET /", 414, "target_too_long"),
        ("", 414, "target_too_long"),
    ] {
        world.app.metrics.connections_refused.reset();
        let mut client = Http1::connect(world.address).await;
        client.send(beginning).await;
        client.send(vec![b'x'; 8 * 1024]).await;
        assert_eq!(world.chat().await.status(), 200, "meanwhile");
        client.send(vec![b'x'; 64 * 1024]).await;
        let answer = client.answer().await;
        assert_eq!(answer.status, status, "after {beginning:?}");
        assert_eq!(answer.header("connection"), Some("close"));
        client.ends().await;
        assert_refused_once(&world, reason);
    }
}

#[tokio::test]
async fn connections_beyond_the_limit_are_refused_until_one_has_ended() {
    for (limit, reason) in [
        ("connections_max: 2", "connections_max"),
        ("connections_per_client_max: 2", "connections_per_client_max"),
    ] {
        let world = world(&format!("limits: {{{limit}, body_bytes_max: 1KiB}}")).await;
        let (mut first, _second) = (open(&world).await, open(&world).await);
        let mut third = Http1::connect(world.address).await;
        third.ends().await;
        assert_refused_once(&world, reason);
        // A refused body closes the connection, and its end is an event that can be awaited.
        first.send("POST / HTTP/1.1\r\nHost: gateway\r\nContent-Length: 2000\r\n\r\n").await;
        assert_eq!(first.answer().await.status, 413);
        first.stream.shutdown().await.unwrap();
        first.ends().await;
        open(&world).await;
        assert_refused_once(&world, reason);
    }
}

#[tokio::test]
async fn one_connection_serves_any_number_of_requests_whoever_answers_them() {
    let world = world("limits: {header_bytes_max: 1KiB}").await;
    world.app.models_service().tick(&crate::world::client()).await;
    let mut client = Http1::connect(world.address).await;
    for path in ["/version", "/v1/models"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: gateway\r\nA: {}\r\n\r\n", "x".repeat(100));
        for number in 0..20 {
            client.send(&request).await;
            assert_eq!(client.answer().await.status, 200, "{path} {number}");
        }
    }
}

#[tokio::test]
async fn a_body_that_nobody_wants_is_not_taken_for_the_next_request() {
    let world = world("").await;
    world.app.models_service().tick(&crate::world::client()).await;
    let mut client = Http1::connect(world.address).await;
    client
        .send(format!(
            "GET /v1/models HTTP/1.1\r\nHost: gateway\r\nContent-Length: {}\r\n\r\n{GET}",
            GET.len()
        ))
        .await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    client.ends().await;
}

#[tokio::test]
async fn http1_and_http2_share_the_port_however_a_request_begins() {
    let world = World::new().await;
    let mut shortest = Http1::connect(world.address).await;
    shortest.send("GET / HTTP/1.0\r\n\r\n").await;
    assert_eq!(shortest.answer().await.status, 404, "the engine's own answer");

    let mut split = Http1::connect(world.address).await;
    for piece in ["P", "RI", "VET /version HTTP/1.1\r\nHost: gateway\r\n\r\n"] {
        split.send(piece).await;
    }
    assert_eq!(split.answer().await.status, 405, "an unknown method passes");

    let tcp = TcpStream::connect(world.address).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(tcp).await.unwrap();
    let mut driver = tokio::task::JoinSet::new();
    driver.spawn(connection);
    let request = http::Request::get("http://gateway/version").body(()).unwrap();
    let (response, _) = sender.send_request(request, true).unwrap();
    assert_eq!(within(response).await.unwrap().status(), 200);

    let mut half_preface = Http1::connect(world.address).await;
    half_preface.send("PRI * HTT").await;
    half_preface.stream.shutdown().await.unwrap();
    half_preface.ends().await;
}

#[tokio::test]
async fn http2_is_closed_when_idle_and_without_a_request() {
    let world = world("timeouts: {idle: 50ms}").await;
    let tcp = TcpStream::connect(world.address).await.unwrap();
    let (sender, connection) = h2::client::handshake(tcp).await.unwrap();
    // Ends when the gateway closes; how it words that is of no interest.
    let _closed = within(connection).await.is_ok();
    drop(sender);

    let half_a_header = b"\0\0\x40\x01\x04\0\0\0\x01\x82";
    for after_preface in [&b""[..], half_a_header] {
        let mut raw = Http1::connect(world.address).await;
        raw.send([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", after_preface].concat()).await;
        let _closed = within(raw.stream.read_to_end(&mut Vec::new())).await.is_ok();
    }
}

#[tokio::test]
async fn a_client_of_http_1_0_sees_the_end_of_its_answer() {
    let world = World::new().await;
    let mut client = Http1::connect(world.address).await;
    client.send("GET /version HTTP/1.0\r\n\r\n").await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    client.ends().await;

    let mut keeps = Http1::connect(world.address).await;
    for _ in 0..2 {
        keeps.send("GET /version HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
        let answer = keeps.answer().await;
        assert_eq!((answer.status, answer.header("connection")), (200, Some("keep-alive")));
    }
}

#[tokio::test]
async fn a_client_that_wants_to_close_is_closed() {
    let world = World::new().await;
    let mut client = Http1::connect(world.address).await;
    client.send("GET /version HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n").await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    client.ends().await;
}

#[tokio::test]
async fn two_framings_of_one_body_are_never_followed_by_another_request() {
    let world = World::new().await;
    let mut client = Http1::connect(world.address).await;
    let head = "POST /v1/completions HTTP/1.1\r\nHost: gateway\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n";
    client.send(format!("{head}2\r\n{{}}\r\n0\r\n\r\n{GET}")).await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    client.ends().await;
    let received: Vec<_> = world.engines.iter().flat_map(|engine| engine.received()).collect();
    assert_eq!(received.len(), 1);
    assert_eq!((&received[0].body[..], received[0].framing), (&b"{}"[..], mocks::Framing::ContentLength));
}

/// The answer has this status, and the shape of the API's errors.
fn assert_refusal(answer: &Answer, status: u16, code: &str) {
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    assert_eq!((answer.status, &body["error"]["code"]), (status, &code.into()), "{answer:?}");
}

#[tokio::test]
async fn a_request_that_is_none_is_answered_400() {
    let world = World::new().await;
    for bad in [
        "\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nno size\r\n",
    ] {
        let mut client = Http1::connect(world.address).await;
        client.send(bad).await;
        assert_refusal(&client.answer().await, 400, "bad_request");
        client.ends().await;
    }
    assert!(world.engines.iter().all(|engine| engine.received().is_empty()));
}

#[tokio::test]
async fn the_answer_to_head_has_no_body_and_the_connection_goes_on() {
    let world = world("routes: [{path: /version, cluster: llama}]").await;
    let mut client = Http1::connect(world.address).await;
    client.send("HEAD /version HTTP/1.1\r\nHost: gateway\r\n\r\n").await;
    let answer = client.answer_to_head().await;
    assert!(answer.header("content-length").is_some(), "{answer:?}");
    client.send(GET).await;
    assert_eq!(client.answer().await.status, 200);
    client.send("HEAD /nowhere HTTP/1.1\r\nHost: gateway\r\n\r\n").await;
    assert_eq!(client.answer_to_head().await.status, 404);
    client.stream.shutdown().await.unwrap();
    client.ends().await;
}

#[tokio::test]
async fn an_absolute_target_reaches_the_backend_as_a_path() {
    let world = World::new().await;
    let mut client = Http1::connect(world.address).await;
    client.send("GET http://gateway/version?x=1 HTTP/1.1\r\nHost: gateway\r\n\r\n").await;
    assert_eq!(client.answer().await.status, 200);
    let received = world.engines.iter().flat_map(|engine| engine.received()).next().unwrap();
    assert_eq!(received.path_and_query, "/version?x=1");
    assert_eq!(received.header("x-forwarded-host"), Some("gateway"));
}

#[tokio::test]
async fn connect_is_answered_405() {
    let world = World::new().await;
    let mut client = Http1::connect(world.address).await;
    client.send("CONNECT gateway:443 HTTP/1.1\r\nHost: gateway:443\r\n\r\n").await;
    assert_refusal(&client.answer().await, 405, "method_not_allowed");
    client.ends().await;
    assert!((refused(&world, "method_not_allowed") - 1.0).abs() < f64::EPSILON);
}

#[tokio::test]
async fn a_client_that_ends_its_side_while_it_waits_is_taken_for_gone() {
    let world = World::with(Plan { engines: vec![mocks::EngineOptions::default()], ..Plan::default() }).await;
    let engine = &world.engines[0];
    let gate = engine.hold_headers();
    let mut client = Http1::connect(world.address).await;
    client.send("POST /v1/completions HTTP/1.1\r\nHost: gateway\r\nContent-Length: 2\r\n\r\n{}").await;
    gate.waiting(1).await;
    client.stream.shutdown().await.unwrap();
    within(engine.until(|stats| stats.cancelled("/v1/completions") == 1)).await;
    world.drained().await;
    assert_eq!(world.app.budget.used(), 0);
    assert_eq!(world.app.clusters()[0].fleet.backends()[0].load(Instant::now()).requests, 0);
    let entry = world.last_entry().await;
    assert_eq!((entry["status"].as_u64(), entry["outcome"].as_str()), (Some(499), Some("client_gone")));
}
