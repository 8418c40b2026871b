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
    let bodies = text.split("\n### ").map(|section| section.strip_prefix("### ").unwrap_or(section));
    bodies
        .map(|section| {
            let (title, rest) = section.split_once('\n').unwrap();
            let (head, body) = rest.split_once("\n\n").unwrap_or((rest, ""));
            let mut lines = head.lines();
            let status_line = lines.next().unwrap_or_default();
            let headers = lines.filter_map(|line| line.split_once(": "));
            let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            let body = if body.starts_with("data: ") { body } else { body.trim_end_matches('\n') };
            Section { title, status_line, headers, body }
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
            let end =
                part.find(|end: char| !(end.is_ascii_alphanumeric() || end == '-' || end == '.')).unwrap();
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
    let mut headers: BTreeSet<_> =
        reply.headers.iter().filter(|(name, _)| !of_the_server.contains(&name.as_str())).cloned().collect();
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
const OPENAI_ASKED: &str = include_str!("asked/vllm-openai.txt");
const TOKENIZE_ASKED: &str = include_str!("asked/vllm-tokenize.txt");
const METRICS: &str = include_str!("../../../tests/data/golden/vllm-0.32.0-metrics.txt");

/// Sections that are a status and a content type only.
const STATUS_ONLY: [&str; 1] = ["noauth metrics head"];

/// Writes out the lists of numbers that stand as `[from..to]`.
pub(crate) fn expand(body: &str) -> String {
    let mut parts = body.split('[');
    let mut out = parts.next().unwrap().to_owned();
    for part in parts {
        let (list, rest) = part.split_once(']').unwrap_or((part, ""));
        if let Some((from, to)) = list.split_once("..") {
            let numbers: Vec<u32> = (from.parse().unwrap()..to.parse().unwrap()).collect();
            out += &serde_json::to_string(&numbers).unwrap();
            out += rest;
        } else {
            out.push('[');
            out += part;
        }
    }
    out
}

/// A request of the files under `asked/`.
#[derive(Debug)]
struct Asked {
    title: &'static str,
    method: &'static str,
    path: &'static str,
    headers: Vec<&'static str>,
    body: String,
}

impl Asked {
    fn read(text: &'static str) -> Vec<Self> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .map(|line| {
                let mut fields = line.splitn(4, " |").map(str::trim);
                let title = fields.next().unwrap();
                let (method, path) = fields.next().unwrap().split_once(' ').unwrap();
                let headers =
                    fields.next().unwrap().split(" & ").filter(|header| !header.is_empty()).collect();
                Self { title, method, path, headers, body: expand(fields.next().unwrap_or_default()) }
            })
            .collect()
    }

    async fn send(&self, address: SocketAddr) -> Reply {
        client::send(address, self.method, self.path, &self.headers, &self.body).await
    }
}

/// Sends what was asked and compares, and wants a request for each section but `rest`.
pub(crate) async fn check(
    address: SocketAddr,
    recorded: &'static str,
    asked: &'static str,
    keys: &[&str],
    rest: &[&str],
) {
    let (sections, asked) = (sections(recorded), Asked::read(asked));
    for section in &sections {
        let known = asked.iter().any(|asked| asked.title == section.title) || rest.contains(&section.title);
        assert!(known, "nothing asks for {:?}", section.title);
    }
    for asked in asked {
        let section = sections.iter().find(|section| section.title == asked.title).expect(asked.title);
        compare(section, &asked.send(address).await, keys);
    }
}

fn engine() -> Engine {
    let options =
        EngineOptions { api_key: Some("sesame".into()), max_model_len: 2048, ..EngineOptions::default() };
    Engine::start(options).unwrap()
}

const VARYING: [&str; 4] = ["chatcmpl-", "cmpl-", "modelperm-", "\"created\":"];

#[tokio::test]
async fn the_engine_answers_as_recorded() {
    let engine = engine();
    check(engine.address(), OPENAI, OPENAI_ASKED, &VARYING, &[]).await;
    check(engine.address(), TOKENIZE, TOKENIZE_ASKED, &VARYING, &STATUS_ONLY).await;
}

#[tokio::test]
async fn a_request_id_becomes_part_of_the_answers_id() {
    let engine = engine();
    for asked in Asked::read(OPENAI_ASKED).into_iter().filter(|asked| asked.headers.len() == 2) {
        let section = sections(OPENAI).into_iter().find(|section| section.title == asked.title).unwrap();
        compare(&section, &asked.send(engine.address()).await, &["\"created\":"]);
    }
}

#[tokio::test]
async fn every_event_is_a_chunk_of_its_own() {
    let engine = engine();
    let asked =
        Asked::read(OPENAI_ASKED).into_iter().find(|asked| asked.title == "chat stream usage").unwrap();
    let reply = asked.send(engine.address()).await;
    assert_eq!(reply.chunks.len(), 6);
    assert!(reply.chunks.iter().all(|chunk| chunk.starts_with(b"data: ") && chunk.ends_with(b"\n\n")));
}

#[tokio::test]
async fn metrics_have_the_recorded_series() {
    let engine = engine();
    let reply = client::send(engine.address(), "GET", "/metrics", &[], "").await;
    assert_eq!(reply.header("content-type"), Some("text/plain; version=1.0.0; charset=utf-8"));
    let series = |line: &'static str| line.rsplit_once(' ').unwrap().0.to_owned();
    let (recorded, cut): (Vec<_>, Vec<_>) = METRICS.lines().partition(|line| line.contains("} "));
    let given: BTreeSet<String> = reply
        .text()
        .lines()
        .filter(|line| !line.starts_with('#') && !line.contains("_bucket{"))
        .map(|line| line.rsplit_once(' ').unwrap().0.to_owned())
        .collect();
    let (infos, given): (Vec<_>, BTreeSet<_>) = {
        let (infos, given): (BTreeSet<_>, BTreeSet<_>) =
            given.into_iter().partition(|series| series.contains("cache_config_info"));
        (infos.into_iter().collect(), given)
    };
    assert_eq!(given, recorded.into_iter().map(series).collect());
    let labels = |line: &str| {
        line.split(['{', ','])
            .filter_map(|label| Some(label.split_once('=')?.0.to_owned()))
            .collect::<Vec<_>>()
    };
    let recorded = labels(cut[0]);
    assert!(!recorded.is_empty() && labels(&infos[0]).starts_with(&recorded), "{infos:?}");
}
