//! Tokens of prompts, and what a prompt is known by.

use std::sync::Arc;

/// What a prompt is known by: a hash that only this process can compute.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct PromptKey(pub u128);

/// The tokens of a prompt.
pub type Tokens = Arc<[u32]>;
