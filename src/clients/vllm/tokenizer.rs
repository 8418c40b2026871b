//! Asking an engine for the tokens of a prompt.
//!
//! Called by `background`. Bounded by a deadline and in the bytes of the answer; never retried. What is asked for is the
//! caller's: a client's own body, or [`prompt_form`].

use crate::clients::breaker::Breaker;
use crate::clients::call::{CallError, Reason};
use crate::clients::endpoint::{Endpoint, Post};
use crate::clients::throttle::Throttle;
use crate::config::{KvCache, Secret};
use bytes::Bytes;
use http::HeaderValue;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The longest answer that is taken: a million tokens, their texts included.
const ANSWER_BYTES_MAX: usize = 32 * 1024 * 1024;
const OPERATION: &str = "tokenize";

/// The tokens of a prompt.
pub type Tokens = Arc<[u32]>;

/// The engine that tokenizes for a cluster.
pub struct Tokenizer {
    endpoint: Endpoint,
    authorization: Option<HeaderValue>,
    breaker: Arc<Breaker>,
    failures: Throttle,
    request_timeout: Duration,
}

impl Tokenizer {
    /// The tokenizer of a cluster. Without an endpoint in the configuration every call fails as [`Reason::NoEndpoint`].
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(config: &KvCache, api_key: Option<&Secret>, breaker: Arc<Breaker>) -> reqwest::Result<Self> {
        let bearer = |key: &Secret| HeaderValue::try_from(format!("Bearer {}", key.expose())).ok();
        Ok(Self {
            endpoint: Endpoint::new(config.tokenizer(), config)?,
            authorization: api_key.and_then(bearer),
            breaker,
            failures: Throttle::default(),
            request_timeout: config.request_timeout,
        })
    }

    /// Sends `body` as it is to `/tokenize`. `authorization` is the client's own, for engines whose key we do not have.
    ///
    /// # Errors
    /// See [`Reason`].
    pub async fn tokenize(
        &self,
        body: Bytes,
        authorization: Option<&HeaderValue>,
        deadline: Instant,
    ) -> Result<Tokens, CallError> {
        let authorization = self.authorization.as_ref().or(authorization);
        let post = Post {
            operation: OPERATION,
            path: "/tokenize",
            body,
            authorization,
            answer_bytes_max: ANSWER_BYTES_MAX,
            time: None,
        };
        let deadline = deadline.min(Instant::now() + self.request_timeout);
        let call = async { read(&self.endpoint.post(&post, deadline).await?) };
        let result = self.breaker.guard(OPERATION, deadline, call).await;
        if let Err(error) = &result {
            self.failures.tell(&self.breaker, error);
        }
        result
    }
}

/// The body that asks for the tokens of a prompt without roles.
#[must_use]
pub fn prompt_form(model: &str, prompt: &str) -> Bytes {
    #[derive(Serialize)]
    struct Form<'a> {
        model: &'a str,
        prompt: &'a str,
    }
    let form = serde_json::to_vec(&Form { model, prompt });
    debug_assert!(form.is_ok(), "text is always JSON");
    form.unwrap_or_default().into()
}

fn read(answer: &[u8]) -> Result<Tokens, CallError> {
    #[derive(Deserialize)]
    struct Answer {
        tokens: Vec<u32>,
    }
    let lost = CallError::new(OPERATION, Reason::Undecodable("no list of tokens"));
    serde_json::from_slice(answer).map_err(|_| lost).map(|Answer { tokens }| tokens.into())
}
