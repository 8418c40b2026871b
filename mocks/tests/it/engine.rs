//! The engine's switches, gates and books.

use std::time::Duration;

use mocks::{Engine, EngineOptions, Framing, Load, SleepState, SseOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::client::{exchange, post, read, request, send};

const CHAT: &str = "/v1/chat/completions";
const STREAM: &str = r#"{"messages":[],"stream":true,"max_tokens":2}"#;

fn engine() -> Engine {
    Engine::start(EngineOptions::default()).unwrap()
}

#[tokio::test]
async fn answers_wait_at_a_gate_before_their_headers() {
    let engine = engine();
    let gate = engine.hold_headers();
    let (reply, ()) = tokio::join!(post(engine.address(), CHAT, STREAM), async {
        gate.waiting(1).await;
        assert_eq!(engine.stats().in_flight(CHAT), 1);
        gate.release();
    });
    assert_eq!(reply.chunks.len(), 4);
}

#[tokio::test]
async fn a_stream_shows_its_headers_before_its_first_token() {
    let engine = engine();
    let gate = engine.hold_first_token();
    let mut stream = TcpStream::connect(engine.address()).await.unwrap();
    stream.write_all(&request("POST", CHAT, &[], STREAM)).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    gate.waiting(1).await;
    gate.release();
    let mut rest = String::new();
    while !rest.ends_with("0\r\n\r\n") {
        rest.push(char::from(stream.read_u8().await.unwrap()));
    }
}

#[tokio::test]
async fn a_gate_that_is_dropped_lets_go_and_health_passes_it() {
    let engine = engine();
    let gate = engine.hold_headers();
    assert_eq!(send(engine.address(), "GET", "/health", &[], "").await.status(), 200);
    drop(gate);
    assert_eq!(post(engine.address(), CHAT, STREAM).await.status(), 200);
}

#[tokio::test]
async fn a_client_that_leaves_at_a_gate_counts_as_cancelled() {
    let engine = engine();
    let gate = engine.hold_headers();
    let mut stream = TcpStream::connect(engine.address()).await.unwrap();
    stream.write_all(&request("POST", CHAT, &[], STREAM)).await.unwrap();
    gate.waiting(1).await;
    drop(stream);
    engine.until(|stats| stats.cancelled(CHAT) == 1 && stats.connections_open == 0).await;
}

#[tokio::test]
async fn a_request_is_kept_as_it_came() {
    let engine = engine();
    let mut stream = TcpStream::connect(engine.address()).await.unwrap();
    exchange(&mut stream, "POST", "/v1/chat/completions?a=1", &["X-Mixed-Case: Kept", "x-two: 2"], "abc")
        .await;
    let chunked =
        b"POST /v1/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n";
    stream.write_all(chunked).await.unwrap();
    read(&mut stream).await.unwrap();
    let received = engine.received();
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(received.iter().map(|it| it.body_sha256.as_str()).collect::<Vec<_>>(), [abc, abc]);
    assert_eq!(
        received.iter().map(|it| it.framing).collect::<Vec<_>>(),
        [Framing::ContentLength, Framing::Chunked]
    );
    assert_eq!(received[0].path_and_query, "/v1/chat/completions?a=1");
    assert_eq!(received[0].headers[1], ("X-Mixed-Case".to_owned(), "Kept".to_owned()));
    assert!(
        received[0].head.starts_with(b"POST /v1/chat/completions?a=1 HTTP/1.1\r\nhost: mock\r\nX-Mixed-Case")
    );
    assert_eq!((received[0].body_bytes, received[0].connection_id), (3, 1));
    assert_eq!(received[1].connection_id, 1);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let engine = engine();
    let mut stream = TcpStream::connect(engine.address()).await.unwrap();
    let both = [request("GET", "/version", &[], ""), request("GET", "/load", &[], "")].concat();
    stream.write_all(&both).await.unwrap();
    assert_eq!(read(&mut stream).await.unwrap().text(), r#"{"version":"0.32.0"}"#);
    assert_eq!(read(&mut stream).await.unwrap().text(), r#"{"server_load":0}"#);
}

#[tokio::test]
async fn an_engine_stops_at_once_and_starts_again_at_its_address() {
    let engine = engine();
    let address = engine.address();
    let gate = engine.hold_headers();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&request("POST", CHAT, &[], STREAM)).await.unwrap();
    gate.waiting(1).await;
    engine.stop().await;
    assert!(read(&mut stream).await.is_none());
    assert!(TcpStream::connect(address).await.is_err());
    let engine = Engine::start_at(address, EngineOptions::default()).unwrap();
    assert_eq!(post(engine.address(), CHAT, STREAM).await.status(), 200);
}

#[tokio::test]
async fn a_large_stream_arrives_whole() {
    let sse = SseOptions { events: 1024, event_padding_bytes: 64 * 1024, ..SseOptions::default() };
    let engine = Engine::start(EngineOptions { sse, ..EngineOptions::default() }).unwrap();
    let reply = post(engine.address(), CHAT, r#"{"messages":[],"stream":true}"#).await;
    assert_eq!((reply.chunks.len(), reply.complete), (1026, true));
    assert!(reply.body.len() > 64 * 1024 * 1024);
}

#[tokio::test(start_paused = true)]
async fn a_gap_lies_between_two_tokens() {
    let sse = SseOptions { gap: Duration::from_millis(200), ..SseOptions::default() };
    let engine = Engine::start(EngineOptions { sse, ..EngineOptions::default() }).unwrap();
    let start = tokio::time::Instant::now();
    post(engine.address(), CHAT, r#"{"messages":[],"stream":true,"max_tokens":6}"#).await;
    assert_eq!(start.elapsed().as_millis() / 100, 10);
}

#[tokio::test]
async fn health_follows_its_switch() {
    let engine = engine();
    engine.set_health(false);
    let reply = send(engine.address(), "GET", "/health", &[], "").await;
    assert_eq!((reply.status(), reply.body.len()), (503, 0));
}

#[tokio::test]
async fn a_sleeping_engine_is_healthy_and_silent() {
    let engine = engine();
    engine.set_sleep(SleepState::WeightsOffloaded);
    let metrics = send(engine.address(), "GET", "/metrics", &[], "").await;
    assert!(metrics.text().contains("model_name=\"tiny\",sleep_state=\"weights_offloaded\"} 1.0"));
    assert_eq!(send(engine.address(), "GET", "/health", &[], "").await.status(), 200);
    let (reply, ()) = tokio::join!(post(engine.address(), CHAT, STREAM), async {
        engine.until(|stats| stats.in_flight(CHAT) == 1).await;
        engine.set_sleep(SleepState::Awake);
    });
    assert_eq!(reply.status(), 200);
}

#[tokio::test]
async fn a_pretended_load_shows_on_the_metrics() {
    let engine = engine();
    engine.pretend_load(Some(Load { running: 7, waiting: 3, kv_cache_usage: 0.25 }));
    let metrics = send(engine.address(), "GET", "/metrics", &[], "").await;
    for line in ["num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"]
        .into_iter()
        .zip([7.0, 3.0, 0.25])
    {
        let line = format!("vllm:{}{{engine=\"0\",model_name=\"tiny\"}} {:?}", line.0, line.1);
        assert!(metrics.text().contains(&line), "{line}");
    }
}

#[tokio::test]
async fn the_engine_says_who_it_is_where_that_is_on() {
    let options = EngineOptions {
        id: "vllm-7".into(),
        served_by: true,
        served_by_in_body: true,
        ..EngineOptions::default()
    };
    let engine = Engine::start(options).unwrap();
    let reply = post(engine.address(), CHAT, "{}").await;
    assert_eq!(reply.header("x-served-by"), Some("vllm-7"));
    assert_eq!(reply.json()["served_by"], "vllm-7");
}

#[tokio::test]
async fn tokenizing_can_be_absent() {
    let engine = Engine::start(EngineOptions { tokenize: false, ..EngineOptions::default() }).unwrap();
    assert_eq!(post(engine.address(), "/tokenize", r#"{"prompt":"a"}"#).await.status(), 404);
}

#[tokio::test]
async fn every_dialect_answers_whole_and_streamed() {
    let engine = engine();
    for path in ["/v1/completions", CHAT, "/v1/responses", "/v1/messages"] {
        assert!(post(engine.address(), path, r#"{"max_tokens":3}"#).await.json()["id"].is_string(), "{path}");
        let body = r#"{"max_tokens":3,"stream":true,"stream_options":{"include_usage":true}}"#;
        let reply = post(engine.address(), path, body).await;
        let data = reply.text().lines().filter_map(|line| line.strip_prefix("data: "));
        let parsed: Vec<_> =
            data.filter(|data| *data != "[DONE]").map(serde_json::from_str::<serde_json::Value>).collect();
        assert!(parsed.len() > 3 && parsed.iter().all(Result::is_ok), "{path} {parsed:?}");
    }
    for (path, body) in
        [("/v1/embeddings", r#"{"input":"a"}"#), ("/rerank", r#"{"query":"a","documents":["b","c"]}"#)]
    {
        assert_eq!(post(engine.address(), path, body).await.json()["model"], "tiny", "{path}");
    }
}

#[tokio::test]
async fn reset_forgets_what_was() {
    let engine = engine();
    post(engine.address(), CHAT, STREAM).await;
    post(engine.address(), "/reset", "").await;
    assert_eq!(engine.stats().path(CHAT).received, 0);
    let stats = send(engine.address(), "GET", "/stats", &[], "").await.json();
    assert_eq!(stats["paths"]["/stats"]["in_flight"], 1);
}

#[tokio::test]
async fn a_unix_socket_is_served_as_well() {
    let engine = engine();
    let path =
        std::env::temp_dir().join(format!("mock-{}-{}.sock", std::process::id(), engine.address().port()));
    engine.listen_unix(&path).unwrap();
    let mut stream = UnixStream::connect(&path).await.unwrap();
    std::fs::remove_file(&path).unwrap();
    stream.write_all(b"GET /version HTTP/1.1\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert!(text.ends_with(r#"{"version":"0.32.0"}"#));
}

#[tokio::test]
async fn a_continue_is_given_to_who_waits_for_it() {
    let engine = engine();
    let mut stream = TcpStream::connect(engine.address()).await.unwrap();
    let head = format!("POST {CHAT} HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    assert!(read(&mut stream).await.unwrap().status_line.contains("100 Continue"));
    stream.write_all(b"{}").await.unwrap();
    assert_eq!(read(&mut stream).await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_where_that_is_on() {
    let keep_alive = Some(Duration::from_secs(5));
    let engine = Engine::start(EngineOptions { keep_alive, ..EngineOptions::default() }).unwrap();
    let mut stream = TcpStream::connect(engine.address()).await.unwrap();
    assert!(exchange(&mut stream, "GET", "/health", &[], "").await.is_some());
    let start = tokio::time::Instant::now();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(start.elapsed().as_secs(), 5);
}

#[tokio::test]
async fn what_is_no_http_is_refused_and_counted() {
    let engine = engine();
    for bytes in
        ["GET /version HTTP/1.1\r\nbad header\r\n\r\n", "POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n"]
    {
        let mut stream = TcpStream::connect(engine.address()).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        assert_eq!(read(&mut stream).await.unwrap().status(), 400);
    }
    let stats = engine.stats();
    assert_eq!((stats.refused, stats.path("/").failed), (2, 1));
}
