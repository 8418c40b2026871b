//! The course of one job: tokens, lookup, decision, actions. The first step that fails ends it.
//!
//! Called by `jobs` in a task per job. Bounded by the job's own time, and ended at once when the client aborts or the
//! process ends, but never during an action. Identical prompts share the calls that are in flight.

use super::actions::{Actions, Outcome, Subject};
use super::strategy;
use crate::clients::call::CallError;
use crate::clients::lmcache::{Lmcache, Placement};
use crate::clients::vllm::Tokenizer;
use crate::config::KvCache;
use crate::metrics::{By, KvCacheMetrics};
use crate::state::flights::Flights;
use crate::state::inbox::{Found, Job, Prompt, Running};
use crate::state::load::Loads;
use crate::state::tokens::{PromptKey, TokenCache, Tokens};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How a job ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum End {
    /// With nothing left to do.
    Done,
    /// The prompt is too short to be looked up.
    Short,
    /// The client aborted.
    Aborted,
    /// Its time was over.
    Expired,
    /// The process ends.
    Stopped,
    /// Without tokens.
    TokenizerFailed,
    /// Without an answer of LMCache.
    LookupFailed,
    /// With an action that failed.
    ActionFailed,
}

impl End {
    fn label(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Short => "short",
            Self::Aborted => "aborted",
            Self::Expired => "expired",
            Self::Stopped => "stopped",
            Self::TokenizerFailed => "tokenizer_failed",
            Self::LookupFailed => "lookup_failed",
            Self::ActionFailed => "action_failed",
        }
    }
}

/// A prompt, and what keeps its blocks apart.
type Lookup = (PromptKey, Option<Arc<str>>);

/// What every job of a cluster works with.
pub(super) struct Desk {
    pub(super) config: KvCache,
    pub(super) tokenizer: Tokenizer,
    pub(super) lmcache: Arc<Lmcache>,
    pub(super) actions: Actions,
    pub(super) token_cache: Arc<TokenCache>,
    pub(super) loads: Arc<Loads>,
    pub(super) tokenizing: Flights<PromptKey, Option<Tokens>>,
    pub(super) looking_up: Flights<Lookup, Option<Arc<[Found]>>>,
    pub(super) metrics: KvCacheMetrics,
    /// Cancelled when the process ends.
    pub(super) stopping: CancellationToken,
    /// A place for each job that may act at a time.
    pub(super) acting: Arc<Semaphore>,
}

/// Runs a job to its end, and counts it. `worker` is given back when nothing is left to do but to act.
pub(super) async fn run(desk: Arc<Desk>, mut running: Running, worker: Option<OwnedSemaphorePermit>) {
    let end = follow(&desk, &mut running, worker).await;
    desk.metrics.job(end.label());
}

async fn follow(desk: &Arc<Desk>, running: &mut Running, worker: Option<OwnedSemaphorePermit>) -> End {
    let deadline = running.job.handed_over + desk.config.request_timeout;
    let aborted = running.job.aborted.clone();
    let prepared = tokio::select! {
        biased;
        () = aborted.cancelled() => return End::Aborted,
        () = desk.stopping.cancelled() => return End::Stopped,
        prepared = prepare(desk, running, deadline) => prepared,
    };
    let (tokens, found) = match prepared {
        Ok(prepared) => prepared,
        Err(end) => return end,
    };
    let Job { key, model, hot, .. } = &running.job;
    let load_of = |instance: &str| {
        let (load, source) = desk.loads.of(instance, Instant::now());
        desk.metrics.decision(source.label());
        load
    };
    let actions = strategy::decide(&desk.config.cache_strategy, *hot, &found, load_of);
    if actions.is_empty() {
        return End::Done;
    }
    drop(worker);
    let Ok(_acting) = desk.acting.try_acquire() else {
        for action in &actions {
            desk.metrics.action(action.name(), Outcome::Busy.label());
        }
        return End::Expired;
    };
    let stopping = desk.stopping.clone();
    let subject = Subject { key: *key, model: Arc::clone(model), tokens, deadline, aborted, stopping };
    for action in &actions {
        match desk.actions.take(action, &subject).await {
            Outcome::Done | Outcome::NoEffect | Outcome::Withheld | Outcome::Unsupported => {}
            Outcome::Busy | Outcome::Expired => return End::Expired,
            Outcome::Aborted => return End::Aborted,
            Outcome::Stopped => return End::Stopped,
            Outcome::Failed(_) => return End::ActionFailed,
        }
    }
    End::Done
}

/// The tokens of the prompt, and who holds them.
async fn prepare(
    desk: &Arc<Desk>,
    running: &mut Running,
    deadline: Instant,
) -> Result<(Tokens, Arc<[Found]>), End> {
    let in_time = || if Instant::now() < deadline { Ok(()) } else { Err(End::Expired) };
    in_time()?;
    let tokens = tokenize(desk, &running.job, deadline).await.ok_or(End::TokenizerFailed)?;
    running.tokenized(Arc::clone(&tokens));
    if tokens.is_empty() || tokens.len() < desk.config.lookup_tokens_min {
        return Err(End::Short);
    }
    let found = std::mem::take(&mut running.job.found);
    if !found.is_empty() {
        return Ok((tokens, found.into_iter().filter(|found| desk.loads.knows(&found.instance)).collect()));
    }
    in_time()?;
    let found = look_up(desk, &running.job, &tokens, deadline).await.ok_or(End::LookupFailed)?;
    Ok((tokens, found))
}

async fn tokenize(desk: &Arc<Desk>, job: &Job, deadline: Instant) -> Option<Tokens> {
    let text = match &job.prompt {
        Prompt::Tokens(tokens) => return Some(Arc::clone(tokens)),
        Prompt::Text(text) => text,
    };
    let (key, body, authorization) = (job.key, text.body.clone(), text.authorization.clone());
    let desk = Arc::clone(desk);
    let call = {
        let desk = Arc::clone(&desk);
        move || async move {
            if let Some(tokens) = desk.remembered(key) {
                return Some(tokens);
            }
            let timer = desk.metrics.tokenizer_seconds.start_timer();
            let answer = desk.tokenizer.tokenize(body, authorization.as_ref(), deadline).await;
            timer.observe_duration();
            desk.metrics.tokenizer_call(answer.as_ref().map_or_else(CallError::kind, |_| "ok"));
            let tokens = answer.ok()?;
            if desk.config.token_cache.enabled {
                desk.token_cache.insert(key, Arc::clone(&tokens), Instant::now());
            }
            Some(tokens)
        }
    };
    desk.tokenizing.join(key, call).await
}

async fn look_up(desk: &Arc<Desk>, job: &Job, tokens: &Tokens, deadline: Instant) -> Option<Arc<[Found]>> {
    let (model, cache_salt, tokens) = (Arc::clone(&job.model), job.cache_salt.clone(), Arc::clone(tokens));
    let call = {
        let (desk, cache_salt) = (Arc::clone(desk), cache_salt.clone());
        move || async move {
            let answer = desk.lmcache.look_up(&model, cache_salt.as_deref(), &tokens, deadline).await;
            let outcome = match &answer {
                Ok(placements) if placements.is_empty() => "no_match",
                Ok(_) => "match",
                Err(error) => error.kind(),
            };
            desk.metrics.lookup(By::Background, outcome);
            let (known, unknown): (Vec<Placement>, Vec<_>) =
                answer.ok()?.into_iter().partition(|placement| desk.loads.knows(&placement.instance));
            desk.metrics.unknown_instances.inc_by(unknown.len().try_into().unwrap_or(u64::MAX));
            let found = |Placement { instance, location, tokens }| Found { instance, location, tokens };
            Some(known.into_iter().map(found).collect())
        }
    };
    desk.looking_up.join((job.key, cache_salt), call).await
}

impl Desk {
    fn remembered(&self, key: PromptKey) -> Option<Tokens> {
        if !self.config.token_cache.enabled {
            return None;
        }
        self.token_cache.peek(key, Instant::now())
    }
}
