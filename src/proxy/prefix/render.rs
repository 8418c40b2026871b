//! The parts of a prompt, with marks between them that no text can feign.
//!
//! Used by `prefix` alone. A mark is a byte that does not occur in UTF-8 and one that says what begins; where a text has the
//! byte all the same, it is doubled. What is not text goes in as it stands, after its length. Nothing is kept of it.

use super::super::json::{self, Json};
use super::super::key::Secret;
use super::TOKEN_BYTES;
use super::chain::Chain;
use memchr::memchr;

/// Does not occur in UTF-8.
const MARK: u8 = 0xff;
/// What an image, or anything else that is no text, is rendered as: about 1024 tokens.
const BLOB_BYTES: usize = 4096;
/// Parts within parts that are looked into: those of a tool's result.
const DEPTH_MAX: usize = 2;
/// Says that an engine should cache what precedes it; clients move it from turn to turn, and nobody renders it.
const CACHE_CONTROL: &str = "cache_control";

/// The rendering of a prompt.
pub(super) struct Render {
    chain: Chain,
    /// With what blobs are keyed.
    secret: Secret,
    broken: bool,
}

/// What kind of thing a part of a content is.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Kind {
    Text,
    Blob,
    Other,
}

impl Kind {
    fn of(name: &str) -> Self {
        match name {
            "text" | "input_text" | "output_text" => Self::Text,
            "image" | "image_url" | "input_image" | "audio" | "audio_url" | "input_audio" | "video"
            | "video_url" | "input_video" | "file" | "file_url" | "input_file" | "document" => Self::Blob,
            _ => Self::Other,
        }
    }
}

impl Render {
    pub(super) fn new(chain: Chain, secret: Secret) -> Self {
        Self { chain, secret, broken: false }
    }

    /// What was rendered; `None` where something was met that is not understood.
    pub(super) fn finish(self) -> Option<Chain> {
        Some(self.chain).filter(|_| !self.broken)
    }

    /// One text, or a list of texts or messages.
    pub(super) fn items(&mut self, value: &[u8]) {
        if !value.starts_with(b"[") {
            return self.content(value, 0);
        }
        self.array(value, |this, json| match json.kind() {
            Some(b'{') => {
                let message = json.skip();
                this.message(message);
            }
            _ => this.content(json.skip(), 0),
        });
    }

    /// Its role, its content, then all other fields in their order.
    fn message(&mut self, message: &[u8]) {
        let (mut role, mut content, mut others): (&[u8], &[u8], bool) = (b"", b"", false);
        self.object(message, |_, json, key| match key {
            "role" => role = json.skip(),
            "content" => content = json.skip(),
            _ => others = true,
        });
        self.mark(b'm');
        self.content(role, 0);
        self.mark(b'c');
        self.content(content, 0);
        if others {
            self.object(message, |this, json, key| {
                if !matches!(key, "role" | "content") {
                    this.field(key, json.skip());
                }
            });
        }
    }

    /// A text, a list of parts, or whatever stands in the place of them.
    pub(super) fn content(&mut self, value: &[u8], depth: usize) {
        match value.first() {
            Some(b'"') => self.text(value),
            Some(b'[') if depth < DEPTH_MAX => {
                self.array(value, |this, json| {
                    let part = json.skip();
                    this.part(part, depth + 1);
                });
            }
            _ => self.raw(b'v', value),
        }
    }

    fn part(&mut self, part: &[u8], depth: usize) {
        if !part.starts_with(b"{") {
            return self.content(part, depth);
        }
        let (mut kind, mut text): (Kind, &[u8]) = (Kind::Other, b"");
        self.object(part, |_, json, key| match key {
            "type" => kind = json.string().map_or(Kind::Other, |name| Kind::of(&name)),
            "text" => text = json.skip(),
            _ => {}
        });
        match kind {
            Kind::Text if text.starts_with(b"\"") => self.text(text),
            Kind::Blob => self.blob(part),
            Kind::Text | Kind::Other => {
                self.mark(b'p');
                self.object(part, |this, json, key| {
                    let value = json.skip();
                    if key == "content" {
                        this.mark(b'c');
                        this.content(value, depth);
                    } else {
                        this.field(key, value);
                    }
                });
            }
        }
    }

    /// Something that is known by its hash.
    fn blob(&mut self, part: &[u8]) {
        let mut hash = self.secret.hash();
        self.object(part, |_, json, key| {
            if key != CACHE_CONTROL {
                hash.append_whole(key.as_bytes());
                hash.append_whole(json.skip());
            }
        });
        self.mark(b'b');
        let hash = hash.finish().to_le_bytes();
        for _ in 0..BLOB_BYTES / hash.len() {
            self.chain.append(&hash);
        }
    }

    fn field(&mut self, key: &str, value: &[u8]) {
        if key != CACHE_CONTROL && value != b"null" {
            self.raw(b'k', key.as_bytes());
            self.raw(b'v', value);
        }
    }

    /// What is not text, after `mark`; nothing where there is none.
    pub(super) fn raw(&mut self, mark: u8, value: &[u8]) {
        if !value.is_empty() && value != b"null" {
            self.mark(mark);
            self.chain.append(&value.len().to_le_bytes());
            self.chain.append(value);
        }
    }

    /// A JSON string.
    fn text(&mut self, value: &[u8]) {
        self.mark(b't');
        json::pieces(value, |piece| {
            let mut rest = piece;
            while let Some(at) = memchr(MARK, rest) {
                let (text, after) = rest.split_at(at + 1);
                self.chain.append(text);
                self.chain.append(&[MARK]);
                rest = after;
            }
            self.chain.append(rest);
        });
    }

    pub(super) fn mark(&mut self, what: u8) {
        self.chain.append(&[MARK, what]);
    }

    fn array<'a>(&mut self, value: &'a [u8], mut element: impl FnMut(&mut Self, &mut Json<'a>)) {
        let mut json = Json::new(value);
        json.array(|json| element(self, json));
        self.broken |= json.is_broken();
    }

    fn object<'a>(&mut self, value: &'a [u8], mut field: impl FnMut(&mut Self, &mut Json<'a>, &str)) {
        let mut json = Json::new(value);
        json.object(|json, key| field(self, json, key));
        self.broken |= json.is_broken();
    }

    /// Token ids, or lists of them; returns how many.
    pub(super) fn token_ids(&mut self, value: &[u8]) -> usize {
        let (mut tokens, mut lists) = (0, 0);
        self.array(value, |this, json| {
            if json.kind() != Some(b'[') {
                tokens += 1;
                return this.token_id(json.skip());
            }
            if lists > 0 {
                this.chain.append(&[MARK; TOKEN_BYTES]);
            }
            lists += 1;
            json.array(|json| {
                tokens += 1;
                this.token_id(json.skip());
            });
        });
        tokens
    }

    fn token_id(&mut self, value: &[u8]) {
        // The greatest number stands between lists, and no vocabulary is as large.
        match json::integer(value).filter(|id| *id < u32::MAX) {
            Some(id) => self.chain.append(&id.to_le_bytes()),
            None => self.broken = true,
        }
    }
}

/// Whether a prompt is given as token ids, or lists of them.
pub(super) fn are_token_ids(value: &[u8]) -> bool {
    let mut first = None;
    if value.starts_with(b"[") {
        // Only the first element is looked at: the rest of a long prompt is read when it is rendered.
        let mut json = Json::new(value.get(1..).unwrap_or_default());
        first = json.kind();
    }
    first.is_some_and(|byte| byte == b'[' || byte == b'-' || byte.is_ascii_digit())
}
