//! What all calls to one server have in common.

use super::{Cache, LONG, section, soon, tokens};
use bytes::Bytes;
use kvway::clients::call::Reason;
use kvway::clients::endpoint::{Endpoint, Post};
use mocks::{Controller, ControllerOptions, Fault};
use std::time::Duration;
use tokio::time::Instant;

fn post(answer_bytes_max: usize) -> Post<'static> {
    let (operation, path, body) = ("pin", "/pin", Bytes::new());
    Post { operation, path, body, authorization: None, answer_bytes_max, time: None }
}

#[tokio::test]
async fn no_more_calls_are_in_flight_than_configured() {
    let cache = Cache::with(ControllerOptions::default(), |section| section.max_conns_per_host = 1);
    let gate = cache.server.hold_path("/lookup");
    let tokens = tokens(9);
    let first = cache.client.look_up("tiny", None, &tokens, soon());
    let second = async {
        gate.waiting(1).await;
        let deadline = Instant::now() + Duration::from_millis(20);
        let waited = cache.client.look_up("tiny", None, &tokens, deadline).await;
        gate.release();
        waited
    };
    let (first, second) = tokio::join!(first, second);
    assert_eq!(first, Ok(vec![]));
    assert_eq!(second.unwrap_err().reason, Reason::Busy);
    assert_eq!(cache.calls("/lookup"), 1);
    assert_eq!(
        cache.client.look_up("tiny", None, &tokens, soon()).await,
        Ok(vec![]),
        "the place is given back"
    );
}

#[tokio::test]
async fn calls_one_after_the_other_share_a_connection() {
    let cache = Cache::with(ControllerOptions::default(), |section| section.max_idle_conns = 1);
    for _ in 0..5 {
        cache.client.look_up("tiny", None, &tokens(9), soon()).await.unwrap();
    }
    assert_eq!(cache.server.stats().connections_accepted, 1);
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let _installed = rustls::crypto::ring::default_provider().install_default();
    let server = Controller::start(ControllerOptions::default()).unwrap();
    let answer = "HTTP/1.1 307 x\r\nlocation: /lookup\r\ncontent-length: 0\r\n\r\n";
    server.fail_always_on("/pin", Fault::Raw(Bytes::from(answer)));
    let base = format!("http://{}", server.address());
    let endpoint = Endpoint::new(Some(&base), &section(server.address())).unwrap();
    let body = Bytes::from_static(b"{\"tokens\":[1]}");
    let post = Post { body, ..post(99) };
    let error = endpoint.post(&post, Instant::now() + LONG).await.unwrap_err();
    assert_eq!(error.reason, Reason::Status(307));
    assert_eq!(server.stats().path("/lookup").received, 0);
}

#[tokio::test]
async fn an_answer_is_taken_up_to_its_bound() {
    let _installed = rustls::crypto::ring::default_provider().install_default();
    let server = Controller::start(ControllerOptions::default()).unwrap();
    server.fail_always_on("/pin", super::raw(200, "0123456789"));
    let base = format!("http://{}", server.address());
    let endpoint = Endpoint::new(Some(&base), &section(server.address())).unwrap();
    for (bytes_max, fits) in [(10, true), (9, false)] {
        let answer = endpoint.post(&post(bytes_max), soon()).await.map_err(|error| error.reason);
        assert_eq!(answer, if fits { Ok(b"0123456789".to_vec()) } else { Err(Reason::TooLong(9)) });
    }
}

#[tokio::test]
async fn an_answer_that_ends_too_early_is_a_broken_connection() {
    let cache = Cache::with(ControllerOptions::default(), |section| section.retry.max_attempts = 1);
    let cut = "HTTP/1.1 200 x\r\ncontent-length: 99\r\n\r\n{\"layout_info\":{}}";
    cache.server.fail_always_on("/lookup", Fault::Raw(Bytes::from(cut)));
    let error = cache.client.look_up("tiny", None, &tokens(9), soon()).await.unwrap_err();
    assert_eq!((error.kind(), error.is_failure()), ("broken", true));
}
