//! What a comparison of proxies measures and for how long: by its arguments, and by the cores of this machine.
//!
//! Asked by `contest`. It starts nothing. A quick comparison shares a fixed time among all of its windows, however many they are.
use std::{num::NonZeroUsize, time::Duration};

use anyhow::{Context, Result, ensure};
use bytesize::ByteSize;

use crate::arguments::{Compare, Routing};
use crate::report::{Kind, Settings};
use crate::stage::{SMALL_BODY_BYTES, workload};
use crate::workload::Workload;
use crate::{process, routing};

const ROUNDS: usize = 5;
const DURATION: Duration = Duration::from_secs(2);
const SSE_TOKENS: u32 = 200;
const IDLE_ROUNDS: usize = 3;
const QUICK_ROUNDS: usize = 3;
const QUICK_SSE_TOKENS: u32 = 50;
const QUICK_IDLE_ROUNDS: usize = 1;
/// What the windows of a quick comparison share.
const QUICK_BUDGET: Duration = Duration::from_secs(55);
/// How many times as many rounds as others streams have.
const STREAM_ROUNDS: usize = 4;
/// The start of a window that is not counted: connections are made, pools fill.
const SETTLING_MAX: Duration = Duration::from_millis(300);
/// Of the filter off and on.
const FILTER_ROUNDS: usize = 3;
const FILTER_COUNTED: Duration = Duration::from_secs(6);
const FILTER_LOAD: f64 = 0.75;

/// What holds for all windows.
pub(crate) fn settings(compare: &Compare) -> Result<Settings> {
    let (proxy_core, load_core) = two_cores(compare)?;
    let quick = compare.quick;
    let rounds = if quick { QUICK_ROUNDS } else { ROUNDS };
    let rounds = compare.rounds.map_or(rounds, NonZeroUsize::get);
    let sse_tokens = compare.sse_tokens.unwrap_or(if quick { QUICK_SSE_TOKENS } else { SSE_TOKENS });
    let windows = compare.targets.len() * (compare.body_bytes.len() + 2) * (rounds + 1);
    let whole = QUICK_BUDGET / u32::try_from(windows.max(1))?;
    // Of which a quarter is settling.
    let duration = if quick { DURATION.min(whole * 3 / 4) } else { DURATION };
    let duration = compare.duration.unwrap_or(duration);
    Ok(Settings {
        rounds,
        stream_rounds: rounds * if quick { 1 } else { STREAM_ROUNDS },
        seconds: duration.as_secs_f64(),
        settling_seconds: SETTLING_MAX.min(duration / 3).as_secs_f64(),
        connections: compare.connections.get(),
        sse_tokens,
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
pub(crate) fn off_and_on(compare: &Compare) -> Result<Routing> {
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

/// The cases in their order.
pub(crate) fn workloads(compare: &Compare, settings: &Settings) -> Result<Vec<(String, Kind, Workload)>> {
    let workload = |body_bytes| workload(body_bytes, compare.distinct, compare.setup.seed);
    let mut workloads = Vec::new();
    for size in &compare.body_bytes {
        let bodies = workload(usize::try_from(size.as_u64())?);
        workloads.push((format!("Bodies of {size:.0}"), Kind::Answers, bodies));
    }
    let small = ByteSize::b(SMALL_BODY_BYTES as u64);
    let name = format!("One connection, bodies of {small:.0}");
    workloads.push((name, Kind::Alone, workload(SMALL_BODY_BYTES)));
    let name = format!("Streams of {} tokens, {} ms apart", settings.sse_tokens, settings.sse_gap_ms);
    workloads.push((
        name,
        Kind::Streams,
        Workload { max_tokens: settings.sse_tokens, stream: true, ..workload(SMALL_BODY_BYTES) },
    ));
    Ok(workloads)
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
        let last = f64::from(settings.sse_tokens * settings.sse_gap_ms) / 1e3;
        let windows = |cases, rounds| f64::from(u32::try_from(targets * cases * (rounds + 1)).unwrap());
        windows(cases - 1, settings.rounds) * window + windows(1, settings.stream_rounds) * (window + last)
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
    fn a_whole_comparison_of_everybody_takes_about_a_quarter_of_an_hour() {
        let settings = settings(&compare(&[])).unwrap();
        let planned = planned(&settings, 8, 5);
        assert!((750.0..950.0).contains(&planned), "{planned} s: {settings:?}");
    }

    #[test]
    fn rounds_and_lengths_that_are_told_hold_in_a_quick_comparison_too() {
        let settings =
            settings(&compare(&["--quick", "--rounds", "1", "--duration", "90ms", "--sse-tokens", "7"]))
                .unwrap();
        assert_eq!((settings.rounds, settings.sse_tokens), (1, 7));
        assert!((settings.seconds - 0.09).abs() < 1e-9 && (settings.settling_seconds - 0.03).abs() < 1e-9);
    }
}
