//! `kvway compare` as an operator runs it: before a gateway of its own, and with the demo's fleet.

use crate::gateway::{Gateway, Plan, free_addresses, kvway, soon};
use mocks::{Engine, EngineOptions, Mode, SimulatedOptions};
use std::process::{Command, Output};

/// Runs a command while the engines of this process go on.
async fn run(mut command: Command) -> Output {
    soon("the command", tokio::task::spawn_blocking(move || command.output().unwrap())).await.unwrap()
}

fn shown(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The cells of a row of the table.
fn row<'a>(shown: &'a str, name: &str) -> Vec<&'a str> {
    let row = shown.lines().find_map(|line| line.strip_prefix(name));
    row.unwrap_or_else(|| panic!("no {name} in\n{shown}")).split_whitespace().collect()
}

#[tokio::test]
async fn a_running_gateway_is_compared_by_its_own_configuration() {
    let simulated = SimulatedOptions { time_scale: 0.01, ..SimulatedOptions::default() };
    let options =
        EngineOptions { mode: Mode::Simulated(simulated), cached_tokens: true, ..EngineOptions::default() };
    let engine = Engine::start(options).unwrap();
    let gateway = Gateway::start(&[&engine], Plan::default()).await;
    let json = gateway.folder().join("result.json");
    let mut compare = kvway();
    compare.arg("compare").arg("-c").arg(gateway.folder().join("kvway.yaml"));
    compare.args(["--requests", "10", "--json"]).arg(&json);
    let output = run(compare).await;
    let shown = shown(&output);
    assert!(output.status.success(), "{shown}");
    assert_eq!(row(&shown, "requests"), ["10", "10"]);
    assert_eq!(row(&shown, "to vllm-0"), ["10", "10"]);
    assert_eq!(row(&shown, "tokens from cache")[0], "0.0");
    assert!(shown.ends_with("repeated ones go where the policy alone sends them\n"), "{shown}");
    let written: serde_json::Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    assert_eq!((&written["unique"]["requests"], &written["filter"]), (&10.into(), &false.into()));
}

#[tokio::test]
async fn the_demos_fleet_is_compared_without_a_gateway_of_ones_own() {
    let mut compare = kvway();
    compare.args(["compare", "--demo", "--requests", "20"]);
    let output = run(compare).await;
    let shown = shown(&output);
    assert!(output.status.success(), "{shown}");
    assert!(
        shown.starts_with("tiny at http://127.0.0.1:") && shown.contains("KV-cache filter on"),
        "{shown}"
    );
    assert_eq!(row(&shown, "preferred hits"), ["0/20", "20/20"], "{shown}");
    assert_eq!(row(&shown, "lookup success"), ["-", "100.0", "%"], "{shown}");
    assert!(!shown.contains("warning"), "{shown}");
}

#[tokio::test]
async fn a_gateway_that_is_not_there_is_one_line_and_a_failure() {
    let folder = tempfile::tempdir().unwrap();
    let [address, admin] = free_addresses();
    let file = folder.path().join("kvway.yaml");
    let text = format!(
        "listeners: [{{address: \"{address}\"}}]\nadmin: {{address: \"{admin}\"}}\n\
         clusters: [{{name: llama, backends: [{{id: vllm-0, address: \"127.0.0.1:9\"}}]}}]\n"
    );
    std::fs::write(&file, text).unwrap();
    let mut compare = kvway();
    compare.arg("compare").arg("-c").arg(file);
    let output = run(compare).await;
    let shown = shown(&output);
    assert_eq!(output.status.code(), Some(1), "{shown}");
    let said = format!("kvway: the gateway cannot be reached at http://{address}: ");
    assert!(shown.starts_with(&said) && shown.lines().count() == 1, "{shown}");
}
