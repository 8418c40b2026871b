//! What the engines' prefix caches are believed to hold: block of a prompt → backends, without asking any engine.
//!
//! Called by `proxy`: [`Blocks::held`] before a backend is chosen, [`Blocks::expect`] with each try,
//! [`Expected::confirm`] with its first token, the rest as the engine side tells more. Each backend has a shadow of its
//! cache, an exact LRU list (`cache.rs`) that is bounded by that cache's capacity in tokens; one index over all of them
//! (`index.rs`) answers which of them hold a block. It knows nothing of prompts, models or time, and decides nothing.
//!
//! Every prompt that is sent touches all its blocks, the last first. So a block is always younger than those that extend
//! it, the oldest block is always the end of what is held of some prompt, and eviction makes no holes.
//!
//! Locks: a backend's own, and inside it, shortly, the index's. Never the other way round, never two backends'.

mod cache;
mod index;
mod lru;
mod table;

use cache::{Cache, Try};
use index::Index;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Key of one block of a prompt; stands for all the text up to the block's end, so equal keys = equal prefixes.
///
/// It is a hash already, spread over all its bits, and used as one; with a secret, nobody can make tables slow.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct BlockKey(pub u64);

impl BlockKey {
    const SHARDS: usize = 256;
    /// Blocks of a prompt, one after the other, that belong to one shard.
    const GROUP: usize = 16;
    /// Where in a key its shard stands: bits that hash tables do not use.
    const SHARD_SHIFT: u32 = 32;

    /// Keys made of the hashes of a prompt's blocks, from the first.
    ///
    /// Those of a group belong to the shard of its first one, so that one lock is taken for all of them. (Of two blocks in
    /// groups that begin alike, 56 bits are left to tell them apart.)
    pub fn of_prompt(hashes: impl Iterator<Item = u64>) -> Arc<[Self]> {
        let mut shard = 0;
        let key = |(block, hash): (usize, u64)| {
            if block % Self::GROUP == 0 {
                shard = Self::shard_of(hash);
            }
            let mask = (Self::SHARDS as u64 - 1) << Self::SHARD_SHIFT;
            Self(hash & !mask | shard << Self::SHARD_SHIFT)
        };
        hashes.enumerate().map(key).collect()
    }

    /// The last shards are larger than the first ones, so that they do not all grow at the same time.
    fn shard_of(hash: u64) -> u64 {
        let [.., one, other, _, _] = hash.to_le_bytes();
        u64::from(one.max(other))
    }

    fn shard(self) -> usize {
        (self.0 >> Self::SHARD_SHIFT) as usize % Self::SHARDS
    }
}

/// The shadows of the caches of one cluster's backends.
#[derive(Debug)]
pub struct Blocks {
    caches: Box<[Mutex<Cache>]>,
    index: Index,
    evicted: AtomicU64,
    withdrawn: AtomicU64,
    truncated: AtomicU64,
}

impl Blocks {
    /// Empty shadows, one per backend in the order of their indexes, each of a capacity in tokens.
    #[must_use]
    pub fn new(capacities_tokens: &[usize]) -> Self {
        let cache = |(backend, &capacity)| Mutex::new(Cache::new(backend, capacity));
        Self {
            caches: capacities_tokens.iter().enumerate().map(cache).collect(),
            index: Index::new(capacities_tokens.len()),
            evicted: AtomicU64::new(0),
            withdrawn: AtomicU64::new(0),
            truncated: AtomicU64::new(0),
        }
    }

    /// How many of a prompt's blocks each backend holds from the first on without a gap, expected ones included; by index.
    ///
    /// Takes time by the blocks that somebody holds, whatever the number of backends (up to 32, and again for each 32
    /// more) and of blocks that are kept.
    #[must_use]
    pub fn held(&self, keys: &[BlockKey]) -> Vec<usize> {
        self.index.held(keys, self.caches.len())
    }

    /// A try with this prompt goes to `backend`: all its blocks count as held and as just used. What has no room goes,
    /// the least recently used first; of a prompt that is larger than the cache, the end.
    #[must_use = "what is dropped unconfirmed is withdrawn"]
    pub fn expect(self: &Arc<Self>, backend: usize, keys: &Arc<[BlockKey]>, block_tokens: usize) -> Expected {
        let (expecting, evicted) = self.caches[backend].lock().expect(keys, block_tokens, &self.index);
        count(&self.evicted, evicted);
        let (blocks, keys) = (Arc::clone(self), Arc::clone(keys));
        Expected { blocks, backend, keys, block_tokens, expecting: Some(expecting) }
    }

    /// Tokens that take room at `backend` and are never found again: the rest of a prompt after its last block, the output.
    pub fn spend(&self, backend: usize, tokens: usize) {
        let evicted = self.caches[backend].lock().spend(tokens, &self.index);
        count(&self.evicted, evicted);
    }

    /// The engine side says that `backend` holds only the first `held` of these blocks: the others go, but for those
    /// that a try in flight is about to bring.
    pub fn truncate(&self, backend: usize, keys: &[BlockKey], held: usize) {
        let beyond = keys.get(held..).unwrap_or_default();
        let truncated = self.caches[backend].lock().truncate(beyond, &self.index);
        count(&self.truncated, truncated);
    }

    /// Whether `backend` holds this block only because a try in flight is about to bring it, and with it all before it.
    #[must_use]
    pub fn is_expected(&self, backend: usize, key: BlockKey) -> bool {
        self.caches[backend].lock().is_expected(key, &self.index)
    }

    /// `backend` holds nothing any more: its engine has restarted, or sleeps.
    pub fn clear(&self, backend: usize) {
        self.caches[backend].lock().clear(&self.index);
    }

    /// Changes a capacity, in tokens; what has no room any more goes at once.
    pub fn set_capacity(&self, backend: usize, tokens: usize) {
        let evicted = self.caches[backend].lock().set_capacity(tokens, &self.index);
        count(&self.evicted, evicted);
    }

    /// The blocks that `backend` is believed to hold.
    #[must_use]
    pub fn blocks(&self, backend: usize) -> usize {
        self.caches[backend].lock().blocks()
    }

    /// The tokens that take room at `backend`: those of its blocks, and those that were spent.
    #[must_use]
    pub fn tokens(&self, backend: usize) -> usize {
        self.caches[backend].lock().tokens()
    }

    /// The tokens that `backend` has room for.
    #[must_use]
    pub fn capacity(&self, backend: usize) -> usize {
        self.caches[backend].lock().capacity()
    }

    /// The memory that all of it takes, in bytes, by the sizes of its tables.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let caches: usize =
            self.caches.iter().map(|cache| size_of::<Mutex<Cache>>() + cache.lock().bytes()).sum();
        size_of::<Self>() + caches + self.index.bytes()
    }

    /// Blocks that went for want of room, so far.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// Blocks that went because the try that was to bring them failed, so far.
    #[must_use]
    pub fn withdrawn(&self) -> u64 {
        self.withdrawn.load(Ordering::Relaxed)
    }

    /// Blocks that went because the engine side said that they were not there, so far.
    #[must_use]
    pub fn truncated(&self) -> u64 {
        self.truncated.load(Ordering::Relaxed)
    }
}

fn count(counter: &AtomicU64, blocks: usize) {
    if blocks > 0 {
        counter.fetch_add(blocks as u64, Ordering::Relaxed);
    }
}

/// A try that was sent: its blocks count as held. Dropped unconfirmed (the try failed), what it alone brought is withdrawn.
#[derive(Debug)]
pub struct Expected {
    blocks: Arc<Blocks>,
    backend: usize,
    keys: Arc<[BlockKey]>,
    block_tokens: usize,
    /// Until it is confirmed.
    expecting: Option<Try>,
}

impl Expected {
    /// Where the try was sent.
    #[must_use]
    pub fn backend(&self) -> usize {
        self.backend
    }

    /// The first token is back, so the whole prompt is in the cache and was just used. Further calls change nothing.
    ///
    /// What went in between comes back: engines keep the blocks of a prompt in work, whoever else wants room.
    pub fn confirm(&mut self) {
        if self.expecting.take().is_some() {
            let Self { blocks, backend, keys, block_tokens, .. } = self;
            let evicted = blocks.caches[*backend].lock().confirm(keys, *block_tokens, &blocks.index);
            count(&blocks.evicted, evicted);
        }
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        if let Some(expecting) = self.expecting.take() {
            let Self { blocks, backend, keys, .. } = self;
            let withdrawn = blocks.caches[*backend].lock().withdraw(keys, expecting, &blocks.index);
            count(&blocks.withdrawn, withdrawn);
        }
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
