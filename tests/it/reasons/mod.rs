//! What is told of choices: the last ones, the one that would be made now, and the blocks of prompts in the access log.

mod blocks;
mod decisions;
mod explain;

use crate::world::{Plan, World, chat, serve_admin};
use kvway::config::Policy;
use kvway::proxy::demand::Said;
use kvway::proxy::hint::{Hint, Match, Why};
use kvway::proxy::peer::{self, Candidate, Rules};
use mocks::EngineOptions;
use reqwest::header::HeaderMap;
use serde_json::Value;
use std::net::SocketAddr;
use tokio::task::JoinSet;

const CHAT: &str = "/v1/chat/completions";

/// A gateway with its admin listener.
pub(crate) struct Admin<'a> {
    world: &'a World,
    address: SocketAddr,
    _serving: JoinSet<()>,
}

impl<'a> Admin<'a> {
    pub(crate) async fn of(world: &'a World) -> Self {
        let (address, serving) = serve_admin(&world.app).await;
        Self { world, address, _serving: serving }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// All that `/decisions` tells.
    async fn told(&self) -> Value {
        let response = self.world.client.get(self.url("/decisions")).send().await.unwrap();
        assert_eq!(response.headers()["content-type"], "application/json");
        response.json().await.unwrap()
    }

    /// The last decisions, the newest first.
    pub(crate) async fn decisions(&self) -> Vec<Value> {
        self.told().await["decisions"].as_array().unwrap().clone()
    }

    /// Status and answer of `/explain` to this query, these headers and this body.
    async fn ask(&self, query: &str, headers: HeaderMap, body: impl Into<reqwest::Body>) -> (u16, Value) {
        let request = self.world.client.post(self.url(&format!("/explain{query}"))).headers(headers);
        let response = request.body(body).send().await.unwrap();
        let status = response.status().as_u16();
        assert_eq!(response.headers()["content-type"], "application/json");
        (status, response.json().await.unwrap())
    }

    /// What would be chosen now for a request with this body.
    pub(crate) async fn explain(&self, body: &Value) -> Value {
        let (status, told) = self.ask("", HeaderMap::new(), body.to_string()).await;
        assert_eq!(status, 200, "{told}");
        told
    }
}

/// A world of so many engines whose cluster has these keys.
async fn world(engines: usize, cluster: &str, sections: &str) -> World {
    World::with(Plan {
        engines: vec![EngineOptions::default(); engines],
        cluster: cluster.to_owned(),
        sections: sections.to_owned(),
        ..Plan::default()
    })
    .await
}

/// A chat of some blocks that begins with `start`, and ends with `end`.
fn long_chat(start: &str, end: &str) -> Value {
    chat(&format!("{}{end}", start.repeat(8192 / start.len())))
}

/// Sends a chat and waits until all is closed.
async fn send(world: &World, body: &Value) {
    let response = world.client.post(world.url(CHAT)).json(body).send().await.unwrap();
    assert_eq!(response.status(), 200);
    response.bytes().await.unwrap();
    world.idle().await;
}

/// What was told of this backend as a candidate.
fn candidate<'a>(decision: &'a Value, backend: &str) -> &'a Value {
    let all = decision["candidates"].as_array().unwrap();
    all.iter().find(|candidate| candidate["backend"] == backend).unwrap()
}

fn count(value: &Value) -> usize {
    usize::try_from(value.as_u64().unwrap()).unwrap()
}

/// Takes a decision again with nothing but what was told of it: the same arguments choose the same backend.
pub(crate) fn assert_taken_again(decision: &Value) {
    let list = |key: &str| decision[key].as_array().unwrap().iter();
    let name = |value: &Value| value["backend"].as_str().unwrap().to_owned();
    // Backends that are no candidates come after those that are.
    let names: Vec<String> = list("candidates").chain(list("matches")).map(name).collect();
    let index = |backend: &Value| names.iter().position(|name| backend == name).unwrap();
    let rules = Rules {
        policy: serde_json::from_value(decision["policy"].clone()).unwrap(),
        balancing: serde_json::from_value(decision["balancing"].clone()).unwrap(),
        preferred_in_flight_max: decision["preferred_in_flight_max"].as_f64().unwrap(),
    };
    let candidates = list("candidates").map(|told| Candidate {
        index: index(&told["backend"]),
        requests: count(&told["requests"]),
        pending_tokens: count(&told["pending_tokens"]),
        uncached_tokens: count(&told["uncached_tokens"]),
        weight: count(&told["weight"]),
        said: Said::default(),
        source: None,
    });
    let candidates: Vec<Candidate> = candidates.collect();
    let matches = list("matches");
    let matches =
        matches.map(|told| Match { index: index(&told["backend"]), tokens: count(&told["tokens"]) });
    let matches: Vec<Match> = matches.collect();
    let hint = if matches.is_empty() {
        Hint::none(Why::ALL.into_iter().find(|why| decision["hint"] == why.name()).unwrap())
    } else {
        Hint::of(matches)
    };
    let pick = decision["pick"].as_str().map(|pick| index(&pick.into()));
    let random = u64::from_str_radix(decision["random"].as_str().unwrap(), 16).unwrap();
    let peer = peer::choose(rules, &candidates, &hint, pick, random);
    let told = peer.map(|peer| (names[peer.index].as_str(), peer.reason.name(), peer.hint_name()));
    let text = |key: &str| decision[key].as_str();
    assert_eq!(told.map(|told| told.0), text("chosen"), "{decision}");
    assert_eq!(told.map(|told| told.1), text("reason"), "{decision}");
    assert!(told.is_none_or(|told| decision["hint"] == told.2), "{decision}");
    for (told, candidate) in list("candidates").zip(&candidates) {
        let costs = (told["cost"].as_f64(), peer::cost(rules.policy, candidate));
        // The last bit may be lost where a decimal is read.
        let same = costs.0.zip(costs.1).map_or(costs.0 == costs.1, |(a, b)| (a - b).abs() < 1e-6);
        assert!(same, "{costs:?}: {decision}");
    }
}
