//! Keys of blocks of prompts.

/// Key of one block of a prompt; stands for all the text up to the block's end (chained), so equal keys = equal prefixes.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct BlockKey(pub u64);
