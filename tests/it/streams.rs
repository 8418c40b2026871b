//! Streams: events pass one by one, nobody is kept waiting or working for nothing, and a stream that breaks looks broken.

use crate::world::{Plan, World, stream_of, until};
use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use mocks::{EngineOptions, Fault, SseOptions};
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const CHAT: &str = "/v1/chat/completions";
const STREAM_HEAD: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

/// A backend that the test plays itself.
pub(crate) struct Actor(TcpListener);

impl Actor {
    /// An actor, and a world in which it is the only backend.
    pub(crate) async fn new(sections: &str) -> (Self, World) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let world = World::with(Plan {
            engines: vec![],
            more: vec![format!(r#"id: actor, address: "{address}""#)],
            sections: sections.to_owned(),
            ..Plan::default()
        })
        .await;
        (Self(listener), world)
    }

    /// Takes one request and answers the head of a stream.
    pub(crate) async fn start_stream(&self) -> TcpStream {
        let (mut socket, _) = self.0.accept().await.unwrap();
        let mut request = Vec::new();
        let complete = |request: &[u8]| {
            let text = String::from_utf8_lossy(request).to_ascii_lowercase();
            let (head, body) = text.split_once("\r\n\r\n")?;
            let length = head.split("content-length: ").nth(1)?.lines().next()?;
            Some(body.len() == length.parse::<usize>().unwrap())
        };
        while complete(&request) != Some(true) {
            assert_ne!(socket.read_buf(&mut request).await.unwrap(), 0);
        }
        socket.set_nodelay(true).unwrap();
        socket.write_all(STREAM_HEAD).await.unwrap();
        socket
    }
}

/// One chunk of a chunked answer.
pub(crate) fn chunk(data: &[u8]) -> Vec<u8> {
    let mut chunk = format!("{:x}\r\n", data.len()).into_bytes();
    chunk.extend_from_slice(data);
    chunk.extend_from_slice(b"\r\n");
    chunk
}

/// A client that speaks HTTP/2 without TLS, and the task that drives it.
pub(crate) async fn h2_client(address: SocketAddr) -> (SendRequest<Bytes>, JoinSet<()>) {
    let socket = TcpStream::connect(address).await.unwrap();
    let (client, connection) = h2::client::handshake(socket).await.unwrap();
    let mut driver = JoinSet::new();
    driver.spawn(async move { drop(connection.await) });
    (client.ready().await.unwrap(), driver)
}

/// Sends a chat request over HTTP/2.
pub(crate) fn h2_chat(client: &mut SendRequest<Bytes>, body: &Value) -> h2::client::ResponseFuture {
    let request = Request::post(format!("http://gateway{CHAT}"));
    let request = request
        .header("content-type", "application/json")
        .body(())
        .unwrap();
    let (response, mut stream) = client.send_request(request, false).unwrap();
    stream.send_data(body.to_string().into(), true).unwrap();
    response
}

/// Sends a chat request over HTTP/1.1 by hand.
async fn raw_chat(world: &World, body: &Value) -> TcpStream {
    let mut socket = TcpStream::connect(world.address).await.unwrap();
    let body = body.to_string();
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: gateway\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all((head + &body).as_bytes()).await.unwrap();
    socket
}

/// One engine with these options.
async fn world(sse: SseOptions, sections: &str) -> World {
    World::with(Plan {
        engines: vec![EngineOptions {
            sse,
            ..EngineOptions::default()
        }],
        sections: sections.to_owned(),
        ..Plan::default()
    })
    .await
}

/// Two engines that both meet `fault`.
async fn failing(fault: &Fault, sections: &str) -> World {
    let world = World::with(Plan {
        sections: sections.to_owned(),
        ..Plan::default()
    })
    .await;
    for engine in &world.engines {
        engine.fail_always(Some(fault.clone()));
    }
    world
}

async fn post(world: &World, events: usize) -> reqwest::Response {
    let request = world.client.post(world.url(CHAT)).json(&stream_of(events));
    request.send().await.unwrap()
}

/// Reads until `count` events are here.
async fn read_events(response: &mut reqwest::Response, count: usize) -> String {
    let mut text = String::new();
    while text.matches("data: ").count() < count {
        let chunk = response.chunk().await.unwrap().unwrap();
        text.push_str(str::from_utf8(&chunk).unwrap());
    }
    text
}

/// All requests that any engine has met.
fn tries(world: &World) -> u64 {
    world.received(CHAT).iter().sum()
}

mod events {
    use super::*;

    #[tokio::test]
    async fn each_event_reaches_the_client_before_the_next_is_made() {
        let (actor, world) = Actor::new("").await;
        let (mut response, mut socket) = tokio::join!(post(&world, 50), actor.start_stream());
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        for event in 0..50 {
            let event = format!("data: {event}\n\n");
            socket.write_all(&chunk(event.as_bytes())).await.unwrap();
            assert_eq!(response.chunk().await.unwrap().unwrap(), event);
        }
        socket.write_all(b"0\r\n\r\n").await.unwrap();
        assert_eq!(response.chunk().await.unwrap(), None);
    }

    #[tokio::test]
    async fn each_event_reaches_a_client_of_http2_before_the_next_is_made() {
        let (actor, world) = Actor::new("").await;
        let (mut client, _driver) = h2_client(world.address).await;
        let (response, mut socket) = tokio::join!(h2_chat(&mut client, &stream_of(50)), actor.start_stream());
        let mut body = response.unwrap().into_body();
        for event in 0..50 {
            let event = format!("data: {event}\n\n");
            socket.write_all(&chunk(event.as_bytes())).await.unwrap();
            assert_eq!(body.data().await.unwrap().unwrap(), event);
        }
        socket.write_all(b"0\r\n\r\n").await.unwrap();
        while let Some(data) = body.data().await {
            assert!(data.unwrap().is_empty());
        }
        assert!(body.is_end_stream());
    }

    #[tokio::test]
    async fn an_event_in_pieces_passes_in_pieces() {
        let (actor, world) = Actor::new("").await;
        let (mut response, mut socket) = tokio::join!(post(&world, 1), actor.start_stream());
        for piece in ["da", "ta: {\"usage\":{\"prom", "pt_tokens\":7}}", "\n", "\n"] {
            socket.write_all(&chunk(piece.as_bytes())).await.unwrap();
            assert_eq!(response.chunk().await.unwrap().unwrap(), piece);
        }
        socket.write_all(b"0\r\n\r\n").await.unwrap();
        assert_eq!(response.chunk().await.unwrap(), None);
        assert_eq!(world.last_entry().await["prompt_tokens"], 7);
    }

    #[tokio::test]
    async fn the_header_passes_before_the_first_event_is_there() {
        let world = world(SseOptions::default(), "").await;
        let gate = world.engines[0].hold_first_token();
        let response = post(&world, 5).await;
        assert_eq!(response.status(), 200);
        gate.waiting(1).await;
        gate.release();
        let text = response.text().await.unwrap();
        assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    }

    #[tokio::test]
    async fn a_burst_arrives_whole_and_in_order() {
        let world = world(SseOptions::default(), "").await;
        let text = post(&world, 20_000).await.text().await.unwrap();
        // One for the role, one for the usage, one for the end.
        assert_eq!(text.matches("data: ").count(), 20_000 + 3);
        assert_eq!(text.matches("\n\n").count(), 20_000 + 3);
        assert!(text.ends_with("data: [DONE]\n\n"));
    }

    #[tokio::test]
    async fn after_a_stream_the_connections_are_used_again() {
        let world = world(SseOptions::default(), "").await;
        for _ in 0..3 {
            drop(post(&world, 5).await.text().await.unwrap());
        }
        assert_eq!(world.engines[0].stats().connections_accepted, 1);
        assert_eq!(world.app.connections.count(), 1);
    }
}

mod pressure {
    use super::*;

    const MIB: usize = 1 << 20;
    const WHOLE: usize = 64 * MIB;

    /// Sends 64 MiB as fast as they are taken, telling in `sent` how far it is. The last byte of each chunk is its number.
    async fn send_all(mut socket: TcpStream, sent: &AtomicUsize) {
        for number in 0..WHOLE / 65_536 {
            let mut data = vec![b'x'; 65_536];
            data[65_535] = number.to_le_bytes()[0];
            socket.write_all(&chunk(&data)).await.unwrap();
            sent.fetch_add(data.len(), Ordering::Relaxed);
        }
        socket.write_all(b"0\r\n\r\n").await.unwrap();
    }

    /// Waits until `sent` grows no more. A machine that is slow makes this come early, which spoils no assertion.
    async fn stalled(sent: &AtomicUsize) -> usize {
        let mut before = 0;
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let now = sent.load(Ordering::Relaxed);
            if now == before && now > 0 {
                return now;
            }
            before = now;
        }
    }

    fn assert_whole(body: &[u8]) {
        assert_eq!(body.len(), WHOLE);
        for (number, data) in body.chunks(65_536).enumerate() {
            assert_eq!(data[65_535], number.to_le_bytes()[0]);
        }
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_holds_the_engine_up_and_loses_nothing() {
        let (actor, world) = Actor::new("").await;
        let sent = Arc::new(AtomicUsize::new(0));
        let (response, socket) = tokio::join!(post(&world, 1), actor.start_stream());
        let mut engine = JoinSet::new();
        let progress = Arc::clone(&sent);
        engine.spawn(async move { send_all(socket, &progress).await });
        let far = stalled(&sent).await;
        // What the kernel's buffers take on two connections; the gateway itself takes a few chunks.
        assert!(far < WHOLE / 2, "{far} bytes went into nowhere");
        assert_whole(&response.bytes().await.unwrap());
    }

    #[tokio::test]
    async fn a_client_of_http2_that_does_not_read_holds_the_engine_up_and_loses_nothing() {
        let (actor, world) = Actor::new("").await;
        let sent = Arc::new(AtomicUsize::new(0));
        let (mut client, _driver) = h2_client(world.address).await;
        let (response, socket) = tokio::join!(h2_chat(&mut client, &stream_of(1)), actor.start_stream());
        let mut body = response.unwrap().into_body();
        let mut engine = JoinSet::new();
        let progress = Arc::clone(&sent);
        engine.spawn(async move { send_all(socket, &progress).await });
        let far = stalled(&sent).await;
        assert!(far < WHOLE / 2, "{far} bytes went into nowhere");
        let mut whole = Vec::with_capacity(WHOLE);
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            whole.extend_from_slice(&data);
        }
        assert_whole(&whole);
    }

    #[tokio::test]
    async fn a_client_that_never_reads_is_cut_off_and_the_engine_stopped() {
        let (actor, world) = Actor::new("timeouts: {between_bytes: 200ms}").await;
        let _client = raw_chat(&world, &stream_of(1)).await;
        let mut socket = actor.start_stream().await;
        let data = chunk(&vec![b'x'; 65_536]);
        while socket.write_all(&data).await.is_ok() {}
        let entry = world.last_entry().await;
        assert_eq!(
            (&entry["status"], &entry["outcome"]),
            (&200.into(), &"client_gone".into())
        );
    }

    #[tokio::test]
    async fn a_client_of_http2_that_never_reads_is_cut_off_and_its_neighbours_are_served() {
        let (actor, world) = Actor::new("timeouts: {between_bytes: 200ms}").await;
        let (mut client, _driver) = h2_client(world.address).await;
        let (response, mut socket) = tokio::join!(h2_chat(&mut client, &stream_of(1)), actor.start_stream());
        let _unread = response.unwrap().into_body();
        let data = chunk(&vec![b'x'; 65_536]);
        while socket.write_all(&data).await.is_ok() {}
        let neighbour = h2_chat(&mut client, &stream_of(1));
        let (neighbour, _socket) = tokio::join!(neighbour, actor.start_stream());
        assert_eq!(neighbour.unwrap().status(), 200);
        world.idle().await;
    }
}

mod leaving {
    use super::*;

    /// What the log says of the only request, once the engine has seen that nobody waits.
    async fn cancelled(world: &World) -> (Value, Value) {
        world.engines[0].until(|stats| stats.cancelled(CHAT) == 1).await;
        assert_eq!(world.engines[0].stats().path(CHAT).received, 1);
        let mut entry = world.last_entry().await;
        (entry["status"].take(), entry["outcome"].take())
    }

    #[tokio::test]
    async fn before_the_first_byte_stops_the_engine() {
        let world = world(SseOptions::default(), "").await;
        let gate = world.engines[0].hold_headers();
        let client = raw_chat(&world, &stream_of(5)).await;
        gate.waiting(1).await;
        drop(client);
        assert_eq!(cancelled(&world).await, (499.into(), "client_gone".into()));
    }

    #[tokio::test]
    async fn before_the_first_byte_over_http2_stops_the_engine() {
        let world = world(SseOptions::default(), "").await;
        let gate = world.engines[0].hold_headers();
        let (mut client, _driver) = h2_client(world.address).await;
        let response = h2_chat(&mut client, &stream_of(5));
        gate.waiting(1).await;
        drop(response);
        assert_eq!(cancelled(&world).await, (499.into(), "client_gone".into()));
    }

    #[tokio::test]
    async fn after_some_events_stops_the_engine() {
        let world = world(SseOptions::default(), "").await;
        world.engines[0].fail_next(1, Fault::StallAfter(3));
        let mut response = post(&world, 10).await;
        read_events(&mut response, 3).await;
        drop(response);
        assert_eq!(cancelled(&world).await, (200.into(), "client_gone".into()));
    }

    #[tokio::test]
    async fn after_some_events_over_http2_stops_the_engine_and_spares_the_neighbour() {
        let world = world(SseOptions::default(), "").await;
        world.engines[0].fail_next(1, Fault::StallAfter(3));
        let (mut client, _driver) = h2_client(world.address).await;
        let response = h2_chat(&mut client, &stream_of(10)).await.unwrap();
        let mut body = response.into_body();
        let mut events = 0;
        while events < 3 {
            let data = body.data().await.unwrap().unwrap();
            events += String::from_utf8_lossy(&data).matches("data: ").count();
        }
        drop(body);
        world.engines[0].until(|stats| stats.cancelled(CHAT) == 1).await;
        let response = h2_chat(&mut client, &stream_of(1)).await.unwrap();
        assert_eq!(response.status(), 200, "the connection goes on");
    }

    #[tokio::test]
    async fn in_the_middle_of_a_running_stream_stops_the_engine() {
        let sse = SseOptions {
            gap: Duration::from_millis(1),
            ..SseOptions::default()
        };
        let world = world(sse, "").await;
        let mut response = post(&world, 100_000).await;
        read_events(&mut response, 10).await;
        drop(response);
        assert_eq!(cancelled(&world).await, (200.into(), "client_gone".into()));
    }

    #[tokio::test]
    async fn while_a_second_try_runs_stops_that_engine() {
        let world = World::new().await;
        let (code, retry_after) = (503, None);
        world.engines[0].fail_always(Some(Fault::Status { code, retry_after }));
        let gate = world.engines[1].hold_headers();
        let clients = [
            raw_chat(&world, &stream_of(5)).await,
            raw_chat(&world, &stream_of(5)).await,
        ];
        gate.waiting(2).await;
        drop(clients);
        world.engines[1].until(|stats| stats.cancelled(CHAT) == 2).await;
        let log = world.access_log().await;
        assert!(
            log.iter().all(|entry| entry["outcome"] == "client_gone"),
            "{log:?}"
        );
        assert!(log.iter().any(|entry| entry["tries"] == 2), "{log:?}");
    }
}

mod breaking {
    use super::*;

    #[tokio::test]
    async fn a_stream_that_breaks_off_ends_without_its_last_chunk_and_is_not_repeated() {
        for fault in [Fault::CutStreamAfter(3), Fault::ResetStreamAfter(3)] {
            let world = failing(&fault, "retries: {on: [connect, stale, reset, 502, 503, 504]}").await;
            let mut client = raw_chat(&world, &stream_of(10)).await;
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            let answer = String::from_utf8(answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            assert_eq!(answer.matches("data: ").count(), 3, "what came is passed on");
            assert!(!answer.contains("\r\n0\r\n"), "{answer}");
            assert_eq!(tries(&world), 1);
            let entry = world.last_entry().await;
            assert_eq!(
                (&entry["status"], &entry["outcome"], &entry["tries"]),
                (&200.into(), &"backend_broke_off".into(), &1.into())
            );
        }
    }

    #[tokio::test]
    async fn a_stream_that_breaks_off_is_an_error_over_http2() {
        for fault in [Fault::CutStreamAfter(3), Fault::ResetStreamAfter(3)] {
            let world = failing(&fault, "").await;
            let (mut client, _driver) = h2_client(world.address).await;
            let response = h2_chat(&mut client, &stream_of(10)).await.unwrap();
            let mut body = response.into_body();
            let error = loop {
                match body.data().await {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => break error,
                    None => panic!("the stream looks complete"),
                }
            };
            assert!(error.is_reset(), "{error}");
            assert_eq!(tries(&world), 1);
            assert_eq!(world.last_entry().await["outcome"], "backend_broke_off");
        }
    }

    #[tokio::test]
    async fn an_answer_that_is_not_streamed_and_breaks_off_is_not_complete() {
        let world = failing(&Fault::CutStreamAfter(0), "").await;
        let response = world.chat().await;
        assert_eq!(response.status(), 200);
        assert!(response.bytes().await.is_err());
        assert_eq!(tries(&world), 1);
        assert_eq!(world.last_entry().await["outcome"], "backend_broke_off");
    }
}

mod deadlines {
    use super::*;

    #[tokio::test]
    async fn silence_in_the_middle_of_a_stream_ends_it() {
        let world = failing(&Fault::StallAfter(3), "timeouts: {between_bytes: 300ms}").await;
        let mut response = post(&world, 10).await;
        read_events(&mut response, 3).await;
        assert!(response.chunk().await.is_err(), "the end is not a regular one");
        until(|| {
            world
                .engines
                .iter()
                .any(|engine| engine.stats().cancelled(CHAT) == 1)
        })
        .await;
        assert_eq!(tries(&world), 1);
        let entry = world.last_entry().await;
        assert_eq!(
            (&entry["status"], &entry["outcome"]),
            (&200.into(), &"deadline".into())
        );
    }

    #[tokio::test]
    async fn a_stream_that_takes_too_long_as_a_whole_is_ended() {
        let sse = SseOptions {
            gap: Duration::from_millis(5),
            ..SseOptions::default()
        };
        let world = world(sse, "timeouts: {first_byte: 500ms, total: 500ms}").await;
        let response = post(&world, 100_000).await;
        assert_eq!(response.status(), 200);
        assert!(response.bytes().await.is_err());
        world.engines[0].until(|stats| stats.cancelled(CHAT) == 1).await;
        assert_eq!(world.last_entry().await["outcome"], "deadline");
    }

    #[tokio::test]
    async fn the_total_holds_before_the_first_byte_too() {
        let world = failing(
            &Fault::StallBeforeResponse,
            "timeouts: {first_byte: 150ms, total: 150ms}",
        )
        .await;
        let response = world.chat().await;
        assert_eq!(response.status(), 504);
        assert_eq!(tries(&world), 1);
        let text = response.text().await.unwrap();
        assert!(text.contains("backend_timeout"), "{text}");
    }

    #[tokio::test]
    async fn silence_ends_a_stream_over_http2_with_an_error() {
        let world = failing(&Fault::StallAfter(2), "timeouts: {between_bytes: 300ms}").await;
        let (mut client, _driver) = h2_client(world.address).await;
        let mut body = h2_chat(&mut client, &stream_of(9)).await.unwrap().into_body();
        while body.data().await.unwrap().is_ok() {}
        assert_eq!(world.last_entry().await["outcome"], "deadline");
    }
}

mod odd_answers {
    use super::*;

    async fn answering(bytes: &'static str, sections: &str) -> World {
        failing(&Fault::Raw(Bytes::from_static(bytes.as_bytes())), sections).await
    }

    #[tokio::test]
    async fn an_answer_that_ends_with_its_connection_is_complete() {
        let world = answering(
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\nall there is",
            "",
        )
        .await;
        assert_eq!(world.chat().await.text().await.unwrap(), "all there is");
        assert_eq!(world.last_entry().await["outcome"], "complete");
    }

    #[tokio::test]
    async fn an_interim_answer_passes_before_the_final_one() {
        let world = answering(
            "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            "",
        )
        .await;
        let response = world.chat().await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.text().await.unwrap(), "ok");
        let entry = world.last_entry().await;
        assert_eq!(
            (&entry["status"], &entry["outcome"]),
            (&200.into(), &"complete".into())
        );
    }

    #[tokio::test]
    async fn after_an_interim_answer_another_backend_may_still_be_tried() {
        let interim = "HTTP/1.1 103 Early Hints\r\n\r\n";
        let world = answering(interim, "retries: {on: [reset]}").await;
        world.engines[1].fail_always(None);
        for _ in 0..2 {
            assert_eq!(world.chat().await.status(), 200);
        }
        assert!(world.received(CHAT)[0] >= 1);
    }

    #[tokio::test]
    async fn a_switch_of_protocols_that_nobody_asked_for_is_no_answer() {
        let world = answering(
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nhello",
            "",
        )
        .await;
        assert_eq!(world.chat().await.status(), 502);
        assert_eq!(tries(&world), 1);
    }

    #[tokio::test]
    async fn an_answer_of_our_own_is_whole_over_http2() {
        for (fault, status, code) in [
            (Fault::Garbage, 502, "backend_failed"),
            (Fault::StallBeforeResponse, 504, "backend_timeout"),
        ] {
            let world = failing(&fault, "timeouts: {first_byte: 100ms}").await;
            let (mut client, _driver) = h2_client(world.address).await;
            let response = h2_chat(&mut client, &stream_of(1)).await.unwrap();
            assert_eq!(response.status(), status);
            let length: usize = response.headers()["content-length"]
                .to_str()
                .unwrap()
                .parse()
                .unwrap();
            let (mut stream, mut body) = (response.into_body(), Vec::new());
            while let Some(data) = stream.data().await {
                body.extend_from_slice(&data.unwrap());
            }
            assert_eq!(body.len(), length);
            let body: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body["error"]["code"], code);
        }
    }
}
