//! The keys of the blocks of a text that comes in pieces of any length.
//!
//! Used by `prefix` alone. One hash runs over the whole text, and its value at the end of each block is the block's key: it
//! stands for all that is before. Beyond the last key nothing is hashed any more, only counted.

use super::super::key::Hash;
use crate::state::blocks::BlockKey;
use std::sync::Arc;

/// Short pieces are put together before they are hashed; what is longer is hashed where it stands.
const GATHERED_BYTES: usize = 64;

/// The blocks of a text.
pub(super) struct Chain {
    hash: Hash,
    keys: Vec<u64>,
    keys_max: usize,
    block_bytes: usize,
    /// What the block that is being filled lacks.
    room: usize,
    bytes: usize,
    gathered: [u8; GATHERED_BYTES],
    gathered_bytes: usize,
}

impl Chain {
    /// No text yet. `bytes_expected` is about how long it becomes.
    pub(super) fn new(hash: Hash, block_bytes: usize, keys_max: usize, bytes_expected: usize) -> Self {
        let keys = Vec::with_capacity(keys_max.min(bytes_expected / block_bytes + 1));
        let gathered = [0; GATHERED_BYTES];
        Self { hash, keys, keys_max, block_bytes, room: block_bytes, bytes: 0, gathered, gathered_bytes: 0 }
    }

    /// Takes in `bytes`; how they are cut makes no difference.
    #[inline]
    pub(super) fn append(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len();
        if !self.gather(bytes) {
            self.take_in_gathered();
            if !self.gather(bytes) {
                self.take_in(bytes);
            }
        }
    }

    #[inline]
    fn gather(&mut self, bytes: &[u8]) -> bool {
        let end = self.gathered_bytes + bytes.len();
        let place = self.gathered.get_mut(self.gathered_bytes..end);
        if let Some(place) = place {
            place.copy_from_slice(bytes);
            self.gathered_bytes = end;
            return true;
        }
        false
    }

    fn take_in_gathered(&mut self) {
        let gathered = self.gathered;
        self.take_in(gathered.get(..self.gathered_bytes).unwrap_or_default());
        self.gathered_bytes = 0;
    }

    fn take_in(&mut self, mut bytes: &[u8]) {
        while self.keys.len() < self.keys_max {
            let Some((head, tail)) = bytes.split_at_checked(self.room) else {
                self.hash.append(bytes);
                self.room -= bytes.len();
                return;
            };
            self.hash.append(head);
            self.keys.push(self.hash.so_far());
            self.room = self.block_bytes;
            bytes = tail;
        }
    }

    /// The length of the text.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whole blocks that have no key. To be asked after [`Self::keys`].
    pub(super) fn unkeyed(&self) -> usize {
        self.bytes / self.block_bytes - self.keys.len()
    }

    /// The keys of the blocks. Each is the hash of the text and that of `salt` together, by exclusive or: of two different
    /// pairs of a text and a salt that makes the same key no sooner than chance does.
    pub(super) fn keys(&mut self, salt: u64) -> Arc<[BlockKey]> {
        self.take_in_gathered();
        self.keys.iter().map(|key| BlockKey(key ^ salt)).collect()
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
            salt: u64,
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
                    BlockKey(hash.so_far() ^ salt)
                })
                .collect();
            prop_assert_eq!(&*chain.keys(salt), expected);
            prop_assert_eq!((chain.bytes(), chain.unkeyed()), (text.len(), blocks.saturating_sub(keys_max)));
        }
    }
}
