//! The workloads: each a generator of plans from a rate, a length and a source of chance.
//!
//! All arrive in an open loop: how fast answers come has no influence on when a session begins. Adding one takes a file
//! with a function `plan` and a line in each `match` here. Prompts are ASCII of four bytes to a token of the mock
//! engine, so that equal text is equal tokens. Pure.
mod multi_turn;
mod shared_system_prompt;
mod unique;

use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use clap::ValueEnum;
use rand::{Rng, rngs::StdRng};
use serde::Serialize;

use super::plan::Plan;
use crate::workload::filler;

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
    /// Sessions that begin at `per_second`, as Poisson has it, for requests due within `length`.
    pub(crate) fn plan(self, per_second: f64, length: Duration, random: &mut StdRng) -> Plan {
        match self {
            Self::MultiTurn => multi_turn::plan(per_second, length, random),
            Self::SharedSystemPrompt => shared_system_prompt::plan(per_second, length, random),
            Self::Unique => unique::plan(per_second, length, random),
        }
    }

    /// What it is, for readers of a report.
    pub(crate) fn description(self) -> &'static str {
        match self {
            Self::MultiTurn => multi_turn::DESCRIPTION,
            Self::SharedSystemPrompt => shared_system_prompt::DESCRIPTION,
            Self::Unique => unique::DESCRIPTION,
        }
    }

    /// Sessions per second that round robin can just take before the fleet of `super::fleet`: `answers_per_second` of
    /// `--policies round_robin --load 2`, divided by the turns of a session.
    pub(crate) fn round_robin_per_second(self) -> f64 {
        match self {
            Self::MultiTurn => multi_turn::ROUND_ROBIN_PER_SECOND,
            Self::SharedSystemPrompt => shared_system_prompt::ROUND_ROBIN_PER_SECOND,
            Self::Unique => unique::ROUND_ROBIN_PER_SECOND,
        }
    }
}

/// When sessions begin: the times between them are exponential.
fn arrivals(per_second: f64, length: Duration, random: &mut StdRng) -> Vec<Duration> {
    let (mut at, mut times) = (0.0, Vec::new());
    loop {
        at -= (1.0 - random.random::<f64>()).ln() / per_second;
        match Duration::try_from_secs_f64(at) {
            Ok(time) if time < length => times.push(time),
            _ => return times,
        }
    }
}

/// A text of so many tokens.
fn text(random: &mut StdRng, tokens: usize) -> Rc<str> {
    filler(random, tokens * 4).into()
}

/// Lengths of questions: most are short, and most tokens are in long ones, as people have it.
#[derive(Clone, Copy)]
struct Octaves {
    shortest_tokens: usize,
    /// How often the shortest is doubled to reach the longest; all of them are as likely.
    count: u32,
}

impl Octaves {
    fn question(self, random: &mut StdRng) -> Rc<str> {
        let least = self.shortest_tokens << random.random_range(0..self.count);
        let tokens = random.random_range(least..2 * least);
        text(random, tokens)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand::SeedableRng;

    use super::super::plan::{Message, Session};
    use super::multi_turn::ANSWER_SECONDS;
    use super::*;

    const LENGTH: Duration = Duration::from_mins(1);

    fn plan(workload: Workload, seed: u64) -> Plan {
        workload.plan(10.0, LENGTH, &mut StdRng::seed_from_u64(seed))
    }

    /// Everything that is sent in the first turn.
    fn first_prompt(session: &Session) -> Vec<Message> {
        let question = Message::user(Rc::clone(&session.turns[0].question));
        session.opening.iter().cloned().chain([question]).collect()
    }

    #[test]
    fn the_seed_decides_a_plan() {
        let length = Duration::from_secs(2);
        let plan = |workload: &Workload, seed| workload.plan(10.0, length, &mut StdRng::seed_from_u64(seed));
        for workload in Workload::value_variants() {
            assert_eq!(plan(workload, 1), plan(workload, 1), "{workload}");
            assert_ne!(plan(workload, 1), plan(workload, 2), "{workload}");
        }
    }

    #[test]
    fn sessions_begin_within_the_window_at_their_rate_and_without_a_rhythm() {
        let plan = plan(Workload::Unique, 1);
        let starts: Vec<f64> = plan.sessions.iter().map(|session| session.start.as_secs_f64()).collect();
        assert!((500..700).contains(&starts.len()), "{}", starts.len());
        assert!(starts.is_sorted() && starts.iter().all(|start| *start < 60.0));
        let gaps: Vec<f64> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let longer_than_the_mean = gaps.iter().filter(|gap| **gap > 0.1).count();
        // Of an exponential distribution e⁻¹ is above the mean.
        assert!((150..300).contains(&longer_than_the_mean), "{longer_than_the_mean}");
    }

    #[test]
    fn half_of_the_tokens_are_in_the_longest_questions() {
        let octaves = Octaves { shortest_tokens: 16, count: 6 };
        let mut random = StdRng::seed_from_u64(1);
        let tokens: Vec<usize> = (0..2000).map(|_| octaves.question(&mut random).len() / 4).collect();
        assert!(tokens.iter().all(|tokens| (16..1024).contains(tokens)));
        let long = tokens.iter().filter(|tokens| **tokens >= 512);
        assert!((250..420).contains(&long.clone().count()));
        assert!(2 * long.sum::<usize>() > tokens.iter().sum::<usize>() * 9 / 10);
    }

    #[test]
    fn unique_prompts_have_not_even_a_first_block_in_common() {
        let plan = plan(Workload::Unique, 1);
        let starts: HashSet<String> = plan
            .sessions
            .iter()
            .map(|session| session.turns[0].question.chars().take(64).collect())
            .collect();
        assert_eq!(starts.len(), plan.sessions.len());
        assert!(plan.sessions.iter().all(|session| session.opening.is_empty() && session.turns.len() == 1));
    }

    #[test]
    fn some_shared_system_prompts_are_much_more_popular_than_others() {
        let plan = plan(Workload::SharedSystemPrompt, 1);
        let mut counts: Vec<usize> = Vec::new();
        let mut seen: Vec<&Rc<str>> = Vec::new();
        for session in &plan.sessions {
            let system = &session.opening[0].content;
            match seen.iter().position(|own| *own == system) {
                Some(at) => counts[at] += 1,
                None => (seen.push(system), counts.push(1)).0,
            }
        }
        assert_eq!(seen.len(), 12);
        assert!(counts.iter().max().unwrap() > &(5 * counts.iter().min().unwrap()), "{counts:?}");
        let questions: HashSet<_> = plan.sessions.iter().map(|session| &session.turns[0].question).collect();
        assert_eq!(questions.len(), plan.sessions.len());
    }

    #[test]
    fn conversations_are_under_way_when_the_window_opens_and_when_it_closes() {
        let plan = plan(Workload::MultiTurn, 1);
        let all_share = &plan.sessions[0].opening[0];
        assert!(plan.sessions.iter().all(|session| &session.opening[0] == all_share));
        assert!(plan.sessions.iter().all(|session| !session.turns.is_empty() && session.start < LENGTH));
        let begun_before = plan.sessions.iter().filter(|session| session.opening.len() > 1);
        // What was said before is questions with their answers.
        assert!(
            begun_before
                .clone()
                .all(|session| session.opening.len() % 2 == 1 && session.opening[2].role == "assistant")
        );
        assert!(begun_before.count() > 20);
        // As many requests in the first tenth of the window as in the last, and as in any.
        let first = plan.sessions.iter().filter(|session| session.start < LENGTH / 10).count();
        assert!((100..300).contains(&first), "{first}");
        let per_second = f64::from(u32::try_from(plan.requests()).unwrap()) / LENGTH.as_secs_f64();
        assert!((50.0..70.0).contains(&per_second), "{per_second}");
        let ends = plan.sessions.iter().map(|session| {
            let later = session.turns.iter().skip(1).map(|turn| turn.pause.as_secs_f64() + ANSWER_SECONDS);
            session.start.as_secs_f64() + later.sum::<f64>()
        });
        assert!(ends.clone().all(|end| end < 60.0) && ends.filter(|end| *end > 54.0).count() > 20);
        let distinct: HashSet<String> =
            plan.sessions.iter().map(|session| format!("{:?}", first_prompt(session))).collect();
        assert_eq!(distinct.len(), plan.sessions.len());
    }
}
