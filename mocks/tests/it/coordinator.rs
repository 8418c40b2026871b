//! The coordinator against its recorded answers, and its switches.
//!
//! They were recorded without headers, the warm lookups as Python prints JSON and with their tokens cut short. What LMCache's
//! own servers send to it (registering, heartbeats, events) is not mocked.

use mocks::{Controller, ControllerOptions, Coordinator, CoordinatorOptions};
use serde_json::{Value, json};

use crate::client::{Reply, post, send};
use crate::golden::{expand, level};

const RECORDED: &str = include_str!("../../../tests/data/golden/lmcache-0.5.6-coordinator.txt");
/// What differs from one to the next comes after these.
const VARYING: [&str; 3] = ["\"chunk_hash_hex\":\"", "\"registration_time\":", "\"http_port\":"];
const PROMPT: &str = r#"{"token_ids":[0..600],"model_name":"tiny","world_size":1}"#;

/// A recorded answer: its body and its status.
fn recorded(title: &str) -> (&'static str, u16) {
    let section = RECORDED.split("### ").find_map(|section| section.strip_prefix(title)?.strip_prefix('\n'));
    let (body, status) = section.expect(title).trim_end().rsplit_once("  [").expect(title);
    (body, status.trim_end_matches(']').parse().unwrap())
}

fn compare(title: &str, reply: &Reply) {
    let (body, status) = recorded(title);
    assert_eq!(level(reply.text(), &VARYING), level(body, &VARYING), "{title}");
    assert_eq!(reply.status(), status, "{title}");
}

fn coordinator() -> Coordinator {
    Coordinator::start(CoordinatorOptions::default()).unwrap()
}

fn list(from: u32, to: u32) -> Vec<u32> {
    (from..to).collect()
}

/// A lookup's instances, chunk by chunk.
async fn placements(coordinator: &Coordinator, prompt: &str) -> Vec<Vec<String>> {
    let reply = post(coordinator.address(), "/directory/lookup", &expand(prompt)).await.json();
    let names = |result: &Value| {
        let placements = result["placements"].as_array().unwrap();
        placements.iter().map(|placement| placement["instance_id"].as_str().unwrap().to_owned()).collect()
    };
    reply["results"].as_array().unwrap().iter().map(names).collect()
}

#[tokio::test]
async fn the_coordinator_answers_as_recorded() {
    let coordinator = coordinator();
    let address = coordinator.address();
    coordinator.chunks().register("mp-0");
    let prompt = expand(PROMPT);
    compare("healthz", &send(address, "GET", "/healthz", &[], "").await);
    compare("instances", &send(address, "GET", "/instances", &[], "").await);
    compare("lookup cold", &post(address, "/directory/lookup", &prompt).await);
    compare("lookup missing model", &post(address, "/directory/lookup", r#"{"token_ids":[1]}"#).await);
    compare("pins", &post(address, "/cache/pins", &prompt).await);
    compare("old /lookup", &post(address, "/lookup", r#"{"tokens":[1]}"#).await);
    compare("stats", &send(address, "GET", "/directory/stats", &[], "").await);
    let elsewhere = r#"{"instance_id":"zz","model_name":"tiny","world_size":1}"#;
    compare("delete unknown inst", &post(address, "/cache/delete", elsewhere).await);
}

#[tokio::test]
async fn pins_are_listed_as_recorded_and_counted() {
    let coordinator = coordinator();
    let (address, prompt) = (coordinator.address(), expand(PROMPT));
    post(address, "/cache/pins", &prompt).await;
    let listed = send(address, "GET", "/cache/pins", &[], "").await;
    compare("list pins", &listed);
    post(address, "/cache/pins", &prompt).await;
    let unpin = |body: String| async move {
        let headers = ["content-type: application/json", &format!("content-length: {}", body.len())];
        send(address, "DELETE", "/cache/pins", &headers, &body).await.json()
    };
    assert_eq!(unpin(prompt.clone()).await, json!({"requested": 2, "affected": 2, "status": "unpinned"}));
    assert_eq!(send(address, "GET", "/cache/pins", &[], "").await.text(), listed.text());
    unpin(prompt.clone()).await;
    assert_eq!(send(address, "GET", "/cache/pins", &[], "").await.text(), r#"{"total":0,"pins":[]}"#);
    assert_eq!(unpin(prompt).await["affected"], 0);
}

#[tokio::test]
async fn a_warm_lookup_has_the_recorded_shape() {
    let coordinator = coordinator();
    coordinator.admit("mp-0", "LocalCPUBackend", &list(0, 600));
    let mut given = post(coordinator.address(), "/directory/lookup", &expand(PROMPT)).await.json();
    let line = RECORDED.lines().find_map(|line| line.strip_prefix("### warm lookup ")).unwrap();
    let mut recorded: Value = serde_json::from_str(line).unwrap();
    for (index, from) in [0, 256].into_iter().enumerate() {
        assert_eq!(given["results"][index]["token_ids"], json!(list(from, from + 256)));
        for answer in [&mut given, &mut recorded] {
            answer["results"][index]["token_ids"] = Value::Null;
            answer["results"][index]["key"]["chunk_hash_hex"] = Value::Null;
        }
    }
    assert_eq!(given.to_string(), recorded.to_string());
    let stats = send(coordinator.address(), "GET", "/directory/stats", &[], "").await.json();
    assert_eq!((&stats["l1_keys_by_instance"], &stats["num_keys"]), (&json!({"mp-0": 3}), &json!(3)));
}

#[tokio::test]
async fn every_holder_of_a_chunk_is_shown_and_the_controller_shows_the_first() {
    let coordinator = coordinator();
    let chunks = coordinator.chunks();
    chunks.admit("a", "LocalCPUBackend", &list(0, 256));
    chunks.admit("b", "LocalCPUBackend", &list(0, 512));
    assert_eq!(placements(&coordinator, PROMPT).await, [vec!["a".to_owned(), "b".into()], vec!["b".into()]]);
    let controller =
        Controller::start_over(([127, 0, 0, 1], 0).into(), ControllerOptions::default(), chunks).unwrap();
    let reply = post(controller.address(), "/lookup", &expand(r#"{"tokens":[0..600]}"#)).await.json();
    assert_eq!(reply["layout_info"], json!({"a": ["LocalCPUBackend", 256], "b": ["LocalCPUBackend", 512]}));
}

#[tokio::test]
async fn each_rank_has_keys_of_its_own_and_disks_are_the_second_tier() {
    let coordinator = coordinator();
    coordinator.admit("a", "LocalDiskBackend", &list(0, 256));
    let prompt = expand(r#"{"token_ids":[0..300],"model_name":"tiny","world_size":2}"#);
    let reply = post(coordinator.address(), "/directory/lookup", &prompt).await.json();
    let ranks: Vec<_> =
        (0..2).map(|rank| reply["results"][rank]["key"]["kv_rank"].as_u64().unwrap()).collect();
    assert_eq!((&reply["chunks"], ranks), (&json!(1), vec![0x0200_0200, 0x0201_0201]));
    assert_eq!(reply["results"][0]["placements"][0]["tier"], "l2");
}

#[tokio::test]
async fn a_deleted_prompt_is_gone_from_its_instance_only() {
    let coordinator = coordinator();
    coordinator.admit("a", "LocalCPUBackend", &list(0, 512));
    coordinator.admit("b", "LocalCPUBackend", &list(0, 256));
    let body = expand(r#"{"instance_id":"a","token_ids":[0..512],"model_name":"tiny","world_size":1}"#);
    let reply = post(coordinator.address(), "/cache/delete", &body).await.json();
    assert_eq!((&reply["affected"], &reply["status"]), (&json!(2), &json!("deleted")));
    assert_eq!(placements(&coordinator, PROMPT).await, [vec!["b".to_owned()], vec![]]);
}

#[tokio::test]
async fn a_preferred_instance_holds_every_chunk_until_the_reset() {
    let coordinator = coordinator();
    let address = coordinator.address();
    post(address, "/prefer", r#"{"instance_id":"vllm-1"}"#).await;
    assert_eq!(placements(&coordinator, PROMPT).await, [["vllm-1"], ["vllm-1"]]);
    let stats = send(address, "GET", "/stats", &[], "").await.json();
    assert_eq!((&stats["lookup_calls"], &stats["preferred_endpoint"]), (&json!(1), &json!("vllm-1")));
    post(address, "/reset", "").await;
    assert_eq!(placements(&coordinator, PROMPT).await, [[""; 0], []]);
    assert_eq!(send(address, "GET", "/stats", &[], "").await.json()["preferred_endpoint"], Value::Null);
}

#[tokio::test]
async fn a_lookup_without_tokens_or_with_others_is_refused() {
    let coordinator = coordinator();
    for body in [
        r#"{"model_name":"tiny"}"#,
        r#"{"token_ids":["a"],"model_name":"tiny"}"#,
        r#"{"token_ids":[1],"model_name":"tiny","world_size":"two"}"#,
        "nothing",
    ] {
        assert_eq!(post(coordinator.address(), "/directory/lookup", body).await.status(), 422, "{body}");
    }
}
