//! What a replay found, as a table for people and as JSON for programs. Pure.
//!
//! Made by `plan`, drawn by `chart`. The same plan gives the same report, to the byte: it has no times and no paths in it.

use super::engine;
use super::router::Policy;
use super::simulation::{Outcome, Settings};
use super::sustainable::Sustainable;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::path::Path;

/// What a replay found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The version of this program.
    pub version: &'static str,
    /// Whether it was ended early; then some results are missing.
    pub interrupted: bool,
    /// What was replayed on.
    pub settings: Setup,
    /// The traces.
    pub traces: Vec<Replayed>,
    /// One for each trace, load and policy, in this order.
    pub results: Vec<Row>,
}

/// What a trace was replayed on, and how.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Setup {
    /// How many engines.
    pub backends: usize,
    /// KV tokens that each engine's own memory holds.
    pub capacity_tokens: usize,
    /// KV tokens that it holds together with a slower tier, where there is one.
    pub offload_tokens: Option<usize>,
    /// Of everything that went by chance.
    pub seed: u64,
    /// Whether rounded times were spread.
    pub spread: bool,
    /// What the 90th percentile may be for a rate to be sustainable, where that was asked.
    pub ttft_p90_max_s: Option<f64>,
    /// The constants of the engine model.
    pub engine: BTreeMap<&'static str, f64>,
}

/// A trace that was replayed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Replayed {
    /// Its name.
    pub trace: String,
    /// Requests in it.
    pub requests: usize,
    /// Tokens of a block.
    pub block_tokens: usize,
    /// Requests per second as they came; none when they all came at once.
    pub rate_per_s: Option<f64>,
    /// Requests per second that round robin can serve: load 1. None when it was ended before that was known.
    pub saturated_rate_per_s: Option<f64>,
    /// What the reader should know of it.
    pub notes: Vec<String>,
}

/// What one policy made of a trace at one load.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The trace.
    pub trace: String,
    /// The rule that chose.
    pub policy: &'static str,
    /// How many engines.
    pub backends: usize,
    /// KV tokens that each engine's own memory holds.
    pub capacity_tokens: usize,
    /// KV tokens that it holds together with a slower tier, where there is one.
    pub offload_tokens: Option<usize>,
    /// Requests per second, of those that round robin can serve.
    pub load: f64,
    /// Requests per second; none when all came at once.
    pub rate_per_s: Option<f64>,
    /// Prompt tokens found in a cache, of all.
    pub hit_ratio: f64,
    /// Time from the arrival to the first token: the mean.
    pub ttft_mean_s: f64,
    /// The median.
    pub ttft_p50_s: f64,
    /// What 90 % do not exceed.
    pub ttft_p90_s: f64,
    /// What 99 % do not exceed.
    pub ttft_p99_s: f64,
    /// Work of the busiest engine over the mean.
    pub imbalance: f64,
    /// Requests replayed.
    pub requests: usize,
    /// The most requests per second at which the 90th percentile is within its bound; 0 when it never is, none when that was not
    /// found out.
    pub sustainable_rate_per_s: Option<f64>,
    /// Whether that is only the most that was tried.
    pub sustainable_at_least: bool,
}

impl Setup {
    pub(super) fn new(settings: &Settings, ttft_p90_max_s: Option<f64>, spread: bool) -> Self {
        let Settings { backends, capacity_tokens, offload_tokens, seed } = *settings;
        Self {
            backends,
            capacity_tokens,
            offload_tokens,
            seed,
            spread,
            ttft_p90_max_s,
            engine: engine::constants().into(),
        }
    }
}

impl Row {
    /// `offered` is the load, and the requests per second that it means.
    pub(super) fn new(
        trace: &str,
        policy: Policy,
        settings: &Settings,
        offered: (f64, Option<f64>),
        outcome: &Outcome,
    ) -> Self {
        let (load, rate_per_s) = offered;
        Self {
            trace: trace.to_owned(),
            policy: policy.name(),
            backends: settings.backends,
            capacity_tokens: settings.capacity_tokens,
            offload_tokens: settings.offload_tokens,
            load,
            rate_per_s,
            hit_ratio: outcome.hit_ratio(),
            ttft_mean_s: outcome.ttft_mean_s(),
            ttft_p50_s: outcome.ttft_quantile_s(0.5),
            ttft_p90_s: outcome.ttft_quantile_s(0.9),
            ttft_p99_s: outcome.ttft_quantile_s(0.99),
            imbalance: outcome.imbalance(),
            requests: outcome.ttft_s.len(),
            sustainable_rate_per_s: None,
            sustainable_at_least: false,
        }
    }

    /// Notes which load the policy bears, load 1 being `saturated_rate` requests per second.
    pub(super) fn sustain(&mut self, found: Sustainable, saturated_rate: f64) {
        let load = match found {
            Sustainable::None => 0.0,
            Sustainable::Load(load) | Sustainable::AtLeast(load) => load,
        };
        self.sustainable_rate_per_s = Some(load * saturated_rate);
        self.sustainable_at_least = matches!(found, Sustainable::AtLeast(_));
    }

    fn sustainable(&self) -> String {
        match self.sustainable_rate_per_s {
            None => "-".to_owned(),
            Some(rate) if self.sustainable_at_least => format!(">{rate:.2}/s"),
            Some(rate) => format!("{rate:.2}/s"),
        }
    }
}

impl Report {
    pub(super) fn new(interrupted: bool, settings: Setup, traces: Vec<Replayed>, results: Vec<Row>) -> Self {
        Self { version: env!("CARGO_PKG_VERSION"), interrupted, settings, traces, results }
    }

    /// Writes the table to `out`, and all of it as JSON to a file.
    ///
    /// # Errors
    /// When one of them cannot be written.
    pub fn write(&self, out: &mut impl Write, json: Option<&Path>) -> io::Result<()> {
        write!(out, "{self}")?;
        let Some(path) = json else { return Ok(()) };
        let text = serde_json::to_string_pretty(self)?;
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        std::fs::write(path, text + "\n").map_err(named)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Setup { backends, capacity_tokens, offload_tokens, ttft_p90_max_s, .. } = &self.settings;
        for told in &self.traces {
            let Replayed { trace, requests, block_tokens, .. } = told;
            writeln!(f, "{trace}: {requests} requests in blocks of {block_tokens} tokens")?;
            write!(f, "{backends} engines of {capacity_tokens} KV tokens")?;
            if let Some(tokens) = offload_tokens {
                write!(f, ", {tokens} with the tier below")?;
            }
            match told.saturated_rate_per_s {
                Some(rate) => {
                    writeln!(f, "; load 1 is {rate:.2} requests/s, all that round robin can serve")?;
                }
                None => writeln!(f)?,
            }
            for note in &told.notes {
                writeln!(f, "note: {note}")?;
            }
            let rows = || self.results.iter().filter(|row| row.trace == *trace);
            if rows().next().is_some() {
                writeln!(f, "\n{HEAD}")?;
            }
            for row in rows() {
                let ceiling = rows()
                    .find(|of| of.policy == Policy::Pooled.name() && of.load.total_cmp(&row.load).is_eq());
                write_row(f, row, ceiling)?;
            }
            writeln!(f)?;
        }
        if let Some(limit) = ttft_p90_max_s {
            writeln!(
                f,
                "TTFT: time to the first token. × pooled: mean TTFT over that of one cache for all engines."
            )?;
            writeln!(f, "sustainable: the most requests per second with a p90 of {limit} s at most.")?;
        }
        if self.interrupted { writeln!(f, "interrupted: what is missing was not finished") } else { Ok(()) }
    }
}

const HEAD: &str = "policy            load  requests/s  hit rate  TTFT mean       p50       p90       p99  × pooled  imbalance  sustainable";

fn write_row(f: &mut fmt::Formatter<'_>, row: &Row, ceiling: Option<&Row>) -> fmt::Result {
    let percent = format!("{:.1} %", 100.0 * row.hit_ratio);
    let rate = row.rate_per_s.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.2}"));
    let seconds = |seconds: f64| format!("{seconds:.2} s");
    let over =
        ceiling.map_or_else(|| "-".to_owned(), |of| format!("{:.2}", row.ttft_mean_s / of.ttft_mean_s));
    writeln!(
        f,
        "{:<16} {:>5.2} {rate:>11} {percent:>9} {:>10} {:>9} {:>9} {:>9} {over:>9} {:>10.2} {:>12}",
        row.policy,
        row.load,
        seconds(row.ttft_mean_s),
        seconds(row.ttft_p50_s),
        seconds(row.ttft_p90_s),
        seconds(row.ttft_p99_s),
        row.imbalance,
        row.sustainable(),
    )
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config;

    /// A report of two policies at three loads on one trace.
    pub(in super::super) fn report() -> Report {
        let settings = Settings { backends: 8, capacity_tokens: 500_000, offload_tokens: None, seed: 1 };
        let fast = Policy::Serving(config::Policy::LeastRequests);
        let mut results = Vec::new();
        for load in [0.5, 0.8, 0.95] {
            for (policy, seconds) in [(fast, 2.0), (Policy::ExactMatch, 40.0), (Policy::Pooled, 0.5)] {
                let outcome = Outcome {
                    ttft_s: (1..=100).map(|rank| f64::from(rank) * load * seconds / 50.0).collect(),
                    hit_tokens: 25,
                    prompt_tokens: 200,
                    busy_s: vec![3.0, 1.0],
                    ..Outcome::default()
                };
                results.push(Row::new("chat", policy, &settings, (load, Some(6.0 * load)), &outcome));
            }
        }
        let told = Replayed {
            trace: "chat".to_owned(),
            requests: 100,
            block_tokens: 512,
            rate_per_s: Some(3.4),
            saturated_rate_per_s: Some(6.0),
            notes: vec!["times are rounded".to_owned()],
        };
        Report::new(false, Setup::new(&settings, Some(5.0), true), vec![told], results)
    }

    fn cells(report: &Report, start: &str) -> Vec<String> {
        let shown = report.to_string();
        let line =
            shown.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start}\n{shown}"));
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_table_shows_every_result() {
        let mut report = report();
        report.results[3].sustain(Sustainable::Load(1.25), 6.0);
        let shown = report.to_string();
        assert!(shown.starts_with(
            "chat: 100 requests in blocks of 512 tokens\n8 engines of 500000 KV tokens; load 1 is 6.00 "
        ));
        assert!(shown.contains("\nnote: times are rounded\n") && !shown.contains("interrupted"), "{shown}");
        let wanted = "least_requests 0.80 4.80 12.5 % 1.62 s 1.60 s 2.88 s 3.17 s 4.00 1.50 7.50/s";
        assert_eq!(cells(&report, "least_requests    0.80").join(" "), wanted);
        assert!(cells(&report, "least_requests    0.50").ends_with(&["-".to_owned()]));
        let (head, row) = (
            shown.lines().find(|line| line.starts_with("policy")),
            shown.lines().find(|line| line.starts_with("pooled")),
        );
        assert_eq!(head.map(|line| line.chars().count()), row.map(|line| line.chars().count()), "{shown}");
    }

    #[test]
    fn what_a_policy_bears_is_told_with_what_is_known_of_it() {
        let mut report = report();
        for (found, rate, shown) in [
            (Sustainable::None, 0.0, "0.00/s"),
            (Sustainable::Load(1.5), 9.0, "9.00/s"),
            (Sustainable::AtLeast(64.0), 384.0, ">384.00/s"),
        ] {
            report.results[0].sustain(found, 6.0);
            assert_eq!(report.results[0].sustainable_rate_per_s, Some(rate));
            assert_eq!(cells(&report, "least_requests").last().unwrap(), shown);
        }
    }

    #[test]
    fn what_was_interrupted_says_so_and_shows_what_there_is() {
        let mut report = Report { interrupted: true, ..report() };
        report.results.clear();
        report.traces[0].saturated_rate_per_s = None;
        let shown = report.to_string();
        assert!(shown.ends_with("interrupted: what is missing was not finished\n"), "{shown}");
        assert!(!shown.contains("policy") && !shown.contains("load 1 is"), "{shown}");
    }

    #[test]
    fn every_result_has_the_fields_that_others_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        report().write(&mut Vec::new(), Some(file.path())).unwrap();
        let written: serde_json::Value =
            serde_json::from_slice(&std::fs::read(file.path()).unwrap()).unwrap();
        let results = written["results"].as_array().unwrap();
        assert_eq!((results.len(), &written["interrupted"]), (9, &false.into()));
        for name in [
            "trace",
            "policy",
            "backends",
            "capacity_tokens",
            "load",
            "hit_ratio",
            "ttft_mean_s",
            "ttft_p50_s",
            "ttft_p90_s",
            "ttft_p99_s",
            "imbalance",
            "requests",
        ] {
            assert!(results.iter().all(|row| !row[name].is_null()), "{name}: {written}");
        }
        assert_eq!(results[4]["requests"], 100);
        assert_eq!(results[4]["ttft_p90_s"], 57.6);
    }
}
