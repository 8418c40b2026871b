//! How much an engine's KV cache holds, and what tells whether it is still the cache that it was, as its own metrics say.
//!
//! Called by `background`. Bounded in the bytes that are read; series that it does not know are passed over.

use super::exposition::{label, sample, sleeps};
use super::{METRICS_BYTES_MAX, get};
use crate::clients::call::{CallError, Reason};
use crate::clients::endpoint;
use crate::config::Secret;
use reqwest::Client;
use std::collections::BTreeMap;

const OPERATION: &str = "capacity";

/// What an engine says of its KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EngineCache {
    /// Tokens that it holds, over all its engines; `None` where it does not say.
    pub capacity_tokens: Option<u64>,
    /// Whether one of its engines sleeps, and has nothing cached; `None` where it does not say.
    pub asleep: Option<bool>,
    /// When its counting began, in seconds since 1970 (of several engines the sum): another time is another process. `None`
    /// where it does not say, as with several API servers before one engine.
    pub counting_since: Option<f64>,
    /// Tokens of all prompts that it has computed since then.
    pub prompt_tokens: Option<f64>,
}

/// `GET {base}/metrics`, read.
///
/// # Errors
/// See [`Reason`]; an answer that tells nothing of an engine is not understood.
pub async fn cache(client: &Client, base: &str, api_key: Option<&Secret>) -> Result<EngineCache, CallError> {
    let answer =
        endpoint::answer(OPERATION, get(client, base, "/metrics", api_key), METRICS_BYTES_MAX).await?;
    let said = parse(&String::from_utf8_lossy(&answer));
    if said == EngineCache::default() {
        return Err(CallError::new(OPERATION, Reason::Undecodable("nothing of an engine")));
    }
    Ok(said)
}

fn parse(text: &str) -> EngineCache {
    let mut cache = EngineCache::default();
    let mut capacities = BTreeMap::new();
    for (name, labels, value) in text.lines().filter_map(sample) {
        match name {
            "vllm:cache_config_info" => {
                if let Some(tokens) = capacity(labels) {
                    capacities.insert(label(labels, "engine"), tokens);
                }
            }
            "vllm:engine_sleep_state" => *cache.asleep.get_or_insert(false) |= sleeps(labels, value),
            "vllm:prompt_tokens_created" => *cache.counting_since.get_or_insert(0.0) += value,
            "vllm:prompt_tokens_total" => *cache.prompt_tokens.get_or_insert(0.0) += value,
            _ => {}
        }
    }
    cache.capacity_tokens = capacities.into_values().reduce(u64::saturating_add);
    cache
}

/// The tokens that one engine's cache holds. Newer engines say so; of others it is blocks times their size, which is another
/// number for models whose layers have blocks of several sizes.
fn capacity(labels: &str) -> Option<u64> {
    let number = |name| label(labels, name)?.parse::<u64>().ok();
    number("kv_cache_size_tokens")
        .or_else(|| Some(number("block_size")?.saturating_mul(number("num_gpu_blocks")?)))
}
