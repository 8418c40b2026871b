//! A real vLLM: the gateway's tokenizer client at its `/tokenize`, and the gateway before it.

use super::controller::{Controller, controller};
use super::engine::{RealEngine, engine};
use super::process::look_until;
use crate::world::{Plan, World, chat, until};
use kvway::clients::breaker::Breaker;
use kvway::clients::call::{CallError, Reason};
use kvway::clients::vllm::{Tokenizer, prompt_form};
use kvway::config::{CircuitBreaker, KvCache};
use mocks::{Engine, EngineOptions};
use prometheus::{IntCounterVec, Opts};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Longer than any answer takes that comes at all.
const LONG: Duration = Duration::from_mins(1);
/// As many tokens as fit beside a short prompt.
const TOKENS_MAX: u32 = 1900;
const BLOCK_TOKENS: u64 = 128;

fn tokenizer(engine: &RealEngine) -> Tokenizer {
    let section = KvCache {
        enabled: true,
        vllm_endpoint: Some(format!("http://{}", engine.address())),
        request_timeout: LONG,
        ..KvCache::default()
    };
    let transitions =
        IntCounterVec::new(Opts::new("transitions", "of breakers"), &["cluster", "breaker", "state"]);
    let breaker = Breaker::new("tokenizer", "chat", &CircuitBreaker::default(), transitions.unwrap());
    Tokenizer::new(&section, None, Arc::new(breaker)).unwrap()
}

async fn tokenize(engine: &RealEngine, body: &Value) -> Result<Vec<u32>, CallError> {
    let answer = tokenizer(engine).tokenize(body.to_string().into(), None, Instant::now() + LONG).await;
    answer.map(|tokens| tokens.to_vec())
}

/// A gateway with the KV-cache filter before the engine, whose instance of LMCache has this name, and a mock.
async fn gateway_with_filter(
    engine: &RealEngine,
    mock: &Engine,
    controller: &Controller,
    instance: &str,
) -> World {
    let cluster = format!(
        "policy: lmcache_only\ndecision_header: true\nkvcache: {{enabled: true, vllm_endpoint: \"http://{}\", \
         lmcache_endpoint: \"{}\", request_timeout: 1m, lookup_routing_timeout: 1m, token_cache: {{enabled: true}}}}",
        engine.address(),
        controller.endpoint(),
    );
    let more = vec![
        format!(r#"id: mock, address: "{}""#, mock.address()),
        format!(r#"id: real, address: "{}", lmcache_instance_id: {instance}"#, engine.address()),
    ];
    World::with(Plan { engines: vec![], more, cluster, ..Plan::default() }).await
}

/// A gateway whose only backend is the engine.
async fn gateway(engine: &RealEngine) -> World {
    let backend = format!(r#"id: vllm-0, address: "{}""#, engine.address());
    World::with(Plan { engines: vec![], more: vec![backend], ..Plan::default() }).await
}

/// A text of about 1 000 tokens that no other test sends.
fn long_text(test: &str) -> String {
    format!("{test}: {}", "The quick brown fox. ".repeat(100))
}

#[tokio::test]
#[ignore = "needs a real vLLM: make test-vllm"]
async fn a_prompt_is_tokenized_with_its_special_token() {
    let engine = engine().await;
    assert_eq!(
        tokenize(&engine, &json!({"model": "tiny", "prompt": "hello world"})).await,
        Ok(vec![0, 261, 329, 347])
    );
    let form =
        tokenizer(&engine).tokenize(prompt_form("tiny", "hello world"), None, Instant::now() + LONG).await;
    assert_eq!(&form.unwrap()[..], [0, 261, 329, 347]);
}

#[tokio::test]
#[ignore = "needs a real vLLM: make test-vllm"]
async fn a_conversation_is_tokenized_as_it_is_generated_from() {
    let engine = engine().await;
    let chat = json!({
        "model": "tiny",
        "messages": [{"role": "system", "content": "hello"}, {"role": "user", "content": "hello world"}],
        "max_tokens": 1, "temperature": 0, "stream": false, "unknown_to_vllm": 1,
    });
    let tokens = tokenize(&engine, &chat).await.unwrap();
    let answer: Value = engine.post("/v1/chat/completions", &chat).await.json().await.unwrap();
    assert_eq!(answer["usage"]["prompt_tokens"], tokens.len(), "{answer}");
    assert_eq!(tokens, [4, 261, 329, 1, 2, 261, 329, 347, 1, 3]);
}

#[tokio::test]
#[ignore = "needs a real vLLM: make test-vllm"]
async fn what_is_not_a_single_text_is_not_tokenized() {
    let engine = engine().await;
    for body in [json!({"prompt": ["a", "b"]}), json!({"prompt": [1, 2]}), json!({"messages": 1}), json!({})]
    {
        let refused = tokenize(&engine, &body).await.unwrap_err();
        assert_eq!(refused.reason, Reason::Status(400), "{body}");
        assert!(!refused.is_failure(), "{body}: of the request, not of the engine");
    }
    let refused = tokenize(&engine, &json!({"model": "absent", "prompt": "a"})).await.unwrap_err();
    assert_eq!(refused.reason, Reason::Status(404));
}

#[tokio::test]
#[ignore = "needs a real vLLM: make test-vllm"]
async fn a_stream_passes_whole() {
    let engine = engine().await;
    let gateway = gateway(&engine).await;
    let body = json!({
        "model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 20, "ignore_eos": true,
        "temperature": 0, "stream": true, "stream_options": {"include_usage": true},
    });
    let answer = gateway.client.post(gateway.url("/v1/chat/completions")).json(&body).send().await.unwrap();
    assert!(answer.status().is_success());
    assert_eq!(answer.headers()["content-type"], "text/event-stream; charset=utf-8");
    let text = answer.text().await.unwrap();
    let events: Vec<&str> = text.split("\n\n").filter(|event| !event.is_empty()).collect();
    assert_eq!(events.last(), Some(&"data: [DONE]"));
    let usage: Value = serde_json::from_str(events[events.len() - 2].trim_start_matches("data: ")).unwrap();
    assert_eq!(usage["usage"]["completion_tokens"], 20, "{usage}");
    let entry = gateway.last_entry().await;
    assert_eq!((&entry["status"], &entry["completion_tokens"]), (&json!(200), &json!(20)), "{entry}");
}

#[tokio::test]
#[ignore = "needs a real vLLM: make test-vllm"]
async fn the_second_of_two_equal_prompts_is_cached() {
    let engine = engine().await;
    let gateway = gateway(&engine).await;
    let body = json!({"model": "tiny", "prompt": long_text("cached"), "max_tokens": 1, "temperature": 0});
    let mut cached = Vec::new();
    for _ in 0..2 {
        let answer = gateway.client.post(gateway.url("/v1/completions")).json(&body).send().await.unwrap();
        let answer: Value = answer.json().await.unwrap();
        let usage = &answer["usage"];
        cached.push((
            usage["prompt_tokens"].as_u64(),
            usage["prompt_tokens_details"]["cached_tokens"].as_u64(),
        ));
    }
    let (prompt, second) = (cached[1].0.unwrap(), cached[1].1.unwrap());
    assert_eq!(cached[0].1.unwrap_or(0), 0);
    assert_eq!(second, (prompt - 1) / BLOCK_TOKENS * BLOCK_TOKENS, "all whole blocks of {prompt} tokens");
}

#[tokio::test]
#[ignore = "needs a real vLLM: make test-vllm"]
async fn a_client_that_leaves_ends_the_generation() {
    const RUNNING: &str = "vllm:num_requests_running{";
    const GENERATED: &str = "vllm:generation_tokens_total{";
    let engine = engine().await;
    let gateway = gateway(&engine).await;
    let before = engine.metric(GENERATED).await;
    let body = json!({
        "model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": TOKENS_MAX,
        "ignore_eos": true, "stream": true,
    });
    let mut answer =
        gateway.client.post(gateway.url("/v1/chat/completions")).json(&body).send().await.unwrap();
    assert!(answer.chunk().await.unwrap().is_some());
    look_until(async || engine.metric(RUNNING).await > 0.0).await;
    drop(answer);
    look_until(async || engine.metric(RUNNING).await < 1.0).await;
    let generated = engine.metric(GENERATED).await - before;
    assert!(generated < f64::from(TOKENS_MAX), "{generated} tokens were generated for nobody");
    assert_eq!(gateway.last_entry().await["outcome"], "client_gone");
}

#[tokio::test]
#[ignore = "needs a real vLLM: make test-vllm"]
async fn what_a_real_engine_tokenizes_a_real_controller_finds() {
    const DONE: &str = r#"kvway_kvcache_jobs_total{cluster="llama",outcome="done"}"#;
    let (engine, controller) = (engine().await, controller().await);
    let mock = Engine::start(EngineOptions::default()).unwrap();
    let gateway = gateway_with_filter(&engine, &mock, &controller, "real-engine").await;
    for (path, body) in [
        ("/v1/completions", json!({"model": "tiny", "prompt": long_text("found"), "max_tokens": 1})),
        ("/v1/chat/completions", chat(&long_text("found in a chat"))),
    ] {
        let tokens = tokenize(&engine, &body).await.unwrap();
        controller.instance("real-engine", std::slice::from_ref(&tokens)).await;
        let before = gateway.metric(DONE);
        let ask = || async { gateway.client.post(gateway.url(path)).json(&body).send().await.unwrap() };
        ask().await.bytes().await.unwrap();
        until(|| gateway.metric(DONE) > before).await;
        for _ in 0..3 {
            let answer = ask().await;
            // What was found is all of it. How much of that is believed falls, since the engine reports whole blocks alone.
            let told = answer.headers()["x-kvway-decision"].to_str().unwrap().to_owned();
            let believed = told.strip_prefix("real; reason=lmcache; hint=followed; matched_tokens=");
            let believed: usize = believed.and_then(|tokens| tokens.parse().ok()).expect(&told);
            assert!((1..tokens.len()).contains(&believed), "{path}: {believed} of {}", tokens.len());
            let found = &gateway.app.decisions.newest_first()[0].hint.matches;
            assert_eq!(found.iter().map(|found| found.tokens).collect::<Vec<_>>(), [tokens.len()], "{path}");
            let answer: Value = answer.json().await.unwrap();
            assert_eq!(answer["usage"]["prompt_tokens"], tokens.len(), "{path}");
        }
    }
    let calls = r#"kvway_kvcache_tokenizer_calls_total{cluster="llama",outcome="ok"} 2"#;
    assert!(gateway.metrics().lines().any(|line| line == calls), "one call for each prompt");
}
