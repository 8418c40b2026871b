//! How much an engine has to do, as its own metrics say.
//!
//! Called by `background`. Bounded in the bytes that are read; series that it does not know are passed over.

use super::exposition::{sample, sleeps};
use super::{METRICS_BYTES_MAX, get};
use crate::clients::call::{CallError, Reason};
use crate::clients::endpoint;
use crate::config::Secret;
use reqwest::Client;

const OPERATION: &str = "load";

/// What an engine has to do.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EngineLoad {
    /// Requests that it works on, over all its engines.
    pub running: f64,
    /// Requests that wait for it, over all its engines.
    pub waiting: f64,
    /// The share of its KV cache in use, 0 to 1, of the fullest of its engines; `None` where it does not say.
    pub cache_usage: Option<f64>,
    /// Whether one of its engines sleeps: it says that it is healthy then, and requests hang.
    pub asleep: bool,
}

/// `GET {base}/metrics`, read.
///
/// # Errors
/// See [`Reason`]; an answer without the numbers of requests is not understood.
pub async fn load(client: &Client, base: &str, api_key: Option<&Secret>) -> Result<EngineLoad, CallError> {
    let answer =
        endpoint::answer(OPERATION, get(client, base, "/metrics", api_key), METRICS_BYTES_MAX).await?;
    let lost = CallError::new(OPERATION, Reason::Undecodable("no numbers of requests"));
    parse(&String::from_utf8_lossy(&answer)).ok_or(lost)
}

fn parse(text: &str) -> Option<EngineLoad> {
    let (mut running, mut waiting) = (None, None);
    let mut load = EngineLoad::default();
    for (name, labels, value) in text.lines().filter_map(sample) {
        match name {
            "vllm:num_requests_running" => *running.get_or_insert(0.0) += value,
            "vllm:num_requests_waiting" => *waiting.get_or_insert(0.0) += value,
            "vllm:kv_cache_usage_perc" => {
                load.cache_usage = Some(load.cache_usage.map_or(value, |most| most.max(value)));
            }
            "vllm:engine_sleep_state" => load.asleep |= sleeps(labels, value),
            _ => {}
        }
    }
    Some(EngineLoad { running: running?, waiting: waiting?, ..load })
}
