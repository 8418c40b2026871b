//! Making a call again, with a wait in between that grows.
//!
//! Used by `lmcache`. Bounded by the attempts and by the deadline. Dropping the future ends the wait and the call at once.

use super::call::CallError;
use crate::config::Retry;
use std::time::Duration;
use tokio::time::Instant;

/// Makes attempts until one succeeds, one fails in a way that `may` does not let be tried again, the attempts are used
/// up, or the next wait would not end before the deadline. Nothing is waited for after the last attempt.
///
/// # Errors
/// Of the last attempt.
pub async fn retry<T, F>(
    config: &Retry,
    deadline: Option<Instant>,
    may: impl Fn(&CallError) -> bool,
    random: fn() -> f64,
    mut attempt: impl FnMut() -> F,
) -> Result<T, CallError>
where
    F: Future<Output = Result<T, CallError>>,
{
    let mut attempts = 1;
    loop {
        let error = match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if attempts >= config.max_attempts || !may(&error) {
            return Err(error);
        }
        let next = Instant::now() + backoff(config, attempts, random());
        if deadline.is_some_and(|deadline| next >= deadline) {
            return Err(error);
        }
        tokio::time::sleep_until(next).await;
        attempts += 1;
    }
}

/// The wait after so many attempts: `base_backoff` doubled with each, at most `max_backoff`; half of it is certain, and the
/// other half is taken as far as `random`, 0 to 1, says ("equal jitter"), so that waits neither meet nor vanish.
#[must_use]
pub fn backoff(config: &Retry, attempts: usize, random: f64) -> Duration {
    let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX);
    let full = config.base_backoff.saturating_mul(2_u32.saturating_pow(doublings)).min(config.max_backoff);
    let half = full / 2;
    half + half.mul_f64(random.clamp(0.0, 1.0))
}
