//! Tests of the rooms, in one binary.
#![expect(unreachable_pub, reason = "a test binary has no outside")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails, and says where")]

mod backends;
mod background;
mod bodies;
mod books;
mod calls;
mod clients;
mod config;
mod connections;
mod endpoints;
mod kvcache;
mod observability;
mod refusals;
mod streams;
mod tidy;
mod tls;
mod world;
