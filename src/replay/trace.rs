//! What was asked, and when: the requests of a trace.
//!
//! Made by whoever reads a trace; read by `simulation`. It holds no text, only keys of blocks.

pub use crate::state::blocks::BlockKey;
use std::sync::Arc;
use std::time::Duration;

/// The requests of a trace.
#[derive(Clone, Debug)]
pub struct Trace {
    /// What reports call it.
    pub name: String,
    /// Tokens of one block; the last block of a prompt may have fewer.
    pub block_tokens: usize,
    /// In the order of [`Request::at`].
    pub requests: Vec<Request>,
}

/// One request of a trace.
#[derive(Clone, Debug)]
pub struct Request {
    /// When it came, since the trace's start.
    pub at: Duration,
    /// Tokens of its prompt.
    pub input_tokens: usize,
    /// Tokens of its answer.
    pub output_tokens: usize,
    /// The keys of its prompt's blocks, in order.
    pub keys: Arc<[BlockKey]>,
    /// The conversation that it is a turn of.
    pub session: Option<u64>,
    /// How long after the end of its session's previous request it is sent.
    pub gap: Option<Duration>,
}
