//! The result of a comparison as it is kept: figures of every round, their medians, ratios and differences.
//!
//! Filled by `contest`, judged by `goals`, written as JSON by `main`, shown by `markdown`. Pure.
use std::collections::BTreeMap;

use serde::Serialize;

use crate::comparison::{Difference, Entry, Figure, Ratio};
use crate::contestant::Contestant;
use crate::goals::Goal;
use crate::idle::Idle;
use crate::machine::Origin;
use crate::measurement::{Quantiles, Summary};
use crate::routing;
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

/// A gap, in whole microseconds: what comes together has none.
fn gap(summary: &Summary, read: fn(&Quantiles) -> f64) -> Option<f64> {
    quantile(summary.gap.as_ref(), read).map(f64::round)
}

const CORES: &str = "cores";
pub(crate) const CPU_PER_REQUEST: &str = "cpu_us_per_request";
pub(crate) const CPU_PER_EVENT: &str = "cpu_us_per_event";
pub(crate) const P50: &str = "latency_p50_us";
const GAP: &str = "gap_p50_us";

const ANSWERS: [Figure<Summary>; 6] = [
    figure(CPU_PER_REQUEST, "CPU µs/request", 1, |s| s.cpu.as_ref()?.us_per_request),
    figure(P50, "p50 µs", 0, |s| quantile(s.latency.as_ref(), |q| q.p50_us)),
    figure("latency_p90_us", "p90 µs", 0, |s| quantile(s.latency.as_ref(), |q| q.p90_us)),
    figure("latency_p99_us", "p99 µs", 0, |s| quantile(s.latency.as_ref(), |q| q.p99_us)),
    figure("requests_per_second", "requests/s", 0, |s| Some(s.requests_per_second)),
    figure(CORES, "cores used", 2, |s| Some(s.cpu.as_ref()?.cores)),
];

const STREAMS: [Figure<Summary>; 7] = [
    figure(CPU_PER_EVENT, "CPU µs/event", 2, |s| s.cpu.as_ref()?.us_per_event),
    figure("ttft_p50_us", "first event p50 µs", 0, |s| quantile(s.ttft.as_ref(), |q| q.p50_us)),
    figure("ttft_p99_us", "first event p99 µs", 0, |s| quantile(s.ttft.as_ref(), |q| q.p99_us)),
    figure(GAP, "gap p50 µs", 0, |s| gap(s, |q| q.p50_us)),
    figure("gap_p99_us", "gap p99 µs", 0, |s| gap(s, |q| q.p99_us)),
    figure("events_per_second", "events/s", 0, |s| Some(s.events_per_second)),
    figure(CORES, "cores used", 2, |s| Some(s.cpu.as_ref()?.cores)),
];

/// Who is compared with whom.
const RATIOS: [(Contestant, Contestant); 7] = [
    (Contestant::Kvway, FLOOR),
    (Contestant::Kvway, Contestant::SglangRouter),
    (Contestant::Kvway, Contestant::Nginx),
    (Contestant::Kvway, Contestant::Haproxy),
    (Contestant::KvwayOff, FLOOR),
    (Contestant::KvwayLookup, Contestant::Kvway),
    (FLOOR, Contestant::Nginx),
];

/// What a proxy adds is counted from here.
pub(crate) const FLOOR: Contestant = Contestant::BarePingora;

/// Everything about one comparison.
#[derive(Serialize)]
pub(crate) struct Report {
    #[serde(flatten)]
    pub(crate) origin: Origin,
    pub(crate) versions: BTreeMap<String, String>,
    pub(crate) configurations: BTreeMap<String, String>,
    pub(crate) skipped: Vec<String>,
    pub(crate) settings: Settings,
    pub(crate) cases: Vec<Case>,
    pub(crate) memory: Vec<Resident>,
    /// Requests of the one that asks LMCache, without those of warming up, by what became of the lookup.
    pub(crate) lookups: BTreeMap<String, u64>,
    /// Connections at rest.
    pub(crate) idle: Option<Idle>,
    /// The filter off and on, before engines with caches.
    pub(crate) filter: Option<routing::Report>,
    pub(crate) goals: Vec<Goal>,
}

/// Resident memory of a proxy.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Resident {
    pub(crate) target: Contestant,
    /// When it was ready, before any request.
    pub(crate) start_kib: u64,
    /// After all requests.
    pub(crate) end_kib: u64,
}

/// What was asked for.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Settings {
    pub(crate) rounds: usize,
    /// Of streams: a proxy that mostly waits finds the processor as others left it, so one window says little.
    pub(crate) stream_rounds: usize,
    /// Of each window that are counted.
    pub(crate) seconds: f64,
    /// Of each window before them.
    pub(crate) settling_seconds: f64,
    pub(crate) connections: usize,
    pub(crate) sse_tokens: u32,
    pub(crate) sse_gap_ms: u32,
    pub(crate) idle_connections: usize,
    pub(crate) idle_rounds: usize,
    pub(crate) proxy_core: usize,
    pub(crate) load_core: usize,
    pub(crate) seed: u64,
}

/// What is asked of the targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Whole answers, on all connections.
    Answers,
    /// Whole answers, on one connection.
    Alone,
    /// Streams, on all connections.
    Streams,
}

/// One kind of request, against all targets.
#[derive(Serialize)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) workload: Workload,
    pub(crate) targets: Vec<Entry<Contestant, Summary>>,
    pub(crate) ratios: Vec<Ratio<Contestant>>,
    /// What others take beyond bare Pingora on one connection.
    pub(crate) added: Vec<Difference<Contestant>>,
}

impl Case {
    pub(crate) fn new(
        name: String,
        kind: Kind,
        workload: Workload,
        rounds: Vec<(Contestant, Vec<Summary>)>,
    ) -> Self {
        let mut case =
            Self { name, kind, workload, targets: Vec::new(), ratios: Vec::new(), added: Vec::new() };
        let figures = case.figures();
        case.targets =
            rounds.into_iter().map(|(target, rounds)| Entry::new(target, rounds, figures)).collect();
        case.ratios = RATIOS.iter().filter_map(|&(of, to)| case.ratio(of, to)).collect();
        if kind == Kind::Alone {
            case.added = case.added();
        }
        case
    }

    /// What was measured of each target.
    pub(crate) fn figures(&self) -> &'static [Figure<Summary>] {
        if self.kind == Kind::Streams { &STREAMS } else { &ANSWERS }
    }

    /// What is worth a ratio: how busy a core was says nothing without the rate.
    pub(crate) fn compared(&self) -> impl Iterator<Item = &'static Figure<Summary>> {
        self.figures().iter().filter(|figure| figure.key != CORES)
    }

    fn ratio(&self, of: Contestant, to: Contestant) -> Option<Ratio<Contestant>> {
        Some(self.entry(of)?.over(self.entry(to)?, self.compared()))
    }

    fn added(&self) -> Vec<Difference<Contestant>> {
        let p50 = || self.figures().iter().filter(|figure| figure.key == P50);
        let floor = self.entry(FLOOR);
        let others = self.targets.iter().filter(|entry| entry.target != FLOOR);
        floor.map_or_else(Vec::new, |floor| others.map(|entry| entry.minus(floor, p50())).collect())
    }

    /// One target.
    pub(crate) fn entry(&self, wanted: Contestant) -> Option<&Entry<Contestant, Summary>> {
        self.targets.iter().find(|entry| entry.target == wanted)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cpu::Spent;
    use crate::goals;
    use crate::idle::{self, Rest};
    use crate::measurement::{Failure, Quota, Recorder};
    use crate::spread::Spread;

    /// A second of requests with ten events each, which took 250 µs and ten times what they cost.
    fn round(requests: u64, cpu_ms: u64) -> Summary {
        let recorder = Recorder::new(Quota::Endless).unwrap();
        recorder.open();
        (0..requests).for_each(|_| recorder.answered(Duration::from_micros(250 + 10 * cpu_ms)));
        recorder.events(10 * requests, Duration::from_millis(1), true);
        recorder.failed(&Failure::Closed);
        let spent = Spent { own: Duration::from_millis(cpu_ms), all: None };
        recorder.summary(Duration::from_secs(1), Some(spent), false)
    }

    fn case(kind: Kind) -> Case {
        let stream = kind == Kind::Streams;
        let workload = Workload {
            model: "tiny".to_owned(),
            body_bytes: 1024,
            distinct: 1,
            max_tokens: 7,
            stream,
            seed: 1,
        };
        let rounds = |cpu_ms: [u64; 3]| cpu_ms.map(|cpu_ms| round(1000, cpu_ms)).to_vec();
        let rounds = vec![
            (Contestant::Nginx, rounds([20, 30, 25])),
            (Contestant::BarePingora, rounds([40, 40, 40])),
            (Contestant::Kvway, rounds([40, 45, 75])),
        ];
        Case::new("1 KiB".to_owned(), kind, workload, rounds)
    }

    pub(crate) fn report() -> Report {
        let target = Contestant::Kvway;
        let cases = vec![case(Kind::Answers), case(Kind::Alone), case(Kind::Streams)];
        let memory = vec![Resident { target, start_kib: 30 << 10, end_kib: 50 << 10 }];
        let rests = [10, 14].map(|kib| Rest::new(0, kib * 100, 100));
        let idle =
            Idle { connections: 100, targets: vec![Entry::new(target, rests.to_vec(), &idle::FIGURES)] };
        let goals = goals::judge(&cases, &memory, Some(&idle));
        Report {
            origin: Origin::example(),
            versions: BTreeMap::new(),
            configurations: BTreeMap::new(),
            skipped: vec!["HAProxy is not installed".to_owned()],
            settings: Settings {
                rounds: 3,
                seconds: 1.0,
                stream_rounds: 3,
                settling_seconds: 0.1,
                connections: 1,
                sse_tokens: 1,
                sse_gap_ms: 1,
                idle_connections: 100,
                idle_rounds: 2,
                proxy_core: 0,
                load_core: 1,
                seed: 1,
            },
            cases,
            memory,
            lookups: BTreeMap::from([("followed".to_owned(), 99), ("timeout".to_owned(), 1)]),
            idle: Some(idle),
            filter: None,
            goals,
        }
    }

    #[test]
    fn the_json_holds_every_round() {
        let json = serde_json::to_value(report()).unwrap();
        let case = &json["cases"][0];
        assert_eq!(case["targets"][1]["rounds"].as_array().unwrap().len(), 3);
        assert_eq!((&case["targets"][2]["target"], &case["kind"]), (&"kvway".into(), &"answers".into()));
        assert_eq!(case["ratios"][0]["figures"][CPU_PER_REQUEST]["median"], 1.125);
        assert_eq!(
            (&json["memory"][0]["start_kib"], &json["lookups"]["followed"]),
            (&30720.into(), &99.into())
        );
        assert_eq!(json["idle"]["targets"][0]["rounds"].as_array().unwrap().len(), 2);
        assert!(json["goals"].as_array().unwrap().len() > 4);
    }

    #[test]
    fn ratios_are_taken_within_a_round_of_those_that_are_there() {
        let report = report();
        let ratios = &report.cases[0].ratios;
        let pairs: Vec<_> = ratios.iter().map(|ratio| format!("{} / {}", ratio.of, ratio.to)).collect();
        assert_eq!(pairs, ["kvway / bare Pingora", "kvway / nginx", "bare Pingora / nginx"]);
        let Spread { median, low, high, .. } = ratios[1].figures[CPU_PER_REQUEST];
        assert!((median - 2.0).abs() < 1e-9 && (low - 1.5).abs() < 1e-9 && (high - 3.0).abs() < 1e-9);
        assert!(!ratios[0].figures.contains_key(CORES));
    }

    #[test]
    fn events_that_come_together_give_a_gap_of_nothing_which_nothing_is_compared_with() {
        let report = report();
        let [.., streams] = &report.cases[..] else { panic!() };
        assert!(streams.targets[0].figures[GAP].median.abs() < 1e-9);
        assert!(!streams.ratios[0].figures.contains_key(GAP));
    }

    #[test]
    fn what_is_added_is_the_difference_to_bare_pingora_on_one_connection() {
        let report = report();
        assert!(report.cases[0].added.is_empty() && report.cases[2].added.is_empty());
        let added: Vec<_> = report.cases[1].added.iter().map(|it| (it.of, it.figures[P50].median)).collect();
        let [(nginx, less), (kvway, more)] = added[..] else { panic!("{added:?}") };
        assert_eq!((nginx, kvway), (Contestant::Nginx, Contestant::Kvway));
        // Histograms have three digits.
        assert!((less + 150.0).abs() < 1.5 && (more - 50.0).abs() < 1.5, "{added:?}");
    }
}
