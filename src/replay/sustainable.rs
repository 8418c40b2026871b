//! The largest load that a fleet bears, by bisection.
//!
//! Called by `plan` with a run of the simulation as the question. Pure but for what it asks; at most [`RUNS_MAX`] questions.
//! It takes for granted that more load is never better, which chance may belie by about the width where it stops.

/// Where it begins: what round robin can serve.
const LOAD_FIRST: f64 = 1.0;
/// Above this nothing is tried, as the trace is too short to overload anything.
const LOAD_MAX: f64 = 64.0;
/// Below this nothing is tried, as single requests take too long.
const LOAD_MIN: f64 = 1.0 / 64.0;
/// It stops when what fails is so little more than what holds.
const WIDTH: f64 = 1.02;
/// The most questions asked: six to pass by [`LOAD_MAX`], and six to come from a factor of 2 to [`WIDTH`].
#[cfg(test)]
const RUNS_MAX: usize = 14;

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Sustainable {
    /// No load was borne.
    None,
    /// This load is borne, and hardly more.
    Load(f64),
    /// This load is borne, and more was not tried.
    AtLeast(f64),
}

/// Looks for the largest load that `holds`; `None` when that tells nothing, because it was interrupted.
pub(super) fn find(mut holds: impl FnMut(f64) -> Option<bool>) -> Option<Sustainable> {
    let (mut held, mut failed) = (None, None);
    loop {
        let load = match (held, failed) {
            (None, None) => LOAD_FIRST,
            (Some(held), None) if held >= LOAD_MAX => return Some(Sustainable::AtLeast(held)),
            (Some(held), None) => held * 2.0,
            (None, Some(failed)) if failed <= LOAD_MIN => return Some(Sustainable::None),
            (None, Some(failed)) => failed / 2.0,
            (Some(held), Some(failed)) if failed <= held * WIDTH => return Some(Sustainable::Load(held)),
            (Some(held), Some(failed)) => f64::midpoint(held, failed),
        };
        if holds(load)? {
            held = Some(load);
        } else {
            failed = Some(load);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_cannot_be_found_is_told() {
        assert_eq!(find(|_| Some(true)), Some(Sustainable::AtLeast(64.0)));
        assert_eq!(find(|_| Some(false)), Some(Sustainable::None));
        assert_eq!(find(|load| (load < 1.5).then_some(true)), None);
    }

    proptest! {
        #[test]
        fn the_load_found_is_borne_and_hardly_more_would_be(limit in 0.02_f64..60.0) {
            let mut runs = 0;
            let found = find(|load| {
                runs += 1;
                Some(load <= limit)
            });
            let Some(Sustainable::Load(load)) = found else { panic!("{found:?}") };
            prop_assert!(load <= limit && limit < load * WIDTH, "{load} of {limit}");
            prop_assert!(runs <= RUNS_MAX, "{runs} runs");
        }
    }
}
