//! The `kvcache` section: what is asked of it only while it is enabled, and what is told of settings without effect.

use super::{MINIMAL, parse, refusal};

const ENABLED: &str = "enabled: true, vllm_endpoint: http://v:1, lmcache_endpoint: http://l:1";

/// One cluster with these keys and this section.
fn cluster(keys: &str, kvcache: &str) -> String {
    MINIMAL.replace("name: llama", &format!("name: llama, {keys}kvcache: {{{kvcache}}}"))
}

#[test]
fn a_disabled_section_may_hold_what_an_enabled_one_may_not() {
    let wrong = "vllm_endpoint: '', lmcache_endpoint: 'ftp://u:p@l', retry: {base_backoff: 1h}, \
                 cache_strategy: {hot_content_threshold: 301, evict_with: clear}";
    let config = parse(&cluster("", wrong));
    assert!(config.warnings().is_empty(), "{:?}", config.warnings());
    assert_eq!((config.clusters[0].kvcache.tokenizer(), config.clusters[0].kvcache.lmcache()), (None, None));
    assert!(refusal(&cluster("", &format!("enabled: true, {wrong}"))).contains("vllm_endpoint"));
}

#[test]
fn endpoints_are_base_urls() {
    for url in [
        "http://v",
        "https://v:8000/",
        "http://10.0.0.1:1/lmcache/v1",
        "http://[::1]:9000",
        "http://[::1]",
        "http://a_b.c:1",
    ] {
        let config = parse(&cluster("", &ENABLED.replace("http://v:1", &format!("'{url}'"))));
        assert_eq!(config.clusters[0].kvcache.tokenizer(), Some(url.trim_end_matches('/')));
    }
    for url in [
        "http://",
        "http:///v",
        "http:v",
        "//v",
        "http://v:",
        "http://v:0",
        "http://v:1#a",
        "http://v:1?a",
        "http://u@v",
        "http://v /",
        "http://[::1",
        "http://::1",
        "HTTP://v",
        "http://1.2.3",
    ] {
        let said = refusal(&cluster("", &ENABLED.replace("http://v:1", &format!("'{url}'"))));
        assert!(said.contains("vllm_endpoint") && said.contains("URL"), "{url}: {said}");
    }
}

#[test]
fn bounds_may_be_met() {
    let met = format!(
        "{ENABLED}, hot_max_records: 7, retry: {{base_backoff: 1s, max_backoff: 1s}}, \
         cache_strategy: {{hot_content_threshold: 7, evict_with: clear, evict_location: disk}}"
    );
    assert_eq!(parse(&cluster("", &met)).clusters[0].kvcache.cache_strategy.hot_content_threshold, 7);
}

#[test]
fn two_backends_may_swap_the_names_that_lmcache_knows() {
    let text = "clusters: [{name: a, backends: [{id: b, address: 'h:1', lmcache_instance_id: c}, \
                {id: c, address: 'h:2', lmcache_instance_id: b}]}]";
    assert_eq!(parse(text).clusters[0].backends.len(), 2);
}

#[test]
fn what_can_never_act_is_told_and_not_refused() {
    let keys_of = |keys: &str, kvcache: &str| -> Vec<String> {
        let warnings = parse(&cluster(keys, kvcache)).warnings();
        warnings.iter().map(|warning| warning.split(": ").next().unwrap().to_owned()).collect()
    };
    let strategy = |keys: &str| format!("{ENABLED}, cache_strategy: {{{keys}}}");
    let place = |key: &str| format!("clusters[0].kvcache.cache_strategy.{key}");
    for (written, told) in [
        ("enable_compression: true", "enable_compression"),
        ("enable_compression: true, load_threshold: 0.5, compress_method: zstd", "compress_method"),
        ("enable_pinning: true", "enable_pinning"),
        ("enable_eviction: true, evict_with: clear, evict_location: disk", "enable_eviction"),
        ("enable_eviction: true, memory_threshold: 0.5", "evict_with"),
        (
            "enable_pinning: true, hot_content_threshold: 2, pin_instance_id: vllm-1, evict_instance_id: vllm-1",
            "pin_instance_id",
        ),
    ] {
        assert_eq!(keys_of("", &strategy(written)), [place(told)], "{written}");
    }
    let coordinator =
        format!("lmcache_api: coordinator, {}", strategy("enable_compression: true, load_threshold: 1"));
    assert_eq!(keys_of("", &coordinator), [place("enable_compression")]);
    assert_eq!(keys_of("policy: lmcache_only, ", ""), ["clusters[0].policy"]);
    let heavier = "backends: [{id: b, address: 'h:1'}, {id: c, address: 'h:2', weight: 2}]";
    let unweighted = |policy| parse(&format!("clusters: [{{name: a, {policy} {heavier}}}]")).warnings();
    assert_eq!(unweighted("policy: round_robin,"), [] as [&str; 0]);
    assert!(unweighted("")[0].starts_with("clusters[0].backends: weights have no effect under pmc"));
    assert_eq!(keys_of("policy: lmcache_only, ", ENABLED), ["clusters[0].kvcache.token_cache.enabled"]);
    let active = "enable_compression: true, load_threshold: 0.5, enable_pinning: true, hot_content_threshold: 2, \
                  enable_eviction: true, memory_threshold: 0.5, evict_with: clear, evict_location: disk, \
                  pin_instance_id: vllm-0";
    let cached = format!("{}, token_cache: {{enabled: true}}", strategy(active));
    assert!(keys_of("policy: lmcache_only, ", &cached).is_empty());
    assert!(parse(MINIMAL).warnings().is_empty());
}
