//! What an answer tells while it passes: status, first token, gaps, `usage`.
//!
//! Fed by the spine with each header and chunk; looks, never changes, and holds at most [`USAGE_BYTES_MAX`] bytes of an
//! answer. Reported once, at the end of the request.

use super::json::{self, Json};
use super::sse::Events;
use http::header::CONTENT_TYPE;
use memchr::memmem::Finder;
use pingora::http::ResponseHeader;
use std::sync::LazyLock;
use tokio::time::Instant;

/// The longest `usage` object that is read; real ones have about 200 bytes.
pub const USAGE_BYTES_MAX: usize = 1024;

/// Tokens as the engine counted them; the names of the three APIs that engines speak.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: Option<u64>,
    /// Tokens generated.
    pub completion_tokens: Option<u64>,
    cached_tokens: Option<u64>,
}

impl Usage {
    /// Tokens of the prompt that the engine found in its cache, where it reports them.
    #[must_use]
    pub fn cached_tokens(&self) -> Option<u64> {
        self.cached_tokens
    }

    /// Reads the object that stands here.
    fn read(json: &mut Json<'_>) -> Self {
        let mut usage = Self::default();
        let number = |json: &mut Json<'_>| json::integer(json.skip()).map(u64::from);
        json.object(|json, key| match &*key {
            b"prompt_tokens" | b"input_tokens" => usage.prompt_tokens = number(json),
            b"completion_tokens" | b"output_tokens" => usage.completion_tokens = number(json),
            b"prompt_tokens_details" | b"input_tokens_details" if json.kind() == Some(b'{') => {
                usage.cached_tokens = Some(0);
                json.object(|json, key| {
                    if *key == *b"cached_tokens" {
                        usage.cached_tokens = Some(number(json).unwrap_or_default());
                    }
                });
            }
            _ => {}
        });
        usage
    }

    /// What this object and an `earlier` one of the same answer tell together: `/v1/messages` streams the tokens of the
    /// prompt at the start and those generated at the end.
    fn after(self, earlier: Self) -> Self {
        Self {
            prompt_tokens: self.prompt_tokens.or(earlier.prompt_tokens),
            completion_tokens: self.completion_tokens.or(earlier.completion_tokens),
            cached_tokens: self.cached_tokens.or(earlier.cached_tokens),
        }
    }
}

/// Follows one answer.
#[derive(Default)]
pub struct Observer {
    /// The final status, once its header was seen.
    pub status: Option<u16>,
    /// Whether the answer is a stream of events.
    pub is_stream: bool,
    /// When the first token was back, set by who books it; `None` = it was not, or the answer is no success.
    pub first_token: Option<Instant>,
    events: Events,
    /// Chunks of a stream from its first token on.
    chunks: u64,
    last_chunk: Option<Instant>,
    usage: UsageReader,
}

impl Observer {
    /// A final header passes.
    pub fn header(&mut self, header: &ResponseHeader) {
        self.status = Some(header.status.as_u16());
        let content_type =
            header.headers.get(CONTENT_TYPE).map(http::HeaderValue::as_bytes).unwrap_or_default();
        self.is_stream = content_type.starts_with(b"text/event-stream");
        self.usage = if self.is_stream || content_type.starts_with(b"application/json") {
            UsageReader::default()
        } else {
            UsageReader::off()
        };
    }

    /// Whether a chunk that passes is the one with the first token. That of an answer in one piece is back with its header.
    pub fn brings_first_token(&mut self, chunk: &[u8]) -> bool {
        self.is_stream
            && self.first_token.is_none()
            && self.status.is_some_and(|status| (200..300).contains(&status))
            && self.events.brings_token(chunk)
    }

    /// A chunk passes.
    pub fn chunk(&mut self, chunk: &[u8]) {
        self.usage.read(chunk);
    }

    /// It is one of a stream; tells the seconds since the one before it.
    pub fn chunk_of_stream(&mut self, now: Instant) -> Option<f64> {
        self.chunks += u64::from(self.first_token.is_some());
        let before = self.last_chunk.replace(now)?;
        Some(now.duration_since(before).as_secs_f64())
    }

    /// Tokens that were generated: as reported (some report 0 at the start), else as many as a stream has had chunks, which
    /// are mostly one token each.
    #[must_use]
    pub fn generated_tokens(&self) -> u64 {
        let reported = self.usage().and_then(|usage| usage.completion_tokens);
        reported.filter(|tokens| *tokens > 0).unwrap_or(self.chunks)
    }

    /// What the `usage` objects that passed told, if any did; of two that differ the later one counts.
    #[must_use]
    pub fn usage(&self) -> Option<Usage> {
        self.usage.last
    }
}

/// The key as it stands in JSON. Inside a generated text its quotes would be escaped, so it cannot be feigned there.
const KEY: &[u8] = b"\"usage\"";
static FIND_KEY: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(KEY));

/// Finds `"usage": {…}` in a stream of chunks, wherever chunks break.
#[derive(Default)]
struct UsageReader {
    state: Reading,
    last: Option<Usage>,
}

#[derive(Default)]
enum Reading {
    Off,
    /// Looking for the key; the last bytes of the chunk before, too short to be the key themselves.
    Key {
        tail: [u8; KEY.len() - 1],
        tail_bytes: usize,
    },
    /// Collecting what follows the key.
    Object(Vec<u8>),
    #[default]
    Fresh,
}

impl UsageReader {
    fn off() -> Self {
        Self { state: Reading::Off, last: None }
    }

    fn read(&mut self, chunk: &[u8]) {
        let mut rest = chunk;
        loop {
            match &mut self.state {
                Reading::Off => return,
                Reading::Fresh => {
                    self.state = Reading::Key { tail: [0; KEY.len() - 1], tail_bytes: 0 };
                }
                Reading::Key { tail, tail_bytes } => {
                    match find_key(tail.get(..*tail_bytes).unwrap_or_default(), rest) {
                        Some(after) => {
                            rest = rest.get(after..).unwrap_or_default();
                            self.state = Reading::Object(Vec::new());
                        }
                        None => return remember(tail, tail_bytes, rest),
                    }
                }
                Reading::Object(object) => {
                    let room = USAGE_BYTES_MAX - object.len();
                    let taken = rest.get(..rest.len().min(room)).unwrap_or_default();
                    // Mostly all of it is here.
                    let mut found = if object.is_empty() { object_at_start(taken) } else { Found::More };
                    if matches!(found, Found::More) {
                        object.extend_from_slice(taken);
                        found = object_at_start(object);
                    }
                    match found {
                        Found::Usage(usage) => self.last = Some(usage.after(self.last.unwrap_or_default())),
                        Found::More if object.len() < USAGE_BYTES_MAX => return,
                        Found::More | Found::Nothing => {}
                    }
                    // What was collected cannot hold the key again: look on in the rest of the chunk.
                    self.state = Reading::Fresh;
                }
            }
        }
    }
}

/// Where `rest` goes on after the key, which may have begun in `tail`.
fn find_key(tail: &[u8], rest: &[u8]) -> Option<usize> {
    for begun in (1..=tail.len()).rev() {
        let (head, end) = KEY.split_at(begun);
        if tail.ends_with(head) && rest.starts_with(end) {
            return Some(end.len());
        }
    }
    FIND_KEY.find(rest).map(|at| at + KEY.len())
}

/// Keeps the last bytes of `tail` and `rest` together, unless the key cannot begin in them.
fn remember(tail: &mut [u8; KEY.len() - 1], tail_bytes: &mut usize, rest: &[u8]) {
    if let Some(end) = rest.last_chunk() {
        *tail = *end;
        *tail_bytes = if end.contains(&b'"') { tail.len() } else { 0 };
        return;
    }
    for &byte in rest {
        if *tail_bytes == tail.len() {
            tail.rotate_left(1);
            *tail_bytes -= 1;
        }
        tail[*tail_bytes] = byte;
        *tail_bytes += 1;
    }
}

enum Found {
    Usage(Usage),
    More,
    Nothing,
}

/// Reads `: {…}` at the start of `bytes`.
fn object_at_start(bytes: &[u8]) -> Found {
    let after_colon = match bytes.trim_ascii_start().split_first() {
        None => return Found::More,
        Some((b':', rest)) => rest.trim_ascii_start(),
        Some(_) => return Found::Nothing,
    };
    match after_colon.first() {
        None => return Found::More,
        Some(b'{') => {}
        Some(_) => return Found::Nothing,
    }
    let mut json = Json::new(after_colon);
    let usage = Usage::read(&mut json);
    if json.is_broken() { Found::More } else { Found::Usage(usage) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STREAM: &str = concat!(
        r#"data: {"choices":[{"delta":{"content":"say \"usage\":{\"prompt_tokens\":9}"}}],"usage":null}"#,
        "\n\n",
        r#"data: {"choices":[],"usage":{"prompt_tokens":5,"total_tokens":8,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":4}},"x":1}"#,
        "\n\ndata: [DONE]\n\n"
    );

    fn read(chunks: &[&[u8]]) -> Option<Usage> {
        let mut reader = UsageReader::default();
        for chunk in chunks {
            reader.read(chunk);
        }
        reader.last
    }

    fn expected() -> Usage {
        Usage { prompt_tokens: Some(5), completion_tokens: Some(3), cached_tokens: Some(4) }
    }

    #[test]
    fn the_other_apis_names_are_understood() {
        let usage =
            read(&[br#"{"usage" : { "input_tokens": 7, "output_tokens": 2, "input_tokens_details": null}}"#])
                .unwrap();
        assert_eq!(
            (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens()),
            (Some(7), Some(2), None)
        );
    }

    #[test]
    fn what_is_told_in_two_places_is_put_together() {
        let usage = read(&[
            br#"{"message":{"usage":{"input_tokens":7,"output_tokens":0}}}"#,
            br#"{"usage":{"output_tokens":3}}"#,
        ]);
        let usage = usage.unwrap();
        assert_eq!((usage.prompt_tokens, usage.completion_tokens), (Some(7), Some(3)));
    }

    #[test]
    fn an_endless_usage_object_is_given_up() {
        let mut reader = UsageReader::default();
        reader.read(br#"{"usage":{"x":""#);
        for _ in 0..100 {
            reader.read(&[b'a'; 100]);
        }
        assert!(!matches!(&reader.state, Reading::Object(_)));
        reader.read(br#"","usage":{"prompt_tokens":1}}"#);
        assert_eq!(reader.last.unwrap().prompt_tokens, Some(1), "and the next one is read");
    }

    #[test]
    fn gaps_are_told_from_the_second_chunk_on() {
        let now = Instant::now();
        let mut observer = Observer { is_stream: true, ..Observer::default() };
        assert_eq!(observer.chunk_of_stream(now), None);
        assert_eq!(observer.chunk_of_stream(now + std::time::Duration::from_secs(1)), Some(1.0));
    }

    proptest! {
        #[test]
        fn usage_is_found_wherever_chunks_break(cuts in prop::collection::vec(0..STREAM.len(), 0..20)) {
            let mut cuts = cuts;
            cuts.extend([0, STREAM.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|cut| &STREAM.as_bytes()[cut[0]..cut[1]]).collect();
            prop_assert_eq!(read(&chunks), Some(expected()));
        }
    }
}
