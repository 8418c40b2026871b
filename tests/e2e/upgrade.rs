//! Upgrades: a new process takes the listeners over, and no client notices.

use crate::client::{CHAT, chat, engine, engine_with, fresh};
use crate::gateway::{Gateway, PATIENCE, Plan};
use mocks::{Engine, EngineOptions, SseOptions};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

const LOOPS: usize = 4;
const STREAMS: usize = 15;
/// The time between two events of a stream.
const GAP: Duration = Duration::from_millis(500);
/// Requests go on for so long after the old process has ended.
const AFTER: Duration = Duration::from_secs(2);
const PLAN: Plan = Plan {
    server: "grace_period: 10m",
    sections: "",
    clusters: "",
    files_max: None,
};

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
        assert_eq!(
            failures,
            [""; 0],
            "of {} requests",
            self.served.load(Ordering::Relaxed)
        );
    }
}

async fn hand_over(old: &mut Gateway) -> Gateway {
    let new = old.successor().await;
    old.signal(Signal::SIGQUIT);
    let log = old.says("handing the listeners over").await;
    assert!(!log.contains("ERROR"), "{log}");
    new
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_under_load_fails_no_request_and_cuts_no_stream() {
    let sse = SseOptions {
        gap: GAP,
        ..SseOptions::default()
    };
    let options = EngineOptions {
        sse,
        record: false,
        ..EngineOptions::default()
    };
    let engines: Vec<Engine> = (0..2)
        .map(|index| engine_with(&format!("vllm-{index}"), options.clone()))
        .collect();
    let mut old = Gateway::start(&engines.iter().collect::<Vec<_>>(), PLAN).await;
    let mut streams = JoinSet::new();
    for index in 0..STREAMS {
        // 2 to 8 seconds.
        let request = fresh()
            .post(old.url(CHAT))
            .json(&chat("hello", Some(4 + index * 12 / (STREAMS - 1))));
        let response = request.send().await.unwrap().error_for_status().unwrap();
        streams.spawn(async move { response.text().await });
    }
    let load = Load::start(&old);

    let new = hand_over(&mut old).await;
    assert_eq!(old.exit().await, Some(0), "it ends by itself");
    let before = load.served();
    sleep(AFTER).await;
    let after = load.served();
    load.end().await;
    assert!(
        before > 0 && after > before,
        "requests were served: {before}, {after}"
    );
    for events in streams.join_all().await {
        let events = events.unwrap();
        assert!(events.ends_with("data: [DONE]\n\n"), "{events}");
    }
    let state = new.state().await;
    assert_eq!(state["phase"], "running");
    println!(
        "{before} requests during the upgrade, {} after it",
        after - before
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_upgrade_can_follow_another() {
    let engine = engine("vllm-0");
    let mut current = Gateway::start(&[&engine], PLAN).await;
    let load = Load::start(&current);
    for _ in 0..2 {
        let next = hand_over(&mut current).await;
        assert_eq!(current.exit().await, Some(0));
        current = next;
        assert_eq!(current.state().await["phase"], "running");
    }
    load.end().await;
    let log = current.says("kvway starts").await;
    assert!(!log.contains("ERROR"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_without_a_predecessor_fails_and_says_what_was_missing() {
    let engine = engine("vllm-0");
    let mut gone = Gateway::start(&[&engine], PLAN).await;
    gone.signal(Signal::SIGINT);
    gone.exit().await;
    let mut successor = gone.successor().await;
    let code = timeout(PATIENCE, successor.exit()).await.unwrap();
    assert_eq!(code, Some(1));
    let log = successor.log().await;
    assert!(log.contains("SIGQUIT") && log.contains("upgrade.sock"), "{log}");
    assert!(!log.contains("panicked"), "{log}");
    // And the next ordinary start is not in its way.
    let mut again = gone.again().await;
    assert!(again.is_running());
}
