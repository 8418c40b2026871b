//! The result of a comparison of policies as it is kept: every round, their medians, and ratios to the policies that
//! know nothing of caches.
//!
//! Filled by `routing`, written as JSON by `main`, shown by `table`. Pure.
use std::collections::BTreeMap;

use serde::Serialize;

use super::fleet::Engines;
use super::tally::Outcome;
use super::workload::Workload;
use crate::comparison::{Entry, Figure, Ratio};
use crate::machine::Origin;
use crate::measurement::Quantiles;
use crate::spread::Spread;

/// What others are divided by.
pub(crate) const BASELINES: [&str; 2] = ["round_robin", "least_requests"];

const fn figure(
    key: &'static str,
    title: &'static str,
    decimals: usize,
    read: fn(&Outcome) -> Option<f64>,
) -> Figure<Outcome> {
    Figure { key, title, decimals, read }
}

fn ttft(outcome: &Outcome, read: fn(&Quantiles) -> f64) -> Option<f64> {
    Some(read(outcome.ttft.as_ref()?) / 1e3)
}

fn latency(outcome: &Outcome, read: fn(&Quantiles) -> f64) -> Option<f64> {
    Some(read(outcome.latency.as_ref()?) / 1e3)
}

/// What is worth a ratio, and then what is not.
pub(crate) const FIGURES: [Figure<Outcome>; 10] = [
    figure("ttft_mean_ms", "TTFT mean ms", 0, |outcome| ttft(outcome, |it| it.mean_us)),
    figure("ttft_p50_ms", "p50 ms", 0, |outcome| ttft(outcome, |it| it.p50_us)),
    figure("ttft_p90_ms", "p90 ms", 0, |outcome| ttft(outcome, |it| it.p90_us)),
    figure("ttft_p95_ms", "p95 ms", 0, |outcome| ttft(outcome, |it| it.p95_us)),
    figure("ttft_p99_ms", "p99 ms", 0, |outcome| ttft(outcome, |it| it.p99_us)),
    figure("latency_p95_ms", "whole p95 ms", 0, |outcome| latency(outcome, |it| it.p95_us)),
    figure("latency_p99_ms", "whole p99 ms", 0, |outcome| latency(outcome, |it| it.p99_us)),
    figure("hit_percent", "hits %", 1, |outcome| Some(outcome.hit_ratio? * 100.0)),
    figure("imbalance", "imbalance", 2, |outcome| outcome.imbalance),
    figure("cores", "cores used", 2, |outcome| Some(outcome.cpu.cores)),
];
const COMPARED: usize = 7;

/// Of the figures, those that are divided.
pub(crate) fn compared() -> impl Iterator<Item = &'static Figure<Outcome>> {
    FIGURES.iter().take(COMPARED)
}

/// Everything about one comparison.
#[derive(Serialize)]
pub(crate) struct Report {
    #[serde(flatten)]
    pub(crate) origin: Origin,
    /// What the gateway says that it is.
    pub(crate) version: Option<String>,
    pub(crate) settings: Settings,
    /// Of the gateway, by policy.
    pub(crate) configurations: BTreeMap<String, String>,
    /// Whether it ended early: windows are missing, but those that are here are whole.
    pub(crate) interrupted: bool,
    pub(crate) cases: Vec<Case>,
}

/// What was asked for.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Settings {
    pub(crate) rounds: usize,
    /// In which requests were due that are counted.
    pub(crate) seconds: f64,
    /// Before them.
    pub(crate) settling_seconds: f64,
    pub(crate) load: f64,
    pub(crate) seed: u64,
    pub(crate) engines: Engines,
}

/// One workload under all policies.
#[derive(Serialize)]
pub(crate) struct Case {
    pub(crate) workload: Workload,
    pub(crate) description: &'static str,
    pub(crate) sessions_per_second: f64,
    pub(crate) policies: Vec<Entry<String, Outcome>>,
    pub(crate) ratios: Vec<Ratio<String>>,
}

impl Case {
    pub(crate) fn new(
        workload: Workload,
        sessions_per_second: f64,
        rounds: Vec<(String, Vec<Outcome>)>,
    ) -> Self {
        // After an interrupt there may be none.
        let measured = rounds.into_iter().filter(|(_, rounds)| !rounds.is_empty());
        let policies: Vec<_> =
            measured.map(|(policy, rounds)| Entry::new(policy, rounds, &FIGURES)).collect();
        let baselines = BASELINES.iter().filter_map(|name| policies.iter().find(|it| it.target == *name));
        let pairs = baselines.flat_map(|to| policies.iter().map(move |of| (of, to)));
        // One baseline is divided by the other once, and nothing by itself.
        let pairs = pairs.filter(|(of, to)| of.target != to.target && of.target != BASELINES[0]);
        let ratios = pairs.map(|(of, to)| of.over(to, compared())).collect();
        Self { workload, description: workload.description(), sessions_per_second, policies, ratios }
    }

    /// Whether no window of it came to its end.
    pub(crate) fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// Every window.
    pub(crate) fn outcomes(&self) -> impl Iterator<Item = &Outcome> {
        self.policies.iter().flat_map(|entry| &entry.rounds)
    }
}

impl Report {
    /// The spread of a figure over all windows.
    pub(crate) fn over_all(&self, read: impl Fn(&Outcome) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.cases.iter().flat_map(Case::outcomes).filter_map(read))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::super::fleet::ENGINES;
    use super::super::tally::tests::outcome;
    use super::*;

    pub(in super::super) fn report() -> Report {
        let rounds = |policy: &str, ttfts: [u64; 3]| {
            let rounds = ttfts.map(|ttft| outcome(Duration::from_millis(ttft)));
            (policy.to_owned(), rounds.to_vec())
        };
        let rounds = vec![
            rounds("pmc", [100, 100, 100]),
            rounds("round_robin", [400, 500, 1000]),
            rounds("least_requests", [200, 250, 100]),
        ];
        Report {
            origin: Origin::example(),
            version: Some("kvway 1".to_owned()),
            settings: Settings {
                rounds: 3,
                seconds: 8.0,
                settling_seconds: 2.0,
                load: 0.75,
                seed: 1,
                engines: ENGINES,
            },
            configurations: BTreeMap::new(),
            interrupted: false,
            cases: vec![Case::new(Workload::Unique, 1.0, rounds)],
        }
    }

    #[test]
    fn policies_are_divided_by_both_baselines_round_by_round() {
        let report = report();
        let ratios = &report.cases[0].ratios;
        let names: Vec<_> = ratios.iter().map(|ratio| (ratio.of.as_str(), ratio.to.as_str())).collect();
        assert_eq!(
            names,
            [("pmc", "round_robin"), ("least_requests", "round_robin"), ("pmc", "least_requests")]
        );
        let Spread { median, low, high, .. } = ratios[0].figures["ttft_mean_ms"];
        assert!((median - 0.2).abs() < 0.01 && (low - 0.1).abs() < 0.01 && (high - 0.25).abs() < 0.01);
        assert!(!ratios[0].figures.contains_key("imbalance"));
    }

    #[test]
    fn the_json_holds_every_round() {
        let json = serde_json::to_value(report()).unwrap();
        let pmc = &json["cases"][0]["policies"][0];
        assert_eq!((pmc["target"].as_str(), pmc["rounds"].as_array().unwrap().len()), (Some("pmc"), 3));
        assert_eq!(pmc["rounds"][0]["errors"]["status"], 1);
        assert_eq!(pmc["rounds"][0]["backends"]["vllm-1"], 4);
        assert_eq!(json["cases"][0]["workload"], "unique");
        assert_eq!(json["settings"]["engines"]["count"], 8);
    }
}
