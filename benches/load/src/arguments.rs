//! The command line of `kvway-bench`. Read by `main`; it decides nothing.
use std::{num::NonZeroUsize, path::PathBuf, time::Duration};

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::contestant::Contestant;
use crate::{routing, run};

/// Measures gateways in front of LLM engines: under load, beside other proxies, under several policies.
#[derive(Parser)]
#[command(version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Load one target and print what it answered with.
    ///
    /// In an open loop (`--rate`, `--trace`) requests are sent when they are due, however slow answers are, and times count
    /// from then. In a closed loop (`--connections`, the default) each connection sends its next request when its answer is
    /// complete.
    Run(Box<run::Run>),
    /// Draw results of `run` as one page of HTML that needs no network.
    Report(Html),
    /// Load kvway for a long time and watch what it does to memory, files and threads.
    Soak(Soak),
    /// Compare two results of `run`: figures, ratios, and what is worse.
    Compare(Pairing),
    /// Measure several proxies in turn against the same two mock engines.
    CompareProxies(Compare),
    /// Measure what kvway's policies make of the same requests, before simulated engines with KV caches.
    Routing(Routing),
}

/// What every comparison needs: programs, and what is kept with the result.
#[derive(Args, Clone)]
pub(crate) struct Setup {
    /// Write the result to this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Seed of all that is sent.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Kept with the result: the revision of kvway.
    #[arg(long, default_value = "unknown")]
    pub(crate) revision: String,
    /// Kept with the result: when it was measured.
    #[arg(long, default_value = "unknown")]
    pub(crate) date: String,
    /// Directory of mock-vllm, bare-pingora and kvway; by default that of this program.
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) programs: Option<PathBuf>,
    /// The mock engine, if it is elsewhere.
    #[arg(long, value_name = "FILE")]
    pub(crate) mock_vllm: Option<PathBuf>,
    /// kvway, if it is elsewhere.
    #[arg(long, value_name = "FILE")]
    pub(crate) kvway: Option<PathBuf>,
}

/// Each policy has a gateway of its own, new for every window, and engines with empty caches.
#[derive(Args)]
pub(crate) struct Routing {
    #[command(flatten)]
    pub(crate) setup: Setup,
    /// Policies, as a configuration of kvway names them.
    #[arg(long, value_delimiter = ',', default_values = ["round_robin", "least_requests", "pmc"])]
    pub(crate) policies: Vec<String>,
    /// What is sent.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["multi-turn", "shared-system-prompt", "unique"])]
    pub(crate) workloads: Vec<routing::Workload>,
    /// Load, as a share of what round robin can just take.
    #[arg(long, default_value_t = 0.75)]
    pub(crate) load: f64,
    /// Rounds, each with requests of its own; 3 by default.
    #[arg(long)]
    pub(crate) rounds: Option<NonZeroUsize>,
    /// For how long requests are counted in one window; 10 s by default.
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) duration: Option<Duration>,
    /// Under a minute: by default one round of 2 s.
    #[arg(long)]
    pub(crate) quick: bool,
}

/// A part of `compare-proxies`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Every target under load.
    Proxies,
    /// The memory of connections at rest, of kvway and of bare Pingora.
    IdleConnections,
    /// kvway without and with its view of caches, before simulated engines.
    Filter,
}

/// One kvway with the policy pmc, before simulated engines; all workloads of `routing` at once, at moderate load.
#[derive(Args)]
pub(crate) struct Soak {
    #[command(flatten)]
    pub(crate) setup: Setup,
    /// How long.
    #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
    pub(crate) duration: Duration,
    /// What happens before is told and not judged; a quarter of the time by default.
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) warm_up: Option<Duration>,
    /// How often to look.
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    pub(crate) every: Duration,
    /// Load, as a share of what round robin can just take.
    #[arg(long, default_value_t = 0.4)]
    pub(crate) load: f64,
    /// By how much resident memory may grow after the warm-up.
    #[arg(long, default_value = "16MiB")]
    pub(crate) growth_max: ByteSize,
    /// By how many open files may grow after the warm-up.
    #[arg(long, default_value_t = 32)]
    pub(crate) files_growth_max: u32,
    /// By how many threads may grow after the warm-up.
    #[arg(long, default_value_t = 4)]
    pub(crate) threads_growth_max: u32,
    /// Also draw it in this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
}

/// Several results are drawn side by side in the same charts.
#[derive(Args)]
pub(crate) struct Html {
    /// What `run --json` wrote.
    #[arg(required = true, value_name = "RESULT")]
    pub(crate) results: Vec<PathBuf>,
    /// Write the page to this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
}

/// Ratios are B divided by A.
#[derive(Args)]
pub(crate) struct Pairing {
    /// What `run --json` wrote.
    pub(crate) a: PathBuf,
    /// What another `run --json` wrote.
    pub(crate) b: PathBuf,
    /// Also draw both in this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Fail if a figure of B is worse by more than this ratio: 1.1 is by a tenth.
    #[arg(long, value_name = "RATIO", value_parser = ratio)]
    pub(crate) fail_above: Option<f64>,
}

/// One core is the proxies', one is shared by the load and the engines.
#[derive(Args)]
pub(crate) struct Compare {
    #[command(flatten)]
    pub(crate) setup: Setup,
    /// Under two minutes: by default 3 rounds, of windows that share the time.
    #[arg(long)]
    pub(crate) quick: bool,
    /// What to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["proxies", "idle-connections", "filter"])]
    pub(crate) parts: Vec<Part>,
    /// What to compare.
    #[arg(long, value_enum, value_delimiter = ',', default_values = [
        "direct", "nginx", "haproxy", "bare-pingora", "kvway-off", "kvway", "kvway-lookup", "sglang-router"
    ])]
    pub(crate) targets: Vec<Contestant>,
    /// Counted rounds; one more comes first to warm up. 5 by default.
    #[arg(long)]
    pub(crate) rounds: Option<NonZeroUsize>,
    /// Length of one window; 2 s by default.
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) duration: Option<Duration>,
    /// Sizes of the request bodies.
    #[arg(long, value_delimiter = ',', default_values = ["1KiB", "16KiB", "128KiB"])]
    pub(crate) body_bytes: Vec<ByteSize>,
    /// Connections, each with one request at a time.
    #[arg(long, default_value = "16")]
    pub(crate) connections: NonZeroUsize,
    /// How many different bodies of each size are sent in turn.
    #[arg(long, default_value_t = 200)]
    pub(crate) distinct: usize,
    /// Tokens of one stream, each in an event of its own; 200 by default, 50 in a quick comparison.
    #[arg(long)]
    pub(crate) sse_tokens: Option<u32>,
    /// Time between two events of a stream.
    #[arg(long, default_value_t = 2)]
    pub(crate) sse_gap_ms: u32,
    /// Connections that rest at a proxy.
    #[arg(long, default_value = "2000")]
    pub(crate) idle_connections: NonZeroUsize,
    /// Core of the proxies; by default the first that may be used.
    #[arg(long)]
    pub(crate) proxy_core: Option<usize>,
    /// Core of the load and the engines; by default the second that may be used.
    #[arg(long)]
    pub(crate) load_core: Option<usize>,
    /// nginx, if it is neither in the search path nor in /usr/sbin.
    #[arg(long, value_name = "FILE", default_value = "nginx")]
    pub(crate) nginx: PathBuf,
    /// HAProxy, if it is neither in the search path nor in /usr/sbin.
    #[arg(long, value_name = "FILE", default_value = "haproxy")]
    pub(crate) haproxy: PathBuf,
    /// SGLang's router; `make bench` installs it here.
    #[arg(long, value_name = "FILE", default_value = ".venv-sglang/bin/sglang-router")]
    pub(crate) sglang_router: PathBuf,
}

fn ratio(text: &str) -> Result<f64, String> {
    let ratio = text.parse().ok().filter(|ratio: &f64| ratio.is_finite() && *ratio >= 1.0);
    ratio.ok_or_else(|| "a ratio is a number from 1 on".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_do_not_contradict_each_other() {
        Arguments::command().debug_assert();
    }
}
