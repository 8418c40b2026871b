//! What LMCache says under `pmc`: a part of the cost, a correction of what is believed, and worth as much as comes true.

use super::*;
use kvway::proxy::cluster::Cluster;
use kvway::state::fleet::Absence;
use kvway::state::trust::Source;
use mocks::Gate;
use tokio::time::Instant;

/// Tokens of a block of a prompt of ids.
const BLOCK: usize = 256;

/// A gateway that weighs caches; what LMCache says is set by the test.
async fn weighing() -> Filter {
    Setup::new().cluster("policy: pmc").set("cache_strategy", "{}").start().await
}

fn cluster(filter: &Filter) -> &Cluster {
    &filter.world.app.clusters()[0]
}

fn blocks(filter: &Filter) -> [usize; 2] {
    [0, 1].map(|at| cluster(filter).blocks.blocks(at))
}

fn pending_tokens(filter: &Filter, at: usize) -> usize {
    filter.world.backend(&format!("vllm-{at}")).load(Instant::now()).pending_tokens
}

/// What LMCache says from now on.
fn say(filter: &Filter, spots: &Value) {
    filter.controller.fail_always(None);
    filter.controller.fail_always_on(LOOKUP, layout(spots));
}

/// Sends the completion of a prompt of so many ids, which `gate` holds as one of `held`.
async fn hold(filter: &Filter, ids: Vec<u32>, gate: &Gate, held: usize) -> JoinSet<u16> {
    let client = filter.client(COMPLETIONS, completion(ids));
    within(gate.waiting(held)).await;
    client
}

/// Lets `vllm-{at}` alone compute a prompt, of which LMCache says nothing.
async fn computed_by(filter: &Filter, at: usize, ids: Vec<u32>) {
    say(filter, &json!({}));
    let other = filter.world.backend(&format!("vllm-{}", 1 - at));
    other.set(Absence::Draining, true);
    filter.complete(ids).await;
    other.set(Absence::Draining, false);
}

/// An answer of an engine that found so many tokens in its cache.
fn reporting(cached: usize) -> Fault {
    let details = json!({"cached_tokens": cached});
    let usage = json!({"prompt_tokens": 1024, "completion_tokens": 1, "prompt_tokens_details": details});
    answer(200, &json!({"choices": [], "usage": usage}).to_string())
}

#[tokio::test]
async fn what_lmcache_has_of_a_prompt_is_not_to_be_computed_there() {
    let filter = weighing().await;
    say(&filter, &json!({"vllm-1": ["cpu", 512]}));
    let gate = filter.world.engines[1].hold_headers();
    let client = hold(&filter, ids(600), &gate, 1).await;
    assert_eq!(pending_tokens(&filter, 1), 600 - 512);
    drop(gate);
    assert_eq!(client.join_all().await, [200]);
    filter.idle().await;
    assert_eq!(filter.hinted(), "followed 1");
    assert_eq!(filter.world.last_entry().await["matched_tokens"], 512);
}

#[tokio::test]
async fn where_lmcache_has_a_prompt_is_left_when_more_waits_there() {
    let filter = weighing().await;
    say(&filter, &json!({"vllm-1": ["cpu", 512]}));
    let gates: Vec<_> = filter.world.engines.iter().map(|engine| engine.hold_headers()).collect();
    let mut clients = vec![hold(&filter, ids(1400), &gates[1], 1).await];
    // 888 tokens wait at the one, and 88 · 1.3 would be added.
    clients.push(hold(&filter, ids(600), &gates[0], 1).await);
    drop(gates);
    for client in clients {
        assert_eq!(client.join_all().await, [200]);
    }
}

#[tokio::test]
async fn what_lmcache_no_longer_has_is_no_longer_believed() {
    let filter = weighing().await;
    computed_by(&filter, 1, ids(1024)).await;
    assert_eq!(blocks(&filter), [0, 4]);
    say(&filter, &json!({"vllm-1": ["cpu", 512]}));
    filter.world.backend("vllm-1").set(Absence::Draining, true);
    filter.complete(ids(1024)).await;
    assert_eq!(blocks(&filter), [4, 2], "although the request went elsewhere");
    let truncated = filter.world.metric(r#"kvway_shadow_truncated_blocks_total{cluster="llama"}"#);
    assert!((truncated - 2.0).abs() < 1e-9);
}

#[tokio::test]
async fn a_smaller_count_than_another_backends_forgets_nothing() {
    let filter = weighing().await;
    computed_by(&filter, 0, ids(1024)).await;
    computed_by(&filter, 1, ids(1024)).await;
    // A controller credits each chunk to one of its holders.
    say(&filter, &json!({"vllm-0": ["cpu", 256], "vllm-1": ["cpu", 768]}));
    filter.complete(ids(1024)).await;
    assert_eq!(filter.world.received(COMPLETIONS), [1, 2]);
    assert_eq!(blocks(&filter), [4, 4], "three stay at the one, and it gets the fourth again");
    let truncated = filter.world.metric(r#"kvway_shadow_truncated_blocks_total{cluster="llama"}"#);
    assert!((truncated - 1.0).abs() < 1e-9);
}

#[tokio::test]
async fn lmcache_that_does_not_come_true_forgets_nothing() {
    let filter = weighing().await;
    computed_by(&filter, 1, ids(1024)).await;
    for _ in 0..100 {
        cluster(&filter).trust.learn(1, Source::Lmcache, 1000, 0);
    }
    say(&filter, &json!({"vllm-1": ["cpu", 256]}));
    filter.complete(ids(1024)).await;
    assert_eq!((blocks(&filter), filter.world.received(COMPLETIONS)), ([0, 4], vec![0, 2]));
    let truncated = filter.world.metric(r#"kvway_shadow_truncated_blocks_total{cluster="llama"}"#);
    assert!(truncated.abs() < 1e-9);
    assert_eq!(filter.world.last_entry().await["matched_tokens"], 1022);
}

#[tokio::test]
async fn what_is_about_to_be_computed_counts_although_lmcache_does_not_know_it() {
    let filter = weighing().await;
    say(&filter, &json!({"vllm-1": ["cpu", BLOCK]}));
    let gates: Vec<_> = filter.world.engines.iter().map(|engine| engine.hold_headers()).collect();
    let mut clients = vec![hold(&filter, ids(1024), &gates[1], 1).await];
    assert_eq!(pending_tokens(&filter, 1), 768);
    // 768 tokens wait and one is computed, or else 768 · 1.3 in place of the one: more than 1024.
    clients.push(hold(&filter, ids(1024), &gates[1], 2).await);
    assert_eq!((pending_tokens(&filter, 1), blocks(&filter)), (769, [0, 4]));
    drop(gates);
    for client in clients {
        assert_eq!(client.join_all().await, [200]);
    }
    filter.idle().await;
    assert_eq!(blocks(&filter), [0, 4]);
}

#[tokio::test]
async fn lmcache_that_is_wrong_again_and_again_is_left_until_it_is_right_again() {
    let filter = weighing().await;
    let weight = || cluster(&filter).trust.weight(1, Source::Lmcache);
    filter.controller.prefer(Some("vllm-1"));
    filter.world.engines[1].fail_always(Some(reporting(0)));
    // Other prompts each time, so that nothing else speaks for one of the engines.
    let prompt = |seed: u32| (1000 * seed..1000 * seed + 1024).collect::<Vec<u32>>();
    let mut seed = 1;
    while weight() > 0.05 {
        filter.complete(prompt(seed)).await;
        seed += 1;
    }
    assert_eq!(filter.world.received(COMPLETIONS), [0, u64::from(seed - 1)]);
    let told = r#"kvway_source_weight{backend="vllm-1",cluster="llama",source="lmcache"}"#;
    assert!((filter.world.metric(told) - weight()).abs() < 1e-9);
    filter.world.engines[1].fail_always(None);
    let gates: Vec<_> = filter.world.engines.iter().map(|engine| engine.hold_headers()).collect();
    let mut clients = JoinSet::new();
    for number in 0..10 {
        let request = filter.request(COMPLETIONS, completion(prompt(seed + number)));
        clients.spawn(async move { request.send().await.unwrap().status().as_u16() });
    }
    within(gates[0].waiting(5)).await;
    within(gates[1].waiting(5)).await;
    drop(gates);
    assert_eq!(clients.join_all().await, [200; 10]);
    filter.idle().await;
    filter.world.engines[1].fail_always(Some(reporting(1020)));
    for number in 10..60 {
        filter.complete(prompt(seed + number)).await;
    }
    assert!(weight() > 0.9, "{}", weight());
}

#[tokio::test]
async fn engines_that_cache_nothing_are_not_sought_for_their_caches() {
    let reports = EngineOptions { cached_tokens: true, ..EngineOptions::default() };
    let filter = Setup::new()
        .cluster("policy: pmc")
        .set("token_cache", "{enabled: false}")
        .plan(|plan| plan.engines = vec![reports; 2])
        .start()
        .await;
    let document = "a document ".repeat(1000);
    for (at, other) in [(0, "vllm-1"), (1, "vllm-0")] {
        filter.world.backend(other).set(Absence::Draining, true);
        while cluster(&filter).trust.weight(at, Source::Shadow) > 0.05 {
            filter.chat(&document).await;
        }
        filter.world.backend(other).set(Absence::Draining, false);
    }
    let gates: Vec<_> = filter.world.engines.iter().map(|engine| engine.hold_headers()).collect();
    let mut clients = JoinSet::new();
    for _ in 0..10 {
        let request = filter.request(CHAT, chat(&document).to_string());
        clients.spawn(async move { request.send().await.unwrap().status().as_u16() });
    }
    within(gates[0].waiting(5)).await;
    within(gates[1].waiting(5)).await;
    drop(gates);
    assert_eq!(clients.join_all().await, [200; 10]);
}

#[tokio::test]
async fn a_request_waits_for_one_lookup_and_no_longer_than_it_may() {
    let filter = Setup::new()
        .cluster("policy: pmc")
        .set("lookup_routing_timeout", "20ms")
        .set("cache_strategy", "{}")
        .start()
        .await;
    computed_by(&filter, 1, ids(1024)).await;
    filter.controller.fail_always(None);
    let gate = filter.controller.hold_path(LOOKUP);
    assert_eq!(filter.send(COMPLETIONS, completion(ids(1024))).await, 200);
    drop(gate);
    filter.idle().await;
    assert_eq!(filter.world.received(COMPLETIONS), [0, 2], "what was sent before decides");
    assert_eq!(filter.hinted(), "no_match 1, timeout 1");
}
