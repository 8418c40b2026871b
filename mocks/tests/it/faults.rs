//! What each fault looks like to a client.

use std::io::ErrorKind;
use std::time::Duration;

use bytes::Bytes;
use mocks::{Engine, EngineOptions, Fault};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client::{exchange, post, read, request, send};

const CHAT: &str = "/v1/chat/completions";
const WHOLE: &str = r#"{"messages":[]}"#;
const STREAM: &str = r#"{"messages":[],"stream":true,"max_tokens":10}"#;

fn engine() -> Engine {
    Engine::start(EngineOptions::default()).unwrap()
}

/// Sends a request and reads all that comes, with the error at the end, if any.
async fn all(engine: &Engine, body: &str) -> (String, Option<ErrorKind>) {
    let mut stream = TcpStream::connect(engine.address()).await.unwrap();
    stream.write_all(&request("POST", CHAT, &[], body)).await.unwrap();
    let mut bytes = Vec::new();
    let error = stream.read_to_end(&mut bytes).await.err().map(|error| error.kind());
    (String::from_utf8_lossy(&bytes).into_owned(), error)
}

#[tokio::test]
async fn a_status_is_answered_with_its_retry_after_and_the_connection_stays() {
    let engine = engine();
    engine.fail_next(1, Fault::Status { code: 429, retry_after: Some(7) });
    let mut stream = TcpStream::connect(engine.address()).await.unwrap();
    let first = exchange(&mut stream, "POST", CHAT, &[], WHOLE).await.unwrap();
    assert_eq!((first.status(), first.header("retry-after")), (429, Some("7")));
    assert_eq!(exchange(&mut stream, "POST", CHAT, &[], WHOLE).await.unwrap().status(), 200);
    let counts = engine.stats().path(CHAT);
    assert_eq!((counts.received, counts.failed, counts.served), (2, 1, 1));
}

#[tokio::test]
async fn an_early_status_comes_before_the_body() {
    let engine = engine();
    engine.fail_next(1, Fault::EarlyStatus { code: 413 });
    let mut stream = TcpStream::connect(engine.address()).await.unwrap();
    stream
        .write_all(format!("POST {CHAT} HTTP/1.1\r\ncontent-length: 1000\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let reply = read(&mut stream).await.unwrap();
    assert_eq!((reply.status(), reply.header("connection")), (413, Some("close")));
}

#[tokio::test]
async fn an_early_status_survives_a_client_that_sends_on() {
    let engine = engine();
    engine.fail_next(1, Fault::EarlyStatus { code: 413 });
    let mut stream = TcpStream::connect(engine.address()).await.unwrap();
    let body = " ".repeat(8 * 1024 * 1024);
    stream.write_all(&request("POST", CHAT, &[], &body)).await.unwrap();
    assert_eq!(read(&mut stream).await.unwrap().status(), 413);
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_closed_connection_ends_without_a_byte_or_an_error() {
    let engine = engine();
    engine.fail_next(1, Fault::CloseBeforeResponse);
    assert_eq!(all(&engine, WHOLE).await, (String::new(), None));
}

#[tokio::test]
async fn a_reset_is_an_error() {
    let engine = engine();
    engine.fail_next(1, Fault::ResetBeforeResponse);
    assert_eq!(all(&engine, WHOLE).await, (String::new(), Some(ErrorKind::ConnectionReset)));
}

#[tokio::test]
async fn a_cut_stream_has_its_events_and_no_terminal_chunk() {
    let engine = engine();
    engine.fail_next(1, Fault::CutStreamAfter(3));
    let (text, error) = all(&engine, STREAM).await;
    assert_eq!((text.matches("data: ").count(), text.ends_with("0\r\n\r\n"), error), (3, false, None));
}

#[tokio::test]
async fn a_reset_stream_ends_in_an_error() {
    let engine = engine();
    engine.fail_next(1, Fault::ResetStreamAfter(3));
    let (text, error) = all(&engine, STREAM).await;
    assert_eq!((text.matches("data: ").count(), error), (3, Some(ErrorKind::ConnectionReset)));
}

#[tokio::test]
async fn an_answer_that_is_not_streamed_is_cut_within_its_body() {
    let engine = engine();
    engine.fail_next(1, Fault::CutStreamAfter(3));
    let reply = post(engine.address(), CHAT, WHOLE).await;
    assert!(!reply.complete && !reply.body.is_empty());
}

#[tokio::test]
async fn a_stall_lasts_until_the_client_leaves() {
    let engine = engine();
    engine.fail_next(1, Fault::StallBeforeResponse);
    engine.fail_next(1, Fault::StallAfter(2));
    for (body, events) in [(WHOLE, 0), (STREAM, 2)] {
        let mut stream = TcpStream::connect(engine.address()).await.unwrap();
        stream.write_all(&request("POST", CHAT, &[], body)).await.unwrap();
        let mut seen = String::new();
        while seen.matches("data: ").count() < events {
            seen.push(char::from(stream.read_u8().await.unwrap()));
        }
        engine.until(|stats| stats.in_flight(CHAT) == 1).await;
        drop(stream);
        engine.until(|stats| stats.in_flight(CHAT) == 0).await;
    }
    assert_eq!(engine.stats().cancelled(CHAT), 2);
}

#[tokio::test]
async fn an_idle_close_answers_once_and_leaves_the_second_request_unanswered() {
    let engine = engine();
    engine.fail_next(1, Fault::CloseIdle);
    let mut stream = TcpStream::connect(engine.address()).await.unwrap();
    assert_eq!(exchange(&mut stream, "POST", CHAT, &[], WHOLE).await.unwrap().status(), 200);
    assert!(exchange(&mut stream, "POST", CHAT, &[], WHOLE).await.is_none());
    assert_eq!(engine.stats().path(CHAT).received, 1);
}

#[tokio::test]
async fn garbage_and_raw_bytes_are_written_as_they_are() {
    let engine = engine();
    engine.fail_next(1, Fault::Garbage);
    assert!(!all(&engine, WHOLE).await.0.starts_with("HTTP"));
    let raw = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort";
    engine.fail_next(1, Fault::Raw(Bytes::from_static(raw.as_bytes())));
    assert_eq!(all(&engine, WHOLE).await, (raw.to_owned(), None));
}

#[tokio::test(start_paused = true)]
async fn a_delay_takes_its_time() {
    let engine = engine();
    engine.fail_next(1, Fault::Delay(Duration::from_secs(10)));
    let start = tokio::time::Instant::now();
    assert_eq!(post(engine.address(), CHAT, WHOLE).await.status(), 200);
    assert!(start.elapsed() >= Duration::from_secs(10));
}

#[tokio::test]
async fn a_fault_on_a_path_spares_the_others() {
    let engine = engine();
    engine.fail_always_on("/tokenize", Fault::Status { code: 503, retry_after: None });
    assert_eq!(post(engine.address(), "/tokenize", r#"{"prompt":"a"}"#).await.status(), 503);
    assert_eq!(post(engine.address(), CHAT, WHOLE).await.status(), 200);
    engine.fail_always(None);
    assert_eq!(post(engine.address(), "/tokenize", r#"{"prompt":"a"}"#).await.status(), 200);
}

#[tokio::test]
async fn lasting_faults_spare_health_until_they_are_lifted() {
    let engine = engine();
    engine.fail_always(Some(Fault::Status { code: 500, retry_after: None }));
    assert_eq!(send(engine.address(), "GET", "/health", &[], "").await.status(), 200);
    assert_eq!(post(engine.address(), CHAT, WHOLE).await.status(), 500);
    assert_eq!(post(engine.address(), CHAT, WHOLE).await.status(), 500);
}

#[tokio::test]
async fn a_header_asks_for_a_fault_only_where_that_is_on() {
    let header = ["x-mock-fault: status=418"];
    let engine = engine();
    assert_eq!(send(engine.address(), "POST", CHAT, &header, WHOLE).await.status(), 200);
    let engine = Engine::start(EngineOptions { faults_by_header: true, ..EngineOptions::default() }).unwrap();
    assert_eq!(send(engine.address(), "POST", CHAT, &header, WHOLE).await.status(), 418);
    let typo = ["x-mock-fault: typo"];
    assert_eq!(send(engine.address(), "POST", CHAT, &typo, WHOLE).await.status(), 400);
}
