//! How values are written, read and written back.

use std::time::Duration;

use kvway::config::Config;
use proptest::prelude::*;

use super::{MINIMAL, environment, parse, refusal};

#[test]
fn durations_and_sizes_take_their_units() {
    for (text, ms) in [("1ms", 1), ("1500ms", 1500), ("2s", 2000), ("10m", 600_000), ("1h30m", 5_400_000)] {
        let config = parse(&format!("timeouts: {{body: {text}}}\n{MINIMAL}"));
        assert_eq!(config.timeouts.body, Duration::from_millis(ms), "{text}");
    }
    for (text, bytes) in [("2048", 2048), ("64KiB", 65_536), ("16 MiB", 16_777_216), ("1GiB", 1 << 30)] {
        let config = parse(&format!("limits: {{body_bytes_max: {text}}}\n{MINIMAL}"));
        assert_eq!(config.limits.body_bytes_max, bytes, "{text}");
    }
}

#[test]
fn hosts_may_be_addresses_or_names() {
    for address in
        ["10.0.0.1:1", "[::1]:65535", "vllm-0:8000", "vllm_0.a.svc.cluster.local.:8000", "0x.example:80"]
    {
        let config = parse(&MINIMAL.replace("127.0.0.1:8000", &format!("'{address}'")));
        assert_eq!(config.clusters[0].backends[0].address, address);
    }
    for address in
        ["", ":1", "a", "a:", "a:+1", "a:65536", "a b:1", "-a:1", "a..b:1", "1.2.3:1", "[::1:1", "é:1"]
    {
        assert!(refusal(&MINIMAL.replace("127.0.0.1:8000", &format!("'{address}'"))).contains("host:port"));
    }
}

#[test]
fn port_zero_may_be_listened_on_twice() {
    let config =
        parse(&format!("listeners: [{{address: 127.0.0.1:0}}, {{address: 127.0.0.1:0}}]\n{MINIMAL}"));
    assert_eq!(config.listeners.len(), 2);
}

#[test]
fn null_turns_the_admin_listener_off() {
    assert_eq!(parse(&format!("admin: {{address: null}}\n{MINIMAL}")).admin.address, None);
}

#[test]
fn decisions_are_kept_where_somebody_can_ask_for_them() {
    let kept = |admin: &str| parse(&format!("admin: {{{admin}}}\n{MINIMAL}")).admin.decisions_kept();
    assert_eq!((kept(""), kept("decisions_max: 7"), kept("decisions_max: 0")), (256, 7, 0));
    assert_eq!(kept("address: null, decisions_max: 7"), 0);
}

#[test]
fn blocks_are_told_in_json_alone_and_what_is_without_effect_is_said() {
    for (log, told) in
        [("", false), ("access: text, ", false), ("access: \"off\", ", false), ("access: json, ", true)]
    {
        let config = parse(&format!("log: {{{log}block_keys: {}}}\n{MINIMAL}", !log.is_empty()));
        assert_eq!(config.log.tells_blocks(), told, "{log}");
        assert_eq!(config.warnings().len(), usize::from(config.log.block_keys && !told), "{log}");
    }
}

#[test]
fn a_section_without_content_holds_its_defaults() {
    assert_eq!(parse(&format!("server:\ntimeouts: {{}}\nlog: # nothing\n{MINIMAL}")), parse(MINIMAL));
}

#[test]
fn anchors_and_aliases_repeat_a_section() {
    let config = parse(
        "clusters:
  - {name: a, health: &h {period: 1s}, backends: [{id: b, address: 'h:1'}]}
  - {name: c, health: *h, backends: [{id: b, address: 'h:1'}]}
routes: [{model: a, cluster: a}, {cluster: c}]",
    );
    assert_eq!(config.clusters[0].health, config.clusters[1].health);
    assert_eq!(config.clusters[1].health.period, Duration::from_secs(1));
}

#[test]
fn a_secret_is_exposed_only_on_request() {
    let text = format!("admin: {{token: sk-do-not-show}}\n{MINIMAL}");
    let config = parse(&text);
    assert_eq!(config.admin.token.as_ref().unwrap().expose(), "sk-do-not-show");
    assert!(!format!("{config:?}{config:#?}{}", config.to_yaml()).contains("do-not-show"));
    assert!(config.to_yaml().contains("token: '***'"));
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        ms in 1_u64..=24 * 3_600_000,
        bytes in 1024_usize..=1 << 30,
        ratio in 0.0..=1.0,
        file in "[ -~éß☃]{1,20}",
    ) {
        let mut config = parse(MINIMAL);
        config.timeouts.body = Duration::from_millis(ms);
        config.limits.body_bytes_max = bytes;
        config.retries.budget_ratio = ratio;
        config.log.file = Some(file.into());
        config.clusters[0].hash_header = Some(http::HeaderName::from_static("x-user-id"));
        prop_assert_eq!(parse(&config.to_yaml()), config);
    }

    #[test]
    fn no_text_makes_the_reader_panic_or_a_message_break_the_line(text in "([a-z{}\\[\\]:,&*!|>'\"#$ \n-]|clusters: |name: |\\$\\{|\n  - ){0,60}") {
        if let Err(error) = Config::parse(&text, "test.yaml", &environment) {
            prop_assert!(!error.to_string().contains(char::is_control), "{}", error);
        }
    }
}
