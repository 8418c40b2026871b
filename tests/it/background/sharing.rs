//! What jobs with the same prompt share.

use super::{Service, job};
use kvway::state::inbox::Job;
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn identical_prompts_in_flight_share_the_call_to_the_tokenizer() {
    let service = Service::with(|section| section.token_cache.enabled = false);
    let gate = service.engine.hold_path("/tokenize");
    for _ in 0..5 {
        service.push(job(1, "hello"));
    }
    service.push(job(2, "another"));
    gate.waiting(2).await;
    service.working(6).await;
    gate.release();
    service.idle().await;
    assert_eq!((service.calls("/tokenize"), service.ended("done")), (2, 6));
}

#[tokio::test]
async fn identical_prompts_in_flight_share_the_lookup() {
    let service = Service::new();
    let gate = service.controller.hold_path("/lookup");
    for _ in 0..5 {
        service.push(job(1, "hello"));
    }
    service.push(Job { cache_salt: Some("salt".into()), ..job(1, "hello") });
    gate.waiting(2).await;
    service.working(6).await;
    gate.release();
    service.idle().await;
    assert_eq!((service.calls("/lookup"), service.ended("done")), (2, 6), "a salt is another lookup");
}

#[tokio::test]
async fn who_made_the_call_may_leave_without_harm_to_the_others() {
    let service = Service::new();
    let gate = service.engine.hold_path("/tokenize");
    let first = CancellationToken::new();
    service.push(Job { aborted: first.clone(), ..job(1, "hello") });
    gate.waiting(1).await;
    service.push(job(1, "hello"));
    service.working(2).await;
    first.cancel();
    service.working(1).await;
    gate.release();
    service.idle().await;
    assert_eq!((service.calls("/tokenize"), service.engine.stats().cancelled("/tokenize")), (1, 0));
    assert_eq!((service.ended("aborted"), service.ended("done")), (1, 1));
}
