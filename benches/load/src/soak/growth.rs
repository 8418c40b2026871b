//! How fast a figure grows: the slope of the line that fits its values best. Pure; used by `report`.
use serde::Serialize;

use crate::measurement::real;

/// A figure over time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Growth {
    /// The fitted line where it begins.
    pub(crate) first: f64,
    /// The fitted line where it ends.
    pub(crate) last: f64,
    pub(crate) max: f64,
    pub(crate) per_hour: f64,
}

impl Growth {
    /// By least squares over seconds and values; none of fewer than three, or of one moment.
    pub(crate) fn of(points: &[(f64, f64)]) -> Option<Self> {
        let ((begin, _), (end, _)) = (points.first()?, points.last()?);
        let count = real(points.len() as u64);
        let mean = |read: fn(&(f64, f64)) -> f64| points.iter().map(read).sum::<f64>() / count;
        let (mean_x, mean_y) = (mean(|point| point.0), mean(|point| point.1));
        let square: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
        let product: f64 = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
        if points.len() < 3 || square <= 0.0 {
            return None;
        }
        let slope = product / square;
        let at = |x: &f64| mean_y + slope * (x - mean_x);
        let max = points.iter().map(|(_, y)| *y).fold(f64::MIN, f64::max);
        Some(Self { first: at(begin), last: at(end), max, per_hour: slope * 3600.0 })
    }

    /// By how much it grew in all.
    pub(crate) fn total(&self) -> f64 {
        self.last - self.first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_straight_line_grows_by_its_slope() {
        let points: Vec<_> = (0..10).map(|at| (f64::from(at), 100.0 + 2.0 * f64::from(at))).collect();
        let growth = Growth::of(&points).unwrap();
        assert!((growth.per_hour - 7200.0).abs() < 1e-6 && (growth.total() - 18.0).abs() < 1e-6);
        assert!((growth.first - 100.0).abs() < 1e-6 && (growth.max - 118.0).abs() < 1e-6);
    }

    #[test]
    fn a_saw_does_not_grow() {
        let points: Vec<_> = (0..1000).map(|at| (f64::from(at), f64::from(at % 10))).collect();
        assert!(Growth::of(&points).unwrap().total().abs() < 0.2);
    }

    #[test]
    fn too_few_points_tell_nothing() {
        assert_eq!(Growth::of(&[]), None);
        assert_eq!(Growth::of(&[(0.0, 1.0), (1.0, 2.0)]), None);
        assert_eq!(Growth::of(&[(1.0, 1.0), (1.0, 2.0), (1.0, 3.0)]), None);
    }
}
