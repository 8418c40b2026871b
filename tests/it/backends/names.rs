//! Backends that are named and not numbered.

use super::*;

async fn named(more: Vec<String>, engines: usize) -> World {
    World::with(Plan { engines: vec![EngineOptions::default(); engines], more, ..Plan::default() }).await
}

#[tokio::test]
async fn a_name_is_resolved() {
    let engine = Engine::start(EngineOptions::default()).unwrap();
    let port = engine.address().port();
    let world = named(vec![format!(r#"id: a, address: "localhost:{port}""#)], 0).await;
    assert_eq!(world.backend("a").resolved(), Some(engine.address()));
    assert_eq!(chats(&world, 2).await, [200; 2]);
    world.check_health().await;
    let host = format!("localhost:{port}");
    let received = engine.received();
    assert_eq!(received.len(), 3);
    for request in received {
        assert_eq!(request.header("host"), Some(host.as_str()));
    }
}

#[tokio::test]
async fn a_name_that_does_not_resolve_leaves_the_others_to_serve() {
    let world = named(vec![r#"id: lost, address: "no-such-host.invalid:1""#.to_owned()], 2).await;
    assert_eq!(world.backend("lost").resolved(), None);
    assert_eq!(chats(&world, 8).await, [200; 8]);
    assert_eq!(world.received(CHAT), [4, 4]);
    assert_eq!(retries(&world, "connect").to_string(), "0");
}

#[tokio::test]
async fn without_any_address_the_answer_is_503() {
    let world = named(vec![r#"id: lost, address: "no-such-host.invalid:1""#.to_owned()], 0).await;
    assert_eq!(world.chat().await.status(), 503);
}
