//! Prompts that an engine keeps apart share nothing here either.

use super::*;

/// The blocks that are held after these bodies were answered one after the other by one engine.
async fn blocks_of(sections: &str, requests: &[(&str, Value, Option<&str>)]) -> usize {
    let world = World::with(Plan {
        engines: vec![engine()],
        cluster: "policy: pmc".to_owned(),
        sections: sections.to_owned(),
        ..Plan::default()
    })
    .await;
    for (path, body, tenant) in requests {
        let request = world.client.post(world.url(path)).json(body);
        let request = tenant.iter().fold(request, |request, tenant| request.header("x-tenant", *tenant));
        assert_eq!(request.send().await.unwrap().status(), 200);
        world.idle().await;
    }
    blocks(&world)[0]
}

/// The same prompt of eight blocks, once with `field` as `one` and once as `other`.
async fn blocks_with(field: &str, one: Value, other: Value) -> usize {
    let body = |value| {
        let mut body = about(&text(1, 8 * KIB));
        body[field] = value;
        (CHAT, body, None)
    };
    blocks_of("", &[body(one), body(other)]).await
}

#[tokio::test]
async fn the_same_prompt_shares_all_its_blocks() {
    assert_eq!(blocks_with("temperature", json!(0.0), json!(1.0)).await, 8);
    assert_eq!(blocks_with("stream", json!(false), json!(true)).await, 8);
}

#[tokio::test]
async fn models_share_nothing() {
    // The engine serves whoever names no model.
    assert_eq!(blocks_with("model", json!("tiny"), Value::Null).await, 16);
}

#[tokio::test]
async fn cache_salts_share_nothing() {
    assert_eq!(blocks_with("cache_salt", json!("a"), json!("b")).await, 16);
    assert_eq!(blocks_with("cache_salt", json!("a"), json!("a")).await, 8);
}

#[tokio::test]
async fn tenants_share_nothing_where_a_header_names_them() {
    let request = |tenant| (CHAT, about(&text(1, 8 * KIB)), tenant);
    let tenants = "prefix: {tenant_header: x-tenant}";
    for (sections, one, other, blocks) in [
        (tenants, Some("a"), Some("b"), 16),
        (tenants, Some("a"), None, 16),
        (tenants, Some("a"), Some("a"), 8),
        ("", Some("a"), Some("b"), 8),
    ] {
        assert_eq!(blocks_of(sections, &[request(one), request(other)]).await, blocks);
    }
}

#[tokio::test]
async fn token_ids_are_counted_exactly_and_share_nothing_with_text() {
    let world = pmc(2).await;
    let gates = hold_all(&world);
    let mut waiting = Waiting::default();
    waiting.send(&world, COMPLETIONS, &completion_of_ids(1, 1000), &gates[0], 1).await;
    assert_eq!((pending_tokens(&world, 0), blocks(&world)), (1000, vec![3, 0]));
    waiting.send(&world, COMPLETIONS, &completion_of_ids(2, 1700), &gates[1], 1).await;
    assert_eq!((pending_tokens(&world, 1), blocks(&world)), (1700, vec![3, 6]));
    waiting.send(&world, COMPLETIONS, &completion_of_ids(2, 1800), &gates[1], 2).await;
    assert_eq!(
        pending_tokens(&world, 1),
        1700 + 1800 - 6 * 256,
        "what is not in a whole block is computed again"
    );
    drop(gates);
    assert_eq!(waiting.join().await, [0, 1, 1]);
    world.idle().await;
    let ids = completion_of_ids(1, 1000)["prompt"].to_string();
    let gate = world.engines[0].hold_headers();
    let mut waiting = Waiting::default();
    let body = json!({"model": "tiny", "prompt": ids, "max_tokens": 1});
    waiting.send(&world, COMPLETIONS, &body, &gate, 1).await;
    assert_eq!(blocks(&world)[0], 3 + ids.len() / KIB);
    drop(gate);
    assert_eq!(waiting.join().await, [0]);
}

#[tokio::test]
async fn blocks_beyond_the_bound_are_counted_and_computed_wherever_they_go() {
    let world = World::with(Plan {
        engines: vec![engine(); 2],
        cluster: "policy: pmc".to_owned(),
        sections: "prefix: {blocks_max: 4}".to_owned(),
        ..Plan::default()
    })
    .await;
    let document = about(&text(1, 16 * KIB));
    chat(&world, &document).await;
    world.idle().await;
    assert_eq!(blocks(&world), [4, 0]);
    assert!(cluster(&world).blocks.tokens(0) > 4096, "all of it takes room");
    let unkeyed = r#"kvway_prefix_unkeyed_blocks_total{cluster="llama"}"#;
    assert!((world.metric(unkeyed) - 12.0).abs() < 1e-9);
    let gate = world.engines[0].hold_headers();
    let mut waiting = Waiting::default();
    waiting.send(&world, CHAT, &document, &gate, 1).await;
    assert!((3072..3200).contains(&pending_tokens(&world, 0)));
    drop(gate);
    assert_eq!(waiting.join().await, [0]);
}

#[tokio::test]
async fn texts_teach_how_many_tokens_a_byte_is_and_token_ids_do_not() {
    let world = world(vec![caching()], "policy: pmc").await;
    let ratios = &cluster(&world).ratios;
    ratios.learn("tiny", 1 << 20, 1 << 19);
    let learned = ratios.get("tiny");
    for (path, body, teaches) in
        [(COMPLETIONS, completion_of_ids(1, 3000), false), (CHAT, about(&text(1, 8 * KIB)), true)]
    {
        served_by(post(&world, path, &body).await).await;
        world.idle().await;
        assert_eq!(ratios.get("tiny").to_bits() != learned.to_bits(), teaches, "{path}");
    }
}
