//! The way of a repeated prompt: balanced the first time, then served where it is cached.

use super::*;

/// Sends a prompt once and then `times` more, and says which engines served those.
async fn served(filter: &Filter, times: usize) -> Vec<u64> {
    filter.chat("hello").await;
    for engine in &filter.world.engines {
        engine.forget();
    }
    for _ in 0..times {
        filter.chat("hello").await;
    }
    filter.world.received(CHAT)
}

#[tokio::test]
async fn the_second_request_goes_where_lmcache_has_the_prompt_in_both_shapes_of_its_answers() {
    for object_shape in [false, true] {
        let mut setup = Setup::new().prefer("vllm-1");
        setup.controller.object_shape = object_shape;
        let filter = setup.start().await;
        filter.chat("hello").await;
        assert_eq!(filter.hinted(), "tokens_unknown 1");
        assert_eq!([TOKENIZE, LOOKUP, PIN].map(|path| filter.calls(path)), [1, 1, 1], "after the first");
        let before = filter.world.received(CHAT);
        filter.chat("hello").await;
        let after = filter.world.received(CHAT);
        assert_eq!([after[0] - before[0], after[1] - before[1]], [0, 1]);
        assert_eq!(filter.hinted(), "followed 1, tokens_unknown 1");
        assert_eq!([TOKENIZE, LOOKUP, PIN].map(|path| filter.calls(path)), [1, 2, 1], "after the second");
        assert_eq!(filter.told("lookups_total"), "background/match 1, request/match 1");
        assert_eq!(filter.bodies(PIN)[0]["instance_id"], "vllm-1");
    }
}

#[tokio::test]
async fn a_prompt_stays_where_it_is_whoever_has_the_turn() {
    for (preferred, expected) in [("vllm-0", [6, 0]), ("vllm-1", [0, 6])] {
        let filter = Setup::new().prefer(preferred).start().await;
        assert_eq!(served(&filter, 6).await, expected, "{preferred}");
        assert_eq!(filter.hinted(), "followed 6, tokens_unknown 1");
    }
}

#[tokio::test]
async fn a_prompt_goes_along_when_lmcache_has_it_elsewhere() {
    let filter = Setup::new().prefer("vllm-0").start().await;
    assert_eq!(served(&filter, 2).await, [2, 0]);
    filter.controller.prefer(Some("vllm-1"));
    filter.chat("hello").await;
    filter.chat("hello").await;
    assert_eq!(filter.world.received(CHAT), [2, 2]);
}

#[tokio::test]
async fn an_instance_that_no_backend_is_named_after_is_balanced_and_counted() {
    let filter = Setup::new().prefer("elsewhere").start().await;
    assert_eq!(served(&filter, 4).await, [2, 2], "in turn");
    assert_eq!(filter.hinted(), "tokens_unknown 1, unknown_instance 4");
    // Once by the first request's job, and by every later request.
    assert_eq!(filter.told("unknown_instances_total"), "5");
    assert_eq!(filter.calls(PIN), 0, "there is nobody to act");
}

#[tokio::test]
async fn a_backend_is_known_by_the_name_that_lmcache_gives_it() {
    let engine = Engine::start(EngineOptions::default()).unwrap();
    let backend = format!(r#"id: third, address: "{}", lmcache_instance_id: pool-7"#, engine.address());
    let filter = Setup::new().prefer("pool-7").plan(|plan| plan.more.push(backend)).start().await;
    assert_eq!(served(&filter, 4).await, [0, 0]);
    assert_eq!(filter.hinted(), "followed 4, tokens_unknown 1");
    filter.controller.prefer(Some("third"));
    filter.chat("hello").await;
    assert_eq!(filter.hinted(), "followed 4, tokens_unknown 1, unknown_instance 1");
}

#[tokio::test]
async fn other_policies_balance_and_do_not_follow() {
    for policy in ["round_robin", "random", "least_requests", "consistent_hash"] {
        let filter = Setup::new().cluster(&format!("policy: {policy}")).prefer("vllm-1").start().await;
        let served = served(&filter, 4).await;
        if policy == "round_robin" {
            assert_eq!(served, [2, 2]);
        }
        assert_eq!(filter.hinted(), "policy 4, tokens_unknown 1", "{policy}");
    }
}

#[tokio::test]
async fn where_nothing_is_cached_the_fallback_decides() {
    let filter = Setup::new().start().await;
    assert_eq!(served(&filter, 4).await, [2, 2]);
    assert_eq!(filter.hinted(), "no_match 4, tokens_unknown 1");
    let hashed = "policy: lmcache_only\nfallback: consistent_hash";
    let filter = Setup::new().cluster(hashed).start().await;
    let served = served(&filter, 4).await;
    assert!(served == [4, 0] || served == [0, 4], "one client, one backend: {served:?}");
}

#[tokio::test]
async fn what_engines_have_announced_is_followed_token_by_token() {
    let filter = Setup::new().set("lookup_tokens_min", "256").start().await;
    filter.controller.admit("vllm-1", "LocalCPUBackend", &ids(512));
    filter.controller.admit("vllm-0", "LocalCPUBackend", &(0..512).collect::<Vec<u32>>());
    for _ in 0..3 {
        filter.complete(ids(700)).await;
    }
    assert_eq!(filter.world.received(COMPLETIONS), [0, 3]);
    filter.complete((0..600).collect::<Vec<u32>>()).await;
    assert_eq!(filter.world.received(COMPLETIONS), [1, 3]);
    filter.complete((1..600).collect::<Vec<u32>>()).await;
    assert_eq!(filter.hinted(), "followed 4, no_match 1");
}
