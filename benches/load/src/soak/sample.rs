//! One look at a running gateway: what the kernel says of its process, the size of its log, and its own gauges.
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use std::{fs, io};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::readiness::call;

/// Where to look.
pub(super) struct Watched {
    pub(super) pid: i32,
    pub(super) admin: SocketAddr,
    pub(super) log: PathBuf,
}

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Sample {
    /// Since the load began.
    pub(crate) second: f64,
    pub(crate) memory_kib: u64,
    pub(crate) files: u64,
    pub(crate) threads: u64,
    pub(crate) log_bytes: u64,
    /// By name; over all labels.
    pub(crate) gauges: BTreeMap<String, f64>,
}

impl Watched {
    pub(super) async fn look(&self, since: Duration) -> Result<Sample> {
        let process = |file: &str| format!("/proc/{}/{file}", self.pid);
        let status = fs::read_to_string(process("status")).context("the gateway has ended")?;
        let files = fs::read_dir(process("fd")).context("the open files of the gateway")?.count();
        let log_bytes = match fs::metadata(&self.log) {
            Ok(data) => data.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error).with_context(|| self.log.display().to_string()),
        };
        Ok(Sample {
            second: since.as_secs_f64(),
            memory_kib: field(&status, "VmRSS").context("the kernel tells no resident memory")?,
            files: files as u64,
            threads: field(&status, "Threads").context("the kernel tells no threads")?,
            log_bytes,
            gauges: gauges(&self.metrics().await?),
        })
    }

    /// On a connection of its own, which is closed before the files are counted again.
    async fn metrics(&self) -> Result<String> {
        let text = call(self.admin, "GET", "/metrics").await.context("asking the gateway for its metrics")?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// The first number after a name and a colon.
fn field(status: &str, name: &str) -> Option<u64> {
    let lines = status.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = lines.into_iter().find(|(key, _)| *key == name)?;
    value.split_ascii_whitespace().next()?.parse().ok()
}

/// Of an exposition the gauges of kvway, each the sum over its labels.
fn gauges(exposition: &str) -> BTreeMap<String, f64> {
    let mut sums = BTreeMap::new();
    for line in exposition.lines() {
        if let Some(name) = line.strip_prefix("# TYPE ").and_then(|line| line.strip_suffix(" gauge")) {
            if name.starts_with("kvway_") {
                sums.insert(name.to_owned(), 0.0);
            }
        } else if let Some((series, value)) = line.rsplit_once(' ') {
            let name = series.split_once('{').map_or(series, |(name, _)| name);
            if let (Some(sum), Ok(value)) = (sums.get_mut(name), value.parse::<f64>()) {
                *sum += value;
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gauges_are_summed_over_their_labels_and_counters_left_out() {
        let exposition = "# HELP kvway_shadow_blocks Blocks.\n# TYPE kvway_shadow_blocks gauge\n\
            kvway_shadow_blocks{backend=\"a b\"} 3\nkvway_shadow_blocks{backend=\"c\"} 4.5\n\
            # TYPE kvway_requests_total counter\nkvway_requests_total 9\n\
            # TYPE process_open_fds gauge\nprocess_open_fds 9\n\
            # TYPE kvway_connections gauge\nkvway_connections 2\n";
        let told = gauges(exposition);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!((told["kvway_shadow_blocks"] - 7.5).abs() < 1e-9);
        assert!((told["kvway_connections"] - 2.0).abs() < 1e-9);
    }

    #[test]
    fn the_kernel_tells_of_a_process() {
        let status = "Name:\tkvway\nVmRSS:\t   51234 kB\nThreads:\t7\n";
        assert_eq!((field(status, "VmRSS"), field(status, "Threads")), (Some(51_234), Some(7)));
        assert_eq!(field(status, "Nothing"), None);
    }
}
