//! Undoes the rounding of times: requests that share a rounded time came one after the other, not at once.
//!
//! Called once for a trace; pure. The conversation trace of Mooncake tells its times to 3 s, and a burst of 30 requests every 3 s
//! is a load that nobody had. Each time is drawn uniformly from its step; requests of a step keep their order, as turns of a
//! conversation must.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Steps that are shorter do not matter: an engine's iteration takes about as long.
const STEP_MIN_MS: f64 = 100.0;
/// Times of one step may differ by this, for instance 2999 and 3000.
const SAME_MS: f64 = STEP_MIN_MS / 10.0;
/// Fewer times show no step.
const DISTINCT_MIN: usize = 4;
/// How far from a multiple of the step a time may be, in steps.
const SLACK: f64 = 0.01;

/// Spreads sorted times, in milliseconds, over their steps, which it tells; `None` when they are not rounded.
pub(super) fn over_steps<T>(requests: &mut [(f64, T)], seed: u64) -> Option<f64> {
    let times: Vec<f64> = requests.iter().map(|(ms, _)| *ms).collect();
    let step_ms = step(&times)?;
    let start_ms = *times.first()?;
    let mut random = StdRng::seed_from_u64(seed);
    let nearest = |ms: f64| ((ms - start_ms) / step_ms).round();
    for group in
        requests.chunk_by_mut(|(before, _), (after, _)| nearest(*before).total_cmp(&nearest(*after)).is_eq())
    {
        let mut within: Vec<f64> = group.iter().map(|_| random.random_range(0.0..step_ms)).collect();
        within.sort_unstable_by(f64::total_cmp);
        for ((ms, _), offset) in group.iter_mut().zip(within) {
            *ms = start_ms + nearest(*ms) * step_ms + offset;
        }
    }
    Some(step_ms)
}

/// The step that sorted times are rounded to. They are when each is a multiple of it, and a quarter of them share theirs: four
/// times that are multiples of their least gap are no accident.
fn step(times: &[f64]) -> Option<f64> {
    let mut distinct: Vec<f64> = Vec::new();
    for &ms in times {
        if distinct.last().is_none_or(|last| ms - last > SAME_MS) {
            distinct.push(ms);
        }
    }
    if distinct.len() < DISTINCT_MIN || 4 * distinct.len() > 3 * times.len() {
        return None;
    }
    let gaps = || distinct.iter().zip(distinct.iter().skip(1)).map(|(before, after)| after - before);
    let least = gaps().min_by(f64::total_cmp).filter(|least| *least >= STEP_MIN_MS)?;
    // The mean over all steps says it better than a single gap.
    let steps: f64 = gaps().map(|gap| (gap / least).round()).sum();
    let (start, end) = (distinct.first()?, distinct.last()?);
    let step_ms = (end - start) / steps;
    let is_multiple = |ms: &f64| {
        let steps = (ms - start) / step_ms;
        (steps - steps.round()).abs() <= SLACK
    };
    times.iter().all(is_multiple).then_some(step_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn timed(times: &[f64]) -> Vec<(f64, usize)> {
        times.iter().copied().zip(0..).collect()
    }

    #[test]
    fn times_within_a_step_are_uniform_and_in_order() {
        let times: Vec<f64> = (0..4000).map(|index| f64::from(index / 40) * 3000.0).collect();
        let mut spread = timed(&times);
        assert_eq!(over_steps(&mut spread, 7), Some(3000.0));
        assert!(spread.is_sorted_by(|before, after| before.0 < after.0 && before.1 < after.1));
        let within: Vec<f64> = spread.iter().zip(&times).map(|((ms, _), was)| ms - was).collect();
        assert!(within.iter().all(|ms| (0.0..3000.0).contains(ms)));
        for quarter in 0..4 {
            let from = f64::from(quarter) * 750.0;
            let share = within.iter().filter(|ms| (from..from + 750.0).contains(ms)).count();
            assert!((900..1100).contains(&share), "quarter {quarter}: {share}");
        }
        let (mut again, mut other) = (timed(&times), timed(&times));
        over_steps(&mut again, 7);
        over_steps(&mut other, 8);
        assert_eq!(again, spread);
        assert_ne!(other, spread);
    }

    #[test]
    fn steps_may_be_empty_and_a_little_off() {
        let times = [0.0, 0.0, 3000.0, 3000.0, 5999.0, 6000.0, 15_001.0, 15_001.0, 18_000.0, 18_000.0];
        let step_ms = over_steps(&mut timed(&times), 1).unwrap();
        assert!((step_ms - 3000.0).abs() < 1.0, "{step_ms}");
    }

    #[test]
    fn times_that_are_not_rounded_stay() {
        for times in [
            &[][..],
            &[5.0],
            &[5.0, 5.0, 5.0],
            // Every second one, by nobody's rounding.
            &[0.0, 1000.0, 2000.0, 3000.0],
            // Shared, but no multiples.
            &[0.0, 0.0, 1000.0, 1000.0, 2500.0, 2500.0, 4000.0, 4000.0],
            // Multiples of a step that is short.
            &[0.0, 0.0, 50.0, 50.0, 100.0, 100.0, 150.0, 150.0],
            // Bursts, and too few to tell.
            &[0.0, 0.0, 1000.0, 1000.0, 2000.0, 2000.0],
        ] {
            let mut same = timed(times);
            assert_eq!(over_steps(&mut same, 1), None, "{times:?}");
            assert_eq!(same, timed(times));
        }
    }

    proptest! {
        #[test]
        fn no_time_leaves_its_step(counts in prop::collection::vec(2_usize..6, 4..30), step in 100_u32..5000, seed: u64) {
            let times: Vec<f64> = counts.iter().zip(0_u32..).flat_map(|(count, index)| vec![f64::from(index * step); *count]).collect();
            let mut spread = timed(&times);
            prop_assert!(over_steps(&mut spread, seed).is_some());
            for ((ms, _), was) in spread.iter().zip(&times) {
                prop_assert!((*was - 0.001..was + f64::from(step) + 0.001).contains(ms));
            }
        }
    }
}
