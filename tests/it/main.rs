//! Tests of the rooms, in one binary.
#![expect(unreachable_pub, reason = "a test binary has no outside")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails, and says where")]

mod backends;
mod background;
mod bodies;
mod books;
mod calls;
mod clients;
mod compare;
mod config;
mod connections;
mod doctor;
mod endpoints;
mod kvcache;
mod observability;
mod real;
mod reasons;
mod refusals;
mod replay;
mod routing;
mod streams;
mod tidy;
mod tls;
mod world;
