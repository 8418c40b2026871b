//! Keys of prompts: 128 bits of a hash that only this process can compute, so that no client can make two prompts collide.
//!
//! `HighwayHash` (Alakuijala, Cox, Wassenberg, "Fast keyed hash/pseudo-random function using SIMD multiply and permute",
//! 2016): a pseudo-random function with a 256-bit key that reads several bytes per cycle. Used by [`super::prompt`].

use highway::{HighwayHash, HighwayHasher};

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

    /// The hash of all that was taken in, as a secret of its own.
    #[must_use]
    pub fn into_secret(self) -> Secret {
        Secret(self.0.finalize256())
    }

    /// The hash of all that was taken in.
    #[must_use]
    pub fn finish(self) -> u128 {
        let [low, high] = self.0.finalize128();
        u128::from(high) << 64 | u128::from(low)
    }
}
