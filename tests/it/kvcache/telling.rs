//! What the filter tells of its work: in the access log, in a header where that is wanted, in the metrics.

use super::*;

const DECISION: &str = "x-kvway-decision";

fn told_in_header(response: &reqwest::Response) -> Option<&str> {
    let mut values = response.headers().get_all(DECISION).iter();
    let value = values.next().map(|value| value.to_str().unwrap());
    assert_eq!(values.next(), None, "told once");
    value
}

async fn ask(filter: &Filter, body: String) -> reqwest::Response {
    let response = filter.request(COMPLETIONS, body).send().await.unwrap();
    filter.idle().await;
    response
}

#[tokio::test]
async fn the_header_tells_the_backend_the_reason_and_the_hint_where_it_is_wanted() {
    let policy = "policy: lmcache_only\ndecision_header: true";
    let filter = Setup::new().cluster(policy).one_engine().prefer("vllm-0").start().await;
    for (body, expected) in [
        (completion("hello"), "vllm-0; reason=round_robin; hint=tokens_unknown"),
        (completion("hello"), "vllm-0; reason=lmcache; hint=followed; matched_tokens=3"),
        (completion(ids(9)), "vllm-0; reason=lmcache; hint=followed; matched_tokens=9"),
        ("{}".to_owned(), "vllm-0; reason=round_robin; hint=no_prompt"),
        (completion(json!(["a", "b"])), "vllm-0; reason=round_robin; hint=several_prompts"),
    ] {
        assert_eq!(told_in_header(&ask(&filter, body).await), Some(expected));
    }
}

#[tokio::test]
async fn no_request_waits_for_a_lookup_that_the_policy_does_not_follow() {
    let policy = "policy: round_robin\ndecision_header: true";
    let filter = Setup::new().cluster(policy).one_engine().prefer("vllm-0").start().await;
    let gate = filter.controller.hold_path(LOOKUP);
    let response = filter.request(COMPLETIONS, completion(ids(9))).send().await.unwrap();
    assert_eq!(told_in_header(&response), Some("vllm-0; reason=round_robin; hint=policy"));
    gate.waiting(1).await;
    gate.release();
    filter.idle().await;
    assert_eq!(filter.told("lookups_total"), "background/match 1");
}

#[tokio::test]
async fn no_header_tells_anything_where_that_is_not_wanted() {
    let filter = Setup::new().prefer("vllm-1").start().await;
    for _ in 0..2 {
        assert_eq!(told_in_header(&ask(&filter, completion("hello")).await), None);
    }
}

#[tokio::test]
async fn the_access_log_tells_the_hint_the_reason_and_the_matched_tokens() {
    let filter = Setup::new().prefer("vllm-1").start().await;
    filter.chat("hello").await;
    filter.chat("hello").await;
    filter.complete(ids(300)).await;
    filter.controller.fail_next_on(LOOKUP, 1, status(500));
    filter.complete(ids(300)).await;
    let told = filter.world.access_log().await.into_iter().map(|entry| {
        let field = |name| entry.get(name).cloned().unwrap_or_default();
        json!([field("hint"), field("reason"), field("matched_tokens")])
    });
    let expected = [
        json!(["tokens_unknown", "round_robin", null]),
        json!(["followed", "lmcache", 5]),
        json!(["followed", "lmcache", 300]),
        json!(["failed", "round_robin", null]),
    ];
    assert_eq!(told.collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn the_metrics_tell_how_long_requests_waited_for_lookups() {
    let filter = Setup::new().prefer("vllm-1").start().await;
    filter.chat("hello").await;
    let series = |name| format!(r#"kvway_kvcache_lookup_seconds_{name}{{cluster="llama"}}"#);
    assert!(filter.world.metric(&series("count")).abs() < f64::EPSILON, "a job's lookup is nobody's wait");
    filter.chat("hello").await;
    filter.controller.fail_next_on(LOOKUP, 1, status(500));
    filter.chat("hello").await;
    assert!((filter.world.metric(&series("count")) - 2.0).abs() < f64::EPSILON);
    assert!(filter.world.metric(&series("sum")) > 0.0);
    let least = r#"kvway_kvcache_lookup_seconds_bucket{cluster="llama",le="0.0005"}"#;
    assert!(filter.world.metrics().contains(least), "fine enough for a lookup of a millisecond");
}

#[tokio::test]
async fn the_metrics_tell_how_breakers_and_queues_stand() {
    let filter = Setup::new().set("workers_max", "1").start().await;
    let gate = filter.tokenizer.hold_path(TOKENIZE);
    let bodies = [chat("one").to_string(), chat("other").to_string()];
    for body in &bodies {
        filter.send(CHAT, body.clone()).await;
        within(gate.waiting(1)).await;
    }
    assert_eq!([filter.told("jobs_running"), filter.told("jobs_waiting")], ["1", "1"]);
    assert_eq!(filter.told("queue_bytes"), bodies.concat().len().to_string());
    assert_eq!(filter.told("breaker_state"), "", "both are closed");
    gate.release();
    filter.idle().await;
    assert_eq!(filter.told("jobs_running") + &filter.told("jobs_waiting") + &filter.told("queue_bytes"), "");
    assert_eq!(filter.told("jobs_total"), "done 2");
}
