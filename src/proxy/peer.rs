//! Loads, the balancer's pick and the policy → the backend for this try, and why. Pure.
//!
//! Called by the spine once per try. The balancer's own pick is an argument, because Pingora's selection keeps state.

use super::hint::{Hint, Why};
use crate::config::{Balancing, Policy};

/// A backend that may be chosen: healthy, resolved, not tried yet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Candidate {
    /// Its place in the fleet.
    pub index: usize,
    /// Tries in flight there.
    pub requests: usize,
    /// Its share under the weighted policies, at least 1.
    pub weight: usize,
}

/// Why a backend was chosen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reason {
    /// The next in turn.
    RoundRobin,
    /// By chance.
    Random,
    /// The hash of the client or of the configured header points to it.
    ConsistentHash,
    /// It has the fewest requests in flight for its weight.
    LeastRequests,
    /// LMCache has the most of the prompt there.
    Lmcache,
    /// The balancer offered none that is still free to take; the first that is was taken.
    Remaining,
}

impl Reason {
    /// Its name in logs and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "round_robin",
            Self::Random => "random",
            Self::ConsistentHash => "consistent_hash",
            Self::LeastRequests => "least_requests",
            Self::Lmcache => "lmcache",
            Self::Remaining => "remaining",
        }
    }
}

/// The backend chosen for one try.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Peer {
    /// Its place in the fleet.
    pub index: usize,
    /// Why.
    pub reason: Reason,
    /// Why no hint was followed; `None` = one was.
    pub unhinted: Option<Why>,
}

/// What became of a hint that was followed.
pub const FOLLOWED: &str = "followed";

impl Peer {
    /// What became of the hint, as in logs and metrics.
    #[must_use]
    pub fn hint_name(&self) -> &'static str {
        self.unhinted.map_or(FOLLOWED, Why::name)
    }
}

/// What a choice goes by.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// The rule that chooses.
    pub policy: Policy,
    /// The rule where the policy has nothing to go by.
    pub balancing: Balancing,
    /// A backend is not preferred beyond this many times the mean of requests in flight; 0 = always.
    pub preferred_in_flight_max: f64,
}

/// A backend with fewer requests in flight than this is never too busy to be preferred.
const PREFERRED_IN_FLIGHT_MIN: usize = 8;

/// Chooses among `candidates`; `pick` is what Pingora's balancer would take. `None` only without candidates.
#[must_use]
pub fn choose(rules: Rules, candidates: &[Candidate], hint: &Hint, pick: Option<usize>) -> Option<Peer> {
    let unhinted = match prefer(rules, candidates, hint) {
        Ok(index) if rules.policy == Policy::LmcacheOnly => {
            return Some(Peer { index, reason: Reason::Lmcache, unhinted: None });
        }
        Ok(_) => Why::Policy,
        Err(why) => why,
    };
    let (index, reason) = balance(rules.balancing, candidates, pick)?;
    Some(Peer { index, reason, unhinted: Some(unhinted) })
}

/// The candidate at which the most of the prompt is cached and which is not overloaded; ties go to the less loaded, then to
/// the first in configuration order.
fn prefer(rules: Rules, candidates: &[Candidate], hint: &Hint) -> Result<usize, Why> {
    if let Some(why) = hint.why {
        return Err(why);
    }
    let known = || {
        hint.matches.iter().filter_map(|found| {
            let candidate = candidates.iter().find(|candidate| candidate.index == found.index)?;
            Some((found.tokens, candidate))
        })
    };
    known().next().ok_or(Why::Unavailable)?;
    let requests: usize = candidates.iter().map(|candidate| candidate.requests).sum();
    let free = |candidate: &Candidate| {
        rules.preferred_in_flight_max <= 0.0
            || candidate.requests < PREFERRED_IN_FLIGHT_MIN
            || exact(candidate.requests) * exact(candidates.len())
                < rules.preferred_in_flight_max * exact(requests)
    };
    known()
        .filter(|(_, candidate)| free(candidate))
        .min_by_key(|(tokens, candidate)| (std::cmp::Reverse(*tokens), candidate.requests, candidate.index))
        .map(|(_, candidate)| candidate.index)
        .ok_or(Why::Overloaded)
}

/// Numbers of requests are far below 2^32.
fn exact(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

/// Ties under `least_requests` go to the balancer's pick, else to the first in configuration order, so that an idle
/// fleet is used in turn.
fn balance(balancing: Balancing, candidates: &[Candidate], pick: Option<usize>) -> Option<(usize, Reason)> {
    let picked = candidates.iter().find(|candidate| Some(candidate.index) == pick);
    let by_pick = |reason| match picked {
        Some(candidate) => Some((candidate.index, reason)),
        None => candidates.first().map(|candidate| (candidate.index, Reason::Remaining)),
    };
    match balancing {
        Balancing::RoundRobin => by_pick(Reason::RoundRobin),
        Balancing::Random => by_pick(Reason::Random),
        Balancing::ConsistentHash => by_pick(Reason::ConsistentHash),
        Balancing::LeastRequests => {
            let least = picked.into_iter().chain(candidates).min_by(|a, b| {
                // a.requests / a.weight against b.requests / b.weight, without dividing
                (a.requests * b.weight).cmp(&(b.requests * a.weight))
            })?;
            Some((least.index, Reason::LeastRequests))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::hint::Match;
    use super::*;
    use proptest::prelude::*;

    fn candidates(requests: &[usize]) -> Vec<Candidate> {
        requests
            .iter()
            .enumerate()
            .map(|(index, &requests)| Candidate { index, requests, weight: 1 })
            .collect()
    }

    fn rules(policy: Policy, balancing: Balancing) -> Rules {
        Rules { policy, balancing, preferred_in_flight_max: 2.0 }
    }

    fn balanced(balancing: Balancing, candidates: &[Candidate], pick: Option<usize>) -> Option<usize> {
        let rules = rules(Policy::RoundRobin, balancing);
        choose(rules, candidates, &Hint::none(Why::Off), pick).map(|peer| peer.index)
    }

    fn hint(matches: &[(usize, usize)]) -> Hint {
        Hint::of(matches.iter().map(|&(index, tokens)| Match { index, tokens }).collect())
    }

    fn preferred(matches: &[(usize, usize)], requests: &[usize]) -> Peer {
        let rules = rules(Policy::LmcacheOnly, Balancing::RoundRobin);
        choose(rules, &candidates(requests), &hint(matches), Some(0)).unwrap()
    }

    fn followed(index: usize) -> Peer {
        Peer { index, reason: Reason::Lmcache, unhinted: None }
    }

    fn left(why: Why) -> Peer {
        Peer { index: 0, reason: Reason::RoundRobin, unhinted: Some(why) }
    }

    #[test]
    fn the_backend_with_the_most_of_the_prompt_is_preferred() {
        assert_eq!(preferred(&[(0, 256), (2, 512), (1, 511)], &[0, 0, 0]), followed(2));
    }

    #[test]
    fn ties_go_to_the_less_loaded_then_to_configuration_order() {
        assert_eq!(preferred(&[(1, 512), (2, 512)], &[0, 3, 2]), followed(2));
        assert_eq!(preferred(&[(2, 512), (1, 512)], &[0, 3, 3]), followed(1));
    }

    #[test]
    fn a_hint_at_no_candidate_is_left() {
        assert_eq!(preferred(&[(7, 512)], &[0, 0]), left(Why::Unavailable));
        assert_eq!(preferred(&[(7, 512), (1, 2)], &[0, 0]), followed(1));
    }

    #[test]
    fn an_overloaded_backend_is_not_preferred() {
        assert_eq!(preferred(&[(1, 512)], &[0, 7]), followed(1));
        assert_eq!(preferred(&[(1, 512)], &[0, 8]), left(Why::Overloaded));
        assert_eq!(preferred(&[(1, 512)], &[5, 14]), followed(1));
        assert_eq!(preferred(&[(1, 512), (2, 256)], &[0, 30, 0]), followed(2));
        let always = Rules { preferred_in_flight_max: 0.0, ..rules(Policy::LmcacheOnly, Balancing::Random) };
        assert_eq!(choose(always, &candidates(&[0, 900]), &hint(&[(1, 1)]), Some(0)), Some(followed(1)));
    }

    #[test]
    fn other_policies_do_not_follow_hints() {
        let peer = choose(
            rules(Policy::RoundRobin, Balancing::RoundRobin),
            &candidates(&[0, 0]),
            &hint(&[(1, 9)]),
            Some(0),
        );
        assert_eq!(peer, Some(left(Why::Policy)));
    }

    #[test]
    fn the_balancers_pick_is_taken_when_it_is_a_candidate() {
        let all = candidates(&[9, 0]);
        let choose =
            |balancing, pick| choose(rules(Policy::RoundRobin, balancing), &all, &Hint::none(Why::Off), pick);
        assert_eq!(choose(Balancing::RoundRobin, Some(0)).unwrap().reason, Reason::RoundRobin);
        assert_eq!(choose(Balancing::Random, Some(7)).unwrap().reason, Reason::Remaining);
        assert_eq!(balanced(Balancing::ConsistentHash, &[], Some(0)), None);
    }

    #[test]
    fn ties_go_to_the_balancers_pick() {
        let all = candidates(&[1, 0, 0]);
        assert_eq!(balanced(Balancing::LeastRequests, &all, Some(2)), Some(2));
        assert_eq!(balanced(Balancing::LeastRequests, &all, Some(0)), Some(1));
        assert_eq!(balanced(Balancing::LeastRequests, &all, None), Some(1));
    }

    #[test]
    fn a_heavier_backend_takes_more() {
        let mut all = candidates(&[1, 2]);
        all[1].weight = 3;
        assert_eq!(balanced(Balancing::LeastRequests, &all, None), Some(1));
    }

    proptest! {
        #[test]
        fn nobody_has_fewer_requests_than_the_chosen(requests in prop::collection::vec(0_usize..50, 1..20), pick in 0_usize..25) {
            let chosen = balanced(Balancing::LeastRequests, &candidates(&requests), Some(pick)).unwrap();
            prop_assert_eq!(requests[chosen], *requests.iter().min().unwrap());
        }
    }
}
