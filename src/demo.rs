//! `kvway demo`: the gateway before an embedded fleet of mock engines, on one terminal. The only file that names `mocks`.
//!
//! The engines and the visitor that sends the requests have a thread of their own; the gateway runs as it always does, by
//! `conf/demo.yaml`. Every request is really sent over the network of this host.

use crate::app::App;
use crate::arguments::{Compare, Demo};
use crate::compare::{self, Plan};
use crate::config::{Config, ConfigError};
use crate::log;
use anyhow::{Context, anyhow, ensure};
use mocks::{
    Chunks, Controller, ControllerOptions, Engine, EngineOptions, Mode, SimulatedOptions, SseOptions,
};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;
use tokio::time::{sleep, timeout};

const CONFIGURATION: &str = include_str!("../conf/demo.yaml");
/// How long the gateway may take to start, and a log line to appear.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL_PERIOD: Duration = Duration::from_millis(20);
const LONG_PROMPT_BYTES: usize = 1024 * 1024;

/// Runs the demo until it is told to end; with `once`, until the requests are answered.
///
/// # Errors
/// When an address is taken or a request fails.
pub fn run(demo: &Demo) -> anyhow::Result<()> {
    start(demo, None)
}

/// Compares unique prompts with repeated ones through the demo's gateway, on ports of its own, and ends.
///
/// # Errors
/// When a port is taken between its choice and its use, or there is nothing to compare.
pub fn compare(flags: &Compare) -> anyhow::Result<()> {
    let held = [(); 2].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    let [listen, admin] = held.map(|listener| listener.and_then(|listener| listener.local_addr()));
    start(&Demo { listen: listen?, admin: admin?, once: true }, Some(flags.clone()))
}

/// Starts the fleet and the gateway; with a comparison that is made instead of showing requests.
fn start(demo: &Demo, comparison: Option<Compare>) -> anyhow::Result<()> {
    let folder = std::env::temp_dir().join(format!("kvway-demo-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let (started, config) = std::sync::mpsc::sync_channel(1);
    let visitor = Visitor {
        gateway: demo.listen,
        admin: demo.admin,
        once: demo.once,
        comparison,
        log: folder.join("access.log"),
        folder: folder.clone(),
    };
    std::thread::Builder::new().name("demo".to_owned()).spawn(move || visit(&visitor, &started))?;
    let config = config.recv().context("the engines did not start")?;
    log::start(&config.log);
    let ended = Arc::new(App::new(config)?).run(false);
    clean_up(&folder);
    Ok(ended?)
}

struct Visitor {
    gateway: SocketAddr,
    admin: SocketAddr,
    once: bool,
    comparison: Option<Compare>,
    log: PathBuf,
    folder: PathBuf,
}

/// The thread beside the gateway: starts the engines, sends the requests, and keeps the engines up.
fn visit(visitor: &Visitor, started: &SyncSender<Config>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return say(&format!("no runtime for the demo: {error}")),
    };
    let outcome = runtime.block_on(async {
        let controller = Controller::start(ControllerOptions::default())?;
        let engines = [engine("vllm-0", controller.chunks())?, engine("vllm-1", controller.chunks())?];
        let config = visitor.config(&engines, &controller)?;
        // The receiver is gone only when the process ends already.
        let _told = started.send(config.clone()).is_ok();
        match &visitor.comparison {
            None => visitor.show(&engines, &controller).await?,
            Some(flags) => visitor.compare(flags, &config).await?,
        }
        if !visitor.once {
            std::future::pending::<()>().await;
        }
        anyhow::Ok(())
    });
    let code = if let Err(error) = &outcome {
        say(&format!("the demo failed: {error:#}"));
        1
    } else {
        0
    };
    clean_up(&visitor.folder);
    std::process::exit(code);
}

/// An engine that takes time for what it has not cached, and tells the controller what it has.
fn engine(id: &str, announce: Chunks) -> std::io::Result<Engine> {
    Engine::start(EngineOptions {
        id: id.to_owned(),
        mode: Mode::Simulated(SimulatedOptions {
            prefill_tokens_per_second: 100_000.0,
            decode: Duration::from_millis(10),
            announce: Some(announce),
            ..SimulatedOptions::default()
        }),
        max_model_len: 1 << 20,
        cached_tokens: true,
        sse: SseOptions { events: 8, ..SseOptions::default() },
        ..EngineOptions::default()
    })
}

impl Visitor {
    /// The configuration of the gateway before these engines.
    fn config(&self, engines: &[Engine; 2], controller: &Controller) -> Result<Config, ConfigError> {
        let settings = HashMap::from([
            ("KVWAY_DEMO_LISTEN", self.gateway.to_string()),
            ("KVWAY_DEMO_ADMIN", self.admin.to_string()),
            ("KVWAY_DEMO_FOLDER", self.folder.display().to_string()),
            ("KVWAY_DEMO_LOG", self.log.display().to_string()),
            ("KVWAY_DEMO_ENGINE_0", engines[0].address().to_string()),
            ("KVWAY_DEMO_ENGINE_1", engines[1].address().to_string()),
            ("KVWAY_DEMO_LMCACHE", controller.address().to_string()),
        ]);
        Config::parse(CONFIGURATION, "conf/demo.yaml", &|name| settings.get(name).cloned())
    }

    async fn compare(&self, flags: &Compare, config: &Config) -> anyhow::Result<()> {
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build()?;
        self.wait_until_ready(&client).await?;
        let report = compare::run(&Plan::new(flags, config, rand::random())?).await?;
        Ok(report.write(&mut std::io::stdout(), flags.json.as_deref())?)
    }

    async fn show(&self, engines: &[Engine], controller: &Controller) -> anyhow::Result<()> {
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build()?;
        self.wait_until_ready(&client).await?;
        let fleet = format!("two mock engines, and a mock LMCache controller on {}", controller.address());
        say(&format!("\nkvway listens on {}; behind it are {fleet}.\n", self.gateway));
        say(&row([
            "request",
            "status",
            "backend",
            "why",
            "hint",
            "prompt tokens",
            "cached",
            "first byte",
            "total",
        ]));
        let question = "What is a KV cache, and why does it matter where a request goes? ".repeat(400);
        let question = chat(&question, false);
        self.ask(&client, "a new prompt", &question).await?;
        happened(controller, "/lookup", 1).await?;
        self.ask(&client, "again: LMCache knows where", &question).await?;
        happened(controller, "/pin", 1).await?;
        self.ask(&client, "and again", &question).await?;
        let goes_on = goes_on(&question);
        self.ask(&client, "the conversation goes on", &goes_on).await?;
        controller.prefer(Some("vllm-9"));
        self.ask(&client, "LMCache names a stranger", &question).await?;
        controller.prefer(None);
        let long = "kvway ".repeat(LONG_PROMPT_BYTES / 6);
        let (long, other) = (chat(&long, false), chat(&"Tell me of trees. ".repeat(400), false));
        let long = self.ask(&client, "chat with a 1 MiB prompt", &long);
        let other = self.ask(&client, "another prompt, meanwhile", &other);
        tokio::try_join!(long, other)?;
        self.ask(&client, "chat, streamed", &chat("Tell me slowly.", true)).await?;
        self.ask(&client, "a model that nobody serves", &json!({"model": "none", "messages": []})).await?;
        let tokenized: u64 = engines.iter().map(|engine| engine.stats().served("/tokenize")).sum();
        let (lookups, pins) = (controller.stats().served("/lookup"), controller.stats().served("/pin"));
        say(&format!(
            "\nIn the background: {tokenized} prompts tokenized, {lookups} lookups, {pins} pinned."
        ));
        say(&format!(
            "\nTry it:\n  curl -N http://{}/v1/chat/completions -H 'content-type: application/json' \\\n    -d '{}'",
            self.gateway, r#"{"model":"tiny","stream":true,"messages":[{"role":"user","content":"Hello"}]}"#
        ));
        say(&format!("  curl http://{}/state\n  curl http://{}/metrics", self.admin, self.admin));
        if !self.once {
            say("\nCtrl-C ends the demo.");
        }
        Ok(())
    }

    async fn wait_until_ready(&self, client: &reqwest::Client) -> anyhow::Result<()> {
        let ready = async {
            let url = format!("http://{}/v1/models", self.gateway);
            while !client.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()) {
                sleep(POLL_PERIOD).await;
            }
        };
        timeout(PATIENCE, ready).await.map_err(|_| anyhow!("the gateway did not start on {}", self.gateway))
    }

    /// Sends one request and prints what became of it, as the access log tells.
    async fn ask(&self, client: &reqwest::Client, what: &str, body: &Value) -> anyhow::Result<()> {
        let id = format!("demo-{}", what.replace(|c: char| !c.is_ascii_alphanumeric(), "-"));
        let url = format!("http://{}/v1/chat/completions", self.gateway);
        let answer = client.post(url).header("x-request-id", &id).json(body).send().await?;
        let text = answer.text().await?;
        ensure!(body["stream"] != true || text.ends_with("data: [DONE]\n\n"), "the stream is not complete");
        let entry = self.entry(&id).await?;
        let text = |key: &str| match &entry[key] {
            Value::Null => "-".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let milliseconds =
            |key: &str| entry[key].as_f64().map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms"));
        say(&row([
            what,
            &text("status"),
            &text("backend"),
            &text("reason"),
            &text("hint"),
            &text("prompt_tokens"),
            &text("cached_tokens"),
            &milliseconds("first_token_ms"),
            &milliseconds("total_ms"),
        ]));
        Ok(())
    }

    async fn entry(&self, id: &str) -> anyhow::Result<Value> {
        let found = async {
            loop {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                let entries = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
                if let Some(entry) = entries.rev().find(|entry| entry["request_id"] == id) {
                    return entry;
                }
                sleep(POLL_PERIOD).await;
            }
        };
        timeout(PATIENCE, found).await.context("no line in the access log")
    }
}

/// Waits for calls of the background.
async fn happened(controller: &Controller, path: &'static str, times: u64) -> anyhow::Result<()> {
    let until = controller.until(|stats| stats.served(path) >= times);
    timeout(PATIENCE, until).await.map_err(|_| anyhow!("nothing came of {path} in the background"))
}

/// One line of the table.
fn row(cells: [&str; 9]) -> String {
    let [request, status, backend, why, hint, prompt, cached, first, total] = cells;
    format!(
        "{request:<27} {status:>6}  {backend:<8} {why:<12} {hint:<16} {prompt:>13} {cached:>7} {first:>10} {total:>10}"
    )
}

fn chat(text: &str, stream: bool) -> Value {
    let mut body =
        json!({"model": "tiny", "messages": [{"role": "user", "content": text}], "stream": stream});
    if stream {
        body["stream_options"] = json!({"include_usage": true});
    }
    body
}

/// The next turn of the conversation that `body` begins.
fn goes_on(body: &Value) -> Value {
    let mut body = body.clone();
    if let Some(messages) = body["messages"].as_array_mut() {
        messages.push(json!({"role": "assistant", "content": "It keeps what was computed of a prompt."}));
        messages.push(json!({"role": "user", "content": "And who else has it?"}));
    }
    body
}

fn say(text: &str) {
    // The terminal may be gone; then there is nobody to show anything to.
    let _written = writeln!(std::io::stdout(), "{text}").is_ok();
}

fn clean_up(folder: &Path) {
    // What is left of a demo in the folder for temporary files harms nobody.
    let _removed = std::fs::remove_dir_all(folder).is_ok();
}
