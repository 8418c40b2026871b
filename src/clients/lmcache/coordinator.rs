//! The bodies of `lmcache coordinator`: what is sent to it and what its answers mean.
//!
//! Used by `lmcache` alone. Pure. Bounded in the instances of an answer and in the length of their names. It names every
//! holder of every chunk, so that the prefix that an instance holds is counted here. It pins, fleet-wide and for one
//! `cache_salt`; it does not compress, clear or evict.

use super::{Acted, Action, INSTANCES_MAX, Placement, Undecodable, body, is_short};
use bytes::Bytes;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

/// The longest answer to a lookup that is taken: it repeats the tokens, and names each holder of each chunk.
pub(super) const LOOKUP_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Tokens in a chunk unless something else is known.
const CHUNK_TOKENS: usize = 256;

/// Which chunks are meant.
#[derive(Serialize)]
struct Prompt<'a> {
    token_ids: &'a [u32],
    model_name: &'a str,
    world_size: u32,
    cache_salt: &'a str,
}

fn prompt(model: &str, cache_salt: &str, tokens: &[u32]) -> Bytes {
    let prompt = Prompt { token_ids: tokens, model_name: model, world_size: 1, cache_salt };
    body(&prompt, tokens.len())
}

pub(super) fn lookup(model: &str, cache_salt: Option<&str>, tokens: &[u32]) -> (&'static str, Bytes) {
    ("/directory/lookup", prompt(model, cache_salt.unwrap_or_default(), tokens))
}

pub(super) fn act(action: &Action, model: &str, tokens: &[u32]) -> Option<(&'static str, Bytes)> {
    matches!(action, Action::Pin { .. }).then(|| ("/cache/pins", prompt(model, "", tokens)))
}

/// The tokens of the chunks that were pinned, none if no key was.
pub(super) fn read_acted(answer: &[u8], tokens: usize) -> Result<Acted, Undecodable> {
    #[derive(Deserialize)]
    struct Answer {
        requested: usize,
        affected: u64,
    }
    let answer: Answer = serde_json::from_slice(answer).map_err(|_| Undecodable("no count of pins"))?;
    let chunks = if answer.affected == 0 { 0 } else { answer.requested };
    let pinned = chunks.saturating_mul(chunk_tokens(tokens, chunks)).min(tokens);
    Ok(Acted { tokens: pinned as u64 })
}

#[derive(Deserialize)]
struct Directory<'a> {
    chunks: usize,
    #[serde(borrow)]
    results: Vec<Chunk<'a>>,
}

#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow)]
    placements: Vec<Holder<'a>>,
    #[serde(default)]
    token_ids: Length,
}

#[derive(Deserialize)]
struct Holder<'a> {
    #[serde(borrow)]
    instance_id: Cow<'a, str>,
    #[serde(borrow)]
    tier: Cow<'a, str>,
    /// In a pool that belongs to no instance.
    #[serde(default)]
    shared: bool,
}

/// What an instance holds from the prompt's begin.
struct Prefix<'a> {
    location: &'a str,
    chunks: usize,
    tokens: usize,
}

/// The instances that hold the prompt's first chunk, each with the chunks that follow it there without a gap.
pub(super) fn read_placements(answer: &[u8], tokens: usize) -> Result<Vec<Placement>, Undecodable> {
    let directory: Directory<'_> =
        serde_json::from_slice(answer).map_err(|_| Undecodable("no directory of chunks as known"))?;
    let said = directory.results.iter().map(|chunk| chunk.token_ids.0).max().filter(|length| *length > 0);
    let usual = said.unwrap_or_else(|| chunk_tokens(tokens, directory.chunks));
    let mut prefixes: BTreeMap<&str, Prefix<'_>> = BTreeMap::new();
    for (index, chunk) in directory.results.iter().enumerate() {
        let length = if chunk.token_ids.0 > 0 { chunk.token_ids.0 } else { usual };
        for holder in chunk.placements.iter().filter(|holder| !holder.shared) {
            if index == 0 && prefixes.len() < INSTANCES_MAX && holder.is_short() {
                let first = Prefix { location: &holder.tier, chunks: 0, tokens: 0 };
                prefixes.entry(&holder.instance_id).or_insert(first);
            }
            // A second tier of the same instance adds nothing, and what comes after a gap is no prefix.
            if let Some(prefix) = prefixes.get_mut(&*holder.instance_id)
                && prefix.chunks == index
            {
                prefix.chunks += 1;
                prefix.tokens = (prefix.tokens + length).min(tokens);
            }
        }
    }
    let placed = prefixes.into_iter().filter(|(_, prefix)| prefix.tokens > 0);
    Ok(placed.map(|(instance, prefix)| prefix.of(instance)).collect())
}

impl Prefix<'_> {
    fn of(self, instance: &str) -> Placement {
        Placement { instance: instance.to_owned(), location: self.location.to_owned(), tokens: self.tokens }
    }
}

impl Holder<'_> {
    fn is_short(&self) -> bool {
        is_short(&self.instance_id) && is_short(&self.tier)
    }
}

/// Tokens in a chunk of a prompt that has so many whole chunks: the usual number if that can be, else the nearest that can.
fn chunk_tokens(tokens: usize, chunks: usize) -> usize {
    let most = tokens.checked_div(chunks).unwrap_or(0);
    let least = tokens / chunks.saturating_add(1) + 1;
    CHUNK_TOKENS.max(least).min(most)
}

/// How long a list is, without keeping it.
#[derive(Default)]
struct Length(usize);

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Count;
        impl<'de> Visitor<'de> for Count {
            type Value = Length;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Length, A::Error> {
                let mut length = 0;
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    length += 1;
                }
                Ok(Length(length))
            }
        }
        d.deserialize_seq(Count)
    }
}
