//! The report of one or several runs: one page of HTML with charts, that needs no network and no script.
//!
//! Asked for by `main` and by `soak`. In the order of reading: `section` says what was measured, `figure` what is drawn,
//! `chart` draws; `templates/report.html` is the page. Pure. All that comes from a result is escaped, by the template
//! or by the library that draws.
mod chart;
mod figure;
mod section;
mod soak;

use askama::Template;

pub(crate) use chart::ChartError;
use chart::Drawn;
use figure::Figure;
pub(crate) use soak::soak;

use crate::result::RunResult;

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PageError {
    #[error(transparent)]
    Chart(#[from] ChartError),
    #[error("the page cannot be written: {0}")]
    Template(#[from] askama::Error),
}

/// The whole page, as the template fills it in.
#[derive(Template)]
#[template(path = "report.html")]
struct Page {
    title: String,
    subtitle: String,
    style: &'static str,
    notes: Vec<Note>,
    keys: Vec<Key>,
    tiles: Vec<Tile>,
    headlines: Option<Table>,
    figures: Vec<Figure>,
    tables: Vec<Table>,
    words: &'static [(&'static str, &'static str)],
}

/// What a reader has to know before the figures.
#[derive(Debug, PartialEq)]
struct Note {
    /// Whether the figures are worth less for it.
    loud: bool,
    text: String,
}

/// A result in the legend.
struct Key {
    colour: &'static str,
    label: String,
}

/// A figure in large letters.
struct Tile {
    name: String,
    value: String,
}

/// Rows of cells, the first of which names its row.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) caption: String,
    pub(crate) head: Vec<String>,
    pub(crate) rows: Vec<Row>,
}

/// One row.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) cells: Vec<String>,
    /// To be seen: the results differ here.
    pub(crate) marked: bool,
}

const STYLE: &str = include_str!("../../templates/report.css");

/// The report of these results, side by side in the same charts.
pub(crate) fn page(results: &[RunResult]) -> Result<String, PageError> {
    let results = &section::distinct(results);
    let page = Page {
        title: section::title(results),
        subtitle: section::subtitle(results),
        style: STYLE,
        notes: section::notes(results),
        keys: section::keys(results),
        tiles: section::tiles(results),
        headlines: section::headlines(results),
        figures: figure::all(results)?,
        tables: vec![section::failures(results), section::configuration(results), section::origin(results)]
            .into_iter()
            .filter(|table| !table.rows.is_empty())
            .collect(),
        words: section::WORDS,
    };
    Ok(page.render()?)
}

#[cfg(test)]
pub(crate) mod tests;
