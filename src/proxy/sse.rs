//! A stream of server-sent events, read as far as its first token. Pure.
//!
//! Fed by [`super::response`] with each chunk until it has seen data; a line is kept as far as it tells its field, and a
//! stream is not read any more from then on. It does not look into the data: who sends an event sends a token.

/// Events that engines send before a prompt is computed: the beginning of an answer to `/v1/responses`, and what keeps a
/// connection of `/v1/messages` alive.
const BEFORE_TOKENS: [&[u8]; 4] = [b"response.created", b"response.queued", b"response.in_progress", b"ping"];

/// What is kept of a line: more than `event:` and the longest name above.
const LINE_BYTES_MAX: usize = 32;

/// How far a stream has been read.
#[derive(Debug, Default)]
pub struct Events {
    line: [u8; LINE_BYTES_MAX],
    line_bytes: usize,
    after_return: bool,
    before_tokens: bool,
}

impl Events {
    /// Reads on; whether this chunk has the first data that stands for a token. Not to be asked again then.
    pub fn brings_token(&mut self, chunk: &[u8]) -> bool {
        chunk.iter().any(|&byte| self.read(byte))
    }

    fn read(&mut self, byte: u8) -> bool {
        let second_half = byte == b'\n' && self.after_return;
        self.after_return = byte == b'\r';
        if second_half {
            return false;
        }
        if matches!(byte, b'\n' | b'\r') {
            self.end_line();
            return false;
        }
        if let Some(place) = self.line.get_mut(self.line_bytes) {
            *place = byte;
            self.line_bytes += 1;
        }
        !self.before_tokens && self.value(b"data:").is_some_and(|value| !value.is_empty())
    }

    fn end_line(&mut self) {
        if self.line_bytes == 0 {
            self.before_tokens = false;
        } else if let Some(name) = self.value(b"event:") {
            self.before_tokens = BEFORE_TOKENS.contains(&name);
        }
        self.line_bytes = 0;
    }

    /// The value of the line so far, if it is of this field.
    fn value(&self, field: &[u8]) -> Option<&[u8]> {
        self.line.get(..self.line_bytes)?.strip_prefix(field).map(<[u8]>::trim_ascii)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// After how many bytes the first token is seen.
    fn seen_after(stream: &str) -> Option<usize> {
        let mut events = Events::default();
        stream.bytes().position(|byte| events.brings_token(&[byte])).map(|at| at + 1)
    }

    #[test]
    fn data_that_is_not_empty_is_a_token() {
        for (stream, after) in [
            ("data: {\"choices\":[]}\n\n", Some(7)),
            ("data:x", Some(6)),
            ("\u{feff}data: x", None),
            ("event: content_block_delta\ndata: {}\n\n", Some(34)),
            ("id: 7\nretry: 5\ndata: x", Some(22)),
        ] {
            assert_eq!(seen_after(stream), after, "{stream:?}");
        }
    }

    #[test]
    fn comments_other_fields_and_empty_data_are_none() {
        for stream in [
            ": data: x\n\n",
            ":\n\n",
            "\n\n",
            "event: data: x\n\n",
            "data:\n\ndata: \ndata\n\n",
            "xdata: x\n\n",
            "database: x\n",
        ] {
            assert_eq!(seen_after(stream), None, "{stream:?}");
            assert_eq!(seen_after(&format!("{stream}data: x")), Some(stream.len() + 7), "{stream:?}");
        }
    }

    #[test]
    fn what_an_engine_says_before_it_computes_is_none() {
        for end in ["\n", "\r\n", "\r"] {
            let early = format!(
                "event: response.created{end}data: {{}}{end}{end}event:response.in_progress {end}data: {{}}{end}{end}event: ping{end}data: {{}}{end}{end}"
            );
            assert_eq!(seen_after(&early), None, "{early:?}");
            for next in ["data: x", "event: response.output_text.delta\ndata: x"] {
                assert_eq!(
                    seen_after(&format!("{early}{next}")),
                    Some(early.len() + next.len()),
                    "{early:?}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn the_chunk_with_the_token_is_found_wherever_chunks_break(cuts in prop::collection::vec(0_usize..50, 0..9)) {
            const STREAM: &str = ": keep-alive\r\n\r\nevent: ping\ndata: {}\n\ndata: {\"x\":1}\n\n";
            let after = seen_after(STREAM).unwrap();
            let mut cuts = cuts;
            cuts.extend([0, STREAM.len()]);
            cuts.sort_unstable();
            let mut events = Events::default();
            let found = cuts.windows(2).find(|cut| events.brings_token(&STREAM.as_bytes()[cut[0]..cut[1]])).unwrap();
            prop_assert!((found[0]..found[1]).contains(&(after - 1)));
        }
    }
}
