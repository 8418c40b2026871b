//! Configurations of Apache dubbo-go-pixiu → what they mean here. `docs/pixiu.md` has the table of what becomes what.
//!
//! Called by `main` for `--pixiu FILE`. A file is turned into the tree of a kvway file, each value at the line it came
//! from, and that tree is read and checked like any other: so whatever is refused names the line of the Pixiu file, and
//! what is accepted can be printed as a kvway file and means the same. What has no counterpart becomes a note. Nothing
//! of Pixiu's own defaults is taken but where this room says so.
//!
//! | file | |
//! |---|---|
//! | `fields.rs` | a mapping of the file, which remembers what was asked for; its lenient values |
//! | `listener.rs` | listeners, their filters, routes |
//! | `filter.rs` | the filters `ai.kvcache` and `llm.proxy` |
//! | `cluster.rs` | clusters and endpoints |
//! | `output.rs` | the tree that is made |

mod cluster;
mod fields;
mod filter;
mod listener;
mod output;

use std::path::Path;
use std::time::Duration;

use super::error::{ConfigError, Fault};
use super::spot::Spot;
use super::tree::Node;
use super::values::duration_text;
use super::{Config, environment, limits, read, text_of, tree_of};
use fields::Fields;
use listener::Listeners;
use output::Map;

/// Where the metrics are served when the file says that they are, but not where.
const METRICS_PORT: &str = "9090";

const OPEN: &str =
    "the whole admin listener is open to everybody here, /state as well; see admin of kvway.yaml";

/// A configuration that was made from one of Pixiu.
#[derive(Debug)]
pub struct Imported {
    /// What the file means here.
    pub config: Config,
    /// What of the file has no effect or another one than there: one line each, with file, line and key.
    pub notes: Vec<String>,
}

impl Config {
    /// Reads a configuration of Apache dubbo-go-pixiu, with the environment of the process.
    ///
    /// # Errors
    /// The first thing that is wrong, as one line.
    pub fn import_pixiu(path: &Path) -> Result<Imported, ConfigError> {
        let file = path.display().to_string();
        let imported = text_of(path).and_then(|text| import(&text, &file, &environment));
        imported.map_err(|fault| fault.into_error(&file))
    }

    /// [`import_pixiu`](Self::import_pixiu) of a text; `name` stands for the file in messages.
    ///
    /// # Errors
    /// The first thing that is wrong, as one line.
    pub fn parse_pixiu(
        text: &str,
        name: &str,
        lookup: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Imported, ConfigError> {
        import(text, name, lookup).map_err(|fault| fault.into_error(name))
    }
}

fn import(text: &str, file: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<Imported, Fault> {
    let mut notes = Notes::default();
    let translated = translate(&tree_of(text, lookup)?, &mut notes)?;
    let config = read(&translated)?;
    Ok(Imported { config, notes: notes.lines(file) })
}

/// What a file says without effect here.
#[derive(Default)]
struct Notes(Vec<(usize, String)>);

impl Notes {
    fn add(&mut self, spot: &Spot<'_>, what: &str) {
        self.0.push((spot.line(), format!("{}: {what}", spot.path())));
    }

    fn lines(mut self, file: &str) -> Vec<String> {
        self.0.sort_by_key(|(line, _)| *line);
        self.0.into_iter().map(|(line, what)| format!("{file}:{line}: {what}")).collect()
    }
}

/// The tree of a Pixiu file → that of a kvway file.
fn translate(root: &Node, notes: &mut Notes) -> Result<Node, Fault> {
    let mut top = Fields::of(&Spot::root(root))?;
    let metric = top.take("metric");
    let mut resources = match top.take("static_resources") {
        Some(resources) => {
            top.finish(notes);
            Fields::of(&resources)?
        }
        None => top,
    };
    let listeners = resources.take("listeners");
    let clusters = cluster::list(resources.take("clusters"), &resources, notes)?;
    let shutdown = resources.take("shutdown_config");
    let listeners = match listeners {
        Some(spot) => Listeners::read(&spot, notes)?,
        None => Listeners::of_short_form(&mut resources, &clusters, notes)?,
    };
    resources.finish(notes);

    let mut out = Map::at(root.line);
    if let Some(grace_period) = shutdown.map(|spot| grace_period(&spot, notes)).transpose()?.flatten() {
        out.set("server", Map::at(root.line).with("grace_period", grace_period));
    }
    out.set("admin", admin(root.line, metric.as_ref(), notes)?);
    let timeouts = timeouts(&listeners, root.line);
    if !timeouts.is_empty() {
        out.set("timeouts", timeouts);
    }
    out.set("routes", listeners.routes(&clusters, notes)?);
    out.set("clusters", cluster::output(clusters, &listeners, notes));
    out.set("listeners", listeners.addresses);
    Ok(out.into())
}

fn grace_period(spot: &Spot<'_>, notes: &mut Notes) -> Result<Option<Node>, Fault> {
    let mut fields = Fields::of(spot)?;
    let timeout = fields.duration("timeout")?;
    for key in ["step_timeout", "reject_policy"] {
        fields.without_effect(
            key,
            "without effect: new requests are served until the listeners close",
            notes,
        );
    }
    fields.finish(notes);
    Ok(timeout.map(|(spot, timeout)| output::scalar(spot.line(), duration_text(timeout))))
}

/// Pixiu serves its metrics on a port of their own, for everybody: that becomes the admin listener.
fn admin(line: usize, metric: Option<&Spot<'_>>, notes: &mut Notes) -> Result<Map, Fault> {
    let out = Map::at(line).with("pixiu_metrics", output::scalar(line, "true"));
    let Some(spot) = metric else { return Ok(out) };
    let mut fields = Fields::of(spot)?;
    let enabled = fields.flag("enable")?.unwrap_or(false);
    let port = fields.count("prometheus_port")?.filter(|(_, port)| *port > 0);
    let path = fields.take("prometheus_metrics_path");
    fields.without_effect("prometheus_fetch_metric_url", "without effect", notes);
    fields.finish(notes);
    if let Some(path) = path.filter(|path| path.shown().trim_matches('"') != "/metrics") {
        notes.add(&path, "without effect: metrics are at /metrics");
    }
    if !enabled {
        notes.add(spot, "not enabled: no metrics and no admin listener");
        return Ok(out.with("address", output::scalar(spot.line(), "null")));
    }
    let (spot, port) = match &port {
        Some((spot, port)) => (spot, port.to_string()),
        None => (spot, METRICS_PORT.to_owned()),
    };
    notes.add(spot, OPEN);
    Ok(out.with("address", output::scalar(spot.line(), format!("0.0.0.0:{port}"))))
}

/// Pixiu bounds an answer as a whole; the bounds within it must not be longer.
fn timeouts(listeners: &Listeners<'_>, line: usize) -> Map {
    let default = limits::Timeouts::default();
    let mut out = Map::at(line);
    let mut set = |key, (line, timeout): (usize, Duration)| {
        out.set(key, output::scalar(line, duration_text(timeout)));
    };
    if let Some(idle) = listeners.idle_timeout {
        set("idle", idle);
    }
    if let Some(read) = listeners.read_timeout {
        set("header", read);
        set("body", read);
    }
    let ends = [listeners.write_timeout, listeners.answer_timeout];
    if let Some((line, total)) = ends.into_iter().flatten().min_by_key(|(_, timeout)| *timeout) {
        set("first_byte", (line, total.min(default.first_byte)));
        set("between_bytes", (line, total.min(default.between_bytes)));
        set("total", (line, total));
    }
    out
}
