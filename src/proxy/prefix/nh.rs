//! What a stretch of text is boiled down to before it is hashed.
//!
//! NH of Black, Halevi, Krawczyk, Krovetz and Rogaway ("UMAC: fast and secure message authentication", 1999), on words of 32
//! bits and twice, with keys that are shifted as Toeplitz' are: who does not know the key finds two stretches of one length
//! with the same sums no sooner than with a chance of 2^-64. Used by `prefix` alone, several times as fast as the hash that
//! takes in the sums. The sums themselves are no secret-keeping hash, and must go nowhere else.

use super::super::key::Secret;
use std::array::from_fn;
use std::slice;
use wide::{u32x8, u64x4};

/// So much text is boiled down at most at a time.
pub(super) const STRETCH_BYTES: usize = 1024;
/// What it is boiled down to.
pub(super) const SUMS_BYTES: usize = 4 * size_of::<u64>();
const VECTOR_BYTES: usize = 32;
const VECTORS: usize = STRETCH_BYTES / VECTOR_BYTES;

/// The key of a process: one vector more than a stretch has.
pub(super) struct Key([u32x8; VECTORS + 1]);

impl Key {
    /// Made of a secret, which is used for it alone that way.
    pub(super) fn new(secret: &Secret) -> Self {
        let word = |number: u64| {
            let mut hash = secret.hash();
            hash.append(b"NH");
            hash.append(&number.to_le_bytes());
            hash.so_far()
        };
        Self(from_fn(|vector| {
            let words: [u64; 4] = from_fn(|lane| word((vector * 4 + lane) as u64));
            bytemuck::cast(words)
        }))
    }

    /// The sums of a text of at most [`STRETCH_BYTES`]; it counts as if zeros followed up to a whole vector.
    pub(super) fn sums(&self, text: &[u8]) -> [u8; SUMS_BYTES] {
        let Self(keys) = self;
        let mut sums = Sums::default();
        let (vectors, rest) = text.as_chunks();
        sums.add(vectors, keys);
        if !rest.is_empty() {
            let mut last = [0; VECTOR_BYTES];
            for (to, from) in last.iter_mut().zip(rest) {
                *to = *from;
            }
            sums.add(slice::from_ref(&last), keys.get(vectors.len()..).unwrap_or_default());
        }
        sums.fold()
    }
}

/// The sums for the key as it is, and for the key shifted by a vector.
#[derive(Default)]
struct Sums([u64x4; 2]);

impl Sums {
    #[inline]
    fn add(&mut self, vectors: &[[u8; VECTOR_BYTES]], keys: &[u32x8]) {
        for (vector, keys) in vectors.iter().zip(keys.windows(2)) {
            let vector: u32x8 = bytemuck::cast(*vector);
            for (sum, key) in self.0.iter_mut().zip(keys) {
                let words: u64x4 = bytemuck::cast(vector + *key);
                *sum += (words & u64x4::splat(u64::from(u32::MAX))) * (words >> 32);
            }
        }
    }

    fn fold(self) -> [u8; SUMS_BYTES] {
        bytemuck::cast(self.0.map(|sum| {
            let [a, b, c, d] = sum.to_array();
            [a.wrapping_add(c), b.wrapping_add(d)]
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_sums_are_those_of_the_products_of_words_and_keys(text in prop::collection::vec(any::<u8>(), 0..STRETCH_BYTES)) {
            let key = Key::new(&Secret::new([1, 2, 3, 4]));
            let keys: Vec<u32> = key.0.iter().flat_map(|vector| vector.to_array()).collect();
            let mut padded = text.clone();
            padded.resize(text.len().next_multiple_of(VECTOR_BYTES), 0);
            let words: Vec<u32> = padded.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
            let mut expected = [0_u64; 4];
            for (n, pair) in words.chunks(2).enumerate() {
                for shift in 0..2 {
                    let key = |word: usize| keys[2 * n + word + shift * 8];
                    let [low, high] = [0, 1].map(|word| u64::from(pair[word].wrapping_add(key(word))));
                    let sum = &mut expected[shift * 2 + n % 2];
                    *sum = sum.wrapping_add(low * high);
                }
            }
            let expected: Vec<u8> = expected.iter().flat_map(|sum| sum.to_le_bytes()).collect();
            prop_assert_eq!(key.sums(&text).to_vec(), expected);
        }
    }
}
