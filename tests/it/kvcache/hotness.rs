//! From which access on a prompt is pinned.

use super::*;

fn threshold(count: usize) -> Setup {
    let strategy = format!("{{enable_pinning: true, hot_content_threshold: {count}}}");
    Setup::new().prefer("vllm-1").set("cache_strategy", strategy)
}

/// The pins after each of so many requests.
async fn pins(filter: &Filter, requests: usize) -> Vec<u64> {
    let mut pins = Vec::new();
    for _ in 0..requests {
        filter.chat("hello").await;
        pins.push(filter.calls(PIN));
    }
    pins
}

#[tokio::test]
async fn the_access_that_reaches_the_threshold_pins() {
    assert_eq!(pins(&threshold(1).start().await, 2).await, [1, 1]);
    let filter = threshold(3).start().await;
    assert_eq!(pins(&filter, 4).await, [0, 0, 1, 1]);
    assert_eq!(filter.told("hot_prompts_total"), "2");
    assert_eq!(filter.told("actions_total"), "pin/ok 1, pin/withheld 1");
}

#[tokio::test]
async fn a_threshold_of_nought_or_no_pinning_pins_nothing() {
    assert_eq!(pins(&threshold(0).start().await, 3).await, [0, 0, 0]);
    let without = Setup::new().prefer("vllm-1").set("cache_strategy", "{hot_content_threshold: 1}");
    let filter = without.start().await;
    assert_eq!(pins(&filter, 3).await, [0, 0, 0]);
    assert_eq!(filter.told("hot_prompts_total"), "");
}

#[tokio::test]
async fn a_prompt_without_a_model_is_never_hot() {
    let filter = threshold(1).start().await;
    for _ in 0..3 {
        filter.post(COMPLETIONS, r#"{"prompt":"hello"}"#).await;
        filter.post(COMPLETIONS, r#"{"prompt":[1,2,3]}"#).await;
    }
    assert_eq!((filter.calls(PIN), filter.told("hot_prompts_total").as_str()), (0, ""));
    assert_eq!(filter.hinted(), "followed 5, tokens_unknown 1");
}

#[tokio::test]
async fn the_text_is_hot_whatever_it_is_wrapped_in() {
    let filter = threshold(3).start().await;
    filter.complete(" hello").await;
    filter.chat("hello\n").await;
    assert_eq!(filter.calls(PIN), 0);
    let parts = json!({"model": "tiny", "messages": [{"content": [{"type": "text", "text": "hello"}]}]});
    filter.post(CHAT, parts.to_string()).await;
    assert_eq!(filter.calls(PIN), 1);
}

#[tokio::test]
async fn accesses_count_within_the_window_alone() {
    let filter = threshold(2).set("hot_window", "1m").start().await;
    filter.chat("hello").await;
    pass(Duration::from_secs(61)).await;
    filter.chat("hello").await;
    assert_eq!(filter.calls(PIN), 0);
    filter.chat("hello").await;
    assert_eq!(filter.calls(PIN), 1);
}

#[tokio::test]
async fn the_prompt_that_was_seen_least_recently_is_forgotten_first() {
    let filter = threshold(2).set("hot_max_keys", "2").start().await;
    for text in ["a", "b", "c", "a"] {
        filter.chat(text).await;
    }
    assert_eq!(filter.calls(PIN), 0, "the first was forgotten");
    filter.chat("c").await;
    assert_eq!(filter.calls(PIN), 1);
}
