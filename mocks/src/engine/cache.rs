//! The KV memory of a simulated engine: which blocks hold the start of a prompt, which are in use, which go first.
//!
//! A plain struct without time or locks, used by `batch`. Blocks in use stay; the others leave in the order in which
//! they were last used, of one prompt the last block first. Bounded by its capacity in blocks.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

/// The keys of a prompt's full blocks; each depends on all tokens before it and on the salt.
pub(super) fn block_keys(tokens: &[u32], block_size: usize, salt: &str) -> Vec<u64> {
    let mut key = 0;
    tokens
        .chunks_exact(block_size)
        .map(|block| {
            let mut hasher = DefaultHasher::new();
            (key, salt, block).hash(&mut hasher);
            key = hasher.finish();
            key
        })
        .collect()
}

#[derive(Debug, Default)]
struct Block {
    holders: usize,
    /// Its place in `idle` while nobody holds it.
    idle_since: u64,
}

/// What one request holds: the blocks at the start of its prompt that can be found, and others that cannot.
#[derive(Debug, Default)]
pub(super) struct Held {
    found: usize,
    hidden: usize,
}

/// The blocks of one engine.
#[derive(Debug)]
pub(super) struct BlockCache {
    capacity: usize,
    blocks: HashMap<u64, Block>,
    /// Blocks that nobody holds, the least recently used first.
    idle: BTreeMap<u64, u64>,
    /// Blocks of answers, and of prompts that are being computed.
    hidden: usize,
    clock: u64,
}

impl BlockCache {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, blocks: HashMap::new(), idle: BTreeMap::new(), hidden: 0, clock: 0 }
    }

    /// How many blocks from the start are there.
    pub(super) fn matched(&self, keys: &[u64]) -> usize {
        keys.iter().take_while(|key| self.blocks.contains_key(key)).count()
    }

    /// How many blocks are held.
    pub(super) fn in_use(&self) -> usize {
        self.blocks.len() - self.idle.len() + self.hidden
    }

    /// Takes blocks that were matched into use, and so many in all; `None` while others hold what is needed. Who asks
    /// for more than there is gets all.
    pub(super) fn take(&mut self, matched: &[u64], in_all: usize) -> Option<Held> {
        let resting = |key: &&u64| self.blocks.get(key).is_some_and(|block| block.holders == 0);
        let resting = matched.iter().filter(resting).count();
        let hidden = in_all.min(self.capacity).saturating_sub(matched.len());
        if self.in_use() + resting + hidden > self.capacity {
            return None;
        }
        for key in matched {
            self.hold(*key);
        }
        self.hidden += hidden;
        while self.blocks.len() + self.hidden > self.capacity
            && let Some((_, key)) = self.idle.pop_first()
        {
            self.blocks.remove(&key);
        }
        Some(Held { found: matched.len(), hidden })
    }

    fn hold(&mut self, key: u64) {
        let block = self.blocks.entry(key).or_default();
        if block.holders == 0 {
            self.idle.remove(&block.idle_since);
        }
        block.holders += 1;
    }

    /// The prompt is computed: its blocks can be found from now on, as far as there was room for it.
    pub(super) fn publish(&mut self, keys: &[u64], held: &mut Held) {
        for key in keys.iter().skip(held.found).take(held.hidden) {
            self.hold(*key);
            (held.found, held.hidden, self.hidden) = (held.found + 1, held.hidden - 1, self.hidden - 1);
        }
    }

    /// Gives everything back that a request with these keys held.
    pub(super) fn release(&mut self, keys: &[u64], held: &Held) {
        self.hidden -= held.hidden;
        for key in keys.iter().take(held.found).rev() {
            let Some(block) = self.blocks.get_mut(key) else {
                continue;
            };
            block.holders = block.holders.saturating_sub(1);
            if block.holders == 0 {
                self.clock += 1;
                block.idle_since = self.clock;
                self.idle.insert(self.clock, *key);
            }
        }
    }

    /// Drops what nobody holds.
    pub(super) fn forget(&mut self) {
        self.blocks.retain(|_, block| block.holders > 0);
        self.idle.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computes a prompt, which stays in use.
    fn begin(cache: &mut BlockCache, keys: &[u64]) -> Option<Held> {
        let mut held = cache.take(&keys[..cache.matched(keys)], keys.len())?;
        cache.publish(keys, &mut held);
        Some(held)
    }

    /// Runs a prompt to its end.
    fn run(cache: &mut BlockCache, keys: &[u64]) {
        let held = begin(cache, keys).unwrap();
        cache.release(keys, &held);
    }

    #[test]
    fn keys_depend_on_all_before_them_and_on_the_salt() {
        let tokens: Vec<u32> = (0..35).collect();
        let keys = block_keys(&tokens, 16, "");
        assert_eq!(keys.len(), 2);
        assert_ne!(keys[0], block_keys(&tokens[16..], 16, "")[0]);
        let mut other = tokens.clone();
        other[0] = 99;
        assert_ne!(keys[1], block_keys(&other, 16, "")[1]);
        assert_ne!(keys[0], block_keys(&tokens, 16, "tenant")[0]);
        assert_eq!(keys, block_keys(&tokens[..32], 16, ""));
    }

    #[test]
    fn a_prompt_is_found_up_to_where_it_differs() {
        let mut cache = BlockCache::new(10);
        run(&mut cache, &[1, 2, 3]);
        assert_eq!(cache.matched(&[1, 2, 3, 4]), 3);
        assert_eq!(cache.matched(&[1, 9, 3]), 1);
        assert_eq!(cache.matched(&[9, 2, 3]), 0);
    }

    #[test]
    fn a_prompt_is_found_once_it_is_computed() {
        let mut cache = BlockCache::new(10);
        let mut held = cache.take(&[], 3).unwrap();
        assert_eq!((cache.matched(&[1, 2]), cache.in_use()), (0, 3));
        cache.publish(&[1, 2], &mut held);
        assert_eq!((cache.matched(&[1, 2]), cache.in_use()), (2, 3));
        cache.release(&[1, 2], &held);
        assert_eq!((cache.matched(&[1, 2]), cache.in_use()), (2, 0));
    }

    #[test]
    fn the_least_recently_used_block_leaves_first_and_of_a_prompt_the_last() {
        let mut cache = BlockCache::new(4);
        run(&mut cache, &[1, 2]);
        run(&mut cache, &[3, 4]);
        run(&mut cache, &[1, 2]);
        run(&mut cache, &[5]);
        assert_eq!((cache.matched(&[1, 2]), cache.matched(&[3, 4]), cache.matched(&[5])), (2, 1, 1));
        run(&mut cache, &[6, 7]);
        assert_eq!((cache.matched(&[1, 2]), cache.matched(&[3])), (1, 0));
    }

    #[test]
    fn blocks_in_use_stay_and_who_finds_no_room_waits() {
        let mut cache = BlockCache::new(3);
        let held = begin(&mut cache, &[1, 2]).unwrap();
        assert!(cache.take(&[], 2).is_none());
        run(&mut cache, &[3]);
        assert_eq!((cache.matched(&[1, 2]), cache.matched(&[3])), (2, 1));
        cache.release(&[1, 2], &held);
        run(&mut cache, &[5, 6, 7]);
    }

    #[test]
    fn what_rests_takes_room_again_when_it_is_used() {
        let mut cache = BlockCache::new(4);
        run(&mut cache, &[1, 2]);
        let other = cache.take(&[], 2).unwrap();
        assert!(cache.take(&[1, 2], 3).is_none());
        cache.release(&[], &other);
        assert!(cache.take(&[1, 2], 3).is_some());
    }

    #[test]
    fn tokens_of_an_answer_push_out_what_rests() {
        let mut cache = BlockCache::new(4);
        run(&mut cache, &[1, 2, 3]);
        let answer = cache.take(&[], 3).unwrap();
        assert_eq!(cache.matched(&[1, 2, 3]), 1);
        cache.release(&[], &answer);
        assert_eq!((cache.in_use(), cache.matched(&[1, 2, 3])), (0, 1));
    }

    #[test]
    fn a_shared_block_takes_room_once_and_is_in_use_until_its_last_holder_gives_it_back() {
        let mut cache = BlockCache::new(2);
        let (first, second) = (begin(&mut cache, &[1]).unwrap(), begin(&mut cache, &[1]).unwrap());
        assert_eq!(cache.in_use(), 1);
        cache.release(&[1], &first);
        assert!(cache.take(&[], 2).is_none());
        cache.release(&[1], &second);
        assert!(cache.take(&[], 2).is_some());
    }

    #[test]
    fn what_two_compute_at_a_time_is_kept_once() {
        let mut cache = BlockCache::new(4);
        let (mut first, mut second) = (cache.take(&[], 2).unwrap(), cache.take(&[], 2).unwrap());
        cache.publish(&[1, 2], &mut first);
        cache.publish(&[1, 2], &mut second);
        assert_eq!(cache.in_use(), 2);
        cache.release(&[1, 2], &first);
        cache.release(&[1, 2], &second);
        assert_eq!((cache.in_use(), cache.matched(&[1, 2])), (0, 2));
    }

    #[test]
    fn a_prompt_larger_than_the_memory_gets_all_of_it_and_does_not_push_out_its_own_start() {
        let mut cache = BlockCache::new(2);
        run(&mut cache, &[1, 2]);
        let held = begin(&mut cache, &[1, 2, 3]).unwrap();
        assert_eq!((cache.matched(&[1, 2, 3]), cache.in_use()), (2, 2));
        cache.release(&[1, 2, 3], &held);
        assert_eq!(cache.in_use(), 0);
    }

    #[test]
    fn forgetting_spares_what_is_in_use() {
        let mut cache = BlockCache::new(4);
        run(&mut cache, &[1]);
        let _held = begin(&mut cache, &[2]).unwrap();
        cache.forget();
        assert_eq!((cache.matched(&[1]), cache.matched(&[2])), (0, 1));
    }
}
