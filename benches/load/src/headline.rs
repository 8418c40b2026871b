//! The figures that a run is judged by: their names, units, and whether more is better. Pure.
//!
//! Shown by `html`, compared by `pair`.
use crate::measurement::real;
use crate::result::{Distribution, RunResult};

/// Which way a figure is wished to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    Higher,
    Lower,
    /// It says nothing alone: more work takes more.
    Neither,
}

/// What a figure counts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    PerSecond,
    /// Microseconds, shown in the unit that fits.
    Time,
    /// A share from 0 to 1, shown in percent.
    Share,
    Cores,
}

/// One figure of a run.
pub(crate) struct Headline {
    pub(crate) name: &'static str,
    pub(crate) unit: Unit,
    pub(crate) better: Better,
    pub(crate) read: fn(&RunResult) -> Option<f64>,
}

const fn lower(name: &'static str, unit: Unit, read: fn(&RunResult) -> Option<f64>) -> Headline {
    Headline { name, unit, better: Better::Lower, read }
}

const fn higher(name: &'static str, unit: Unit, read: fn(&RunResult) -> Option<f64>) -> Headline {
    Headline { name, unit, better: Better::Higher, read }
}

fn of(distribution: Option<&Distribution>, read: fn(&Distribution) -> f64) -> Option<f64> {
    distribution.map(read)
}

/// In the order in which they are shown.
pub(crate) const HEADLINES: [Headline; 14] = [
    higher("requests/s", Unit::PerSecond, |run| Some(run.requests_per_second)),
    lower("TTFT p50", Unit::Time, |run| of(run.ttft.as_ref(), |times| times.p50_us)),
    lower("TTFT p95", Unit::Time, |run| of(run.ttft.as_ref(), |times| times.p95_us)),
    lower("TTFT p99", Unit::Time, |run| of(run.ttft.as_ref(), |times| times.p99_us)),
    lower("latency p50", Unit::Time, |run| of(run.latency.as_ref(), |times| times.p50_us)),
    lower("latency p95", Unit::Time, |run| of(run.latency.as_ref(), |times| times.p95_us)),
    lower("latency p99", Unit::Time, |run| of(run.latency.as_ref(), |times| times.p99_us)),
    lower("inter-token gap p50", Unit::Time, |run| of(run.gap.as_ref(), |times| times.p50_us)),
    lower("inter-token gap p99", Unit::Time, |run| of(run.gap.as_ref(), |times| times.p99_us)),
    higher("hit ratio", Unit::Share, |run| Some(run.tokens?.hit_ratio)),
    lower("errors", Unit::Share, |run| share(failed(run), run)),
    lower("shed", Unit::Share, |run| share(run.shed, run)),
    lower("CPU per request", Unit::Time, |run| run.cpu.as_ref()?.us_per_request),
    Headline {
        name: "CPU",
        unit: Unit::Cores,
        better: Better::Neither,
        read: |run| Some(run.cpu.as_ref()?.cores),
    },
];

/// Requests that failed, other than by being turned away.
pub(crate) fn failed(run: &RunResult) -> u64 {
    run.errors.values().sum()
}

/// Of all requests that came to an end.
fn share(part: u64, run: &RunResult) -> Option<f64> {
    let all = run.requests + failed(run) + run.shed;
    (all > 0).then(|| real(part) / real(all))
}

/// A value with its unit, in three digits or so.
pub(crate) fn shown(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Time => time(value),
        Unit::PerSecond => digits(value),
        Unit::Share if value > 0.0 && value < 0.001 => format!("{:.3} %", value * 100.0),
        Unit::Share => format!("{:.1} %", value * 100.0),
        Unit::Cores => format!("{value:.2} cores"),
    }
}

/// A time of so many microseconds.
pub(crate) fn time(us: f64) -> String {
    match us {
        us if us < 999.5 => format!("{} µs", digits(us)),
        us if us < 999_500.0 => format!("{} ms", digits(us / 1e3)),
        us => format!("{} s", digits(us / 1e6)),
    }
}

/// Three digits at least, and all before the point.
fn digits(value: f64) -> String {
    let decimals = match value.abs() {
        0.0 => 0,
        size if size < 9.995 => 2,
        size if size < 99.95 => 1,
        _ => 0,
    };
    grouped(&format!("{value:.decimals$}"))
}

/// A whole number, in groups of three.
pub(crate) fn count(value: u64) -> String {
    grouped(&value.to_string())
}

fn grouped(number: &str) -> String {
    let (whole, rest) = number.split_once('.').map_or((number, None), |(whole, rest)| (whole, Some(rest)));
    let mut text = String::new();
    for (place, digit) in whole.chars().enumerate() {
        let left = whole.len() - place;
        if place > 0 && left % 3 == 0 && text != "-" {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    if let Some(rest) = rest {
        text.push('.');
        text.push_str(rest);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_shown_in_the_unit_that_fits() {
        assert_eq!(time(250.0), "250 µs");
        assert_eq!(time(12_345.0), "12.3 ms");
        assert_eq!(time(999_999.0), "1.00 s");
        assert_eq!(time(0.0), "0 µs");
    }

    #[test]
    fn long_numbers_are_grouped() {
        assert_eq!(count(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!((count(0), count(999)), ("0".to_owned(), "999".to_owned()));
        assert_eq!(shown(12_345.6, Unit::PerSecond), "12\u{202f}346");
        assert_eq!(shown(0.00025, Unit::Share), "0.025 %");
    }
}
