//! Attempts and the waits between them, on a clock that stands still.

use kvway::clients::call::{CallError, Reason};
use kvway::clients::retry::{backoff, retry};
use kvway::config::Retry;
use proptest::prelude::*;
use std::cell::RefCell;
use std::time::Duration;
use tokio::time::Instant;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn config(max_attempts: usize) -> Retry {
    Retry { max_attempts, base_backoff: ms(100), max_backoff: ms(350) }
}

fn failed(reason: Reason) -> CallError {
    CallError::new("lookup", reason)
}

/// When attempts were made that all fail for a reason, in milliseconds, and when it was over.
async fn attempts(max_attempts: usize, deadline: Option<Duration>, reason: Reason) -> (Vec<u128>, u128) {
    let (start, made) = (Instant::now(), RefCell::new(Vec::new()));
    let attempt = async || {
        made.borrow_mut().push(start.elapsed().as_millis());
        Err::<(), _>(failed(reason))
    };
    let deadline = deadline.map(|deadline| start + deadline);
    let result = retry(&config(max_attempts), deadline, CallError::may_retry_lookup, || 1.0, attempt).await;
    assert_eq!(result, Err(failed(reason)));
    (made.into_inner(), start.elapsed().as_millis())
}

#[tokio::test(start_paused = true)]
async fn waits_grow_to_their_bound_and_none_follows_the_last_attempt() {
    assert_eq!(attempts(5, None, Reason::Connect).await, (vec![0, 100, 300, 650, 1000], 1000));
    assert_eq!(attempts(1, None, Reason::Connect).await, (vec![0], 0));
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_would_reach_the_deadline_is_not_begun() {
    assert_eq!(attempts(5, Some(ms(301)), Reason::Connect).await, (vec![0, 100, 300], 300));
    assert_eq!(attempts(5, Some(ms(300)), Reason::Connect).await, (vec![0, 100], 100));
    assert_eq!(attempts(5, Some(ms(50)), Reason::Connect).await, (vec![0], 0));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_succeed_is_not_tried_again() {
    let reasons = [Reason::Status(422), Reason::Undecodable("x"), Reason::TooLong(1), Reason::BreakerOpen];
    for reason in reasons {
        assert_eq!(attempts(5, None, reason).await, (vec![0], 0));
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_success_is_the_result() {
    let left = RefCell::new(vec![Ok(7), Err(failed(Reason::Timeout)), Err(failed(Reason::Status(503)))]);
    let attempt = async || left.borrow_mut().pop().unwrap();
    let result = retry(&config(5), None, CallError::may_retry_lookup, || 0.0, attempt).await;
    assert_eq!(result, Ok(7));
}

#[test]
fn lookups_are_tried_again_where_that_may_help_and_actions_only_where_nothing_was_sent() {
    let cases = [
        (Reason::Connect, true, true),
        (Reason::Broken, true, false),
        (Reason::Timeout, true, false),
        (Reason::Status(500), true, false),
        (Reason::Status(503), true, false),
        (Reason::Status(429), true, false),
        (Reason::Status(404), false, false),
        (Reason::Status(422), false, false),
        (Reason::Undecodable("x"), false, false),
        (Reason::TooLong(1), false, false),
        (Reason::BreakerOpen, false, false),
        (Reason::Busy, false, false),
        (Reason::Cancelled, false, false),
        (Reason::Unsupported, false, false),
        (Reason::NoEndpoint, false, false),
    ];
    for (reason, lookup, action) in cases {
        let error = failed(reason);
        assert_eq!((error.may_retry_lookup(), error.may_retry_action()), (lookup, action), "{error}");
    }
}

#[test]
fn half_of_a_wait_is_certain_and_half_is_chance() {
    let waits = [0.0, 0.5, 1.0].map(|random| backoff(&config(9), 2, random));
    assert_eq!(waits, [ms(100), ms(150), ms(200)]);
}

proptest! {
    #[test]
    fn a_wait_is_between_half_and_all_of_its_step(attempts in 0..usize::MAX, random in 0.0..1.0) {
        let wait = backoff(&config(9), attempts, random);
        prop_assert!(wait >= ms(50) && wait <= ms(350));
    }
}
