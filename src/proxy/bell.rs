//! Tells a task that is polled for many reasons whether it is for this one.
//!
//! Used by [`super::alarm`] and [`super::replay`]: with each event of a stream, time and client would be asked in vain.

use futures::task::AtomicWaker;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

/// To be rung by what the task waits for.
pub struct Bell {
    wire: Arc<Wire>,
    /// That rings it.
    waker: Waker,
    /// Whom it wakes.
    waiting: Option<Waker>,
}

struct Wire {
    rung: AtomicBool,
    waiting: AtomicWaker,
}

impl Wake for Wire {
    fn wake(self: Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.waiting.wake();
    }
}

impl Bell {
    /// Rung once, so that it is looked what there is to wait for.
    #[must_use]
    pub fn rung() -> Self {
        let wire = Arc::new(Wire { rung: AtomicBool::new(true), waiting: AtomicWaker::new() });
        Self { waker: Arc::clone(&wire).into(), wire, waiting: None }
    }

    /// Whether it has rung since it was asked last. The task that asks is woken when it does.
    pub fn has_rung(&mut self, cx: &Context<'_>) -> bool {
        let is_known = self.waiting.as_ref().is_some_and(|waiting| waiting.will_wake(cx.waker()));
        if is_known && !self.wire.rung.load(Ordering::Acquire) {
            return false;
        }
        self.wire.waiting.register(cx.waker());
        self.waiting = Some(cx.waker().clone());
        self.wire.rung.swap(false, Ordering::Acquire)
    }

    /// To poll with what the task waits for: it rings the bell.
    #[must_use]
    pub fn context(&self) -> Context<'_> {
        Context::from_waker(&self.waker)
    }

    /// Rings it for the task itself, which is awake.
    pub fn ring(&self) {
        self.wire.rung.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::task::noop_waker;

    #[test]
    fn it_has_rung_once_for_each_time_somebody_asks_after_it_was_rung() {
        let waker = noop_waker();
        let cx = Context::from_waker(&waker);
        let mut bell = Bell::rung();
        assert!(bell.has_rung(&cx) && !bell.has_rung(&cx));
        bell.context().waker().wake_by_ref();
        bell.ring();
        assert!(bell.has_rung(&cx) && !bell.has_rung(&cx));
    }

    #[test]
    fn whoever_asked_last_is_woken() {
        let mut bell = Bell::rung();
        let tasks = [Bell::rung(), Bell::rung()];
        for task in &tasks {
            bell.has_rung(&task.context());
        }
        let [mut first, mut last] = tasks;
        let waker = noop_waker();
        let cx = Context::from_waker(&waker);
        assert!(first.has_rung(&cx) && last.has_rung(&cx));
        bell.context().waker().wake_by_ref();
        assert!(!first.has_rung(&cx) && last.has_rung(&cx));
    }
}
