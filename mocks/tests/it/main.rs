//! The mocks seen from outside: what goes over the socket, against what was recorded and what a test asked for.
//!
//! The modules say `cfg(test)`, which is always true here, so that the lints know their helpers for tests as well.

#[cfg(test)]
mod client;
#[cfg(test)]
mod commands;
#[cfg(test)]
mod controller;
#[cfg(test)]
mod coordinator;
#[cfg(test)]
mod engine;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod simulated;
