//! The report in a real browser: Chromium opens the file, tells what it drew, and takes its picture; and `compare`.
//!
//! The pictures are kept below the target directory, to be looked at.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails, and says where")]

mod browser;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use browser::{View, look};
use serde_json::{Value, json};

fn harness(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kvway-bench")).args(arguments).output().unwrap()
}

fn shown(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A result under this name, with all that this changes of it.
fn result(folder: &Path, name: &str, change: impl Fn(&mut Value)) -> String {
    let mut run: Value = serde_json::from_str(include_str!("data/run.json")).unwrap();
    run["label"] = name.into();
    change(&mut run);
    let file = folder.join(format!("{}.json", name.replace(|letter: char| !letter.is_alphanumeric(), "-")));
    std::fs::write(&file, run.to_string()).unwrap();
    file.to_str().unwrap().to_owned()
}

/// Times of the first token, multiplied.
fn slower(run: &mut Value, factor: f64) {
    let multiply = |value: &mut Value| *value = value.as_f64().map_or(Value::Null, |us| (us * factor).into());
    for name in ["p50_us", "p90_us", "p95_us", "p99_us", "max_us"] {
        multiply(&mut run["ttft"][name]);
    }
    run["ttft"]["curve"].as_array_mut().unwrap().iter_mut().for_each(|point| multiply(&mut point[1]));
    for second in run["series"].as_array_mut().unwrap() {
        multiply(&mut second["ttft_p50_us"]);
        multiply(&mut second["ttft_p99_us"]);
    }
}

fn report(folder: &Path, results: &[String]) -> PathBuf {
    let page = folder.join("report.html");
    let mut arguments = vec!["report", "--out", page.to_str().unwrap()];
    arguments.extend(results.iter().map(String::as_str));
    let output = harness(&arguments);
    assert!(output.status.success(), "{}", shown(&output));
    page
}

#[tokio::test]
async fn one_result_is_drawn_on_wide_and_narrow_pages_in_light_and_dark() {
    let folder = tempfile::tempdir().unwrap();
    let page = report(folder.path(), &[result(folder.path(), "one run", |_| {})]);
    look(&page, View::wide(), 8, "one-wide-light").await;
    look(&page, View::phone().dark(), 8, "one-phone-dark").await;
}

#[tokio::test]
async fn three_results_are_drawn_side_by_side() {
    let folder = tempfile::tempdir().unwrap();
    let results = [
        result(folder.path(), "round robin", |run| slower(run, 2.0)),
        result(folder.path(), "least requests", |run| slower(run, 1.5)),
        result(folder.path(), "pmc <script>alert(1)</script>, with a long name that goes on and on", |run| {
            run["behind"] = "Lower --rate, or give the load a core of its own.".into();
            run["errors"] = json!({"timeout": 12});
            run["configuration"]["seed"] = "2".into();
        }),
    ];
    let page = report(folder.path(), &results);
    look(&page, View::wide().dark(), 8, "three-wide-dark").await;
    look(&page, View::phone(), 8, "three-phone-light").await;
}

#[test]
fn compare_tells_what_is_worse_and_fails_only_where_it_is_told_to() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = [result(folder.path(), "a", |_| {}), result(folder.path(), "b", |run| slower(run, 1.5))];
    let page = folder.path().join("deep/pair.html");
    let output = harness(&["compare", &a, &b, "--html", page.to_str().unwrap()]);
    assert!(output.status.success(), "{}", shown(&output));
    let table = shown(&output);
    assert!(table.contains("| TTFT p99 | 376 ms | 564 ms | 1.50 | worse |"), "{table}");
    assert!(std::fs::read_to_string(page).unwrap().contains("2 runs side by side"));
    let strict = harness(&["compare", &a, &b, "--fail-above", "1.1"]);
    assert_eq!(strict.status.code(), Some(1));
    assert!(shown(&strict).contains("B is worse by more than 1.1: TTFT p50 (1.50)"), "{}", shown(&strict));
    assert!(harness(&["compare", &b, &a, "--fail-above", "1.1"]).status.success());
}

#[test]
fn a_file_that_is_no_result_is_one_error_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let good = result(folder.path(), "good", |_| {});
    let other = result(folder.path(), "other", |run| run["format"] = 7.into());
    let broken = folder.path().join("broken.json");
    std::fs::write(&broken, "{").unwrap();
    let page = folder.path().join("page.html");
    let page = page.to_str().unwrap();
    for (arguments, word) in [
        (vec!["compare", &good, &other], "other.json: a result of format 7"),
        (vec!["compare", broken.to_str().unwrap(), &good], "broken.json: not a result"),
        (vec!["report", &good, &other, "--out", page], "other.json"),
        (vec!["report", "/nonexistent/x.json", "--out", page], "cannot read /nonexistent/x.json"),
    ] {
        let output = harness(&arguments);
        let shown = shown(&output);
        assert_eq!(output.status.code(), Some(1), "{shown}");
        assert!(shown.starts_with("kvway-bench: ") && shown.lines().count() == 1, "{shown}");
        assert!(shown.contains(word), "{shown}");
    }
    assert!(!Path::new(page).exists());
}
