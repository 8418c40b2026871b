//! A tool of the operator: what a policy would do to a trace of requests, in simulated time.
//!
//! `trace/` reads what was asked. `engine.rs` is the model of one engine and `memory.rs` of its KV memory. `router.rs` chooses, with
//! the stages and the books that serve; `baseline.rs` has the rules of others. `simulation.rs` lets time pass, `outcome.rs` is what
//! comes out. Around them `plan.rs` says what is run, `sustainable.rs` looks for the most that a fleet bears, `report.rs` and `chart.rs`
//! show it. Nothing here opens a connection or looks at a clock.

mod baseline;
pub mod chart;
mod engine;
mod memory;
mod outcome;
pub mod plan;
pub mod report;
pub mod router;
pub mod simulation;
mod sustainable;
pub mod trace;
