//! Jobs in the background: what a client's leaving does to them, and that they never stand in the way of requests.

use super::*;
use crate::clients::Http2;
use crate::streams::h2_chat;
use crate::world::stream_of;

const KIB: usize = 1024;

fn buffered(filter: &Filter) -> usize {
    filter.world.app.budget.used()
}

/// A request whose body has at least so many bytes, which is a prompt of its own.
fn body(number: usize, bytes: usize) -> String {
    completion(format!("{number} {}", "x".repeat(bytes)))
}

#[tokio::test]
async fn a_client_that_aborts_ends_its_job() {
    let filter = Filter::new().await;
    let tokenizing = filter.tokenizer.hold_path(TOKENIZE);
    let answering: Vec<_> = filter.world.engines.iter().map(|engine| engine.hold_headers()).collect();
    let mut client = filter.client(CHAT, chat("hello").to_string());
    within(tokenizing.waiting(1)).await;
    assert!(buffered(&filter) > 0);
    client.shutdown().await;
    within(filter.tokenizer.until(|stats| stats.cancelled(TOKENIZE) == 1)).await;
    filter.idle().await;
    assert_eq!(filter.told("jobs_total"), "aborted 1");
    assert_eq!((filter.calls(LOOKUP), buffered(&filter)), (0, 0));
    drop((tokenizing, answering));
    filter.chat("hello").await;
    assert_eq!(filter.hinted(), "tokens_unknown 2", "nothing was remembered");
}

#[tokio::test]
async fn a_client_that_leaves_a_stream_ends_its_job() {
    let filter = Filter::new().await;
    let tokenizing = filter.tokenizer.hold_path(TOKENIZE);
    for engine in &filter.world.engines {
        engine.fail_next(1, Fault::StallAfter(2));
    }
    let mut response = filter.request(CHAT, stream_of(9).to_string()).send().await.unwrap();
    assert!(response.chunk().await.unwrap().is_some());
    within(tokenizing.waiting(1)).await;
    drop(response);
    within(filter.tokenizer.until(|stats| stats.cancelled(TOKENIZE) == 1)).await;
    filter.idle().await;
    assert_eq!(filter.told("jobs_total"), "aborted 1");
}

#[tokio::test]
async fn a_client_that_resets_its_stream_of_http2_ends_its_job() {
    let filter = Filter::new().await;
    let tokenizing = filter.tokenizer.hold_path(TOKENIZE);
    let _answering: Vec<_> = filter.world.engines.iter().map(|engine| engine.hold_headers()).collect();
    let mut client = Http2::connect(filter.world.address).await;
    let response = h2_chat(&mut client, &chat("hello"));
    within(tokenizing.waiting(1)).await;
    drop(response);
    within(filter.tokenizer.until(|stats| stats.cancelled(TOKENIZE) == 1)).await;
    filter.idle().await;
    assert_eq!(filter.told("jobs_total"), "aborted 1");
}

#[tokio::test]
async fn one_of_two_clients_with_the_same_prompt_may_leave() {
    let filter = Filter::new().await;
    let tokenizing = filter.tokenizer.hold_path(TOKENIZE);
    let answering: Vec<_> = filter.world.engines.iter().map(|engine| engine.hold_headers()).collect();
    let mut client = filter.client(CHAT, chat("hello").to_string());
    within(tokenizing.waiting(1)).await;
    let other = filter.client(CHAT, chat("hello").to_string());
    until(|| filter.hints().inbox.running() == 2).await;
    client.shutdown().await;
    until(|| filter.told("jobs_total") == "aborted 1").await;
    drop((tokenizing, answering));
    assert_eq!(other.join_all().await, [200]);
    filter.idle().await;
    assert_eq!(filter.told("jobs_total"), "aborted 1, done 1");
    assert_eq!((filter.calls(TOKENIZE), filter.tokenizer.stats().cancelled(TOKENIZE)), (1, 0));
}

#[tokio::test]
async fn a_normal_end_of_the_answer_leaves_the_job_alone() {
    for body in [chat("hello"), stream_of(3)] {
        let body = body.to_string();
        let filter = Setup::new().prefer("vllm-1").start().await;
        let tokenizing = filter.tokenizer.hold_path(TOKENIZE);
        assert_eq!(filter.send(CHAT, body.clone()).await, 200);
        within(tokenizing.waiting(1)).await;
        filter.world.idle().await;
        assert_eq!(buffered(&filter), body.len(), "a job holds its share");
        tokenizing.release();
        filter.idle().await;
        assert_eq!(filter.tokenizer.stats().cancelled(TOKENIZE), 0, "{body}");
        assert_eq!((filter.told("jobs_total").as_str(), filter.calls(PIN)), ("done 1", 1), "{body}");
        assert_eq!(buffered(&filter), 0);
    }
}

#[tokio::test]
async fn a_backend_that_breaks_off_leaves_the_job_alone() {
    let filter = Setup::new().prefer("vllm-1").start().await;
    for engine in &filter.world.engines {
        engine.fail_next(1, Fault::CutStreamAfter(1));
    }
    let response = filter.request(CHAT, stream_of(9).to_string()).send().await.unwrap();
    assert!(response.bytes().await.is_err());
    filter.idle().await;
    assert_eq!((filter.told("jobs_total").as_str(), filter.calls(PIN)), ("done 1", 1));
}

#[tokio::test]
async fn a_full_queue_drops_jobs_and_touches_no_request() {
    let filter = Setup::new().set("queue_jobs_max", "1").set("workers_max", "1").start().await;
    let gate = filter.tokenizer.hold_path(TOKENIZE);
    for number in 0..6 {
        assert_eq!(filter.send(COMPLETIONS, body(number, 10)).await, 200);
        within(gate.waiting(1)).await;
    }
    filter.world.idle().await;
    assert_eq!(filter.told("jobs_dropped_total"), "jobs 4");
    assert_eq!(buffered(&filter), 2 * body(0, 10).len(), "of the one that runs and the one that waits");
    gate.release();
    filter.idle().await;
    assert_eq!((filter.calls(TOKENIZE), buffered(&filter)), (2, 0));
    assert_eq!(filter.told("jobs_total"), "done 2");
    assert_eq!(filter.world.metric("kvway_buffered_bytes").to_string(), "0");
}

/// A world whose requests may hold 1 MiB in all, and whose tokenizer hangs.
async fn hanging(queue_bytes_max: &str) -> (Filter, mocks::Gate) {
    let setup = Setup::new().set("queue_bytes_max", queue_bytes_max).set("workers_max", "2");
    let limits = "limits: {buffered_bytes_max: 1MiB, body_bytes_max: 256KiB}";
    let filter = setup.plan(|plan| limits.clone_into(&mut plan.sections)).start().await;
    let gate = filter.tokenizer.hold_path(TOKENIZE);
    (filter, gate)
}

#[tokio::test]
async fn waiting_jobs_hold_no_more_bytes_than_configured() {
    let (filter, gate) = hanging("128KiB").await;
    for number in 0..40 {
        assert_eq!(filter.send(COMPLETIONS, body(number, 40 * KIB)).await, 200, "{number}");
    }
    filter.world.idle().await;
    assert_eq!(filter.told("jobs_dropped_total"), "bytes 37");
    assert!(buffered(&filter) <= 128 * KIB, "{}", buffered(&filter));
    gate.release();
    filter.idle().await;
    assert_eq!((filter.told("jobs_total").as_str(), buffered(&filter)), ("done 3", 0));
}

#[tokio::test]
async fn jobs_leave_requests_their_bytes_whatever_is_configured() {
    let (filter, gate) = hanging("64MiB").await;
    for number in 0..40 {
        assert_eq!(filter.send(COMPLETIONS, body(number, 100 * KIB)).await, 200, "{number}");
    }
    filter.world.idle().await;
    assert!(buffered(&filter) <= 512 * KIB, "{}", buffered(&filter));
    gate.release();
    filter.idle().await;
    assert_eq!(buffered(&filter), 0);
}

#[tokio::test]
async fn the_jobs_of_all_clusters_share_what_they_may_hold() {
    let other = EngineOptions { model: "other".to_owned(), ..EngineOptions::default() };
    let other = Engine::start(other).unwrap();
    let address = other.address();
    let gate = other.hold_path(TOKENIZE);
    let cluster = format!(
        "- {{name: other, backends: [{{id: other, address: \"{address}\"}}], kvcache: {{enabled: true, \
         vllm_endpoint: \"http://{address}\", lmcache_endpoint: \"http://{address}\"}}}}"
    );
    let setup = Setup::new().plan(|plan| {
        plan.sections = "limits: {buffered_bytes_max: 1MiB, body_bytes_max: 256KiB}\n\
                         routes: [{path: /, model: other, cluster: other}, {path: /, cluster: llama}]"
            .to_owned();
        plan.clusters = cluster;
    });
    let filter = setup.start().await;
    let own_gate = filter.tokenizer.hold_path(TOKENIZE);
    for number in 0..20 {
        let own = body(number, 100 * KIB);
        let others = own.replace("\"tiny\"", "\"other\"");
        assert_eq!(filter.send(COMPLETIONS, own).await, 200, "{number}");
        assert_eq!(filter.send(COMPLETIONS, others).await, 200, "{number}");
    }
    filter.world.idle().await;
    assert!((300 * KIB..=512 * KIB).contains(&buffered(&filter)), "{}", buffered(&filter));
    drop((gate, own_gate));
    until(|| buffered(&filter) == 0).await;
}

#[tokio::test]
async fn a_job_counts_with_all_that_it_keeps_of_the_body() {
    let (filter, gate) = hanging("128KiB").await;
    let metadata = "x".repeat(100 * KIB);
    for number in 0..40 {
        let body = json!({"model": "tiny", "prompt": [number.to_string()], "metadata": {"x": metadata}});
        assert_eq!(filter.send(COMPLETIONS, body.to_string()).await, 200, "{number}");
    }
    filter.world.idle().await;
    assert!(buffered(&filter) <= 128 * KIB, "{}", buffered(&filter));
    gate.release();
    filter.idle().await;
}
