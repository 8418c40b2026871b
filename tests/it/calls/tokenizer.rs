//! Tokenizing.

use super::{breaker_of, raw, recorded_answer, section, soon};
use bytes::Bytes;
use http::HeaderValue;
use kvway::clients::breaker::{Breaker, State};
use kvway::clients::call::{CallError, Reason};
use kvway::clients::vllm::{Tokenizer, Tokens, prompt_form};
use kvway::config::Secret;
use mocks::{Engine, EngineOptions, Fault};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const TOKENIZE: &str = "/tokenize";
const FILE: &str = "vllm-0.32.0-tokenize.txt";

struct Desk {
    engine: Engine,
    tokenizer: Tokenizer,
    breaker: Arc<Breaker>,
}

impl Desk {
    fn new(api_key: Option<&str>) -> Self {
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let engine = Engine::start(EngineOptions::default()).unwrap();
        let section = section(engine.address());
        let breaker = breaker_of(&section.circuit_breaker);
        let key: Option<Secret> = api_key.map(|key| serde_yaml::from_str(key).unwrap());
        let tokenizer = Tokenizer::new(&section, key.as_ref(), Arc::clone(&breaker)).unwrap();
        Self { engine, tokenizer, breaker }
    }

    async fn tokenize(&self) -> Result<Tokens, CallError> {
        self.tokenizer.tokenize(prompt_form("tiny", "hello world"), None, soon()).await
    }

    fn calls(&self) -> u64 {
        self.engine.stats().path(TOKENIZE).received
    }
}

/// What is made of an answer.
async fn read(answer: Fault) -> Result<Tokens, CallError> {
    let desk = Desk::new(None);
    desk.engine.fail_always_on(TOKENIZE, answer);
    desk.tokenize().await
}

#[tokio::test]
async fn a_body_is_sent_as_it_is() {
    let desk = Desk::new(None);
    let body = Bytes::from_static(
        b"{ \"model\":\"tiny\", \"messages\":[{\"role\":\"user\",\"content\":\"x\"}], \"top_k\":1}",
    );
    let tokens = desk.tokenizer.tokenize(body.clone(), None, soon()).await.unwrap();
    assert!(!tokens.is_empty());
    let received = desk.engine.received();
    assert_eq!(received[0].body, body);
    assert_eq!(received[0].header("content-type"), Some("application/json"));
    assert_eq!(received[0].header("authorization"), None);
}

#[test]
fn the_form_of_a_prompt_is_json_whatever_is_in_it() {
    let form = prompt_form("m\"", "line\nline \u{1F600}\0");
    let read: serde_json::Value = serde_json::from_slice(&form).unwrap();
    assert_eq!(read, serde_json::json!({"model": "m\"", "prompt": "line\nline \u{1F600}\0"}));
}

#[tokio::test]
async fn our_key_wins_over_the_clients() {
    let theirs = HeaderValue::from_static("Bearer theirs");
    for (ours, sent) in [(None, "Bearer theirs"), (Some("ours"), "Bearer ours")] {
        let desk = Desk::new(ours);
        desk.tokenizer.tokenize(prompt_form("tiny", "x"), Some(&theirs), soon()).await.unwrap();
        assert_eq!(desk.engine.received()[0].header("authorization"), Some(sent));
    }
}

#[tokio::test]
async fn recorded_answers_are_read() {
    let cases: [(&str, &[u32]); 6] = [
        ("tok prompt", &[0, 261, 329, 347]),
        ("tok prompt nomodel return strs", &[261, 329, 347]),
        ("tok chat", &[2, 261, 329, 347, 1, 3]),
        ("tok chat tools", &[2, 92, 1, 3]),
        ("tok empty prompt", &[0]),
        ("noauth tokenize", &[0, 261, 329]),
    ];
    for (title, tokens) in cases {
        assert_eq!(read(recorded_answer(FILE, title)).await.as_deref(), Ok(tokens), "{title}");
    }
    for (title, status) in [("tok prompt list", 400), ("tok wrong model", 404), ("noauth models", 401)] {
        let error = read(recorded_answer(FILE, title)).await.unwrap_err();
        assert_eq!(error.to_string(), format!("tokenize: status {status}"), "{title}");
        assert!(!error.is_failure());
    }
}

#[tokio::test]
async fn no_tokens_are_an_answer_and_no_list_of_tokens_is_none() {
    assert_eq!(read(raw(200, r#"{"tokens":[]}"#)).await.as_deref(), Ok(&[][..]));
    assert_eq!(read(raw(200, r#"{"tokens":[4294967295]}"#)).await.as_deref(), Ok(&[u32::MAX][..]));
    let bodies = [
        "",
        "{}",
        r#"{"tokens":null}"#,
        r#"{"tokens":[-1]}"#,
        r#"{"tokens":[4294967296]}"#,
        r#"{"tokens":["1"]}"#,
        r#"{"tokens":[1.0]}"#,
        r#"{"tokens":[1]"#,
    ];
    for body in bodies {
        assert_eq!(read(raw(200, body)).await.unwrap_err().kind(), "undecodable", "{body}");
    }
}

#[tokio::test]
async fn it_is_not_tried_again() {
    let desk = Desk::new(None);
    desk.engine.fail_always_on(TOKENIZE, Fault::Status { code: 503, retry_after: None });
    assert_eq!(desk.tokenize().await.unwrap_err().reason, Reason::Status(503));
    assert_eq!(desk.calls(), 1);
    assert_eq!(desk.tokenize().await.unwrap_err().reason, Reason::Status(503));
    assert_eq!(desk.breaker.state(Instant::now()), State::Open);
    assert_eq!(desk.tokenize().await.unwrap_err().reason, Reason::BreakerOpen);
    assert_eq!(desk.calls(), 2);
}

#[tokio::test]
async fn a_silent_engine_is_waited_for_until_the_deadline() {
    let desk = Desk::new(None);
    desk.engine.fail_always_on(TOKENIZE, Fault::StallBeforeResponse);
    let deadline = Instant::now() + Duration::from_millis(40);
    let result = desk.tokenizer.tokenize(prompt_form("tiny", "x"), None, deadline).await;
    assert_eq!(result.unwrap_err().reason, Reason::Timeout);
    assert!(Instant::now() >= deadline);
}

#[tokio::test]
async fn the_last_slash_of_an_endpoint_is_not_sent_twice() {
    let desk = Desk::new(None);
    let mut section = section(desk.engine.address());
    section.vllm_endpoint = section.vllm_endpoint.map(|url| url + "/");
    let tokenizer = Tokenizer::new(&section, None, Arc::clone(&desk.breaker)).unwrap();
    tokenizer.tokenize(prompt_form("tiny", "x"), None, soon()).await.unwrap();
    assert_eq!(desk.engine.received()[0].path_and_query, TOKENIZE);
}
