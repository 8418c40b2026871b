//! Tokens that are remembered, and where they come from.

use super::*;

#[tokio::test]
async fn a_request_counts_once_in_the_token_cache() {
    let filter = Filter::new().await;
    for _ in 0..3 {
        filter.chat("hello").await;
    }
    assert_eq!(filter.told("token_cache_misses_total"), "1");
    assert_eq!(filter.told("token_cache_hits_total"), "2");
    assert_eq!(filter.told("token_cache_entries"), "1");
    assert_eq!(filter.calls(TOKENIZE), 1);
}

#[tokio::test]
async fn tokens_are_forgotten_at_their_time() {
    let filter = Setup::new().set("token_cache", "{enabled: true, ttl: 1m}").start().await;
    filter.chat("hello").await;
    pass(Duration::from_secs(30)).await;
    filter.chat("hello").await;
    pass(Duration::from_secs(31)).await;
    filter.chat("hello").await;
    assert_eq!(filter.told("token_cache_hits_total"), "1");
    assert_eq!(filter.calls(TOKENIZE), 2);
}

#[tokio::test]
async fn without_a_token_cache_no_request_waits_for_a_lookup_and_every_job_tokenizes() {
    let filter = Setup::new().prefer("vllm-1").set("token_cache", "{enabled: false}").start().await;
    for _ in 0..3 {
        filter.chat("hello").await;
    }
    assert_eq!(filter.hinted(), "tokens_unknown 3");
    assert_eq!(filter.told("lookups_total"), "background/match 3");
    assert_eq!([TOKENIZE, LOOKUP, PIN].map(|path| filter.calls(path)), [3, 3, 1]);
    assert_eq!(filter.told("token_cache_misses_total") + &filter.told("token_cache_entries"), "");
    filter.complete(ids(3)).await;
    assert_eq!(filter.hinted(), "followed 1, tokens_unknown 3", "ids need no memory");
}

#[tokio::test]
async fn a_tokenizer_that_fails_is_not_asked_again_and_leaves_nothing_behind() {
    let retry = "{max_attempts: 3, base_backoff: 1ms, max_backoff: 1ms}";
    for fault in [status(500), status(429), status(400), Fault::Garbage, Fault::CloseBeforeResponse] {
        let filter = Setup::new().set("retry", retry).prefer("vllm-1").start().await;
        filter.tokenizer.fail_next_on(TOKENIZE, 1, fault.clone());
        filter.chat("hello").await;
        assert_eq!([TOKENIZE, LOOKUP, PIN].map(|path| filter.calls(path)), [1, 0, 0], "{fault:?}");
        assert_eq!(filter.told("jobs_total"), "tokenizer_failed 1");
        assert_eq!(filter.told("token_cache_entries"), "");
        filter.chat("hello").await;
        filter.chat("hello").await;
        assert_eq!(filter.hinted(), "followed 1, tokens_unknown 2", "{fault:?}");
        assert_eq!(filter.calls(TOKENIZE), 2);
    }
}

#[tokio::test]
async fn identical_prompts_at_the_same_time_share_a_call_to_the_tokenizer() {
    let filter = Filter::new().await;
    let gate = filter.tokenizer.hold_path(TOKENIZE);
    for _ in 0..3 {
        let response = filter.request(CHAT, chat("hello").to_string()).send().await.unwrap();
        assert_eq!(response.status(), 200);
    }
    until(|| filter.hints().inbox.running() == 3).await;
    within(gate.waiting(1)).await;
    gate.release();
    filter.idle().await;
    assert_eq!((filter.calls(TOKENIZE), filter.told("jobs_total").as_str()), (1, "done 3"));
}

/// What the tokenizer was shown of a client that proves itself with `authorization`.
async fn shown(filter: &Filter, text: &str, authorization: Option<&str>) -> Option<String> {
    let request = filter.request(CHAT, chat(text).to_string());
    let request = match authorization {
        Some(value) => request.header("authorization", value),
        None => request,
    };
    assert_eq!(request.send().await.unwrap().status(), 200);
    filter.idle().await;
    let received = filter.received(TOKENIZE);
    received.last().unwrap().header("authorization").map(str::to_owned)
}

#[tokio::test]
async fn the_tokenizer_is_shown_what_the_client_proves_itself_with_and_lmcache_is_not() {
    let filter = Filter::new().await;
    assert_eq!(shown(&filter, "a", Some("Bearer client")).await.as_deref(), Some("Bearer client"));
    assert_eq!(shown(&filter, "b", None).await, None);
    filter.chat("a").await;
    let of_lmcache = [LOOKUP, PIN].map(|path| filter.received(path)).concat();
    assert!(of_lmcache.len() >= 4, "{of_lmcache:?}");
    assert!(of_lmcache.iter().all(|request| request.header("authorization").is_none()));
}

#[tokio::test]
async fn a_backend_that_tokenizes_is_shown_its_own_key() {
    let tokenizer = Engine::start(EngineOptions::default()).unwrap();
    let address = tokenizer.address();
    let backend = format!(r#"id: own, address: "{address}", api_key: ours"#);
    let setup = Setup::new().set("vllm_endpoint", format!("\"http://{address}/\""));
    let mut filter = setup.plan(|plan| plan.more.push(backend)).start().await;
    filter.tokenizer = tokenizer;
    assert_eq!(shown(&filter, "a", Some("Bearer client")).await.as_deref(), Some("Bearer ours"));
    assert_eq!(shown(&filter, "b", None).await.as_deref(), Some("Bearer ours"));
}
