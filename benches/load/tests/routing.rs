//! `kvway-bench routing` as a process, before the gateway and the mock engines of the same build: facts, no times.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails, and says where")]

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// The harness, with everything as short as it can be; it finds the other programs beside itself.
fn harness(flags: &[&str], out: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvway-bench"));
    command.args(["routing", "--quick", "--revision", "abc", "--date", "today", "--seed", "7", "--out"]);
    command.arg(out).args(flags);
    command
}

fn shown(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn kept(out: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(out).unwrap()).unwrap()
}

/// Runs the harness to its end; what it shows and what it keeps.
fn run(flags: &[&str]) -> (String, Value) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("results/routing.json");
    let output = harness(flags, &out).output().unwrap();
    assert!(output.status.success(), "{}", shown(&output));
    (shown(&output), kept(&out))
}

/// All that can be said of a window of any policy under any workload: every request was answered, and counted once.
fn assert_whole(round: &Value) {
    assert_eq!(round["planned"], round["answered"], "{round}");
    assert_eq!((&round["errors"], &round["first_error"]), (&serde_json::json!({}), &Value::Null));
    let requests = round["requests"].as_u64().unwrap();
    assert!(requests > 0 && requests <= round["answered"].as_u64().unwrap(), "{round}");
    let backends = round["backends"].as_object().unwrap();
    assert_eq!(backends.values().map(|count| count.as_u64().unwrap()).sum::<u64>(), requests);
    for times in ["ttft", "latency", "lateness"] {
        assert_eq!(round[times]["count"], requests, "{times} of {round}");
    }
    for figure in [&round["ttft"]["p99_us"], &round["cpu"]["cores"], &round["gateway_cpu"]["us_per_request"]]
    {
        assert!(figure.as_f64().unwrap() > 0.0, "{round}");
    }
}

fn hit_percent(policy: &Value) -> f64 {
    policy["figures"]["hit_percent"]["median"].as_f64().unwrap()
}

#[test]
fn of_a_conversation_pmc_finds_more_in_the_caches_than_round_robin() {
    let flags = ["--workloads", "multi-turn", "--policies", "round_robin,pmc", "--duration", "3s"];
    let (shown, kept) = run(&flags);
    let policies = kept["cases"][0]["policies"].as_array().unwrap();
    for policy in policies {
        let rounds = policy["rounds"].as_array().unwrap();
        assert_eq!(rounds.len(), 1);
        rounds.iter().for_each(assert_whole);
    }
    let [turns, pmc] = [hit_percent(&policies[0]), hit_percent(&policies[1])];
    assert!(pmc > turns && turns > 0.0, "{shown}");
    assert_eq!(policies[0]["rounds"][0]["planned"], policies[1]["rounds"][0]["planned"]);
    let ratio = &kept["cases"][0]["ratios"][0];
    assert_eq!((&ratio["of"], &ratio["to"]), (&"pmc".into(), &"round_robin".into()));
    assert!(ratio["figures"]["ttft_mean_ms"]["median"].as_f64().unwrap() > 0.0);
    assert!(shown.contains("| pmc / round_robin |") && shown.contains("of the machine"), "{shown}");
    assert_eq!((&kept["revision"], &kept["date"]), (&"abc".into(), &"today".into()));
    assert_eq!((&kept["settings"]["seed"], &kept["interrupted"]), (&7.into(), &false.into()));
    assert!(kept["machine"]["cores"].as_u64().unwrap() > 0);
    assert!(kept["configurations"]["pmc"].as_str().unwrap().contains("policy: pmc"));
}

#[test]
fn shared_prompts_are_found_in_the_caches_and_unique_ones_are_not() {
    let (workloads, twice) = ("shared-system-prompt,unique", "round_robin,round_robin");
    let (_, kept) = run(&["--workloads", workloads, "--policies", twice, "--duration", "500ms"]);
    for policy in [0, 1] {
        let [shared, unique] = [0, 1].map(|case| &kept["cases"][case]["policies"][policy]);
        assert_whole(&shared["rounds"][0]);
        assert_whole(&unique["rounds"][0]);
        assert!(hit_percent(shared) > 0.0);
        // The second time, too, when each engine is sent what it was sent before: it has forgotten it.
        assert!(hit_percent(unique) < 1e-9);
        assert_eq!(unique["rounds"][0]["backends"].as_object().unwrap().len(), 8);
    }
}

#[test]
fn a_gateway_that_does_not_start_is_one_error_and_a_failure() {
    let out = Path::new("/nonexistent/never-written.json");
    let output = harness(&["--policies", "by_name"], out).output().unwrap();
    let shown = shown(&output);
    assert_eq!(output.status.code(), Some(1), "{shown}");
    assert_eq!(shown.matches("kvway-bench: ").count(), 1, "{shown}");
    assert!(shown.contains("clusters[0].policy: by_name is not allowed"), "{shown}");
}

#[test]
fn an_interrupt_keeps_what_was_measured() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("routing.json");
    let flags =
        ["--workloads", "unique", "--policies", "round_robin", "--rounds", "9", "--duration", "500ms"];
    let mut child = harness(&flags, &out).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line == "unique, round 2 of 9: round_robin"));
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    let mut shown = String::new();
    child.stdout.take().unwrap().read_to_string(&mut shown).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(shown.contains("Interrupted: this is what was measured until then."), "{shown}");
    let kept = kept(&out);
    assert_eq!(kept["interrupted"], true);
    let rounds = kept["cases"][0]["policies"][0]["rounds"].as_array().unwrap();
    assert_eq!(rounds.len(), 1);
    assert_whole(&rounds[0]);
}
