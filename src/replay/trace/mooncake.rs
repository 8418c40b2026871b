//! The format of the Mooncake traces: one request per line, in the order in which they came.
//!
//! `{"timestamp": ms, "input_length": tokens, "output_length": tokens, "hash_ids": [..]}`. An id stands for all the prompt up to
//! its block's end. Two fields are ours: `session`, and `gap`, the milliseconds from the end of the session's previous request to
//! this one, where a client waits for an answer before it goes on. Other fields are ignored.

use super::line::{Line, needed};
use super::{BlockKey, Format, Parsed, Request, milliseconds};
use std::collections::HashMap;
use std::time::Duration;

/// What the published traces have.
const BLOCK_TOKENS: usize = 512;

/// The lines so far.
pub(super) struct Lines {
    block_tokens: usize,
    requests: Vec<(f64, Request)>,
    /// Numbers for the names of sessions: no more than the file has lines, all of which are in memory.
    sessions: HashMap<String, u64>,
}

impl Lines {
    pub(super) fn new(block_tokens: Option<usize>) -> Self {
        let block_tokens = block_tokens.unwrap_or(BLOCK_TOKENS).max(1);
        Self { block_tokens, requests: Vec::new(), sessions: HashMap::new() }
    }
}

impl Format for Lines {
    fn take(&mut self, line: &Line) -> Result<(), String> {
        let ms = needed("timestamp", line.milliseconds("timestamp"))?;
        let input_tokens = needed("input_length", line.count("input_length"))?;
        let output_tokens = needed("output_length", line.count("output_length"))?;
        let ids = needed("hash_ids", line.numbers("hash_ids"))?;
        if input_tokens == 0 {
            return Err("`input_length` is 0: a prompt has at least one token".to_owned());
        }
        let (whole, all) = (input_tokens / self.block_tokens, input_tokens.div_ceil(self.block_tokens));
        if ids.len() != whole && ids.len() != all {
            let (count, block_tokens) = (ids.len(), self.block_tokens);
            let wanted = if whole == all { all.to_string() } else { format!("{whole} or {all}") };
            return Err(format!(
                "`hash_ids` has {count} ids, {wanted} are wanted: `input_length` is {input_tokens}, a block has {block_tokens} \
                 tokens (--block-tokens)"
            ));
        }
        let session = line.name("session")?.map(|name| {
            let next = self.sessions.len() as u64;
            *self.sessions.entry(name).or_insert(next)
        });
        let gap = line.milliseconds("gap")?.map(milliseconds);
        if gap.is_some() && session.is_none() {
            return Err("`gap` without `session`".to_owned());
        }
        let keys = ids.into_iter().map(key).collect();
        // An engine gives at least one token.
        let output_tokens = output_tokens.max(1);
        let request = Request { at: Duration::ZERO, input_tokens, output_tokens, keys, session, gap };
        self.requests.push((ms, request));
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Parsed, String> {
        let Self { block_tokens, requests, .. } = *self;
        Ok(Parsed { block_tokens, requests, in_order: true, notes: Vec::new() })
    }
}

/// The key of an id. Tables use a key's bits as they are, so the small numbers are mixed (the finalizer of `SplitMix64`); no two
/// become the same.
fn key(id: u64) -> BlockKey {
    let mixed = id.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    BlockKey(mixed ^ (mixed >> 31))
}

#[cfg(test)]
mod tests {
    use super::super::Reading;
    use super::super::tests::{READING, parse};
    use super::*;

    #[test]
    fn lines_become_requests() {
        let text = "{\"timestamp\": 1000, \"input_length\": 1024, \"output_length\": 5, \"hash_ids\": [7, 8], \"x\": {}}\n\n\
             {\"timestamp\": 1250.5, \"input_length\": 600, \"output_length\": 0, \"hash_ids\": [7], \"session\": \"a\"}\n\
             {\"timestamp\": 1250.5, \"input_length\": 600, \"output_length\": 1, \"hash_ids\": [7, 9], \"session\": 3, \"gap\": 20}\n\
             {\"timestamp\": 2000, \"input_length\": 1, \"output_length\": 1, \"hash_ids\": [], \"session\": \"a\", \"gap\": null}";
        let (trace, notes) = parse(text, READING).unwrap();
        assert_eq!((trace.name.as_str(), trace.block_tokens, notes.len()), ("t", 512, 0));
        let [first, second, third, last] = trace.requests.as_slice() else { panic!("{trace:?}") };
        assert_eq!((first.at, first.input_tokens, first.output_tokens), (Duration::ZERO, 1024, 5));
        assert_eq!((&*first.keys, first.session, first.gap), (&[key(7), key(8)][..], None, None));
        assert_eq!((second.keys[0], third.keys[0], third.keys[1]), (key(7), key(7), key(9)));
        assert_eq!((second.at, second.output_tokens), (Duration::from_micros(250_500), 1));
        assert_eq!((second.session, third.session, last.session), (Some(0), Some(1), Some(0)));
        assert_eq!((third.gap, last.gap), (Some(Duration::from_millis(20)), None));
    }

    #[test]
    fn broken_lines_are_told_with_their_number() {
        let good = "{\"timestamp\": 0, \"input_length\": 600, \"output_length\": 5, \"hash_ids\": [1, 2]}";
        for (from, to, said) in [
            ("\"timestamp\": 0, ", "", "`timestamp` is missing"),
            ("600", "null", "`input_length` is missing"),
            ("\"output_length\": 5, ", "", "`output_length` is missing"),
            (", \"hash_ids\": [1, 2]", "", "`hash_ids` is missing"),
            (
                "\"timestamp\": 0",
                "\"timestamp\": -1",
                "`timestamp` is not a number of milliseconds that is not negative",
            ),
            ("600", "-600", "`input_length` is not a whole number that is not negative"),
            ("600", "6.5", "`input_length` is not a whole number that is not negative"),
            ("600", "0", "`input_length` is 0: a prompt has at least one token"),
            ("5", "\"5\"", "`output_length` is not a whole number that is not negative"),
            ("[1, 2]", "[1, -2]", "`hash_ids` is not a list of whole numbers that are not negative"),
            ("[1, 2]", "{}", "`hash_ids` is not a list of whole numbers that are not negative"),
            (
                "[1, 2]",
                "[]",
                "`hash_ids` has 0 ids, 1 or 2 are wanted: `input_length` is 600, a block has 512 tokens (--block-tokens)",
            ),
            (
                "[1, 2]",
                "[1, 2, 3]",
                "`hash_ids` has 3 ids, 1 or 2 are wanted: `input_length` is 600, a block has 512 tokens (--block-tokens)",
            ),
            ("}", ", \"session\": []}", "`session` is not a text or a number"),
            ("}", ", \"gap\": 5}", "`gap` without `session`"),
            ("}", "", "not JSON, from column 76 on"),
        ] {
            let text = format!("{good}\n\n{}\n{good}", good.replacen(from, to, 1));
            assert_eq!(parse(&text, READING).unwrap_err(), format!("3: {said}"));
        }
    }

    #[test]
    fn keys_of_ids_in_sequence_look_drawn_by_chance() {
        let known = key(0);
        assert_eq!(known, BlockKey(0xe220_a839_7b1d_cdaf), "SplitMix64 with the seed 0");
        for shift in [0, 32, 58] {
            let mut counts = [0; 64];
            (0..64_000).for_each(|id| counts[usize::try_from(key(id).0 >> shift & 63).unwrap()] += 1);
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            assert!(*least > 850 && *most < 1150, "{shift}: {least} to {most}");
        }
    }

    #[test]
    fn blocks_may_have_another_size() {
        let text = "{\"timestamp\": 0, \"input_length\": 32, \"output_length\": 5, \"hash_ids\": [1, 2]}";
        let (trace, _) = parse(text, Reading { block_tokens: Some(16), ..READING }).unwrap();
        assert_eq!(trace.block_tokens, 16);
        assert!(parse(text, READING).unwrap_err().contains("has 2 ids, 0 or 1 are wanted"));
    }

    #[test]
    fn times_that_go_backwards_are_sorted_and_told_once() {
        let line = |ms: u32, output: u32| {
            format!(
                "{{\"timestamp\": {ms}, \"input_length\": 1, \"output_length\": {output}, \"hash_ids\": []}}\n"
            )
        };
        let text: String =
            [(500, 1), (30, 2), (500, 3), (30, 4)].map(|(ms, output)| line(ms, output)).concat();
        let (trace, notes) = parse(&text, Reading { spread: false, ..READING }).unwrap();
        let order: Vec<_> = trace.requests.iter().map(|request| request.output_tokens).collect();
        assert_eq!(order, [2, 4, 1, 3]);
        assert_eq!(notes, ["times go backwards: requests are replayed in the order of their times"]);
    }
}
