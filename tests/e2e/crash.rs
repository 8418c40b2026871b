//! What cannot be planned: the process is killed, or has no file descriptors left.

use crate::client::{CHAT, Connection, chat, engine, fresh};
use crate::gateway::{Gateway, Plan, look_for};
use nix::sys::signal::Signal;
use std::time::Duration;
use tokio::task::JoinSet;

/// Far fewer than the connections that are opened.
const FILES_MAX: u32 = 256;
const CONNECTIONS: usize = 400;
/// The time over which the use of the processor is measured, and half of it in ticks of 10 ms.
const WATCHED: Duration = Duration::from_secs(1);
const TICKS_MAX: u64 = 50;

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_gateway_can_be_started_again_at_once() {
    let engine = engine("vllm-0");
    let gate = engine.hold_first_token();
    let mut gateway = Gateway::start(&[&engine], Plan::default()).await;
    let mut streams = Vec::new();
    for _ in 0..20 {
        let request = fresh().post(gateway.url(CHAT)).json(&chat("hello", Some(4)));
        streams.push(request.send().await.unwrap());
    }
    let mut resting = Connection::open(gateway.address).await.unwrap();
    assert_eq!(resting.get("/version").await.unwrap(), 200);

    gateway.signal(Signal::SIGKILL);
    assert_eq!(gateway.exit().await, None);
    let again = gateway.again().await;
    for stream in streams {
        assert!(stream.text().await.is_err(), "a stream that was cut does not look complete");
    }
    gate.release();
    let request = fresh().post(again.url(CHAT)).json(&chat("hello", Some(4)));
    let events = request.send().await.unwrap().text().await.unwrap();
    assert!(events.ends_with("data: [DONE]\n\n"), "{events}");
    // Every line that reached the file is whole.
    again.access_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn running_out_of_files_hurts_only_who_comes_late() {
    let engine = engine("vllm-0");
    let gate = engine.hold_first_token();
    let plan = Plan { files_max: Some(FILES_MAX), ..Plan::default() };
    let mut gateway = Gateway::start(&[&engine], plan).await;
    let mut streams = Vec::new();
    for _ in 0..10 {
        let request = fresh().post(gateway.url(CHAT)).json(&chat("hello", Some(4)));
        streams.push(request.send().await.unwrap());
    }
    let mut early = Connection::open(gateway.address).await.unwrap();
    assert_eq!(early.get("/version").await.unwrap(), 200);

    let mut opening = JoinSet::new();
    for _ in 0..CONNECTIONS {
        opening.spawn(Connection::open(gateway.address));
    }
    let connections = opening.join_all().await;
    gateway.says("Too many open files").await;

    let before = gateway.processor_ticks();
    tokio::time::sleep(WATCHED).await;
    let used = gateway.processor_ticks() - before;
    assert!(used < TICKS_MAX, "{used} ticks of 10 ms while nothing could be accepted");

    gate.release();
    for stream in streams {
        let events = stream.text().await.unwrap();
        assert!(events.ends_with("data: [DONE]\n\n"), "running streams go on: {events}");
    }
    let status = early.get("/version").await.unwrap();
    assert_eq!(status, 200, "a connection that was there is served");

    drop(connections);
    let recovered = look_for("an answer to a newcomer", async || {
        let request = fresh().post(gateway.url(CHAT)).json(&chat("hello", None));
        let response = request.send().await.ok()?;
        (response.status() == 200).then_some(())
    });
    recovered.await;
    assert!(gateway.is_running());
    assert!(!gateway.says("Too many open files").await.contains("panicked"));
}
