//! Streams: events pass one by one, nobody is kept waiting or working for nothing, and a stream that breaks looks broken.

mod breaking;
mod deadlines;
mod events;
mod leaving;
mod odd_answers;
mod pressure;

use crate::clients::Http2;
use crate::world::{Plan, World, stream_of, until};
use bytes::Bytes;
use h2::client::ResponseFuture;
use http::Request;
use mocks::{EngineOptions, Fault, SseOptions};
use serde_json::Value;
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
        self.start(STREAM_HEAD).await
    }

    /// Takes one request and answers `head`.
    pub(crate) async fn start(&self, head: &[u8]) -> TcpStream {
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
        socket.write_all(head).await.unwrap();
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

/// Sends a chat request over HTTP/2.
pub(crate) fn h2_chat(client: &mut Http2, body: &Value) -> ResponseFuture {
    let request = Request::post(format!("http://gateway{CHAT}")).body(()).unwrap();
    let (response, mut stream) = client.sender.send_request(request, false).unwrap();
    stream.send_data(body.to_string().into(), true).unwrap();
    response
}

/// Sends a chat request over HTTP/1.1 by hand.
async fn raw_chat(world: &World, body: &Value) -> TcpStream {
    let mut socket = TcpStream::connect(world.address).await.unwrap();
    let body = body.to_string();
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: gateway\r\ncontent-length: {}\r\n\r\n", body.len());
    socket.write_all((head + &body).as_bytes()).await.unwrap();
    socket
}

/// One engine with these options.
async fn world(sse: SseOptions, sections: &str) -> World {
    World::with(Plan {
        engines: vec![EngineOptions { sse, ..EngineOptions::default() }],
        sections: sections.to_owned(),
        ..Plan::default()
    })
    .await
}

/// Two engines that both meet `fault`.
async fn failing(fault: &Fault, sections: &str) -> World {
    let world = World::with(Plan { sections: sections.to_owned(), ..Plan::default() }).await;
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
