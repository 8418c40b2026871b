//! The books balance: what is in flight is counted exactly, and however requests end nothing stays behind.

use crate::clients::Http2;
use crate::streams::h2_chat;
use crate::world::{Plan, World, chat, reserve, stream_of, until};
use h2::client::SendRequest;
use kvway::state::fleet::Load;
use mocks::{Engine, EngineOptions, Fault};
use proptest::prelude::*;
use serde_json::Value;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

const CHAT: &str = "/v1/chat/completions";

/// What is in flight at backend `vllm-{at}`.
fn load(world: &World, at: usize) -> Load {
    world.backend(&format!("vllm-{at}")).load(Instant::now())
}

/// So many requests, with the tokens that bodies of this length are taken to have.
fn requests(requests: usize, pending_bytes: &[usize]) -> Load {
    Load { requests, pending_tokens: pending_bytes.iter().map(|bytes| bytes / 4).sum() }
}

/// Waits until nothing is in flight, held or connected any more.
async fn assert_balanced(world: &World) {
    let fleets = world.app.clusters().iter().map(|cluster| &cluster.fleet);
    let backends: Vec<_> = fleets.flat_map(|fleet| fleet.backends()).collect();
    until(|| {
        world.app.lifecycle.in_flight() == 0
            && world.app.connections.count() == 0
            && world.app.budget.used() == 0
            && backends.iter().all(|backend| backend.load(Instant::now()) == Load::default())
    })
    .await;
}

mod values {
    use super::*;

    #[tokio::test]
    async fn each_backend_is_charged_with_exactly_what_was_sent_to_it() {
        let world = World::new().await;
        let gates: Vec<_> = world.engines.iter().map(|engine| engine.hold_headers()).collect();
        let mut clients = JoinSet::new();
        let mut bytes = 0;
        for length in [1, 10, 100, 1000, 10_000, 100_000] {
            let body = chat(&"x".repeat(length));
            bytes += body.to_string().len();
            clients.spawn(world.client.post(world.url(CHAT)).json(&body).send());
        }
        for gate in &gates {
            gate.waiting(3).await;
        }
        for (at, engine) in world.engines.iter().enumerate() {
            let sent: Vec<usize> = engine.received().iter().map(|request| request.body_bytes).collect();
            assert_eq!(load(&world, at), requests(3, &sent));
        }
        assert_eq!(world.app.budget.used(), bytes);
        assert_eq!(world.app.lifecycle.in_flight(), 6);
        drop(gates);
        while let Some(response) = clients.join_next().await {
            let response = response.unwrap().unwrap();
            assert_eq!(response.status(), 200);
            drop(response.bytes().await.unwrap());
        }
        world.idle().await;
        assert_eq!((load(&world, 0), load(&world, 1)), Default::default());
        assert_eq!(world.app.budget.used(), 0);
    }

    async fn one_engine(fault: Fault) -> World {
        let world = World::with(Plan { engines: vec![EngineOptions::default()], ..Plan::default() }).await;
        world.engines[0].fail_next(1, fault);
        world
    }

    #[tokio::test]
    async fn the_prompt_of_a_stream_is_pending_until_its_first_event_and_the_request_until_its_end() {
        let world = one_engine(Fault::StallAfter(2)).await;
        let gate = world.engines[0].hold_first_token();
        let body = stream_of(9);
        let request = world.client.post(world.url(CHAT)).json(&body);
        let mut response = request.send().await.unwrap();
        gate.waiting(1).await;
        assert_eq!(
            load(&world, 0),
            requests(1, &[body.to_string().len()]),
            "the header alone says nothing of the prompt"
        );
        assert_eq!(world.app.budget.used(), 0, "the body is not needed any more");
        gate.release();
        assert!(response.chunk().await.unwrap().is_some());
        assert_eq!(load(&world, 0), requests(1, &[]));
        drop(response);
        world.idle().await;
        assert_eq!(load(&world, 0), Load::default());
    }

    #[tokio::test]
    async fn the_prompt_of_an_answer_in_one_piece_is_pending_until_its_header() {
        let world = one_engine(Fault::StallAfter(0)).await;
        let response = world.chat().await;
        assert_eq!(load(&world, 0), requests(1, &[]));
        drop(response);
        world.idle().await;
        assert_eq!(load(&world, 0), Load::default());
    }

    #[tokio::test]
    async fn a_try_that_failed_leaves_the_books_when_the_next_one_enters_them() {
        let world = World::new().await;
        let (code, retry_after) = (503, None);
        world.engines[0].fail_always(Some(Fault::Status { code, retry_after }));
        let gate = world.engines[1].hold_headers();
        let check = async {
            gate.waiting(2).await;
            let bytes = chat("hello").to_string().len();
            assert!(world.engines[0].stats().path(CHAT).received >= 1);
            assert_eq!(load(&world, 0), Load::default());
            assert_eq!(load(&world, 1), requests(2, &[bytes, bytes]));
            assert_eq!(world.app.budget.used(), 2 * bytes);
            gate.release();
        };
        let (one, other, ()) = tokio::join!(world.chat(), world.chat(), check);
        assert_eq!((one.status().as_u16(), other.status().as_u16()), (200, 200));
    }

    #[tokio::test]
    async fn a_request_without_a_body_is_charged_without_tokens() {
        let world = World::new().await;
        let gates: Vec<_> = world.engines.iter().map(|engine| engine.hold_path("/version")).collect();
        let check = async {
            tokio::select! {
                () = gates[0].waiting(1) => assert_eq!(load(&world, 0), requests(1, &[])),
                () = gates[1].waiting(1) => assert_eq!(load(&world, 1), requests(1, &[])),
            }
            drop(gates);
        };
        let request = world.client.get(world.url("/version")).send();
        let (response, ()) = tokio::join!(request, check);
        assert_eq!(response.unwrap().status(), 200);
    }
}

/// How a request is meant to end. Whether it does is left to chance; the books must balance in any case.
#[derive(Clone, Debug)]
enum Ending {
    /// Whatever the engine makes of it.
    Answer,
    /// With this fault at every engine that it meets.
    Fault(&'static str),
    /// The client goes after so many milliseconds without having read anything.
    Leaves(u64),
    /// The client goes after the first piece of the answer.
    LeavesAfterFirst(&'static str),
    /// The body is larger than allowed.
    TooLarge,
    /// Nothing serves the path.
    NoRoute,
}

#[derive(Clone, Debug)]
struct Case {
    ending: Ending,
    stream: bool,
    http2: bool,
    starts_after_ms: u64,
    /// The prompt, which no other case has.
    text: String,
}

/// The blocks of every prompt.
const BLOCKS: usize = 3;

fn ending() -> impl Strategy<Value = Ending> {
    let fault = prop::sample::select(vec![
        "status=503",
        "status=503;retry-after=1",
        "status=429",
        "early-status=503",
        "close-before-response",
        "reset-before-response",
        "cut-stream-after=1",
        "reset-stream-after=2",
        "stall-before-response",
        "stall-after=1",
        "close-idle",
        "garbage",
        "delay=5",
    ]);
    prop_oneof![
        3 => Just(Ending::Answer),
        6 => fault.prop_map(Ending::Fault),
        2 => (0_u64..15).prop_map(Ending::Leaves),
        2 => prop::sample::select(vec!["stall-after=1", "delay=1"]).prop_map(Ending::LeavesAfterFirst),
        1 => Just(Ending::TooLarge),
        1 => Just(Ending::NoRoute),
    ]
}

fn case() -> impl Strategy<Value = Case> {
    (ending(), any::<bool>(), any::<bool>(), 0_u64..10).prop_map(
        |(ending, stream, http2, starts_after_ms)| Case {
            ending,
            stream,
            http2,
            starts_after_ms,
            text: String::new(),
        },
    )
}

fn cases() -> impl Strategy<Value = Vec<Case>> {
    prop::collection::vec(case(), 10..30).prop_map(|mut cases| {
        for (number, case) in cases.iter_mut().enumerate() {
            case.text = format!("{number:04} ").repeat(BLOCKS * 1024 / 5);
        }
        cases
    })
}

impl Case {
    fn body(&self) -> Value {
        let mut body = if self.stream { stream_of(20) } else { chat("") };
        body["messages"][0]["content"] = self.text.as_str().into();
        if matches!(self.ending, Ending::TooLarge) {
            body["user"] = "x".repeat(40_000).into();
        }
        body
    }

    fn path(&self) -> &'static str {
        if matches!(self.ending, Ending::NoRoute) { "/nowhere" } else { CHAT }
    }

    fn fault(&self) -> &'static str {
        match self.ending {
            Ending::Fault(fault) | Ending::LeavesAfterFirst(fault) => fault,
            Ending::Leaves(_) => "delay=10",
            _ => "",
        }
    }

    /// Sends the request and sees it to its end, or leaves.
    async fn run(&self, client: &reqwest::Client, http2: SendRequest<bytes::Bytes>, address: SocketAddr) {
        tokio::time::sleep(Duration::from_millis(self.starts_after_ms)).await;
        let patience = match self.ending {
            Ending::Leaves(milliseconds) => Duration::from_millis(milliseconds),
            _ => Duration::from_secs(20),
        };
        let ended = if self.http2 {
            tokio::time::timeout(patience, self.over_http2(http2)).await.is_ok()
        } else {
            tokio::time::timeout(patience, self.over_http1(client, address)).await.is_ok()
        };
        assert!(ended || matches!(self.ending, Ending::Leaves(_)), "{self:?} hangs");
    }

    async fn over_http1(&self, client: &reqwest::Client, address: SocketAddr) {
        let request = client.post(format!("http://{address}{}", self.path()));
        let request = request.header("x-mock-fault", self.fault()).json(&self.body());
        let Ok(mut response) = request.send().await else {
            return;
        };
        while let Ok(Some(_)) = response.chunk().await {
            if matches!(self.ending, Ending::LeavesAfterFirst(_)) {
                return;
            }
        }
    }

    async fn over_http2(&self, client: SendRequest<bytes::Bytes>) {
        let mut client = client.ready().await.unwrap();
        let response = h2_chat_on(&mut client, self.path(), self.fault(), &self.body());
        let Ok(response) = response.await else { return };
        let mut body = response.into_body();
        while let Some(Ok(data)) = body.data().await {
            if matches!(self.ending, Ending::LeavesAfterFirst(_)) {
                return;
            }
            // Fails only when the stream is over.
            let _released = body.flow_control().release_capacity(data.len());
        }
    }
}

fn h2_chat_on(
    client: &mut SendRequest<bytes::Bytes>,
    path: &str,
    fault: &str,
    body: &Value,
) -> h2::client::ResponseFuture {
    let request = http::Request::post(format!("http://gateway{path}")).header("x-mock-fault", fault);
    let (response, mut stream) = client.send_request(request.body(()).unwrap(), false).unwrap();
    // Fails only when the gateway has refused the request already.
    let _sent = stream.send_data(body.to_string().into(), true);
    response
}

/// Runs the cases at once against three engines, of which one starts and stops meanwhile.
async fn run(policy: &str, cases: &[Case], comes_after_ms: u64, goes_after_ms: u64) {
    let options = EngineOptions { faults_by_header: true, ..EngineOptions::default() };
    let (_place, address) = reserve();
    let world = World::with(Plan {
        engines: vec![options.clone(); 2],
        more: vec![format!(r#"id: moody, address: "{address}""#)],
        sections: "limits: {body_bytes_max: 32KiB}\n\
                   timeouts: {first_byte: 50ms, between_bytes: 50ms, upstream_idle: 1s}\n\
                   retries: {on: [connect, stale, reset, 502, 503, 504]}\n\
                   routes: [{path: /v1, cluster: llama}]"
            .to_owned(),
        cluster: format!("policy: {policy}"),
        ..Plan::default()
    })
    .await;
    let client = crate::world::client();
    let http2 = Http2::connect(world.address).await;
    let requests = cases.iter().map(|case| case.run(&client, http2.sender.clone(), world.address));
    let moody = async {
        tokio::time::sleep(Duration::from_millis(comes_after_ms)).await;
        let engine = Engine::start_at(address, options).unwrap();
        tokio::time::sleep(Duration::from_millis(goes_after_ms)).await;
        engine.stop().await;
    };
    tokio::join!(futures::future::join_all(requests), moody);
    drop((client, http2));
    assert_balanced(&world).await;
    let logged = world.access_log().await;
    assert!(logged.len() <= cases.len(), "{} lines for {} requests", logged.len(), cases.len());
    assert_held(&world, policy, &logged);
}

/// Each backend is believed to hold the prompts whose first token it gave back, and no others.
fn assert_held(world: &World, policy: &str, logged: &[Value]) {
    let cluster = &world.app.clusters()[0];
    for backend in cluster.fleet.backends() {
        let here = logged.iter().filter(|entry| entry["backend"] == backend.id.as_str());
        let computed = here.filter(|entry| !entry["first_token_ms"].is_null()).count();
        let expected = if policy == "pmc" { BLOCKS * computed } else { 0 };
        assert_eq!(cluster.blocks.blocks(backend.index), expected, "{} {logged:#?}", backend.id);
    }
    for entry in logged {
        let (status, computed) = (entry["status"].as_u64().unwrap(), !entry["first_token_ms"].is_null());
        assert!(!computed || status == 200, "{entry}");
        assert!(computed || entry["outcome"] != "complete" || status != 200, "{entry}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn however_requests_end_nothing_stays_in_the_books(
        cases in cases(),
        comes_after_ms in 0_u64..10,
        goes_after_ms in 0_u64..30,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run("round_robin", &cases, comes_after_ms, goes_after_ms));
    }

    #[test]
    fn however_requests_end_only_prompts_that_were_computed_count_as_cached(
        cases in cases(),
        comes_after_ms in 0_u64..10,
        goes_after_ms in 0_u64..30,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run("pmc", &cases, comes_after_ms, goes_after_ms));
    }
}

#[tokio::test]
async fn a_client_that_leaves_while_its_body_arrives_leaves_nothing_behind() {
    use tokio::io::AsyncWriteExt;
    let world = World::new().await;
    let mut socket = tokio::net::TcpStream::connect(world.address).await.unwrap();
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n");
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(&vec![b' '; 100_000]).await.unwrap();
    until(|| world.app.budget.used() == 100_000).await;
    let mut client = Http2::connect(world.address).await;
    let response = h2_chat(&mut client, &chat("x"));
    assert_eq!(response.await.unwrap().status(), 200, "others are served meanwhile");
    drop((socket, client));
    assert_balanced(&world).await;
    assert_eq!(world.received(CHAT).iter().sum::<u64>(), 1);
}
