//! `/decisions`: the last choices, each with all that it went by.

use super::*;
use crate::world::until;
use mocks::{Engine, Fault};

const POLICIES: [Policy; 8] = [
    Policy::Pmc,
    Policy::Lmetric,
    Policy::LeastRequests,
    Policy::PowerOfTwo,
    Policy::ConsistentHash,
    Policy::RoundRobin,
    Policy::Random,
    Policy::LmcacheOnly,
];

/// A fleet of three, of which one is heavier, under load that grows with each of its requests; their decisions.
async fn decisions_under_load(policy: Policy) -> Vec<Value> {
    const REQUESTS: usize = 8;
    let policy = serde_json::to_string(&policy).unwrap();
    let heavy = Engine::start(EngineOptions::default()).unwrap();
    let world = World::with(Plan {
        cluster: format!("policy: {policy}\nfallback: random\nhash_header: x-session"),
        more: vec![format!("id: heavy, address: \"{}\", weight: 3", heavy.address())],
        ..Plan::default()
    })
    .await;
    let gates: Vec<_> = world.engines.iter().chain([&heavy]).map(|engine| engine.hold_path(CHAT)).collect();
    let mut pending = JoinSet::new();
    for number in 0..REQUESTS {
        let body = long_chat(["one ", "another "][number % 2], &"x".repeat(number * 1024));
        let request = world.client.post(world.url(CHAT)).header("x-session", number).json(&body);
        pending.spawn(async move { request.send().await.unwrap().status() });
        until(|| world.app.decisions.newest_first().len() == number + 1).await;
    }
    gates.into_iter().for_each(mocks::Gate::release);
    assert_eq!(pending.join_all().await, [200; REQUESTS]);
    Admin::of(&world).await.decisions().await
}

#[tokio::test]
async fn a_decision_can_be_taken_again_from_what_was_told_of_it() {
    for policy in POLICIES {
        let decisions = decisions_under_load(policy).await;
        assert_eq!(decisions.len(), 8);
        decisions.iter().for_each(assert_taken_again);
        let weighs = policy.weighs_caches();
        assert!(
            decisions.iter().all(|it| it["candidates"][0]["cost"].is_number() == weighs),
            "{decisions:?}"
        );
        let newest = decisions[0]["candidates"].as_array().unwrap().iter();
        assert_eq!(newest.map(|told| count(&told["requests"])).sum::<usize>(), 7, "all that came before it");
    }
}

#[tokio::test]
async fn a_decision_names_the_request_and_what_its_prompt_asks_for() {
    let world = world(2, "policy: pmc", "").await;
    let body = long_chat("words ", "");
    let request = world.client.post(world.url(CHAT)).header("x-request-id", "id-1").json(&body);
    assert_eq!(request.send().await.unwrap().status(), 200);
    let admin = Admin::of(&world).await;
    let told = admin.told().await;
    let decision = &told["decisions"][0];
    assert!(humantime::parse_rfc3339(decision["time"].as_str().unwrap()).is_ok(), "{decision}");
    for (key, value) in [
        ("request_id", "id-1"),
        ("cluster", "llama"),
        ("model", "tiny"),
        ("chosen", "vllm-0"),
        ("reason", "pmc"),
        ("hint", "off"),
        ("policy", "pmc"),
    ] {
        assert_eq!(decision[key], value, "{key}");
    }
    assert_eq!((&decision["try"], &decision["blocks"]), (&1.into(), &8.into()));
    // Before the first answer a token is worth 4 bytes.
    assert_eq!(decision["block_tokens"], 256);
    let tokens = count(&decision["prompt_tokens"]);
    assert!((2048..2304).contains(&tokens), "{decision}");
    let first = candidate(decision, "vllm-0");
    assert_eq!((count(&first["uncached_tokens"]), &first["shadow"]), (tokens, &0.into()));
    assert_eq!((&first["lmcache"], &first["source"]), (&Value::Null, &Value::Null));
    assert_eq!(told["forgotten"], 0);
}

#[tokio::test]
async fn the_last_decisions_are_kept_and_the_newest_comes_first() {
    let world = world(1, "policy: pmc", "admin: {decisions_max: 2}").await;
    let admin = Admin::of(&world).await;
    for id in ["first", "second", "third"] {
        let request = world.client.post(world.url(CHAT)).header("x-request-id", id).json(&chat("hello"));
        assert_eq!(request.send().await.unwrap().status(), 200);
    }
    let told = admin.told().await;
    let ids = told["decisions"].as_array().unwrap().iter().map(|it| it["request_id"].as_str().unwrap());
    assert_eq!((ids.collect(), count(&told["forgotten"])), (vec!["third", "second"], 1));
}

#[tokio::test]
async fn none_are_kept_where_none_are_wanted() {
    let world = world(1, "policy: pmc", "admin: {decisions_max: 0}").await;
    assert_eq!(world.chat().await.status(), 200);
    assert_eq!(Admin::of(&world).await.told().await, serde_json::json!({"forgotten": 0, "decisions": []}));
}

#[tokio::test]
async fn each_try_is_a_decision_of_its_own() {
    let world = world(2, "policy: pmc", "").await;
    world.engines[0].fail_always(Some(Fault::Status { code: 503, retry_after: None }));
    assert_eq!(world.chat().await.status(), 200);
    let decisions = Admin::of(&world).await.decisions().await;
    let [second, first] = decisions.as_slice() else { panic!("{decisions:?}") };
    assert_eq!(first["request_id"], second["request_id"]);
    assert_eq!((&first["try"], &first["chosen"]), (&1.into(), &"vllm-0".into()));
    assert_eq!((&second["try"], &second["chosen"]), (&2.into(), &"vllm-1".into()));
    let candidates = |decision: &Value| decision["candidates"].as_array().unwrap().len();
    assert_eq!((candidates(first), candidates(second)), (2, 1), "who failed is no candidate");
}

#[tokio::test]
async fn that_there_was_nobody_to_choose_is_a_decision_too() {
    let world = world(1, "policy: pmc", "").await;
    world.backend("vllm-0").set_healthy(false);
    assert_eq!(world.chat().await.status(), 503);
    let decisions = Admin::of(&world).await.decisions().await;
    assert_taken_again(&decisions[0]);
    assert!(decisions[0]["chosen"].is_null() && decisions[0]["reason"].is_null(), "{decisions:?}");
}
