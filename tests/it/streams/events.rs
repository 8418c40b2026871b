//! Events pass as they come.

use super::*;

#[tokio::test]
async fn each_event_reaches_the_client_before_the_next_is_made() {
    let (actor, world) = Actor::new("").await;
    let (mut response, mut socket) = tokio::join!(post(&world, 50), actor.start_stream());
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    for event in 0..50 {
        let event = format!("data: {event}\n\n");
        socket.write_all(&chunk(event.as_bytes())).await.unwrap();
        assert_eq!(response.chunk().await.unwrap().unwrap(), event);
    }
    socket.write_all(b"0\r\n\r\n").await.unwrap();
    assert_eq!(response.chunk().await.unwrap(), None);
}

#[tokio::test]
async fn each_event_reaches_a_client_of_http2_before_the_next_is_made() {
    let (actor, world) = Actor::new("").await;
    let mut client = Http2::connect(world.address).await;
    let (response, mut socket) = tokio::join!(h2_chat(&mut client, &stream_of(50)), actor.start_stream());
    let mut body = response.unwrap().into_body();
    for event in 0..50 {
        let event = format!("data: {event}\n\n");
        socket.write_all(&chunk(event.as_bytes())).await.unwrap();
        assert_eq!(body.data().await.unwrap().unwrap(), event);
    }
    socket.write_all(b"0\r\n\r\n").await.unwrap();
    while let Some(data) = body.data().await {
        assert!(data.unwrap().is_empty());
    }
    assert!(body.is_end_stream());
}

#[tokio::test]
async fn an_event_in_pieces_passes_in_pieces() {
    let (actor, world) = Actor::new("").await;
    let (mut response, mut socket) = tokio::join!(post(&world, 1), actor.start_stream());
    for piece in ["da", "ta: {\"usage\":{\"prom", "pt_tokens\":7}}", "\n", "\n"] {
        socket.write_all(&chunk(piece.as_bytes())).await.unwrap();
        assert_eq!(response.chunk().await.unwrap().unwrap(), piece);
    }
    socket.write_all(b"0\r\n\r\n").await.unwrap();
    assert_eq!(response.chunk().await.unwrap(), None);
    assert_eq!(world.last_entry().await["prompt_tokens"], 7);
}

#[tokio::test]
async fn the_header_passes_before_the_first_event_is_there() {
    let world = world(SseOptions::default(), "").await;
    let gate = world.engines[0].hold_first_token();
    let response = post(&world, 5).await;
    assert_eq!(response.status(), 200);
    gate.waiting(1).await;
    gate.release();
    let text = response.text().await.unwrap();
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
}

#[tokio::test]
async fn a_burst_arrives_whole_and_in_order() {
    let world = world(SseOptions::default(), "").await;
    let text = post(&world, 20_000).await.text().await.unwrap();
    // One for the role, one for the usage, one for the end.
    assert_eq!(text.matches("data: ").count(), 20_000 + 3);
    assert_eq!(text.matches("\n\n").count(), 20_000 + 3);
    assert!(text.ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn after_a_stream_the_connections_are_used_again() {
    let world = world(SseOptions::default(), "").await;
    for _ in 0..3 {
        drop(post(&world, 5).await.text().await.unwrap());
    }
    assert_eq!(world.engines[0].stats().connections_accepted, 1);
    assert_eq!(world.app.connections.count(), 1);
}
