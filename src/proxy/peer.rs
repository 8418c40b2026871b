//! Loads, what is cached, the balancer's pick and the policy → the backend for this try, and why. Pure.
//!
//! Called by the spine once per try, and by `replay` with simulated ones. The balancer's own pick is an argument, because
//! Pingora's selection keeps state; so is chance, as a random number. The same arguments choose the same backend, so a
//! logged decision can be taken again.

use super::demand::Said;
use super::hint::{Hint, Why};
use crate::config::{Balancing, Policy};
use crate::state::trust::Source;
use std::cmp::Ordering;

/// A backend that may be chosen: able to take requests, resolved, not tried yet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Candidate {
    /// Its place in the fleet.
    pub index: usize,
    /// Tries in flight there: `n`.
    pub requests: usize,
    /// Uncached prompt tokens sent there whose first token has not come back: `P`.
    pub pending_tokens: usize,
    /// Tokens of this prompt that are not cached there: `m`. 0 only without a prompt, whose last token is always computed.
    pub uncached_tokens: usize,
    /// Its share under the weighted policies, at least 1.
    pub weight: usize,
    /// Who says what is cached there; told, and no part of the choice.
    pub said: Said,
    /// Whom `uncached_tokens` goes by; told, and no part of the choice.
    pub source: Option<Source>,
}

/// Why a backend was chosen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reason {
    /// It has the least predicted marginal cost.
    Pmc,
    /// It has the least product of waiting tokens and requests.
    Lmetric,
    /// It has the fewest requests in flight for its weight.
    LeastRequests,
    /// It has fewer requests in flight for its weight than another by chance.
    PowerOfTwo,
    /// The hash of the session, the client or the prompt's prefix points to it.
    ConsistentHash,
    /// The next in turn.
    RoundRobin,
    /// By chance.
    Random,
    /// LMCache has the most of the prompt there.
    Lmcache,
    /// The balancer offered none that is still free to take; the first that is was taken.
    Remaining,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Pmc,
        Self::Lmetric,
        Self::LeastRequests,
        Self::PowerOfTwo,
        Self::ConsistentHash,
        Self::RoundRobin,
        Self::Random,
        Self::Lmcache,
        Self::Remaining,
    ];

    /// Its name in logs and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pmc => "pmc",
            Self::Lmetric => "lmetric",
            Self::LeastRequests => "least_requests",
            Self::PowerOfTwo => "power_of_two",
            Self::ConsistentHash => "consistent_hash",
            Self::RoundRobin => "round_robin",
            Self::Random => "random",
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

/// How much of a prefill each request in flight at the same backend feels, as a share: `e` of [`cost`].
const DELAY_SHARE: f64 = 0.3;

/// What a try at `candidate` is predicted to cost, in tokens to be computed; `None` where `policy` does not go by costs.
///
/// `pmc`: `P + m · (1 + e · n)`: the time to this request's first token (after Mooncake, FAST '25, algorithm 1: what waits
/// there and what is not cached of the prompt) plus the delay that its prefill is for each request in flight there.
/// `lmetric`: `(P + m) · (n + 1)`.
#[must_use]
pub fn cost(policy: Policy, candidate: &Candidate) -> Option<f64> {
    let [requests, pending, uncached] =
        [candidate.requests, candidate.pending_tokens, candidate.uncached_tokens].map(exact);
    match policy {
        Policy::Pmc => Some(pending + uncached * (1.0 + DELAY_SHARE * requests)),
        Policy::Lmetric => Some((pending + uncached) * (requests + 1.0)),
        _ => None,
    }
}

/// Whether the balancer's pick may decide among `candidates`: the policy weighs no costs, or there are none.
#[must_use]
pub fn may_balance(rules: Rules, candidates: &[Candidate]) -> bool {
    !rules.policy.weighs_caches() || candidates.iter().all(|candidate| candidate.uncached_tokens == 0)
}

/// Chooses; `pick` is what Pingora's balancer would take, `random` decides where chance does. `None` only without candidates.
#[must_use]
pub fn choose(
    rules: Rules,
    candidates: &[Candidate],
    hint: &Hint,
    pick: Option<usize>,
    random: u64,
) -> Option<Peer> {
    if rules.policy.weighs_caches() {
        return weigh(rules, candidates, hint, pick, random);
    }
    let unhinted = match prefer(rules, candidates, hint) {
        Ok(index) if rules.policy == Policy::LmcacheOnly => {
            return Some(Peer { index, reason: Reason::Lmcache, unhinted: None });
        }
        Ok(_) => Why::Policy,
        Err(why) => why,
    };
    let (index, reason) = balance(rules.balancing, candidates, pick, random)?;
    Some(Peer { index, reason, unhinted: Some(unhinted) })
}

/// The candidate with the least cost; ties go to the one with fewer requests, then to the first in configuration order.
/// Where there is no prompt, all that differs is load, and `balancing` decides.
fn weigh(
    rules: Rules,
    candidates: &[Candidate],
    hint: &Hint,
    pick: Option<usize>,
    random: u64,
) -> Option<Peer> {
    if may_balance(rules, candidates) {
        let (index, reason) = balance(rules.balancing, candidates, pick, random)?;
        return Some(Peer { index, reason, unhinted: Some(hint.why.unwrap_or(Why::NoPrompt)) });
    }
    let costs = candidates.iter().filter_map(|candidate| Some((cost(rules.policy, candidate)?, candidate)));
    let (_, least) = costs.min_by(|(a, one), (b, other)| {
        a.total_cmp(b).then((one.requests, one.index).cmp(&(other.requests, other.index)))
    })?;
    let reason = if rules.policy == Policy::Lmetric { Reason::Lmetric } else { Reason::Pmc };
    Some(Peer { index: least.index, reason, unhinted: hint.why })
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

/// Numbers of requests and tokens are far below 2^32.
fn exact(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

/// Ties under `least_requests` go to the balancer's pick, else to the first in configuration order, so that an idle
/// fleet is used in turn.
fn balance(
    balancing: Balancing,
    candidates: &[Candidate],
    pick: Option<usize>,
    random: u64,
) -> Option<(usize, Reason)> {
    let picked = candidates.iter().find(|candidate| Some(candidate.index) == pick);
    let by_pick = |reason| match picked {
        Some(candidate) => Some((candidate.index, reason)),
        None => candidates.first().map(|candidate| (candidate.index, Reason::Remaining)),
    };
    match balancing {
        Balancing::RoundRobin => by_pick(Reason::RoundRobin),
        Balancing::ConsistentHash => by_pick(Reason::ConsistentHash),
        Balancing::Random => Some((draw(candidates, random)?.index, Reason::Random)),
        Balancing::LeastRequests => {
            let least = picked.into_iter().chain(candidates).min_by(|a, b| by_load(a, b))?;
            Some((least.index, Reason::LeastRequests))
        }
        Balancing::PowerOfTwo => {
            let first = draw(candidates, random)?;
            let others: Vec<Candidate> =
                candidates.iter().filter(|candidate| candidate.index != first.index).copied().collect();
            // The low half of the number has been used up; the same one would draw the same place again.
            let second = draw(&others, random.rotate_left(32));
            let less = second.filter(|second| by_load(second, &first).is_lt()).unwrap_or(first);
            Some((less.index, Reason::PowerOfTwo))
        }
    }
}

/// Requests in flight for its weight, of one and the other, without dividing.
fn by_load(a: &Candidate, b: &Candidate) -> Ordering {
    (a.requests * b.weight).cmp(&(b.requests * a.weight))
}

/// One of `candidates` by the lower half of `random`, each as likely as its weight says.
fn draw(candidates: &[Candidate], random: u64) -> Option<Candidate> {
    let weights: u64 = candidates.iter().map(|candidate| candidate.weight as u64).sum();
    // The product's upper half is uniform over the weights (Lemire, "Fast random integer generation in an interval", 2019).
    let mut at = ((random & u64::from(u32::MAX)) * weights) >> 32;
    candidates.iter().copied().find(|candidate| {
        let weight = candidate.weight as u64;
        let here = at < weight;
        at = at.saturating_sub(weight);
        here
    })
}

#[cfg(test)]
mod tests {
    use super::super::hint::Match;
    use super::*;
    use proptest::prelude::{Strategy, any, prop, prop_assert, prop_assert_eq, proptest};
    use rand::{Rng, SeedableRng, rngs::StdRng};

    fn candidates(requests: &[usize]) -> Vec<Candidate> {
        requests
            .iter()
            .enumerate()
            .map(|(index, &requests)| Candidate {
                index,
                requests,
                pending_tokens: 0,
                uncached_tokens: 0,
                weight: 1,
                said: Said::default(),
                source: None,
            })
            .collect()
    }

    fn rules(policy: Policy, balancing: Balancing) -> Rules {
        Rules { policy, balancing, preferred_in_flight_max: 2.0 }
    }

    fn balanced(balancing: Balancing, candidates: &[Candidate], pick: Option<usize>) -> Option<usize> {
        let rules = rules(Policy::RoundRobin, balancing);
        choose(rules, candidates, &Hint::none(Why::Off), pick, 0).map(|peer| peer.index)
    }

    fn hint(matches: &[(usize, usize)]) -> Hint {
        Hint::of(matches.iter().map(|&(index, tokens)| Match { index, tokens }).collect())
    }

    fn preferred(matches: &[(usize, usize)], requests: &[usize]) -> Peer {
        let rules = rules(Policy::LmcacheOnly, Balancing::RoundRobin);
        choose(rules, &candidates(requests), &hint(matches), Some(0), 0).unwrap()
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
        assert_eq!(choose(always, &candidates(&[0, 900]), &hint(&[(1, 1)]), Some(0), 0), Some(followed(1)));
    }

    #[test]
    fn other_policies_do_not_follow_hints() {
        let rules = rules(Policy::RoundRobin, Balancing::RoundRobin);
        let peer = choose(rules, &candidates(&[0, 0]), &hint(&[(1, 9)]), Some(0), 0);
        assert_eq!(peer, Some(left(Why::Policy)));
    }

    #[test]
    fn the_balancers_pick_is_taken_when_it_is_a_candidate() {
        let all = candidates(&[9, 0]);
        let choose = |balancing, pick| {
            choose(rules(Policy::RoundRobin, balancing), &all, &Hint::none(Why::Off), pick, 0)
        };
        assert_eq!(choose(Balancing::RoundRobin, Some(0)).unwrap().reason, Reason::RoundRobin);
        assert_eq!(choose(Balancing::RoundRobin, Some(7)).unwrap().reason, Reason::Remaining);
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

    /// Requests, pending tokens and uncached tokens of each candidate.
    fn loaded(loads: &[(usize, usize, usize)]) -> Vec<Candidate> {
        let mut all = candidates(&loads.iter().map(|load| load.0).collect::<Vec<_>>());
        for (candidate, load) in all.iter_mut().zip(loads) {
            (candidate.pending_tokens, candidate.uncached_tokens) = (load.1, load.2);
        }
        all
    }

    fn weighed(policy: Policy, loads: &[(usize, usize, usize)]) -> (usize, Reason) {
        let rules = rules(policy, Balancing::LeastRequests);
        let peer = choose(rules, &loaded(loads), &Hint::none(Why::Off), Some(0), 0).unwrap();
        (peer.index, peer.reason)
    }

    #[test]
    fn the_least_predicted_marginal_cost_wins() {
        let pmc = |loads: &[_]| weighed(Policy::Pmc, loads);
        assert_eq!(pmc(&[(0, 0, 1000), (0, 0, 200)]), (1, Reason::Pmc), "what is cached");
        assert_eq!(pmc(&[(0, 100, 1000), (0, 901, 200)]), (0, Reason::Pmc), "what waits");
        assert_eq!(pmc(&[(10, 0, 300), (0, 0, 1199)]), (1, Reason::Pmc), "the delay of those that run");
        assert_eq!(pmc(&[(10, 0, 300), (0, 0, 1201)]), (0, Reason::Pmc));
    }

    #[test]
    fn equal_costs_go_to_fewer_requests_then_to_configuration_order() {
        for (loads, first) in [([(10, 0, 100), (0, 300, 100)], 1), ([(1, 7, 100), (1, 7, 100)], 0)] {
            assert_eq!(weighed(Policy::Pmc, &loads).0, first);
        }
    }

    #[test]
    fn lmetric_multiplies_tokens_and_requests() {
        let lmetric = |loads: &[_]| weighed(Policy::Lmetric, loads);
        assert_eq!(lmetric(&[(2, 100, 100), (0, 0, 599)]), (1, Reason::Lmetric));
        assert_eq!(lmetric(&[(2, 100, 100), (0, 0, 601)]), (0, Reason::Lmetric));
    }

    #[test]
    fn without_a_prompt_the_least_loaded_is_taken() {
        let none = [(3, 0, 0), (1, 9000, 0), (2, 0, 0)];
        assert_eq!(weighed(Policy::Pmc, &none), (1, Reason::LeastRequests));
        assert_eq!(weighed(Policy::Lmetric, &none), (1, Reason::LeastRequests));
    }

    #[test]
    fn a_hint_that_entered_the_cost_was_followed() {
        let rules = rules(Policy::Pmc, Balancing::LeastRequests);
        let all = loaded(&[(0, 0, 10), (0, 0, 5)]);
        assert_eq!(choose(rules, &all, &hint(&[(1, 5)]), None, 0).unwrap().hint_name(), FOLLOWED);
        let unhinted = choose(rules, &all, &Hint::none(Why::Timeout), None, 0).unwrap();
        assert_eq!((unhinted.index, unhinted.unhinted), (1, Some(Why::Timeout)));
    }

    /// How often each of the candidates is chosen over many numbers.
    fn spread(balancing: Balancing, all: &[Candidate]) -> Vec<usize> {
        let mut counts = vec![0; all.len()];
        let mut numbers = StdRng::seed_from_u64(1);
        for _ in 0..10_000 {
            let (rules, random) = (rules(Policy::RoundRobin, balancing), numbers.random());
            counts[choose(rules, all, &Hint::none(Why::Off), None, random).unwrap().index] += 1;
        }
        counts
    }

    #[test]
    fn chance_goes_by_weight() {
        let mut all = candidates(&[0, 0, 0]);
        all[1].weight = 3;
        let counts = spread(Balancing::Random, &all);
        for (count, expected) in counts.iter().zip([2000, 6000, 2000]) {
            assert!(count.abs_diff(expected) < 300, "{counts:?}");
        }
    }

    #[test]
    fn of_two_by_chance_the_less_loaded_is_taken() {
        let counts = spread(Balancing::PowerOfTwo, &candidates(&[9, 1, 5, 0]));
        assert_eq!(counts[0], 0, "the most loaded of all is never the better one");
        for (count, expected) in counts.iter().zip([0, 3333, 1667, 5000]) {
            assert!(count.abs_diff(expected) < 300, "{counts:?}");
        }
        assert_eq!(spread(Balancing::PowerOfTwo, &candidates(&[4])), [10_000]);
    }

    fn any_candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let load = (0_usize..200, 0_usize..1_000_000, 1_usize..1_000_000);
        prop::collection::vec(load, 1..64).prop_map(|loads| loaded(&loads))
    }

    proptest! {
        #[test]
        fn nobody_costs_less_than_the_chosen(all in any_candidates(), lmetric in any::<bool>()) {
            let policy = if lmetric { Policy::Lmetric } else { Policy::Pmc };
            let rules = rules(policy, Balancing::LeastRequests);
            let chosen = choose(rules, &all, &Hint::none(Why::Off), None, 0).unwrap().index;
            let least = cost(policy, &all[chosen]).unwrap();
            prop_assert!(all.iter().all(|candidate| cost(policy, candidate).unwrap() >= least));
        }

        #[test]
        fn more_to_do_never_makes_a_backend_the_choice(all in any_candidates(), at in 0_usize..64, more in 1_usize..9999) {
            let rules = rules(Policy::Pmc, Balancing::LeastRequests);
            let choose = |all: &[Candidate]| choose(rules, all, &Hint::none(Why::Off), None, 0).unwrap().index;
            let (chosen, at) = (choose(&all), at % all.len());
            let mut worse = all.clone();
            worse[at].pending_tokens += more;
            worse[at].uncached_tokens += more;
            prop_assert!(choose(&worse) == chosen || at == chosen);
        }

        #[test]
        fn nobody_has_fewer_requests_than_the_chosen(requests in prop::collection::vec(0_usize..50, 1..20), pick in 0_usize..25) {
            let chosen = balanced(Balancing::LeastRequests, &candidates(&requests), Some(pick)).unwrap();
            prop_assert_eq!(requests[chosen], *requests.iter().min().unwrap());
        }
    }
}
