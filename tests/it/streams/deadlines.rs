//! Streams that are silent, or go on, for too long.

use super::*;

#[tokio::test]
async fn silence_in_the_middle_of_a_stream_ends_it() {
    let world = failing(&Fault::StallAfter(3), "timeouts: {between_bytes: 300ms}").await;
    let mut response = post(&world, 10).await;
    read_events(&mut response, 3).await;
    assert!(response.chunk().await.is_err(), "the end is not a regular one");
    until(|| world.engines.iter().any(|engine| engine.stats().cancelled(CHAT) == 1)).await;
    assert_eq!(tries(&world), 1);
    let entry = world.last_entry().await;
    assert_eq!((&entry["status"], &entry["outcome"]), (&200.into(), &"deadline".into()));
}

#[tokio::test]
async fn a_stream_that_takes_too_long_as_a_whole_is_ended() {
    let sse = SseOptions { gap: Duration::from_millis(5), ..SseOptions::default() };
    let world = world(sse, "timeouts: {first_byte: 500ms, total: 500ms}").await;
    let response = post(&world, 100_000).await;
    assert_eq!(response.status(), 200);
    assert!(response.bytes().await.is_err());
    world.engines[0].until(|stats| stats.cancelled(CHAT) == 1).await;
    assert_eq!(world.last_entry().await["outcome"], "deadline");
}

#[tokio::test]
async fn the_total_holds_before_the_first_byte_too() {
    let world = failing(&Fault::StallBeforeResponse, "timeouts: {first_byte: 150ms, total: 150ms}").await;
    let response = world.chat().await;
    assert_eq!(response.status(), 504);
    assert_eq!(tries(&world), 1);
    let text = response.text().await.unwrap();
    assert!(text.contains("backend_timeout"), "{text}");
}

#[tokio::test]
async fn silence_ends_a_stream_over_http2_with_an_error() {
    let world = failing(&Fault::StallAfter(2), "timeouts: {between_bytes: 300ms}").await;
    let mut client = Http2::connect(world.address).await;
    let mut body = h2_chat(&mut client, &stream_of(9)).await.unwrap().into_body();
    while body.data().await.unwrap().is_ok() {}
    assert_eq!(world.last_entry().await["outcome"], "deadline");
}
