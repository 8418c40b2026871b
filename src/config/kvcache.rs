//! The `kvcache` section of a cluster: what is asked of its tokenizer and its LMCache, and what is done with the answers.
//!
//! Everything here is without effect while `enabled` is false, endpoints included: they are checked only when it is true.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::names;
use super::values::{self, DAY_MS, GIB, HOUR_MS, KIB, MIB, MINUTE_MS};

/// What a cluster knows and does about the KV caches of its engines.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct KvCache {
    /// Whether any of this is done.
    pub enabled: bool,
    /// The engine that tokenizes, as in `http://vllm-0:8000`.
    pub vllm_endpoint: Option<String>,
    /// The LMCache controller or coordinator, as in `http://lmcache:9000`.
    pub lmcache_endpoint: Option<String>,
    /// The protocol that `lmcache_endpoint` speaks.
    pub lmcache_api: LmcacheApi,
    /// The model of requests that name none.
    pub default_model: String,
    /// How long tokenizing and looking up may take for one job in the background, and any one call but a control action.
    #[serde(
        deserialize_with = "values::duration::<1, HOUR_MS, _>",
        serialize_with = "values::write_duration"
    )]
    pub request_timeout: Duration,
    /// The most that a lookup may add to a request.
    #[serde(
        deserialize_with = "values::duration::<1, MINUTE_MS, _>",
        serialize_with = "values::write_duration"
    )]
    pub lookup_routing_timeout: Duration,
    /// Prompts with fewer tokens are not looked up.
    #[serde(deserialize_with = "values::integer::<0, 10_000_000, _>")]
    pub lookup_tokens_min: usize,
    /// A backend is not preferred beyond this many times the mean of requests in flight; 0 = always.
    #[serde(deserialize_with = "values::factor")]
    pub preferred_in_flight_max: f64,
    /// In which time accesses count towards a hot prompt.
    #[serde(
        deserialize_with = "values::duration::<1, DAY_MS, _>",
        serialize_with = "values::write_duration"
    )]
    pub hot_window: Duration,
    /// Accesses of one prompt that are remembered.
    #[serde(deserialize_with = "values::integer::<1, 10_000, _>")]
    pub hot_max_records: usize,
    /// Prompts whose accesses are remembered; the least recently seen is forgotten first.
    #[serde(deserialize_with = "values::integer::<1, 10_000_000, _>")]
    pub hot_max_keys: usize,
    /// Idle connections kept to both endpoints together; 0 = no bound of its own.
    #[serde(deserialize_with = "values::integer::<0, 65_536, _>")]
    pub max_idle_conns: usize,
    /// Idle connections kept to each endpoint; 0 = the client's own bound.
    #[serde(deserialize_with = "values::integer::<0, 65_536, _>")]
    pub max_idle_conns_per_host: usize,
    /// Calls at a time to each endpoint; 0 = the client's own bound.
    #[serde(deserialize_with = "values::integer::<0, 65_536, _>")]
    pub max_conns_per_host: usize,
    /// The prompts whose tokens are remembered.
    pub token_cache: TokenCache,
    /// What is done about hot prompts and full engines.
    pub cache_strategy: CacheStrategy,
    /// How lookups and actions are tried again.
    pub retry: Retry,
    /// When calls are given up for a while.
    pub circuit_breaker: CircuitBreaker,
    /// For how long an action is not repeated for the same prompt; 0 = never withheld.
    #[serde(
        deserialize_with = "values::duration::<0, DAY_MS, _>",
        serialize_with = "values::write_duration"
    )]
    pub action_interval: Duration,
    /// How long one control action may take; it is not cut off before.
    #[serde(
        deserialize_with = "values::duration::<1, HOUR_MS, _>",
        serialize_with = "values::write_duration"
    )]
    pub control_timeout: Duration,
    /// From one look at the engines' load to the next, and the longest that one may take.
    #[serde(
        deserialize_with = "values::duration::<100, DAY_MS, _>",
        serialize_with = "values::write_duration"
    )]
    pub load_period: Duration,
    /// Jobs that may wait for the background; more are dropped.
    #[serde(deserialize_with = "values::integer::<1, 1_000_000, _>")]
    pub queue_jobs_max: usize,
    /// Bytes of request bodies that waiting and running jobs may hold; a job beyond is dropped. The jobs of all clusters are
    /// never given more than half of `limits.buffered_bytes_max`.
    #[serde(
        deserialize_with = "values::size::<{ 64 * KIB }, { 64 * GIB }, _>",
        serialize_with = "values::write_size"
    )]
    pub queue_bytes_max: usize,
    /// Jobs that run at a time.
    #[serde(deserialize_with = "values::integer::<1, 4096, _>")]
    pub workers_max: usize,
}

/// The protocols of LMCache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LmcacheApi {
    /// `lmcache_controller`: `/lookup`, `/pin`, `/compress`, `/clear`.
    #[default]
    Controller,
    /// `lmcache coordinator`, its successor: `/directory/lookup`, `/cache/pins`.
    Coordinator,
}

/// The prompts whose tokens are remembered.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenCache {
    /// Whether tokens are remembered, and so whether a request can be looked up.
    pub enabled: bool,
    /// Prompts at most.
    #[serde(deserialize_with = "values::integer::<1, 100_000_000, _>")]
    pub max_size: usize,
    /// Bytes at most.
    #[serde(
        deserialize_with = "values::size::<{ 64 * KIB }, { 1024 * GIB }, _>",
        serialize_with = "values::write_size"
    )]
    pub max_bytes: usize,
    /// How long tokens are remembered.
    #[serde(
        deserialize_with = "values::duration::<1, { 30 * DAY_MS }, _>",
        serialize_with = "values::write_duration"
    )]
    pub ttl: Duration,
}

/// What is done about hot prompts and full engines, each only where it is enabled.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct CacheStrategy {
    /// Whether prompts are compressed on loaded engines.
    pub enable_compression: bool,
    /// Whether hot prompts are pinned.
    pub enable_pinning: bool,
    /// Whether prompts are evicted from full engines.
    pub enable_eviction: bool,
    /// The share of an engine's cache in use from which it evicts; 0 = never.
    #[serde(deserialize_with = "values::ratio")]
    pub memory_threshold: f64,
    /// The load of an engine from which it compresses; 0 = never.
    #[serde(deserialize_with = "values::ratio")]
    pub load_threshold: f64,
    /// Accesses within `hot_window` that make a prompt hot; 0 = never.
    #[serde(deserialize_with = "values::integer::<0, 10_000, _>")]
    pub hot_content_threshold: usize,
    /// Where to pin; empty = on the instance that holds the prompt.
    #[serde(deserialize_with = "names::short_text")]
    pub pin_instance_id: String,
    /// At which location of the instance; empty = the one that the lookup named.
    #[serde(deserialize_with = "names::short_text")]
    pub pin_location: String,
    /// Where to compress; empty = on the instance that holds the prompt.
    #[serde(deserialize_with = "names::short_text")]
    pub compress_instance_id: String,
    /// At which location of the instance; empty = the one that the lookup named.
    #[serde(deserialize_with = "names::short_text")]
    pub compress_location: String,
    /// How to compress: a real controller knows `cachegen` only.
    #[serde(deserialize_with = "names::short_text")]
    pub compress_method: String,
    /// Where to evict; empty = on the instance that holds the prompt.
    #[serde(deserialize_with = "names::short_text")]
    pub evict_instance_id: String,
    /// What is done where the controller has no `/evict`.
    pub evict_with: EvictWith,
    /// The location that `evict_with: clear` clears as a whole; without it nothing is cleared.
    #[serde(deserialize_with = "names::short_text")]
    pub evict_location: String,
}

/// What is done where the controller has no `/evict`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EvictWith {
    /// Nothing.
    #[default]
    Evict,
    /// `/clear`, which drops the whole `evict_location`.
    Clear,
}

/// How lookups and actions are tried again.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retry {
    /// Attempts in all.
    #[serde(deserialize_with = "values::integer::<1, 100, _>")]
    pub max_attempts: usize,
    /// The wait before the second attempt; it doubles from then on.
    #[serde(
        deserialize_with = "values::duration::<1, HOUR_MS, _>",
        serialize_with = "values::write_duration"
    )]
    pub base_backoff: Duration,
    /// The longest wait.
    #[serde(
        deserialize_with = "values::duration::<1, HOUR_MS, _>",
        serialize_with = "values::write_duration"
    )]
    pub max_backoff: Duration,
}

/// When calls are given up for a while; one breaker for the tokenizer and one for LMCache.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct CircuitBreaker {
    /// Failures in a row that open it.
    #[serde(deserialize_with = "values::integer::<1, 10_000, _>")]
    pub failure_threshold: usize,
    /// How long it stays open.
    #[serde(
        deserialize_with = "values::duration::<1, DAY_MS, _>",
        serialize_with = "values::write_duration"
    )]
    pub recovery_timeout: Duration,
    /// Calls that are let through while it is half open.
    #[serde(deserialize_with = "values::integer::<1, 10_000, _>")]
    pub half_open_max_calls: usize,
}

impl KvCache {
    /// The tokenizer's base URL without a trailing `/`; `None` where nothing is to be tokenized.
    #[must_use]
    pub fn tokenizer(&self) -> Option<&str> {
        self.vllm_endpoint.as_deref().filter(|_| self.enabled).map(|url| url.trim_end_matches('/'))
    }

    /// The base URL of LMCache without a trailing `/`; `None` where it is not asked.
    #[must_use]
    pub fn lmcache(&self) -> Option<&str> {
        self.lmcache_endpoint.as_deref().filter(|_| self.enabled).map(|url| url.trim_end_matches('/'))
    }
}

impl Default for KvCache {
    fn default() -> Self {
        Self {
            enabled: false,
            vllm_endpoint: None,
            lmcache_endpoint: None,
            lmcache_api: LmcacheApi::Controller,
            default_model: String::new(),
            request_timeout: Duration::from_secs(2),
            lookup_routing_timeout: Duration::from_millis(50),
            lookup_tokens_min: 256,
            preferred_in_flight_max: 2.0,
            hot_window: Duration::from_mins(5),
            hot_max_records: 300,
            hot_max_keys: 100_000,
            max_idle_conns: 0,
            max_idle_conns_per_host: 0,
            max_conns_per_host: 0,
            token_cache: TokenCache::default(),
            cache_strategy: CacheStrategy::default(),
            retry: Retry::default(),
            circuit_breaker: CircuitBreaker::default(),
            action_interval: Duration::from_mins(1),
            control_timeout: Duration::from_secs(30),
            load_period: Duration::from_secs(2),
            queue_jobs_max: 1024,
            queue_bytes_max: 64 * MIB,
            workers_max: 16,
        }
    }
}

impl Default for TokenCache {
    fn default() -> Self {
        Self { enabled: false, max_size: 10_000, max_bytes: 256 * MIB, ttl: Duration::from_mins(10) }
    }
}

impl Default for CacheStrategy {
    fn default() -> Self {
        Self {
            enable_compression: false,
            enable_pinning: false,
            enable_eviction: false,
            memory_threshold: 0.0,
            load_threshold: 0.0,
            hot_content_threshold: 0,
            pin_instance_id: String::new(),
            pin_location: String::new(),
            compress_instance_id: String::new(),
            compress_location: String::new(),
            compress_method: "cachegen".to_owned(),
            evict_instance_id: String::new(),
            evict_with: EvictWith::Evict,
            evict_location: String::new(),
        }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            max_attempts: 3,
            base_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
        }
    }
}

impl Default for CircuitBreaker {
    fn default() -> Self {
        Self { failure_threshold: 5, recovery_timeout: Duration::from_secs(10), half_open_max_calls: 2 }
    }
}
