//! Every recorded section that the mocks implement, asked again and compared: status, headers, and the body to the
//! byte, after ids and times are levelled. A section that appears in no table fails, so that nothing drifts unseen.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use mocks::{Engine, EngineOptions};

use crate::client::{self, Reply};

/// A recorded answer.
#[derive(Debug)]
pub(crate) struct Section {
    pub(crate) title: &'static str,
    pub(crate) status_line: &'static str,
    pub(crate) headers: BTreeSet<(String, String)>,
    pub(crate) body: &'static str,
}

/// The sections of a recorded file.
pub(crate) fn sections(text: &'static str) -> Vec<Section> {
    let bodies = text
        .split("\n### ")
        .map(|section| section.strip_prefix("### ").unwrap_or(section));
    bodies
        .map(|section| {
            let (title, rest) = section.split_once('\n').unwrap();
            let (head, body) = rest.split_once("\n\n").unwrap_or((rest, ""));
            let mut lines = head.lines();
            let status_line = lines.next().unwrap_or_default();
            let headers = lines.filter_map(|line| line.split_once(": "));
            let headers = headers
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect();
            let body = if body.starts_with("data: ") {
                body
            } else {
                body.trim_end_matches('\n')
            };
            Section {
                title,
                status_line,
                headers,
                body,
            }
        })
        .collect()
}

/// Puts a fixed text where the values of these keys stand, which differ from call to call.
pub(crate) fn level(text: &str, keys: &[&str]) -> String {
    let mut level = text.to_owned();
    for key in keys {
        let mut parts = level.split(key);
        let mut out = parts.next().unwrap().to_owned();
        for part in parts {
            let end = part
                .find(|end: char| !(end.is_ascii_alphanumeric() || end == '-' || end == '.'))
                .unwrap();
            out += key;
            out += "…";
            out += part.get(end..).unwrap();
        }
        level = out;
    }
    level
}

/// Compares an answer with its section, apart from the values of `keys`.
pub(crate) fn compare(section: &Section, reply: &Reply, keys: &[&str]) {
    let title = section.title;
    assert_eq!(reply.status_line, section.status_line, "{title}");
    let of_the_server = ["date", "server"];
    let mut headers: BTreeSet<_> = reply
        .headers
        .iter()
        .filter(|(name, _)| !of_the_server.contains(&name.as_str()))
        .cloned()
        .collect();
    let mut recorded = section.headers.clone();
    assert_eq!(level(reply.text(), keys), level(section.body, keys), "{title}");
    if level(section.body, keys) != section.body {
        for set in [&mut headers, &mut recorded] {
            set.retain(|(name, _)| name != "content-length");
        }
    }
    assert_eq!(headers, recorded, "{title}");
    assert!(reply.complete, "{title}");
}

const OPENAI: &str = include_str!("../../../tests/data/golden/vllm-0.32.0-openai.txt");
const TOKENIZE: &str = include_str!("../../../tests/data/golden/vllm-0.32.0-tokenize.txt");
const METRICS: &str = include_str!("../../../tests/data/golden/vllm-0.32.0-metrics.txt");

/// Title, method, path, headers, body. With `keyless`, the engine's key is not sent.
type Case = (
    &'static str,
    &'static str,
    &'static str,
    &'static [&'static str],
    &'static str,
);

const KEY: &str = "authorization: Bearer sesame";

const OPENAI_CASES: &[Case] = &[
    (
        "completion",
        "POST",
        "/v1/completions",
        &[KEY, "x-request-id: rid-123"],
        r#"{"model":"tiny","prompt":"hello world","max_tokens":4}"#,
    ),
    (
        "chat",
        "POST",
        "/v1/chat/completions",
        &[KEY, "x-request-id: rid-124"],
        r#"{"model":"tiny","messages":[{"role":"user","content":"hello"}],"max_tokens":3}"#,
    ),
    (
        "chat stream usage",
        "POST",
        "/v1/chat/completions",
        &[KEY],
        r#"{"model":"tiny","messages":[{"role":"user","content":"hello"}],"max_tokens":3,"stream":true,"stream_options":{"include_usage":true}}"#,
    ),
    (
        "noauth completion",
        "POST",
        "/v1/completions",
        &[],
        r#"{"model":"tiny","prompt":"hello"}"#,
    ),
    (
        "bad key",
        "POST",
        "/v1/completions",
        &["authorization: Bearer wrong"],
        r#"{"model":"tiny","prompt":"hello"}"#,
    ),
    (
        "token id prompt + return_token_ids",
        "POST",
        "/v1/completions",
        &[KEY],
        r#"{"model":"tiny","prompt":[0,261,329,347],"max_tokens":2,"return_token_ids":true}"#,
    ),
    (
        "too long",
        "POST",
        "/v1/completions",
        &[KEY],
        r#"{"model":"tiny","prompt":"hello","max_tokens":99999}"#,
    ),
    (
        "wrong model",
        "POST",
        "/v1/chat/completions",
        &[KEY],
        r#"{"model":"nope","messages":[{"role":"user","content":"hello"}]}"#,
    ),
    (
        "render",
        "POST",
        "/v1/chat/completions/render",
        &[KEY],
        r#"{"messages":[]}"#,
    ),
    (
        "inference generate",
        "POST",
        "/inference/v1/generate",
        &[KEY],
        r#"{"token_ids":[1]}"#,
    ),
    ("sleep", "POST", "/sleep", &[], ""),
    ("is_sleeping", "GET", "/is_sleeping", &[], ""),
    ("reset_prefix_cache", "POST", "/reset_prefix_cache", &[], ""),
];

const TOKENIZE_CASES: &[Case] = &[
    (
        "noauth tokenize",
        "POST",
        "/tokenize",
        &[],
        r#"{"model":"tiny","prompt":"hello"}"#,
    ),
    ("noauth models", "GET", "/v1/models", &[], ""),
    ("noauth health", "GET", "/health", &[], ""),
    ("models", "GET", "/v1/models", &[KEY], ""),
    (
        "tok prompt",
        "POST",
        "/tokenize",
        &[],
        r#"{"model":"tiny","prompt":"hello world"}"#,
    ),
    (
        "tok prompt nomodel return strs",
        "POST",
        "/tokenize",
        &[],
        r#"{"prompt":"hello world","add_special_tokens":false,"return_token_strs":true}"#,
    ),
    (
        "tok prompt extra fields",
        "POST",
        "/tokenize",
        &[],
        r#"{"model":"tiny","prompt":"hello world","max_tokens":5,"foo":{"bar":1}}"#,
    ),
    (
        "tok prompt list",
        "POST",
        "/tokenize",
        &[],
        r#"{"model":"tiny","prompt":["a","b"]}"#,
    ),
    (
        "tok prompt ids",
        "POST",
        "/tokenize",
        &[],
        r#"{"model":"tiny","prompt":[1,2,3]}"#,
    ),
    (
        "tok chat",
        "POST",
        "/tokenize",
        &[],
        r#"{"model":"tiny","messages":[{"role":"user","content":"hello world"}]}"#,
    ),
    (
        "tok chat addgen false + stream",
        "POST",
        "/tokenize",
        &[],
        r#"{"model":"tiny","messages":[{"role":"user","content":"hello world"}],"add_generation_prompt":false,"stream":true}"#,
    ),
    (
        "tok chat both prompt and messages",
        "POST",
        "/tokenize",
        &[],
        r#"{"prompt":"x","messages":[{"role":"user","content":"hello world"}]}"#,
    ),
    (
        "tok chat parts",
        "POST",
        "/tokenize",
        &[],
        r#"{"messages":[{"role":"user","content":[{"type":"text","text":"hello world"}]}]}"#,
    ),
    (
        "tok chat image",
        "POST",
        "/tokenize",
        &[],
        r#"{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:,"}}]}]}"#,
    ),
    (
        "tok chat tools",
        "POST",
        "/tokenize",
        &[],
        r#"{"messages":[{"role":"user","content":"x"}],"tools":[{"type":"function","function":{"name":"f"}}]}"#,
    ),
    (
        "tok chat both continue and gen",
        "POST",
        "/tokenize",
        &[],
        r#"{"messages":[{"role":"user","content":"x"}],"continue_final_message":true,"add_generation_prompt":true}"#,
    ),
    (
        "tok chat template override",
        "POST",
        "/tokenize",
        &[],
        r#"{"messages":[{"role":"user","content":"x"}],"chat_template":"{{ x }}"}"#,
    ),
    (
        "tok empty messages",
        "POST",
        "/tokenize",
        &[],
        r#"{"messages":[]}"#,
    ),
    ("tok empty prompt", "POST", "/tokenize", &[], r#"{"prompt":""}"#),
    (
        "tok wrong model",
        "POST",
        "/tokenize",
        &[],
        r#"{"model":"nope","prompt":"x"}"#,
    ),
    ("tok neither", "POST", "/tokenize", &[], r#"{"model":"tiny"}"#),
    ("tok bad json", "POST", "/tokenize", &[], r#"{"model":"#),
    (
        "tok no content-type",
        "POST",
        "/tokenize",
        &["content-type: text/plain"],
        r#"{"prompt":"x"}"#,
    ),
    (
        "tok content-type charset",
        "POST",
        "/tokenize",
        &["content-type: application/json; charset=utf-8"],
        r#"{"prompt":"a"}"#,
    ),
    ("tok GET", "GET", "/tokenize", &[], ""),
    (
        "detok",
        "POST",
        "/detokenize",
        &[],
        r#"{"tokens":[0,72,87,73,86]}"#,
    ),
    ("detok oob", "POST", "/detokenize", &[], r#"{"tokens":[999999]}"#),
    ("detok neg", "POST", "/detokenize", &[], r#"{"tokens":[-1]}"#),
    ("tokenizer_info", "GET", "/tokenizer_info", &[], ""),
    ("version", "GET", "/version", &[], ""),
    ("load", "GET", "/load", &[], ""),
    ("ping", "GET", "/ping", &[], ""),
    ("kv_event_sources", "GET", "/kv_event_sources", &[], ""),
    ("unknown", "GET", "/unknown", &[], ""),
];

/// Sections that are a status and a content type only.
const STATUS_ONLY: [&str; 1] = ["noauth metrics head"];

/// Asks every case, and wants each section to have one.
pub(crate) async fn check(
    address: SocketAddr,
    recorded: &'static str,
    cases: &[Case],
    keys: &[&str],
    rest: &[&str],
) {
    let sections = sections(recorded);
    for section in &sections {
        let known = cases.iter().any(|case| case.0 == section.title) || rest.contains(&section.title);
        assert!(known, "nothing asks for {:?}", section.title);
    }
    for (title, method, path, headers, body) in cases {
        let section = sections
            .iter()
            .find(|section| section.title == *title)
            .expect(title);
        compare(
            section,
            &client::send(address, method, path, headers, body).await,
            keys,
        );
    }
}

fn engine() -> Engine {
    let options = EngineOptions {
        api_key: Some("sesame".into()),
        max_model_len: 2048,
        ..EngineOptions::default()
    };
    Engine::start(options).unwrap()
}

const VARYING: [&str; 4] = ["chatcmpl-", "cmpl-", "modelperm-", "\"created\":"];

#[tokio::test]
async fn the_engine_answers_as_recorded() {
    let engine = engine();
    check(engine.address(), OPENAI, OPENAI_CASES, &VARYING, &[]).await;
    check(engine.address(), TOKENIZE, TOKENIZE_CASES, &VARYING, &STATUS_ONLY).await;
}

#[tokio::test]
async fn a_request_id_becomes_part_of_the_answers_id() {
    let engine = engine();
    for (title, method, path, headers, body) in &OPENAI_CASES[..2] {
        let section = sections(OPENAI)
            .into_iter()
            .find(|section| section.title == *title)
            .unwrap();
        compare(
            &section,
            &client::send(engine.address(), method, path, headers, body).await,
            &["\"created\":"],
        );
    }
}

#[tokio::test]
async fn every_event_is_a_chunk_of_its_own() {
    let engine = engine();
    let (_, method, path, headers, body) = OPENAI_CASES[2];
    let reply = client::send(engine.address(), method, path, headers, body).await;
    assert_eq!(reply.chunks.len(), 6);
    assert!(
        reply
            .chunks
            .iter()
            .all(|chunk| chunk.starts_with(b"data: ") && chunk.ends_with(b"\n\n"))
    );
}

#[tokio::test]
async fn metrics_have_the_recorded_series() {
    let engine = engine();
    let reply = client::send(engine.address(), "GET", "/metrics", &[], "").await;
    assert_eq!(
        reply.header("content-type"),
        Some("text/plain; version=1.0.0; charset=utf-8")
    );
    let series = |line: &'static str| line.rsplit_once(' ').unwrap().0.to_owned();
    let (recorded, cut): (Vec<_>, Vec<_>) = METRICS.lines().partition(|line| line.contains("} "));
    let given: BTreeSet<String> = reply
        .text()
        .lines()
        .filter(|line| !line.starts_with('#') && !line.contains("_bucket{"))
        .map(|line| line.rsplit_once(' ').unwrap().0.to_owned())
        .collect();
    let (infos, given): (Vec<_>, BTreeSet<_>) = {
        let (infos, given): (BTreeSet<_>, BTreeSet<_>) = given
            .into_iter()
            .partition(|series| series.contains("cache_config_info"));
        (infos.into_iter().collect(), given)
    };
    assert_eq!(given, recorded.into_iter().map(series).collect());
    let labels = |line: &str| {
        line.split(['{', ','])
            .filter_map(|label| Some(label.split_once('=')?.0.to_owned()))
            .collect::<Vec<_>>()
    };
    let recorded = labels(cut[0]);
    assert!(
        !recorded.is_empty() && labels(&infos[0]).starts_with(&recorded),
        "{infos:?}"
    );
}
