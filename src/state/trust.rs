//! How far what is said of a backend's cache has come true: a weight per backend and source, from what its engine reported.
//!
//! Written by `proxy` at the end of each request whose engine told `cached_tokens`, read by `proxy::demand` for the next
//! ones. Two numbers per backend; never anything else.

use std::sync::atomic::{AtomicU64, Ordering};

/// Who says how much of a prompt a backend has cached.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Source {
    /// What was sent there before.
    Shadow,
    /// LMCache, asked for this prompt.
    Lmcache,
}

impl Source {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Shadow, Self::Lmcache];

    /// Its name in metrics and answers of the admin listener.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Shadow => "shadow",
            Self::Lmcache => "lmcache",
        }
    }
}

/// The share of the newest request in a weight.
const NEWEST_SHARE: f64 = 0.1;
/// A prediction counts as true from this share on: engines cache in blocks of other sizes than ours, and tokens are estimates.
const TRUE_FROM: f64 = 0.9;

/// The weights of one cluster, each from 0 to 1.
#[derive(Debug)]
pub struct Trust {
    /// The bits of an `f64` per backend and source.
    weights: Vec<[AtomicU64; Source::ALL.len()]>,
}

impl Trust {
    /// Full trust in everything that is said of `backends` backends.
    #[must_use]
    pub fn new(backends: usize) -> Self {
        let full = || Source::ALL.map(|_| AtomicU64::new(1.0_f64.to_bits()));
        Self { weights: (0..backends).map(|_| full()).collect() }
    }

    /// How much of what `source` says of `backend` is to be believed, from 0 to 1.
    #[must_use]
    pub fn weight(&self, backend: usize, source: Source) -> f64 {
        let weights = self.weights.get(backend);
        weights.map_or(1.0, |weights| f64::from_bits(weights[source as usize].load(Ordering::Relaxed)))
    }

    /// Whether what `source` says of `backend` has come true for the most part.
    #[must_use]
    pub fn is_trusted(&self, backend: usize, source: Source) -> bool {
        self.weight(backend, source) > 0.5
    }

    /// Of `predicted` tokens `actual` ones were found. Nothing predicted proves nothing: whoever does not know is not wrong.
    pub fn learn(&self, backend: usize, source: Source, predicted: usize, actual: usize) {
        let Some(weights) = self.weights.get(backend).filter(|_| predicted > 0) else { return };
        let [predicted, actual] = [predicted, actual].map(|tokens| u32::try_from(tokens).unwrap_or(u32::MAX));
        let came_true = (f64::from(actual) / (f64::from(predicted) * TRUE_FROM)).min(1.0);
        let weight = self.weight(backend, source);
        let weight = weight + NEWEST_SHARE * (came_true - weight);
        // Of two requests that end at once one is forgotten, which does no harm.
        weights[source as usize].store(weight.to_bits(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_keeps_being_wrong_loses_its_weight_and_wins_it_back() {
        let trust = Trust::new(2);
        for _ in 0..50 {
            trust.learn(1, Source::Lmcache, 4000, 0);
        }
        assert!(trust.weight(1, Source::Lmcache) < 0.01);
        assert_eq!(
            trust.weight(1, Source::Shadow).to_bits(),
            1.0_f64.to_bits(),
            "the other one is not to blame"
        );
        assert_eq!(trust.weight(0, Source::Lmcache).to_bits(), 1.0_f64.to_bits(), "nor the other backend");
        for _ in 0..50 {
            trust.learn(1, Source::Lmcache, 4000, 4000);
        }
        assert!(trust.weight(1, Source::Lmcache) > 0.99);
    }

    #[test]
    fn the_weight_is_the_share_that_comes_true() {
        let trust = Trust::new(1);
        for _ in 0..200 {
            trust.learn(0, Source::Shadow, 4000, 1800);
        }
        assert!((trust.weight(0, Source::Shadow) - 0.5).abs() < 0.01);
    }

    #[test]
    fn what_is_nearly_true_more_than_said_or_not_said_costs_no_weight() {
        let trust = Trust::new(1);
        for (predicted, actual) in [(4000, 3700), (4000, 9000), (0, 4000), (0, 0)] {
            trust.learn(0, Source::Shadow, predicted, actual);
        }
        assert_eq!(trust.weight(0, Source::Shadow).to_bits(), 1.0_f64.to_bits());
    }
}
