//! The result of a comparison: what is kept as JSON, and the Markdown that is printed. Pure; filled by `contest`.
use std::{collections::BTreeMap, fmt::Write};

use serde::Serialize;

use crate::contestant::Contestant;
use crate::machine::Machine;
use crate::measurement::{Quantiles, Summary};
use crate::spread::Spread;
use crate::workload::Workload;

/// One number of a window.
struct Figure {
    key: &'static str,
    title: &'static str,
    decimals: usize,
    read: fn(&Summary) -> Option<f64>,
}

const fn figure(
    key: &'static str,
    title: &'static str,
    decimals: usize,
    read: fn(&Summary) -> Option<f64>,
) -> Figure {
    Figure {
        key,
        title,
        decimals,
        read,
    }
}

fn quantile(quantiles: Option<&Quantiles>, read: fn(&Quantiles) -> f64) -> Option<f64> {
    quantiles.map(read)
}

const ANSWERS: [Figure; 6] = [
    figure("cpu_us_per_request", "CPU µs/request", 1, |s| {
        s.cpu.as_ref()?.us_per_request
    }),
    figure("latency_p50_us", "p50 µs", 0, |s| {
        quantile(s.latency.as_ref(), |q| q.p50_us)
    }),
    figure("latency_p90_us", "p90 µs", 0, |s| {
        quantile(s.latency.as_ref(), |q| q.p90_us)
    }),
    figure("latency_p99_us", "p99 µs", 0, |s| {
        quantile(s.latency.as_ref(), |q| q.p99_us)
    }),
    figure("requests_per_second", "requests/s", 0, |s| {
        Some(s.requests_per_second)
    }),
    figure("cores", "cores used", 2, |s| Some(s.cpu.as_ref()?.cores)),
];

const STREAMS: [Figure; 7] = [
    figure("cpu_us_per_event", "CPU µs/event", 2, |s| {
        s.cpu.as_ref()?.us_per_event
    }),
    figure("ttft_p50_us", "first event p50 µs", 0, |s| {
        quantile(s.ttft.as_ref(), |q| q.p50_us)
    }),
    figure("ttft_p99_us", "first event p99 µs", 0, |s| {
        quantile(s.ttft.as_ref(), |q| q.p99_us)
    }),
    figure("gap_p50_us", "gap p50 µs", 0, |s| {
        quantile(s.gap.as_ref(), |q| q.p50_us)
    }),
    figure("gap_p99_us", "gap p99 µs", 0, |s| {
        quantile(s.gap.as_ref(), |q| q.p99_us)
    }),
    figure("events_per_second", "events/s", 0, |s| Some(s.events_per_second)),
    figure("cores", "cores used", 2, |s| Some(s.cpu.as_ref()?.cores)),
];

/// Which of the figures are worth a ratio.
const RATIOS: [(Contestant, Contestant); 3] = [
    (Contestant::Kvway, Contestant::Nginx),
    (Contestant::Kvway, Contestant::BarePingora),
    (Contestant::BarePingora, Contestant::Nginx),
];

/// Everything about one comparison.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) revision: String,
    pub(crate) date: String,
    pub(crate) machine: Machine,
    pub(crate) versions: BTreeMap<String, String>,
    pub(crate) configurations: BTreeMap<String, String>,
    pub(crate) skipped: Vec<String>,
    pub(crate) settings: Settings,
    pub(crate) cases: Vec<Case>,
}

/// What was asked for.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Settings {
    pub(crate) rounds: usize,
    pub(crate) seconds: f64,
    pub(crate) connections: usize,
    pub(crate) sse_events: u32,
    pub(crate) sse_gap_ms: u32,
    pub(crate) proxy_core: usize,
    pub(crate) load_core: usize,
    pub(crate) seed: u64,
}

/// One kind of request, against all targets.
#[derive(Serialize)]
pub(crate) struct Case {
    name: String,
    workload: Workload,
    targets: Vec<Entry>,
    ratios: Vec<Ratio>,
}

#[derive(Serialize)]
struct Entry {
    target: Contestant,
    figures: BTreeMap<&'static str, Spread>,
    rounds: Vec<Summary>,
}

#[derive(Serialize)]
struct Ratio {
    of: Contestant,
    to: Contestant,
    figures: BTreeMap<&'static str, Spread>,
}

impl Case {
    /// `rounds` holds the rounds of each target, in the same order.
    pub(crate) fn new(name: String, workload: Workload, rounds: Vec<(Contestant, Vec<Summary>)>) -> Self {
        let figures = figures(&workload);
        let entry = |(target, rounds): (Contestant, Vec<Summary>)| {
            let spread = |figure: &Figure| Spread::of(values(&rounds, figure).into_iter().flatten());
            let spreads = figures
                .iter()
                .filter_map(|figure| Some((figure.key, spread(figure)?)))
                .collect();
            Entry {
                target,
                figures: spreads,
                rounds,
            }
        };
        let targets: Vec<Entry> = rounds.into_iter().map(entry).collect();
        let ratios = RATIOS
            .iter()
            .filter_map(|&(of, to)| ratio(figures, &targets, of, to))
            .collect();
        Self {
            name,
            workload,
            targets,
            ratios,
        }
    }
}

fn figures(workload: &Workload) -> &'static [Figure] {
    if workload.stream { &STREAMS } else { &ANSWERS }
}

fn values(rounds: &[Summary], figure: &Figure) -> Vec<Option<f64>> {
    rounds.iter().map(|round| (figure.read)(round)).collect()
}

fn ratio(figures: &[Figure], targets: &[Entry], of: Contestant, to: Contestant) -> Option<Ratio> {
    let rounds = |wanted| {
        targets
            .iter()
            .find(|entry| entry.target == wanted)
            .map(|entry| &entry.rounds)
    };
    let (top, bottom) = (rounds(of)?, rounds(to)?);
    let spread = |figure: &Figure| Spread::of_ratios(&values(top, figure), &values(bottom, figure));
    let spreads = figures
        .iter()
        .filter_map(|figure| Some((figure.key, spread(figure)?)))
        .collect();
    Some(Ratio {
        of,
        to,
        figures: spreads,
    })
}

impl Report {
    /// The tables, with what is needed to read them.
    pub(crate) fn markdown(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        let (machine, settings) = (&self.machine, &self.settings);
        writeln!(text, "# Cost of a proxy\n")?;
        writeln!(
            text,
            "Revision {}, {}; {}, {} cores, Linux {}; proxy on core {}, load and engines on core {}.",
            self.revision,
            self.date,
            machine.cpu_model,
            machine.cores,
            machine.kernel,
            settings.proxy_core,
            settings.load_core
        )?;
        writeln!(
            text,
            "{} interleaved rounds of {} s, {} connections, two mock engines, seed {}. \
             Medians of the rounds, with the least and the most in brackets.",
            settings.rounds, settings.seconds, settings.connections, settings.seed
        )?;
        let versions: Vec<&str> = self.versions.values().map(String::as_str).collect();
        writeln!(text, "Versions: {}.", versions.join("; "))?;
        for line in &self.skipped {
            writeln!(text, "Skipped: {line}.")?;
        }
        for case in &self.cases {
            case.markdown(&mut text)?;
        }
        let rounds = self
            .cases
            .iter()
            .flat_map(|case| &case.targets)
            .flat_map(|entry| &entry.rounds);
        let foreign = rounds.filter_map(|round| Some(round.cpu.as_ref()?.foreign_cores? * 100.0));
        if let Some(foreign) = Spread::of(foreign) {
            writeln!(
                text,
                "\nOther work on the proxy's core: {:.1} % of the time, at most {:.1} % in one window.",
                foreign.median, foreign.max
            )?;
        }
        Ok(text)
    }
}

impl Case {
    fn markdown(&self, text: &mut String) -> std::fmt::Result {
        let figures = figures(&self.workload);
        writeln!(text, "\n## {}\n\n| |{} errors |", self.name, titles(figures))?;
        writeln!(text, "|---|{}---:|", "---:|".repeat(figures.len()))?;
        for entry in &self.targets {
            let cells: String = figures
                .iter()
                .map(|figure| {
                    cell(
                        entry.figures.get(figure.key),
                        figure.decimals,
                        figure.key.starts_with("cpu"),
                    )
                })
                .collect();
            let errors: u64 = entry.rounds.iter().map(Summary::errors_total).sum();
            writeln!(text, "| {} |{cells} {errors} |", entry.target)?;
        }
        for entry in &self.targets {
            if let Some(error) = entry.rounds.iter().find_map(|round| round.first_error.as_ref()) {
                writeln!(text, "\nFirst error with {}: {error}.", entry.target)?;
            }
        }
        if !self.ratios.is_empty() {
            writeln!(
                text,
                "\n| ratio |{}\n|---|{}",
                titles(figures),
                "---:|".repeat(figures.len())
            )?;
        }
        for ratio in &self.ratios {
            let cells: String = figures
                .iter()
                .map(|figure| cell(ratio.figures.get(figure.key), 2, true))
                .collect();
            writeln!(text, "| {} / {} |{cells}", ratio.of, ratio.to)?;
        }
        Ok(())
    }
}

fn titles(figures: &[Figure]) -> String {
    let titles: Vec<String> = figures
        .iter()
        .map(|figure| format!(" {} |", figure.title))
        .collect();
    titles.concat()
}

fn cell(spread: Option<&Spread>, decimals: usize, with_range: bool) -> String {
    match spread {
        None => " – |".to_owned(),
        Some(Spread { median, min, max }) if with_range => {
            format!(" {median:.decimals$} ({min:.decimals$}–{max:.decimals$}) |")
        }
        Some(Spread { median, .. }) => format!(" {median:.decimals$} |"),
    }
}

/// The summary of one run, for people.
pub(crate) fn summary(target: &str, summary: &Summary) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    writeln!(
        text,
        "{target}: {} requests in {:.2} s",
        summary.requests, summary.seconds
    )?;
    if summary.interrupted {
        writeln!(text, "interrupted: what was measured until then")?;
    }
    let rows = [
        ("latency", &summary.latency),
        ("first event", &summary.ttft),
        ("gap", &summary.gap),
    ];
    writeln!(
        text,
        "\n| µs | mean | p50 | p90 | p99 | max |\n|---|---:|---:|---:|---:|---:|"
    )?;
    for (name, quantiles) in rows {
        let Some(q) = quantiles else { continue };
        let (mean, p50, p90, p99, max) = (q.mean_us, q.p50_us, q.p90_us, q.p99_us, q.max_us);
        writeln!(
            text,
            "| {name} | {mean:.0} | {p50:.0} | {p90:.0} | {p99:.0} | {max:.0} |"
        )?;
    }
    writeln!(text, "\nrequests/s: {:.1}", summary.requests_per_second)?;
    if summary.events > 0 {
        writeln!(text, "events/s: {:.1}", summary.events_per_second)?;
    }
    if let Some(cpu) = &summary.cpu {
        let per = |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.2}"));
        let (request, event) = (per(cpu.us_per_request), per(cpu.us_per_event));
        writeln!(
            text,
            "CPU: {:.2} cores, {request} µs/request, {event} µs/event",
            cpu.cores
        )?;
    }
    writeln!(text, "errors: {}", summary.errors_total())?;
    for (kind, count) in &summary.errors {
        writeln!(text, "  {kind}: {count}")?;
    }
    if let Some(error) = &summary.first_error {
        writeln!(text, "  the first: {error}")?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cpu::Spent;
    use crate::measurement::{Failure, Quota, Recorder};

    fn round(requests: u64, cpu_ms: u64) -> Summary {
        let recorder = Recorder::new(Quota::Endless).unwrap();
        recorder.open();
        (0..requests).for_each(|_| recorder.answered(Duration::from_micros(250)));
        recorder.failed(&Failure::Closed);
        let spent = Spent {
            own: Duration::from_millis(cpu_ms),
            core: None,
        };
        recorder.summary(Duration::from_secs(1), Some(spent), false)
    }

    fn report() -> Report {
        let workload = Workload {
            model: "tiny".to_owned(),
            body_bytes: 1024,
            distinct: 1,
            stream: false,
            seed: 1,
        };
        let nginx = vec![round(1000, 20), round(1000, 30), round(1000, 25)];
        let kvway = vec![round(1000, 40), round(1000, 45), round(1000, 75)];
        let rounds = vec![(Contestant::Nginx, nginx), (Contestant::Kvway, kvway)];
        Report {
            revision: "abc".to_owned(),
            date: "today".to_owned(),
            machine: Machine {
                kernel: "6".to_owned(),
                cpu_model: "CPU".to_owned(),
                cores: 2,
                memory_kib: None,
            },
            versions: BTreeMap::new(),
            configurations: BTreeMap::new(),
            skipped: vec!["bare Pingora is not installed".to_owned()],
            settings: Settings {
                rounds: 3,
                seconds: 1.0,
                connections: 1,
                sse_events: 1,
                sse_gap_ms: 1,
                proxy_core: 0,
                load_core: 1,
                seed: 1,
            },
            cases: vec![Case::new("1 KiB".to_owned(), workload, rounds)],
        }
    }

    #[test]
    fn the_table_holds_medians_ranges_ratios_and_errors() {
        let text = report().markdown().unwrap();
        for expected in [
            "| nginx | 25.0 (20.0–30.0) | 250 | 250 | 250 | 1000 | 0.03 | 3 |",
            "| kvway | 45.0 (40.0–75.0) |",
            "| kvway / nginx | 2.00 (1.50–3.00) |",
            "Skipped: bare Pingora is not installed.",
            "First error with nginx: connection closed before the answer was complete.",
        ] {
            assert!(text.contains(expected), "{expected} is not in\n{text}");
        }
        assert!(!text.contains("/ bare Pingora"));
    }

    #[test]
    fn the_json_holds_every_round() {
        let json = serde_json::to_value(report()).unwrap();
        let case = &json["cases"][0];
        assert_eq!(case["targets"][1]["rounds"].as_array().unwrap().len(), 3);
        assert_eq!(case["targets"][1]["target"], "kvway");
        assert_eq!(case["ratios"][0]["figures"]["cpu_us_per_request"]["median"], 2.0);
    }
}
