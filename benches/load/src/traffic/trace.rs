//! The requests of a trace: at its times, with prompts that have in common what the trace says.
//!
//! The file is read as `kvway replay` reads it. It holds no texts, only keys: a key stands for all of a prompt up to the end of
//! its block, so equal keys become equal text and different keys different text. A request of a trace is sent at its time,
//! whatever became of those before it. In memory there are the keys; a prompt is written shortly before it is sent.
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use kvway::replay::trace::{self, Reading, Request};

use super::BytesPerToken;
use crate::plan::{Session, Text};

/// How a trace is played.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Playing {
    /// 2 plays an hour in half an hour.
    pub(crate) speed: f64,
    pub(crate) limit: usize,
    pub(crate) bytes: BytesPerToken,
    pub(crate) seed: u64,
}

/// What is in a file.
pub(crate) struct Played {
    pub(crate) requests: usize,
    /// When the last one is due.
    pub(crate) length: Duration,
    /// What is to be said about it.
    pub(crate) notes: Vec<String>,
}

/// Reads a trace: what is in it, and its requests in the order of their times.
///
/// # Errors
/// With file and line, where a line is broken.
pub(crate) fn load(file: &Path, playing: Playing) -> Result<(Played, impl Iterator<Item = Session> + use<>)> {
    let reading = Reading { block_tokens: None, spread: true, seed: playing.seed };
    let (trace, notes) = trace::load(file, &reading)?;
    let mut requests = trace.requests;
    requests.truncate(playing.limit);
    let length = requests.last().map(|last| playing.due(last)).unwrap_or_default();
    let played = Played { requests: requests.len(), length, notes };
    let (block, mut number) = (trace.block_tokens, 0);
    let sessions = requests.into_iter().map(move |request| {
        number += 1;
        playing.session(&request, block, number)
    });
    Ok((played, sessions))
}

impl Playing {
    fn due(self, request: &Request) -> Duration {
        Duration::try_from_secs_f64(request.at.as_secs_f64() / self.speed).unwrap_or(Duration::MAX)
    }

    fn session(self, request: &Request, block_tokens: usize, number: u64) -> Session {
        let mut left = request.input_tokens;
        let blocks = request.keys.iter().map(|key| {
            let tokens = left.min(block_tokens);
            left -= tokens;
            Text::Drawn { seed: key.0 ^ self.seed, bytes: tokens * self.bytes.0 }
        });
        let mut prompt: Vec<Text> = blocks.collect();
        if left > 0 {
            // What has no key is nobody else's.
            prompt.push(Text::Drawn { seed: self.seed.wrapping_sub(number), bytes: left * self.bytes.0 });
        }
        let answer = u32::try_from(request.output_tokens).unwrap_or(u32::MAX);
        Session { start: self.due(request), ..Session::once(None, Text::Joined(prompt), answer) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAYING: Playing = Playing { speed: 2.0, limit: 10, bytes: BytesPerToken(4), seed: 1 };

    fn prompts(lines: &str) -> Vec<(Duration, Vec<u8>, u32)> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), lines).unwrap();
        let (_, sessions) = load(file.path(), PLAYING).unwrap();
        let one = |session: Session| {
            let turn = &session.turns[0];
            (session.start, turn.question.text.write().as_bytes().to_vec(), turn.answer_tokens)
        };
        sessions.map(one).collect()
    }

    #[test]
    fn equal_ids_are_equal_text_and_different_ids_are_not() {
        let lines =
            "{\"timestamp\": 1000, \"input_length\": 1030, \"output_length\": 5, \"hash_ids\": [7, 8, 9]}
{\"timestamp\": 3000, \"input_length\": 1030, \"output_length\": 6, \"hash_ids\": [7, 8, 10]}
{\"timestamp\": 3000, \"input_length\": 600, \"output_length\": 6, \"hash_ids\": [7]}
{\"timestamp\": 3000, \"input_length\": 600, \"output_length\": 6, \"hash_ids\": [7]}";
        let [one, two, three, four] = prompts(lines).try_into().unwrap();
        assert_eq!((one.0, two.0, one.2, two.2), (Duration::ZERO, Duration::from_secs(1), 5, 6));
        assert_eq!((one.1.len(), three.1.len()), (1030 * 4, 600 * 4));
        assert_eq!(one.1[..1024 * 4], two.1[..1024 * 4]);
        assert_ne!(one.1[1024 * 4..], two.1[1024 * 4..]);
        assert_eq!(one.1[..512 * 4], three.1[..512 * 4]);
        assert_ne!(one.1[512 * 4..530 * 4], three.1[512 * 4..530 * 4]);
        assert_ne!(three.1[512 * 4..530 * 4], four.1[512 * 4..530 * 4]);
    }

    #[test]
    fn a_broken_line_is_told_with_file_and_number() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let good = "{\"timestamp\": 1, \"input_length\": 5, \"output_length\": 5, \"hash_ids\": [7]}";
        std::fs::write(file.path(), format!("{good}\n{}", good.replace("timestamp", "time"))).unwrap();
        let error = load(file.path(), PLAYING).err().unwrap().to_string();
        assert_eq!(error, format!("{}:2: `timestamp` is missing", file.path().display()));
    }
}
