//! Answers that are rare or wrong, and those of our own.

use super::*;

async fn answering(bytes: &'static str, sections: &str) -> World {
    failing(&Fault::Raw(Bytes::from_static(bytes.as_bytes())), sections).await
}

#[tokio::test]
async fn an_answer_that_ends_with_its_connection_is_complete() {
    let world = answering("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\nall there is", "").await;
    assert_eq!(world.chat().await.text().await.unwrap(), "all there is");
    assert_eq!(world.last_entry().await["outcome"], "complete");
}

#[tokio::test]
async fn an_interim_answer_passes_before_the_final_one() {
    let world = answering(
        "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        "",
    )
    .await;
    let response = world.chat().await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.text().await.unwrap(), "ok");
    let entry = world.last_entry().await;
    assert_eq!((&entry["status"], &entry["outcome"]), (&200.into(), &"complete".into()));
}

#[tokio::test]
async fn after_an_interim_answer_another_backend_may_still_be_tried() {
    let interim = "HTTP/1.1 103 Early Hints\r\n\r\n";
    let world = answering(interim, "retries: {on: [reset]}").await;
    world.engines[1].fail_always(None);
    for _ in 0..2 {
        assert_eq!(world.chat().await.status(), 200);
    }
    assert!(world.received(CHAT)[0] >= 1);
}

#[tokio::test]
async fn a_switch_of_protocols_that_nobody_asked_for_is_no_answer() {
    let world =
        answering("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nhello", "")
            .await;
    assert_eq!(world.chat().await.status(), 502);
    assert_eq!(tries(&world), 1);
}

#[tokio::test]
async fn an_answer_of_our_own_is_whole_over_http2() {
    for (fault, status, code) in
        [(Fault::Garbage, 502, "backend_failed"), (Fault::StallBeforeResponse, 504, "backend_timeout")]
    {
        let world = failing(&fault, "timeouts: {first_byte: 100ms}").await;
        let mut client = Http2::connect(world.address).await;
        let response = h2_chat(&mut client, &stream_of(1)).await.unwrap();
        assert_eq!(response.status(), status);
        let length: usize = response.headers()["content-length"].to_str().unwrap().parse().unwrap();
        let (mut stream, mut body) = (response.into_body(), Vec::new());
        while let Some(data) = stream.data().await {
            body.extend_from_slice(&data.unwrap());
        }
        assert_eq!(body.len(), length);
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["error"]["code"], code);
    }
}
