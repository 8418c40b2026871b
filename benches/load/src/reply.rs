//! What an engine said: the text of a whole answer, and its usage, out of the last bytes. Used by `player`; pure.
use memchr::memmem;
use serde::Deserialize;
use serde_json::Value;

use crate::measurement::Failure;

/// Usage is looked for in as many bytes at the end of an answer: engines send little after it.
pub(crate) const TAIL_BYTES: usize = 4096;

/// What the engine counted.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: u64,
    #[serde(default)]
    pub(crate) completion_tokens: u64,
    prompt_tokens_details: Option<Details>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
struct Details {
    cached_tokens: Option<u64>,
}

impl Usage {
    /// Of the prompt's tokens those that were in the cache; none where the engine does not tell.
    pub(crate) fn cached_tokens(&self) -> u64 {
        self.prompt_tokens_details.as_ref().and_then(|details| details.cached_tokens).unwrap_or_default()
    }

    /// The last usage in the end of an answer. Quotes within a JSON text are escaped, so what is found is a key.
    pub(crate) fn find(tail: &[u8]) -> Option<Self> {
        let key = b"\"usage\":";
        memmem::rfind_iter(tail, key).find_map(|at| {
            let value = tail.get(at + key.len()..)?;
            serde_json::Deserializer::from_slice(value).into_iter().next()?.ok()
        })
    }
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
}

/// One choice, of any of the four forms: chat or completion, whole or streamed.
#[derive(Deserialize)]
struct Choice {
    #[serde(alias = "message")]
    delta: Option<Content>,
    text: Option<String>,
}

#[derive(Deserialize)]
struct Content {
    content: Option<String>,
}

/// The text of a whole answer or of all events of a complete stream.
pub(crate) fn text(body: &[u8], stream: bool) -> Result<String, Failure> {
    let mut text = String::new();
    let mut take = |data: &[u8]| -> Result<(), Failure> {
        let chunk: Chunk = serde_json::from_slice(data).map_err(|_| Failure::Incomplete)?;
        let said = chunk.choices.into_iter().filter_map(|choice| match choice.delta {
            Some(delta) => delta.content,
            None => choice.text,
        });
        text.extend(said);
        Ok(())
    };
    if stream {
        let lines = body.split(|byte| *byte == b'\n').filter_map(|line| line.strip_prefix(b"data:"));
        lines.map(<[u8]>::trim_ascii).filter(|data| *data != b"[DONE]").try_for_each(take)?;
    } else {
        take(body)?;
    }
    Ok(text)
}

/// What a refusal says, shortened, where it has a form of OpenAI or of common frameworks.
pub(crate) fn complaint(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let places = [body.pointer("/error/message"), body.get("message"), body.get("detail"), body.get("error")];
    let said = places.into_iter().flatten().find_map(Value::as_str)?;
    Some(said.chars().filter(|c| !c.is_control()).take(COMPLAINT_CHARS_MAX).collect())
}

const COMPLAINT_CHARS_MAX: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    const TOKENS: &str = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\
         data: {\"choices\":[{\"delta\":{\"content\":\" a\\\"b\"}}],\"usage\":null}\n\n\
         data: {\"choices\":[{\"delta\":{\"content\":\" c\"}}]}\n\n";
    const USAGE: &str = r#""usage":{"prompt_tokens":9,"total_tokens":11,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":4}}"#;

    #[test]
    fn text_is_put_together_and_usage_is_found_at_the_end() {
        let body = format!("{TOKENS}data: {{\"choices\":[],{USAGE}}}\n\ndata: [DONE]\n\n");
        assert_eq!(text(body.as_bytes(), true).unwrap(), " a\"b c");
        let usage = Usage::find(body.as_bytes()).unwrap();
        assert_eq!((usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens()), (9, 2, 4));
    }

    #[test]
    fn completions_and_whole_answers_are_read_too() {
        let stream = "data: {\"choices\":[{\"text\":\" a\"}]}\n\ndata: {\"choices\":[{\"text\":\" b\"}]}\n\n";
        assert_eq!(text(stream.as_bytes(), true).unwrap(), " a b");
        let whole =
            format!(r#"{{"choices":[{{"message":{{"content":"x \"usage\":{{}}"}}}}],{USAGE},"more":null}}"#);
        assert_eq!(text(whole.as_bytes(), false).unwrap(), "x \"usage\":{}");
        assert_eq!(Usage::find(whole.as_bytes()).unwrap().prompt_tokens, 9);
        assert_eq!(text(br#"{"choices":[{"text":"y"}]}"#, false).unwrap(), "y");
    }

    #[test]
    fn a_broken_event_is_a_failure_and_no_usage_is_none() {
        assert!(matches!(text(b"data: {\"choices\":\n\n", true), Err(Failure::Incomplete)));
        assert_eq!(Usage::find(TOKENS.as_bytes()), None);
        assert_eq!(Usage::find(br#""usage":{"prompt_tok"#), None);
    }

    #[test]
    fn a_refusal_is_read_in_its_common_forms() {
        for body in [
            r#"{"error":{"message":"no such model","code":404}}"#,
            r#"{"object":"error","message":"no such model"}"#,
            r#"{"detail":"no such model"}"#,
            r#"{"error":"no such model"}"#,
        ] {
            assert_eq!(complaint(body.as_bytes()).as_deref(), Some("no such model"), "{body}");
        }
        assert_eq!(complaint(b"<html>"), None);
    }
}
