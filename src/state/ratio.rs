//! How many tokens a byte of a prompt has, learned per model from what engines report.
//!
//! Asked and told by `proxy`, which knows a prompt's tokens only once an engine has counted them. A mean that follows what is
//! reported, each report weighed by its length. Bounded in models, whose names come from clients: the one that nobody asked
//! for longest is forgotten. It knows no languages: a fleet that gets two of them sees the mean.

use lru::LruCache;
use parking_lot::Mutex;
use prometheus::IntCounter;
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;

/// Models that are remembered.
pub const MODELS_MAX: usize = 1024;

/// Tokens per byte of a model that nothing is known of.
pub const UNKNOWN: f64 = 0.25;

/// What can be: a byte is at most a few tokens, and a token at most some words.
const SENSIBLE: RangeInclusive<f64> = 0.01..=4.0;

/// A report of so many bytes weighs as much as all before it.
const MEMORY_BYTES: f64 = 65536.0;

/// The most that one report weighs, so that none is taken for the whole truth.
const WEIGHT_MAX: f64 = 0.5;

/// Tokens per byte of rendered text, by model.
#[derive(Debug)]
pub struct Ratios {
    models: Mutex<LruCache<Box<str>, f64>>,
    forgotten: IntCounter,
}

impl Ratios {
    /// Nothing is known. Models that go for want of room count as `forgotten`.
    #[must_use]
    pub fn new(forgotten: IntCounter) -> Self {
        let models = NonZeroUsize::new(MODELS_MAX).unwrap_or(NonZeroUsize::MIN);
        Self { models: Mutex::new(LruCache::new(models)), forgotten }
    }

    /// Tokens per byte of a prompt for this model.
    #[must_use]
    pub fn get(&self, model: &str) -> f64 {
        self.models.lock().get(model).copied().unwrap_or(UNKNOWN)
    }

    /// An engine has counted `tokens` in a prompt of `bytes`. What cannot be is ignored.
    pub fn learn(&self, model: &str, bytes: usize, tokens: usize) {
        #[expect(clippy::cast_precision_loss, reason = "lengths of prompts are far below 2^52")]
        let (bytes, tokens) = (bytes as f64, tokens as f64);
        let reported = tokens / bytes;
        if !SENSIBLE.contains(&reported) {
            return;
        }
        let weight = (bytes / (bytes + MEMORY_BYTES)).min(WEIGHT_MAX);
        let follow = |ratio: f64| ratio + weight * (reported - ratio);
        let mut models = self.models.lock();
        if let Some(ratio) = models.get_mut(model) {
            *ratio = follow(*ratio);
        } else if models.push(model.into(), follow(UNKNOWN)).is_some() {
            self.forgotten.inc();
        }
    }

    /// The models that are remembered.
    #[must_use]
    pub fn models(&self) -> usize {
        self.models.lock().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ratios() -> Ratios {
        Ratios::new(IntCounter::new("name", "help").unwrap())
    }

    /// How far from one token per two bytes a model is after these reports of it.
    fn distance(reports: &[usize]) -> f64 {
        let ratios = ratios();
        for bytes in reports {
            ratios.learn("m", *bytes, bytes / 2);
        }
        (0.5 - ratios.get("m")).abs()
    }

    #[test]
    fn a_model_that_nothing_is_known_of_has_a_token_per_four_bytes() {
        let ratios = ratios();
        ratios.learn("other", 1000, 500);
        assert!((ratios.get("m") - 0.25).abs() < f64::EPSILON && ratios.get("other") > 0.25);
        assert_eq!(ratios.models(), 1, "asking is not learning");
    }

    #[test]
    fn long_prompts_teach_more_but_none_everything() {
        assert!(distance(&[1000]) > distance(&[10_000]));
        assert!((distance(&[1000]) - distance(&[500, 500])).abs() < 0.001, "it is the bytes that count");
        assert!((distance(&[usize::MAX / 2]) - 0.125).abs() < 0.001);
        assert!(distance(&[8000; 100]) < 0.001);
    }

    #[test]
    fn what_cannot_be_is_ignored() {
        let ratios = ratios();
        for (bytes, tokens) in [(1000, 0), (0, 0), (0, 5), (100, 401), (1000, 9), (1, usize::MAX)] {
            ratios.learn("m", bytes, tokens);
        }
        assert_eq!(ratios.models(), 0);
        ratios.learn("m", 100, 400);
        ratios.learn("m", 1000, 10);
        assert_eq!(ratios.models(), 1);
    }

    #[test]
    fn the_model_that_nobody_asked_for_longest_is_forgotten_and_counted() {
        let ratios = ratios();
        (0..MODELS_MAX).for_each(|n| ratios.learn(&n.to_string(), 100_000, 50_000));
        assert_eq!((ratios.models(), ratios.forgotten.get()), (MODELS_MAX, 0));
        assert!(ratios.get("0") > 0.3);
        ratios.learn("new", 100_000, 50_000);
        assert_eq!((ratios.models(), ratios.forgotten.get()), (MODELS_MAX, 1));
        assert!(ratios.get("0") > 0.3 && ratios.get("new") > 0.3);
        assert!((ratios.get("1") - UNKNOWN).abs() < f64::EPSILON);
    }

    proptest! {
        #[test]
        fn it_stays_between_what_was_reported_and_what_it_began_with(
            reports in prop::collection::vec((0_usize..1_000_000, 0_usize..1_000_000), 0..50),
        ) {
            let ratios = ratios();
            for (bytes, tokens) in reports {
                ratios.learn("m", bytes, tokens);
            }
            prop_assert!(SENSIBLE.contains(&ratios.get("m")));
        }
    }
}
