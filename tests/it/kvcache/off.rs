//! A gateway without the filter: nobody is asked, nothing runs, nothing is told.

use super::*;
use kvway::proxy::hint::Why;

async fn world(section: &str) -> World {
    World::with(Plan { cluster: format!("policy: lmcache_only\nkvcache: {section}"), ..Plan::default() })
        .await
}

/// Two rounds of requests, of every kind that would be looked up.
async fn ask(world: &World) {
    let bodies = vec![chat("hello").to_string(), completion("hello"), completion(ids(999))];
    for body in [bodies.clone(), bodies].concat() {
        let request = world.client.post(world.url(COMPLETIONS)).header("content-type", "application/json");
        request.body(body).send().await.unwrap().bytes().await.unwrap();
    }
    world.idle().await;
}

#[tokio::test]
async fn a_section_that_is_not_enabled_needs_no_endpoints_and_does_nothing() {
    for section in ["{}", "{enabled: false, token_cache: {enabled: true}, vllm_endpoint: null}"] {
        let world = world(section).await;
        assert!(world.app.kvcache_services().is_empty() && world.app.clusters()[0].hints.is_none());
        ask(&world).await;
        assert_eq!(world.received(COMPLETIONS), [3, 3], "in turn");
        assert!(!world.metrics().contains("kvway_kvcache_"), "{}", world.metrics());
        let log = world.access_log().await;
        assert!(log.iter().all(|entry| entry.get("hint").is_none_or(Value::is_null)), "{log:?}");
    }
}

#[tokio::test]
async fn a_section_that_is_not_enabled_calls_nobody() {
    let tokenizer = Engine::start(EngineOptions::default()).unwrap();
    let controller = Controller::start(ControllerOptions::default()).unwrap();
    let section = format!(
        "{{enabled: false, vllm_endpoint: \"http://{}\", lmcache_endpoint: \"http://{}\", lookup_tokens_min: 0, \
         token_cache: {{enabled: true}}, cache_strategy: {{enable_pinning: true, hot_content_threshold: 1}}}}",
        tokenizer.address(),
        controller.address(),
    );
    let world = world(&section).await;
    ask(&world).await;
    for server in [&*tokenizer, &*controller] {
        assert_eq!(server.stats().connections_accepted, 0);
    }
}

#[tokio::test]
async fn a_cluster_without_the_filter_is_not_looked_at_beside_one_with_it() {
    let other =
        Engine::start(EngineOptions { model: "other".to_owned(), ..EngineOptions::default() }).unwrap();
    let filter = Setup::new()
        .plan(|plan| {
            let routes = "routes: [{path: /, model: other, cluster: plain}, {path: /, cluster: llama}]";
            plan.sections = routes.to_owned();
            plan.clusters =
                format!("- {{name: plain, backends: [{{id: other, address: \"{}\"}}]}}", other.address());
        })
        .start()
        .await;
    let body = json!({"model": "other", "prompt": ids(9), "max_tokens": 1}).to_string();
    assert_eq!(filter.post(COMPLETIONS, body).await, 200);
    assert_eq!((filter.calls(LOOKUP), filter.hinted().as_str()), (0, ""));
    assert_eq!(filter.world.app.kvcache_services().len(), 1);
    filter.complete(ids(9)).await;
    assert_eq!((filter.calls(LOOKUP), filter.hinted().as_str()), (2, "no_match 1"));
    let log = filter.world.access_log().await;
    assert!(log[0].get("hint").is_none_or(Value::is_null) && log[1]["hint"] == "no_match", "{log:?}");
}

#[test]
fn every_reason_has_a_name_of_its_own() {
    let mut names: Vec<_> = Why::ALL.iter().map(|why| why.name()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Why::ALL.len());
}
