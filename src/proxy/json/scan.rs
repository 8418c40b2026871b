//! Where a JSON string ends, 64 bytes at a time and without a branch for each quote or escape.
//!
//! Used by `json` alone. Which bytes are escaped is told by borrows, after Langdale and Lemire ("Parsing gigabytes of JSON per
//! second", 2019, section 3.1.1) and Keiser in simdjson: what is dear is not the bytes but the guesses that go wrong where
//! escapes are.

use super::text::{ESCAPE, QUOTE, STRAY};
use std::array::from_fn;
use wide::u8x32;

const BLOCK_BYTES: usize = 64;

/// The length of the string at the start of `text`, whose first quote has been passed, without the last one; `None` where it
/// does not end.
pub(super) fn length(text: &[u8]) -> Option<usize> {
    find(text, |block, escapes| {
        let [quotes, backslashes] = masks(block, |bytes| [is(bytes, QUOTE), is(bytes, ESCAPE)]);
        (quotes & !escapes.escaped(backslashes), 0)
    })
}

/// How much of `text` is written in canonical form: up to the quote that ends it, or to what is written otherwise.
///
/// An escape is, unless what follows its backslash is an odd byte: of those that JSON has, that of `\u` and `\/`. (There are a
/// few control characters that can only be written by `\u`: that is for the caller.)
pub(super) fn canonical_length(text: &[u8]) -> Option<usize> {
    find(text, |block, escapes| {
        let [ends, odd, backslashes] = masks(block, |bytes| {
            let odd = is(bytes & u8x32::splat(1), 1);
            [is(bytes, QUOTE) | is(bytes, STRAY), odd, is(bytes, ESCAPE)]
        });
        let escaped = escapes.escaped(backslashes);
        (ends & !escaped, odd & escaped)
    })
}

/// The place of the first bit that `stops` yields for any block of `text`: one of those that stand for their bytes, or one of
/// those that stand for the bytes before. The last block is filled up with zeros.
#[inline(always)]
#[expect(clippy::inline_always, reason = "called once for each of two closures, which are the loop")]
fn find(text: &[u8], mut stops: impl FnMut(&[u8; BLOCK_BYTES], &mut Escapes) -> (u64, u64)) -> Option<usize> {
    let mut escapes = Escapes::default();
    let (blocks, rest) = text.as_chunks();
    let place = |number: usize, (at, behind): (u64, u64)| {
        let first = (at | behind).trailing_zeros();
        number * BLOCK_BYTES + first as usize - usize::from(behind >> first & 1 == 1)
    };
    for (number, block) in blocks.iter().enumerate() {
        let (at, behind) = stops(block, &mut escapes);
        if at | behind != 0 {
            return Some(place(number, (at, behind)));
        }
    }
    let mut last = [0; BLOCK_BYTES];
    last.get_mut(..rest.len())?.copy_from_slice(rest);
    let (at, behind) = stops(&last, &mut escapes);
    (at | behind != 0).then(|| place(blocks.len(), (at, behind)))
}

/// Which bytes are escaped, from block to block.
#[derive(Default)]
struct Escapes {
    /// One where the first byte of the next block is.
    carried: u64,
}

impl Escapes {
    /// A bit for each byte that is escaped: every second one of a row of backslashes, and what follows a row of odd length.
    ///
    /// Taken from the places behind the backslashes and all odd ones, the backslashes of a row borrow from place to place, and
    /// so tell at its end whether it began at an even or at an odd one. Without the odd places, those are left that escape and,
    /// behind an odd row, what they escape.
    #[inline]
    fn escaped(&mut self, backslashes: u64) -> u64 {
        const ODD: u64 = u64::MAX / 3 * 2;
        let candidates = backslashes & !self.carried;
        let pairs = (candidates << 1 | ODD).wrapping_sub(candidates) ^ ODD;
        let escaped = pairs ^ (backslashes | self.carried);
        self.carried = (pairs & backslashes) >> (u64::BITS - 1);
        escaped
    }
}

/// Bits for the bytes of a block, from the first, as `of` marks them.
#[inline]
fn masks<const COUNT: usize>(
    block: &[u8; BLOCK_BYTES],
    of: impl Fn(u8x32) -> [u8x32; COUNT],
) -> [u64; COUNT] {
    let halves = [block.first_chunk(), block.last_chunk()];
    let [first, second] = halves.map(|half| of(u8x32::new(*half.unwrap_or(&[0; 32]))));
    from_fn(|n| u64::from(first[n].to_bitmask()) | u64::from(second[n].to_bitmask()) << 32)
}

#[inline]
fn is(bytes: u8x32, byte: u8) -> u8x32 {
    bytes.simd_eq(u8x32::splat(byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::select;

    /// The same a byte at a time: where the string ends, and where it is first written otherwise.
    fn slowly(text: &[u8]) -> (Option<usize>, Option<usize>) {
        let (mut at, mut other) = (0, None);
        while let Some(&byte) = text.get(at) {
            match (byte, text.get(at + 1)) {
                (QUOTE, _) => return (Some(at), other.or(Some(at))),
                (STRAY, _) => other = other.or(Some(at)),
                (ESCAPE, Some(byte)) if byte % 2 == 1 => other = other.or(Some(at)),
                _ => {}
            }
            at += if byte == ESCAPE { 2 } else { 1 };
        }
        (None, other)
    }

    proptest! {
        #[test]
        fn ends_and_escapes_are_where_a_byte_at_a_time_finds_them(
            text in prop::collection::vec(select(b"\\\\\\\\\"u/n\xffaabbbbbbbbbbbbb".to_vec()), 0..300),
            calm in prop::collection::vec(select([b"\\\\n".as_slice(), b"abcdefghijk", b"bb"].concat()), 0..1000),
            row in 0_usize..130,
            tail in "[a\"u]{0,3}",
        ) {
            let rows = [vec![b'a'; row % 7], vec![ESCAPE; row], tail.into_bytes()].concat();
            for text in [&text, &rows, &[calm.as_slice(), &text].concat()] {
                let (end, other) = slowly(text);
                prop_assert_eq!(length(text), end, "{}", text.escape_ascii());
                prop_assert_eq!(canonical_length(text), other, "{}", text.escape_ascii());
            }
        }
    }
}
