//! The KV-cache filter as a client, an operator, a tokenizer and an LMCache meet it: through the whole gateway.
//!
//! A gateway whose one cluster has the filter on, its engines, a tokenizer and an LMCache of their own. The times of the
//! configuration are longer than a test: gates hold calls, and where time has to pass the clock is moved.

mod bodies;
mod breakers;
mod costs;
mod deadline;
mod failures;
mod flow;
mod hotness;
mod identity;
mod jobs;
mod lookups;
mod off;
mod preference;
mod reasons;
mod secrets;
mod telling;
mod tokens;

use crate::world::{Plan, World, chat, until, within};
use bytes::Bytes;
use kvway::proxy::hint::Hints;
use mocks::{Controller, ControllerOptions, Engine, EngineOptions, Fault, Received};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::task::JoinSet;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const TOKENIZE: &str = "/tokenize";
const LOOKUP: &str = "/lookup";
const PIN: &str = "/pin";

/// What a test wants: every prompt is looked up, remembered and pinned with its first access; no call is made twice.
struct Setup {
    plan: Plan,
    cluster: String,
    section: BTreeMap<&'static str, String>,
    controller: ControllerOptions,
}

impl Setup {
    fn new() -> Self {
        let section = [
            ("enabled", "true"),
            ("request_timeout", "10m"),
            ("lookup_routing_timeout", "1m"),
            ("control_timeout", "10m"),
            ("action_interval", "10m"),
            ("lookup_tokens_min", "0"),
            ("token_cache", "{enabled: true}"),
            ("cache_strategy", "{enable_pinning: true, hot_content_threshold: 1}"),
            ("retry", "{max_attempts: 1}"),
            ("circuit_breaker", "{failure_threshold: 1000, recovery_timeout: 10m, half_open_max_calls: 1}"),
        ];
        Self {
            plan: Plan::default(),
            cluster: "policy: lmcache_only".to_owned(),
            section: section.map(|(key, value)| (key, value.to_owned())).into(),
            controller: ControllerOptions::default(),
        }
    }

    /// A key of the section.
    fn set(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.section.insert(key, value.into());
        self
    }

    /// The keys of the cluster beside its backends and the section.
    fn cluster(mut self, lines: &str) -> Self {
        lines.clone_into(&mut self.cluster);
        self
    }

    fn plan(mut self, change: impl FnOnce(&mut Plan)) -> Self {
        change(&mut self.plan);
        self
    }

    /// One engine alone, so that it is known who gets a request.
    fn one_engine(self) -> Self {
        self.plan(|plan| plan.engines.truncate(1))
    }

    /// At which instance LMCache has everything.
    fn prefer(mut self, instance: &str) -> Self {
        self.controller.prefer = Some(instance.to_owned());
        self
    }

    async fn start(mut self) -> Filter {
        let tokenizer = Engine::start(EngineOptions::default()).unwrap();
        let controller = Controller::start(self.controller).unwrap();
        for (key, address) in
            [("vllm_endpoint", tokenizer.address()), ("lmcache_endpoint", controller.address())]
        {
            self.section.entry(key).or_insert_with(|| format!("\"http://{address}\""));
        }
        // Longer than any test lets pass: no connection is closed while nobody looks.
        self.plan.sections.insert_str(0, "timeouts: {idle: 24h}\n");
        let section: Vec<String> =
            self.section.iter().map(|(key, value)| format!("{key}: {value}")).collect();
        self.plan.cluster = format!("{}\nkvcache: {{{}}}", self.cluster, section.join(", "));
        Filter { world: World::with(self.plan).await, tokenizer, controller }
    }
}

/// A gateway with the filter on, and those that it asks.
struct Filter {
    world: World,
    tokenizer: Engine,
    controller: Controller,
}

impl Filter {
    async fn new() -> Self {
        Setup::new().start().await
    }

    fn request(&self, path: &str, body: impl Into<reqwest::Body>) -> reqwest::RequestBuilder {
        let request = self.world.client.post(self.world.url(path));
        request.header("content-type", "application/json").body(body)
    }

    /// Sends a body and reads the answer; its status.
    async fn send(&self, path: &str, body: impl Into<Bytes>) -> u16 {
        let response = self.request(path, body.into()).send().await.unwrap();
        let status = response.status().as_u16();
        response.bytes().await.unwrap();
        status
    }

    /// As [`Filter::send`], and waits until everything that follows from it is done.
    async fn post(&self, path: &str, body: impl Into<Bytes>) -> u16 {
        let status = self.send(path, body).await;
        self.idle().await;
        status
    }

    /// A chat request that succeeds.
    async fn chat(&self, text: &str) {
        assert_eq!(self.post(CHAT, chat(text).to_string()).await, 200);
    }

    /// A request for the completion of a prompt in whatever form, which succeeds.
    async fn complete(&self, prompt: impl Into<Value>) {
        assert_eq!(self.post(COMPLETIONS, completion(prompt)).await, 200);
    }

    /// A client that sends a body and stays until its answer has come or the set is dropped; the status.
    fn client(&self, path: &str, body: impl Into<Bytes>) -> JoinSet<u16> {
        let request = self.request(path, body.into());
        let mut client = JoinSet::new();
        client.spawn(async move { request.send().await.unwrap().status().as_u16() });
        client
    }

    /// Waits until no request is in flight, and no job waits or runs.
    async fn idle(&self) {
        let inbox = &self.hints().inbox;
        until(|| self.world.app.lifecycle.in_flight() + inbox.waiting() + inbox.running() == 0).await;
    }

    fn hints(&self) -> &Hints {
        self.world.app.clusters()[0].hints.as_ref().unwrap()
    }

    /// How many requests the tokenizer and LMCache have met on `path`.
    fn calls(&self, path: &str) -> u64 {
        self.tokenizer.stats().path(path).received + self.controller.stats().path(path).received
    }

    /// What the tokenizer and LMCache have received on `path`.
    fn received(&self, path: &str) -> Vec<Received> {
        let all = self.tokenizer.received().into_iter().chain(self.controller.received());
        all.filter(|request| request.path_and_query == path).collect()
    }

    /// The bodies of [`Filter::received`].
    fn bodies(&self, path: &str) -> Vec<Value> {
        self.received(path).iter().map(|request| serde_json::from_slice(&request.body).unwrap()).collect()
    }

    /// The series of a metric that are not 0, sorted, each with its labels beside the cluster and its value, as in
    /// `background/match 1, request/match 2`.
    fn told(&self, name: &str) -> String {
        let text = self.world.metrics();
        let start = format!("kvway_kvcache_{name}{{");
        let series = text.lines().filter_map(|line| line.strip_prefix(&start)?.split_once("} "));
        let shown = series.filter(|(_, value)| *value != "0").map(|(labels, value)| {
            let labels = labels.split(',').filter(|label| !label.starts_with("cluster="));
            let names: Vec<&str> = labels.filter_map(|label| label.split('"').nth(1)).collect();
            format!("{} {value}", names.join("/")).trim().to_owned()
        });
        let mut shown: Vec<String> = shown.collect();
        shown.sort();
        shown.join(", ")
    }

    /// What became of the hints.
    fn hinted(&self) -> String {
        self.told("hints_total")
    }
}

fn completion(prompt: impl Into<Value>) -> String {
    json!({"model": "tiny", "prompt": prompt.into(), "max_tokens": 1}).to_string()
}

/// The ids of a prompt of so many tokens.
fn ids(count: u32) -> Vec<u32> {
    (1000..1000 + count).collect()
}

/// An answer of LMCache that says where how many tokens are.
fn layout(spots: &Value) -> Fault {
    answer(200, &json!({"event_id": "Lookup0", "layout_info": spots}).to_string())
}

/// An answer that is written as it stands.
fn answer(status: u16, body: &str) -> Fault {
    let length = body.len();
    let head = format!("HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {length}");
    Fault::Raw(format!("{head}\r\nconnection: close\r\n\r\n{body}").into())
}

fn status(code: u16) -> Fault {
    Fault::Status { code, retry_after: None }
}

/// Lets time pass at once.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}
