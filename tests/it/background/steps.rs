//! From a prompt to what is done about it, step by step.

use super::{Service, found_at, job};
use kvway::state::inbox::{Found, Job, Prompt};
use kvway::state::tokens::PromptKey;
use mocks::{ControllerOptions, Fault};
use serde_json::json;
use tokio::time::Instant;

const STEPS: [&str; 3] = ["/tokenize", "/lookup", "/pin"];

fn refuse(status: u16) -> Fault {
    Fault::Status { code: status, retry_after: None }
}

#[tokio::test]
async fn a_prompt_is_tokenized_looked_up_and_pinned_where_it_is() {
    let service = Service::new();
    service.run(job(1, "hello")).await;
    assert_eq!(STEPS.map(|path| service.calls(path)), [1, 1, 1]);
    let tokens = service.tokens.peek(PromptKey(1), Instant::now()).unwrap().to_vec();
    assert!(!tokens.is_empty());
    assert_eq!(service.bodies("/lookup"), [json!({"tokens": tokens})]);
    let pin = json!({"tokens": tokens, "instance_id": "a", "location": "LocalCPUBackend"});
    assert_eq!(service.bodies("/pin"), [pin]);
    assert_eq!(service.engine.received()[0].body, r#"{"model":"tiny","prompt":"hello"}"#);
    assert_eq!(service.ended("done"), 1);
    assert_eq!(service.count("tokenizer_calls_total", "outcome=ok"), 1);
    assert_eq!(service.count("lookups_total", "by=background,outcome=match"), 1);
    assert_eq!(service.count("actions_total", "action=pin,outcome=ok"), 1);
    assert_eq!((service.inbox.bytes(), service.lifecycle.in_flight()), (0, 0));
}

#[tokio::test]
async fn remembered_tokens_are_not_asked_for() {
    let service = Service::new();
    service.tokens.insert(PromptKey(1), vec![7, 8].into(), Instant::now());
    service.run(job(1, "hello")).await;
    assert_eq!(STEPS.map(|path| service.calls(path)), [0, 1, 1]);
    assert_eq!(service.bodies("/lookup"), [json!({"tokens": [7, 8]})]);
    let counted = ["token_cache_hits_total", "token_cache_misses_total"].map(|name| service.count(name, ""));
    assert_eq!(counted, [0, 0], "a request counts once, and that was before");
}

#[tokio::test]
async fn without_a_token_cache_tokens_are_only_used() {
    let service = Service::with(|section| section.token_cache.enabled = false);
    service.tokens.insert(PromptKey(1), vec![7, 8].into(), Instant::now());
    service.run(job(1, "hello")).await;
    service.run(job(2, "hello")).await;
    assert_eq!(STEPS.map(|path| service.calls(path)), [2, 2, 2]);
    assert_eq!(service.tokens.peek(PromptKey(2), Instant::now()), None);
}

#[tokio::test]
async fn what_the_request_found_is_not_looked_up_again() {
    let service = Service::new();
    service.run(found_at(1, "b")).await;
    assert_eq!(STEPS.map(|path| service.calls(path)), [0, 0, 1]);
    let pin = json!({"tokens": [1, 2, 3], "instance_id": "b", "location": "cpu"});
    assert_eq!(service.bodies("/pin"), [pin]);
}

#[tokio::test]
async fn a_prompt_that_nobody_can_hold_is_not_looked_up() {
    let service = Service::with(|section| section.lookup_tokens_min = 4);
    service.run(Job { found: Vec::new(), ..found_at(1, "a") }).await;
    assert_eq!((STEPS.map(|path| service.calls(path)), service.ended("short")), ([0, 0, 0], 1));
    let four = Prompt::Tokens(vec![1, 2, 3, 4].into());
    service.run(Job { found: Vec::new(), prompt: four, ..found_at(2, "a") }).await;
    assert_eq!(STEPS.map(|path| service.calls(path)), [0, 1, 1]);
}

#[tokio::test]
async fn a_tokenizer_that_fails_ends_the_job() {
    for fault in [refuse(400), refuse(503), Fault::CloseBeforeResponse, Fault::Garbage] {
        let service = Service::new();
        service.engine.fail_always_on("/tokenize", fault.clone());
        service.run(job(1, "hello")).await;
        assert_eq!(STEPS.map(|path| service.calls(path)), [1, 0, 0], "{fault:?}");
        assert_eq!((service.ended("tokenizer_failed"), service.tokens.entries()), (1, 0));
        service.engine.fail_always(None);
        service.run(job(1, "hello")).await;
        assert_eq!(service.ended("done"), 1, "and only that one");
    }
}

#[tokio::test]
async fn a_lookup_that_fails_ends_the_job() {
    for fault in [refuse(422), refuse(500), Fault::CloseBeforeResponse] {
        let service = Service::new();
        service.controller.fail_always_on("/lookup", fault.clone());
        service.run(job(1, "hello")).await;
        assert_eq!(STEPS.map(|path| service.calls(path)), [1, 1, 0], "{fault:?}");
        assert_eq!((service.ended("lookup_failed"), service.tokens.entries()), (1, 1));
    }
}

#[tokio::test]
async fn nothing_is_done_where_nothing_matches() {
    let service = Service::with_controller(ControllerOptions::default(), |_| {});
    service.run(job(1, "hello")).await;
    assert_eq!(STEPS.map(|path| service.calls(path)), [1, 1, 0]);
    assert_eq!(service.count("lookups_total", "by=background,outcome=no_match"), 1);
    assert_eq!(service.ended("done"), 1);
}

#[tokio::test]
async fn an_instance_that_is_no_backend_is_counted_and_left_alone() {
    let service = Service::new();
    service.controller.prefer(Some("stranger"));
    service.run(job(1, "hello")).await;
    service.run(found_at(2, "stranger")).await;
    assert_eq!((service.calls("/pin"), service.ended("done")), (0, 2));
    assert_eq!(service.count("unknown_instances_total", ""), 1, "the other was counted by the request");
}

#[tokio::test]
async fn a_job_whose_time_is_over_makes_no_call() {
    let service = Service::with(|section| section.request_timeout = super::LONG / 2);
    let long_ago = Instant::now();
    super::pass(super::LONG).await;
    service.run(Job { handed_over: long_ago, ..job(1, "hello") }).await;
    service.run(Job { handed_over: long_ago, ..found_at(2, "a") }).await;
    assert_eq!((STEPS.map(|path| service.calls(path)), service.ended("expired")), ([0, 0, 0], 2));
    service.run(job(3, "hello")).await;
    assert_eq!(STEPS.map(|path| service.calls(path)), [1, 1, 1]);
}

#[tokio::test]
async fn the_time_of_a_job_ends_while_the_tokenizer_is_silent() {
    let service = Service::with(|section| section.request_timeout = super::LONG / 2);
    let gate = service.engine.hold_path("/tokenize");
    service.push(job(1, "hello"));
    gate.waiting(1).await;
    super::pass(super::LONG).await;
    service.idle().await;
    assert_eq!((service.calls("/lookup"), service.ended("tokenizer_failed")), (0, 1));
    assert_eq!(service.count("tokenizer_calls_total", "outcome=timeout"), 1);
}

#[tokio::test]
async fn a_prompt_that_is_not_hot_is_not_pinned() {
    let service = Service::new();
    let found = Found { instance: "a".to_owned(), location: "cpu".to_owned(), tokens: 3 };
    service.run(Job { hot: false, found: vec![found], ..found_at(1, "a") }).await;
    assert_eq!((service.calls("/pin"), service.ended("done")), (0, 1));
}
