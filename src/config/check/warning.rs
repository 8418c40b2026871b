//! What is allowed but does nothing: told to whoever checks a configuration, and logged at the start.

use crate::config::kvcache::{CacheStrategy, EvictWith, KvCache, LmcacheApi};
use crate::config::{Backend, Cluster, Config, Policy};

pub(in crate::config) fn warnings(config: &Config) -> Vec<String> {
    let of = |(n, cluster): (usize, &Cluster)| {
        of_cluster(cluster).into_iter().map(move |(key, what)| format!("clusters[{n}].{key}: {what}"))
    };
    let clusters = config.clusters.iter().enumerate().flat_map(of);
    let known = |name: &str| config.clusters.iter().any(|cluster| cluster.name == name);
    let lost = config.routes.iter().enumerate().filter(|(_, route)| !known(&route.cluster));
    let lost = lost.map(|(n, route)| {
        let status = route.cluster_not_found_status.unwrap_or_default();
        format!(
            "routes[{n}].cluster: {} is not a cluster: requests are answered with {status}",
            route.cluster
        )
    });
    let blocks = (config.log.block_keys && !config.log.tells_blocks())
        .then(|| "log.block_keys: blocks are told only where log.access is json".to_owned());
    clusters.chain(lost).chain(blocks).collect()
}

type Warning = (&'static str, String);

fn of_cluster(cluster: &Cluster) -> Vec<Warning> {
    let kvcache = &cluster.kvcache;
    let mut warnings = Vec::new();
    if cluster.policy == Policy::LmcacheOnly && !kvcache.enabled {
        warnings.push(("policy", "lmcache_only without kvcache.enabled is its fallback alone".to_owned()));
    }
    let weights_differ = cluster.backends.iter().any(|backend| backend.weight != cluster.backends[0].weight);
    if cluster.policy.weighs_caches() && weights_differ {
        warnings.push((
            "backends",
            "weights have no effect under pmc and lmetric, except for requests without a prompt".to_owned(),
        ));
    }
    if kvcache.enabled {
        of_routing(cluster, &mut warnings);
        of_strategy(kvcache, &mut warnings);
        of_instances(cluster, &mut warnings);
    }
    warnings
}

fn of_routing(cluster: &Cluster, warnings: &mut Vec<Warning>) {
    if cluster.policy == Policy::LmcacheOnly && !cluster.kvcache.token_cache.enabled {
        let what = "lmcache_only without it looks up only prompts that come as token ids";
        warnings.push(("kvcache.token_cache.enabled", what.to_owned()));
    }
}

fn of_strategy(kvcache: &KvCache, warnings: &mut Vec<Warning>) {
    let CacheStrategy { enable_compression, enable_pinning, enable_eviction, .. } = kvcache.cache_strategy;
    let strategy = &kvcache.cache_strategy;
    let mut warn = |key, what: &str| warnings.push((key, what.to_owned()));
    if enable_compression && strategy.load_threshold <= 0.0 {
        warn("kvcache.cache_strategy.enable_compression", "nothing is ever compressed: load_threshold is 0");
    }
    if enable_pinning && strategy.hot_content_threshold == 0 {
        warn("kvcache.cache_strategy.enable_pinning", "nothing is ever pinned: hot_content_threshold is 0");
    }
    if enable_eviction && strategy.memory_threshold <= 0.0 {
        warn("kvcache.cache_strategy.enable_eviction", "nothing is ever evicted: memory_threshold is 0");
    }
    let coordinator = kvcache.lmcache_api == LmcacheApi::Coordinator;
    if enable_compression && coordinator {
        warn("kvcache.cache_strategy.enable_compression", "a coordinator cannot compress");
    } else if enable_compression && strategy.compress_method != "cachegen" {
        let what = "has no effect on a real LMCache controller, which knows cachegen only";
        let what = format!("{:?} {what}", strategy.compress_method);
        warn("kvcache.cache_strategy.compress_method", &what);
    }
    if enable_eviction && strategy.evict_with == EvictWith::Evict && !coordinator {
        let what = "a real LMCache controller has no /evict: nothing is evicted there; see evict_with: clear";
        warn("kvcache.cache_strategy.evict_with", what);
    }
}

/// A control action for an instance that is no backend's is answered by nobody that is known here.
fn of_instances(cluster: &Cluster, warnings: &mut Vec<Warning>) {
    let strategy = &cluster.kvcache.cache_strategy;
    let name = |backend: &Backend| backend.lmcache_instance_id.as_ref().unwrap_or(&backend.id).clone();
    let known: Vec<_> = cluster.backends.iter().map(name).collect();
    for (enabled, key, instance) in [
        (strategy.enable_pinning, "kvcache.cache_strategy.pin_instance_id", &strategy.pin_instance_id),
        (
            strategy.enable_compression,
            "kvcache.cache_strategy.compress_instance_id",
            &strategy.compress_instance_id,
        ),
        (strategy.enable_eviction, "kvcache.cache_strategy.evict_instance_id", &strategy.evict_instance_id),
    ] {
        if enabled && !instance.is_empty() && !known.contains(instance) {
            warnings.push((
                key,
                format!("{instance:?} is no backend of the cluster (known: {})", known.join(", ")),
            ));
        }
    }
}
