//! What the two binaries share: a runtime of so many threads, and the signals that end it.

use std::io;

use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

/// Runs a mock on `workers` threads to its end.
///
/// # Errors
/// Those of the mock, and of starting the threads.
pub fn run<F>(workers: usize, mock: F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    // One worker is cheapest without a second thread to wake.
    let mut builder = if workers > 1 { Builder::new_multi_thread() } else { Builder::new_current_thread() };
    if workers > 1 {
        builder.worker_threads(workers);
    }
    builder.enable_all().build()?.block_on(mock)
}

/// Waits for SIGINT or SIGTERM.
///
/// # Errors
/// When signals cannot be listened to.
pub async fn ended() -> io::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
