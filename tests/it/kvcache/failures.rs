//! An LMCache that fails costs a request its hint, and nothing else.

use super::*;
use crate::world::reserve;

/// Completes a prompt of ids, which is looked up with the first request.
async fn complete(filter: &Filter, count: u32) {
    assert_eq!(filter.send(COMPLETIONS, completion(ids(count))).await, 200);
}

#[tokio::test]
async fn no_answer_of_lmcache_is_an_error_of_the_client() {
    let huge = format!("{{\"layout_info\":{{\"vllm-0\":[\"{}\",1]}}}}", "x".repeat(1024 * 1024));
    for (fault, hint, outcome) in [
        (status(500), "failed", "status"),
        (status(503), "failed", "status"),
        (status(429), "failed", "status"),
        (status(404), "failed", "status"),
        (status(302), "failed", "status"),
        (answer(422, r#"{"detail":[{"input":{"tokens":[1]}}]}"#), "failed", "status"),
        (Fault::Garbage, "failed", "broken"),
        (Fault::CloseBeforeResponse, "failed", "broken"),
        (Fault::ResetBeforeResponse, "failed", "broken"),
        (Fault::CutStreamAfter(1), "failed", "broken"),
        (answer(200, ""), "failed", "undecodable"),
        (answer(200, "null"), "failed", "undecodable"),
        (answer(200, r#"{"layout_info":{"vllm-0":"no spot"}}"#), "failed", "undecodable"),
        (answer(200, r#"{"layout_info":{"vllm-0":["cpu",-5]}}"#), "failed", "undecodable"),
        (answer(200, &huge), "failed", "too_long"),
        (layout(&json!({})), "no_match", "no_match"),
        (layout(&json!({"": ["", 3]})), "unknown_instance", "match"),
    ] {
        let case = format!("{fault:?}").chars().take(200).collect::<String>();
        let filter = Setup::new().prefer("vllm-1").start().await;
        filter.controller.fail_next_on(LOOKUP, 1, fault);
        complete(&filter, 9).await;
        filter.idle().await;
        assert_eq!(filter.hinted(), format!("{hint} 1"), "{case}");
        assert!(filter.told("lookups_total").contains(&format!("request/{outcome} 1")), "{case}");
        complete(&filter, 9).await;
        assert_eq!(filter.told("hints_total"), sorted(&["followed", hint]), "the next is followed: {case}");
    }
}

/// One of each, as a metric tells them.
fn sorted(hints: &[&str]) -> String {
    let mut told: Vec<_> = hints.iter().map(|hint| format!("{hint} 1")).collect();
    told.sort();
    told.join(", ")
}

#[tokio::test]
async fn an_lmcache_that_is_not_there_costs_the_hint_alone() {
    let (_nobody, address) = reserve();
    let endpoint = format!("\"http://{address}\"");
    let setup = Setup::new().set("lmcache_endpoint", endpoint.clone()).set("vllm_endpoint", endpoint);
    let filter = setup.start().await;
    for _ in 0..2 {
        complete(&filter, 9).await;
        filter.chat("hello").await;
    }
    assert_eq!(filter.hinted(), "failed 2, tokens_unknown 2");
    assert_eq!(filter.told("lookups_total"), "background/connect 2, request/connect 2");
    assert_eq!(filter.told("tokenizer_calls_total"), "connect 2");
}

#[tokio::test]
async fn an_lmcache_that_is_silent_is_waited_for_as_long_as_configured() {
    let filter = Setup::new().set("lookup_routing_timeout", "20ms").start().await;
    // Without jobs the lookups of requests are all there is.
    filter.hints().inbox.close();
    filter.controller.fail_always_on(LOOKUP, Fault::StallBeforeResponse);
    complete(&filter, 9).await;
    assert_eq!(filter.hinted(), "timeout 1");
    assert_eq!(filter.told("lookups_total"), "request/timeout 1");
    assert_eq!(filter.told("jobs_dropped_total"), "closed 1");
}

#[tokio::test]
async fn timeouts_open_the_breaker_and_then_nobody_waits() {
    let breaker = "{failure_threshold: 2, recovery_timeout: 10m}";
    let setup = Setup::new().set("circuit_breaker", breaker).set("lookup_routing_timeout", "20ms");
    let filter = setup.start().await;
    filter.hints().inbox.close();
    filter.controller.fail_always_on(LOOKUP, Fault::StallBeforeResponse);
    // On a slow machine a deadline may pass before the call is made, which is no failure of LMCache.
    while filter.told("breaker_state") != "lmcache 2" {
        complete(&filter, 9).await;
    }
    let calls = filter.calls(LOOKUP);
    assert!(calls <= 2, "{calls}");
    for _ in 0..2 {
        complete(&filter, 9).await;
    }
    assert_eq!(filter.calls(LOOKUP), calls);
    assert!(filter.hinted().starts_with("breaker_open 2, timeout "), "{}", filter.hinted());
}

#[tokio::test]
async fn an_open_breaker_makes_no_call_and_balances() {
    let breaker = "{failure_threshold: 1, recovery_timeout: 10m}";
    let filter = Setup::new().prefer("vllm-1").set("circuit_breaker", breaker).start().await;
    filter.controller.fail_next_on(LOOKUP, 1, status(500));
    for _ in 0..4 {
        complete(&filter, 9).await;
        filter.idle().await;
    }
    assert_eq!((filter.hinted().as_str(), filter.calls(LOOKUP)), ("breaker_open 3, failed 1", 1));
    assert_eq!(filter.world.received(COMPLETIONS), [2, 2]);
}

#[tokio::test]
async fn control_calls_that_fail_are_nothing_to_the_client() {
    for fault in [status(500), status(404), Fault::Garbage, Fault::ResetBeforeResponse] {
        let filter = Setup::new().prefer("vllm-1").start().await;
        filter.controller.fail_always_on(PIN, fault);
        complete(&filter, 9).await;
        filter.idle().await;
        assert_eq!((filter.told("jobs_total").as_str(), filter.calls(PIN)), ("action_failed 1", 1));
        complete(&filter, 9).await;
        assert_eq!(filter.hinted(), "followed 2");
    }
}
