//! What a report says in words and tables: what was run, on what, the headline figures, what a reader has to know.
use std::collections::BTreeSet;

use super::chart::colour;
use super::{Key, Note, Row, Table, Tile};
use crate::headline::{HEADLINES, count, failed, shown, time};
use crate::result::RunResult;

/// What the words of a report mean.
pub(super) const WORDS: &[(&str, &str)] = &[
    ("TTFT", "time to first token: from when a request was due to the first event of its stream"),
    ("latency", "from when a request was due (in a closed loop: sent) to the end of its answer"),
    ("inter-token gap", "between two events of a stream"),
    ("hit ratio", "tokens that the engines had cached, of all tokens of the prompts"),
    ("errors, shed", "shares of all requests; shed are those answered with 429 or 503"),
    ("p99", "99 % of the values are not above it"),
];

/// The same results, none with a label that another one has: such have their revision or their number behind it.
pub(super) fn distinct(results: &[RunResult]) -> Vec<RunResult> {
    let renamed = |run: &RunResult, label: String| RunResult { label, ..run.clone() };
    let alike =
        |run: &RunResult, all: &[RunResult]| all.iter().filter(|it| it.label == run.label).count() > 1;
    let label = |run: &RunResult| format!("{}, {}", run.label, run.revision);
    let named =
        results.iter().map(|run| if alike(run, results) { renamed(run, label(run)) } else { run.clone() });
    let named: Vec<RunResult> = named.collect();
    let numbered = named.iter().enumerate().map(|(number, run)| {
        let label = format!("{} ({})", run.label, number + 1);
        if alike(run, &named) { renamed(run, label) } else { run.clone() }
    });
    numbered.collect()
}

pub(super) fn title(results: &[RunResult]) -> String {
    match results {
        [run] => run.label.clone(),
        runs => format!("{} runs side by side", runs.len()),
    }
}

pub(super) fn subtitle(results: &[RunResult]) -> String {
    let [run] = results else {
        return "kvway-bench: load before an LLM gateway".to_owned();
    };
    let (requests, length) = (count(run.requests), time(run.seconds * 1e6));
    format!("{requests} requests in {length}, {}, revision {}", run.started, run.revision)
}

/// Loud ones first.
pub(super) fn notes(results: &[RunResult]) -> Vec<Note> {
    let mut notes = Vec::new();
    for run in results {
        let of = if results.len() > 1 { format!("{}: ", run.label) } else { String::new() };
        let mut note = |loud, text: String| notes.push(Note { loud, text: format!("{of}{text}") });
        if let Some(behind) = &run.behind {
            note(
                true,
                format!("The load generator fell behind itself, and the figures tell of it. {behind}"),
            );
        }
        if run.interrupted {
            note(true, "The run was interrupted: this is what was measured until then.".to_owned());
        }
        let errors = failed(run);
        if errors > 0 {
            let first = run.first_error.as_deref().map(|first| format!(" The first: {first}."));
            note(true, format!("{} requests failed.{}", count(errors), first.unwrap_or_default()));
        }
        if run.requests == 0 {
            note(true, "No request was answered.".to_owned());
        }
        if run.shed > 0 {
            note(false, format!("{} requests were turned away with 429 or 503.", count(run.shed)));
        }
    }
    notes.sort_by_key(|note| !note.loud);
    notes
}

pub(super) fn keys(results: &[RunResult]) -> Vec<Key> {
    let key = |(of, run): (usize, &RunResult)| Key { colour: colour(of), label: run.label.clone() };
    results.iter().enumerate().map(key).collect()
}

/// Of one result alone.
pub(super) fn tiles(results: &[RunResult]) -> Vec<Tile> {
    let [run] = results else { return Vec::new() };
    let tile = |headline: &crate::headline::Headline| {
        let value = shown((headline.read)(run)?, headline.unit);
        Some(Tile { name: headline.name.to_owned(), value })
    };
    HEADLINES.iter().filter_map(tile).collect()
}

/// Of several results.
pub(super) fn headlines(results: &[RunResult]) -> Option<Table> {
    let rows = HEADLINES.iter().filter_map(|headline| {
        let values: Vec<_> = results.iter().map(headline.read).collect();
        let cell = |value: Option<f64>| value.map_or("–".to_owned(), |value| shown(value, headline.unit));
        values.iter().any(Option::is_some).then(|| Row {
            name: headline.name.to_owned(),
            cells: values.into_iter().map(cell).collect(),
            marked: false,
        })
    });
    (results.len() > 1).then(|| Table {
        caption: "Headline figures".to_owned(),
        head: labels(results, ""),
        rows: rows.collect(),
    })
}

/// The head of a table with a column for each result.
pub(super) fn labels(results: &[RunResult], first: &str) -> Vec<String> {
    std::iter::once(first.to_owned()).chain(results.iter().map(|run| run.label.clone())).collect()
}

/// How many requests ended how.
pub(super) fn failures(results: &[RunResult]) -> Table {
    let kinds: BTreeSet<&String> = results.iter().flat_map(|run| run.errors.keys()).collect();
    let row = |name: &str, read: &dyn Fn(&RunResult) -> u64| Row {
        name: name.to_owned(),
        cells: results.iter().map(|run| count(read(run))).collect(),
        marked: false,
    };
    let mut rows = vec![row("answered", &|run| run.requests), row("shed", &|run| run.shed)];
    for kind in kinds {
        rows.push(row(&format!("error: {kind}"), &|run| run.errors.get(kind).copied().unwrap_or_default()));
    }
    if results.iter().any(|run| run.events > 0) {
        rows.push(row("events of streams", &|run| run.events));
    }
    Table { caption: "Requests".to_owned(), head: labels(results, "outcome"), rows }
}

/// What was asked for; what differs between results is marked.
pub(super) fn configuration(results: &[RunResult]) -> Table {
    let names: BTreeSet<&String> = results.iter().flat_map(|run| run.configuration.keys()).collect();
    let row = |name: &&String| {
        let value = |run: &RunResult| run.configuration.get(*name).map_or("–", String::as_str).to_owned();
        compared(name, results.iter().map(value).collect())
    };
    Table {
        caption: "Configuration".to_owned(),
        head: labels(results, "asked for"),
        rows: names.iter().map(row).collect(),
    }
}

/// When, with what and on what it was measured.
pub(super) fn origin(results: &[RunResult]) -> Table {
    let fact =
        |name: &str, read: &dyn Fn(&RunResult) -> String| compared(name, results.iter().map(read).collect());
    let rows = vec![
        fact("started", &|run| run.started.clone()),
        fact("counted for", &|run| time(run.seconds * 1e6)),
        fact("revision", &|run| run.revision.clone()),
        fact("kvway-bench", &|run| run.version.clone()),
        fact("processor", &|run| format!("{}, {} cores", run.machine.cpu_model, run.machine.cores)),
        fact("memory", &|run| {
            run.machine.memory_kib.map_or("–".to_owned(), |kib| format!("{} MiB", count(kib / 1024)))
        }),
        fact("kernel", &|run| run.machine.kernel.clone()),
    ];
    Table { caption: "Origin".to_owned(), head: labels(results, "measured"), rows }
}

fn compared(name: &str, cells: Vec<String>) -> Row {
    let marked = cells.windows(2).any(|pair| pair.first() != pair.last());
    Row { name: name.to_owned(), cells, marked }
}
