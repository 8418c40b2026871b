//! From the bytes of a body to its demand.

use super::Stage;
use kvway::app::App;
use kvway::config::{self, Config};
use kvway::proxy::demand::Demand;
use kvway::proxy::key::{Pseudonyms, Secret};
use kvway::proxy::prefix::Settings;
use kvway::proxy::prompt::{self, Prompt, Reading};
use kvway::proxy::route::Routes;
use std::fmt::Write as _;
use std::hint::black_box;

pub(super) const PATH: &str = "/v1/chat/completions";
pub(super) const SIZES: [usize; 4] = [1, 16, 128, 1024];
/// The length of a turn of a conversation.
const TURN_BYTES: usize = 1024;

const PLAIN: &str = "He said nothing, and went back to the long text that nobody has ever read to its end. ";
const ESCAPED: &str =
    r#"She said \"\u00e9t\u00e9 \ud83d\ude00\" and went\tback to the long text that nobody reads.\n"#;
/// Text as programs and lists have it: an escape per line.
const LINES: &str = r"He said nothing, and went back to the long text that nobody has ever read to it.\n";

/// A chat of about `kib` KiB, in turns of so many lines, with `after` behind the messages.
fn chat(kib: usize, line: &str, after: &str) -> Vec<u8> {
    let mut body = String::from(r#"{"model":"meta-llama/Llama-3.1-8B-Instruct","messages":["#);
    body.push_str(r#"{"role":"system","content":"You are a helpful assistant."}"#);
    let text = line.repeat(TURN_BYTES / line.len());
    for role in ["user", "assistant"].iter().cycle() {
        if body.len() + text.len() / 2 > kib << 10 {
            break;
        }
        write!(body, r#",{{"role":"{role}","content":"{text}"}}"#).expect("a string takes all");
    }
    write!(body, r#"],"temperature":0.7,"max_tokens":256,"stream":true{after}}}"#)
        .expect("a string takes all");
    body.into_bytes()
}

pub(super) fn plain(kib: usize) -> Vec<u8> {
    chat(kib, PLAIN, "")
}

/// How bodies are read with the default configuration.
pub(super) fn blocks() -> Reading {
    let config::Prefix { block_bytes, blocks_max, .. } = config::Prefix::default();
    let settings = Settings::new(secret(), block_bytes, blocks_max);
    Reading { secret: None, text: false, blocks: Some(settings) }
}

fn secret() -> Secret {
    Secret::new([1, 2, 3, 4])
}

pub(super) fn prompt(kib: usize) -> Prompt {
    prompt::parse(&plain(kib), PATH, &blocks())
}

fn parse(name: &str, body: Vec<u8>, reading: Reading) -> Stage {
    assert!(prompt::parse(&body, PATH, &reading).stream, "the whole body is understood");
    Stage::new(format!("stage/parse/{name}"), move || prompt::parse(black_box(&body), PATH, &reading))
}

pub(super) fn stages() -> Vec<Stage> {
    let tools = r#","tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}]"#;
    let mut stages = vec![Stage::new("stage/reading-of-tenant", {
        let (reading, tenant) = (blocks(), http::HeaderValue::from_static("tenant"));
        move || reading.of_tenant(Some(black_box(&tenant)))
    })];
    for kib in SIZES {
        let of = |name: &str| format!("{name}/{kib}KiB");
        let keys = Reading { secret: Some(secret()), ..Reading::default() };
        stages.push(parse(&of("off"), plain(kib), Reading::default()));
        stages.push(parse(&of("blocks"), plain(kib), blocks()));
        stages.push(parse(&of("blocks-lines"), chat(kib, LINES, ""), blocks()));
        stages.push(parse(&of("blocks-escaped"), chat(kib, ESCAPED, ""), blocks()));
        stages.push(parse(&of("blocks-tools-last"), chat(kib, PLAIN, tools), blocks()));
        stages.push(parse(&of("keys"), plain(kib), keys.clone()));
        let all = Reading { text: true, blocks: blocks().blocks, ..keys };
        stages.push(parse(&of("all"), plain(kib), all));
    }
    stages.extend(keys());
    stages.push(route());
    for kib in SIZES {
        let prompt = prompt(kib);
        stages.push(Stage::new(format!("stage/demand/{kib}KiB"), move || {
            Demand::of(black_box(&prompt), None, 0.25)
        }));
    }
    stages
}

/// What stands for a prompt: in the process, and outside of it.
fn keys() -> Vec<Stage> {
    let key = {
        let (prompt, secret) = (prompt(16), secret());
        Stage::new("stage/key", move || black_box(&prompt).key(&secret, "model"))
    };
    let pseudonyms = [16, 128].map(|kib| {
        let (prompt, pseudonyms) = (prompt(kib), Pseudonyms::new([7; 32], 1024));
        let name = format!("stage/pseudonyms/{kib}KiB");
        Stage::new(name, move || pseudonyms.of(prompt.prefix.as_ref().map_or(&[], |prefix| &prefix.keys)))
    });
    [key].into_iter().chain(pseudonyms).collect()
}

/// Eight routes by model, of which the last one takes the request.
fn route() -> Stage {
    let route = |n| format!("{{path: /v1, model: \"m{n}-*\", cluster: a}}");
    let routes: Vec<_> = (0..8).map(route).collect();
    let text = format!(
        "clusters: [{{name: a, backends: [{{id: b, address: \"127.0.0.1:1\"}}]}}]\nroutes: [{}]",
        routes.join(", ")
    );
    let config = Config::parse(&text, "bench", &|_| None).expect("a valid configuration");
    let routes = Routes::new(&config.routes, |_| Some(0));
    Stage::new("stage/route/8", move || routes.find(black_box(PATH), Some("m7-large")).is_ok())
}

/// The clusters of a configuration with so many backends.
pub(super) fn app(backends: usize) -> App {
    let list: Vec<String> =
        (1..=backends).map(|n| format!("{{id: b{n}, address: \"127.0.0.1:{n}\"}}")).collect();
    let text = format!("log: {{access: \"off\"}}\nclusters: [{{name: a, backends: [{}]}}]", list.join(", "));
    App::new(Config::parse(&text, "bench", &|_| None).expect("a valid configuration")).expect("valid parts")
}
