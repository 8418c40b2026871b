//! Lookups at a controller.

use super::{Cache, LONG, raw, recorded_answer, soon, tokens};
use kvway::clients::breaker::State;
use kvway::clients::call::{CallError, Reason};
use kvway::clients::lmcache::{Action, Placement};
use mocks::{ControllerOptions, Fault};
use std::time::Duration;
use tokio::time::Instant;

const LOOKUP: &str = "/lookup";
const FILE: &str = "lmcache-0.5.6-controller.txt";

fn placement(instance: &str, location: &str, tokens: usize) -> Placement {
    Placement { instance: instance.to_owned(), location: location.to_owned(), tokens }
}

async fn look_up(cache: &Cache, count: u32) -> Result<Vec<Placement>, CallError> {
    cache.client.look_up("tiny", None, &tokens(count), soon()).await
}

/// What is made of an answer to a lookup of so many tokens.
async fn read(answer: Fault, count: u32) -> Result<Vec<Placement>, Reason> {
    let cache = Cache::new();
    cache.server.fail_always_on(LOOKUP, answer);
    look_up(&cache, count).await.map_err(|error| error.reason)
}

#[tokio::test]
async fn a_lookup_sends_the_tokens_and_nothing_else() {
    let cache = Cache::new();
    look_up(&cache, 3).await.unwrap();
    assert_eq!(cache.sent(LOOKUP), r#"{"tokens":[0,1,2]}"#);
}

#[tokio::test]
async fn recorded_answers_are_read() {
    let cpu = "LocalCPUBackend";
    let cases = [
        ("lookup 0..1100", 1100, vec![placement("inst-a", cpu, 512), placement("inst-b", cpu, 1100)]),
        ("lookup 0..512", 512, vec![placement("inst-a", cpu, 512)]),
        ("lookup 5000..5600 (disk)", 600, vec![placement("inst-c", "LocalDiskBackend", 512)]),
        ("lookup 0..255 (<1 chunk)", 255, vec![]),
        ("lookup miss", 600, vec![]),
    ];
    for (title, count, expected) in cases {
        assert_eq!(read(recorded_answer(FILE, title), count).await, Ok(expected), "{title}");
    }
}

#[tokio::test]
async fn both_shapes_of_a_spot_are_read() {
    for object_shape in [false, true] {
        let options = ControllerOptions { object_shape, ..ControllerOptions::default() };
        let cache = Cache::with(options, |_| {});
        cache.server.admit("inst-a", "LocalCPUBackend", &tokens(600));
        assert_eq!(look_up(&cache, 512).await, Ok(vec![placement("inst-a", "LocalCPUBackend", 512)]));
    }
}

#[tokio::test]
async fn what_is_not_known_is_passed_over() {
    let answer = r#"{"new":{"a":[1]},"layout_info":{"a":["cpu",7,"new"],"b":{"2":null,"1":8,"0":"disk"}},"event_id":1}"#;
    let expected = vec![placement("a", "cpu", 7), placement("b", "disk", 8)];
    assert_eq!(read(raw(200, answer), 9).await, Ok(expected));
}

#[tokio::test]
async fn counts_are_at_least_one_and_at_most_the_prompt() {
    let answer = r#"{"layout_info":{"none":["cpu",0],"one":["cpu",1],"more":["cpu",18446744073709551615]}}"#;
    let expected = vec![placement("one", "cpu", 1), placement("more", "cpu", 4)];
    assert_eq!(read(raw(200, answer), 4).await, Ok(expected));
}

#[tokio::test]
async fn names_and_instances_beyond_the_bounds_are_passed_over() {
    let long = "x".repeat(257);
    let answer = format!(r#"{{"layout_info":{{"{long}":["cpu",1],"a":["{long}",1],"b":["cpu",1]}}}}"#);
    assert_eq!(read(raw(200, &answer), 1).await, Ok(vec![placement("b", "cpu", 1)]));
    let many: Vec<String> = (0..1030).map(|index| format!(r#""i{index}":["cpu",1]"#)).collect();
    let answer = format!(r#"{{"layout_info":{{{}}}}}"#, many.join(","));
    assert_eq!(read(raw(200, &answer), 1).await.unwrap().len(), 1024);
}

#[tokio::test]
async fn an_answer_that_says_something_else_is_not_understood_and_not_asked_for_again() {
    let bodies = [
        "",
        "no JSON",
        "[]",
        "{}",
        r#"{"layout_info":null}"#,
        r#"{"layout_info":[]}"#,
        r#"{"layout_info":{"a":["cpu"]}}"#,
        r#"{"layout_info":{"a":{"0":"cpu"}}}"#,
        r#"{"layout_info":{"a":["cpu",-1]}}"#,
        r#"{"layout_info":{"a":["cpu",1.5]}}"#,
        r#"{"layout_info":{"a":[1,"cpu"]}}"#,
        r#"{"layout_info":{"a":"cpu"}}"#,
        r#"{"layout_info":{}}{}"#,
    ];
    for body in bodies {
        let cache = Cache::new();
        cache.server.fail_always_on(LOOKUP, raw(200, body));
        let error = look_up(&cache, 9).await.unwrap_err();
        assert_eq!((error.operation, error.kind()), ("lookup", "undecodable"), "{body}");
        assert_eq!(cache.calls(LOOKUP), 1, "{body}");
    }
}

#[tokio::test]
async fn an_answer_longer_than_the_bound_is_given_up() {
    let fault = raw(200, &" ".repeat(1024 * 1024 + 1));
    assert_eq!(read(fault, 1).await, Err(Reason::TooLong(1024 * 1024)));
}

#[tokio::test]
async fn errors_name_the_status_and_nothing_of_the_body() {
    for (title, status) in [("lookup bad type", 422), ("lookup missing", 422), ("pin unknown instance", 500)]
    {
        let cache = Cache::new();
        cache.server.fail_always_on(LOOKUP, recorded_answer(FILE, title));
        let error = look_up(&cache, 9).await.unwrap_err();
        assert_eq!(error.status(), Some(status));
        assert_eq!(error.to_string(), format!("lookup: status {status}"));
        assert!(!format!("{error:?}").contains("body"), "{error:?}");
    }
}

#[tokio::test]
async fn a_lookup_is_made_again_where_that_may_help() {
    let faults = [
        Fault::Status { code: 500, retry_after: None },
        Fault::Status { code: 503, retry_after: None },
        Fault::Status { code: 429, retry_after: Some(9) },
        Fault::CloseBeforeResponse,
        Fault::ResetBeforeResponse,
        Fault::Garbage,
    ];
    for fault in faults {
        let cache = Cache::with(ControllerOptions::default(), |section| {
            section.circuit_breaker.failure_threshold = 9;
        });
        cache.server.fail_next_on(LOOKUP, 2, fault.clone());
        assert_eq!(look_up(&cache, 9).await, Ok(vec![]), "{fault:?}");
        assert_eq!(cache.calls(LOOKUP), 3, "{fault:?}");
    }
}

#[tokio::test]
async fn other_answers_are_final_and_neutral() {
    for code in [301, 307, 400, 401, 404, 422] {
        let cache = Cache::new();
        cache.server.fail_always_on(LOOKUP, Fault::Status { code, retry_after: None });
        for _ in 0..3 {
            assert_eq!(look_up(&cache, 9).await.unwrap_err().reason, Reason::Status(code));
        }
        assert_eq!((cache.calls(LOOKUP), cache.state()), (3, State::Closed), "{code}");
    }
}

#[tokio::test]
async fn no_more_attempts_are_made_than_configured() {
    let cache = Cache::with(ControllerOptions::default(), |section| {
        section.circuit_breaker.failure_threshold = 9;
    });
    cache.server.fail_always_on(LOOKUP, Fault::Status { code: 500, retry_after: None });
    assert_eq!(look_up(&cache, 9).await.unwrap_err().reason, Reason::Status(500));
    assert_eq!(cache.calls(LOOKUP), 3);
}

#[tokio::test]
async fn attempts_count_one_by_one_and_the_breaker_that_they_open_ends_them() {
    let cache = Cache::new();
    cache.server.fail_always_on(LOOKUP, Fault::Status { code: 500, retry_after: None });
    assert_eq!(look_up(&cache, 9).await.unwrap_err().reason, Reason::Status(500));
    assert_eq!((cache.calls(LOOKUP), cache.state()), (2, State::Open));
    assert_eq!(look_up(&cache, 9).await.unwrap_err().kind(), "breaker_open");
    assert_eq!(cache.calls(LOOKUP), 2, "an open breaker makes no call");
}

#[tokio::test]
async fn no_attempt_is_waited_for_that_the_breaker_would_refuse() {
    let cache = Cache::with(ControllerOptions::default(), |section| {
        section.circuit_breaker.failure_threshold = 1;
        (section.retry.base_backoff, section.retry.max_backoff) = (LONG, LONG);
    });
    cache.server.fail_always_on(LOOKUP, Fault::Status { code: 500, retry_after: None });
    let result = cache.client.look_up("tiny", None, &tokens(9), Instant::now() + 9 * LONG).await;
    assert_eq!(result.unwrap_err().reason, Reason::Status(500));
}

#[tokio::test]
async fn a_silent_server_is_waited_for_until_the_deadline() {
    let cache = Cache::new();
    cache.server.fail_always_on(LOOKUP, Fault::StallBeforeResponse);
    let wait = Duration::from_millis(40);
    let (start, tokens) = (Instant::now(), tokens(9));
    let result = cache.client.look_up("tiny", None, &tokens, start + wait).await;
    assert_eq!(result.unwrap_err().reason, Reason::Timeout);
    assert!(start.elapsed() >= wait);
    assert_eq!(cache.calls(LOOKUP), 1);
    cache.server.until(|stats| stats.cancelled(LOOKUP) == 1).await;
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_is_made_again_within_the_deadline() {
    let cache = Cache::with(ControllerOptions::default(), |section| {
        section.request_timeout = Duration::from_millis(100);
        section.retry.max_attempts = 100;
        section.circuit_breaker.failure_threshold = 200;
    });
    cache.server.fail_next_on(LOOKUP, 1, Fault::StallBeforeResponse);
    assert_eq!(look_up(&cache, 9).await, Ok(vec![]));
    assert!(cache.calls(LOOKUP) >= 2);
}

#[tokio::test]
async fn a_deadline_that_has_passed_makes_no_call() {
    let cache = Cache::new();
    let result = cache.client.look_up("tiny", None, &tokens(9), Instant::now()).await;
    assert_eq!(result.unwrap_err().reason, Reason::Timeout);
    assert_eq!((cache.calls(LOOKUP), cache.state()), (0, State::Closed));
}

#[tokio::test]
async fn calls_may_be_made_from_any_thread() {
    fn sendable<T: Send>(_call: &T) {}
    let (cache, tokens) = (Cache::new(), tokens(9));
    let clear = Action::Clear { instance: "a".to_owned(), location: "cpu".to_owned() };
    sendable(&cache.client.look_up("tiny", None, &tokens, soon()));
    sendable(&cache.client.act(&clear, "tiny", &tokens));
}

#[tokio::test]
async fn a_lookup_that_is_dropped_ends_its_call() {
    let cache = Cache::new();
    let gate = cache.server.hold_path(LOOKUP);
    tokio::select! {
        result = look_up(&cache, 9) => panic!("{result:?}"),
        () = gate.waiting(1) => {}
    }
    cache.server.until(|stats| stats.cancelled(LOOKUP) == 1).await;
    assert_eq!(cache.state(), State::Closed);
}

#[tokio::test]
async fn where_nobody_listens_there_is_no_connection() {
    let Cache { server, client, breaker } = Cache::new();
    server.stop().await;
    let error = client.look_up("tiny", None, &tokens(9), soon()).await.unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), ("connect", "lookup: cannot connect"));
    assert_eq!(breaker.state(Instant::now()), State::Open, "after two attempts");
}

#[tokio::test]
async fn without_an_endpoint_there_is_an_error_and_no_failure() {
    let cache = Cache::with(ControllerOptions::default(), |section| section.lmcache_endpoint = None);
    for _ in 0..3 {
        assert_eq!(look_up(&cache, 9).await.unwrap_err().kind(), "no_endpoint");
    }
    assert_eq!(cache.state(), State::Closed);
}
