//! Prompt → [`Demand`]: how many tokens it has, and how many of them each backend would have to compute. Pure.
//!
//! Made by the spine once per body, asked by [`super::cluster`] for each backend on every try. What LMCache said of the
//! prompt and what was sent there before (the shadow) are weighed by how far they have come true so far.

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

    /// What is said of a backend: by the shadow, which holds the first `blocks_held` blocks there, and by `hint`.
    #[must_use]
    pub fn said(&self, backend: usize, blocks_held: usize, hint: &Hint) -> Said {
        // The last token is always computed, since the next one follows from it.
        let tokens_max = self.tokens.saturating_sub(1);
        let matched = hint.matches.iter().filter(|found| found.index == backend);
        Said {
            shadow: (blocks_held * self.block_tokens).min(tokens_max),
            lmcache: matched.map(|found| found.tokens.min(tokens_max)).max(),
        }
    }

    /// What is to be believed of what is `said`: the source that has come true more often, LMCache where both have, each for
    /// no more than it is worth.
    #[must_use]
    pub fn believe(said: Said, backend: usize, trust: &Trust) -> Cached {
        let weight = |source| trust.weight(backend, source);
        let lmcache = said.lmcache.filter(|_| weight(Source::Lmcache) >= weight(Source::Shadow));
        let (source, tokens) =
            lmcache.map_or((Source::Shadow, said.shadow), |tokens| (Source::Lmcache, tokens));
        let tokens = worth(tokens, weight(source));
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

    fn demand(tokens: usize) -> Demand {
        Demand { tokens, block_tokens: 256, keys: Arc::from([]) }
    }

    fn hint(tokens: usize) -> Hint {
        Hint::of(vec![Match { index: 1, tokens }])
    }

    #[test]
    fn the_last_token_is_always_computed() {
        assert_eq!(demand(1024).said(1, 4, &hint(1024)), Said { shadow: 1023, lmcache: Some(1023) });
        assert_eq!(demand(1024).said(0, 3, &hint(1024)), Said { shadow: 768, lmcache: None });
        assert_eq!(demand(0).said(1, 3, &hint(9)), Said { shadow: 0, lmcache: Some(0) });
    }

    #[test]
    fn lmcache_corrects_the_shadow_where_it_says_something() {
        let trust = Trust::new(2);
        let believe = |said, backend| Demand::believe(said, backend, &trust);
        let cached = |tokens, source| Cached { tokens, source: Some(source) };
        assert_eq!(believe(Said { shadow: 900, lmcache: Some(256) }, 1), cached(256, Source::Lmcache));
        assert_eq!(believe(Said { shadow: 0, lmcache: Some(256) }, 1), cached(256, Source::Lmcache));
        assert_eq!(believe(Said { shadow: 900, lmcache: None }, 0), cached(900, Source::Shadow));
        assert_eq!(believe(Said { shadow: 900, lmcache: Some(0) }, 0), Cached::default());
    }

    #[test]
    fn a_source_is_believed_for_what_it_is_worth() {
        let trust = Trust::new(1);
        for _ in 0..200 {
            trust.learn(0, Source::Lmcache, 4000, 900);
            trust.learn(0, Source::Shadow, 4000, 1800);
        }
        let said = |shadow, lmcache| Demand::believe(Said { shadow, lmcache }, 0, &trust);
        assert_eq!(said(1000, Some(800)), Cached { tokens: 500, source: Some(Source::Shadow) });
        for _ in 0..200 {
            trust.learn(0, Source::Shadow, 4000, 0);
        }
        assert_eq!(said(1000, Some(800)), Cached { tokens: 200, source: Some(Source::Lmcache) });
        assert_eq!(said(1000, None), Cached::default());
    }
}
