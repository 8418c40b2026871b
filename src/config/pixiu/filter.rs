//! The HTTP filters of a listener: `dgp.filter.ai.kvcache` becomes the `kvcache` section of the clusters behind it,
//! `dgp.filter.llm.proxy` their TLS and the deadline of an answer. Other filters are told as ignored.

use std::time::Duration;

use super::Notes;
use super::fields::{Fields, Found, items, refused};
use super::output::{Map, scalar, text};
use crate::config::error::Fault;
use crate::config::kvcache::{KvCache, Retry};
use crate::config::spot::Spot;
use crate::config::values::duration_text;

const KVCACHE: &str = "dgp.filter.ai.kvcache";
const PROXY: &str = "dgp.filter.llm.proxy";
const OWN_POOL: &str = "without effect: the connections to backends are pooled without such a bound";

/// What the filters of a listener say.
#[derive(Default)]
pub(super) struct Filters {
    /// The `kvcache` section, and where its filter stands.
    pub(super) kvcache: Option<Map>,
    /// Whether backends are spoken to with TLS.
    pub(super) tls: bool,
    /// How long an answer may take.
    pub(super) timeout: Option<(usize, Duration)>,
}

impl Filters {
    pub(super) fn read(spot: Option<Spot<'_>>, notes: &mut Notes) -> Result<Self, Fault> {
        let mut filters = Self::default();
        let (mut proxy, mut kvcache) = (false, false);
        for spot in items(spot)? {
            let mut fields = Fields::of(&spot)?;
            let name = fields.text("name")?.map(|(_, name)| name.text.trim().to_owned());
            let config = fields.take("config");
            fields.finish(notes);
            match name.as_deref() {
                Some(KVCACHE) if !kvcache => {
                    kvcache = true;
                    if proxy {
                        let what = "stands after dgp.filter.llm.proxy, where Pixiu would not route by it; here it does";
                        notes.add(&spot, what);
                    }
                    filters.kvcache = section(config.as_ref(), &spot, notes)?;
                }
                Some(PROXY) if !proxy => {
                    proxy = true;
                    filters.proxy(config, notes)?;
                }
                Some(name @ (KVCACHE | PROXY)) => notes.add(&spot, &format!("ignored: a second {name}")),
                name => {
                    notes.add(&spot, &format!("ignored: the filter {}", name.unwrap_or("without a name")));
                }
            }
        }
        Ok(filters)
    }

    fn proxy(&mut self, config: Option<Spot<'_>>, notes: &mut Notes) -> Result<(), Fault> {
        let Some(config) = config else { return Ok(()) };
        let mut fields = Fields::of(&config)?;
        self.timeout = fields.duration("timeout")?.map(|(spot, timeout)| (spot.line(), timeout));
        if let Some((spot, scheme)) = fields.text("scheme")? {
            self.tls = match scheme.text.trim().to_ascii_lowercase().as_str() {
                "https" => true,
                "http" | "" => false,
                _ => return Err(refused(&spot, "http or https")),
            };
        }
        for key in ["maxIdleConns", "maxIdleConnsPerHost", "maxConnsPerHost"] {
            fields.without_effect(key, OWN_POOL, notes);
        }
        fields.finish(notes);
        Ok(())
    }
}

/// How a value of the kvcache filter is taken over, under the same name.
#[derive(Clone, Copy)]
enum Take {
    Flag,
    Text,
    /// Zero and less is like absent.
    Duration,
    /// Zero and less is like absent.
    Count,
    /// Less than zero is refused, zero like absent.
    Natural,
    Ratio,
}

const SECTION: &[(&str, Take)] = &[
    ("default_model", Take::Text),
    ("request_timeout", Take::Duration),
    ("lookup_routing_timeout", Take::Duration),
    ("hot_window", Take::Duration),
    ("hot_max_records", Take::Count),
    ("hot_max_keys", Take::Count),
    ("max_idle_conns", Take::Count),
    ("max_idle_conns_per_host", Take::Count),
    ("max_conns_per_host", Take::Count),
];
const TOKEN_CACHE: &[(&str, Take)] =
    &[("enabled", Take::Flag), ("max_size", Take::Natural), ("ttl", Take::Duration)];
const STRATEGY: &[(&str, Take)] = &[
    ("enable_compression", Take::Flag),
    ("enable_pinning", Take::Flag),
    ("enable_eviction", Take::Flag),
    ("memory_threshold", Take::Ratio),
    ("load_threshold", Take::Ratio),
    ("pin_instance_id", Take::Text),
    ("pin_location", Take::Text),
    ("compress_instance_id", Take::Text),
    ("compress_location", Take::Text),
    ("evict_instance_id", Take::Text),
];
const BREAKER: &[(&str, Take)] = &[
    ("failure_threshold", Take::Count),
    ("recovery_timeout", Take::Duration),
    ("half_open_max_calls", Take::Count),
];

fn section(config: Option<&Spot<'_>>, filter: &Spot<'_>, notes: &mut Notes) -> Result<Option<Map>, Fault> {
    let mut fields = Fields::of(config.unwrap_or(filter))?;
    if config.is_none() || !fields.flag("enabled")?.unwrap_or(false) {
        notes.add(filter, "not enabled: its settings are left out");
        return Ok(None);
    }
    let line = fields.spot().line();
    let mut out = Map::at(line).with("enabled", scalar(line, "true"));
    for key in ["vllm_endpoint", "lmcache_endpoint"] {
        if let Some((spot, url)) = fields.text(key)? {
            out.set(key, text(spot.line(), url.text.trim(), url.written.trim()));
        }
    }
    copy(SECTION, &mut fields, &mut out)?;
    // What Pixiu does: every prompt is looked up, and the backend found is taken however busy it is.
    out.set("lookup_tokens_min", scalar(line, "0"));
    out.set("preferred_in_flight_max", scalar(line, "0"));
    let records = fields.count("hot_max_records")?.map(|(_, records)| records).filter(|records| *records > 0);
    if let Some(spot) = fields.take("token_cache") {
        out.set("token_cache", copied(TOKEN_CACHE, &spot, notes)?);
    }
    let strategy = fields.take("cache_strategy");
    out.set("cache_strategy", cache_strategy(strategy.as_ref(), line, records, notes)?);
    if let Some(spot) = fields.take("retry") {
        out.set("retry", retry(&spot, notes)?);
    }
    if let Some(spot) = fields.take("circuit_breaker") {
        out.set("circuit_breaker", copied(BREAKER, &spot, notes)?);
    }
    fields.finish(notes);
    Ok(Some(out))
}

fn cache_strategy(
    spot: Option<&Spot<'_>>,
    line: usize,
    records: Option<i64>,
    notes: &mut Notes,
) -> Result<Map, Fault> {
    let Some(spot) = spot else {
        return Ok(Map::at(line).with("compress_method", scalar(line, "zstd")));
    };
    let mut fields = Fields::of(spot)?;
    let mut out = Map::at(spot.line());
    copy(STRATEGY, &mut fields, &mut out)?;
    if let Some((spot, threshold)) = natural(&mut fields, "hot_content_threshold")? {
        let records =
            records.unwrap_or_else(|| KvCache::default().hot_max_records.try_into().unwrap_or(i64::MAX));
        let reached = threshold <= records;
        if !reached {
            notes.add(&spot, &format!("never reached, as only {records} accesses are remembered: 0 here"));
        }
        let threshold = if reached { threshold } else { 0 };
        out.set("hot_content_threshold", scalar(spot.line(), threshold.to_string()));
    }
    let method = fields.text("compress_method")?.filter(|(_, method)| !method.text.is_empty());
    out.set(
        "compress_method",
        match method {
            Some((spot, method)) => text(spot.line(), &method.text, &method.written),
            None => scalar(spot.line(), "zstd"),
        },
    );
    fields.finish(notes);
    Ok(out)
}

fn retry(spot: &Spot<'_>, notes: &mut Notes) -> Result<Map, Fault> {
    let mut fields = Fields::of(spot)?;
    let mut out = Map::at(spot.line());
    copy(&[("max_attempts", Take::Count)], &mut fields, &mut out)?;
    let base = fields.duration("base_backoff")?;
    let max = fields.duration("max_backoff")?;
    fields.finish(notes);
    let default = Retry::default();
    let longest = max.as_ref().map_or(default.max_backoff, |(_, max)| *max);
    let first = base.as_ref().map_or(default.base_backoff, |(_, base)| *base);
    if first > longest {
        let spot = base.as_ref().or(max.as_ref()).map_or(spot, |(spot, _)| spot);
        notes.add(
            spot,
            &format!("no wait is longer than max_backoff: base_backoff is {} here", duration_text(longest)),
        );
    }
    let line = |found: &Found<'_, Duration>| found.as_ref().map_or(spot.line(), |(spot, _)| spot.line());
    out.set("base_backoff", scalar(line(&base), duration_text(first.min(longest))));
    out.set("max_backoff", scalar(line(&max), duration_text(longest)));
    Ok(out)
}

/// A mapping of which all keys are taken over.
fn copied(keys: &[(&str, Take)], spot: &Spot<'_>, notes: &mut Notes) -> Result<Map, Fault> {
    let mut fields = Fields::of(spot)?;
    let mut out = Map::at(spot.line());
    copy(keys, &mut fields, &mut out)?;
    fields.finish(notes);
    Ok(out)
}

fn copy(keys: &[(&str, Take)], fields: &mut Fields<'_>, out: &mut Map) -> Result<(), Fault> {
    let number = |spot: Spot<'_>, value: String| scalar(spot.line(), value);
    for (key, take) in keys {
        let value = match take {
            Take::Flag => fields.flag(key)?.map(|flag| scalar(out.line(), flag.to_string())),
            Take::Text => {
                fields.text(key)?.map(|(spot, value)| text(spot.line(), &value.text, &value.written))
            }
            Take::Duration => fields.duration(key)?.map(|(spot, value)| number(spot, duration_text(value))),
            Take::Count => fields
                .count(key)?
                .filter(|(_, count)| *count > 0)
                .map(|(spot, count)| number(spot, count.to_string())),
            Take::Natural => natural(fields, key)?
                .filter(|(_, count)| *count > 0)
                .map(|(spot, count)| number(spot, count.to_string())),
            Take::Ratio => fields.ratio(key)?.map(|(spot, ratio)| number(spot, format!("{ratio:?}"))),
        };
        if let Some(value) = value {
            out.set(key, value);
        }
    }
    Ok(())
}

/// A count below zero is refused, as Pixiu does.
fn natural<'a>(fields: &mut Fields<'a>, key: &str) -> Result<Found<'a, i64>, Fault> {
    match fields.count(key)? {
        Some((spot, count)) if count < 0 => Err(refused(&spot, "0 or more")),
        found => Ok(found),
    }
}
