//! What a client connection costs a proxy while it rests: many are opened, each has one request answered, and all wait.
//!
//! Called by `contest`, each time with proxies that are new, so that no memory that an earlier load left behind is taken
//! for free. One connection after the other, so that no more than one request is under way and what grows is theirs.
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use tokio::time::{self, Instant};

use crate::client::{Connection, Requests};
use crate::comparison::{Entry, Figure};
use crate::contestant::Contestant;
use crate::measurement::{Quota, Recorder, real};
use crate::stage::{Running, SMALL_BODY_BYTES, Stage, authority, workload};
use crate::target::CHAT_PATH;

/// Whose connections are weighed.
const CONTESTANTS: [Contestant; 2] = [Contestant::Kvway, Contestant::BarePingora];
const DISTINCT: usize = 200;
/// On one connection before anything is taken, so that what is built once is there, and every prompt is known.
const REQUESTS_BEFORE: usize = 3 * DISTINCT;
const TIMEOUT: Duration = Duration::from_secs(30);
/// Memory is at rest when it has not become less for a while; allocators give back in their own time.
const REST: Duration = Duration::from_secs(6);
const REST_POLL: Duration = Duration::from_millis(100);
const REST_WITHIN: Duration = Duration::from_secs(30);
/// Files of a proxy, or of this program, that are no client connections.
pub(crate) const OTHER_FILES: u64 = 200;

/// What was measured.
#[derive(Serialize)]
pub(crate) struct Idle {
    pub(crate) connections: usize,
    pub(crate) targets: Vec<Entry<Contestant, Rest>>,
}

/// One time.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Rest {
    before_kib: u64,
    resting_kib: u64,
    kib_per_connection: f64,
}

pub(crate) const FIGURES: [Figure<Rest>; 1] = [Figure {
    key: "kib_per_connection",
    title: "KiB/connection",
    decimals: 1,
    read: |rest| Some(rest.kib_per_connection),
}];

impl Rest {
    pub(crate) fn new(before_kib: u64, resting_kib: u64, connections: usize) -> Self {
        let kib_per_connection = (real(resting_kib) - real(before_kib)) / real(connections as u64);
        Self { before_kib, resting_kib, kib_per_connection }
    }
}

/// So many connections, so many times, at each proxy that is installed.
pub(crate) async fn measure(stage: &mut Stage, connections: usize, rounds: usize) -> Result<Idle> {
    ensure!(connections > 0, "there are no connections to let rest");
    let mut measured = CONTESTANTS.map(|contestant| (contestant, Vec::new()));
    for _ in 0..rounds {
        for (contestant, rests) in &mut measured {
            if let Some(mut running) = stage.start(*contestant).await? {
                let rest = let_rest(&mut running, connections).await;
                running.check()?;
                rests.push(rest.with_context(|| format!("resting connections to {contestant}"))?);
            }
        }
        stage.check()?;
    }
    let measured = measured.into_iter().filter(|(_, rests)| !rests.is_empty());
    let targets = measured.map(|(contestant, rests)| Entry::new(contestant, rests, &FIGURES)).collect();
    Ok(Idle { connections, targets })
}

async fn let_rest(running: &mut Running, connections: usize) -> Result<Rest> {
    running.try_out().await?;
    let bytes = workload(SMALL_BODY_BYTES, DISTINCT, 1).requests(&authority(), &CHAT_PATH)?;
    let requests = Requests { bytes, stream: false, timeout: TIMEOUT };
    let recorder = Recorder::new(Quota::Endless)?;
    let address = *running.addresses.first().context("no address")?;
    let mut first = Connection::to(address);
    for turn in 0..REQUESTS_BEFORE {
        first.request(&requests, turn, &recorder).await?;
    }
    let before = at_rest(running).await?;
    let mut open = vec![first];
    for turn in 0..connections {
        let mut connection = Connection::to(address);
        connection.request(&requests, turn, &recorder).await?;
        open.push(connection);
    }
    let resting = at_rest(running).await?;
    let closed = open.iter().filter(|connection| !connection.is_usable()).count();
    ensure!(closed == 0, "{closed} connections were closed while they rested");
    Ok(Rest::new(before, resting, connections))
}

/// Its resident memory once that becomes less no more.
async fn at_rest(running: &Running) -> Result<u64> {
    let resident = || running.resident_kib()?.context("no proxy");
    let started = Instant::now();
    let (mut least, mut since) = (resident()?, started);
    while since.elapsed() < REST && started.elapsed() < REST_WITHIN {
        time::sleep(REST_POLL).await;
        let now = resident()?;
        if now < least {
            (least, since) = (now, Instant::now());
        }
    }
    resident()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_grew_is_shared_out_over_the_connections() {
        assert!((Rest::new(10_000, 30_000, 2000).kib_per_connection - 10.0).abs() < 1e-9);
        // An allocator may have given back meanwhile.
        assert!(Rest::new(10_000, 9_000, 2000).kib_per_connection < 0.0);
    }
}
