//! A simulated engine over HTTP: what the cache, the queue and a client's leaving look like from outside.

use mocks::{Controller, ControllerOptions, Engine, EngineOptions, Mode, SimulatedOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::client::{post, request, send};

const CHAT: &str = "/v1/chat/completions";

fn engine(simulated: SimulatedOptions) -> Engine {
    let mode = Mode::Simulated(simulated);
    Engine::start(EngineOptions { mode, cached_tokens: true, ..EngineOptions::default() }).unwrap()
}

/// A chat of one message with about `tokens` tokens.
fn chat(tokens: usize, rest: &str) -> String {
    format!(
        r#"{{"messages":[{{"role":"user","content":"{}"}}],"max_tokens":5{rest}}}"#,
        "word".repeat(tokens)
    )
}

async fn metric(engine: &Engine, name: &str) -> f64 {
    let reply = send(engine.address(), "GET", "/metrics", &[], "").await;
    let line = reply.text().lines().find(|line| line.starts_with(&format!("vllm:{name}{{"))).unwrap();
    line.rsplit_once(' ').unwrap().1.parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_second_of_two_equal_prompts_is_mostly_cached_and_quick() {
    let engine = engine(SimulatedOptions::default());
    let body = chat(3000, "");
    let timed = async || {
        let start = Instant::now();
        (post(engine.address(), CHAT, &body).await.json(), start.elapsed())
    };
    let ((first, cold), (second, warm)) = (timed().await, timed().await);
    assert_eq!(first["usage"]["prompt_tokens"], 3003);
    assert_eq!(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    assert_eq!(second["usage"]["prompt_tokens_details"]["cached_tokens"], 2992);
    assert!(cold.as_millis() >= 280 && warm.as_millis() <= 120, "{cold:?} {warm:?}");
    assert_eq!(metric(&engine, "prefix_cache_queries_total").await.to_string(), "6006");
    assert_eq!(metric(&engine, "prefix_cache_hits_total").await.to_string(), "2992");
}

#[tokio::test(start_paused = true)]
async fn a_stream_reports_its_cached_tokens_in_its_last_chunk() {
    let engine = engine(SimulatedOptions::default());
    let body = chat(64, r#","stream":true,"stream_options":{"include_usage":true}"#);
    post(engine.address(), CHAT, &body).await;
    let reply = post(engine.address(), CHAT, &body).await;
    assert!(reply.text().contains(r#""prompt_tokens_details":{"cached_tokens":64}"#), "{}", reply.text());
}

#[tokio::test(start_paused = true)]
async fn the_same_prompt_gets_the_same_text_and_another_seed_another() {
    let text = async |seed| {
        let mode = Mode::Simulated(SimulatedOptions::default());
        let engine = Engine::start(EngineOptions { mode, seed, ..EngineOptions::default() }).unwrap();
        let body = r#"{"prompt":"one two three","max_tokens":5}"#;
        post(engine.address(), "/v1/completions", body).await.json()["choices"][0]["text"].to_string()
    };
    let first = text(1).await;
    assert_eq!(first, text(1).await);
    assert_ne!(first, text(2).await);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_frees_its_place() {
    let engine = engine(SimulatedOptions { max_running: 1, ..SimulatedOptions::default() });
    let mut stream = TcpStream::connect(engine.address()).await.unwrap();
    let endless = r#"{"prompt":"x","max_tokens":100000,"stream":true}"#;
    stream.write_all(&request("POST", "/v1/completions", &[], endless)).await.unwrap();
    let mut seen = String::new();
    while !seen.contains("data: ") {
        seen.push(char::from(stream.read_u8().await.unwrap()));
    }
    assert_eq!(metric(&engine, "num_requests_running").await.to_string(), "1");
    drop(stream);
    engine.until(|stats| stats.cancelled("/v1/completions") == 1).await;
    assert_eq!(post(engine.address(), CHAT, &chat(16, "")).await.status(), 200);
    assert_eq!(metric(&engine, "num_requests_running").await.to_string(), "0");
}

#[tokio::test]
async fn a_body_that_is_no_json_is_refused() {
    let engine = engine(SimulatedOptions::default());
    let reply = post(engine.address(), CHAT, r#"{"model":"#).await;
    assert_eq!((reply.status(), reply.json()["error"]["type"].as_str()), (400, Some("Bad Request")));
    assert_eq!(post(engine.address(), CHAT, r#"{"model":"tiny"}"#).await.status(), 400);
    assert_eq!(post(engine.address(), CHAT, r#"{"max_tokens":"many"}"#).await.status(), 400);
}

#[tokio::test(start_paused = true)]
async fn an_engine_announces_its_prompts_to_the_controller() {
    let controller = Controller::start(ControllerOptions::default()).unwrap();
    let engine =
        engine(SimulatedOptions { announce: Some(controller.chunks()), ..SimulatedOptions::default() });
    let body = format!(r#"{{"prompt":"{}"}}"#, "word".repeat(600));
    post(engine.address(), "/v1/completions", &body).await;
    let tokens = post(engine.address(), "/tokenize", &body).await.json()["tokens"].take();
    let lookup = post(controller.address(), "/lookup", &format!(r#"{{"tokens":{tokens}}}"#)).await.json();
    assert_eq!(lookup["layout_info"], serde_json::json!({"vllm-0": ["LocalCPUBackend", 601]}));
}

#[tokio::test(start_paused = true)]
async fn reset_empties_the_cache() {
    let engine = engine(SimulatedOptions::default());
    let body = chat(64, "");
    post(engine.address(), CHAT, &body).await;
    post(engine.address(), "/reset", "").await;
    let again = post(engine.address(), CHAT, &body).await.json();
    assert_eq!(again["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
}
