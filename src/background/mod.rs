//! The control plane: work that no request waits for.
//!
//! | service | period | reads | writes |
//! |---|---|---|---|
//! | [`probe`] (run by Pingora's balancer, one per cluster) | `health.period`; names every 10 s | `GET health.path`, DNS | health and addresses in `state::fleet` |
//! | [`models`] | `models_period`, the shortest of all clusters | `GET /v1/models` | `state::models` |
//! | [`jobs`] (one per cluster with the KV-cache filter) | when jobs wait | `state::inbox`, `/tokenize`, LMCache | `state::tokens`, LMCache |
//! | [`load`] (one per cluster whose strategy asks for it) | `load_period` | `GET /metrics` of the engines, `/proc` | `state::load` |
//! | [`capacity`] (one per cluster) | `models_period`, and when a backend is back | `GET /metrics` of the engines | capacities in `state::blocks`, sleep in `state::fleet` |
//! | [`readiness`] | once | – | the phase in `state::lifecycle` |
//!
//! A job's way is in `course`, what it decides in [`strategy`], how it acts in `actions`.

mod actions;
pub mod capacity;
mod course;
pub mod jobs;
pub mod load;
pub mod models;
pub mod probe;
pub mod readiness;
pub mod strategy;
