//! Which backend a request goes to by what is cached and what waits, through the whole gateway, and what is learned of it.
//!
//! Nothing here depends on how long something takes: gates hold answers, and the books tell what is in flight.

mod affinity;
mod capacity;
mod endings;
mod first_token;
mod load;
mod policies;
mod separation;
mod telling;

use crate::world::{Plan, World, until, within};
use kvway::proxy::cluster::Cluster;
use kvway::state::fleet::Load;
use mocks::{EngineOptions, Gate, Mode, SimulatedOptions};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const KIB: usize = 1024;

/// An engine that says in its answers who it is.
fn engine() -> EngineOptions {
    EngineOptions { served_by: true, ..EngineOptions::default() }
}

/// An engine with a cache, which tells what it found there.
fn caching() -> EngineOptions {
    let simulated = SimulatedOptions { time_scale: 1e-6, ..SimulatedOptions::default() };
    EngineOptions { mode: Mode::Simulated(simulated), cached_tokens: true, ..engine() }
}

/// A gateway with these engines and these keys of its cluster.
async fn world(engines: Vec<EngineOptions>, cluster: &str) -> World {
    World::with(Plan { engines, cluster: cluster.to_owned(), ..Plan::default() }).await
}

/// A gateway with so many engines and the default policy.
async fn pmc(engines: usize) -> World {
    world(vec![engine(); engines], "policy: pmc").await
}

/// A text of so many bytes that begins like no other of another seed.
fn text(seed: u64, bytes: usize) -> String {
    let mut random = StdRng::seed_from_u64(seed);
    (0..bytes).map(|_| char::from(random.random_range(b'a'..=b'z'))).collect()
}

/// A chat about a text.
fn about(text: &str) -> Value {
    crate::world::chat(text)
}

/// The same as a stream.
fn streamed(mut body: Value) -> Value {
    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    body
}

/// The completion of a prompt of so many ids, which begins like no other of another seed.
fn completion_of_ids(seed: u32, count: u32) -> Value {
    let first = 1000 * seed;
    json!({"model": "tiny", "prompt": (first..first + count).collect::<Vec<_>>(), "max_tokens": 1})
}

fn cluster(world: &World) -> &Cluster {
    &world.app.clusters()[0]
}

/// What is in flight at backend `vllm-{at}`.
fn load(world: &World, at: usize) -> Load {
    world.backend(&format!("vllm-{at}")).load(Instant::now())
}

fn pending_tokens(world: &World, at: usize) -> usize {
    load(world, at).pending_tokens
}

/// The blocks that each backend is believed to hold.
fn blocks(world: &World) -> Vec<usize> {
    let backends = cluster(world).fleet.backends();
    backends.iter().map(|backend| cluster(world).blocks.blocks(backend.index)).collect()
}

/// Sends a body and reads the answer to its end.
async fn post(world: &World, path: &str, body: &Value) -> reqwest::Response {
    let response = world.client.post(world.url(path)).json(body).send().await.unwrap();
    assert_eq!(response.status(), 200);
    response
}

/// Sends a chat and reads the answer; which engine gave it.
async fn chat(world: &World, body: &Value) -> usize {
    served_by(post(world, CHAT, body).await).await
}

/// Reads an answer to its end; which engine gave it.
async fn served_by(response: reqwest::Response) -> usize {
    let engine = response.headers()["x-served-by"].to_str().unwrap().to_owned();
    response.bytes().await.unwrap();
    engine.strip_prefix("vllm-").unwrap().parse().unwrap()
}

/// Requests that are sent and wait for their answers.
#[derive(Default)]
struct Waiting(JoinSet<usize>);

impl Waiting {
    /// Sends one that `gate` holds.
    async fn send(&mut self, world: &World, path: &str, body: &Value, gate: &Gate, held: usize) {
        let request = world.client.post(world.url(path)).json(body);
        self.0.spawn(async move { served_by(request.send().await.unwrap()).await });
        within(gate.waiting(held)).await;
    }

    /// The engines that answered, sorted.
    async fn join(self) -> Vec<usize> {
        let mut engines = within(self.0.join_all()).await;
        engines.sort_unstable();
        engines
    }
}

/// Holds the answers of all engines.
fn hold_all(world: &World) -> Vec<Gate> {
    world.engines.iter().map(|engine| engine.hold_headers()).collect()
}
