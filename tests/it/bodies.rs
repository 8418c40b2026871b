//! Bodies arrive whole, once and framed by their length, whatever their size, framing and content.

use crate::clients::{
    Clients, FRAMINGS, Framing, Http1, KIB, MIB, PATH, chunked, head, noise, sha256, with_chunks, with_length,
};
use crate::world::{Plan, World};
use mocks::{Engine, EngineOptions, Fault, Framing as Framed, Received};
use proptest::prelude::*;

/// Around the 64 KiB at which Pingora stops replaying, and far beyond.
const SIZES: [usize; 8] = [10, 60 * KIB, 65_535, 65_536, 65_537, 70 * KIB, MIB, 8 * MIB];

async fn world_of(engines: usize, sections: &str) -> World {
    World::with(Plan {
        engines: vec![EngineOptions::default(); engines],
        sections: sections.to_owned(),
        // Every request of this client goes to the same backend first.
        cluster: "policy: consistent_hash".to_owned(),
        ..Plan::default()
    })
    .await
}

/// Two engines, every request tried again on the second; the index of the one that is tried first.
async fn world_with_retries() -> (World, usize) {
    let world = world_of(2, "retries: {budget_ratio: 1, on: [connect, stale, reset, \"503\"]}").await;
    assert_eq!(world.chat().await.status(), 200);
    let first = world.engines.iter().position(|engine| !engine.received().is_empty()).unwrap();
    (world, first)
}

/// The last request at `engine` has this body, and says so in one way.
pub(crate) fn assert_arrived(engine: &Engine, body: &[u8], case: &str) {
    let received: Received = engine.received().pop().unwrap_or_else(|| panic!("{case}: nothing arrived"));
    assert_eq!(received.body_bytes, body.len(), "{case}");
    assert_eq!(received.body_sha256, sha256(body), "{case}");
    assert_eq!(received.framing, Framed::ContentLength, "{case}");
    let lengths: Vec<_> =
        received.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("content-length")).collect();
    assert_eq!((lengths.len(), &lengths[0].1), (1, &body.len().to_string()), "{case}");
    assert_eq!((received.header("transfer-encoding"), received.header("expect")), (None, None), "{case}");
}

/// Sends every size in every framing, each kind over one connection; the body arrives at all of `engines`.
async fn post_all(world: &World, engines: &[&Engine]) {
    let mut clients = Clients::connect(world).await;
    for (seed, size) in SIZES.into_iter().enumerate() {
        let body = noise(seed as u64, size);
        for framing in FRAMINGS {
            let case = format!("{size} bytes, {framing:?}");
            for engine in engines {
                engine.forget();
            }
            assert_eq!(clients.post(framing, &body).await, 200, "{case}");
            for engine in engines {
                assert_arrived(engine, &body, &case);
            }
            assert_eq!(world.app.budget.used(), 0, "{case}");
        }
    }
}

#[tokio::test]
async fn every_body_arrives_on_the_first_try() {
    let world = world_of(1, "").await;
    post_all(&world, &[&world.engines[0]]).await;
}

#[tokio::test]
async fn every_body_arrives_after_a_503() {
    let (world, first) = world_with_retries().await;
    world.engines[first].fail_always(Some(Fault::Status { code: 503, retry_after: None }));
    post_all(&world, &[&world.engines[0], &world.engines[1]]).await;
}

#[tokio::test]
async fn every_body_arrives_after_a_connection_that_broke() {
    let (world, first) = world_with_retries().await;
    world.engines[first].fail_always(Some(Fault::CloseBeforeResponse));
    post_all(&world, &[&world.engines[0], &world.engines[1]]).await;
}

#[tokio::test]
async fn every_body_arrives_after_a_connection_that_was_refused() {
    let (mut world, first) = world_with_retries().await;
    world.engines.remove(first).stop().await;
    post_all(&world, &[&world.engines[0]]).await;
}

#[tokio::test]
async fn a_client_that_sends_byte_by_byte_is_served() {
    let world = world_of(1, "").await;
    let mut client = Http1::connect(world.address).await;
    let body = noise(1, 300);
    for request in [
        [with_length(body.len()).into_bytes(), body.clone()].concat(),
        [with_chunks().into_bytes(), chunked(body.chunks(7))].concat(),
    ] {
        for byte in request {
            client.send([byte]).await;
        }
        assert_eq!(client.answer().await.status, 200);
        assert_arrived(&world.engines[0], &body, "byte by byte");
    }
}

#[tokio::test]
async fn a_body_is_let_go_when_the_header_of_its_answer_passes() {
    let world = world_of(1, "").await;
    let (before, during) = (world.engines[0].hold_headers(), world.engines[0].hold_first_token());
    let body = format!(r#"{{"model":"tiny","stream":true,"max_tokens":3,"prompt":"{}"}}"#, "x".repeat(MIB));
    let mut client = Http1::connect(world.address).await;
    client.send(with_length(body.len())).await;
    client.send(&body).await;
    before.waiting(1).await;
    assert_eq!(world.app.budget.used(), body.len());
    before.release();
    let answer = client.head().await;
    assert_eq!((answer.status, answer.header("transfer-encoding")), (200, Some("chunked")));
    during.waiting(1).await;
    assert_eq!((world.app.budget.used(), world.app.lifecycle.in_flight()), (0, 1));
}

#[test]
fn any_chunking_yields_the_same_bytes() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let world = runtime.block_on(world_of(1, "limits: {header_bytes_max: 1KiB}"));
    let client = tokio::sync::Mutex::new(runtime.block_on(Http1::connect(world.address)));
    let body = prop::collection::vec(any::<u8>(), 0..100_000);
    let sizes = || prop::collection::vec(1_usize..20_000, 1..10);
    let quirks = prop::sample::select(vec!["", ";a=b", "  ", ";quoted=\"x;y\""]);
    let trailers = prop::sample::select(vec!["", "x-sum: 1\r\n"]);
    let config = ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(body in body, chunks in sizes(), writes in sizes(), quirk in quirks, trailer in trailers)| {
        let mut wire = with_chunks().into_bytes();
        for chunk in cut(&body, &chunks) {
            wire.extend_from_slice(format!("{:X}{quirk}\r\n", chunk.len()).as_bytes());
            wire.extend_from_slice(chunk);
            wire.extend_from_slice(b"\r\n");
        }
        wire.extend_from_slice(format!("0\r\n{trailer}\r\n").as_bytes());
        let answer = runtime.block_on(async {
            let mut client = client.lock().await;
            for piece in cut(&wire, &writes) {
                client.send(piece).await;
            }
            client.answer().await
        });
        prop_assert_eq!(answer.status, 200);
        assert_arrived(&world.engines[0], &body, "any chunking");
    });
}

/// `bytes` in pieces of these sizes, over and over.
fn cut<'a>(bytes: &'a [u8], sizes: &[usize]) -> Vec<&'a [u8]> {
    let (mut rest, mut cut) = (bytes, Vec::new());
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, after) = rest.split_at(rest.len().min(*size));
        cut.push(piece);
        rest = after;
    }
    cut
}

#[tokio::test]
async fn whatever_stands_in_a_body_is_passed_on_unchanged() {
    let world = world_of(1, "").await;
    let mut clients = Clients::connect(&world).await;
    let keys: Vec<String> = (0..60_000).map(|key| format!("\"k{key}\":{key}")).collect();
    let keys = keys.join(",");
    let abuse: Vec<(&str, Vec<u8>)> = vec![
        ("deep arrays", [b"[".repeat(100_000), b"]".repeat(100_000)].concat()),
        ("deep arrays without an end", b"[".repeat(100_000)),
        ("deep objects", b"{\"a\":".repeat(100_000)),
        ("deep under the model", [br#"{"model":"#.to_vec(), b"[".repeat(100_000)].concat()),
        ("deep under another key", [br#"{"messages":"#.to_vec(), b"[".repeat(300_000)].concat()),
        ("invalid UTF-8", b"{\"model\":\"\xff\xfe\",\"prompt\":\"\xc3\x28\"}".to_vec()),
        ("UTF-8 with a mark", "\u{feff}{\"model\":\"tiny\"}".into()),
        (
            "duplicate keys",
            br#"{"model":"tiny","model":"tiny","model":7,"stream":true,"stream":false}"#.to_vec(),
        ),
        (
            "huge numbers",
            br#"{"max_tokens":1e400,"seed":123456789012345678901234567890,"top_p":-0.0e-999}"#.to_vec(),
        ),
        ("lone surrogates", br#"{"model":"\ud800","prompt":"\udfff\ud83d"}"#.to_vec()),
        ("no numbers", br#"{"temperature":NaN,"top_p":Infinity}"#.to_vec()),
        ("wrong types", br#"{"model":{"a":[1]},"stream":"yes","messages":null,"prompt":true}"#.to_vec()),
        ("many keys", format!("{{{keys},\"model\":\"tiny\"}}").into()),
        ("trailing bytes", b"{\"model\":\"tiny\"}}}}\0\0".to_vec()),
        ("nothing but space", b" ".repeat(100_000)),
        ("half a string", br#"{"model":"ti"#.to_vec()),
        ("a long model", format!(r#"{{"model":"{}"}}"#, "m".repeat(MIB)).into()),
    ];
    for (name, body) in abuse {
        for framing in [Framing::Length, Framing::Chunked, Framing::H2Length] {
            let status = clients.post(framing, &body).await;
            assert!(status < 500, "{name}, {framing:?}: {status}");
            assert_arrived(&world.engines[0], &body, name);
        }
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let world = world_of(1, "").await;
    let mut client = Http1::connect(world.address).await;
    let bodies: Vec<_> = (0..10)
        .zip([0, 10, 70 * KIB, 300].into_iter().cycle())
        .map(|(number, bytes)| noise(number, bytes))
        .collect();
    let mut wire = Vec::new();
    for (number, body) in bodies.iter().enumerate() {
        let fields = format!("X-Request-Id: {number}\r\n");
        if number % 3 == 0 {
            wire.extend_from_slice(head(PATH, &format!("{fields}Transfer-Encoding: chunked\r\n")).as_bytes());
            wire.extend_from_slice(&chunked(body.chunks(900)));
        } else {
            wire.extend_from_slice(
                head(PATH, &format!("{fields}Content-Length: {}\r\n", body.len())).as_bytes(),
            );
            wire.extend_from_slice(body);
        }
    }
    client.send(wire).await;
    for number in 0..10 {
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.header("x-request-id")), (200, Some(number.to_string().as_str())));
        assert!(!answer.body.is_empty());
    }
    let received = world.engines[0].received();
    let arrived: Vec<_> = received.iter().map(|request| request.body_sha256.clone()).collect();
    assert_eq!(arrived, bodies.iter().map(|body| sha256(body)).collect::<Vec<_>>());
}
