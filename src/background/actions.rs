//! Having LMCache act on a prompt: once per interval, one call per instance at a time, never cut off.
//!
//! Called by `course` with what `strategy` decided. Bounded: one call in flight per instance, `hot_max_keys` actions
//! of which it is remembered that something was done. A real controller waits without an end for an instance, and one
//! that is cut off or asked twice at once is wedged: so everything is checked before a call and nothing during one.

use super::strategy;
use crate::clients::call::{CallError, Reason};
use crate::clients::lmcache::{Action, Lmcache};
use crate::config::{CacheStrategy, KvCache};
use crate::metrics::KvCacheMetrics;
use crate::state::lifecycle::Lifecycle;
use crate::state::tokens::{PromptKey, Tokens};
use moka::notification::RemovalCause;
use moka::ops::compute::{CompResult, Op};
use moka::policy::EvictionPolicy;
use parking_lot::Mutex;
use prometheus::IntCounter;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

/// The prompt that is acted on, and what forbids to begin.
pub(super) struct Subject {
    pub(super) key: PromptKey,
    pub(super) model: Arc<str>,
    pub(super) tokens: Tokens,
    pub(super) deadline: Instant,
    /// The client aborted.
    pub(super) aborted: CancellationToken,
    /// The process ends.
    pub(super) stopping: CancellationToken,
}

/// What became of an action.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Outcome {
    /// It concerned tokens.
    Done,
    /// It was carried out and concerned no tokens.
    NoEffect,
    /// It was taken for the same prompt a moment ago.
    Withheld,
    /// This LMCache cannot.
    Unsupported,
    /// The instance was busy with another call until the job's time was over.
    Busy,
    /// The job's time was over.
    Expired,
    /// The client aborted.
    Aborted,
    /// The process ends.
    Stopped,
    /// The call failed, in this way.
    Failed(&'static str),
}

impl Outcome {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Done => "ok",
            Self::NoEffect => "no_effect",
            Self::Withheld => "withheld",
            Self::Unsupported => "unsupported",
            Self::Busy => "busy",
            Self::Expired => "expired",
            Self::Aborted => "aborted",
            Self::Stopped => "stopped",
            Self::Failed(kind) => kind,
        }
    }
}

/// What acts on the prompts of one cluster.
pub(super) struct Actions {
    cluster: String,
    lmcache: Arc<Lmcache>,
    strategy: CacheStrategy,
    taken: Taken,
    turns: Turns,
    /// Whether the controller turned out to know no `/evict`.
    cannot_evict: AtomicBool,
    lifecycle: Arc<Lifecycle>,
    metrics: KvCacheMetrics,
}

impl Actions {
    pub(super) fn new(
        cluster: &str,
        config: &KvCache,
        lmcache: Arc<Lmcache>,
        lifecycle: Arc<Lifecycle>,
        metrics: KvCacheMetrics,
    ) -> Self {
        Self {
            cluster: cluster.to_owned(),
            lmcache,
            strategy: config.cache_strategy.clone(),
            taken: Taken::new(config.action_interval, config.hot_max_keys, metrics.actions_forgotten.clone()),
            turns: Turns::default(),
            cannot_evict: AtomicBool::new(false),
            lifecycle,
            metrics,
        }
    }

    /// Takes an action, or what is configured in its place where LMCache cannot.
    pub(super) async fn take(&self, action: &Action, subject: &Subject) -> Outcome {
        let outcome = self.attempt(action, subject).await;
        self.metrics.action(action.name(), outcome.label());
        let Action::Evict { instance } = action else { return outcome };
        let instead = strategy::instead_of_evicting(&self.strategy, instance);
        let Some(clear) = instead.filter(|_| outcome == Outcome::Unsupported) else { return outcome };
        let outcome = self.attempt(&clear, subject).await;
        self.metrics.action(clear.name(), outcome.label());
        outcome
    }

    async fn attempt(&self, action: &Action, subject: &Subject) -> Outcome {
        if matches!(action, Action::Evict { .. }) && self.cannot_evict.load(Ordering::Relaxed) {
            return Outcome::Unsupported;
        }
        let deed = Deed::new(action, subject.key);
        if self.taken.is_withheld(&deed, Instant::now()) {
            return Outcome::Withheld;
        }
        let turn = timeout_at(subject.deadline, self.turns.take(instance(action)));
        let _turn = tokio::select! {
            biased;
            () = subject.aborted.cancelled() => return Outcome::Aborted,
            () = subject.stopping.cancelled() => return Outcome::Stopped,
            turn = turn => match turn {
                Ok(turn) => turn,
                Err(_elapsed) => return Outcome::Busy,
            }
        };
        // Before the last look at whether the process ends: it ends after the call, or the call is not made.
        let _in_flight = self.lifecycle.enter();
        if self.lifecycle.is_ending() {
            return Outcome::Stopped;
        }
        if Instant::now() >= subject.deadline {
            return Outcome::Expired;
        }
        if !self.taken.claim(&deed, Instant::now()) {
            return Outcome::Withheld;
        }
        match self.lmcache.act(action, &subject.model, &subject.tokens).await {
            Ok(acted) if acted.tokens == 0 => Outcome::NoEffect,
            Ok(_) => Outcome::Done,
            Err(error) => self.judge(action, &deed, &error),
        }
    }

    fn judge(&self, action: &Action, deed: &Deed, error: &CallError) -> Outcome {
        match error.reason {
            Reason::Status(404) if matches!(action, Action::Evict { .. }) => {
                if !self.cannot_evict.swap(true, Ordering::Relaxed) {
                    let clears = strategy::instead_of_evicting(&self.strategy, "").is_some();
                    let cluster = &self.cluster;
                    tracing::warn!(
                        cluster,
                        clears,
                        "[kvcache] this LMCache has no /evict and is not asked again"
                    );
                }
                Outcome::Unsupported
            }
            Reason::Unsupported => Outcome::Unsupported,
            Reason::Connect | Reason::BreakerOpen | Reason::Busy | Reason::NoEndpoint => {
                self.taken.forget(deed);
                Outcome::Failed(error.kind())
            }
            _ => Outcome::Failed(error.kind()),
        }
    }
}

fn instance(action: &Action) -> &str {
    match action {
        Action::Pin { instance, .. }
        | Action::Compress { instance, .. }
        | Action::Evict { instance }
        | Action::Clear { instance, .. } => instance,
    }
}

/// What is not done again for a while.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
enum Deed {
    /// To one prompt.
    OfPrompt(PromptKey, &'static str),
    /// To all prompts of an instance, whoever asks.
    OfInstance(String, &'static str),
}

impl Deed {
    fn new(action: &Action, key: PromptKey) -> Self {
        match action {
            Action::Clear { instance, .. } => Self::OfInstance(instance.clone(), action.name()),
            _ => Self::OfPrompt(key, action.name()),
        }
    }
}

/// The actions taken within the interval, each with its end.
struct Taken {
    interval: Duration,
    until: moka::sync::Cache<Deed, Instant>,
}

impl Taken {
    /// `actions_max` of them are remembered; those that go before their time, for want of room, count as `forgotten`.
    fn new(interval: Duration, actions_max: usize, forgotten: IntCounter) -> Self {
        let until = moka::sync::Cache::builder()
            .max_capacity(actions_max as u64)
            .eviction_policy(EvictionPolicy::lru())
            .eviction_listener(move |_, _, cause| forgotten.inc_by(u64::from(cause == RemovalCause::Size)))
            .time_to_live(interval);
        Self { interval, until: until.build() }
    }

    fn is_withheld(&self, deed: &Deed, now: Instant) -> bool {
        !self.interval.is_zero() && self.until.get(deed).is_some_and(|until| now < until)
    }

    /// Notes that the action is taken now; `false`, and nothing noted, while it is withheld.
    fn claim(&self, deed: &Deed, now: Instant) -> bool {
        if self.interval.is_zero() {
            return true;
        }
        let until = now + self.interval;
        let result = self.until.entry_by_ref(deed).and_compute_with(|entry| match entry {
            Some(entry) if now < *entry.value() => Op::Nop,
            _ => Op::Put(until),
        });
        !matches!(result, CompResult::Unchanged(_))
    }

    fn forget(&self, deed: &Deed) {
        self.until.invalidate(deed);
    }
}

/// Whose turn it is at each instance. An instance is known as long as somebody has its turn or waits for it, so there are no
/// more than jobs that act at a time: `workers_max`, and what finds no place is counted as `busy`.
#[derive(Default)]
struct Turns(Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>);

impl Turns {
    /// Waits for the turn at an instance, which ends when the guard is dropped. First come, first served.
    async fn take(&self, instance: &str) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock();
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(turns.entry(instance.to_owned()).or_default())
        };
        turn.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::poll;

    const INTERVAL: Duration = Duration::from_mins(1);

    fn taken(interval: Duration) -> Taken {
        Taken::new(interval, 2, IntCounter::new("name", "help").unwrap())
    }

    #[test]
    fn what_is_forgotten_for_want_of_room_is_counted() {
        let forgotten = IntCounter::new("name", "help").unwrap();
        let (taken, now) = (Taken::new(INTERVAL, 2, forgotten.clone()), Instant::now());
        for key in 0..5 {
            assert!(taken.claim(&pinned(key), now));
            taken.until.run_pending_tasks();
        }
        assert_eq!(forgotten.get(), 3);
        assert!(!taken.is_withheld(&pinned(0), now) && taken.is_withheld(&pinned(4), now));
    }

    fn pinned(key: u128) -> Deed {
        let pin = Action::Pin { instance: "a".to_owned(), location: "cpu".to_owned() };
        Deed::new(&pin, PromptKey(key))
    }

    fn cleared(instance: &str, key: u128) -> Deed {
        let clear = Action::Clear { instance: instance.to_owned(), location: "cpu".to_owned() };
        Deed::new(&clear, PromptKey(key))
    }

    #[test]
    fn an_action_is_withheld_for_its_interval() {
        let (taken, now) = (taken(INTERVAL), Instant::now());
        assert!(!taken.is_withheld(&pinned(1), now));
        assert!(taken.claim(&pinned(1), now));
        let just = now + INTERVAL - Duration::from_nanos(1);
        assert!(!taken.claim(&pinned(1), just) && taken.is_withheld(&pinned(1), just));
        assert!(taken.claim(&pinned(2), just), "another prompt");
        assert!(!taken.is_withheld(&pinned(1), now + INTERVAL) && taken.claim(&pinned(1), now + INTERVAL));
    }

    #[test]
    fn an_action_that_was_not_sent_is_not_withheld() {
        let (taken, now) = (taken(INTERVAL), Instant::now());
        assert!(taken.claim(&pinned(1), now));
        taken.forget(&pinned(1));
        assert!(!taken.is_withheld(&pinned(1), now) && taken.claim(&pinned(1), now));
    }

    #[test]
    fn without_an_interval_nothing_is_ever_withheld() {
        let (taken, now) = (taken(Duration::ZERO), Instant::now());
        assert!(taken.claim(&pinned(1), now) && taken.claim(&pinned(1), now));
        assert!(!taken.is_withheld(&pinned(1), now));
    }

    #[test]
    fn a_location_is_cleared_once_whatever_the_prompt() {
        let (taken, now) = (taken(INTERVAL), Instant::now());
        assert!(taken.claim(&cleared("a", 1), now) && !taken.claim(&cleared("a", 2), now));
        assert!(taken.claim(&cleared("b", 1), now));
    }

    #[tokio::test]
    async fn an_instance_takes_turns_and_is_forgotten_after_the_last() {
        let turns = Turns::default();
        let first = turns.take("a").await;
        let mut second = Box::pin(turns.take("a"));
        assert!(poll!(second.as_mut()).is_pending());
        let other = turns.take("b").await;
        drop(first);
        let second = second.await;
        assert_eq!(turns.0.lock().len(), 2);
        drop((second, other));
        let _third = turns.take("c").await;
        assert_eq!(turns.0.lock().keys().collect::<Vec<_>>(), ["c"]);
    }
}
