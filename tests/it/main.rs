//! Tests of the rooms, in one binary.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on fails, and says where"
)]

mod backends;
mod books;
mod config;
mod endpoints;
mod observability;
mod streams;
mod world;
