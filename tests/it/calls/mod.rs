//! The calls to the tokenizer and to LMCache: what is sent, what is made of the answers, and what of failures.
//!
//! The servers are the mocks, or recorded answers of real ones that a mock writes as they are. Nothing answers late here:
//! a server answers or stays silent, so that no test depends on how long something takes.

mod action;
mod breaker;
mod cache;
mod coordinator;
mod endpoint;
mod load;
pub(crate) mod log;
mod lookup;
mod retry;
mod tokenizer;

use bytes::Bytes;
use kvway::clients::breaker::{Breaker, State};
use kvway::clients::lmcache::Lmcache;
use kvway::config::{CircuitBreaker, KvCache, LmcacheApi, Retry};
use mocks::{Controller, ControllerOptions, Fault};
use prometheus::{IntCounterVec, Opts};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Longer than any answer takes that comes at all.
const LONG: Duration = Duration::from_mins(1);

fn soon() -> Instant {
    Instant::now() + LONG
}

fn transitions() -> IntCounterVec {
    IntCounterVec::new(Opts::new("transitions", "of breakers"), &["cluster", "breaker", "state"]).unwrap()
}

fn breaker_of(config: &CircuitBreaker) -> Arc<Breaker> {
    Arc::new(Breaker::new("lmcache", "chat", config, transitions()))
}

/// A section whose waits are as short as can be and whose bounds are as wide as a test needs.
fn section(address: SocketAddr) -> KvCache {
    let url = Some(format!("http://{address}"));
    KvCache {
        enabled: true,
        vllm_endpoint: url.clone(),
        lmcache_endpoint: url,
        request_timeout: LONG,
        control_timeout: LONG,
        retry: Retry {
            max_attempts: 3,
            base_backoff: Duration::from_millis(1),
            max_backoff: Duration::from_millis(1),
        },
        circuit_breaker: CircuitBreaker {
            failure_threshold: 2,
            recovery_timeout: LONG,
            half_open_max_calls: 1,
        },
        ..KvCache::default()
    }
}

/// An LMCache and its client.
struct Cache {
    server: Controller,
    client: Lmcache,
    breaker: Arc<Breaker>,
}

impl Cache {
    fn new() -> Self {
        Self::with(ControllerOptions::default(), |_| {})
    }

    fn coordinator() -> Self {
        Self::with(ControllerOptions::default(), |section| section.lmcache_api = LmcacheApi::Coordinator)
    }

    fn with(options: ControllerOptions, change: impl FnOnce(&mut KvCache)) -> Self {
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let server = Controller::start(options).unwrap();
        let mut section = section(server.address());
        change(&mut section);
        let breaker = breaker_of(&section.circuit_breaker);
        let client = Lmcache::new(&section, Arc::clone(&breaker)).unwrap();
        Self { server, client, breaker }
    }

    fn calls(&self, path: &str) -> u64 {
        self.server.stats().path(path).received
    }

    fn state(&self) -> State {
        self.breaker.state(Instant::now())
    }

    /// The body of the last request on a path.
    fn sent(&self, path: &str) -> String {
        let received = self.server.received();
        let last = received.iter().rfind(|request| request.path_and_query == path).unwrap();
        assert_eq!(last.header("content-type"), Some("application/json"));
        String::from_utf8(last.body.to_vec()).unwrap()
    }
}

/// An answer that a mock writes as it stands, and closes the connection after, as it says.
fn raw(status: u16, body: &str) -> Fault {
    let length = body.len();
    written(&format!("HTTP/1.1 {status} x\ncontent-type: application/json\ncontent-length: {length}"), body)
}

fn written(head: &str, body: &str) -> Fault {
    let head = head.replace('\n', "\r\n");
    Fault::Raw(Bytes::from(format!("{head}\r\nconnection: close\r\n\r\n{body}")))
}

/// The recorded section of a title: its lines, without the title.
fn recorded(file: &str, title: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden").join(file);
    let text = std::fs::read_to_string(path).unwrap();
    let after =
        text.split_once(&format!("### {title}\n")).unwrap_or_else(|| panic!("no {title} in {file}")).1;
    after.split("\n### ").next().unwrap().trim().to_owned()
}

/// A recorded answer of the controller or of the tokenizer: status line, headers, body.
fn recorded_answer(file: &str, title: &str) -> Fault {
    let section = recorded(file, title);
    let (head, body) = section.split_once("\n\n").unwrap_or((&section, ""));
    written(head.trim(), body.trim())
}

/// The first so many numbers.
fn tokens(count: u32) -> Vec<u32> {
    (0..count).collect()
}
