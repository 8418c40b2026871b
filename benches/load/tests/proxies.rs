//! `kvway-bench compare-proxies` as a process, with whatever is installed, before the mock engines of the same build: facts, no
//! times.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails, and says where")]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

const SSE_TOKENS: u64 = 10;

/// The harness, with windows that are as short as they can be; it finds the other programs beside itself.
fn harness(flags: &[&str], out: &Path) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvway-bench"));
    command.args([
        "compare-proxies",
        "--quick",
        "--rounds",
        "1",
        "--duration",
        "100ms",
        "--sse-tokens",
        &SSE_TOKENS.to_string(),
    ]);
    command.args(["--distinct", "10", "--revision", "abc", "--date", "today"]);
    command.arg("--sglang-router").arg(root.join(".venv-sglang/bin/sglang-router"));
    command.arg("--out").arg(out).args(flags);
    command.output().unwrap()
}

/// Runs the harness to its end; what it shows and what it keeps.
fn run(flags: &[&str]) -> (String, Value) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("results/proxies.json");
    let output = harness(flags, &out);
    let [shown, told] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(output.status.success(), "{shown}{told}");
    (shown, serde_json::from_slice(&std::fs::read(&out).unwrap()).unwrap())
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn named<'a>(list: &'a [Value], key: &str, name: &str) -> &'a Value {
    list.iter().find(|it| it[key] == name).unwrap()
}

#[test]
fn whoever_is_installed_goes_through_all_cases() {
    let (shown, kept) = run(&["--parts", "proxies,idle-connections", "--idle-connections", "20"]);
    let everybody =
        ["direct", "nginx", "haproxy", "bare-pingora", "kvway-off", "kvway", "kvway-lookup", "sglang-router"];
    let cases = list(&kept["cases"]);
    let kinds: Vec<_> = cases.iter().map(|case| case["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["answers", "answers", "answers", "alone", "streams"]);
    let there = list(&cases[0]["targets"]);
    assert_eq!(there.len() + list(&kept["skipped"]).len(), everybody.len(), "{shown}");
    for contestant in there.iter().map(|target| target["target"].as_str().unwrap()) {
        assert!(everybody.contains(&contestant));
        let rounds = cases.iter().flat_map(|case| {
            let rounds = list(&named(list(&case["targets"]), "target", contestant)["rounds"]);
            assert_eq!(rounds.len(), 1, "{contestant}");
            rounds
        });
        let (mut requests, mut events) = (0, 0);
        for round in rounds {
            assert_eq!(round["errors"], serde_json::json!({}), "{contestant}: {round}");
            assert_eq!(round["cpu"].is_null(), contestant == "direct");
            requests += round["requests"].as_u64().unwrap();
            events += round["events"].as_u64().unwrap();
        }
        assert!(requests > 0 && events > 0, "{contestant}");
        if contestant != "direct" {
            let memory = named(list(&kept["memory"]), "target", contestant);
            assert!(memory["start_kib"].as_u64().unwrap() > 0 && memory["end_kib"].as_u64().unwrap() > 0);
            assert!(
                kept["configurations"][contestant].is_string() && kept["versions"][contestant].is_string()
            );
        }
    }
    // A window begins and ends in the middle of as many streams as there are connections.
    let [streams] = list(&named(list(&cases[4]["targets"]), "target", "direct")["rounds"]) else { panic!() };
    let [events, ended] = ["events", "requests"].map(|count| streams[count].as_u64().unwrap());
    let of_a_stream = SSE_TOKENS + 2;
    assert!(events.abs_diff(ended * of_a_stream) <= 16 * of_a_stream, "{streams}");
    for kvway in ["bare-pingora", "kvway-off", "kvway", "kvway-lookup"] {
        named(there, "target", kvway);
    }
    assert!(kept["configurations"]["kvway"].as_str().unwrap().contains("policy: pmc"));
    assert!(kept["lookups"]["followed"].as_u64().unwrap() > 0, "{}", kept["lookups"]);
    let idle = &kept["idle"];
    assert_eq!(idle["connections"], 20);
    for contestant in ["kvway", "bare-pingora"] {
        let rounds = list(&named(list(&idle["targets"]), "target", contestant)["rounds"]);
        assert!(rounds[0]["resting_kib"].as_u64().unwrap() > 0);
    }
    let goals = list(&kept["goals"]);
    assert_eq!(goals.len(), 10);
    let judged = |goal: &Value| goal["met"].is_boolean();
    assert!(judged(named(goals, "name", "resident at start: kvway")));
    assert!(judged(named(goals, "name", "per connection at rest: kvway")));
    assert!(shown.contains("| goal | at most | measured |"), "{shown}");
    assert!(kept["filter"].is_null());
}

#[test]
fn the_filter_is_compared_off_and_on() {
    let (shown, kept) = run(&["--parts", "filter"]);
    let case = &kept["filter"]["cases"][0];
    let policies: Vec<_> = list(&case["policies"]).iter().map(|it| it["target"].as_str().unwrap()).collect();
    assert_eq!(policies, ["round_robin", "pmc"]);
    for policy in list(&case["policies"]) {
        for figure in ["ttft_p95_ms", "ttft_p99_ms", "latency_p95_ms", "latency_p99_ms", "hit_percent"] {
            assert!(policy["figures"][figure]["median"].is_number(), "{figure} of {policy}");
        }
        assert!(!policy["rounds"][0]["backends"].as_object().unwrap().is_empty());
    }
    assert!(shown.contains("| pmc / round_robin |") && shown.contains("| requests | vllm-0 |"), "{shown}");
    assert!(list(&kept["cases"]).is_empty() && kept["idle"].is_null());
    assert!(list(&kept["goals"]).iter().all(|goal| goal["met"].is_null()));
}

#[test]
fn more_connections_than_files_are_refused_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let output = harness(
        &["--parts", "idle-connections", "--idle-connections", "99999999999"],
        &folder.path().join("x"),
    );
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("need more than the"), "{told}");
}
