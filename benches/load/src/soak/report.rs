//! The result of a soak as it is kept, what is judged of it, and the table that is printed. Pure.
use std::fmt::{Error, Write};

use serde::Serialize;

use super::growth::Growth;
use super::sample::Sample;
use crate::headline::count;
use crate::machine::Origin;
use crate::markdown::head;
use crate::measurement::{Errors, real};

/// By how much figures may grow after the warm-up.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Bounds {
    pub(crate) memory_kib: u64,
    pub(crate) files: u64,
    pub(crate) threads: u64,
}

/// After the warm-up.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Grown {
    pub(crate) memory_kib: Growth,
    pub(crate) files: Growth,
    pub(crate) threads: Growth,
}

/// Everything about one soak.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    #[serde(flatten)]
    pub(crate) origin: Origin,
    /// What the gateway says that it is.
    pub(crate) version: Option<String>,
    /// Of the gateway.
    pub(crate) configuration: String,
    pub(crate) policy: &'static str,
    pub(crate) load: f64,
    pub(crate) seed: u64,
    pub(crate) every_seconds: f64,
    pub(crate) seconds: f64,
    pub(crate) warm_up_seconds: f64,
    pub(crate) interrupted: bool,
    pub(crate) answered: u64,
    #[serde(flatten)]
    pub(crate) errors: Errors,
    pub(crate) bounds: Bounds,
    /// None where the time was too short to tell.
    pub(crate) growth: Option<Grown>,
    /// Why it does not hold; empty where it does.
    pub(crate) complaints: Vec<String>,
    pub(crate) samples: Vec<Sample>,
}

impl Report {
    /// With what is made of the samples.
    pub(super) fn judged(mut self) -> Self {
        self.growth = self.grown();
        let mut complaints = Vec::new();
        match &self.growth {
            None => complaints.push("the time was too short to tell whether anything grows".to_owned()),
            Some(Grown { memory_kib, files, threads }) => {
                for (what, growth, bound) in [
                    ("resident memory in KiB", memory_kib, self.bounds.memory_kib),
                    ("open files", files, self.bounds.files),
                    ("threads", threads, self.bounds.threads),
                ] {
                    if growth.total() > real(bound) {
                        complaints.push(format!("{what} grew by {:.0}, more than {bound}", growth.total()));
                    }
                }
            }
        }
        if self.errors.total() > 0 {
            let first = self.errors.first.as_deref().unwrap_or("unknown");
            complaints.push(format!("{} requests failed, the first: {first}", self.errors.total()));
        }
        if self.answered == 0 {
            complaints.push("no request was answered".to_owned());
        }
        self.complaints = complaints;
        self
    }

    fn grown(&self) -> Option<Grown> {
        let of = |read: fn(&Sample) -> u64| {
            let judged = self.samples.iter().filter(|sample| sample.second >= self.warm_up_seconds);
            Growth::of(&judged.map(|sample| (sample.second, real(read(sample)))).collect::<Vec<_>>())
        };
        Some(Grown {
            memory_kib: of(|sample| sample.memory_kib)?,
            files: of(|sample| sample.files)?,
            threads: of(|sample| sample.threads)?,
        })
    }

    /// Of the log, for each answer.
    pub(crate) fn log_bytes_per_answer(&self) -> Option<f64> {
        let bytes = self.samples.last()?.log_bytes;
        (self.answered > 0).then(|| real(bytes) / real(self.answered))
    }
}

/// What is printed.
pub(crate) fn table(report: &Report) -> Result<String, Error> {
    let mut text = String::new();
    writeln!(
        text,
        "# Soak\n\nRevision {}, {}; policy {}, load {}, seed {}; {:.0} s, of which {:.0} s to warm up.",
        report.origin.revision,
        report.origin.date,
        report.policy,
        report.load,
        report.seed,
        report.seconds,
        report.warm_up_seconds
    )?;
    if report.interrupted {
        writeln!(text, "Interrupted: this is what was seen until then.")?;
    }
    writeln!(text, "{} requests answered, {} failed.", count(report.answered), report.errors.total())?;
    if let Some(bytes) = report.log_bytes_per_answer() {
        writeln!(text, "The access log took {bytes:.0} bytes for each of them.")?;
    }
    if let Some(Grown { memory_kib, files, threads }) = &report.growth {
        writeln!(text)?;
        let columns = ["after the warm-up", "at the end", "most", "growth", "growth per hour", "may grow by"];
        head(&mut text, "fitted", columns.into_iter())?;
        for (what, growth, bound, divisor) in [
            ("resident memory, MiB", memory_kib, report.bounds.memory_kib, 1024.0),
            ("open files", files, report.bounds.files, 1.0),
            ("threads", threads, report.bounds.threads, 1.0),
        ] {
            let Growth { first, last, max, per_hour } = growth;
            write!(text, "| {what} |")?;
            for value in [*first, *last, *max, growth.total(), *per_hour, real(bound)] {
                write!(text, " {:.1} |", value / divisor)?;
            }
            writeln!(text)?;
        }
    }
    let verdict = if report.complaints.is_empty() { "It holds." } else { "It does not hold:" };
    writeln!(text, "\n{verdict}")?;
    report.complaints.iter().try_for_each(|complaint| writeln!(text, "- {complaint}"))?;
    Ok(text)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A soak of an hour with memory that grows by so many KiB in it.
    pub(crate) fn report(growth_kib: u32) -> Report {
        let sample = |number: u32| Sample {
            second: f64::from(number) * 60.0,
            memory_kib: u64::from(50_000 + growth_kib * number / 60 + number % 3),
            files: 60 + u64::from(number % 5),
            threads: 8,
            log_bytes: u64::from(number) * 400_000,
            gauges: [("kvway_requests_in_flight".to_owned(), f64::from(number % 7))].into(),
        };
        Report {
            origin: Origin::example(),
            version: None,
            configuration: String::new(),
            policy: "pmc",
            load: 0.4,
            seed: 1,
            every_seconds: 60.0,
            seconds: 3600.0,
            warm_up_seconds: 900.0,
            interrupted: false,
            answered: 100_000,
            errors: Errors::default(),
            samples: (0..=60).map(sample).collect(),
            bounds: Bounds { memory_kib: 16 * 1024, files: 32, threads: 4 },
            growth: None,
            complaints: Vec::new(),
        }
        .judged()
    }

    #[test]
    fn a_gateway_that_stays_as_it_is_holds() {
        let report = report(0);
        assert_eq!(report.complaints, Vec::<String>::new());
        let table = table(&report).unwrap();
        assert!(
            table.contains("It holds.") && table.contains("| resident memory, MiB | 48.8 | 48.8 |"),
            "{table}"
        );
        assert!(table.contains("took 240 bytes"), "{table}");
    }

    #[test]
    fn memory_that_grows_after_the_warm_up_does_not_hold() {
        let report = report(40_000);
        assert_eq!(report.complaints.len(), 1);
        assert!(
            report.complaints[0].contains("resident memory in KiB grew by 300"),
            "{:?}",
            report.complaints
        );
        let slope = report.growth.unwrap().memory_kib.per_hour;
        assert!((slope - 40_000.0).abs() < 50.0, "{slope}");
    }

    #[test]
    fn failures_and_a_time_too_short_do_not_hold() {
        let mut failed = report(0);
        failed.errors.by_kind.insert("timeout", 3);
        failed.samples.truncate(2);
        let table = table(&failed.judged()).unwrap();
        assert!(
            table.contains("- the time was too short") && table.contains("- 3 requests failed"),
            "{table}"
        );
    }
}
