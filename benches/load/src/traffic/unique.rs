//! Single questions that have nothing in common: no cache can help, and knowing caches must do no harm.
use std::iter;

use rand::rngs::StdRng;

use super::BytesPerToken;
use super::span::Span;
use crate::plan::Session;

pub(crate) fn sessions(
    question: Span<usize>,
    answer: Span<usize>,
    bytes: BytesPerToken,
    mut random: StdRng,
) -> impl Iterator<Item = Session> {
    iter::repeat_with(move || {
        let tokens = question.draw_length(&mut random);
        let question = bytes.text(tokens, &mut random);
        Session::once(None, question, answer.draw_tokens(&mut random))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand::SeedableRng;

    use super::*;

    #[test]
    fn unique_questions_have_no_beginning_in_common() {
        let random = StdRng::seed_from_u64(1);
        let sessions = sessions(Span::new(128, 4096), Span::new(16, 48), BytesPerToken(4), random);
        let sessions: Vec<Session> = sessions.take(500).collect();
        assert!(sessions.iter().all(|session| session.opening.is_empty() && session.turns.len() == 1));
        let starts =
            sessions.iter().map(|session| session.turns[0].question.text.write().as_bytes()[..64].to_vec());
        assert_eq!(starts.collect::<HashSet<_>>().len(), 500);
    }
}
