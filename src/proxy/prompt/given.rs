//! The field `prompt` of a body: a string, token ids, or lists of them.
//!
//! Used by `prompt` alone. Its token ids are the only thing that is copied, since they are the tokens.

use super::super::json::{self, Json};
use super::Form;
use super::text::Text;
use crate::state::tokens::Tokens;
use bytes::Bytes;

/// The value of a `prompt` field.
#[derive(Default)]
pub(super) struct Given<'a> {
    /// Its strings.
    pub(super) text: Text,
    /// The string, where it is one and not in a list.
    single: bool,
    strings: usize,
    lists: usize,
    /// Whether there are token ids outside of an inner list.
    flat: bool,
    others: usize,
    first: &'a [u8],
    tokens: Vec<u32>,
}

impl<'a> Given<'a> {
    pub(super) fn new(text: Text) -> Self {
        Self { text, ..Self::default() }
    }

    pub(super) fn read(&mut self, json: &mut Json<'a>) {
        match json.kind() {
            Some(b'"') => {
                self.single = true;
                self.string(json.skip());
            }
            Some(b'[') => json.array(|json| self.element(json)),
            _ => {
                json.skip();
            }
        }
    }

    fn element(&mut self, json: &mut Json<'a>) {
        match json.kind() {
            Some(b'"') => self.string(json.skip()),
            Some(b'[') => {
                self.lists += 1;
                json.array(|json| self.number(json.skip()));
            }
            _ => {
                self.flat = true;
                self.number(json.skip());
            }
        }
    }

    fn string(&mut self, value: &'a [u8]) {
        self.strings += 1;
        if self.strings == 1 {
            self.first = value;
        }
        self.text.item(&mut Json::new(value));
    }

    fn number(&mut self, value: &[u8]) {
        match json::integer(value) {
            Some(token) => self.tokens.push(token),
            None => self.others += 1,
        }
    }

    pub(super) fn is_some(&self) -> bool {
        self.text.is_some() || !self.tokens.is_empty()
    }

    /// What it is. `with_messages`: the body has messages as well, which the tokenizer would take instead.
    pub(super) fn form(&self, with_messages: bool) -> Form {
        match (self.strings, self.lists + usize::from(self.flat), self.others) {
            _ if !self.is_some() => Form::None,
            (0, 1, 0) => Form::Tokens(Tokens::from(self.tokens.as_slice())),
            (1, 0, 0) if self.single && !with_messages => Form::Body,
            (1, 0, 0) => Form::Alone(Bytes::copy_from_slice(self.first)),
            _ => Form::Several,
        }
    }
}
