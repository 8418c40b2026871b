//! A whole gateway with the KV-cache filter before mock engines and a real LMCache controller.
//!
//! The engines tokenize as the mocks do; the workers hold what a test says. LMCache's answers are waited for as long as it
//! takes, so no test depends on how fast the controller is.

use super::controller::{Controller, Hashes, Instance, LOCATION, controller};
use super::process::{Process, look_until};
use crate::calls::log::Paper;
use crate::world::{Plan, World, chat, until};
use futures::future::join_all;
use mocks::{Engine, EngineOptions, Load};
use reqwest::StatusCode;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

/// A gateway before two engines, `left` and `right`, which LMCache knows as `<test>-left` and `<test>-right`.
struct Site {
    controller: Controller,
    test: &'static str,
    engines: [Engine; 2],
    world: World,
}

impl Site {
    /// `kvcache`: keys of the section beside those that every site has, as in `action_interval: 0s`.
    async fn new(test: &'static str, kvcache: &str) -> Self {
        Self::loaded(test, None, kvcache).await
    }

    /// As [`Site::new`], where the engine `right` says to have this load.
    async fn loaded(test: &'static str, load: Option<Load>, kvcache: &str) -> Self {
        let controller = controller().await;
        let engine =
            |id: &str| Engine::start(EngineOptions { id: id.to_owned(), ..EngineOptions::default() });
        let engines = ["left", "right"].map(|id| engine(id).unwrap());
        engines[1].pretend_load(load);
        let backend = |engine: &Engine| {
            let (id, address) = (engine.id(), engine.address());
            format!(r#"id: {id}, address: "{address}", lmcache_instance_id: {test}-{id}"#)
        };
        let cluster = format!(
            "policy: lmcache_only\ndecision_header: true\nhealth: {{failures: 1}}\n\
             kvcache:\n  {{enabled: true, vllm_endpoint: \"http://{}\", lmcache_endpoint: \"{}\",\n   \
             request_timeout: 1m, lookup_routing_timeout: 1m, token_cache: {{enabled: true}}, {kvcache}}}",
            engines[0].address(),
            controller.endpoint(),
        );
        let more = engines.iter().map(backend).collect();
        let world = World::with(Plan { engines: vec![], more, cluster, ..Plan::default() }).await;
        Self { controller, test, engines, world }
    }

    /// The tokens of a prompt, as the engines count them.
    async fn tokens(&self, prompt: &str) -> Vec<u32> {
        let url = format!("http://{}/tokenize", self.engines[0].address());
        let answer = self.world.client.post(url).json(&chat(prompt)).send().await.unwrap();
        let answer: Value = answer.json().await.unwrap();
        answer["tokens"]
            .as_array()
            .unwrap()
            .iter()
            .map(|token| token.as_u64().unwrap().try_into().unwrap())
            .collect()
    }

    /// Has LMCache hold these prompts at the engine `id`.
    async fn hold(&self, id: &str, prompts: &[&str]) -> Instance<'static> {
        let prompts = self.all_tokens(prompts).await;
        self.controller.instance(&format!("{}-{id}", self.test), &prompts).await
    }

    /// As [`Site::hold`], by workers in a process of the test's own.
    async fn hold_in<'a>(&self, workers: &'a Process, id: &str, prompts: &[&str]) -> Instance<'a> {
        let prompts = self.all_tokens(prompts).await;
        self.controller.instance_in(workers, &format!("{}-{id}", self.test), &prompts).await
    }

    async fn all_tokens(&self, prompts: &[&str]) -> Vec<Vec<u32>> {
        let mut all = Vec::new();
        for prompt in prompts {
            all.push(self.tokens(prompt).await);
        }
        all
    }

    /// Asks the gateway; returns who answered, and why.
    async fn ask(&self, prompt: &str) -> String {
        let answer = self.world.client.post(self.world.url(CHAT)).json(&chat(prompt)).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let decision = answer.headers()["x-kvway-decision"].to_str().unwrap().to_owned();
        answer.bytes().await.unwrap();
        decision
    }

    /// Asks, and waits until the background is through with it.
    async fn teach(&self, prompt: &str) -> String {
        let before = self.jobs();
        let decision = self.ask(prompt).await;
        until(|| self.jobs() > before).await;
        decision
    }

    /// The jobs of the background that have ended.
    fn jobs(&self) -> u64 {
        let text = self.world.metrics();
        let ended = text.lines().filter(|line| line.starts_with("kvway_kvcache_jobs_total"));
        ended.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum()
    }

    /// A metric of the filter as it is written, as in `actions_total` with `action="pin",outcome="ok"`.
    fn counted(&self, name: &str, labels: &str) -> String {
        let own = labels.split(',').filter(|label| !label.is_empty());
        let mut labels: Vec<&str> = own.chain([r#"cluster="llama""#]).collect();
        labels.sort_unstable();
        let series = format!("kvway_kvcache_{name}{{{}}} ", labels.join(","));
        let text = self.world.metrics();
        text.lines().find_map(|line| line.strip_prefix(&series)).unwrap_or("0").to_owned()
    }
}

/// A prompt of three chunks that no other test sends.
fn long(name: &str) -> String {
    format!("{name}: {}", "the same words over and over ".repeat(100))
}

#[tokio::test]
async fn the_second_request_of_a_prompt_goes_to_the_instance_that_holds_it() {
    let site = Site::new("second", "").await;
    let prompt = long("second");
    let count = site.tokens(&prompt).await.len();
    assert!(count > 512, "{count}");
    site.hold("right", &[&prompt]).await;
    let first = site.teach(&prompt).await;
    assert!(first.ends_with("hint=tokens_unknown"), "{first}");
    for _ in 0..4 {
        assert_eq!(
            site.ask(&prompt).await,
            format!("right; reason=lmcache; hint=followed; matched_tokens={count}")
        );
    }
    assert_eq!(site.counted("lookups_total", r#"by="request",outcome="match""#), "4");
    assert_eq!(site.counted("tokenizer_calls_total", r#"outcome="ok""#), "1");
}

#[tokio::test]
async fn the_instance_that_holds_the_most_is_taken() {
    let site = Site::new("most", "").await;
    let prompt = long("most");
    let tokens = site.tokens(&prompt).await;
    let id = |engine| format!("{}-{engine}", site.test);
    site.controller.instance(&id("left"), &[tokens[..256].to_vec()]).await;
    site.controller.instance(&id("right"), &[tokens[..512].to_vec()]).await;
    site.teach(&prompt).await;
    assert_eq!(site.ask(&prompt).await, "right; reason=lmcache; hint=followed; matched_tokens=512");
}

#[tokio::test]
async fn a_hot_prompt_is_pinned_where_it_is_held_and_once() {
    let strategy = "cache_strategy: {enable_pinning: true, hot_content_threshold: 2}";
    let site = Site::new("hot", strategy).await;
    let prompt = long("hot");
    let count = site.tokens(&prompt).await.len();
    let instance = site.hold("right", &[&prompt]).await;
    site.teach(&prompt).await;
    assert_eq!(instance.asked("pin"), [] as [Value; 0], "once is not hot");
    site.teach(&prompt).await;
    site.teach(&prompt).await;
    let asked = instance.is_asked("pin", 1).await;
    assert_eq!(asked.len(), 1);
    assert_eq!((&asked[0]["tokens"], &asked[0]["location"]), (&json!(count), &json!(LOCATION)));
    assert_eq!(site.counted("actions_total", r#"action="pin",outcome="ok""#), "1");
    assert_eq!(site.counted("actions_total", r#"action="pin",outcome="withheld""#), "1");
}

#[tokio::test]
async fn a_loaded_engine_is_told_to_compress() {
    let strategy = "cache_strategy: {enable_compression: true, load_threshold: 0.9}";
    let load = Load { running: 1, waiting: 1, kv_cache_usage: 0.0 };
    let site = Site::loaded("compress", Some(load), strategy).await;
    let prompt = long("compress");
    let instance = site.hold("right", &[&prompt]).await;
    until(|| site.counted("load_ratio", r#"backend="right""#) == "1").await;
    site.teach(&prompt).await;
    let asked = instance.is_asked("compress", 1).await;
    assert_eq!((&asked[0]["method"], &asked[0]["location"]), (&json!("cachegen"), &json!(LOCATION)));
    assert_eq!(site.counted("actions_total", r#"action="compress",outcome="ok""#), "1");
}

#[tokio::test]
async fn a_dead_worker_whose_backend_is_down_is_not_waited_for() {
    let site = Site::new("down", "").await;
    let prompt = long("down");
    let workers = site.controller.workers(Hashes::Alike);
    let tokens = site.tokens(&prompt).await;
    site.hold_in(&workers, "right", &[&prompt]).await;
    site.teach(&prompt).await;
    site.engines[1].set_health(false);
    site.world.check_health().await;
    drop(workers);
    let left = "left; reason=round_robin; hint=unavailable";
    assert_eq!([site.ask(&prompt).await, site.ask(&prompt).await], [left, left]);
    assert_eq!(
        site.controller.look_up(&tokens).await["down-right"][1],
        tokens.len(),
        "LMCache still names it"
    );

    site.engines[1].set_health(true);
    site.world.check_health().await;
    assert!(site.ask(&prompt).await.starts_with("right; reason=lmcache"));
}

#[tokio::test]
async fn a_wedged_instance_stops_no_request_and_is_counted() {
    let strategy = "control_timeout: 3s, cache_strategy: {enable_pinning: true, hot_content_threshold: 1}";
    let site = Site::new("jam", strategy).await;
    let prompts: Vec<String> = (0..8).map(|number| long(&format!("jam {number}"))).collect();
    let held: Vec<&str> = prompts.iter().map(String::as_str).collect();
    let instance = site.hold("right", &held).await;
    let pins = |outcome| site.counted("actions_total", &format!(r#"action="pin",outcome="{outcome}""#));
    let followed = "right; reason=lmcache; hint=followed";
    instance.hold(&["pin"]).await;
    let (last, jammed) = prompts.split_last().unwrap();
    for prompt in jammed {
        site.teach(prompt).await;
        assert!(site.teach(prompt).await.starts_with(followed), "more failures than open a breaker in a row");
    }
    assert_eq!((pins("timeout"), pins("status")), ("1".to_owned(), "6".to_owned()));
    assert_eq!(instance.asked("pin").len(), 1);

    instance.hold(&[]).await;
    let body = json!({"tokens": [], "instance_id": instance.id, "location": LOCATION});
    look_until(async || site.controller.ask("/pin", &body).await.0 == StatusCode::OK).await;
    site.teach(last).await;
    assert_eq!(pins("ok"), "1", "it is well again");
}

#[tokio::test]
async fn control_calls_for_an_instance_never_meet() {
    const PROMPTS: usize = 6;
    let strategy = "cache_strategy: {enable_pinning: true, hot_content_threshold: 1}";
    let site = Site::new("turns", strategy).await;
    let prompts: Vec<String> = (0..PROMPTS).map(|number| long(&format!("turns {number}"))).collect();
    let held: Vec<&str> = prompts.iter().map(String::as_str).collect();
    let instance = site.hold("right", &held).await;
    instance.hold(&["pin"]).await;
    join_all(prompts.iter().map(|prompt| site.ask(prompt))).await;
    until(|| site.counted("lookups_total", r#"by="background",outcome="match""#) == PROMPTS.to_string())
        .await;
    instance.is_asked("pin", 1).await;
    instance.hold(&[]).await;
    until(|| site.jobs() == PROMPTS as u64).await;
    let pinned = site.counted("actions_total", r#"action="pin",outcome="ok""#);
    assert_eq!((pinned, instance.asked("pin").len()), (PROMPTS.to_string(), PROMPTS));
}

#[tokio::test]
async fn hashes_that_start_elsewhere_are_seen_as_lookups_without_a_match() {
    let site = Site::new("seed", "").await;
    let prompt = long("seed");
    let workers = site.controller.workers(Hashes::BesideVllm);
    site.hold_in(&workers, "right", &[&prompt]).await;
    site.teach(&prompt).await;
    for _ in 0..3 {
        assert!(site.teach(&prompt).await.ends_with("hint=no_match"));
    }
    assert_eq!(site.counted("lookups_total", r#"by="request",outcome="no_match""#), "3");
    assert_eq!(site.counted("lookups_total", r#"by="background",outcome="no_match""#), "4");
    assert_eq!(site.counted("hints_total", r#"outcome="no_match""#), "3");
    assert!(!site.world.metrics().contains(r#"outcome="match""#));
}

#[tokio::test]
async fn an_instance_that_no_backend_is_named_after_is_counted_and_told() {
    let paper = Paper::default();
    let _listening = paper.listen();
    let site = Site::new("stranger", "").await;
    let prompt = long("stranger");
    site.hold("elsewhere", &[&prompt]).await;
    site.teach(&prompt).await;
    for _ in 0..2 {
        assert!(site.ask(&prompt).await.ends_with("hint=unknown_instance"));
    }
    assert_eq!(site.counted("unknown_instances_total", ""), "3", "twice by requests, once by the background");
    let lines = paper.lines();
    let told = lines.iter().filter(|line| line.contains("stranger-elsewhere"));
    assert_eq!(told.count(), 1, "{lines:#?}");
}

#[tokio::test]
async fn a_missing_evict_is_told_once_and_a_location_is_cleared_in_its_place() {
    let paper = Paper::default();
    let _listening = paper.listen();
    let strategy = "action_interval: 0s, cache_strategy: {enable_eviction: true, \
                    memory_threshold: 0.9, evict_with: clear, evict_location: LocalCPUBackend}";
    let load = Load { running: 0, waiting: 0, kv_cache_usage: 0.95 };
    let site = Site::loaded("evict", Some(load), strategy).await;
    let [one, two] = ["one", "two"].map(|name| long(&format!("evict {name}")));
    let instance = site.hold("right", &[&one]).await;
    until(|| site.counted("memory_ratio", r#"backend="right""#) == "0.95").await;
    site.teach(&one).await;
    assert_eq!(instance.is_asked("clear", 1).await.len(), 1);
    assert_eq!(site.counted("actions_total", r#"action="clear",outcome="ok""#), "1");

    let tokens = site.tokens(&one).await;
    look_until(async || site.controller.look_up(&tokens).await == json!({})).await;
    let again = site.hold("right", &[&two]).await;
    site.teach(&two).await;
    assert_eq!(again.is_asked("clear", 2).await.len(), 2);
    assert_eq!(site.counted("actions_total", r#"action="evict",outcome="unsupported""#), "2");
    let lines = paper.lines();
    assert_eq!(lines.iter().filter(|line| line.contains("has no /evict")).count(), 1, "{lines:#?}");
}
