//! Rules of other routers, to compare with; they do not serve.
//!
//! Called by `router`. Their memory is bounded by the trace alone, as it is (or is taken to be) in their originals.

use super::memory::{Memory, Prompt};
use crate::proxy::peer::Candidate;
use crate::state::blocks::BlockKey;
use hashbrown::{HashMap, HashSet};
use std::cmp::Reverse;

/// Routing by exact match: only a prompt whose token ids are known, because the same prompt came before, is looked up. Nothing is
/// ever forgotten here.
#[derive(Debug, Default)]
pub(super) struct RepeatedPrompts {
    seen: HashSet<(BlockKey, usize)>,
}

impl RepeatedPrompts {
    /// The backend whose engine holds the most of the prompt, the first one of several; `None` when the prompt is new, or nobody
    /// holds any of it.
    pub(super) fn holder(&mut self, prompt: &Prompt<'_>, memories: &[Memory]) -> Option<usize> {
        // The last key stands for all the text up to its block's end.
        if self.seen.insert((*prompt.keys.last()?, prompt.tokens)) {
            return None;
        }
        let held = memories.iter().enumerate().map(|(index, memory)| (memory.held(prompt), Reverse(index)));
        let (_, Reverse(index)) = held.filter(|(tokens, _)| *tokens > 0).max()?;
        Some(index)
    }
}

/// More requests in flight than at the least loaded backend, from which on prefixes do not count.
const IMBALANCE_MIN: usize = 64;
/// How many of these shares of a prompt have to match: 3 of 10.
const MATCH_TENTHS: usize = 3;

/// `SGLang`'s `cache_aware` (`sgl-router`): an unbounded tree of what was routed where.
#[derive(Debug, Default)]
pub(super) struct RoutingHistory {
    routed: HashMap<BlockKey, Vec<Routed>>,
    requests: usize,
}

/// A block was sent to a backend, with so many requests before.
#[derive(Debug)]
struct Routed {
    backend: usize,
    before: usize,
}

impl RoutingHistory {
    /// The backend that the longest match was sent to, the last one of several; `None` when that is too short, or load is too
    /// uneven: then the least loaded is to be taken.
    pub(super) fn prefer(&self, prompt: &Prompt<'_>, candidates: &[Candidate]) -> Option<usize> {
        let in_flight = || candidates.iter().map(|candidate| candidate.requests);
        let (most, least) = (in_flight().max()?, in_flight().min()?);
        // 1.5 times, without fractions.
        if most - least > IMBALANCE_MIN && 2 * most > 3 * least {
            return None;
        }
        let matched = prompt.keys.iter().map_while(|key| self.routed.get(key));
        let (blocks, deepest) = matched.enumerate().last()?;
        let tokens = ((blocks + 1) * prompt.block_tokens).min(prompt.tokens);
        let long = 10 * tokens > MATCH_TENTHS * prompt.tokens;
        deepest.iter().filter(|_| long).max_by_key(|routed| routed.before).map(|routed| routed.backend)
    }

    /// A prompt with these keys goes to `backend`.
    pub(super) fn record(&mut self, keys: &[BlockKey], backend: usize) {
        let before = self.requests;
        self.requests += 1;
        for key in keys {
            let routed = self.routed.entry(*key).or_default();
            match routed.iter_mut().find(|routed| routed.backend == backend) {
                Some(routed) => routed.before = before,
                None => routed.push(Routed { backend, before }),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::demand::Said;

    fn keys(numbers: std::ops::Range<u64>) -> Vec<BlockKey> {
        numbers.map(BlockKey).collect()
    }

    fn prompt(keys: &[BlockKey]) -> Prompt<'_> {
        Prompt { keys, block_tokens: 10, tokens: 10 * keys.len() }
    }

    fn loaded(requests: [usize; 2]) -> Vec<Candidate> {
        let candidate = |(index, requests)| Candidate {
            index,
            requests,
            pending_tokens: 0,
            uncached_tokens: 0,
            weight: 1,
            said: Said::default(),
            source: None,
        };
        requests.into_iter().enumerate().map(candidate).collect()
    }

    #[test]
    fn only_a_prompt_that_came_before_is_looked_up() {
        let mut repeated = RepeatedPrompts::default();
        let mut memories = [(); 3].map(|()| Memory::new(100, None));
        let (whole, start) = (keys(0..5), keys(0..3));
        for (memory, held) in [(1, &start), (2, &whole)] {
            let mut admitted = memories[memory].admit(&prompt(held), true).unwrap();
            memories[memory].publish(&prompt(held), &mut admitted.share);
        }
        assert_eq!(repeated.holder(&prompt(&whole), &memories), None);
        assert_eq!(repeated.holder(&prompt(&whole), &memories), Some(2));
        assert_eq!(repeated.holder(&prompt(&start), &memories), None, "it is another prompt");
        assert_eq!(repeated.holder(&prompt(&start), &memories), Some(1));
        assert_eq!(repeated.holder(&Prompt { tokens: 29, ..prompt(&start) }, &memories), None);
        assert_eq!(repeated.holder(&prompt(&start), &memories[..1]), None, "nobody holds any of it");
    }

    #[test]
    fn history_is_followed_for_more_than_three_tenths_of_a_prompt() {
        let mut history = RoutingHistory::default();
        history.record(&keys(0..3), 1);
        assert_eq!(history.prefer(&prompt(&keys(0..9)), &loaded([0, 0])), Some(1));
        assert_eq!(history.prefer(&prompt(&keys(0..10)), &loaded([0, 0])), None);
        history.record(&keys(0..2), 0);
        assert_eq!(history.prefer(&prompt(&keys(0..6)), &loaded([0, 0])), Some(1), "its match is longer");
        assert_eq!(history.prefer(&prompt(&keys(0..2)), &loaded([0, 0])), Some(0), "it is the last one");
        assert_eq!(history.prefer(&prompt(&keys(5..7)), &loaded([0, 0])), None);
    }

    #[test]
    fn history_is_not_followed_when_load_is_uneven() {
        let mut history = RoutingHistory::default();
        history.record(&keys(0..3), 1);
        let prefer = |requests| history.prefer(&prompt(&keys(0..3)), &loaded(requests));
        assert_eq!([prefer([0, 64]), prefer([130, 195])], [Some(1), Some(1)]);
        assert_eq!([prefer([0, 65]), prefer([129, 194])], [None, None]);
    }
}
