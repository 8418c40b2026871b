//! What a request asks of the engine: read by a scan for a few keys in canned mode, by a JSON parser otherwise.
//!
//! The scan exists because a canned engine is what benchmarks measure a gateway with, and must cost next to nothing.
//! A quote inside a JSON string is escaped, so `"key"` followed by a colon can only be a key; a key of the same name
//! in a nested object is taken for the one at the top, which is near enough for canned answers.

use memchr::memmem;
use serde::Deserialize;
use serde_json::Value;

/// Larger bodies are scanned at both ends only, as far as this.
const SCAN_END_BYTES: usize = 16 * 1024;

/// The fields that shape an answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) model: Option<String>,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    pub(super) return_token_ids: bool,
    pub(super) max_tokens: Option<u64>,
}

/// The keys under which dialects bound the answer.
const MAX_TOKENS: [&[u8]; 3] = [b"\"max_tokens\"", b"\"max_completion_tokens\"", b"\"max_output_tokens\""];

impl Ask {
    pub(super) fn scan(body: &[u8]) -> Self {
        if body.len() <= 4 * SCAN_END_BYTES {
            return Self::scan_all(body);
        }
        let (head, tail) = (body.get(..SCAN_END_BYTES), body.get(body.len() - SCAN_END_BYTES..));
        let (head, tail) = (Self::scan_all(head.unwrap_or(body)), Self::scan_all(tail.unwrap_or_default()));
        Self {
            model: head.model.or(tail.model),
            stream: head.stream || tail.stream,
            include_usage: head.include_usage || tail.include_usage,
            return_token_ids: head.return_token_ids || tail.return_token_ids,
            max_tokens: head.max_tokens.or(tail.max_tokens),
        }
    }

    fn scan_all(body: &[u8]) -> Self {
        let is_true = |key| value(body, key).is_some_and(|value| value.starts_with(b"true"));
        Self {
            model: value(body, b"\"model\"").and_then(text),
            stream: is_true(b"\"stream\""),
            include_usage: is_true(b"\"include_usage\""),
            return_token_ids: is_true(b"\"return_token_ids\""),
            max_tokens: MAX_TOKENS.iter().find_map(|key| value(body, key).and_then(number)),
        }
    }

    pub(super) fn of(body: &Body) -> Self {
        Self {
            model: body.model.clone(),
            stream: body.stream.unwrap_or(false),
            include_usage: body.stream_options.as_ref().is_some_and(|options| options.include_usage),
            return_token_ids: body.return_token_ids.unwrap_or(false),
            max_tokens: body.max_tokens.or(body.max_completion_tokens).or(body.max_output_tokens),
        }
    }
}

/// What follows the first `key:`.
fn value<'a>(body: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    memmem::find_iter(body, key).find_map(|at| {
        let rest = body.get(at + key.len()..)?.trim_ascii_start();
        Some(rest.strip_prefix(b":")?.trim_ascii_start())
    })
}

fn text(value: &[u8]) -> Option<String> {
    let value = value.strip_prefix(b"\"")?;
    let end = memchr::memchr2(b'"', b'\\', value)?;
    Some(String::from_utf8_lossy(value.get(..end)?).into_owned())
}

fn number(value: &[u8]) -> Option<u64> {
    let end = value.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(value.len());
    str::from_utf8(value.get(..end)?).ok()?.parse().ok()
}

/// A parsed request body.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Body {
    model: Option<String>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    return_token_ids: Option<bool>,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    max_output_tokens: Option<u64>,
    pub(super) prompt: Option<Value>,
    pub(super) input: Option<Value>,
    pub(super) messages: Option<Vec<Value>>,
    pub(super) cache_salt: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scan_reads_what_the_parser_reads() {
        for body in [
            r#"{"model":"tiny","stream":true,"max_tokens":7}"#,
            r#"{ "max_completion_tokens" : 9 , "stream" : false, "model" : "a b" }"#,
            r#"{"stream":true,"stream_options":{"include_usage": true},"return_token_ids":true,"prompt":"x"}"#,
            r#"{"prompt":"say \"stream\":true and \"max_tokens\":3"}"#,
            r#"{"prompt":"stream","model":"max_tokens"}"#,
            "{}",
        ] {
            let parsed = Ask::of(&serde_json::from_str(body).unwrap());
            assert_eq!(Ask::scan(body.as_bytes()), parsed, "{body}");
        }
    }

    #[test]
    fn keys_on_either_side_of_a_large_prompt_are_found() {
        let prompt = "word ".repeat(100_000);
        let body = format!(r#"{{"model":"tiny","prompt":"{prompt}","stream":true,"max_tokens":3}}"#);
        let ask = Ask { model: Some("tiny".into()), stream: true, max_tokens: Some(3), ..Ask::default() };
        assert_eq!(Ask::scan(body.as_bytes()), ask);
    }
}
