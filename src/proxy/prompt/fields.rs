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
use std::sync::Arc;

/// Longer model names are no names.
const MODEL_BYTES_MAX: usize = 256;

/// Whether a field of a body has no part in what the tokens are. All others are taken to have one.
fn is_sampling(key: &[u8]) -> bool {
    matches!(
        key,
        b"stream"
            | b"stream_options"
            | b"temperature"
            | b"top_p"
            | b"top_k"
            | b"min_p"
            | b"max_tokens"
            | b"min_tokens"
            | b"max_completion_tokens"
            | b"n"
            | b"best_of"
            | b"seed"
            | b"stop"
            | b"stop_token_ids"
            | b"ignore_eos"
            | b"presence_penalty"
            | b"frequency_penalty"
            | b"repetition_penalty"
            | b"length_penalty"
            | b"logprobs"
            | b"top_logprobs"
            | b"prompt_logprobs"
            | b"logit_bias"
            | b"user"
            | b"metadata"
            | b"store"
            | b"priority"
            | b"request_id"
            | b"service_tier"
            | b"safety_identifier"
            | b"skip_special_tokens"
    )
}

/// The fields of a body as far as they have been read.
pub(super) struct Fields<'a> {
    chat: bool,
    reading: &'a Reading,
    model: Option<Arc<str>>,
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

    pub(super) fn read(&mut self, json: &mut Json<'a>, key: &[u8]) {
        let blocks = self.reading.blocks.as_ref();
        let value = match (key, blocks) {
            (b"model", _) => return self.model = name(json),
            (b"stream", _) => return self.stream = json.skip() == b"true",
            (b"prompt", _) if self.content.is_some() => self.read_prompt(json),
            (b"messages", _) if self.content.is_some() => self.read_messages(json),
            (b"messages", Some(blocks)) => return self.parts.read_messages(json, blocks),
            _ => json.skip(),
        };
        if self.reading.blocks.is_some() {
            self.parts.keep(key, value);
        }
        if let Some(content) = self.content.as_mut().filter(|_| !is_sampling(key)) {
            content.append_whole(key);
            content.append_whole(value);
            if key == b"cache_salt" {
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

    pub(super) fn into_prompt(mut self, in_object: bool) -> Prompt {
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

fn name(json: &mut Json<'_>) -> Option<Arc<str>> {
    let name = json.string().filter(|name| (1..=MODEL_BYTES_MAX).contains(&name.len()));
    name.map(Arc::from)
}

/// The text of one entry of `messages`.
fn message(json: &mut Json<'_>, text: &mut Text) {
    if json.kind() != Some(b'{') {
        return;
    }
    json.object(|json, key| match (&*key, json.kind()) {
        (b"content", Some(b'"')) => text.item(json),
        (b"content", Some(b'[')) => json.array(|json| part(json, text)),
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
        b"type" => is_text = json.string().is_some_and(|kind| kind == "text"),
        b"text" => value = json.skip(),
        _ => {}
    });
    if is_text && value.starts_with(b"\"") {
        text.item(&mut Json::new(value));
    }
}
