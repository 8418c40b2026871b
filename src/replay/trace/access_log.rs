//! The format of kvway's own access log in JSON, written with `log.block_keys` on.
//!
//! A line is written when its request ends, so the request came `total_ms` before `time`. Lines without `block_keys` are of
//! requests without a prompt, and those that were refused put no load on an engine: both are left out. A key stands for as many
//! tokens as the gateway believed at the time (`block_tokens`); a trace has one number, the median.

use super::line::{Line, needed};
use super::{BlockKey, Format, Parsed, Request};
use std::time::Duration;

/// The client left before an answer began; the engine may have worked all the same.
const CLIENT_GONE: usize = 499;

/// The lines so far.
pub(super) struct Lines {
    block_tokens: Option<usize>,
    answers: Vec<Answer>,
    blocks_of: Vec<usize>,
    without_keys: usize,
    refused: usize,
    without_usage: usize,
}

/// A line that tells of a prompt.
struct Answer {
    came_ms: f64,
    input_tokens: usize,
    output_tokens: Option<usize>,
    keys: Vec<u64>,
}

impl Lines {
    pub(super) fn new(block_tokens: Option<usize>) -> Self {
        let (answers, blocks_of) = (Vec::new(), Vec::new());
        Self { block_tokens, answers, blocks_of, without_keys: 0, refused: 0, without_usage: 0 }
    }

    fn notes(&self, output_tokens: usize) -> Vec<String> {
        let all = self.answers.len();
        let unknown = self.answers.iter().filter(|answer| answer.output_tokens.is_none()).count();
        [
            (self.without_keys, format!("{} lines without block_keys are left out", self.without_keys)),
            (self.refused, format!("{} requests that were refused or failed are left out", self.refused)),
            (
                self.without_usage,
                format!("{} of {all} prompts have the gateway's count of tokens: no usage was seen", self.without_usage),
            ),
            (
                unknown,
                format!("{unknown} of {all} answers are taken to have {output_tokens} tokens, the median: no usage was seen"),
            ),
        ]
        .into_iter()
        .filter_map(|(count, note)| (count > 0).then_some(note))
        .collect()
    }
}

impl Format for Lines {
    fn take(&mut self, line: &Line) -> Result<(), String> {
        let Some(keys) = line.hex_numbers("block_keys")? else {
            self.without_keys += 1;
            return Ok(());
        };
        if line.count("status")?.is_some_and(|status| status >= 400 && status != CLIENT_GONE) {
            self.refused += 1;
            return Ok(());
        }
        let ended_ms = needed("time", line.time("time"))?;
        let took_ms = needed("total_ms", line.milliseconds("total_ms"))?;
        let block_tokens = needed("block_tokens", line.count("block_tokens"))?;
        let input_tokens = if let Some(tokens) = line.count("prompt_tokens")? {
            tokens
        } else {
            self.without_usage += 1;
            needed("prefix_tokens", line.count("prefix_tokens"))?
        };
        let output_tokens = line.count("completion_tokens")?;
        self.blocks_of.push(block_tokens);
        self.answers.push(Answer { came_ms: ended_ms - took_ms, input_tokens, output_tokens, keys });
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Parsed, String> {
        if self.answers.is_empty() {
            let (without_keys, refused) = (self.without_keys, self.refused);
            return Err(format!(
                "there are no requests in it: {without_keys} lines have no block_keys (set log.block_keys), {refused} requests were \
                 refused or failed"
            ));
        }
        let known = self.answers.iter().filter_map(|answer| answer.output_tokens).collect();
        let output_tokens = median(known).unwrap_or_default().max(1);
        let notes = self.notes(output_tokens);
        let Self { block_tokens, answers, blocks_of, .. } = *self;
        let block_tokens = block_tokens.or_else(|| median(blocks_of)).unwrap_or_default().max(1);
        let request = |answer: Answer| {
            let input_tokens = answer.input_tokens.max(1);
            // The gateway may have believed the prompt to be longer than it was.
            let blocks = input_tokens.div_ceil(block_tokens);
            let request = Request {
                at: Duration::ZERO,
                input_tokens,
                output_tokens: answer.output_tokens.unwrap_or(output_tokens).max(1),
                keys: answer.keys.into_iter().take(blocks).map(BlockKey).collect(),
                session: None,
                gap: None,
            };
            (answer.came_ms, request)
        };
        let requests = answers.into_iter().map(request).collect();
        Ok(Parsed { block_tokens, requests, in_order: false, notes })
    }
}

fn median(mut counts: Vec<usize>) -> Option<usize> {
    counts.sort_unstable();
    counts.get(counts.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::super::Reading;
    use super::super::tests::{READING, parse};
    use super::*;

    const LINE: &str = "{\"time\": \"2026-01-31T12:00:05.500Z\", \"status\": 200, \"outcome\": \"complete\", \"total_ms\": 1500.5, \
        \"prompt_tokens\": 40, \"completion_tokens\": 9, \"prefix_tokens\": 44, \"block_tokens\": 16, \
        \"block_keys\": [\"00000000000000ff\", \"8000000000000000\", \"0000000000000001\"]}\n";

    #[test]
    fn a_request_came_as_long_before_its_line_as_it_took() {
        let earlier = LINE.replace("1500.5", "2000.5").replace("40", "24");
        let (trace, notes) = parse(&format!("{LINE}{earlier}"), READING).unwrap();
        assert_eq!((trace.block_tokens, notes), (16, Vec::new()));
        let [first, second] = trace.requests.as_slice() else { panic!("{trace:?}") };
        assert_eq!((first.at, second.at), (Duration::ZERO, Duration::from_millis(500)));
        assert_eq!((second.input_tokens, second.output_tokens), (40, 9));
        assert_eq!(*second.keys, [BlockKey(255), BlockKey(1 << 63), BlockKey(1)]);
        assert_eq!(
            *first.keys,
            [BlockKey(255), BlockKey(1 << 63)],
            "a prompt has no more blocks than tokens fill"
        );
    }

    #[test]
    fn what_no_engine_worked_on_is_left_out_and_told() {
        let models = "{\"time\": \"2026-01-31T12:00:05.500Z\", \"status\": 200, \"block_keys\": null}\n";
        let refused = LINE.replace("200", "503");
        let gone = LINE.replace("200", "499");
        let (trace, notes) = parse(&format!("{models}{models}{refused}{LINE}{gone}"), READING).unwrap();
        assert_eq!(trace.requests.len(), 2);
        let said = [
            "2 lines without block_keys are left out",
            "1 requests that were refused or failed are left out",
        ];
        assert_eq!(notes, said);
        let nothing = parse(&format!("{models}{refused}"), READING).unwrap_err();
        assert!(
            nothing.contains("1 lines have no block_keys (set log.block_keys), 1 requests were refused"),
            "{nothing}"
        );
    }

    #[test]
    fn what_the_engines_did_not_tell_is_estimated_and_told() {
        let silent =
            LINE.replace("\"prompt_tokens\": 40, \"completion_tokens\": 9", "\"prompt_tokens\": null");
        let (trace, notes) = parse(&format!("{LINE}{silent}"), READING).unwrap();
        let Some(request) = trace.requests.last() else { panic!("{trace:?}") };
        assert_eq!((request.input_tokens, request.output_tokens), (44, 9));
        assert_eq!(notes.len(), 2, "{notes:?}");
    }

    #[test]
    fn blocks_have_the_median_of_what_the_log_says() {
        let text: String =
            [16, 4, 20, 18, 5].map(|tokens| LINE.replace("16,", &format!("{tokens},"))).concat();
        assert_eq!(parse(&text, READING).unwrap().0.block_tokens, 16);
        assert_eq!(parse(&text, Reading { block_tokens: Some(32), ..READING }).unwrap().0.block_tokens, 32);
    }

    #[test]
    fn broken_lines_are_told_with_their_number() {
        for (from, to, said) in [
            ("2026-01-31T", "31.1.2026 ", "`time` is not a time like 2026-01-31T12:00:00.000Z"),
            ("\"total_ms\": 1500.5, ", "", "`total_ms` is missing"),
            ("\"block_tokens\": 16, ", "", "`block_tokens` is missing"),
            (
                "\"prompt_tokens\": 40, \"completion_tokens\": 9, \"prefix_tokens\": 44, ",
                "",
                "`prefix_tokens` is missing",
            ),
            ("00000000000000ff", "ff", "`block_keys` is not a list of texts of 16 hexadecimal digits"),
            (
                "00000000000000ff",
                "+0000000000000ff",
                "`block_keys` is not a list of texts of 16 hexadecimal digits",
            ),
        ] {
            let broken = LINE.replacen(from, to, 1);
            assert_eq!(parse(&format!("{LINE}{broken}"), READING).unwrap_err(), format!("2: {said}"));
        }
    }
}
