//! Bytes → [`Prompt`]: what a request body says about itself. Pure.
//!
//! Called once per body. One pass without copying; strict about nothing: a body that is not JSON, or breaks off, yields
//! what was understood up to there, and is forwarded unchanged in any case.

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::fmt;

/// Bodies longer than this are parsed on a thread for blocking work, so that they do not hold up other requests.
pub const INLINE_BYTES_MAX: usize = 256 * 1024;

/// Longer model names are no names.
const MODEL_BYTES_MAX: usize = 256;

/// What is known of the prompt of a request.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Prompt {
    /// The `model` field, where it is a string.
    pub model: Option<String>,
    /// Whether the answer is to be streamed.
    pub stream: bool,
}

/// Reads a body. Anything that is not a JSON object yields the default.
#[must_use]
pub fn parse(body: &[u8]) -> Prompt {
    let mut prompt = Prompt::default();
    let mut json = serde_json::Deserializer::from_slice(body);
    // What was written into `prompt` before an error stays: the error itself is of no interest.
    let _understood_to_the_end = Fields(&mut prompt).deserialize(&mut json).is_ok();
    prompt
}

/// Fills a prompt from the fields of an object.
struct Fields<'a>(&'a mut Prompt);

impl<'de> DeserializeSeed<'de> for Fields<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(Text(key)) = map.next_key_seed(AnyText)? {
            match key.as_ref() {
                "model" => self.0.model = map.next_value_seed(Lenient)?.into_model(),
                "stream" => self.0.stream = matches!(map.next_value_seed(Lenient)?, Value::Bool(true)),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// A value of which only strings and booleans are of interest.
enum Value<'de> {
    Text(Cow<'de, str>),
    Bool(bool),
    Other,
}

impl Value<'_> {
    fn into_model(self) -> Option<String> {
        match self {
            Value::Text(text) if !text.is_empty() && text.len() <= MODEL_BYTES_MAX => Some(text.into_owned()),
            _ => None,
        }
    }
}

struct Lenient;

impl<'de> DeserializeSeed<'de> for Lenient {
    type Value = Value<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Lenient {
    type Value = Value<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value<'de>, E> {
        Ok(Value::Bool(value))
    }

    fn visit_borrowed_str<E: Error>(self, value: &'de str) -> Result<Value<'de>, E> {
        Ok(Value::Text(Cow::Borrowed(value)))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value<'de>, E> {
        Ok(Value::Text(Cow::Owned(value.to_owned())))
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Value<'de>, E> {
        Ok(Value::Other)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Value<'de>, E> {
        Ok(Value::Other)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Value<'de>, E> {
        Ok(Value::Other)
    }

    fn visit_unit<E: Error>(self) -> Result<Value<'de>, E> {
        Ok(Value::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value<'de>, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value<'de>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Value::Other)
    }
}

/// A key, borrowed from the body where it has no escapes.
struct Text<'de>(Cow<'de, str>);

struct AnyText;

impl<'de> DeserializeSeed<'de> for AnyText {
    type Value = Text<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Text<'de>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for AnyText {
    type Value = Text<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E: Error>(self, value: &'de str) -> Result<Text<'de>, E> {
        Ok(Text(Cow::Borrowed(value)))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Text<'de>, E> {
        Ok(Text(Cow::Owned(value.to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(model: &str, stream: bool) -> Prompt {
        Prompt {
            model: Some(model.to_owned()),
            stream,
        }
    }

    #[test]
    fn model_and_stream_are_found_wherever_they_stand() {
        let body = br#" {"messages":[{"role":"user","content":"\"model\":\"no\""}],"stream":true,"m\u006fdel":"org/a"}"#;
        assert_eq!(parse(body), prompt("org/a", true));
    }

    #[test]
    fn the_last_of_two_equal_keys_counts_as_in_python() {
        assert_eq!(
            parse(br#"{"model":"a","stream":true,"model":"b","stream":false}"#),
            prompt("b", false)
        );
    }

    #[test]
    fn what_stood_before_an_error_is_kept() {
        for body in [
            r#"{"model":"a","temperature":NaN}"#,
            r#"{"model":"a","prompt":"x"#,
            r#"{"model":"a"} trailing"#,
        ] {
            assert_eq!(parse(body.as_bytes()), prompt("a", false), "{body}");
        }
    }

    #[test]
    fn what_is_no_name_is_no_model() {
        for model in ["1", "null", "[\"a\"]", "{\"a\":1}", "\"\"", "true", "1e400"] {
            assert_eq!(
                parse(format!(r#"{{"model":{model}}}"#).as_bytes()).model,
                None,
                "{model}"
            );
        }
        assert_eq!(
            parse(format!(r#"{{"model":"{}"}}"#, "x".repeat(257)).as_bytes()).model,
            None
        );
    }

    #[test]
    fn a_body_that_is_not_an_object_says_nothing() {
        for body in ["", "[]", "nonsense", "\u{feff}{}", "\"model\"", "4"] {
            assert_eq!(parse(body.as_bytes()), Prompt::default(), "{body}");
        }
    }

    #[test]
    fn deep_nesting_neither_fails_nor_overflows() {
        let deep = format!(
            r#"{{"x":{}{},"model":"a"}}"#,
            "[".repeat(100_000),
            "]".repeat(100_000)
        );
        assert_eq!(parse(deep.as_bytes()), prompt("a", false));
    }
}
