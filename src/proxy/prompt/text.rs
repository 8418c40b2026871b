//! The text of a prompt, of which only the key is wanted: taken in piece by piece, never put together.
//!
//! Used by `prompt` alone. It holds no more than white space whose fate is open.

use super::super::json::Json;
use super::super::key::Hash;

/// A text made of items, joined with a newline and trimmed, of which only the hash is kept.
#[derive(Default)]
pub(super) struct Text {
    hash: Option<Hash>,
    items: usize,
    begun: bool,
    /// White space that belongs to the text only if something follows.
    space: String,
}

impl Text {
    pub(super) fn new(hash: Option<Hash>) -> Self {
        Self { hash, ..Self::default() }
    }

    /// Reads the string that stands here.
    pub(super) fn item(&mut self, json: &mut Json<'_>) {
        self.items += 1;
        if self.items > 1 {
            self.piece("\n");
        }
        if self.begun && self.hash.is_none() {
            // Only whether there is any text is asked for.
            json.skip();
            return;
        }
        json.pieces(|piece| match std::str::from_utf8(piece) {
            Ok(piece) => self.piece(piece),
            Err(_) => self.piece(&String::from_utf8_lossy(piece)),
        });
    }

    fn piece(&mut self, piece: &str) {
        let piece = if self.begun { piece } else { piece.trim_start() };
        let solid = piece.trim_end();
        let space = piece.get(solid.len()..).unwrap_or_default();
        self.begun |= !solid.is_empty();
        let Some(hash) = self.hash.as_mut().filter(|_| self.begun) else { return };
        if !solid.is_empty() {
            hash.append(self.space.as_bytes());
            self.space.clear();
            hash.append(solid.as_bytes());
        }
        self.space.push_str(space);
    }

    pub(super) fn is_some(&self) -> bool {
        self.begun
    }

    pub(super) fn finish(self) -> Option<u128> {
        self.hash.filter(|_| self.begun).map(Hash::finish)
    }
}
