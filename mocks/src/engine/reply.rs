//! One generated answer, whole or as server-sent events, in the four dialects that vLLM speaks.
//!
//! Completions and chats follow the recorded bytes; responses and messages are only plausible. Knows nothing of time:
//! the pace is set by who asks for the next event.

use std::fmt::Write as _;

use serde_json::json;

use super::answers::{FINGERPRINT, Usage};
use super::tokenizer;
use crate::server::quoted;

/// Whose shape the answer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Completions,
    Chat,
    Responses,
    Messages,
}

impl Dialect {
    pub(super) fn id_prefix(self) -> &'static str {
        match self {
            Self::Completions => "cmpl-",
            Self::Chat => "chatcmpl-",
            Self::Responses => "resp_",
            Self::Messages => "msg_",
        }
    }
}

/// The text of the tokens, already escaped for JSON.
#[derive(Debug, Clone, Copy)]
pub(super) enum Words {
    /// Those that the recorded server answered.
    Recorded,
    /// Four letters each, by a seed.
    Seeded(u64),
}

/// An answer: everything about it but the time it takes.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) dialect: Dialect,
    /// With the dialect's prefix, escaped for JSON.
    pub(super) id: String,
    pub(super) created: u64,
    /// Escaped for JSON, in quotes.
    pub(super) model: String,
    pub(super) usage: Usage,
    pub(super) include_usage: bool,
    /// The prompt's tokens, where the client asked for them.
    pub(super) prompt_token_ids: Option<Vec<u32>>,
    pub(super) words: Words,
    pub(super) padding_bytes: usize,
    pub(super) served_by: Option<String>,
}

/// Ids of the recorded completion's tokens.
const RECORDED_IDS: [u32; 2] = [211, 38];

/// Spreads the bits of a number; the generator of Steele, Lea and Flood.
pub(super) fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

impl Reply {
    fn push_word(&self, index: usize, out: &mut String) {
        match (self.words, self.dialect) {
            (Words::Recorded, Dialect::Completions) => {
                out.push_str(if index.is_multiple_of(2) { "\\u0012" } else { "B" });
            }
            (Words::Recorded, _) => out.push_str(if index.is_multiple_of(2) { " He" } else { "" }),
            (Words::Seeded(seed), _) => {
                let bits = mix(seed.wrapping_add(index as u64)).to_le_bytes();
                out.push(' ');
                out.extend(bits.iter().take(3).map(|byte| char::from(b'a' + byte % 26)));
            }
        }
        out.extend(std::iter::repeat_n('x', self.padding_bytes));
    }

    fn word(&self, index: usize) -> String {
        let mut word = String::with_capacity(8 + self.padding_bytes);
        self.push_word(index, &mut word);
        word
    }

    fn text(&self) -> String {
        let mut text = String::with_capacity(self.usage.completion * (4 + self.padding_bytes));
        for index in 0..self.usage.completion {
            self.push_word(index, &mut text);
        }
        text
    }

    /// The values of `token_ids` and `prompt_token_ids`.
    fn ids(&self) -> (String, String) {
        let Some(prompt) = &self.prompt_token_ids else {
            return ("null".into(), "null".into());
        };
        let own: Vec<u32> = match self.words {
            Words::Recorded => RECORDED_IDS.into_iter().cycle().take(self.usage.completion).collect(),
            Words::Seeded(_) => tokenizer::encode(&self.text()),
        };
        (json!(own).to_string(), json!(prompt).to_string())
    }

    /// The body of an answer that is not streamed.
    pub(super) fn whole(&self) -> String {
        let Self { id, created, model, .. } = self;
        let (text, usage) = (self.text(), self.usage.whole());
        let (prompt_tokens, completion) = (self.usage.prompt, self.usage.completion);
        let mut body = match self.dialect {
            Dialect::Completions => {
                let (ids, prompt_ids) = self.ids();
                format!(
                    r#"{{"id":"{id}","object":"text_completion","created":{created},"model":{model},"choices":[{{"index":0,"text":"{text}","logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":{ids},"prompt_logprobs":null,"prompt_token_ids":{prompt_ids},"routed_experts":null}}],"service_tier":null,"system_fingerprint":"{FINGERPRINT}","usage":{usage},"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}}"#
                )
            }
            Dialect::Chat => format!(
                r#"{{"id":"{id}","object":"chat.completion","created":{created},"model":{model},"choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}","refusal":null,"annotations":null,"audio":null,"function_call":null,"reasoning":null}},"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null,"routed_experts":null}}],"service_tier":null,"system_fingerprint":"{FINGERPRINT}","usage":{usage},"prompt_logprobs":null,"prompt_token_ids":null,"prompt_text":null,"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}}"#
            ),
            Dialect::Responses => self.response("completed", &text),
            Dialect::Messages => format!(
                r#"{{"id":"{id}","type":"message","role":"assistant","content":[{{"type":"text","text":"{text}"}}],"model":{model},"stop_reason":"max_tokens","stop_sequence":null,"usage":{{"input_tokens":{prompt_tokens},"output_tokens":{completion}}}}}"#
            ),
        };
        if let Some(engine) = &self.served_by {
            body.truncate(body.len() - 1);
            // Writing to a String cannot fail.
            let _ = write!(body, r#","served_by":{}}}"#, quoted(engine));
        }
        body
    }

    fn response(&self, status: &str, text: &str) -> String {
        let Self { id, created, model, .. } = self;
        let (input, output) = (self.usage.prompt, self.usage.completion);
        let total = input + output;
        let cached = self.usage.cached.unwrap_or_default();
        format!(
            r#"{{"id":"{id}","created_at":{created},"model":{model},"object":"response","status":"{status}","output":[{{"id":"{id}-0","content":[{{"annotations":[],"text":"{text}","type":"output_text","logprobs":null}}],"role":"assistant","status":"{status}","type":"message"}}],"usage":{{"input_tokens":{input},"input_tokens_details":{{"cached_tokens":{cached}}},"output_tokens":{output},"output_tokens_details":{{"reasoning_tokens":0}},"total_tokens":{total}}}}}"#
        )
    }

    /// The events before the first token.
    pub(super) fn prologue(&self) -> Vec<String> {
        let Self { id, model, .. } = self;
        match self.dialect {
            Dialect::Completions => vec![],
            Dialect::Chat => vec![self.chat_chunk(
                r#"[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"prompt_token_ids":null,"prompt_text":null"#,
            )],
            Dialect::Responses => {
                vec![named("response.created", &format!(r#""response":{}"#, self.response("in_progress", "")))]
            }
            Dialect::Messages => vec![
                named(
                    "message_start",
                    &format!(
                        r#""message":{{"id":"{id}","type":"message","role":"assistant","content":[],"model":{model},"stop_reason":null,"stop_sequence":null,"usage":{{"input_tokens":{},"output_tokens":0}}}}"#,
                        self.usage.prompt
                    ),
                ),
                named("content_block_start", r#""index":0,"content_block":{"type":"text","text":""}"#),
            ],
        }
    }

    /// The event of one token.
    pub(super) fn token(&self, index: usize) -> String {
        let word = self.word(index);
        let last = index + 1 == self.usage.completion;
        let reason = if last { r#""length""# } else { "null" };
        match self.dialect {
            Dialect::Completions => {
                let Self { id, created, model, .. } = self;
                format!(
                    "data: {{\"id\":\"{id}\",\"object\":\"text_completion\",\"created\":{created},\"model\":{model},\"choices\":[{{\"index\":0,\"text\":\"{word}\",\"logprobs\":null,\"finish_reason\":{reason},\"stop_reason\":null,\"prompt_token_ids\":null,\"token_ids\":null}}]}}\n\n"
                )
            }
            Dialect::Chat => {
                let stop = if last { r#""stop_reason":null,"# } else { "" };
                self.chat_chunk(&format!(
                    r#"[{{"index":0,"delta":{{"content":"{word}"}},"logprobs":null,"finish_reason":{reason},{stop}"token_ids":null}}]"#
                ))
            }
            Dialect::Responses => named(
                "response.output_text.delta",
                &format!(r#""content_index":0,"delta":"{word}","item_id":"{}-0","output_index":0"#, self.id),
            ),
            Dialect::Messages => named(
                "content_block_delta",
                &format!(r#""index":0,"delta":{{"type":"text_delta","text":"{word}"}}"#),
            ),
        }
    }

    /// The events after the last token.
    pub(super) fn epilogue(&self) -> Vec<String> {
        let Self { id, created, model, .. } = self;
        let mut events = Vec::with_capacity(2);
        match self.dialect {
            Dialect::Completions | Dialect::Chat => {
                let usage = self.usage.chunk();
                let last = format!(r#"[],"usage":{usage},"system_fingerprint":"{FINGERPRINT}""#);
                if self.include_usage {
                    events.push(match self.dialect {
                        Dialect::Chat => self.chat_chunk(&last),
                        _ => format!(
                            "data: {{\"id\":\"{id}\",\"object\":\"text_completion\",\"created\":{created},\"model\":{model},\"choices\":{last}}}\n\n"
                        ),
                    });
                }
                events.push("data: [DONE]\n\n".to_owned());
            }
            Dialect::Responses => events.push(named(
                "response.completed",
                &format!(r#""response":{}"#, self.response("completed", &self.text())),
            )),
            Dialect::Messages => {
                events.push(named("content_block_stop", r#""index":0"#));
                events.push(named(
                    "message_delta",
                    &format!(
                        r#""delta":{{"stop_reason":"max_tokens","stop_sequence":null}},"usage":{{"output_tokens":{}}}"#,
                        self.usage.completion
                    ),
                ));
                events.push("event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n".to_owned());
            }
        }
        events
    }

    fn chat_chunk(&self, choices: &str) -> String {
        let Self { id, created, model, .. } = self;
        format!(
            "data: {{\"id\":\"{id}\",\"object\":\"chat.completion.chunk\",\"created\":{created},\"model\":{model},\"choices\":{choices}}}\n\n"
        )
    }
}

/// An event with a name, which its data repeat as `type`.
fn named(name: &str, fields: &str) -> String {
    format!("event: {name}\ndata: {{\"type\":\"{name}\",{fields}}}\n\n")
}
