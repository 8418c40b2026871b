//! What happens to jobs when the process ends.

use super::{Service, found_at, job};
use crate::world::within;
use kvway::state::inbox::Refusal;
use kvway::state::lifecycle::Phase;

#[tokio::test]
async fn an_action_that_was_sent_outlives_the_order_to_end() {
    let mut service = Service::new();
    let gate = service.controller.hold_path("/pin");
    service.push(found_at(1, "a"));
    gate.waiting(1).await;
    service.push(found_at(2, "a"));
    service.working(2).await;
    service.lifecycle.enter_phase(Phase::Draining);
    service.shutdown.send_replace(true);
    service.working(1).await;
    assert_eq!(service.ended("stopped"), 1, "the one that had not begun");
    assert_eq!(service.lifecycle.in_flight(), 1, "and the process waits for the other");
    assert_eq!(service.inbox.push(found_at(3, "a")), Err(Refusal::Closed));
    assert!(service.running.try_join_next().is_none());
    gate.release();
    within(service.lifecycle.drained()).await;
    service.end().await;
    let stats = service.controller.stats();
    assert_eq!((stats.served("/pin"), stats.cancelled("/pin"), service.ended("done")), (1, 0, 1));
}

#[tokio::test]
async fn calls_that_change_nothing_are_given_up_when_the_process_ends() {
    for path in ["/tokenize", "/lookup"] {
        let mut service = Service::new();
        let gate = if path == "/tokenize" {
            service.engine.hold_path(path)
        } else {
            service.controller.hold_path(path)
        };
        service.push(job(1, "hello"));
        gate.waiting(1).await;
        assert_eq!(service.lifecycle.in_flight(), 0, "the process does not wait for it");
        service.end().await;
        assert_eq!(service.ended("stopped"), 1, "{path}");
    }
}

#[tokio::test]
async fn no_action_is_begun_once_the_process_is_on_its_way_out() {
    let service = Service::new();
    service.lifecycle.enter_phase(Phase::Handover);
    service.run(found_at(1, "a")).await;
    assert_eq!((service.calls("/pin"), service.ended("stopped")), (0, 1));
    assert_eq!(service.lifecycle.in_flight(), 0);
}
