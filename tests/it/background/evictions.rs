//! Evicting at an LMCache that cannot.

use super::{Service, found_at, pass};
use crate::calls::log::Paper;
use kvway::config::EvictWith;
use kvway::state::load::Load;
use mocks::ControllerOptions;
use serde_json::json;

/// A service that evicts always and does nothing else.
fn evicting(evict: bool, evict_with: EvictWith, evict_location: &str) -> Service {
    let controller =
        ControllerOptions { prefer: Some("a".to_owned()), evict, ..ControllerOptions::default() };
    let service = Service::with_controller(controller, |section| {
        let strategy = &mut section.cache_strategy;
        (strategy.enable_pinning, strategy.enable_eviction) = (false, true);
        strategy.memory_threshold = 0.9;
        (strategy.evict_with, strategy.evict_location) = (evict_with, evict_location.to_owned());
    });
    service.loads.record_host(Load { load_ratio: 0.0, memory_ratio: 1.0 });
    service
}

async fn run(service: &Service, keys: std::ops::Range<u128>) {
    for key in keys {
        service.run(found_at(key, "a")).await;
    }
}

#[tokio::test]
async fn a_controller_that_can_evicts_each_prompt() {
    let service = evicting(true, EvictWith::Clear, "cpu");
    run(&service, 0..2).await;
    assert_eq!((service.calls("/evict"), service.calls("/clear")), (2, 0));
    assert_eq!(service.bodies("/evict")[0], json!({"tokens": [1, 2, 3], "instance_id": "a"}));
}

#[tokio::test]
async fn a_controller_that_cannot_is_asked_once_and_nothing_is_done_in_its_place() {
    for service in [evicting(false, EvictWith::Evict, "cpu"), evicting(false, EvictWith::Clear, "")] {
        run(&service, 0..3).await;
        assert_eq!((service.calls("/evict"), service.calls("/clear")), (1, 0));
        assert_eq!(service.count("actions_total", "action=evict,outcome=unsupported"), 3);
        assert_eq!(service.ended("done"), 3, "which is no failure");
    }
}

#[tokio::test]
async fn a_location_is_cleared_in_its_place_once_per_interval_whatever_the_prompt() {
    let service = evicting(false, EvictWith::Clear, "cpu");
    run(&service, 0..3).await;
    assert_eq!((service.calls("/evict"), service.calls("/clear")), (1, 1));
    assert_eq!(service.bodies("/clear"), [json!({"instance_id": "a", "location": "cpu"})]);
    assert_eq!(service.count("actions_total", "action=clear,outcome=withheld"), 2);
    pass(super::LONG).await;
    service.loads.record_host(Load { load_ratio: 0.0, memory_ratio: 1.0 });
    run(&service, 3..4).await;
    assert_eq!((service.calls("/evict"), service.calls("/clear")), (1, 2));
}

#[tokio::test]
async fn that_a_controller_cannot_evict_is_said_once_for_its_cluster() {
    let paper = Paper::default();
    let _listening = paper.listen();
    run(&evicting(false, EvictWith::Clear, "cpu"), 0..3).await;
    let lines = paper.lines();
    let said: Vec<_> = lines.iter().filter(|line| line.contains("no /evict")).collect();
    assert_eq!(said.len(), 1, "{lines:#?}");
    assert!(said[0].contains(r#"cluster="chat" clears=true"#), "{}", said[0]);
}
