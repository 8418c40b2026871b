//! A backend is believed to hold a prompt from the try on, and no longer if its first token did not come back.

use super::*;
use crate::world::reserve;
use mocks::Fault;

/// Eight blocks and a bit.
fn prompt() -> Value {
    about(&text(1, 8 * KIB))
}

/// One engine that meets `fault`, and tries that give up soon.
async fn failing(fault: Fault, sections: &str) -> World {
    let world = World::with(Plan {
        engines: vec![engine()],
        cluster: "policy: pmc".to_owned(),
        sections: sections.to_owned(),
        ..Plan::default()
    })
    .await;
    world.engines[0].fail_always(Some(fault));
    world
}

/// What is believed to be at the one backend after a request has ended: blocks, and whether tokens take room.
async fn left_behind(world: &World) -> (usize, bool) {
    world.idle().await;
    assert_eq!(load(world, 0), Load::default());
    (blocks(world)[0], cluster(world).blocks.tokens(0) > 0)
}

const NOTHING: (usize, bool) = (0, false);
const ALL: (usize, bool) = (8, true);

#[tokio::test]
async fn a_prompt_counts_as_held_while_it_waits_and_until_its_client_leaves() {
    for stream in [false, true] {
        let world = pmc(1).await;
        let body = if stream { streamed(prompt()) } else { prompt() };
        let gate = world.engines[0].hold_first_token();
        let mut waiting = Waiting::default();
        waiting.send(&world, CHAT, &body, &gate, 1).await;
        assert_eq!(blocks(&world), [8]);
        assert!(pending_tokens(&world, 0) > 2048);
        drop(waiting);
        assert_eq!(left_behind(&world).await, NOTHING, "stream: {stream}");
        let withdrawn = r#"kvway_shadow_withdrawn_blocks_total{cluster="llama"}"#;
        assert!((world.metric(withdrawn) - 8.0).abs() < 1e-9);
    }
}

#[tokio::test]
async fn an_answer_that_is_no_success_leaves_nothing() {
    for code in [400, 401, 404, 422, 429, 500, 501, 502, 503] {
        for body in [prompt(), streamed(prompt())] {
            let world = failing(Fault::Status { code, retry_after: Some(1) }, "").await;
            let response = world.client.post(world.url(CHAT)).json(&body).send().await.unwrap();
            assert_eq!(response.status(), code);
            drop(response.bytes().await.unwrap());
            assert_eq!(left_behind(&world).await, NOTHING, "{code}");
        }
    }
}

#[tokio::test]
async fn an_answer_that_fails_before_its_first_token_leaves_nothing() {
    let soon = "timeouts: {first_byte: 50ms, between_bytes: 50ms}";
    for fault in [
        Fault::CloseBeforeResponse,
        Fault::ResetBeforeResponse,
        Fault::Garbage,
        Fault::StallBeforeResponse,
        Fault::CutStreamAfter(0),
        Fault::ResetStreamAfter(0),
        Fault::StallAfter(0),
        Fault::Raw(b"HTTP/1.1 101 Switching Protocols\r\n\r\n".as_slice().into()),
        Fault::Raw(b"HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n".as_slice().into()),
    ] {
        let world = failing(fault.clone(), soon).await;
        if let Ok(response) = world.client.post(world.url(CHAT)).json(&streamed(prompt())).send().await {
            // It breaks off, or is an error.
            let _end = response.bytes().await.is_ok();
        }
        assert_eq!(left_behind(&world).await, NOTHING, "{fault:?}");
    }
}

#[tokio::test]
async fn an_answer_that_fails_after_its_first_token_leaves_its_prompt() {
    let soon = "timeouts: {between_bytes: 50ms}";
    for (fault, body) in [
        (Fault::CutStreamAfter(1), streamed(prompt())),
        (Fault::ResetStreamAfter(2), streamed(prompt())),
        (Fault::StallAfter(1), streamed(prompt())),
        (Fault::CutStreamAfter(0), prompt()),
        (Fault::StallAfter(0), prompt()),
    ] {
        let world = failing(fault.clone(), soon).await;
        let response = world.client.post(world.url(CHAT)).json(&body).send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert!(response.bytes().await.is_err());
        let expected = if fault == Fault::ResetStreamAfter(2) { vec![ALL, NOTHING] } else { vec![ALL] };
        // A reset may overtake what was sent before it.
        assert!(expected.contains(&left_behind(&world).await), "{fault:?}");
    }
}

#[tokio::test]
async fn an_answer_leaves_its_prompt() {
    for body in [prompt(), streamed(prompt())] {
        let world = pmc(1).await;
        chat(&world, &body).await;
        assert_eq!(left_behind(&world).await, ALL);
    }
}

#[tokio::test]
async fn a_backend_that_takes_no_connection_is_believed_to_hold_nothing() {
    let (_nobody, address) = reserve();
    let world = World::with(Plan {
        engines: vec![],
        more: vec![format!(r#"id: vllm-0, address: "{address}""#)],
        cluster: "policy: pmc".to_owned(),
        ..Plan::default()
    })
    .await;
    let response = world.client.post(world.url(CHAT)).json(&prompt()).send().await.unwrap();
    assert_eq!(response.status(), 502);
    assert_eq!(left_behind(&world).await, NOTHING);
}

#[tokio::test]
async fn what_another_request_has_brought_stays_when_one_fails() {
    let world = pmc(1).await;
    chat(&world, &prompt()).await;
    let longer = about(&(text(1, 8 * KIB) + &text(2, 8 * KIB)));
    world.engines[0].fail_next(1, Fault::Status { code: 400, retry_after: None });
    let gate = world.engines[0].hold_headers();
    let request = world.client.post(world.url(CHAT)).json(&longer).send();
    drop(gate);
    assert_eq!(request.await.unwrap().status(), 400);
    assert_eq!(left_behind(&world).await, ALL);
}
