//! The comparison of proxies: start everything, measure in interleaved rounds, end everything.
//!
//! Called by `main`. All targets run all the time and are measured one after the other in every round, each round beginning
//! with another, so that what changes on the machine meets them alike. Whatever was started ends with the `Stage`.
use std::collections::BTreeMap;
use std::future::pending;
use std::io::{Write, stderr};
use std::{num::NonZeroUsize, rc::Rc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use bytesize::ByteSize;
use tokio::time;

use crate::arguments::{Compare, Part, Routing};
use crate::client::Requests;
use crate::contestant::{Contestant, Programs};
use crate::idle::{self, OTHER_FILES};
use crate::machine::Machine;
use crate::measurement::Summary;
use crate::report::{Case, Kind, Report, Resident, Settings};
use crate::stage::{COMING_TO_REST, Running, SMALL_BODY_BYTES, Stage, authority, workload};
use crate::target::CHAT_PATH;
use crate::window::{Limit, Window};
use crate::workload::Workload;
use crate::{goals, process, routing};

/// What the mock engines serve.
pub(crate) const MODEL: &str = "tiny";

const ROUNDS: usize = 5;
const DURATION: Duration = Duration::from_secs(2);
const SSE_EVENTS: u32 = 200;
const IDLE_ROUNDS: usize = 3;
const QUICK_ROUNDS: usize = 3;
const QUICK_SSE_EVENTS: u32 = 50;
const QUICK_IDLE_ROUNDS: usize = 1;
/// What the windows of a quick comparison share.
const QUICK_BUDGET: Duration = Duration::from_secs(70);
/// The start of a window that is not counted: connections are made, pools fill.
const SETTLING_MAX: Duration = Duration::from_millis(300);
const TIMEOUT: Duration = Duration::from_secs(30);
/// Of the filter off and on.
const FILTER_ROUNDS: usize = 3;
const FILTER_COUNTED: Duration = Duration::from_secs(6);
const FILTER_LOAD: f64 = 0.75;

/// Runs the whole comparison, or the parts that are wanted.
pub(crate) async fn run(compare: &Compare) -> Result<Report> {
    let settings = settings(compare)?;
    let wants = |part| compare.parts.contains(&part);
    process::adopt_orphans()?;
    let files = process::raise_file_limit()?;
    let connections = settings.idle_connections;
    ensure!(
        !wants(Part::IdleConnections) || connections as u64 + OTHER_FILES <= files,
        "--idle-connections {connections} need more than the {files} files that a process may open here"
    );
    let programs = Programs {
        nginx: compare.nginx.clone(),
        haproxy: compare.haproxy.clone(),
        sglang_router: compare.sglang_router.clone(),
        ..Programs::find(&compare.setup)?
    };
    // Before this thread keeps to one core: engines with caches are on all.
    let filter = if wants(Part::Filter) && Contestant::Kvway.find(&programs).is_some() {
        Some(routing::run(&off_and_on(compare)?, pending()).await?)
    } else {
        None
    };
    process::pin(settings.load_core)?;
    let largest = compare.body_bytes.iter().map(ByteSize::as_u64).max().unwrap_or_default();
    let mut stage = Stage::set(programs, &settings, usize::try_from(largest)?).await?;
    let measured = if wants(Part::Proxies) {
        measure(&mut stage, compare, &settings).await?
    } else {
        Measured::default()
    };
    let Measured { cases, memory, lookups } = measured;
    let idle = if wants(Part::IdleConnections) {
        writeln!(stderr(), "{connections} connections at rest")?;
        Some(idle::measure(&mut stage, connections, settings.idle_rounds).await?)
    } else {
        None
    };
    Ok(Report {
        revision: compare.setup.revision.clone(),
        date: compare.setup.date.clone(),
        machine: Machine::here(),
        versions: stage.versions,
        configurations: stage.configurations,
        skipped: stage.skipped,
        settings,
        goals: goals::judge(&cases, &memory, idle.as_ref()),
        cases,
        memory,
        lookups,
        idle,
        filter,
    })
}

fn settings(compare: &Compare) -> Result<Settings> {
    let (proxy_core, load_core) = two_cores(compare)?;
    let quick = compare.quick;
    let rounds = if quick { QUICK_ROUNDS } else { ROUNDS };
    let rounds = compare.rounds.map_or(rounds, NonZeroUsize::get);
    let sse_events = compare.sse_events.unwrap_or(if quick { QUICK_SSE_EVENTS } else { SSE_EVENTS });
    let windows = compare.targets.len() * (compare.body_bytes.len() + 2) * (rounds + 1);
    let whole = QUICK_BUDGET / u32::try_from(windows.max(1))?;
    // Of which a quarter is settling.
    let duration = if quick { DURATION.min(whole * 3 / 4) } else { DURATION };
    let duration = compare.duration.unwrap_or(duration);
    Ok(Settings {
        rounds,
        seconds: duration.as_secs_f64(),
        settling_seconds: SETTLING_MAX.min(duration / 3).as_secs_f64(),
        connections: compare.connections.get(),
        sse_events,
        sse_gap_ms: compare.sse_gap_ms,
        idle_connections: compare.idle_connections.get(),
        idle_rounds: if quick { QUICK_IDLE_ROUNDS } else { IDLE_ROUNDS },
        proxy_core,
        load_core,
        seed: compare.setup.seed,
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

/// What a user of the filter asks first: the same conversations with it off and on.
fn off_and_on(compare: &Compare) -> Result<Routing> {
    Ok(Routing {
        setup: compare.setup.clone(),
        policies: ["round_robin", "pmc"].map(str::to_owned).to_vec(),
        workloads: vec![routing::Workload::MultiTurn],
        load: FILTER_LOAD,
        rounds: if compare.quick { None } else { Some(FILTER_ROUNDS.try_into()?) },
        duration: if compare.quick { None } else { Some(FILTER_COUNTED) },
        quick: compare.quick,
    })
}

/// What the rounds gave.
#[derive(Default)]
struct Measured {
    cases: Vec<Case>,
    memory: Vec<Resident>,
    lookups: BTreeMap<String, u64>,
}

/// Starts every proxy that is there and takes all cases of all of them.
async fn measure(stage: &mut Stage, compare: &Compare, settings: &Settings) -> Result<Measured> {
    let mut targets = Vec::new();
    for &contestant in &compare.targets {
        targets.extend(stage.start(contestant).await?);
    }
    ensure!(!targets.is_empty(), "there is nothing to measure");
    time::sleep(COMING_TO_REST).await;
    let at_start = targets.iter().map(Running::resident_kib).collect::<Result<Vec<_>>>()?;
    for target in &mut targets {
        target.try_out().await?;
    }
    let mut measured = Measured::default();
    for (name, kind, workload) in workloads(compare, settings)? {
        let case = (name.as_str(), kind, &workload);
        let rounds = rounds(stage, &mut targets, case, settings, &mut measured.lookups).await?;
        measured.cases.push(Case::new(name, kind, workload, rounds));
    }
    for (target, start_kib) in targets.iter().zip(at_start) {
        if let Some((start_kib, end_kib)) = start_kib.zip(target.resident_kib()?) {
            measured.memory.push(Resident { target: target.contestant, start_kib, end_kib });
        }
    }
    Ok(measured)
}

fn workloads(compare: &Compare, settings: &Settings) -> Result<Vec<(String, Kind, Workload)>> {
    let workload = |body_bytes| workload(body_bytes, compare.distinct, compare.setup.seed);
    let mut workloads = Vec::new();
    for size in &compare.body_bytes {
        let bodies = workload(usize::try_from(size.as_u64())?);
        workloads.push((format!("Bodies of {size:.0}"), Kind::Answers, bodies));
    }
    let small = ByteSize::b(SMALL_BODY_BYTES as u64);
    let name = format!("One connection, bodies of {small:.0}");
    workloads.push((name, Kind::Alone, workload(SMALL_BODY_BYTES)));
    let name = format!("Streams of {} events, {} ms apart", settings.sse_events, settings.sse_gap_ms);
    workloads.push((name, Kind::Streams, Workload { stream: true, ..workload(SMALL_BODY_BYTES) }));
    Ok(workloads)
}

/// All rounds of one case; the first one warms up and is not kept. What became of lookups in the others is added to `lookups`.
async fn rounds(
    stage: &mut Stage,
    targets: &mut [Running],
    (name, kind, workload): (&str, Kind, &Workload),
    settings: &Settings,
    lookups: &mut BTreeMap<String, u64>,
) -> Result<Vec<(Contestant, Vec<Summary>)>> {
    let bytes = workload.requests(&authority(), &CHAT_PATH)?;
    let requests = Rc::new(Requests { bytes, stream: workload.stream, timeout: TIMEOUT });
    let limit = Limit::Time {
        settling: Duration::from_secs_f64(settings.settling_seconds),
        counted: Duration::from_secs_f64(settings.seconds),
    };
    let connections = if kind == Kind::Alone { 1 } else { settings.connections };
    let window = Window { connections, limit };
    let mut rounds: Vec<(Contestant, Vec<Summary>)> =
        targets.iter().map(|target| (target.contestant, Vec::new())).collect();
    let mut warm = BTreeMap::new();
    for number in 0..=settings.rounds {
        match number {
            0 => writeln!(stderr(), "{name}: warm-up")?,
            number => writeln!(stderr(), "{name}: round {number}/{}", settings.rounds)?,
        }
        let first = number % targets.len();
        for turn in (first..targets.len()).chain(0..first) {
            let Some((target, (_, measured))) = targets.get_mut(turn).zip(rounds.get_mut(turn)) else {
                continue;
            };
            let round = window_of(target, &window, &requests).await?;
            if number > 0 {
                measured.push(round);
            }
        }
        stage.check()?;
        if number == 0 {
            warm = hints(targets).await?;
        }
    }
    for (outcome, count) in hints(targets).await? {
        let before = warm.get(&outcome).copied().unwrap_or_default();
        *lookups.entry(outcome).or_default() += count.saturating_sub(before);
    }
    Ok(rounds)
}

/// What became of the lookups of the one that makes any.
async fn hints(targets: &[Running]) -> Result<BTreeMap<String, u64>> {
    for target in targets {
        if let Some(hints) = target.hints().await? {
            return Ok(hints);
        }
    }
    Ok(BTreeMap::new())
}

async fn window_of(target: &mut Running, window: &Window, requests: &Rc<Requests>) -> Result<Summary> {
    let meter = target.meter()?;
    let measured = window.measure(&target.addresses, requests, meter.as_ref(), pending()).await;
    target.check()?;
    let summary = measured.with_context(|| format!("measuring {}", target.contestant))?;
    match &summary.errors.first {
        // A short window may end before the first answer does.
        Some(error) if summary.requests == 0 => {
            bail!("no request to {} succeeded: {error}", target.contestant)
        }
        _ => Ok(summary),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::arguments::{Arguments, Command};

    fn compare(flags: &[&str]) -> Compare {
        let arguments = ["kvway-bench", "compare-proxies", "--proxy-core", "0", "--load-core", "1"];
        match Arguments::parse_from(arguments.iter().chain(flags)).command {
            Command::CompareProxies(compare) => compare,
            _ => panic!("another command"),
        }
    }

    /// The time that all windows are planned to take.
    fn planned(settings: &Settings, targets: usize, cases: usize) -> f64 {
        let window = settings.seconds + settings.settling_seconds;
        let last = f64::from(settings.sse_events * settings.sse_gap_ms) / 1e3;
        let windows = u32::try_from(targets * (settings.rounds + 1)).unwrap();
        f64::from(windows) * (window * f64::from(u32::try_from(cases).unwrap()) + last)
    }

    #[test]
    fn a_quick_comparison_of_everybody_leaves_time_for_all_else_in_two_minutes() {
        let everybody = compare(&["--quick"]);
        assert_eq!((everybody.targets.len(), everybody.body_bytes.len()), (8, 3));
        let settings = settings(&everybody).unwrap();
        assert!(planned(&settings, 8, 5) < 80.0, "{settings:?}");
        assert!(settings.rounds >= 3 && settings.seconds > 0.2, "{settings:?}");
    }

    #[test]
    fn a_whole_comparison_of_everybody_takes_about_ten_minutes() {
        let settings = settings(&compare(&[])).unwrap();
        let planned = planned(&settings, 8, 5);
        assert!((400.0..620.0).contains(&planned), "{planned} s: {settings:?}");
    }

    #[test]
    fn rounds_and_lengths_that_are_told_hold_in_a_quick_comparison_too() {
        let settings =
            settings(&compare(&["--quick", "--rounds", "1", "--duration", "90ms", "--sse-events", "7"]))
                .unwrap();
        assert_eq!((settings.rounds, settings.sse_events), (1, 7));
        assert!((settings.seconds - 0.09).abs() < 1e-9 && (settings.settling_seconds - 0.03).abs() < 1e-9);
    }
}
