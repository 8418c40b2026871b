//! `kvway replay` in this process: what its runs are, and what the policies reach on real traces.

use indicatif::ProgressBar;
use kvway::arguments::POLICIES;
use kvway::replay::plan::{Plan, Watch};
use kvway::replay::report::{Report, Row};
use kvway::replay::router::Policy;
use kvway::replay::simulation::Settings;
use kvway::replay::trace::{self, BlockKey, Reading, Request, Trace};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// The first requests of a trace of the tests' data.
fn mooncake(name: &str, requests: usize) -> Trace {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/traces/mooncake_{name}.jsonl"));
    let (mut trace, _) = trace::load(&file, &Reading { block_tokens: None, spread: true, seed: 1 }).unwrap();
    trace.requests.truncate(requests);
    trace
}

/// As `kvway replay` with its defaults, but for the sustainable rates.
fn plan(trace: Trace, policies: &[&str]) -> Plan {
    Plan {
        traces: vec![(trace, Vec::new())],
        settings: Settings { backends: 8, capacity_tokens: 500_000, offload_tokens: None, seed: 1 },
        policies: policies.iter().map(|name| Policy::of_name(name).unwrap()).collect(),
        loads: vec![0.8],
        ttft_p90_max_s: None,
        spread: true,
    }
}

fn run(plan: &Plan) -> Report {
    plan.run(Watch { stop: &AtomicBool::new(false), bar: &ProgressBar::hidden() })
}

/// Requests of 1000 tokens with an answer of 10, `gap_ms` apart.
fn uniform(count: u32, gap_ms: u32) -> Trace {
    let request = |index: u32| Request {
        at: Duration::from_millis(u64::from(index * gap_ms)),
        input_tokens: 1000,
        output_tokens: 10,
        keys: Arc::new([BlockKey(u64::from(index) << 32), BlockKey(u64::from(index) << 32 | 1)]),
        session: None,
        gap: None,
    };
    Trace { name: "uniform".to_owned(), block_tokens: 512, requests: (0..count).map(request).collect() }
}

fn of<'a>(report: &'a Report, policy: &str) -> &'a Row {
    report.results.iter().find(|row| row.policy == policy).unwrap()
}

#[test]
fn every_policy_that_can_be_named_can_be_replayed() {
    let mut named = POLICIES.to_vec();
    let mut known: Vec<_> = Policy::names().collect();
    named.sort_unstable();
    known.sort_unstable();
    assert_eq!(named, known);
}

#[test]
fn predicted_cost_beats_history_beats_exact_match_on_real_traces() {
    for name in ["conversation", "synthetic"] {
        let report = run(&plan(mooncake(name, 1500), &["pmc", "cache_aware", "exact_match", "pooled"]));
        let [pmc, history, exact, pooled] =
            ["pmc", "cache_aware", "exact_match", "pooled"].map(|policy| of(&report, policy));
        let shown = report.to_string();
        assert!(2.0 * pmc.ttft_mean_s < exact.ttft_mean_s, "{shown}");
        assert!(pmc.ttft_mean_s < history.ttft_mean_s && history.ttft_mean_s < exact.ttft_mean_s, "{shown}");
        assert!(pmc.hit_ratio > 1.5 * exact.hit_ratio && pmc.hit_ratio > 0.75 * pooled.hit_ratio, "{shown}");
        assert!(pmc.ttft_mean_s < 1.5 * pooled.ttft_mean_s, "{shown}");
    }
}

#[test]
fn a_load_is_the_share_of_what_round_robin_can_serve() {
    let plan = Plan { loads: vec![0.25, 2.0], ..plan(uniform(400, 100), &["round_robin", "pooled"]) };
    let report = run(&plan);
    let saturated = report.traces[0].saturated_rate_per_s.unwrap();
    let rates: Vec<_> = report.results.iter().map(|row| row.rate_per_s.unwrap() / saturated).collect();
    assert_eq!(rates, [0.25, 0.25, 2.0, 2.0]);
    let waits: Vec<_> = report.results.iter().map(|row| row.ttft_mean_s).collect();
    assert!(waits[0] < 0.2, "a prompt of 1000 tokens takes 80 ms: {waits:?}");
    assert!(waits[2] > 10.0 * waits[0], "twice as much as can be served waits: {waits:?}");
}

#[test]
fn the_sustainable_rate_is_the_largest_that_keeps_its_bound() {
    let asked = Plan { ttft_p90_max_s: Some(0.5), ..plan(uniform(400, 100), &["round_robin"]) };
    let report = run(&asked);
    let (row, saturated) = (&report.results[0], report.traces[0].saturated_rate_per_s.unwrap());
    let load = row.sustainable_rate_per_s.unwrap() / saturated;
    assert!(!row.sustainable_at_least && (0.3..2.0).contains(&load), "{load}");
    let around = run(&Plan { loads: vec![load, 1.05 * load], ttft_p90_max_s: None, ..asked });
    assert!(around.results[0].ttft_p90_s <= 0.5 && around.results[1].ttft_p90_s > 0.5, "{around}");
    assert_eq!(around.results[0].sustainable_rate_per_s, None, "nobody asked");
}

#[test]
fn requests_that_all_come_at_once_have_no_rate() {
    let report = run(&Plan { ttft_p90_max_s: Some(5.0), ..plan(uniform(50, 0), &["round_robin", "pooled"]) });
    for row in &report.results {
        assert_eq!((row.rate_per_s, row.sustainable_rate_per_s, row.requests), (None, None, 50));
    }
    assert_eq!(report.traces[0].rate_per_s, None);
}

#[test]
fn what_is_stopped_at_once_has_no_results_and_says_so() {
    let watch = Watch { stop: &AtomicBool::new(true), bar: &ProgressBar::hidden() };
    let report = plan(uniform(50, 10), &["pmc"]).run(watch);
    assert!(report.interrupted && report.results.is_empty());
    assert_eq!(report.traces[0].saturated_rate_per_s, None);
}

#[test]
fn the_bar_ends_where_it_was_to_end() {
    let plan = plan(uniform(50, 10), &["pmc", "pooled"]);
    let bar = ProgressBar::hidden();
    bar.set_length(plan.requests());
    let report = plan.run(Watch { stop: &AtomicBool::new(false), bar: &bar });
    assert_eq!((bar.position(), bar.length()), (3 * 50, Some(3 * 50)));
    assert!(!report.interrupted);
}
