//! The shadow of one backend's prefix cache: its blocks from the youngest to the oldest, bounded in tokens.
//!
//! Called by `state::blocks` alone, under the backend's lock; it keeps the index in step. Bounded by `capacity`, but for the
//! time of one call also by the blocks of one prompt. Every prompt touches all its blocks, the last one first, so a block
//! is always younger than those that extend it: what goes first is the end of something, and eviction makes no holes.

use super::BlockKey;
use super::index::{Found, Held, Index, Writer};
use super::lru::{Lru, Node, Slot};

/// The most blocks of a run: of so many, at most, the index has to be told where they are when one is split. (Prompts of tests are
/// short.)
const RUN_BLOCKS: usize = if cfg!(test) { 3 } else { 16 };

/// Spent tokens are gathered until they are so many, so that they never have more nodes than `capacity` divided by it.
pub(super) const SPENT_TOKENS_MIN: usize = 256;

/// How many tries in flight a block owes it to that it counts as held.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Tries(u16);

impl Tries {
    /// Not of blocks, but of tokens that are never found again.
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
        Self { backend, lru: Lru::default(), tokens: 0, capacity, gathered: 0, latest: 0 }
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
        let mut left = &keys[..of.blocks];
        while let [key, rest @ ..] = left {
            let Some((slot, at)) = self.find(*key, &mut held) else {
                left = rest;
                continue;
            };
            let node = &mut self.lru[slot];
            let of_run = left.iter().zip(&node.keys()[at..]).take_while(|(key, other)| key == other);
            left = &left[of_run.count()..];
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
        let mut left = beyond;
        while let [rest @ .., key] = left {
            left = rest;
            let Some((slot, at)) = self.find(*key, &mut held) else { continue };
            if self.lru[slot].tries != Tries::CONFIRMED {
                break;
            }
            let kept = at.saturating_sub(rest.len());
            left = rest.get(..rest.len() - (at - kept)).unwrap_or_default();
            self.split(slot, at + 1, &mut held);
            let slot = self.split(slot, kept, &mut held);
            self.remove(slot, &mut held);
        }
        before - self.lru.blocks()
    }

    /// Whether a block is there only because a try in flight is about to bring it.
    pub(super) fn is_expected(&self, key: BlockKey, index: &Index) -> bool {
        let found = self.find(key, &mut index.writer(self.backend));
        found.is_some_and(|(slot, _)| self.lru[slot].tries != Tries::CONFIRMED)
    }

    /// Where a block is in the list, and the how many-th of its run.
    fn find(&self, key: BlockKey, held: &mut Writer<'_>) -> Option<(Slot, usize)> {
        self.located(held.find(key), key)
    }

    /// The same, given what the index says.
    fn located(&self, found: Found, key: BlockKey) -> Option<(Slot, usize)> {
        let slot = match found {
            Found::Nothing => return None,
            Found::At(slot) => slot,
            Found::Listed => self.lru.find(key)?,
        };
        let at = self.lru[slot].keys().iter().position(|other| *other == key)?;
        Some((slot, at))
    }

    /// Takes room for tokens that are never found again. Returns how many blocks had to go.
    pub(super) fn spend(&mut self, tokens: usize, index: &Index) -> usize {
        let tokens = tokens.min(self.capacity);
        self.tokens += tokens;
        self.gathered += tokens;
        while self.gathered >= SPENT_TOKENS_MIN {
            let tokens = u16::try_from(self.gathered).unwrap_or(u16::MAX);
            self.gathered -= usize::from(tokens);
            self.lru.insert(Node::new(&[], tokens, Tries::SPENT, 0));
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
        for key in self.lru.iter().flat_map(Node::keys) {
            held.remove(*key);
        }
        self.lru = Lru::default();
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
        let (tries, born) = by.map_or((Tries::CONFIRMED, 0), |number| (Tries::ONE, number));
        let mut held = index.writer(self.backend);
        let mut left = &keys[..blocks];
        while !left.is_empty() {
            let slot = self.lru.vacant();
            let mut known = None;
            let begins = left.len().saturating_sub(RUN_BLOCKS);
            let new = left[begins..].iter().rev().take_while(|key| match held.hold(**key, slot) {
                Held::Before(found) => {
                    known = Some(found);
                    false
                }
                Held::Placed => true,
                Held::Unplaced => {
                    self.lru.list(**key, slot);
                    true
                }
            });
            let (before, new) = left.split_at(left.len() - new.count());
            if !new.is_empty() {
                self.lru.insert(Node::new(new, tokens, tries, born));
                self.tokens += new.len() * usize::from(tokens);
            }
            left = before;
            if let Some(found) = known {
                held.unlock();
                left = self.renew(left, found, tokens, by.is_some(), &mut held);
            }
        }
        (blocks, self.evict(&mut held))
    }

    /// Makes the last of some blocks the youngest, and those before it that follow it in the list: what a prompt touched before is
    /// there one after the other, and so is neither looked for nor moved one by one. Returns the blocks that are left.
    fn renew<'a>(
        &mut self,
        mut keys: &'a [BlockKey],
        found: Found,
        tokens: u16,
        is_expected: bool,
        held: &mut Writer<'_>,
    ) -> &'a [BlockKey] {
        let Some((last, before)) = keys.split_last() else { return keys };
        let Some((oldest, at)) = self.located(found, *last) else { return before };
        // The rest of the run is of longer prompts.
        self.split(oldest, at + 1, held);
        let (mut youngest, mut next) = (oldest, oldest);
        while let Some(node) = self.lru.at(next)
            && let Some(before) = keys.strip_suffix(node.keys())
            && before.len() < keys.len()
        {
            self.tokens -= node.all_tokens();
            node.tokens = tokens;
            self.tokens += node.all_tokens();
            node.tries = if is_expected { Tries(node.tries.0.saturating_add(1)) } else { Tries::CONFIRMED };
            (youngest, next) = (next, node.younger());
            keys = before;
        }
        self.lru.touch(oldest, youngest);
        // Equal keys have equal ones before them, but for chance.
        if keys.len() > before.len() { before } else { keys }
    }

    /// Makes two of a run where something is on both sides of `at`. Returns where the latter part is then.
    fn split(&mut self, slot: Slot, at: usize, held: &mut Writer<'_>) -> Slot {
        if at == 0 || at == self.lru[slot].keys().len() {
            return slot;
        }
        let rest = self.lru.split(slot, at);
        for at in 0..self.lru[rest].keys().len() {
            let key = self.lru[rest].keys()[at];
            if !held.move_to(key, rest) {
                self.lru.unlist(key);
                self.lru.list(key, rest);
            }
        }
        rest
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
            if node.tries == Tries::SPENT && node.all_tokens() > over {
                node.tokens -= u16::try_from(over).unwrap_or_default();
                self.tokens -= over;
            } else {
                let blocks = over.div_ceil(usize::from(node.tokens)).min(node.keys().len());
                self.remove_oldest(slot, blocks, held);
            }
        }
        before - self.lru.blocks()
    }

    /// Removes a node.
    fn remove(&mut self, slot: Slot, held: &mut Writer<'_>) {
        self.remove_oldest(slot, self.lru[slot].keys().len(), held);
    }

    /// Removes the oldest `count` blocks of a run; or a node without any.
    fn remove_oldest(&mut self, slot: Slot, count: usize, held: &mut Writer<'_>) {
        self.tokens -= count.max(1) * usize::from(self.lru[slot].tokens);
        self.lru.remove_oldest(slot, count, |key| matches!(held.remove(key), Found::Listed));
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
        let tokens: usize = self.lru.iter().map(Node::all_tokens).sum();
        assert_eq!(tokens + self.gathered, self.tokens);
        assert!(self.lru.iter().all(|node| node.tokens > 0));
        assert!(self.tokens <= self.capacity && self.gathered < SPENT_TOKENS_MIN);
        let mut blocks = Vec::new();
        for node in self.lru.iter() {
            blocks.extend(node.keys().iter().rev().map(|key| (*key, node.tries == Tries::CONFIRMED)));
        }
        blocks
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
    fn prompts_that_have_a_key_in_common_by_chance_do_no_harm() {
        let index = Index::new(1);
        let mut cache = Cache::new(0, 1000);
        let [one, other, common] = KEYS;
        let (first, _) = cache.expect(&[one, common], 10, &index);
        cache.expect(&[other, common], 10, &index);
        assert_eq!(index.held(&[other, common], 1), [2]);
        cache.truncate(&[other, common], &index);
        assert_eq!(cache.withdraw(&[one, common], first, &index), 2);
        assert_eq!((index.held(&[other, common], 1), cache.check().len()), (vec![1], 1));
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
