//! One cluster, from its configuration: its fleet, its balancer, the ways to its backends, and what it asks about caches.
//!
//! Called by [`super::App::new`].

use super::{AppError, base_url};
use crate::background::capacity::{CapacityService, Engine};
use crate::background::jobs::JobsService;
use crate::background::load::LoadService;
use crate::background::{probe, strategy};
use crate::clients::breaker::Breaker;
use crate::clients::lmcache::Lmcache;
use crate::config::{self, CAPACITY_TOKENS, Config, HashBy, Policy};
use crate::metrics::Metrics;
use crate::proxy::balancer::Balancer;
use crate::proxy::cluster::Cluster;
use crate::proxy::hint::{Hints, Why};
use crate::proxy::key::Secret;
use crate::proxy::peer::{FOLLOWED, Reason, Rules};
use crate::proxy::upstream::Upstream;
use crate::state::blocks::Blocks;
use crate::state::fleet::Fleet;
use crate::state::flights::Flights;
use crate::state::hotness::Hotness;
use crate::state::inbox::Inbox;
use crate::state::lifecycle::Lifecycle;
use crate::state::load::Loads;
use crate::state::ratio::Ratios;
use crate::state::tokens::{Counters, TokenCache};
use crate::state::trust::{Source, Trust};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

pub(super) fn build(
    cluster: &config::Cluster,
    config: &Config,
    secret: Secret,
    metrics: &Metrics,
) -> Result<Cluster, AppError> {
    let jobs_bytes_max = jobs_bytes_max(cluster, config);
    let error = |source| AppError::Cluster { cluster: cluster.name.clone(), source };
    let entry = |backend: &config::Backend| (backend.id.clone(), backend.address.clone(), backend.weight);
    let fleet = Fleet::new(&cluster.name, cluster.backends.iter().map(entry));
    let upstream = |backend| Upstream::new(backend, &config.timeouts);
    let upstreams = cluster.backends.iter().map(upstream).collect::<Result<Vec<_>, _>>().map_err(error)?;
    let probes = upstreams.iter().map(|upstream| upstream.probe(cluster.health.timeout)).collect();
    let backends = probe::backends(&fleet, &cluster.health, probes).map_err(error)?;
    let resolve_period = probe::resolve_period(&fleet);
    let of_backend =
        |backend: &config::Backend| metrics.backend(&cluster.name, &backend.id, &backend.address);
    let capacity = |backend: &config::Backend| backend.capacity_tokens.unwrap_or(CAPACITY_TOKENS);
    let capacities: Vec<usize> = cluster.backends.iter().map(capacity).collect();
    let (reasons, sources) = (Reason::ALL.map(Reason::name), Source::ALL.map(Source::name));
    let routing = metrics.routing(&cluster.name, reasons.into_iter(), sources.into_iter());
    Ok(Cluster {
        rules: Rules {
            policy: cluster.policy,
            balancing: cluster.balancing(),
            preferred_in_flight_max: cluster.kvcache.preferred_in_flight_max,
        },
        hints: cluster
            .kvcache
            .enabled
            .then(|| hints(cluster, secret, jobs_bytes_max, metrics))
            .transpose()?,
        decision_header: cluster.decision_header,
        hash_header: cluster.hash_header.clone(),
        hash_prefix_blocks: (cluster.hash_by == HashBy::Prefix).then_some(cluster.hash_prefix_blocks),
        blocks: Arc::new(Blocks::new(&capacities)),
        trust: Trust::new(cluster.backends.len()),
        ratios: Ratios::new(routing.models_forgotten.clone()),
        balancer: Arc::new(Balancer::new(
            cluster.balancing(),
            backends,
            cluster.health.period,
            resolve_period,
        )),
        upstreams,
        metrics: metrics.cluster(&cluster.name),
        routing,
        backend_metrics: cluster.backends.iter().map(of_backend).collect(),
        fleet,
    })
}

/// What reads how much the engines of a cluster hold.
pub(super) fn capacity_service(config: &config::Cluster, cluster: &Cluster) -> CapacityService {
    let engine = |backend: &config::Backend| Engine {
        base: base_url(backend),
        api_key: backend.api_key.clone(),
        capacity_is_configured: backend.capacity_tokens.is_some(),
    };
    CapacityService::new(
        Arc::clone(&cluster.fleet),
        config.backends.iter().map(engine).collect(),
        Arc::clone(&cluster.blocks),
        config.models_period,
        cluster.routing.clone(),
    )
}

/// What works in the background for a cluster with `kvcache`: on the jobs that requests hand over, and, where its strategy
/// goes by load, on the engines' load.
pub(super) fn services(
    config: &config::Cluster,
    cluster: &Cluster,
    lifecycle: &Arc<Lifecycle>,
) -> Option<(JobsService, Option<LoadService>)> {
    let hints = cluster.hints.as_ref()?;
    let instances = config.backends.iter().map(instance).collect();
    let period = config.kvcache.load_period;
    let loads = Loads::new(instances, period);
    let jobs = JobsService {
        config: config.kvcache.clone(),
        tokenizer_key: tokenizer_key(config),
        tokenizer_breaker: Arc::clone(&hints.tokenizer_breaker),
        lmcache_breaker: Arc::clone(&hints.lmcache_breaker),
        inbox: Arc::clone(&hints.inbox),
        token_cache: Arc::clone(&hints.tokens),
        loads: Arc::clone(&loads),
        lifecycle: Arc::clone(lifecycle),
        metrics: hints.metrics.clone(),
    };
    let load = strategy::needs_load(&config.kvcache.cache_strategy).then(|| {
        let backends = config.backends.iter().map(|backend| (base_url(backend), backend.api_key.clone()));
        LoadService::new(Arc::clone(&cluster.fleet), backends.collect(), loads, period, hints.metrics.clone())
    });
    Some((jobs, load))
}

/// The name by which LMCache knows a backend.
fn instance(backend: &config::Backend) -> String {
    backend.lmcache_instance_id.as_ref().unwrap_or(&backend.id).clone()
}

/// The key of the backend that tokenizes as well, where one of the cluster does.
fn tokenizer_key(config: &config::Cluster) -> Option<config::Secret> {
    let (scheme, rest) = config.kvcache.tokenizer()?.split_once("://")?;
    let authority = rest.split('/').next()?;
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let port = if scheme.eq_ignore_ascii_case("https") { 443 } else { 80 };
    let address = if has_port { authority.to_owned() } else { format!("{authority}:{port}") };
    let tokenizer = config.backends.iter().find(|backend| backend.address.eq_ignore_ascii_case(&address))?;
    tokenizer.api_key.clone()
}

/// What the jobs of a cluster may hold of request bodies: as configured, but all clusters together no more than half of the
/// budget, so that requests find room while the background is stuck.
fn jobs_bytes_max(cluster: &config::Cluster, config: &Config) -> usize {
    let clusters = config.clusters.iter().filter(|cluster| cluster.kvcache.enabled).count();
    cluster.kvcache.queue_bytes_max.min(config.limits.buffered_bytes_max / 2 / clusters.max(1))
}

/// What the requests of a cluster ask about caches, and of whom.
fn hints(
    cluster: &config::Cluster,
    secret: Secret,
    jobs_bytes_max: usize,
    metrics: &Metrics,
) -> Result<Hints, AppError> {
    let config = cluster.kvcache.clone();
    let metrics = metrics.kvcache(&cluster.name);
    metrics
        .show_hints(Why::ALL.iter().filter(|why| **why != Why::Off).map(|why| why.name()).chain([FOLLOWED]));
    let strategy = &config.cache_strategy;
    let threshold = if strategy.enable_pinning { strategy.hot_content_threshold } else { 0 };
    let breaker = |name| {
        let transitions = metrics.breaker_transitions.clone();
        Arc::new(Breaker::new(name, &cluster.name, &config.circuit_breaker, transitions))
    };
    let lmcache_breaker = breaker("lmcache");
    let lmcache = || {
        Lmcache::new(&config, Arc::clone(&lmcache_breaker))
            .map_err(|source| AppError::Client { cluster: cluster.name.clone(), source })
    };
    let counters = Counters {
        hits: metrics.token_cache.hits.clone(),
        misses: metrics.token_cache.misses.clone(),
        evictions: metrics.token_cache.evictions.clone(),
    };
    let instances = cluster.backends.iter().enumerate();
    Ok(Hints {
        secret,
        hotness: Arc::new(Hotness::new(
            config.hot_window,
            threshold.min(config.hot_max_records),
            config.hot_max_keys,
            metrics.hotness.forgotten.clone(),
        )),
        tokens: Arc::new(TokenCache::new(&config.token_cache, counters)),
        inbox: Inbox::new(config.queue_jobs_max, jobs_bytes_max),
        lmcache: Arc::new(lmcache()?),
        lmcache_for_explain: lmcache()?,
        lmcache_breaker,
        tokenizer_breaker: breaker("tokenizer"),
        instances: instances.map(|(index, backend)| (instance(backend), index)).collect(),
        lookups: Flights::default(),
        awaited: cluster.policy == Policy::LmcacheOnly || cluster.policy.weighs_caches(),
        metrics,
        told: AtomicBool::new(false),
        config,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(endpoint: &str) -> Option<config::Secret> {
        let text = format!(
            "clusters: [{{name: a, backends: [{{id: b, address: \"vllm:8000\", api_key: one}}, {{id: c, address: \"vllm:80\", api_key: two}}], \
             kvcache: {{enabled: true, vllm_endpoint: \"{endpoint}\", lmcache_endpoint: \"http://a\"}}}}]"
        );
        tokenizer_key(&Config::parse(&text, "test.yaml", &|_| None).unwrap().clusters[0])
    }

    #[test]
    fn the_key_for_the_tokenizer_is_that_of_the_backend_at_its_address() {
        for (endpoint, expected) in [
            ("http://vllm:8000", Some("one")),
            ("http://VLLM:8000/", Some("one")),
            ("http://vllm:8000/base", Some("one")),
            ("http://vllm", Some("two")),
            ("https://vllm", None),
            ("http://other:8000", None),
        ] {
            assert_eq!(key(endpoint).as_ref().map(config::Secret::expose), expected, "{endpoint}");
        }
    }
}
