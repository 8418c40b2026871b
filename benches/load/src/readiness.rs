//! Waits until a process that was started serves, and asks it for a page. Used by `stage` and `routing`; sends no prompt.
use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, bail};
use tokio::net::TcpStream;
use tokio::time::{self, Instant};

use crate::answer::Answer;
use crate::client::Connection;
use crate::measurement::Failure;
use crate::process::Process;

/// How long a process may take until it serves.
pub(crate) const READY_WITHIN: Duration = Duration::from_secs(15);
/// From one try to the next.
pub(crate) const READY_POLL: Duration = Duration::from_millis(20);

/// Where it is asked whether a process is ready.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Readiness {
    /// It accepts connections.
    Listens(SocketAddr),
    /// This path is answered with 200.
    Tells(SocketAddr, &'static str),
}

impl Readiness {
    /// Waits until `process` is ready, or has ended.
    pub(crate) async fn wait(self, process: &mut Process) -> Result<()> {
        let started = Instant::now();
        loop {
            process.check()?;
            let Err(failure) = self.ask().await else {
                return Ok(());
            };
            if started.elapsed() > READY_WITHIN {
                bail!("{} is not ready: {failure}", process.name());
            }
            time::sleep(READY_POLL).await;
        }
    }

    async fn ask(self) -> Result<(), Failure> {
        match self {
            Self::Listens(address) => TcpStream::connect(address).await.map(drop).map_err(Failure::Connect),
            Self::Tells(address, path) => call(address, "GET", path).await.map(drop),
        }
    }
}

/// The body of the answer to a request that has none; its status has to be 200.
pub(crate) async fn call(address: SocketAddr, method: &str, path: &str) -> Result<Vec<u8>, Failure> {
    let request = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\ncontent-length: 0\r\n\r\n");
    let mut connection = Connection::to(address);
    let answer = connection
        .exchange(request.as_bytes(), Answer::new().keeping_body(true), READY_WITHIN, |_| {})
        .await?;
    match answer.status() {
        200 => Ok(answer.body().to_vec()),
        status => Err(Failure::Status(status)),
    }
}
