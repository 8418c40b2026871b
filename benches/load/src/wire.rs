//! How a request looks on the wire: the endpoint, the head, and the body of what was said. Used by `player`; pure.
use std::rc::Rc;

use clap::ValueEnum;
use http::uri::{Authority, PathAndQuery};
use serde::Serialize;
use serde_json::Value;

use crate::answer::{Answer, SERVED_BY};
use crate::plan::Message;
use crate::reply;
use crate::workload::{StreamOptions, request};

/// The header that tells which requests belong together.
pub(crate) const SESSION_HEADER: &str = "x-session-id";

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Endpoint {
    /// Messages: `/v1/chat/completions`.
    Chat,
    /// One text: `/v1/completions`.
    Completions,
}

/// What all requests to a target have in common.
#[derive(Clone)]
pub(crate) struct Wire {
    pub(crate) authority: Authority,
    pub(crate) path: PathAndQuery,
    /// Lines of the head, each with its end. May be secret.
    pub(crate) head: String,
    pub(crate) endpoint: Endpoint,
    pub(crate) model: String,
    pub(crate) stream: bool,
    /// The header by which an answer tells who served it.
    pub(crate) backend_header: Rc<str>,
}

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<&'a [Message]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tools: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_choice: Option<&'static str>,
    max_tokens: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_options: Option<StreamOptions>,
}

impl Wire {
    /// A request with all that was said, for the session of this number.
    pub(crate) fn request(
        &self,
        session: u64,
        tools: Option<&Value>,
        messages: &[Message],
        max_tokens: u32,
    ) -> Vec<u8> {
        let chat = self.endpoint == Endpoint::Chat;
        let body = Body {
            model: &self.model,
            messages: chat.then_some(messages),
            prompt: (!chat).then(|| transcript(messages)),
            tools,
            tool_choice: tools.map(|_| "none"),
            max_tokens,
            stream: self.stream.then_some(true),
            stream_options: self.stream.then_some(StreamOptions { include_usage: true }),
        };
        // Strings and numbers always have a form in JSON.
        let body = serde_json::to_vec(&body).unwrap_or_default();
        let more = format!("{}{SESSION_HEADER}: {session}\r\n", self.head);
        request(&self.authority, &self.path, &more, &body)
    }

    /// A request with this body.
    pub(crate) fn bare(&self, body: &[u8]) -> Vec<u8> {
        request(&self.authority, &self.path, &self.head, body)
    }

    /// Whether a text quotes what may be secret.
    pub(crate) fn tells_secrets(&self, text: &str) -> bool {
        let values = self.head.lines().filter_map(|line| line.split_once(": "));
        let mut words = values.flat_map(|(_, value)| value.split_whitespace());
        words.any(|word| word.len() > 3 && text.contains(word))
    }

    /// An answer that nothing has arrived of yet.
    pub(crate) fn answer(&self, keep: bool) -> Answer {
        let answer = Answer::new().keeping_body(keep).keeping_tail(reply::TAIL_BYTES);
        if &*self.backend_header == SERVED_BY {
            answer
        } else {
            answer.named_by(Rc::clone(&self.backend_header))
        }
    }
}

/// What was said as one text; a single message stands for itself.
fn transcript(messages: &[Message]) -> String {
    if let [only] = messages {
        return only.content.as_ref().to_owned();
    }
    let mut text = String::new();
    for message in messages {
        text.extend([message.role, ": ", &message.content, "\n"]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Said, Text};

    fn sent(endpoint: Endpoint, stream: bool, said: &[&str]) -> (String, Value) {
        let wire = Wire {
            authority: Authority::from_static("a:1"),
            path: PathAndQuery::from_static("/v1/x"),
            head: "x-more: 1\r\n".to_owned(),
            endpoint,
            model: "m".to_owned(),
            stream,
            backend_header: SERVED_BY.into(),
        };
        let messages: Vec<Message> =
            said.iter().map(|text| Said::user(Text::Given((*text).into())).message()).collect();
        let bytes = String::from_utf8(wire.request(9, None, &messages, 5)).unwrap();
        let (head, body) = bytes.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())));
        (head.to_owned(), serde_json::from_str(body).unwrap())
    }

    #[test]
    fn a_chat_has_messages_and_a_completion_has_a_prompt() {
        let (head, chat) = sent(Endpoint::Chat, true, &["a", "b"]);
        assert!(head.starts_with("POST /v1/x HTTP/1.1\r\nhost: a:1\r\n"));
        assert!(head.contains("\r\nx-more: 1\r\nx-session-id: 9\r\n"), "{head}");
        assert_eq!(chat["messages"][1]["content"], "b");
        assert_eq!(chat["stream_options"]["include_usage"], true);
        let (_, completion) = sent(Endpoint::Completions, false, &["a"]);
        let expected = serde_json::json!({"model": "m", "prompt": "a", "max_tokens": 5});
        assert_eq!(completion, expected);
        let (_, completion) = sent(Endpoint::Completions, false, &["a", "b"]);
        assert_eq!(completion["prompt"], "user: a\nuser: b\n");
    }
}
