//! Configurations of dubbo-go-pixiu: what they become, what is told, what is refused.

use super::{in_tree, yaml_files};
use kvway::config::{Config, ConfigError, Imported};

fn import(name: &str) -> Result<Imported, ConfigError> {
    let path = in_tree("tests/data/pixiu").join(name);
    Config::parse_pixiu(&std::fs::read_to_string(path).unwrap(), name, &|_| None)
}
#[test]
fn show() {
    for f in ["full.yaml", "short.yaml", "top-level.yaml", "odd.yaml", "disabled.yaml"] {
        let text = std::fs::read_to_string(in_tree("tests/data/pixiu").join(f)).unwrap();
        let lookup = |n: &str| {
            Some(
                match n {
                    "LISTEN_PORT" => "18888",
                    "ENGINE_A" => "10.1.1.1:8000",
                    "API_KEY" => "sk-x",
                    "EMPTY" => "",
                    _ => return None,
                }
                .to_owned(),
            )
        };
        match Config::parse_pixiu(&text, f, &lookup) {
            Ok(i) => {
                println!("{}\n{}\n{:?}", i.config.to_yaml(), i.notes.join("\n"), i.config.warnings());
            }
            Err(e) => println!("ERR {e}"),
        }
    }
}
