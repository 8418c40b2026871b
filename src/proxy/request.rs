//! The context of one request: what is known of it, what it holds, and how its books are closed.
//!
//! Made by the spine when a header has been read, dropped when the connection has taken the answer; everything that it
//! holds (the place in flight, the share of the budget, the lease at a backend) is given back by being dropped.

use super::cluster::{Choice, Cluster};
use super::connection::{Address, Connection};
use super::deadline::Missed;
use super::decision::Decision;
use super::demand::Demand;
use super::hint::{Abort, Asked, Hint, Why};
use super::peer::{Candidate, Peer};
use super::prompt::Prompt;
use super::reject::Reject;
use super::replay::Installed;
use super::response::Observer;
use super::retry::Cause;
use super::upstream::Client;
use super::{REQUEST_ID, ending};
use crate::config::{Limits, Timeouts};
use crate::metrics::Metrics;
use crate::state::blocks::Expected;
use crate::state::budget::Share;
use crate::state::fleet::Lease;
use crate::state::lifecycle::{InFlight, Lifecycle};
use bytes::Bytes;
use http::HeaderValue;
use http::header::AUTHORIZATION;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::ServerSession;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, Result};
use pingora_proxy::Session;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// Longer ids are replaced by one of ours.
const REQUEST_ID_BYTES_MAX: usize = 128;
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
    /// Where LMCache has its prompt.
    pub hint: Hint,
    /// What its prompt asks of whoever computes it.
    pub demand: Demand,
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
    pub(super) client: Option<Address>,
    tls: bool,
    pub(super) body_bytes: usize,
    pub(super) body_time: Duration,
    pub(super) peer: Option<Peer>,
    pub(super) candidate: Option<Candidate>,
    expected: Option<Expected>,
    pub(super) retried: Vec<&'static str>,
    pub(super) rejected: Option<Reject>,
    lease: Option<Lease>,
    share: Option<Arc<Share>>,
    pub(super) abort: Option<Abort>,
    installed: Option<Installed>,
    /// Bytes of the answer that the real session does not know of.
    pub(super) chunk_bytes: usize,
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
            demand: Demand::default(),
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
            candidate: None,
            expected: None,
            retried: Vec::new(),
            rejected: None,
            lease: None,
            share: None,
            abort: None,
            installed: None,
            chunk_bytes: 0,
            _in_flight: in_flight,
        }
    }

    /// Takes from the session what is needed later, and sets how its connection goes on.
    pub fn arrived(&mut self, session: &mut Session, lifecycle: &Lifecycle, timeouts: &Timeouts) {
        self.id = request_id(session.req_header().headers.get(REQUEST_ID));
        self.client = client(session.as_downstream());
        self.tls = session.digest().is_some_and(|digest| digest.ssl_digest.is_some());
        let idle = timeouts.idle.as_secs().max(1);
        let downstream = session.as_downstream_mut();
        let loose = Connection::of(downstream).is_some_and(|connection| {
            connection.begin_request();
            connection.is_loose()
        });
        downstream.set_pipelining_enabled(loose);
        // Off already for HTTP/1.0 and for a body that was framed twice.
        let keep = downstream.get_keepalive().is_some() && !lifecycle.is_ending();
        downstream.set_keepalive(keep.then_some(idle));
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
        if let Some(prefix) = &self.prompt.prefix {
            cluster.routing.unkeyed_blocks.inc_by(prefix.unkeyed as u64);
        }
        if let Some(hints) = &cluster.hints {
            let authorization = request.headers.get(AUTHORIZATION);
            let asked = Asked { prompt: &self.prompt, body, share, authorization, deadline };
            (self.hint, self.abort) = hints.ask(asked, Instant::now()).await;
        }
        self.demand = cluster.demand(&self.prompt, &self.hint, self.body_bytes);
    }

    /// Chooses a backend for the next try, unless none is left.
    #[must_use]
    pub fn choose(&self, cluster: &Cluster, request: &RequestHeader, now: Instant) -> Choice {
        let stale = self.last_cause == Some(Cause::Stale);
        let candidates = cluster.candidates(&self.tried, stale, &self.demand, &self.hint, now);
        let hash_key = cluster.hash_key(request, self.client.as_ref(), &self.demand);
        cluster.choose(candidates, &self.hint, &hash_key, rand::random())
    }

    /// A choice for the next try, as it is told later.
    #[must_use]
    pub fn decided(&self, cluster: Arc<Cluster>, choice: Choice, time: SystemTime) -> Decision {
        let (model, hint) = (self.prompt.model.clone(), self.hint.clone());
        let decision = Decision::new(cluster, model, &self.demand, hint, choice, time);
        Decision { request_id: Some(self.id_text().into()), number: self.tries + 1, ..decision }
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

    /// Tokens of the prompt that are believed to be cached at the backend chosen; `None` where nobody says anything.
    pub(super) fn matched_tokens(&self) -> Option<usize> {
        let candidate = self.candidate?;
        candidate.source.map(|_| self.demand.tokens - candidate.uncached_tokens).or(candidate.said.lmcache)
    }

    /// The backend of the running try.
    #[must_use]
    pub fn backend_index(&self) -> Option<usize> {
        self.lease.as_ref().map(|lease| lease.backend().index)
    }

    /// Books a try at `peer`, and its prompt as held there from now on; `None` when its address is not known after all.
    pub fn start_try(
        &mut self,
        cluster: &Cluster,
        request: &RequestHeader,
        peer: Peer,
        candidate: Candidate,
        now: Instant,
    ) -> Option<Box<HttpPeer>> {
        let backend = cluster.fleet.backends().get(peer.index)?;
        let connection = cluster.upstreams.get(peer.index)?.peer(backend.resolved()?, request);
        self.tries += 1;
        self.peer = Some(peer);
        self.candidate = Some(candidate);
        self.lease = Some(backend.lease(candidate.uncached_tokens, self.prompt.stream, now));
        cluster.routing.decisions[peer.reason as usize].inc();
        if cluster.rules.policy.weighs_caches() {
            if self.tries == 1 {
                cluster.correct(&self.demand, &self.hint);
            }
            let Demand { block_tokens, keys, .. } = &self.demand;
            self.expected = Some(cluster.blocks.expect(peer.index, keys, *block_tokens));
        }
        Some(connection)
    }

    /// The header for the backend of the running try.
    ///
    /// # Errors
    /// See [`super::upstream::Upstream::prepare`].
    pub fn prepare_upstream(&self, request: &mut RequestHeader) -> Result<()> {
        let client = Client {
            address: self.client.as_ref().map(Address::value),
            tls: self.tls,
            request_id: &self.id,
            body_bytes: self.body_bytes,
        };
        let upstream = self
            .cluster
            .as_ref()
            .zip(self.peer)
            .and_then(|(cluster, peer)| cluster.upstreams.get(peer.index));
        upstream.map_or(Ok(()), |upstream| upstream.prepare(request, &client))
    }

    /// A final header passes: no retry can follow, so the body's share is given back.
    pub fn answer_started(&mut self, header: &ResponseHeader, now: Instant) {
        self.observer.header(header);
        self.share = None;
        if !header.status.is_success() {
            self.refused();
        } else if !self.observer.is_stream {
            self.first_token(now);
        }
        self.count_try(ending::status_label(header.status.as_u16()));
    }

    /// The prompt has been computed: it is no longer pending, and in the cache for sure.
    fn first_token(&mut self, now: Instant) {
        self.observer.first_token = Some(now);
        match &mut self.lease {
            Some(lease) if self.observer.is_stream => lease.first_token(now),
            Some(lease) => lease.answered(),
            None => {}
        }
        if let Some((mut expected, cluster)) = self.expected.take().zip(self.cluster.as_ref()) {
            expected.confirm();
            let Demand { tokens, block_tokens, keys } = &self.demand;
            cluster.blocks.spend(expected.backend(), tokens.saturating_sub(keys.len() * block_tokens));
        }
    }

    /// The answer is no success: the prompt is neither pending nor in the cache.
    fn refused(&mut self) {
        self.expected = None;
        if let Some(lease) = &self.lease {
            lease.answered();
        }
    }

    /// A chunk of the answer passes. Only in a stream it matters when.
    pub fn chunk(&mut self, chunk: &Bytes, now: impl FnOnce() -> Instant) {
        self.observer.chunk(chunk);
        if !self.observer.is_stream {
            return;
        }
        let now = now();
        if self.observer.brings_first_token(chunk) {
            self.first_token(now);
        }
        if let Some(seconds) = self.observer.chunk_of_stream(now)
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
        self.expected = None;
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
            self.chunk_bytes = installed.uninstall(session.as_downstream_mut());
        }
    }

    pub(super) fn backend_metrics(&self) -> Option<&crate::metrics::BackendMetrics> {
        self.cluster.as_ref()?.backend_metrics.get(self.peer?.index)
    }

    fn count_try(&self, outcome: &str) {
        if let Some(metrics) = self.backend_metrics() {
            metrics.tried(outcome);
        }
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

/// The address of whoever sent a request.
#[must_use]
pub fn client(session: &ServerSession) -> Option<Address> {
    match Connection::of(session) {
        Some(connection) => connection.client(),
        None => Some(session.client_addr()?.as_inet()?.ip().into()),
    }
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
}
