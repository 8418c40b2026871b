//! Configurations of dubbo-go-pixiu: what they become, what is told of them, what is refused.
//!
//! In `tests/data/pixiu` every line that is told of carries its notes; `expected/` has the same file for kvway.

use kvway::config::{Balancing, Config, Imported, Policy};
use proptest::prelude::*;

use super::{MINIMAL, assert_refused, environment, in_tree, parse_with, yaml_files};

fn variables(name: &str) -> Option<String> {
    let value = match name {
        "LISTEN_PORT" => "18888",
        "ENGINE_A" => "10.1.1.1:8000",
        "API_KEY" => "sk-do-not-show",
        "EMPTY" => "",
        _ => return None,
    };
    Some(value.to_owned())
}

fn import(text: &str) -> Imported {
    Config::parse_pixiu(text, "pixiu.yaml", &variables).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// The short form, with this configuration of the kvcache filter and these keys of the cluster.
fn short(filter: &str, cluster: &str) -> String {
    format!(
        "http_filters: [{{name: dgp.filter.ai.kvcache, config: {{{filter}}}}}]\n\
         clusters: [{{name: c, {cluster}endpoints: [{{id: a, socket_address: {{address: h, port: 1}}}}]}}]\n"
    )
}

#[test]
fn every_file_means_what_its_kvway_file_means() {
    let files = yaml_files("tests/data/pixiu");
    assert!(files.len() >= 5, "only {} files were found", files.len());
    for path in files {
        let imported = import(&std::fs::read_to_string(&path).unwrap()).config;
        let expected = in_tree("tests/data/pixiu/expected").join(path.file_name().unwrap());
        let expected = parse_with(&std::fs::read_to_string(expected).unwrap(), &variables);
        assert_eq!(imported, expected, "{}", path.display());
    }
}

#[test]
fn what_is_printed_of_a_file_is_the_same_configuration_again() {
    for path in yaml_files("tests/data/pixiu") {
        // The secret as it is printed.
        let stars = |name: &str| if name == "API_KEY" { Some("***".to_owned()) } else { variables(name) };
        let text = std::fs::read_to_string(&path).unwrap();
        let config = Config::parse_pixiu(&text, "pixiu.yaml", &stars).unwrap().config;
        assert_eq!(parse_with(&config.to_yaml(), &|_| None), config, "{}", path.display());
        assert!(!import(&text).config.to_yaml().contains("do-not-show"));
    }
}

#[test]
fn every_line_without_its_effect_is_told() {
    for path in yaml_files("tests/data/pixiu") {
        let text = std::fs::read_to_string(&path).unwrap();
        let marked =
            text.lines().enumerate().filter_map(|(n, line)| Some((n + 1, line.split_once("# note: ")?.1)));
        let expected: Vec<_> = marked
            .flat_map(|(line, notes)| notes.split(" | ").map(move |note| (line.to_string(), note.to_owned())))
            .collect();
        let parts = |note: &String| {
            let mut parts = note.strip_prefix("pixiu.yaml:").unwrap().splitn(3, ": ").map(str::to_owned);
            (parts.next().unwrap(), parts.nth(1).unwrap())
        };
        let notes = import(&text).notes;
        assert!(notes.iter().all(|note| !note.contains("do-not-show")), "{notes:?}");
        let said: Vec<_> = notes.iter().map(parts).collect();
        assert_eq!(said, expected, "{}", path.display());
    }
}

#[test]
fn a_note_names_file_line_and_key() {
    let notes = import(&format!("{}node: {{id: x}}\n", short("enabled: false", ""))).notes;
    assert_eq!(
        notes,
        [
            "pixiu.yaml:1: http_filters[0]: not enabled: its settings are left out",
            "pixiu.yaml:3: node: ignored"
        ]
    );
}

#[test]
fn every_broken_file_is_told_what_is_wrong_in_one_line() {
    let files = yaml_files("tests/data/pixiu/broken");
    assert!(files.len() >= 30, "only {} broken files were found", files.len());
    assert_refused(files, |text, file| Config::parse_pixiu(text, file, &environment).map(drop));
}

#[test]
fn the_policy_is_the_balancing_alone_unless_the_filter_is_enabled() {
    let endpoints = "vllm_endpoint: http://v, lmcache_endpoint: http://l";
    for (word, policy, fallback) in [
        ("RoundRobin", Policy::RoundRobin, Balancing::RoundRobin),
        ("round_robin", Policy::RoundRobin, Balancing::RoundRobin),
        ("Rand", Policy::Random, Balancing::Random),
        ("RingHashing", Policy::ConsistentHash, Balancing::ConsistentHash),
        ("least_request", Policy::LeastRequests, Balancing::LeastRequests),
        ("whatever", Policy::Random, Balancing::Random),
    ] {
        let cluster = |filter: &str| {
            import(&short(filter, &format!("lb_policy: {word}, ")))
                .config
                .clusters
                .into_iter()
                .next()
                .unwrap()
        };
        assert_eq!(cluster("").policy, policy);
        assert_eq!(cluster(&format!("enabled: false, {endpoints}")).policy, policy);
        let aware = cluster(&format!("enabled: true, {endpoints}"));
        assert_eq!((aware.policy, aware.fallback), (Policy::LmcacheOnly, fallback));
    }
}

#[test]
fn durations_are_read_as_go_reads_them() {
    let timeout = |text: &str| {
        let filter =
            format!("enabled: true, vllm_endpoint: http://v, lmcache_endpoint: http://l, hot_window: {text}");
        let imported = Config::parse_pixiu(&short(&filter, ""), "pixiu.yaml", &variables).ok()?;
        Some(imported.config.clusters[0].kvcache.hot_window.as_millis())
    };
    for (text, ms) in [
        ("1500ms", 1500),
        ("1.5s", 1500),
        ("1h0m30s", 3_630_000),
        ("\"2s\"", 2000),
        ("3000000000", 3000),
        ("1us", 1),
        ("+5s", 5000),
        ("0", 300_000),
        ("0s", 300_000),
        ("-1h", 300_000),
        ("", 300_000),
        ("${EMPTY}", 300_000),
    ] {
        assert_eq!(timeout(text), Some(ms), "{text}");
    }
    for text in ["5", "s", "5 s", "1d", "1s2", "1..5s", "--1s", "[1s]", "99999999999999999999h", "true"] {
        assert_eq!(timeout(text).filter(|ms| *ms > 1), None, "{text}");
    }
}

#[test]
fn a_route_without_a_cluster_is_refused_unless_the_file_says_what_to_answer() {
    let route =
        |more: &str| format!("{MINIMAL}routes: [{{path: /a, cluster: gone{more}}}, {{cluster: llama}}]");
    let config = parse_with(&route(", cluster_not_found_status: 505"), &|_| None);
    assert_eq!(config.routes[0].cluster_not_found_status, Some(505));
    assert_eq!(
        config.warnings(),
        ["routes[0].cluster: gone is not a cluster: requests are answered with 505"]
    );
    assert!(Config::parse(&route(""), "test.yaml", &|_| None).is_err());
}

proptest! {
    #[test]
    fn a_file_with_a_mistake_is_refused_in_one_line_or_printed_as_what_it_means(
        file in 0..5_usize,
        line in any::<prop::sample::Index>(),
        value in "-?[0-9]{0,4}(ms|s|h)?|[a-z/:.*\\[\\]{} -]{0,8}|\\$\\{EMPTY\\}|null|true",
        delete in any::<bool>(),
    ) {
        let text = std::fs::read_to_string(&yaml_files("tests/data/pixiu")[file]).unwrap();
        let mut lines: Vec<String> = text.replace("${API_KEY}", "***").lines().map(str::to_owned).collect();
        let n = line.index(lines.len());
        match lines[n].split_once(": ") {
            Some((key, _)) if !delete => lines[n] = format!("{key}: {value}"),
            _ => drop(lines.remove(n)),
        }
        match Config::parse_pixiu(&lines.join("\n"), "pixiu.yaml", &variables) {
            Ok(Imported { config, .. }) => prop_assert_eq!(parse_with(&config.to_yaml(), &|_| None), config),
            Err(error) => {
                prop_assert!(error.line.is_some());
                prop_assert!(!error.to_string().contains(char::is_control), "{}", error);
            }
        }
    }
}
