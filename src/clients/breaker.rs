//! A circuit breaker: after failures in a row it lets no call through for a while, then a few, one of which decides.
//!
//! Asked before every call by `clients`, read by whoever shows its state. Bounded by construction: one counter. It reads
//! the clock only where it watches over a call.
//!
//! Closed: every call is let through; as many failures in a row as the threshold open it, and one success starts the
//! count again. Open: no call, until the recovery time is over. Half open: as many trial calls at a time as configured. The
//! first that succeeds closes it, the first that fails opens it; a trial that ends neutral says nothing about the
//! server, so its place is given back and the next call is a trial in its stead. Every change of state starts a new
//! generation, and what a call of an earlier generation has to say is not heard.

use super::call::{CallError, Reason};
use crate::config::CircuitBreaker;
use parking_lot::Mutex;
use prometheus::IntCounterVec;
use std::time::Duration;
use tokio::time::Instant;

/// A circuit breaker.
pub struct Breaker {
    name: &'static str,
    cluster: Box<str>,
    failure_threshold: usize,
    recovery_timeout: Duration,
    trials_max: usize,
    transitions: IntCounterVec,
    course: Mutex<Course>,
}

/// Where a breaker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Calls are made.
    Closed,
    /// A few calls are made to see how it stands.
    HalfOpen,
    /// No calls are made.
    Open,
}

impl State {
    /// As a label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

struct Course {
    phase: Phase,
    generation: u64,
}

#[derive(Clone, Copy)]
enum Phase {
    Closed { failures: usize },
    HalfOpen { trials: usize },
    Open { until: Instant },
}

impl Phase {
    fn state(self) -> State {
        match self {
            Self::Closed { .. } => State::Closed,
            Self::HalfOpen { .. } => State::HalfOpen,
            Self::Open { .. } => State::Open,
        }
    }
}

/// The leave to make one call. Dropped without a word, the call was neutral.
#[must_use]
pub struct Permit<'a> {
    breaker: &'a Breaker,
    generation: u64,
}

impl Breaker {
    /// A closed breaker. `transitions` counts changes by the labels cluster, breaker and state.
    #[must_use]
    pub fn new(
        name: &'static str,
        cluster: &str,
        config: &CircuitBreaker,
        transitions: IntCounterVec,
    ) -> Self {
        Self {
            name,
            cluster: cluster.into(),
            failure_threshold: config.failure_threshold,
            recovery_timeout: config.recovery_timeout,
            trials_max: config.half_open_max_calls,
            transitions,
            course: Mutex::new(Course { phase: Phase::Closed { failures: 0 }, generation: 0 }),
        }
    }

    /// What it guards.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The cluster whose calls it guards.
    #[must_use]
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Where it stands; one whose recovery time is over is half open, called or not.
    pub fn state(&self, now: Instant) -> State {
        match self.course.lock().phase {
            Phase::Open { until } if now >= until => State::HalfOpen,
            phase => phase.state(),
        }
    }

    /// The leave to make a call now, if there is one.
    pub fn admit(&self, now: Instant) -> Option<Permit<'_>> {
        let mut course = self.course.lock();
        if let Phase::Open { until } = course.phase
            && now >= until
        {
            self.turn(&mut course, Phase::HalfOpen { trials: 0 });
        }
        match &mut course.phase {
            Phase::Closed { .. } => {}
            Phase::HalfOpen { trials } if *trials < self.trials_max => *trials += 1,
            Phase::HalfOpen { .. } | Phase::Open { .. } => return None,
        }
        Some(Permit { breaker: self, generation: course.generation })
    }

    /// Makes a call if it is let through and the deadline has not passed, and hears how it ends.
    ///
    /// # Errors
    /// The call's own; without a call [`Reason::Timeout`] or [`Reason::BreakerOpen`].
    pub async fn guard<T>(
        &self,
        operation: &'static str,
        deadline: Instant,
        call: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        let now = Instant::now();
        if now >= deadline {
            // Our lateness says nothing about the server.
            return Err(CallError::new(operation, Reason::Timeout));
        }
        let permit = self.admit(now).ok_or(CallError::new(operation, Reason::BreakerOpen))?;
        let result = call.await;
        match &result {
            Ok(_) => permit.success(Instant::now()),
            Err(error) if error.is_failure() => permit.failure(Instant::now()),
            Err(_) => permit.neutral(),
        }
        result
    }

    fn turn(&self, course: &mut Course, phase: Phase) {
        *course = Course { phase, generation: course.generation + 1 };
        let state = phase.state();
        self.transitions.with_label_values(&[&*self.cluster, self.name, state.name()]).inc();
        let (cluster, breaker) = (&*self.cluster, self.name);
        match state {
            State::Open => {
                let recovery_timeout = self.recovery_timeout.as_secs_f64();
                tracing::warn!(
                    cluster,
                    breaker,
                    recovery_timeout,
                    "[kvcache] the breaker opens: no calls for now"
                );
            }
            State::HalfOpen => tracing::debug!(cluster, breaker, "[kvcache] the breaker tries a few calls"),
            State::Closed => {
                tracing::info!(cluster, breaker, "[kvcache] the breaker closes: calls are made again");
            }
        }
    }
}

impl Permit<'_> {
    /// The call succeeded.
    pub fn success(self, _now: Instant) {
        self.report(|breaker, course| match &mut course.phase {
            Phase::Closed { failures } => *failures = 0,
            Phase::HalfOpen { .. } => breaker.turn(course, Phase::Closed { failures: 0 }),
            Phase::Open { .. } => {}
        });
    }

    /// The call failed by the server's fault.
    pub fn failure(self, now: Instant) {
        self.report(|breaker, course| {
            let opens = match &mut course.phase {
                Phase::Closed { failures } => {
                    *failures += 1;
                    *failures >= breaker.failure_threshold
                }
                Phase::HalfOpen { .. } => true,
                Phase::Open { .. } => false,
            };
            if opens {
                breaker.turn(course, Phase::Open { until: now + breaker.recovery_timeout });
            }
        });
    }

    /// The call says nothing about the server.
    pub fn neutral(self) {
        drop(self);
    }

    /// What the call has to say, unless it belongs to an earlier generation.
    fn report(&self, say: impl FnOnce(&Breaker, &mut Course)) {
        let mut course = self.breaker.course.lock();
        if course.generation == self.generation {
            say(self.breaker, &mut course);
        }
    }
}

impl Drop for Permit<'_> {
    /// Gives the place of a trial back. After a success or a failure of a trial the generation is another.
    fn drop(&mut self) {
        self.report(|_, course| {
            if let Phase::HalfOpen { trials } = &mut course.phase {
                *trials = trials.saturating_sub(1);
            }
        });
    }
}
