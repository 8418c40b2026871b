//! Other people's protocols: typed calls with deadlines and bounds. No decisions.

pub mod vllm;
