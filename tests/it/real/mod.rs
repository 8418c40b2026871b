//! Tests against servers that other people wrote: a real LMCache controller (always), a real vLLM (`make test-vllm`).
//!
//! `tests/real/README.md` says what is run and how it is installed. [`wire`] holds what the product relies on without
//! naming the product: where it fails, the other side has changed.

mod client;
mod controller;
mod engine;
mod gateway;
mod process;
mod vllm;
mod wire;
