//! The data plane: one request, front to back. Read the files in the order of the request.
//!
//! | phase of Pingora | here | file |
//! |---|---|---|
//! | connection accepted | permits; limits on silence and headers | [`guard`], [`connection`] |
//! | `request_filter` | body in, prompt, route, hint; the body is kept for replay | [`body`], [`prompt`] ([`json`], [`key`]), [`prefix`], [`route`], [`hint`], [`replay`] |
//! | `upstream_peer` (per try) | candidates, what each has cached, the balancer's pick, the choice | [`cluster`], [`demand`], [`balancer`], [`peer`], [`decision`] |
//! | `upstream_request_filter` | the backend's header | [`upstream`] |
//! | `upstream_response_filter`, `response_body_filter` | status, first token, usage | [`response`] ([`sse`]) |
//! | `error_while_proxy`, `fail_to_connect` | another try? | [`retry`], [`deadline`] ([`alarm`]) |
//! | `fail_to_proxy` | an answer of our own | [`reject`] |
//! | `logging` | the books are closed, metrics, access log | [`ending`] |
//!
//! [`request`] is the context that goes with a request from its first phase to its last. [`explain`] goes the same way as far
//! as the choice, and sends nothing.

pub mod alarm;
pub mod balancer;
pub mod bell;
pub mod body;
pub mod cluster;
pub mod connection;
pub mod deadline;
pub mod decision;
pub mod demand;
pub mod ending;
pub mod explain;
pub mod guard;
pub mod hint;
pub mod json;
pub mod key;
pub mod peer;
pub mod prefix;
pub mod prompt;
pub mod reject;
pub mod replay;
pub mod request;
pub mod response;
pub mod retry;
pub mod route;
pub mod sse;
pub mod upstream;

use crate::access_log::AccessLog;
use crate::config::{Limits, Retries, Timeouts};
use crate::metrics::Metrics;
use crate::state::budget::Budget;
use crate::state::lifecycle::Lifecycle;
use crate::state::models::ModelList;
use crate::state::recent::Recent;
use async_trait::async_trait;
use body::Failure;
use bytes::Bytes;
use cluster::Cluster;
use connection::Connection;
use deadline::{Deadlines, Missed};
use decision::Decision;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, RETRY_AFTER};
use http::{HeaderValue, Method, StatusCode};
use key::Pseudonyms;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, Result};
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use prompt::{Prompt, Reading};
use reject::Reject;
use request::RequestCtx;
use retry::{Cause, RetryBudget};
use route::Routes;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// The header that carries a request's id, from the client or made here.
pub const REQUEST_ID: &str = "x-request-id";

/// The header that tells which backend was chosen, and why; one that a backend sends is replaced.
pub const DECISION: &str = "x-kvway-decision";

/// The path whose answer is merged from all clusters.
const MODELS_PATH: &str = "/v1/models";

/// Everything that requests share.
pub struct Gateway {
    /// See [`Limits`].
    pub limits: Limits,
    /// See [`Timeouts`].
    pub timeouts: Timeouts,
    /// See [`Retries`].
    pub retries: Retries,
    /// The clusters in configuration order.
    pub clusters: Vec<Arc<Cluster>>,
    /// Which request goes to which cluster.
    pub routes: Routes,
    /// How much of a body is to be understood.
    pub reading: Reading,
    /// The header that names the tenant.
    pub tenant_header: Option<HeaderName>,
    /// The share of requests that may be retried.
    pub retry_budget: RetryBudget,
    /// The bytes of bodies that may be held.
    pub budget: Arc<Budget>,
    /// The merged model list.
    pub models: Arc<ModelList>,
    /// The last decisions.
    pub decisions: Arc<Recent<Decision>>,
    /// Whether the process drains, and the requests in flight.
    pub lifecycle: Arc<Lifecycle>,
    /// All metrics.
    pub metrics: Arc<Metrics>,
    /// The access log.
    pub access_log: AccessLog,
    /// What it tells the blocks of prompts by; `None` = they are not told.
    pub pseudonyms: Option<Pseudonyms>,
}

/// How the preparation of a request ended early.
enum Stop {
    Answer(Bytes),
    Failure(Failure),
}

impl From<Reject> for Stop {
    fn from(reject: Reject) -> Self {
        Self::Failure(Failure::Reject(reject))
    }
}

impl Gateway {
    /// From the header to the moment at which a backend can be chosen.
    async fn prepare(&self, session: &mut Session, ctx: &mut RequestCtx) -> Result<(), Stop> {
        request::check_header(session.req_header(), &self.limits)?;
        if let Some(answer) = self.model_list(session.req_header()) {
            return Err(Stop::Answer(answer));
        }
        if !self.routes.knows_path(session.req_header().uri.path()) {
            return Err(Reject::no_route().into());
        }
        let body = body::read(session.as_downstream_mut(), &self.limits, &self.timeouts, &self.budget)
            .await
            .map_err(Stop::Failure)?;
        ctx.body_read(&body.bytes);
        let path = session.req_header().uri.path();
        ctx.prompt = understand(&body.bytes, path, self.reading_of(session.req_header())).await;
        ctx.cluster = Some(self.cluster_for(path, ctx.prompt.model.as_deref())?);
        self.retry_budget.pay_in();
        ctx.keep(body.share);
        let deadline = ctx.started + self.timeouts.total;
        ctx.ask_for_hint(session.req_header(), &body.bytes, deadline).await;
        let deadlines = Deadlines::new(&self.timeouts, ctx.started);
        ctx.install(replay::install(session.as_downstream_mut(), body.bytes, deadlines));
        Ok(())
    }

    /// The cluster that a request is routed to.
    fn cluster_for(&self, path: &str, model: Option<&str>) -> Result<Arc<Cluster>, Reject> {
        let index = match self.routes.find(path, model) {
            // Which models there are is only not known yet.
            Err(_) if path == MODELS_PATH => return Err(Reject::no_backend()),
            found => found?,
        };
        self.clusters.get(index).cloned().ok_or_else(Reject::internal)
    }

    /// How much is read of the body of this request.
    fn reading_of(&self, request: &RequestHeader) -> Reading {
        self.reading.of_tenant(self.tenant_header.as_ref().and_then(|name| request.headers.get(name)))
    }

    fn model_list(&self, request: &RequestHeader) -> Option<Bytes> {
        if request.method != Method::GET {
            return None;
        }
        match request.uri.path().strip_prefix(MODELS_PATH)? {
            "" => self.models.listing(),
            rest => self.models.entry(rest.strip_prefix('/')?),
        }
    }

    /// Answers with what the gateway knows itself.
    async fn answer(&self, session: &mut Session, ctx: &mut RequestCtx, body: Bytes) -> Result<()> {
        let mut header = ResponseHeader::build(StatusCode::OK, Some(3))?;
        header.insert_header(CONTENT_TYPE, "application/json")?;
        header.insert_header(CONTENT_LENGTH, body.len())?;
        header.insert_header(REQUEST_ID, ctx.id.clone())?;
        ctx.observer.header(&header);
        let downstream = session.as_downstream_mut();
        if Connection::of(downstream).is_some_and(|connection| connection.body_bytes() > Some(0)) {
            // A body that nobody wants is in the way of the next request.
            downstream.set_keepalive(None);
        }
        session.write_response_header(Box::new(header), false).await?;
        session.write_response_body(Some(body), true).await
    }

    /// Tells the client why not, then reads what it still sends, so that it sees the answer.
    async fn refuse(&self, session: &mut Session, ctx: &mut RequestCtx, reject: Reject) {
        session.as_downstream_mut().set_keepalive(None);
        let sent = reject::send(session, &reject, ctx.id_text()).await;
        ctx.rejected(reject, &self.metrics);
        if sent.is_ok() {
            body::drain(session.as_downstream_mut(), self.limits.drain_bytes_max, self.timeouts.drain).await;
        }
    }

    /// Whether another try may follow a failure of `cause` when the backends in `tried` have failed: the cause is one that
    /// the configuration lists, no byte of an answer was seen, and tries, backends and budget are left. Takes the price.
    fn may_retry(&self, ctx: &RequestCtx, cause: Cause, tried: &[usize]) -> bool {
        let Some(cluster) = &ctx.cluster else { return false };
        if ctx.observer.status.is_some() || !cause.is_among(&self.retries.on) {
            return false;
        }
        let refused = if ctx.tries >= self.retries.tries_max {
            "tries"
        } else if !cluster.has_candidate(tried, cause == Cause::Stale) {
            "backends"
        } else if !self.retry_budget.allows(cause) {
            "budget"
        } else {
            self.metrics.retries.with_label_values(&[cluster.name(), cause.name()]).inc();
            return true;
        };
        self.metrics.retries_refused.with_label_values(&[cluster.name(), refused]).inc();
        false
    }

    /// Books a failed try, and decides on another.
    fn try_failed(&self, ctx: &mut RequestCtx, cause: Option<Cause>) -> bool {
        ctx.try_failed(cause);
        let again = cause.filter(|&cause| {
            // A status was decided on, and paid for, when the answer's header was thrown away.
            matches!(cause, Cause::Status(_)) || self.may_retry(ctx, cause, &ctx.tried)
        });
        if let Some(cause) = again {
            ctx.try_again(cause);
        }
        again.is_some()
    }

    /// Whether an answer with this header is thrown away for another try.
    fn discards(&self, header: &ResponseHeader, ctx: &RequestCtx) -> Option<Cause> {
        let cause = Cause::of_status(header.status).filter(|_| !header.headers.contains_key(RETRY_AFTER))?;
        let tried: Vec<usize> = ctx.tried.iter().copied().chain(ctx.backend_index()).collect();
        self.may_retry(ctx, cause, &tried).then_some(cause)
    }
}

/// Reads the body, away from the async workers where it is long.
async fn understand(body: &Bytes, path: &str, reading: Reading) -> Prompt {
    if body.len() <= prompt::INLINE_BYTES_MAX {
        return prompt::parse(body, path, &reading);
    }
    let (body, path) = (body.clone(), path.to_owned());
    tokio::task::spawn_blocking(move || prompt::parse(&body, &path, &reading)).await.unwrap_or_default()
}

#[async_trait]
impl ProxyHttp for Gateway {
    type CTX = RequestCtx;

    fn new_ctx(&self) -> RequestCtx {
        RequestCtx::new(self.lifecycle.enter(), Instant::now())
    }

    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn request_filter(&self, session: &mut Session, ctx: &mut RequestCtx) -> Result<bool> {
        ctx.arrived(session, &self.lifecycle, &self.timeouts);
        match self.prepare(session, ctx).await {
            Ok(()) => Ok(false),
            Err(Stop::Answer(body)) => self.answer(session, ctx, body).await.map(|()| true),
            Err(Stop::Failure(Failure::Reject(reject))) => {
                self.refuse(session, ctx, reject).await;
                Ok(true)
            }
            Err(Stop::Failure(Failure::Broken(error))) => Err(error),
        }
    }

    async fn upstream_peer(&self, session: &mut Session, ctx: &mut RequestCtx) -> Result<Box<HttpPeer>> {
        let none = || Error::new_in(ErrorType::HTTPStatus(StatusCode::SERVICE_UNAVAILABLE.as_u16()));
        let Some(cluster) = ctx.cluster.clone() else {
            return Err(none());
        };
        let now = Instant::now();
        let choice = ctx.choose(&cluster, session.req_header(), now);
        let chosen = choice.chosen();
        self.decisions.record(|| ctx.decided(Arc::clone(&cluster), choice, SystemTime::now()));
        let Some((peer, candidate)) = chosen else {
            ctx.reject = Some(Reject::no_backend());
            return Err(none());
        };
        ctx.start_try(&cluster, session.req_header(), peer, candidate, now).ok_or_else(none)
    }

    fn fail_to_connect(
        &self,
        _: &mut Session,
        _: &HttpPeer,
        ctx: &mut RequestCtx,
        mut error: Box<Error>,
    ) -> Box<Error> {
        let retry = self.try_failed(ctx, Some(Cause::Connect));
        error.set_retry(retry);
        error
    }

    async fn upstream_request_filter(
        &self,
        _session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut RequestCtx,
    ) -> Result<()> {
        ctx.prepare_upstream(request)
    }

    async fn upstream_response_filter(
        &self,
        _session: &mut Session,
        header: &mut ResponseHeader,
        ctx: &mut RequestCtx,
    ) -> Result<()> {
        if header.status == StatusCode::SWITCHING_PROTOCOLS {
            // No upgrade was passed on, so this answers nothing, and what follows it is not HTTP.
            return Err(Error::new_up(ErrorType::InvalidHTTPHeader));
        }
        if header.status.is_informational() {
            return Ok(());
        }
        if let Some(Cause::Status(status)) = self.discards(header, ctx) {
            return Err(Cause::status_error(status));
        }
        let decision = ctx.decision().and_then(|decision| HeaderValue::try_from(decision).ok());
        upstream::prepare_answer(header, &ctx.id, decision)?;
        ctx.answer_started(header, Instant::now());
        Ok(())
    }

    fn response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        _end_of_stream: bool,
        ctx: &mut RequestCtx,
    ) -> Result<Option<Duration>> {
        if let Some(chunk) = body.as_ref().filter(|chunk| !chunk.is_empty()) {
            ctx.chunk(chunk, Instant::now);
        }
        Ok(None)
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        ctx: &mut RequestCtx,
        reused: bool,
    ) -> Box<Error> {
        let final_written =
            session.response_written().is_some_and(|header| !header.status.is_informational());
        if let Some(missed) = Missed::of(&error) {
            error.as_up();
            ctx.missed = Some(missed);
            ctx.reject = Some(Reject::backend_timeout());
        }
        let upstream = *error.esource() == ErrorSource::Upstream;
        let cause = if upstream && !final_written { Cause::of(&error, reused) } else { None };
        let retry = self.try_failed(ctx, cause);
        error.set_retry(retry);
        error
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, ctx: &mut RequestCtx) -> FailToProxy {
        let answered = session.response_written().is_some_and(|header| !header.status.is_informational());
        let client_failed = *error.esource() == ErrorSource::Downstream;
        let mut error_code = 0;
        let nobody_listens = client_failed && request::is_disconnect(error);
        if !answered && !nobody_listens {
            let reject = ctx.reject.take().unwrap_or_else(|| request::reject_for(error));
            error_code = reject.status.as_u16();
            // The real session knows that the connection ends with this answer, and says so.
            ctx.give_back(session);
            let _client_may_be_gone = reject::send(session, &reject, ctx.id_text()).await;
            ctx.rejected(reject, &self.metrics);
        }
        FailToProxy { error_code, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut RequestCtx) {
        ctx.give_back(session);
        if let Some(connection) = Connection::of(session.as_downstream()) {
            connection.end_request();
        }
        ctx.close_books(session, error, self);
    }

    fn request_summary(&self, session: &Session, ctx: &RequestCtx) -> String {
        format!("{} {}", session.req_header().method, ctx.id_text())
    }

    fn suppress_error_log(&self, _: &Session, _: &RequestCtx, _: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _: &Session,
        _: &RequestCtx,
        _: &Error,
        _: ProxyWarnLogContext,
    ) -> bool {
        true
    }
}
