//! The control plane: work that no request waits for.
//!
//! | service | period | reads | writes |
//! |---|---|---|---|
//! | [`probe`] (run by Pingora's balancer, one per cluster) | `health.period`; names every 10 s | `GET health.path`, DNS | health and addresses in `state::fleet` |
//! | [`models`] | `models_period`, the shortest of all clusters | `GET /v1/models` | `state::models` |
//! | [`readiness`] | once | – | the phase in `state::lifecycle` |

pub mod models;
pub mod probe;
pub mod readiness;
