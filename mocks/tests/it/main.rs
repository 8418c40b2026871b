//! The mocks seen from outside: what goes over the socket, against what was recorded and what a test asked for.

mod client;
mod engine;
mod faults;
mod golden;
