//! Prompt → [`Hint`]: where the prompt is believed to be cached, and why nothing is believed where nothing is.
//!
//! Asked by the spine once per body, used by [`super::peer`] on every try. At most one lookup is awaited, under a deadline;
//! identical lookups in flight share one call. What is left to do is handed over to the background, which no request waits
//! for. A hint is never a reason to fail.

use super::key::Secret;
use super::prompt::{Form, Prompt};
use crate::clients::breaker::Breaker;
use crate::clients::call::{CallError, Reason};
use crate::clients::lmcache::{Lmcache, Placement};
use crate::config::KvCache;
use crate::metrics::{By, KvCacheMetrics};
use crate::state::budget::Share;
use crate::state::flights::Flights;
use crate::state::hotness::Hotness;
use crate::state::inbox::{self, Found, Inbox, Job, Text};
use crate::state::tokens::{PromptKey, TokenCache, Tokens};
use bytes::Bytes;
use http::HeaderValue;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

/// A backend at which a part of the prompt is believed to be cached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Match {
    /// Its place in the fleet.
    pub index: usize,
    /// Tokens of the prompt, from its start, at least 1.
    pub tokens: usize,
}

/// Where the prompt of a request is believed to be cached.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Hint {
    /// One entry per backend that is believed to hold some of it.
    pub matches: Vec<Match>,
    /// Why there are none.
    pub why: Option<Why>,
    /// Tokens of the prompt, where they have been counted.
    pub prompt_tokens: Option<usize>,
}

/// Why a hint was not given, or not followed.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Why {
    /// The cluster has no `kvcache`.
    Off,
    /// The body has no prompt that is understood.
    NoPrompt,
    /// The body has several prompts.
    SeveralPrompts,
    /// The prompt has not been tokenized yet.
    TokensUnknown,
    /// The prompt has fewer tokens than `lookup_tokens_min`.
    TooShort,
    /// LMCache has nothing of it.
    NoMatch,
    /// LMCache has it at instances that no backend is named after.
    UnknownInstance,
    /// The answer did not come in time.
    Timeout,
    /// LMCache could not be asked, or its answer not be read.
    Failed,
    /// LMCache is not asked for a while, after failures.
    BreakerOpen,
    /// The backends that have it cannot take a try: unhealthy, tried already, or without an address.
    Unavailable,
    /// The backends that have it have too many requests in flight.
    Overloaded,
    /// The policy does not go by hints.
    Policy,
}

impl Why {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Off,
        Self::NoPrompt,
        Self::SeveralPrompts,
        Self::TokensUnknown,
        Self::TooShort,
        Self::NoMatch,
        Self::UnknownInstance,
        Self::Timeout,
        Self::Failed,
        Self::BreakerOpen,
        Self::Unavailable,
        Self::Overloaded,
        Self::Policy,
    ];

    fn of(error: &CallError) -> Self {
        match error.reason {
            Reason::Timeout => Self::Timeout,
            Reason::BreakerOpen => Self::BreakerOpen,
            _ => Self::Failed,
        }
    }

    /// Its name in logs and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::NoPrompt => "no_prompt",
            Self::SeveralPrompts => "several_prompts",
            Self::TokensUnknown => "tokens_unknown",
            Self::TooShort => "too_short",
            Self::NoMatch => "no_match",
            Self::UnknownInstance => "unknown_instance",
            Self::Timeout => "timeout",
            Self::Failed => "failed",
            Self::BreakerOpen => "breaker_open",
            Self::Unavailable => "unavailable",
            Self::Overloaded => "overloaded",
            Self::Policy => "policy",
        }
    }
}

impl Hint {
    /// No hint.
    #[must_use]
    pub fn none(why: Why) -> Self {
        Self { matches: Vec::new(), why: Some(why), prompt_tokens: None }
    }

    /// A hint at these backends; none of them means that nothing matched.
    #[must_use]
    pub fn of(matches: Vec<Match>) -> Self {
        let why = matches.is_empty().then_some(Why::NoMatch);
        Self { matches, why, prompt_tokens: None }
    }

    /// Whether something is said of this backend.
    #[must_use]
    pub fn names(&self, backend: usize) -> bool {
        self.matches.iter().any(|found| found.index == backend)
    }
}

/// What a cluster's requests ask about caches, and of whom.
pub struct Hints {
    /// The settings.
    pub config: KvCache,
    /// With what prompts are keyed.
    pub secret: Secret,
    /// Which prompts are hot.
    pub hotness: Arc<Hotness>,
    /// The tokens of prompts that were seen before.
    pub tokens: Arc<TokenCache>,
    /// Where jobs are handed over to the background.
    pub inbox: Arc<Inbox>,
    /// Who is asked where tokens are cached.
    pub lmcache: Arc<Lmcache>,
    /// The same for [`Self::look`], which runs on another runtime.
    pub lmcache_for_explain: Lmcache,
    /// The breaker before LMCache, shared with the background.
    pub lmcache_breaker: Arc<Breaker>,
    /// The breaker before the tokenizer, which only the background calls.
    pub tokenizer_breaker: Arc<Breaker>,
    /// The backends by LMCache's name for them; as many as are configured.
    pub instances: HashMap<String, usize>,
    /// The lookups in flight.
    pub lookups: Flights<PromptKey, Result<Arc<[Placement]>, CallError>>,
    /// Whether the policy goes by hints; if not, no request waits for a lookup.
    pub awaited: bool,
    /// What is counted.
    pub metrics: KvCacheMetrics,
    /// Whether the log has told of an instance that is no backend.
    pub told: AtomicBool,
}

/// A request whose body has been read.
pub struct Asked<'a> {
    /// What the body says.
    pub prompt: &'a Prompt,
    /// The body.
    pub body: &'a Bytes,
    /// The body's share of the budget.
    pub share: &'a Arc<Share>,
    /// What the client proves itself with.
    pub authorization: Option<&'a HeaderValue>,
    /// When the request must have ended.
    pub deadline: Instant,
}

/// Cancels a request's job in the background, when the client has aborted the request.
pub type Abort = CancellationToken;

impl Hints {
    /// Records the access, looks the prompt up where its tokens are known, and hands over what is left to do.
    pub async fn ask(&self, asked: Asked<'_>, now: Instant) -> (Hint, Option<Abort>) {
        let prompt = asked.prompt;
        let model = self.model(prompt);
        let accessed = prompt.text_key(&self.secret, model);
        let hot = accessed.is_some_and(|key| self.hotness.record(key, now));
        self.metrics.hotness.hot.inc_by(u64::from(hot));
        let key = prompt.key(&self.secret, model);
        let tokens = self.tokens_of(prompt, key, now);
        let (mut hint, found) = match self.question(prompt, tokens.as_ref()) {
            Ok(tokens) => self.look_up(key, model, prompt, tokens, asked.deadline, now).await,
            Err(why) => (Hint::none(why), Vec::new()),
        };
        hint.prompt_tokens = tokens.as_ref().map(|tokens| tokens.len());
        let no_work = matches!(hint.why, Some(Why::NoPrompt | Why::SeveralPrompts | Why::TooShort));
        if no_work || self.is_done_with(&found, hot) {
            return (hint, None);
        }
        let what = tokens.map(inbox::Prompt::Tokens).or_else(|| text(&asked, model));
        let abort = what.and_then(|prompt| {
            self.hand_over(Job {
                key,
                model: model.into(),
                cache_salt: asked.prompt.cache_salt.as_deref().map(Arc::from),
                prompt,
                found,
                hot,
                handed_over: Instant::now(),
                aborted: Abort::new(),
            })
        });
        (hint, abort)
    }

    /// What [`Self::ask`] would find for `prompt` now, by a call of its own where that would make one. It records no access, and
    /// hands nothing over.
    pub async fn look(&self, prompt: &Prompt, deadline: Instant, now: Instant) -> Hint {
        let (model, salt) = (self.model(prompt), prompt.cache_salt.as_deref());
        let tokens = self.tokens_of(prompt, prompt.key(&self.secret, model), now);
        let mut hint = match self.question(prompt, tokens.as_ref()) {
            Ok(tokens) => {
                let deadline = self.deadline(deadline, now);
                let lookup = self.lmcache_for_explain.look_up(model, salt, tokens, deadline);
                let answer = timeout_at(deadline, lookup).await;
                let answer = answer.as_ref().map(|told| told.as_deref()).map_err(|_elapsed| ());
                self.understand(By::Explain, answer).0
            }
            Err(why) => Hint::none(why),
        };
        hint.prompt_tokens = tokens.as_ref().map(|tokens| tokens.len());
        hint
    }

    /// Sets the gauges from the state.
    pub fn render_metrics(&self, now: Instant) {
        let gauge = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        let metrics = &self.metrics;
        metrics.jobs_waiting.set(gauge(self.inbox.waiting()));
        metrics.jobs_running.set(gauge(self.inbox.running()));
        metrics.queue_bytes.set(gauge(self.inbox.bytes()));
        metrics.hotness.prompts.set(gauge(self.hotness.keys()));
        metrics.token_cache.entries.set(gauge(self.tokens.entries()));
        metrics.token_cache.bytes.set(gauge(self.tokens.bytes()));
        for breaker in [&self.lmcache_breaker, &self.tokenizer_breaker] {
            metrics.set_breaker_state(breaker.name(), breaker.state(now) as i64);
        }
    }

    /// The model by which LMCache knows what a prompt is for.
    fn model<'p>(&'p self, prompt: &'p Prompt) -> &'p str {
        prompt.model.as_deref().unwrap_or(&self.config.default_model)
    }

    /// The tokens of a prompt, where they are known.
    fn tokens_of(&self, prompt: &Prompt, key: PromptKey, now: Instant) -> Option<Tokens> {
        match &prompt.form {
            Form::Tokens(tokens) => Some(Arc::clone(tokens)),
            Form::Body | Form::Alone(_) if self.config.token_cache.enabled => self.tokens.get(key, now),
            _ => None,
        }
    }

    /// What LMCache is to be asked while somebody waits, or why it is not.
    fn question<'t>(&self, prompt: &Prompt, tokens: Option<&'t Tokens>) -> Result<&'t Tokens, Why> {
        match (&prompt.form, tokens) {
            (Form::None, _) => Err(Why::NoPrompt),
            (Form::Several, _) => Err(Why::SeveralPrompts),
            (_, None) => Err(Why::TokensUnknown),
            (_, Some(tokens)) if tokens.len() < self.config.lookup_tokens_min || tokens.is_empty() => {
                Err(Why::TooShort)
            }
            (_, Some(_)) if !self.awaited => Err(Why::Policy),
            (_, Some(tokens)) => Ok(tokens),
        }
    }

    /// When a lookup that somebody waits for from `now` on must have ended.
    fn deadline(&self, deadline: Instant, now: Instant) -> Instant {
        deadline.min(now + self.config.lookup_routing_timeout.min(self.config.request_timeout))
    }

    /// The one lookup that a request waits for.
    async fn look_up(
        &self,
        key: PromptKey,
        model: &str,
        prompt: &Prompt,
        tokens: &Tokens,
        deadline: Instant,
        now: Instant,
    ) -> (Hint, Vec<Found>) {
        let deadline = self.deadline(deadline, now);
        let (lmcache, tokens) = (Arc::clone(&self.lmcache), Arc::clone(tokens));
        let (model, salt) = (model.to_owned(), prompt.cache_salt.clone());
        let lookup = self.lookups.join(key, move || async move {
            lmcache.look_up(&model, salt.as_deref(), &tokens, deadline).await.map(Arc::from)
        });
        let answer = timeout_at(deadline, lookup).await;
        self.metrics.lookup_seconds.observe(now.elapsed().as_secs_f64());
        let answer = answer.as_ref().map(|told| told.as_deref()).map_err(|_elapsed| ());
        self.understand(By::Request, answer)
    }

    /// What the answer to a lookup means; `Err(())` = there was none in time.
    fn understand(&self, by: By, answer: Result<Result<&[Placement], &CallError>, ()>) -> (Hint, Vec<Found>) {
        let (outcome, told) = match answer {
            Err(()) => ("timeout", (Hint::none(Why::Timeout), Vec::new())),
            Ok(Err(error)) => (error.kind(), (Hint::none(Why::of(error)), Vec::new())),
            Ok(Ok([])) => ("no_match", (Hint::of(Vec::new()), Vec::new())),
            Ok(Ok(placements)) => ("match", self.locate(placements)),
        };
        self.metrics.lookup(by, outcome);
        told
    }

    /// The backends among the instances that LMCache names.
    fn locate(&self, placements: &[Placement]) -> (Hint, Vec<Found>) {
        let index = |placement: &Placement| self.instances.get(&placement.instance).copied();
        let known = placements
            .iter()
            .filter_map(|placement| Some(Match { index: index(placement)?, tokens: placement.tokens }));
        let mut hint = Hint::of(known.collect());
        let unknown = placements.iter().filter(|placement| index(placement).is_none());
        self.metrics.unknown_instances.inc_by(unknown.clone().count() as u64);
        if let Some(stranger) = unknown.clone().next()
            && !self.told.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(
                cluster = self.metrics.cluster(),
                instance = stranger.instance,
                "[kvcache] LMCache names an instance that no backend is: give one its name as id or lmcache_instance_id"
            );
        }
        if hint.matches.is_empty() {
            hint.why = Some(Why::UnknownInstance);
        }
        let found = placements.iter().map(|placement| Found {
            instance: placement.instance.clone(),
            location: placement.location.clone(),
            tokens: placement.tokens,
        });
        (hint, found.collect())
    }

    /// Whether nothing is left for the background: the prompt was found, and there is nothing to do about it.
    fn is_done_with(&self, found: &[Found], hot: bool) -> bool {
        let strategy = &self.config.cache_strategy;
        let may_act =
            strategy.enable_compression || strategy.enable_eviction || strategy.enable_pinning && hot;
        !found.is_empty() && !may_act
    }

    fn hand_over(&self, job: Job) -> Option<Abort> {
        let abort = job.aborted.clone();
        match self.inbox.push(job) {
            Ok(()) => Some(abort),
            Err(refusal) => {
                self.metrics.job_dropped(refusal.label());
                None
            }
        }
    }
}

/// What the tokenizer is to be sent.
fn text(asked: &Asked<'_>, model: &str) -> Option<inbox::Prompt> {
    let body = asked.prompt.tokenizer_body(asked.body, model)?;
    let (authorization, share) = (asked.authorization.cloned(), Some(Arc::clone(asked.share)));
    Some(inbox::Prompt::Text(Text { body, authorization, share }))
}
