//! The shadow of one backend's prefix cache: its blocks from the youngest to the oldest, bounded in tokens.
//!
//! Called by `state::blocks` alone, under the backend's lock; it keeps the index in step. Bounded by `capacity`, but for the
//! time of one call also by the blocks of one prompt. Every prompt touches all its blocks, the last one first, so a block
//! is always younger than those that extend it: what goes first is the end of something, and eviction makes no holes.

use super::BlockKey;
use super::index::{Found, Index, Writer};
use super::lru::{Lru, Node, Slot};

/// Spent tokens are gathered until they are so many, so that they never have more nodes than `capacity` divided by it.
pub(super) const SPENT_TOKENS_MIN: usize = 256;

/// How many tries in flight a block owes it to that it counts as held.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Tries(u16);

impl Tries {
    /// Not a block, but tokens that are never found again.
    pub(super) const SPENT: Self = Self(0);
    const ONE: Self = Self(1);
    /// Some try's first token came back, so none is needed any more. (A block that 65,535 expect is taken for one.)
    const CONFIRMED: Self = Self(u16::MAX);
}

/// A try that expects blocks: its number, which is compared as those of TCP are, and so may wrap; the blocks it expects
/// are the first ones of its prompt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Try {
    number: u32,
    blocks: usize,
}

#[derive(Debug)]
pub(super) struct Cache {
    backend: usize,
    lru: Lru,
    tokens: usize,
    capacity: usize,
    /// Spent tokens that have no node yet; the youngest of all.
    gathered: usize,
    /// The number of the latest try.
    latest: u32,
}

impl Cache {
    pub(super) fn new(backend: usize, capacity: usize) -> Self {
        Self { backend, lru: Lru::new(), tokens: 0, capacity, gathered: 0, latest: 0 }
    }

    /// A try is sent. Returns it, and how many blocks had to go.
    pub(super) fn expect(&mut self, keys: &[BlockKey], block_tokens: usize, index: &Index) -> (Try, usize) {
        self.latest = self.latest.wrapping_add(1);
        let number = self.latest;
        let (blocks, evicted) = self.bring(keys, block_tokens, Some(number), index);
        (Try { number, blocks }, evicted)
    }

    /// The first token of a try is back. Returns how many blocks had to go.
    pub(super) fn confirm(&mut self, keys: &[BlockKey], block_tokens: usize, index: &Index) -> usize {
        self.bring(keys, block_tokens, None, index).1
    }

    /// A try failed: removes what nobody but it expected. Returns how many blocks that were.
    ///
    /// A block that is older than the try is the one that it touched, as what went and came back is younger.
    pub(super) fn withdraw(&mut self, keys: &[BlockKey], of: Try, index: &Index) -> usize {
        let before = self.lru.blocks();
        let mut held = index.writer(self.backend);
        for key in &keys[..of.blocks] {
            let Some(slot) = self.slot(held.find(*key), *key) else { continue };
            let node = &mut self.lru[slot];
            let is_expected =
                node.tries != Tries::CONFIRMED && of.number.wrapping_sub(node.born) <= u32::MAX / 2;
            match node.tries {
                Tries::ONE if is_expected => self.remove(slot, &mut held),
                Tries(tries) if is_expected => node.tries = Tries(tries - 1),
                _ => {}
            }
        }
        before - self.lru.blocks()
    }

    /// Removes the last of a prompt's blocks, back to one that a try in flight is about to bring: that brings all before it
    /// as well. Returns how many.
    pub(super) fn truncate(&mut self, beyond: &[BlockKey], index: &Index) -> usize {
        let before = self.lru.blocks();
        let mut held = index.writer(self.backend);
        for key in beyond.iter().rev() {
            let Some(slot) = self.slot(held.find(*key), *key) else { continue };
            if self.lru[slot].tries != Tries::CONFIRMED {
                break;
            }
            self.remove(slot, &mut held);
        }
        before - self.lru.blocks()
    }

    /// Whether a block is there only because a try in flight is about to bring it.
    pub(super) fn is_expected(&self, key: BlockKey, index: &Index) -> bool {
        let slot = self.slot(index.writer(self.backend).find(key), key);
        slot.is_some_and(|slot| self.lru[slot].tries != Tries::CONFIRMED)
    }

    /// Where a block is in the list, given what the index says.
    fn slot(&self, found: Found, key: BlockKey) -> Option<Slot> {
        match found {
            Found::Nothing => None,
            Found::At(slot) => Some(slot),
            Found::Listed => self.lru.find(key),
        }
    }

    /// Takes room for tokens that are never found again. Returns how many blocks had to go.
    pub(super) fn spend(&mut self, tokens: usize, index: &Index) -> usize {
        let tokens = tokens.min(self.capacity);
        self.tokens += tokens;
        self.gathered += tokens;
        while self.gathered >= SPENT_TOKENS_MIN {
            let tokens = u16::try_from(self.gathered).unwrap_or(u16::MAX);
            self.gathered -= usize::from(tokens);
            self.lru.insert(Node::new(BlockKey(0), tokens, Tries::SPENT, 0));
        }
        self.evict(&mut index.writer(self.backend))
    }

    /// Returns how many blocks had to go.
    pub(super) fn set_capacity(&mut self, tokens: usize, index: &Index) -> usize {
        self.capacity = tokens;
        self.evict(&mut index.writer(self.backend))
    }

    pub(super) fn clear(&mut self, index: &Index) {
        let mut held = index.writer(self.backend);
        for node in self.lru.iter().filter(|node| node.tries != Tries::SPENT) {
            held.remove(node.key);
        }
        self.lru = Lru::new();
        (self.tokens, self.gathered) = (0, 0);
    }

    /// Makes as many of a prompt's first blocks as there is room for the youngest, the very first one at last. They are
    /// expected by one more try, or confirmed. Returns how many they are, and how many others had to go.
    fn bring(
        &mut self,
        keys: &[BlockKey],
        block_tokens: usize,
        by: Option<u32>,
        index: &Index,
    ) -> (usize, usize) {
        let tokens = u16::try_from(block_tokens.max(1)).unwrap_or(u16::MAX);
        let blocks = keys.len().min(self.capacity / usize::from(tokens));
        // What a prompt touched before is in the list one after the other, and so is neither looked for nor moved one by one.
        let mut run = None::<(Slot, Slot)>;
        let mut held = index.writer(self.backend);
        let tries = by.map_or(Tries::CONFIRMED, |_| Tries::ONE);
        for key in keys[..blocks].iter().rev() {
            let next = run.map_or(Slot::NONE, |(_, youngest)| self.lru.younger(youngest));
            let known = if self.lru.is_at(*key, next) {
                run = run.map(|(oldest, _)| (oldest, next));
                Some(next)
            } else {
                self.touch(run);
                let add = || self.lru.insert(Node::new(*key, tokens, tries, by.unwrap_or_default()));
                let (found, listed) = held.hold(*key, add);
                listed.inspect(|slot| self.lru.list(*slot));
                let known = self.slot(found, *key);
                run = known.map(|slot| (slot, slot));
                if run.is_some() {
                    held.unlock();
                }
                known
            };
            self.tokens += usize::from(tokens);
            if let Some(slot) = known {
                let node = &mut self.lru[slot];
                self.tokens -= usize::from(node.tokens);
                node.tokens = tokens;
                node.tries = by.map_or(Tries::CONFIRMED, |_| Tries(node.tries.0.saturating_add(1)));
            }
        }
        self.touch(run);
        (blocks, self.evict(&mut held))
    }

    /// Makes those from the oldest to the youngest of a run the youngest of all.
    fn touch(&mut self, run: Option<(Slot, Slot)>) {
        if let Some((oldest, youngest)) = run {
            self.lru.touch(oldest, youngest);
        }
    }

    /// Lets the oldest go until there is room. Returns how many blocks went.
    fn evict(&mut self, held: &mut Writer<'_>) -> usize {
        let before = self.lru.blocks();
        while let Some(over) = self.tokens.checked_sub(self.capacity).filter(|over| *over > 0) {
            let Some(slot) = self.lru.oldest() else {
                self.tokens -= over;
                self.gathered -= over;
                break;
            };
            let node = &mut self.lru[slot];
            match u16::try_from(over) {
                Ok(part) if node.tries == Tries::SPENT && part < node.tokens => {
                    node.tokens -= part;
                    self.tokens -= over;
                }
                _ => self.remove(slot, held),
            }
        }
        before - self.lru.blocks()
    }

    fn remove(&mut self, slot: Slot, held: &mut Writer<'_>) {
        let node = self.lru[slot];
        self.tokens -= usize::from(node.tokens);
        if node.tries != Tries::SPENT && matches!(held.remove(node.key), Found::Listed) {
            self.lru.unlist(slot);
        }
        self.lru.remove(slot);
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

    /// The memory of the list, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.lru.bytes()
    }
}

#[cfg(test)]
impl Cache {
    /// It is whole, and its tokens are counted. Returns its blocks from the oldest to the youngest, and whether each is
    /// confirmed.
    pub(super) fn check(&self) -> Vec<(BlockKey, bool)> {
        self.lru.check();
        let tokens: usize = self.lru.iter().map(|node| usize::from(node.tokens)).sum();
        assert_eq!(tokens + self.gathered, self.tokens);
        assert!(self.lru.iter().all(|node| node.tokens > 0));
        assert!(self.tokens <= self.capacity && self.gathered < SPENT_TOKENS_MIN);
        let blocks = self.lru.iter().filter(|node| node.tries != Tries::SPENT);
        blocks.map(|node| (node.key, node.tries == Tries::CONFIRMED)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: [BlockKey; 3] = [BlockKey(1 << 40), BlockKey(2 << 40), BlockKey(3 << 40)];

    #[test]
    fn numbers_of_tries_may_wrap() {
        let index = Index::new(1);
        let mut cache = Cache::new(0, 1000);
        cache.latest = u32::MAX - 1;
        let (last, _) = cache.expect(&KEYS, 10, &index);
        let (first, _) = cache.expect(&KEYS, 10, &index);
        assert_eq!((last.number, first.number), (u32::MAX, 0));
        assert_eq!(cache.withdraw(&KEYS, first, &index), 0, "the try before it expects them still");
        assert_eq!(cache.withdraw(&KEYS, last, &index), 3);

        cache.latest = u32::MAX - 1;
        let (last, _) = cache.expect(&KEYS, 10, &index);
        cache.clear(&index);
        let (first, _) = cache.expect(&KEYS[..2], 10, &index);
        assert_eq!(cache.withdraw(&KEYS, last, &index), 0, "what it brought is gone, and others came");
        assert_eq!(cache.withdraw(&KEYS, first, &index), 2);
    }

    #[test]
    fn a_try_withdraws_only_what_it_had_room_for() {
        let index = Index::new(1);
        let mut cache = Cache::new(0, 25);
        let (all, _) = cache.expect(&KEYS, 5, &index);
        let (two, _) = cache.expect(&KEYS, 10, &index);
        assert_eq!((two.blocks, cache.blocks()), (2, 3), "the third has room by its old weight");
        assert_eq!(cache.withdraw(&KEYS, two, &index), 0);
        assert_eq!(cache.withdraw(&KEYS, all, &index), 3);
    }

    #[test]
    fn spent_tokens_are_never_taken_for_a_block() {
        let index = Index::new(1);
        let mut cache = Cache::new(0, 1000);
        cache.expect(&KEYS[..1], 10, &index);
        cache.spend(SPENT_TOKENS_MIN, &index);
        let prompt = [BlockKey(0), KEYS[0]];
        cache.expect(&prompt, 10, &index);
        assert_eq!((index.held(&prompt, 1), cache.blocks()), (vec![2], 2));
        assert_eq!(cache.tokens(), 20 + SPENT_TOKENS_MIN);
    }

    #[test]
    fn spent_tokens_have_few_nodes_however_few_come_at_a_time() {
        let index = Index::new(1);
        let mut cache = Cache::new(0, 100 * SPENT_TOKENS_MIN);
        for tokens in (0..5).cycle().take(50_000) {
            cache.spend(tokens, &index);
            assert!(cache.lru.iter().count() <= 100);
        }
        assert_eq!(cache.tokens(), cache.capacity());
        cache.check();
        cache.spend(usize::MAX, &index);
        assert_eq!((cache.tokens(), cache.lru.iter().count()), (cache.capacity(), 1));
    }
}
