//! What a streamed chat said: its text and its usage, out of the whole body. Used by `player`; pure.
use serde::Deserialize;

use crate::measurement::Failure;

/// The content of a stream.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Reply {
    pub(crate) text: String,
    pub(crate) usage: Usage,
}

/// What the engine counted.
#[derive(Debug, Default, Deserialize, PartialEq)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: u64,
    pub(crate) completion_tokens: u64,
    prompt_tokens_details: Option<Details>,
}

#[derive(Debug, Default, Deserialize, PartialEq)]
struct Details {
    cached_tokens: Option<u64>,
}

impl Usage {
    /// Of the prompt's tokens those that were in the cache; none where the engine does not tell.
    pub(crate) fn cached_tokens(&self) -> u64 {
        self.prompt_tokens_details.as_ref().and_then(|details| details.cached_tokens).unwrap_or_default()
    }
}

#[derive(Deserialize)]
struct Chunk {
    choices: Vec<Choice>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Choice {
    delta: Delta,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
}

impl Reply {
    /// Reads the events of a complete stream.
    pub(crate) fn read(body: &[u8]) -> Result<Self, Failure> {
        let (mut text, mut usage) = (String::new(), None);
        let lines = body.split(|byte| *byte == b'\n').filter_map(|line| line.strip_prefix(b"data: "));
        for data in lines.filter(|data| *data != b"[DONE]") {
            let chunk: Chunk = serde_json::from_slice(data).map_err(|_| Failure::Incomplete)?;
            text.extend(chunk.choices.into_iter().filter_map(|choice| choice.delta.content));
            usage = chunk.usage.or(usage);
        }
        Ok(Self { text, usage: usage.ok_or(Failure::Usage)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKENS: &str = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\
         data: {\"choices\":[{\"delta\":{\"content\":\" a\\\"b\"}}],\"usage\":null}\n\n\
         data: {\"choices\":[{\"delta\":{\"content\":\" c\"}}]}\n\n";

    #[test]
    fn text_and_usage_are_put_together() {
        let usage = r#"{"prompt_tokens":9,"total_tokens":11,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":4}}"#;
        let body = format!("{TOKENS}data: {{\"choices\":[],\"usage\":{usage}}}\n\ndata: [DONE]\n\n");
        let reply = Reply::read(body.as_bytes()).unwrap();
        assert_eq!((reply.text.as_str(), reply.usage.prompt_tokens), (" a\"b c", 9));
        assert_eq!((reply.usage.completion_tokens, reply.usage.cached_tokens()), (2, 4));
    }

    #[test]
    fn a_stream_without_usage_or_with_a_broken_event_is_a_failure() {
        assert!(matches!(Reply::read(TOKENS.as_bytes()), Err(Failure::Usage)));
        assert!(matches!(Reply::read(b"data: {\"choices\":\n\n"), Err(Failure::Incomplete)));
    }
}
