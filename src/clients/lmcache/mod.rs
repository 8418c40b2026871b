//! What is asked of LMCache: which instance holds a prompt, and what it shall do with it.
//!
//! Called by `background`, and by `proxy` for the lookup that a request waits for. Every call has a deadline and a bound
//! on its answer; the breaker is asked before each. It does not decide what is asked, or on which instance.

mod controller;
mod coordinator;

use super::breaker::{Breaker, State};
use super::call::{CallError, Reason};
use super::endpoint::{Endpoint, Post};
use super::retry::retry;
use super::throttle::Throttle;
use crate::config::{self, KvCache, LmcacheApi};
use bytes::Bytes;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Instances that are taken from an answer.
const INSTANCES_MAX: usize = 1024;
/// The longest name that is taken from an answer.
const NAME_BYTES_MAX: usize = 256;
/// The longest answer to a control action that is taken.
const ACTED_BYTES_MAX: usize = 64 * 1024;
const LOOKUP: &str = "lookup";

/// One LMCache controller or coordinator.
pub struct Lmcache {
    endpoint: Endpoint,
    api: LmcacheApi,
    retry: config::Retry,
    request_timeout: Duration,
    control_timeout: Duration,
    breaker: Arc<Breaker>,
    failures: Throttle,
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
            request_timeout: config.request_timeout,
            control_timeout: config.control_timeout,
            breaker,
            failures: Throttle::default(),
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
        type Read = fn(&[u8], usize) -> Result<Vec<Placement>, Undecodable>;
        let ((path, body), answer_bytes_max, read): (_, _, Read) = match self.api {
            LmcacheApi::Controller => {
                (controller::lookup(tokens), controller::LOOKUP_BYTES_MAX, controller::read_placements)
            }
            LmcacheApi::Coordinator => {
                let lookup = coordinator::lookup(model, cache_salt, tokens);
                (lookup, coordinator::LOOKUP_BYTES_MAX, coordinator::read_placements)
            }
        };
        let post = Post { operation: LOOKUP, path, body, authorization: None, answer_bytes_max, time: None };
        let attempt = || {
            let deadline = deadline.min(Instant::now() + self.request_timeout);
            self.attempt(&post, deadline, |answer| read(answer, tokens.len()))
        };
        let may = |error: &CallError| error.may_retry_lookup() && self.is_called();
        let result = retry(&self.retry, Some(deadline), may, rand::random, attempt).await;
        match &result {
            Ok(placements) => {
                let (cluster, instances) = (self.breaker.cluster(), placements.len());
                tracing::debug!(cluster, tokens = tokens.len(), instances, "[kvcache] lookup");
            }
            Err(error) => self.failures.tell(&self.breaker, error),
        }
        result
    }

    /// Has an instance do something with a prompt, each attempt within `control_timeout`; made again only when nothing
    /// was sent. It is not to be dropped while it runs: an instance whose call is cut off takes no other. A coordinator
    /// pins for the whole fleet, and only what was cached without a salt.
    ///
    /// # Errors
    /// Of the last attempt; [`Reason::Unsupported`] where the protocol has no such action.
    pub async fn act(&self, action: &Action, model: &str, tokens: &[u32]) -> Result<Acted, CallError> {
        type Read = fn(&[u8], usize) -> Result<Acted, Undecodable>;
        let (request, read): (_, Read) = match self.api {
            LmcacheApi::Controller => (Some(controller::act(action, tokens)), controller::read_acted),
            LmcacheApi::Coordinator => (coordinator::act(action, model, tokens), coordinator::read_acted),
        };
        let operation = action.name();
        let (path, body) = request.ok_or(CallError::new(operation, Reason::Unsupported))?;
        let post = Post {
            operation,
            path,
            body,
            authorization: None,
            answer_bytes_max: ACTED_BYTES_MAX,
            // All of it, however long it waited: a call that is cut off leaves the instance unable to act.
            time: Some(self.control_timeout),
        };
        let attempt = || {
            let deadline = Instant::now() + self.control_timeout;
            self.attempt(&post, deadline, |answer| read(answer, tokens.len()))
        };
        let may = |error: &CallError| error.may_retry_action() && self.is_called();
        let result = retry(&self.retry, None, may, rand::random, attempt).await;
        if let Err(error) = &result {
            self.failures.tell(&self.breaker, error);
        }
        result
    }

    /// Whether another attempt would be let through, so that none is waited for in vain.
    fn is_called(&self) -> bool {
        self.breaker.state(Instant::now()) != State::Open
    }

    async fn attempt<T>(
        &self,
        post: &Post<'_>,
        deadline: Instant,
        read: impl FnOnce(&[u8]) -> Result<T, Undecodable>,
    ) -> Result<T, CallError> {
        let call = async {
            let answer = self.endpoint.post(post, deadline).await?;
            read(&answer)
                .map_err(|Undecodable(what)| CallError::new(post.operation, Reason::Undecodable(what)))
        };
        self.breaker.guard(post.operation, deadline, call).await
    }
}

/// What an answer lacks, in words of our own.
struct Undecodable(&'static str);

/// Whether a name is as long as names of other systems may be in the configuration.
fn is_short(name: &str) -> bool {
    name.len() <= NAME_BYTES_MAX
}

/// A value as JSON, which holds so many tokens.
fn body(value: &impl Serialize, tokens: usize) -> Bytes {
    // Six digits and a comma are the most that a token takes in today's vocabularies.
    let mut bytes = Vec::with_capacity(128 + 7 * tokens);
    let written = serde_json::to_writer(&mut bytes, value);
    debug_assert!(written.is_ok(), "numbers and text are always JSON");
    bytes.into()
}
