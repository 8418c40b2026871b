//! The comparison of proxies: start everything, measure in interleaved rounds, end everything.
//!
//! Called by `main`. All targets run all the time and are measured one after the other in every round, each round beginning
//! with another, so that what changes on the machine meets them alike. Whatever was started ends with the `Stage`.
use std::collections::BTreeMap;
use std::future::pending;
use std::io::{Write, stderr};
use std::{rc::Rc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use bytesize::ByteSize;
use tokio::time;

use crate::arguments::{Compare, Part};
use crate::client::Requests;
use crate::contestant::{Contestant, Programs};
use crate::idle::{self, OTHER_FILES};
use crate::machine::Origin;
use crate::measurement::Summary;
use crate::process::Process;
use crate::report::{Case, Kind, Report, Resident, Settings};
use crate::stage::{COMING_TO_REST, Running, Stage, authority};
use crate::target::CHAT_PATH;
use crate::window::{Limit, Window};
use crate::workload::Workload;
use crate::{goals, process, routing, schedule};

/// What the mock engines serve.
pub(crate) const MODEL: &str = "tiny";

const TIMEOUT: Duration = Duration::from_secs(30);
/// Runs the whole comparison, or the parts that are wanted.
pub(crate) async fn run(compare: &Compare) -> Result<Report> {
    let settings = schedule::settings(compare)?;
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
        Some(routing::run(&schedule::off_and_on(compare)?, pending()).await?)
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
        origin: Origin::of(&compare.setup),
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
    for (name, kind, workload) in schedule::workloads(compare, settings)? {
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
    let mut awake = (kind == Kind::Streams).then(|| stage.keep_awake()).transpose()?;
    let last = if workload.stream { settings.stream_rounds } else { settings.rounds };
    for number in 0..=last {
        match number {
            0 => writeln!(stderr(), "{name}: warm-up")?,
            number => writeln!(stderr(), "{name}: round {number}/{last}")?,
        }
        for turn in turns(number, targets.len()) {
            let Some((target, (_, measured))) = targets.get_mut(turn).zip(rounds.get_mut(turn)) else {
                continue;
            };
            let round = window_of(target, &window, &requests, awake.as_ref()).await?;
            if number > 0 {
                measured.push(round);
            }
        }
        stage.check()?;
        awake.as_mut().map_or(Ok(()), Process::check)?;
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

/// The targets of a round in their order.
fn turns(round: usize, targets: usize) -> impl Iterator<Item = usize> {
    (0..targets).map(move |turn| (round + turn) % targets)
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

/// `awake` is what keeps the proxy's core awake.
async fn window_of(
    target: &mut Running,
    window: &Window,
    requests: &Rc<Requests>,
    awake: Option<&Process>,
) -> Result<Summary> {
    let meter = target.meter()?.map(|meter| meter.sparing(awake.map(Process::pid)));
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
    use super::*;

    #[test]
    fn every_round_begins_with_another_target_and_has_all_of_them() {
        let rounds: Vec<Vec<usize>> = (0..4).map(|round| turns(round, 3).collect()).collect();
        assert_eq!(rounds, [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]);
    }
}
