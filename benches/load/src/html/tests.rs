//! Tests of the report as text, and the results that they and others draw; `tests/report.rs` opens it in a browser.
use std::collections::BTreeMap;

use super::*;
use crate::result::{BackendShare, RunResult};

/// A result of one run under this name.
pub(crate) fn result(label: &str) -> RunResult {
    let run = serde_json::from_str(include_str!("../../tests/data/run.json")).unwrap();
    RunResult { label: label.to_owned(), ..run }
}

/// A run without a single answer.
fn nothing(label: &str) -> RunResult {
    RunResult {
        requests: 0,
        requests_per_second: 0.0,
        latency: None,
        ttft: None,
        gap: None,
        lag: None,
        tokens: None,
        backends: BTreeMap::new(),
        imbalance: None,
        cpu: None,
        series: Vec::new(),
        ..result(label)
    }
}

#[test]
fn a_report_shows_what_was_measured_and_how() {
    let page = page(&[result("a run")]).unwrap();
    for expected in [
        "<h1>a run</h1>",
        "<dt>TTFT p99</dt><dd>",
        "<dt>requests/s</dt><dd>97.4</dd>",
        "<dt>hit ratio</dt><dd>54.0 %</dd>",
        "<dt>CPU per request</dt><dd>513 µs</dd>",
        "abc1234",
        "Some CPU @ 2.0 GHz, 8 cores",
        "<th scope=\"row\">seed</th><td>1</td>",
        "<h2>Hit ratio by backend</h2>",
        "vllm-7",
        "99.9 %",
    ] {
        assert!(page.contains(expected), "{expected} is not in\n{page}");
    }
    assert!(!page.contains("class=\"loud\"") && !page.contains("class=\"legend\""), "one quiet run");
}

#[test]
fn the_same_results_give_the_same_report() {
    assert_eq!(page(&[result("a"), result("b")]).unwrap(), page(&[result("a"), result("b")]).unwrap());
}

#[test]
fn several_results_have_a_legend_and_columns_and_what_differs_is_marked() {
    let mut other = result("pmc");
    other.configuration.insert("seed".to_owned(), "2".to_owned());
    let page = page(&[result("round robin"), other]).unwrap();
    assert!(page.contains("<h1>2 runs side by side</h1>") && page.contains("class=\"legend\""));
    assert!(page.contains("<th scope=\"col\">round robin</th><th scope=\"col\">pmc</th>"));
    assert!(page.contains("<tr class=\"marked\"><th scope=\"row\">seed</th><td>1</td><td>2</td>"));
    assert!(page.contains("<tr><th scope=\"row\">rate</th><td>100</td><td>100</td>"));
    assert!(
        page.contains("stroke=\"#1F5FBF\"") && page.contains("stroke=\"#C2570C\""),
        "two colours of lines"
    );
}

#[test]
fn results_of_one_name_are_told_apart() {
    let other = RunResult { revision: "def5678".to_owned(), ..result("a") };
    let two = page(&[result("a"), other.clone()]).unwrap();
    assert!(two.contains("<th scope=\"col\">a, abc1234</th><th scope=\"col\">a, def5678</th>"), "{two}");
    let three = page(&[result("a"), other.clone(), other]).unwrap();
    let heads = ["a, abc1234</th>", "a, def5678 (2)</th>", "a, def5678 (3)</th>"];
    assert!(heads.iter().all(|head| three.contains(head)), "{three}");
    assert!(page(&[result("a")]).unwrap().contains("<h1>a</h1>"));
}

#[test]
fn nothing_in_a_result_becomes_markup() {
    let evil = "<script>alert('x')</script>\"&";
    let mut run = result(evil);
    run.configuration.insert(evil.to_owned(), evil.to_owned());
    run.errors.insert(evil.to_owned(), 1);
    run.backends.insert(evil.to_owned(), BackendShare { requests: 5, prompt_tokens: 5, cached_tokens: 1 });
    for text in [&mut run.revision, &mut run.started, &mut run.version, &mut run.machine.cpu_model] {
        evil.clone_into(text);
    }
    (run.behind, run.first_error) = (Some(evil.to_owned()), Some(evil.to_owned()));
    let page = page(&[run.clone(), run]).unwrap();
    assert!(!page.contains("<script") && !page.contains("alert('x')</"), "{page}");
}

#[test]
fn a_run_that_is_worth_less_says_so_loudly() {
    let mut run = result("a");
    run.behind = Some("Give it more threads.".to_owned());
    run.interrupted = true;
    run.errors.insert("timeout".to_owned(), 12);
    run.first_error = Some("no complete answer within 60s".to_owned());
    run.shed = 7;
    let page = page(&[run]).unwrap();
    assert_eq!(page.matches("<li class=\"loud\">").count(), 3);
    for expected in ["Give it more threads.", "interrupted", "12 requests failed. The first: no complete"] {
        assert!(page.contains(expected), "{expected}");
    }
    assert!(page.contains("<li>7 requests were turned away"));
    assert!(page.contains("<th scope=\"row\">error: timeout</th><td>12</td>"));
}

#[test]
fn a_run_without_answers_has_a_report() {
    let page = page(&[nothing("empty"), nothing("empty, too")]).unwrap();
    assert!(page.contains("No request was answered.") && !page.contains("<figure"));
}

#[test]
fn a_long_run_is_drawn_in_few_points() {
    let mut run = result("a");
    run.series = run.series.iter().copied().cycle().take(3600).collect();
    let page = page(&[run]).unwrap();
    assert!(page.contains("each point stands for 30 s"), "{page}");
    assert!(page.len() < 250_000, "{}", page.len());
}
