//! The report of a soak: the same page, with what happened to memory, files and threads.
use super::chart::{ChartError, Line, Measure};
use super::figure::{Figure, timeline};
use super::{Key, Note, Page, PageError, Row, STYLE, Table, Tile};
use crate::headline::{count, time};
use crate::measurement::real;
use crate::soak::{Report, Sample};

use askama::Template;

/// So many points at most are drawn; each is the highest of its span.
const POINTS_MAX: usize = 240;

const WORDS: &[(&str, &str)] = &[
    ("growth", "the line that fits the values after the warm-up best, at its end less than at its beginning"),
    ("gauges", "what the gateway says of itself on its admin listener, summed over labels"),
];

/// How a sample tells a value.
type Read = fn(&Sample) -> Option<f64>;

/// One chart.
struct Told {
    title: &'static str,
    text: &'static str,
    unit: &'static str,
    /// The second is dashed.
    lines: &'static [(&'static str, Read)],
}

const TOLD: [Told; 6] = [
    Told {
        title: "Resident memory",
        text: "Resident memory of the gateway over time",
        unit: "MiB",
        lines: &[("memory", |sample| Some(real(sample.memory_kib) / 1024.0))],
    },
    Told {
        title: "Open files and threads",
        text: "Open files (solid) and threads (dashed) of the gateway over time",
        unit: "count",
        lines: &[
            ("files", |sample| Some(real(sample.files))),
            ("threads", |sample| Some(real(sample.threads))),
        ],
    },
    Told {
        title: "Access log",
        text: "Size of the access log over time",
        unit: "MiB",
        lines: &[("log", |sample| Some(real(sample.log_bytes) / 1024.0 / 1024.0))],
    },
    Told {
        title: "Requests and connections",
        text: "Requests in flight (solid) and client connections (dashed) over time, as the gateway tells",
        unit: "count",
        lines: &[
            ("in flight", |sample| gauge(sample, "requests_in_flight")),
            ("connections", |sample| gauge(sample, "connections")),
        ],
    },
    Told {
        title: "Blocks believed cached",
        text: "Blocks that the gateway believes to be in the engines' caches",
        unit: "count",
        lines: &[("blocks", |sample| gauge(sample, "shadow_blocks"))],
    },
    Told {
        title: "Bytes by its own account",
        text: "Memory for what is believed of caches (solid) and for request bodies (dashed), as the gateway tells",
        unit: "KiB",
        lines: &[
            ("caches", |sample| gauge(sample, "shadow_bytes").map(|bytes| bytes / 1024.0)),
            ("bodies", |sample| gauge(sample, "buffered_bytes").map(|bytes| bytes / 1024.0)),
        ],
    },
];

/// The report of one soak.
pub(crate) fn soak(report: &Report) -> Result<String, PageError> {
    let page = Page {
        title: format!("Soak of kvway, policy {}", report.policy),
        subtitle: format!(
            "{} under load {}, {}, revision {}",
            time(report.seconds * 1e6),
            report.load,
            report.origin.date,
            report.origin.revision
        ),
        style: STYLE,
        notes: notes(report),
        keys: Vec::<Key>::new(),
        tiles: tiles(report),
        headlines: None,
        figures: figures(&report.samples)?,
        tables: vec![origin(report)],
        words: WORDS,
    };
    Ok(page.render()?)
}

fn notes(report: &Report) -> Vec<Note> {
    let mut notes: Vec<_> = report
        .complaints
        .iter()
        .map(|text| Note { loud: true, text: format!("It does not hold: {text}.") })
        .collect();
    if report.interrupted {
        notes.push(Note {
            loud: true,
            text: "It was interrupted: this is what was seen until then.".to_owned(),
        });
    }
    if report.complaints.is_empty() {
        notes.push(Note {
            loud: false,
            text: "It holds: nothing grew beyond its bound, and no request failed.".to_owned(),
        });
    }
    notes
}

fn tiles(report: &Report) -> Vec<Tile> {
    let tile = |name: &str, value: String| Tile { name: name.to_owned(), value };
    let mut tiles =
        vec![tile("answered", count(report.answered)), tile("failed", count(report.errors.total()))];
    if let Some(grown) = &report.growth {
        let memory = &grown.memory_kib;
        tiles.push(tile("memory at first", format!("{:.1} MiB", memory.first / 1024.0)));
        tiles.push(tile("memory at the end", format!("{:.1} MiB", memory.last / 1024.0)));
        tiles.push(tile("memory growth", format!("{:+.1} MiB/h", memory.per_hour / 1024.0)));
        tiles.push(tile("open files growth", format!("{:+.1}", grown.files.total())));
        tiles.push(tile("threads", format!("{:.0}", grown.threads.last)));
    }
    if let Some(bytes) = report.log_bytes_per_answer() {
        tiles.push(tile("log per answer", format!("{bytes:.0} B")));
    }
    tiles
}

fn figures(samples: &[Sample]) -> Result<Vec<Figure>, ChartError> {
    let figure = |told: &Told| {
        let line = |(number, (name, read)): (usize, &(&str, Read))| Line {
            name: (*name).to_owned(),
            of: 0,
            dashed: number > 0,
            points: points(samples, *read),
        };
        let lines = told.lines.iter().enumerate().map(line).collect();
        timeline(told.title, told.text.to_owned(), Measure::Of(told.unit), lines)
    };
    TOLD.iter().map(figure).collect()
}

fn gauge(sample: &Sample, name: &str) -> Option<f64> {
    sample.gauges.get(&format!("kvway_{name}")).copied()
}

fn points(samples: &[Sample], read: Read) -> Vec<(f64, Option<f64>)> {
    let span = samples.len().div_ceil(POINTS_MAX).max(1);
    let point = |samples: &[Sample]| {
        let begin = samples.first().map_or(0.0, |sample| sample.second);
        (begin, samples.iter().filter_map(read).max_by(f64::total_cmp))
    };
    samples.chunks(span).map(point).collect()
}

fn origin(report: &Report) -> Table {
    let machine = &report.origin.machine;
    let rows = [
        ("gateway", report.version.clone().unwrap_or_else(|| "unknown".to_owned())),
        ("seed", report.seed.to_string()),
        ("warm-up", time(report.warm_up_seconds * 1e6)),
        ("looked at every", time(report.every_seconds * 1e6)),
        ("memory may grow by", format!("{} KiB", count(report.bounds.memory_kib))),
        ("open files may grow by", count(report.bounds.files)),
        ("threads may grow by", count(report.bounds.threads)),
        ("processor", format!("{}, {} cores", machine.cpu_model, machine.cores)),
        ("kernel", machine.kernel.clone()),
    ];
    let row =
        |(name, value): (&str, String)| Row { name: name.to_owned(), cells: vec![value], marked: false };
    Table {
        caption: "Origin".to_owned(),
        head: vec!["fact".to_owned(), "value".to_owned()],
        rows: rows.into_iter().map(row).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::soak::tests::report;

    #[test]
    fn a_soak_that_holds_and_one_that_does_not_are_told_apart() {
        let held = soak(&report(0)).unwrap();
        assert!(
            held.contains("It holds") && !held.contains("class=\"loud\"") && held.contains("Resident memory")
        );
        assert_eq!(held.matches("<figure").count(), 6);
        assert!(
            soak(&report(90_000)).unwrap().contains("<li class=\"loud\">It does not hold: resident memory")
        );
    }
}
