//! Median and range of repeated measurements, of their ratios and of their differences. Pure; used by `report`.
use serde::Serialize;

/// The middle of a few values, and how far they reach.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// `None` for no values.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let upper = *values.get(middle)?;
        let lower = *values.get((values.len() - 1) / 2)?;
        Some(Self { median: f64::midpoint(lower, upper), min: *values.first()?, max: *values.last()? })
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

fn pairs(of: &[Option<f64>], to: &[Option<f64>]) -> impl Iterator<Item = (f64, f64)> {
    of.iter().zip(to).filter_map(|(of, to)| Some((*of)?).zip(*to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two_middles() {
        assert_eq!(Spread::of([3.0, 1.0, 9.0]), Some(Spread { median: 3.0, min: 1.0, max: 9.0 }));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 9.0]), Some(Spread { median: 3.0, min: 1.0, max: 9.0 }));
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn a_ratio_compares_the_same_round() {
        let of = [Some(10.0), Some(40.0), None, Some(5.0)];
        let to = [Some(5.0), Some(40.0), Some(1.0), Some(0.0)];
        assert_eq!(Spread::of_ratios(&of, &to), Some(Spread { median: 1.5, min: 1.0, max: 2.0 }));
        assert_eq!(Spread::of_ratios(&of[2..], &to[2..]), None);
        assert_eq!(Spread::of_differences(&of, &to), Some(Spread { median: 5.0, min: 0.0, max: 5.0 }));
    }
}
