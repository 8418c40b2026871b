//! A reader of JSON that looks at each byte once and at most of them only in passing. Pure.
//!
//! For [`super::prompt`] and [`super::prefix`], which want a few fields of bodies that may be megabytes long and come from
//! anybody: so it keeps no stack (nesting costs nothing), copies nothing, and checks only what it needs to find its way.
//! What it does not understand ends the reading.

mod canonical;
mod scan;
mod text;

pub use text::STRAY;

use memchr::memchr;
use std::borrow::Cow;

/// A place in a JSON text.
pub struct Json<'a> {
    text: &'a [u8],
    at: usize,
    broken: bool,
}

impl<'a> Json<'a> {
    /// The start of `text`.
    #[must_use]
    pub fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0, broken: false }
    }

    /// Whether something was met that is not understood; nothing is read from there on.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// The byte that the next value begins with.
    pub fn kind(&mut self) -> Option<u8> {
        loop {
            match self.text.get(self.at) {
                Some(byte) if *byte > b' ' => return Some(*byte),
                Some(byte) if byte.is_ascii_whitespace() => self.at += 1,
                other => return other.copied(),
            }
        }
    }

    /// Reads the object that stands here: `field` is called at the value of each key, and reads it or leaves it. A key is
    /// UTF-8, given as bytes because it is compared only.
    pub fn object(&mut self, field: impl FnMut(&mut Self, Cow<'a, [u8]>)) {
        if !self.take(b'{') {
            return self.give_up();
        }
        self.fields(true, field);
    }

    /// Reads what is left of an object in the same way: all behind its brace or, where that is not `first`, behind a value.
    #[inline]
    pub fn fields(&mut self, mut first: bool, mut field: impl FnMut(&mut Self, Cow<'a, [u8]>)) {
        while !self.broken && !self.take(b'}') {
            if !first && !self.take(b',') {
                return self.give_up();
            }
            first = false;
            let Some(key) = self.key() else { return self.give_up() };
            if !self.take(b':') {
                return self.give_up();
            }
            self.value(|json| field(json, key));
        }
    }

    /// Reads the array that stands here: `element` is called at each value, and reads it or leaves it.
    pub fn array(&mut self, mut element: impl FnMut(&mut Self)) {
        if !self.take(b'[') {
            return self.give_up();
        }
        let mut first = true;
        while !self.broken && !self.take(b']') {
            if !first && !self.take(b',') {
                return self.give_up();
            }
            first = false;
            self.value(&mut element);
        }
    }

    /// Reads the array of whole numbers below 2^32 that stands here; anything else in it ends the reading.
    pub fn integers(&mut self, mut number: impl FnMut(u32)) {
        if !self.take(b'[') {
            return self.give_up();
        }
        if self.take(b']') {
            return;
        }
        loop {
            self.kind();
            let Some((integer, digits)) = leading_integer(self.rest()) else { return self.give_up() };
            number(integer);
            self.at += digits;
            if self.take(b']') {
                return;
            }
            if !self.take(b',') {
                return self.give_up();
            }
        }
    }

    /// Passes over so many bytes of what has not been read yet.
    pub fn advance(&mut self, bytes: usize) {
        self.at = self.text.len().min(self.at + bytes);
    }

    /// Passes over the next value, whose bytes are returned; none where it does not end.
    pub fn skip(&mut self) -> &'a [u8] {
        self.kind();
        let value = value_length(self.rest()).and_then(|length| self.rest().get(..length));
        let Some(value) = value else {
            self.give_up();
            return &[];
        };
        self.at += value.len();
        value
    }

    /// Reads the next value with `read`, and returns its bytes.
    pub fn raw(&mut self, read: impl FnOnce(&mut Self)) -> &'a [u8] {
        self.kind();
        let start = self.at;
        read(self);
        self.since(start)
    }

    /// Reads the next value with `read`, and returns its bytes; `None` where it is not understood that way, or more of it is
    /// left: nothing has been read then.
    pub fn attempt(&mut self, read: impl FnOnce(&mut Self)) -> Option<&'a [u8]> {
        self.kind();
        let start = self.at;
        let value = self.raw(read);
        if !self.broken && matches!(self.kind(), Some(b',' | b'}' | b']')) {
            return Some(value);
        }
        (self.at, self.broken) = (start, false);
        None
    }

    /// How much has been read.
    #[must_use]
    pub fn position(&self) -> usize {
        self.at
    }

    /// What has been read from a position on.
    #[must_use]
    pub fn since(&self, position: usize) -> &'a [u8] {
        self.text.get(position..self.at).unwrap_or_default()
    }

    /// What has not been read yet.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.text.get(self.at..).unwrap_or_default()
    }

    /// The next value where it is a string; any other is passed over.
    pub fn string(&mut self) -> Option<Cow<'a, str>> {
        match self.plain_string() {
            Some(text) => std::str::from_utf8(text).ok().map(Cow::Borrowed),
            None => string(self.skip()),
        }
    }

    #[inline]
    fn key(&mut self) -> Option<Cow<'a, [u8]>> {
        match self.plain_string() {
            Some(text) => is_utf8(text).then_some(Cow::Borrowed(text)),
            None => match string(self.skip())? {
                Cow::Borrowed(text) => Some(Cow::Borrowed(text.as_bytes())),
                Cow::Owned(text) => Some(Cow::Owned(text.into_bytes())),
            },
        }
    }

    fn value(&mut self, read: impl FnOnce(&mut Self)) {
        self.kind();
        let start = self.at;
        read(self);
        if self.at == start && !self.broken {
            self.skip();
        }
    }

    fn take(&mut self, byte: u8) -> bool {
        let there = self.kind() == Some(byte);
        self.at += usize::from(there);
        there
    }

    fn give_up(&mut self) {
        self.broken = true;
        self.at = self.text.len();
    }
}

/// The number that `value` is, where it is a whole one below 2^32.
#[must_use]
pub fn integer(value: &[u8]) -> Option<u32> {
    leading_integer(value).filter(|(_, digits)| *digits == value.len()).map(|(integer, _)| integer)
}

/// The number that `text` begins with, and how many digits it has.
fn leading_integer(text: &[u8]) -> Option<(u32, usize)> {
    const DIGITS_MAX: usize = 10;
    let digits = text.iter().map(|byte| byte.wrapping_sub(b'0')).take_while(|digit| *digit < 10);
    let (mut integer, mut count) = (0, 0);
    for digit in digits.take(DIGITS_MAX + 1) {
        integer = integer * 10 + u64::from(digit);
        count += 1;
    }
    let integer = u32::try_from(integer).ok()?;
    (1..=DIGITS_MAX).contains(&count).then_some((integer, count))
}

/// The text of a JSON string with its quotes, borrowed where it has no escapes; `None` when it is none.
#[must_use]
pub fn string(value: &[u8]) -> Option<Cow<'_, str>> {
    let inner = inner(value)?;
    if memchr(b'\\', inner).is_none() {
        return std::str::from_utf8(inner).ok().map(Cow::Borrowed);
    }
    serde_json::from_slice(value).ok().map(Cow::Owned)
}

fn inner(value: &[u8]) -> Option<&[u8]> {
    value.strip_prefix(b"\"")?.strip_suffix(b"\"")
}

/// The length of the value at the start of `text`; `None` when it does not end.
fn value_length(text: &[u8]) -> Option<usize> {
    match text.first()? {
        b'"' => short_string_length(text).or_else(|| string_length(text)),
        b'{' | b'[' => container_length(text),
        _ => {
            let ends = |byte: &u8| matches!(byte, b',' | b'}' | b']') || byte.is_ascii_whitespace();
            text.iter().position(ends).filter(|length| *length > 0)
        }
    }
}

/// Keys are short, and nearly all are ASCII.
#[inline]
fn is_utf8(text: &[u8]) -> bool {
    text.iter().fold(0, |all, byte| all | byte).is_ascii() || std::str::from_utf8(text).is_ok()
}

/// The length of a string with at most seven bytes between its quotes, and no escape.
#[inline]
fn short_string_length(text: &[u8]) -> Option<usize> {
    let length = text::first_end(*text.get(1..)?.first_chunk()?)?;
    (text.get(length + 1) == Some(&b'"')).then_some(length + 2)
}

/// The length of the string at the start of `text`, quotes included.
fn string_length(text: &[u8]) -> Option<usize> {
    scan::length(text.strip_prefix(b"\"")?).map(|length| length + 2)
}

/// The length of the object or array at the start of `text`. Brackets are counted, not matched by kind.
fn container_length(text: &[u8]) -> Option<usize> {
    let mut depth = 0_usize;
    let mut at = 0;
    loop {
        match text.get(at)? {
            b'"' => at += string_length(text.get(at..)?)?,
            b'{' | b'[' => {
                depth += 1;
                at += 1;
            }
            b'}' | b']' => {
                depth -= 1;
                at += 1;
                if depth == 0 {
                    return Some(at);
                }
            }
            b'0'..=b'9' => at += 1 + flat_length(text.get(at + 1..)?),
            _ => at += 1,
        }
    }
}

/// The length of a start of `text` that has neither strings nor brackets: long lists of numbers are passed over many bytes
/// at a time, which a compiler makes of a loop without an exit.
fn flat_length(text: &[u8]) -> usize {
    const CHUNK: usize = 32;
    let is_flat = |chunk: &&[u8; CHUNK]| {
        // The four brackets, and a few bytes that no number has, differ in three bits only.
        let found = chunk
            .iter()
            .fold(0, |found, byte| found | u8::from(*byte == b'"') | u8::from(byte & 0xd9 == b'[' & 0xd9));
        found == 0
    };
    text.as_chunks::<CHUNK>().0.iter().take_while(is_flat).count() * CHUNK
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<i32>().prop_map(|number| Value::from(f64::from(number) / 8.0)),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    /// The whole of `json` as serde sees it, read with nothing but the reader.
    fn value(json: &mut Json<'_>) -> Value {
        match json.kind() {
            Some(b'{') => {
                let mut fields = serde_json::Map::new();
                json.object(|json, key| {
                    fields.insert(String::from_utf8(key.into_owned()).unwrap(), value(json));
                });
                Value::Object(fields)
            }
            Some(b'[') => {
                let mut elements = Vec::new();
                json.array(|json| elements.push(value(json)));
                Value::Array(elements)
            }
            Some(b'"') => Value::String(json.string().unwrap().into_owned()),
            _ => serde_json::from_slice(json.skip()).unwrap(),
        }
    }

    #[test]
    fn integers_are_whole_and_fit_into_32_bits() {
        for (text, expected) in [("0", Some(0)), ("4294967295", Some(u32::MAX)), ("0000000012", Some(12))] {
            assert_eq!(integer(text.as_bytes()), expected, "{text}");
        }
        for text in ["", "-1", "1.0", "1e3", "4294967296", "99999999999", "18446744073709551617", "1 ", "+1"]
        {
            assert_eq!(integer(text.as_bytes()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn integers_are_read_as_a_strict_parser_reads_them(numbers: Vec<u32>, pretty: bool) {
            let text = if pretty { format!(" {:#}", Value::from(numbers.clone())) } else { Value::from(numbers.clone()).to_string() };
            let mut read = Vec::new();
            let mut json = Json::new(text.as_bytes());
            json.integers(|number| read.push(number));
            prop_assert_eq!((read, json.is_broken(), json.rest().len()), (numbers, false, 0));
        }

        #[test]
        fn it_reads_what_a_strict_parser_reads(fields in prop::collection::btree_map(any::<String>(), any_json(), 0..6), pretty: bool) {
            let object = Value::Object(fields.into_iter().collect());
            let text = if pretty { format!(" {object:#} ") } else { object.to_string() };
            let mut json = Json::new(text.as_bytes());
            prop_assert_eq!(value(&mut json), object);
            prop_assert!(!json.is_broken());
        }

        #[test]
        fn fields_that_are_left_are_passed_over(fields in prop::collection::btree_map(any::<String>(), any_json(), 0..6)) {
            let object = Value::Object(fields.into_iter().collect());
            let text = object.to_string();
            let (mut keys, mut bytes) = (Vec::new(), Vec::new());
            let mut json = Json::new(text.as_bytes());
            json.object(|json, key| {
                keys.push(String::from_utf8(key.into_owned()).unwrap());
                if keys.len() % 2 == 0 {
                    bytes.push(json.raw(|json| { json.skip(); }).to_vec());
                }
            });
            prop_assert!(!json.is_broken());
            prop_assert_eq!(&keys, &object.as_object().unwrap().keys().cloned().collect::<Vec<_>>());
            for (key, bytes) in keys.iter().skip(1).step_by(2).zip(bytes) {
                prop_assert_eq!(&serde_json::from_slice::<Value>(&bytes).unwrap(), &object[key]);
            }
        }

        #[test]
        fn no_input_makes_it_fail(text in prop::collection::vec(prop_oneof![
            Just(b'{'), Just(b'}'), Just(b'['), Just(b']'), Just(b'"'), Just(b'\\'), Just(b'u'), Just(b':'), Just(b','), any::<u8>()
        ], 0..64)) {
            let mut bytes = 0;
            Json::new(&text).object(|json, _| {
                bytes += json.raw(|json| json.array(|json| json.pieces(|_| {}))).len();
            });
            prop_assert!(bytes <= text.len());
            Json::new(&text).pieces(|_| {});
            Json::new(&text).integers(|_| {});
        }
    }
}
