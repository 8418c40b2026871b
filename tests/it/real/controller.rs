//! A real LMCache controller, one for all tests of this binary, with real workers in front of engines that do not exist.
//!
//! [`controller`] starts it when the first test asks. Tests do not disturb each other: each registers instances of its
//! own and admits tokens of its own. What one test does to the controller as a whole (stop it, say) belongs to a
//! process of its own.

use super::process::{Process, look_until};
use crate::world;
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::thread;
use tokio::net::TcpSocket;
use tokio::sync::OnceCell;

/// Where a worker keeps its chunks unless a test says otherwise.
pub(crate) const LOCATION: &str = "LocalCPUBackend";
/// The `PYTHONHASHSEED` of every process that is not to have another.
const SEED: &str = "0";

static RUNNING: OnceCell<Running> = OnceCell::const_new();

/// What the hashes of a process of workers are made from.
#[derive(Clone, Copy)]
pub(crate) enum Hashes {
    /// The same as those of the controller, which has no vLLM.
    Alike,
    /// Another `PYTHONHASHSEED`.
    OtherSeed,
    /// A start that only a process has which can import vLLM, as every engine can.
    BesideVllm,
}

/// The processes; they end with the test binary.
struct Running {
    controller: Process,
    workers: Process,
    http: SocketAddr,
    pull: SocketAddr,
    reply: SocketAddr,
    _reserved: [TcpSocket; 4],
}

/// The controller as one test sees it.
pub(crate) struct Controller {
    client: reqwest::Client,
    running: &'static Running,
}

/// One instance of LMCache, as the controller knows it.
pub(crate) struct Instance<'a> {
    /// Its name.
    pub(crate) id: String,
    workers: &'a Process,
}

/// The controller, up and answering.
pub(crate) async fn controller() -> Controller {
    let running = RUNNING.get_or_init(Running::start).await;
    Controller { client: world::client(), running }
}

/// So many tokens from `first` on.
pub(crate) fn tokens(first: u32, count: u32) -> Vec<u32> {
    (first..first + count).collect()
}

impl Running {
    async fn start() -> Self {
        let reserved = [(); 4].map(|()| world::reserve());
        let [http, pull, reply, heartbeat] = reserved.each_ref().map(|(_, address)| *address);
        let ports = json!({"pull": pull.port(), "reply": reply.port(), "heartbeat": heartbeat.port()});
        let arguments = ["--host", "127.0.0.1", "--port", &http.port().to_string()].map(str::to_owned);
        let arguments = arguments.into_iter().chain(["--monitor-ports".to_owned(), ports.to_string()]);
        let controller = Process::start("controller.py", SEED, arguments);
        let workers = Self::workers(pull, reply, Hashes::Alike);
        let sockets = reserved.map(|(socket, _)| socket);
        let running = Self { controller, workers, http, pull, reply, _reserved: sockets };
        running.becomes_alive().await;
        running
    }

    fn workers(pull: SocketAddr, reply: SocketAddr, hashes: Hashes) -> Process {
        let seed = if matches!(hashes, Hashes::OtherSeed) { "1" } else { SEED };
        let beside = matches!(hashes, Hashes::BesideVllm).then(|| "vllm".to_owned());
        let addresses = [pull, reply].map(|address| address.to_string());
        Process::start("worker.py", seed, addresses.into_iter().chain(beside))
    }

    async fn becomes_alive(&self) {
        let client = world::client();
        let url = format!("http://{}/controller/key-stats", self.http);
        look_until(async || {
            assert!(!self.controller.has_ended(), "the controller ended\n{}", self.controller.log());
            client.get(&url).send().await.is_ok()
        })
        .await;
    }
}

impl Controller {
    /// Its base URL, as configured in a gateway.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.running.http)
    }

    /// POSTs `body` to `path`.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Response {
        self.client.post(self.endpoint() + path).json(body).send().await.unwrap()
    }

    /// As [`Controller::post`], for the status and the JSON of the answer.
    pub(crate) async fn ask(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        let answer = self.post(path, body).await;
        (answer.status(), answer.json().await.unwrap())
    }

    /// What a lookup of the tokens finds: location and count by instance.
    pub(crate) async fn look_up(&self, tokens: &[u32]) -> Value {
        let (status, mut answer) = self.ask("/lookup", &json!({"tokens": tokens})).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        answer["layout_info"].take()
    }

    /// A new instance whose only worker holds the chunks of `prompts`, known to the controller.
    pub(crate) async fn instance(&self, id: &str, prompts: &[Vec<u32>]) -> Instance<'static> {
        self.instance_in(&self.running.workers, id, prompts).await
    }

    /// As [`Controller::instance`], in a process of the test's own.
    pub(crate) async fn instance_in<'a>(
        &self,
        workers: &'a Process,
        id: &str,
        prompts: &[Vec<u32>],
    ) -> Instance<'a> {
        let instance = Instance { id: id.to_owned(), workers };
        let chunks = instance.change(json!({"admit": prompts})).await;
        look_until(async || self.chunks(id).await == chunks).await;
        instance
    }

    /// A process for workers of one test, which dies with it.
    pub(crate) fn workers(&self, hashes: Hashes) -> Process {
        Running::workers(self.running.pull, self.running.reply, hashes)
    }

    /// How many chunks the controller counts of an instance; null of one that it does not know.
    async fn chunks(&self, id: &str) -> Value {
        let answer = self.client.get(self.endpoint() + "/controller/key-stats").send().await.unwrap();
        let stats: Value = answer.json().await.unwrap();
        let instances = stats["instances"].as_array().unwrap();
        let found = instances.iter().find(|instance| instance["instance_id"] == id);
        found.map_or(Value::Null, |found| found["key_count"].clone())
    }
}

impl Instance<'_> {
    /// Changes the worker, and returns the number of its chunks from then on.
    async fn change(&self, mut wish: Value) -> Value {
        let changed = |event: &Value| event["instance"] == *self.id && event["event"] == "changed";
        let before = self.workers.said(changed).len();
        wish["instance"] = json!(self.id);
        self.workers.tell(&wish);
        self.workers.says(before + 1, changed).await;
        self.workers.said(changed).pop().unwrap()["chunks"].take()
    }

    /// From now on these operations get no answer; none: those that wait are answered.
    pub(crate) async fn hold(&self, operations: &[&str]) {
        self.change(json!({"hold": operations})).await;
    }

    fn was_asked(&self, operation: &str) -> impl Fn(&Value) -> bool {
        move |event| {
            event["instance"] == *self.id && event["event"] == "asked" && event["operation"] == operation
        }
    }

    /// Waits until the controller has asked its worker `count` times for `operation`, and tells how.
    pub(crate) async fn is_asked(&self, operation: &str, count: usize) -> Vec<Value> {
        self.workers.says(count, self.was_asked(operation)).await;
        self.asked(operation)
    }

    /// What the controller has asked its worker for so far: the events of `operation`.
    pub(crate) fn asked(&self, operation: &str) -> Vec<Value> {
        self.workers.said(self.was_asked(operation))
    }
}

impl Drop for Controller {
    #[expect(clippy::print_stderr, reason = "shown with a test that has failed")]
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}{}", self.running.controller.log(), self.running.workers.log());
        }
    }
}
