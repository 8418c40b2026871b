//! The KV memory of an engine, or the one that all engines of the pooled ceiling share: blocks, counted in tokens.
//!
//! Called by `engine`; `router` asks for what is held. Bounded by its capacity, but for what is in use: that is never taken away,
//! so a request is admitted only when there is room for it ([`Memory::admit`]). It knows no time.
//!
//! A block in use is pinned. One that nobody uses any more stays until its room is needed, and goes in the order of last use; a
//! prompt gives its blocks back from the last to the first, so that its end goes before its start. Output and whatever of a
//! prompt has no key take room as long as the request runs and are free again at once.
//!
//! With a slower tier, fast memory is for what is in use; all that nobody uses any more is in the tier, and is loaded when it is used
//! again.

use crate::state::blocks::BlockKey;
use hashbrown::HashMap;
use lru::LruCache;

/// A prompt as engines see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prompt<'a> {
    /// The keys of its blocks. The last one may stand for less than a block.
    pub(super) keys: &'a [BlockKey],
    pub(super) block_tokens: usize,
    pub(super) tokens: usize,
}

impl Prompt<'_> {
    /// Its blocks, each with its tokens.
    fn blocks(&self) -> impl Iterator<Item = (BlockKey, usize)> {
        let tokens =
            |index: usize| self.tokens.saturating_sub(index * self.block_tokens).min(self.block_tokens);
        self.keys
            .iter()
            .enumerate()
            .map(move |(index, key)| (*key, tokens(index)))
            .take_while(|(_, tokens)| *tokens > 0)
    }

    /// Of the tokens that are cached, those that need not be computed: the last one always is, since the next follows from it.
    fn reusable(&self, cached: usize) -> usize {
        cached.min(self.tokens.saturating_sub(1))
    }
}

/// A block that is in use.
#[derive(Debug)]
struct Pinned {
    tokens: usize,
    users: usize,
}

/// What a running request has of the memory.
#[derive(Debug, Default)]
pub(super) struct Share {
    /// Its prompt's first blocks, as many as it pins.
    blocks: usize,
    /// Tokens that nobody else can use.
    own_tokens: usize,
}

/// A request that has found room.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) share: Share,
    /// Tokens of its prompt that need not be computed.
    pub(super) cached_tokens: usize,
    /// How many cached ones have to be loaded from the slower tier.
    pub(super) loaded_tokens: usize,
}

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Memory {
    /// Tokens that can be in use at a time.
    capacity: usize,
    /// Tokens of all that is kept, with the slower tier.
    total: usize,
    pinned: HashMap<BlockKey, Pinned>,
    /// Tokens of pinned blocks, and those of requests' own.
    pinned_tokens: usize,
    idle: Idle,
}

impl Memory {
    /// Room for `capacity` tokens in use and, where there is a slower tier, for `offload` tokens in all.
    pub(super) fn new(capacity: usize, offload: Option<usize>) -> Self {
        Self {
            capacity,
            total: offload.unwrap_or_default().max(capacity),
            pinned: HashMap::new(),
            pinned_tokens: 0,
            idle: Idle::new(),
        }
    }

    fn has(&self, key: BlockKey) -> bool {
        self.pinned.contains_key(&key) || self.idle.blocks.contains(&key)
    }

    /// Tokens of the prompt that are cached from its start on without a gap, and need not be computed.
    pub(super) fn held(&self, prompt: &Prompt<'_>) -> usize {
        let held = prompt.blocks().take_while(|(key, _)| self.has(*key));
        prompt.reusable(held.map(|(_, tokens)| tokens).sum())
    }

    /// Takes the whole prompt's room and pins what is cached of it; `None` when that is more than there is, unless `alone`: an
    /// engine without any other request takes whatever comes, so that nobody waits for ever.
    pub(super) fn admit(&mut self, prompt: &Prompt<'_>, alone: bool) -> Option<Admitted> {
        let found: Vec<_> = prompt.blocks().take_while(|(key, _)| self.has(*key)).collect();
        let sum = |blocks: &mut dyn Iterator<Item = &(BlockKey, usize)>| {
            blocks.map(|(_, tokens)| tokens).sum::<usize>()
        };
        let found_tokens = sum(&mut found.iter());
        let idle_tokens = sum(&mut found.iter().filter(|(key, _)| !self.pinned.contains_key(key)));
        let own_tokens = prompt.tokens.saturating_sub(found_tokens);
        if !alone && self.pinned_tokens + idle_tokens + own_tokens > self.capacity {
            return None;
        }
        for (key, tokens) in &found {
            self.pin(*key, *tokens);
        }
        self.take(own_tokens);
        Some(Admitted {
            share: Share { blocks: found.len(), own_tokens },
            cached_tokens: prompt.reusable(found_tokens),
            loaded_tokens: if self.total > self.capacity { idle_tokens } else { 0 },
        })
    }

    /// The prompt has been computed: others can use its blocks from now on. Blocks that another request brought in the
    /// meantime are kept once.
    pub(super) fn publish(&mut self, prompt: &Prompt<'_>, share: &mut Share) {
        for (key, tokens) in prompt.blocks().skip(share.blocks) {
            share.own_tokens = share.own_tokens.saturating_sub(tokens);
            self.pinned_tokens -= tokens;
            self.pin(key, tokens);
            share.blocks += 1;
        }
    }

    /// Running requests take this many more tokens of their own.
    pub(super) fn take(&mut self, tokens: usize) {
        self.pinned_tokens += tokens;
        self.evict();
    }

    /// A request has ended, and gives back its share and the `output_tokens` that it took one by one.
    pub(super) fn release(&mut self, prompt: &Prompt<'_>, share: &Share, output_tokens: usize) {
        self.pinned_tokens -= share.own_tokens + output_tokens;
        for key in prompt.keys.iter().take(share.blocks).rev() {
            let Some(block) = self.pinned.get_mut(key) else { continue };
            block.users -= 1;
            if block.users == 0 {
                let tokens = block.tokens;
                self.pinned.remove(key);
                self.pinned_tokens -= tokens;
                self.idle.put(*key, tokens);
            }
        }
        // What was in use may have been more than there is room for.
        self.evict();
    }

    fn evict(&mut self) {
        self.idle.shrink(self.total.saturating_sub(self.pinned_tokens));
    }

    fn pin(&mut self, key: BlockKey, tokens: usize) {
        let idle = self.idle.remove(key);
        let block = self.pinned.entry(key).or_insert_with(|| {
            let tokens = idle.unwrap_or(tokens);
            self.pinned_tokens += tokens;
            Pinned { tokens, users: 0 }
        });
        block.users += 1;
    }

    /// Whether nothing is in use.
    #[cfg(test)]
    pub(super) fn is_unused(&self) -> bool {
        self.pinned_tokens == 0 && self.pinned.is_empty()
    }
}

/// Blocks that nobody uses, in the order of last use.
#[derive(Debug)]
struct Idle {
    blocks: LruCache<BlockKey, usize>,
    tokens: usize,
}

impl Idle {
    fn new() -> Self {
        Self { blocks: LruCache::unbounded(), tokens: 0 }
    }

    fn put(&mut self, key: BlockKey, tokens: usize) {
        let before = self.blocks.put(key, tokens);
        self.tokens = self.tokens + tokens - before.unwrap_or_default();
    }

    fn remove(&mut self, key: BlockKey) -> Option<usize> {
        let tokens = self.blocks.pop(&key)?;
        self.tokens -= tokens;
        Some(tokens)
    }

    fn shrink(&mut self, capacity: usize) {
        while self.tokens > capacity
            && let Some((_, tokens)) = self.blocks.pop_lru()
        {
            self.tokens -= tokens;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::ops::Range;

    const BLOCK: usize = 10;

    fn keys(numbers: Range<u64>) -> Vec<BlockKey> {
        numbers.map(|number| BlockKey(number.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect()
    }

    fn prompt(keys: &[BlockKey], tokens: usize) -> Prompt<'_> {
        Prompt { keys, block_tokens: BLOCK, tokens }
    }

    /// A prompt that was computed and has ended.
    fn serve(memory: &mut Memory, prompt: &Prompt<'_>) -> Admitted {
        let mut admitted = memory.admit(prompt, true).unwrap();
        memory.publish(prompt, &mut admitted.share);
        memory.release(prompt, &admitted.share, 0);
        admitted
    }

    #[test]
    fn a_prompt_is_reusable_once_it_has_been_computed_but_for_its_last_token() {
        let (mut memory, keys) = (Memory::new(100, None), keys(0..4));
        let prompt = prompt(&keys, 35);
        let mut first = memory.admit(&prompt, false).unwrap();
        assert_eq!((first.cached_tokens, memory.held(&prompt)), (0, 0));
        memory.publish(&prompt, &mut first.share);
        let second = memory.admit(&prompt, false).unwrap();
        assert_eq!((second.cached_tokens, memory.held(&prompt)), (34, 34));
        let longer = Prompt { tokens: 39, ..prompt };
        assert_eq!(memory.held(&longer), 38);
        assert_eq!(memory.pinned_tokens, 35, "what two use takes room once");
    }

    #[test]
    fn what_two_computed_at_once_is_kept_once() {
        let (mut memory, keys) = (Memory::new(100, None), keys(0..3));
        let prompt = prompt(&keys, 25);
        let [mut one, mut other] = [(); 2].map(|()| memory.admit(&prompt, false).unwrap());
        assert_eq!(memory.pinned_tokens, 50);
        memory.publish(&prompt, &mut one.share);
        memory.publish(&prompt, &mut other.share);
        assert_eq!(memory.pinned_tokens, 25);
        memory.release(&prompt, &one.share, 0);
        memory.release(&prompt, &other.share, 0);
        assert!(memory.is_unused());
        assert_eq!(memory.idle.tokens, 25);
    }

    #[test]
    fn the_least_recently_used_prompt_goes_first_and_from_its_end() {
        let mut memory = Memory::new(100, None);
        let (one, other) = (keys(0..4), keys(10..14));
        serve(&mut memory, &prompt(&one, 40));
        serve(&mut memory, &prompt(&other, 40));
        serve(&mut memory, &prompt(&one, 40));
        serve(&mut memory, &prompt(&keys(20..24), 40));
        assert_eq!([memory.held(&prompt(&one, 40)), memory.held(&prompt(&other, 40))], [39, 20]);
    }

    #[test]
    fn what_is_in_use_stays_and_stops_admission() {
        let mut memory = Memory::new(100, None);
        let (running, next) = (keys(0..6), keys(10..15));
        let running = prompt(&running, 60);
        let mut share = memory.admit(&running, false).unwrap().share;
        memory.publish(&running, &mut share);
        serve(&mut memory, &prompt(&next, 40));
        assert_eq!(memory.held(&prompt(&next, 50)), 40);
        assert!(memory.admit(&prompt(&next, 41), false).is_none(), "what is cached has to be pinned as well");
        memory.take(5);
        assert_eq!(memory.held(&prompt(&next, 50)), 30, "output takes room");
        assert!(memory.admit(&prompt(&next, 50), true).is_some(), "nobody waits for ever");
        assert_eq!(memory.held(&running), 59);
        memory.release(&running, &share, 5);
        assert_eq!(memory.pinned_tokens, 50);
    }

    #[test]
    fn the_slower_tier_keeps_what_nobody_uses() {
        let mut memory = Memory::new(50, Some(100));
        let (one, other, next) = (keys(0..4), keys(10..14), keys(20..23));
        serve(&mut memory, &prompt(&one, 40));
        serve(&mut memory, &prompt(&other, 40));
        let mut share = memory.admit(&prompt(&next, 30), false).unwrap().share;
        memory.publish(&prompt(&next, 30), &mut share);
        assert_eq!(memory.held(&prompt(&one, 40)), 30, "it is bounded too");
        assert!(memory.admit(&prompt(&other, 30), false).is_none(), "there is no fast memory for it");
        memory.release(&prompt(&next, 30), &share, 0);
        let first = memory.admit(&prompt(&other, 40), false).unwrap();
        assert_eq!((first.cached_tokens, first.loaded_tokens), (39, 40));
        let second = memory.admit(&prompt(&other, 40), false).unwrap();
        assert_eq!((second.cached_tokens, second.loaded_tokens), (39, 0), "the first one has loaded it");
    }

    proptest! {
        #[test]
        fn what_is_taken_is_given_back(
            prompts in prop::collection::vec((0_u64..6, 1_usize..100, 0_usize..30, 0_usize..8), 1..60),
            offload in prop::option::of(200_usize..400),
        ) {
            let mut memory = Memory::new(200, offload);
            let mut running = std::collections::VecDeque::new();
            for (family, tokens, output, stay) in prompts {
                let keys = keys(family * 1000..family * 1000 + tokens.div_ceil(BLOCK) as u64);
                if let Some(mut admitted) = memory.admit(&prompt(&keys, tokens), running.is_empty()) {
                    prop_assert!(admitted.cached_tokens < tokens && admitted.loaded_tokens <= tokens);
                    memory.publish(&prompt(&keys, tokens), &mut admitted.share);
                    memory.take(output);
                    running.push_back((keys, tokens, output, admitted.share));
                }
                let pinned: usize = memory.pinned.values().map(|block| block.tokens).sum();
                let own: usize = running.iter().map(|(.., output, share)| output + share.own_tokens).sum();
                prop_assert_eq!(memory.pinned_tokens, pinned + own);
                prop_assert!(memory.idle.tokens == 0 || memory.idle.tokens + memory.pinned_tokens <= memory.total);
                while running.len() > stay {
                    let Some((keys, tokens, output, share)) = running.pop_front() else { break };
                    memory.release(&prompt(&keys, tokens), &share, output);
                }
            }
            for (keys, tokens, output, share) in running {
                memory.release(&prompt(&keys, tokens), &share, output);
            }
            prop_assert!(memory.is_unused());
            let idle: usize = memory.idle.blocks.iter().map(|(_, tokens)| tokens).sum();
            prop_assert_eq!(memory.idle.tokens, idle);
        }
    }
}
