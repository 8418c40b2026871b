//! Health checks: who is passed over, and when it returns.

use super::*;

#[tokio::test]
async fn a_backend_leaves_after_its_failures_and_returns_after_its_successes() {
    let world = world(2, "health: {failures: 2, successes: 2}", "").await;
    let sick = world.backend("vllm-0");
    world.engines[0].set_health(false);
    world.check_health().await;
    assert!(sick.is_healthy(), "one failure is not enough");
    world.check_health().await;
    assert!(!sick.is_healthy());
    assert_eq!(chats(&world, 10).await, [200; 10]);
    assert_eq!(world.received(CHAT), [0, 10]);
    world.engines[0].set_health(true);
    world.check_health().await;
    assert!(!sick.is_healthy(), "one success is not enough");
    world.check_health().await;
    assert!(sick.is_healthy());
    assert_eq!(chats(&world, 10).await, [200; 10]);
    assert_eq!(world.received(CHAT), [5, 15]);
}

#[tokio::test]
async fn a_good_check_between_two_bad_ones_starts_the_count_again() {
    let world = world(1, "health: {failures: 2}", "").await;
    for healthy in [false, true, false, true] {
        world.engines[0].set_health(healthy);
        world.check_health().await;
        assert!(world.backend("vllm-0").is_healthy());
    }
}

#[tokio::test]
async fn an_engine_that_never_answers_its_check_is_unhealthy() {
    let world = world(1, "health: {failures: 1, timeout: 300ms}", "").await;
    let gate = world.engines[0].hold_path("/health");
    world.check_health().await;
    assert!(!world.backend("vllm-0").is_healthy());
    gate.release();
    world.check_health().await;
    assert!(world.backend("vllm-0").is_healthy());
}

#[tokio::test]
async fn the_check_asks_for_the_configured_path_with_the_backends_host() {
    let world = world(1, "health: {path: /ping}", "").await;
    world.check_health().await;
    let received = world.engines[0].received();
    assert_eq!((received.len(), received[0].path_and_query.as_str()), (1, "/ping"));
    let host = world.engines[0].address().to_string();
    assert_eq!(received[0].header("host"), Some(host.as_str()));
    assert!(world.backend("vllm-0").is_healthy());
}

#[tokio::test]
async fn with_one_of_two_down_every_request_is_answered() {
    let (_nobody, world) = one_down(1, "").await;
    assert_eq!(chats(&world, 30).await, [200; 30]);
    assert!(retries(&world, "connect") >= 1.0, "some were tried at the one that is down");
}

#[tokio::test]
async fn when_all_are_down_the_client_is_told_and_served_after_their_return() {
    let places = [reserve(), reserve()];
    let backend =
        |(_, address): &(_, SocketAddr)| format!(r#"id: "{}", address: "{address}""#, address.port());
    let mut world = World::with(Plan {
        engines: vec![],
        more: places.iter().map(backend).collect(),
        cluster: "health: {failures: 1}".to_owned(),
        ..Plan::default()
    })
    .await;
    assert_eq!(world.chat().await.status(), 502, "not known to be down yet");
    world.check_health().await;
    let response = world.chat().await;
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["retry-after"], "1");
    for (_, address) in &places {
        let options = EngineOptions::default();
        world.engines.push(Engine::start_at(*address, options).unwrap());
    }
    world.check_health().await;
    assert_eq!(chats(&world, 4).await, [200; 4]);
    assert_eq!(world.received(CHAT), [2, 2]);
}
