//! The fields of one object within a prompt, and what kind of thing they make it.
//!
//! Used by `render.rs` alone. They are slices of the body.

use super::super::json;
use std::borrow::Cow;

/// Fields of an object that are told apart; one with more goes in as a whole besides.
const FIELDS_MAX: usize = 8;
/// Says that an engine should cache what precedes it; clients move it from turn to turn, and nobody renders it.
const CACHE_CONTROL: &[u8] = b"cache_control";

/// What kind of thing a part of a content is.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum Kind {
    Text,
    Blob,
    Other,
}

impl Kind {
    pub(super) fn of(value: &[u8]) -> Self {
        match json::string(value).as_deref() {
            Some("text" | "input_text" | "output_text") => Self::Text,
            Some(
                "image" | "image_url" | "input_image" | "audio" | "audio_url" | "input_audio" | "video"
                | "video_url" | "input_video" | "file" | "file_url" | "input_file" | "document",
            ) => Self::Blob,
            _ => Self::Other,
        }
    }
}

/// The fields of an object that say something, as far as there is room for them.
#[derive(Default)]
pub(super) struct Fields<'a> {
    kept: [(Cow<'a, [u8]>, &'a [u8]); FIELDS_MAX],
    count: usize,
    pub(super) are_too_many: bool,
}

impl<'a> Fields<'a> {
    pub(super) fn push(&mut self, key: Cow<'a, [u8]>, value: &'a [u8]) {
        if *key == *CACHE_CONTROL || value == b"null" {
            return;
        }
        match self.kept.get_mut(self.count) {
            Some(place) => *place = (key, value),
            None => self.are_too_many = true,
        }
        self.count += 1;
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (&[u8], &'a [u8])> {
        self.kept.iter().take(self.count).map(|(key, value)| (&**key, *value))
    }

    /// The text of a part that is one.
    pub(super) fn text(&self) -> Option<&'a [u8]> {
        self.all().find(|(key, value)| *key == b"text" && value.starts_with(b"\"")).map(|(_, text)| text)
    }
}
