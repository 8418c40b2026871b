//! The bodies of `lmcache_controller`: what is sent to it and what its answers mean.
//!
//! Used by `lmcache` alone. Pure. Bounded in the instances of an answer and in the length of their names.

use super::{Acted, Action, INSTANCES_MAX, Placement, Undecodable, body, is_short};
use bytes::Bytes;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;

/// The longest answer to a lookup that is taken: a line per instance.
pub(super) const LOOKUP_BYTES_MAX: usize = 1024 * 1024;

pub(super) fn lookup(tokens: &[u32]) -> (&'static str, Bytes) {
    #[derive(Serialize)]
    struct Lookup<'a> {
        tokens: &'a [u32],
    }
    ("/lookup", body(&Lookup { tokens }, tokens.len()))
}

/// The instances of an answer that hold at least one of the prompt's `tokens`.
pub(super) fn read_placements(answer: &[u8], tokens: usize) -> Result<Vec<Placement>, Undecodable> {
    #[derive(Deserialize)]
    struct Answer {
        layout_info: Layout,
    }
    let answer: Answer =
        serde_json::from_slice(answer).map_err(|_| Undecodable("no layout_info as known"))?;
    let Layout(mut placements) = answer.layout_info;
    for placement in &mut placements {
        placement.tokens = placement.tokens.min(tokens);
    }
    placements.retain(|placement| placement.tokens > 0);
    Ok(placements)
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
    let (path, instance_id, location, method) = match action {
        Action::Pin { instance, location } => ("/pin", instance, Some(location), None),
        Action::Compress { instance, location, method } => {
            ("/compress", instance, Some(location), Some(method))
        }
        Action::Evict { instance } => ("/evict", instance, None, None),
        Action::Clear { instance, location } => ("/clear", instance, Some(location), None),
    };
    // A location is cleared as a whole, whatever the prompt.
    let tokens = (!matches!(action, Action::Clear { .. })).then_some(tokens);
    let control = Control {
        tokens,
        instance_id,
        location: location.map(String::as_str),
        method: method.map(String::as_str),
    };
    (path, body(&control, tokens.map_or(0, <[u32]>::len)))
}

pub(super) fn read_acted(answer: &[u8], _tokens: usize) -> Result<Acted, Undecodable> {
    #[derive(Deserialize)]
    struct Answer {
        num_tokens: u64,
    }
    let answer: Answer = serde_json::from_slice(answer).map_err(|_| Undecodable("no num_tokens"))?;
    Ok(Acted { tokens: answer.num_tokens })
}

/// Instance → spot, as far as the bounds go.
struct Layout(Vec<Placement>);

impl<'de> Deserialize<'de> for Layout {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Instances;
        impl<'de> Visitor<'de> for Instances {
            type Value = Layout;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of instances")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Layout, A::Error> {
                let mut placements = Vec::new();
                while let Some(instance) = map.next_key::<String>()? {
                    let Spot { location, tokens } = map.next_value()?;
                    if placements.len() < INSTANCES_MAX && is_short(&instance) && is_short(&location) {
                        placements.push(Placement { instance, location, tokens });
                    }
                }
                Ok(Layout(placements))
            }
        }
        d.deserialize_map(Instances)
    }
}

/// Where in an instance and how much: `["location", 512]`, or `{"0": "location", "1": 512}` as some versions write it.
struct Spot {
    location: String,
    tokens: usize,
}

impl<'de> Deserialize<'de> for Spot {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = (Option<String>, Option<u64>);

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a location and a number of tokens")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let pair = (seq.next_element()?, seq.next_element()?);
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(pair)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pair = (None, None);
                while let Some(key) = map.next_key::<Cow<'_, str>>()? {
                    match &*key {
                        "0" => pair.0 = Some(map.next_value()?),
                        "1" => pair.1 = Some(map.next_value()?),
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(pair)
            }
        }
        match d.deserialize_any(Either)? {
            // More than fits is more than the prompt has.
            (Some(location), Some(tokens)) => {
                Ok(Self { location, tokens: usize::try_from(tokens).unwrap_or(usize::MAX) })
            }
            _ => Err(serde::de::Error::custom("half a spot")),
        }
    }
}
