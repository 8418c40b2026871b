//! What is to be sent and when: made by a workload, sent by `player`, the same for every policy of a round.
//!
//! A plan is data and knows no clock: times count from the opening of the window.
use std::rc::Rc;
use std::time::Duration;

use serde::{Serialize, Serializer};

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Message {
    pub(crate) role: &'static str,
    #[serde(serialize_with = "as_text")]
    pub(crate) content: Rc<str>,
}

fn as_text<S: Serializer>(text: &Rc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

impl Message {
    pub(crate) fn system(content: Rc<str>) -> Self {
        Self { role: "system", content }
    }

    pub(crate) fn user(content: Rc<str>) -> Self {
        Self { role: "user", content }
    }

    pub(crate) fn assistant(content: Rc<str>) -> Self {
        Self { role: "assistant", content }
    }
}

/// A question and the answer that is asked for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Turn {
    /// Time since the answer before it; without meaning in the first turn of a session.
    pub(crate) pause: Duration,
    pub(crate) question: Rc<str>,
    pub(crate) answer_tokens: u32,
}

/// Requests that follow one another, each with all that was said before it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Session {
    /// When the first turn is due.
    pub(crate) start: Duration,
    /// What stands before the first turn.
    pub(crate) opening: Vec<Message>,
    pub(crate) turns: Vec<Turn>,
}

/// The requests of one window.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub(crate) sessions: Vec<Session>,
}

impl Plan {
    pub(crate) fn requests(&self) -> usize {
        self.sessions.iter().map(|session| session.turns.len()).sum()
    }
}
