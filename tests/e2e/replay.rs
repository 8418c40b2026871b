//! `kvway replay` as an operator runs it: what it prints and writes, what it refuses, how it is interrupted.

use crate::gateway::{PATIENCE, kvway};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

const DATA: Option<i32> = Some(65);
const INTERRUPTED: Option<i32> = Some(130);

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// A trace of conversations whose turns share a growing prefix, and the folder that it lives in.
fn trace() -> (TempDir, PathBuf) {
    let line = |index: usize| {
        let (talk, turn) = (index % 10, 1 + index / 10);
        let ids: Vec<usize> = (0..turn).map(|block| 1000 * talk + block).collect();
        let (ms, tokens) = (index * 100 + index % 7, 512 * turn);
        format!(
            "{{\"timestamp\": {ms}, \"input_length\": {tokens}, \"output_length\": 20, \"hash_ids\": {ids:?}}}\n"
        )
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("talks.jsonl");
    std::fs::write(&file, (0..80).map(line).collect::<String>()).unwrap();
    (folder, file)
}

fn replay(file: &Path) -> Command {
    let mut command = kvway();
    command.args(["replay", "--backends", "2", "--capacity", "20000", "--trace"]).arg(file);
    command
}

fn written(file: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

#[test]
fn a_trace_gives_a_table_a_file_and_a_picture_and_the_same_ones_again() {
    let (folder, file) = trace();
    let run = |name: &str| -> (Output, String, String) {
        let (json, chart) = (folder.path().join(name), folder.path().join("chart.svg"));
        let mut command = replay(&file);
        command.args(["--policy", "pmc,round_robin,cache_aware", "--load", "0.8,0.5", "--json"]).arg(&json);
        let output = command.arg("--chart").arg(&chart).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        (output, std::fs::read_to_string(json).unwrap(), std::fs::read_to_string(chart).unwrap())
    };
    let (output, json, chart) = run("one.json");
    let shown = text(&output.stdout);
    assert!(
        shown.starts_with(
            "talks: 80 requests in blocks of 512 tokens\n2 engines of 20000 KV tokens; load 1 is "
        ),
        "{shown}"
    );
    assert!(output.stderr.is_empty(), "no bar where there is no terminal: {}", text(&output.stderr));
    let result: Value = serde_json::from_str(&json).unwrap();
    let policies: Vec<_> = result["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (&row["load"], row["policy"].as_str().unwrap()))
        .collect();
    let at =
        |load: f64| ["pmc", "round_robin", "cache_aware", "pooled"].map(|policy| (Value::from(load), policy));
    let wanted: Vec<_> = [at(0.5), at(0.8)].concat();
    assert_eq!(policies, wanted.iter().map(|(load, policy)| (load, *policy)).collect::<Vec<_>>());
    for row in result["results"].as_array().unwrap() {
        let (policy, rate) =
            (row["policy"].as_str().unwrap(), row["sustainable_rate_per_s"].as_f64().unwrap());
        assert!(
            shown.lines().any(|line| line.starts_with(policy)) && chart.contains(policy) && rate > 0.0,
            "{row}"
        );
        assert_eq!(row["requests"], 80);
    }
    assert_eq!((&result["interrupted"], &result["traces"][0]["trace"]), (&false.into(), &"talks".into()));
    let (again, json_again, chart_again) = run("two.json");
    assert_eq!((text(&again.stdout), json_again, chart_again), (shown, json, chart));
}

#[test]
fn a_broken_trace_is_refused_before_anything_runs_or_is_written() {
    let (folder, good) = trace();
    let broken = folder.path().join("broken.jsonl");
    let lines = std::fs::read_to_string(&good).unwrap();
    std::fs::write(&broken, format!("{lines}{{\"timestamp\": 1, \"input_length\": -5}}\n")).unwrap();
    let empty = folder.path().join("empty.jsonl");
    std::fs::write(&empty, "").unwrap();
    let json = folder.path().join("result.json");
    for (file, said) in [
        (&broken, ":81: `input_length` is not a whole number that is not negative\n"),
        (&empty, ": there are no requests in it\n"),
        (&folder.path().join("absent.jsonl"), ": No such file or directory (os error 2)\n"),
    ] {
        let output = replay(&good).arg("--trace").arg(file).arg("--json").arg(&json).output().unwrap();
        assert_eq!(output.status.code(), DATA);
        assert_eq!(text(&output.stderr), format!("kvway: {}{said}", file.display()));
        assert!(output.stdout.is_empty() && !json.exists());
    }
}

#[test]
fn flags_that_contradict_each_other_are_a_mistake_of_usage() {
    let (_folder, file) = trace();
    for (words, said) in [
        (&["--offload", "10000"] as &[&str], "fewer tokens than --capacity"),
        (&["--trace", file.to_str().unwrap()], "two traces are called talks"),
        (&["--policy", "fastest"], "pmc, lmetric, cache_aware"),
    ] {
        let output = replay(&file).args(words).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{words:?}");
        assert!(text(&output.stderr).contains(said), "{}", text(&output.stderr));
    }
}

#[test]
fn a_file_that_cannot_be_written_is_told_before_anything_runs() {
    let (folder, file) = trace();
    for flag in ["--json", "--chart"] {
        let output = replay(&file).arg(flag).arg(folder.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let wanted = format!("kvway: {}: Is a directory (os error 21)\n", folder.path().display());
        assert_eq!((text(&output.stderr), text(&output.stdout)), (wanted.as_str(), ""));
    }
}

#[tokio::test]
async fn an_interrupted_replay_reports_what_is_finished() {
    let trace = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/traces/mooncake_conversation.jsonl");
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let folder = tempfile::tempdir().unwrap();
        let (json, chart) = (folder.path().join("result.json"), folder.path().join("chart.svg"));
        let mut command = kvway();
        command
            .args(["replay", "--load", "0.5,0.6,0.7,0.8,0.9,1", "--trace"])
            .arg(&trace)
            .arg("--json")
            .arg(&json);
        let mut process =
            command.arg("--chart").arg(&chart).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // The file is there once signals are heard.
        let start = Instant::now();
        while !json.exists() && start.elapsed() < PATIENCE {
            sleep(Duration::from_millis(5)).await;
        }
        kill(Pid::from_raw(process.id().cast_signed()), signal).unwrap();
        while process.try_wait().unwrap().is_none() && start.elapsed() < PATIENCE {
            sleep(Duration::from_millis(5)).await;
        }
        process.kill().unwrap();
        let output = process.wait_with_output().unwrap();
        assert_eq!(output.status.code(), INTERRUPTED, "{output:?}");
        assert!(
            text(&output.stdout).ends_with("interrupted: what is missing was not finished\n"),
            "{output:?}"
        );
        let result = written(&json);
        assert_eq!(result["interrupted"], true);
        assert!(result["results"].as_array().unwrap().len() < 6 * 8, "{result}");
        assert!(std::fs::read_to_string(&chart).unwrap().starts_with("<svg"));
    }
}
