//! A comparison, or the summary of one run, as Markdown for people. Pure; printed by `main` and `run`.
//! `routing::table` draws with the same [`head`] and [`cell`].
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt::{Display, Error, Write};

use bytesize::ByteSize;

use crate::contestant::Contestant;
use crate::measurement::real;
use crate::memory::mib;
use crate::report::{CPU_PER_EVENT, CPU_PER_REQUEST, Case, FLOOR, Kind, P50, Report};
use crate::result::RunResult;
use crate::spread::Spread;
use crate::{idle, routing};

/// Above this share of other work on the proxy's core, latencies say little and even CPU times rise.
pub(crate) const FOREIGN_PERCENT_MAX: f64 = 5.0;

/// The tables of a comparison, with what is needed to read them.
pub(crate) fn report(report: &Report) -> Result<String, Error> {
    let mut text = String::new();
    let (machine, settings) = (&report.origin.machine, &report.settings);
    writeln!(text, "# Cost of a proxy\n")?;
    writeln!(
        text,
        "Revision {}, {}; {}, {} cores, Linux {}; proxy on core {}, load and engines on core {}.",
        report.origin.revision,
        report.origin.date,
        machine.cpu_model,
        machine.cores,
        machine.kernel,
        settings.proxy_core,
        settings.load_core
    )?;
    writeln!(
        text,
        "{} interleaved rounds of {:.2} s (of streams {}) after {:.2} s of settling, {} connections, two mock engines, seed {}. \
         Medians of the rounds; in brackets where that of many more would be, 15 times of 16.",
        settings.rounds,
        settings.seconds,
        settings.stream_rounds,
        settings.settling_seconds,
        settings.connections,
        settings.seed
    )?;
    // HAProxy adds where it comes from; kvway is there several times.
    let versions = report.versions.values().filter_map(|version| version.split(" - ").next());
    let versions: Vec<&str> = versions.collect::<BTreeSet<_>>().into_iter().collect();
    writeln!(text, "Versions: {}.", versions.join(", "))?;
    for line in &report.skipped {
        writeln!(text, "Skipped: {line}.")?;
    }
    for case in &report.cases {
        measured(&mut text, case)?;
        ratios(&mut text, case)?;
        added(&mut text, case)?;
    }
    resting(&mut text, report)?;
    if let Some(filter) = &report.filter {
        writeln!(text, "\n{}", routing::table(filter)?.trim_end())?;
    }
    overview(&mut text, report)?;
    judged(&mut text, report)?;
    lookups(&mut text, report)?;
    foreign(&mut text, report)?;
    Ok(text)
}

fn measured(text: &mut String, case: &Case) -> Result<(), Error> {
    writeln!(text, "\n## {}\n", case.name)?;
    head(text, "target", case.figures().iter().map(|figure| figure.title).chain(["errors"]))?;
    for entry in &case.targets {
        write!(text, "| {} |", entry.target)?;
        for figure in case.figures() {
            let ranged = figure.key.starts_with("cpu");
            cell(text, entry.figures.get(figure.key), figure.decimals, ranged)?;
        }
        let errors: u64 = entry.rounds.iter().map(|round| round.errors.total()).sum();
        writeln!(text, " {errors} |")?;
    }
    for entry in &case.targets {
        if let Some(error) = entry.rounds.iter().find_map(|round| round.errors.first.as_ref()) {
            writeln!(text, "\nFirst error with {}: {error}.", entry.target)?;
        }
    }
    Ok(())
}

fn ratios(text: &mut String, case: &Case) -> Result<(), Error> {
    if case.ratios.is_empty() {
        return Ok(());
    }
    writeln!(text)?;
    // A ratio has no unit.
    head(text, "ratio", case.compared().map(|figure| figure.title.replace(" µs", "")))?;
    for ratio in &case.ratios {
        write!(text, "| {} / {} |", ratio.of, ratio.to)?;
        for figure in case.compared() {
            cell(text, ratio.figures.get(figure.key), 2, true)?;
        }
        writeln!(text)?;
    }
    Ok(())
}

fn added(text: &mut String, case: &Case) -> Result<(), Error> {
    if case.added.is_empty() {
        return Ok(());
    }
    writeln!(text)?;
    head(text, "added", ["p50 µs"].into_iter())?;
    for difference in &case.added {
        write!(text, "| {} - {} |", difference.of, difference.to)?;
        cell(text, difference.figures.get(P50), 0, true)?;
        writeln!(text)?;
    }
    Ok(())
}

fn resting(text: &mut String, report: &Report) -> Result<(), Error> {
    let Some(idle) = &report.idle else {
        return Ok(());
    };
    writeln!(text, "\n## {} connections at rest\n", idle.connections)?;
    head(text, "target", idle::FIGURES.iter().map(|figure| figure.title))?;
    for entry in &idle.targets {
        write!(text, "| {} |", entry.target)?;
        for figure in &idle::FIGURES {
            cell(text, entry.figures.get(figure.key), figure.decimals, true)?;
        }
        writeln!(text)?;
    }
    Ok(())
}

/// All contestants on one page: CPU time, what is added to the latency, and memory.
fn overview(text: &mut String, report: &Report) -> Result<(), Error> {
    let shown = |case: &&Case| case.kind != Kind::Alone;
    let cases = report.cases.iter().filter(shown).chain(report.cases.iter().filter(|it| !shown(it)));
    let cases: Vec<&Case> = cases.collect();
    let Some(first) = cases.first() else {
        return Ok(());
    };
    writeln!(text, "\n# CPU time per request and per event, latency on one connection, memory\n")?;
    let title = |case: &&Case| match case.kind {
        Kind::Answers => format!("{:.0}", ByteSize::b(case.workload.body_bytes as u64)),
        Kind::Streams => "per SSE event".to_owned(),
        Kind::Alone => "added p50".to_owned(),
    };
    head(text, "", cases.iter().map(title).chain(["memory".to_owned()]))?;
    let proxies = first.targets.iter().map(|entry| entry.target).filter(|it| *it != Contestant::Direct);
    for target in proxies {
        write!(text, "| {target} |")?;
        for case in &cases {
            let entry = case.entry(target);
            let figure = |key| entry.and_then(|entry| entry.figures.get(key));
            let (spread, decimals) = match case.kind {
                Kind::Answers => (figure(CPU_PER_REQUEST), 1),
                Kind::Streams => (figure(CPU_PER_EVENT), 2),
                Kind::Alone => {
                    let added = case.added.iter().find(|it| it.of == target);
                    (added.and_then(|it| it.figures.get(P50)), 0)
                }
            };
            match spread {
                Some(spread) => write!(text, " {:.decimals$} µs |", spread.median)?,
                None => write!(text, " – |")?,
            }
        }
        match report.memory.iter().find(|it| it.target == target) {
            Some(memory) => {
                writeln!(text, " {:.1} → {:.1} MiB |", mib(memory.start_kib), mib(memory.end_kib))?;
            }
            None => writeln!(text, " – |")?,
        }
    }
    writeln!(text, "\nadded p50: beyond {FLOOR}; memory: when ready → after all requests.")
}

fn judged(text: &mut String, report: &Report) -> Result<(), Error> {
    writeln!(text, "\n# Goals\n")?;
    head(text, "goal", ["at most", "measured", ""].into_iter())?;
    for goal in &report.goals {
        let amount = |value: f64| format!("{value:.2} {}", goal.unit).trim_end().to_owned();
        let measured = goal.measured.map_or("–".to_owned(), amount);
        let verdict = match goal.met {
            Some(true) => "pass",
            Some(false) => "FAIL",
            None => "not measured",
        };
        writeln!(text, "| {} | {} | {measured} | {verdict} |", goal.name, amount(goal.at_most))?;
    }
    Ok(())
}

/// Whether each request that was to ask LMCache did.
fn lookups(text: &mut String, report: &Report) -> Result<(), Error> {
    if report.lookups.is_empty() {
        return Ok(());
    }
    let counts: Vec<String> =
        report.lookups.iter().map(|(outcome, count)| format!("{outcome} {count}")).collect();
    writeln!(text, "\nRequests of {} by their lookup: {}.", Contestant::KvwayLookup, counts.join(", "))
}

fn foreign(text: &mut String, report: &Report) -> Result<(), Error> {
    let rounds = report.cases.iter().flat_map(|case| &case.targets).flat_map(|entry| &entry.rounds);
    let percent = rounds.filter_map(|round| Some(round.cpu.as_ref()?.foreign_cores? * 100.0));
    let Some(Spread { median, max, .. }) = Spread::of(percent) else {
        return Ok(());
    };
    write!(
        text,
        "\nOther work on the proxy's core: {median:.1} % of the time, at most {max:.1} % in one window."
    )?;
    if max > FOREIGN_PERCENT_MAX {
        write!(text, " The core was not the proxy's alone: measure again on a quiet machine.")?;
    }
    writeln!(text)
}

/// The head of a table.
pub(crate) fn head(
    text: &mut String,
    first: &str,
    titles: impl Iterator<Item = impl Display>,
) -> Result<(), Error> {
    write!(text, "| {first} |")?;
    let mut columns = 0;
    for title in titles {
        write!(text, " {title} |")?;
        columns += 1;
    }
    writeln!(text, "\n|---|{}", "---:|".repeat(columns))
}

/// One cell of a table, perhaps with its range.
pub(crate) fn cell(
    text: &mut String,
    spread: Option<&Spread>,
    decimals: usize,
    ranged: bool,
) -> Result<(), Error> {
    match spread {
        None => write!(text, " – |"),
        Some(Spread { median, low, high, .. }) if ranged => {
            write!(text, " {median:.decimals$} ({low:.decimals$}–{high:.decimals$}) |")
        }
        Some(Spread { median, .. }) => write!(text, " {median:.decimals$} |"),
    }
}

/// What one run measured; the target may have said after how many seconds to come again.
pub(crate) fn summary(result: &RunResult, retry_after_max: Option<u64>) -> Result<String, Error> {
    let mut text = String::new();
    writeln!(text, "{}: {} requests in {:.2} s", result.label, result.requests, result.seconds)?;
    if result.interrupted {
        writeln!(text, "interrupted: this is what was measured until then")?;
    }
    writeln!(text)?;
    head(&mut text, "ms", ["mean", "p50", "p90", "p95", "p99", "max"].into_iter())?;
    for (name, times) in [
        ("latency", &result.latency),
        ("first event", &result.ttft),
        ("gap", &result.gap),
        ("sent late", &result.lag),
    ] {
        let Some(it) = times else { continue };
        write!(text, "| {name} |")?;
        for us in [it.mean_us, it.p50_us, it.p90_us, it.p95_us, it.p99_us, it.max_us] {
            write!(text, " {:.2} |", us / 1e3)?;
        }
        writeln!(text)?;
    }
    writeln!(text, "\nrequests/s: {:.1}", result.requests_per_second)?;
    if result.events > 0 {
        writeln!(text, "events/s: {:.1}", real(result.events) / result.seconds)?;
    }
    if let Some(tokens) = &result.tokens {
        let (prompt, completion, hits) = (tokens.prompt, tokens.completion, 100.0 * tokens.hit_ratio);
        writeln!(text, "tokens: {prompt} of prompts, {hits:.1} % of them cached; {completion} of answers")?;
    }
    if let Some(cpu) = &result.cpu {
        write!(text, "CPU: {:.3} cores", cpu.cores)?;
        for (us, unit) in [(cpu.us_per_request, "request"), (cpu.us_per_event, "event")] {
            us.map_or(Ok(()), |us| write!(text, ", {us:.2} µs/{unit}"))?;
        }
        writeln!(text)?;
    }
    if result.shed > 0 {
        write!(text, "shed (429, 503): {}", result.shed)?;
        retry_after_max.map_or(Ok(()), |most| write!(text, ", retry-after up to {most} s, not heeded"))?;
        writeln!(text)?;
    }
    writeln!(text, "errors: {}", result.errors.values().sum::<u64>())?;
    for (kind, count) in &result.errors {
        writeln!(text, "  {kind}: {count}")?;
    }
    if let Some(error) = &result.first_error {
        writeln!(text, "  the first: {error}")?;
    }
    backends(&mut text, result)?;
    if let Some(behind) = &result.behind {
        writeln!(text, "\nThese figures tell of the generator, not of the target: {behind}.")?;
    }
    Ok(text)
}

/// So many backends are shown, the busiest ones.
const BACKENDS_SHOWN: usize = 20;

fn backends(text: &mut String, result: &RunResult) -> Result<(), Error> {
    if result.backends.is_empty() {
        return Ok(());
    }
    writeln!(text)?;
    head(text, "backend", ["requests", "share %", "cached %"].into_iter())?;
    let mut backends: Vec<_> = result.backends.iter().collect();
    backends.sort_by_key(|(_, share)| Reverse(share.requests));
    let all: u64 = backends.iter().map(|(_, share)| share.requests).sum();
    for (name, share) in backends.iter().take(BACKENDS_SHOWN) {
        let of_all = 100.0 * real(share.requests) / real(all);
        let cached = 100.0 * real(share.cached_tokens) / real(share.prompt_tokens.max(1));
        writeln!(text, "| {name} | {} | {of_all:.1} | {cached:.1} |", share.requests)?;
    }
    if let Some(more) = backends.len().checked_sub(BACKENDS_SHOWN).filter(|more| *more > 0) {
        writeln!(text, "and {more} more")?;
    }
    result
        .imbalance
        .map_or(Ok(()), |it| writeln!(text, "imbalance: {it:.2} (the busiest, divided by the mean)"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report as example;

    #[test]
    fn the_table_holds_medians_ranges_ratios_and_errors() {
        let text = report(&example()).unwrap();
        for expected in [
            "| nginx | 25.0 (20.0–30.0) | 500 | 500 | 500 | 1000 | 0.03 | 3 |",
            "| kvway | 45.0 (40.0–75.0) |",
            "| ratio | CPU/request | p50 | p90 | p99 | requests/s |",
            "| kvway / nginx | 2.00 (1.50–3.00) |",
            "Skipped: HAProxy is not installed.",
            "First error with nginx: connection closed before the answer was complete.",
            "| kvway - bare Pingora | 50 (0–350) |",
            "| kvway | 12.0 (10.0–14.0) |",
            "Requests of kvway-lookup by their lookup: followed 99, timeout 1.",
        ] {
            assert!(text.contains(expected), "{expected} is not in\n{text}");
        }
        assert!(!text.contains("/ HAProxy"));
    }

    #[test]
    fn the_overview_has_a_row_for_each_proxy_and_the_goals_a_verdict() {
        let text = report(&example()).unwrap();
        for expected in [
            "|  | 1 KiB | per SSE event | added p50 | memory |",
            "| nginx | 25.0 µs | 2.50 µs | -150 µs | – |",
            "| bare Pingora | 40.0 µs | 4.00 µs | – | – |",
            "| kvway | 45.0 µs | 4.50 µs | 50 µs | 30.0 → 50.0 MiB |",
            "| CPU per request, 1 KiB: kvway / bare Pingora | 1.30 | 1.12 | pass |",
            "| CPU per request, 1 KiB: kvway / sglang-router | 0.40 | – | not measured |",
            "| CPU per SSE event: kvway / bare Pingora | 1.05 | 1.12 | FAIL |",
            "| resident at start: kvway | 40.00 MiB | 30.00 MiB | pass |",
        ] {
            assert!(text.contains(expected), "{expected} is not in\n{text}");
        }
    }
}
