//! When a prompt has been computed: at the first token of a stream, else at the header, or when streams predict it.

use super::*;
use crate::streams::{Actor, chunk};
use mocks::Fault;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// A client that waits however much time passes.
fn patient() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

/// Lets time pass at once.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[tokio::test]
async fn what_keeps_a_stream_alive_is_not_its_first_token() {
    let (actor, world) = Actor::new("").await;
    let body = streamed(about(&text(1, 4 * KIB)));
    let request = world.client.post(world.url(CHAT)).json(&body);
    let (response, mut socket) = tokio::join!(request.send(), actor.start_stream());
    let mut response = response.unwrap();
    let pending = || world.backend("actor").load(Instant::now()).pending_tokens;
    let prompt = pending();
    assert!(prompt > 1000);
    for piece in [
        ": ping\n\n",
        "event: response.created\r\ndata: {\"response\":{}}\r\n\r\n",
        "data:\n\n",
        ": data: x\n\n",
        "da",
        "ta",
        ": ",
    ] {
        socket.write_all(&chunk(piece.as_bytes())).await.unwrap();
        assert_eq!(response.chunk().await.unwrap().unwrap(), piece);
        assert_eq!(pending(), prompt, "{piece:?}");
    }
    for piece in ["{", "}\n\n"] {
        socket.write_all(&chunk(piece.as_bytes())).await.unwrap();
        assert_eq!(response.chunk().await.unwrap().unwrap(), piece);
        assert_eq!(pending(), 0);
    }
    assert_eq!(world.backend("actor").load(Instant::now()).requests, 1);
    socket.write_all(b"0\r\n\r\n").await.unwrap();
    assert_eq!(response.chunk().await.unwrap(), None);
}

#[tokio::test]
async fn the_first_token_is_told_when_it_comes_and_not_before() {
    let (actor, world) = Actor::new("").await;
    let request = patient().post(world.url(CHAT)).json(&streamed(about("hello")));
    let (response, mut socket) = tokio::join!(request.send(), actor.start_stream());
    let mut response = response.unwrap();
    for (piece, time) in [(": ping\n\n", Duration::from_mins(1)), ("data: {}\n\n", Duration::ZERO)] {
        socket.write_all(&chunk(piece.as_bytes())).await.unwrap();
        assert_eq!(response.chunk().await.unwrap().unwrap(), piece);
        pass(time).await;
    }
    socket.write_all(b"0\r\n\r\n").await.unwrap();
    assert_eq!(response.chunk().await.unwrap(), None);
    world.idle().await;
    let series = r#"kvway_first_token_seconds_sum{backend="actor",cluster="llama"}"#;
    assert!(world.metric(series) >= 60.0);
    assert!(world.last_entry().await["first_token_ms"].as_f64().unwrap() >= 60_000.0);
}

#[tokio::test]
async fn an_answer_in_one_piece_is_there_with_its_header_and_a_refusal_never() {
    let world = pmc(1).await;
    chat(&world, &about("hello")).await;
    world.engines[0].fail_next(1, Fault::Status { code: 400, retry_after: None });
    let response = world.client.post(world.url(CHAT)).json(&about("hello")).send().await.unwrap();
    assert_eq!(response.status(), 400);
    world.idle().await;
    let series = r#"kvway_first_token_seconds_count{backend="vllm-0",cluster="llama"}"#;
    assert!((world.metric(series) - 1.0).abs() < 1e-9);
    let log = world.access_log().await;
    assert!(log[0]["first_token_ms"].is_f64() && log[1]["first_token_ms"].is_null(), "{log:?}");
}

#[tokio::test]
async fn what_is_refused_is_not_pending_while_the_refusal_still_comes() {
    let (actor, world) = Actor::new("").await;
    let head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n";
    let request = world.client.post(world.url(CHAT)).json(&streamed(about(&text(1, 4 * KIB))));
    let (response, mut socket) = tokio::join!(request.send(), actor.start(head));
    assert_eq!(world.backend("actor").load(Instant::now()), Load { requests: 1, pending_tokens: 0 });
    socket.write_all(b"{}").await.unwrap();
    assert_eq!(response.unwrap().text().await.unwrap(), "{}");
    world.idle().await;
    assert_eq!(world.backend("actor").prefill_rate(), None);
}

/// Sends a stream whose first token takes so long.
async fn teach(world: &World, body: &Value, time: Duration) {
    let gate = world.engines[0].hold_first_token();
    let request = patient().post(world.url(CHAT)).json(body);
    let mut response = request.send().await.unwrap();
    within(gate.waiting(1)).await;
    pass(time).await;
    gate.release();
    assert!(response.chunk().await.unwrap().is_some());
    drop(response.bytes().await.unwrap());
    world.idle().await;
}

#[tokio::test]
async fn streams_teach_when_a_prompt_that_nobody_sees_is_computed() {
    const LONG: Duration = Duration::from_mins(1);
    let mut world = pmc(1).await;
    world.client = patient();
    teach(&world, &streamed(about(&text(1, 16 * KIB))), LONG).await;
    let rate = world.backend("vllm-0").prefill_rate().unwrap();
    assert!((50.0..70.0).contains(&rate), "{rate}: 4096 tokens in a minute");
    let gates = hold_all(&world);
    let mut waiting = Waiting::default();
    waiting.send(&world, CHAT, &about(&text(2, 16 * KIB)), &gates[0], 1).await;
    assert!(pending_tokens(&world, 0) > 4000);
    pass(LONG / 2).await;
    assert!(pending_tokens(&world, 0) > 4000, "too early");
    pass(LONG).await;
    assert_eq!((load(&world, 0).requests, pending_tokens(&world, 0)), (1, 0), "its header is still held");
    drop(gates);
    assert_eq!(waiting.join().await, [0]);
    world.idle().await;
    assert_eq!(load(&world, 0), Load::default());
}

#[tokio::test]
async fn only_streams_that_are_answered_as_such_teach() {
    let world = pmc(1).await;
    let question = streamed(about(&text(1, 16 * KIB)));
    let engine = &world.engines[0];
    engine.fail_next(1, Fault::Status { code: 400, retry_after: None });
    let response = world.client.post(world.url(CHAT)).json(&question).send().await.unwrap();
    assert_eq!(response.status(), 400);
    let whole = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
    engine.fail_next(1, Fault::Raw(whole.as_slice().into()));
    let response = world.client.post(world.url(CHAT)).json(&question).send().await.unwrap();
    assert_eq!(response.text().await.unwrap(), "{}");
    chat(&world, &about(&text(2, 16 * KIB))).await;
    world.idle().await;
    assert_eq!(world.backend("vllm-0").prefill_rate(), None);
    chat(&world, &streamed(about(&text(3, 16 * KIB)))).await;
    world.idle().await;
    assert!(world.backend("vllm-0").prefill_rate().is_some());
}

#[tokio::test]
async fn what_a_stream_generates_takes_room_whether_it_reports_usage_or_not() {
    for report in [true, false] {
        let world = pmc(1).await;
        let mut body = streamed(about(&text(1, 4 * KIB)));
        body["max_tokens"] = 2000.into();
        body["stream_options"]["include_usage"] = report.into();
        chat(&world, &body).await;
        world.idle().await;
        // Of the 4 KiB that are not blocks there are a few tokens more.
        let spent = cluster(&world).blocks.tokens(0) - 4 * 256;
        assert!((2000..2020).contains(&spent), "{spent}, usage: {report}");
    }
}

#[tokio::test]
async fn what_is_reported_at_the_start_is_not_what_was_generated() {
    let world = pmc(1).await;
    world.engines[0].fail_next(1, Fault::CutStreamAfter(500));
    let mut body = streamed(about(&text(1, 4 * KIB)));
    body["max_tokens"] = 2000.into();
    // Says at its start that nothing was generated yet.
    let response = world.client.post(world.url("/v1/messages")).json(&body).send().await.unwrap();
    assert!(response.bytes().await.is_err());
    world.idle().await;
    let spent = cluster(&world).blocks.tokens(0) - 4 * 256;
    assert!((495..520).contains(&spent), "{spent}");
}

#[tokio::test]
async fn what_a_client_that_left_was_sent_takes_room() {
    let world = pmc(1).await;
    world.engines[0].fail_next(1, Fault::StallAfter(500));
    let mut body = streamed(about(&text(1, 4 * KIB)));
    body["max_tokens"] = 2000.into();
    let mut response = post(&world, CHAT, &body).await;
    let mut events = 0;
    while events < 500 {
        let chunk = response.chunk().await.unwrap().unwrap();
        events += chunk.windows(6).filter(|window| *window == b"data: ").count();
    }
    drop(response);
    world.idle().await;
    let spent = cluster(&world).blocks.tokens(0) - 4 * 256;
    assert!((500..520).contains(&spent), "{spent}");
}
