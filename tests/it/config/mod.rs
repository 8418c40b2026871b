//! The configuration: what a file means, and what is said about one that cannot be meant.

mod broken;
mod environment;
mod kvcache;
mod pixiu;
mod routes;
mod shipped;
mod values;

use std::path::{Path, PathBuf};

use kvway::config::{Config, ConfigError};

const MINIMAL: &str = "clusters: [{name: llama, backends: [{id: vllm-0, address: 127.0.0.1:8000}]}]\n";

/// The environment of the broken files. What must not be shown says so.
fn environment(name: &str) -> Option<String> {
    let value = match name {
        "HOST" => "do-not-show.example",
        "SECRET" => "do-not-show",
        "SPACED_SECRET" => "do not show",
        "LINES" => "a\nadmin: null",
        "NULL" => "null",
        "EMPTY" => "",
        _ => return None,
    };
    Some(value.to_owned())
}

fn parse(text: &str) -> Config {
    parse_with(text, &environment)
}

fn parse_with(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Config {
    Config::parse(text, "test.yaml", lookup).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn refusal(text: &str) -> String {
    Config::parse(text, "test.yaml", &environment).unwrap_err().to_string()
}

fn in_tree(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Each file is refused with the message in its first line, which shows no secret.
fn assert_refused(files: Vec<PathBuf>, read: impl Fn(&str, &str) -> Result<(), ConfigError>) {
    let mut wrong = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        let file = path.file_name().unwrap().to_str().unwrap();
        let expected =
            text.lines().next().unwrap().strip_prefix("# expect: ").unwrap().replace("{file}", file);
        let said =
            read(&text, file).map_or_else(|error| error.to_string(), |()| format!("{file} is accepted"));
        if said != expected {
            wrong.push(format!("expected {expected}\n    said {said}"));
        }
        assert!(!said.contains("do-not-show") && !said.contains("do not show"), "{said}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn yaml_files(folder: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(in_tree(folder)).unwrap();
    let mut files: Vec<_> =
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect();
    files.sort();
    files
}
