//! Control actions at a controller.

use super::{Cache, LONG, recorded_answer, tokens};
use kvway::clients::breaker::State;
use kvway::clients::call::Reason;
use kvway::clients::lmcache::{Acted, Action};
use mocks::{ControllerOptions, Fault};
use std::time::Duration;
use tokio::time::Instant;

fn pin() -> Action {
    Action::Pin { instance: "inst-a".to_owned(), location: "LocalCPUBackend".to_owned() }
}

fn actions() -> [Action; 4] {
    let (instance, location) = ("inst-a".to_owned(), "LocalCPUBackend".to_owned());
    [
        pin(),
        Action::Compress {
            instance: instance.clone(),
            location: location.clone(),
            method: "cachegen".to_owned(),
        },
        Action::Evict { instance: instance.clone() },
        Action::Clear { instance, location },
    ]
}

#[tokio::test]
async fn each_action_sends_what_the_controller_expects_of_it() {
    let options = ControllerOptions { evict: true, ..ControllerOptions::default() };
    let cache = Cache::with(options, |_| {});
    cache.server.admit("inst-a", "LocalCPUBackend", &tokens(300));
    let place = r#""instance_id":"inst-a","location":"LocalCPUBackend""#;
    let bodies = [
        format!(r#"{{"tokens":[0,1],{place}}}"#),
        format!(r#"{{"tokens":[0,1],{place},"method":"cachegen"}}"#),
        r#"{"tokens":[0,1],"instance_id":"inst-a"}"#.to_owned(),
        format!("{{{place}}}"),
    ];
    for (action, body) in actions().into_iter().zip(bodies) {
        let acted = cache.client.act(&action, "tiny", &tokens(2)).await;
        assert!(acted.is_ok(), "{acted:?}");
        assert_eq!(cache.sent(&format!("/{}", action.name())), body);
    }
}

#[tokio::test]
async fn recorded_answers_are_read() {
    let cases = [("pin", 512), ("pin miss tokens", 0), ("compress", 512), ("clear", 600)];
    for (title, expected) in cases {
        let cache = Cache::new();
        cache.server.fail_always_on("/pin", recorded_answer("lmcache-0.5.6-controller.txt", title));
        let acted = cache.client.act(&pin(), "tiny", &tokens(600)).await;
        assert_eq!(acted, Ok(Acted { tokens: expected }), "{title}");
    }
}

#[tokio::test]
async fn a_controller_without_evict_answers_404_and_that_is_neutral() {
    let cache = Cache::new();
    let evict = Action::Evict { instance: "inst-a".to_owned() };
    for _ in 0..3 {
        let error = cache.client.act(&evict, "tiny", &tokens(300)).await.unwrap_err();
        assert_eq!((error.operation, error.status()), ("evict", Some(404)));
    }
    assert_eq!((cache.calls("/evict"), cache.state()), (3, State::Closed));
}

#[tokio::test]
async fn an_action_that_was_sent_is_never_sent_again() {
    let faults = [
        Fault::Status { code: 500, retry_after: None },
        Fault::Status { code: 429, retry_after: None },
        Fault::CloseBeforeResponse,
        Fault::ResetBeforeResponse,
        Fault::Garbage,
        Fault::StallBeforeResponse,
    ];
    for fault in faults {
        let cache = Cache::with(ControllerOptions::default(), |section| {
            section.control_timeout = Duration::from_millis(50);
            section.circuit_breaker.failure_threshold = 9;
        });
        cache.server.fail_always_on("/pin", fault.clone());
        let error = cache.client.act(&pin(), "tiny", &tokens(300)).await.unwrap_err();
        assert!(error.is_failure(), "{error}");
        assert_eq!((cache.calls("/pin"), cache.state()), (1, State::Closed), "{fault:?}");
    }
}

#[tokio::test]
async fn an_action_that_reached_nobody_is_tried_again() {
    let Cache { server, client, breaker } = Cache::new();
    server.stop().await;
    let error = client.act(&pin(), "tiny", &tokens(300)).await.unwrap_err();
    assert_eq!(error.reason, Reason::Connect);
    assert_eq!(breaker.state(Instant::now()), State::Open, "after two attempts");
}

#[tokio::test]
async fn an_action_has_its_own_time_and_not_that_of_a_request() {
    let cache = Cache::with(ControllerOptions::default(), |section| {
        section.request_timeout = Duration::from_millis(1);
    });
    cache.server.admit("inst-a", "LocalCPUBackend", &tokens(300));
    let gate = cache.server.hold_path("/pin");
    let (tokens, pin) = (tokens(300), pin());
    let (acted, ()) = tokio::join!(cache.client.act(&pin, "tiny", &tokens), async {
        gate.waiting(1).await;
        leap(Duration::from_secs(1)).await;
        gate.release();
    });
    assert!(acted.is_ok(), "{acted:?}");
}

/// Leaps, and goes on with the real clock, on which the network runs.
async fn leap(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[tokio::test]
async fn an_action_that_waited_for_its_place_still_has_all_its_time() {
    let cache = Cache::with(ControllerOptions::default(), |section| {
        section.max_conns_per_host = 1;
        section.request_timeout = 10 * LONG;
    });
    cache.server.admit("inst-a", "LocalCPUBackend", &tokens(300));
    let (lookups, pins) = (cache.server.hold_path("/lookup"), cache.server.hold_path("/pin"));
    let (tokens, pin) = (tokens(300), pin());
    let most = LONG * 9 / 10;
    let looked_up = cache.client.look_up("tiny", None, &tokens, Instant::now() + 10 * LONG);
    let acted = async {
        lookups.waiting(1).await;
        let time = async {
            leap(most).await;
            lookups.release();
            pins.waiting(1).await;
            leap(most).await;
            pins.release();
        };
        tokio::join!(cache.client.act(&pin, "tiny", &tokens), time).0
    };
    let (looked_up, acted) = tokio::join!(looked_up, acted);
    assert!(looked_up.is_ok(), "{looked_up:?}");
    assert!(acted.is_ok(), "{acted:?}");
}
