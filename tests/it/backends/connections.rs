//! How connections to backends are kept.

use super::*;

#[tokio::test]
async fn a_connection_is_used_again() {
    let world = world(1, "", "").await;
    assert_eq!(chats(&world, 5).await, [200; 5]);
    let received = world.engines[0].received();
    assert!(received.iter().all(|request| request.connection_id == 1));
}

#[tokio::test]
async fn an_idle_connection_is_closed_by_the_gateway() {
    let world = world(1, "", "timeouts: {upstream_idle: 100ms}").await;
    assert_eq!(chats(&world, 1).await, [200]);
    world.engines[0].until(|stats| stats.connections_open == 0).await;
    assert_eq!(chats(&world, 1).await, [200]);
    assert_eq!(retries(&world, "stale").to_string(), "0");
    let received = world.engines[0].received();
    assert_ne!(received[0].connection_id, received[1].connection_id);
}

#[tokio::test]
async fn a_connection_is_not_shared_between_backends() {
    let world = world(2, "", "").await;
    assert_eq!(chats(&world, 8).await, [200; 8]);
    for engine in &world.engines {
        assert_eq!(engine.stats().connections_accepted, 1);
    }
}
