//! Conversations: every turn sends the system prompt, all earlier turns with the engine's answers, and a question.
use std::iter;
use std::time::Duration;

use rand::rngs::StdRng;

use super::BytesPerToken;
use super::span::{Pause, Span};
use crate::plan::{Said, Session, Text, Turn};

/// What they are like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conversations {
    pub(crate) system_tokens: Span<usize>,
    pub(crate) turns: Span<usize>,
    pub(crate) first_question_tokens: Span<usize>,
    pub(crate) question_tokens: Span<usize>,
    pub(crate) answer_tokens: Span<usize>,
    /// From an answer to the next question.
    pub(crate) think: Pause,
    pub(crate) bytes: BytesPerToken,
}

impl Conversations {
    pub(crate) fn sessions(self, mut random: StdRng) -> impl Iterator<Item = Session> {
        let tokens = self.system_tokens.draw(&mut random);
        let system = self.bytes.shared_text(tokens, &mut random);
        iter::repeat_with(move || self.conversation(&system, &mut random))
    }

    fn conversation(self, system: &Text, random: &mut StdRng) -> Session {
        let turns = 0..self.turns.draw(random);
        let turns = turns.map(|number| {
            let (pause, tokens) = match number {
                0 => (Duration::ZERO, self.first_question_tokens),
                _ => (self.think.draw(random), self.question_tokens),
            };
            let tokens = tokens.draw_length(random);
            let question = Said::user(self.bytes.text(tokens, random));
            Turn { pause, question, answer_tokens: self.answer_tokens.draw_tokens(random) }
        });
        let turns = turns.collect();
        Session { opening: vec![Said::system(system.clone())], turns, ..Session::default() }
    }
}
