//! What the process holds in memory, measured from outside: prompts are let go when the answer begins, and a connection
//! that rests costs little.

use crate::client::{CHAT, Connection, chat, engine, engine_with, fresh};
use crate::gateway::{Gateway, Plan, look_for, soon};
use mocks::EngineOptions;
use tokio::task::JoinSet;

const STREAMS: usize = 50;
const PROMPT_BYTES: usize = 4 * 1024 * 1024;
/// Fifty prompts are 200 MiB.
const GROWTH_MAX_KIB: u64 = 64 * 1024;

const CONNECTIONS: usize = 500;
/// Between two requests a connection keeps nothing of what a request needs.
const CONNECTION_MAX_KIB: u64 = 12;

#[tokio::test(flavor = "multi_thread")]
async fn streams_do_not_hold_on_to_their_prompts() {
    let options = EngineOptions { record: false, ..EngineOptions::default() };
    let engine = engine_with("vllm-0", options);
    let gate = engine.hold_first_token();
    let gateway = Gateway::start(&[&engine], Plan::default()).await;
    // A first request, so that what is built once is not counted.
    let first = fresh().get(gateway.url("/version")).send().await.unwrap();
    assert_eq!(first.status(), 200);
    let before = gateway.memory_kib("VmRSS");

    let body = bytes::Bytes::from(chat(&"x".repeat(PROMPT_BYTES), Some(2)).to_string());
    let mut opening = JoinSet::new();
    for _ in 0..STREAMS {
        let request =
            fresh().post(gateway.url(CHAT)).header("content-type", "application/json").body(body.clone());
        opening.spawn(async move { request.send().await.unwrap().error_for_status().unwrap() });
    }
    let streams = soon("all headers", opening.join_all()).await;
    let at_most = gateway.memory_kib("VmHWM");
    let first = gateway.memory_kib("VmRSS");
    // The allocator gives back what is free in its own time.
    look_for("the memory of the prompts to be given back", async || {
        (gateway.memory_kib("VmRSS") < before + GROWTH_MAX_KIB).then_some(())
    })
    .await;
    let held = gateway.memory_kib("VmRSS");
    let state = gateway.state().await;
    assert_eq!((&state["requests_in_flight"], &state["buffered_bytes"]), (&STREAMS.into(), &0.into()));
    gate.release();
    for stream in streams {
        assert!(stream.text().await.unwrap().ends_with("data: [DONE]\n\n"));
    }
    println!(
        "{STREAMS} streams after prompts of {PROMPT_BYTES} bytes: {before} KiB before, {at_most} KiB at most, {first} KiB at the last header, {held} KiB while open, {} KiB after",
        gateway.memory_kib("VmRSS"),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_at_rest_is_cheap() {
    let engine = engine("vllm-0");
    let gateway = Gateway::start(&[&engine], Plan::default()).await;
    let mut connections = Vec::new();
    // Those that come first pay for what is built once.
    for _ in 0..CONNECTIONS / 10 {
        let mut connection = Connection::open(gateway.address).await.unwrap();
        assert_eq!(connection.get("/version").await.unwrap(), 200);
        connections.push(connection);
    }
    let before = gateway.memory_kib("VmRSS");
    for _ in 0..CONNECTIONS {
        let mut connection = Connection::open(gateway.address).await.unwrap();
        assert_eq!(connection.get("/version").await.unwrap(), 200);
        connections.push(connection);
    }
    let state = gateway.state().await;
    assert_eq!(state["connections"], connections.len());
    // They have to rest for a second, and the allocator gives back what is free in its own time.
    let growth = look_for("connections at rest to be cheap", async || {
        let growth = gateway.memory_kib("VmRSS").saturating_sub(before);
        (growth < CONNECTION_MAX_KIB * CONNECTIONS as u64).then_some(growth)
    });
    println!("{CONNECTIONS} connections at rest: {} KiB", growth.await);
}
