//! `kvway-bench`: load for LLM gateways, a comparison of what proxies cost, and one of what policies are worth.
//!
//! Reading order: `arguments`; `client` → `answer` → `measurement` are one request. On them stands `player`, which plays a `plan`
//! of `traffic` by `wire` and `reply`, for one target in `run` (→ `result`) and for policies in `routing`. What `run` keeps is read
//! back (`kept`), drawn (`html`) and compared (`pair`); both show the figures of `headline`. What a gateway does to its memory over
//! a long time is in `soak`. Proxies are compared in `contest` with `schedule`, `stage`, `contestant`, `configurations`, `readiness`,
//! `workload`, `window`, `process`, `cpu`, `memory`, `idle`, `machine`, `spread`, `comparison`, `goals`, `report` and `markdown`.
use std::io::{Write, stderr, stdout};
use std::process::ExitCode;
use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use clap::Parser;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::arguments::{Arguments, Command, Compare, Html, Pairing, Routing, Soak};
use crate::pair::Pair;

mod alarm;
mod answer;
mod arguments;
mod client;
mod comparison;
mod configurations;
mod contest;
mod contestant;
mod cpu;
mod goals;
mod headline;
mod html;
mod idle;
mod kept;
mod machine;
mod markdown;
mod measurement;
mod memory;
mod pair;
mod plan;
mod player;
mod process;
mod readiness;
mod reply;
mod report;
mod result;
mod routing;
mod run;
mod schedule;
mod soak;
mod socket;
mod spread;
mod stage;
mod target;
mod traffic;
mod window;
mod wire;
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
            Command::Run(load) => run::run(load, interrupt).await,
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
