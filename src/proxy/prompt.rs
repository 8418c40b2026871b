//! Bytes → [`Prompt`]: what a request body says about itself. Pure.
//!
//! Called once per body. One pass without copying; strict about nothing: a body that is not JSON, or breaks off, yields
//! what was understood up to there, and is forwarded unchanged in any case.

use super::json::{self, Fields};
use std::borrow::Cow;

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

/// Reads a body. Anything that is not a JSON object yields the default; of two equal keys the last counts, as in Python.
#[must_use]
pub fn parse(body: &[u8]) -> Prompt {
    let mut prompt = Prompt::default();
    for (key, value) in Fields::of(body) {
        match key.as_ref() {
            "model" => prompt.model = model(value),
            "stream" => prompt.stream = value == b"true",
            _ => {}
        }
    }
    prompt
}

fn model(value: &[u8]) -> Option<String> {
    let name = json::string(value).filter(|name| (1..=MODEL_BYTES_MAX).contains(&name.len()));
    name.map(Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(model: &str, stream: bool) -> Prompt {
        Prompt { model: Some(model.to_owned()), stream }
    }

    #[test]
    fn model_and_stream_are_found_wherever_they_stand() {
        let body = br#" {"messages":[{"role":"user","content":"\"model\":\"no\""}],"stream":true,"m\u006fdel":"org/a"}"#;
        assert_eq!(parse(body), prompt("org/a", true));
    }

    #[test]
    fn the_last_of_two_equal_keys_counts_as_in_python() {
        assert_eq!(parse(br#"{"model":"a","stream":true,"model":"b","stream":false}"#), prompt("b", false));
    }

    #[test]
    fn what_stood_before_an_error_is_kept() {
        for body in
            [r#"{"model":"a","temperature":NaN}"#, r#"{"model":"a","prompt":"x"#, r#"{"model":"a"} trailing"#]
        {
            assert_eq!(parse(body.as_bytes()), prompt("a", false), "{body}");
        }
    }

    #[test]
    fn what_is_no_name_is_no_model() {
        for model in ["1", "null", "[\"a\"]", "{\"a\":1}", "\"\"", "true", "1e400"] {
            assert_eq!(parse(format!(r#"{{"model":{model}}}"#).as_bytes()).model, None, "{model}");
        }
        assert_eq!(parse(format!(r#"{{"model":"{}"}}"#, "x".repeat(257)).as_bytes()).model, None);
    }

    #[test]
    fn a_body_that_is_not_an_object_says_nothing() {
        for body in ["", "[]", "nonsense", "\u{feff}{}", "\"model\"", "4"] {
            assert_eq!(parse(body.as_bytes()), Prompt::default(), "{body}");
        }
    }

    #[test]
    fn deep_nesting_neither_fails_nor_overflows() {
        let deep = format!(r#"{{"x":{}{},"model":"a"}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(parse(deep.as_bytes()), prompt("a", false));
    }
}
