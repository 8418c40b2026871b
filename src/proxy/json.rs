//! A reader of JSON that looks at each byte once and at most of them only in passing: it finds the fields of an object and
//! where their values end. Pure.
//!
//! For [`super::prompt`], which wants a few fields of bodies that may be megabytes long and comes from anybody: so it keeps
//! no stack (nesting costs nothing), copies nothing, and checks only what it needs to find its way. What it does not
//! understand ends the reading.

use memchr::{memchr, memchr_iter};
use std::borrow::Cow;

/// The fields of the object that a text begins with, each as its key and the bytes of its value.
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Reads `text`, which has no fields when it is not an object.
    #[must_use]
    pub fn of(text: &'a [u8]) -> Self {
        Self { rest: text.trim_ascii_start().strip_prefix(b"{").unwrap_or_default() }
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = (Cow<'a, str>, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.rest.trim_ascii_start();
        let rest = rest.strip_prefix(b",").unwrap_or(rest).trim_ascii_start();
        // Whatever goes wrong from here on: nothing more is read.
        self.rest = &[];
        let (key, rest) = rest.split_at_checked(string_length(rest)?)?;
        let rest = rest.trim_ascii_start().strip_prefix(b":")?.trim_ascii_start();
        let (value, rest) = rest.split_at_checked(value_length(rest)?)?;
        let key = string(key)?;
        self.rest = rest;
        Some((key, value))
    }
}

/// The text of a JSON string with its quotes, borrowed where it has no escapes; `None` when it is none.
#[must_use]
pub fn string(value: &[u8]) -> Option<Cow<'_, str>> {
    let inner = value.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    if memchr(b'\\', inner).is_none() {
        return std::str::from_utf8(inner).ok().map(Cow::Borrowed);
    }
    serde_json::from_slice(value).ok().map(Cow::Owned)
}

/// The length of the value at the start of `text`; `None` when it does not end.
fn value_length(text: &[u8]) -> Option<usize> {
    match text.first()? {
        b'"' => string_length(text),
        b'{' | b'[' => container_length(text),
        _ => {
            let ends = |byte: &u8| matches!(byte, b',' | b'}' | b']') || byte.is_ascii_whitespace();
            text.iter().position(ends).filter(|length| *length > 0)
        }
    }
}

/// The length of the string at the start of `text`, quotes included: up to the first quote that an even number of
/// backslashes, or none, stands before.
fn string_length(text: &[u8]) -> Option<usize> {
    let inner = text.strip_prefix(b"\"")?;
    memchr_iter(b'"', inner)
        .find(|&at| {
            let before = inner.get(..at).unwrap_or_default();
            before.iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 0
        })
        .map(|at| at + 2)
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
            _ => at += 1,
        }
    }
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

    proptest! {
        #[test]
        fn it_reads_what_a_strict_parser_reads(fields in prop::collection::btree_map(any::<String>(), any_json(), 0..6), pretty: bool) {
            let object = Value::Object(fields.into_iter().collect());
            let text = if pretty { format!(" {object:#} ") } else { object.to_string() };
            let read: Vec<(String, Value)> = Fields::of(text.as_bytes())
                .map(|(key, value)| (key.into_owned(), serde_json::from_slice(value).unwrap()))
                .collect();
            let strict: Vec<(String, Value)> = object.as_object().unwrap().clone().into_iter().collect();
            prop_assert_eq!(read, strict);
        }

        #[test]
        fn no_input_makes_it_fail(text in prop::collection::vec(prop_oneof![
            Just(b'{'), Just(b'}'), Just(b'['), Just(b']'), Just(b'"'), Just(b'\\'), Just(b':'), Just(b','), any::<u8>()
        ], 0..64)) {
            let bytes: usize = Fields::of(&text).map(|(_, value)| value.len()).sum();
            prop_assert!(bytes <= text.len());
        }
    }
}
