//! One server that is called over HTTP, and one bounded call to it.
//!
//! Used by `lmcache` and `vllm`. Bounded: calls in flight where configured, bytes of an answer, time by a deadline. It
//! takes no proxy from the environment, follows no redirect, makes no call twice, and keeps nothing of an answer that it
//! refuses.

use super::call::{CallError, Reason};
use crate::config::KvCache;
use bytes::Bytes;
use http::HeaderValue;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use reqwest::{Client, ClientBuilder, RequestBuilder};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

/// Shorter than the 5 s after which a real server closes an idle connection, so that no call meets a closing one.
const IDLE: Duration = Duration::from_secs(3);

/// A server of a cluster's cache.
pub struct Endpoint {
    client: Client,
    base: Option<String>,
    calls: Option<Semaphore>,
}

/// What is sent: JSON, and whose it is.
#[derive(Clone)]
pub struct Post<'a> {
    /// What is done, for errors.
    pub operation: &'static str,
    /// The path after the base.
    pub path: &'a str,
    /// The JSON.
    pub body: Bytes,
    /// For the header of that name.
    pub authorization: Option<&'a HeaderValue>,
    /// The longest answer that is taken.
    pub answer_bytes_max: usize,
    /// How long the call may take once it has its place among those in flight; `None` = until the deadline.
    pub time: Option<Duration>,
}

/// A client with what all calls have in common.
pub(super) fn builder() -> ClientBuilder {
    Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).pool_idle_timeout(IDLE)
}

impl Endpoint {
    /// The server at `base`, a URL without a trailing `/`; without it every call fails as [`Reason::NoEndpoint`].
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(base: Option<&str>, config: &KvCache) -> reqwest::Result<Self> {
        let mut builder = builder().connect_timeout(config.request_timeout);
        let bounds = [config.max_idle_conns, config.max_idle_conns_per_host];
        if let Some(idle) = bounds.into_iter().filter(|bound| *bound > 0).min() {
            builder = builder.pool_max_idle_per_host(idle);
        }
        let calls = (config.max_conns_per_host > 0).then(|| Semaphore::new(config.max_conns_per_host));
        let base = base.map(str::to_owned);
        Ok(Self { client: builder.build()?, base, calls })
    }

    /// Sends JSON and takes the answer of a success. The place among the calls in flight is waited for until the deadline,
    /// and so is the answer unless the call says otherwise.
    ///
    /// # Errors
    /// See [`Reason`].
    pub async fn post(&self, post: &Post<'_>, deadline: Instant) -> Result<Vec<u8>, CallError> {
        let operation = post.operation;
        let base = self.base.as_deref().ok_or(CallError::new(operation, Reason::NoEndpoint))?;
        let busy = CallError::new(operation, Reason::Busy);
        let _place = match &self.calls {
            Some(calls) => {
                Some(timeout_at(deadline, calls.acquire()).await.map_err(|_| busy)?.map_err(|_| busy)?)
            }
            None => None,
        };
        let mut request = self.client.post(format!("{base}{}", post.path)).body(post.body.clone());
        request = request.header(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(value) = post.authorization {
            let mut value = value.clone();
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let deadline = post.time.map_or(deadline, |time| Instant::now() + time);
        match timeout_at(deadline, answer(operation, request, post.answer_bytes_max)).await {
            Ok(answer) => answer,
            Err(_elapsed) => Err(CallError::new(operation, Reason::Timeout)),
        }
    }
}

/// The body of a successful answer, if it is not longer than it may be.
///
/// # Errors
/// See [`Reason`].
pub async fn answer(
    operation: &'static str,
    request: RequestBuilder,
    bytes_max: usize,
) -> Result<Vec<u8>, CallError> {
    let failed = |error: reqwest::Error| CallError::from_reqwest(operation, &error);
    let mut response = request.send().await.map_err(failed)?;
    if !response.status().is_success() {
        return Err(CallError::new(operation, Reason::Status(response.status().as_u16())));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        if body.len() + chunk.len() > bytes_max {
            return Err(CallError::new(operation, Reason::TooLong(bytes_max)));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}
