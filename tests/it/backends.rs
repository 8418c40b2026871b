//! Which backend gets a request: policies, health, retries, names, and how connections to backends are kept.

use crate::world::{Plan, World, chat, reserve};
use http::StatusCode;
use mocks::{Engine, EngineOptions, Fault};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use tokio::net::TcpSocket;

const CHAT: &str = "/v1/chat/completions";
const OVERLOADED: Fault = Fault::Status {
    code: 503,
    retry_after: None,
};

/// A world of `count` engines.
async fn world(count: usize, cluster: &str, sections: &str) -> World {
    World::with(Plan {
        engines: vec![EngineOptions::default(); count],
        cluster: cluster.to_owned(),
        sections: sections.to_owned(),
        ..Plan::default()
    })
    .await
}

/// A world of `engines` engines and one backend, `down`, at whose address nothing listens.
async fn one_down(engines: usize, sections: &str) -> (TcpSocket, World) {
    let (socket, address) = reserve();
    let world = World::with(Plan {
        engines: vec![EngineOptions::default(); engines],
        more: vec![format!(r#"id: down, address: "{address}""#)],
        sections: sections.to_owned(),
        ..Plan::default()
    })
    .await;
    (socket, world)
}

/// Sends chat requests one after the other; the statuses of the answers.
async fn chats(world: &World, count: usize) -> Vec<u16> {
    let mut statuses = Vec::new();
    for _ in 0..count {
        let response = world.chat().await;
        statuses.push(response.status().as_u16());
        // To the end, so that the connection to the engine is free again.
        drop(response.bytes().await.unwrap());
    }
    statuses
}

/// Sends a chat request for `user`; which engine answered it.
async fn served_by(world: &World, user: &str) -> usize {
    let before = world.received(CHAT);
    let request = world.client.post(world.url(CHAT)).json(&chat("x"));
    let response = request.header("x-user", user).send().await.unwrap();
    assert_eq!(response.status(), 200);
    drop(response.bytes().await.unwrap());
    let after = world.received(CHAT);
    let changed: Vec<usize> = (0..after.len()).filter(|&at| after[at] != before[at]).collect();
    assert_eq!(changed.len(), 1, "{before:?} {after:?}");
    changed[0]
}

/// The retries made for `cause`.
fn retries(world: &World, cause: &str) -> f64 {
    world.metric(&format!(
        r#"kvway_retries_total{{cause="{cause}",cluster="llama"}}"#
    ))
}

fn refused(world: &World, reason: &str) -> f64 {
    world.metric(&format!(
        r#"kvway_retries_refused_total{{cluster="llama",reason="{reason}"}}"#
    ))
}

/// Two engines of which each is to be tried at most once: the answer's status and the tries at each.
async fn tries_when_all_meet(fault: &Fault, sections: &str) -> (u16, u64) {
    let world = world(2, "", sections).await;
    for engine in &world.engines {
        engine.fail_always(Some(fault.clone()));
    }
    let status = world.chat().await.status().as_u16();
    (status, world.received(CHAT).iter().sum())
}

mod policies {
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
            format!(
                r#"id: w{weight}, address: "{}", weight: {weight}"#,
                engine.address()
            )
        };
        let world = World::with(Plan {
            engines: vec![],
            more: engines.iter().map(backend).collect(),
            ..Plan::default()
        })
        .await;
        assert_eq!(chats(&world, 18).await, [200; 18]);
        assert_eq!(engines.map(|(_, engine)| engine.stats().served(CHAT)), [3, 6, 9]);
    }

    #[tokio::test]
    async fn random_reaches_all() {
        let world = world(3, "policy: random", "").await;
        assert_eq!(chats(&world, 60).await, [200; 60]);
        // Missing one of three by chance has a probability of 3 * (2/3)^60, about 10^-10.
        assert!(
            world.received(CHAT).iter().all(|&count| count > 0),
            "{:?}",
            world.received(CHAT)
        );
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
            crate::world::until(|| world.backend("vllm-0").load().requests == 0).await;
            assert_eq!(chats(&world, 5).await, [200; 5]);
            assert_eq!(world.received(CHAT), [6, 1], "all went to the idle one");
            gates.for_each(mocks::Gate::release);
        };
        let ((one, other), ()) = tokio::join!(two, the_rest);
        assert_eq!((one.status(), other.status()), (StatusCode::OK, StatusCode::OK));
    }
}

mod health {
    use super::*;

    #[tokio::test]
    async fn a_backend_leaves_after_its_failures_and_returns_after_its_successes() {
        let world = world(2, "health: {failures: 2, successes: 2}", "").await;
        let sick = world.backend("vllm-0");
        world.engines[0].set_health(false);
        world.check_health().await;
        assert!(sick.is_healthy(), "one failure is not enough");
        world.check_health().await;
        assert!(!sick.is_healthy());
        assert_eq!(chats(&world, 10).await, [200; 10]);
        assert_eq!(world.received(CHAT), [0, 10]);
        world.engines[0].set_health(true);
        world.check_health().await;
        assert!(!sick.is_healthy(), "one success is not enough");
        world.check_health().await;
        assert!(sick.is_healthy());
        assert_eq!(chats(&world, 10).await, [200; 10]);
        assert_eq!(world.received(CHAT), [5, 15]);
    }

    #[tokio::test]
    async fn a_good_check_between_two_bad_ones_starts_the_count_again() {
        let world = world(1, "health: {failures: 2}", "").await;
        for healthy in [false, true, false, true] {
            world.engines[0].set_health(healthy);
            world.check_health().await;
            assert!(world.backend("vllm-0").is_healthy());
        }
    }

    #[tokio::test]
    async fn an_engine_that_never_answers_its_check_is_unhealthy() {
        let world = world(1, "health: {failures: 1, timeout: 300ms}", "").await;
        let gate = world.engines[0].hold_path("/health");
        world.check_health().await;
        assert!(!world.backend("vllm-0").is_healthy());
        gate.release();
        world.check_health().await;
        assert!(world.backend("vllm-0").is_healthy());
    }

    #[tokio::test]
    async fn the_check_asks_for_the_configured_path_with_the_backends_host() {
        let world = world(1, "health: {path: /ping}", "").await;
        world.check_health().await;
        let received = world.engines[0].received();
        assert_eq!(
            (received.len(), received[0].path_and_query.as_str()),
            (1, "/ping")
        );
        let host = world.engines[0].address().to_string();
        assert_eq!(received[0].header("host"), Some(host.as_str()));
        assert!(world.backend("vllm-0").is_healthy());
    }

    #[tokio::test]
    async fn with_one_of_two_down_every_request_is_answered() {
        let (_nobody, world) = one_down(1, "").await;
        assert_eq!(chats(&world, 30).await, [200; 30]);
        assert!(
            retries(&world, "connect") >= 1.0,
            "some were tried at the one that is down"
        );
    }

    #[tokio::test]
    async fn when_all_are_down_the_client_is_told_and_served_after_their_return() {
        let places = [reserve(), reserve()];
        let backend =
            |(_, address): &(_, SocketAddr)| format!(r#"id: "{}", address: "{address}""#, address.port());
        let mut world = World::with(Plan {
            engines: vec![],
            more: places.iter().map(backend).collect(),
            cluster: "health: {failures: 1}".to_owned(),
            ..Plan::default()
        })
        .await;
        assert_eq!(world.chat().await.status(), 502, "not known to be down yet");
        world.check_health().await;
        let response = world.chat().await;
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "1");
        for (_, address) in &places {
            let options = EngineOptions::default();
            world.engines.push(Engine::start_at(*address, options).unwrap());
        }
        world.check_health().await;
        assert_eq!(chats(&world, 4).await, [200; 4]);
        assert_eq!(world.received(CHAT), [2, 2]);
    }
}

mod retries {
    use super::*;

    #[tokio::test]
    async fn a_status_without_retry_after_is_tried_on_another_backend() {
        for code in [502, 503, 504] {
            let world = world(2, "", "").await;
            let retry_after = None;
            world.engines[0].fail_always(Some(Fault::Status { code, retry_after }));
            assert_eq!(chats(&world, 4).await, [200; 4]);
            let failed = world.received(CHAT)[0];
            assert!(failed >= 1);
            assert_eq!(world.engines[1].stats().served(CHAT), 4);
            assert_eq!(retries(&world, &code.to_string()).to_string(), failed.to_string());
        }
    }

    #[tokio::test]
    async fn an_early_status_is_tried_on_another_backend_with_the_whole_body() {
        let world = world(2, "", "").await;
        let text = "x".repeat(1024 * 1024);
        world.engines[0].fail_always(Some(Fault::EarlyStatus { code: 503 }));
        for _ in 0..2 {
            let request = world.client.post(world.url(CHAT)).json(&chat(&text));
            assert_eq!(request.send().await.unwrap().status(), 200);
        }
        assert!(world.received(CHAT)[0] >= 1);
        assert_bodies(&world, chat(&text).to_string().as_bytes(), 2);
    }

    fn sha256(bytes: &[u8]) -> String {
        Sha256::digest(bytes).iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").unwrap();
            hex
        })
    }

    /// Every body that engines have read is `body`, and there are `count` of them.
    fn assert_bodies(world: &World, body: &[u8], count: usize) {
        let expected = sha256(body);
        let received: Vec<_> = world
            .engines
            .iter()
            .flat_map(|engine| engine.received())
            .collect();
        assert_eq!(received.len(), count);
        for one in received {
            assert_eq!((one.body_bytes, &one.body_sha256), (body.len(), &expected));
            assert_eq!(
                one.header("content-length"),
                Some(body.len().to_string().as_str())
            );
        }
    }

    #[tokio::test]
    async fn every_try_gets_the_same_bytes() {
        for bytes in [0, 1, 65_536, 65_537, 1024 * 1024] {
            let world = world(3, "", "").await;
            for engine in &world.engines {
                engine.fail_always(Some(OVERLOADED));
            }
            let body: Vec<u8> = (0..bytes).map(|at: u32| (at % 251) as u8).collect();
            let request = world.client.post(world.url(CHAT)).body(body.clone());
            assert_eq!(request.send().await.unwrap().status(), 503);
            assert_bodies(&world, &body, 3);
        }
    }

    #[tokio::test]
    async fn a_backend_that_asks_for_a_pause_gets_it_and_the_client_is_told() {
        let world = world(2, "", "").await;
        let retry_after = Some(7);
        for engine in &world.engines {
            engine.fail_always(Some(Fault::Status {
                code: 503,
                retry_after,
            }));
        }
        let response = world.chat().await;
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "7");
        assert_eq!(world.received(CHAT).iter().sum::<u64>(), 1);
    }

    #[tokio::test]
    async fn a_status_that_says_something_about_the_request_is_passed_on_at_once() {
        for code in [400, 422, 429, 500, 501, 505] {
            let retry_after = None;
            let fault = Fault::Status { code, retry_after };
            assert_eq!(tries_when_all_meet(&fault, "").await, (code, 1), "{code}");
        }
    }

    #[tokio::test]
    async fn a_status_that_is_not_configured_is_passed_on_at_once() {
        assert_eq!(
            tries_when_all_meet(&OVERLOADED, "retries: {on: [connect, 502]}").await,
            (503, 1)
        );
    }

    #[tokio::test]
    async fn a_missed_first_byte_is_not_repeated_since_the_engine_is_at_work() {
        let short = "timeouts: {first_byte: 100ms}";
        assert_eq!(
            tries_when_all_meet(&Fault::StallBeforeResponse, short).await,
            (504, 1)
        );
    }

    #[tokio::test]
    async fn an_engine_that_missed_the_first_byte_is_told_to_stop() {
        let world = world(1, "", "timeouts: {first_byte: 100ms}").await;
        world.engines[0].fail_next(1, Fault::StallBeforeResponse);
        assert_eq!(world.chat().await.status(), 504);
        world.engines[0].until(|stats| stats.cancelled(CHAT) == 1).await;
        assert_eq!(world.last_entry().await["outcome"], "backend_timeout");
    }

    #[tokio::test]
    async fn after_a_byte_of_the_answer_nothing_is_repeated() {
        let answer = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 10\r\n\r\nshort";
        let world = world(2, "", "retries: {on: [connect, stale, reset, 502, 503, 504]}").await;
        for engine in &world.engines {
            engine.fail_always(Some(Fault::Raw(answer.into())));
        }
        let response = world.chat().await;
        assert!(response.text().await.is_err(), "the answer is not complete");
        assert_eq!(world.received(CHAT).iter().sum::<u64>(), 1);
    }

    #[tokio::test]
    async fn what_is_not_http_is_answered_502_and_not_repeated() {
        assert_eq!(tries_when_all_meet(&Fault::Garbage, "").await, (502, 1));
    }

    #[tokio::test]
    async fn a_fresh_connection_that_breaks_is_repeated_only_where_configured() {
        for fault in [Fault::ResetBeforeResponse, Fault::CloseBeforeResponse] {
            assert_eq!(tries_when_all_meet(&fault, "").await, (502, 1));
            let world = world(2, "", "retries: {on: [reset]}").await;
            world.engines[0].fail_always(Some(fault));
            assert_eq!(chats(&world, 4).await, [200; 4]);
            assert!(retries(&world, "reset") >= 1.0);
        }
    }

    #[tokio::test]
    async fn tries_are_bounded_by_tries_max() {
        for (tries_max, tries) in [(1, 1), (2, 2), (5, 4)] {
            let world = world(4, "", &format!("retries: {{tries_max: {tries_max}}}")).await;
            for engine in &world.engines {
                engine.fail_always(Some(OVERLOADED));
            }
            assert_eq!(world.chat().await.status(), 503);
            assert_eq!(world.received(CHAT).iter().sum::<u64>(), tries);
            let reason = if tries_max < 4 { "tries" } else { "backends" };
            assert_eq!(refused(&world, reason).to_string(), "1");
        }
    }

    #[tokio::test]
    async fn the_last_answer_passes_as_it_is() {
        let world = world(2, "", "").await;
        for engine in &world.engines {
            engine.fail_always(Some(OVERLOADED));
        }
        let response = world.chat().await;
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["content-type"], "application/json");
        assert_eq!(
            response.text().await.unwrap(),
            r#"{"error":{"message":"injected fault","type":"InternalServerError","param":null,"code":503}}"#
        );
        let entry = world.last_entry().await;
        assert_eq!(
            (&entry["tries"], &entry["retried"]),
            (&2.into(), &vec!["503"].into())
        );
    }

    #[tokio::test]
    async fn a_connection_that_cannot_be_made_is_not_logged_as_repeated_when_it_was_not() {
        let (_nobody, world) = one_down(0, "").await;
        assert_eq!(world.chat().await.status(), 502);
        let entry = world.last_entry().await;
        assert_eq!(
            (&entry["tries"], &entry["retried"]),
            (&1.into(), &serde_json::json!([]))
        );
    }

    #[tokio::test]
    async fn a_stale_connection_costs_no_request() {
        let world = world(2, "", "").await;
        world.engines[0].fail_next(1, Fault::CloseIdle);
        assert_eq!(chats(&world, 6).await, [200; 6]);
        assert_eq!(retries(&world, "stale").to_string(), "1");
        let served: u64 = world
            .engines
            .iter()
            .map(|engine| engine.stats().served(CHAT))
            .sum();
        assert_eq!(served, 6, "each was answered once");
    }

    #[tokio::test]
    async fn the_only_backend_is_tried_again_after_a_stale_connection() {
        let world = world(1, "", "").await;
        world.engines[0].fail_next(1, Fault::CloseIdle);
        assert_eq!(chats(&world, 1).await, [200]);
        let body = "x".repeat(1024 * 1024);
        let request = world.client.post(world.url(CHAT)).json(&chat(&body));
        assert_eq!(request.send().await.unwrap().status(), 200);
        assert_eq!(retries(&world, "stale").to_string(), "1");
        let received = world.engines[0].received();
        assert_eq!(received.len(), 2, "the second try was the first that was read");
        assert_eq!(received[1].body_bytes, chat(&body).to_string().len());
        assert_ne!(received[0].connection_id, received[1].connection_id);
    }

    #[tokio::test]
    async fn when_every_connection_is_stale_a_fresh_one_is_made() {
        let world = world(2, "", "").await;
        for engine in &world.engines {
            engine.fail_next(1, Fault::CloseIdle);
        }
        assert_eq!(chats(&world, 3).await, [200; 3]);
        assert_eq!(retries(&world, "stale").to_string(), "2");
        let entry = world.last_entry().await;
        assert_eq!(
            (&entry["tries"], &entry["retried"]),
            (&3.into(), &vec!["stale", "stale"].into())
        );
    }

    #[tokio::test]
    async fn retries_beyond_their_share_are_refused_and_counted() {
        let world = world(2, "", "retries: {budget_ratio: 0}").await;
        world.engines[0].fail_always(Some(OVERLOADED));
        let statuses = chats(&world, 24).await;
        let passed_on = statuses.iter().filter(|&&status| status == 503).count();
        assert_eq!(retries(&world, "503").to_string(), "10", "the reserve");
        assert!(passed_on >= 1, "{statuses:?}");
        assert_eq!(refused(&world, "budget").to_string(), passed_on.to_string());
    }

    #[tokio::test]
    async fn connect_failures_do_not_spend_the_share() {
        let (_nobody, world) = one_down(1, "retries: {budget_ratio: 0}").await;
        assert_eq!(chats(&world, 30).await, [200; 30]);
        assert!(retries(&world, "connect") > 10.0);
    }
}

mod silence {
    use super::*;
    use std::time::Duration;
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::JoinSet;

    /// Far more than the configured 500 ms, far less than it takes the system to give a connection up.
    const IN_TIME: Duration = Duration::from_secs(10);

    /// A listener whose queue is full, so that nobody can connect, and those who fill it.
    async fn full_listener() -> (TcpListener, JoinSet<Option<TcpStream>>) {
        let (socket, address) = reserve();
        let listener = socket.listen(1).unwrap();
        let mut queue = JoinSet::new();
        for _ in 0..8 {
            queue.spawn(async move { TcpStream::connect(address).await.ok() });
        }
        // Two fit; who connects now waits for ever.
        for _ in 0..2 {
            assert!(queue.join_next().await.unwrap().unwrap().is_some());
        }
        (listener, queue)
    }

    #[tokio::test]
    async fn a_backend_that_takes_no_connection_is_passed_over_in_time() {
        let (silent, _queue) = full_listener().await;
        let address = silent.local_addr().unwrap();
        let world = World::with(Plan {
            engines: vec![EngineOptions::default()],
            more: vec![format!(r#"id: silent, address: "{address}""#)],
            sections: "timeouts: {connect: 500ms}".to_owned(),
            ..Plan::default()
        })
        .await;
        let answered = tokio::time::timeout(IN_TIME, chats(&world, 2)).await;
        assert_eq!(answered.unwrap(), [200; 2]);
        assert!(retries(&world, "connect") >= 1.0);
    }

    #[tokio::test]
    async fn when_no_backend_takes_a_connection_the_answer_is_504() {
        let (silent, _queue) = full_listener().await;
        let address = silent.local_addr().unwrap();
        let world = World::with(Plan {
            engines: vec![],
            more: vec![format!(r#"id: silent, address: "{address}""#)],
            sections: "timeouts: {connect: 500ms}".to_owned(),
            ..Plan::default()
        })
        .await;
        let answered = tokio::time::timeout(IN_TIME, world.chat()).await;
        assert_eq!(answered.unwrap().status(), 504);
        let entry = world.last_entry().await;
        assert_eq!(entry["outcome"], "backend_timeout");
    }
}

mod names {
    use super::*;

    async fn named(more: Vec<String>, engines: usize) -> World {
        World::with(Plan {
            engines: vec![EngineOptions::default(); engines],
            more,
            ..Plan::default()
        })
        .await
    }

    #[tokio::test]
    async fn a_name_is_resolved() {
        let engine = Engine::start(EngineOptions::default()).unwrap();
        let port = engine.address().port();
        let world = named(vec![format!(r#"id: a, address: "localhost:{port}""#)], 0).await;
        assert_eq!(world.backend("a").resolved(), Some(engine.address()));
        assert_eq!(chats(&world, 2).await, [200; 2]);
        world.check_health().await;
        let host = format!("localhost:{port}");
        let received = engine.received();
        assert_eq!(received.len(), 3);
        for request in received {
            assert_eq!(request.header("host"), Some(host.as_str()));
        }
    }

    #[tokio::test]
    async fn a_name_that_does_not_resolve_leaves_the_others_to_serve() {
        let world = named(
            vec![r#"id: lost, address: "no-such-host.invalid:1""#.to_owned()],
            2,
        )
        .await;
        assert_eq!(world.backend("lost").resolved(), None);
        assert_eq!(chats(&world, 8).await, [200; 8]);
        assert_eq!(world.received(CHAT), [4, 4]);
        assert_eq!(retries(&world, "connect").to_string(), "0");
    }

    #[tokio::test]
    async fn without_any_address_the_answer_is_503() {
        let world = named(
            vec![r#"id: lost, address: "no-such-host.invalid:1""#.to_owned()],
            0,
        )
        .await;
        assert_eq!(world.chat().await.status(), 503);
    }
}

mod connections {
    use super::*;

    #[tokio::test]
    async fn a_connection_is_used_again() {
        let world = world(1, "", "").await;
        assert_eq!(chats(&world, 5).await, [200; 5]);
        let received = world.engines[0].received();
        assert!(received.iter().all(|request| request.connection_id == 1));
    }

    #[tokio::test]
    async fn an_idle_connection_is_closed_by_the_gateway() {
        let world = world(1, "", "timeouts: {upstream_idle: 100ms}").await;
        assert_eq!(chats(&world, 1).await, [200]);
        world.engines[0].until(|stats| stats.connections_open == 0).await;
        assert_eq!(chats(&world, 1).await, [200]);
        assert_eq!(retries(&world, "stale").to_string(), "0");
        let received = world.engines[0].received();
        assert_ne!(received[0].connection_id, received[1].connection_id);
    }

    #[tokio::test]
    async fn a_connection_is_not_shared_between_backends() {
        let world = world(2, "", "").await;
        assert_eq!(chats(&world, 8).await, [200; 8]);
        for engine in &world.engines {
            assert_eq!(engine.stats().connections_accepted, 1);
        }
    }
}
