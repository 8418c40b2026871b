//! Bodies that are refused, or that never arrive: the client is told in time, and nothing is left behind.

use crate::bodies::assert_arrived;
use crate::clients::{
    Answer, Clients, FRAMINGS, Framing, Http1, Http2, KIB, MIB, PATH, chunked, head, noise, with_chunks,
    with_length,
};
use crate::world::{Plan, World, within};
use bytes::Bytes;
use http::StatusCode;
use mocks::EngineOptions;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

/// One engine, so that everything that reaches a backend is seen there.
async fn world(sections: &str) -> World {
    World::with(Plan {
        engines: vec![EngineOptions::default()],
        sections: sections.to_owned(),
        ..Plan::default()
    })
    .await
}

#[tokio::test]
async fn a_body_of_exactly_the_limit_passes_and_one_byte_more_does_not() {
    let world = world("limits: {body_bytes_max: 100KiB}").await;
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
    assert_eq!(within(response).await.unwrap().status(), StatusCode::PAYLOAD_TOO_LARGE);

    let mut undeclared = Http1::connect(world.address).await;
    undeclared.send(with_chunks()).await;
    undeclared.send(chunked(longer.chunks(1000))).await;
    assert_too_large(&undeclared.answer().await);
    undeclared.ends().await;
    assert_eq!(clients.post(Framing::H2Unknown, &longer).await, 413);
    assert_eq!(clients.post(Framing::H2Unknown, &body).await, 200, "the connection goes on");
    assert_eq!(world.engines[0].received().len(), 1, "nothing of the refused has reached a backend");
    assert_eq!(world.app.budget.used(), 0);
}

fn assert_too_large(answer: &Answer) {
    assert_eq!((answer.status, answer.header("connection")), (413, Some("close")), "{answer:?}");
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(body["error"]["code"], "body_too_large");
}

#[tokio::test]
async fn a_client_that_sends_everything_before_it_reads_sees_the_413() {
    let world = world("limits: {body_bytes_max: 1MiB}").await;
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
    let world = world("limits: {body_bytes_max: 1KiB}\ntimeouts: {drain: 50ms}").await;
    let mut client = Http1::connect(world.address).await;
    client.send(head(PATH, "Content-Length: 1025\r\nExpect: 100-continue\r\n")).await;
    assert_too_large(&client.answer().await);
    client.ends().await;
    let mut lost = Http1::connect(world.address).await;
    lost.send(head("/x", "Content-Length: 10\r\nExpect: 100-continue\r\n")).await;
    assert_eq!(lost.answer().await.status, 100, "a body that may come is asked for");
}

#[tokio::test]
async fn a_dripping_body_is_answered_408_at_its_total_deadline() {
    let world = world("timeouts: {body: 200ms, drain: 50ms}").await;
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
    assert_eq!(within(response).await.unwrap().status(), StatusCode::REQUEST_TIMEOUT);
    world.drained().await;
    assert_eq!(world.app.budget.used(), 0);
}

#[tokio::test]
async fn a_body_for_which_there_is_no_room_is_answered_503() {
    let world = world("limits: {body_bytes_max: 1MiB, buffered_bytes_max: 1MiB}").await;
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
        assert_eq!(Clients::connect(&world).await.post(framing, &body).await, 503, "{framing:?}");
        assert_eq!(world.app.budget.used(), body.len(), "{framing:?}");

        gate.release();
        assert_eq!(first.answer().await.status, 200);
        assert_eq!(world.app.budget.used(), 0);
        assert_eq!(Clients::connect(&world).await.post(framing, &body).await, 200, "{framing:?}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_its_body_leaves_nothing_behind() {
    let world = world("").await;
    for reset in [false, true] {
        let mut client = Http1::connect(world.address).await;
        client.send(head(PATH, "Content-Length: 1000000\r\nExpect: 100-continue\r\n")).await;
        assert_eq!(client.answer().await.status, 100);
        client.send(noise(1, 500_000)).await;
        if reset {
            client.stream.set_zero_linger().unwrap();
        }
    }
    let mut chunks = Http1::connect(world.address).await;
    chunks.send(head(PATH, "Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n")).await;
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
    let gone = log.iter().filter(|entry| entry["outcome"] == "client_gone").count();
    assert_eq!((gone, log.len()), (5, 6), "{log:?}");
}
