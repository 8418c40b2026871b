//! Two results beside each other: figures, their ratios, which way they went, and whether they may be compared at all.
//!
//! Asked for by `main` for `compare`. Pure.
use std::collections::BTreeSet;
use std::fmt::{Display, Error, Formatter, Write};

use crate::headline::{Better, HEADLINES, Headline, shown};
use crate::markdown::head;
use crate::result::RunResult;

/// Below this ratio, either way, two figures are the same.
const SAME_BELOW: f64 = 1.02;
/// Below this ratio, two runs took the same time.
const AS_LONG_BELOW: f64 = 1.1;
/// What may differ without any doubt about the figures.
const MAY_DIFFER: [&str; 7] = ["html", "json", "label", "out", "pid", "revision", "target"];

/// What became of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Better,
    Worse,
    Same,
    /// One of the two has no such figure, or it says nothing alone.
    Unknown,
}

impl Display for Verdict {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> Result<(), Error> {
        formatter.write_str(match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::Same => "same",
            Self::Unknown => "–",
        })
    }
}

/// One figure of both.
struct Line {
    headline: &'static Headline,
    a: Option<f64>,
    b: Option<f64>,
}

impl Line {
    /// B / A; the same where both are 0.
    fn ratio(&self) -> Option<f64> {
        let (a, b) = (self.a?, self.b?);
        Some(if a <= 0.0 && b <= 0.0 { 1.0 } else { b / a })
    }

    /// By how much B is worse: 1.2 is worse by a fifth, whichever way the figure is wished to go.
    fn worse_by(&self) -> Option<f64> {
        let ratio = self.ratio()?;
        match self.headline.better {
            Better::Lower => Some(ratio),
            Better::Higher => Some(1.0 / ratio),
            Better::Neither => None,
        }
    }

    fn verdict(&self) -> Verdict {
        match self.worse_by() {
            None => Verdict::Unknown,
            Some(by) if by >= SAME_BELOW => Verdict::Worse,
            Some(by) if by <= 1.0 / SAME_BELOW => Verdict::Better,
            Some(_) => Verdict::Same,
        }
    }
}

/// Two results.
pub(crate) struct Pair<'a> {
    a: &'a RunResult,
    b: &'a RunResult,
    lines: Vec<Line>,
}

impl<'a> Pair<'a> {
    pub(crate) fn new(a: &'a RunResult, b: &'a RunResult) -> Self {
        let line =
            |headline: &'static Headline| Line { headline, a: (headline.read)(a), b: (headline.read)(b) };
        let known = |line: &Line| line.a.is_some() || line.b.is_some();
        Self { a, b, lines: HEADLINES.iter().map(line).filter(known).collect() }
    }

    /// The table, and what has to be known to read it.
    pub(crate) fn table(&self) -> Result<String, Error> {
        let mut text = String::new();
        writeln!(text, "A: {}, {}, revision {}", self.a.label, self.a.started, self.a.revision)?;
        writeln!(text, "B: {}, {}, revision {}\n", self.b.label, self.b.started, self.b.revision)?;
        head(&mut text, "figure", ["A", "B", "B/A", "B is"].into_iter())?;
        for line in &self.lines {
            // Without the spaces between thousands, so that other programs can read it.
            let told = |value: f64| shown(value, line.headline.unit).replace('\u{202f}', "");
            let value = |value: Option<f64>| value.map_or("–".to_owned(), told);
            let ratio = line.ratio().map_or("–".to_owned(), ratio);
            let (name, verdict) = (line.headline.name, line.verdict());
            writeln!(text, "| {name} | {} | {} | {ratio} | {verdict} |", value(line.a), value(line.b))?;
        }
        let doubts = self.doubts();
        if !doubts.is_empty() {
            writeln!(text, "\nThese two runs differ in more than their results:")?;
            for doubt in doubts {
                writeln!(text, "- {doubt}")?;
            }
        }
        Ok(text)
    }

    /// Why the figures may not be comparable.
    pub(crate) fn doubts(&self) -> Vec<String> {
        let (a, b) = (self.a, self.b);
        let mut doubts = Vec::new();
        let names: BTreeSet<&String> = a.configuration.keys().chain(b.configuration.keys()).collect();
        for name in names.into_iter().filter(|name| !MAY_DIFFER.contains(&name.as_str())) {
            let of = |run: &RunResult| run.configuration.get(name).map_or("–".to_owned(), String::clone);
            if of(a) != of(b) {
                doubts.push(format!("{name}: {} and {}", of(a), of(b)));
            }
        }
        if a.machine != b.machine {
            let of = |run: &RunResult| {
                let machine = &run.machine;
                let memory =
                    machine.memory_kib.map_or_else(String::new, |kib| format!(", {} MiB", kib / 1024));
                format!("{}, {} cores, Linux {}{memory}", machine.cpu_model, machine.cores, machine.kernel)
            };
            doubts.push(format!("machine: {} and {}", of(a), of(b)));
        }
        if a.version != b.version {
            doubts.push(format!("version of kvway-bench: {} and {}", a.version, b.version));
        }
        if (a.seconds / b.seconds).max(b.seconds / a.seconds) >= AS_LONG_BELOW {
            doubts.push(format!("answers were counted for {:.1} s and {:.1} s", a.seconds, b.seconds));
        }
        for (name, run) in [("A", a), ("B", b)] {
            if let Some(behind) = &run.behind {
                doubts.push(format!("the load generator of {name} fell behind itself: {behind}"));
            }
            if run.interrupted {
                doubts.push(format!("{name} was interrupted"));
            }
        }
        doubts
    }

    /// The figures of which B is worse by more than this ratio, or has none where A has one; none if all is well.
    pub(crate) fn worse_than(&self, limit: f64) -> Option<String> {
        let told = self.lines.iter().filter_map(|line| match line.worse_by() {
            Some(by) if by > limit => Some(format!("{} ({})", line.headline.name, ratio(line.ratio()?))),
            None if line.a.is_some() && line.b.is_none() => {
                Some(format!("{} (B has none)", line.headline.name))
            }
            _ => None,
        });
        let told: Vec<String> = told.collect();
        (!told.is_empty()).then(|| told.join(", "))
    }
}

fn ratio(ratio: f64) -> String {
    if ratio.is_finite() { format!("{ratio:.2}") } else { "∞".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::html::tests::result;

    #[test]
    fn a_figure_is_better_or_worse_by_the_way_it_is_wished_to_go() {
        let (a, mut b) = (result("a"), result("b"));
        b.requests_per_second = 2.0 * a.requests_per_second;
        b.ttft.as_mut().unwrap().p99_us *= 1.5;
        b.latency.as_mut().unwrap().p50_us *= 1.01;
        b.cpu.as_mut().unwrap().us_per_request = None;
        let table = Pair::new(&a, &b).table().unwrap();
        let line = |name: &str| table.lines().find(|line| line.starts_with(&format!("| {name} |"))).unwrap();
        assert!(line("requests/s").ends_with("| 2.00 | better |"), "{table}");
        assert!(line("TTFT p99").ends_with("| 1.50 | worse |"), "{table}");
        assert!(line("latency p50").ends_with("| 1.01 | same |"), "{table}");
        assert!(line("CPU per request").ends_with("| 513 µs | – | – | – |"), "{table}");
        assert!(!table.contains("differ in more"), "{table}");
    }

    #[test]
    fn long_numbers_can_be_read_by_programs() {
        let mut fast = result("a");
        fast.requests_per_second = 12_345.0;
        assert!(Pair::new(&fast, &fast).table().unwrap().contains("| 12345 | 12345 | 1.00 | same |"));
    }

    #[test]
    fn what_makes_two_runs_incomparable_is_told() {
        let (a, mut b) = (result("a"), result("b"));
        b.configuration.insert("seed".to_owned(), "2".to_owned());
        b.configuration.insert("target".to_owned(), "http://elsewhere/".to_owned());
        b.machine.cores = 2;
        b.seconds = 9.0;
        b.behind = Some("More threads.".to_owned());
        let doubts = Pair::new(&a, &b).doubts();
        let told = |word: &str| doubts.iter().any(|doubt| doubt.contains(word));
        assert!(told("seed: 1 and 2") && told("8 cores") && told("90.0 s and 9.0 s"), "{doubts:?}");
        assert!(told("of B fell behind itself: More threads.") && !told("elsewhere"), "{doubts:?}");
    }

    #[test]
    fn a_limit_is_passed_by_worse_figures_only() {
        let (a, mut b) = (result("a"), result("b"));
        b.requests_per_second = a.requests_per_second / 1.2;
        b.latency.as_mut().unwrap().p50_us /= 5.0;
        let pair = Pair::new(&a, &b);
        assert_eq!(pair.worse_than(1.1).as_deref(), Some("requests/s (0.83)"));
        assert_eq!(pair.worse_than(1.25), None);
    }

    #[test]
    fn errors_and_missing_figures_pass_any_limit() {
        let (a, mut b) = (result("a"), result("b"));
        b.errors.insert("timeout".to_owned(), 1);
        b.ttft = None;
        b.cpu.as_mut().unwrap().cores *= 1e6;
        let worse = Pair::new(&a, &b).worse_than(1000.0).unwrap();
        assert_eq!(worse, "TTFT p50 (B has none), TTFT p95 (B has none), TTFT p99 (B has none), errors (∞)");
        assert_eq!(Pair::new(&b, &a).worse_than(1000.0), None);
    }
}
