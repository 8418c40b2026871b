//! Backends that break off.

use super::*;

#[tokio::test]
async fn a_stream_that_breaks_off_ends_without_its_last_chunk_and_is_not_repeated() {
    for fault in [Fault::CutStreamAfter(3), Fault::ResetStreamAfter(3)] {
        let world = failing(&fault, "retries: {on: [connect, stale, reset, 502, 503, 504]}").await;
        let mut client = raw_chat(&world, &stream_of(10)).await;
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(answer.matches("data: ").count(), 3, "what came is passed on");
        assert!(!answer.contains("\r\n0\r\n"), "{answer}");
        assert_eq!(tries(&world), 1);
        let entry = world.last_entry().await;
        assert_eq!(
            (&entry["status"], &entry["outcome"], &entry["tries"]),
            (&200.into(), &"backend_broke_off".into(), &1.into())
        );
    }
}

#[tokio::test]
async fn a_stream_that_breaks_off_is_an_error_over_http2() {
    for fault in [Fault::CutStreamAfter(3), Fault::ResetStreamAfter(3)] {
        let world = failing(&fault, "").await;
        let mut client = Http2::connect(world.address).await;
        let response = h2_chat(&mut client, &stream_of(10)).await.unwrap();
        let mut body = response.into_body();
        let error = loop {
            match body.data().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => break error,
                None => panic!("the stream looks complete"),
            }
        };
        assert!(error.is_reset(), "{error}");
        assert_eq!(tries(&world), 1);
        assert_eq!(world.last_entry().await["outcome"], "backend_broke_off");
    }
}

#[tokio::test]
async fn an_answer_that_is_not_streamed_and_breaks_off_is_not_complete() {
    let world = failing(&Fault::CutStreamAfter(0), "").await;
    let response = world.chat().await;
    assert_eq!(response.status(), 200);
    assert!(response.bytes().await.is_err());
    assert_eq!(tries(&world), 1);
    assert_eq!(world.last_entry().await["outcome"], "backend_broke_off");
}
