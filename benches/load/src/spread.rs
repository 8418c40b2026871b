//! Median of repeated measurements, of their ratios and of their differences, and how sure it is. Pure; used by `report`.
use serde::Serialize;

/// The middle of some values, and where the median of many more would be: outside of that at most once in 16 times, by the
/// binomial distribution of how many of them are below it. Of up to five values it is all of their range.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
    /// The most of them.
    pub(crate) max: f64,
}

/// At each end.
const OUTSIDE: f64 = 1.0 / 32.0;

impl Spread {
    /// `None` for no values.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let upper = *values.get(middle)?;
        let lower = *values.get((values.len() - 1) / 2)?;
        let left_out = left_out(values.len());
        let (low, high) = (*values.get(left_out)?, *values.get(values.len() - 1 - left_out)?);
        Some(Self { median: f64::midpoint(lower, upper), low, high, max: *values.last()? })
    }

    /// Of the ratios of values that were measured one right after the other; rounds without both are left out.
    pub(crate) fn of_ratios(of: &[Option<f64>], to: &[Option<f64>]) -> Option<Self> {
        Self::of(pairs(of, to).filter(|(_, to)| *to > 0.0).map(|(of, to)| of / to))
    }

    /// Of the differences of values that were measured in the same round.
    pub(crate) fn of_differences(of: &[Option<f64>], to: &[Option<f64>]) -> Option<Self> {
        Self::of(pairs(of, to).map(|(of, to)| of - to))
    }
}

/// How many of so many sorted values are left out at each end.
fn left_out(values: usize) -> usize {
    let count = u32::try_from(values).map_or(f64::INFINITY, f64::from);
    let (mut chance, mut all, mut below) = (0.5_f64.powf(count), 0.0, 0_u32);
    while all + chance <= OUTSIDE && f64::from(below) < count {
        all += chance;
        chance *= (count - f64::from(below)) / f64::from(below + 1);
        below += 1;
    }
    below.saturating_sub(1) as usize
}

fn pairs(of: &[Option<f64>], to: &[Option<f64>]) -> impl Iterator<Item = (f64, f64)> {
    of.iter().zip(to).filter_map(|(of, to)| Some((*of)?).zip(*to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two_middles() {
        assert_eq!(Spread::of([3.0, 1.0, 9.0]), Some(Spread { median: 3.0, low: 1.0, high: 9.0, max: 9.0 }));
        assert_eq!(
            Spread::of([4.0, 1.0, 2.0, 9.0]),
            Some(Spread { median: 3.0, low: 1.0, high: 9.0, max: 9.0 })
        );
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn of_many_values_the_ends_say_nothing_of_the_median() {
        // Of 20, less than six are below the median once in 48 times.
        assert_eq!([1, 3, 5, 6, 8, 20, 100].map(left_out), [0, 0, 0, 0, 0, 5, 40]);
        let twenty = Spread::of((1..=20).map(f64::from));
        assert_eq!(twenty, Some(Spread { median: 10.5, low: 6.0, high: 15.0, max: 20.0 }));
    }

    #[test]
    fn a_ratio_compares_the_same_round() {
        let of = [Some(10.0), Some(40.0), None, Some(5.0)];
        let to = [Some(5.0), Some(40.0), Some(1.0), Some(0.0)];
        assert_eq!(Spread::of_ratios(&of, &to), Some(Spread { median: 1.5, low: 1.0, high: 2.0, max: 2.0 }));
        assert_eq!(Spread::of_ratios(&of[2..], &to[2..]), None);
        assert_eq!(
            Spread::of_differences(&of, &to),
            Some(Spread { median: 5.0, low: 0.0, high: 5.0, max: 5.0 })
        );
    }
}
