//! The controller against its recorded sections, in the state in which they were recorded, and its switches.

use mocks::{Controller, ControllerOptions, Fault};

use crate::client::{post, send};
use crate::golden::{check, expand, sections};

const RECORDED: &str = include_str!("../../../tests/data/golden/lmcache-0.5.6-controller.txt");
/// In the order of the recording, since some change what the next see.
const ASKED: &str = include_str!("asked/lmcache-controller.txt");

/// What differs from call to call comes after these.
const VARYING: [&str; 10] = [
    "\"Lookup",
    "\"Pin",
    "\"Compress",
    "\"Decompress",
    "\"health",
    "\"QueryInst",
    "\"QueryWorkerInfo",
    "\"Clear",
    "\"registration_time\":",
    "\"last_heartbeat_time\":",
];

/// The metrics page is compared by the names of its gauges; `env-noauth` is no answer of the controller.
const NOT_COMPARED: [&str; 2] = ["metrics", "env-noauth"];

fn list(from: u32, to: u32) -> Vec<u32> {
    (from..to).collect()
}

/// The controller as it was when the sections were recorded.
fn recorded_state() -> Controller {
    let controller = Controller::start(ControllerOptions::default()).unwrap();
    controller.admit("inst-a", "LocalCPUBackend", &list(0, 600));
    controller.admit("inst-b", "LocalCPUBackend", &list(0, 1100));
    controller.admit("inst-c", "LocalDiskBackend", &list(5000, 5512));
    controller
}

#[tokio::test]
async fn the_controller_answers_as_recorded() {
    let controller = recorded_state();
    check(controller.address(), RECORDED, ASKED, &VARYING, &NOT_COMPARED).await;
}

#[tokio::test]
async fn metrics_show_recorded_gauges() {
    let controller = recorded_state();
    let reply = send(controller.address(), "GET", "/metrics", &[], "").await;
    let recorded = sections(RECORDED).into_iter().find(|section| section.title == "metrics").unwrap();
    assert!(
        reply.text().lines().count() == 6 && reply.text().lines().all(|line| recorded.body.contains(line))
    );
    let content_type =
        reply.header("content-type").map(|value| ("content-type".to_owned(), value.to_owned()));
    assert!(recorded.headers.contains(&content_type.unwrap()));
}

#[tokio::test]
async fn a_preferred_instance_holds_every_prompt() {
    let controller = recorded_state();
    controller.prefer(Some("vllm-1"));
    let reply = post(controller.address(), "/lookup", r#"{"tokens":[1,2,3]}"#).await.json();
    assert_eq!(reply["layout_info"], serde_json::json!({"vllm-1": ["LocalCPUBackend", 3]}));
    let pin = r#"{"tokens":[1,2,3],"instance_id":"vllm-1","location":"LocalCPUBackend"}"#;
    assert_eq!(post(controller.address(), "/pin", pin).await.json()["num_tokens"], 3);
    controller.prefer(None);
    let reply = post(controller.address(), "/lookup", r#"{"tokens":[1,2,3]}"#).await.json();
    assert_eq!(reply["layout_info"], serde_json::json!({}));
}

#[tokio::test]
async fn the_layout_can_be_an_object() {
    let options = ControllerOptions {
        object_shape: true,
        prefer: Some("vllm-1".into()),
        ..ControllerOptions::default()
    };
    let controller = Controller::start(options).unwrap();
    let reply = post(controller.address(), "/lookup", r#"{"tokens":[1,2,3]}"#).await.json();
    assert_eq!(reply["layout_info"], serde_json::json!({"vllm-1": {"0": "LocalCPUBackend", "1": 3}}));
}

#[tokio::test]
async fn evict_exists_where_that_is_on() {
    let controller =
        Controller::start(ControllerOptions { evict: true, ..ControllerOptions::default() }).unwrap();
    controller.admit("a", "LocalCPUBackend", &list(0, 512));
    let body = expand(r#"{"tokens":[0..512],"instance_id":"a"}"#);
    assert_eq!(post(controller.address(), "/evict", &body).await.json()["num_tokens"], 512);
    assert_eq!(post(controller.address(), "/evict", &body).await.json()["num_tokens"], 0);
}

#[tokio::test]
async fn a_method_without_effect_compresses_nothing() {
    let controller = recorded_state();
    let body =
        expand(r#"{"tokens":[0..512],"instance_id":"inst-a","location":"LocalCPUBackend","method":"zstd"}"#);
    assert_eq!(post(controller.address(), "/compress", &body).await.json()["num_tokens"], 0);
}

#[tokio::test]
async fn gates_faults_and_counters_are_those_of_every_mock() {
    let controller = recorded_state();
    controller.fail_next(1, Fault::Status { code: 500, retry_after: None });
    assert_eq!(post(controller.address(), "/lookup", r#"{"tokens":[1]}"#).await.status(), 500);
    let gate = controller.hold_headers();
    let (reply, ()) = tokio::join!(post(controller.address(), "/lookup", r#"{"tokens":[1]}"#), async {
        gate.waiting(1).await;
        gate.release();
    });
    assert_eq!(reply.status(), 200);
    assert_eq!((controller.stats().served("/lookup"), controller.received().len()), (1, 2));
}

#[tokio::test]
async fn content_can_be_set_and_forgotten_over_http() {
    let controller = Controller::start(ControllerOptions::default()).unwrap();
    let body = expand(r#"{"tokens":[0..256],"instance_id":"a","location":"LocalCPUBackend"}"#);
    post(controller.address(), "/admit", &body).await;
    let reply = post(controller.address(), "/lookup", &body).await.json();
    assert_eq!(reply["layout_info"]["a"][1], 256);
    post(controller.address(), "/reset", "").await;
    assert_eq!(
        post(controller.address(), "/lookup", &body).await.json()["layout_info"],
        serde_json::json!({})
    );
}

#[tokio::test]
async fn the_preferred_instance_is_set_over_http_and_set_back_by_a_reset() {
    let options = ControllerOptions { prefer: Some("vllm-0".into()), ..ControllerOptions::default() };
    let controller = Controller::start(options).unwrap();
    let address = controller.address();
    for (body, held) in [
        (r#"{"instance_id":"vllm-1"}"#, serde_json::json!({"vllm-1": ["LocalCPUBackend", 1]})),
        (r#"{"instance_id":""}"#, serde_json::json!({})),
    ] {
        assert_eq!(post(address, "/prefer", body).await.status(), 200);
        let reply = post(address, "/lookup", r#"{"tokens":[1]}"#).await.json();
        assert_eq!(reply["layout_info"], held);
    }
    assert_eq!(post(address, "/prefer", "{}").await.status(), 422);
    post(address, "/reset", "{}").await;
    let reply = post(address, "/lookup", r#"{"tokens":[1]}"#).await.json();
    assert_eq!(reply["layout_info"], serde_json::json!({"vllm-0": ["LocalCPUBackend", 1]}));
}

#[tokio::test]
async fn stats_count_calls_by_their_name_until_the_reset() {
    let controller = recorded_state();
    let address = controller.address();
    post(address, "/lookup", r#"{"tokens":[1]}"#).await;
    post(address, "/lookup", r#"{"tokens":"a"}"#).await;
    controller.fail_next(1, Fault::Status { code: 500, retry_after: None });
    post(address, "/lookup", r#"{"tokens":[1]}"#).await;
    let pin = r#"{"tokens":[1],"instance_id":"inst-a","location":"LocalCPUBackend"}"#;
    post(address, "/pin", pin).await;
    post(address, "/evict", pin).await;
    let names =
        ["lookup_calls", "lookup_success", "lookup_failure", "pin_calls", "compress_calls", "evict_calls"];
    let stats = send(address, "GET", "/stats", &[], "").await.json();
    assert_eq!(names.map(|name| stats[name].as_u64().unwrap()), [3, 1, 2, 1, 0, 1]);
    assert!(stats["preferred_endpoint"].is_null() && stats["paths"]["/lookup"]["served"] == 2);
    post(address, "/reset", "").await;
    let stats = send(address, "GET", "/stats", &[], "").await.json();
    assert_eq!(names.map(|name| stats[name].as_u64().unwrap()), [0; 6]);
}
