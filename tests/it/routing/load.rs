//! A backend that has a prompt cached is left for another when it has too much to do.

use super::*;
use kvway::state::fleet::Absence;
use mocks::Fault;

/// A document that `vllm-0` has cached.
async fn cached_at_the_first(world: &World) -> String {
    let document = text(1, 16 * KIB);
    assert_eq!(chat(world, &about(&document)).await, 0);
    world.idle().await;
    assert_eq!(blocks(world), [16, 0]);
    document
}

#[tokio::test]
async fn what_waits_at_the_holder_outweighs_what_it_has_cached() {
    let world = pmc(2).await;
    let document = cached_at_the_first(&world).await;
    let gates = hold_all(&world);
    let mut waiting = Waiting::default();
    // Each of these goes to the holder, since nothing waits anywhere.
    waiting.send(&world, CHAT, &about(&text(2, 12 * KIB)), &gates[0], 1).await;
    let waits = pending_tokens(&world, 0);
    assert!((3072..3200).contains(&waits), "{waits}");
    waiting.send(&world, CHAT, &about(&format!("{document} who?")), &gates[0], 2).await;
    let rest = pending_tokens(&world, 0) - waits;
    assert!((1..256).contains(&rest), "{rest}: the document itself is cached");
    waiting.send(&world, CHAT, &about(&text(3, 8 * KIB)), &gates[1], 1).await;
    waiting.send(&world, CHAT, &about(&format!("{document} when?")), &gates[0], 3).await;
    waiting.send(&world, CHAT, &about(&text(4, 8 * KIB)), &gates[1], 2).await;
    let (at_holder, elsewhere) = (pending_tokens(&world, 0), pending_tokens(&world, 1));
    assert!(at_holder < elsewhere, "{at_holder} {elsewhere}");
    drop(gates);
    assert_eq!(waiting.join().await, [0, 0, 0, 1, 1]);
}

#[tokio::test]
async fn a_holder_with_far_more_tokens_waiting_than_the_prompt_has_is_left() {
    let world = pmc(2).await;
    let document = cached_at_the_first(&world).await;
    let gates = hold_all(&world);
    let mut waiting = Waiting::default();
    waiting.send(&world, CHAT, &about(&text(2, 24 * KIB)), &gates[0], 1).await;
    waiting.send(&world, CHAT, &about(&document), &gates[1], 1).await;
    assert_eq!(blocks(&world), [16 + 24, 16], "it is expected at the other as well");
    drop(gates);
    assert_eq!(waiting.join().await, [0, 1]);
    assert_eq!(chat(&world, &about(&document)).await, 0, "both have it, and both are idle");
}

#[tokio::test]
async fn requests_that_a_prefill_would_delay_outweigh_what_is_cached() {
    let world = pmc(2).await;
    let document = cached_at_the_first(&world).await;
    // Half of it is cached at the holder, the rest is 4096 tokens.
    let question = about(&format!("{document}{}", text(2, 16 * KIB)));
    for generating in [3, 4] {
        world.engines[0].fail_next(generating, Fault::StallAfter(2));
        world.backend("vllm-1").set(Absence::Draining, true);
        let mut streams = Vec::new();
        for seed in 0..generating {
            let prompt = about(&text(100 + seed as u64, 200));
            let mut response = post(&world, CHAT, &streamed(prompt)).await;
            response.chunk().await.unwrap().unwrap();
            streams.push(response);
        }
        world.backend("vllm-1").set(Absence::Draining, false);
        assert_eq!((load(&world, 0).requests, pending_tokens(&world, 0)), (generating, 0));
        let gates = hold_all(&world);
        let mut waiting = Waiting::default();
        // 4096 · (1 + 0.3 · 3) is less than 8192, and 4096 · (1 + 0.3 · 4) is more.
        let expected = usize::from(generating > 3);
        waiting.send(&world, CHAT, &question, &gates[expected], 1).await;
        waiting.0.abort_all();
        drop(streams);
        world.idle().await;
        drop(gates);
    }
}

#[tokio::test]
async fn prompts_that_have_nothing_in_common_spread() {
    let world = pmc(3).await;
    let gates = hold_all(&world);
    let mut clients = JoinSet::new();
    for seed in 0..30 {
        let request = world.client.post(world.url(CHAT)).json(&about(&text(seed, 4 * KIB)));
        clients.spawn(async move { request.send().await.unwrap().status().as_u16() });
    }
    for gate in &gates {
        within(gate.waiting(10)).await;
    }
    let loads: Vec<_> = (0..3).map(|at| load(&world, at)).collect();
    assert_eq!(loads, [loads[0]; 3]);
    assert_eq!(loads[0].requests, 10);
    drop(gates);
    assert_eq!(clients.join_all().await, [200; 30]);
    assert_eq!(world.received(CHAT), [10, 10, 10]);
}

#[tokio::test]
async fn a_long_prompt_is_worth_several_short_ones() {
    let world = pmc(2).await;
    let gates = hold_all(&world);
    let mut waiting = Waiting::default();
    waiting.send(&world, CHAT, &about(&text(0, 64 * KIB)), &gates[0], 1).await;
    for seed in 1..7 {
        let held = usize::try_from(seed).unwrap();
        waiting.send(&world, CHAT, &about(&text(seed, 4 * KIB)), &gates[1], held).await;
    }
    drop(gates);
    assert_eq!(waiting.join().await, [0, 1, 1, 1, 1, 1, 1]);
}
