//! Prompt → [`Demand`]: how many tokens it has, and how many of them each backend would have to compute. Pure.
//!
//! Made by the spine once per body, asked by [`super::cluster`] for each backend on every try. What LMCache said of the
//! prompt and what was sent there before (the shadow) each count for the share of it that has come true so far:
//!
//! - Of a backend that LMCache does not name nothing is known but the shadow: a controller names one holder of each chunk.
//! - Where LMCache names it, LMCache counts, be it less than the shadow or more; but no more than it is trusted, and for the
//!   rest the shadow does. So one that is wrong is left step by step, and never for good.
//! - LMCache knows a prompt only after it was computed and stored. Where a try in flight is about to bring more of the
//!   prompt than LMCache has, what is expected counts, so that requests with the same beginning still meet.

use super::hint::Hint;
use super::prompt::Prompt;
use crate::state::blocks::BlockKey;
use crate::state::trust::{Source, Trust};
use std::sync::Arc;

/// What a prompt asks of whoever computes it.
#[derive(Clone, Debug)]
pub struct Demand {
    /// Tokens of the prompt, counted or estimated; 0 = there is none.
    pub tokens: usize,
    /// Tokens of one block.
    pub block_tokens: usize,
    /// The keys of its whole blocks, from its start.
    pub keys: Arc<[BlockKey]>,
}

impl Default for Demand {
    fn default() -> Self {
        Self { tokens: 0, block_tokens: 0, keys: Arc::from([]) }
    }
}

/// Tokens of a prompt that a backend is said to have cached, by source; `None` = nothing is said.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Said {
    /// What was sent there before.
    pub shadow: usize,
    /// Whether the shadow says so because of a try that is in flight.
    pub in_flight: bool,
    /// What LMCache answered.
    pub lmcache: Option<usize>,
}

impl Said {
    /// The sources that said something, each with its tokens.
    pub fn by_source(self) -> impl Iterator<Item = (Source, usize)> {
        [(Source::Shadow, Some(self.shadow)), (Source::Lmcache, self.lmcache)]
            .into_iter()
            .filter_map(|(source, tokens)| Some((source, tokens?)))
    }
}

/// Tokens of a prompt that are believed to be cached at a backend.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Cached {
    /// How many, less than the prompt has.
    pub tokens: usize,
    /// Who says so; `None` = nobody says that there are any.
    pub source: Option<Source>,
}

impl Demand {
    /// What `prompt` demands: `known` tokens where they have been counted, else as many as `tokens_per_byte` makes of its text.
    #[must_use]
    pub fn of(prompt: &Prompt, known: Option<usize>, tokens_per_byte: f64) -> Self {
        let Some(prefix) = &prompt.prefix else {
            return Self { tokens: known.unwrap_or_default(), ..Self::default() };
        };
        let tokens = known.unwrap_or_else(|| prefix.tokens(tokens_per_byte)).max(1);
        let block_tokens = match known {
            Some(known) => known * prefix.block_bytes / prefix.bytes.max(1),
            None => prefix.block_tokens(tokens_per_byte),
        };
        Self { tokens, block_tokens: block_tokens.max(1), keys: Arc::clone(&prefix.keys) }
    }

    /// What a body of which no prompt was read demands, for the books alone.
    #[must_use]
    pub fn of_unread(body_bytes: usize, tokens_per_byte: f64) -> Self {
        Self { tokens: worth(body_bytes, tokens_per_byte), ..Self::default() }
    }

    /// What is said of a backend: by the shadow, which holds the first `blocks_held` blocks there, `in_flight` or for sure,
    /// and by `hint`.
    #[must_use]
    pub fn said(&self, backend: usize, blocks_held: usize, in_flight: bool, hint: &Hint) -> Said {
        // The last token is always computed, since the next one follows from it.
        let tokens_max = self.tokens.saturating_sub(1);
        let matched = hint.matches.iter().filter(|found| found.index == backend);
        Said {
            shadow: (blocks_held * self.block_tokens).min(tokens_max),
            in_flight,
            lmcache: matched.map(|found| found.tokens.min(tokens_max)).max(),
        }
    }

    /// What is to be believed of what is `said`, as the head of this file tells.
    #[must_use]
    pub fn believe(said: Said, backend: usize, trust: &Trust) -> Cached {
        let [in_shadow, in_lmcache] = Source::ALL.map(|source| trust.weight(backend, source));
        let shadow = worth(said.shadow, in_shadow);
        let lmcache = said.lmcache.map(|tokens| worth(tokens, in_lmcache));
        let (by_lmcache, by_shadow) = lmcache
            .map_or((0, shadow), |tokens| (worth(tokens, in_lmcache), worth(shadow, 1.0 - in_lmcache)));
        let (tokens, shadow_counts) = match by_lmcache + by_shadow {
            both if said.in_flight && shadow > both => (shadow, true),
            both => (both, by_shadow > by_lmcache),
        };
        let source = if shadow_counts { Source::Shadow } else { Source::Lmcache };
        Cached { tokens, source: (tokens > 0).then_some(source) }
    }
}

/// `count`, at a weight from 0 to 1.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the product is between 0 and a u32"
)]
fn worth(count: usize, weight: f64) -> usize {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    (f64::from(count) * weight.clamp(0.0, 1.0)) as usize
}

#[cfg(test)]
mod tests {
    use super::super::hint::Match;
    use super::*;
    use proptest::prelude::*;

    fn demand(tokens: usize) -> Demand {
        Demand { tokens, block_tokens: 256, keys: Arc::from([]) }
    }

    fn hint(tokens: usize) -> Hint {
        Hint::of(vec![Match { index: 1, tokens }])
    }

    #[test]
    fn the_last_token_is_always_computed() {
        let said = |tokens, backend, blocks, hinted| {
            let said = demand(tokens).said(backend, blocks, false, &hint(hinted));
            (said.shadow, said.lmcache)
        };
        assert_eq!(said(1024, 1, 4, 1024), (1023, Some(1023)));
        assert_eq!(said(1024, 0, 3, 1024), (768, None));
        assert_eq!(said(0, 1, 3, 9), (0, Some(0)));
    }

    fn said(shadow: usize, lmcache: Option<usize>) -> Said {
        Said { shadow, lmcache, in_flight: false }
    }

    #[test]
    fn lmcache_corrects_the_shadow_where_it_says_something() {
        let trust = Trust::new(2);
        let believe = |said, backend| Demand::believe(said, backend, &trust);
        assert_eq!(believe(said(900, Some(256)), 1), cached(256, Source::Lmcache));
        assert_eq!(believe(said(0, Some(256)), 1), cached(256, Source::Lmcache));
        assert_eq!(believe(said(900, None), 0), cached(900, Source::Shadow));
        assert_eq!(believe(said(900, Some(0)), 0), Cached::default());
    }

    fn cached(tokens: usize, source: Source) -> Cached {
        Cached { tokens, source: Some(source) }
    }

    #[test]
    fn what_is_about_to_be_cached_counts_although_lmcache_does_not_know_it() {
        let trust = Trust::new(1);
        let believe = |shadow, lmcache| {
            Demand::believe(Said { shadow, lmcache: Some(lmcache), in_flight: true }, 0, &trust)
        };
        assert_eq!(believe(900, 256), cached(900, Source::Shadow));
        assert_eq!(believe(900, 0), cached(900, Source::Shadow));
        assert_eq!(believe(256, 900), cached(900, Source::Lmcache), "never less than LMCache has");
    }

    #[test]
    fn a_source_is_believed_for_what_it_is_worth() {
        let trust = Trust::new(1);
        let believe = |shadow, lmcache| Demand::believe(said(shadow, lmcache), 0, &trust);
        for _ in 0..200 {
            trust.learn(0, Source::Shadow, 4000, 1800);
        }
        assert_eq!(believe(1000, Some(800)), cached(800, Source::Lmcache), "the other is trusted");
        assert_eq!(believe(1000, None), cached(500, Source::Shadow));
        for _ in 0..200 {
            trust.learn(0, Source::Lmcache, 4000, 900);
        }
        // A quarter of the 200 that are left of LMCache's, three quarters of the shadow's 500.
        let both = believe(1000, Some(800));
        assert!(both.tokens.abs_diff(425) < 3 && both.source == Some(Source::Shadow), "{both:?}");
        for _ in 0..200 {
            trust.learn(0, Source::Shadow, 4000, 0);
        }
        assert_eq!(believe(1000, Some(800)), cached(50, Source::Lmcache));
        assert_eq!(believe(1000, None), Cached::default());
    }

    #[test]
    fn one_mistake_does_not_silence_lmcache() {
        let trust = Trust::new(1);
        trust.learn(0, Source::Lmcache, 4000, 0);
        assert_eq!(Demand::believe(said(0, Some(1000)), 0, &trust), cached(810, Source::Lmcache));
    }

    proptest! {
        #[test]
        fn what_is_believed_is_between_what_is_said(
            shadow in 0_usize..100_000,
            lmcache in prop::option::of(0_usize..100_000),
            in_flight in any::<bool>(),
            actual in prop::collection::vec((0_usize..2000, 0_usize..2000), 0..40),
        ) {
            let trust = Trust::new(1);
            for (of_shadow, of_lmcache) in actual {
                trust.learn(0, Source::Shadow, 1000, of_shadow);
                trust.learn(0, Source::Lmcache, 1000, of_lmcache);
            }
            let believed = Demand::believe(Said { shadow, lmcache, in_flight }, 0, &trust);
            prop_assert!(believed.tokens <= shadow.max(lmcache.unwrap_or_default()));
            prop_assert_eq!(believed.source.is_some(), believed.tokens > 0);
            if lmcache.is_none() {
                prop_assert_ne!(believed.source, Some(Source::Lmcache));
            }
        }
    }
}
