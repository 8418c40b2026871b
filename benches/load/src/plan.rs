//! What is said in which session, and when: made by `traffic`, played by `player`.
//!
//! A plan is data and knows no clock: times count from the opening of the window. It is small, too: a text that nobody
//! shares is known by its seed until somebody writes it.
use std::rc::Rc;
use std::time::Duration;

use rand::{SeedableRng, rngs::StdRng};
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::workload::filler;

/// A text, or how it comes about. All of it is ASCII that JSON does not escape.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Text {
    /// Written already, for many to share.
    Given(Rc<str>),
    /// So many bytes; they begin with the seed, so that no two seeds give the same.
    Drawn { seed: u64, bytes: usize },
    /// One after the other.
    Joined(Vec<Text>),
}

impl Text {
    pub(crate) fn write(&self) -> Rc<str> {
        if let Self::Given(text) = self {
            return Rc::clone(text);
        }
        let mut text = String::new();
        self.append_to(&mut text);
        text.into()
    }

    fn append_to(&self, text: &mut String) {
        match self {
            Self::Given(given) => text.push_str(given),
            Self::Drawn { seed, bytes } => {
                let stamp = format!("{seed:016x} ");
                let end = text.len() + bytes;
                text.push_str(&stamp);
                let left = bytes.saturating_sub(stamp.len());
                text.push_str(&filler(&mut StdRng::seed_from_u64(*seed), left));
                text.truncate(end);
            }
            Self::Joined(texts) => texts.iter().for_each(|one| one.append_to(text)),
        }
    }
}

/// A tool that an agent calls.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Call {
    /// Within the session.
    pub(crate) number: usize,
    /// Which tool.
    pub(crate) tool: usize,
}

/// Something said by somebody.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Said {
    role: &'static str,
    pub(crate) text: Text,
    /// What the tool that speaks was called with, or what is called beside the text.
    call: Option<Call>,
}

impl Said {
    pub(crate) fn system(text: Text) -> Self {
        Self { role: "system", text, call: None }
    }

    pub(crate) fn user(text: Text) -> Self {
        Self { role: "user", text, call: None }
    }

    pub(crate) fn tool(text: Text, call: Call) -> Self {
        Self { role: "tool", text, call: Some(call) }
    }

    /// An answer before what is said here: it called the tool that speaks, if one does.
    pub(crate) fn after(&self, answer: Text) -> Self {
        Self { role: "assistant", text: answer, call: self.call }
    }

    /// As it is sent.
    pub(crate) fn message(&self) -> Message {
        let speaks = self.role == "tool";
        let tool_calls = self.call.filter(|_| !speaks).map(|call| [ToolCall::of(call)]);
        let tool_call_id = self.call.filter(|_| speaks).map(|call| call_id(call.number));
        Message { role: self.role, content: self.text.write(), tool_calls, tool_call_id }
    }
}

/// One message of a conversation, as a chat has it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Message {
    pub(crate) role: &'static str,
    #[serde(serialize_with = "as_text")]
    pub(crate) content: Rc<str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[ToolCall; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_call_id: Option<String>,
}

fn as_text<S: Serializer>(text: &Rc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct ToolCall {
    id: String,
    r#type: &'static str,
    function: Function,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Function {
    name: String,
    arguments: String,
}

impl ToolCall {
    fn of(call: Call) -> Self {
        let function = Function {
            name: tool_name(call.tool),
            arguments: format!("{{\"query\": \"entry {}\"}}", call.number),
        };
        Self { id: call_id(call.number), r#type: "function", function }
    }
}

fn call_id(number: usize) -> String {
    format!("call_{number:04}")
}

/// What a tool is called in its definition and in calls.
pub(crate) fn tool_name(tool: usize) -> String {
    format!("tool_{tool}")
}

/// A question and the answer that is asked for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Turn {
    /// Time since the answer before it; without meaning in the first turn of a session.
    pub(crate) pause: Duration,
    pub(crate) question: Said,
    pub(crate) answer_tokens: u32,
}

/// Requests that follow one another, each with all that was said before it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Session {
    /// When the first turn is due.
    pub(crate) start: Duration,
    /// Definitions of tools.
    pub(crate) tools: Option<Rc<Value>>,
    /// What stands before the first turn.
    pub(crate) opening: Vec<Said>,
    pub(crate) turns: Vec<Turn>,
}

impl Session {
    /// A single question.
    pub(crate) fn once(opening: Option<Said>, question: Text, answer_tokens: u32) -> Self {
        let turn = Turn { pause: Duration::ZERO, question: Said::user(question), answer_tokens };
        Self { opening: opening.into_iter().collect(), turns: vec![turn], ..Self::default() }
    }
}

/// One thing to do for `player`.
#[derive(Clone, Debug)]
pub(crate) enum Job {
    /// A request that is written already.
    Request(Rc<[u8]>),
    Session(Session),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_text_and_another_seed_another() {
        let text = |seed, bytes| Text::Drawn { seed, bytes }.write();
        for bytes in [0, 5, 16, 17, 18, 2048] {
            assert_eq!((text(7, bytes).len(), text(7, bytes)), (bytes, text(7, bytes)));
        }
        let starts: std::collections::HashSet<_> = (0..1000).map(|seed| text(seed, 16)).collect();
        assert_eq!(starts.len(), 1000);
    }

    #[test]
    fn joined_texts_share_what_their_pieces_share() {
        let joined =
            |seeds: [u64; 2]| Text::Joined(seeds.map(|seed| Text::Drawn { seed, bytes: 100 }).into());
        let (one, two) = (joined([1, 2]).write(), joined([1, 3]).write());
        assert_eq!((one.len(), &one.as_bytes()[..100]), (200, &two.as_bytes()[..100]));
        assert_ne!(one.as_bytes()[100..], two.as_bytes()[100..]);
    }

    #[test]
    fn a_tool_answers_the_call_of_the_answer_before_it() {
        let result = Said::tool(Text::Given("42".into()), Call { number: 3, tool: 1 });
        let answer = serde_json::to_value(result.after(Text::Given("let me look".into())).message()).unwrap();
        let result = serde_json::to_value(result.message()).unwrap();
        assert_eq!((&result["role"], &answer["role"]), (&"tool".into(), &"assistant".into()));
        assert_eq!(
            (&answer["tool_calls"][0]["id"], &result["tool_calls"]),
            (&result["tool_call_id"], &Value::Null)
        );
        assert_eq!(answer["tool_calls"][0]["function"]["name"], "tool_1");
        let question = serde_json::to_value(Said::user(Text::Given("?".into())).message()).unwrap();
        assert_eq!(question, serde_json::json!({"role": "user", "content": "?"}));
    }
}
