//! Upgrades: a new process takes the listeners over, and no client notices.

use crate::client::{CHAT, Connection, chat, engine, engine_with, fresh};
use crate::gateway::{Gateway, Plan, free_address};
use mocks::{Engine, EngineOptions, SseOptions};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::sleep;

const LOOPS: usize = 4;
const STREAMS: usize = 15;
/// The time between two events of a stream.
const GAP: Duration = Duration::from_millis(500);
/// Requests go on for so long after the old process has ended.
const AFTER: Duration = Duration::from_secs(2);
const PLAN: Plan = Plan { server: "grace_period: 10m", sections: "", clusters: "", files_max: None };

async fn ask(client: &reqwest::Client, url: &str, body: &Value) -> reqwest::Result<String> {
    let response = client.post(url).json(body).send().await?;
    response.error_for_status()?.text().await
}

/// Requests on new connections, one after the other in each loop, until they are stopped.
struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    loops: JoinSet<Vec<String>>,
}

impl Load {
    fn start(gateway: &Gateway) -> Self {
        let (stop, served) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let body = chat(&"x".repeat(100_000), None);
        let mut loops = JoinSet::new();
        for _ in 0..LOOPS {
            let (stop, served, body) = (Arc::clone(&stop), Arc::clone(&served), body.clone());
            let (client, url) = (fresh(), gateway.url(CHAT));
            loops.spawn(async move {
                let mut failures = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    match ask(&client, &url, &body).await {
                        Ok(answer) if answer.ends_with('}') => {
                            served.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(answer) => failures.push(answer),
                        Err(error) => failures.push(format!("{error:?}")),
                    }
                }
                failures
            });
        }
        Self { stop, served, loops }
    }

    fn served(&self) -> usize {
        self.served.load(Ordering::Relaxed)
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        let failures = self.loops.join_all().await.concat();
        assert_eq!(failures, [""; 0], "of {} requests", self.served.load(Ordering::Relaxed));
    }
}

async fn hand_over(old: &mut Gateway, new: &Gateway) {
    old.signal(Signal::SIGQUIT);
    let log = old.says("handing the listeners over").await;
    assert!(!log.contains("ERROR"), "{log}");
    assert_eq!(old.exit().await, Some(0), "it ends by itself");
    assert_eq!(new.state().await["phase"], "running");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_under_load_fails_no_request_and_cuts_no_stream() {
    let sse = SseOptions { gap: GAP, ..SseOptions::default() };
    let options = EngineOptions { sse, record: false, ..EngineOptions::default() };
    let engines: Vec<Engine> =
        (0..2).map(|index| engine_with(&format!("vllm-{index}"), options.clone())).collect();
    let mut old = Gateway::start(&engines.iter().collect::<Vec<_>>(), PLAN).await;
    let mut streams = JoinSet::new();
    for index in 0..STREAMS {
        // 2 to 8 seconds.
        let request = fresh().post(old.url(CHAT)).json(&chat("hello", Some(4 + index * 12 / (STREAMS - 1))));
        let response = request.send().await.unwrap().error_for_status().unwrap();
        streams.spawn(async move { response.text().await });
    }
    let load = Load::start(&old);

    let new = old.successor().await;
    hand_over(&mut old, &new).await;
    let before = load.served();
    sleep(AFTER).await;
    let after = load.served();
    load.end().await;
    assert!(before > 0 && after > before, "requests were served: {before}, {after}");
    for events in streams.join_all().await {
        let events = events.unwrap();
        assert!(events.ends_with("data: [DONE]\n\n"), "{events}");
    }
    println!("{before} requests during the upgrade, {} after it", after - before);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_upgrade_can_follow_another() {
    let engine = engine("vllm-0");
    let mut current = Gateway::start(&[&engine], PLAN).await;
    let load = Load::start(&current);
    for _ in 0..2 {
        let next = current.successor().await;
        hand_over(&mut current, &next).await;
        current = next;
    }
    load.end().await;
    let log = current.says("kvway starts").await;
    assert!(!log.contains("ERROR"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_the_successor_does_not_have_is_closed() {
    let engine = engine("vllm-0");
    let mut old = Gateway::start(&[&engine], PLAN).await;
    let new = old.successor_at(free_address()).await;
    hand_over(&mut old, &new).await;
    let answer = fresh().get(new.url("/version")).send().await.unwrap();
    assert_eq!(answer.status(), 200, "the new address is served");
    assert!(
        Connection::open(old.address).await.is_err(),
        "the old one is not left open without anybody behind it"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_without_a_predecessor_is_refused_at_once() {
    let engine = engine("vllm-0");
    let mut gone = Gateway::start(&[&engine], PLAN).await;
    gone.signal(Signal::SIGINT);
    gone.exit().await;
    let mut successor = gone.upgraded(gone.address);
    assert_eq!(successor.exit().await, Some(78));
    let log = successor.log().await;
    assert!(log.contains("--upgrade: ") && log.contains("nothing can be taken over"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_that_nobody_hands_over_to_fails_and_says_what_was_missing() {
    let engine = engine("vllm-0");
    let old = Gateway::start(&[&engine], PLAN).await;
    let mut successor = old.successor().await;
    let log = successor.says("SIGQUIT").await;
    assert!(log.contains("upgrade.sock"), "{log}");
    assert_eq!(successor.exit().await, Some(1));
    let log = successor.log().await;
    assert!(log.contains("\"level\":\"ERROR\"") && !log.contains("panicked"), "{log}");
    let answer = fresh().get(old.url("/version")).send().await.unwrap();
    assert_eq!(answer.status(), 200, "the old one serves on");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_socket_that_cannot_be_made_is_refused_with_its_key() {
    let engine = engine("vllm-0");
    let plan = Plan { server: "upgrade_socket: /proc/kvway/upgrade.sock", ..PLAN };
    let old = Gateway::start(&[&engine], plan).await;
    let log = old.says("upgrade socket").await;
    assert!(log.contains("\"level\":\"WARN\""), "it runs nevertheless: {log}");
    let mut successor = old.upgraded(old.address);
    assert_eq!(successor.exit().await, Some(78));
    let log = successor.log().await;
    assert!(log.contains("server.upgrade_socket: ") && !log.contains("panicked"), "{log}");
}
