//! Clients that leave.

use super::*;

/// What the log says of the only request, once the engine has seen that nobody waits.
async fn cancelled(world: &World) -> (Value, Value) {
    world.engines[0].until(|stats| stats.cancelled(CHAT) == 1).await;
    assert_eq!(world.engines[0].stats().path(CHAT).received, 1);
    let mut entry = world.last_entry().await;
    (entry["status"].take(), entry["outcome"].take())
}

#[tokio::test]
async fn before_the_first_byte_stops_the_engine() {
    let world = world(SseOptions::default(), "").await;
    let gate = world.engines[0].hold_headers();
    let client = raw_chat(&world, &stream_of(5)).await;
    gate.waiting(1).await;
    drop(client);
    assert_eq!(cancelled(&world).await, (499.into(), "client_gone".into()));
}

#[tokio::test]
async fn before_the_first_byte_over_http2_stops_the_engine() {
    let world = world(SseOptions::default(), "").await;
    let gate = world.engines[0].hold_headers();
    let mut client = Http2::connect(world.address).await;
    let response = h2_chat(&mut client, &stream_of(5));
    gate.waiting(1).await;
    drop(response);
    assert_eq!(cancelled(&world).await, (499.into(), "client_gone".into()));
}

#[tokio::test]
async fn after_some_events_stops_the_engine() {
    let world = world(SseOptions::default(), "").await;
    world.engines[0].fail_next(1, Fault::StallAfter(3));
    let mut response = post(&world, 10).await;
    read_events(&mut response, 3).await;
    drop(response);
    assert_eq!(cancelled(&world).await, (200.into(), "client_gone".into()));
}

#[tokio::test]
async fn after_some_events_over_http2_stops_the_engine_and_spares_the_neighbour() {
    let world = world(SseOptions::default(), "").await;
    world.engines[0].fail_next(1, Fault::StallAfter(3));
    let mut client = Http2::connect(world.address).await;
    let response = h2_chat(&mut client, &stream_of(10)).await.unwrap();
    let mut body = response.into_body();
    let mut events = 0;
    while events < 3 {
        let data = body.data().await.unwrap().unwrap();
        events += String::from_utf8_lossy(&data).matches("data: ").count();
    }
    drop(body);
    world.engines[0].until(|stats| stats.cancelled(CHAT) == 1).await;
    let response = h2_chat(&mut client, &stream_of(1)).await.unwrap();
    assert_eq!(response.status(), 200, "the connection goes on");
}

#[tokio::test]
async fn in_the_middle_of_a_running_stream_stops_the_engine() {
    let sse = SseOptions { gap: Duration::from_millis(1), ..SseOptions::default() };
    let world = world(sse, "").await;
    let mut response = post(&world, 100_000).await;
    read_events(&mut response, 10).await;
    drop(response);
    assert_eq!(cancelled(&world).await, (200.into(), "client_gone".into()));
}

#[tokio::test]
async fn while_a_second_try_runs_stops_that_engine() {
    let world = World::new().await;
    let (code, retry_after) = (503, None);
    world.engines[0].fail_always(Some(Fault::Status { code, retry_after }));
    let gate = world.engines[1].hold_headers();
    let clients = [raw_chat(&world, &stream_of(5)).await, raw_chat(&world, &stream_of(5)).await];
    gate.waiting(2).await;
    drop(clients);
    world.engines[1].until(|stats| stats.cancelled(CHAT) == 2).await;
    let log = world.access_log().await;
    assert!(log.iter().all(|entry| entry["outcome"] == "client_gone"), "{log:?}");
    assert!(log.iter().any(|entry| entry["tries"] == 2), "{log:?}");
}
