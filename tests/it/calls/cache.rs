//! What an engine says of its KV cache, from its metrics.

use super::raw;
use kvway::clients::call::CallError;
use kvway::clients::vllm::{self, EngineCache};
use kvway::config::Secret;
use mocks::{Engine, EngineOptions, SleepState};

const METRICS: &str = "/metrics";

fn start() -> Engine {
    let _installed = rustls::crypto::ring::default_provider().install_default();
    Engine::start(EngineOptions::default()).unwrap()
}

async fn ask(engine: &Engine) -> Result<EngineCache, CallError> {
    let client = vllm::client(super::LONG).unwrap();
    let key: Secret = serde_yaml::from_str("secret").unwrap();
    vllm::cache(&client, &format!("http://{}", engine.address()), Some(&key)).await
}

async fn read(text: &str) -> Result<EngineCache, CallError> {
    let engine = start();
    engine.fail_always_on(METRICS, raw(200, text));
    ask(&engine).await
}

async fn capacity(text: &str) -> Option<u64> {
    read(&format!("{text}\nvllm:prompt_tokens_total 1\n")).await.unwrap().capacity_tokens
}

#[tokio::test]
async fn recorded_metrics_are_read() {
    let path =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden/vllm-0.32.0-metrics.txt");
    let recorded = std::fs::read_to_string(path).unwrap();
    let idle = EngineCache { asleep: Some(false), prompt_tokens: Some(18.0), ..EngineCache::default() };
    assert_eq!(read(&recorded).await, Ok(idle), "the recorded line of the cache is cut off");
    let whole = recorded.trim_end().to_owned() + "gine=\"0\",num_gpu_blocks=\"1021\"} 1.0\n";
    assert_eq!(read(&whole).await, Ok(EngineCache { capacity_tokens: Some(128 * 1021), ..idle }));
}

#[tokio::test]
async fn an_engine_is_asked_with_our_key() {
    let engine = start();
    let said = EngineCache {
        capacity_tokens: Some(16 * 31_250),
        asleep: Some(false),
        prompt_tokens: Some(0.0),
        counting_since: None,
    };
    assert_eq!(ask(&engine).await, Ok(said));
    assert_eq!(engine.received()[0].header("authorization"), Some("Bearer secret"));
    engine.set_sleep(SleepState::DiscardAll);
    assert_eq!(ask(&engine).await, Ok(EngineCache { asleep: Some(true), ..said }));
}

#[tokio::test]
async fn the_capacity_is_that_of_all_engines() {
    let info = |labels: &str| format!("vllm:cache_config_info{{{labels}}} 1.0\n");
    let [one, other] = [0, 1].map(|engine| {
        info(&format!("block_size=\"16\",engine=\"{engine}\",num_gpu_blocks=\"{}\"", 100 + engine))
    });
    assert_eq!(capacity(&one).await, Some(1600));
    assert_eq!(capacity(&(one.clone() + &one)).await, Some(1600), "the same engine twice");
    assert_eq!(capacity(&(one + &other)).await, Some(1600 + 1616));
    let told = "block_size=\"4\",kv_cache_size_tokens=\"123456\",num_gpu_blocks=\"1000\"";
    assert_eq!(capacity(&info(told)).await, Some(123_456), "blocks are not all of one size");
    assert_eq!(capacity(&info(&told.replace("123456", "None"))).await, Some(4000));
}

#[tokio::test]
async fn a_capacity_that_is_no_number_is_not_told() {
    for labels in [
        "",
        "block_size=\"16\"",
        "block_size=\"16\",num_gpu_blocks=\"None\"",
        "block_size=\"16\",num_gpu_blocks=\"-1\"",
        "block_size=\"16\",num_gpu_blocks=\"1e3\"",
        "xblock_size=\"16\",num_gpu_blocks=\"10\"",
    ] {
        assert_eq!(capacity(&format!("vllm:cache_config_info{{{labels}}} 1.0")).await, None, "{labels}");
    }
    let most = u64::MAX;
    let beyond = format!("vllm:cache_config_info{{block_size=\"16\",num_gpu_blocks=\"{most}\"}} 1.0");
    assert_eq!(capacity(&beyond).await, Some(most));
}

#[tokio::test]
async fn when_counting_began_is_told_where_an_engine_tells_it() {
    let text = "vllm:prompt_tokens_created{engine=\"0\"} 1.7e+09\nvllm:prompt_tokens_created{engine=\"1\"} 2.0\n\
                vllm:prompt_tokens_total{engine=\"0\"} 5\nvllm:prompt_tokens_total{engine=\"1\"} 6\n";
    let said = read(text).await.unwrap();
    assert_eq!((said.counting_since, said.prompt_tokens), (Some(1_700_000_002.0), Some(11.0)));
}

#[tokio::test]
async fn metrics_of_something_else_are_not_understood() {
    for text in ["", "up 1", "process_start_time_seconds 1.7e9"] {
        assert_eq!(read(text).await.unwrap_err().kind(), "undecodable", "{text}");
    }
}
