//! The books of a mock: counters per path, and the last requests as they came.
//!
//! Bounded: 4096 requests with the first 16 KiB of their bodies, 256 paths (further ones are counted as `other`).

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

use super::answer::Answer;
use super::request::{Head, lossy};

const RECEIVED_MAX: usize = 4096;
const BODY_KEPT_BYTES: usize = 16 * 1024;
const PATHS_MAX: usize = 256;

/// What happened to the requests on one path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PathStats {
    /// Requests whose head has arrived.
    pub received: u64,
    /// Answers handed to the socket to their last byte.
    pub served: u64,
    /// Requests that met a fault or whose body could not be read.
    pub failed: u64,
    /// Requests whose client left before the answer had ended.
    pub cancelled: u64,
    /// Requests that are none of that yet.
    pub in_flight: u64,
}

/// The counters of a mock.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// By path, without its query.
    pub paths: BTreeMap<String, PathStats>,
    /// Requests answered 400, 413 or 431 because they were no HTTP or too large.
    pub refused: u64,
    /// Connections accepted since the start or the last reset.
    pub connections_accepted: u64,
    /// Connections open now.
    pub connections_open: u64,
}

impl Stats {
    /// The counters of one path; zeros when nothing asked for it.
    #[must_use]
    pub fn path(&self, path: &str) -> PathStats {
        self.paths.get(path).copied().unwrap_or_default()
    }

    /// Answers given in full on `path`.
    #[must_use]
    pub fn served(&self, path: &str) -> u64 {
        self.path(path).served
    }

    /// Requests on `path` that the client gave up.
    #[must_use]
    pub fn cancelled(&self, path: &str) -> u64 {
        self.path(path).cancelled
    }

    /// Requests on `path` being answered now.
    #[must_use]
    pub fn in_flight(&self, path: &str) -> u64 {
        self.path(path).in_flight
    }

    /// All counters as JSON, after `named` ones.
    pub(crate) fn page(&self, mut named: Map<String, Value>) -> Answer {
        if let Ok(Value::Object(own)) = serde_json::to_value(self) {
            named.extend(own);
        }
        Answer::json(200, Value::Object(named).to_string())
    }

    fn slot(&mut self, key: &str) -> &mut PathStats {
        self.paths.entry(key.to_owned()).or_default()
    }
}

/// How a request said where its body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// No body.
    None,
    /// `content-length`.
    ContentLength,
    /// `transfer-encoding: chunked`.
    Chunked,
}

/// One request as it came.
#[derive(Debug, Clone)]
pub struct Received {
    /// The method.
    pub method: String,
    /// The request target.
    pub path_and_query: String,
    /// The headers in their order, with their case.
    pub headers: Vec<(String, String)>,
    /// Size of the decoded body.
    pub body_bytes: usize,
    /// SHA-256 of the decoded body in hex.
    pub body_sha256: String,
    /// How the body was framed.
    pub framing: Framing,
    /// Which connection it came on, counted from 1.
    pub connection_id: u64,
    /// The first 16 KiB of the decoded body.
    pub body: Bytes,
    /// The head, byte for byte, with its empty line.
    pub head: Bytes,
}

impl Received {
    /// The first header of this name, in whatever case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

#[derive(Debug, Default)]
struct Ledger {
    stats: Stats,
    connections: u64,
    received: VecDeque<Received>,
}

#[derive(Debug, Clone)]
pub(crate) struct Books {
    record: bool,
    ledger: Arc<Mutex<Ledger>>,
    changed: Arc<Notify>,
}

impl Books {
    pub(super) fn new(record: bool) -> Self {
        Self { record, ledger: Arc::default(), changed: Arc::default() }
    }

    pub(crate) fn stats(&self) -> Stats {
        self.ledger.lock().stats.clone()
    }

    pub(super) fn received(&self) -> Vec<Received> {
        self.ledger.lock().received.iter().cloned().collect()
    }

    pub(crate) fn forget(&self) {
        {
            let mut ledger = self.ledger.lock();
            ledger.received.clear();
            ledger.stats.refused = 0;
            ledger.stats.connections_accepted = ledger.stats.connections_open;
            ledger.stats.paths.retain(|_, path| path.in_flight > 0);
            for path in ledger.stats.paths.values_mut() {
                *path =
                    PathStats { received: path.in_flight, in_flight: path.in_flight, ..PathStats::default() };
            }
        }
        self.changed.notify_waiters();
    }

    pub(super) async fn until(&self, condition: impl Fn(&Stats) -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if condition(&self.ledger.lock().stats) {
                return;
            }
            changed.await;
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Ledger) -> T) -> T {
        let result = change(&mut self.ledger.lock());
        self.changed.notify_waiters();
        result
    }

    /// Counts a connection until the guard is dropped.
    pub(super) fn connect(&self) -> Connected {
        let id = self.change(|ledger| {
            ledger.connections += 1;
            ledger.stats.connections_accepted += 1;
            ledger.stats.connections_open += 1;
            ledger.connections
        });
        Connected { books: self.clone(), id }
    }

    /// Counts a request that could not be read.
    pub(super) fn refuse(&self) {
        self.change(|ledger| ledger.stats.refused += 1);
    }

    /// Opens the entry of a request whose head has arrived.
    pub(super) fn open(&self, path: &str) -> Entry {
        let path = self.change(|ledger| {
            let paths = &ledger.stats.paths;
            let known = paths.len() < PATHS_MAX || paths.contains_key(path);
            let path = if known { path } else { "other" };
            let slot = ledger.stats.slot(path);
            slot.received += 1;
            slot.in_flight += 1;
            path.to_owned()
        });
        Entry { books: self.clone(), path, end: End::Open }
    }

    /// Notes a request that was read to its end.
    pub(super) fn record(&self, head: &Head, body: &Bytes, connection_id: u64) {
        if !self.record {
            return;
        }
        let received = Received {
            method: head.method().to_owned(),
            path_and_query: head.target().to_owned(),
            headers: head.headers().map(|(name, value)| (name.to_owned(), lossy(value))).collect(),
            body_bytes: body.len(),
            body_sha256: hex_sha256(body),
            framing: head.framing(),
            connection_id,
            // A copy, since a slice would keep the whole body alive.
            body: Bytes::copy_from_slice(body.get(..BODY_KEPT_BYTES).unwrap_or(body)),
            head: head.bytes(),
        };
        let mut ledger = self.ledger.lock();
        if ledger.received.len() == RECEIVED_MAX {
            ledger.received.pop_front();
        }
        ledger.received.push_back(received);
    }
}

fn hex_sha256(body: &[u8]) -> String {
    Sha256::digest(body).iter().fold(String::with_capacity(64), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// Counts as an open connection while it lives.
#[derive(Debug)]
pub(super) struct Connected {
    books: Books,
    pub(super) id: u64,
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.books.change(|ledger| ledger.stats.connections_open -= 1);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Being answered; dropped like this, the client has left.
    Open,
    /// The last piece was handed to the socket.
    Served,
    /// Met a fault.
    Failed,
}

/// The entry of one request. Its end is noted when it is dropped, at the latest.
#[derive(Debug)]
pub(super) struct Entry {
    books: Books,
    path: String,
    end: End,
}

impl Entry {
    /// Notes the end before the last piece is written, so that who reads the answer finds it counted.
    pub(super) fn close(&mut self, end: End) {
        if self.end == End::Open && end != End::Open {
            self.end = end;
            self.books.change(|ledger| {
                let slot = ledger.stats.slot(&self.path);
                slot.in_flight -= 1;
                match end {
                    End::Served => slot.served += 1,
                    End::Failed => slot.failed += 1,
                    End::Open => {}
                }
            });
        }
    }

    /// Takes back [`close`](Self::close): the last piece could not be written.
    pub(super) fn reopen(&mut self) {
        if self.end == End::Served {
            self.end = End::Open;
            self.books.change(|ledger| {
                let slot = ledger.stats.slot(&self.path);
                slot.served = slot.served.saturating_sub(1);
                slot.in_flight += 1;
            });
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.end == End::Open {
            self.books.change(|ledger| {
                let slot = ledger.stats.slot(&self.path);
                slot.in_flight -= 1;
                slot.cancelled += 1;
            });
        }
    }
}
