//! The load of an engine, from its metrics.

use super::raw;
use kvway::clients::call::{CallError, Reason};
use kvway::clients::vllm::{self, EngineLoad};
use kvway::config::Secret;
use mocks::{Engine, EngineOptions, Fault, Load, SleepState};

const METRICS: &str = "/metrics";

fn start() -> Engine {
    let _installed = rustls::crypto::ring::default_provider().install_default();
    Engine::start(EngineOptions::default()).unwrap()
}

async fn load(engine: &Engine) -> Result<EngineLoad, CallError> {
    let client = vllm::client(super::LONG).unwrap();
    let key: Secret = serde_yaml::from_str("secret").unwrap();
    vllm::load(&client, &format!("http://{}", engine.address()), Some(&key)).await
}

async fn read(text: &str) -> Result<EngineLoad, CallError> {
    let engine = start();
    engine.fail_always_on(METRICS, raw(200, text));
    load(&engine).await
}

#[tokio::test]
async fn recorded_metrics_are_read() {
    let path =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden/vllm-0.32.0-metrics.txt");
    let text = std::fs::read_to_string(path).unwrap();
    let idle = EngineLoad { running: 0.0, waiting: 0.0, cache_usage: Some(0.0), asleep: false };
    assert_eq!(read(&text).await, Ok(idle));
    let busy = text
        .replace(
            "num_requests_running{engine=\"0\",model_name=\"tiny\"} 0.0",
            "num_requests_running{engine=\"0\",model_name=\"tiny\"} 3.0",
        )
        .replace(
            "kv_cache_usage_perc{engine=\"0\",model_name=\"tiny\"} 0.0",
            "kv_cache_usage_perc{engine=\"0\",model_name=\"tiny\"} 0.25",
        );
    assert_eq!(read(&busy).await, Ok(EngineLoad { running: 3.0, cache_usage: Some(0.25), ..idle }));
}

#[tokio::test]
async fn the_load_of_an_engine_is_read_with_our_key() {
    let engine = start();
    engine.pretend_load(Some(Load { running: 5, waiting: 2, kv_cache_usage: 0.75 }));
    let expected = EngineLoad { running: 5.0, waiting: 2.0, cache_usage: Some(0.75), asleep: false };
    assert_eq!(load(&engine).await, Ok(expected));
    assert_eq!(engine.received()[0].header("authorization"), Some("Bearer secret"));
    engine.set_sleep(SleepState::WeightsOffloaded);
    assert!(load(&engine).await.unwrap().asleep);
}

#[tokio::test]
async fn engines_add_up_and_the_fullest_cache_counts() {
    let text = "# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine=\"0\",model_name=\"a}b c\"} 1.0
vllm:num_requests_running{engine=\"1\"} 2 1795178753
vllm:num_requests_waiting 4
vllm:num_requests_waiting_by_reason{reason=\"capacity\"} 9.0
vllm:kv_cache_usage_perc{engine=\"0\"} 0.5
vllm:kv_cache_usage_perc{engine=\"1\"} 2.5e-1
vllm:kv_cache_usage_perc{engine=\"2\"} NaN
\nnonsense
";
    let expected = EngineLoad { running: 3.0, waiting: 4.0, cache_usage: Some(0.5), asleep: false };
    assert_eq!(read(text).await, Ok(expected));
}

#[tokio::test]
async fn metrics_of_something_else_are_not_understood() {
    for text in ["", "up 1", "vllm:num_requests_running 1", "vllm:num_requests_waiting 1"] {
        assert_eq!(read(text).await.unwrap_err().kind(), "undecodable", "{text}");
    }
}

#[tokio::test]
async fn an_engine_that_fails_is_named_by_its_status() {
    let engine = start();
    engine.fail_always_on(METRICS, Fault::Status { code: 503, retry_after: None });
    assert_eq!(load(&engine).await, Err(CallError::new("load", Reason::Status(503))));
}
