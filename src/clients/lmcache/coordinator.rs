//! The bodies of `lmcache coordinator`: what is sent to it and what its answers mean.
//!
//! Used by `lmcache` alone. Pure. Bounded in the instances of an answer and in the length of their names.

use super::{Acted, Action, Placement, Undecodable, body};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

#[derive(Serialize)]
struct Lookup<'a> {
    token_ids: &'a [u32],
    model_name: &'a str,
    world_size: u32,
    cache_salt: &'a str,
}

pub(super) fn lookup(model: &str, cache_salt: Option<&str>, tokens: &[u32]) -> (&'static str, Bytes, usize) {
    let lookup = Lookup {
        token_ids: tokens,
        model_name: model,
        world_size: 1,
        cache_salt: cache_salt.unwrap_or_default(),
    };
    ("/directory/lookup", body(&lookup, tokens.len()), 16 * 1024 * 1024)
}

pub(super) fn read_placements(_answer: &[u8], _tokens: usize) -> Result<Vec<Placement>, Undecodable> {
    Err(Undecodable("to be done"))
}

pub(super) fn act(action: &Action, model: &str, tokens: &[u32]) -> Option<(&'static str, Bytes)> {
    let Action::Pin { .. } = action else { return None };
    let (_, body, _) = lookup(model, None, tokens);
    Some(("/cache/pins", body))
}

pub(super) fn read_acted(answer: &[u8]) -> Result<Acted, Undecodable> {
    #[derive(Deserialize)]
    struct Answer {
        affected: u64,
    }
    let answer: Answer = serde_json::from_slice(answer).map_err(|_| Undecodable("no count of keys"))?;
    Ok(Acted { tokens: answer.affected })
}
