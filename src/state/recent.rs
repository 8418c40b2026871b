//! The newest of many entries, so that it can be told afterwards what happened.
//!
//! Written by `proxy` (one entry per decision), read by `admin` through `app`. Bounded by a number of entries: a new one makes
//! the oldest go, which is counted. It has all its room from the beginning, and an entry is made and dropped outside the
//! lock, so that nobody waits for more than a push. It knows nothing of what it keeps.

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;

/// The last entries of a kind.
#[derive(Debug)]
pub struct Recent<T> {
    entries_max: usize,
    kept: Mutex<Kept<T>>,
}

#[derive(Debug)]
struct Kept<T> {
    /// The oldest first.
    entries: VecDeque<Arc<T>>,
    forgotten: u64,
}

impl<T> Recent<T> {
    /// Room for `entries_max` entries; 0 = nothing is kept.
    #[must_use]
    pub fn new(entries_max: usize) -> Self {
        let kept = Kept { entries: VecDeque::with_capacity(entries_max), forgotten: 0 };
        Self { entries_max, kept: Mutex::new(kept) }
    }

    /// Keeps what `entry` makes, in place of the oldest where there is no room. Where nothing is kept it is not even made.
    pub fn record(&self, entry: impl FnOnce() -> T) {
        if self.entries_max == 0 {
            return;
        }
        let entry = Arc::new(entry());
        let mut kept = self.kept.lock();
        let oldest = if kept.entries.len() == self.entries_max { kept.entries.pop_front() } else { None };
        kept.forgotten += u64::from(oldest.is_some());
        kept.entries.push_back(entry);
        drop(kept);
        drop(oldest);
    }

    /// What is kept, the newest first.
    #[must_use]
    pub fn newest_first(&self) -> Vec<Arc<T>> {
        self.kept.lock().entries.iter().rev().map(Arc::clone).collect()
    }

    /// Entries that have gone for want of room, so far.
    #[must_use]
    pub fn forgotten(&self) -> u64 {
        self.kept.lock().forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(recent: &Recent<u32>) -> (Vec<u32>, u64) {
        (recent.newest_first().iter().map(|entry| **entry).collect(), recent.forgotten())
    }

    #[test]
    fn the_oldest_goes_and_is_counted() {
        let recent = Recent::new(3);
        assert_eq!(told(&recent), (vec![], 0));
        for entry in 1..=3 {
            recent.record(|| entry);
        }
        assert_eq!(told(&recent), (vec![3, 2, 1], 0));
        for entry in 4..=5 {
            recent.record(|| entry);
        }
        assert_eq!(told(&recent), (vec![5, 4, 3], 2));
    }

    #[test]
    fn nothing_is_made_where_nothing_is_kept() {
        let recent = Recent::new(0);
        let mut made = false;
        recent.record(|| {
            made = true;
            1
        });
        assert_eq!((made, told(&recent)), (false, (vec![], 0)));
    }

    #[test]
    fn room_is_taken_once() {
        let recent = Recent::new(100);
        let room = recent.kept.lock().entries.capacity();
        (0..1000).for_each(|entry| recent.record(|| entry));
        assert_eq!(recent.kept.lock().entries.capacity(), room);
    }
}
