//! When the backend that LMCache names is taken, and what is done when it cannot be.

use super::*;
use crate::world::reserve;
use mocks::Gate;

/// Sends an engine so many requests, which it does not answer before the gate is released.
async fn occupy(filter: &Filter, index: usize, count: usize) -> (Gate, JoinSet<()>) {
    let engine = &filter.world.engines[index];
    filter.controller.prefer(Some(engine.id()));
    let gate = engine.hold_path(CHAT);
    let mut pending = JoinSet::new();
    for _ in 0..count {
        // Ids, which are looked up at once.
        let request = filter.request(CHAT, completion(ids(3)));
        pending.spawn(async move { drop(request.send().await) });
    }
    within(gate.waiting(count)).await;
    assert_eq!(filter.world.backend(engine.id()).load(tokio::time::Instant::now()).requests, count);
    (gate, pending)
}

/// Completes a prompt while others are in flight.
async fn complete(filter: &Filter, times: usize) {
    for _ in 0..times {
        assert_eq!(filter.send(COMPLETIONS, completion(ids(9))).await, 200);
    }
}

#[tokio::test]
async fn the_most_matched_tokens_decide_among_those_that_are_backends() {
    let filter = Filter::new().await;
    let spots = json!({"vllm-0": ["cpu", 5], "vllm-1": ["disk", 8], "elsewhere": ["cpu", 9]});
    filter.controller.fail_always_on(LOOKUP, layout(&spots));
    for _ in 0..3 {
        filter.complete(ids(9)).await;
    }
    assert_eq!(filter.world.received(COMPLETIONS), [0, 3]);
    assert_eq!(filter.told("unknown_instances_total"), "3");
}

#[tokio::test]
async fn counts_beyond_the_prompt_are_ties() {
    let filter = Filter::new().await;
    let spots = json!({"vllm-0": ["cpu", 9], "vllm-1": ["cpu", 100_000]});
    filter.controller.fail_always_on(LOOKUP, layout(&spots));
    complete(&filter, 3).await;
    assert_eq!(filter.world.received(COMPLETIONS), [3, 0]);
}

#[tokio::test]
async fn ties_go_to_the_less_loaded_and_then_to_the_first() {
    let filter = Filter::new().await;
    let (gate, pending) = occupy(&filter, 0, 2).await;
    filter.controller.fail_always_on(LOOKUP, layout(&json!({"vllm-1": ["cpu", 8], "vllm-0": ["cpu", 8]})));
    complete(&filter, 3).await;
    assert_eq!(filter.world.received(COMPLETIONS), [0, 3]);
    gate.release();
    pending.join_all().await;
    filter.idle().await;
    complete(&filter, 3).await;
    assert_eq!(filter.world.received(COMPLETIONS), [3, 3]);
}

#[tokio::test]
async fn an_instance_with_nothing_of_the_prompt_is_no_hint() {
    let filter = Filter::new().await;
    filter.controller.fail_always_on(LOOKUP, layout(&json!({"vllm-1": ["cpu", 0]})));
    complete(&filter, 4).await;
    assert_eq!(filter.world.received(COMPLETIONS), [2, 2]);
    assert_eq!(filter.hinted(), "no_match 4");
}

#[tokio::test]
async fn an_unhealthy_backend_is_not_preferred_until_it_is_healthy_again() {
    let filter = Setup::new().prefer("vllm-1").start().await;
    filter.world.backend("vllm-1").set_healthy(false);
    complete(&filter, 3).await;
    assert_eq!(filter.world.received(COMPLETIONS), [3, 0]);
    assert_eq!(filter.hinted(), "unavailable 3");
    filter.world.backend("vllm-1").set_healthy(true);
    complete(&filter, 1).await;
    assert_eq!(filter.world.received(COMPLETIONS), [3, 1]);
}

#[tokio::test]
async fn the_next_best_is_taken_when_the_best_is_not_there() {
    let filter = Filter::new().await;
    let spots = json!({"vllm-0": ["cpu", 9], "vllm-1": ["cpu", 5]});
    filter.controller.fail_always_on(LOOKUP, layout(&spots));
    filter.world.backend("vllm-0").set_healthy(false);
    complete(&filter, 1).await;
    assert_eq!(filter.hinted(), "followed 1");
    assert_eq!(filter.world.received(COMPLETIONS), [0, 1]);
}

#[tokio::test]
async fn a_preferred_backend_that_takes_no_connection_is_left_for_another() {
    let (_nobody, address) = reserve();
    let down = format!(r#"id: down, address: "{address}""#);
    let filter = Setup::new().prefer("down").plan(|plan| plan.more.push(down)).start().await;
    complete(&filter, 1).await;
    assert_eq!(filter.world.received(COMPLETIONS).iter().sum::<u64>(), 1);
    let entry = filter.world.last_entry().await;
    assert_eq!((&entry["tries"], &entry["retried"]), (&2.into(), &json!(["connect"])));
    assert_eq!((&entry["hint"], &entry["reason"]), (&"unavailable".into(), &"round_robin".into()));
    assert_eq!(filter.hinted(), "unavailable 1", "counted as it is logged");
}

#[tokio::test]
async fn a_preferred_backend_that_refuses_is_left_for_another() {
    let filter = Setup::new().prefer("vllm-1").start().await;
    filter.world.engines[1].fail_always(Some(status(503)));
    complete(&filter, 2).await;
    assert_eq!(filter.world.received(COMPLETIONS), [2, 2]);
}

#[tokio::test]
async fn a_backend_with_far_more_requests_than_the_others_is_not_preferred() {
    let fallback = "policy: lmcache_only\nfallback: least_requests";
    for (in_flight, expected, hinted) in [(7, [0, 2], "followed 10"), (8, [2, 0], "followed 9, overloaded 2")]
    {
        let filter = Setup::new().cluster(fallback).start().await;
        let (gate, pending) = occupy(&filter, 1, in_flight).await;
        complete(&filter, 2).await;
        assert_eq!(filter.world.received(COMPLETIONS), expected, "{in_flight} in flight");
        gate.release();
        pending.join_all().await;
        complete(&filter, 1).await;
        assert_eq!(filter.world.received(COMPLETIONS)[1], expected[1] + 1, "preferred again");
        filter.idle().await;
        assert_eq!(filter.hinted(), hinted);
    }
}

#[tokio::test]
async fn without_a_bound_a_backend_is_preferred_however_loaded() {
    let fallback = "policy: lmcache_only\nfallback: least_requests";
    let setup = Setup::new().cluster(fallback).set("preferred_in_flight_max", "0");
    let filter = setup.start().await;
    let (_gate, _pending) = occupy(&filter, 1, 20).await;
    complete(&filter, 2).await;
    assert_eq!(filter.world.received(COMPLETIONS), [0, 2]);
}
