//! A configuration of dubbo-go-pixiu, run as it is.

use crate::client::{CHAT, chat, engine, fresh};
use crate::gateway::{Gateway, kvway, look_for};
use mocks::{Controller, ControllerOptions, Engine, Server};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::Output;

const NAME: &str = "pixiu_llm_upstream_requests_total";

/// Two engines behind a route, and a route to a cluster that is not there.
const CONFIGURATION: &str = r#"---
static_resources:
  listeners:
    - name: "llm"
      protocol_type: "HTTP"
      address:
        socket_address:
          address: "{ip}"
          port: {port}
      filter_chains:
        filters:
          - name: dgp.filter.httpconnectionmanager
            config:
              route_config:
                routes:
                  - match:
                      prefix: "{CHAT}"
                    route:
                      cluster: "llm"
                      cluster_not_found_response_code: 505
                  - match:
                      prefix: "/lost"
                    route:
                      cluster: "gone"
                      cluster_not_found_response_code: 505
              http_filters:
                - name: dgp.filter.ai.kvcache
                  config:
                    enabled: true
                    vllm_endpoint: "http://{engine}"
                    lmcache_endpoint: "http://{controller}"
                    default_model: "tiny"
                    request_timeout: 20s
                    lookup_routing_timeout: 20s
                    token_cache:
                      enabled: true
                      max_size: 1024
                      ttl: 10m
                    cache_strategy:
                      enable_pinning: true
                      hot_content_threshold: 1
                - name: dgp.filter.llm.proxy
                  config:
                    timeout: 30s
                    maxIdleConns: 100
                    scheme: "http"
      config:
        idle_timeout: 30s
        read_timeout: 30s
        write_timeout: 30s
  clusters:
    - name: "llm"
      lb_policy: "round_robin"
      endpoints:
{endpoints}
  shutdown_config:
    timeout: "10s"
    step_timeout: "2s"
metric:
  enable: true
  prometheus_port: {metrics}
"#;

fn configuration(
    engines: &[Engine],
    controller: &Controller,
    address: SocketAddr,
    metrics: SocketAddr,
) -> String {
    let mut endpoints = String::new();
    for engine in engines {
        let (id, address) = (engine.id(), engine.address());
        let socket = format!("{{address: \"{}\", port: {}}}", address.ip(), address.port());
        writeln!(endpoints, "        - {{id: \"{id}\", socket_address: {socket}}}").unwrap();
    }
    let values = [
        ("{CHAT}", CHAT.to_owned()),
        ("{ip}", address.ip().to_string()),
        ("{port}", address.port().to_string()),
        ("{engine}", engines[0].address().to_string()),
        ("{controller}", controller.address().to_string()),
        ("{endpoints}", endpoints),
        ("{metrics}", metrics.port().to_string()),
    ];
    values.iter().fold(CONFIGURATION.to_owned(), |text, (name, value)| text.replace(name, value))
}

/// The counter of an upstream: the last field of its one line.
async fn counted(gateway: &Gateway, upstream: SocketAddr) -> u64 {
    let answer = fresh().get(gateway.admin_url("/metrics")).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let text = answer.text().await.unwrap();
    let label = format!("endpoint_address=\"{upstream}\"");
    let lines: Vec<_> = text.lines().filter(|line| line.starts_with(NAME) && line.contains(&label)).collect();
    assert_eq!(lines.len(), 1, "{text}");
    lines[0].split_ascii_whitespace().next_back().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_of_pixiu_runs_as_it_is() {
    for words in [&["gateway", "start", "-c"] as &[_], &["run", "--pixiu"]] {
        let engines = [engine("llm-a"), engine("llm-b")];
        let controller = Controller::start(ControllerOptions::default()).unwrap();
        let text = |address, metrics| configuration(&engines, &controller, address, metrics);
        let gateway = Gateway::start_as(words, text).await;
        let log = gateway.says("maxIdleConns").await;
        assert!(log.contains("prometheus_port") && !log.contains("panicked"), "{log}");
        gateway.says("policy: lmcache_only").await;
        for n in 0..4 {
            let request = fresh().post(gateway.url(CHAT)).json(&chat(&format!("hello {n}"), None));
            assert_eq!(request.send().await.unwrap().status(), 200);
        }
        for (path, status) in [("/lost/x", 505), ("/elsewhere", 404)] {
            assert_eq!(fresh().get(gateway.url(path)).send().await.unwrap().status(), status, "{path}");
        }
        for engine in &engines {
            let received = engine.stats().path(CHAT).received;
            assert_eq!(received, 2, "by turns");
            // A try is counted when it has ended, which its client may know a moment before.
            look_for("the counter", async || {
                (counted(&gateway, engine.address()).await == received).then_some(())
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_prompt_goes_to_the_engine_that_lmcache_names() {
    let engines = [engine("llm-a"), engine("llm-b")];
    let controller = Controller::start(ControllerOptions::default()).unwrap();
    controller.prefer(Some("llm-b"));
    let text = |address, metrics| configuration(&engines, &controller, address, metrics);
    let gateway = Gateway::start_as(&["gateway", "start", "-c"], text).await;
    let ask = async || {
        let request = fresh().post(gateway.url(CHAT)).json(&chat("the same prompt", None));
        assert_eq!(request.send().await.unwrap().status(), 200);
    };
    ask().await;
    let served = |server: &Server, path: &str| server.stats().path(path).served;
    // The pin is the last thing that the first request leaves to be done.
    look_for("the pin", async || (served(&controller, "/pin") >= 1).then_some(())).await;
    assert!(served(&engines[0], "/tokenize") >= 1);
    let before = engines[1].stats().path(CHAT).received;
    for _ in 0..4 {
        ask().await;
    }
    assert_eq!(engines[1].stats().path(CHAT).received - before, 4, "all of them");
    assert!(served(&controller, "/lookup") >= 2);
}

fn check(flag: &str, text: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("conf.yaml");
    std::fs::write(&file, text).unwrap();
    kvway().args(["check", flag]).arg(file).output().unwrap()
}

#[test]
fn a_check_prints_the_kvway_configuration_and_tells_what_has_no_effect() {
    let text = "http_filters: [{name: dgp.filter.llm.proxy, config: {scheme: http, other: 1}}]\n\
                clusters: [{name: c, endpoints: [{id: a, socket_address: {address: 127.0.0.1, port: 9}}]}]\n";
    let output = check("--pixiu", text);
    let (printed, said) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(0), "{said}");
    let notes: Vec<_> = said.lines().collect();
    assert_eq!(notes.len(), 2, "{said}");
    assert!(
        notes[0].starts_with("note: ")
            && notes[0].ends_with("conf.yaml:1: http_filters[0].config.other: ignored")
    );
    assert!(notes[1].ends_with("the configuration is valid"), "{said}");
    let again = check("-c", &printed);
    assert_eq!(again.status.code(), Some(0));
    assert_eq!(String::from_utf8(again.stdout).unwrap(), printed);
}

#[test]
fn a_configuration_of_pixiu_that_is_wrong_is_refused_like_any_other() {
    for text in ["http_filters: []\n", "clusters: [{name: llama, backends: [{id: a, address: 'h:1'}]}]\n"] {
        let output = check("--pixiu", text);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}
