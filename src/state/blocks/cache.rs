//! The shadow of one backend's prefix cache: its blocks from the youngest to the oldest, bounded in tokens.
//!
//! Called by `state::blocks` alone, under the backend's lock; it keeps the index in step. It takes no time and knows no
//! prompt but by its keys.

use super::BlockKey;
use super::index::Index;
use super::lru::Lru;

/// Spent tokens are kept together until they are this many, so that there are never more nodes than `capacity` / this for them.
const SPENT_TOKENS_MIN: usize = 256;

/// To whom a block owes that it counts as held.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Owner(u32);

impl Owner {
    /// To nobody: some try's first token came back.
    pub(super) const CONFIRMED: Self = Self(0);
    /// No block, but tokens that are never found again.
    const SPENT: Self = Self(1);
    const FIRST_TRY: u32 = 2;
}

#[derive(Debug)]
pub(super) struct Cache {
    backend: usize,
    lru: Lru,
    tokens: usize,
    capacity: usize,
    /// Spent tokens that have no node yet; the youngest of all.
    gathered: usize,
    tries: u32,
}

impl Cache {
    pub(super) fn new(backend: usize, capacity: usize) -> Self {
        Self { backend, lru: Lru::new(), tokens: 0, capacity, gathered: 0, tries: 0 }
    }

    /// An owner that is nobody else's: only a try that is in flight while 2³² others begin could meet its own again.
    pub(super) fn next_owner(&mut self) -> Owner {
        self.tries = self.tries.wrapping_add(1).max(Owner::FIRST_TRY);
        Owner(self.tries)
    }

    /// Makes all blocks of a prompt the youngest, the first one at last. What is new or expected is `owner`'s from now on.
    /// Returns how many blocks had to go.
    pub(super) fn bring(
        &mut self,
        keys: &[BlockKey],
        block_tokens: usize,
        owner: Owner,
        index: &Index,
    ) -> usize {
        let tokens = u32::try_from(block_tokens.max(1)).unwrap_or(u32::MAX);
        let room = self.capacity / tokens as usize;
        for key in keys.iter().take(room).rev() {
            self.tokens += tokens as usize;
            if let Some(slot) = self.lru.find(*key) {
                self.lru.touch(slot);
                let node = &mut self.lru[slot];
                self.tokens -= node.tokens as usize;
                node.tokens = tokens;
                if node.owner != Owner::CONFIRMED {
                    node.owner = owner;
                }
            } else {
                self.lru.insert(*key, tokens, owner);
                index.insert(*key, self.backend);
            }
        }
        self.evict(index)
    }

    /// Takes room for tokens that are never found again. Returns how many blocks had to go.
    pub(super) fn spend(&mut self, tokens: usize, index: &Index) -> usize {
        let tokens = tokens.min(self.capacity);
        self.tokens += tokens;
        self.gathered += tokens;
        if self.gathered >= SPENT_TOKENS_MIN {
            let tokens = u32::try_from(self.gathered).unwrap_or(u32::MAX);
            self.gathered -= tokens as usize;
            self.lru.push(BlockKey(0), tokens, Owner::SPENT);
        }
        self.evict(index)
    }

    /// Removes those of the blocks that are `owner`'s. Returns how many.
    pub(super) fn remove(&mut self, keys: &[BlockKey], owner: Owner, index: &Index) -> usize {
        let before = self.lru.blocks();
        for key in keys {
            if let Some(slot) = self.lru.find(*key).filter(|slot| self.lru[*slot].owner == owner) {
                self.remove_slot(slot, index);
            }
        }
        before - self.lru.blocks()
    }

    /// Removes the last of a prompt's blocks, back to one that a try in flight is about to bring: that brings all before it
    /// as well. Returns how many.
    pub(super) fn truncate(&mut self, keys: &[BlockKey], index: &Index) -> usize {
        let before = self.lru.blocks();
        for key in keys.iter().rev() {
            let Some(slot) = self.lru.find(*key) else { continue };
            if self.lru[slot].owner != Owner::CONFIRMED {
                break;
            }
            self.remove_slot(slot, index);
        }
        before - self.lru.blocks()
    }

    /// Whether a block is there only because a try in flight is about to bring it.
    pub(super) fn is_expected(&self, key: BlockKey) -> bool {
        self.lru.find(key).is_some_and(|slot| self.lru[slot].owner != Owner::CONFIRMED)
    }

    pub(super) fn set_capacity(&mut self, tokens: usize, index: &Index) -> usize {
        self.capacity = tokens;
        self.evict(index)
    }

    pub(super) fn clear(&mut self, index: &Index) {
        for node in self.lru.iter().filter(|node| node.owner != Owner::SPENT) {
            index.remove(node.key, self.backend);
        }
        self.lru = Lru::new();
        (self.tokens, self.gathered) = (0, 0);
    }

    /// Lets the oldest go until there is room. Returns how many blocks went.
    fn evict(&mut self, index: &Index) -> usize {
        let before = self.lru.blocks();
        while self.tokens > self.capacity {
            let over = self.tokens - self.capacity;
            let Some(slot) = self.lru.oldest() else {
                self.gathered -= over;
                self.tokens -= over;
                break;
            };
            let node = &mut self.lru[slot];
            match u32::try_from(over) {
                Ok(part) if node.owner == Owner::SPENT && part < node.tokens => {
                    node.tokens -= part;
                    self.tokens -= over;
                }
                _ => self.remove_slot(slot, index),
            }
        }
        before - self.lru.blocks()
    }

    fn remove_slot(&mut self, slot: u32, index: &Index) {
        let node = self.lru.remove(slot);
        self.tokens -= node.tokens as usize;
        if node.owner != Owner::SPENT {
            index.remove(node.key, self.backend);
        }
    }

    pub(super) fn blocks(&self) -> usize {
        self.lru.blocks()
    }

    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(super) fn bytes(&self) -> usize {
        self.lru.bytes()
    }
}
