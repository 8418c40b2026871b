//! The one lookup that a request waits for.

use super::*;

/// Sends requests at once; done when all of them wait for a lookup.
async fn wait_for_lookups(filter: &Filter, bodies: &[String]) -> JoinSet<u16> {
    let mut pending = JoinSet::new();
    for body in bodies {
        let request = filter.request(COMPLETIONS, body.clone());
        pending.spawn(async move { request.send().await.unwrap().status().as_u16() });
    }
    // Every request is hot, and counted so in the step that leads to the lookup.
    let all = bodies.len().to_string();
    until(|| filter.told("hot_prompts_total") == all).await;
    pending
}

#[tokio::test]
async fn prompts_with_fewer_tokens_than_the_least_are_not_looked_up() {
    let filter = Setup::new().prefer("vllm-1").set("lookup_tokens_min", "256").start().await;
    filter.complete(ids(255)).await;
    filter.chat("short").await;
    filter.chat("short").await;
    assert_eq!((filter.calls(LOOKUP), filter.calls(TOKENIZE)), (0, 1));
    assert_eq!(filter.hinted(), "tokens_unknown 1, too_short 2");
    assert_eq!(filter.told("jobs_total"), "short 1", "a prompt that is known to be short makes no job");
    filter.complete(ids(256)).await;
    assert_eq!(filter.hinted(), "followed 1, tokens_unknown 1, too_short 2");
}

#[tokio::test]
async fn a_request_waits_for_one_lookup_and_its_job_makes_no_other() {
    let filter = Setup::new().prefer("vllm-1").start().await;
    filter.complete(ids(9)).await;
    assert_eq!((filter.calls(LOOKUP), filter.calls(PIN)), (1, 1));
    assert_eq!(filter.told("lookups_total"), "request/match 1");
    assert_eq!(filter.told("lookup_seconds_count"), "1");
}

#[tokio::test]
async fn a_lookup_that_found_nothing_is_made_again_in_the_background_alone() {
    let filter = Filter::new().await;
    filter.controller.fail_next_on(LOOKUP, 1, layout(&json!({})));
    filter.controller.prefer(Some("vllm-1"));
    filter.complete(ids(9)).await;
    assert_eq!(filter.hinted(), "no_match 1");
    assert_eq!(filter.told("lookups_total"), "background/match 1, request/no_match 1");
    assert_eq!(filter.calls(PIN), 1);
}

#[tokio::test]
async fn a_prompt_that_was_found_and_is_not_to_be_acted_on_makes_no_job() {
    let filter = Setup::new().prefer("vllm-1").set("cache_strategy", "{}").start().await;
    filter.complete(ids(9)).await;
    assert_eq!((filter.hinted().as_str(), filter.told("jobs_total").as_str()), ("followed 1", ""));
    filter.controller.prefer(None);
    filter.complete(ids(9)).await;
    assert_eq!(filter.told("jobs_total"), "done 1");
}

#[tokio::test]
async fn identical_lookups_in_flight_share_one_call() {
    let filter = Setup::new().prefer("vllm-1").start().await;
    let gate = filter.controller.hold_path(LOOKUP);
    let mut pending = wait_for_lookups(&filter, &vec![completion(ids(9)); 5]).await;
    within(gate.waiting(1)).await;
    gate.release();
    while let Some(status) = pending.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
    filter.idle().await;
    assert_eq!((filter.calls(LOOKUP), filter.hinted().as_str()), (1, "followed 5"));
    assert_eq!(filter.world.received(COMPLETIONS), [0, 5]);
    assert_eq!(filter.told("lookups_total"), "request/match 5");
    filter.complete(ids(9)).await;
    assert_eq!(filter.calls(LOOKUP), 2, "an answer is for those who waited for it");
}

#[tokio::test]
async fn lookups_of_different_prompts_and_salts_are_their_own() {
    let filter = Setup::new().prefer("vllm-1").start().await;
    let gate = filter.controller.hold_path(LOOKUP);
    let salted = r#"{"model":"tiny","prompt":[1,2,3],"cache_salt":"s"}"#.to_owned();
    let bodies = [completion(json!([1, 2, 3])), completion(json!([1, 2])), salted];
    let mut pending = wait_for_lookups(&filter, &bodies).await;
    within(gate.waiting(3)).await;
    gate.release();
    while pending.join_next().await.is_some() {}
    filter.idle().await;
    assert_eq!(filter.hinted(), "followed 3");
}

#[tokio::test]
async fn a_client_that_leaves_does_not_end_the_lookup_of_the_others() {
    let filter = Setup::new().prefer("vllm-1").start().await;
    let gate = filter.controller.hold_path(LOOKUP);
    let first = wait_for_lookups(&filter, &[completion(ids(9))]).await;
    within(gate.waiting(1)).await;
    let second = filter.client(COMPLETIONS, completion(ids(9)));
    until(|| filter.told("hot_prompts_total") == "2").await;
    drop(first);
    gate.release();
    assert_eq!(second.join_all().await, [200]);
    filter.idle().await;
    assert_eq!(filter.calls(LOOKUP), 1);
}

#[tokio::test]
async fn a_lookup_is_tried_again_within_its_deadline_where_that_may_help() {
    let retry = "{max_attempts: 3, base_backoff: 1ms, max_backoff: 1ms}";
    let filter = Setup::new().prefer("vllm-1").set("retry", retry).start().await;
    filter.controller.fail_next_on(LOOKUP, 2, status(503));
    filter.complete(ids(9)).await;
    assert_eq!((filter.calls(LOOKUP), filter.hinted().as_str()), (3, "followed 1"));
    filter.controller.fail_next_on(LOOKUP, 1, status(422));
    filter.complete(ids(8)).await;
    assert_eq!(filter.hinted(), "failed 1, followed 1");
    assert_eq!(filter.told("lookups_total"), "background/match 1, request/match 1, request/status 1");
}

#[tokio::test]
async fn a_coordinator_is_asked_for_the_model_and_the_salt_and_pins_for_all() {
    let filter = Setup::new().set("lmcache_api", "coordinator").set("default_model", "tiny").start().await;
    let placement = |instance| json!({"instance_id": instance, "tier": "l1", "shared": false});
    let chunks = json!([
        {"token_ids": [1, 2], "placements": [placement("vllm-0"), placement("vllm-1")]},
        {"token_ids": [3, 4], "placements": [placement("vllm-1")]},
    ]);
    let directory = answer(200, &json!({"chunks": 2, "results": chunks}).to_string());
    filter.controller.fail_always_on("/directory/lookup", directory);
    filter.controller.fail_always_on("/cache/pins", answer(200, r#"{"requested": 2, "affected": 2}"#));
    for _ in 0..3 {
        filter.post(COMPLETIONS, r#"{"prompt":[1,2,3,4,5],"cache_salt":"tenant"}"#).await;
    }
    assert_eq!(filter.world.received(COMPLETIONS), [0, 3], "the longest prefix decides");
    let asked = &filter.bodies("/directory/lookup")[0];
    assert_eq!(asked["token_ids"], json!([1, 2, 3, 4, 5]));
    assert_eq!((&asked["model_name"], &asked["cache_salt"]), (&"tiny".into(), &"tenant".into()));
    assert_eq!((filter.calls("/cache/pins"), filter.calls(PIN), filter.calls(LOOKUP)), (1, 0, 0));
    assert_eq!(filter.hinted(), "followed 3");
    assert_eq!(filter.told("actions_total"), "pin/ok 1, pin/withheld 2");
}
