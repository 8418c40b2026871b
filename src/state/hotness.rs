//! Which prompts are hot: seen often enough within a window that slides.
//!
//! Called by `proxy` once per request, which tells `background`. Bounded in prompts, of which the least
//! recently seen is forgotten first, and in accesses per prompt: as many as make it hot, whatever the rate. It counts
//! exactly, and does nothing about what is hot.

use super::tokens::PromptKey;
use lru::LruCache;
use parking_lot::Mutex;
use prometheus::IntCounter;
use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::time::Duration;
use tokio::time::Instant;

/// The latest accesses of the prompts that were seen last.
#[derive(Debug)]
pub struct Hotness {
    prompts: Mutex<LruCache<PromptKey, Accesses>>,
    window: Duration,
    threshold: usize,
    epoch: Instant,
    forgotten: IntCounter,
}

/// The latest accesses of one prompt, in nanoseconds since the epoch, the oldest first.
#[derive(Debug, Default)]
struct Accesses(VecDeque<u64>);

impl Hotness {
    /// A prompt is hot from `threshold` accesses within `window`, the edge included; 0 = never, and nothing is kept.
    /// At most `keys_max` prompts, and at least one, are kept; those that go for want of room count as `forgotten`.
    #[must_use]
    pub fn new(window: Duration, threshold: usize, keys_max: usize, forgotten: IntCounter) -> Self {
        let keys_max = NonZeroUsize::new(keys_max).unwrap_or(NonZeroUsize::MIN);
        Self {
            prompts: Mutex::new(LruCache::new(keys_max)),
            window,
            threshold,
            epoch: Instant::now(),
            forgotten,
        }
    }

    /// Records an access, and says whether that makes the prompt hot.
    pub fn record(&self, key: PromptKey, now: Instant) -> bool {
        if self.threshold == 0 {
            return false;
        }
        let at = now.saturating_duration_since(self.epoch);
        let mut prompts = self.prompts.lock();
        if prompts.len() == prompts.cap().get() && !prompts.contains(&key) {
            self.forgotten.inc();
        }
        let accesses = prompts.get_or_insert_mut(key, Accesses::default);
        accesses.push(at, self.threshold);
        accesses.are_within(self.window, self.threshold, at)
    }

    /// Whether a prompt is hot. Nothing is recorded, and the prompt is not seen by it.
    #[cfg(test)]
    fn is_hot(&self, key: PromptKey, now: Instant) -> bool {
        let at = now.saturating_duration_since(self.epoch);
        let prompts = self.prompts.lock();
        prompts.peek(&key).is_some_and(|accesses| accesses.are_within(self.window, self.threshold, at))
    }

    /// The prompts that are kept.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.prompts.lock().len()
    }
}

impl Accesses {
    /// Adds the latest access, and forgets the oldest if it cannot matter any more.
    fn push(&mut self, at: Duration, threshold: usize) {
        let Self(times) = self;
        if times.len() == threshold {
            times.pop_front();
        } else if times.len() == times.capacity() {
            let room = threshold - times.len();
            times.reserve_exact(room.min(times.len().max(1)));
        }
        times.push_back(nanoseconds(at));
    }

    /// Whether there are `threshold` of them and even the oldest is not older than `window`.
    fn are_within(&self, window: Duration, threshold: usize, at: Duration) -> bool {
        let Self(times) = self;
        let age = |oldest: u64| nanoseconds(at).saturating_sub(oldest);
        times.len() == threshold && times.front().is_some_and(|oldest| age(*oldest) <= nanoseconds(window))
    }
}

/// Enough for five centuries.
fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const WINDOW: Duration = Duration::from_mins(1);
    fn keeping(window: Duration, threshold: usize, keys_max: usize) -> Hotness {
        Hotness::new(window, threshold, keys_max, IntCounter::new("name", "help").unwrap())
    }

    const A: PromptKey = PromptKey(1);
    const B: PromptKey = PromptKey(2);
    const C: PromptKey = PromptKey(3);

    #[test]
    fn a_prompt_is_hot_with_the_access_that_reaches_the_threshold() {
        let hotness = keeping(WINDOW, 3, 10);
        let now = Instant::now();
        assert_eq!([(); 5].map(|()| hotness.record(A, now)), [false, false, true, true, true]);
        assert!(hotness.is_hot(A, now) && !hotness.is_hot(B, now));
        assert!(keeping(WINDOW, 1, 10).record(A, now), "with a threshold of one it is the first");
    }

    #[test]
    fn an_access_counts_until_it_is_exactly_as_old_as_the_window() {
        let hotness = keeping(WINDOW, 2, 10);
        let start = Instant::now() + Duration::from_nanos(987_654_321);
        hotness.record(A, start);
        hotness.record(A, start + Duration::from_secs(1));
        assert!(hotness.is_hot(A, start + WINDOW));
        assert!(!hotness.is_hot(A, start + WINDOW + Duration::from_nanos(1)));
        assert!(!hotness.record(B, start) && hotness.record(B, start + WINDOW));
        assert!(!hotness.record(C, start) && !hotness.record(C, start + WINDOW + Duration::from_nanos(1)));
    }

    #[test]
    fn what_goes_for_want_of_room_is_counted() {
        let hotness = keeping(WINDOW, 2, 2);
        let now = Instant::now();
        for key in [A, B, A, B] {
            hotness.record(key, now);
        }
        assert_eq!((hotness.forgotten.get(), hotness.keys()), (0, 2));
        hotness.record(C, now);
        assert_eq!((hotness.forgotten.get(), hotness.keys()), (1, 2));
    }

    #[test]
    fn a_year_later_nothing_is_mistaken_for_recent() {
        let hotness = keeping(WINDOW, 2, 10);
        let start = Instant::now();
        hotness.record(A, start);
        for days in 1..366 {
            assert!(!hotness.record(A, start + Duration::from_hours(24) * days), "day {days}");
        }
    }

    #[test]
    fn without_a_threshold_nothing_is_hot_and_nothing_is_kept() {
        let hotness = keeping(WINDOW, 0, 10);
        let now = Instant::now();
        assert!(!hotness.record(A, now) && !hotness.is_hot(A, now));
        assert_eq!(hotness.keys(), 0);
    }

    #[test]
    fn the_least_recently_seen_prompt_is_forgotten_first() {
        let hotness = keeping(WINDOW, 2, 2);
        let now = Instant::now();
        for key in [A, B, A] {
            hotness.record(key, now);
        }
        assert!(!hotness.is_hot(B, now), "asking does not count as seeing");
        hotness.record(C, now);
        assert_eq!(hotness.keys(), 2);
        assert!(hotness.is_hot(A, now));
        assert!(!hotness.record(B, now), "its first access was forgotten");
        assert!(!hotness.is_hot(A, now), "it was A's turn to be forgotten");
        assert!(hotness.record(C, now) && hotness.record(B, now));
    }

    #[test]
    fn a_prompt_takes_no_more_memory_however_often_it_is_seen() {
        let hotness = keeping(WINDOW, 300, 10);
        let now = Instant::now();
        let room = || hotness.prompts.lock().peek(&A).map(|Accesses(times)| times.capacity());
        hotness.record(A, now);
        assert!(room() < Some(8), "a prompt that is seen once takes little");
        for _ in 0..10_000 {
            hotness.record(A, now);
        }
        assert_eq!(room(), Some(300));
    }

    proptest! {
        #[test]
        fn it_says_what_a_list_of_all_accesses_would_say(
            threshold in 0_usize..6,
            steps in prop::collection::vec((0_u128..4, 0_u64..40, any::<bool>()), 0..200),
        ) {
            let window = Duration::from_millis(100);
            let hotness = keeping(window, threshold, 4);
            let mut now = Instant::now();
            let mut accesses: HashMap<u128, Vec<Instant>> = HashMap::new();
            for (key, wait, record) in steps {
                now += Duration::from_millis(wait);
                let seen = accesses.entry(key).or_default();
                let hot = if record {
                    seen.push(now);
                    hotness.record(PromptKey(key), now)
                } else {
                    hotness.is_hot(PromptKey(key), now)
                };
                let recent = seen.iter().filter(|then| now - **then <= window).count();
                prop_assert_eq!(hot, threshold > 0 && recent >= threshold);
            }
        }

        #[test]
        fn it_keeps_the_prompts_that_were_seen_last(
            keys_max in 1_usize..5,
            keys in prop::collection::vec(0_u128..10, 1..100),
        ) {
            let hotness = keeping(WINDOW, 1, keys_max);
            let now = Instant::now();
            let mut by_sight = Vec::new();
            for key in keys {
                hotness.record(PromptKey(key), now);
                by_sight.retain(|seen| *seen != key);
                by_sight.insert(0, key);
                by_sight.truncate(keys_max);
                let kept: Vec<u128> = (0..10).filter(|key| hotness.is_hot(PromptKey(*key), now)).collect();
                let mut expected = by_sight.clone();
                expected.sort_unstable();
                prop_assert_eq!(kept, expected);
                prop_assert_eq!(hotness.keys(), by_sight.len());
            }
        }
    }
}
