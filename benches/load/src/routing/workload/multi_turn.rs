//! Conversations: every turn sends the system prompt, all earlier turns with the engine's answers, and a question.
//!
//! The window is cut out of a stream of conversations without beginning or end: those that began before it have turns
//! behind them, and turns that would come after it are left out. Where the cut is, is reckoned with answers that take
//! [`ANSWER_SECONDS`], so that it is the same for all policies.
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::time::Duration;

use rand::{Rng, rngs::StdRng};

use super::super::plan::{Message, Plan, Session, Turn};
use super::{Octaves, arrivals, text};

pub(super) const DESCRIPTION: &str = "conversations of 4 to 8 turns under one system prompt of 512 tokens; a first \
     question of 128 to 4096 tokens, later ones of 20 to 320, answers of 16 to 48; 0.5 to 2 s from an answer to the \
     next question";
pub(super) const ROUND_ROBIN_PER_SECOND: f64 = 10.5;

const SYSTEM_TOKENS: usize = 512;
const TURNS: RangeInclusive<u32> = 4..=8;
const FIRST_QUESTION: Octaves = Octaves { shortest_tokens: 128, count: 5 };
const QUESTION: Octaves = Octaves { shortest_tokens: 20, count: 4 };
const ANSWER_TOKENS: RangeInclusive<u32> = 16..=48;
const PAUSE_SECONDS: RangeInclusive<f64> = 0.5..=2.0;
/// About what an answer takes under load.
pub(super) const ANSWER_SECONDS: f64 = 1.0;

pub(super) fn plan(per_second: f64, length: Duration, random: &mut StdRng) -> Plan {
    let system = text(random, SYSTEM_TOKENS);
    let longest = f64::from(*TURNS.end()) * (PAUSE_SECONDS.end() + ANSWER_SECONDS);
    let begun = arrivals(per_second, length + Duration::from_secs_f64(longest), random);
    let begun = begun.into_iter().map(|time| time.as_secs_f64() - longest);
    let sessions = begun.map(|begun| conversation(begun, length.as_secs_f64(), &system, random));
    Plan { sessions: sessions.filter(|session| !session.turns.is_empty()).collect() }
}

/// The part of a conversation that falls into the window.
fn conversation(begun: f64, length: f64, system: &Rc<str>, random: &mut StdRng) -> Session {
    let opening = vec![Message::system(Rc::clone(system))];
    let mut session = Session { start: Duration::ZERO, opening, turns: Vec::new() };
    let mut due = begun;
    for number in 0..random.random_range(TURNS) {
        let pause = if number == 0 { 0.0 } else { random.random_range(PAUSE_SECONDS) };
        due += pause;
        let question = if number == 0 { FIRST_QUESTION } else { QUESTION }.question(random);
        let answer_tokens = random.random_range(ANSWER_TOKENS);
        if due < 0.0 {
            let answer = text(random, answer_tokens as usize);
            session.opening.extend([Message::user(question), Message::assistant(answer)]);
        } else if due < length {
            if session.turns.is_empty() {
                session.start = Duration::from_secs_f64(due);
            }
            session.turns.push(Turn { pause: Duration::from_secs_f64(pause), question, answer_tokens });
        }
        due += ANSWER_SECONDS;
    }
    session
}
