//! What clients do: requests on connections of their own, streams, connections that rest.

use mocks::{Engine, EngineOptions};
use serde_json::{Value, json};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The path of chat requests.
pub(crate) const CHAT: &str = "/v1/chat/completions";

/// An engine of this name.
pub(crate) fn engine(id: &str) -> Engine {
    engine_with(id, EngineOptions::default())
}

/// An engine of this name with options.
pub(crate) fn engine_with(id: &str, options: EngineOptions) -> Engine {
    let id = id.to_owned();
    Engine::start(EngineOptions { id, ..options }).unwrap()
}

/// A client that makes a new connection for every request.
pub(crate) fn fresh() -> reqwest::Client {
    // Fails only where a test of this process has installed it before.
    let _installed = rustls::crypto::ring::default_provider().install_default().is_ok();
    reqwest::Client::builder()
        .no_proxy()
        .pool_max_idle_per_host(0)
        .retry(reqwest::retry::never())
        .timeout(crate::gateway::PATIENCE)
        .build()
        .unwrap()
}

/// A chat request; `events`: as a stream of so many.
pub(crate) fn chat(text: &str, events: Option<usize>) -> Value {
    let mut request =
        json!({"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 3});
    if let Some(events) = events {
        request["max_tokens"] = events.into();
        request["stream"] = true.into();
        request["stream_options"] = json!({"include_usage": true});
    }
    request
}

/// A connection that is kept, and nothing else: what it says is written by hand.
pub(crate) struct Connection(TcpStream);

impl Connection {
    /// Connects.
    pub(crate) async fn open(address: SocketAddr) -> std::io::Result<Self> {
        TcpStream::connect(address).await.map(Self)
    }

    /// Asks for `path` and reads the answer, which must tell its length; its status.
    pub(crate) async fn get(&mut self, path: &str) -> std::io::Result<u16> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: gateway\r\n\r\n");
        self.0.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        loop {
            if self.0.read_buf(&mut answer).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let text = String::from_utf8_lossy(&answer);
            let Some((head, body)) = text.split_once("\r\n\r\n") else {
                continue;
            };
            let head = head.to_ascii_lowercase();
            let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            let length: usize = header("content-length:").unwrap().parse().unwrap();
            if body.len() >= length {
                let status = head.split(' ').nth(1).unwrap();
                return Ok(status.parse().unwrap());
            }
        }
    }
}
