//! What is told of choices that LMCache had a say in; asking costs a lookup and leaves nothing behind.

use super::*;
use crate::reasons::{Admin, assert_taken_again};

/// A cluster with this policy whose LMCache has the start of each prompt at these spots.
async fn told_by_lmcache(policy: &str, spots: &Value) -> Filter {
    let filter = Setup::new().cluster(&format!("policy: {policy}\nfallback: random")).start().await;
    filter.controller.fail_always_on(LOOKUP, layout(spots));
    filter
}

fn body(tokens: u32) -> Value {
    json!({"model": "tiny", "prompt": ids(tokens), "max_tokens": 3})
}

#[tokio::test]
async fn a_decision_by_lmcache_can_be_taken_again() {
    for policy in ["lmcache_only", "pmc"] {
        let spots = json!({"vllm-0": ["cpu", 256], "vllm-1": ["cpu", 512], "elsewhere": ["cpu", 1024]});
        let filter = told_by_lmcache(policy, &spots).await;
        filter.complete(ids(1024)).await;
        filter.world.backend("vllm-1").set_healthy(false);
        filter.complete(ids(1024)).await;
        let admin = Admin::of(&filter.world).await;
        let decisions = admin.decisions().await;
        assert_eq!(decisions.len(), 2);
        for (decision, chosen) in decisions.iter().zip(["vllm-0", "vllm-1"]) {
            assert_taken_again(decision);
            assert_eq!(decision["chosen"], chosen, "{decision}");
            assert_eq!(decision["hint"], "followed", "{decision}");
            let both = json!([{"backend": "vllm-0", "tokens": 256}, {"backend": "vllm-1", "tokens": 512}]);
            assert_eq!(decision["matches"], both, "the one that is no candidate, too");
        }
        let (first, tokens) =
            (&decisions[1]["candidates"][1], decisions[1]["prompt_tokens"].as_u64().unwrap());
        assert_eq!((&first["lmcache"], &first["source"]), (&json!(512), &json!("lmcache")));
        assert_eq!(first["uncached_tokens"], tokens - 512);
    }
}

#[tokio::test]
async fn explaining_asks_lmcache_once_and_leaves_nothing_behind() {
    let filter = told_by_lmcache("pmc", &json!({"vllm-1": ["cpu", 512]})).await;
    let admin = Admin::of(&filter.world).await;
    let told = admin.explain(&body(1024)).await;
    assert_eq!((&told["chosen"], &told["hint"]), (&json!("vllm-1"), &json!("followed")));
    assert_taken_again(&told);
    filter.idle().await;
    assert_eq!((filter.calls(LOOKUP), filter.calls(TOKENIZE), filter.calls(PIN)), (1, 0, 0));
    assert_eq!(filter.told("lookups_total"), "explain/match 1");
    assert_eq!(filter.told("hot_prompts_total"), "", "no access is counted");
    assert_eq!((filter.told("jobs_total").as_str(), filter.hinted().as_str()), ("", ""));
    assert_eq!(filter.hints().hotness.keys(), 0);
    assert_eq!(filter.world.received(COMPLETIONS), [0, 0]);
}

#[tokio::test]
async fn explaining_waits_for_lmcache_no_longer_than_a_request() {
    let filter = Setup::new().cluster("policy: pmc").set("lookup_routing_timeout", "20ms").start().await;
    let _gate = filter.controller.hold_path(LOOKUP);
    let admin = Admin::of(&filter.world).await;
    let told = admin.explain(&body(1024)).await;
    assert_eq!((&told["hint"], &told["chosen"]), (&json!("timeout"), &json!("vllm-0")));
    assert_eq!(told["prompt_tokens"], 1024);
    assert_eq!(filter.told("lookups_total"), "explain/timeout 1");
}

#[tokio::test]
async fn lmcache_is_not_asked_where_requests_do_not_wait_for_it() {
    let filter = told_by_lmcache("least_requests", &json!({"vllm-1": ["cpu", 512]})).await;
    let told = Admin::of(&filter.world).await.explain(&body(1024)).await;
    assert_eq!((&told["hint"], filter.calls(LOOKUP)), (&json!("policy"), 0));
}
