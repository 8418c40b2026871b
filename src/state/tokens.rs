//! The tokens of prompts that were tokenized lately.
//!
//! Written by `background`, whose jobs tokenize; read by `proxy` before a backend is chosen. Bounded in entries and in
//! bytes after every store: the least recently used goes first. It tokenizes nothing and runs no timer: what has expired is
//! never given out, and its memory is taken back by the calls that come after.

use crate::config;
use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use prometheus::IntCounter;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// What an entry takes besides its tokens: its places in the table and in the lists, and its expiry.
const ENTRY_BYTES: usize = 256;

/// The identity of a prompt: a keyed hash of all that decides its tokens.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct PromptKey(pub u128);

/// The tokens of a prompt.
pub type Tokens = Arc<[u32]>;

/// What is told of a [`TokenCache`].
#[derive(Clone, Debug)]
pub struct Counters {
    /// Tokens that were asked for and known.
    pub hits: IntCounter,
    /// Tokens that were asked for and not known, or not any more.
    pub misses: IntCounter,
    /// Entries that had to go for want of room.
    pub evictions: IntCounter,
}

/// Prompts and their tokens. It works whether or not the configuration enables it: that is the caller's business.
pub struct TokenCache {
    entries: Cache<PromptKey, Entry>,
    bytes: Arc<AtomicUsize>,
    bytes_max: usize,
    ttl: Duration,
    counters: Counters,
}

#[derive(Clone)]
struct Entry {
    tokens: Tokens,
    expires: Instant,
}

impl TokenCache {
    /// An empty cache within the bounds of `config`.
    #[must_use]
    pub fn new(config: &config::TokenCache, counters: Counters) -> Self {
        let scale = Scale::new(config.max_size, config.max_bytes);
        let bytes = Arc::new(AtomicUsize::new(0));
        let (held, evictions) = (Arc::clone(&bytes), counters.evictions.clone());
        let removed = move |_: Arc<PromptKey>, entry: Entry, cause| {
            held.fetch_sub(entry.bytes(), Ordering::Relaxed);
            if cause == RemovalCause::Size {
                evictions.inc();
            }
        };
        let entries = Cache::builder()
            .max_capacity(scale.capacity())
            .weigher(move |_, entry: &Entry| scale.weight(entry.bytes()))
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(config.ttl)
            .eviction_listener(removed)
            .build();
        Self { entries, bytes, bytes_max: config.max_bytes, ttl: config.ttl, counters }
    }

    /// The tokens of a prompt. Counts a hit or a miss.
    #[must_use]
    pub fn get(&self, key: PromptKey, now: Instant) -> Option<Tokens> {
        let tokens = self.peek(key, now);
        let counter = if tokens.is_some() { &self.counters.hits } else { &self.counters.misses };
        counter.inc();
        tokens
    }

    /// The tokens of a prompt, for those who do not count.
    #[must_use]
    pub fn peek(&self, key: PromptKey, now: Instant) -> Option<Tokens> {
        let entry = self.entries.get(&key)?;
        if now < entry.expires {
            return Some(entry.tokens);
        }
        self.entries.invalidate(&key);
        None
    }

    /// Remembers the tokens of a prompt in place of any before. Too many for the whole cache are not remembered. Not for the
    /// way of a request: what is over the bounds goes before this returns.
    pub fn insert(&self, key: PromptKey, tokens: Tokens, now: Instant) {
        let entry = Entry { tokens, expires: now + self.ttl };
        if entry.bytes() > self.bytes_max {
            self.entries.invalidate(&key);
        } else {
            self.bytes.fetch_add(entry.bytes(), Ordering::Relaxed);
            self.entries.insert(key, entry);
        }
        self.entries.run_pending_tasks();
    }

    /// The prompts that are remembered.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.entries.run_pending_tasks();
        usize::try_from(self.entries.entry_count()).unwrap_or(usize::MAX)
    }

    /// The bytes that they take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.entries.run_pending_tasks();
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Entry {
    /// The memory that it takes: tokens and their `Arc`'s two counters, rounded up as jemalloc does (by up to a fourth).
    fn bytes(&self) -> usize {
        let tokens = 2 * size_of::<usize>() + size_of_val::<[u32]>(&self.tokens);
        let step = (tokens.next_power_of_two() / 8).max(16);
        ENTRY_BYTES + tokens.next_multiple_of(step)
    }
}

/// Two bounds in one, since entries have a single weight: each weighs its bytes, and no less than its share of the bytes were
/// the cache full of as many entries as it may hold. A weight is 32 bits wide, so large caches are weighed in larger units.
#[derive(Clone, Copy)]
struct Scale {
    least: usize,
    capacity: usize,
    unit: usize,
}

impl Scale {
    fn new(entries_max: usize, bytes_max: usize) -> Self {
        let unit = bytes_max / u32::MAX as usize + 1;
        match bytes_max / entries_max.max(1) {
            // So few bytes that the entries themselves are too large for there to be too many.
            share if share < ENTRY_BYTES => Self { least: 0, capacity: bytes_max, unit },
            share => Self { least: share, capacity: share * entries_max, unit },
        }
    }

    fn capacity(self) -> u64 {
        (self.capacity / self.unit) as u64
    }

    fn weight(self, bytes: usize) -> u32 {
        u32::try_from(bytes.max(self.least).div_ceil(self.unit)).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const TTL: Duration = Duration::from_mins(1);
    const A: PromptKey = PromptKey(1);
    const B: PromptKey = PromptKey(2);
    const C: PromptKey = PromptKey(3);

    fn counter() -> IntCounter {
        IntCounter::new("name", "help").unwrap()
    }

    fn cache(max_size: usize, max_bytes: usize) -> TokenCache {
        let config = config::TokenCache { enabled: false, max_size, max_bytes, ttl: TTL };
        TokenCache::new(&config, Counters { hits: counter(), misses: counter(), evictions: counter() })
    }

    fn tokens(count: usize, token: u32) -> Tokens {
        vec![token; count].into()
    }

    fn bytes(count: usize) -> usize {
        Entry { tokens: tokens(count, 0), expires: Instant::now() }.bytes()
    }

    #[test]
    fn bytes_are_those_that_the_allocator_takes() {
        let rounded =
            [(0, 16), (1, 32), (28, 128), (29, 160), (256, 1280), (4096, 20_480), (131_072, 655_360)];
        for (count, expected) in rounded {
            assert_eq!(bytes(count), ENTRY_BYTES + expected, "{count} tokens");
        }
    }

    #[test]
    fn a_weight_keeps_both_bounds_however_large() {
        for (entries_max, bytes_max) in [
            (1, 1 << 16),
            (3, 1000),
            (10_000, 256 << 20),
            (4000, 1 << 20),
            (100_000_000, 1 << 16),
            (7, 1 << 40),
        ] {
            let scale = Scale::new(entries_max, bytes_max);
            let most =
                |bytes: usize| usize::try_from(scale.capacity()).unwrap() / scale.weight(bytes) as usize;
            assert!(most(ENTRY_BYTES) <= entries_max, "{entries_max} of {bytes_max} bytes");
            for bytes in [ENTRY_BYTES, bytes_max / entries_max + 1, bytes_max / 2, bytes_max] {
                assert!(most(bytes).saturating_mul(bytes) <= bytes_max, "{entries_max} of {bytes_max} bytes");
            }
            let share = bytes_max / entries_max;
            assert!(share < ENTRY_BYTES || scale.unit > 1 || most(share) == entries_max, "no room is wasted");
        }
    }

    #[test]
    fn tokens_are_the_same_until_they_expire() {
        let cache = cache(10, 1 << 20);
        let now = Instant::now();
        let stored = tokens(3, 7);
        cache.insert(A, Arc::clone(&stored), now);
        let found = cache.get(A, now + TTL - Duration::from_nanos(1));
        assert!(found.is_some_and(|found| Arc::ptr_eq(&found, &stored)), "shared, not copied");
        assert_eq!(cache.peek(A, now + TTL), None);
        assert_eq!(cache.get(A, now + TTL), None);
        assert_eq!((cache.entries(), cache.bytes()), (0, 0), "what was found expired is gone");
    }

    #[test]
    fn a_hit_does_not_make_tokens_live_longer() {
        let cache = cache(10, 1 << 20);
        let now = Instant::now();
        cache.insert(A, tokens(3, 7), now);
        assert!(cache.get(A, now + TTL / 2).is_some());
        assert_eq!(cache.get(A, now + TTL), None);
    }

    #[test]
    fn only_get_counts() {
        let cache = cache(10, 1 << 20);
        let now = Instant::now();
        cache.insert(A, tokens(3, 7), now);
        assert!(cache.peek(A, now).is_some() && cache.peek(B, now).is_none());
        assert_eq!((cache.counters.hits.get(), cache.counters.misses.get()), (0, 0));
        let found = [now, now, now, now + TTL].map(|now| cache.get(A, now).is_some());
        assert_eq!(found, [true, true, true, false]);
        assert_eq!(cache.get(B, now), None);
        assert_eq!((cache.counters.hits.get(), cache.counters.misses.get()), (3, 2));
    }

    #[test]
    fn the_last_store_wins_and_is_no_eviction() {
        let cache = cache(1, 1 << 20);
        let now = Instant::now();
        cache.insert(A, tokens(3, 7), now);
        cache.insert(A, tokens(5, 8), now + TTL / 2);
        assert_eq!(cache.get(A, now + TTL), Some(tokens(5, 8)), "it lives from its own store on");
        assert_eq!((cache.entries(), cache.bytes()), (1, bytes(5)));
        assert_eq!(cache.counters.evictions.get(), 0);
    }

    #[test]
    fn the_least_recently_used_goes_first_when_there_are_too_many() {
        let cache = cache(2, 1 << 20);
        let now = Instant::now();
        cache.insert(A, tokens(1, 1), now);
        cache.insert(B, tokens(1, 2), now);
        assert!(cache.get(A, now).is_some());
        cache.insert(C, tokens(1, 3), now);
        assert_eq!([A, B, C].map(|key| cache.peek(key, now).is_some()), [true, false, true]);
        assert_eq!(cache.counters.evictions.get(), 1);
    }

    #[test]
    fn as_many_go_as_the_bytes_of_the_new_one_need() {
        let cache = cache(100, 4 * bytes(100));
        let now = Instant::now();
        for key in 0..4 {
            cache.insert(PromptKey(key), tokens(100, 1), now);
        }
        assert_eq!((cache.entries(), cache.counters.evictions.get()), (4, 0), "exactly full");
        cache.insert(PromptKey(9), tokens(150, 1), now);
        assert_eq!((cache.entries(), cache.counters.evictions.get()), (3, 2));
        assert!(cache.peek(PromptKey(2), now).is_some() && cache.peek(PromptKey(9), now).is_some());
    }

    #[test]
    fn what_is_larger_than_the_cache_is_not_stored_and_pushes_nothing_out() {
        let cache = cache(100, bytes(100));
        let now = Instant::now();
        cache.insert(A, tokens(10, 1), now);
        cache.insert(B, tokens(150, 2), now);
        assert_eq!((cache.peek(A, now), cache.peek(B, now)), (Some(tokens(10, 1)), None));
        cache.insert(A, tokens(150, 2), now);
        assert_eq!(cache.peek(A, now), None, "nor do older tokens stay in its place");
        assert_eq!((cache.bytes(), cache.counters.evictions.get()), (0, 0));
    }

    proptest! {
        #[test]
        fn bounds_hold_and_nothing_wrong_is_found_after_any_calls(
            max_size in 1_usize..6,
            max_bytes in 0_usize..4 * ENTRY_BYTES,
            steps in prop::collection::vec((0_u128..8, 0_usize..80, 0_u64..30, any::<bool>()), 0..60),
        ) {
            let cache = cache(max_size, max_bytes);
            let mut now = Instant::now();
            let mut stored: HashMap<u128, (Tokens, Instant)> = HashMap::new();
            for (token, (key, count, wait, store)) in (0_u32..).zip(steps) {
                now += Duration::from_secs(wait);
                if store {
                    let new = tokens(count, token);
                    cache.insert(PromptKey(key), Arc::clone(&new), now);
                    let kept = bytes(count) <= max_bytes;
                    prop_assert_eq!(cache.peek(PromptKey(key), now), kept.then(|| Arc::clone(&new)));
                    stored.insert(key, (new, now));
                } else if let Some(found) = cache.get(PromptKey(key), now) {
                    let (last, then) = &stored[&key];
                    prop_assert!(found == *last && now < *then + TTL);
                }
                let held = cache.entries.iter().map(|(_, entry)| entry.bytes()).sum::<usize>();
                prop_assert!(cache.bytes() == held && held <= max_bytes && cache.entries() <= max_size);
            }
        }
    }
}
