//! `POST /explain`: what would be chosen now, and why, without sending anything.

use super::*;
use kvway::state::fleet::Absence;
use tokio::time::Instant;

/// What the gateway counts and keeps, as text.
fn kept(world: &World) -> String {
    let cluster = &world.app.clusters()[0];
    let backends = cluster.fleet.backends().iter().map(|backend| {
        let index = backend.index;
        let (blocks, tokens) = (cluster.blocks.blocks(index), cluster.blocks.tokens(index));
        format!("{} {:?} {blocks} {tokens}\n", backend.id, backend.load(Instant::now()))
    });
    let metrics = world.metrics();
    let counted = metrics.lines().filter(|line| line.starts_with("kvway_"));
    let decisions = world.app.decisions.newest_first().len();
    format!("{}{decisions}\n{}", backends.collect::<String>(), counted.collect::<Vec<_>>().join("\n"))
}

fn headers(name: &'static str, value: &str) -> HeaderMap {
    HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())])
}

#[tokio::test]
async fn a_prompt_is_explained_by_where_its_beginning_was_sent() {
    let world = world(2, "policy: pmc", "").await;
    let admin = Admin::of(&world).await;
    let before = admin.explain(&long_chat("words ", "before")).await;
    assert_eq!(before["candidates"][0]["source"], Value::Null, "nothing was sent yet: {before}");
    // The second in order, so that a tie would go elsewhere.
    world.backend("vllm-0").set_healthy(false);
    send(&world, &long_chat("words ", "one")).await;
    world.backend("vllm-0").set_healthy(true);
    let told = admin.explain(&long_chat("words ", "another")).await;
    let (home, other) = (candidate(&told, "vllm-1"), candidate(&told, "vllm-0"));
    assert_eq!((&told["chosen"], &told["reason"]), (&"vllm-1".into(), &"pmc".into()));
    assert!(count(&home["uncached_tokens"]) < count(&other["uncached_tokens"]) / 4, "{told}");
    assert!(home["cost"].as_f64().unwrap() < other["cost"].as_f64().unwrap(), "{told}");
    assert_eq!((&home["source"], &other["source"]), (&"shadow".into(), &Value::Null));
    assert!(told["why"].as_str().unwrap().contains("least cost"), "{told}");
    assert_taken_again(&told);
}

#[tokio::test]
async fn what_is_explained_is_what_happens() {
    let world = world(3, "policy: pmc", "").await;
    let admin = Admin::of(&world).await;
    for body in [long_chat("words ", ""), long_chat("other ", ""), long_chat("words ", "more"), chat("short")]
    {
        let mut told = admin.explain(&body).await;
        send(&world, &body).await;
        let mut decided = admin.decisions().await.swap_remove(0);
        for key in ["time", "request_id", "random", "pick", "why", "absent"] {
            for one in [&mut told, &mut decided] {
                one.as_object_mut().unwrap().remove(key);
            }
        }
        assert_eq!(told, decided);
    }
}

#[tokio::test]
async fn explaining_changes_nothing() {
    let world = world(2, "policy: pmc", "").await;
    let admin = Admin::of(&world).await;
    send(&world, &long_chat("words ", "")).await;
    let before = kept(&world);
    for body in [long_chat("words ", "more"), long_chat("other ", ""), chat("short")] {
        admin.explain(&body).await;
    }
    assert_eq!(kept(&world), before);
    assert_eq!(world.received(CHAT), [1, 0], "nothing was sent");
    assert_eq!(world.access_log().await.len(), 1);
}

#[tokio::test]
async fn asking_a_policy_that_goes_by_turns_takes_one() {
    let world = world(2, "policy: round_robin", "").await;
    let admin = Admin::of(&world).await;
    let first = admin.explain(&chat("hello")).await;
    let second = admin.explain(&chat("hello")).await;
    assert_ne!(first["chosen"], second["chosen"]);
}

#[tokio::test]
async fn backends_that_are_no_candidates_are_told_with_the_cause() {
    let world = World::with(Plan {
        engines: vec![EngineOptions::default(); 3],
        cluster: "policy: pmc".to_owned(),
        more: vec![r#"id: nowhere, address: "nowhere.invalid:1""#.to_owned()],
        ..Plan::default()
    })
    .await;
    let admin = Admin::of(&world).await;
    world.backend("vllm-0").set_healthy(false);
    world.backend("vllm-2").set(Absence::Draining, true);
    let told = admin.explain(&chat("hello")).await;
    let absent = |told: &Value| {
        let all = told["absent"].as_array().unwrap().iter();
        let one =
            |it: &Value| format!("{} {}", it["backend"].as_str().unwrap(), it["absence"].as_str().unwrap());
        all.map(one).collect::<Vec<_>>()
    };
    assert_eq!(absent(&told), ["vllm-0 unhealthy", "vllm-2 draining", "nowhere unresolved"]);
    assert_eq!((&told["chosen"], told["candidates"].as_array().unwrap().len()), (&"vllm-1".into(), 1));
    world.backend("vllm-1").set(Absence::Sleeping, true);
    let told = admin.explain(&chat("hello")).await;
    assert_eq!(absent(&told).len(), 4);
    assert!(told["chosen"].is_null(), "{told}");
    assert!(told["why"].as_str().unwrap().starts_with("no backend"), "{told}");
}

#[tokio::test]
async fn without_a_prompt_load_decides_and_that_is_said() {
    let world = world(2, "policy: pmc", "").await;
    let admin = Admin::of(&world).await;
    let _busy = world.app.clusters()[0].fleet.backends()[0].lease(0, false, Instant::now());
    for body in ["", "{}", r#"{"model": "tiny"}"#] {
        let (status, told) = admin.ask("?path=/v1/audio", HeaderMap::new(), body).await;
        assert_eq!(
            (status, &told["reason"], &told["chosen"]),
            (200, &"least_requests".into(), &"vllm-1".into())
        );
        assert_eq!((&told["prompt_tokens"], &told["blocks"]), (&0.into(), &0.into()));
        assert!(told["why"].as_str().unwrap().contains("no prompt"), "{told}");
    }
}

#[tokio::test]
async fn the_path_and_the_headers_are_those_of_the_request() {
    let others: Vec<String> =
        (1..9).map(|n| format!("    - {{id: other-{n}, address: \"127.0.0.1:{n}\"}}")).collect();
    let other = "- name: other\n  policy: consistent_hash\n  hash_header: x-session\n  backends:\n";
    let plan = Plan {
        sections: "prefix: {tenant_header: x-tenant}\n\
                   routes: [{path: /v1/embeddings, cluster: other}, {path: /v1, model: tiny, cluster: llama}]"
            .to_owned(),
        cluster: "policy: pmc".to_owned(),
        clusters: format!("{other}{}", others.join("\n")),
        ..Plan::default()
    };
    let world = World::with(plan).await;
    let admin = Admin::of(&world).await;
    let body = long_chat("words ", "");
    let sent = world.client.post(world.url(CHAT)).header("x-tenant", "a").json(&body).send().await.unwrap();
    assert_eq!(sent.status(), 200);
    world.idle().await;
    for (tenant, source) in [("a", "shadow".into()), ("b", Value::Null)] {
        let (_, told) = admin.ask("", headers("x-tenant", tenant), body.to_string()).await;
        assert_eq!(candidate(&told, "vllm-0")["source"], source, "tenant {tenant}");
    }
    let mut homes = std::collections::HashSet::new();
    for session in (0..16).map(|n| n.to_string()) {
        let ask = || admin.ask("?path=/v1/embeddings", headers("x-session", &session), "{}");
        let [(_, told), (_, again)] = [ask().await, ask().await];
        assert_eq!((&told["cluster"], &told["chosen"]), (&"other".into(), &again["chosen"]));
        homes.insert(told["chosen"].to_string());
    }
    assert!(homes.len() > 1, "the header's value decides: {homes:?}");
}

#[tokio::test]
async fn what_cannot_be_explained_is_told_as_clients_are_told() {
    let sections = "limits: {body_bytes_max: 16KiB}\nroutes: [{path: /v1, model: tiny, cluster: llama}]";
    let world = world(1, "policy: pmc", sections).await;
    let admin = Admin::of(&world).await;
    let other = chat("hello").to_string().replace("tiny", "other");
    for (expected, query, body) in [
        ((404, "no_route"), "?path=/v2", chat("hello").to_string()),
        ((404, "model_not_found"), "", other),
        ((400, "bad_request"), "", "nonsense".to_owned()),
        ((400, "bad_request"), "", "[]".to_owned()),
        ((400, "bad_request"), "", r#"{"model": "tiny", "#.to_owned()),
        ((413, "body_too_large"), "", chat(&"x".repeat(1 << 20)).to_string()),
    ] {
        let (status, told) = admin.ask(query, HeaderMap::new(), body).await;
        assert_eq!((status, told["error"]["code"].as_str().unwrap()), expected);
        assert!(told["error"]["message"].is_string() && told["error"]["type"].is_string(), "{told}");
    }
    let response = world.client.get(admin.url("/explain")).send().await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["allow"]), (405, &"POST".parse().unwrap()));
    assert!(world.app.decisions.newest_first().is_empty());
    assert_eq!(world.app.budget.used(), 0, "no body is held on");
}

#[tokio::test]
async fn a_body_counts_towards_what_may_be_held() {
    let sections = "limits: {body_bytes_max: 16KiB, buffered_bytes_max: 16KiB}";
    let world = world(1, "policy: pmc", sections).await;
    let mut share = world.app.budget.share();
    assert!(share.grow(16 * 1024));
    let admin = Admin::of(&world).await;
    let (status, told) = admin.ask("", HeaderMap::new(), chat("hello").to_string()).await;
    assert_eq!((status, &told["error"]["code"]), (503, &"buffers_full".into()));
}

#[tokio::test]
async fn the_token_protects_decisions_and_explanations() {
    let world = world(1, "policy: pmc", "admin: {token: tok}").await;
    let admin = Admin::of(&world).await;
    let ask = |token: &str| {
        let get = world.client.get(admin.url("/decisions")).bearer_auth(token);
        let post = world.client.post(admin.url("/explain")).bearer_auth(token).json(&chat("hello"));
        async { [get.send().await.unwrap().status().as_u16(), post.send().await.unwrap().status().as_u16()] }
    };
    assert_eq!(ask("other").await, [401, 401]);
    assert_eq!(ask("tok").await, [200, 200]);
}

#[tokio::test]
async fn nothing_of_a_prompt_or_a_key_is_told() {
    const PROMPT: &str = "prompt-51f0 ";
    const KEY: &str = "sk-client-7a2e";
    let world = world(2, "policy: pmc\nhash_header: x-session", "prefix: {tenant_header: x-tenant}").await;
    let admin = Admin::of(&world).await;
    let body = long_chat(PROMPT, "");
    let secrets = || {
        HeaderMap::from_iter(
            ["x-session", "x-tenant"].map(|name| (name.parse().unwrap(), KEY.parse().unwrap())),
        )
    };
    let request = world.client.post(world.url(&format!("{CHAT}?key={KEY}"))).headers(secrets());
    assert_eq!(request.bearer_auth(KEY).json(&body).send().await.unwrap().status(), 200);
    let explained = admin.ask(&format!("?key={KEY}"), secrets(), body.to_string()).await;
    let refused = admin.ask("", secrets(), format!("{PROMPT}{KEY}")).await;
    let told = format!("{explained:?}{refused:?}{}", admin.told().await);
    for secret in [PROMPT.trim(), KEY] {
        assert!(!told.contains(secret), "{secret} in {told}");
    }
}
