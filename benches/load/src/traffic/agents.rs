//! Agents: loops that call tools, each step with all the steps before it. Every type of agent has one long system prompt
//! and one set of tools, so that all its loops begin alike.
//!
//! Which tools are called is written beforehand, whatever the engine answers: its answer is kept as what the agent thought
//! aloud. Requests say `tool_choice: none`, since some engines refuse tools otherwise.
use std::iter;
use std::rc::Rc;
use std::time::Duration;

use rand::{Rng, rngs::StdRng};
use serde_json::json;

use super::span::{Pause, Span};
use super::{BytesPerToken, Popular, Shared};
use crate::plan::{Call, Said, Session, Text, Turn, tool_name};

/// Tools of one type of agent.
const TOOLS: usize = 8;
/// The description of one.
const TOOL_TOKENS: Span<usize> = Span::new(60, 160);

/// What they are like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Agents {
    pub(crate) types: usize,
    pub(crate) system_tokens: Span<usize>,
    /// What an agent is to do.
    pub(crate) task_tokens: Span<usize>,
    /// Requests of one loop.
    pub(crate) steps: Span<usize>,
    /// What a tool answers.
    pub(crate) result_tokens: Span<usize>,
    pub(crate) answer_tokens: Span<usize>,
    /// What a tool takes.
    pub(crate) pause: Pause,
    pub(crate) bytes: BytesPerToken,
}

struct Type {
    system: Text,
    tools: Shared,
}

impl Agents {
    pub(crate) fn sessions(self, mut random: StdRng) -> impl Iterator<Item = Session> {
        let types = Popular::new((0..self.types).map(|_| self.one(&mut random)).collect());
        iter::repeat_with(move || {
            let opening = types.choose(&mut random);
            let tools = opening.map(|one| Rc::clone(&one.tools));
            let opening = opening.map(|one| Said::system(one.system.clone())).into_iter().collect();
            let steps = 0..self.steps.draw(&mut random);
            let turns = steps.map(|number| self.step(number, &mut random)).collect();
            Session { start: Duration::ZERO, tools, opening, turns }
        })
    }

    fn one(self, random: &mut StdRng) -> Type {
        let tokens = self.system_tokens.draw(random);
        let system = self.bytes.shared_text(tokens, random);
        let tools = (0..TOOLS).map(|tool| {
            let tokens = TOOL_TOKENS.draw(random);
            let description = self.bytes.text(tokens, random).write();
            json!({"type": "function", "function": {
                "name": tool_name(tool),
                "description": &*description,
                "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
            }})
        });
        Type { system, tools: Rc::new(tools.collect()) }
    }

    fn step(self, number: usize, random: &mut StdRng) -> Turn {
        let (pause, question) = if number == 0 {
            let tokens = self.task_tokens.draw_length(random);
            (Duration::ZERO, Said::user(self.bytes.text(tokens, random)))
        } else {
            let call = Call { number, tool: random.random_range(0..TOOLS) };
            let tokens = self.result_tokens.draw_length(random);
            (self.pause.draw(random), Said::tool(self.bytes.text(tokens, random), call))
        };
        Turn { pause, question, answer_tokens: self.answer_tokens.draw_tokens(random) }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn agents_of_a_type_begin_alike_and_every_step_is_a_result() {
        let agents = Agents {
            types: 2,
            system_tokens: Span::new(100, 200),
            task_tokens: Span::new(10, 20),
            steps: Span::new(3, 5),
            result_tokens: Span::new(20, 40),
            answer_tokens: Span::new(1, 2),
            pause: Pause::millis(1, 2),
            bytes: BytesPerToken(4),
        };
        let sessions: Vec<Session> = agents.sessions(StdRng::seed_from_u64(1)).take(50).collect();
        let mut types: Vec<(&Vec<Said>, &Shared)> = Vec::new();
        for session in &sessions {
            let one = (&session.opening, session.tools.as_ref().unwrap());
            if !types.contains(&one) {
                types.push(one);
            }
            assert!((3..=5).contains(&session.turns.len()));
            let roles = session.turns.iter().map(|turn| turn.question.message().role);
            let (users, tools): (Vec<_>, Vec<_>) = roles.partition(|role| *role == "user");
            assert_eq!((users.len(), tools.len()), (1, session.turns.len() - 1));
        }
        assert_eq!(types.len(), 2);
        assert_eq!(types[0].1.as_array().unwrap().len(), TOOLS);
        assert_ne!(types[0].1, types[1].1);
    }
}
