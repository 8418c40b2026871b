//! Single questions that have nothing in common: no cache can help, and knowing caches must do no harm.
use std::ops::RangeInclusive;
use std::time::Duration;

use rand::{Rng, rngs::StdRng};

use super::super::plan::{Plan, Session, Turn};
use super::{arrivals, text};

pub(super) const DESCRIPTION: &str =
    "single questions of 256 to 2048 tokens without a common beginning; answers of 16 to 48 tokens";
pub(super) const ROUND_ROBIN_PER_SECOND: f64 = 79.0;

const QUESTION_TOKENS: RangeInclusive<usize> = 256..=2048;
const ANSWER_TOKENS: RangeInclusive<u32> = 16..=48;

pub(super) fn plan(per_second: f64, length: Duration, random: &mut StdRng) -> Plan {
    let sessions = arrivals(per_second, length, random).into_iter().map(|start| {
        let question_tokens = random.random_range(QUESTION_TOKENS);
        let turn = Turn {
            pause: Duration::ZERO,
            question: text(random, question_tokens),
            answer_tokens: random.random_range(ANSWER_TOKENS),
        };
        Session { start, opening: Vec::new(), turns: vec![turn] }
    });
    Plan { sessions: sessions.collect() }
}
