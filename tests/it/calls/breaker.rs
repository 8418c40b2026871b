//! The breaker, on instants of our own.

use super::{breaker_of, transitions};
use kvway::clients::breaker::{Breaker, Permit, State};
use kvway::clients::call::{CallError, Reason};
use kvway::config::CircuitBreaker;
use proptest::prelude::*;
use std::sync::Barrier;
use std::time::Duration;
use tokio::time::Instant;

const RECOVERY: Duration = Duration::from_secs(10);

fn config(failure_threshold: usize, half_open_max_calls: usize) -> CircuitBreaker {
    CircuitBreaker { failure_threshold, recovery_timeout: RECOVERY, half_open_max_calls }
}

/// A breaker that has just opened, and when.
fn open(half_open_max_calls: usize) -> (std::sync::Arc<Breaker>, Instant) {
    let (breaker, now) = (breaker_of(&config(1, half_open_max_calls)), Instant::now());
    breaker.admit(now).unwrap().failure(now);
    assert_eq!(breaker.state(now), State::Open);
    (breaker, now)
}

#[test]
fn it_opens_after_as_many_failures_in_a_row_as_the_threshold() {
    // s success, f failure, n neutral
    let cases =
        [("ff", false), ("fff", true), ("ffsff", false), ("ffsfff", true), ("fnfnf", true), ("nnnn", false)];
    for (calls, opens) in cases {
        let (breaker, now) = (breaker_of(&config(3, 1)), Instant::now());
        for call in calls.chars() {
            let permit = breaker.admit(now).unwrap();
            match call {
                's' => permit.success(now),
                'f' => permit.failure(now),
                _ => permit.neutral(),
            }
        }
        let expected = if opens { State::Open } else { State::Closed };
        assert_eq!(breaker.state(now), expected, "{calls}");
    }
}

#[test]
fn an_open_breaker_lets_nothing_through_until_its_time_is_over() {
    let (breaker, now) = open(1);
    let end = now + RECOVERY;
    let before = end.checked_sub(Duration::from_nanos(1)).unwrap();
    assert!(breaker.admit(before).is_none());
    assert_eq!(breaker.state(before), State::Open);
    assert_eq!(breaker.state(end), State::HalfOpen);
    assert!(breaker.admit(end).is_some());
}

#[test]
fn the_first_trial_counts_and_no_more_are_let_through_than_configured() {
    let (breaker, now) = open(2);
    let then = now + RECOVERY;
    let trials = [breaker.admit(then), breaker.admit(then), breaker.admit(then)];
    assert_eq!(trials.map(|trial| trial.is_some()), [true, true, false]);
}

#[test]
fn a_trial_that_succeeds_closes_and_one_that_fails_opens_for_the_whole_time_again() {
    let (breaker, now) = open(2);
    let then = now + RECOVERY;
    breaker.admit(then).unwrap().failure(then);
    assert_eq!(breaker.state(then + RECOVERY / 2), State::Open);
    let later = then + RECOVERY;
    breaker.admit(later).unwrap().success(later);
    assert_eq!(breaker.state(later), State::Closed);
}

#[test]
fn a_closed_breaker_starts_to_count_from_nothing() {
    let (breaker, now) = (breaker_of(&config(2, 1)), Instant::now());
    for _ in 0..2 {
        breaker.admit(now).unwrap().failure(now);
    }
    let then = now + RECOVERY;
    breaker.admit(then).unwrap().success(then);
    breaker.admit(then).unwrap().failure(then);
    assert_eq!(breaker.state(then), State::Closed);
}

#[test]
fn a_trial_that_ends_neutral_or_is_dropped_gives_its_place_back() {
    let (breaker, now) = open(1);
    let then = now + RECOVERY;
    breaker.admit(then).unwrap().neutral();
    drop(breaker.admit(then).unwrap());
    let trial = breaker.admit(then).unwrap();
    assert!(breaker.admit(then).is_none());
    trial.neutral();
    assert_eq!(breaker.state(then), State::HalfOpen);
}

#[test]
fn what_an_earlier_state_has_to_say_changes_nothing() {
    let (breaker, now) = (breaker_of(&config(1, 1)), Instant::now());
    let [success, failure, dropped, opening] = std::array::from_fn(|_| breaker.admit(now).unwrap());
    opening.failure(now);
    success.success(now);
    assert_eq!(breaker.state(now), State::Open, "a late success");
    let then = now + RECOVERY;
    let trial = breaker.admit(then).unwrap();
    failure.failure(then);
    assert_eq!(breaker.state(then), State::HalfOpen, "a late failure");
    drop(dropped);
    assert!(breaker.admit(then).is_none(), "a late neutral gives no place back");
    trial.success(then);
    assert_eq!(breaker.state(then), State::Closed);
}

#[test]
fn changes_are_counted_by_the_state_they_lead_to() {
    let (counted, now) = (transitions(), Instant::now());
    let breaker = Breaker::new("tokenizer", "chat", &config(1, 1), counted.clone());
    breaker.admit(now).unwrap().failure(now);
    let then = now + RECOVERY;
    breaker.admit(then).unwrap().failure(then);
    let later = then + RECOVERY;
    breaker.admit(later).unwrap().success(later);
    let counts = [State::Open, State::HalfOpen, State::Closed]
        .map(|state| counted.with_label_values(&["chat", "tokenizer", state.name()]).get());
    assert_eq!(counts, [2, 2, 1]);
    assert_eq!((breaker.name(), breaker.cluster()), ("tokenizer", "chat"));
}

#[test]
fn threads_that_come_together_get_as_many_trials_as_there_are() {
    for _ in 0..50 {
        let (breaker, now) = open(3);
        let (then, start) = (now + RECOVERY, Barrier::new(8));
        let try_one = || {
            start.wait();
            breaker.admit(then)
        };
        let permits: Vec<Option<Permit<'_>>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(try_one)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(permits.iter().flatten().count(), 3);
    }
}

#[tokio::test]
async fn what_counts_as_a_failure_is_what_tells_of_the_server() {
    let cases = [
        (Reason::Connect, true),
        (Reason::Broken, true),
        (Reason::Timeout, true),
        (Reason::Undecodable("x"), true),
        (Reason::TooLong(1), true),
        (Reason::Status(500), true),
        (Reason::Status(503), true),
        (Reason::Status(429), true),
        (Reason::Status(400), false),
        (Reason::Status(404), false),
        (Reason::Status(422), false),
        (Reason::Status(302), false),
        (Reason::Cancelled, false),
        (Reason::Busy, false),
        (Reason::Unsupported, false),
        (Reason::NoEndpoint, false),
        (Reason::BreakerOpen, false),
    ];
    for (reason, failure) in cases {
        let (breaker, error) = (breaker_of(&config(1, 1)), CallError::new("lookup", reason));
        assert_eq!(breaker.guard("lookup", super::soon(), async { Err::<(), _>(error) }).await, Err(error));
        assert_eq!(breaker.state(Instant::now()) == State::Open, failure, "{error}");
    }
}

#[tokio::test]
async fn an_open_breaker_and_a_deadline_that_has_passed_make_no_call() {
    let (breaker, now) = open(1);
    let refused = breaker.guard("lookup", super::soon(), async { panic!("called") }).await;
    assert_eq!(refused, Err::<(), _>(CallError::new("lookup", Reason::BreakerOpen)));
    let fresh = breaker_of(&config(1, 1));
    let late = fresh.guard("lookup", now, async { panic!("called") }).await;
    assert_eq!(late, Err::<(), _>(CallError::new("lookup", Reason::Timeout)));
    assert_eq!(fresh.state(now), State::Closed, "our lateness is no failure of the server");
}

#[tokio::test]
async fn a_call_that_is_cancelled_gives_its_trial_back() {
    let config = CircuitBreaker { recovery_timeout: Duration::ZERO, ..config(1, 1) };
    let breaker = breaker_of(&config);
    breaker.admit(Instant::now()).unwrap().failure(Instant::now());
    let mut call = Box::pin(breaker.guard("lookup", super::soon(), std::future::pending::<Result<(), _>>()));
    assert!(futures::poll!(&mut call).is_pending());
    assert!(breaker.admit(Instant::now()).is_none());
    drop(call);
    assert!(breaker.admit(Instant::now()).is_some());
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Admit,
    End(usize, char),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Admit),
        4 => (any::<usize>(), prop_oneof![Just('s'), Just('f'), Just('n')]).prop_map(|(i, how)| Step::End(i, how)),
        1 => (0..12_u64).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_trials_are_bounded_and_late_results_are_not_heard(
        steps in prop::collection::vec(step(), 1..200),
        threshold in 1..4_usize,
        trials_max in 1..4_usize,
    ) {
        let (counted, mut now) = (transitions(), Instant::now());
        let breaker = Breaker::new("lmcache", "chat", &config(threshold, trials_max), counted.clone());
        let changes = || [State::Open, State::HalfOpen, State::Closed]
            .map(|state| counted.with_label_values(&["chat", "lmcache", state.name()]).get())
            .iter()
            .sum::<u64>();
        let mut permits: Vec<(u64, Permit<'_>)> = Vec::new();
        let mut opened_at = None;
        for step in steps {
            match step {
                Step::Wait(seconds) => now += Duration::from_secs(seconds),
                Step::Admit => {
                    let state = breaker.state(now);
                    let permit = breaker.admit(now);
                    let trials = permits.iter().filter(|(change, _)| *change == changes()).count();
                    let expected = match state {
                        State::Closed => true,
                        State::HalfOpen => trials < trials_max,
                        State::Open => false,
                    };
                    prop_assert_eq!(permit.is_some(), expected);
                    permits.extend(permit.map(|permit| (changes(), permit)));
                }
                Step::End(index, how) if !permits.is_empty() => {
                    let (change, permit) = permits.swap_remove(index % permits.len());
                    let (before, state) = (changes(), breaker.state(now));
                    match how {
                        's' => permit.success(now),
                        'f' => permit.failure(now),
                        _ => permit.neutral(),
                    }
                    if change != before || how == 'n' {
                        prop_assert_eq!((changes(), breaker.state(now)), (before, state));
                    } else if state == State::HalfOpen {
                        prop_assert_eq!(breaker.state(now), if how == 's' { State::Closed } else { State::Open });
                    }
                    if changes() != before && breaker.state(now) == State::Open {
                        opened_at = Some(now);
                    }
                }
                Step::End(..) => {}
            }
            if breaker.state(now) == State::Open {
                prop_assert!(opened_at.is_some_and(|opened| now < opened + RECOVERY));
            }
        }
    }
}
