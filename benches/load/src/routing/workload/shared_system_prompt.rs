//! Single questions under a few long system prompts, of which some are asked far more often than others.
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::time::Duration;

use rand::distr::{Distribution, weighted::WeightedIndex};
use rand::{Rng, rngs::StdRng};

use super::super::plan::{Message, Plan, Session, Turn};
use super::{Octaves, arrivals, text};

pub(super) const DESCRIPTION: &str = "single questions of 20 to 160 tokens under one of 12 system prompts of 3000 to \
     5000 tokens, the n-th most popular of which is asked 1/n as often as the first; answers of 16 to 48 tokens";
pub(super) const ROUND_ROBIN_PER_SECOND: f64 = 110.0;

const SYSTEM_PROMPTS: u32 = 12;
const SYSTEM_TOKENS: RangeInclusive<usize> = 3000..=5000;
const QUESTION: Octaves = Octaves { shortest_tokens: 20, count: 3 };
const ANSWER_TOKENS: RangeInclusive<u32> = 16..=48;

pub(super) fn plan(per_second: f64, length: Duration, random: &mut StdRng) -> Plan {
    let prompts: Vec<Rc<str>> = (0..SYSTEM_PROMPTS)
        .map(|_| {
            let tokens = random.random_range(SYSTEM_TOKENS);
            text(random, tokens)
        })
        .collect();
    // Zipf's law.
    let popularity = WeightedIndex::new((1..=SYSTEM_PROMPTS).map(|rank| 1.0 / f64::from(rank)));
    let sessions = arrivals(per_second, length, random).into_iter().map(|start| {
        let chosen = popularity.as_ref().map_or(0, |popularity| popularity.sample(random));
        let opening = prompts.get(chosen).map(|prompt| Message::system(Rc::clone(prompt)));
        let turn = Turn {
            pause: Duration::ZERO,
            question: QUESTION.question(random),
            answer_tokens: random.random_range(ANSWER_TOKENS),
        };
        Session { start, opening: opening.into_iter().collect(), turns: vec![turn] }
    });
    Plan { sessions: sessions.collect() }
}
