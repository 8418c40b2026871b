//! The prefix cache of a simulated engine: which blocks are computed, which are in use, which go first.
//!
//! A plain struct without time or locks. Blocks in use stay; the others leave in the order in which they were last
//! used, of one prompt the last block first. Bounded by its capacity in blocks.

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

/// The blocks of one engine.
#[derive(Debug)]
pub(super) struct BlockCache {
    capacity: usize,
    blocks: HashMap<u64, Block>,
    /// Blocks that nobody holds, the least recently used first.
    idle: BTreeMap<u64, u64>,
    clock: u64,
}

impl BlockCache {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, blocks: HashMap::new(), idle: BTreeMap::new(), clock: 0 }
    }

    /// How many blocks from the start are there.
    pub(super) fn matched(&self, keys: &[u64]) -> usize {
        keys.iter().take_while(|key| self.blocks.contains_key(key)).count()
    }

    /// Takes the blocks of a prompt into use and adds those that are missing. Returns how many are held, which is
    /// less than all when the rest of the cache is in use.
    pub(super) fn hold(&mut self, keys: &[u64]) -> usize {
        for (index, key) in keys.iter().enumerate() {
            if !self.blocks.contains_key(key) && !self.make_room() {
                return index;
            }
            let block = self.blocks.entry(*key).or_default();
            if block.holders == 0 {
                self.idle.remove(&block.idle_since);
            }
            block.holders += 1;
        }
        keys.len()
    }

    fn make_room(&mut self) -> bool {
        if self.blocks.len() < self.capacity {
            return true;
        }
        let oldest = self.idle.pop_first();
        oldest.is_some_and(|(_, key)| self.blocks.remove(&key).is_some())
    }

    /// Gives blocks back that [`hold`](Self::hold) took.
    pub(super) fn release(&mut self, keys: &[u64]) {
        for key in keys.iter().rev() {
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

    /// Runs a prompt to its end.
    fn run(cache: &mut BlockCache, keys: &[u64]) -> usize {
        let held = cache.hold(keys);
        cache.release(&keys[..held]);
        held
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
    fn blocks_in_use_stay() {
        let mut cache = BlockCache::new(3);
        assert_eq!(cache.hold(&[1, 2]), 2);
        assert_eq!(run(&mut cache, &[3, 4]), 1);
        assert_eq!((cache.matched(&[1, 2]), cache.matched(&[3, 4])), (2, 1));
        cache.release(&[1, 2]);
        assert_eq!(run(&mut cache, &[5, 6, 7]), 3);
    }

    #[test]
    fn a_shared_block_is_in_use_until_its_last_holder_gives_it_back() {
        let mut cache = BlockCache::new(1);
        cache.hold(&[1]);
        cache.hold(&[1]);
        cache.release(&[1]);
        assert_eq!(run(&mut cache, &[2]), 0);
        cache.release(&[1]);
        assert_eq!(run(&mut cache, &[2]), 1);
    }

    #[test]
    fn a_prompt_does_not_push_out_its_own_start() {
        let mut cache = BlockCache::new(2);
        run(&mut cache, &[1, 2]);
        assert_eq!(cache.hold(&[1, 2, 3]), 2);
        assert_eq!(cache.matched(&[1, 2]), 2);
    }

    #[test]
    fn forgetting_spares_what_is_in_use() {
        let mut cache = BlockCache::new(4);
        run(&mut cache, &[1]);
        cache.hold(&[2]);
        cache.forget();
        assert_eq!((cache.matched(&[1]), cache.matched(&[2])), (0, 1));
    }
}
