//! Single questions that have nothing in common: no cache can help, and knowing caches must do no harm.
use std::ops::RangeInclusive;
use std::time::Duration;

use rand::{Rng, rngs::StdRng};

use super::super::plan::{Plan, Session, Turn};
use super::{Octaves, arrivals};

pub(super) const DESCRIPTION: &str =
    "single questions of 128 to 4096 tokens without a common beginning; answers of 16 to 48 tokens";
pub(super) const ROUND_ROBIN_PER_SECOND: f64 = 80.0;

const QUESTION: Octaves = Octaves { shortest_tokens: 128, count: 5 };
const ANSWER_TOKENS: RangeInclusive<u32> = 16..=48;

pub(super) fn plan(per_second: f64, length: Duration, random: &mut StdRng) -> Plan {
    let sessions = arrivals(per_second, length, random).into_iter().map(|start| {
        let turn = Turn {
            pause: Duration::ZERO,
            question: QUESTION.question(random),
            answer_tokens: random.random_range(ANSWER_TOKENS),
        };
        Session { start, opening: Vec::new(), turns: vec![turn] }
    });
    Plan { sessions: sessions.collect() }
}
