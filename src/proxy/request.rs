//! The context of one request: what is known of it, what it holds, and how its books are closed.
//!
//! Made by the spine when a header has been read, dropped when the connection has taken the answer; everything that it
//! holds (the place in flight, the share of the budget, the lease at a backend) is given back by being dropped.

use super::cluster::Cluster;
use super::deadline::Missed;
use super::hint::{Abort, Asked, Hint, Why};
use super::peer::Peer;
use super::prompt::Prompt;
use super::reject::Reject;
use super::replay::Installed;
use super::response::Observer;
use super::retry::Cause;
use super::upstream::Client;
use super::{Gateway, REQUEST_ID, connection};
use crate::access_log::Entry;
use crate::config::{Limits, Timeouts};
use crate::metrics::Metrics;
use crate::state::budget::Share;
use crate::state::fleet::Lease;
use crate::state::lifecycle::{InFlight, Lifecycle};
use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderValue, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, Result};
use pingora_proxy::Session;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// Longer ids are replaced by one of ours.
const REQUEST_ID_BYTES_MAX: usize = 128;
/// What a client that left before its answer is logged with; no such status is ever sent.
const CLIENT_GONE: u16 = 499;
/// Causes of retries that are kept for the access log.
const RETRIES_LOGGED_MAX: usize = 16;

/// One request.
pub struct RequestCtx {
    /// When its header had been read.
    pub started: Instant,
    /// Its id.
    pub id: HeaderValue,
    /// What its body says.
    pub prompt: Prompt,
    /// Where its prompt is believed to be cached.
    pub hint: Hint,
    /// Where it is routed to.
    pub cluster: Option<Arc<Cluster>>,
    /// Tries made.
    pub tries: usize,
    /// Backends that failed it.
    pub tried: Vec<usize>,
    /// Why the try before this one failed.
    pub last_cause: Option<Cause>,
    /// What the client is to be told, where that is known before the end.
    pub reject: Option<Reject>,
    /// The deadline that ended it.
    pub missed: Option<Missed>,
    /// What its answer told.
    pub observer: Observer,
    client: Option<IpAddr>,
    tls: bool,
    body_bytes: usize,
    body_time: Duration,
    peer: Option<Peer>,
    retried: Vec<&'static str>,
    rejected: Option<Reject>,
    lease: Option<Lease>,
    share: Option<Arc<Share>>,
    abort: Option<Abort>,
    installed: Option<Installed>,
    _in_flight: InFlight,
}

impl RequestCtx {
    /// A request of which only the header has been read.
    #[must_use]
    pub fn new(in_flight: InFlight, started: Instant) -> Self {
        Self {
            started,
            id: HeaderValue::from_static(""),
            prompt: Prompt::default(),
            hint: Hint::none(Why::Off),
            cluster: None,
            tries: 0,
            tried: Vec::new(),
            last_cause: None,
            reject: None,
            missed: None,
            observer: Observer::default(),
            client: None,
            tls: false,
            body_bytes: 0,
            body_time: Duration::ZERO,
            peer: None,
            retried: Vec::new(),
            rejected: None,
            lease: None,
            share: None,
            abort: None,
            installed: None,
            _in_flight: in_flight,
        }
    }

    /// Takes from the session what is needed later, and sets how its connection goes on.
    pub fn arrived(&mut self, session: &mut Session, lifecycle: &Lifecycle, timeouts: &Timeouts) {
        self.id = request_id(session.req_header().headers.get(REQUEST_ID));
        self.client =
            session.client_addr().and_then(|address| address.as_inet()).map(std::net::SocketAddr::ip);
        self.tls = session.digest().is_some_and(|digest| digest.ssl_digest.is_some());
        let idle = timeouts.idle.as_secs().max(1);
        let downstream = session.as_downstream_mut();
        connection::set_in_request(downstream, true);
        // Off already for HTTP/1.0 and for a body that was framed twice.
        let keep = downstream.get_keepalive().is_some() && !lifecycle.is_ending();
        downstream.set_keepalive(keep.then_some(idle));
        downstream.set_pipelining_enabled(true);
        downstream.set_read_timeout(Some(timeouts.body));
        downstream.set_write_timeout(Some(timeouts.between_bytes));
    }

    /// The id as text.
    #[must_use]
    pub fn id_text(&self) -> &str {
        self.id.to_str().unwrap_or_default()
    }

    /// The whole body is here.
    pub fn body_read(&mut self, body: &Bytes) {
        self.body_bytes = body.len();
        self.body_time = self.started.elapsed();
    }

    /// Keeps the body's share of the budget until the answer starts.
    pub fn keep(&mut self, share: Share) {
        self.share = Some(Arc::new(share));
    }

    /// Keeps the real session to the end.
    pub fn install(&mut self, installed: Installed) {
        self.installed = Some(installed);
    }

    /// Asks where the prompt is cached, where the cluster does; the request must have ended by `deadline`.
    pub async fn ask_for_hint(&mut self, request: &RequestHeader, body: &Bytes, deadline: Instant) {
        let Some((cluster, share)) = self.cluster.as_ref().zip(self.share.as_ref()) else { return };
        let Some(hints) = &cluster.hints else { return };
        let authorization = request.headers.get(AUTHORIZATION);
        let asked = Asked { prompt: &self.prompt, body, share, authorization, deadline };
        (self.hint, self.abort) = hints.ask(asked, Instant::now()).await;
    }

    /// What is told about the choice, where the cluster tells.
    #[must_use]
    pub fn decision(&self) -> Option<String> {
        let cluster = self.cluster.as_ref().filter(|cluster| cluster.decision_header)?;
        let peer = self.peer?;
        let backend = &cluster.fleet.backends().get(peer.index)?.id;
        let told = format!("{backend}; reason={}; hint={}", peer.reason.name(), peer.hint_name());
        let matched = self.matched_tokens().map(|tokens| format!("; matched_tokens={tokens}"));
        Some(told + matched.as_deref().unwrap_or_default())
    }

    /// Tokens of the prompt that are believed to be cached at the backend chosen; `None` where nothing is believed.
    fn matched_tokens(&self) -> Option<usize> {
        let index = self.peer?.index;
        let at_peer = self.hint.matches.iter().filter(|found| found.index == index);
        at_peer.map(|found| found.tokens).max()
    }

    /// The backend of the running try.
    #[must_use]
    pub fn backend_index(&self) -> Option<usize> {
        self.lease.as_ref().map(|lease| lease.backend().index)
    }

    /// Books a try at `peer`; `None` when its address is not known after all.
    pub fn start_try(&mut self, cluster: &Cluster, peer: Peer) -> Option<Box<HttpPeer>> {
        let backend = cluster.fleet.backends().get(peer.index)?;
        let connection = cluster.upstreams.get(peer.index)?.peer(backend.resolved()?);
        self.tries += 1;
        self.peer = Some(peer);
        self.lease = Some(backend.lease(self.body_bytes));
        Some(connection)
    }

    /// The header for the backend of the running try.
    ///
    /// # Errors
    /// See [`super::upstream::Upstream::prepare`].
    pub fn prepare_upstream(&self, request: &mut RequestHeader) -> Result<()> {
        let client =
            Client { address: self.client, tls: self.tls, request_id: &self.id, body_bytes: self.body_bytes };
        let upstream = self
            .cluster
            .as_ref()
            .zip(self.peer)
            .and_then(|(cluster, peer)| cluster.upstreams.get(peer.index));
        upstream.map_or(Ok(()), |upstream| upstream.prepare(request, &client))
    }

    /// A final header passes: no retry can follow, so the body's share is given back.
    pub fn answer_started(&mut self, header: &ResponseHeader) {
        self.observer.header(header);
        self.share = None;
        if !self.observer.is_stream
            && let Some(lease) = &mut self.lease
        {
            lease.first_token();
        }
        self.count_try(status_label(header.status.as_u16()));
    }

    /// A chunk of the answer passes.
    pub fn chunk(&mut self, chunk: &Bytes, now: Instant) {
        if self.observer.first_chunk.is_none()
            && let Some(lease) = &mut self.lease
        {
            lease.first_token();
        }
        if let Some(seconds) = self.observer.chunk(chunk, now)
            && let Some(metrics) = self.backend_metrics()
        {
            metrics.token_gap_seconds.observe(seconds);
        }
    }

    /// The running try failed: it leaves the books.
    pub fn try_failed(&mut self, cause: Option<Cause>) {
        self.last_cause = cause;
        if self.observer.status.is_none() {
            self.count_try(match (cause, self.missed) {
                (Some(cause), _) => cause.name(),
                (None, Some(_)) => "timeout",
                (None, None) => "cancelled",
            });
        }
        if let Some(lease) = self.lease.take() {
            self.tried.push(lease.backend().index);
        }
    }

    /// Another try follows the one that failed of `cause`.
    pub fn try_again(&mut self, cause: Cause) {
        if self.retried.len() < RETRIES_LOGGED_MAX {
            self.retried.push(cause.name());
        }
    }

    /// The gateway answered itself.
    pub fn rejected(&mut self, reject: Reject, metrics: &Metrics) {
        metrics.rejected.with_label_values(&[reject.reason]).inc();
        self.rejected = Some(reject);
    }

    /// Gives the real session back to Pingora. The first thing at the end of a request.
    pub fn give_back(&mut self, session: &mut Session) {
        if let Some(installed) = self.installed.take() {
            installed.uninstall(session.as_downstream_mut());
        }
    }

    fn backend_metrics(&self) -> Option<&crate::metrics::BackendMetrics> {
        self.cluster.as_ref()?.backend_metrics.get(self.peer?.index)
    }

    fn count_try(&self, outcome: &str) {
        if let Some(metrics) = self.backend_metrics() {
            metrics.tried(outcome);
        }
    }

    /// Status and outcome as they are counted and logged.
    fn outcome(&self, error: Option<&Error>) -> (u16, &'static str) {
        let gone = error.is_some_and(|error| *error.esource() == ErrorSource::Downstream);
        if let Some(reject) = &self.rejected {
            return (reject.status.as_u16(), reject.reason);
        }
        match self.observer.status {
            Some(status) if error.is_none() => (status, "complete"),
            Some(status) if gone => (status, "client_gone"),
            Some(status) if self.missed.is_some() => (status, "deadline"),
            Some(status) => (status, "backend_broke_off"),
            None => (CLIENT_GONE, "client_gone"),
        }
    }

    /// Metrics and access log, at the end of the request.
    pub fn close_books(&mut self, session: &Session, error: Option<&Error>, gateway: &Gateway) {
        let (status, outcome) = self.outcome(error);
        if let Some(abort) = self.abort.take().filter(|_| outcome == "client_gone") {
            abort.cancel();
        }
        let total = self.started.elapsed();
        let cluster_name = self.cluster.as_ref().map_or("", |cluster| cluster.name());
        gateway.metrics.requests.with_label_values(&[cluster_name, status_label(status)]).inc();
        let first_token = self.observer.first_chunk.map(|at| at.duration_since(self.started));
        if let (Some(metrics), Some(first_token)) = (self.backend_metrics(), first_token) {
            metrics.first_token_seconds.observe(first_token.as_secs_f64());
        }
        let usage = self.observer.usage();
        if let Some(cluster) = &self.cluster {
            if let Some((hints, peer)) = cluster.hints.as_ref().zip(self.peer) {
                hints.metrics.hint(peer.hint_name());
            }
            cluster.metrics.request_seconds.observe(total.as_secs_f64());
            if let Some(usage) = &usage {
                cluster.metrics.prompt_tokens.inc_by(usage.prompt_tokens.unwrap_or_default());
                cluster.metrics.completion_tokens.inc_by(usage.completion_tokens.unwrap_or_default());
                cluster.metrics.cached_tokens.inc_by(usage.cached_tokens().unwrap_or_default());
            }
        }
        if !gateway.access_log.is_on() {
            return;
        }
        let request = session.req_header();
        let backends = self.cluster.as_ref().map(|cluster| cluster.fleet.backends());
        gateway.access_log.write(&Entry {
            time: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            request_id: self.id_text(),
            client: self.client,
            protocol: protocol(request.version),
            method: request.method.as_str(),
            path: request.uri.path(),
            status,
            outcome,
            cluster: self.cluster.as_ref().map(|cluster| cluster.name()),
            model: self.prompt.model.as_deref(),
            backend: backends.zip(self.peer).and_then(|(all, peer)| Some(all.get(peer.index)?.id.as_str())),
            reason: self.peer.map(|peer| peer.reason.name()),
            hint: self.peer.map(|peer| peer.hint_name()).filter(|_| self.hint.why != Some(Why::Off)),
            matched_tokens: self.matched_tokens(),
            tries: self.tries,
            retried: &self.retried,
            body_bytes: self.body_bytes,
            answer_bytes: session.as_downstream().body_bytes_sent(),
            body_ms: milliseconds(self.body_time),
            first_token_ms: first_token.map(milliseconds),
            total_ms: milliseconds(total),
            prompt_tokens: usage.and_then(|usage| usage.prompt_tokens),
            cached_tokens: usage.and_then(|usage| usage.cached_tokens()),
            completion_tokens: usage.and_then(|usage| usage.completion_tokens),
        });
    }
}

/// Refuses a header beyond the limits, and one whose length Pingora would not check.
///
/// # Errors
/// 431 when it has too many fields or bytes.
pub fn check_header(request: &RequestHeader, limits: &Limits) -> Result<(), Reject> {
    let fields = request.headers.iter();
    let bytes: usize = fields.map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let target = request.raw_path().len();
    if request.headers.len() > limits.headers_max || bytes + target > limits.header_bytes_max {
        return Err(Reject::header_too_large());
    }
    Ok(())
}

/// Whether an error means that there is nobody left to be told.
#[must_use]
pub fn is_disconnect(error: &Error) -> bool {
    matches!(
        error.etype(),
        ErrorType::WriteError
            | ErrorType::ReadError
            | ErrorType::ConnectionClosed
            | ErrorType::WriteTimedout
            | ErrorType::H2Error
    )
}

/// What the client is told about an error that nobody explained better.
#[must_use]
pub fn reject_for(error: &Error) -> Reject {
    match (error.esource(), error.etype()) {
        (
            ErrorSource::Upstream,
            ErrorType::ConnectTimedout | ErrorType::ReadTimedout | ErrorType::WriteTimedout,
        ) => Reject::backend_timeout(),
        (ErrorSource::Upstream, _) => Reject::backend_failed(),
        (ErrorSource::Downstream, ErrorType::ReadTimedout) => Reject::body_timeout(),
        (ErrorSource::Downstream, _) => Reject::bad_request("The request could not be read."),
        _ => Reject::internal(),
    }
}

/// The client's id where it is short and harmless, else one of ours.
fn request_id(given: Option<&HeaderValue>) -> HeaderValue {
    let harmless = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(byte);
    let usable = |value: &&HeaderValue| {
        let bytes = value.as_bytes();
        !bytes.is_empty() && bytes.len() <= REQUEST_ID_BYTES_MAX && bytes.iter().all(harmless)
    };
    given.filter(usable).cloned().unwrap_or_else(|| {
        let mut buffer = uuid::Uuid::encode_buffer();
        let id = uuid::Uuid::new_v4().simple().encode_lower(&mut buffer);
        HeaderValue::from_str(id).unwrap_or_else(|_| HeaderValue::from_static(""))
    })
}

fn milliseconds(duration: Duration) -> f64 {
    // Microseconds are as fine as anybody reads.
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_11 => "HTTP/1.1",
        _ => "HTTP/1.0",
    }
}

/// Statuses as labels: the usual ones by number, so that a backend cannot invent series.
fn status_label(status: u16) -> &'static str {
    const KNOWN: [(u16, &str); 26] = [
        (200, "200"),
        (201, "201"),
        (202, "202"),
        (204, "204"),
        (206, "206"),
        (301, "301"),
        (302, "302"),
        (304, "304"),
        (307, "307"),
        (400, "400"),
        (401, "401"),
        (403, "403"),
        (404, "404"),
        (405, "405"),
        (408, "408"),
        (409, "409"),
        (413, "413"),
        (422, "422"),
        (429, "429"),
        (431, "431"),
        (499, "499"),
        (500, "500"),
        (501, "501"),
        (502, "502"),
        (503, "503"),
        (504, "504"),
    ];
    KNOWN.iter().find(|(code, _)| *code == status).map_or_else(
        || match status / 100 {
            2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            5 => "5xx",
            _ => "other",
        },
        |(_, label)| label,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_harmless_id_is_kept_and_any_other_replaced() {
        let kept = HeaderValue::from_static("rid-123");
        assert_eq!(request_id(Some(&kept)), kept);
        for bad in ["", "a b", "a\"b", &"x".repeat(129)] {
            let made = request_id(HeaderValue::from_str(bad).ok().as_ref());
            assert_eq!(made.len(), 32, "{bad}");
        }
        assert_ne!(request_id(None), request_id(None));
    }

    #[test]
    fn labels_of_statuses_are_bounded() {
        assert_eq!((status_label(503), status_label(418), status_label(999)), ("503", "4xx", "other"));
    }
}
