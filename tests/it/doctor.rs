//! `kvway doctor` before mock engines and a mock LMCache: all well, and each precondition broken in its turn, which is
//! exactly one line.

use crate::world::{reserve, within};
use kvway::arguments::{Arguments, Command, Doctor};
use kvway::config::Config;
use kvway::doctor::{self, Examination};
use mocks::{
    Chunks, Controller, ControllerOptions, Coordinator, CoordinatorOptions, Engine, EngineOptions, Fault,
    Mode, SimulatedOptions, SleepState,
};
use std::net::SocketAddr;

/// Two engines that announce to a controller, and what a configuration says of them.
struct Fleet {
    engines: Vec<Engine>,
    controller: Controller,
    /// Keys of each backend beside its address.
    backends: Vec<String>,
    /// The address of LMCache, where it is not the controller.
    lmcache: Option<SocketAddr>,
    /// The address of the tokenizer, where it is not the first engine.
    tokenizer: Option<SocketAddr>,
    /// More keys of `kvcache`; `None` = no such section.
    kvcache: Option<&'static str>,
}

/// What differs between two engines.
#[derive(Clone)]
struct Kind {
    options: EngineOptions,
    simulated: SimulatedOptions,
}

impl Default for Kind {
    fn default() -> Self {
        Self {
            options: EngineOptions { cached_tokens: true, ..EngineOptions::default() },
            simulated: SimulatedOptions { time_scale: 0.001, ..SimulatedOptions::default() },
        }
    }
}

impl Fleet {
    fn new() -> Self {
        Self::with(|_| {})
    }

    /// The second engine is made of another kind.
    fn with(change: impl FnOnce(&mut Kind)) -> Self {
        let mut second = Kind::default();
        second.options.id = String::from("vllm-1");
        let controller = Controller::start(ControllerOptions::default()).unwrap();
        let mut first = Kind::default();
        for kind in [&mut first, &mut second] {
            kind.simulated.announce = Some(controller.chunks());
        }
        change(&mut second);
        let start = |Kind { options, simulated }| {
            Engine::start(EngineOptions { mode: Mode::Simulated(simulated), ..options }).unwrap()
        };
        Self {
            engines: [first, second].map(start).into(),
            controller,
            backends: vec!["id: vllm-0".to_owned(), "id: vllm-1".to_owned()],
            lmcache: None,
            tokenizer: None,
            kvcache: Some(""),
        }
    }

    fn config(&self) -> Config {
        let tokenizer = self.tokenizer.unwrap_or(self.engines[0].address());
        let lmcache = self.lmcache.unwrap_or(self.controller.address());
        let kvcache = self.kvcache.map_or_else(String::new, |more| {
            format!(
                "    kvcache: {{enabled: true, vllm_endpoint: \"http://{tokenizer}/\", lmcache_endpoint: \"http://{lmcache}\"{more}}}\n"
            )
        });
        let backends = self.backends.iter().zip(&self.engines);
        let backends =
            backends.map(|(keys, engine)| format!("      - {{{keys}, address: \"{}\"}}", engine.address()));
        let backends = backends.collect::<Vec<_>>().join("\n");
        let text = format!("clusters:\n  - name: llama\n{kvcache}    backends:\n{backends}\n");
        Config::parse(&text, "test.yaml", &|_| None).unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    async fn examine(&self) -> Examination {
        self.examine_with(&[]).await
    }

    async fn examine_with(&self, flags: &[&str]) -> Examination {
        let _client = crate::world::client();
        within(doctor::examine(&doctor(flags), &self.config(), 7)).await
    }
}

/// The flags; whatever is announced is announced before an engine answers, so that no patience is needed.
fn doctor(flags: &[&str]) -> Doctor {
    let words = ["kvway", "doctor", "--patience", "0", "--timeout", "5"].iter().chain(flags);
    match <Arguments as clap::Parser>::parse_from(words).command {
        Some(Command::Doctor(doctor)) => doctor,
        other => panic!("{other:?}"),
    }
}

/// Wants exactly one broken finding: whose, and what it says.
#[track_caller]
fn only(examination: &Examination, subject: &str, said: &[&str]) {
    let broken: Vec<_> = examination.broken().collect();
    let [finding] = broken.as_slice() else { panic!("{broken:#?}") };
    let text = format!("{}: {}", finding.fact, finding.remedy.as_deref().unwrap_or_default());
    assert_eq!(finding.subject, subject, "{text}");
    for part in said {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

fn facts(examination: &Examination) -> Vec<String> {
    examination.findings.iter().map(|finding| format!("{} {}", finding.subject, finding.fact)).collect()
}

#[tokio::test]
async fn a_fleet_that_works_is_well() {
    let fleet = Fleet::new();
    let examination = fleet.examine().await;
    let facts = facts(&examination);
    assert!(examination.is_well(), "{facts:#?}");
    for part in [
        "tokenizer http://127.0.0.1:",
        "vllm-0 GET /health answers",
        "vllm-1 is awake",
        "vllm-1 serves tiny",
        "vllm-0 had 608 of 620 tokens of a repeated prompt",
        "lmcache http://127.0.0.1:",
        "vllm-0 is vllm-0 for LMCache, with 620 of 620 tokens",
        "vllm-1 is vllm-1 for LMCache",
    ] {
        assert!(facts.iter().any(|fact| fact.starts_with(part)), "{part} is not in {facts:#?}");
    }
    assert_eq!(fleet.engines[1].stats().served("/v1/completions"), 2);
}

#[tokio::test]
async fn a_coordinator_does_as_well_as_a_controller() {
    let mut fleet = Fleet::new();
    let address = (std::net::Ipv4Addr::LOCALHOST, 0).into();
    let chunks = fleet.controller.chunks();
    let coordinator = Coordinator::start_over(address, CoordinatorOptions::default(), chunks).unwrap();
    fleet.lmcache = Some(coordinator.address());
    fleet.kvcache = Some(", lmcache_api: coordinator");
    let examination = fleet.examine().await;
    assert!(examination.is_well(), "{:#?}", facts(&examination));
    assert!(coordinator.stats().served("/directory/lookup") >= 3);
    assert_eq!(fleet.controller.stats().paths.len(), 0);
}

#[tokio::test]
async fn without_kvcache_only_the_engines_are_examined() {
    let mut fleet = Fleet::new();
    fleet.kvcache = None;
    let load = Fault::Status { code: 404, retry_after: None };
    fleet.engines[1].fail_always_on("/metrics", load);
    let examination = fleet.examine().await;
    assert!(examination.is_well(), "{:#?}", facts(&examination));
    let subjects = |name: &str| examination.findings.iter().filter(|finding| finding.subject == name).count();
    assert_eq!((subjects("vllm-0"), subjects("vllm-1"), subjects("lmcache")), (4, 3, 0));
}

#[tokio::test]
async fn an_engine_that_is_gone_is_named() {
    let mut fleet = Fleet::new();
    let (_held, nobody) = reserve();
    let gone = std::mem::replace(&mut fleet.engines[1], Engine::start(EngineOptions::default()).unwrap());
    fleet.engines.swap_remove(1);
    gone.stop().await;
    let config = {
        let mut config = fleet.config();
        let mut gone = config.clusters[0].backends[0].clone();
        (gone.id, gone.address) = ("vllm-1".to_owned(), nobody.to_string());
        config.clusters[0].backends.push(gone);
        config
    };
    let examination = within(doctor::examine(&doctor(&[]), &config, 7)).await;
    only(&examination, "vllm-1", &["GET /health fails", "cannot connect", "start the engine"]);
}

#[tokio::test]
async fn an_engine_that_is_not_well_or_sleeps_is_named_and_not_asked_for_more() {
    for (change, said) in [
        ((|engine| engine.set_health(false)) as fn(&Engine), ["status 503", "see its log"]),
        (|engine| engine.set_sleep(SleepState::WeightsOffloaded), ["sleeps", "/wake_up"]),
    ] {
        let fleet = Fleet::new();
        change(&fleet.engines[1]);
        only(&fleet.examine().await, "vllm-1", &said);
        assert_eq!(fleet.engines[1].stats().path("/v1/completions").received, 0);
    }
}

#[tokio::test]
async fn an_engine_whose_load_cannot_be_read_is_named() {
    let fleet = Fleet::new();
    fleet.engines[1].fail_always_on("/metrics", Fault::Status { code: 404, retry_after: None });
    only(&fleet.examine().await, "vllm-1", &["GET /metrics tells no load, status 404", "this host's load"]);
}

#[tokio::test]
async fn an_engine_with_another_model_or_a_key_is_named() {
    let mut other = Fleet::with(|engine| engine.options.model = "other".to_owned());
    only(&other.examine().await, "vllm-1", &["does not serve tiny"]);
    other.tokenizer = Some(other.engines[1].address());
    only(&other.examine_with(&["--model", "other"]).await, "vllm-0", &["does not serve other"]);

    let mut guarded = Fleet::with(|engine| engine.options.api_key = Some("sesame".to_owned()));
    only(&guarded.examine().await, "vllm-1", &["asks for a key", "`api_key`"]);
    guarded.backends[1] += ", api_key: sesame";
    let examination = guarded.examine().await;
    let mut shown = Vec::new();
    examination.write(&mut shown).unwrap();
    let shown = String::from_utf8(shown).unwrap();
    assert!(examination.is_well() && !shown.contains("sesame"), "{shown}");
}

#[tokio::test]
async fn an_engine_that_generates_nothing_is_named() {
    let fleet = Fleet::new();
    fleet.engines[1].fail_always_on("/v1/completions", Fault::Status { code: 500, retry_after: None });
    only(&fleet.examine().await, "vllm-1", &["answers no completion", "status 500"]);
}

#[tokio::test]
async fn a_prefix_cache_that_is_off_is_told_from_one_that_is_not_reported() {
    let off = Fleet::with(|engine| engine.simulated.prefix_caching = false);
    only(&off.examine().await, "vllm-1", &["computes a repeated prompt anew", "--enable-prefix-caching"]);
    let off_and_silent = Fleet::with(|engine| {
        engine.simulated.prefix_caching = false;
        engine.options.cached_tokens = false;
    });
    only(&off_and_silent.examine().await, "vllm-1", &["computes a repeated prompt anew"]);
    let silent = Fleet::with(|engine| engine.options.cached_tokens = false);
    only(&silent.examine().await, "vllm-1", &["does not report", "--enable-prompt-tokens-details"]);
}

#[tokio::test]
async fn a_tokenizer_that_is_gone_or_none_is_named() {
    let mut gone = Fleet::new();
    let (_held, nobody) = reserve();
    gone.tokenizer = Some(nobody);
    let said = [&format!("http://{nobody} does not tokenize, cannot connect"), "correct it"];
    only(&gone.examine().await, "tokenizer", &said);

    let mut none = Fleet::with(|engine| engine.options.tokenize = false);
    none.tokenizer = Some(none.engines[1].address());
    only(&none.examine().await, "tokenizer", &["status 404", "has /tokenize"]);
}

#[tokio::test]
async fn a_tokenizer_of_another_model_is_named() {
    let mut fleet = Fleet::new();
    let other = Engine::start(EngineOptions::default()).unwrap();
    let body = r#"{"count":2,"max_model_len":9,"tokens":[1,2],"token_strs":null}"#;
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    other.fail_always_on("/tokenize", Fault::Raw(answer.into()));
    fleet.tokenizer = Some(other.address());
    only(&fleet.examine().await, "tokenizer", &["counts other tokens than vllm-0, vllm-1", "same tokenizer"]);
}

#[tokio::test]
async fn an_lmcache_that_is_gone_or_speaks_another_protocol_is_named() {
    let mut gone = Fleet::new();
    let (_held, nobody) = reserve();
    gone.lmcache = Some(nobody);
    only(&gone.examine().await, "lmcache", &["cannot connect", "start LMCache"]);

    let mut other = Fleet::new();
    other.kvcache = Some(", lmcache_api: coordinator");
    only(&other.examine().await, "lmcache", &["status 404", "`lmcache_api: controller`"]);
    let coordinator = Coordinator::start(CoordinatorOptions::default()).unwrap();
    other.lmcache = Some(coordinator.address());
    other.kvcache = Some("");
    only(&other.examine().await, "lmcache", &["status 404", "`lmcache_api: coordinator`"]);

    let broken = Fleet::new();
    broken.controller.fail_always_on("/lookup", Fault::Status { code: 500, retry_after: None });
    only(&broken.examine().await, "lmcache", &["answers no lookup, status 500", "see its log"]);
}

#[tokio::test]
async fn an_empty_lookup_is_explained_by_what_lmcache_counts() {
    let explained = async |prepare: fn(&Chunks), cause: &str| {
        for api in ["controller", "coordinator"] {
            let mut fleet = Fleet::new();
            let chunks = Chunks::default();
            prepare(&chunks);
            let address = (std::net::Ipv4Addr::LOCALHOST, 0).into();
            let controller =
                Controller::start_over(address, ControllerOptions::default(), chunks.clone()).unwrap();
            let coordinator =
                Coordinator::start_over(address, CoordinatorOptions::default(), chunks).unwrap();
            (fleet.lmcache, fleet.kvcache) = match api {
                "controller" => (Some(controller.address()), Some("")),
                _ => (Some(coordinator.address()), Some(", lmcache_api: coordinator")),
            };
            only(&fleet.examine().await, "lmcache", &["finds none of 2 prompts", cause]);
        }
    };
    explained(|_| {}, "no engine has registered").await;
    explained(|chunks| chunks.register("vllm-0"), "stored nothing").await;
    explained(|chunks| chunks.admit("vllm-0", "LocalCPUBackend", &[1; 600]), "PYTHONHASHSEED").await;
}

#[tokio::test]
async fn an_engine_without_lmcache_is_named() {
    let fleet = Fleet::with(|engine| engine.simulated.announce = None);
    only(&fleet.examine().await, "vllm-1", &["LMCache does not learn of", "--kv-transfer-config"]);
}

#[tokio::test]
async fn an_instance_that_no_backend_is_named_after_is_named() {
    let mut fleet = Fleet::with(|engine| engine.options.id = "worker\u{1b}[2J".to_owned());
    let said = ["is worker?[2J for LMCache, and no backend has that name", "`lmcache_instance_id`"];
    only(&fleet.examine().await, "vllm-1", &said);
    fleet = Fleet::with(|engine| engine.options.id = "pod-7".to_owned());
    only(&fleet.examine().await, "vllm-1", &["is pod-7 for LMCache"]);
    fleet.backends[1] += ", lmcache_instance_id: pod-7";
    let examination = fleet.examine().await;
    assert!(examination.is_well(), "{:#?}", facts(&examination));
}

#[tokio::test]
async fn exchanged_names_are_named() {
    let mut fleet = Fleet::new();
    fleet.backends.swap(0, 1);
    let examination = fleet.examine().await;
    let broken: Vec<_> = examination.broken().map(|finding| finding.fact.as_str()).collect();
    let swapped = |name| format!("is {name} for LMCache, which is the name of {name}");
    assert_eq!(broken, [swapped("vllm-0"), swapped("vllm-1")]);
}

#[tokio::test]
async fn a_lookup_is_waited_for_as_long_as_patience_lasts() {
    let fleet = Fleet::with(|engine| engine.simulated.announce = None);
    let chunks = fleet.controller.chunks();
    let controller = &fleet.controller;
    // The second engine's prompt is announced late, in its name: after LMCache was asked for it in vain.
    let late = async {
        controller.until(|stats| stats.served("/lookup") >= 4).await;
        let lookups =
            controller.received().into_iter().filter(|received| received.path_and_query == "/lookup");
        for lookup in lookups {
            let body: serde_json::Value = serde_json::from_slice(&lookup.body).unwrap();
            let tokens = body["tokens"].as_array().unwrap().iter();
            let tokens: Vec<u32> = tokens.map(|token| token.as_u64().unwrap().try_into().unwrap()).collect();
            chunks.admit("vllm-1", "LocalCPUBackend", &tokens);
        }
    };
    let config = fleet.config();
    let _client = crate::world::client();
    let patient = Doctor { patience: 3600, ..doctor(&[]) };
    let (examination, ()) = within(async { tokio::join!(doctor::examine(&patient, &config, 7), late) }).await;
    assert!(examination.is_well(), "{:#?}", facts(&examination));
}
