//! What is tried again on another backend, what is not, and how often.

use super::*;

#[tokio::test]
async fn a_status_without_retry_after_is_tried_on_another_backend() {
    for code in [502, 503, 504] {
        let world = world(2, "", "").await;
        let retry_after = None;
        world.engines[0].fail_always(Some(Fault::Status { code, retry_after }));
        assert_eq!(chats(&world, 4).await, [200; 4]);
        let failed = world.received(CHAT)[0];
        assert!(failed >= 1);
        assert_eq!(world.engines[1].stats().served(CHAT), 4);
        assert_eq!(retries(&world, &code.to_string()).to_string(), failed.to_string());
    }
}

#[tokio::test]
async fn an_early_status_is_tried_on_another_backend_with_the_whole_body() {
    let world = world(2, "", "").await;
    let text = "x".repeat(1024 * 1024);
    world.engines[0].fail_always(Some(Fault::EarlyStatus { code: 503 }));
    for _ in 0..2 {
        let request = world.client.post(world.url(CHAT)).json(&chat(&text));
        assert_eq!(request.send().await.unwrap().status(), 200);
    }
    assert!(world.received(CHAT)[0] >= 1);
    assert_bodies(&world, chat(&text).to_string().as_bytes(), 2);
}

/// Every body that engines have read is `body`, and there are `count` of them.
fn assert_bodies(world: &World, body: &[u8], count: usize) {
    let expected = sha256(body);
    let received: Vec<_> = world.engines.iter().flat_map(|engine| engine.received()).collect();
    assert_eq!(received.len(), count);
    for one in received {
        assert_eq!((one.body_bytes, &one.body_sha256), (body.len(), &expected));
        assert_eq!(one.header("content-length"), Some(body.len().to_string().as_str()));
    }
}

#[tokio::test]
async fn every_try_gets_the_same_bytes() {
    for bytes in [0, 1, 65_536, 65_537, 1024 * 1024] {
        let world = world(3, "", "").await;
        for engine in &world.engines {
            engine.fail_always(Some(OVERLOADED));
        }
        let body: Vec<u8> = (0..bytes).map(|at: u32| (at % 251) as u8).collect();
        let request = world.client.post(world.url(CHAT)).body(body.clone());
        assert_eq!(request.send().await.unwrap().status(), 503);
        assert_bodies(&world, &body, 3);
    }
}

#[tokio::test]
async fn a_backend_that_asks_for_a_pause_gets_it_and_the_client_is_told() {
    let world = world(2, "", "").await;
    let retry_after = Some(7);
    for engine in &world.engines {
        engine.fail_always(Some(Fault::Status { code: 503, retry_after }));
    }
    let response = world.chat().await;
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["retry-after"], "7");
    assert_eq!(world.received(CHAT).iter().sum::<u64>(), 1);
}

#[tokio::test]
async fn a_status_that_says_something_about_the_request_is_passed_on_at_once() {
    for code in [400, 422, 429, 500, 501, 505] {
        let retry_after = None;
        let fault = Fault::Status { code, retry_after };
        assert_eq!(tries_when_all_meet(&fault, "").await, (code, 1), "{code}");
    }
}

#[tokio::test]
async fn a_status_that_is_not_configured_is_passed_on_at_once() {
    assert_eq!(tries_when_all_meet(&OVERLOADED, "retries: {on: [connect, 502]}").await, (503, 1));
}

#[tokio::test]
async fn a_missed_first_byte_is_not_repeated_since_the_engine_is_at_work() {
    let short = "timeouts: {first_byte: 100ms}";
    assert_eq!(tries_when_all_meet(&Fault::StallBeforeResponse, short).await, (504, 1));
}

#[tokio::test]
async fn an_engine_that_missed_the_first_byte_is_told_to_stop() {
    let world = world(1, "", "timeouts: {first_byte: 100ms}").await;
    world.engines[0].fail_next(1, Fault::StallBeforeResponse);
    assert_eq!(world.chat().await.status(), 504);
    world.engines[0].until(|stats| stats.cancelled(CHAT) == 1).await;
    assert_eq!(world.last_entry().await["outcome"], "backend_timeout");
}

#[tokio::test]
async fn after_a_byte_of_the_answer_nothing_is_repeated() {
    let answer = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 10\r\n\r\nshort";
    let world = world(2, "", "retries: {on: [connect, stale, reset, 502, 503, 504]}").await;
    for engine in &world.engines {
        engine.fail_always(Some(Fault::Raw(answer.into())));
    }
    let response = world.chat().await;
    assert!(response.text().await.is_err(), "the answer is not complete");
    assert_eq!(world.received(CHAT).iter().sum::<u64>(), 1);
}

#[tokio::test]
async fn what_is_not_http_is_answered_502_and_not_repeated() {
    assert_eq!(tries_when_all_meet(&Fault::Garbage, "").await, (502, 1));
}

#[tokio::test]
async fn a_fresh_connection_that_breaks_is_repeated_only_where_configured() {
    for fault in [Fault::ResetBeforeResponse, Fault::CloseBeforeResponse] {
        assert_eq!(tries_when_all_meet(&fault, "").await, (502, 1));
        let world = world(2, "", "retries: {on: [reset]}").await;
        world.engines[0].fail_always(Some(fault));
        assert_eq!(chats(&world, 4).await, [200; 4]);
        assert!(retries(&world, "reset") >= 1.0);
    }
}

#[tokio::test]
async fn tries_are_bounded_by_tries_max() {
    for (tries_max, tries) in [(1, 1), (2, 2), (5, 4)] {
        let world = world(4, "", &format!("retries: {{tries_max: {tries_max}}}")).await;
        for engine in &world.engines {
            engine.fail_always(Some(OVERLOADED));
        }
        assert_eq!(world.chat().await.status(), 503);
        assert_eq!(world.received(CHAT).iter().sum::<u64>(), tries);
        let reason = if tries_max < 4 { "tries" } else { "backends" };
        assert_eq!(refused(&world, reason).to_string(), "1");
    }
}

#[tokio::test]
async fn the_last_answer_passes_as_it_is() {
    let world = world(2, "", "").await;
    for engine in &world.engines {
        engine.fail_always(Some(OVERLOADED));
    }
    let response = world.chat().await;
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["content-type"], "application/json");
    assert_eq!(
        response.text().await.unwrap(),
        r#"{"error":{"message":"injected fault","type":"InternalServerError","param":null,"code":503}}"#
    );
    let entry = world.last_entry().await;
    assert_eq!((&entry["tries"], &entry["retried"]), (&2.into(), &vec!["503"].into()));
}

#[tokio::test]
async fn a_connection_that_cannot_be_made_is_not_logged_as_repeated_when_it_was_not() {
    let (_nobody, world) = one_down(0, "").await;
    assert_eq!(world.chat().await.status(), 502);
    let entry = world.last_entry().await;
    assert_eq!((&entry["tries"], &entry["retried"]), (&1.into(), &serde_json::json!([])));
}

#[tokio::test]
async fn a_stale_connection_costs_no_request() {
    let world = world(2, "", "").await;
    world.engines[0].fail_next(1, Fault::CloseIdle);
    assert_eq!(chats(&world, 6).await, [200; 6]);
    assert_eq!(retries(&world, "stale").to_string(), "1");
    let served: u64 = world.engines.iter().map(|engine| engine.stats().served(CHAT)).sum();
    assert_eq!(served, 6, "each was answered once");
}

#[tokio::test]
async fn the_only_backend_is_tried_again_after_a_stale_connection() {
    let world = world(1, "", "").await;
    world.engines[0].fail_next(1, Fault::CloseIdle);
    assert_eq!(chats(&world, 1).await, [200]);
    let body = "x".repeat(1024 * 1024);
    let request = world.client.post(world.url(CHAT)).json(&chat(&body));
    assert_eq!(request.send().await.unwrap().status(), 200);
    assert_eq!(retries(&world, "stale").to_string(), "1");
    let received = world.engines[0].received();
    assert_eq!(received.len(), 2, "the second try was the first that was read");
    assert_eq!(received[1].body_bytes, chat(&body).to_string().len());
    assert_ne!(received[0].connection_id, received[1].connection_id);
}

#[tokio::test]
async fn when_every_connection_is_stale_a_fresh_one_is_made() {
    let world = world(2, "", "").await;
    for engine in &world.engines {
        engine.fail_next(1, Fault::CloseIdle);
    }
    assert_eq!(chats(&world, 3).await, [200; 3]);
    assert_eq!(retries(&world, "stale").to_string(), "2");
    let entry = world.last_entry().await;
    assert_eq!((&entry["tries"], &entry["retried"]), (&3.into(), &vec!["stale", "stale"].into()));
}

#[tokio::test]
async fn retries_beyond_their_share_are_refused_and_counted() {
    let world = world(2, "", "retries: {budget_ratio: 0}").await;
    world.engines[0].fail_always(Some(OVERLOADED));
    let statuses = chats(&world, 24).await;
    let passed_on = statuses.iter().filter(|&&status| status == 503).count();
    assert_eq!(retries(&world, "503").to_string(), "10", "the reserve");
    assert!(passed_on >= 1, "{statuses:?}");
    assert_eq!(refused(&world, "budget").to_string(), passed_on.to_string());
}

#[tokio::test]
async fn connect_failures_do_not_spend_the_share() {
    let (_nobody, world) = one_down(1, "retries: {budget_ratio: 0}").await;
    assert_eq!(chats(&world, 30).await, [200; 30]);
    assert!(retries(&world, "connect") > 10.0);
}
