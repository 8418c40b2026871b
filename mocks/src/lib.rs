//! Mock servers for tests, benchmarks and the demo: an engine that speaks vLLM's HTTP, and the two servers
//! of LMCache, its controller and the coordinator that succeeds it.
//!
//! Both answer what real servers were recorded to answer (`tests/data/golden`), never what the gateway expects, and
//! share no code with it. Read [`server`] first (connections, books, gates, faults), then [`engine`], [`controller`] and
//! [`coordinator`], which only decide what is answered; [`process`] is for the binaries.

mod chunks;
pub mod controller;
pub mod coordinator;
pub mod engine;
pub mod process;
pub mod server;
mod validation;

pub use chunks::Chunks;
pub use controller::{Controller, ControllerOptions};
pub use coordinator::{Coordinator, CoordinatorOptions};
pub use engine::{Engine, EngineOptions, Load, Mode, SimulatedOptions, SleepState, SseOptions};
pub use server::{Fault, Framing, Gate, PathStats, Received, Server, Stats};
