//! The prompt of a body in blocks of rendered text, so that it is known how far two prompts are the same. Pure.
//!
//! Called by [`super::prompt`] once per body. What an engine would render is put in one order, whatever the order in the
//! body: tools, instructions, then message by message (`render.rs`), and hashed as it goes (`chain.rs`), each block with all
//! that is before it. It knows no tokens but those that a prompt is given as, and no chat template: the marks between the
//! parts stand for what a template would write there. Bounded by [`Settings::blocks_max`] keys, and nothing is copied.

mod chain;
mod render;

use super::key::{Hash, Secret};
use crate::state::blocks::BlockKey;
use chain::Chain;
use http::HeaderValue;
use render::Render;
use std::sync::Arc;

/// What a token id is rendered as.
const TOKEN_BYTES: usize = size_of::<u32>();

/// How prompts are cut and keyed.
#[derive(Clone)]
pub struct Settings {
    /// With what blocks are keyed.
    pub secret: Secret,
    /// The length of a block, at least [`TOKEN_BYTES`].
    pub block_bytes: usize,
    /// Blocks that get a key.
    pub blocks_max: usize,
    /// Whose prompt it is; prompts of different tenants have no key in common.
    pub tenant: Option<HeaderValue>,
}

/// A prompt in blocks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Prefix {
    /// The keys of its whole blocks, from the first.
    pub keys: Arc<[BlockKey]>,
    /// Its length as rendered.
    pub bytes: usize,
    /// Its tokens, where it is given as token ids.
    pub tokens: Option<usize>,
    /// The length of a block.
    pub block_bytes: usize,
    /// Whole blocks that got no key, since they are more than [`Settings::blocks_max`].
    pub unkeyed: usize,
}

impl Prefix {
    /// Its tokens, at `ratio` tokens per byte where they are not known.
    #[must_use]
    pub fn tokens(&self, ratio: f64) -> usize {
        self.tokens.unwrap_or_else(|| scale(self.bytes, ratio))
    }

    /// The tokens of a block, at least 1, at `ratio` tokens per byte where they are not known.
    #[must_use]
    pub fn block_tokens(&self, ratio: f64) -> usize {
        let tokens = match self.tokens {
            Some(_) => self.block_bytes / TOKEN_BYTES,
            None => scale(self.block_bytes, ratio),
        };
        tokens.max(1)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "an estimate of a length that fits into memory; the cast of a float saturates"
)]
fn scale(bytes: usize, ratio: f64) -> usize {
    (bytes as f64 * ratio).round() as usize
}

/// Fields that change how everything else is rendered, or for whom: prompts that differ in one have no key in common.
const SALTS: [&str; 8] = [
    "cache_salt",
    "chat_template",
    "chat_template_kwargs",
    "add_special_tokens",
    "mm_processor_kwargs",
    "truncate_prompt_tokens",
    "reasoning_effort",
    "previous_response_id",
];

/// The fields of a body that its prefix is made of, as they stand there; empty where there is none, or null.
#[derive(Default)]
pub(super) struct Parts<'a> {
    salts: [&'a [u8]; SALTS.len()],
    tools: &'a [u8],
    functions: &'a [u8],
    documents: &'a [u8],
    system: &'a [u8],
    instructions: &'a [u8],
    messages: &'a [u8],
    prompt: &'a [u8],
    input: &'a [u8],
}

impl<'a> Parts<'a> {
    /// Keeps a field if it is one of them. Of two equal keys the last counts.
    pub(super) fn keep(&mut self, key: &str, value: &'a [u8]) {
        let place = match key {
            "tools" => &mut self.tools,
            "functions" => &mut self.functions,
            "documents" => &mut self.documents,
            "system" => &mut self.system,
            "instructions" => &mut self.instructions,
            "messages" => &mut self.messages,
            "prompt" => &mut self.prompt,
            "input" => &mut self.input,
            _ => match self.salts.iter_mut().zip(SALTS).find(|(_, salt)| *salt == key) {
                Some((place, _)) => place,
                None => return,
            },
        };
        *place = if value == b"null" { b"" } else { value };
    }

    /// The prompt in blocks; `None` where there is none, or it cannot be read. `chat`: the engine renders messages.
    pub(super) fn prefix(&self, chat: bool, model: Option<&str>, settings: &Settings) -> Option<Prefix> {
        let given = [self.prompt, self.input].into_iter().find(|value| is_prompt(value));
        let messages = Some(self.messages).filter(|value| value.starts_with(b"["));
        let source = if chat { messages.or(given) } else { given.or(messages) }?;
        let ids = render::are_token_ids(source);
        let block_bytes =
            if ids { settings.block_bytes / TOKEN_BYTES * TOKEN_BYTES } else { settings.block_bytes };
        let salted = self.salted(&[u8::from(chat), u8::from(ids)], model, settings);
        let mut render =
            Render::new(Chain::new(salted.hash(), block_bytes, settings.blocks_max, source.len()), salted);
        let mut tokens = None;
        if ids {
            tokens = Some(render.token_ids(source));
        } else {
            self.render(source, &mut render);
        }
        let chain = render.finish()?;
        let (bytes, unkeyed) = (chain.bytes(), chain.unkeyed());
        Some(Prefix { keys: chain.into_keys(), bytes, tokens, block_bytes, unkeyed })
    }

    fn render(&self, source: &[u8], render: &mut Render) {
        for (mark, value) in [(b'T', self.tools), (b'F', self.functions), (b'D', self.documents)] {
            render.raw(mark, value);
        }
        for (mark, value) in [(b'S', self.system), (b'I', self.instructions)] {
            render.mark(mark);
            render.content(value, 0);
        }
        render.items(source);
    }

    /// The secret of all prompts that can have something in common with this one.
    fn salted(&self, kind: &[u8], model: Option<&str>, settings: &Settings) -> Secret {
        let mut hash: Hash = settings.secret.hash();
        hash.append(kind);
        hash.append_whole(model.unwrap_or_default().as_bytes());
        hash.append_whole(settings.tenant.as_ref().map(HeaderValue::as_bytes).unwrap_or_default());
        for salt in self.salts {
            hash.append_whole(salt);
        }
        hash.into_secret()
    }
}

fn is_prompt(value: &[u8]) -> bool {
    value.starts_with(b"\"") || value.starts_with(b"[")
}
