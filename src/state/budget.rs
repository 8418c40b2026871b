//! The bytes of request bodies that the whole process may hold at once.
//!
//! Called by `proxy::body` while a body arrives; a [`Share`] gives its bytes back when it is dropped, on every path.
//! It counts and refuses; it never waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A bounded number of bytes, shared by all requests of the process.
#[derive(Debug)]
pub struct Budget {
    used: AtomicUsize,
    bytes_max: usize,
}

impl Budget {
    /// A budget of `bytes_max` bytes.
    #[must_use]
    pub fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), bytes_max })
    }

    /// The bytes taken at the moment.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// An empty share, to be grown as bytes arrive.
    #[must_use]
    pub fn share(self: &Arc<Self>) -> Share {
        Share { budget: Arc::clone(self), bytes: 0 }
    }

    fn take(&self, bytes: usize) -> bool {
        self.used
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|sum| *sum <= self.bytes_max)
            })
            .is_ok()
    }
}

/// The bytes that one request holds of a [`Budget`]; given back on drop.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Share {
    /// Takes `bytes` more. `false`, and nothing taken, when the budget has less than that left.
    #[must_use]
    pub fn grow(&mut self, bytes: usize) -> bool {
        let taken = self.budget.take(bytes);
        if taken {
            self.bytes += bytes;
        }
        taken
    }

    /// The bytes it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_gives_back_what_it_took() {
        let budget = Budget::new(10);
        let mut one = budget.share();
        let mut other = budget.share();
        assert!(one.grow(6) && other.grow(4));
        assert!(!other.grow(1), "the budget is spent");
        assert_eq!(budget.used(), 10);
        drop(one);
        assert!(other.grow(6));
        drop(other);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn an_absurd_size_is_refused_and_changes_nothing() {
        let budget = Budget::new(10);
        let mut share = budget.share();
        assert!(share.grow(1) && !share.grow(usize::MAX));
        assert_eq!(budget.used(), 1);
    }
}
