//! What is to be done about one prompt in the engines' caches. Pure.
//!
//! Called by `jobs` once a prompt is looked up. Bounded: one action of each kind at most. It neither acts nor remembers
//! what was done before.

use crate::clients::lmcache::Action;
use crate::config::{CacheStrategy, EvictWith};
use crate::state::inbox::Found;
use crate::state::load::Load;

/// The actions for a prompt, in the order in which they are to be taken.
///
/// An action is for the configured instance, at the configured location, whatever was found; what is not configured is
/// taken from the find: the instance that holds the most of the prompt, and where. `load_of` tells an instance's load,
/// and is asked only where it decides.
#[must_use]
pub fn decide(
    strategy: &CacheStrategy,
    hot: bool,
    found: &[Found],
    load_of: impl Fn(&str) -> Load,
) -> Vec<Action> {
    let compress = || {
        let (instance, location) =
            target(&strategy.compress_instance_id, &strategy.compress_location, found)?;
        let is_due = reaches(load_of(instance).load_ratio, strategy.load_threshold);
        let (instance, location) = (instance.to_owned(), location.to_owned());
        is_due.then(|| Action::Compress { instance, location, method: strategy.compress_method.clone() })
    };
    let pin = || {
        let (instance, location) = target(&strategy.pin_instance_id, &strategy.pin_location, found)?;
        Some(Action::Pin { instance: instance.to_owned(), location: location.to_owned() })
    };
    let evict = || {
        let instance = match strategy.evict_instance_id.as_str() {
            "" => &most(found.iter())?.instance,
            configured => configured,
        };
        let is_due = reaches(load_of(instance).memory_ratio, strategy.memory_threshold);
        is_due.then(|| Action::Evict { instance: instance.to_owned() })
    };
    let compress = (strategy.enable_compression && strategy.load_threshold > 0.0).then(compress);
    let pin = (strategy.enable_pinning && hot).then(pin);
    let evict = (strategy.enable_eviction && strategy.memory_threshold > 0.0).then(evict);
    [compress, pin, evict].into_iter().flatten().flatten().collect()
}

/// What is done on an instance whose controller cannot evict.
#[must_use]
pub fn instead_of_evicting(strategy: &CacheStrategy, instance: &str) -> Option<Action> {
    let location = strategy.evict_location.clone();
    let clears = strategy.evict_with == EvictWith::Clear && !location.is_empty();
    clears.then(|| Action::Clear { instance: instance.to_owned(), location })
}

/// Whether the strategy ever asks for the load of an instance.
#[must_use]
pub fn needs_load(strategy: &CacheStrategy) -> bool {
    let compresses = strategy.enable_compression && strategy.load_threshold > 0.0;
    let evicts = strategy.enable_eviction && strategy.memory_threshold > 0.0;
    compresses || evicts
}

/// Where to act: as configured, and for what is empty as found; `None` where neither says.
fn target<'a>(instance: &'a str, location: &'a str, found: &'a [Found]) -> Option<(&'a str, &'a str)> {
    if !instance.is_empty() && !location.is_empty() {
        return Some((instance, location));
    }
    let held = most(found.iter().filter(|found| instance.is_empty() || found.instance == instance))?;
    Some((&held.instance, if location.is_empty() { &held.location } else { location }))
}

/// The find with the most tokens, the first of several.
fn most<'a>(found: impl Iterator<Item = &'a Found>) -> Option<&'a Found> {
    found.reduce(|most, next| if next.tokens > most.tokens { next } else { most })
}

fn reaches(ratio: f64, threshold: f64) -> bool {
    threshold > 0.0 && ratio >= threshold
}

#[cfg(test)]
mod tests {
    use super::*;

    fn everything() -> CacheStrategy {
        CacheStrategy {
            enable_compression: true,
            enable_pinning: true,
            enable_eviction: true,
            load_threshold: 0.8,
            memory_threshold: 0.9,
            hot_content_threshold: 2,
            ..CacheStrategy::default()
        }
    }

    fn find(instance: &str, location: &str, tokens: usize) -> Found {
        Found { instance: instance.to_owned(), location: location.to_owned(), tokens }
    }

    fn two_hold_it() -> Vec<Found> {
        vec![find("a", "cpu", 256), find("b", "disk", 512), find("a", "disk", 300)]
    }

    /// The actions in a few words, such as `pin b disk`.
    fn decided(strategy: &CacheStrategy, hot: bool, found: &[Found], load: [f64; 2]) -> Vec<String> {
        let [load_ratio, memory_ratio] = load;
        let actions = decide(strategy, hot, found, |_| Load { load_ratio, memory_ratio });
        let words = |action: &Action| match action {
            Action::Pin { instance, location } => format!("pin {instance} {location}"),
            Action::Compress { instance, location, method } => {
                format!("compress {instance} {location} {method}")
            }
            Action::Evict { instance } => format!("evict {instance}"),
            Action::Clear { instance, location } => format!("clear {instance} {location}"),
        };
        actions.iter().map(words).collect()
    }

    #[test]
    fn each_action_has_its_own_reason() {
        let all = ["compress b disk cachegen", "pin b disk", "evict b"];
        for (hot, load, expected) in [
            (true, [0.8, 0.9], &all[..]),
            (true, [0.79, 0.89], &all[1..2]),
            (false, [0.8, 0.89], &all[..1]),
            (false, [0.79, 0.9], &all[2..]),
            (false, [0.0, 0.0], &[]),
        ] {
            assert_eq!(decided(&everything(), hot, &two_hold_it(), load), expected, "hot: {hot}, {load:?}");
        }
    }

    #[test]
    fn what_is_not_enabled_is_not_done() {
        for (enabled, expected) in [
            ([true, false, false], &["compress b disk cachegen"][..]),
            ([false, true, false], &["pin b disk"]),
            ([false, false, true], &["evict b"]),
            ([false; 3], &[]),
        ] {
            let [enable_compression, enable_pinning, enable_eviction] = enabled;
            let strategy =
                CacheStrategy { enable_compression, enable_pinning, enable_eviction, ..everything() };
            assert_eq!(decided(&strategy, true, &two_hold_it(), [1.0, 1.0]), expected);
        }
    }

    #[test]
    fn a_threshold_of_nought_is_never_reached() {
        let strategy = CacheStrategy { load_threshold: 0.0, memory_threshold: 0.0, ..everything() };
        assert_eq!(decided(&strategy, false, &two_hold_it(), [1.0, 1.0]), [""; 0]);
        assert!(!needs_load(&strategy) && needs_load(&everything()));
    }

    #[test]
    fn what_is_configured_is_done_whatever_was_found() {
        let strategy = CacheStrategy {
            pin_instance_id: "p".to_owned(),
            pin_location: "here".to_owned(),
            compress_instance_id: "c".to_owned(),
            compress_location: "there".to_owned(),
            compress_method: "zstd".to_owned(),
            evict_instance_id: "e".to_owned(),
            ..everything()
        };
        for found in [vec![], two_hold_it()] {
            let expected = ["compress c there zstd", "pin p here", "evict e"];
            assert_eq!(decided(&strategy, true, &found, [1.0, 1.0]), expected);
        }
    }

    #[test]
    fn a_configured_half_is_completed_by_the_find() {
        for (instance, location, expected) in [
            ("a", "", Some("pin a disk")),
            ("", "nvme", Some("pin b nvme")),
            ("nobody", "", None),
            ("nobody", "nvme", Some("pin nobody nvme")),
        ] {
            let strategy = CacheStrategy {
                pin_instance_id: instance.to_owned(),
                pin_location: location.to_owned(),
                ..everything()
            };
            let decided = decided(&strategy, true, &two_hold_it(), [0.0, 0.0]);
            assert_eq!(decided.first().map(String::as_str), expected, "{instance:?} {location:?}");
        }
    }

    #[test]
    fn nothing_is_done_where_nothing_was_found() {
        assert_eq!(decided(&everything(), true, &[], [1.0, 1.0]), [""; 0]);
    }

    #[test]
    fn the_first_of_several_that_hold_the_same_is_taken() {
        let found = [find("a", "cpu", 256), find("b", "cpu", 256)];
        assert_eq!(decided(&everything(), true, &found, [0.0, 0.0]), ["pin a cpu"]);
    }

    #[test]
    fn the_load_that_decides_is_that_of_the_instance_acted_on() {
        let strategy = CacheStrategy { evict_instance_id: "e".to_owned(), ..everything() };
        let load_of = |instance: &str| Load {
            load_ratio: f64::from(instance == "b"),
            memory_ratio: f64::from(instance == "e"),
        };
        let actions = decide(&strategy, false, &two_hold_it(), load_of);
        assert_eq!(actions.iter().map(Action::name).collect::<Vec<_>>(), ["compress", "evict"]);
    }

    #[test]
    fn a_location_is_cleared_only_where_that_is_asked_for() {
        let clear =
            CacheStrategy { evict_with: EvictWith::Clear, evict_location: "cpu".to_owned(), ..everything() };
        let action = Action::Clear { instance: "a".to_owned(), location: "cpu".to_owned() };
        assert_eq!(instead_of_evicting(&clear, "a"), Some(action));
        let without_location = CacheStrategy { evict_location: String::new(), ..clear.clone() };
        let without_clear = CacheStrategy { evict_with: EvictWith::Evict, ..clear };
        assert_eq!(instead_of_evicting(&without_location, "a"), None);
        assert_eq!(instead_of_evicting(&without_clear, "a"), None);
    }
}
