//! What the gateway itself asks of a vLLM engine.
//!
//! Called by `background`. Every call has a deadline and a bound on the answer; nothing is retried here.

use crate::config::Secret;
use reqwest::Client;
use std::time::Duration;

/// Why a call to an engine brought nothing. Never holds a part of the answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The engine could not be reached, or not in time.
    #[error("GET {path}: {source}")]
    Transport {
        /// The path that was asked for.
        path: &'static str,
        /// What went wrong, without the address.
        source: reqwest::Error,
    },
    /// The engine answered with another status than 200.
    #[error("GET {path}: status {status}")]
    Status {
        /// The path that was asked for.
        path: &'static str,
        /// The status.
        status: u16,
    },
    /// The answer is longer than it may be.
    #[error("GET {path}: the answer is longer than {bytes_max} bytes")]
    TooLong {
        /// The path that was asked for.
        path: &'static str,
        /// The bound.
        bytes_max: usize,
    },
}

/// A client for calls from the background; it belongs to the runtime that uses it. It takes no proxy from the environment.
///
/// # Errors
/// When TLS cannot be set up.
pub fn client(timeout: Duration) -> reqwest::Result<Client> {
    Client::builder().timeout(timeout).connect_timeout(timeout).no_proxy().build()
}

/// `GET {base}/v1/models`: the answer as it is, at most `bytes_max` long.
///
/// # Errors
/// See [`CallError`].
pub async fn models(
    client: &Client,
    base: &str,
    api_key: Option<&Secret>,
    bytes_max: usize,
) -> Result<Vec<u8>, CallError> {
    let path = "/v1/models";
    let transport = |source: reqwest::Error| CallError::Transport { path, source: source.without_url() };
    let mut request = client.get(format!("{base}{path}"));
    if let Some(key) = api_key {
        request = request.bearer_auth(key.expose());
    }
    let mut response = request.send().await.map_err(transport)?;
    if response.status() != reqwest::StatusCode::OK {
        return Err(CallError::Status { path, status: response.status().as_u16() });
    }
    let mut answer = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(transport)? {
        if answer.len() + chunk.len() > bytes_max {
            return Err(CallError::TooLong { path, bytes_max });
        }
        answer.extend_from_slice(&chunk);
    }
    Ok(answer)
}
