//! Keys of prompts: 128 bits of a hash that only this process can compute, so that no client can make two prompts collide.
//!
//! `HighwayHash` (Alakuijala, Cox, Wassenberg, "Fast keyed hash/pseudo-random function using SIMD multiply and permute",
//! 2016): a pseudo-random function with a 256-bit key that reads several bytes per cycle. Used by [`super::prompt`].
//!
//! No key leaves the process. Where blocks are told, [`Pseudonyms`] stand for them.

use crate::access_log::Hex;
use crate::state::blocks::BlockKey;
use highway::{HighwayHash, HighwayHasher};
use sha2::{Digest, Sha256};

/// The secret of a process.
#[derive(Clone, Copy)]
pub struct Secret([u64; 4]);

impl Secret {
    /// A secret of random numbers.
    #[must_use]
    pub fn new(random: [u64; 4]) -> Self {
        Self(random)
    }

    /// A hash that nothing has gone into.
    #[must_use]
    pub fn hash(&self) -> Hash {
        Hash(HighwayHasher::new(highway::Key(self.0)))
    }
}

/// A hash in the making.
#[derive(Clone)]
pub struct Hash(HighwayHasher);

impl Hash {
    /// Takes in `bytes`; how they are cut makes no difference.
    pub fn append(&mut self, bytes: &[u8]) {
        self.0.append(bytes);
    }

    /// Takes in `bytes` and their length, so that what follows cannot be mistaken for a part of them.
    pub fn append_whole(&mut self, bytes: &[u8]) {
        self.0.append(&bytes.len().to_le_bytes());
        self.0.append(bytes);
    }

    /// 64 bits of hash of what was taken in so far.
    #[must_use]
    pub fn so_far(&self) -> u64 {
        self.0.clone().finalize64()
    }

    /// The hash of all that was taken in.
    #[must_use]
    pub fn finish(self) -> u128 {
        let [low, high] = self.0.finalize128();
        u128::from(high) << 64 | u128::from(low)
    }
}

/// What stands for the keys of blocks outside of the process: 64 bits of SHA-256 over a secret and the key. It tells which
/// blocks are the same, and neither what is in them nor what their keys are.
#[derive(Clone)]
pub struct Pseudonyms {
    /// Has taken in the secret.
    hash: Sha256,
    blocks_max: usize,
}

impl Pseudonyms {
    /// Pseudonyms by this secret, for at most `blocks_max` blocks of a prompt.
    #[must_use]
    pub fn new(random: [u8; 32], blocks_max: usize) -> Self {
        Self { hash: Sha256::new_with_prefix(random), blocks_max }
    }

    /// Those of a prompt's blocks, from its start.
    #[must_use]
    pub fn of(&self, keys: &[BlockKey]) -> Vec<Hex> {
        let pseudonym = |key: &BlockKey| {
            let digest = self.hash.clone().chain_update(key.0.to_le_bytes()).finalize();
            Hex(digest.iter().take(size_of::<u64>()).fold(0, |all, byte| all << 8 | u64::from(*byte)))
        };
        keys.iter().take(self.blocks_max).map(pseudonym).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_pseudonym_is_the_start_of_sha_256_over_secret_and_key() {
        // printf %064d%s 0 0807060504030201 | xxd -r -p | sha256sum
        let pseudonyms = Pseudonyms::new([0; 32], 9).of(&[BlockKey(0x0102_0304_0506_0708)]);
        assert_eq!(pseudonyms, [Hex(0x0d34_454f_961b_dea0)]);
    }

    proptest! {
        #[test]
        fn equal_beginnings_have_equal_pseudonyms_and_no_key_is_its_own(
            keys in prop::collection::vec(any::<u64>().prop_map(BlockKey), 0..20), shared in 0_usize..20, max in 1_usize..20,
        ) {
            let (one, other) = (Pseudonyms::new([7; 32], max), Pseudonyms::new([8; 32], max));
            let told = one.of(&keys);
            prop_assert_eq!(told.len(), keys.len().min(max));
            let start = one.of(keys.get(..shared).unwrap_or(&keys));
            prop_assert_eq!(told.get(..start.len()), Some(start.as_slice()));
            for ((name, foreign), key) in told.iter().zip(other.of(&keys)).zip(&keys) {
                prop_assert_ne!(*name, foreign);
                prop_assert_ne!(name.0, key.0);
            }
        }
    }
}
