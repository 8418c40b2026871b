//! Everything that runs in a comparison of proxies: two mock engines, a mock LMCache, and the proxies before them.
//!
//! Set by `contest`; `idle` starts proxies of its own on it. The proxies have one core, all else has the other. Whatever was
//! started ends with its owner, before the directory that it writes to.
use std::collections::BTreeMap;
use std::io::{Write, stderr};
use std::{net::SocketAddr, process::Command, time::Duration};

use anyhow::{Context, Result, bail};
use http::uri::Authority;
use tempfile::TempDir;
use tokio::time::{self, Instant};

use crate::client::{Connection, Requests};
use crate::contest::MODEL;
use crate::contestant::{Contestant, Post, Programs, engine, lmcache};
use crate::cpu::CpuMeter;
use crate::measurement::{Quota, Recorder};
use crate::memory::resident_kib;
use crate::process::{Process, free_address};
use crate::readiness::{READY_POLL, READY_WITHIN, Readiness, call};
use crate::report::Settings;
use crate::target::CHAT_PATH;
use crate::workload::Workload;

const ENGINES: usize = 2;
/// How long those that have become ready may still build what they need.
pub(crate) const COMING_TO_REST: Duration = Duration::from_millis(500);
/// The body size where it does not matter.
pub(crate) const SMALL_BODY_BYTES: usize = 1024;
/// Tokens of an answer that is no stream.
const MAX_TOKENS: u32 = 64;
/// What a kvway that asks LMCache counts its requests in.
const HINTS: &str = "kvway_kvcache_hints_total{";

/// What runs, and what is told of it.
pub(crate) struct Stage {
    engines: Vec<Process>,
    addresses: Vec<SocketAddr>,
    lmcache: Option<(Process, SocketAddr)>,
    programs: Programs,
    cores: [usize; 2],
    body_bytes_max: usize,
    started: usize,
    pub(crate) configurations: BTreeMap<String, String>,
    pub(crate) versions: BTreeMap<String, String>,
    pub(crate) skipped: Vec<String>,
    directory: TempDir,
}

/// A contestant that serves.
pub(crate) struct Running {
    pub(crate) contestant: Contestant,
    pub(crate) addresses: Vec<SocketAddr>,
    proxy: Option<Proxy>,
}

struct Proxy {
    process: Process,
    core: usize,
    admin: Option<SocketAddr>,
}

impl Stage {
    /// Starts the engines and waits until each answers.
    pub(crate) async fn set(programs: Programs, settings: &Settings, body_bytes_max: usize) -> Result<Self> {
        let mut stage = Self {
            engines: Vec::new(),
            addresses: Vec::new(),
            lmcache: None,
            programs,
            cores: [settings.proxy_core, settings.load_core],
            body_bytes_max: body_bytes_max.max(SMALL_BODY_BYTES),
            started: 0,
            configurations: BTreeMap::new(),
            versions: BTreeMap::new(),
            skipped: Vec::new(),
            directory: tempfile::Builder::new().prefix("kvway-bench-").tempdir()?,
        };
        for number in 0..ENGINES {
            let (id, address) = (format!("vllm-{number}"), free_address()?);
            let command = engine(&stage.programs.mock_vllm, &id, address, settings.sse_gap_ms);
            let mut process = Process::spawn(&id, command, Some(settings.load_core), stage.directory.path())
                .context("the mock engine is needed: build it with `cargo build --release -p mocks`")?;
            Readiness::Tells(address, "/health").wait(&mut process).await?;
            stage.engines.push(process);
            stage.addresses.push(address);
        }
        Ok(stage)
    }

    /// Keeps the core of the proxies awake for as long as the process lives. It runs only while nobody else would: a proxy that
    /// mostly waits is then measured without what its core loses asleep.
    pub(crate) fn keep_awake(&self) -> Result<Process> {
        let mut command = Command::new("chrt");
        command.args(["--idle", "0", "sh", "-c", "while :; do :; done"]);
        let [core, _] = self.cores;
        Process::spawn("awake", command, Some(core), self.directory.path())
            .context("chrt of util-linux is needed, to keep the proxies' core awake")
    }

    /// Starts a contestant and waits until it is ready, before any request; `None` if it is not installed, which is noted.
    pub(crate) async fn start(&mut self, contestant: Contestant) -> Result<Option<Running>> {
        if contestant == Contestant::Direct {
            return Ok(Some(Running { contestant, addresses: self.addresses.clone(), proxy: None }));
        }
        let Some((program, version)) = contestant.find(&self.programs) else {
            let note = format!("{contestant} is not installed");
            writeln!(stderr(), "skipping {contestant}: not installed")?;
            if !self.skipped.contains(&note) {
                self.skipped.push(note);
            }
            return Ok(None);
        };
        let lmcache = if contestant.looks_up() { Some(self.lmcache().await?) } else { None };
        let key = contestant.key();
        let directory = self.directory.path().join(format!("{}-{key}", self.started));
        self.started += 1;
        std::fs::create_dir(&directory).with_context(|| directory.display().to_string())?;
        let (listen, engines) = (free_address()?, self.addresses.as_slice());
        let post = Post { listen, engines, directory: &directory, body_bytes_max: self.body_bytes_max };
        let Some(launch) = contestant.launch(&program, &post, lmcache)? else {
            return Ok(None);
        };
        let [core, _] = self.cores;
        let mut process = Process::spawn(&key, launch.command, Some(core), &directory)?;
        launch.readiness.wait(&mut process).await?;
        self.versions.insert(key.clone(), version);
        self.configurations.entry(key).or_insert(launch.configuration);
        let proxy = Some(Proxy { process, core, admin: launch.admin });
        Ok(Some(Running { contestant, addresses: vec![listen], proxy }))
    }

    /// The address of LMCache, which is started when it is first asked for.
    async fn lmcache(&mut self) -> Result<SocketAddr> {
        if let Some((_, address)) = &self.lmcache {
            return Ok(*address);
        }
        let (address, [_, core]) = (free_address()?, self.cores);
        let command = lmcache(&self.programs.mock_lmcache, address);
        let mut process = Process::spawn("lmcache", command, Some(core), self.directory.path())
            .context("the mock LMCache is needed: build it with `cargo build --release -p mocks`")?;
        Readiness::Listens(address).wait(&mut process).await?;
        self.lmcache = Some((process, address));
        Ok(address)
    }

    /// An error if something behind the proxies does not run any more.
    pub(crate) fn check(&mut self) -> Result<()> {
        let lmcache = self.lmcache.iter_mut().map(|(process, _)| process);
        self.engines.iter_mut().chain(lmcache).try_for_each(Process::check)
    }
}

impl Running {
    /// An error if it does not run any more.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.proxy.as_mut().map_or(Ok(()), |proxy| proxy.process.check())
    }

    /// Of all its processes and threads as they are now; there is none without a proxy.
    pub(crate) fn meter(&self) -> Result<Option<CpuMeter>> {
        let meter = |proxy: &Proxy| Ok(CpuMeter::of_tree(proxy.process.pid())?.watching(proxy.core));
        self.proxy.as_ref().map(meter).transpose()
    }

    /// Its resident memory now.
    pub(crate) fn resident_kib(&self) -> Result<Option<u64>> {
        self.proxy.as_ref().map(|proxy| resident_kib(proxy.process.pid())).transpose()
    }

    /// Waits until a request has been answered.
    pub(crate) async fn try_out(&mut self) -> Result<()> {
        let bytes = workload(SMALL_BODY_BYTES, 1, 0).requests(&authority(), &CHAT_PATH)?;
        let requests = Requests { bytes, stream: false, timeout: READY_WITHIN };
        let recorder = Recorder::new(Quota::Endless)?;
        let started = Instant::now();
        for address in self.addresses.clone() {
            loop {
                self.check()?;
                let Err(failure) = Connection::to(address).request(&requests, 0, &recorder).await else {
                    break;
                };
                if started.elapsed() > READY_WITHIN {
                    bail!("{} does not answer at {address}: {failure}", self.contestant);
                }
                time::sleep(READY_POLL).await;
            }
        }
        Ok(())
    }

    /// Its requests by what became of their lookups, if it makes any.
    pub(crate) async fn hints(&self) -> Result<Option<BTreeMap<String, u64>>> {
        let admin = self.proxy.as_ref().and_then(|proxy| proxy.admin);
        let Some(admin) = admin.filter(|_| self.contestant.looks_up()) else {
            return Ok(None);
        };
        let page = call(admin, "GET", "/metrics").await.context("metrics of kvway")?;
        Ok(Some(hints(&String::from_utf8_lossy(&page))))
    }
}

/// Requests that all look alike but for what they say.
pub(crate) fn workload(body_bytes: usize, distinct: usize, seed: u64) -> Workload {
    Workload { model: MODEL.to_owned(), body_bytes, distinct, max_tokens: MAX_TOKENS, stream: false, seed }
}

/// Whom the requests of a comparison name.
pub(crate) fn authority() -> Authority {
    Authority::from_static("engines.test")
}

/// The counters of a page that are not zero.
fn hints(page: &str) -> BTreeMap<String, u64> {
    let counters = page.lines().filter_map(|line| line.strip_prefix(HINTS)?.split_once("} "));
    let counters = counters.filter_map(|(labels, count)| {
        let (_, name) = labels.split_once("outcome=\"")?;
        Some((name.split('"').next()?.to_owned(), count.parse().ok()?))
    });
    counters.filter(|(_, count)| *count > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_are_counted_by_their_names() {
        let page = "# TYPE kvway_kvcache_hints_total counter\n\
                    kvway_kvcache_hints_total{cluster=\"engines\",outcome=\"followed\"} 41\n\
                    kvway_kvcache_hints_total{cluster=\"engines\",outcome=\"timeout\"} 0\n\
                    kvway_kvcache_hints_total{cluster=\"engines\",outcome=\"tokens_unknown\"} 2\n";
        let expected = [("followed".to_owned(), 41), ("tokens_unknown".to_owned(), 2)];
        assert_eq!(hints(page), BTreeMap::from(expected));
    }
}
