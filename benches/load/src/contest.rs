//! The comparison of proxies: start everything, measure in interleaved rounds, end everything.
//!
//! Called by `main`. All targets run all the time and are measured one after the other in every round, so that what
//! changes on the machine meets them alike. Whatever was started ends with the `Stage`.
use std::collections::BTreeMap;
use std::io::{Write, stderr};
use std::{net::SocketAddr, rc::Rc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use bytesize::ByteSize;
use http::uri::Authority;
use tempfile::TempDir;
use tokio::time::{self, Instant};

use crate::arguments::Compare;
use crate::client::{Connection, Requests};
use crate::contestant::{Contestant, Post, Programs, engine};
use crate::cpu::CpuMeter;
use crate::machine::Machine;
use crate::measurement::{Quota, Recorder, Summary};
use crate::process::{self, Process, free_address};
use crate::report::{Case, Report, Settings};
use crate::target::CHAT_PATH;
use crate::window::{Limit, Window};
use crate::workload::Workload;

/// What the mock engines serve.
pub(crate) const MODEL: &str = "tiny";

const ENGINES: usize = 2;
const QUICK_ROUNDS: usize = 3;
const QUICK_DURATION: Duration = Duration::from_secs(1);
/// The start of a window that is not counted: connections are made, pools fill.
const SETTLING: Duration = Duration::from_millis(300);
const TIMEOUT: Duration = Duration::from_secs(30);
const READY_WITHIN: Duration = Duration::from_secs(15);
const READY_POLL: Duration = Duration::from_millis(20);
/// The body size of streams, where it does not matter.
const STREAM_BODY_BYTES: usize = 1024;

/// Everything that runs; processes end before their directory does.
struct Stage {
    engines: Vec<Process>,
    addresses: Vec<SocketAddr>,
    targets: Vec<Running>,
    configurations: BTreeMap<String, String>,
    versions: BTreeMap<String, String>,
    skipped: Vec<String>,
    directory: TempDir,
}

struct Running {
    contestant: Contestant,
    addresses: Vec<SocketAddr>,
    proxy: Option<(Process, CpuMeter)>,
}

/// Runs the whole comparison.
pub(crate) async fn run(compare: &Compare) -> Result<Report> {
    let (proxy_core, load_core) = two_cores(compare)?;
    let settings = Settings {
        rounds: if compare.quick { QUICK_ROUNDS } else { compare.rounds.get() },
        seconds: if compare.quick { QUICK_DURATION } else { compare.duration }.as_secs_f64(),
        connections: compare.connections.get(),
        sse_events: compare.sse_events,
        sse_gap_ms: compare.sse_gap_ms,
        proxy_core,
        load_core,
        seed: compare.setup.seed,
    };
    process::pin(load_core)?;
    process::adopt_orphans()?;
    let programs = Programs { nginx: compare.nginx.clone(), ..Programs::find(&compare.setup)? };
    let mut stage = Stage::set(compare, &programs, &settings).await?;
    let mut cases = Vec::new();
    for (name, workload) in workloads(compare)? {
        cases.push(stage.measure(name, workload, &settings).await?);
    }
    Ok(Report {
        revision: compare.setup.revision.clone(),
        date: compare.setup.date.clone(),
        machine: Machine::here(),
        versions: stage.versions,
        configurations: stage.configurations,
        skipped: stage.skipped,
        settings,
        cases,
    })
}

fn two_cores(compare: &Compare) -> Result<(usize, usize)> {
    let cores = process::cores()?;
    let proxy =
        compare.proxy_core.or_else(|| cores.iter().copied().find(|core| Some(*core) != compare.load_core));
    let proxy = proxy.context("there is no core to use")?;
    let load = compare.load_core.or_else(|| cores.iter().copied().find(|core| *core != proxy));
    let load = load.context("a comparison needs two cores, one of them for the proxy alone")?;
    ensure!(proxy != load, "the proxy needs a core for itself: --proxy-core and --load-core are the same");
    Ok((proxy, load))
}

fn workloads(compare: &Compare) -> Result<Vec<(String, Workload)>> {
    let workload = |body_bytes, stream| Workload {
        model: MODEL.to_owned(),
        body_bytes,
        distinct: compare.distinct,
        stream,
        seed: compare.setup.seed,
    };
    let mut workloads = Vec::new();
    for size in &compare.body_bytes {
        workloads.push((format!("Bodies of {size:.0}"), workload(usize::try_from(size.as_u64())?, false)));
    }
    let name = format!("Streams of {} events, {} ms apart", compare.sse_events, compare.sse_gap_ms);
    workloads.push((name, workload(STREAM_BODY_BYTES, true)));
    Ok(workloads)
}

impl Stage {
    /// Starts the engines and every proxy that is there, and waits until each answers.
    async fn set(compare: &Compare, programs: &Programs, settings: &Settings) -> Result<Self> {
        let mut stage = Self {
            engines: Vec::new(),
            addresses: Vec::new(),
            targets: Vec::new(),
            configurations: BTreeMap::new(),
            versions: BTreeMap::new(),
            skipped: Vec::new(),
            directory: tempfile::Builder::new().prefix("kvway-bench-").tempdir()?,
        };
        for number in 0..ENGINES {
            stage.start_engine(programs, &format!("vllm-{number}"), settings).await?;
        }
        for &contestant in &compare.targets {
            stage.start(contestant, programs, compare, settings).await?;
        }
        ensure!(!stage.targets.is_empty(), "there is nothing to measure");
        Ok(stage)
    }

    async fn start_engine(&mut self, programs: &Programs, id: &str, settings: &Settings) -> Result<()> {
        let address = free_address()?;
        let command = engine(&programs.mock_vllm, id, address, settings.sse_events, settings.sse_gap_ms);
        let mut process = Process::spawn(id, command, Some(settings.load_core), self.directory.path())
            .context("the mock engine is needed: build it with `cargo build --release -p mocks`")?;
        ready(&mut process, address).await?;
        self.engines.push(process);
        self.addresses.push(address);
        Ok(())
    }

    async fn start(
        &mut self,
        contestant: Contestant,
        programs: &Programs,
        compare: &Compare,
        settings: &Settings,
    ) -> Result<()> {
        if contestant == Contestant::Direct {
            self.targets.push(Running { contestant, addresses: self.addresses.clone(), proxy: None });
            return Ok(());
        }
        let Some((program, version)) = contestant.find(programs) else {
            self.skipped.push(format!("{contestant} is not installed"));
            writeln!(stderr(), "skipping {contestant}: not installed")?;
            return Ok(());
        };
        let listen = free_address()?;
        let largest = compare.body_bytes.iter().map(ByteSize::as_u64).max().unwrap_or_default();
        let body_bytes_max = usize::try_from(largest)?.max(STREAM_BODY_BYTES);
        let directory = self.directory.path();
        let launch = contestant
            .launch(&program, &Post { listen, engines: &self.addresses, directory, body_bytes_max })?;
        let name = contestant.to_string().to_lowercase().replace(' ', "-");
        let mut process = Process::spawn(&name, launch.command, Some(settings.proxy_core), directory)?;
        ready(&mut process, listen).await?;
        let meter = CpuMeter::of_tree(process.pid())?.watching(settings.proxy_core);
        self.versions.insert(name.clone(), version);
        self.configurations.extend(launch.configuration.map(|text| (name, text)));
        self.targets.push(Running { contestant, addresses: vec![listen], proxy: Some((process, meter)) });
        Ok(())
    }

    async fn measure(&mut self, name: String, workload: Workload, settings: &Settings) -> Result<Case> {
        let bytes = workload.requests(&Authority::from_static("engines.test"), &CHAT_PATH)?;
        let requests = Rc::new(Requests { bytes, stream: workload.stream, timeout: TIMEOUT });
        let counted = Duration::from_secs_f64(settings.seconds);
        let limit = Limit::Time { settling: SETTLING, counted };
        let window = Window { connections: settings.connections, limit };
        let mut rounds: Vec<(Contestant, Vec<Summary>)> =
            self.targets.iter().map(|target| (target.contestant, Vec::new())).collect();
        for number in 0..=settings.rounds {
            let shown = if number == 0 {
                "warm-up".to_owned()
            } else {
                format!("round {number}/{}", settings.rounds)
            };
            writeln!(stderr(), "{name}: {shown}")?;
            for (target, (_, measured)) in self.targets.iter_mut().zip(&mut rounds) {
                let round = target.measure(&window, &requests).await?;
                if number > 0 {
                    measured.push(round);
                }
            }
            for engine in &mut self.engines {
                engine.check()?;
            }
        }
        Ok(Case::new(name, workload, rounds))
    }
}

impl Running {
    async fn measure(&mut self, window: &Window, requests: &Rc<Requests>) -> Result<Summary> {
        let meter = self.proxy.as_ref().map(|(_, meter)| meter);
        let measured = window.measure(&self.addresses, requests, meter, std::future::pending()).await;
        if let Some((process, _)) = &mut self.proxy {
            process.check()?;
        }
        let summary = measured.with_context(|| format!("measuring {}", self.contestant))?;
        if summary.requests == 0 {
            let error = summary.errors.first.as_deref().unwrap_or("none was complete");
            bail!("no request to {} succeeded: {error}", self.contestant);
        }
        Ok(summary)
    }
}

/// Waits until one request has been answered.
async fn ready(process: &mut Process, address: SocketAddr) -> Result<()> {
    let workload = Workload {
        model: MODEL.to_owned(),
        body_bytes: STREAM_BODY_BYTES,
        distinct: 1,
        stream: false,
        seed: 0,
    };
    let bytes = workload.requests(&Authority::from_static("engines.test"), &CHAT_PATH)?;
    let requests = Requests { bytes, stream: false, timeout: READY_WITHIN };
    let recorder = Recorder::new(Quota::Endless)?;
    let started = Instant::now();
    loop {
        process.check()?;
        let mut connection = Connection::to(address);
        let Err(failure) = connection.request(&requests, 0, &recorder).await else {
            return Ok(());
        };
        if started.elapsed() > READY_WITHIN {
            bail!("{} does not answer at {address}: {failure}", process.name());
        }
        time::sleep(READY_POLL).await;
    }
}
