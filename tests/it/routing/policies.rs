//! What each policy goes by, and whom none of them asks.

use super::*;
use kvway::state::fleet::Absence;
use std::collections::BTreeSet;

const POLICIES: [&str; 8] = [
    "pmc",
    "lmetric",
    "least_requests",
    "power_of_two",
    "consistent_hash",
    "round_robin",
    "random",
    "lmcache_only",
];

#[tokio::test]
async fn a_backend_that_is_absent_for_whatever_cause_gets_no_requests_under_any_policy() {
    for policy in POLICIES {
        let world = world(vec![engine(); 2], &format!("policy: {policy}")).await;
        let document = about(&text(1, 4 * KIB));
        for absence in Absence::ALL {
            for (absent, present) in [(0, 1), (1, 0)] {
                let backend = world.backend(&format!("vllm-{absent}"));
                backend.set(absence, true);
                for _ in 0..3 {
                    assert_eq!(chat(&world, &document).await, present, "{policy} {}", absence.name());
                }
                let state = world.app.admin().respond(&http::Method::GET, "/state", None);
                let state: Value = serde_json::from_slice(state.body()).unwrap();
                let told = |at: usize| state["clusters"][0]["backends"][at]["absence"].clone();
                assert_eq!((told(absent), told(present)), (absence.name().into(), Value::Null));
                backend.set(absence, false);
            }
        }
        for at in 0..2 {
            world.backend(&format!("vllm-{at}")).set(Absence::Draining, true);
        }
        assert_eq!(world.chat().await.status(), 503, "{policy}");
    }
}

#[tokio::test]
async fn a_request_that_is_in_work_is_answered_although_its_backend_drains() {
    let world = pmc(1).await;
    let gate = world.engines[0].hold_headers();
    let mut waiting = Waiting::default();
    waiting.send(&world, CHAT, &about("hello"), &gate, 1).await;
    world.backend("vllm-0").set(Absence::Draining, true);
    drop(gate);
    assert_eq!(waiting.join().await, [0]);
}

/// Which of the requests is without a prompt.
enum Promptless {
    Get,
    Multipart,
    NoPrompt,
    NoJson,
}

impl Promptless {
    fn request(&self, world: &World) -> reqwest::RequestBuilder {
        let post = |path: &str| world.client.post(world.url(path));
        let multipart = "--x\r\ncontent-disposition: form-data; name=\"prompt\"\r\n\r\nhello\r\n--x--\r\n";
        match self {
            Self::Get => world.client.get(world.url("/version")),
            Self::Multipart => post("/v1/embeddings")
                .header("content-type", "multipart/form-data; boundary=x")
                .body(multipart),
            Self::NoPrompt => post("/v1/embeddings").json(&json!({"model": "tiny"})),
            Self::NoJson => post("/v1/embeddings").body("x".repeat(64 * KIB)),
        }
    }
}

#[tokio::test]
async fn without_a_prompt_the_fewest_requests_decide() {
    for policy in ["pmc", "lmetric"] {
        let world = world(vec![engine(); 2], &format!("policy: {policy}\ndecision_header: true")).await;
        let gates: Vec<_> = world.engines.iter().map(|engine| engine.hold_path(CHAT)).collect();
        let mut waiting = Waiting::default();
        // Three short ones against a long one.
        waiting.send(&world, CHAT, &about(&text(1, 64 * KIB)), &gates[0], 1).await;
        for held in 1..=3 {
            let seed = u64::try_from(held).unwrap() + 1;
            waiting.send(&world, CHAT, &about(&text(seed, KIB)), &gates[1], held).await;
        }
        assert!(pending_tokens(&world, 0) > 10 * pending_tokens(&world, 1));
        for kind in [Promptless::Get, Promptless::Multipart, Promptless::NoPrompt, Promptless::NoJson] {
            let response = kind.request(&world).send().await.unwrap();
            let decision = response.headers()["x-kvway-decision"].to_str().unwrap().to_owned();
            assert!(decision.starts_with("vllm-0; reason=least_requests"), "{policy}: {decision}");
            drop(response.bytes().await.unwrap());
            until(|| load(&world, 0).requests == 1).await;
        }
        drop(gates);
        assert_eq!(waiting.join().await, [0, 1, 1, 1]);
    }
}

#[tokio::test]
async fn lmetric_goes_by_what_is_cached_and_by_requests_more_than_pmc() {
    // The document is cached at the first engine, where so many others are in work: short ones, all computed.
    for (policy, generating, expected) in [("lmetric", 2, 0), ("pmc", 4, 0), ("lmetric", 4, 1)] {
        let world = world(vec![engine(); 2], &format!("policy: {policy}")).await;
        let document = text(1, 12 * KIB);
        assert_eq!(chat(&world, &about(&document)).await, 0);
        world.backend("vllm-1").set(Absence::Draining, true);
        world.engines[0].fail_next(generating, mocks::Fault::StallAfter(2));
        let mut streams = Vec::new();
        for seed in 0..generating {
            let mut response = post(&world, CHAT, &streamed(about(&text(100 + seed as u64, 200)))).await;
            response.chunk().await.unwrap().unwrap();
            streams.push(response);
        }
        world.backend("vllm-1").set(Absence::Draining, false);
        let gates = hold_all(&world);
        let mut waiting = Waiting::default();
        // Of 4096 tokens 3072 are cached: 1024 · (2 + 1) < 4096 < 1024 · (4 + 1), and 1024 · (1 + 0.3 · 4) < 4096.
        let question = about(&(document + &text(2, 4 * KIB)));
        waiting.send(&world, CHAT, &question, &gates[expected], 1).await;
        drop(gates);
        assert_eq!(waiting.join().await, [expected], "{policy} {generating}");
    }
}

#[tokio::test]
async fn of_two_by_chance_the_busy_one_is_left() {
    let world = world(vec![engine(); 2], "policy: power_of_two").await;
    let gates = hold_all(&world);
    let request = world.client.post(world.url(CHAT)).json(&about("hello"));
    let held = tokio::spawn(async move { served_by(request.send().await.unwrap()).await });
    let busy = tokio::select! {
        () = gates[0].waiting(1) => 0,
        () = gates[1].waiting(1) => 1,
    };
    let mut gates: Vec<_> = gates.into_iter().map(Some).collect();
    drop(gates[1 - busy].take());
    for seed in 0..20 {
        assert_eq!(chat(&world, &about(&text(seed, 100))).await, 1 - busy);
        until(|| load(&world, 1 - busy).requests == 0).await;
    }
    drop(gates);
    assert_eq!(held.await.unwrap(), busy);
}

#[tokio::test]
async fn a_hash_of_the_prefix_keeps_what_begins_alike_together_and_spreads_the_rest() {
    let world =
        world(vec![engine(); 3], "policy: consistent_hash\nhash_by: prefix\nhash_prefix_blocks: 2").await;
    let mut homes = BTreeSet::new();
    for seed in 0..24 {
        let document = text(seed, 4 * KIB);
        let home = chat(&world, &about(&document)).await;
        homes.insert(home);
        for question in ["who?", "when?"] {
            assert_eq!(chat(&world, &about(&format!("{document} {question}"))).await, home);
        }
    }
    // That 24 beginnings leave one of three engines out has a probability of about 10^-4 at even shares; the ring's and the
    // texts are always the same.
    assert!(homes.len() > 1, "{homes:?}");
    let short = chat(&world, &about("a")).await;
    for seed in 0..6 {
        assert_eq!(
            chat(&world, &about(&text(seed, 100))).await,
            short,
            "by the client where no block is whole"
        );
    }
    assert_eq!(blocks(&world), [0, 0, 0], "nobody asks what is cached");
}

#[tokio::test]
async fn what_others_are_chosen_by_teaches_nothing_of_caches() {
    for policy in ["round_robin", "least_requests", "lmcache_only"] {
        let world = world(vec![engine()], &format!("policy: {policy}")).await;
        chat(&world, &streamed(about(&text(1, 8 * KIB)))).await;
        world.idle().await;
        assert_eq!((cluster(&world).blocks.blocks(0), cluster(&world).blocks.tokens(0)), (0, 0), "{policy}");
    }
}
