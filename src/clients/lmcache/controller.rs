//! The bodies of `lmcache_controller`: what is sent to it and what its answers mean.
//!
//! Used by `lmcache` alone. Pure. Bounded in the instances of an answer and in the length of their names.

use super::{Acted, Action, Placement, Undecodable, body};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub(super) fn lookup(tokens: &[u32]) -> (&'static str, Bytes, usize) {
    #[derive(Serialize)]
    struct Lookup<'a> {
        tokens: &'a [u32],
    }
    ("/lookup", body(&Lookup { tokens }, tokens.len()), 1024 * 1024)
}

pub(super) fn read_placements(_answer: &[u8], _tokens: usize) -> Result<Vec<Placement>, Undecodable> {
    Err(Undecodable("to be done"))
}

pub(super) fn act(action: &Action, tokens: &[u32]) -> (&'static str, Bytes) {
    #[derive(Serialize)]
    struct Control<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        tokens: Option<&'a [u32]>,
        instance_id: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        location: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        method: Option<&'a str>,
    }
    let all = Some(tokens);
    let (path, control) = match action {
        Action::Pin { instance, location } => {
            ("/pin", Control { tokens: all, instance_id: instance, location: Some(location), method: None })
        }
        Action::Compress { instance, location, method } => (
            "/compress",
            Control { tokens: all, instance_id: instance, location: Some(location), method: Some(method) },
        ),
        Action::Evict { instance } => {
            ("/evict", Control { tokens: all, instance_id: instance, location: None, method: None })
        }
        Action::Clear { instance, location } => (
            "/clear",
            Control { tokens: None, instance_id: instance, location: Some(location), method: None },
        ),
    };
    (path, body(&control, tokens.len()))
}

pub(super) fn read_acted(answer: &[u8]) -> Result<Acted, Undecodable> {
    #[derive(Deserialize)]
    struct Answer {
        num_tokens: u64,
    }
    let answer: Answer = serde_json::from_slice(answer).map_err(|_| Undecodable("no count of tokens"))?;
    Ok(Acted { tokens: answer.num_tokens })
}
