//! What is asked of LMCache: which instance holds a prompt, and what it shall do with it.
//!
//! Called by `background`, and by `proxy` for the lookup that a request waits for. Every call has a deadline and a bound
//! on its answer; the breaker is asked before each. It does not decide what is asked, or on which instance.

mod controller;
mod coordinator;

use super::breaker::Breaker;
use super::call::{CallError, Reason, guarded};
use super::endpoint::{Endpoint, Post};
use super::retry::retry;
use super::throttle::Throttle;
use crate::config::{self, KvCache, LmcacheApi};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// From one line about failures of an operation to the next.
const TOLD_EVERY: Duration = Duration::from_secs(5);
/// The longest answer to a control action that is taken.
const ACTED_BYTES_MAX: usize = 64 * 1024;
const LOOKUP: &str = "lookup";

/// One LMCache controller or coordinator.
pub struct Lmcache {
    endpoint: Endpoint,
    api: LmcacheApi,
    retry: config::Retry,
    control_timeout: Duration,
    breaker: Arc<Breaker>,
    told: Throttle,
}

/// What an instance is believed to hold of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// LMCache's name of the engine.
    pub instance: String,
    /// Where in the instance.
    pub location: String,
    /// How many of the prompt's tokens: at least one, at most all.
    pub tokens: usize,
}

/// What an instance shall do with a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Keep it.
    Pin {
        /// Where.
        instance: String,
        /// Where in the instance.
        location: String,
    },
    /// Keep it in less space.
    Compress {
        /// Where.
        instance: String,
        /// Where in the instance.
        location: String,
        /// How.
        method: String,
    },
    /// Give it up.
    Evict {
        /// Where.
        instance: String,
    },
    /// Give up everything at a location, whatever the prompt.
    Clear {
        /// Where.
        instance: String,
        /// Where in the instance.
        location: String,
    },
}

impl Action {
    /// As a label, and the operation of its errors.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Pin { .. } => "pin",
            Self::Compress { .. } => "compress",
            Self::Evict { .. } => "evict",
            Self::Clear { .. } => "clear",
        }
    }
}

/// What an action did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acted {
    /// How many tokens it concerned, as the server counts them.
    pub tokens: u64,
}

impl Lmcache {
    /// The LMCache of a cluster. Without an endpoint in the configuration every call fails as
    /// [`Reason::NoEndpoint`].
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(config: &KvCache, breaker: Arc<Breaker>) -> reqwest::Result<Self> {
        Ok(Self {
            endpoint: Endpoint::new(config.lmcache(), config)?,
            api: config.lmcache_api,
            retry: config.retry.clone(),
            control_timeout: config.control_timeout,
            breaker,
            told: Throttle::new(TOLD_EVERY),
        })
    }

    /// Which instances hold how much of a prompt. Attempts and waits between them end at the deadline.
    ///
    /// # Errors
    /// Of the last attempt.
    pub async fn look_up(
        &self,
        model: &str,
        cache_salt: Option<&str>,
        tokens: &[u32],
        deadline: Instant,
    ) -> Result<Vec<Placement>, CallError> {
        let (path, body, answer_bytes_max) = match self.api {
            LmcacheApi::Controller => controller::lookup(tokens),
            LmcacheApi::Coordinator => coordinator::lookup(model, cache_salt, tokens),
        };
        let post = Post { operation: LOOKUP, path, body, authorization: None, answer_bytes_max };
        let read = |answer: &[u8]| match self.api {
            LmcacheApi::Controller => controller::read_placements(answer, tokens.len()),
            LmcacheApi::Coordinator => coordinator::read_placements(answer, tokens.len()),
        };
        let attempt = || {
            let deadline = deadline.min(Instant::now() + self.endpoint.call_max());
            self.attempt(&post, deadline, read)
        };
        let result =
            retry(&self.retry, Some(deadline), CallError::may_retry_lookup, rand::random, attempt).await;
        match &result {
            Ok(placements) => tracing::debug!(
                cluster = self.breaker.cluster(),
                tokens = tokens.len(),
                instances = placements.len(),
                "[kvcache] lookup"
            ),
            Err(error) => self.tell(error),
        }
        result
    }

    /// Has an instance do something with a prompt, within `control_timeout`. Made again only when nothing was sent.
    ///
    /// # Errors
    /// Of the last attempt.
    pub async fn act(&self, action: &Action, model: &str, tokens: &[u32]) -> Result<Acted, CallError> {
        let operation = action.name();
        let unsupported = CallError::new(operation, Reason::Unsupported);
        let request = match self.api {
            LmcacheApi::Controller => Some(controller::act(action, tokens)),
            LmcacheApi::Coordinator => coordinator::act(action, model, tokens),
        };
        let (path, body) = request.ok_or(unsupported)?;
        let post = Post { operation, path, body, authorization: None, answer_bytes_max: ACTED_BYTES_MAX };
        let read = match self.api {
            LmcacheApi::Controller => controller::read_acted,
            LmcacheApi::Coordinator => coordinator::read_acted,
        };
        let attempt = || self.attempt(&post, Instant::now() + self.control_timeout, read);
        let result = retry(&self.retry, None, CallError::may_retry_action, rand::random, attempt).await;
        if let Err(error) = &result {
            self.tell(error);
        }
        result
    }

    async fn attempt<T>(
        &self,
        post: &Post<'_>,
        deadline: Instant,
        read: impl Fn(&[u8]) -> Result<T, Undecodable>,
    ) -> Result<T, CallError> {
        if deadline <= Instant::now() {
            return Err(CallError::new(post.operation, Reason::Timeout));
        }
        guarded(&self.breaker, post.operation, async {
            let answer = self.endpoint.post(post, deadline).await?;
            read(&answer)
                .map_err(|Undecodable(what)| CallError::new(post.operation, Reason::Undecodable(what)))
        })
        .await
    }

    fn tell(&self, error: &CallError) {
        if let Some(kept_back) = self.told.admit(error.operation, Instant::now()) {
            tracing::warn!(cluster = self.breaker.cluster(), kept_back, "[kvcache] {error}");
        }
    }
}

/// What an answer lacks, in words of our own.
struct Undecodable(&'static str);

/// A JSON body of at most so many tokens.
fn body(value: &impl serde::Serialize, tokens: usize) -> Bytes {
    // Six digits and a comma are the most that a token takes in today's vocabularies.
    let mut bytes = Vec::with_capacity(128 + 7 * tokens);
    let written = serde_json::to_writer(&mut bytes, value);
    debug_assert!(written.is_ok(), "numbers and text are always JSON");
    bytes.into()
}
