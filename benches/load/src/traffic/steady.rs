//! Cuts a window out of a stream of sessions without beginning or end: those that began before it have turns behind them,
//! and turns that would come after it are left out.
//!
//! Without this, sessions of many turns would begin with the window, and its load would rise for as long as the longest of them
//! takes. Where the cuts are is reckoned with answers of a given length, so that it is the same whatever the target. Pure.
use std::iter;
use std::time::Duration;

use rand::rngs::StdRng;

use super::{BytesPerToken, arrivals};
use crate::plan::Session;

/// What is cut out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Steady {
    pub(crate) sessions_per_second: f64,
    /// Longer than any session takes, in seconds.
    pub(crate) lookback: f64,
    /// What an answer takes, in seconds.
    pub(crate) answer: f64,
    /// Of the window, in seconds.
    pub(crate) length: f64,
    pub(crate) bytes: BytesPerToken,
}

impl Steady {
    /// Sessions in the order of their starts.
    pub(crate) fn cut(
        self,
        mut sessions: impl Iterator<Item = Session>,
        chance: StdRng,
        mut random: StdRng,
    ) -> impl Iterator<Item = Session> {
        let mut begun = arrivals(self.sessions_per_second, chance)
            .map(move |at| at.as_secs_f64() - self.lookback)
            .take_while(move |begun| *begun < self.length)
            .peekable();
        let mut early = Vec::new();
        while let Some(begun) = begun.next_if(|begun| *begun < 0.0) {
            early.extend(sessions.next().map(|session| self.part(begun, session, &mut random)));
        }
        early.retain(|session| !session.turns.is_empty());
        early.sort_by_key(|session| session.start);
        let mut early = early.into_iter().peekable();
        let mut later = begun
            .zip(sessions)
            .map(move |(begun, session)| self.part(begun, session, &mut random))
            .peekable();
        iter::from_fn(move || {
            let next = later.peek().map(|session| session.start);
            let early = early.next_if(|session| next.is_none_or(|next| session.start <= next));
            early.or_else(|| later.next())
        })
    }

    /// The part of a session that falls into the window.
    fn part(self, begun: f64, session: Session, random: &mut StdRng) -> Session {
        let Session { turns, .. } = session;
        let mut part = Session { turns: Vec::new(), ..session };
        let (mut due, mut answer) = (begun, None);
        for turn in turns {
            due += turn.pause.as_secs_f64();
            if let Some(answer) = answer.take() {
                part.opening.push(turn.question.after(answer));
            }
            if due < 0.0 {
                answer = Some(self.bytes.text(turn.answer_tokens as usize, random));
                part.opening.push(turn.question);
            } else if due < self.length {
                if part.turns.is_empty() {
                    part.start = Duration::from_secs_f64(due);
                }
                part.turns.push(turn);
            }
            due += self.answer;
        }
        part
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::super::multi_turn::Conversations;
    use super::super::span::{Pause, Span};
    use super::*;

    const STEADY: Steady = Steady {
        sessions_per_second: 10.0,
        lookback: 24.0,
        answer: 1.0,
        length: 60.0,
        bytes: BytesPerToken(4),
    };

    fn sessions(seed: u64) -> Vec<Session> {
        let conversations = Conversations {
            system_tokens: Span::new(50, 50),
            turns: Span::new(4, 8),
            first_question_tokens: Span::new(20, 40),
            question_tokens: Span::new(20, 40),
            answer_tokens: Span::new(16, 48),
            think: Pause::millis(500, 2000),
            bytes: BytesPerToken(4),
        };
        let [one, two, three] = [0, 1, 2].map(|number| StdRng::seed_from_u64(seed + number));
        STEADY.cut(conversations.sessions(one), two, three).collect()
    }

    #[test]
    fn the_seed_decides() {
        assert_eq!(sessions(1), sessions(1));
        assert_ne!(sessions(1), sessions(2));
    }

    #[test]
    fn conversations_are_under_way_when_the_window_opens_and_when_it_closes() {
        let sessions = sessions(1);
        assert!(sessions.is_sorted_by_key(|session| session.start));
        assert!(sessions.iter().all(|session| !session.turns.is_empty() && session.start.as_secs() < 60));
        let begun_before = sessions.iter().filter(|session| session.opening.len() > 1);
        // What was said before is questions with their answers.
        let roles =
            |session: &Session| session.opening.iter().map(|said| said.message().role).collect::<Vec<_>>();
        for session in begun_before.clone() {
            let (system, said) = session.opening.split_first().unwrap();
            assert_eq!(system.message().role, "system");
            assert!(
                said.len() % 2 == 0 && roles(session)[1..].chunks(2).all(|two| two == ["user", "assistant"])
            );
        }
        assert!(begun_before.count() > 20);
        // As many requests in the first tenth of the window as in the last, and as in any.
        let first = sessions.iter().filter(|session| session.start.as_secs() < 6).count();
        assert!((100..300).contains(&first), "{first}");
        let requests: usize = sessions.iter().map(|session| session.turns.len()).sum();
        assert!((50 * 60..70 * 60).contains(&requests), "{requests}");
        let ends = sessions.iter().map(|session| {
            let later = session.turns.iter().skip(1).map(|turn| turn.pause.as_secs_f64() + STEADY.answer);
            session.start.as_secs_f64() + later.sum::<f64>()
        });
        assert!(ends.clone().all(|end| end < 60.0) && ends.filter(|end| *end > 54.0).count() > 20);
    }
}
