//! The prompt of a body in blocks of rendered text, so that it is known how far two prompts are the same. Pure.
//!
//! Called by [`super::prompt`] once per body. What an engine would render is put in one order, whatever the order in the
//! body: tools, instructions, then message by message (`render.rs`), and hashed as it goes (`chain.rs`, `nh.rs`), each block
//! with all that is before it. Texts go in as JSON writes them (RFC 8785), escapes included: nearly all stand in a body that way, and need
//! no work. Messages are rendered while they are read, in the hope that nothing follows which belongs before them.
//! It knows no tokens but those that a prompt is given as, and no chat template: the marks between the parts stand for what a
//! template would write there. Bounded by [`Settings::blocks_max`] keys, and nothing is copied.

mod chain;
mod fields;
mod nh;
mod parts;
mod render;

use super::key::Secret;
use crate::state::blocks::BlockKey;
use http::HeaderValue;
pub(super) use parts::Parts;
use std::sync::Arc;

/// What a token id is rendered as.
const TOKEN_BYTES: usize = size_of::<u32>();

/// How prompts are cut and keyed.
#[derive(Clone)]
pub struct Settings {
    /// With what blocks are keyed.
    secret: Secret,
    nh: Arc<nh::Key>,
    /// The length of a block, at least that of one token id: 4.
    pub block_bytes: usize,
    /// Blocks that get a key.
    pub blocks_max: usize,
    /// Whose prompt it is; prompts of different tenants have no key in common.
    pub tenant: Option<HeaderValue>,
}

impl Settings {
    /// Blocks of so many bytes, keyed with a secret, of no tenant's prompts in particular.
    #[must_use]
    pub fn new(secret: Secret, block_bytes: usize, blocks_max: usize) -> Self {
        Self { secret, nh: Arc::new(nh::Key::new(&secret)), block_bytes, blocks_max, tenant: None }
    }
}

/// A prompt in blocks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Prefix {
    /// The keys of its whole blocks, from the first.
    pub keys: Arc<[BlockKey]>,
    /// Its length as rendered.
    pub bytes: usize,
    /// Its tokens, where it is given as token ids.
    pub tokens: Option<usize>,
    /// The length of a block.
    pub block_bytes: usize,
    /// Whole blocks that got no key, since they are more than [`Settings::blocks_max`].
    pub unkeyed: usize,
}

impl Prefix {
    /// Its tokens, at `ratio` tokens per byte where they are not known.
    #[must_use]
    pub fn tokens(&self, ratio: f64) -> usize {
        self.tokens.unwrap_or_else(|| scale(self.bytes, ratio))
    }

    /// The tokens of a block, at least 1, at `ratio` tokens per byte where they are not known.
    #[must_use]
    pub fn block_tokens(&self, ratio: f64) -> usize {
        let tokens = match self.tokens {
            Some(_) => self.block_bytes / TOKEN_BYTES,
            None => scale(self.block_bytes, ratio),
        };
        tokens.max(1)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "an estimate of a length that fits into memory; the cast of a float saturates"
)]
fn scale(bytes: usize, ratio: f64) -> usize {
    (bytes as f64 * ratio).round() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_estimated_from_the_length() {
        let prefix = Prefix { keys: Arc::new([]), bytes: 1000, tokens: None, block_bytes: 64, unkeyed: 0 };
        assert_eq!((prefix.tokens(0.25), prefix.block_tokens(0.25)), (250, 16));
        assert_eq!((prefix.tokens(0.0), prefix.block_tokens(0.001)), (0, 1));
        assert_eq!(prefix.tokens(f64::INFINITY), usize::MAX);
    }
}
