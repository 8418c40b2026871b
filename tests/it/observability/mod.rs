//! What an operator sees: metrics and access log tell what happened, in a bounded number of series, and no secret.

mod injection;
mod secrets;

use crate::clients::Http2;
use crate::streams::{Actor, chunk, h2_chat};
use crate::world::{Plan, World, chat, reserve, stream_of};
use mocks::{EngineOptions, Fault};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const CHAT: &str = "/v1/chat/completions";
const OVERLOADED: Fault = Fault::Status { code: 503, retry_after: None };

async fn world(engines: usize, sections: &str) -> World {
    World::with(Plan {
        engines: vec![EngineOptions::default(); engines],
        sections: sections.to_owned(),
        ..Plan::default()
    })
    .await
}

/// The metric `kvway_{name}` in whole numbers.
fn count(world: &World, series: &str) -> u64 {
    let value = world.metric(&format!("kvway_{series}"));
    assert!(value.fract().abs() < f64::EPSILON && value >= 0.0, "{value}");
    format!("{value:.0}").parse().unwrap()
}

/// Sends bytes on a connection of their own and reads what comes until the other side closes.
async fn raw(world: &World, request: &[u8]) -> String {
    let mut socket = TcpStream::connect(world.address).await.unwrap();
    socket.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    // A reset after the answer is as good as an end.
    let _end = socket.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_stream_with_usage_is_told_with_its_tokens() {
    let (actor, world) = Actor::new("").await;
    let request = world.client.post(world.url(CHAT)).header("x-request-id", "stream-1").json(&stream_of(3));
    let (response, mut socket) = tokio::join!(request.send(), actor.start_stream());
    let mut response = response.unwrap();
    let usage = r#"data: {"choices":[],"usage":{"prompt_tokens":50,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":48}}}"#;
    for event in ["data: a", "data: b", "data: c", usage, "data: [DONE]"] {
        let event = format!("{event}\n\n");
        socket.write_all(&chunk(event.as_bytes())).await.unwrap();
        assert_eq!(response.chunk().await.unwrap().unwrap(), event);
    }
    socket.write_all(b"0\r\n\r\n").await.unwrap();
    assert_eq!(response.chunk().await.unwrap(), None);
    world.idle().await;
    let tokens = |kind: &str| count(&world, &format!(r#"tokens_total{{cluster="llama",kind="{kind}"}}"#));
    assert_eq!((tokens("prompt"), tokens("cached"), tokens("completion")), (50, 48, 3));
    let backend = r#"{backend="actor",cluster="llama"}"#;
    assert_eq!(count(&world, &format!("first_token_seconds_count{backend}")), 1);
    assert_eq!(count(&world, &format!("token_gap_seconds_count{backend}")), 4, "five events, four gaps");
    assert_eq!(count(&world, r#"requests_total{cluster="llama",code="200"}"#), 1);
    assert_eq!(count(&world, r#"request_seconds_count{cluster="llama"}"#), 1);
    let entry = world.last_entry().await;
    for (key, value) in [
        ("request_id", json!("stream-1")),
        ("client", json!("127.0.0.1")),
        ("protocol", json!("HTTP/1.1")),
        ("method", json!("POST")),
        ("path", json!(CHAT)),
        ("status", json!(200)),
        ("outcome", json!("complete")),
        ("cluster", json!("llama")),
        ("model", json!("tiny")),
        ("backend", json!("actor")),
        ("reason", json!("round_robin")),
        ("tries", json!(1)),
        ("retried", json!([])),
        ("body_bytes", json!(stream_of(3).to_string().len())),
        ("prompt_tokens", json!(50)),
        ("cached_tokens", json!(48)),
        ("completion_tokens", json!(3)),
    ] {
        assert_eq!(entry[key], value, "{key}");
    }
    let (first, total) = (&entry["first_token_ms"], &entry["total_ms"]);
    assert!(first.as_f64().unwrap() <= total.as_f64().unwrap());
    assert!(entry["time"].as_str().unwrap().ends_with('Z'));
}

#[tokio::test]
async fn the_tokens_of_every_endpoint_are_counted() {
    let engine = EngineOptions { cached_tokens: true, ..EngineOptions::default() };
    let world = World::with(Plan { engines: vec![engine], ..Plan::default() }).await;
    for (path, stream) in [
        (CHAT, false),
        (CHAT, true),
        ("/v1/completions", false),
        ("/v1/completions", true),
        ("/v1/responses", false),
        ("/v1/responses", true),
        ("/v1/messages", false),
        ("/v1/messages", true),
    ] {
        let mut body = stream_of(7);
        body["stream"] = stream.into();
        body["prompt"] = "hello".into();
        let request = world.client.post(world.url(path)).json(&body);
        drop(request.send().await.unwrap().bytes().await.unwrap());
    }
    for entry in world.access_log().await {
        assert_eq!(entry["completion_tokens"], 7, "{entry}");
        assert!(entry["prompt_tokens"].as_u64().unwrap() > 0, "{entry}");
    }
}

#[tokio::test]
async fn a_retry_is_told_with_its_cause() {
    let world = world(2, "").await;
    world.engines[0].fail_always(Some(OVERLOADED));
    for _ in 0..2 {
        assert_eq!(world.chat().await.status(), 200);
    }
    world.idle().await;
    let failed = world.engines[0].stats().path(CHAT).received;
    let tried = |at: usize, outcome: &str| {
        let address = world.engines[at].address();
        count(
            &world,
            &format!(
                r#"upstream_requests_total{{address="{address}",backend="vllm-{at}",cluster="llama",outcome="{outcome}"}}"#
            ),
        )
    };
    assert_eq!((tried(0, "503"), tried(1, "200")), (failed, 2));
    assert_eq!(count(&world, r#"retries_total{cause="503",cluster="llama"}"#), failed);
    assert_eq!(count(&world, r#"requests_total{cluster="llama",code="200"}"#), 2);
    assert_eq!(count(&world, r#"requests_total{cluster="llama",code="503"}"#), 0);
    let log = world.access_log().await;
    let repeated = log.iter().find(|entry| entry["tries"] == 2).unwrap();
    assert_eq!(repeated["retried"], json!(["503"]));
    assert_eq!((&repeated["status"], &repeated["backend"]), (&json!(200), &json!("vllm-1")));
}

#[tokio::test]
async fn a_rejected_body_is_told() {
    let world = world(1, "limits: {body_bytes_max: 1KiB}").await;
    let request = world.client.post(world.url(CHAT)).json(&chat(&"x".repeat(2000)));
    assert_eq!(request.send().await.unwrap().status(), 413);
    world.idle().await;
    assert_eq!(count(&world, r#"rejected_total{reason="body_too_large"}"#), 1);
    assert_eq!(count(&world, r#"requests_total{cluster="",code="413"}"#), 1);
    let entry = world.last_entry().await;
    assert_eq!(
        (&entry["status"], &entry["outcome"], &entry["tries"]),
        (&json!(413), &json!("body_too_large"), &json!(0))
    );
    assert!(entry["cluster"].is_null() && entry["backend"].is_null() && entry["first_token_ms"].is_null());
}

#[tokio::test]
async fn a_client_that_left_is_told_by_what_it_had_been_sent() {
    let world = world(1, "").await;
    let gate = world.engines[0].hold_headers();
    let request = world.client.post(world.url(CHAT)).json(&stream_of(5)).send();
    tokio::select! {
        _ = request => panic!("the answer is held"),
        () = gate.waiting(1) => {}
    }
    world.engines[0].until(|stats| stats.cancelled(CHAT) == 1).await;
    gate.release();
    world.engines[0].fail_next(1, Fault::StallAfter(2));
    let request = world.client.post(world.url(CHAT)).json(&stream_of(5));
    let mut response = request.send().await.unwrap();
    assert!(response.chunk().await.unwrap().is_some());
    drop(response);
    world.engines[0].until(|stats| stats.cancelled(CHAT) == 2).await;
    world.idle().await;
    for code in ["499", "200"] {
        let series = format!(r#"requests_total{{cluster="llama",code="{code}"}}"#);
        assert_eq!(count(&world, &series), 1, "{code}");
    }
    assert_eq!(count(&world, r#"rejected_total{reason="bad_request"}"#), 0);
    let log = world.access_log().await;
    let told: Vec<_> = log
        .iter()
        .map(|entry| (entry["status"].as_u64().unwrap(), entry["outcome"].as_str().unwrap()))
        .collect();
    assert_eq!(told, [(499, "client_gone"), (200, "client_gone")]);
    assert_eq!(log[0]["answer_bytes"], 0);
    assert!(log[1]["answer_bytes"].as_u64().unwrap() > 0);
}

#[tokio::test]
async fn a_backend_that_broke_off_is_told() {
    let world = world(1, "").await;
    world.engines[0].fail_next(1, Fault::CutStreamAfter(2));
    let request = world.client.post(world.url(CHAT)).json(&stream_of(5));
    assert!(request.send().await.unwrap().bytes().await.is_err());
    world.idle().await;
    assert_eq!(count(&world, r#"requests_total{cluster="llama",code="200"}"#), 1);
    let entry = world.last_entry().await;
    assert_eq!(
        (&entry["status"], &entry["outcome"], &entry["backend"]),
        (&json!(200), &json!("backend_broke_off"), &json!("vllm-0"))
    );
}

#[tokio::test]
async fn the_state_and_the_gauges_show_what_runs() {
    let world = world(1, "").await;
    let gate = world.engines[0].hold_headers();
    let check = async {
        gate.waiting(1).await;
        let bytes = chat("hello").to_string().len() as u64;
        let backend = r#"{backend="vllm-0",cluster="llama"}"#;
        assert_eq!(count(&world, &format!("backend_healthy{backend}")), 1);
        assert_eq!(count(&world, &format!("backend_requests_in_flight{backend}")), 1);
        assert_eq!(count(&world, &format!("backend_pending_tokens{backend}")), bytes / 4);
        let gauges = ["buffered_bytes", "requests_in_flight", "connections"];
        assert_eq!(gauges.map(|name| count(&world, name)), [bytes, 1, 1]);
        let state = world.app.admin().respond(&http::Method::GET, "/state", None);
        let state: Value = serde_json::from_slice(state.body()).unwrap();
        let backend = &state["clusters"][0]["backends"][0];
        assert_eq!((&state["requests_in_flight"], &backend["id"]), (&json!(1), &json!("vllm-0")));
        assert_eq!(backend["pending_tokens"], json!(bytes / 4));
        gate.release();
    };
    let (response, ()) = tokio::join!(world.chat(), check);
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn the_id_of_the_answer_is_the_one_in_the_log() {
    let world = world(1, "limits: {body_bytes_max: 1KiB}").await;
    let mut ids = Vec::new();
    for (given, bytes) in
        [(None, 1), (Some("mine-1"), 1), (Some("not \"harmless\""), 1), (Some("mine-2"), 5000), (None, 5000)]
    {
        let mut request = world.client.post(world.url(CHAT)).json(&chat(&"x".repeat(bytes)));
        if let Some(id) = given {
            request = request.header("x-request-id", id);
        }
        let response = request.send().await.unwrap();
        let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
        if let Some(given) = given.filter(|id| id.starts_with("mine")) {
            assert_eq!(id, given);
        }
        ids.push(id);
    }
    let log = world.access_log().await;
    let logged: Vec<&str> = log.iter().map(|entry| entry["request_id"].as_str().unwrap()).collect();
    assert_eq!(logged, ids);
    assert!(ids.iter().all(|id| !id.contains('"')));
}

#[tokio::test]
async fn the_bytes_of_every_answer_are_logged() {
    let world = world(1, "limits: {body_bytes_max: 1KiB}").await;
    let mut http2 = Http2::connect(world.address).await;
    let mut bytes = Vec::new();
    for body in [chat("short"), stream_of(100), chat(&"x".repeat(5000))] {
        let request = world.client.post(world.url(CHAT)).json(&body);
        let response = request.send().await.unwrap();
        bytes.push(response.bytes().await.unwrap().len());
        let mut body = h2_chat(&mut http2, &body).await.unwrap().into_body();
        let mut count = 0;
        while let Some(data) = body.data().await {
            count += data.unwrap().len();
        }
        bytes.push(count);
    }
    let log = world.access_log().await;
    let logged: Vec<usize> =
        log.iter().map(|entry| entry["answer_bytes"].as_u64().unwrap().try_into().unwrap()).collect();
    assert_eq!(logged, bytes);
    assert!(log.iter().all(|entry| entry["answer_bytes"] != 0));
}

#[tokio::test]
async fn nothing_that_a_client_or_a_backend_says_makes_a_series_of_its_own() {
    let world = world(1, "").await;
    assert_eq!(world.chat().await.status(), 200);
    world.idle().await;
    let before = world.metrics().lines().count();
    for number in 0..400_u16 {
        let code = 400 + number % 200;
        let mut body = String::new();
        write!(body, r#"{{"model":"model-{number}","messages":[]}}"#).unwrap();
        world.engines[0].fail_next_on(
            &format!("/v1/path-{number}"),
            1,
            Fault::Status { code, retry_after: Some(1) },
        );
        let request = world.client.post(world.url(&format!("/v1/path-{number}"))).body(body);
        assert_eq!(request.send().await.unwrap().status(), code);
    }
    world.idle().await;
    let after = world.metrics();
    let added = after.lines().count() - before;
    assert!(added < 50, "{added} lines more:\n{after}");
    assert!(!after.contains("model-1") && !after.contains("path-1"));
}
