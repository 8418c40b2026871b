//! What the data plane and the control plane share: plain structures, synchronous, each with a bound.
//!
//! | structure | written by | read by | bound | when it is full |
//! |---|---|---|---|---|
//! | [`fleet::Fleet`] | `proxy` (books), `background::probe` (health, addresses), `background::capacity` (sleep) | `proxy`, `admin` | the configured backends | – |
//! | [`blocks::Blocks`] | `proxy` (tries, what LMCache says), `background::capacity` | `proxy`, `admin` | each backend's cache capacity in tokens | the least recently used blocks go, counted |
//! | [`budget::Budget`] | `proxy::body` | `proxy`, `admin` | `limits.buffered_bytes_max` | 503 with Retry-After, counted |
//! | [`lifecycle::Lifecycle`] | `shutdown`, `proxy` (requests in flight) | `admin`, `proxy` | three counters | – |
//! | [`models::ModelList`] | `background::models` | `proxy` | `limits.models_bytes_max` per cluster | the answer is not taken, counted |
//! | [`hotness::Hotness`] | `proxy` (accesses) | `proxy` | `hot_max_keys` prompts per cluster, the threshold's accesses each | the least recently seen prompt is forgotten |
//! | [`tokens::TokenCache`] | `background` | `proxy`, `background` | `token_cache.max_size` and `max_bytes` per cluster | the least recently used goes, counted |
//! | [`trust::Trust`] | `proxy` | `proxy`, `admin` | two numbers per backend | – |
//! | [`flights::Flights`] | `proxy`, `background`, each its own | the same | the calls in flight | – |
//! | [`inbox::Inbox`] | `proxy` | `background::jobs` | `queue_jobs_max` waiting jobs and `queue_bytes_max` bytes per cluster | the job is dropped, counted |
//! | [`ratio::Ratios`] | `proxy` | `proxy` | [`ratio::MODELS_MAX`] models | the least recently asked for is forgotten, counted |
//! | [`recent::Recent`] | `proxy` | `admin` | `admin.decisions_max` decisions | the oldest goes, counted |
//! | [`load::Loads`] | `background::load` | `background` | the configured backends | – |
//!
//! Nothing here names another room.

pub mod blocks;
pub mod budget;
pub mod fleet;
pub mod flights;
pub mod hotness;
pub mod inbox;
pub mod lifecycle;
pub mod load;
pub mod models;
pub mod ratio;
pub mod recent;
pub mod tokens;
pub mod trust;
