//! Single questions under a few long system prompts, of which some are asked far more often than others.
use std::iter;

use rand::rngs::StdRng;

use super::span::Span;
use super::{BytesPerToken, Popular};
use crate::plan::{Said, Session};

/// What they are like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prompts {
    pub(crate) count: usize,
    pub(crate) system_tokens: Span<usize>,
    pub(crate) question_tokens: Span<usize>,
    pub(crate) answer_tokens: Span<usize>,
    pub(crate) bytes: BytesPerToken,
}

impl Prompts {
    pub(crate) fn sessions(self, mut random: StdRng) -> impl Iterator<Item = Session> {
        let prompts = (0..self.count).map(|_| {
            let tokens = self.system_tokens.draw(&mut random);
            Said::system(self.bytes.shared_text(tokens, &mut random))
        });
        let prompts = Popular::new(prompts.collect());
        iter::repeat_with(move || {
            let opening = prompts.choose(&mut random).cloned();
            let tokens = self.question_tokens.draw_length(&mut random);
            let question = self.bytes.text(tokens, &mut random);
            Session::once(opening, question, self.answer_tokens.draw_tokens(&mut random))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use rand::SeedableRng;

    use super::*;

    #[test]
    fn some_shared_system_prompts_are_much_more_popular_than_others() {
        let prompts = Prompts {
            count: 12,
            system_tokens: Span::new(300, 500),
            question_tokens: Span::new(20, 160),
            answer_tokens: Span::new(16, 48),
            bytes: BytesPerToken(4),
        };
        let sessions: Vec<Session> = prompts.sessions(StdRng::seed_from_u64(1)).take(600).collect();
        let mut counts: HashMap<_, usize> = HashMap::new();
        for session in &sessions {
            *counts.entry(session.opening[0].text.write()).or_default() += 1;
        }
        assert_eq!(counts.len(), 12);
        assert!(counts.values().max().unwrap() > &(5 * counts.values().min().unwrap()), "{counts:?}");
        assert!(counts.keys().all(|prompt| (1200..=2000).contains(&prompt.len())));
        let questions = sessions.iter().map(|session| session.turns[0].question.text.write());
        assert_eq!(questions.collect::<HashSet<_>>().len(), 600);
    }
}
