//! `kvway-bench soak` as a process, for a few seconds, before the gateway and the mock engines of the same build: facts, no times.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails, and says where")]

mod browser;

use std::process::Command;

use browser::{View, look};
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
    look(&page, View::wide(), 5, "soak-wide-light").await;
    look(&page, View::phone().dark(), 5, "soak-phone-dark").await;
}

#[test]
fn a_warm_up_that_leaves_no_time_is_refused() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvway-bench"));
    let output = command.args(["soak", "--duration", "1s", "--warm-up", "1s"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--warm-up has to be shorter than --duration"));
}
