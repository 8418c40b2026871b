//! One measured window: connections start, settle, are counted for a while, and end.
//!
//! Used by `contest`. Bounded by its duration or its number of requests, and by the timeout of a request
//! at the end. It measures one target and compares nothing.
use std::{net::SocketAddr, rc::Rc, time::Duration};

use anyhow::{Context, Result};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{self, Instant};

use crate::client::{Connection, Requests};
use crate::cpu::CpuMeter;
use crate::measurement::{Quota, Recorder, Summary};

/// How a window is driven.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) connections: usize,
    pub(crate) limit: Limit,
}

/// When a window ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    /// After a time; what happens in the first `settling` is not counted.
    Time { settling: Duration, counted: Duration },
    /// After so many requests, all of them counted.
    #[cfg_attr(not(test), expect(dead_code, reason = "tests end a window by it"))]
    Requests(u64),
}

impl Window {
    /// Spreads the connections over `addresses`; `interrupt` ends the window early and keeps what was counted.
    pub(crate) async fn measure(
        &self,
        addresses: &[SocketAddr],
        requests: &Rc<Requests>,
        meter: Option<&CpuMeter>,
        interrupt: impl Future<Output = ()>,
    ) -> Result<Summary> {
        let (quota, settling, counted) = match self.limit {
            Limit::Time { settling, counted } => (Quota::Endless, settling, Some(counted)),
            Limit::Requests(requests) => (Quota::Requests(requests), Duration::ZERO, None),
        };
        let recorder = Rc::new(Recorder::new(quota).context("histograms")?);
        let local = LocalSet::new();
        let mut connections = JoinSet::new();
        for &address in addresses.iter().cycle().take(self.connections) {
            let driven = Connection::to(address).drive(Rc::clone(requests), Rc::clone(&recorder));
            connections.spawn_local_on(driven, &local);
        }
        let measured = local.run_until(async {
            tokio::pin!(interrupt);
            let mut interrupted = false;
            if !settling.is_zero() {
                interrupted = tokio::select! {
                    () = time::sleep(settling) => false,
                    () = &mut interrupt => true,
                };
            }
            let cpu_before = meter.map(CpuMeter::read).transpose()?;
            let opened = Instant::now();
            // Without settling no connection has run yet: every request is counted.
            recorder.open();
            if !interrupted {
                interrupted = tokio::select! {
                    () = wait(counted, &mut connections) => false,
                    () = &mut interrupt => true,
                };
            }
            recorder.close();
            let elapsed = opened.elapsed();
            let cpu_after = meter.map(CpuMeter::read).transpose()?;
            let cpu = cpu_after.zip(cpu_before).map(|(after, before)| after.since(before));
            // What was started may end, so that a proxy keeps its connections and a request that hangs is noticed.
            if !interrupted {
                tokio::select! {
                    () = wait(None, &mut connections) => {}
                    () = &mut interrupt => {}
                }
            }
            Ok(recorder.summary(elapsed, cpu, interrupted))
        });
        measured.await
    }
}

/// For `counted`, or until all connections have nothing more to send.
async fn wait(counted: Option<Duration>, connections: &mut JoinSet<()>) {
    match counted {
        Some(counted) => time::sleep(counted).await,
        None => while connections.join_next().await.is_some() {},
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const REQUEST: &[u8] = b"ping";

    /// Answers every request on any number of connections.
    async fn serve(listener: TcpListener) -> Infallible {
        let mut sockets = JoinSet::new();
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            sockets.spawn(async move {
                let mut request = [0; REQUEST.len()];
                while socket.read_exact(&mut request).await.is_ok() {
                    socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await.unwrap();
                }
            });
        }
    }

    async fn measure(limit: Limit, interrupt: impl Future<Output = ()>) -> Summary {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addresses = [listener.local_addr().unwrap()];
        let timeout = Duration::from_secs(30);
        let requests = Rc::new(Requests { bytes: vec![REQUEST.to_vec()], stream: false, timeout });
        let window = Window { connections: 3, limit };
        tokio::select! {
            summary = window.measure(&addresses, &requests, None, interrupt) => summary.unwrap(),
            never = serve(listener) => match never {},
        }
    }

    #[tokio::test]
    async fn a_number_of_requests_is_kept_exactly() {
        let summary = measure(Limit::Requests(50), future::pending()).await;
        assert_eq!((summary.requests, summary.errors.total(), summary.interrupted), (50, 0, false));
    }

    #[tokio::test]
    async fn an_interrupted_window_says_so() {
        let hour = Duration::from_hours(1);
        let summary = measure(Limit::Time { settling: hour, counted: hour }, future::ready(())).await;
        assert!(summary.interrupted);
    }
}
