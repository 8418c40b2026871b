//! Whose load decides.

use super::{LONG, Service, found_at, pass};
use kvway::background::load::LoadService;
use kvway::state::fleet::Fleet;
use kvway::state::load::{Load, Source};
use mocks::{Engine, EngineOptions};
use std::sync::Arc;
use tokio::time::Instant;

/// A service that compresses on loaded engines and evicts from full ones.
fn compressing_and_evicting() -> Service {
    Service::with(|section| {
        let strategy = &mut section.cache_strategy;
        (strategy.enable_pinning, strategy.enable_compression, strategy.enable_eviction) =
            (false, true, true);
        (strategy.load_threshold, strategy.memory_threshold) = (0.9, 0.9);
    })
}

/// The service that looks at `engines`, which LMCache knows as `a` and `b`.
fn looking_at(service: &Service, engines: &[&Engine]) -> LoadService {
    let entry = |engine: &&Engine| (engine.id().to_owned(), engine.address().to_string(), 1);
    let fleet = Fleet::new("chat", engines.iter().map(entry));
    let backends = engines.iter().map(|engine| (format!("http://{}", engine.address()), None)).collect();
    LoadService::new(fleet, backends, Arc::clone(&service.loads), LONG, service.metrics.kvcache("chat"))
}

fn engine(id: &str, running: u32, waiting: u32, kv_cache_usage: f64) -> Engine {
    let engine = Engine::start(EngineOptions { id: id.to_owned(), ..EngineOptions::default() }).unwrap();
    engine.pretend_load(Some(mocks::Load { running, waiting, kv_cache_usage }));
    engine
}

#[tokio::test]
async fn each_engine_is_judged_by_what_it_says_of_itself() {
    let service = compressing_and_evicting();
    let (busy, full) = (engine("busy", 3, 1, 0.5), engine("full", 0, 0, 0.95));
    looking_at(&service, &[&busy, &full]).tick(&crate::world::client()).await;
    service.run(found_at(1, "a")).await;
    service.run(found_at(2, "b")).await;
    let acted =
        |path| service.bodies(path).iter().map(|body| body["instance_id"].clone()).collect::<Vec<_>>();
    assert_eq!((acted("/compress"), acted("/evict")), (vec!["a".into()], vec!["b".into()]));
    assert_eq!(service.count("decisions_total", "load_source=engine"), 4);
    assert_eq!(service.count("load_polls_total", "outcome=ok"), 2);
    let text = service.metrics.to_text().unwrap();
    assert!(text.contains(r#"kvway_kvcache_load_ratio{backend="busy",cluster="chat"} 1"#), "{text}");
}

#[tokio::test]
async fn engines_that_do_not_say_are_judged_by_the_host() {
    let service = compressing_and_evicting();
    let gone = engine("gone", 3, 1, 1.0);
    let looking = looking_at(&service, &[&gone]);
    gone.stop().await;
    looking.tick(&crate::world::client()).await;
    assert_eq!(service.count("load_polls_total", "outcome=connect"), 1);
    service.loads.record_host(Load { load_ratio: 0.0, memory_ratio: 1.0 });
    service.run(found_at(1, "a")).await;
    assert_eq!((service.calls("/compress"), service.calls("/evict")), (0, 1));
    assert_eq!(service.count("decisions_total", "load_source=host"), 2);
}

#[tokio::test]
async fn an_engine_that_falls_silent_is_judged_by_the_host_in_the_end() {
    let service = compressing_and_evicting();
    let full = engine("full", 0, 0, 0.95);
    looking_at(&service, &[&full]).tick(&crate::world::client()).await;
    service.loads.record_host(Load::default());
    assert_eq!(service.loads.of("a", Instant::now()).1, Source::Engine);
    pass(3 * LONG).await;
    service.run(found_at(1, "a")).await;
    assert_eq!((service.calls("/evict"), service.count("decisions_total", "load_source=host")), (0, 2));
}

#[tokio::test]
async fn a_service_that_only_pins_asks_for_nobodys_load() {
    let service = Service::new();
    service.run(found_at(1, "a")).await;
    assert_eq!((service.calls("/pin"), service.count("decisions_total", "")), (1, 0));
}
