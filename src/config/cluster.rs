//! Clusters: backends that serve the same models, how one of them is chosen, and how their health is known.

use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;
use serde::{Deserialize, Serialize};

use super::kvcache::KvCache;
use super::names;
use super::secret::Secret;
use super::values::{self, DAY_MS};

/// A group of backends of which any one can answer a request.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// The name that routes, metrics and logs use.
    #[serde(deserialize_with = "names::label")]
    pub name: String,
    /// The rule that chooses a backend.
    #[serde(default)]
    pub policy: Policy,
    /// The rule where `lmcache_only` has no backend to prefer; without effect under any other policy.
    #[serde(default)]
    pub fallback: Balancing,
    /// The backends, at least one.
    pub backends: Vec<Backend>,
    /// The health check.
    #[serde(default)]
    pub health: Health,
    /// The header that `consistent_hash` hashes, such as one that names the session; `None` = none.
    #[serde(
        default,
        deserialize_with = "names::optional::<_, names::Header, _>",
        serialize_with = "names::write_header"
    )]
    pub hash_header: Option<HeaderName>,
    /// What `consistent_hash` hashes where a request has no such header.
    #[serde(default)]
    pub hash_by: HashBy,
    /// Blocks of a prompt that `hash_by: prefix` hashes; a shorter prompt is hashed as far as it has whole blocks.
    #[serde(default = "hash_prefix_blocks", deserialize_with = "values::integer::<1, 4096, _>")]
    pub hash_prefix_blocks: usize,
    /// How often `/v1/models` is fetched from the backends, and read what they say of their caches.
    #[serde(
        default = "models_period",
        deserialize_with = "values::duration::<1, DAY_MS, _>",
        serialize_with = "values::write_duration"
    )]
    pub models_period: Duration,
    /// Whether answers carry `x-kvway-decision`: the backend chosen, and why.
    #[serde(default)]
    pub decision_header: bool,
    /// What is known and done about the engines' KV caches.
    #[serde(default)]
    pub kvcache: KvCache,
}

/// The rule that chooses a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// The backend with the least predicted marginal cost: what waits there, and what this prompt adds for everybody there.
    #[default]
    Pmc,
    /// The backend with the least product of waiting tokens and requests (`LMetric`).
    Lmetric,
    /// The backend with the fewest requests in flight.
    LeastRequests,
    /// Of two backends by chance, the one with fewer requests in flight.
    PowerOfTwo,
    /// The same session, client or prefix to the same backend.
    ConsistentHash,
    /// In turn, by weight.
    RoundRobin,
    /// At random, by weight.
    Random,
    /// The backend at which LMCache has the most of the prompt, else as `fallback` says.
    LmcacheOnly,
}

/// The rule that chooses a backend where nothing is known of caches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Balancing {
    /// As [`Policy::RoundRobin`].
    #[default]
    RoundRobin,
    /// As [`Policy::Random`].
    Random,
    /// As [`Policy::ConsistentHash`].
    ConsistentHash,
    /// As [`Policy::LeastRequests`].
    LeastRequests,
    /// As [`Policy::PowerOfTwo`].
    PowerOfTwo,
}

/// What `consistent_hash` goes by where a request has no `hash_header`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HashBy {
    /// The client's address.
    #[default]
    Client,
    /// The first blocks of the prompt, `hash_prefix_blocks` of them; the client's address where there is none.
    Prefix,
}

impl Policy {
    /// Whether it goes by how much of a prompt each backend has cached.
    #[must_use]
    pub fn weighs_caches(self) -> bool {
        matches!(self, Self::Pmc | Self::Lmetric)
    }

    /// The rule by which Pingora's own balancer, or the books, choose: the policy, or what stands in for it where it has
    /// nothing to go by; of `lmcache_only` that is `fallback`.
    #[must_use]
    pub fn balancing(self, fallback: Balancing) -> Balancing {
        match self {
            Self::RoundRobin => Balancing::RoundRobin,
            Self::Random => Balancing::Random,
            Self::ConsistentHash => Balancing::ConsistentHash,
            Self::LeastRequests | Self::Pmc | Self::Lmetric => Balancing::LeastRequests,
            Self::PowerOfTwo => Balancing::PowerOfTwo,
            Self::LmcacheOnly => fallback,
        }
    }
}

impl Cluster {
    /// See [`Policy::balancing`].
    #[must_use]
    pub fn balancing(&self) -> Balancing {
        self.policy.balancing(self.fallback)
    }
}

/// An engine.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    /// The name that metrics and logs use.
    #[serde(deserialize_with = "names::label")]
    pub id: String,
    /// `host:port` as written: an IP address or a DNS name, which is resolved later.
    #[serde(deserialize_with = "names::server_address")]
    pub address: String,
    /// The share of requests relative to the other backends.
    #[serde(default = "one", deserialize_with = "values::integer::<1, 1000, _>")]
    pub weight: usize,
    /// Tokens that its KV cache holds, with all tiers that are worth going to; `None` = what the engine reports of its own,
    /// else [`CAPACITY_TOKENS`].
    #[serde(default, deserialize_with = "names::optional::<_, names::Tokens, _>")]
    pub capacity_tokens: Option<usize>,
    /// The name by which LMCache knows it; `None` = its `id`.
    #[serde(default, deserialize_with = "names::optional::<_, names::ShortText, _>")]
    pub lmcache_instance_id: Option<String>,
    /// The key that the backend asks for, sent as a bearer token.
    #[serde(default)]
    pub api_key: Option<Secret>,
    /// TLS to the backend; `None` = plain text.
    #[serde(default)]
    pub tls: Option<BackendTls>,
}

/// How a backend's certificate is judged.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct BackendTls {
    /// The name the certificate must hold; `None` = the host of the address.
    #[serde(deserialize_with = "names::optional::<_, names::Host, _>")]
    pub server_name: Option<String>,
    /// PEM file of the authorities to trust; `None` = those of the system.
    #[serde(deserialize_with = "names::optional::<_, names::FilePath, _>")]
    pub ca: Option<PathBuf>,
    /// Whether the certificate is checked at all.
    pub verify: bool,
}

impl Default for BackendTls {
    fn default() -> Self {
        Self { server_name: None, ca: None, verify: true }
    }
}

/// The health check of every backend of a cluster.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Health {
    /// What is fetched; 200 is healthy.
    #[serde(deserialize_with = "names::url_path")]
    pub path: String,
    /// From one check to the next.
    #[serde(
        deserialize_with = "values::duration::<1, DAY_MS, _>",
        serialize_with = "values::write_duration"
    )]
    pub period: Duration,
    /// How long an answer may take.
    #[serde(
        deserialize_with = "values::duration::<1, DAY_MS, _>",
        serialize_with = "values::write_duration"
    )]
    pub timeout: Duration,
    /// Failed checks in a row that make a backend unhealthy.
    #[serde(deserialize_with = "values::integer::<1, 100, _>")]
    pub failures: usize,
    /// Good checks in a row that make it healthy again.
    #[serde(deserialize_with = "values::integer::<1, 100, _>")]
    pub successes: usize,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            path: "/health".to_owned(),
            period: Duration::from_secs(5),
            timeout: Duration::from_secs(4),
            failures: 3,
            successes: 1,
        }
    }
}

/// Tokens that a backend's cache is taken to hold while nobody says otherwise.
pub const CAPACITY_TOKENS: usize = 500_000;

/// More tokens than any cache holds.
pub const CAPACITY_TOKENS_MAX: usize = 1_000_000_000;

fn hash_prefix_blocks() -> usize {
    4
}

fn one() -> usize {
    1
}

fn models_period() -> Duration {
    Duration::from_secs(30)
}
