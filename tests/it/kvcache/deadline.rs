//! The most that a request ever waits for its hint, on a clock that moves only when nothing else does.

use super::*;
use futures::future::join_all;
use kvway::app::App;
use kvway::config::Config;
use kvway::proxy::hint::{Asked, Why};
use kvway::proxy::prompt::{Reading, parse};
use kvway::state::budget::Budget;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::time::Instant;

/// An application whose LMCache takes connections and never answers.
async fn silent(section: &str) -> (TcpListener, App) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("\"http://{}\"", listener.local_addr().unwrap());
    let text = format!(
        "log: {{access: \"off\"}}\nclusters:\n  - name: llama\n    policy: lmcache_only\n    backends:\n      \
         - {{id: vllm-0, address: \"127.0.0.1:1\"}}\n    kvcache: {{enabled: true, vllm_endpoint: {endpoint}, \
         lmcache_endpoint: {endpoint}, lookup_tokens_min: 0, {section}}}\n"
    );
    let config = Config::parse(&text, "test.yaml", &|_| None).unwrap_or_else(|error| panic!("{error}"));
    (listener, App::new(config).unwrap())
}

/// How long `bodies` that come at once wait for their hints, which are none, when the requests must end after `left`.
async fn waited(app: &App, bodies: &[String], left: Duration) -> Duration {
    let hints = app.clusters()[0].hints.as_ref().unwrap();
    let budget = Budget::new(1024);
    let started = Instant::now();
    let reading = Reading { secret: Some(hints.secret), text: true, blocks: None };
    let asked = bodies.iter().map(async |body| {
        let body = Bytes::from(body.clone());
        let prompt = parse(&body, COMPLETIONS, &reading);
        let share = Arc::new(budget.share());
        let asked = Asked {
            prompt: &prompt,
            body: &body,
            share: &share,
            authorization: None,
            deadline: started + left,
        };
        let (hint, _job) = hints.ask(asked, started).await;
        assert!(hint.matches.is_empty());
        assert!([Why::Timeout, Why::BreakerOpen].contains(&hint.why.unwrap()), "{:?}", hint.why);
    });
    join_all(asked).await;
    started.elapsed()
}

fn different(count: u32) -> Vec<String> {
    (1..=count).map(|count| completion(ids(count))).collect()
}

const MINUTE: Duration = Duration::from_mins(1);

#[tokio::test(start_paused = true)]
async fn a_silent_lmcache_costs_the_lookup_deadline_and_no_more() {
    let ms = Duration::from_millis;
    let retry = "retry: {max_attempts: 100, base_backoff: 1ms, max_backoff: 7ms}";
    let identical = vec![completion(ids(9)); 50];
    for (section, bodies, left, expected) in [
        ("request_timeout: 2s", different(1), MINUTE, ms(50)),
        ("lookup_routing_timeout: 120ms", different(1), MINUTE, ms(120)),
        ("lookup_routing_timeout: 1m, request_timeout: 30ms", different(1), MINUTE, ms(30)),
        ("lookup_routing_timeout: 50ms", different(1), ms(10), ms(10)),
        ("lookup_routing_timeout: 50ms", different(1), ms(0), ms(0)),
        (retry, different(1), MINUTE, ms(50)),
        ("request_timeout: 2s", identical.clone(), MINUTE, ms(50)),
        (retry, identical, ms(35), ms(35)),
        ("request_timeout: 2s", different(50), MINUTE, ms(50)),
        ("max_conns_per_host: 1", different(50), MINUTE, ms(50)),
    ] {
        let (_listener, app) = silent(section).await;
        assert_eq!(waited(&app, &bodies, left).await, expected, "{section}, {} at once", bodies.len());
    }
}

#[tokio::test(start_paused = true)]
async fn one_after_the_other_they_wait_until_the_breaker_opens_and_then_not_at_all() {
    let (_listener, app) = silent("circuit_breaker: {failure_threshold: 3}").await;
    let mut waits = Vec::new();
    for _ in 0..5 {
        waits.push(waited(&app, &different(1), MINUTE).await.as_millis());
    }
    assert_eq!(waits, [50, 50, 50, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn who_joins_a_lookup_late_waits_no_longer_than_its_own_deadline() {
    let (_listener, app) = silent("lookup_routing_timeout: 50ms").await;
    let body = different(1);
    let late = async {
        tokio::time::sleep(Duration::from_millis(40)).await;
        waited(&app, &body, Duration::from_millis(5)).await
    };
    let (first, second) = tokio::join!(waited(&app, &body, MINUTE), late);
    assert_eq!((first, second), (Duration::from_millis(50), Duration::from_millis(5)));
}
