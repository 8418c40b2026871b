//! From a demand to a backend that is chosen, booked and told.

use super::Stage;
use super::reading::{self, PATH, SIZES};
use kvway::app::App;
use kvway::config::{Balancing, Policy};
use kvway::proxy::cluster::Cluster;
use kvway::proxy::decision::Decision;
use kvway::proxy::demand::Demand;
use kvway::proxy::hint::{Hint, Why};
use kvway::proxy::peer::{self, Rules};
use kvway::proxy::prompt;
use kvway::state::recent::Recent;
use std::hint::black_box;
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;
use tokio::time::Instant;

const BACKENDS: [usize; 2] = [8, 64];
/// To make one takes long, so all stages share them.
static APPS: [LazyLock<App>; 2] =
    [LazyLock::new(|| reading::app(BACKENDS[0])), LazyLock::new(|| reading::app(BACKENDS[1]))];

fn none() -> Hint {
    Hint::none(Why::Off)
}

/// A cluster of which one backend holds the whole prompt, and another one half of it.
fn cluster(backends: usize, demand: &Demand) -> Arc<Cluster> {
    let app = BACKENDS.iter().zip(&APPS).find(|(count, _)| **count == backends).expect("one of them").1;
    let cluster = Arc::clone(&app.clusters()[0]);
    cluster.blocks.expect(1, &demand.keys, demand.block_tokens).confirm();
    let half = demand.keys.iter().take(demand.keys.len() / 2).copied().collect();
    cluster.blocks.expect(2, &half, demand.block_tokens).confirm();
    cluster
}

pub(super) fn stages() -> Vec<Stage> {
    let mut stages = Vec::new();
    for backends in BACKENDS {
        for kib in SIZES {
            let demand = Demand::of(&reading::prompt(kib), None, 0.25);
            let cluster = cluster(backends, &demand);
            let name = format!("stage/held/{backends}-backends/{kib}KiB");
            stages.push(Stage::new(name, move || cluster.blocks.held(black_box(&demand.keys))));
        }
        stages.push(candidates(backends));
        stages.extend(policies(backends));
        stages.push(decision(backends));
    }
    for kib in SIZES {
        stages.extend(books(kib));
    }
    for kib in SIZES {
        stages.push(whole(kib));
    }
    stages
}

fn candidates(backends: usize) -> Stage {
    let demand = Demand::of(&reading::prompt(16), None, 0.25);
    let (cluster, hint, now) = (cluster(backends, &demand), none(), Instant::now());
    let name = format!("stage/candidates/{backends}-backends/16KiB");
    Stage::new(name, move || cluster.candidates(&[], false, black_box(&demand), &hint, now))
}

fn policies(backends: usize) -> impl Iterator<Item = Stage> {
    let rules = [
        ("pmc", Policy::Pmc, Balancing::LeastRequests),
        ("lmetric", Policy::Lmetric, Balancing::LeastRequests),
        ("least_requests", Policy::LeastRequests, Balancing::LeastRequests),
        ("power_of_two", Policy::PowerOfTwo, Balancing::PowerOfTwo),
        ("consistent_hash", Policy::ConsistentHash, Balancing::ConsistentHash),
        ("round_robin", Policy::RoundRobin, Balancing::RoundRobin),
        ("random", Policy::Random, Balancing::Random),
    ];
    rules.into_iter().map(move |(name, policy, balancing)| {
        let demand = Demand::of(&reading::prompt(16), None, 0.25);
        let rules = Rules { policy, balancing, preferred_in_flight_max: 0.0 };
        let candidates = cluster(backends, &demand).candidates(&[], false, &demand, &none(), Instant::now());
        let hint = none();
        let name = format!("stage/choose/{name}/{backends}-backends");
        Stage::new(name, move || {
            peer::choose(rules, black_box(&candidates), &hint, Some(3), 0x1234_5678_9abc_def0)
        })
    })
}

/// A choice with Pingora's pick, kept among the last decisions.
fn decision(backends: usize) -> Stage {
    let prompt = reading::prompt(16);
    let demand = Demand::of(&prompt, None, 0.25);
    let (cluster, hint, now) = (cluster(backends, &demand), none(), Instant::now());
    let candidates = cluster.candidates(&[], false, &demand, &hint, now);
    let (recent, time) = (Recent::new(2), SystemTime::now());
    let name = format!("stage/choose-and-keep/{backends}-backends");
    Stage::new(name, move || {
        let choice = cluster.choose(candidates.clone(), &hint, &[], 7);
        recent.record(|| {
            let (cluster, model) = (Arc::clone(&cluster), prompt.model.clone());
            let decision = Decision::new(cluster, model, &demand, hint.clone(), choice, time);
            Decision { request_id: Some("0193e2a0-0000-7000-8000-000000000000".into()), ..decision }
        });
    })
}

/// A known prompt is sent, and its first token is back; and one that is sent and fails.
fn books(kib: usize) -> [Stage; 2] {
    let demand = Demand::of(&reading::prompt(kib), None, 0.25);
    let cluster = cluster(8, &demand);
    let (other, sent) = (Arc::clone(&cluster), demand.clone());
    [
        Stage::new(format!("stage/expect-and-confirm/{kib}KiB"), move || {
            cluster.blocks.expect(1, black_box(&sent.keys), sent.block_tokens).confirm();
        }),
        Stage::new(format!("stage/expect-and-withdraw/{kib}KiB"), move || {
            drop(other.blocks.expect(3, black_box(&demand.keys), demand.block_tokens));
        }),
    ]
}

/// All of it, from the body to the first token.
fn whole(kib: usize) -> Stage {
    let (body, reading) = (reading::plain(kib), reading::blocks());
    let cluster = cluster(8, &Demand::of(&reading::prompt(kib), None, 0.25));
    let (hint, now, time, recent) = (none(), Instant::now(), SystemTime::now(), Recent::new(2));
    Stage::new(format!("stage/all/{kib}KiB"), move || {
        let prompt = prompt::parse(black_box(&body), PATH, &reading.of_tenant(None));
        let demand = cluster.demand(&prompt, &hint, body.len());
        let candidates = cluster.candidates(&[], false, &demand, &hint, now);
        let choice = cluster.choose(candidates, &hint, &[], 7);
        let chosen = choice.chosen();
        recent.record(|| {
            Decision::new(Arc::clone(&cluster), prompt.model.clone(), &demand, hint.clone(), choice, time)
        });
        let (peer, candidate) = chosen.expect("a backend");
        let mut lease = cluster.fleet.backends()[peer.index].lease(candidate.uncached_tokens, true, now);
        let mut expected = cluster.blocks.expect(peer.index, &demand.keys, demand.block_tokens);
        lease.first_token(now);
        expected.confirm();
    })
}
