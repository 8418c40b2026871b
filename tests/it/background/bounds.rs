//! The bounds of the queue, and what leaves it early.

use super::{Service, job};
use kvway::state::inbox::{Job, Refusal};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn neither_jobs_nor_bytes_exceed_their_bounds_while_the_tokenizer_is_stuck() {
    let mut service = Service::with(|section| {
        section.workers_max = 2;
        section.queue_jobs_max = 4;
        section.queue_bytes_max = 64 * 1024;
    });
    let gate = service.engine.hold_path("/tokenize");
    let text = "x".repeat(10_000);
    for key in 0..2 {
        service.push(job(key, &text));
    }
    gate.waiting(2).await;
    let answers: Vec<_> = (2..20).map(|key| service.inbox.push(job(key, &text))).collect();
    assert_eq!(answers[..4], [Ok(()); 4]);
    assert_eq!(answers[4..], [Err(Refusal::Jobs); 14]);
    super::pass(Duration::from_secs(1)).await;
    let health = format!("http://{}/health", service.engine.address());
    crate::world::client().get(health).send().await.unwrap();
    assert_eq!((service.inbox.waiting(), service.inbox.running()), (4, 2), "whatever else happens");
    assert!(service.inbox.bytes() <= 64 * 1024);
    assert_eq!(service.calls("/tokenize"), 2);
    service.end().await;
    assert_eq!(service.count("jobs_dropped_total", "reason=shutdown"), 4);
    assert_eq!((service.ended("stopped"), service.inbox.bytes()), (2, 0));
}

#[tokio::test]
async fn running_jobs_count_against_the_bytes() {
    let service = Service::with(|section| section.queue_bytes_max = 64 * 1024);
    let gate = service.engine.hold_path("/tokenize");
    let text = "x".repeat(30_000);
    for key in 0..2 {
        service.push(job(key, &text));
    }
    gate.waiting(2).await;
    assert_eq!(service.inbox.waiting(), 0);
    assert_eq!(service.inbox.push(job(2, &text)), Err(Refusal::Bytes));
    gate.release();
    service.idle().await;
    service.run(job(2, &text)).await;
    assert_eq!(service.ended("done"), 3);
}

#[tokio::test]
async fn a_body_is_let_go_of_once_its_tokens_are_known() {
    let service = Service::new();
    let gate = service.controller.hold_path("/lookup");
    service.push(job(1, &"long ".repeat(10_000)));
    gate.waiting(1).await;
    let tokens = service.tokens.peek(super::PromptKey(1), super::Instant::now()).unwrap();
    assert_eq!(service.inbox.bytes(), size_of_val::<[u32]>(&tokens).min(50_028));
    gate.release();
    service.idle().await;
    assert_eq!(service.inbox.bytes(), 0);
}

#[tokio::test]
async fn a_client_that_aborts_ends_its_job_at_once() {
    for path in ["/tokenize", "/lookup"] {
        let service = Service::new();
        let server: &mocks::Server = if path == "/tokenize" { &service.engine } else { &service.controller };
        let gate = server.hold_path(path);
        let aborted = CancellationToken::new();
        service.push(Job { aborted: aborted.clone(), ..job(1, "hello") });
        gate.waiting(1).await;
        aborted.cancel();
        service.idle().await;
        server.until(|stats| stats.cancelled(path) == 1).await;
        assert_eq!((service.ended("aborted"), service.calls("/pin")), (1, 0), "{path}");
    }
}

#[tokio::test]
async fn a_client_that_aborts_before_its_turn_gets_nothing_done() {
    let service = Service::new();
    let gate = service.controller.hold_path("/pin");
    service.push(super::found_at(1, "a"));
    gate.waiting(1).await;
    let aborted = CancellationToken::new();
    service.push(Job { aborted: aborted.clone(), ..super::found_at(2, "a") });
    service.working(2).await;
    aborted.cancel();
    service.working(1).await;
    gate.release();
    service.idle().await;
    assert_eq!((service.calls("/pin"), service.ended("aborted"), service.ended("done")), (1, 1, 1));
}

#[tokio::test]
async fn a_request_that_ends_in_good_order_leaves_its_job_alone() {
    let service = Service::new();
    let gate = service.engine.hold_path("/tokenize");
    let of_request = CancellationToken::new();
    service.push(Job { aborted: of_request.clone(), ..job(1, "hello") });
    gate.waiting(1).await;
    drop(of_request);
    gate.release();
    service.idle().await;
    assert_eq!((service.ended("done"), service.calls("/pin")), (1, 1));
}

#[tokio::test]
async fn a_slow_action_holds_up_nobody_who_tokenizes() {
    let service = Service::with(|section| section.workers_max = 1);
    let gate = service.controller.hold_path("/pin");
    service.push(super::found_at(1, "a"));
    gate.waiting(1).await;
    service.push(Job { hot: false, ..job(2, "hello") });
    service.engine.until(|stats| stats.served("/tokenize") == 1).await;
    service.working(1).await;
    assert_eq!((service.ended("done"), service.inbox.running()), (1, 1));
    gate.release();
    service.idle().await;
    assert_eq!(service.ended("done"), 2);
}

#[tokio::test]
async fn no_more_jobs_act_than_may() {
    let service = Service::with(|section| section.workers_max = 1);
    let gate = service.controller.hold_path("/pin");
    service.push(super::found_at(1, "a"));
    gate.waiting(1).await;
    service.push(super::found_at(2, "b"));
    crate::world::until(|| service.ended("expired") == 1).await;
    assert_eq!(service.count("actions_total", "outcome=busy"), 1);
    gate.release();
    service.idle().await;
    assert_eq!(service.calls("/pin"), 1);
}

#[tokio::test(start_paused = true)]
async fn jobs_gather_for_a_while_before_the_next_are_taken() {
    let service = Service::new();
    let aborted = CancellationToken::new();
    aborted.cancel();
    let without_calls = |key| Job { aborted: aborted.clone(), ..job(key, "hello") };
    let tick = || tokio::time::sleep(Duration::from_millis(1));
    service.push(without_calls(0));
    tick().await;
    assert_eq!((service.inbox.waiting(), service.ended("aborted")), (0, 1), "the first waits for nobody");
    for key in 1..4 {
        service.push(without_calls(key));
    }
    tick().await;
    assert_eq!(service.inbox.waiting(), 3);
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!((service.inbox.waiting(), service.ended("aborted")), (0, 4));
}
