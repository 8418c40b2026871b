//! The charts of a report, each with the table of what it shows.
//!
//! A run may be long: what is drawn over time is put together into at most [`POINTS_MAX`] spans of the same length.
use std::collections::BTreeSet;

use super::chart::{Across, Bars, ChartError, Line, Measure, Plot, nines};
use super::section::labels;
use super::{Drawn, Row, Table};
use crate::headline::time;
use crate::measurement::real;
use crate::result::{BackendShare, Distribution, RunResult, Second};

/// A chart with what belongs to it.
pub(crate) struct Figure {
    pub(crate) title: String,
    /// What is to be seen, for those who do not see it.
    pub(crate) text: String,
    pub(crate) drawn: Drawn,
    pub(crate) table: Table,
}

const POINTS_MAX: usize = 120;
/// The percentiles of the tables.
const PERCENTILES: [f64; 8] = [50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 99.99, 100.0];

/// Of a distribution: its name and how a result tells it.
type Told = (&'static str, fn(&RunResult) -> Option<&Distribution>);
/// Of a line over time: what is added to its name, whether it is dashed, and its value in a span.
type Over = (&'static str, bool, fn(&[Second]) -> Option<f64>);

/// All that these results have something to show in.
pub(super) fn all(results: &[RunResult]) -> Result<Vec<Figure>, ChartError> {
    let curves: [Told; 3] = [
        ("Time to first token", |run| run.ttft.as_ref()),
        ("Latency", |run| run.latency.as_ref()),
        ("Inter-token gap", |run| run.gap.as_ref()),
    ];
    let mut figures = Vec::new();
    for (name, read) in curves {
        if results.iter().any(|run| read(run).is_some()) {
            figures.push(curve(results, name, read)?);
        }
    }
    let overs: [(&str, &str, Measure, [Over; 2]); 3] = [
        (
            "Requests per second",
            "Answers (solid) and failures (dashed) over the time of the run",
            Measure::Of("requests/s"),
            [(" answered", false, answered), (" failed", true, failures)],
        ),
        (
            "Time to first token over time",
            "99th percentile (solid) and median (dashed) of the time to first token over the time of the run",
            Measure::Time,
            [
                (" p99", false, |span| worst(span, |it| it.ttft_p99_us)),
                (" p50", true, |span| middle(span, |it| it.ttft_p50_us)),
            ],
        ),
        (
            "Latency over time",
            "99th percentile (solid) and median (dashed) of the latency over the time of the run",
            Measure::Time,
            [
                (" p99", false, |span| worst(span, |it| it.latency_p99_us)),
                (" p50", true, |span| middle(span, |it| it.latency_p50_us)),
            ],
        ),
    ];
    for (title, text, measure, told) in overs {
        figures.extend(over_time(results, title, text, measure, &told)?);
    }
    if results.iter().any(|run| !run.backends.is_empty()) {
        figures.extend(backends(results)?);
    }
    Ok(figures)
}

fn curve(
    results: &[RunResult],
    name: &str,
    read: fn(&RunResult) -> Option<&Distribution>,
) -> Result<Figure, ChartError> {
    let of = |run: &RunResult| read(run).map(points).unwrap_or_default();
    let line = |(number, run): (usize, &RunResult)| Line {
        name: run.label.clone(),
        of: number,
        dashed: false,
        points: of(run),
    };
    let lines = results.iter().enumerate().map(line).filter(|line| !line.points.is_empty()).collect();
    let row = |percentile: &f64| Row {
        name: if *percentile < 100.0 { format!("{percentile} %") } else { "maximum".to_owned() },
        cells: results.iter().map(|run| value_at(read(run), *percentile)).collect(),
        marked: false,
    };
    Ok(Figure {
        title: format!("{name}: percentiles"),
        text: format!(
            "{name} by percentile: how long all but the slowest took; the axis gives each further nine the same room"
        ),
        drawn: Plot { across: Across::Percentile, measure: Measure::Time, lines }.draw()?,
        table: Table {
            caption: format!("{name} by percentile"),
            head: labels(results, "percentile"),
            rows: PERCENTILES.iter().map(row).collect(),
        },
    })
}

/// The curve in nines. The maximum stands where the count of values puts it.
fn points(times: &Distribution) -> Vec<(f64, Option<f64>)> {
    let end = real(times.count.max(1)).log10();
    let inner = times.curve.iter().filter(|(percentile, _)| (0.0..100.0).contains(percentile));
    let inner = inner.map(|(percentile, us)| (nines(*percentile), *us)).filter(|(nines, _)| *nines < end);
    inner.chain([(end, times.max_us)]).map(|(nines, us)| (nines, Some(us))).collect()
}

/// A dash where there are too few values to tell.
fn value_at(times: Option<&Distribution>, percentile: f64) -> String {
    let told =
        times.filter(|times| percentile >= 100.0 || real(times.count) * (1.0 - percentile / 100.0) >= 1.0);
    let value = told.and_then(|times| {
        let at = |(known, _): &&(f64, f64)| *known >= percentile - 1e-9;
        match percentile {
            50.0 => Some(times.p50_us),
            90.0 => Some(times.p90_us),
            95.0 => Some(times.p95_us),
            99.0 => Some(times.p99_us),
            100.0.. => Some(times.max_us),
            _ => times.curve.iter().find(at).map(|(_, us)| *us),
        }
    });
    value.map_or("–".to_owned(), time)
}

/// How many seconds one point stands for.
fn span(results: &[RunResult]) -> usize {
    let longest = results.iter().map(|run| run.series.len()).max().unwrap_or_default();
    longest.div_ceil(POINTS_MAX).max(1)
}

/// None where there is no value at all.
fn over_time(
    results: &[RunResult],
    title: &str,
    text: &str,
    measure: Measure,
    told: &[Over],
) -> Result<Option<Figure>, ChartError> {
    let span = span(results);
    let mut lines = Vec::new();
    for (of, run) in results.iter().enumerate() {
        for (suffix, dashed, value) in told {
            let at = |(number, seconds): (usize, &[Second])| (real((number * span) as u64), value(seconds));
            let points = run.series.chunks(span).enumerate().map(at).collect();
            lines.push(Line { name: format!("{}{suffix}", run.label), of, dashed: *dashed, points });
        }
    }
    let each = if span > 1 { format!("; each point stands for {span} s") } else { String::new() };
    let something = lines.iter().flat_map(|line| &line.points).any(|(_, value)| value.is_some());
    something.then(|| timeline(title, format!("{text}{each}"), measure, lines)).transpose()
}

/// Plot over the same points in time.
pub(super) fn timeline(
    title: &str,
    text: String,
    measure: Measure,
    lines: Vec<Line>,
) -> Result<Figure, ChartError> {
    let cell = |value: f64| match measure {
        Measure::Time => time(value),
        Measure::Of(_) => format!("{value:.1}"),
    };
    let longest = lines.iter().max_by_key(|line| line.points.len());
    let row = |(number, (second, _)): (usize, &(f64, Option<f64>))| {
        let value = |line: &Line| line.points.get(number).and_then(|(_, value)| *value);
        let cells = lines.iter().map(|line| value(line).map_or("–".to_owned(), cell)).collect();
        Row { name: format!("{second:.0}"), cells, marked: false }
    };
    let rows = longest.into_iter().flat_map(|line| &line.points).enumerate().map(row).collect();
    let caption = match measure {
        Measure::Time => title.to_owned(),
        Measure::Of(unit) => format!("{title}, {unit}"),
    };
    let names = lines.iter().map(|line| line.name.clone());
    let head = std::iter::once("second".to_owned()).chain(names).collect();
    let table = Table { caption, head, rows };
    let drawn = Plot { across: Across::Seconds, measure, lines }.draw()?;
    Ok(Figure { title: title.to_owned(), text, table, drawn })
}

fn mean(seconds: &[Second], read: fn(&Second) -> u64) -> Option<f64> {
    (!seconds.is_empty()).then(|| real(seconds.iter().map(read).sum()) / real(seconds.len() as u64))
}

fn answered(seconds: &[Second]) -> Option<f64> {
    mean(seconds, |second| second.answered)
}

fn failures(seconds: &[Second]) -> Option<f64> {
    mean(seconds, |second| second.failed)
}

/// The mean of the medians.
fn middle(seconds: &[Second], read: fn(&Second) -> Option<f64>) -> Option<f64> {
    let known: Vec<f64> = seconds.iter().filter_map(read).collect();
    (!known.is_empty()).then(|| known.iter().sum::<f64>() / real(known.len() as u64))
}

fn worst(seconds: &[Second], read: fn(&Second) -> Option<f64>) -> Option<f64> {
    seconds.iter().filter_map(read).max_by(f64::total_cmp)
}

/// Who served how much, and how much of it was cached.
fn backends(results: &[RunResult]) -> Result<Vec<Figure>, ChartError> {
    let names: BTreeSet<&String> = results.iter().flat_map(|run| run.backends.keys()).collect();
    let share = |run: &RunResult, backend: &BackendShare| {
        let all = run.backends.values().map(|backend| backend.requests).sum();
        (all > 0).then(|| 100.0 * real(backend.requests) / real(all))
    };
    let hits = |_: &RunResult, backend: &BackendShare| {
        let BackendShare { prompt_tokens, cached_tokens, .. } = *backend;
        (prompt_tokens > 0).then(|| 100.0 * real(cached_tokens) / real(prompt_tokens))
    };
    let figure = |title: &str, text: &str, unit, read: &dyn Fn(&RunResult, &BackendShare) -> Option<f64>| {
        let values = |run: &RunResult| -> Vec<Option<f64>> {
            names.iter().map(|name| run.backends.get(*name).and_then(|backend| read(run, backend))).collect()
        };
        let columns: Vec<_> = results.iter().map(|run| (run.label.clone(), values(run))).collect();
        let cell = |number: usize, values: &[Option<f64>]| {
            values.get(number).copied().flatten().map_or("–".to_owned(), |value| format!("{value:.1}"))
        };
        let row = |(number, name): (usize, &&String)| Row {
            name: (*name).clone(),
            cells: columns.iter().map(|(_, values)| cell(number, values)).collect(),
            marked: false,
        };
        let rows = names.iter().enumerate().map(row).collect();
        let table = Table { caption: format!("{title}, {unit}"), head: labels(results, "backend"), rows };
        let names = names.iter().map(|name| (*name).clone()).collect();
        let drawn = Bars { title: unit, names, results: columns }.draw()?;
        Ok(Figure { title: title.to_owned(), text: text.to_owned(), drawn, table })
    };
    let text = "Share of the requests that each backend served";
    let mut figures = vec![figure("Requests by backend", text, "% of requests", &share)?];
    if results.iter().flat_map(|run| run.backends.values()).any(|backend| backend.prompt_tokens > 0) {
        let text = "Tokens that a backend had cached, of all tokens of the prompts that it was sent";
        figures.push(figure("Hit ratio by backend", text, "% of prompt tokens", &hits)?);
    }
    Ok(figures)
}
