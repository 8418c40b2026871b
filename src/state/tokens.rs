//! The tokens of prompts that were tokenized lately.
//!
//! Written by `background`, whose jobs tokenize; read by `proxy` before a backend is chosen. Bounded in entries and in
//! bytes, both at every moment: the least recently used goes first. It tokenizes nothing and runs no timer: what has
//! expired is never given out, and its memory is taken back by the calls that come after.

use crate::config;
use lru::LruCache;
use parking_lot::Mutex;
use prometheus::IntCounter;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// What an entry takes besides its tokens: its places in the table and in the list.
const ENTRY_BYTES: usize = 112;

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
    /// Entries that had to go for want of room before they expired.
    pub evictions: IntCounter,
}

/// Prompts and their tokens. It works whether or not the configuration enables it: that is the caller's business.
#[derive(Debug)]
pub struct TokenCache {
    entries: Mutex<Entries>,
    entries_max: usize,
    bytes_max: usize,
    ttl: Duration,
    counters: Counters,
}

#[derive(Debug)]
struct Entries {
    by_use: LruCache<PromptKey, Entry>,
    bytes: usize,
}

struct Entry {
    tokens: Tokens,
    expires: Instant,
}

impl TokenCache {
    /// An empty cache within the bounds of `config`.
    #[must_use]
    pub fn new(config: &config::TokenCache, counters: Counters) -> Self {
        Self {
            entries: Mutex::new(Entries { by_use: LruCache::unbounded(), bytes: 0 }),
            entries_max: config.max_size,
            bytes_max: config.max_bytes,
            ttl: config.ttl,
            counters,
        }
    }

    /// The tokens of a prompt. Counts a hit or a miss.
    #[must_use]
    pub fn get(&self, key: PromptKey, now: Instant) -> Option<Tokens> {
        let tokens = self.entries.lock().get(key, now);
        let counter = if tokens.is_some() { &self.counters.hits } else { &self.counters.misses };
        counter.inc();
        tokens
    }

    /// The tokens of a prompt, for those who only look: nothing is counted, nothing becomes more recent.
    #[must_use]
    pub fn peek(&self, key: PromptKey, now: Instant) -> Option<Tokens> {
        let entries = self.entries.lock();
        entries.by_use.peek(&key).filter(|entry| entry.is_alive(now)).map(|entry| Arc::clone(&entry.tokens))
    }

    /// Remembers the tokens of a prompt in place of any before. Too many for the whole cache are not remembered.
    pub fn insert(&self, key: PromptKey, tokens: Tokens, now: Instant) {
        let entry = Entry { tokens, expires: now + self.ttl };
        let mut entries = self.entries.lock();
        entries.remove(key);
        if entry.bytes() <= self.bytes_max {
            entries.push(key, entry);
        }
        while entries.bytes > self.bytes_max || entries.by_use.len() > self.entries_max {
            let Some(evicted) = entries.pop() else { break };
            if evicted.is_alive(now) {
                self.counters.evictions.inc();
            }
        }
        entries.take_back(now);
    }

    /// The prompts that are remembered.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.entries.lock().by_use.len()
    }

    /// The bytes that they take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.entries.lock().bytes
    }
}

impl Entries {
    fn get(&mut self, key: PromptKey, now: Instant) -> Option<Tokens> {
        let entry = self.by_use.get(&key)?;
        if entry.is_alive(now) {
            return Some(Arc::clone(&entry.tokens));
        }
        self.remove(key);
        None
    }

    fn push(&mut self, key: PromptKey, entry: Entry) {
        self.bytes += entry.bytes();
        self.by_use.put(key, entry);
    }

    fn remove(&mut self, key: PromptKey) {
        if let Some(entry) = self.by_use.pop(&key) {
            self.bytes -= entry.bytes();
        }
    }

    /// Takes some of the expired out, those that nobody asked for any more: more than one, so that they become fewer.
    fn take_back(&mut self, now: Instant) {
        for _ in 0..2 {
            if self.by_use.peek_lru().is_some_and(|(_, entry)| !entry.is_alive(now)) {
                self.pop();
            }
        }
    }

    /// Takes the least recently used out.
    fn pop(&mut self) -> Option<Entry> {
        let (_, entry) = self.by_use.pop_lru()?;
        self.bytes -= entry.bytes();
        Some(entry)
    }
}

impl Entry {
    /// The memory that it takes: tokens and their `Arc`'s two counters, rounded up as jemalloc does (by up to a fourth).
    fn bytes(&self) -> usize {
        let tokens = 2 * size_of::<usize>() + size_of_val::<[u32]>(&self.tokens);
        let step = (tokens.next_power_of_two() / 8).max(16);
        ENTRY_BYTES + tokens.next_multiple_of(step)
    }

    fn is_alive(&self, now: Instant) -> bool {
        now < self.expires
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
        let _ = (cache.peek(A, now), cache.peek(B, now));
        assert_eq!((cache.counters.hits.get(), cache.counters.misses.get()), (0, 0));
        let _ = [now, now, now, now + TTL].map(|now| cache.get(A, now));
        let _ = cache.get(B, now);
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
        let _ = (cache.get(A, now), cache.peek(B, now));
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

    #[test]
    fn what_nobody_asks_for_any_more_is_taken_back_after_it_expired() {
        let cache = cache(100, 1 << 20);
        let now = Instant::now();
        for key in 0..50 {
            cache.insert(PromptKey(key), tokens(100, 1), now);
        }
        for key in 50..75 {
            cache.insert(PromptKey(key), tokens(100, 1), now + TTL);
        }
        assert_eq!(cache.entries(), 25, "faster than new ones come");
    }

    #[test]
    fn what_had_expired_was_not_evicted() {
        let cache = cache(1, 1 << 20);
        let now = Instant::now();
        cache.insert(A, tokens(1, 1), now);
        cache.insert(B, tokens(1, 1), now + TTL);
        assert_eq!((cache.entries(), cache.counters.evictions.get()), (1, 0));
        cache.insert(C, tokens(1, 1), now + TTL);
        assert_eq!((cache.entries(), cache.counters.evictions.get()), (1, 1));
    }

    #[test]
    fn nobody_reads_tokens_in_its_debug_form() {
        let cache = cache(100, 1 << 20);
        cache.insert(A, tokens(1, 424_242), Instant::now());
        assert!(!format!("{cache:?}").contains("424242"));
    }

    proptest! {
        #[test]
        fn bounds_hold_and_nothing_wrong_is_found_after_any_calls(
            max_size in 1_usize..6,
            max_bytes in 0_usize..4 * ENTRY_BYTES,
            steps in prop::collection::vec((0_u128..8, 0_usize..80, 0_u64..30, any::<bool>()), 0..200),
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
                let entries = cache.entries.lock();
                let sum: usize = entries.by_use.iter().map(|(_, entry)| entry.bytes()).sum();
                prop_assert!(entries.bytes == sum && sum <= max_bytes && entries.by_use.len() <= max_size);
            }
        }
    }
}
