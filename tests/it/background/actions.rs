//! How often, and how many at a time, an instance is called to act.

use super::{LONG, Service, found_at, pass};
use kvway::state::inbox::Job;
use kvway::state::load::Load;
use mocks::Fault;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn an_action_is_taken_once_per_prompt_and_interval() {
    let service = Service::new();
    for key in [1, 1, 2, 1] {
        service.run(found_at(key, "a")).await;
    }
    assert_eq!((service.calls("/pin"), service.ended("done")), (2, 4));
    assert_eq!(service.count("actions_total", "action=pin,outcome=withheld"), 2);
    pass(LONG).await;
    service.run(found_at(1, "a")).await;
    assert_eq!(service.calls("/pin"), 3);
}

#[tokio::test]
async fn without_an_interval_an_action_is_taken_every_time() {
    let service = Service::with(|section| section.action_interval = Duration::ZERO);
    for _ in 0..3 {
        service.run(found_at(1, "a")).await;
    }
    assert_eq!(service.calls("/pin"), 3);
}

#[tokio::test]
async fn jobs_of_one_prompt_at_the_same_time_act_once() {
    let service = Service::new();
    let gate = service.controller.hold_path("/pin");
    for _ in 0..4 {
        service.push(found_at(1, "a"));
    }
    gate.waiting(1).await;
    service.working(1).await;
    gate.release();
    service.idle().await;
    assert_eq!((service.calls("/pin"), service.ended("done")), (1, 4));
}

#[tokio::test]
async fn an_action_that_was_sent_is_not_sent_again_when_it_fails() {
    let service = Service::new();
    service.controller.fail_next_on("/pin", 1, Fault::CloseBeforeResponse);
    service.run(found_at(1, "a")).await;
    service.run(found_at(1, "a")).await;
    assert_eq!((service.calls("/pin"), service.ended("action_failed"), service.ended("done")), (1, 1, 1));
    assert_eq!(service.count("actions_total", "action=pin,outcome=broken"), 1);
}

#[tokio::test]
async fn an_action_that_could_not_be_sent_is_sent_the_next_time() {
    let (_socket, address) = crate::world::reserve();
    let service = Service::with(|section| section.lmcache_endpoint = Some(format!("http://{address}")));
    service.run(found_at(1, "a")).await;
    service.run(found_at(1, "a")).await;
    assert_eq!(service.count("actions_total", "action=pin,outcome=connect"), 2);
    assert_eq!(service.ended("action_failed"), 2);
}

#[tokio::test]
async fn an_instance_is_called_once_at_a_time_and_keeps_no_other_waiting() {
    let service = Service::new();
    let gate = service.controller.hold_path("/pin");
    for key in 1..=4 {
        service.push(found_at(key, "a"));
    }
    service.push(found_at(5, "b"));
    gate.waiting(2).await;
    service.working(5).await;
    let mut called: Vec<String> =
        service.bodies("/pin").iter().map(|body| body["instance_id"].as_str().unwrap().to_owned()).collect();
    called.sort();
    assert_eq!(called, ["a", "b"]);
    gate.release();
    service.idle().await;
    assert_eq!((service.calls("/pin"), service.ended("done")), (5, 5));
}

#[tokio::test]
async fn who_waits_for_an_instance_until_its_time_is_over_finds_it_busy() {
    let service = Service::with(|section| {
        section.request_timeout = LONG / 2;
        section.control_timeout = 2 * LONG;
    });
    let gate = service.controller.hold_path("/pin");
    service.push(found_at(1, "a"));
    gate.waiting(1).await;
    service.push(found_at(2, "a"));
    service.working(2).await;
    pass(LONG).await;
    service.working(1).await;
    assert_eq!(service.count("actions_total", "action=pin,outcome=busy"), 1);
    gate.release();
    service.idle().await;
    assert_eq!((service.calls("/pin"), service.ended("done"), service.ended("expired")), (1, 1, 1));
}

#[tokio::test]
async fn an_action_may_take_longer_than_its_job() {
    let service = Service::with(|section| {
        section.request_timeout = LONG / 2;
        section.control_timeout = 2 * LONG;
    });
    let gate = service.controller.hold_path("/pin");
    let aborted = CancellationToken::new();
    service.push(Job { aborted: aborted.clone(), ..found_at(1, "a") });
    gate.waiting(1).await;
    pass(LONG).await;
    aborted.cancel();
    service.working(1).await;
    gate.release();
    service.idle().await;
    assert_eq!((service.controller.stats().served("/pin"), service.ended("done")), (1, 1));
}

#[tokio::test]
async fn the_first_action_that_fails_ends_the_job() {
    for (fails, expected) in [("/compress", [1, 0, 0]), ("/pin", [1, 1, 0]), ("/evict", [1, 1, 1])] {
        let service = Service::with(|section| {
            let strategy = &mut section.cache_strategy;
            (strategy.enable_compression, strategy.enable_eviction) = (true, true);
            (strategy.load_threshold, strategy.memory_threshold) = (0.9, 0.9);
        });
        service.loads.record_host(Load { load_ratio: 1.0, memory_ratio: 1.0 });
        service.controller.fail_always_on(fails, Fault::Status { code: 500, retry_after: None });
        service.run(found_at(1, "a")).await;
        assert_eq!(["/compress", "/pin", "/evict"].map(|path| service.calls(path)), expected, "{fails}");
        assert_eq!(service.ended("action_failed"), 1);
    }
}

#[tokio::test]
async fn an_action_without_effect_is_told_from_one_with() {
    let service = Service::with_controller(mocks::ControllerOptions::default(), |_| {});
    service.controller.admit("a", "elsewhere", &[1, 2, 3]);
    service.run(found_at(1, "a")).await;
    assert_eq!(service.count("actions_total", "action=pin,outcome=no_effect"), 1);
    assert_eq!(service.ended("done"), 1);
}

#[tokio::test]
async fn no_further_action_is_begun_once_the_time_of_the_job_is_over() {
    let service = Service::with(|section| {
        section.request_timeout = LONG / 2;
        section.control_timeout = 2 * LONG;
        section.cache_strategy.enable_eviction = true;
        section.cache_strategy.memory_threshold = 0.9;
    });
    service.loads.record_host(Load { load_ratio: 0.0, memory_ratio: 1.0 });
    let gate = service.controller.hold_path("/pin");
    service.push(found_at(1, "a"));
    gate.waiting(1).await;
    pass(LONG).await;
    gate.release();
    service.idle().await;
    assert_eq!((service.calls("/pin"), service.calls("/evict"), service.ended("expired")), (1, 0, 1));
    assert_eq!(service.count("actions_total", "action=evict,outcome=expired"), 1);
}
