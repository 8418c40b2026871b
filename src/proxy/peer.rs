//! Loads, the balancer's pick and the policy → the backend for this try, and why. Pure.
//!
//! Called by the spine once per try. The balancer's own pick is an argument, because Pingora's selection keeps state.

use crate::config::Policy;

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
}

/// Chooses among `candidates`; `pick` is what Pingora's balancer would take. `None` only without candidates.
///
/// Ties under `least_requests` go to the balancer's pick, else to the first in configuration order, so that an idle
/// fleet is used in turn.
#[must_use]
pub fn choose(policy: Policy, candidates: &[Candidate], pick: Option<usize>) -> Option<Peer> {
    let picked = candidates.iter().find(|candidate| Some(candidate.index) == pick);
    let by_pick = |reason| match picked {
        Some(candidate) => Some(Peer { index: candidate.index, reason }),
        None => {
            candidates.first().map(|candidate| Peer { index: candidate.index, reason: Reason::Remaining })
        }
    };
    match policy {
        Policy::RoundRobin => by_pick(Reason::RoundRobin),
        Policy::Random => by_pick(Reason::Random),
        Policy::ConsistentHash => by_pick(Reason::ConsistentHash),
        Policy::LeastRequests => {
            let least = picked.into_iter().chain(candidates).min_by(|a, b| {
                // a.requests / a.weight against b.requests / b.weight, without dividing
                (a.requests * b.weight).cmp(&(b.requests * a.weight))
            })?;
            Some(Peer { index: least.index, reason: Reason::LeastRequests })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidates(requests: &[usize]) -> Vec<Candidate> {
        requests
            .iter()
            .enumerate()
            .map(|(index, &requests)| Candidate { index, requests, weight: 1 })
            .collect()
    }

    #[test]
    fn the_balancers_pick_is_taken_when_it_is_a_candidate() {
        let all = candidates(&[9, 0]);
        assert_eq!(
            choose(Policy::RoundRobin, &all, Some(0)),
            Some(Peer { index: 0, reason: Reason::RoundRobin })
        );
        assert_eq!(choose(Policy::Random, &all, Some(7)), Some(Peer { index: 0, reason: Reason::Remaining }));
        assert_eq!(choose(Policy::ConsistentHash, &[], Some(0)), None);
    }

    #[test]
    fn ties_go_to_the_balancers_pick() {
        let all = candidates(&[1, 0, 0]);
        assert_eq!(choose(Policy::LeastRequests, &all, Some(2)).unwrap().index, 2);
        assert_eq!(choose(Policy::LeastRequests, &all, Some(0)).unwrap().index, 1);
        assert_eq!(choose(Policy::LeastRequests, &all, None).unwrap().index, 1);
    }

    #[test]
    fn a_heavier_backend_takes_more() {
        let mut all = candidates(&[1, 2]);
        all[1].weight = 3;
        assert_eq!(choose(Policy::LeastRequests, &all, None).unwrap().index, 1);
    }

    proptest! {
        #[test]
        fn nobody_has_fewer_requests_than_the_chosen(requests in prop::collection::vec(0_usize..50, 1..20), pick in 0_usize..25) {
            let all = candidates(&requests);
            let peer = choose(Policy::LeastRequests, &all, Some(pick)).unwrap();
            prop_assert_eq!(requests[peer.index], *requests.iter().min().unwrap());
        }
    }
}
