//! What a window is played against: mock engines that simulate KV caches, and one gateway before them.
//!
//! Started by `routing`. The engines run all the time and are emptied before each window; the gateway is a new process
//! each time, so that it knows nothing of earlier windows. Everything ends with its owner.
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Serialize;
use tempfile::TempDir;

use crate::contest::MODEL;
use crate::contestant::{LOG_FILE, Post, Programs, kvway, write};
use crate::process::{Process, free_address};
use crate::readiness::{Readiness, call};
use crate::wire::SESSION_HEADER;

const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What the engines can do: with the speeds of a mid-sized model on a current accelerator, and little memory, so that
/// caches turn over within seconds and a window of ten seconds shows what an hour would.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Engines {
    pub(crate) count: usize,
    capacity_tokens: u32,
    prefill_tokens_per_second: u32,
    decode_ms: u32,
    decode_each_us: u32,
    max_batched_tokens: u32,
}

pub(crate) const ENGINES: Engines = Engines {
    count: 8,
    capacity_tokens: 40_000,
    prefill_tokens_per_second: 15_000,
    decode_ms: 12,
    decode_each_us: 50,
    max_batched_tokens: 8192,
};

/// The engines, and where gateways are started.
pub(crate) struct Fleet {
    engines: Vec<Process>,
    addresses: Vec<SocketAddr>,
    programs: Programs,
    directory: TempDir,
}

/// A gateway under one policy.
pub(crate) struct Gateway {
    process: Process,
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    /// Where it writes its access log.
    pub(crate) log: PathBuf,
    pub(crate) configuration: String,
}

impl Fleet {
    /// Starts the engines and waits until they answer.
    pub(crate) async fn start(programs: Programs) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("kvway-bench-").tempdir()?;
        let mut fleet = Self { engines: Vec::new(), addresses: Vec::new(), programs, directory };
        for number in 0..ENGINES.count {
            let (id, address) = (format!("vllm-{number}"), free_address()?);
            let command = engine(&fleet.programs, &id, address);
            let process = Process::spawn(&id, command, None, fleet.directory.path()).context(
                "the mock engine is needed: build it as this program was, with `cargo build -p mocks`",
            )?;
            fleet.engines.push(process);
            fleet.addresses.push(address);
        }
        for (process, address) in fleet.engines.iter_mut().zip(&fleet.addresses) {
            Readiness::Tells(*address, "/health").wait(process).await?;
        }
        Ok(fleet)
    }

    /// Empties the engines' caches and counters.
    pub(crate) async fn reset(&mut self) -> Result<()> {
        for (engine, address) in self.engines.iter_mut().zip(&self.addresses) {
            engine.check()?;
            call(*address, "POST", "/reset").await.with_context(|| format!("emptying {}", engine.name()))?;
        }
        Ok(())
    }

    /// An error if an engine does not run any more.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.engines.iter_mut().try_for_each(Process::check)
    }

    /// Starts a gateway with this policy and waits until it is ready.
    pub(crate) async fn gateway(&self, policy: &str) -> Result<Gateway> {
        let (listen, admin) = (free_address()?, free_address()?);
        let directory = self.directory.path();
        let post = Post { listen, engines: &self.addresses, directory, body_bytes_max: BODY_BYTES_MAX };
        let cluster = format!("policy: {policy}\n    hash_header: {SESSION_HEADER}");
        let backend = format!(", capacity_tokens: {}", ENGINES.capacity_tokens);
        let configuration = kvway(&post, admin, &cluster, &backend);
        let mut command = Command::new(&self.programs.kvway);
        command.args(["run", "-c"]).arg(write(directory, "kvway.yaml", &configuration)?);
        let mut process = Process::spawn("kvway", command, None, directory)
            .context("the gateway is needed: build it as this program was, with `cargo build -p kvway`")?;
        Readiness::Tells(admin, "/readyz").wait(&mut process).await?;
        Ok(Gateway { process, address: listen, admin, log: directory.join(LOG_FILE), configuration })
    }
}

impl Gateway {
    pub(crate) fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// An error if it does not run any more.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.process.check()
    }
}

fn engine(programs: &Programs, id: &str, listen: SocketAddr) -> Command {
    let mut command = Command::new(&programs.mock_vllm);
    command.args(["--id", id, "--model", MODEL, "--mode", "simulated"]);
    command.args(["--no-record", "--cached-tokens", "--served-by"]);
    command.arg("--listen").arg(listen.to_string());
    for (flag, value) in [
        ("--capacity-tokens", ENGINES.capacity_tokens),
        ("--prefill-tokens-per-second", ENGINES.prefill_tokens_per_second),
        ("--decode-ms", ENGINES.decode_ms),
        ("--decode-each-us", ENGINES.decode_each_us),
        ("--max-batched-tokens", ENGINES.max_batched_tokens),
    ] {
        command.arg(flag).arg(value.to_string());
    }
    command
}
