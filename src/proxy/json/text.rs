//! The text of a JSON string, piece by piece: never put together, and not copied where it has no escapes.
//!
//! For whoever wants no more than its hash. Bounded by [`PIECE_BYTES`], however long the string is.

use super::Json;
use memchr::memchr3;

/// Escapes make many small pieces of a text; so many bytes of them are put together before they are given on.
const PIECE_BYTES: usize = 1024;

/// Longer runs without an escape are given on as they stand.
pub(super) const RUN_BYTES_MAX: usize = 256;

/// Names are mostly shorter than so many words of eight bytes, and found without a call.
const NAME_WORDS: usize = 3;

pub(super) const QUOTE: u8 = b'"';
pub(super) const ESCAPE: u8 = b'\\';
/// A byte that does not occur in UTF-8, and in no piece.
pub const STRAY: u8 = 0xff;

impl<'a> Json<'a> {
    /// Reads the string that stands here. It is cut at escapes only. What is no UTF-8 stays as it is, but for [`STRAY`], which
    /// like half a surrogate pair becomes U+FFFD.
    pub fn pieces(&mut self, mut piece: impl FnMut(&[u8])) {
        match self.plain_string() {
            Some(b"") => {}
            Some(text) => piece(text),
            None if self.take(QUOTE) => self.escaped_pieces(piece),
            None => self.give_up(),
        }
    }

    /// Reads the string that stands here if it has no escapes.
    #[inline]
    pub(super) fn plain_string(&mut self) -> Option<&'a [u8]> {
        let inner = self.kind().filter(|kind| *kind == QUOTE).and_then(|_| self.text.get(self.at + 1..))?;
        let words = inner.as_chunks().0.iter().take(NAME_WORDS);
        let near = words.zip((0..).step_by(8)).find_map(|(word, at)| Some(at + first_end(*word)?));
        let length = near.or_else(|| run_length(inner))?;
        let text = inner.get(..length).filter(|_| inner.get(length) == Some(&QUOTE))?;
        self.at += length + 2;
        Some(text)
    }

    fn escaped_pieces(&mut self, mut piece: impl FnMut(&[u8])) {
        let mut gathered = Gathered::new();
        let mut rest = self.rest();
        loop {
            // Escapes come in rows.
            let length = if rest.first() == Some(&ESCAPE) {
                0
            } else if let Some(length) = gathered.copy_short_run(rest) {
                length
            } else {
                let Some(length) = run_length(rest) else { return self.give_up() };
                let run = rest.get(..length).unwrap_or_default();
                if length > RUN_BYTES_MAX {
                    gathered.give_on(&mut piece);
                    piece(run);
                } else {
                    gathered.push(run);
                }
                length
            };
            rest = rest.get(length..).unwrap_or_default();
            let (character, length) = match rest.first() {
                Some(&QUOTE) => break,
                Some(&ESCAPE) => unescape(rest),
                _ => (char::REPLACEMENT_CHARACTER, 1),
            };
            gathered.push_char(character);
            rest = rest.get(length..).unwrap_or_default();
            if gathered.length > PIECE_BYTES - RUN_BYTES_MAX - size_of::<char>() {
                gathered.give_on(&mut piece);
            }
        }
        gathered.give_on(&mut piece);
        self.at = self.text.len() - rest.len() + 1;
    }
}

/// Where the first byte is that is not simply itself.
fn run_length(text: &[u8]) -> Option<usize> {
    memchr3(QUOTE, ESCAPE, STRAY, text)
}

/// Short pieces of a text, put together.
pub(super) struct Gathered {
    bytes: [u8; PIECE_BYTES],
    length: usize,
}

impl Gathered {
    pub(super) fn new() -> Self {
        Self { bytes: [0; PIECE_BYTES], length: 0 }
    }

    pub(super) fn has_room_for(&self, bytes: usize) -> bool {
        self.length + bytes <= PIECE_BYTES
    }

    pub(super) fn push(&mut self, text: &[u8]) {
        if let Some(place) = self.bytes.get_mut(self.length..self.length + text.len()) {
            place.copy_from_slice(text);
            self.length += text.len();
        }
    }

    fn push_char(&mut self, character: char) {
        if let Some(place) = self.bytes.get_mut(self.length..self.length + size_of::<char>()) {
            self.length += character.encode_utf8(place).len();
        }
    }

    /// Takes a run that is shorter than a word, and returns its length: between escapes that are close, it is the calls that
    /// cost, not the bytes.
    fn copy_short_run(&mut self, text: &[u8]) -> Option<usize> {
        let word = text.first_chunk()?;
        *self.bytes.get_mut(self.length..)?.first_chunk_mut()? = *word;
        let length = first_end(*word)?;
        self.length += length;
        Some(length)
    }

    pub(super) fn give_on(&mut self, piece: &mut impl FnMut(&[u8])) {
        if self.length > 0 {
            piece(self.bytes.get(..self.length).unwrap_or_default());
            self.length = 0;
        }
    }
}

/// Where in a word a run ends. Mycroft's test for a zero byte ("Hacker's Delight", 6-1), after each byte was combined with
/// the one that is looked for.
pub(super) fn first_end(word: [u8; 8]) -> Option<usize> {
    const ONES: u64 = u64::MAX / 0xff;
    let word = u64::from_le_bytes(word);
    let zeros = |word: u64| word.wrapping_sub(ONES) & !word & (ONES * 0x80);
    let zeros_of = |byte: u8| zeros(word ^ (ONES * u64::from(byte)));
    let ends = zeros_of(QUOTE) | zeros_of(ESCAPE) | zeros_of(STRAY);
    (ends != 0).then_some(ends.trailing_zeros() as usize / 8)
}

/// The character that `text` begins with, written as an escape, and the length of the escape.
#[inline]
pub(super) fn unescape(text: &[u8]) -> (char, usize) {
    let character = match text.get(1) {
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'n') => '\n',
        Some(b'r') => '\r',
        Some(b't') => '\t',
        Some(b'u') => return unescape_unicode(text),
        Some(other) => char::from(*other),
        None => return (char::REPLACEMENT_CHARACTER, 1),
    };
    (character, 2)
}

fn unescape_unicode(text: &[u8]) -> (char, usize) {
    let Some(first) = utf16_unit(text) else { return (char::REPLACEMENT_CHARACTER, 2) };
    if let Some(character) = char::from_u32(first) {
        return (character, 6);
    }
    // It is half of a pair; a second half in the place of the first makes a number that is no character.
    let second = text.get(6..).and_then(utf16_unit).filter(|unit| (0xdc00..0xe000).contains(unit));
    let pair = second.map(|second| 0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00));
    pair.and_then(char::from_u32).map_or((char::REPLACEMENT_CHARACTER, 6), |character| (character, 12))
}

/// The unit of UTF-16 that `text` begins with, written as an escape.
fn utf16_unit(text: &[u8]) -> Option<u32> {
    let [ESCAPE, b'u', digits @ ..] = text.first_chunk::<6>()? else { return None };
    let [a, b, c, d] = digits.map(|digit| u32::from(HEX_DIGITS[usize::from(digit)]));
    (a | b | c | d < NO_DIGIT.into()).then_some(a << 12 | b << 8 | c << 4 | d)
}

/// More than any digit is worth.
const NO_DIGIT: u8 = 16;

/// What each byte is worth as a hexadecimal digit.
const HEX_DIGITS: [u8; 256] = {
    let mut digits = [NO_DIGIT; 256];
    let mut value = 0;
    while value < NO_DIGIT {
        digits[b"0123456789abcdef"[value as usize] as usize] = value;
        digits[b"0123456789ABCDEF"[value as usize] as usize] = value;
        value += 1;
    }
    digits
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(written: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        Json::new(written).pieces(|piece| text.extend_from_slice(piece));
        text
    }

    /// A text as JSON, with all that is not ASCII as escapes.
    fn ascii(text: &str) -> String {
        let escaped = |c: char| {
            c.encode_utf16(&mut [0; 2]).iter().fold(String::new(), |all, unit| format!("{all}\\u{unit:04x}"))
        };
        let written = serde_json::to_string(text).unwrap();
        written.chars().map(|c| if c.is_ascii() { c.to_string() } else { escaped(c) }).collect()
    }

    proptest! {
        #[test]
        fn pieces_are_the_text(text in "(.|\n|\"|é|[a-z]{250,260}){0,40}") {
            let written = serde_json::to_string(&text).unwrap();
            prop_assert_eq!(read(written.as_bytes()), text.as_bytes());
            prop_assert_eq!(read(ascii(&text).as_bytes()), text.as_bytes());
            prop_assert_eq!(read(ascii(&text).to_uppercase().replace("\\U", "\\u").replace("\\N", "\\n").as_bytes()).len(), text.len());
        }

        #[test]
        fn a_string_that_does_not_end_ends_the_reading(text: String) {
            let written = serde_json::to_string(&text).unwrap();
            for length in 0..written.len() {
                let mut json = Json::new(written.as_bytes().get(..length).unwrap());
                json.pieces(|_| {});
                prop_assert!(json.is_broken(), "{length} of {written}");
            }
        }
    }

    #[test]
    fn a_piece_is_no_longer_than_a_run_of_the_body_or_the_buffer() {
        let long = "x".repeat(100_000);
        let text = format!("a\n{long}\n{}", "\n\u{1f600}".repeat(10_000));
        let mut lengths = Vec::new();
        Json::new(ascii(&text).as_bytes()).pieces(|piece| lengths.push(piece.len()));
        assert_eq!(lengths.iter().sum::<usize>(), text.len());
        assert!(lengths.iter().all(|length| *length <= PIECE_BYTES || *length == long.len()), "{lengths:?}");
        assert!(lengths.len() < 100, "{} pieces", lengths.len());
    }

    #[test]
    fn half_a_surrogate_pair_is_replaced() {
        for (written, text) in [
            (r#""a\ud83d\ude00b""#, "a\u{1f600}b"),
            (r#""\uD83D\uDE00""#, "\u{1f600}"),
            (r#""\ud83dx""#, "\u{fffd}x"),
            (r#""\ude00\ud83d""#, "\u{fffd}\u{fffd}"),
            (r#""\udc00\udc00""#, "\u{fffd}\u{fffd}"),
            (r#""\ud83d\ud83d""#, "\u{fffd}\u{fffd}"),
            (r#""\ud83d\u0061""#, "\u{fffd}a"),
            (r#""\ud83d\n""#, "\u{fffd}\n"),
            (r#""\u12""#, "\u{fffd}12"),
            (r#""\u+123""#, "\u{fffd}+123"),
        ] {
            assert_eq!(read(written.as_bytes()), text.as_bytes(), "{written}");
        }
    }

    #[test]
    fn a_byte_that_no_utf8_has_is_never_given_on() {
        let newlines = |text: &str| text.replace("\\n", "\n").into_bytes();
        for before in ["", "a", "aaaaaaaaaaaaaaaaa", "\\n", "\\naaaaaaaaaaaaaaaaaaa"] {
            for after in ["", "b\\nbbbbbbbbbb", "bbbbbbbbbbbbbbbbb"] {
                let written = [b"\"", before.as_bytes(), b"\xff\xfe", after.as_bytes(), b"\"\xff"].concat();
                let text = [&*newlines(before), "\u{fffd}".as_bytes(), b"\xfe", &*newlines(after)].concat();
                assert_eq!(read(&written), text, "{before} and {after}");
            }
        }
    }
}
