//! The keys of the blocks of a text that comes in pieces of any length.
//!
//! Used by `prefix` alone. One hash runs over the whole text, and its value at the end of each block is the block's key: it
//! stands for all that is before. Beyond the last key nothing is hashed any more, only counted.

use super::super::key::Hash;
use crate::state::blocks::BlockKey;
use std::sync::Arc;

/// The blocks of a text.
pub(super) struct Chain {
    hash: Hash,
    keys: Vec<BlockKey>,
    keys_max: usize,
    block_bytes: usize,
    /// What the block that is being filled lacks.
    room: usize,
    bytes: usize,
}

impl Chain {
    /// No text yet. `bytes_expected` is about how long it becomes.
    pub(super) fn new(hash: Hash, block_bytes: usize, keys_max: usize, bytes_expected: usize) -> Self {
        let keys = Vec::with_capacity(keys_max.min(bytes_expected / block_bytes + 1));
        Self { hash, keys, keys_max, block_bytes, room: block_bytes, bytes: 0 }
    }

    /// Takes in `bytes`; how they are cut makes no difference.
    pub(super) fn append(&mut self, mut bytes: &[u8]) {
        self.bytes += bytes.len();
        while self.keys.len() < self.keys_max {
            let Some((head, tail)) = bytes.split_at_checked(self.room) else {
                self.hash.append(bytes);
                self.room -= bytes.len();
                return;
            };
            self.hash.append(head);
            self.keys.push(BlockKey(self.hash.so_far()));
            self.room = self.block_bytes;
            bytes = tail;
        }
    }

    /// The length of the text.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whole blocks that have no key.
    pub(super) fn unkeyed(&self) -> usize {
        self.bytes / self.block_bytes - self.keys.len()
    }

    pub(super) fn into_keys(self) -> Arc<[BlockKey]> {
        self.keys.into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::key::Secret;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_key_is_the_hash_of_all_up_to_its_block_however_it_comes(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..20),
            block_bytes in 1_usize..100,
            keys_max in 1_usize..40,
        ) {
            let secret = Secret::new([1, 2, 3, 4]);
            let text = pieces.concat();
            let mut chain = Chain::new(secret.hash(), block_bytes, keys_max, 0);
            for piece in &pieces {
                chain.append(piece);
            }
            let blocks = text.len() / block_bytes;
            let expected: Vec<_> = (1..=blocks.min(keys_max))
                .map(|n| {
                    let mut hash = secret.hash();
                    hash.append(text.get(..n * block_bytes).unwrap());
                    BlockKey(hash.so_far())
                })
                .collect();
            prop_assert_eq!((chain.bytes(), chain.unkeyed()), (text.len(), blocks.saturating_sub(keys_max)));
            prop_assert_eq!(&*chain.into_keys(), expected);
        }
    }
}
