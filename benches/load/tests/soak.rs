//! `kvway-bench soak` as a process, for a few seconds, before the gateway and the mock engines of the same build: facts, no times.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails, and says where")]

mod browser;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};

use browser::{View, look};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// Nothing may grow: here a gateway that has just started is looked at.
const ANY_GROWTH: [&str; 6] =
    ["--growth-max", "1GiB", "--files-growth-max", "100000", "--threads-growth-max", "1000"];

#[tokio::test]
async fn a_soak_tells_of_memory_files_threads_log_and_gauges() {
    let folder = tempfile::tempdir().unwrap();
    let (out, page) = (folder.path().join("results/soak.json"), folder.path().join("soak.html"));
    let output = Command::new(env!("CARGO_BIN_EXE_kvway-bench"))
        .args(["soak", "--duration", "3s", "--warm-up", "1s", "--every", "200ms", "--load", "0.1"])
        .args(["--revision", "abc", "--date", "today", "--seed", "7"])
        .args(ANY_GROWTH)
        .arg("--out")
        .arg(&out)
        .arg("--html")
        .arg(&page)
        .output()
        .unwrap();
    let shown =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{shown}");
    assert!(shown.contains("It holds.") && shown.contains("| resident memory, MiB |"), "{shown}");
    let kept: Value = serde_json::from_slice(&std::fs::read(out).unwrap()).unwrap();
    assert!(kept["answered"].as_u64().unwrap() > 0, "{shown}");
    assert_eq!((&kept["errors"], &kept["complaints"]), (&json!({}), &json!([])));
    assert_eq!(
        (&kept["policy"], &kept["seed"], &kept["revision"]),
        (&json!("pmc"), &json!(7), &json!("abc"))
    );
    let samples = kept["samples"].as_array().unwrap();
    assert!(samples.len() > 3, "{samples:?}");
    for sample in samples {
        for figure in ["memory_kib", "files", "threads"] {
            assert!(sample[figure].as_u64().unwrap() > 0, "{figure} of {sample}");
        }
        assert!(sample["gauges"]["kvway_requests_in_flight"].is_number(), "{sample}");
    }
    assert!(samples.last().unwrap()["log_bytes"].as_u64().unwrap() > 0, "the access log is written");
    assert!(kept["growth"]["memory_kib"]["per_hour"].is_number(), "{}", kept["growth"]);
    look(&page, View::wide(), 6, "soak-wide-light").await;
    look(&page, View::phone().dark(), 6, "soak-phone-dark").await;
}

#[test]
fn a_warm_up_that_leaves_no_time_is_refused() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvway-bench"));
    let output = command.args(["soak", "--duration", "1s", "--warm-up", "1s"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--warm-up has to be shorter than --duration"));
}

/// A soak of an hour, once its gateway is under load; with the process of the gateway.
fn begun(out: &Path) -> (Child, BufReader<ChildStderr>, Pid) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvway-bench"));
    command.args(["soak", "--load", "0.1", "--out"]).arg(out).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut errors = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    errors.read_line(&mut line).unwrap();
    let pid = line.trim().strip_prefix("loading kvway, process ").unwrap_or_else(|| panic!("{line}"));
    let pid = Pid::from_raw(pid.parse().unwrap());
    (child, errors, pid)
}

#[test]
fn an_interrupted_soak_keeps_what_was_seen_and_does_not_hold() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("soak.json");
    let (mut child, _errors, _) = begun(&out);
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    let mut shown = String::new();
    child.stdout.take().unwrap().read_to_string(&mut shown).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(shown.contains("Interrupted") && shown.contains("- the time was too short"), "{shown}");
    let kept: Value = serde_json::from_slice(&std::fs::read(out).unwrap()).unwrap();
    assert_eq!((&kept["interrupted"], &kept["growth"]), (&json!(true), &Value::Null));
    assert!(!kept["samples"].as_array().unwrap().is_empty());
}

#[test]
fn a_gateway_that_ends_under_load_is_a_failure_at_once() {
    let (mut child, mut errors, gateway) = begun(Path::new("/nonexistent/never-written.json"));
    kill(gateway, Signal::SIGKILL).unwrap();
    let mut shown = String::new();
    errors.read_to_string(&mut shown).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(shown.starts_with("kvway-bench: kvway ended early (signal: 9 (SIGKILL))"), "{shown}");
}
