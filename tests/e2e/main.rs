//! Tests of the binary as operators run it: processes, signals, files, and clients of other people's making.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails, and says where")]

mod client;
mod command_line;
mod compare;
mod crash;
mod demo;
mod doctor;
mod gateway;
mod memory;
mod openai_client;
mod pixiu;
mod replay;
mod shutdown;
mod upgrade;
