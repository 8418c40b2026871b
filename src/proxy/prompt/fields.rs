//! The fields of a body as they come, and what of them makes the prompt.
//!
//! Used by `prompt` alone. It keeps slices of the body and hashes, and copies only names.

use super::super::json::{self, Json};
use super::super::key::Hash;
use super::super::prefix::Parts;
use super::given::Given;
use super::text::Text;
use super::{Form, Prompt, Reading};
use std::borrow::Cow;

/// Longer model names are no names.
const MODEL_BYTES_MAX: usize = 256;

/// Whether a field of a body has no part in what the tokens are. All others are taken to have one.
fn is_sampling(key: &str) -> bool {
    matches!(
        key,
        "stream"
            | "stream_options"
            | "temperature"
            | "top_p"
            | "top_k"
            | "min_p"
            | "max_tokens"
            | "min_tokens"
            | "max_completion_tokens"
            | "n"
            | "best_of"
            | "seed"
            | "stop"
            | "stop_token_ids"
            | "ignore_eos"
            | "presence_penalty"
            | "frequency_penalty"
            | "repetition_penalty"
            | "length_penalty"
            | "logprobs"
            | "top_logprobs"
            | "prompt_logprobs"
            | "logit_bias"
            | "user"
            | "metadata"
            | "store"
            | "priority"
            | "request_id"
            | "service_tier"
            | "safety_identifier"
            | "skip_special_tokens"
    )
}

/// The fields of a body as far as they have been read.
pub(super) struct Fields<'a> {
    chat: bool,
    reading: &'a Reading,
    model: Option<String>,
    stream: bool,
    cache_salt: Option<String>,
    content: Option<Hash>,
    prompt: Given<'a>,
    messages: Option<Text>,
    parts: Parts<'a>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(path: &str, reading: &'a Reading) -> Self {
        Self {
            chat: path.trim_end_matches('/').ends_with("/chat/completions"),
            reading,
            model: None,
            stream: false,
            cache_salt: None,
            content: reading.secret.map(|secret| secret.hash()),
            prompt: Given::default(),
            messages: None,
            parts: Parts::default(),
        }
    }

    pub(super) fn read(&mut self, json: &mut Json<'a>, key: &str) {
        let value = match key {
            "model" => return self.model = name(json),
            "stream" => return self.stream = json.skip() == b"true",
            "prompt" if self.content.is_some() => self.read_prompt(json),
            "messages" if self.content.is_some() => self.read_messages(json),
            _ => json.skip(),
        };
        if self.reading.blocks.is_some() {
            self.parts.keep(key, value);
        }
        if let Some(content) = self.content.as_mut().filter(|_| !is_sampling(key)) {
            content.append_whole(key.as_bytes());
            content.append_whole(value);
            if key == "cache_salt" {
                self.cache_salt = json::string(value).map(Cow::into_owned);
            }
        }
    }

    fn read_prompt(&mut self, json: &mut Json<'a>) -> &'a [u8] {
        self.prompt = Given::new(self.text_hash());
        json.raw(|json| self.prompt.read(json))
    }

    fn read_messages(&mut self, json: &mut Json<'a>) -> &'a [u8] {
        let mut text = self.text_hash();
        let value = json.raw(|json| match json.kind() {
            Some(b'[') => json.array(|json| message(json, &mut text)),
            _ => {
                json.skip();
            }
        });
        self.messages = Some(text);
        value
    }

    fn text_hash(&self) -> Text {
        Text::new(self.reading.secret.filter(|_| self.reading.text).map(|secret| secret.hash()))
    }

    pub(super) fn into_prompt(self, in_object: bool) -> Prompt {
        let blocks = self.reading.blocks.as_ref().filter(|_| in_object);
        let prefix = blocks.and_then(|blocks| self.parts.prefix(self.chat, self.model.as_deref(), blocks));
        let with_messages = self.messages.is_some();
        let messages = self.messages.filter(Text::is_some);
        let from_messages = messages.is_some() && (self.chat || !self.prompt.is_some());
        let form = match &messages {
            _ if !in_object => Form::None,
            Some(_) if from_messages => Form::Body,
            _ => self.prompt.form(with_messages),
        };
        let mut content = self.content;
        if let Some(content) = &mut content {
            // The same fields are another prompt at another kind of endpoint.
            content.append(&[u8::from(self.chat), u8::from(from_messages)]);
        }
        let text = if from_messages { messages } else { Some(self.prompt.text) };
        Prompt {
            model: self.model,
            stream: self.stream,
            in_object,
            cache_salt: self.cache_salt,
            text: text.filter(|_| form != Form::None).and_then(Text::finish),
            form,
            content: content.map(Hash::finish).unwrap_or_default(),
            prefix,
        }
    }
}

fn name(json: &mut Json<'_>) -> Option<String> {
    let name = json.string().filter(|name| (1..=MODEL_BYTES_MAX).contains(&name.len()));
    name.map(Cow::into_owned)
}

/// The text of one entry of `messages`.
fn message(json: &mut Json<'_>, text: &mut Text) {
    if json.kind() != Some(b'{') {
        return;
    }
    json.object(|json, key| match (&*key, json.kind()) {
        ("content", Some(b'"')) => text.item(json),
        ("content", Some(b'[')) => json.array(|json| part(json, text)),
        _ => {}
    });
}

/// The text of one part of a `content`.
fn part(json: &mut Json<'_>, text: &mut Text) {
    if json.kind() != Some(b'{') {
        return;
    }
    let (mut is_text, mut value): (bool, &[u8]) = (false, b"");
    json.object(|json, key| match &*key {
        "type" => is_text = json.string().is_some_and(|kind| kind == "text"),
        "text" => value = json.skip(),
        _ => {}
    });
    if is_text && value.starts_with(b"\"") {
        text.item(&mut Json::new(value));
    }
}
