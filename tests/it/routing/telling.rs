//! What an operator sees of choices and of what is believed of caches.

use super::*;
use kvway::proxy::peer::Reason;
use kvway::state::trust::Source;

fn count(world: &World, series: &str) -> f64 {
    world.metric(&format!("kvway_{series}"))
}

#[track_caller]
fn assert_counts(world: &World, expected: &[(&str, f64)]) {
    for (series, value) in expected {
        assert!((count(world, series) - value).abs() < 1e-9, "{series} is {}", count(world, series));
    }
}

#[test]
fn reasons_and_sources_stand_in_the_order_of_their_counters() {
    assert!(Reason::ALL.iter().enumerate().all(|(at, reason)| *reason as usize == at));
    assert!(Source::ALL.iter().enumerate().all(|(at, source)| *source as usize == at));
}

#[tokio::test]
async fn choices_are_counted_by_their_reason() {
    let world = pmc(2).await;
    assert_counts(&world, &[(r#"decisions_total{cluster="llama",reason="pmc"}"#, 0.0)]);
    assert!(world.metrics().contains(r#"reason="consistent_hash"} 0"#), "shown from the start");
    chat(&world, &about(&text(1, 4 * KIB))).await;
    world.engines[0].fail_next(1, mocks::Fault::Status { code: 503, retry_after: None });
    chat(&world, &about(&text(1, 4 * KIB))).await;
    drop(world.client.get(world.url("/version")).send().await.unwrap());
    world.idle().await;
    assert_counts(
        &world,
        &[
            (r#"decisions_total{cluster="llama",reason="pmc"}"#, 3.0),
            (r#"decisions_total{cluster="llama",reason="least_requests"}"#, 1.0),
        ],
    );
}

#[tokio::test]
async fn what_was_predicted_is_counted_beside_what_engines_report() {
    let world = world(vec![caching()], "policy: pmc").await;
    let document = text(1, 16 * KIB);
    for _ in 0..2 {
        chat(&world, &about(&document)).await;
        world.idle().await;
    }
    let predicted = count(&world, r#"predicted_cached_tokens_total{cluster="llama",source="shadow"}"#);
    let reported = count(&world, r#"reported_cached_tokens_total{cluster="llama"}"#);
    assert!((4000.0..4120.0).contains(&reported), "{reported}: all but the last of the engine's blocks");
    assert!((predicted - reported).abs() < 300.0, "{predicted} {reported}");
}

#[tokio::test]
async fn engines_that_report_nothing_and_policies_that_predict_nothing_are_not_compared() {
    for (engine, policy) in [(engine(), "pmc"), (caching(), "round_robin")] {
        compares_nothing(engine, policy).await;
    }
}

async fn compares_nothing(engine: EngineOptions, policy: &str) {
    let world = world(vec![engine], &format!("policy: {policy}")).await;
    for _ in 0..2 {
        chat(&world, &about(&text(1, 16 * KIB))).await;
        world.idle().await;
    }
    let shadow = r#"predicted_cached_tokens_total{cluster="llama",source="shadow"}"#;
    assert_counts(&world, &[(shadow, 0.0), (r#"reported_cached_tokens_total{cluster="llama"}"#, 0.0)]);
}

#[tokio::test]
async fn what_is_believed_of_each_cache_is_shown() {
    let world = world(vec![engine(); 2], "policy: pmc").await;
    chat(&world, &streamed(about(&text(1, 8 * KIB)))).await;
    world.idle().await;
    cluster(&world).trust.learn(1, Source::Lmcache, 1000, 0);
    let backend = |name: &str, at: usize| format!(r#"{name}{{backend="vllm-{at}",cluster="llama"}}"#);
    let weight = |at: usize, source: &str| {
        format!(r#"source_weight{{backend="vllm-{at}",cluster="llama",source="{source}"}}"#)
    };
    assert_counts(
        &world,
        &[
            (&backend("shadow_blocks", 0), 8.0),
            (&backend("shadow_blocks", 1), 0.0),
            (&backend("shadow_capacity_tokens", 0), 500_000.0),
            (&weight(0, "shadow"), 1.0),
            (&weight(1, "lmcache"), 0.9),
        ],
    );
    let tokens = count(&world, &backend("shadow_tokens", 0));
    assert!((2048.0..2100.0).contains(&tokens), "{tokens}");
    assert!(count(&world, r#"shadow_bytes{cluster="llama"}"#) > 0.0);
    let rate = count(&world, &backend("backend_prefill_tokens_per_second", 0));
    assert!(rate > 0.0);
    assert!(
        !world.metrics().contains(&backend("backend_prefill_tokens_per_second", 1)),
        "nothing is known of it"
    );
    let state = world.app.admin().respond(&http::Method::GET, "/state", None);
    let state: Value = serde_json::from_slice(state.body()).unwrap();
    let [one, other] = [0, 1].map(|at| &state["clusters"][0]["backends"][at]);
    assert_eq!((&one["cache"]["blocks"], &one["cache"]["capacity_tokens"]), (&json!(8), &json!(500_000)));
    assert_eq!(
        (&other["cache"]["weights"]["lmcache"], &other["cache"]["weights"]["shadow"]),
        (&json!(0.9), &json!(1.0))
    );
    assert_eq!(one["cache"]["tokens"].as_u64().map(|tokens| tokens / 100), Some(20));
    assert!(one["prefill_tokens_per_second"].is_f64() && other["prefill_tokens_per_second"].is_null());
}

#[tokio::test]
async fn what_a_cache_has_no_room_for_is_counted() {
    let world = world(vec![engine()], "policy: pmc").await;
    cluster(&world).blocks.set_capacity(0, 3000);
    for seed in 0..3 {
        chat(&world, &about(&text(seed, 8 * KIB))).await;
        world.idle().await;
    }
    let backend = r#"{backend="vllm-0",cluster="llama"}"#;
    for _ in 0..2 {
        let evicted = count(&world, r#"shadow_evicted_blocks_total{cluster="llama"}"#);
        let held = count(&world, &format!("shadow_blocks{backend}"));
        assert!((evicted + held - 24.0).abs() < 1e-9 && held < 12.0, "{evicted} {held}");
    }
    assert!(count(&world, &format!("shadow_tokens{backend}")) <= 3000.0);
}
