//! `kvway healthcheck`: asks a running gateway's `/readyz`, for containers that have no curl.

use std::net::SocketAddr;
use std::time::Duration;

/// Whether the gateway with this admin listener is ready.
///
/// # Errors
/// When it cannot be asked, or not in time.
pub async fn is_ready(admin: SocketAddr, timeout: Duration) -> reqwest::Result<bool> {
    let client = reqwest::Client::builder().timeout(timeout).no_proxy().build()?;
    Ok(client.get(format!("http://{admin}/readyz")).send().await?.status().is_success())
}
