//! Backends that take no connection and refuse none.

use super::*;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Far more than the configured 500 ms, far less than it takes the system to give a connection up.
const IN_TIME: Duration = Duration::from_secs(10);

/// A listener whose queue is full, so that nobody can connect, and those who fill it.
async fn full_listener() -> (TcpListener, JoinSet<Option<TcpStream>>) {
    let (socket, address) = reserve();
    let listener = socket.listen(1).unwrap();
    let mut queue = JoinSet::new();
    for _ in 0..8 {
        queue.spawn(async move { TcpStream::connect(address).await.ok() });
    }
    // Two fit; who connects now waits for ever.
    for _ in 0..2 {
        assert!(queue.join_next().await.unwrap().unwrap().is_some());
    }
    (listener, queue)
}

#[tokio::test]
async fn a_backend_that_takes_no_connection_is_passed_over_in_time() {
    let (silent, _queue) = full_listener().await;
    let address = silent.local_addr().unwrap();
    let world = World::with(Plan {
        engines: vec![EngineOptions::default()],
        more: vec![format!(r#"id: silent, address: "{address}""#)],
        sections: "timeouts: {connect: 500ms}".to_owned(),
        ..Plan::default()
    })
    .await;
    let answered = tokio::time::timeout(IN_TIME, chats(&world, 2)).await;
    assert_eq!(answered.unwrap(), [200; 2]);
    assert!(retries(&world, "connect") >= 1.0);
}

#[tokio::test]
async fn when_no_backend_takes_a_connection_the_answer_is_504() {
    let (silent, _queue) = full_listener().await;
    let address = silent.local_addr().unwrap();
    let world = World::with(Plan {
        engines: vec![],
        more: vec![format!(r#"id: silent, address: "{address}""#)],
        sections: "timeouts: {connect: 500ms}".to_owned(),
        ..Plan::default()
    })
    .await;
    let answered = tokio::time::timeout(IN_TIME, world.chat()).await;
    assert_eq!(answered.unwrap().status(), 504);
    let entry = world.last_entry().await;
    assert_eq!(entry["outcome"], "backend_timeout");
}
