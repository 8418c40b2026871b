//! Targets that were measured in the same rounds: their figures, and one divided by another or less another, round by round.
//!
//! Used by the reports, for any kind of target `T` and any measurement `S` of one window. Pure.
use std::collections::BTreeMap;

use serde::Serialize;

use crate::spread::Spread;

/// One number of a window.
pub(crate) struct Figure<S> {
    /// Its name where it is kept.
    pub(crate) key: &'static str,
    /// Its name where it is shown, with its unit.
    pub(crate) title: &'static str,
    pub(crate) decimals: usize,
    pub(crate) read: fn(&S) -> Option<f64>,
}

/// One target with all its rounds.
#[derive(Serialize)]
pub(crate) struct Entry<T, S> {
    pub(crate) target: T,
    pub(crate) figures: BTreeMap<&'static str, Spread>,
    pub(crate) rounds: Vec<S>,
}

/// One target divided by another, round by round.
#[derive(Serialize)]
pub(crate) struct Ratio<T> {
    pub(crate) of: T,
    pub(crate) to: T,
    pub(crate) figures: BTreeMap<&'static str, Spread>,
}

/// One target less another, round by round.
#[derive(Serialize)]
pub(crate) struct Difference<T> {
    pub(crate) of: T,
    pub(crate) to: T,
    pub(crate) figures: BTreeMap<&'static str, Spread>,
}

impl<T: Clone, S> Entry<T, S> {
    pub(crate) fn new(target: T, rounds: Vec<S>, figures: &[Figure<S>]) -> Self {
        let spread = |figure: &Figure<S>| Spread::of(values(&rounds, figure).into_iter().flatten());
        let figures = figures.iter().filter_map(|figure| Some((figure.key, spread(figure)?))).collect();
        Self { target, figures, rounds }
    }

    /// This target divided by another one of the same rounds.
    pub(crate) fn over<'a>(&self, to: &Self, figures: impl IntoIterator<Item = &'a Figure<S>>) -> Ratio<T>
    where
        S: 'a,
    {
        let spread = |figure: &Figure<S>| {
            Spread::of_ratios(&values(&self.rounds, figure), &values(&to.rounds, figure))
        };
        let figures = figures.into_iter().filter_map(|figure| Some((figure.key, spread(figure)?))).collect();
        Ratio { of: self.target.clone(), to: to.target.clone(), figures }
    }

    /// This target less another one of the same rounds.
    pub(crate) fn minus<'a>(
        &self,
        to: &Self,
        figures: impl IntoIterator<Item = &'a Figure<S>>,
    ) -> Difference<T>
    where
        S: 'a,
    {
        let spread = |figure: &Figure<S>| {
            Spread::of_differences(&values(&self.rounds, figure), &values(&to.rounds, figure))
        };
        let figures = figures.into_iter().filter_map(|figure| Some((figure.key, spread(figure)?))).collect();
        Difference { of: self.target.clone(), to: to.target.clone(), figures }
    }
}

fn values<S>(rounds: &[S], figure: &Figure<S>) -> Vec<Option<f64>> {
    rounds.iter().map(figure.read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIGURES: [Figure<f64>; 1] =
        [Figure { key: "x", title: "x", decimals: 1, read: |round| Some(*round) }];

    #[test]
    fn a_ratio_pairs_the_rounds_that_both_have() {
        let (slow, fast) = (
            Entry::new("slow", vec![4.0, 9.0, 100.0], &FIGURES),
            Entry::new("fast", vec![2.0, 3.0], &FIGURES),
        );
        let ratio = slow.over(&fast, &FIGURES);
        assert_eq!((ratio.of, ratio.to), ("slow", "fast"));
        assert_eq!(ratio.figures["x"], Spread { median: 2.5, low: 2.0, high: 3.0, max: 3.0 });
        let difference = slow.minus(&fast, &FIGURES);
        assert_eq!((difference.of, difference.to), ("slow", "fast"));
        assert_eq!(difference.figures["x"], Spread { median: 4.0, low: 2.0, high: 6.0, max: 6.0 });
        assert_eq!(slow.figures["x"], Spread { median: 9.0, low: 4.0, high: 100.0, max: 100.0 });
    }
}
