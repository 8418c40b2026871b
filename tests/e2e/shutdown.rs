//! Signals: what each does to requests, listeners and the process.

use crate::client::{CHAT, Connection, chat, engine, fresh};
use crate::gateway::{Gateway, Plan, look_for, soon};
use mocks::{Engine, Fault};
use nix::sys::signal::Signal;
use reqwest::Response;

/// Long enough never to be waited for.
const PATIENT: Plan =
    Plan { server: "close_delay: 0s, grace_period: 10m", sections: "", clusters: "", files_max: None };

/// A stream whose header has arrived.
async fn open_stream(gateway: &Gateway, events: usize) -> Response {
    let request = fresh().post(gateway.url(CHAT)).json(&chat("hello", Some(events)));
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    response
}

async fn status(gateway: &Gateway) -> u16 {
    let request = fresh().post(gateway.url(CHAT)).json(&chat("hello", None));
    request.send().await.unwrap().status().as_u16()
}

async fn readiness(gateway: &Gateway) -> u16 {
    fresh().get(gateway.admin_url("/readyz")).send().await.unwrap().status().as_u16()
}

/// A gateway whose one engine holds a stream after its header; the stream.
async fn with_held_stream(engine: &Engine, plan: Plan) -> (Gateway, Response) {
    let gateway = Gateway::start(&[engine], plan).await;
    let stream = open_stream(&gateway, 4).await;
    (gateway, stream)
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_lets_streams_finish_and_ends_when_the_last_has() {
    let engine = engine("vllm-0");
    let gate = engine.hold_first_token();
    let plan = Plan { server: "close_delay: 3s, grace_period: 10m", ..Plan::default() };
    let (mut gateway, stream) = with_held_stream(&engine, plan).await;
    let mut idle = Connection::open(gateway.address).await.unwrap();
    assert_eq!(idle.get("/version").await.unwrap(), 200);

    gateway.signal(Signal::SIGTERM);
    gateway.says("SIGTERM").await;
    assert_eq!(readiness(&gateway).await, 503, "it tells that it will go");
    let version = fresh().get(gateway.url("/version")).send().await.unwrap();
    assert_eq!(version.status(), 200, "and still serves who has not heard");
    assert_eq!(version.headers()["connection"], "close", "but asks them to go elsewhere");

    gateway.says("listeners closed").await;
    let refused = soon("the refusal", async {
        // The listeners are told to close a moment before they have.
        while Connection::open(gateway.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
    refused.await;
    assert!(gateway.is_running(), "a stream is running");

    gate.release();
    let events = stream.text().await.unwrap();
    assert!(events.ends_with("data: [DONE]\n\n"), "{events}");
    assert_eq!(gateway.exit().await, Some(0));
    let log = gateway.access_log();
    let entry = log.iter().find(|entry| entry["path"] == CHAT).unwrap();
    assert_eq!((&entry["status"], &entry["completion_tokens"]), (&200.into(), &4.into()));
    assert_eq!(entry["answer_bytes"], events.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_an_idle_gateway_at_once() {
    let engine = engine("vllm-0");
    let mut gateway = Gateway::start(&[&engine], PATIENT).await;
    assert_eq!(status(&gateway).await, 200);
    gateway.signal(Signal::SIGTERM);
    assert_eq!(gateway.exit().await, Some(0));
    assert_eq!(gateway.access_log().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_waits_for_a_body_that_is_still_arriving() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let engine = engine("vllm-0");
    let mut gateway = Gateway::start(&[&engine], PATIENT).await;
    let body = chat("hello", None).to_string();
    let mut slow = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
    let head = format!("POST {CHAT} HTTP/1.1\r\nHost: gateway\r\nContent-Length: {}\r\n\r\n", body.len());
    slow.write_all(head.as_bytes()).await.unwrap();
    look_for("the request", async || (gateway.state().await["requests_in_flight"] == 1).then_some(())).await;
    gateway.signal(Signal::SIGTERM);
    gateway.says("listeners closed").await;
    slow.write_all(body.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon("the answer", slow.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("chat.completion"), "{answer}");
    assert_eq!(gateway.exit().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_outlast_the_grace_period_are_cut_and_counted() {
    let engine = engine("vllm-0");
    engine.fail_next(1, Fault::StallAfter(1));
    let plan = Plan { server: "close_delay: 0s, grace_period: 1s", ..Plan::default() };
    let (mut gateway, stream) = with_held_stream(&engine, plan).await;
    gateway.signal(Signal::SIGTERM);
    assert_eq!(gateway.exit().await, Some(0));
    let log = gateway.log().await;
    assert!(log.contains("the grace period is over") && log.contains("\"cut\":1"), "{log}");
    assert!(stream.text().await.is_err(), "the client sees that it was cut");
    soon("the engine to be told", engine.until(|stats| stats.cancelled(CHAT) == 1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sigterm_ends_a_drain_at_once() {
    let engine = engine("vllm-0");
    let gate = engine.hold_first_token();
    let (mut gateway, stream) = with_held_stream(&engine, PATIENT).await;
    gateway.signal(Signal::SIGTERM);
    gateway.says("listeners closed").await;
    gateway.signal(Signal::SIGTERM);
    assert_eq!(gateway.exit().await, Some(0));
    let log = gateway.log().await;
    assert!(log.contains("told again to end") && log.contains("\"cut\":1"), "{log}");
    assert!(stream.text().await.is_err());
    gate.release();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sigterm_ends_the_wait_before_the_listeners_close() {
    let engine = engine("vllm-0");
    let plan = Plan { server: "close_delay: 10m", ..Plan::default() };
    let mut gateway = Gateway::start(&[&engine], plan).await;
    assert_eq!(status(&gateway).await, 200);
    look_for("the request's end", async || (gateway.state().await["requests_in_flight"] == 0).then_some(()))
        .await;
    gateway.signal(Signal::SIGTERM);
    gateway.says("SIGTERM").await;
    gateway.signal(Signal::SIGTERM);
    assert_eq!(gateway.exit().await, Some(0));
    assert_eq!(gateway.access_log().len(), 1, "what was served is in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigint_ends_at_once_with_all_that_is_running() {
    let engine = engine("vllm-0");
    let gate = engine.hold_first_token();
    let (mut gateway, stream) = with_held_stream(&engine, PATIENT).await;
    gateway.signal(Signal::SIGINT);
    assert_eq!(gateway.exit().await, Some(0));
    assert!(gateway.log().await.contains("SIGINT"));
    assert!(stream.text().await.is_err());
    gate.release();
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_that_ask_for_what_is_not_there_are_ignored_and_logged() {
    let engine = engine("vllm-0");
    let mut gateway = Gateway::start(&[&engine], PATIENT).await;
    gateway.signal(Signal::SIGHUP);
    let log = gateway.says("SIGHUP ignored").await;
    assert!(log.contains("--upgrade"), "it says what to do instead: {log}");
    gateway.signal(Signal::SIGQUIT);
    let log = gateway.says("SIGQUIT ignored").await;
    let line = log.lines().find(|line| line.contains("SIGQUIT")).unwrap();
    assert!(line.contains("\"level\":\"ERROR\"") && line.contains("--upgrade"), "{line}");
    // A client that closes its output early must not end the process either.
    gateway.signal(Signal::SIGPIPE);
    assert_eq!((status(&gateway).await, readiness(&gateway).await), (200, 200));
    assert!(gateway.is_running());
}
