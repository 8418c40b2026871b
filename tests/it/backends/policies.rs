//! How each policy spreads requests.

use super::*;

#[tokio::test]
async fn round_robin_spreads_exactly() {
    let world = world(3, "policy: round_robin", "").await;
    assert_eq!(chats(&world, 12).await, [200; 12]);
    assert_eq!(world.received(CHAT), [4, 4, 4]);
}

#[tokio::test]
async fn round_robin_gives_a_heavier_backend_its_share() {
    let engines = [1, 2, 3].map(|weight| (weight, Engine::start(EngineOptions::default()).unwrap()));
    let backend = |(weight, engine): &(usize, Engine)| {
        format!(r#"id: w{weight}, address: "{}", weight: {weight}"#, engine.address())
    };
    let world =
        World::with(Plan { engines: vec![], more: engines.iter().map(backend).collect(), ..Plan::default() })
            .await;
    assert_eq!(chats(&world, 18).await, [200; 18]);
    assert_eq!(engines.map(|(_, engine)| engine.stats().served(CHAT)), [3, 6, 9]);
}

#[tokio::test]
async fn random_reaches_all() {
    let world = world(3, "policy: random", "").await;
    assert_eq!(chats(&world, 60).await, [200; 60]);
    // Missing one of three by chance has a probability of 3 * (2/3)^60, about 10^-10.
    assert!(world.received(CHAT).iter().all(|&count| count > 0), "{:?}", world.received(CHAT));
}

#[tokio::test]
async fn consistent_hash_keeps_a_header_value_on_its_backend_and_moves_only_those_of_a_lost_one() {
    let world = world(3, "policy: consistent_hash\nhash_header: x-user", "").await;
    let users: Vec<String> = (0..24).map(|user| format!("user-{user}")).collect();
    let mut home = HashMap::new();
    for user in users.iter().chain(&users) {
        let engine = served_by(&world, user).await;
        assert_eq!(*home.entry(user).or_insert(engine), engine, "{user} moved");
    }
    let lost = home[&users[0]];
    assert!(home.values().any(|&engine| engine != lost), "all on one");
    world.backend(&format!("vllm-{lost}")).set_healthy(false);
    let mut new_homes = Vec::new();
    for user in &users {
        let engine = served_by(&world, user).await;
        assert_ne!(engine, lost);
        if home[user] == lost {
            new_homes.push(engine);
        } else {
            assert_eq!(engine, home[user], "{user} moved without need");
        }
    }
    assert!(!new_homes.is_empty());
    world.backend(&format!("vllm-{lost}")).set_healthy(true);
    for user in &users {
        assert_eq!(served_by(&world, user).await, home[user], "{user} did not return");
    }
}

#[tokio::test]
async fn consistent_hash_without_a_header_goes_by_the_clients_address() {
    let world = world(3, "policy: consistent_hash", "").await;
    assert_eq!(chats(&world, 9).await, [200; 9]);
    let mut received = world.received(CHAT);
    received.sort_unstable();
    assert_eq!(received, [0, 0, 9]);
}

#[tokio::test]
async fn least_requests_avoids_the_busy_backend() {
    let world = world(2, "policy: least_requests", "").await;
    let gates: Vec<_> = world.engines.iter().map(|engine| engine.hold_headers()).collect();
    let two = async { tokio::join!(world.chat(), world.chat()) };
    let the_rest = async {
        // The two have gone to different engines, since the second found the first one busy.
        for gate in &gates {
            gate.waiting(1).await;
        }
        let mut gates = gates.into_iter();
        gates.next().unwrap().release();
        world.engines[0].until(|stats| stats.served(CHAT) == 1).await;
        crate::world::until(|| world.backend("vllm-0").load(tokio::time::Instant::now()).requests == 0).await;
        assert_eq!(chats(&world, 5).await, [200; 5]);
        assert_eq!(world.received(CHAT), [6, 1], "all went to the idle one");
        gates.for_each(mocks::Gate::release);
    };
    let ((one, other), ()) = tokio::join!(two, the_rest);
    assert_eq!((one.status(), other.status()), (StatusCode::OK, StatusCode::OK));
}
