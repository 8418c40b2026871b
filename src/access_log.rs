//! One line per request, written off the request path.
//!
//! `proxy` hands over an [`Entry`] at the end of each request; it becomes a line in a bounded buffer, which one thread of
//! its own writes every 100 ms, so that no request waits for a disk and none wakes a thread. When the buffer is
//! full the line is dropped and counted. No prompt, header, query or key is part of an entry; where blocks are told, they
//! have pseudonyms.

use crate::config;
use parking_lot::{Condvar, Mutex};
use prometheus::IntCounter;
use serde::{Serialize, Serializer};
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How long a line may wait for company.
const FLUSH_PERIOD: Duration = Duration::from_millis(100);
/// The lines that may wait, in bytes; more are dropped.
const BUFFER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What is told of a request.
#[derive(Debug, Serialize)]
pub struct Entry<'a> {
    /// When it ended; told as RFC 3339 in UTC, to the millisecond.
    #[serde(serialize_with = "rfc3339")]
    pub time: SystemTime,
    /// Its id, taken from the client or made.
    pub request_id: &'a str,
    /// The client's address.
    pub client: Option<&'a str>,
    /// `HTTP/1.1` and so on, as the client spoke.
    pub protocol: &'a str,
    /// Its method.
    pub method: &'a str,
    /// Its path without the query.
    pub path: &'a str,
    /// The status that the client was sent; 499 when it left before.
    pub status: u16,
    /// How it ended.
    pub outcome: &'a str,
    /// The cluster it was routed to.
    pub cluster: Option<&'a str>,
    /// The model it asked for.
    pub model: Option<&'a str>,
    /// The backend of the last try.
    pub backend: Option<&'a str>,
    /// Why that backend.
    pub reason: Option<&'a str>,
    /// What became of what is believed of caches; none where nothing is asked about them.
    pub hint: Option<&'a str>,
    /// Tokens of the prompt that were believed to be cached there.
    pub matched_tokens: Option<usize>,
    /// Tries made.
    pub tries: usize,
    /// Why tries were repeated, in order.
    pub retried: &'a [&'static str],
    /// Bytes of the request's body.
    pub body_bytes: usize,
    /// Bytes of the answer's body.
    pub answer_bytes: usize,
    /// From the header to the end of the request's body.
    pub body_ms: Milliseconds,
    /// From the header to the first token: the first data of a stream, the header of any other answer; none without success.
    pub first_token_ms: Option<Milliseconds>,
    /// From the header to the end.
    pub total_ms: Milliseconds,
    /// Tokens of the prompt, from the engine's usage.
    pub prompt_tokens: Option<u64>,
    /// Tokens of the prompt that the engine had cached.
    pub cached_tokens: Option<u64>,
    /// Tokens generated.
    pub completion_tokens: Option<u64>,
    /// Tokens of the prompt as its backend was chosen by them: counted or estimated, by the gateway.
    pub prefix_tokens: Option<usize>,
    /// Tokens of one of its blocks.
    pub block_tokens: Option<usize>,
    /// Pseudonyms of its blocks, from its start; as many as are told of one prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_keys: Option<&'a [Hex]>,
}

fn rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_millis(*time))
}

/// A time that is told in milliseconds, to the microsecond: finer than anybody reads.
#[derive(Clone, Copy, Debug)]
pub struct Milliseconds(pub Duration);

impl Milliseconds {
    /// Whole ones, and the microseconds beyond.
    fn parts(self) -> (u64, u32) {
        (self.0.as_secs() * 1000 + u64::from(self.0.subsec_millis()), self.0.subsec_micros() % 1000)
    }
}

impl Serialize for Milliseconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64((self.0.as_secs_f64() * 1e6).floor() / 1e3)
    }
}

/// Fields that the text form leaves out.
const JSON_ONLY: [&str; 2] = ["block_tokens", "block_keys"];

/// A number that is told as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Hex(pub u64);

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:016x}", self.0))
    }
}

#[derive(Default)]
struct Buffer {
    lines: Vec<u8>,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    buffer: Mutex<Buffer>,
    closing: Condvar,
    written: Condvar,
}

/// The access log; cheap to clone.
#[derive(Clone)]
pub struct AccessLog {
    shared: Option<Arc<Shared>>,
    json: bool,
    dropped: IntCounter,
}

impl AccessLog {
    /// Opens the log and starts its thread; with `access: off` it does nothing.
    ///
    /// # Errors
    /// When the file cannot be opened for appending or the thread cannot be started.
    pub fn open(log: &config::Log, dropped: IntCounter) -> io::Result<Self> {
        let shared = if log.access == config::AccessLog::Off {
            None
        } else {
            let out: Box<dyn Write + Send> = match &log.file {
                Some(path) => Box::new(OpenOptions::new().create(true).append(true).open(path)?),
                None => Box::new(io::stdout()),
            };
            let shared = Arc::new(Shared::default());
            let writer = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("access log".to_owned())
                .spawn(move || write_lines(&writer, out))?;
            Some(shared)
        };
        Ok(Self { shared, json: log.access == config::AccessLog::Json, dropped })
    }

    /// Whether entries are wanted at all.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.shared.is_some()
    }

    /// Adds a line.
    pub fn write(&self, entry: &Entry<'_>) {
        let Some(shared) = &self.shared else { return };
        let mut buffer = shared.buffer.lock();
        let before = buffer.lines.len();
        let written = if self.json {
            Line(&mut buffer.lines).write(entry).is_ok()
        } else {
            write_text(&mut buffer.lines, entry).is_ok()
        };
        buffer.lines.push(b'\n');
        if !written || buffer.lines.len() > BUFFER_BYTES_MAX {
            buffer.lines.truncate(before);
            drop(buffer);
            self.dropped.inc();
        }
    }

    /// Writes what waits and ends the thread; waits until that is done. Later entries are lost.
    pub fn close(&self) {
        let Some(shared) = &self.shared else { return };
        let mut buffer = shared.buffer.lock();
        if !buffer.closed {
            buffer.closed = true;
            shared.closing.notify_one();
            shared.written.wait(&mut buffer);
        }
    }
}

fn write_lines(shared: &Shared, mut out: Box<dyn Write + Send>) {
    let mut lines = Vec::new();
    let mut failed = false;
    loop {
        let closed = {
            let mut buffer = shared.buffer.lock();
            if !buffer.closed {
                shared.closing.wait_for(&mut buffer, FLUSH_PERIOD);
            }
            std::mem::swap(&mut lines, &mut buffer.lines);
            buffer.closed
        };
        let outcome = out.write_all(&lines).and_then(|()| out.flush());
        lines.clear();
        if let Err(error) = &outcome
            && !failed
        {
            tracing::error!(%error, "the access log cannot be written; lines are lost until it can");
        }
        failed = outcome.is_err();
        if closed {
            let _buffer = shared.buffer.lock();
            shared.written.notify_all();
            return;
        }
    }
}

/// One line of JSON: what serde would make of an [`Entry`], in a fifth of the time, since names and most texts need no look.
struct Line<'a>(&'a mut Vec<u8>);

/// A name that needs no escapes, between a comma and a colon.
macro_rules! name {
    ($name:literal) => {
        concat!(",\"", $name, "\":").as_bytes()
    };
}

impl Line<'_> {
    fn write(&mut self, entry: &Entry<'_>) -> serde_json::Result<()> {
        let start = self.0.len();
        self.time(name!("time"), entry.time);
        self.text(name!("request_id"), Some(entry.request_id))?;
        self.plain(name!("client"), entry.client);
        self.plain(name!("protocol"), Some(entry.protocol));
        self.text(name!("method"), Some(entry.method))?;
        self.text(name!("path"), Some(entry.path))?;
        self.value(name!("status"), &entry.status)?;
        self.plain(name!("outcome"), Some(entry.outcome));
        self.text(name!("cluster"), entry.cluster)?;
        self.text(name!("model"), entry.model)?;
        self.text(name!("backend"), entry.backend)?;
        self.plain(name!("reason"), entry.reason);
        self.plain(name!("hint"), entry.hint);
        self.value(name!("matched_tokens"), &entry.matched_tokens)?;
        self.value(name!("tries"), &entry.tries)?;
        self.value(name!("retried"), &entry.retried)?;
        self.value(name!("body_bytes"), &entry.body_bytes)?;
        self.value(name!("answer_bytes"), &entry.answer_bytes)?;
        self.milliseconds(name!("body_ms"), Some(entry.body_ms))?;
        self.milliseconds(name!("first_token_ms"), entry.first_token_ms)?;
        self.milliseconds(name!("total_ms"), Some(entry.total_ms))?;
        self.value(name!("prompt_tokens"), &entry.prompt_tokens)?;
        self.value(name!("cached_tokens"), &entry.cached_tokens)?;
        self.value(name!("completion_tokens"), &entry.completion_tokens)?;
        self.value(name!("prefix_tokens"), &entry.prefix_tokens)?;
        self.value(name!("block_tokens"), &entry.block_tokens)?;
        if let Some(keys) = entry.block_keys {
            self.value(name!("block_keys"), &keys)?;
        }
        if let Some(comma) = self.0.get_mut(start) {
            *comma = b'{';
        }
        self.0.push(b'}');
        Ok(())
    }

    fn text(&mut self, name: &[u8], text: Option<&str>) -> serde_json::Result<()> {
        self.0.extend_from_slice(name);
        // A loop without an exit, which a compiler makes a few instructions of.
        let is_plain = |text: &&str| {
            text.bytes()
                .fold(true, |plain, byte| plain & matches!(byte, b' ' | b'!' | b'#'..=b'[' | b']'..=b'~'))
        };
        match text.filter(is_plain) {
            Some(text) => {
                self.0.push(b'"');
                self.0.extend_from_slice(text.as_bytes());
                self.0.push(b'"');
                Ok(())
            }
            None => write_json(self.0, &text),
        }
    }

    fn value(&mut self, name: &[u8], value: &impl Serialize) -> serde_json::Result<()> {
        self.0.extend_from_slice(name);
        serde_json::to_writer(&mut *self.0, value)
    }

    /// What has nothing that would have to be escaped.
    fn plain(&mut self, name: &[u8], text: Option<&str>) {
        self.0.extend_from_slice(name);
        match text {
            Some(text) => {
                self.0.push(b'"');
                self.0.extend_from_slice(text.as_bytes());
                self.0.push(b'"');
            }
            None => self.0.extend_from_slice(b"null"),
        }
    }

    fn milliseconds(&mut self, name: &[u8], time: Option<Milliseconds>) -> serde_json::Result<()> {
        let parts = time.map(Milliseconds::parts);
        self.value(name, &parts.map(|(whole, _)| whole))?;
        if let Some((_, micros)) = parts {
            let digit = |place: u32| b'0' + u8::try_from(micros / place % 10).unwrap_or_default();
            self.0.extend_from_slice(&[b'.', digit(100), digit(10), digit(1)]);
            while self.0.ends_with(b"0") && !self.0.ends_with(b".0") {
                self.0.pop();
            }
        }
        Ok(())
    }

    fn time(&mut self, name: &[u8], time: SystemTime) {
        self.0.extend_from_slice(name);
        // A vector takes all that is written to it.
        let _written = write!(self.0, "\"{}\"", humantime::format_rfc3339_millis(time));
    }
}

/// As JSON in which nothing is left that a terminal or a reader of lines could take for a command or an end of line.
fn write_json(out: &mut Vec<u8>, value: &impl Serialize) -> serde_json::Result<()> {
    value.serialize(&mut serde_json::Serializer::with_formatter(out, Harmless))
}

/// Escapes the control characters that JSON itself allows: DEL, the C1 set, and the separators of lines and paragraphs.
struct Harmless;

impl serde_json::ser::Formatter for Harmless {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        if fragment.is_ascii() && !fragment.contains('\u{7f}') {
            return writer.write_all(fragment.as_bytes());
        }
        fragment.chars().try_for_each(|character| {
            if character.is_control() || matches!(character, '\u{2028}' | '\u{2029}') {
                write!(writer, "\\u{:04x}", u32::from(character))
            } else {
                write!(writer, "{character}")
            }
        })
    }
}

/// `key=value` pairs; what could break a line or a pair is quoted and escaped as in JSON.
fn write_text(out: &mut Vec<u8>, entry: &Entry<'_>) -> serde_json::Result<()> {
    let serde_json::Value::Object(fields) = serde_json::to_value(entry)? else {
        return Ok(());
    };
    let fields = fields.iter().filter(|(key, _)| !JSON_ONLY.contains(&key.as_str()));
    for (at, (key, value)) in fields.enumerate() {
        if at > 0 {
            out.push(b' ');
        }
        out.extend_from_slice(key.as_bytes());
        out.push(b'=');
        match value {
            serde_json::Value::Null => out.push(b'-'),
            serde_json::Value::String(text) if is_plain(text) => out.extend_from_slice(text.as_bytes()),
            other => write_json(&mut *out, other)?,
        }
    }
    Ok(())
}

fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'=' | b'\\'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AccessLog as Format, Log};

    fn entry<'a>() -> Entry<'a> {
        Entry {
            time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_234_567),
            request_id: "id",
            client: None,
            protocol: "HTTP/1.1",
            method: "POST",
            path: "/v1/chat/completions",
            status: 200,
            outcome: "complete",
            cluster: None,
            model: None,
            backend: None,
            reason: None,
            hint: None,
            matched_tokens: None,
            tries: 1,
            retried: &[],
            body_bytes: 0,
            answer_bytes: 0,
            body_ms: Milliseconds(Duration::ZERO),
            first_token_ms: None,
            total_ms: Milliseconds(Duration::from_micros(500)),
            prompt_tokens: None,
            cached_tokens: None,
            completion_tokens: None,
            prefix_tokens: None,
            block_tokens: None,
            block_keys: None,
        }
    }

    #[test]
    fn a_line_is_what_serde_makes_of_it() {
        let full = Entry {
            client: Some("10.0.0.1"),
            path: "/a\"\u{7f}\u{e9}\\",
            cluster: Some("c"),
            model: Some("org/\u{2028}m"),
            backend: Some("b"),
            reason: Some("cost"),
            hint: Some("exact"),
            matched_tokens: Some(1),
            retried: &["stale", "connect"],
            body_ms: Milliseconds(Duration::from_nanos(1_999)),
            first_token_ms: Some(Milliseconds(Duration::from_micros(1_234_560))),
            prompt_tokens: Some(2),
            cached_tokens: Some(3),
            completion_tokens: Some(4),
            prefix_tokens: Some(5),
            block_tokens: Some(6),
            block_keys: Some(&[Hex(1), Hex(2)]),
            ..entry()
        };
        for entry in [entry(), full] {
            let (mut line, mut by_serde) = (b"before".to_vec(), b"before".to_vec());
            Line(&mut line).write(&entry).unwrap();
            write_json(&mut by_serde, &entry).unwrap();
            assert_eq!(String::from_utf8(line).unwrap(), String::from_utf8(by_serde).unwrap());
        }
    }

    fn lines(access: Format, path: &str) -> Vec<String> {
        logged(access, &Entry { path, status: 200, retried: &["stale"], ..entry() })
    }

    fn logged(access: Format, entry: &Entry<'_>) -> Vec<String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let dropped = IntCounter::new("dropped", "dropped").unwrap();
        let settings = Log { access, file: Some(file.path().to_owned()), ..Log::default() };
        let log = AccessLog::open(&settings, dropped).unwrap();
        log.write(entry);
        log.close();
        std::fs::read_to_string(file.path()).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_path_cannot_forge_a_line() {
        for access in [Format::Json, Format::Text] {
            let lines = lines(access, "/a\n{\"status\":500} status=500\u{1b}[31m\u{9b}1m\u{7f}\u{2028}");
            assert_eq!(lines.len(), 1, "{lines:?}");
            assert!(!lines[0].contains(|c: char| c.is_control() || c == '\u{2028}'), "{lines:?}");
        }
    }

    #[test]
    fn a_json_line_can_be_read_back() {
        let lines = lines(Format::Json, "/v1/models");
        let value: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(value["status"], 200);
        assert_eq!(value["retried"][0], "stale");
        assert!(value["backend"].is_null() && value.get("block_keys").is_none());
    }

    #[test]
    fn the_longest_list_of_blocks_is_one_line_and_no_part_of_text() {
        let blocks = vec![Hex(0xf); 65536];
        let entry =
            Entry { prefix_tokens: Some(7), block_tokens: Some(3), block_keys: Some(&blocks), ..entry() };
        let json = logged(Format::Json, &entry);
        assert!(json[0].len() < BUFFER_BYTES_MAX / 2, "{}", json[0].len());
        let value: serde_json::Value = serde_json::from_str(&json[0]).unwrap();
        assert_eq!(
            (value["block_keys"].as_array().unwrap().len(), &value["block_tokens"]),
            (65536, &3.into())
        );
        assert_eq!(value["block_keys"][65535], "000000000000000f");
        let text = logged(Format::Text, &entry);
        assert!(text[0].contains("prefix_tokens=7") && !text[0].contains("block_"), "{text:?}");
    }
}
