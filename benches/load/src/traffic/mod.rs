//! What people and agents ask: each kind of traffic is a generator of sessions without an end, from sizes and a seed.
//!
//! Used by `run` and `routing`. `span` draws sizes; `unique`, `shared_system_prompt`, `multi_turn` and `agents` make sessions
//! that begin at once; [`arrivals`] and `steady` say when they begin, and `trace` has times of its own. Adding a kind takes a
//! file here and a line in `run` or `routing`. Pure, but that a trace is read.
pub(crate) mod agents;
pub(crate) mod multi_turn;
pub(crate) mod shared_system_prompt;
pub(crate) mod span;
pub(crate) mod steady;
pub(crate) mod trace;
pub(crate) mod unique;

use std::iter;
use std::rc::Rc;
use std::time::Duration;

use rand::distr::{Distribution, weighted::WeightedIndex};
use rand::{Rng, rngs::StdRng};

use crate::plan::Text;

/// When sessions begin, for ever: the times between them are exponential.
pub(crate) fn arrivals(per_second: f64, mut random: StdRng) -> impl Iterator<Item = Duration> {
    let mut at = 0.0;
    iter::from_fn(move || {
        at -= (1.0 - random.random::<f64>()).ln() / per_second;
        Duration::try_from_secs_f64(at).ok()
    })
}

/// How many bytes make a token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct BytesPerToken(pub(crate) usize);

impl BytesPerToken {
    /// A text of so many tokens that nobody shares.
    pub(crate) fn text(self, tokens: usize, random: &mut StdRng) -> Text {
        Text::Drawn { seed: random.random(), bytes: tokens * self.0 }
    }

    /// A text of so many tokens, for many to share.
    pub(crate) fn shared_text(self, tokens: usize, random: &mut StdRng) -> Text {
        Text::Given(self.text(tokens, random).write())
    }
}

/// A few things of which some are much more popular than others: the n-th is chosen 1/n as often as the first.
pub(crate) struct Popular<T> {
    things: Vec<T>,
    weights: Option<WeightedIndex<f64>>,
}

impl<T> Popular<T> {
    pub(crate) fn new(things: Vec<T>) -> Self {
        let ranks = 1..=u32::try_from(things.len()).unwrap_or(u32::MAX);
        // Zipf's law. Without things there are no weights, and nothing to choose.
        let weights = WeightedIndex::new(ranks.map(|rank| 1.0 / f64::from(rank))).ok();
        Self { things, weights }
    }

    pub(crate) fn choose(&self, random: &mut StdRng) -> Option<&T> {
        self.things.get(self.weights.as_ref()?.sample(random))
    }
}

/// A table of definitions that many sessions share.
pub(crate) type Shared = Rc<serde_json::Value>;

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn arrivals_have_their_rate_and_no_rhythm() {
        let starts = arrivals(10.0, StdRng::seed_from_u64(1)).map(|start| start.as_secs_f64());
        let starts: Vec<f64> = starts.take_while(|start| *start < 60.0).collect();
        assert!((500..700).contains(&starts.len()), "{}", starts.len());
        assert!(starts.is_sorted());
        let gaps: Vec<f64> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        // Of exponential times, 1/e are longer than their mean; of regular ones none would be.
        let long = gaps.iter().filter(|gap| **gap > 0.1).count() * 100 / gaps.len();
        assert!((30..45).contains(&long), "{long} %");
    }

    #[test]
    fn the_first_is_the_most_popular() {
        let popular = Popular::new(vec![0, 1, 2, 3]);
        let mut random = StdRng::seed_from_u64(1);
        let mut counts = [0; 4];
        (0..10_000).for_each(|_| counts[*popular.choose(&mut random).unwrap()] += 1);
        assert!(counts.is_sorted_by(|before, after| before > after), "{counts:?}");
        assert!((4..5).contains(&(counts[0] * 10 / counts[3] / 9)), "{counts:?}");
        assert!(Popular::<u8>::new(Vec::new()).choose(&mut random).is_none());
    }
}
