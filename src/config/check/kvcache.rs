//! The `kvcache` section across its keys. Called per cluster; looks at nothing while `enabled` is false.

use crate::config::error::Fault;
use crate::config::kvcache::{EvictWith, KvCache};
use crate::config::names::is_endpoint;
use crate::config::spot::Spot;
use crate::config::values::duration_text;

const ENDPOINT: &str =
    "an http:// or https:// URL such as http://vllm-0:8000, without user, query and fragment";

pub(super) fn check(kvcache: &KvCache, spot: &Spot<'_>) -> Result<(), Fault> {
    if !kvcache.enabled {
        return Ok(());
    }
    endpoint(kvcache.vllm_endpoint.as_deref(), "vllm_endpoint", spot)?;
    endpoint(kvcache.lmcache_endpoint.as_deref(), "lmcache_endpoint", spot)?;
    hotness(kvcache, spot)?;
    backoff(kvcache, spot)?;
    let strategy = &kvcache.cache_strategy;
    if strategy.evict_with == EvictWith::Clear && strategy.evict_location.is_empty() {
        let message = "clear needs evict_location: the location that is cleared as a whole";
        return Err(spot.key("cache_strategy").key("evict_with").fault(message));
    }
    Ok(())
}

fn endpoint(url: Option<&str>, key: &str, section: &Spot<'_>) -> Result<(), Fault> {
    let spot = section.key(key);
    match url {
        Some(url) if is_endpoint(url) => Ok(()),
        None if !spot.is_written() => {
            Err(section.fault(format!("the key {key} is missing; it is needed while enabled is true")))
        }
        _ => {
            // Before an @ stands a password.
            let shown =
                if url.is_some_and(|url| url.contains('@')) { "the value".to_owned() } else { spot.shown() };
            Err(spot.fault(format!("{shown} is not allowed ({ENDPOINT})")))
        }
    }
}

/// More accesses than are remembered are never seen.
fn hotness(kvcache: &KvCache, spot: &Spot<'_>) -> Result<(), Fault> {
    let (wanted, records) = (kvcache.cache_strategy.hot_content_threshold, kvcache.hot_max_records);
    if wanted <= records {
        return Ok(());
    }
    let spots = (spot.key("cache_strategy").key("hot_content_threshold"), spot.key("hot_max_records"));
    Err(at_most((&spots.0, &wanted.to_string()), (&spots.1, "hot_max_records", &records.to_string())))
}

fn backoff(kvcache: &KvCache, spot: &Spot<'_>) -> Result<(), Fault> {
    let (base, max) = (kvcache.retry.base_backoff, kvcache.retry.max_backoff);
    if base <= max {
        return Ok(());
    }
    let spots = (spot.key("retry").key("base_backoff"), spot.key("retry").key("max_backoff"));
    Err(at_most((&spots.0, &duration_text(base)), (&spots.1, "max_backoff", &duration_text(max))))
}

/// A value is above the one that bounds it; each with its default. Told at the value, or at the bound where only that is
/// written.
fn at_most((spot, value): (&Spot<'_>, &str), (bound, name, most): (&Spot<'_>, &str, &str)) -> Fault {
    let (value, most) = (spot.shown_or(value), bound.shown_or(most));
    if spot.is_written() {
        spot.fault(format!("{value} is not allowed (at most {name}, {most})"))
    } else {
        bound.fault(format!("{most} is not allowed (at least {}, {value})", spot.name()))
    }
}
