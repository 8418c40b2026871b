//! When calls are given up for a while: for what servers do, and never for what clients send.

use super::*;

/// What the breakers have turned to.
fn turns(filter: &Filter) -> String {
    filter.told("breaker_transitions_total")
}

async fn of_five() -> Filter {
    let breaker = "{failure_threshold: 5, recovery_timeout: 10m, half_open_max_calls: 1}";
    Setup::new().prefer("vllm-1").set("circuit_breaker", breaker).start().await
}

#[tokio::test]
async fn prompts_that_the_tokenizer_refuses_do_not_open_its_breaker() {
    let filter = of_five().await;
    for number in 0..6 {
        let image =
            json!([{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "what?"}]);
        let messages = json!([{"role": "user", "content": image}]);
        let body = json!({"model": "tiny", "messages": messages, "number": number});
        filter.post(CHAT, body.to_string()).await;
    }
    assert_eq!(filter.told("tokenizer_calls_total"), "status 6");
    assert_eq!((turns(&filter).as_str(), filter.told("breaker_state").as_str()), ("", ""));
    filter.chat("hello").await;
    assert_eq!(filter.told("tokenizer_calls_total"), "ok 1, status 6");
}

#[tokio::test]
async fn a_tokenizer_that_fails_five_times_is_left_alone_until_a_trial_succeeds() {
    let filter = of_five().await;
    filter.tokenizer.fail_next_on(TOKENIZE, 6, status(500));
    for _ in 0..7 {
        filter.chat("hello").await;
    }
    assert_eq!(filter.told("tokenizer_calls_total"), "breaker_open 2, status 5");
    assert_eq!((filter.calls(TOKENIZE), filter.told("breaker_state").as_str()), (5, "tokenizer 2"));
    pass(Duration::from_mins(10)).await;
    assert_eq!(filter.told("breaker_state"), "tokenizer 1");
    filter.chat("hello").await;
    assert_eq!((filter.calls(TOKENIZE), filter.told("breaker_state").as_str()), (6, "tokenizer 2"));
    pass(Duration::from_mins(10)).await;
    filter.chat("hello").await;
    assert_eq!((filter.calls(TOKENIZE), filter.told("breaker_state").as_str()), (7, ""));
    assert_eq!(turns(&filter), "tokenizer/closed 1, tokenizer/half_open 2, tokenizer/open 2");
    filter.chat("hello").await;
    assert_eq!(filter.hinted(), "followed 1, tokens_unknown 9");
}

#[tokio::test]
async fn lookups_of_requests_and_of_jobs_have_one_breaker() {
    let filter = of_five().await;
    filter.controller.fail_next_on(LOOKUP, 5, status(503));
    for _ in 0..3 {
        filter.complete(ids(9)).await;
    }
    assert_eq!(
        filter.told("lookups_total"),
        "background/breaker_open 1, background/status 2, request/status 3"
    );
    filter.complete(ids(9)).await;
    assert_eq!((filter.calls(LOOKUP), filter.told("breaker_state").as_str()), (5, "lmcache 2"));
    assert_eq!(filter.hinted(), "breaker_open 1, failed 3");
    pass(Duration::from_mins(10)).await;
    filter.complete(ids(9)).await;
    assert_eq!(filter.hinted(), "breaker_open 1, failed 3, followed 1");
    assert_eq!(turns(&filter), "lmcache/closed 1, lmcache/half_open 1, lmcache/open 1");
}

#[tokio::test]
async fn clients_that_leave_open_no_breaker() {
    let filter = of_five().await;
    let gate = filter.tokenizer.hold_path(TOKENIZE);
    let answering: Vec<_> = filter.world.engines.iter().map(|engine| engine.hold_headers()).collect();
    for number in 1..=6 {
        let mut client = filter.client(CHAT, chat(&number.to_string()).to_string());
        within(gate.waiting(1)).await;
        client.shutdown().await;
        within(filter.tokenizer.until(|stats| stats.cancelled(TOKENIZE) == number)).await;
        filter.idle().await;
    }
    assert_eq!((turns(&filter).as_str(), filter.told("jobs_total").as_str()), ("", "aborted 6"));
    drop((gate, answering));
}

#[tokio::test]
async fn a_controller_without_evict_is_well() {
    let strategy = "{enable_eviction: true, memory_threshold: 0.5}";
    let breaker = "{failure_threshold: 1, recovery_timeout: 10m}";
    let setup = Setup::new().set("cache_strategy", strategy).set("circuit_breaker", breaker);
    let filter = setup.prefer("vllm-1").set("load_period", "1h").start().await;
    until(|| filter.told("load_polls_total") == "ok 2").await;
    let full = mocks::Load { running: 1, waiting: 0, kv_cache_usage: 0.9 };
    filter.world.engines[1].pretend_load(Some(full));
    pass(Duration::from_hours(1)).await;
    until(|| filter.told("memory_ratio").contains("vllm-1 0.9")).await;
    for count in 1..4 {
        filter.complete(ids(count)).await;
    }
    assert_eq!((filter.calls("/evict"), filter.told("actions_total").as_str()), (1, "evict/unsupported 3"));
    assert_eq!((turns(&filter).as_str(), filter.hinted().as_str()), ("", "followed 3"));
}
