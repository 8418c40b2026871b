//! What the gateway itself asks of a vLLM engine.
//!
//! Called by `background`. Every call has a deadline and a bound on the answer; nothing is retried here.

mod cache;
mod exposition;
mod load;
mod tokenizer;

use super::call::CallError;
use super::endpoint;
use crate::config::Secret;
pub use cache::{EngineCache, cache};
pub use load::{EngineLoad, load};
use reqwest::{Client, RequestBuilder};
use std::time::Duration;
pub use tokenizer::{Tokenizer, Tokens, prompt_form};

/// The longest answer of `/metrics` that is taken: an engine writes about 100 KiB.
const METRICS_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A client for calls from the background; it belongs to the runtime that uses it. It takes no proxy from the environment.
///
/// # Errors
/// When TLS cannot be set up.
pub fn client(timeout: Duration) -> reqwest::Result<Client> {
    endpoint::builder().timeout(timeout).connect_timeout(timeout).build()
}

/// `GET {base}/v1/models`: the answer as it is, at most `bytes_max` long.
///
/// # Errors
/// See [`Reason`](super::call::Reason).
pub async fn models(
    client: &Client,
    base: &str,
    api_key: Option<&Secret>,
    bytes_max: usize,
) -> Result<Vec<u8>, CallError> {
    endpoint::answer("models", get(client, base, "/v1/models", api_key), bytes_max).await
}

fn get(client: &Client, base: &str, path: &str, api_key: Option<&Secret>) -> RequestBuilder {
    let request = client.get(format!("{base}{path}"));
    match api_key {
        Some(key) => request.bearer_auth(key.expose()),
        None => request,
    }
}
