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
