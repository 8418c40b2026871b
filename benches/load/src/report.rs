//! The result of a comparison as it is kept: figures of every round, their medians and ratios.
//!
//! Filled by `contest`, written as JSON by `main`, shown by `markdown`. Pure.
use std::collections::BTreeMap;

use serde::Serialize;

use crate::comparison::{Entry, Figure, Ratio};
use crate::contestant::Contestant;
use crate::machine::Machine;
use crate::measurement::{Quantiles, Summary};
use crate::workload::Workload;

const fn figure(
    key: &'static str,
    title: &'static str,
    decimals: usize,
    read: fn(&Summary) -> Option<f64>,
) -> Figure<Summary> {
    Figure { key, title, decimals, read }
}

fn quantile(quantiles: Option<&Quantiles>, read: fn(&Quantiles) -> f64) -> Option<f64> {
    quantiles.map(read)
}

const CORES: &str = "cores";

const ANSWERS: [Figure<Summary>; 6] = [
    figure("cpu_us_per_request", "CPU µs/request", 1, |s| s.cpu.as_ref()?.us_per_request),
    figure("latency_p50_us", "p50 µs", 0, |s| quantile(s.latency.as_ref(), |q| q.p50_us)),
    figure("latency_p90_us", "p90 µs", 0, |s| quantile(s.latency.as_ref(), |q| q.p90_us)),
    figure("latency_p99_us", "p99 µs", 0, |s| quantile(s.latency.as_ref(), |q| q.p99_us)),
    figure("requests_per_second", "requests/s", 0, |s| Some(s.requests_per_second)),
    figure(CORES, "cores used", 2, |s| Some(s.cpu.as_ref()?.cores)),
];

const STREAMS: [Figure<Summary>; 7] = [
    figure("cpu_us_per_event", "CPU µs/event", 2, |s| s.cpu.as_ref()?.us_per_event),
    figure("ttft_p50_us", "first event p50 µs", 0, |s| quantile(s.ttft.as_ref(), |q| q.p50_us)),
    figure("ttft_p99_us", "first event p99 µs", 0, |s| quantile(s.ttft.as_ref(), |q| q.p99_us)),
    figure("gap_p50_us", "gap p50 µs", 0, |s| quantile(s.gap.as_ref(), |q| q.p50_us)),
    figure("gap_p99_us", "gap p99 µs", 0, |s| quantile(s.gap.as_ref(), |q| q.p99_us)),
    figure("events_per_second", "events/s", 0, |s| Some(s.events_per_second)),
    figure(CORES, "cores used", 2, |s| Some(s.cpu.as_ref()?.cores)),
];

/// Who is compared with whom.
const RATIOS: [(Contestant, Contestant); 3] = [
    (Contestant::Kvway, Contestant::Nginx),
    (Contestant::Kvway, Contestant::BarePingora),
    (Contestant::BarePingora, Contestant::Nginx),
];

/// Everything about one comparison.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) revision: String,
    pub(crate) date: String,
    pub(crate) machine: Machine,
    pub(crate) versions: BTreeMap<String, String>,
    pub(crate) configurations: BTreeMap<String, String>,
    pub(crate) skipped: Vec<String>,
    pub(crate) settings: Settings,
    pub(crate) cases: Vec<Case>,
}

/// What was asked for.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Settings {
    pub(crate) rounds: usize,
    pub(crate) seconds: f64,
    pub(crate) connections: usize,
    pub(crate) sse_events: u32,
    pub(crate) sse_gap_ms: u32,
    pub(crate) proxy_core: usize,
    pub(crate) load_core: usize,
    pub(crate) seed: u64,
}

/// One kind of request, against all targets.
#[derive(Serialize)]
pub(crate) struct Case {
    pub(crate) name: String,
    workload: Workload,
    pub(crate) targets: Vec<Entry<Contestant, Summary>>,
    pub(crate) ratios: Vec<Ratio<Contestant>>,
}

impl Case {
    pub(crate) fn new(name: String, workload: Workload, rounds: Vec<(Contestant, Vec<Summary>)>) -> Self {
        let mut case = Self { name, workload, targets: Vec::new(), ratios: Vec::new() };
        let figures = case.figures();
        case.targets =
            rounds.into_iter().map(|(target, rounds)| Entry::new(target, rounds, figures)).collect();
        case.ratios = RATIOS.iter().filter_map(|&(of, to)| case.ratio(of, to)).collect();
        case
    }

    /// What was measured of each target.
    pub(crate) fn figures(&self) -> &'static [Figure<Summary>] {
        if self.workload.stream { &STREAMS } else { &ANSWERS }
    }

    /// What is worth a ratio: how busy a core was says nothing without the rate.
    pub(crate) fn compared(&self) -> impl Iterator<Item = &'static Figure<Summary>> {
        self.figures().iter().filter(|figure| figure.key != CORES)
    }

    fn ratio(&self, of: Contestant, to: Contestant) -> Option<Ratio<Contestant>> {
        let entry = |wanted| self.targets.iter().find(|entry| entry.target == wanted);
        Some(entry(of)?.over(entry(to)?, self.compared()))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cpu::Spent;
    use crate::measurement::{Failure, Quota, Recorder};

    fn round(requests: u64, cpu_ms: u64) -> Summary {
        let recorder = Recorder::new(Quota::Endless).unwrap();
        recorder.open();
        (0..requests).for_each(|_| recorder.answered(Duration::from_micros(250)));
        recorder.failed(&Failure::Closed);
        let spent = Spent { own: Duration::from_millis(cpu_ms), all: None };
        recorder.summary(Duration::from_secs(1), Some(spent), false)
    }

    pub(crate) fn report() -> Report {
        let workload =
            Workload { model: "tiny".to_owned(), body_bytes: 1024, distinct: 1, stream: false, seed: 1 };
        let nginx = vec![round(1000, 20), round(1000, 30), round(1000, 25)];
        let kvway = vec![round(1000, 40), round(1000, 45), round(1000, 75)];
        let rounds = vec![(Contestant::Nginx, nginx), (Contestant::Kvway, kvway)];
        Report {
            revision: "abc".to_owned(),
            date: "today".to_owned(),
            machine: Machine {
                kernel: "6".to_owned(),
                cpu_model: "CPU".to_owned(),
                cores: 2,
                memory_kib: None,
            },
            versions: BTreeMap::new(),
            configurations: BTreeMap::new(),
            skipped: vec!["bare Pingora is not installed".to_owned()],
            settings: Settings {
                rounds: 3,
                seconds: 1.0,
                connections: 1,
                sse_events: 1,
                sse_gap_ms: 1,
                proxy_core: 0,
                load_core: 1,
                seed: 1,
            },
            cases: vec![Case::new("1 KiB".to_owned(), workload, rounds)],
        }
    }

    #[test]
    fn the_json_holds_every_round() {
        let json = serde_json::to_value(report()).unwrap();
        let case = &json["cases"][0];
        assert_eq!(case["targets"][1]["rounds"].as_array().unwrap().len(), 3);
        assert_eq!(case["targets"][1]["target"], "kvway");
        assert_eq!(case["ratios"][0]["figures"]["cpu_us_per_request"]["median"], 2.0);
    }
}
