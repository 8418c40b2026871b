//! Chat requests of an exact size, made from a seed.
//!
//! Called once before a measurement; pure. Bounded by the number of distinct bodies times their size. It does not
//! model a conversation: bodies are unlike each other apart from a few system prompts that they share.
use std::ops::Range;

use anyhow::{Context, Result, ensure};
use http::uri::{Authority, PathAndQuery};
use memchr::memmem;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde::Serialize;

/// The smallest body that holds the fixed fields, a system prompt and a question.
pub(crate) const BODY_BYTES_MIN: usize = 512;

/// A question and its answer are followed by others while at least twice this much is left, so that the last question fits
/// any remainder.
const TURN_BYTES_MAX: usize = 4096;
/// Words of a question and of an answer: about 150 and 330 tokens in the mean, as in ShareGPT's conversations (Kwon et al.,
/// "Efficient Memory Management for Large Language Model Serving with PagedAttention", 2023, figure 11).
const QUESTION_WORDS: Range<usize> = 20..200;
const ANSWER_WORDS: Range<usize> = 100..400;

const SYSTEM_PROMPTS: [&str; 4] = [
    "You are a careful assistant.\nAnswer in \"plain\" words and show your work.",
    "You review code.\n\t- name the file and the line\n\t- say why, not only what",
    "Vous êtes un traducteur. Répondez « brièvement ».\r\nKeep numbers and C:\\paths as they are.",
    "You answer questions about the text below. If it does not say, answer \"I do not know\". 谢谢",
];

const WORDS: [&str; 48] = [
    "the", "of", "and", "cache", "engine", "token", "prefix", "block", "river", "window", "green", "seven",
    "because", "request", "without", "measure", "answer", "letter", "garden", "between", "morning", "copper",
    "paper", "number", "system", "around", "winter", "simple", "follow", "thought", "island", "market",
    "naïve", "Zürich", "42", "3.14", "\"so\"", "it's", "up\ndown", "a\tb", "c:\\x", "a/b", "fn(x)", "{key}",
    "東京", "🙂", "e.g.", "end.",
];

/// What the bodies look like.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Workload {
    pub(crate) model: String,
    pub(crate) body_bytes: usize,
    pub(crate) distinct: usize,
    /// Tokens of an answer.
    pub(crate) max_tokens: u32,
    pub(crate) stream: bool,
    pub(crate) seed: u64,
}

/// How bodies ask.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Form {
    /// For a completion and not for a chat.
    pub(crate) completion: bool,
    /// Streams are to tell how many tokens there were.
    pub(crate) include_usage: bool,
    /// The prompt begins with room for a [`Stamp`].
    pub(crate) stamped: bool,
}

/// What a stream is to tell.
#[derive(Serialize)]
pub(crate) struct StreamOptions {
    pub(crate) include_usage: bool,
}

#[derive(Serialize)]
struct Chat<'a> {
    model: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    messages: Vec<Message>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<String>,
    max_tokens: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_options: Option<StreamOptions>,
}

#[derive(Serialize)]
struct Message {
    role: &'static str,
    content: String,
}

impl Workload {
    /// Every body, in the order in which they are sent.
    pub(crate) fn bodies(&self, form: Form) -> Result<Vec<Vec<u8>>> {
        ensure!(self.distinct > 0, "at least one distinct body is needed");
        ensure!(
            self.body_bytes >= BODY_BYTES_MIN,
            "a body of {} bytes is too small for a chat request: at least {BODY_BYTES_MIN}",
            self.body_bytes
        );
        let mut random = StdRng::seed_from_u64(self.seed);
        (0..self.distinct).map(|_| self.body(form, &mut random)).collect()
    }

    /// Every request as the bytes that go onto the wire, head and body.
    pub(crate) fn requests(&self, authority: &Authority, path: &PathAndQuery) -> Result<Vec<Vec<u8>>> {
        let bodies = self.bodies(Form::default())?;
        Ok(bodies.into_iter().map(|body| request(authority, path, BENCH_KEY, &body)).collect())
    }

    fn body(&self, form: Form, random: &mut StdRng) -> Result<Vec<u8>> {
        let mut chat = Chat {
            model: &self.model,
            messages: Vec::new(),
            prompt: form.completion.then(String::new),
            max_tokens: self.max_tokens,
            stream: self.stream.then_some(true),
            stream_options: (self.stream && form.include_usage)
                .then_some(StreamOptions { include_usage: true }),
        };
        let stamp = if form.stamped { Stamp::BLANK } else { "" };
        let left = |used: usize| {
            let left = self.body_bytes.checked_sub(used);
            left.with_context(|| {
                format!("{} bytes are too few for a body with this model name", self.body_bytes)
            })
        };
        if form.completion {
            let rest = left(serde_json::to_vec(&chat)?.len() + stamp.len())?;
            chat.prompt = Some(format!("{stamp}{}", filler(random, rest)));
            return Ok(serde_json::to_vec(&chat)?);
        }
        let system = SYSTEM_PROMPTS.choose(random).copied().unwrap_or_default();
        chat.messages.push(Message { role: "system", content: format!("{stamp}{system}") });
        let mut used = serde_json::to_vec(&chat)?.len();
        for role in ["user", "assistant"].into_iter().cycle() {
            let last = left(used)? < 2 * TURN_BYTES_MAX && role == "user";
            let words = if role == "user" { QUESTION_WORDS } else { ANSWER_WORDS };
            let content = if last { String::new() } else { turn(random, words) };
            let message = Message { role, content };
            used += serde_json::to_vec(&message)?.len() + 1;
            chat.messages.push(message);
            if last {
                break;
            }
        }
        if let Some(question) = chat.messages.last_mut() {
            question.content = text(random, left(used)?);
        }
        Ok(serde_json::to_vec(&chat)?)
    }
}

/// Makes one request into many whose prompts have not even their beginning in common.
pub(crate) struct Stamp {
    request: Vec<u8>,
    /// Where in it the room is.
    at: usize,
}

impl Stamp {
    const BLANK: &'static str = "0000000000000000 ";

    /// Of a request whose body has room for it.
    pub(crate) fn of(request: Vec<u8>) -> Option<Self> {
        let head = memmem::find(&request, b"\r\n\r\n")?;
        let at = head + memmem::find(request.get(head..)?, Self::BLANK.as_bytes())?;
        Some(Self { request, at })
    }

    /// The request of this number.
    pub(crate) fn numbered(&self, number: u64) -> Vec<u8> {
        let mut request = self.request.clone();
        let digits = format!("{number:016x}");
        if let Some(room) = request.get_mut(self.at..self.at + digits.len()) {
            room.copy_from_slice(digits.as_bytes());
        }
        request
    }
}

/// A few sentences with what JSON has to escape; encoded it stays under `TURN_BYTES_MAX`.
fn turn(random: &mut StdRng, words: Range<usize>) -> String {
    let words = random.random_range(words);
    let text: Vec<&str> = (0..words).filter_map(|_| WORDS.choose(random).copied()).collect();
    text.join(" ")
}

/// The same, of exactly `bytes` bytes as JSON.
fn text(random: &mut StdRng, bytes: usize) -> String {
    let (mut text, mut used) = (String::with_capacity(bytes), 0);
    while let Some(word) = WORDS.choose(random) {
        // Without its quotes, and with a space.
        let encoded = serde_json::to_string(word).map_or(1, |word| word.len()) - 1;
        if used + encoded > bytes {
            break;
        }
        text.push_str(word);
        text.push(' ');
        used += encoded;
    }
    text + &filler(random, bytes - used)
}

/// Exactly `bytes` bytes of ASCII that JSON does not escape.
pub(crate) fn filler(random: &mut StdRng, bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 16);
    while text.len() < bytes {
        let word = WORDS.choose(random).copied().unwrap_or_default();
        text.extend(word.chars().filter(|c| c.is_ascii_graphic() && !matches!(c, '"' | '\\')));
        text.push(' ');
    }
    text.truncate(bytes);
    text
}

/// What is sent where no key is given, so that the head is as long as it would be.
pub(crate) const BENCH_KEY: &str = "authorization: Bearer bench\r\n";

/// A request as a client library sends it, with `more` lines in its head.
pub(crate) fn request(authority: &Authority, path: &PathAndQuery, more: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {authority}\r\nuser-agent: kvway-bench\r\naccept: */*\r\n\
         content-type: application/json\r\n{more}content-length: {}\r\n\r\n",
        body.len()
    );
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use serde_json::Value;

    use super::*;

    fn workload(body_bytes: usize) -> Workload {
        Workload { model: "tiny".to_owned(), body_bytes, distinct: 20, max_tokens: 7, stream: false, seed: 7 }
    }

    #[test]
    fn bodies_have_the_exact_size_and_are_json() {
        for body_bytes in [BODY_BYTES_MIN, 1000, 1024, 2047, 2560, 2561, 16 * 1024, 128 * 1024] {
            for body in workload(body_bytes).bodies(Form::default()).unwrap() {
                assert_eq!(body.len(), body_bytes);
                let chat: Value = serde_json::from_slice(&body).unwrap();
                assert_eq!(chat["model"], "tiny");
                assert_eq!(chat["messages"][0]["role"], "system");
                assert!(chat.get("stream").is_none());
            }
        }
    }

    #[test]
    fn the_last_word_is_the_users() {
        let body = workload(16 * 1024).bodies(Form::default()).unwrap().remove(0);
        let chat: Value = serde_json::from_slice(&body).unwrap();
        let last = chat["messages"].as_array().unwrap().last().unwrap().clone();
        assert_eq!(last["role"], "user");
        assert!(last["content"].as_str().unwrap().len() > 100);
    }

    #[test]
    fn the_seed_decides_the_bodies() {
        let same = workload(4096).bodies(Form::default()).unwrap();
        assert_eq!(workload(4096).bodies(Form::default()).unwrap(), same);
        let other = Workload { seed: 8, ..workload(4096) };
        assert_ne!(other.bodies(Form::default()).unwrap(), same);
    }

    #[test]
    fn bodies_are_distinct_and_hold_escapes() {
        let bodies = workload(4096).bodies(Form::default()).unwrap();
        assert_eq!(bodies.iter().collect::<HashSet<_>>().len(), 20);
        assert!(bodies.iter().all(|body| body.contains(&b'\\')));
    }

    #[test]
    fn a_stream_asks_for_a_stream() {
        let streaming = Workload { stream: true, ..workload(1024) };
        let body = streaming.bodies(Form::default()).unwrap().remove(0);
        assert_eq!(body.len(), 1024);
        assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["stream"], true);
    }

    #[test]
    fn completions_have_the_exact_size_too() {
        let form = Form { completion: true, include_usage: true, stamped: false };
        for body in (Workload { stream: true, ..workload(5000) }).bodies(form).unwrap() {
            assert_eq!(body.len(), 5000);
            let body: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!((&body["max_tokens"], &body["messages"]), (&7.into(), &Value::Null));
            assert_eq!(body["stream_options"]["include_usage"], true);
            assert!(body["prompt"].as_str().unwrap().len() > 4500);
        }
    }

    #[test]
    fn a_stamp_makes_the_beginning_of_a_prompt_unique_and_keeps_its_size() {
        for completion in [false, true] {
            let form = Form { completion, stamped: true, include_usage: true };
            for body in (Workload { stream: true, ..workload(BODY_BYTES_MIN) }).bodies(form).unwrap() {
                let bytes = request(
                    &Authority::from_static("a"),
                    &PathAndQuery::from_static("/"),
                    "x: 0000000000000000 \r\n",
                    &body,
                );
                let [one, two] = [7, 8].map(|number| Stamp::of(bytes.clone()).unwrap().numbered(number));
                assert_eq!((one.len(), body.len()), (bytes.len(), BODY_BYTES_MIN));
                assert_ne!(one, two);
                let body: Value = serde_json::from_slice(&one[bytes.len() - BODY_BYTES_MIN..]).unwrap();
                let prompt = if completion { &body["prompt"] } else { &body["messages"][0]["content"] };
                assert!(prompt.as_str().unwrap().starts_with("0000000000000007 "), "{prompt}");
            }
        }
    }

    #[test]
    fn a_body_that_cannot_be_a_chat_is_refused() {
        assert!(workload(BODY_BYTES_MIN - 1).bodies(Form::default()).is_err());
        assert!(Workload { distinct: 0, ..workload(1024) }.bodies(Form::default()).is_err());
    }
}
