//! Mock servers for tests, benchmarks and the demo: an engine that speaks vLLM's HTTP and an LMCache controller.
//!
//! Both answer what real servers were recorded to answer (`tests/data/golden`), never what the gateway expects, and
//! share no code with it. Read [`server`] first (connections, books, gates, faults), then [`engine`] and
//! [`controller`], which only decide what is answered; [`process`] is for the binaries.

pub mod controller;
pub mod engine;
pub mod process;
pub mod server;

pub use controller::{Chunks, Controller, ControllerOptions};
pub use engine::{Engine, EngineOptions, Load, Mode, SimulatedOptions, SleepState, SseOptions};
pub use server::{Fault, Framing, Gate, PathStats, Received, Server, Stats};
