//! `kvway-bench`: load for LLM gateways, a comparison of what proxies cost, and one of what policies are worth.
//!
//! Reading order: `arguments`; for one target `target` → `workload` → `window` → `client` → `answer` →
//! `measurement`; around it `contest` with `contestant`, `process`, `cpu`, `machine`, `spread`, `comparison`,
//! `report` and `markdown`; policies are compared in `routing`, which begins anew from `client`. What `run` keeps
//! (`result`) is read back (`kept`), drawn (`html`) and compared (`pair`); both show the figures of `headline`. What a
//! gateway does to its memory over a long time is in `soak`.
use std::io::{Write, stderr, stdout};
use std::process::ExitCode;
use std::{fs, path::Path, rc::Rc};

use anyhow::{Context, Result, bail};
use clap::Parser;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::arguments::{Arguments, Command, Compare, Html, Pairing, Routing, Run, Soak};
use crate::client::{Connection, Requests};
use crate::cpu::CpuMeter;
use crate::measurement::{Quota, Recorder, Summary};
use crate::pair::Pair;
use crate::target::Target;
use crate::window::{Limit, Window};
use crate::workload::Workload;

mod answer;
mod arguments;
mod client;
mod comparison;
mod contest;
mod contestant;
mod cpu;
mod headline;
mod html;
mod kept;
mod machine;
mod markdown;
mod measurement;
mod pair;
mod process;
mod report;
mod result;
mod routing;
mod soak;
mod spread;
mod target;
mod window;
mod workload;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match start(&arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // With no place left to write to, the exit code has to do.
            let _written = writeln!(stderr(), "kvway-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// One thread: the load must not spread over the core of the proxy.
fn start(command: &Command) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let interrupt = interrupt()?;
        match command {
            Command::Run(run) => load(run, interrupt).await,
            Command::Routing(settings) => compare_policies(settings, interrupt).await,
            Command::Report(report) => draw(report),
            Command::Soak(settings) => endure(settings, interrupt).await,
            Command::Compare(pairing) => pair_up(pairing),
            Command::CompareProxies(compare) => tokio::select! {
                result = compare_proxies(compare) => result,
                () = interrupt => bail!("interrupted; everything that was started has ended"),
            },
        }
    })
}

/// Resolves when somebody wants this program to end. Signals are caught from the call on.
fn interrupt() -> Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}

/// What `run` keeps as JSON.
#[derive(Serialize)]
struct Kept<'a> {
    target: String,
    connections: usize,
    workload: &'a Workload,
    summary: &'a Summary,
}

async fn load(run: &Run, interrupt: impl Future<Output = ()>) -> Result<()> {
    let target = Target::parse(&run.target)?;
    let address = target.resolve().await?;
    let meter = run.pid.map(CpuMeter::of_tree).transpose()?;
    let workload = Workload {
        model: run.model.clone(),
        body_bytes: usize::try_from(run.body_bytes.as_u64())?,
        distinct: run.distinct,
        stream: run.stream,
        seed: run.seed,
    };
    let bytes = workload.requests(&target.authority, &target.path)?;
    let requests = Rc::new(Requests { bytes, stream: run.stream, timeout: run.timeout });
    tokio::pin!(interrupt);
    let recorder = Recorder::new(Quota::Endless)?;
    let mut connection = Connection::to(address);
    let trial = tokio::select! {
        trial = connection.request(&requests, 0, &recorder) => trial,
        () = &mut interrupt => bail!("interrupted before the first answer"),
    };
    trial.with_context(|| format!("{} does not serve", run.target))?;
    let limit = match run.requests {
        Some(requests) => Limit::Requests(requests),
        None => Limit::Time { settling: run.warm_up, counted: run.duration },
    };
    let window = Window { connections: run.connections.get(), limit };
    let summary = window.measure(&[address], &requests, meter.as_ref(), interrupt).await?;
    let target = run.target.to_string();
    print(&markdown::summary(&target, &summary)?)?;
    if let Some(file) = &run.json {
        let connections = run.connections.get();
        keep(file, &Kept { target, connections, workload: &workload, summary: &summary })?;
    }
    if summary.requests == 0 && !summary.interrupted {
        bail!("no request to {} succeeded", run.target);
    }
    Ok(())
}

async fn compare_proxies(compare: &Compare) -> Result<()> {
    let report = contest::run(compare).await?;
    print(&markdown::report(&report)?)?;
    compare.setup.out.as_ref().map_or(Ok(()), |file| keep(file, &report))
}

async fn compare_policies(routing: &Routing, interrupt: impl Future<Output = ()>) -> Result<()> {
    let report = routing::run(routing, interrupt).await?;
    print(&routing::table(&report)?)?;
    routing.setup.out.as_ref().map_or(Ok(()), |file| keep(file, &report))
}

async fn endure(settings: &Soak, interrupt: impl Future<Output = ()>) -> Result<()> {
    let report = soak::run(settings, interrupt).await?;
    print(&soak::table(&report)?)?;
    settings.setup.out.as_ref().map_or(Ok(()), |file| keep(file, &report))?;
    settings.html.as_ref().map_or(Ok(()), |file| write_html(file, &html::soak(&report)?))?;
    if !report.complaints.is_empty() {
        bail!("it does not hold: {}", report.complaints.join("; "));
    }
    Ok(())
}

fn draw(report: &Html) -> Result<()> {
    write_html(&report.out, &html::page(&kept::read_all(&report.results)?)?)
}

fn pair_up(pairing: &Pairing) -> Result<()> {
    let results = [kept::read(&pairing.a)?, kept::read(&pairing.b)?];
    let [a, b] = &results;
    let pair = Pair::new(a, b);
    print(&pair.table()?)?;
    if let Some(file) = &pairing.html {
        write_html(file, &html::page(&results)?)?;
    }
    let Some(limit) = pairing.fail_above else { return Ok(()) };
    match pair.worse_than(limit) {
        Some(worse) => bail!("B is worse by more than {limit}: {worse}"),
        None => Ok(()),
    }
}

fn print(text: &str) -> Result<()> {
    stdout().write_all(text.as_bytes()).context("standard output")
}

fn keep(file: &Path, result: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(result)?;
    text.push('\n');
    write_text(file, &text)
}

fn write_html(file: &Path, page: &str) -> Result<()> {
    write_text(file, page)?;
    writeln!(stderr(), "the report is in {}", file.display()).context("standard error")
}

fn write_text(file: &Path, text: &str) -> Result<()> {
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    }
    fs::write(file, text).with_context(|| file.display().to_string())
}
