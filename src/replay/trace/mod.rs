//! What was asked, and when: the requests of a trace, read from a file of JSON lines.
//!
//! [`load`] is called by `plan`; `simulation` reads what it gives. `line.rs` reads one line, `mooncake.rs` and `access_log.rs` know
//! the two formats, `spread.rs` undoes the rounding of times. A trace holds no text, only keys of blocks: its memory is 8 bytes
//! for each block of each prompt. A line that is broken refuses the whole file: half a trace is another trace.

mod access_log;
mod line;
mod mooncake;
mod spread;

pub use crate::state::blocks::BlockKey;
use line::Line;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The requests of a trace.
#[derive(Clone, Debug)]
pub struct Trace {
    /// What reports call it.
    pub name: String,
    /// Tokens of one block; the last block of a prompt may have fewer.
    pub block_tokens: usize,
    /// In the order of [`Request::at`].
    pub requests: Vec<Request>,
}

/// One request of a trace.
#[derive(Clone, Debug)]
pub struct Request {
    /// When it came, since the trace's start.
    pub at: Duration,
    /// Tokens of its prompt, at least one.
    pub input_tokens: usize,
    /// Tokens of its answer, at least one.
    pub output_tokens: usize,
    /// The keys of its prompt's blocks, in order; a long prompt of an access log has more blocks than keys.
    pub keys: Arc<[BlockKey]>,
    /// The conversation that it is a turn of.
    pub session: Option<u64>,
    /// How long after the end of its session's previous request it is sent.
    pub gap: Option<Duration>,
}

/// How a file is to be read.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// Tokens of a block, where it is not what the format says: 512, or what the access log tells.
    pub block_tokens: Option<usize>,
    /// Whether times that are rounded are spread within their step.
    pub spread: bool,
    /// Of where in its step a time falls.
    pub seed: u64,
}

/// Why a file is no trace.
#[derive(Debug, PartialEq, Eq)]
pub struct TraceError {
    /// The file, as it was named.
    pub file: String,
    /// The line, from 1, where one is to blame.
    pub line: Option<usize>,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, what } = self;
        match line {
            Some(line) => write!(f, "{file}:{line}: {what}"),
            None => write!(f, "{file}: {what}"),
        }
    }
}

impl std::error::Error for TraceError {}

/// Reads a trace, and what is to be said about it. The name is that of the file without its ending.
///
/// # Errors
/// When the file cannot be read, has no requests, or has a line that is broken.
pub fn load(path: &Path, reading: &Reading) -> Result<(Trace, Vec<String>), TraceError> {
    let file = path.display().to_string();
    let opened = File::open(path).map_err(|error| TraceError {
        file: file.clone(),
        line: None,
        what: error.to_string(),
    })?;
    let name = path.file_stem().map_or_else(|| file.clone(), |stem| stem.to_string_lossy().into_owned());
    read(BufReader::new(opened), name, reading).map_err(|(line, what)| TraceError { file, line, what })
}

/// What is wrong, and in which line.
type Fault = (Option<usize>, String);

/// One of the formats: it takes the lines one by one.
trait Format {
    /// Takes a line; `Err` tells what is wrong with it.
    fn take(&mut self, line: &Line) -> Result<(), String>;
    /// All requests with the milliseconds at which each came, tokens of a block, and what is to be said.
    fn finish(self: Box<Self>) -> Result<Parsed, String>;
}

/// What a format makes of all lines.
struct Parsed {
    block_tokens: usize,
    /// In the order of the file; the times are milliseconds since some moment of the past.
    requests: Vec<(f64, Request)>,
    /// Whether lines are expected in the order in which requests came.
    in_order: bool,
    notes: Vec<String>,
}

fn read(mut lines: impl BufRead, name: String, reading: &Reading) -> Result<(Trace, Vec<String>), Fault> {
    let mut format: Option<Box<dyn Format>> = None;
    let mut bytes = Vec::new();
    for number in 1.. {
        bytes.clear();
        let fault = |what: String| (Some(number), what);
        if lines.read_until(b'\n', &mut bytes).map_err(|error| fault(error.to_string()))? == 0 {
            break;
        }
        let text = bytes.trim_ascii_end();
        if text.is_empty() {
            continue;
        }
        let line = Line::parse(text).map_err(fault)?;
        let format = match &mut format {
            Some(format) => format,
            None => format.insert(recognize(&line, reading).map_err(fault)?),
        };
        format.take(&line).map_err(fault)?;
    }
    let format = format.ok_or_else(|| (None, "there are no requests in it".to_owned()))?;
    let Parsed { block_tokens, mut requests, in_order, mut notes } =
        format.finish().map_err(|what| (None, what))?;
    if in_order && !requests.is_sorted_by(|(before, _), (after, _)| before <= after) {
        notes.push("times go backwards: requests are replayed in the order of their times".to_owned());
    }
    requests.sort_by(|(before, _), (after, _)| before.total_cmp(after));
    if reading.spread
        && let Some(step_ms) = spread::over_steps(&mut requests, reading.seed)
    {
        notes.push(format!("times are rounded to {step_ms:.0} ms: each is spread within its step, by seed"));
    }
    let start_ms = requests.first().map_or(0.0, |(ms, _)| *ms);
    let requests =
        requests.into_iter().map(|(ms, request)| Request { at: milliseconds(ms - start_ms), ..request });
    Ok((Trace { name, block_tokens, requests: requests.collect() }, notes))
}

/// The format of a file, by the fields of its first line.
fn recognize(line: &Line, reading: &Reading) -> Result<Box<dyn Format>, String> {
    if line.has("hash_ids") || line.has("timestamp") {
        Ok(Box::new(mooncake::Lines::new(reading.block_tokens)))
    } else if line.has("time") {
        Ok(Box::new(access_log::Lines::new(reading.block_tokens)))
    } else {
        Err("neither a Mooncake trace (timestamp, input_length, output_length, hash_ids) nor an access log of kvway (time, \
             block_keys)"
            .to_owned())
    }
}

/// A time that was checked when it was read.
fn milliseconds(ms: f64) -> Duration {
    Duration::try_from_secs_f64(ms / 1000.0).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(super) const READING: Reading = Reading { block_tokens: None, spread: true, seed: 1 };

    pub(super) fn parse(text: &str, reading: Reading) -> Result<(Trace, Vec<String>), String> {
        read(text.as_bytes(), "t".to_owned(), &reading).map_err(|(line, what)| match line {
            Some(line) => format!("{line}: {what}"),
            None => what,
        })
    }

    #[test]
    fn files_without_requests_or_of_another_kind_are_refused() {
        for (text, said) in [
            ("", "there are no requests in it"),
            ("\n  \n", "there are no requests in it"),
            ("\n{\"a\": 1}\n", "2: neither a Mooncake trace"),
            ("timestamp,input\n", "1: not JSON"),
            ("[1]\n", "1: not a JSON object"),
        ] {
            let refused = parse(text, READING).unwrap_err();
            assert!(refused.starts_with(said), "{text}: {refused}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = load(Path::new("/absent/trace.jsonl"), &READING).unwrap_err().to_string();
        assert_eq!(error, "/absent/trace.jsonl: No such file or directory (os error 2)");
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic_or_tell_what_is_in_it(
            text in "(\\{(\"(timestamp|input_length|output_length|hash_ids|session|gap|time|block_keys|total_ms)\": (-?[0-9]{1,20}|\"secret\"|null|\\[(secret)?\\]|1e400),?){0,4}\\}?\n?){1,3}"
        ) {
            if let Err(what) = parse(&text, READING) {
                prop_assert!(!what.contains("secret"), "{what}");
            }
        }

        #[test]
        fn requests_are_in_the_order_of_their_times(times in prop::collection::vec(0_u32..50_000, 1..50), spread: bool, seed: u64) {
            let line = |ms: &u32| format!("{{\"timestamp\": {ms}, \"input_length\": 1, \"output_length\": {}, \"hash_ids\": []}}\n", ms + 1);
            let text: String = times.iter().map(line).collect();
            let (trace, _) = parse(&text, Reading { spread, seed, ..READING }).unwrap();
            prop_assert!(trace.requests.is_sorted_by_key(|request| request.at));
            prop_assert!(trace.requests.is_sorted_by_key(|request| request.output_tokens));
            prop_assert_eq!(trace.requests.len(), times.len());
            prop_assert_eq!(trace.requests[0].at, Duration::ZERO);
        }
    }
}
