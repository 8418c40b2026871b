//! The admin listener: metrics, liveness, readiness; state, decisions and explanations as JSON.
//!
//! Its own listener, on loopback unless configured otherwise, with one thread. Gets what it shows as closures from `app`.
//! Where a token is configured everything but `/healthz` and `/readyz` asks for it. It changes nothing.

use crate::config::Secret;
use crate::state::lifecycle::{Lifecycle, Phase};
use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use http::header::{ALLOW, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderValue, Method, Response, StatusCode};
use pingora::apps::http_app::ServeHttp;
use pingora::protocols::http::ServerSession;
use std::sync::Arc;
use subtle::ConstantTimeEq;

const TEXT: &str = "text/plain; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";
const INDEX: &str = "/metrics\n/state\n/decisions\nPOST /explain\n/healthz\n/readyz\n";

/// Renders something at the moment it is asked for.
pub type Render = Box<dyn Fn() -> String + Send + Sync>;

/// Answers a request by its header and body with a status and JSON. It bounds what it reads.
pub type Explain =
    Box<dyn for<'a> Fn(&'a mut ServerSession) -> BoxFuture<'a, (StatusCode, Bytes)> + Send + Sync>;

/// The one path that is posted to.
const EXPLAIN: &str = "/explain";

/// What the admin listener serves.
pub struct Admin {
    /// Asked for by `/readyz`.
    pub lifecycle: Arc<Lifecycle>,
    /// The bearer token that is asked for, if any.
    pub token: Option<Secret>,
    /// `/metrics`.
    pub metrics: Render,
    /// `/state`.
    pub state: Render,
    /// `/decisions`.
    pub decisions: Render,
    /// `/explain`.
    pub explain: Explain,
}

fn answer(status: StatusCode, content_type: &str, body: impl Into<Vec<u8>>) -> Response<Vec<u8>> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let length = response.body().len();
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, length.into());
    if let Ok(value) = content_type.parse() {
        headers.insert(CONTENT_TYPE, value);
    }
    response
}

impl Admin {
    /// The answer to a request for `path`; not to one that is to be explained.
    #[must_use]
    pub fn respond(&self, method: &Method, path: &str, authorization: Option<&[u8]>) -> Response<Vec<u8>> {
        if let Some(refusal) = self.refusal(method, path, authorization) {
            return refusal;
        }
        match path {
            "/" => answer(StatusCode::OK, TEXT, INDEX),
            "/healthz" => answer(StatusCode::OK, TEXT, "ok\n"),
            "/readyz" => match self.lifecycle.phase() {
                Phase::Running | Phase::Handover => answer(StatusCode::OK, TEXT, "ready\n"),
                Phase::Starting => answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, "starting\n"),
                Phase::Draining => answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, "draining\n"),
            },
            "/metrics" => answer(StatusCode::OK, PROMETHEUS, (self.metrics)()),
            "/state" => answer(StatusCode::OK, JSON, (self.state)()),
            "/decisions" => answer(StatusCode::OK, JSON, (self.decisions)()),
            _ => answer(StatusCode::NOT_FOUND, TEXT, "not found; / lists what is here\n"),
        }
    }

    /// The answer to who may not ask, or not in this way.
    fn refusal(
        &self,
        method: &Method,
        path: &str,
        authorization: Option<&[u8]>,
    ) -> Option<Response<Vec<u8>>> {
        let (served, allowed, message) = if path == EXPLAIN {
            (*method == Method::POST, "POST", "only POST is served here\n")
        } else {
            (matches!(*method, Method::GET | Method::HEAD), "GET", "only GET is served here\n")
        };
        let (status, message, name, value) = if !served {
            (StatusCode::METHOD_NOT_ALLOWED, message, ALLOW, allowed)
        } else if !matches!(path, "/healthz" | "/readyz") && !self.lets_in(authorization) {
            (StatusCode::UNAUTHORIZED, "a bearer token is needed\n", WWW_AUTHENTICATE, "Bearer")
        } else {
            return None;
        };
        let mut response = answer(status, TEXT, message);
        response.headers_mut().insert(name, HeaderValue::from_static(value));
        Some(response)
    }

    fn lets_in(&self, authorization: Option<&[u8]>) -> bool {
        let Some(token) = &self.token else { return true };
        let given = authorization.and_then(|value| value.strip_prefix(b"Bearer ")).unwrap_or_default();
        given.ct_eq(token.expose().as_bytes()).into()
    }
}

#[async_trait]
impl ServeHttp for Admin {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        let request = session.req_header();
        let authorization = request.headers.get(AUTHORIZATION).map(HeaderValue::as_bytes);
        let (method, path) = (&request.method, request.uri.path());
        let response = if path == EXPLAIN && self.refusal(method, path, authorization).is_none() {
            let (status, told) = (self.explain)(session).await;
            answer(status, JSON, told)
        } else {
            self.respond(method, path, authorization)
        };
        if response.status() != StatusCode::OK {
            session.set_keepalive(None);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admin(token: Option<Secret>) -> Admin {
        Admin {
            lifecycle: Lifecycle::new(),
            token,
            metrics: Box::new(|| "m".to_owned()),
            state: Box::new(|| "{}".to_owned()),
            decisions: Box::new(|| "{}".to_owned()),
            explain: Box::new(|_| Box::pin(async { (StatusCode::OK, Bytes::new()) })),
        }
    }

    fn status(admin: &Admin, path: &str, authorization: Option<&[u8]>) -> u16 {
        admin.respond(&Method::GET, path, authorization).status().as_u16()
    }

    #[test]
    fn a_token_guards_all_but_the_probes() {
        let admin = admin(Some(serde_yaml::from_str("tok").unwrap()));
        assert_eq!(status(&admin, "/metrics", None), 401);
        assert_eq!(status(&admin, "/metrics", Some(b"Bearer to")), 401);
        assert_eq!(status(&admin, "/decisions", None), 401);
        assert_eq!(admin.respond(&Method::POST, "/explain", None).status(), 401);
        assert_eq!(status(&admin, "/metrics", Some(b"Bearer tok")), 200);
        assert_eq!(
            (status(&admin, "/healthz", None), status(&admin, "/readyz", None)),
            (200, 503),
            "still starting"
        );
        admin.lifecycle.enter_phase(Phase::Running);
        assert_eq!(status(&admin, "/readyz", None), 200);
    }

    #[test]
    fn a_draining_process_is_not_ready_but_alive() {
        let admin = admin(None);
        admin.lifecycle.enter_phase(Phase::Handover);
        assert_eq!(status(&admin, "/readyz", None), 200, "the successor answers here, too");
        admin.lifecycle.enter_phase(Phase::Draining);
        assert_eq!((status(&admin, "/readyz", None), status(&admin, "/healthz", None)), (503, 200));
    }

    #[test]
    fn nothing_can_be_written_and_nothing_else_is_found() {
        let admin = admin(None);
        assert_eq!(admin.respond(&Method::POST, "/state", None).status(), 405);
        assert_eq!(status(&admin, "/../metrics", None), 404);
        let refused = admin.respond(&Method::GET, "/explain", None);
        assert_eq!(
            (refused.status().as_u16(), &refused.headers()[ALLOW]),
            (405, &HeaderValue::from_static("POST"))
        );
    }
}
