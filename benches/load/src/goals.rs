//! What kvway is to cost at most, and whether it does: by the medians of a comparison. It judges, and fails nothing. Pure.
//!
//! Called by `contest`, shown by `markdown`. A ratio is the median of the rounds' ratios, not the ratio of two medians.
use bytesize::ByteSize;
use serde::Serialize;

use crate::comparison::Entry;
use crate::contestant::Contestant;
use crate::idle::{self, Idle};
use crate::memory::mib;
use crate::report::{CPU_PER_EVENT, CPU_PER_REQUEST, Case, FLOOR, Kind, P50, Resident};
use crate::spread::Spread;

/// CPU time of a request, in that of bare Pingora.
const OVER_FLOOR_MAX: f64 = 1.3;
/// And in that of SGLang's router; the stricter of both holds.
const OVER_SGLANG_MAX: f64 = 1.0 / 2.5;
/// CPU time of an event, in that of bare Pingora.
const EVENT_OVER_FLOOR_MAX: f64 = 1.05;
/// Median latency on one connection, beyond that of bare Pingora.
const ADDED_US_MAX: f64 = 80.0;
const RESIDENT_MIB_MAX: f64 = 40.0;
const CONNECTION_KIB_MAX: f64 = 12.0;

const JUDGED: Contestant = Contestant::Kvway;

/// Something that is to be at most so much.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Goal {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) at_most: f64,
    /// `None` if it was not measured, or has nothing to be compared with.
    pub(crate) measured: Option<f64>,
    pub(crate) met: Option<bool>,
}

impl Goal {
    fn new(name: String, unit: &'static str, at_most: f64, measured: Option<f64>) -> Self {
        Self { name, unit, at_most, measured, met: measured.map(|measured| measured <= at_most) }
    }
}

/// All goals, whatever was measured.
pub(crate) fn judge(cases: &[Case], memory: &[Resident], idle: Option<&Idle>) -> Vec<Goal> {
    let mut goals = Vec::new();
    for case in cases {
        let over = |to, key| ratio(case, to, key);
        match case.kind {
            Kind::Answers => {
                let size = ByteSize::b(case.workload.body_bytes as u64);
                for (to, at_most) in [(FLOOR, OVER_FLOOR_MAX), (Contestant::SglangRouter, OVER_SGLANG_MAX)] {
                    let name = format!("CPU per request, {size:.0}: {JUDGED} / {to}");
                    goals.push(Goal::new(name, "", at_most, over(to, CPU_PER_REQUEST)));
                }
            }
            Kind::Streams => {
                let name = format!("CPU per SSE event: {JUDGED} / {FLOOR}");
                goals.push(Goal::new(name, "", EVENT_OVER_FLOOR_MAX, over(FLOOR, CPU_PER_EVENT)));
            }
            Kind::Alone => {
                let added = case.added.iter().find(|it| it.of == JUDGED);
                let added = added.and_then(|it| median(it.figures.get(P50)));
                let name = format!("p50 on one connection: {JUDGED} - {FLOOR}");
                goals.push(Goal::new(name, "µs", ADDED_US_MAX, added));
            }
        }
    }
    let resident = memory.iter().find(|it| it.target == JUDGED).map(|it| mib(it.start_kib));
    goals.push(Goal::new(format!("resident at start: {JUDGED}"), "MiB", RESIDENT_MIB_MAX, resident));
    let rest = idle.and_then(|idle| idle.targets.iter().find(|it| it.target == JUDGED));
    let rest = rest.and_then(|entry: &Entry<_, _>| median(entry.figures.get(idle::FIGURES[0].key)));
    let name = format!("per connection at rest: {JUDGED}");
    goals.push(Goal::new(name, "KiB", CONNECTION_KIB_MAX, rest));
    goals
}

fn ratio(case: &Case, to: Contestant, key: &str) -> Option<f64> {
    let ratio = case.ratios.iter().find(|ratio| ratio.of == JUDGED && ratio.to == to)?;
    median(ratio.figures.get(key))
}

fn median(spread: Option<&Spread>) -> Option<f64> {
    spread.map(|spread| spread.median)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    #[test]
    fn goals_are_judged_by_medians_and_left_open_where_nothing_was_measured() {
        let goals = report().goals;
        let judged: Vec<_> = goals.iter().map(|goal| (goal.name.as_str(), goal.met)).collect();
        let expected = [
            ("CPU per request, 1 KiB: kvway / bare Pingora", Some(true)),
            ("CPU per request, 1 KiB: kvway / sglang-router", None),
            ("p50 on one connection: kvway - bare Pingora", Some(true)),
            ("CPU per SSE event: kvway / bare Pingora", Some(false)),
            ("resident at start: kvway", Some(true)),
            ("per connection at rest: kvway", Some(true)),
        ];
        assert_eq!(judged, expected);
        assert!((goals[3].measured.unwrap() - 1.125).abs() < 1e-9);
        assert!((goals[4].measured.unwrap() - 30.0).abs() < 1e-9);
    }

    #[test]
    fn exactly_as_much_as_allowed_is_met_and_more_is_not() {
        let met = |measured| Goal::new(String::new(), "", 1.3, Some(measured)).met;
        assert_eq!((met(1.3), met(1.31)), (Some(true), Some(false)));
    }

    #[test]
    fn what_was_not_measured_is_no_goal_met() {
        let goals = judge(&[], &[], None);
        assert!(goals.len() == 2 && goals.iter().all(|goal| goal.met.is_none()));
    }
}
