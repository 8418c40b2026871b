//! The traffic that policies are compared with: kinds of `traffic` in sizes that mean something to the fleet of `fleet`.
//!
//! All arrive in an open loop: how fast answers come has no influence on when a session begins. Prompts are ASCII of four bytes
//! to a token of the mock engine, so that equal text is equal tokens. Pure.
use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::Serialize;

use crate::plan::Session;
use crate::traffic::multi_turn::Conversations;
use crate::traffic::shared_system_prompt::Prompts;
use crate::traffic::span::{Pause, Span};
use crate::traffic::steady::Steady;
use crate::traffic::{BytesPerToken, arrivals, unique};

const BYTES: BytesPerToken = BytesPerToken(4);
const ANSWER_TOKENS: Span<usize> = Span::new(16, 48);
/// Most are short, and most tokens are in long ones.
const LONG_QUESTION: Span<usize> = Span::new(128, 4096);

const PROMPTS: Prompts = Prompts {
    count: 12,
    system_tokens: Span::new(3000, 5000),
    question_tokens: Span::new(20, 160),
    answer_tokens: ANSWER_TOKENS,
    bytes: BYTES,
};

const CONVERSATIONS: Conversations = Conversations {
    system_tokens: Span::new(512, 512),
    turns: Span::new(4, 8),
    first_question_tokens: LONG_QUESTION,
    question_tokens: Span::new(20, 320),
    answer_tokens: ANSWER_TOKENS,
    think: Pause::millis(500, 2000),
    bytes: BYTES,
};
/// About what an answer takes under load.
const ANSWER_SECONDS: f64 = 1.0;
/// Longer than any conversation.
const LOOKBACK_SECONDS: f64 = 24.0;

/// A kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Workload {
    /// Conversations that send all that was said before.
    MultiTurn,
    /// Single questions under a few long system prompts.
    SharedSystemPrompt,
    /// Single questions that have nothing in common.
    Unique,
}

impl fmt::Display for Workload {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_possible_value().map_or(Ok(()), |value| formatter.write_str(value.get_name()))
    }
}

impl Workload {
    /// Sessions that begin at `per_second`, as Poisson has it, for requests due within `length`; in the order of their starts.
    pub(crate) fn plan(self, per_second: f64, length: Duration, random: &mut StdRng) -> Vec<Session> {
        let [times, what, past] = [(); 3].map(|()| StdRng::seed_from_u64(random.random()));
        let begun = |(start, session)| Session { start, ..session };
        match self {
            Self::MultiTurn => {
                let steady = Steady {
                    sessions_per_second: per_second,
                    lookback: LOOKBACK_SECONDS,
                    answer: ANSWER_SECONDS,
                    length: length.as_secs_f64(),
                    bytes: BYTES,
                };
                steady.cut(CONVERSATIONS.sessions(what), times, past).collect()
            }
            Self::SharedSystemPrompt => {
                let times = arrivals(per_second, times).take_while(|at| *at < length);
                times.zip(PROMPTS.sessions(what)).map(begun).collect()
            }
            Self::Unique => {
                let sessions = unique::sessions(LONG_QUESTION, ANSWER_TOKENS, BYTES, what);
                let times = arrivals(per_second, times).take_while(|at| *at < length);
                times.zip(sessions).map(begun).collect()
            }
        }
    }

    /// What it is, for readers of a report.
    pub(crate) fn description(self) -> &'static str {
        match self {
            Self::MultiTurn => {
                "conversations of 4 to 8 turns under one system prompt of 512 tokens; a first question of 128 to 4096 \
                 tokens, later ones of 20 to 320, answers of 16 to 48; 0.5 to 2 s from an answer to the next question"
            }
            Self::SharedSystemPrompt => {
                "single questions of 20 to 160 tokens under one of 12 system prompts of 3000 to 5000 tokens, the n-th most \
                 popular of which is asked 1/n as often as the first; answers of 16 to 48 tokens"
            }
            Self::Unique => {
                "single questions of 128 to 4096 tokens without a common beginning; answers of 16 to 48 tokens"
            }
        }
    }

    /// Sessions per second that round robin can just take before the fleet of `super::fleet`: `answers_per_second` of
    /// `--policies round_robin --load 2`, divided by the turns of a session.
    pub(crate) fn round_robin_per_second(self) -> f64 {
        match self {
            Self::MultiTurn => 10.5,
            Self::SharedSystemPrompt => 110.0,
            Self::Unique => 80.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_decides_a_plan_and_every_session_begins_within_it() {
        let length = Duration::from_secs(20);
        let plan = |workload: &Workload, seed| workload.plan(10.0, length, &mut StdRng::seed_from_u64(seed));
        for workload in Workload::value_variants() {
            assert_eq!(plan(workload, 1), plan(workload, 1), "{workload}");
            assert_ne!(plan(workload, 1), plan(workload, 2), "{workload}");
            let starts: Vec<Duration> = plan(workload, 1).iter().map(|session| session.start).collect();
            assert!(starts.is_sorted() && starts.iter().all(|start| *start < length), "{workload}");
            assert!(starts.len() > 150, "{workload}: {}", starts.len());
        }
    }
}
