//! The keys of the blocks of a text that comes in pieces of any length.
//!
//! Used by `prefix` alone. Each block is boiled down in stretches from its start (`nh.rs`), one hash runs over what they are
//! boiled down to, and its value at the end of each block is the block's key: it stands for all that is before. Beyond the last
//! key nothing is hashed any more, only counted.

use super::super::key::Hash;
use super::Settings;
use super::nh::{self, STRETCH_BYTES};
use crate::state::blocks::BlockKey;
use std::sync::Arc;

/// The blocks of a text.
pub(super) struct Chain {
    nh: Arc<nh::Key>,
    hash: Hash,
    keys: Vec<u64>,
    keys_max: usize,
    block_bytes: usize,
    /// What the block that is being filled lacks, from the start of the stretch on.
    room: usize,
    bytes: usize,
    /// What has come of a stretch that is not whole.
    stretch: [u8; STRETCH_BYTES],
    stretch_bytes: usize,
}

impl Chain {
    /// No text yet. `bytes_expected` is about how long it becomes.
    pub(super) fn new(settings: &Settings, block_bytes: usize, bytes_expected: usize) -> Self {
        let keys_max = settings.blocks_max;
        Self {
            nh: Arc::clone(&settings.nh),
            hash: settings.secret.hash(),
            keys: Vec::with_capacity(keys_max.min(bytes_expected / block_bytes + 1)),
            keys_max,
            block_bytes,
            room: block_bytes,
            bytes: 0,
            stretch: [0; STRETCH_BYTES],
            stretch_bytes: 0,
        }
    }

    /// Takes in `bytes`; how they are cut makes no difference.
    #[inline]
    pub(super) fn append(&mut self, mut bytes: &[u8]) {
        self.bytes += bytes.len();
        while self.keys.len() < self.keys_max {
            let stretch_bytes = self.room.min(STRETCH_BYTES);
            let lacks = stretch_bytes - self.stretch_bytes;
            let (head, tail) = bytes.split_at(lacks.min(bytes.len()));
            let sums = if self.stretch_bytes == 0 && head.len() == lacks {
                self.nh.sums(head)
            } else {
                self.gather(head);
                if head.len() < lacks {
                    return;
                }
                self.nh.sums(self.stretch.get(..stretch_bytes).unwrap_or_default())
            };
            self.take_in(&sums, stretch_bytes);
            bytes = tail;
        }
    }

    #[inline]
    fn gather(&mut self, bytes: &[u8]) {
        let end = self.stretch_bytes + bytes.len();
        if let Some(place) = self.stretch.get_mut(self.stretch_bytes..end) {
            place.copy_from_slice(bytes);
            self.stretch_bytes = end;
        }
    }

    /// Takes in the sums of a whole stretch.
    fn take_in(&mut self, sums: &[u8], stretch_bytes: usize) {
        self.hash.append(sums);
        self.stretch_bytes = 0;
        self.room -= stretch_bytes;
        if self.room == 0 {
            self.keys.push(self.hash.so_far());
            self.room = self.block_bytes;
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

    /// The keys of the blocks. Each is the hash of the text and that of `salt` together, by exclusive or: of two different
    /// pairs of a text and a salt that makes the same key no sooner than chance does.
    pub(super) fn keys(&self, salt: u64) -> Arc<[BlockKey]> {
        BlockKey::of_prompt(self.keys.iter().map(|key| key ^ salt))
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
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 0..20),
            block_bytes in prop_oneof![1_usize..100, 1000_usize..3000, Just(STRETCH_BYTES)],
            keys_max in 1_usize..40,
            salt: u64,
        ) {
            let settings = Settings::new(Secret::new([1, 2, 3, 4]), block_bytes, keys_max);
            let text = pieces.concat();
            let mut chain = Chain::new(&settings, block_bytes, 0);
            for piece in &pieces {
                chain.append(piece);
            }
            let mut hash = settings.secret.hash();
            let blocks = text.chunks_exact(block_bytes);
            let count = blocks.len();
            let expected = BlockKey::of_prompt(blocks.take(keys_max).map(|block| {
                for stretch in block.chunks(STRETCH_BYTES) {
                    hash.append(&settings.nh.sums(stretch));
                }
                hash.so_far() ^ salt
            }));
            prop_assert_eq!(chain.keys(salt), expected);
            prop_assert_eq!((chain.bytes(), chain.unkeyed()), (text.len(), count.saturating_sub(keys_max)));
        }
    }
}
