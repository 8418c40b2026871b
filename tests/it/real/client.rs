//! The gateway's client of LMCache against a real controller: what it sends is taken, what comes back is understood.

use super::controller::{Controller, LOCATION, controller, tokens};
use kvway::clients::breaker::{Breaker, State};
use kvway::clients::call::{CallError, Reason};
use kvway::clients::lmcache::{Acted, Action, Lmcache, Placement};
use kvway::config::{CircuitBreaker, KvCache};
use prometheus::{IntCounterVec, Opts};
use std::slice::from_ref;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Longer than any answer takes that comes at all.
const LONG: Duration = Duration::from_mins(1);

/// The client of a gateway whose breaker opens at the first failure.
struct Client {
    lmcache: Lmcache,
    breaker: Arc<Breaker>,
}

impl Client {
    fn of(controller: &Controller) -> Self {
        let section = KvCache {
            enabled: true,
            lmcache_endpoint: Some(controller.endpoint()),
            request_timeout: LONG,
            control_timeout: LONG,
            circuit_breaker: CircuitBreaker { failure_threshold: 1, ..CircuitBreaker::default() },
            ..KvCache::default()
        };
        let labels = ["cluster", "breaker", "state"];
        let transitions = IntCounterVec::new(Opts::new("transitions", "of breakers"), &labels).unwrap();
        let breaker = Arc::new(Breaker::new("lmcache", "chat", &section.circuit_breaker, transitions));
        let lmcache = Lmcache::new(&section, Arc::clone(&breaker)).unwrap();
        Self { lmcache, breaker }
    }

    async fn look_up(&self, tokens: &[u32]) -> Vec<Placement> {
        self.lmcache.look_up("tiny", None, tokens, Instant::now() + LONG).await.unwrap()
    }

    async fn act(&self, action: Action, tokens: &[u32]) -> Result<Acted, CallError> {
        self.lmcache.act(&action, "tiny", tokens).await
    }

    fn state(&self) -> State {
        self.breaker.state(Instant::now())
    }
}

fn placement(instance: &str, tokens: usize) -> Placement {
    Placement { instance: instance.to_owned(), location: LOCATION.to_owned(), tokens }
}

fn pin(instance: &str) -> Action {
    Action::Pin { instance: instance.to_owned(), location: LOCATION.to_owned() }
}

fn compress(instance: &str, method: &str) -> Action {
    Action::Compress {
        instance: instance.to_owned(),
        location: LOCATION.to_owned(),
        method: method.to_owned(),
    }
}

#[tokio::test]
async fn every_instance_of_a_lookup_is_understood() {
    let controller = controller().await;
    controller.instance("client-short", &[tokens(110_000, 600)]).await;
    controller.instance("client-long", &[tokens(110_000, 1100)]).await;
    let mut found = Client::of(&controller).look_up(&tokens(110_000, 1100)).await;
    found.sort_by_key(|placement| placement.tokens);
    assert_eq!(found, [placement("client-short", 512), placement("client-long", 1100)]);
}

#[tokio::test]
async fn a_prompt_that_nobody_holds_has_no_placement() {
    let controller = controller().await;
    assert_eq!(Client::of(&controller).look_up(&tokens(120_000, 1000)).await, []);
}

#[tokio::test]
async fn a_long_prompt_is_looked_up_whole() {
    let controller = controller().await;
    let held = tokens(200_000, 32_768);
    controller.instance("client-whole", from_ref(&held)).await;
    assert_eq!(Client::of(&controller).look_up(&held).await, [placement("client-whole", 32_768)]);
}

#[tokio::test]
async fn pin_compress_and_clear_arrive_at_the_worker() {
    let controller = controller().await;
    let held = tokens(130_000, 600);
    let instance = controller.instance("client-acts", from_ref(&held)).await;
    let client = Client::of(&controller);
    let more = tokens(130_000, 1100);
    assert_eq!(client.act(pin(&instance.id), &more).await, Ok(Acted { tokens: 512 }));
    assert_eq!(client.act(compress(&instance.id, "cachegen"), &more).await, Ok(Acted { tokens: 512 }));
    assert_eq!(client.act(compress(&instance.id, "zstd"), &more).await, Ok(Acted { tokens: 0 }));
    let clear = Action::Clear { instance: instance.id.clone(), location: LOCATION.to_owned() };
    assert_eq!(client.act(clear, &more).await, Ok(Acted { tokens: 600 }));
    for (operation, count) in [("pin", 1), ("compress", 2), ("clear", 1)] {
        let asked = instance.is_asked(operation, count).await;
        assert!(asked.iter().all(|event| event["location"] == LOCATION), "{asked:?}");
    }
}

#[tokio::test]
async fn an_evict_is_not_there_and_says_nothing_against_the_controller() {
    let controller = controller().await;
    let client = Client::of(&controller);
    let evict = Action::Evict { instance: "any".to_owned() };
    let refused = client.act(evict, &tokens(0, 300)).await.unwrap_err();
    assert_eq!(refused.status(), Some(404));
    assert_eq!(client.state(), State::Closed);
}

#[tokio::test]
async fn an_instance_that_is_not_there_counts_against_the_controller() {
    let controller = controller().await;
    let client = Client::of(&controller);
    let refused = client.act(pin("client-nobody"), &tokens(0, 300)).await.unwrap_err();
    assert_eq!(refused.reason, Reason::Status(500));
    assert_eq!(client.state(), State::Open, "a 500 is a failure");
}

#[tokio::test]
async fn a_wedged_instance_fails_at_once_and_is_found_all_the_same() {
    let controller = controller().await;
    let held = tokens(140_000, 600);
    let instance = controller.instance("client-wedged", from_ref(&held)).await;
    instance.hold(&["pin"]).await;
    let (first, second) = (Client::of(&controller), Client::of(&controller));
    let hanging = async {
        tokio::select! {
            answer = first.act(pin(&instance.id), &held) => panic!("answered {answer:?}"),
            _ = instance.is_asked("pin", 1) => {}
        }
    };
    hanging.await;
    let refused = second.act(pin(&instance.id), &held).await.unwrap_err();
    assert_eq!(refused.reason, Reason::Status(500));
    assert_eq!(instance.asked("pin").len(), 1, "the controller did not ask again");
    let other = Client::of(&controller);
    assert_eq!(other.look_up(&held).await, [placement(&instance.id, 600)]);
}
