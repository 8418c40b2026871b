//! Every endpoint passes; what the gateway answers itself; what it adds to a request and an answer.

use crate::world::{Plan, World, chat};
use mocks::EngineOptions;
use serde_json::Value;

fn error_of(body: &str) -> Value {
    let value: Value = serde_json::from_str(body).unwrap();
    assert!(value["error"]["message"].is_string() && value["error"]["type"].is_string(), "{body}");
    value["error"].clone()
}

#[tokio::test]
async fn every_endpoint_of_an_engine_passes_both_ways_unchanged() {
    let world = World::new().await;
    for (path, body) in [
        ("/v1/chat/completions", r#"{"model":"tiny","messages":[{"role":"user","content":"h\u00e9"}] }"#),
        ("/v1/completions", r#" {"model":"tiny","prompt":"hello"}"#),
        ("/v1/embeddings", r#"{"model":"tiny","input":"hello"}"#),
        ("/v1/responses", r#"{"model":"tiny","input":"hello"}"#),
        ("/v1/messages", r#"{"model":"tiny","max_tokens":3,"messages":[{"role":"user","content":"hello"}]}"#),
        ("/tokenize", r#"{"model":"tiny","prompt":"hello"}"#),
        ("/rerank", r#"{"model":"tiny","query":"a","documents":["b"]}"#),
        ("/no/such/endpoint", "not even JSON \u{0}"),
    ] {
        let through =
            world.client.post(world.url(path)).header("content-type", "application/json").body(body);
        let through = through.header("x-request-id", "same").send().await.unwrap();
        let received =
            world.engines.iter().flat_map(|engine| engine.received()).find(|r| r.path_and_query == path);
        let received = received.unwrap_or_else(|| panic!("{path} did not arrive"));
        assert_eq!(received.body, body, "{path}");
        let direct = format!("http://{}{path}", world.engines[0].address());
        let direct = world.client.post(direct).header("content-type", "application/json").body(body);
        let direct = direct.header("x-request-id", "same").send().await.unwrap();
        assert_eq!(through.status(), direct.status(), "{path}");
        assert_eq!(through.headers()["content-type"], direct.headers()["content-type"], "{path}");
        let (through, direct) = (through.text().await.unwrap(), direct.text().await.unwrap());
        let without_ids = |text: &str| text.split("\"created\":").next().unwrap_or_default().to_owned();
        assert_eq!(without_ids(&through).len(), without_ids(&direct).len(), "{path}: {through} {direct}");
        world.engines.iter().for_each(|engine| engine.forget());
    }
}

#[tokio::test]
async fn requests_without_a_body_pass() {
    let world = World::new().await;
    for path in ["/health", "/version", "/ping", "/metrics?x=1"] {
        let response = world.client.get(world.url(path)).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
    }
    let head = world.client.head(world.url("/version")).send().await.unwrap();
    assert!(head.text().await.unwrap().is_empty());
}

#[tokio::test]
async fn the_model_list_is_merged_and_kept_while_backends_are_gone() {
    let world = World::new().await;
    let models = world.app.models_service();
    let client = crate::world::client();
    models.tick(&client).await;
    world
        .engines
        .iter()
        .for_each(|engine| engine.fail_always_on("/v1/models", mocks::Fault::CloseBeforeResponse));
    models.tick(&client).await;
    let list: Value = world.client.get(world.url("/v1/models")).send().await.unwrap().json().await.unwrap();
    assert_eq!(list["object"], "list");
    assert_eq!(list["data"].as_array().unwrap().len(), 1);
    assert_eq!(list["data"][0]["id"], "tiny");
    assert_eq!(list["data"][0]["owned_by"], "vllm", "the entry is the engine's own");
    let one: Value =
        world.client.get(world.url("/v1/models/tiny")).send().await.unwrap().json().await.unwrap();
    assert_eq!(one, list["data"][0]);
    assert!((world.metric(r#"kvway_model_lists_failed_total{cluster="llama"}"#) - 1.0).abs() < f64::EPSILON);
}

#[tokio::test]
async fn an_oversized_model_list_is_not_taken() {
    let engine = EngineOptions { model: "m".repeat(2000), ..EngineOptions::default() };
    let sections = "limits: {models_bytes_max: 1KiB}".to_owned();
    let world = World::with(Plan { engines: vec![engine], sections, ..Plan::default() }).await;
    world.app.models_service().tick(&crate::world::client()).await;
    assert!(world.app.models.listing().is_none());
    let passed = world.client.get(world.url("/v1/models")).send().await.unwrap();
    assert_eq!(passed.status(), 200, "without a list the request goes to a backend");
}

#[tokio::test]
async fn an_unknown_path_and_an_unknown_model_are_told_apart() {
    let routes = "routes:\n  - {path: /v1, model: tiny, cluster: llama}\n  - {path: /v1, model: \"org/*\", cluster: llama}";
    let world = World::with(Plan { sections: routes.to_owned(), ..Plan::default() }).await;
    assert_eq!(world.chat().await.status(), 200);
    let send = async |path: &str, model: &str| {
        let request = world.client.post(world.url(path)).body(format!(r#"{{"model":"{model}"}}"#));
        let response = request.send().await.unwrap();
        (response.status().as_u16(), error_of(&response.text().await.unwrap())["code"].clone())
    };
    assert_eq!(send("/v2/x", "tiny").await, (404, "no_route".into()));
    assert_eq!(send("/v1/x", "other").await, (404, "model_not_found".into()));
    let fine =
        world.client.post(world.url("/v1/chat/completions")).json(&serde_json::json!({"model": "org/a/b"}));
    assert_eq!(fine.send().await.unwrap().status(), 404, "passed on: the engine itself does not know it");
    assert!(world.engines.iter().any(|engine| engine.received().len() == 1));
}

#[tokio::test]
async fn a_route_to_a_cluster_that_is_not_there_answers_as_configured() {
    let routes =
        "routes:\n  - {path: /lost, cluster: gone, cluster_not_found_status: 505}\n  - {cluster: llama}";
    let world = World::with(Plan { sections: routes.to_owned(), ..Plan::default() }).await;
    let answer = world.client.post(world.url("/lost/x")).body("{}").send().await.unwrap();
    assert_eq!(answer.status(), 505);
    let error = error_of(&answer.text().await.unwrap());
    assert_eq!((&error["code"], &error["type"]), (&"cluster_not_found".into(), &"server_error".into()));
    assert!(world.engines.iter().all(|engine| engine.received().is_empty()));
    assert_eq!(world.chat().await.status(), 200);
}

#[tokio::test]
async fn no_answer_of_our_own_names_an_address() {
    let world = World::new().await;
    let addresses: Vec<String> =
        world.engines.iter().map(|engine| engine.address().port().to_string()).collect();
    let World { engines, client, address, .. } = world;
    for engine in engines {
        engine.stop().await;
    }
    let response =
        client.post(format!("http://{address}/v1/completions")).json(&chat("x")).send().await.unwrap();
    assert_eq!(response.status(), 502);
    assert!(response.headers().contains_key("x-request-id"));
    let body = response.text().await.unwrap();
    assert_eq!(error_of(&body)["code"], "backend_failed");
    assert!(!addresses.iter().any(|port| body.contains(port)) && !body.contains("127.0.0.1"), "{body}");
}

#[tokio::test]
async fn without_a_healthy_backend_the_answer_is_503_with_a_pause() {
    let world = World::new().await;
    for backend in world.app.clusters()[0].fleet.backends() {
        backend.set_healthy(false);
    }
    let response = world.chat().await;
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["retry-after"], "1");
    assert_eq!(error_of(&response.text().await.unwrap())["code"], "no_backend");
}

#[tokio::test]
async fn the_request_says_where_it_came_from_and_carries_one_id() {
    let world = World::new().await;
    let request = world.client.post(world.url("/v1/chat/completions")).json(&chat("x"));
    let request = request
        .header("x-forwarded-for", "6.6.6.6")
        .header("x-request-id", "rid-1")
        .header("authorization", "Bearer client");
    let response = request.header("connection", "x-drop").header("x-drop", "1").send().await.unwrap();
    assert_eq!(response.headers()["x-request-id"], "rid-1");
    let received = world.engines.iter().flat_map(|engine| engine.received()).next_back().unwrap();
    assert_eq!(
        received.header("x-forwarded-for"),
        Some("6.6.6.6, 127.0.0.1"),
        "the client's address comes last"
    );
    assert_eq!(received.header("x-forwarded-proto"), Some("http"));
    assert_eq!(received.header("x-request-id"), Some("rid-1"));
    assert_eq!(received.header("authorization"), Some("Bearer client"));
    assert_eq!(received.header("x-drop"), None, "what Connection names stays here");
    assert_eq!(received.header("host").map(str::to_owned), Some(received_host(&world)));
}

fn received_host(world: &World) -> String {
    let engine = world.engines.iter().find(|engine| !engine.received().is_empty()).unwrap();
    engine.address().to_string()
}

#[tokio::test]
async fn a_backends_own_key_replaces_the_clients() {
    let world = World::with(Plan { backend: ", api_key: sk-backend".to_owned(), ..Plan::default() }).await;
    let request = world.client.post(world.url("/v1/completions")).bearer_auth("client").json(&chat("x"));
    assert!(request.send().await.unwrap().status().is_success());
    let received = world.engines.iter().flat_map(|engine| engine.received()).next_back().unwrap();
    assert_eq!(received.header("authorization"), Some("Bearer sk-backend"));
}

#[tokio::test]
async fn an_upgrade_is_not_passed_on() {
    let world = World::new().await;
    let request = world
        .client
        .get(world.url("/version"))
        .header("connection", "upgrade")
        .header("upgrade", "websocket");
    assert_eq!(request.send().await.unwrap().status(), 200);
    let received = world.engines.iter().flat_map(|engine| engine.received()).next_back().unwrap();
    assert_eq!((received.header("upgrade"), received.header("connection")), (None, None));
}

#[tokio::test]
async fn a_header_beyond_the_limits_is_answered_431() {
    let limits = "limits: {headers_max: 20, header_bytes_max: 4KiB}";
    let world = World::with(Plan { sections: limits.to_owned(), ..Plan::default() }).await;
    let mut many = world.client.get(world.url("/version"));
    for index in 0..30 {
        many = many.header(format!("x-{index}"), "1");
    }
    assert_eq!(many.send().await.unwrap().status(), 431);
    let long = world.client.get(world.url("/version")).header("x-long", "x".repeat(5000));
    assert_eq!(long.send().await.unwrap().status(), 431);
    assert_eq!(world.client.get(world.url("/version")).send().await.unwrap().status(), 200);
}
