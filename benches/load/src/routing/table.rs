//! A comparison of policies as Markdown for people: a table for each workload, and whether it can be believed. Pure.
use std::fmt::{Error, Write};

use super::report::{Case, FIGURES, Report, compared};
use crate::markdown::{FOREIGN_PERCENT_MAX, cell, head};
use crate::spread::Spread;

/// If more than a hundredth of the requests of a window is later than this, first-token times are longer by it.
const LATE_MS_MAX: f64 = 20.0;
/// Above this share of the machine in use, it is no longer only the engines' time that is measured.
const USED_PERCENT_MAX: f64 = 60.0;

/// The tables, with what is needed to read them.
pub(crate) fn report(report: &Report) -> Result<String, Error> {
    let mut text = String::new();
    let (machine, settings) = (&report.origin.machine, &report.settings);
    writeln!(text, "# What a policy is worth\n")?;
    writeln!(
        text,
        "Revision {}, {}; {}, {} cores, Linux {}; {}.",
        report.origin.revision,
        report.origin.date,
        machine.cpu_model,
        machine.cores,
        machine.kernel,
        report.version.as_deref().unwrap_or("kvway of unknown version")
    )?;
    writeln!(
        text,
        "{} simulated engines; load {:.0} % of what round robin can take; {} interleaved rounds of {} s after {} s of \
         settling, seed {}. TTFT and whole answers count from when a request was due. Medians of the rounds, with the least and the \
         most in brackets.",
        settings.engines.count,
        settings.load * 100.0,
        settings.rounds,
        settings.seconds,
        settings.settling_seconds,
        settings.seed
    )?;
    if report.interrupted {
        writeln!(text, "\nInterrupted: this is what was measured until then.")?;
    }
    for case in &report.cases {
        policies(&mut text, case)?;
        ratios(&mut text, case)?;
        backends(&mut text, case)?;
    }
    trust(&mut text, report)?;
    Ok(text)
}

fn policies(text: &mut String, case: &Case) -> Result<(), Error> {
    writeln!(text, "\n## {}\n", case.workload)?;
    writeln!(text, "{}; {:.1} begin per second.\n", case.description, case.sessions_per_second)?;
    let titles = FIGURES.iter().map(|figure| figure.title).chain(["requests", "errors"]);
    head(text, "policy", titles)?;
    for entry in &case.policies {
        write!(text, "| {} |", entry.target)?;
        for figure in &FIGURES {
            cell(text, entry.figures.get(figure.key), figure.decimals, false)?;
        }
        let requests: u64 = entry.rounds.iter().map(|round| round.requests).sum();
        let errors: u64 = entry.rounds.iter().map(|round| round.errors.total()).sum();
        writeln!(text, " {requests} | {errors} |")?;
    }
    for entry in &case.policies {
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
    head(text, "ratio", compared().map(|figure| figure.title.replace(" ms", "")))?;
    for ratio in &case.ratios {
        write!(text, "| {} / {} |", ratio.of, ratio.to)?;
        for figure in compared() {
            cell(text, ratio.figures.get(figure.key), 2, true)?;
        }
        writeln!(text)?;
    }
    Ok(())
}

/// The requests that each backend got, in all rounds.
fn backends(text: &mut String, case: &Case) -> Result<(), Error> {
    let mut names: Vec<&String> = case.outcomes().flat_map(|outcome| outcome.backends.keys()).collect();
    names.sort_unstable();
    names.dedup();
    writeln!(text)?;
    head(text, "requests", names.iter())?;
    for entry in &case.policies {
        write!(text, "| {} |", entry.target)?;
        for name in &names {
            let got = entry.rounds.iter().filter_map(|round| round.backends.get(*name));
            write!(text, " {} |", got.sum::<u64>())?;
        }
        writeln!(text)?;
    }
    Ok(())
}

/// What would make the figures wrong.
fn trust(text: &mut String, report: &Report) -> Result<(), Error> {
    let machine = f64::from(u32::try_from(report.origin.machine.cores.max(1)).unwrap_or(u32::MAX));
    let late = report.over_all(|outcome| Some(outcome.lateness.as_ref()?.p99_us / 1e3));
    let used = report.over_all(|outcome| Some(outcome.cpu.cores / machine * 100.0));
    let foreign = report.over_all(|outcome| Some(outcome.cpu.foreign_cores? / machine * 100.0));
    writeln!(text)?;
    if let Some(Spread { median, max, .. }) = late {
        write!(
            text,
            "A hundredth of the requests was sent {median:.1} ms late or more, at most {max:.1} ms. "
        )?;
        if max > LATE_MS_MAX {
            write!(text, "The load fell behind its schedule: first-token times are that much too long. ")?;
        }
    }
    if let Some(Spread { median, max, .. }) = used {
        write!(text, "Engines, gateway and load used {median:.0} % of the machine, at most {max:.0} %. ")?;
        if max > USED_PERCENT_MAX {
            write!(text, "That is too much: not only the engines' simulated time was measured. ")?;
        }
    }
    if let Some(Spread { median, max, .. }) = foreign {
        write!(text, "Others used {median:.0} %, at most {max:.0} %. ")?;
        if max > FOREIGN_PERCENT_MAX {
            write!(text, "Measure again on a quiet machine.")?;
        }
    }
    text.truncate(text.trim_end().len());
    writeln!(text)
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report as example;
    use super::*;

    #[test]
    fn the_tables_hold_figures_ratios_backends_and_errors() {
        let text = report(&example()).unwrap();
        for expected in [
            "| policy | TTFT mean ms | p50 ms | p90 ms | p95 ms | p99 ms | whole p95 ms | whole p99 ms | hits % | imbalance | cores used | requests | errors |",
            "| round_robin | 500 | 500 | 500 | 500 | 500 | 1000 | 1000 | 25.0 | 2.00 | 0.00 | 24 | 3 |",
            "| ratio | TTFT mean | p50 | p90 | p95 | p99 | whole p95 | whole p99 |",
            "| pmc / round_robin | 0.20 (0.10–0.25) |",
            "| pmc / least_requests | 0.50 (0.40–1.00) |",
            "| requests | vllm-0 | vllm-1 |",
            "| pmc | 12 | 12 |",
            "First error with pmc: status 503.",
            "was sent 1.0 ms late or more, at most 1.0 ms. Engines, gateway and load used 0 % of the machine, at most 0 %.",
        ] {
            assert!(text.contains(expected), "{expected} is not in\n{text}");
        }
        assert!(!text.contains("Interrupted") && !text.contains("behind") && !text.contains("too much"));
    }

    #[test]
    fn an_interrupt_a_late_load_and_a_full_machine_are_told() {
        let mut late = example();
        late.interrupted = true;
        for round in late.cases[0].policies.iter_mut().flat_map(|entry| &mut entry.rounds) {
            round.lateness.as_mut().unwrap().p99_us = 30_000.0;
            round.cpu.cores = 1.5;
            round.cpu.foreign_cores = Some(0.2);
        }
        let text = report(&late).unwrap();
        for expected in
            ["Interrupted: this is", "fell behind its schedule", "That is too much", "quiet machine"]
        {
            assert!(text.contains(expected), "{expected} is not in\n{text}");
        }
    }
}
