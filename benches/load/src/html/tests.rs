//! Tests of the report as text, and the results that they and others draw; `tests/report.rs` opens it in a browser.
use std::collections::BTreeMap;

use super::*;
use crate::cpu::CpuUse;
use crate::machine::Machine;
use crate::result::{BackendShare, Distribution, FORMAT, Second, Tokens};

/// A distribution with a long tail, around this median.
fn distribution(count: u64, median_us: f64) -> Distribution {
    let at = |percentile: f64| median_us * (0.6 + 0.4 * (1.0 / (1.0 - percentile / 100.0)).log2().powf(1.4));
    let percentiles = (0..=70).map(|step| 100.0 * (1.0 - 10f64.powf(-f64::from(step) / 20.0)));
    let max_us = at(99.99);
    Distribution {
        count,
        mean_us: 1.1 * median_us,
        p50_us: at(50.0),
        p90_us: at(90.0),
        p95_us: at(95.0),
        p99_us: at(99.0),
        max_us,
        curve: percentiles.map(|percentile| (percentile, at(percentile))).chain([(100.0, max_us)]).collect(),
        histogram: String::new(),
    }
}

fn second(number: u32) -> Second {
    let wave = f64::from(number % 20) * 1000.0;
    Second {
        sent: 100,
        answered: 95 + u64::from(number % 7),
        failed: u64::from(number % 30 == 29) * 4,
        latency_p50_us: Some(900_000.0),
        latency_p99_us: Some(1_900_000.0),
        ttft_p50_us: (number % 40 != 7).then_some(60_000.0 + wave),
        ttft_p99_us: (number % 40 != 7).then_some(310_000.0 + 9.0 * wave),
    }
}

/// A result of one run under this name.
pub(crate) fn result(label: &str) -> RunResult {
    let share = |number: u64| BackendShare {
        requests: 1000 + 100 * number,
        prompt_tokens: 50_000,
        cached_tokens: 20_000 + 2_000 * number,
    };
    RunResult {
        format: FORMAT,
        label: label.to_owned(),
        revision: "abc1234".to_owned(),
        started: "2026-11-22T12:00:00Z".to_owned(),
        version: "0.1.0".to_owned(),
        machine: Machine {
            kernel: "6.1.0".to_owned(),
            cpu_model: "Some CPU @ 2.0 GHz".to_owned(),
            cores: 8,
            memory_kib: Some(32 * 1024 * 1024),
        },
        configuration: BTreeMap::from([
            ("rate".to_owned(), "100".to_owned()),
            ("seed".to_owned(), "1".to_owned()),
            ("target".to_owned(), "http://127.0.0.1:8080/".to_owned()),
        ]),
        seconds: 90.0,
        interrupted: false,
        requests: 8765,
        requests_per_second: 97.4,
        events: 876_500,
        shed: 0,
        errors: BTreeMap::new(),
        first_error: None,
        latency: Some(distribution(8765, 900_000.0)),
        ttft: Some(distribution(8765, 60_000.0)),
        gap: Some(distribution(867_735, 12_500.0)),
        lag: Some(distribution(8765, 80.0)),
        behind: None,
        tokens: Some(Tokens { prompt: 400_000, cached: 216_000, completion: 876_500, hit_ratio: 0.54 }),
        backends: (0..8).map(|number| (format!("vllm-{number}"), share(number))).collect(),
        imbalance: Some(1.2),
        cpu: Some(CpuUse {
            seconds: 4.5,
            cores: 0.05,
            us_per_request: Some(513.0),
            us_per_event: None,
            foreign_cores: None,
        }),
        series: (0..90).map(second).collect(),
    }
}

/// The start of a run without a single answer.
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
        page.contains("stroke=\"#1f5fbf\"") && page.contains("stroke=\"#c2570c\""),
        "two colours of lines"
    );
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
    run.series = (0..3600).map(second).collect();
    let page = page(&[run]).unwrap();
    assert!(page.contains("each point stands for 30 s"), "{page}");
    assert!(page.len() < 250_000, "{}", page.len());
}
