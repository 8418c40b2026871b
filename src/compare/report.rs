//! What a comparison found, as a table for people and as JSON for programs. Pure.

use super::traffic::Tally;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

/// What a comparison found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The gateway.
    pub url: String,
    /// The model.
    pub model: String,
    /// Whether the gateway routes it by caches, by its configuration.
    pub filter: bool,
    /// How many prompts were repeated.
    pub prompts: usize,
    /// Prompts that nobody had sent before.
    pub unique: Phase,
    /// Prompts that the gateway had met.
    pub repeated: Phase,
    /// What the reader should know before believing the rest.
    pub warnings: Vec<String>,
}

/// What came of the requests of one kind.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Phase {
    /// Requests sent.
    pub requests: usize,
    /// Those without a whole answer.
    pub failed: usize,
    /// Why the first of them failed.
    pub first_failure: Option<String>,
    /// Time to the end of the answer.
    pub total_ms: Times,
    /// Time to its first token.
    pub first_token_ms: Times,
    /// What the engines say of their own caches, where they report it.
    pub cached: Option<Cached>,
    /// What the gateway's counters say, where they could be read.
    pub seen: Option<Seen>,
}

/// Times in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Times {
    /// The mean.
    pub average: f64,
    /// The median.
    pub p50: f64,
    /// What 95 % stay under.
    pub p95: f64,
    /// What 99 % stay under.
    pub p99: f64,
}

/// Tokens, as the engines count them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cached {
    /// Tokens of the prompts.
    pub prompt_tokens: u64,
    /// Those of them that an engine had in its cache.
    pub cached_tokens: u64,
}

/// What the gateway's counters say of a phase.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// Tries, by `cluster/backend`.
    pub backends: BTreeMap<String, u64>,
    /// Lookups at LMCache that a request waited for.
    pub lookups: u64,
    /// Those that found a part of the prompt.
    pub lookups_matched: u64,
    /// Requests that went to the backend that LMCache named.
    pub hints_followed: u64,
    /// The others, by what there was instead of a hint that could be followed.
    pub hints_missed: BTreeMap<String, u64>,
}

impl Times {
    fn of(times: impl Iterator<Item = Duration> + Clone) -> Self {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        // Three digits are always allowed, and a histogram without bounds takes every value.
        let Ok(mut histogram) = Histogram::<u64>::new(3) else { return Self::default() };
        let recorded = times.clone().all(|time| histogram.record(micros(time)).is_ok());
        debug_assert!(recorded);
        let (count, sum) =
            times.fold((0_u32, 0.0), |(count, sum), time| (count + 1, sum + time.as_secs_f64()));
        #[expect(clippy::cast_precision_loss, reason = "microseconds of a request are few")]
        let quantile = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        Self {
            average: 1000.0 * sum / f64::from(count.max(1)),
            p50: quantile(0.5),
            p95: quantile(0.95),
            p99: quantile(0.99),
        }
    }
}

impl Phase {
    pub(super) fn new(tally: &Tally, seen: Option<Seen>) -> Self {
        let answers = &tally.answers;
        let reported = answers.iter().filter_map(|answer| answer.prompt_tokens.zip(answer.cached_tokens));
        let cached = reported.fold(None, |sum: Option<Cached>, (prompt, cached)| {
            let sum = sum.unwrap_or_default();
            Some(Cached {
                prompt_tokens: sum.prompt_tokens + prompt,
                cached_tokens: sum.cached_tokens + cached,
            })
        });
        Self {
            requests: tally.sent,
            failed: tally.sent - answers.len(),
            first_failure: tally.first_failure.clone(),
            total_ms: Times::of(answers.iter().map(|answer| answer.total)),
            first_token_ms: Times::of(answers.iter().map(|answer| answer.first_token)),
            cached,
            seen,
        }
    }
}

impl Report {
    /// Adds what the numbers themselves call for.
    pub(super) fn with_own_warnings(mut self) -> Self {
        let phases = [("unique", &self.unique), ("repeated", &self.repeated)];
        let mut warnings = Vec::new();
        for (name, phase) in phases {
            if let Some(failure) = &phase.first_failure {
                let (failed, requests) = (phase.failed, phase.requests);
                warnings.push(format!("{failed} of {requests} {name} requests failed: {failure}"));
            }
        }
        let missed =
            self.repeated.seen.as_ref().map(|seen| &seen.hints_missed).filter(|missed| !missed.is_empty());
        if let (true, Some(missed)) = (self.filter, missed) {
            let (count, all) = (missed.values().sum::<u64>(), self.repeated.requests);
            let shown: Vec<_> = missed.iter().map(|(outcome, count)| format!("{outcome} {count}")).collect();
            let shown = shown.join(", ");
            warnings.push(format!("{count} of {all} repeated requests were routed without a hint: {shown}"));
        }
        let tries = |phase: &Phase| phase.seen.as_ref().map(|seen| seen.backends.values().sum::<u64>());
        match (tries(&self.unique), tries(&self.repeated)) {
            (Some(0), Some(0)) => warnings
                .push("no metrics were seen of these requests: is --admin this gateway's?".to_owned()),
            (Some(unique), Some(repeated)) if unique + repeated > self.sent() => warnings.push(
                "the counters tell of more requests than were sent: others use the gateway, or some were tried again"
                    .to_owned(),
            ),
            _ => {}
        }
        if self.unique.cached.is_none() && self.repeated.cached.is_none() {
            warnings.push(
                "the engines do not report cached tokens (vLLM: --enable-prompt-tokens-details)".to_owned(),
            );
        }
        self.warnings.append(&mut warnings);
        self
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

    fn sent(&self) -> u64 {
        (self.unique.requests + self.repeated.requests) as u64
    }

    fn backends(&self) -> BTreeSet<&str> {
        let seen = [&self.unique.seen, &self.repeated.seen].into_iter().flatten();
        seen.flat_map(|seen| seen.backends.keys()).map(String::as_str).collect()
    }
}

/// A line of the table.
fn row(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    unique: &str,
    repeated: &str,
    difference: &str,
) -> fmt::Result {
    let line = format!("{name:<24} {unique:>14} {repeated:>14} {difference:>12}");
    writeln!(f, "{}", line.trim_end())
}

fn share(part: u64, whole: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "counts of requests and tokens are far below 2^52")]
    let percent = 100.0 * part as f64 / whole as f64;
    if whole == 0 { "-".to_owned() } else { format!("{percent:.1} %") }
}

fn difference(unique: f64, repeated: f64) -> String {
    if unique > 0.0 { format!("{:+.1} %", 100.0 * (repeated - unique) / unique) } else { "-".to_owned() }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url, model, unique, repeated, .. } = self;
        let filter = if self.filter { "on" } else { "off" };
        writeln!(f, "{model} at {url}, KV-cache filter {filter}\n")?;
        row(f, "", "unique", "repeated", "difference")?;
        row(f, "requests", &unique.requests.to_string(), &repeated.requests.to_string(), "")?;
        row(f, "prompts", &unique.requests.to_string(), &self.prompts.to_string(), "")?;
        row(f, "failed", &unique.failed.to_string(), &repeated.failed.to_string(), "")?;
        for (name, unique, repeated) in [
            ("whole answer", &unique.total_ms, &repeated.total_ms),
            ("first token", &unique.first_token_ms, &repeated.first_token_ms),
        ] {
            for (which, unique, repeated) in [
                ("average", unique.average, repeated.average),
                ("p95", unique.p95, repeated.p95),
                ("p99", unique.p99, repeated.p99),
            ] {
                let shown = |ms: f64| format!("{ms:.1} ms");
                let name = format!("{name}, {which}");
                row(f, &name, &shown(unique), &shown(repeated), &difference(unique, repeated))?;
            }
        }
        let of = |phase: &Phase, show: &dyn Fn(&Seen) -> String| {
            phase.seen.as_ref().map_or_else(|| "-".to_owned(), show)
        };
        let cached = |phase: &Phase| {
            phase.cached.map_or_else(|| "-".to_owned(), |it| share(it.cached_tokens, it.prompt_tokens))
        };
        row(f, "tokens from cache", &cached(unique), &cached(repeated), "")?;
        if self.filter {
            let matched = |seen: &Seen| format!("{}/{}", seen.lookups_matched, seen.lookups);
            row(f, "lookups with a match", &of(unique, &matched), &of(repeated, &matched), "")?;
            let success = |seen: &Seen| share(seen.lookups_matched, seen.lookups);
            row(f, "lookup success", &of(unique, &success), &of(repeated, &success), "")?;
            let hits =
                |phase: &Phase| of(phase, &|seen| format!("{}/{}", seen.hints_followed, phase.requests));
            row(f, "preferred hits", &hits(unique), &hits(repeated), "")?;
        }
        let backends = self.backends();
        let clusters: BTreeSet<_> =
            backends.iter().filter_map(|name| Some(name.split_once('/')?.0)).collect();
        for backend in backends {
            let count = |seen: &Seen| seen.backends.get(backend).copied().unwrap_or_default().to_string();
            let short = backend.split_once('/').map_or(backend, |(_, id)| id);
            let name = format!("to {}", if clusters.len() > 1 { backend } else { short });
            row(f, &name, &of(unique, &count), &of(repeated, &count), "")?;
        }
        for warning in &self.warnings {
            write!(f, "\nwarning: {warning}")?;
        }
        if self.warnings.is_empty() { Ok(()) } else { writeln!(f) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::traffic::Answer;
    use super::*;

    fn phase(
        milliseconds: impl Iterator<Item = u64>,
        cached: Option<u64>,
        backends: &[(&str, u64)],
    ) -> Phase {
        let answer = |ms| Answer {
            total: Duration::from_millis(ms),
            first_token: Duration::from_millis(ms / 2),
            prompt_tokens: Some(1000),
            cached_tokens: cached,
        };
        let answers: Vec<_> = milliseconds.map(answer).collect();
        let backends = backends.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        let seen = Seen { backends, lookups: 90, lookups_matched: 45, hints_followed: 88, ..Seen::default() };
        Phase::new(&Tally { sent: answers.len(), answers, first_failure: None }, Some(seen))
    }

    fn report(unique: Phase, repeated: Phase) -> Report {
        let (url, model) = ("http://g:1".to_owned(), "m".to_owned());
        Report { url, model, filter: true, prompts: 20, unique, repeated, warnings: Vec::new() }
            .with_own_warnings()
    }

    fn near(value: f64, wanted: f64) -> bool {
        (value - wanted).abs() <= wanted / 1000.0
    }

    #[test]
    fn times_are_the_mean_and_the_percentiles() {
        let times = phase(1..=100, None, &[]).total_ms;
        assert!(near(times.average, 50.5) && near(times.p50, 50.0), "{times:?}");
        assert!(near(times.p95, 95.0) && near(times.p99, 99.0), "{times:?}");
    }

    #[test]
    fn the_table_shows_both_phases_and_their_difference() {
        let unique = phase((0..100).map(|_| 80), Some(0), &[("c/vllm-0", 60), ("c/vllm-1", 40)]);
        let repeated = phase((0..100).map(|_| 20), Some(900), &[("c/vllm-1", 100)]);
        let shown = report(unique, repeated).to_string();
        for (name, cells) in [
            ("requests", &["100", "100"] as &[_]),
            ("prompts", &["100", "20"]),
            ("whole answer, average", &["80.0", "ms", "20.0", "ms", "-75.0", "%"]),
            ("first token, p99", &["40.0", "ms", "10.0", "ms", "-75.0", "%"]),
            ("tokens from cache", &["0.0", "%", "90.0", "%"]),
            ("lookups with a match", &["45/90", "45/90"]),
            ("lookup success", &["50.0", "%", "50.0", "%"]),
            ("preferred hits", &["88/100", "88/100"]),
            ("to vllm-0", &["60", "0"]),
            ("to vllm-1", &["40", "100"]),
        ] {
            let row = shown
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap_or_else(|| panic!("{name}\n{shown}"));
            assert_eq!(row.split_whitespace().collect::<Vec<_>>(), cells, "{name}\n{shown}");
        }
        assert!(!shown.contains("warning"), "{shown}");
    }

    #[test]
    fn numbers_that_cannot_be_believed_are_warned_of() {
        let warning = |tries: u64, cached| {
            let phase = phase((0..100).map(|_| 1), cached, &[("c/a", tries)]);
            report(phase.clone(), phase).warnings.join("\n")
        };
        assert_eq!(warning(100, Some(0)), "");
        assert!(warning(0, Some(0)).starts_with("no metrics were seen"));
        assert!(warning(101, Some(0)).contains("more requests than were sent"));
        assert!(warning(100, None).contains("--enable-prompt-tokens-details"));

        let mut missed = phase((0..100).map(|_| 1), Some(0), &[("c/a", 100)]);
        let unique = missed.clone();
        if let Some(seen) = &mut missed.seen {
            seen.hints_missed = [("breaker_open".to_owned(), 7), ("timeout".to_owned(), 5)].into();
        }
        let warnings = report(unique, missed).warnings;
        let said = "12 of 100 repeated requests were routed without a hint: breaker_open 7, timeout 5";
        assert_eq!(warnings, [said]);
    }
}
