//! Other people's protocols: typed calls with deadlines and bounds. No decisions.
//!
//! Called by `background`, and by `proxy` for the one lookup that a request waits for. Read [`call`] first (why a call
//! failed), then [`endpoint`] (one bounded call), [`breaker`] and [`retry`] (when a call is made at all, and again), then
//! the protocols: [`lmcache`] and [`vllm`]. [`throttle`] keeps the log of failures short. A client belongs to the runtime
//! that uses it.

pub mod breaker;
pub mod call;
pub mod endpoint;
pub mod lmcache;
pub mod retry;
pub mod throttle;
pub mod vllm;
