//! Which backend gets a request: policies, health, retries, names, and how connections to backends are kept.

mod connections;
mod health;
mod names;
mod policies;
mod retries;
mod silence;

use crate::clients::sha256;
use crate::world::{Plan, World, chat, reserve};
use http::StatusCode;
use mocks::{Engine, EngineOptions, Fault};
use std::collections::HashMap;
use std::net::SocketAddr;
use tokio::net::TcpSocket;

const CHAT: &str = "/v1/chat/completions";
const OVERLOADED: Fault = Fault::Status { code: 503, retry_after: None };

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
    world.metric(&format!(r#"kvway_retries_total{{cause="{cause}",cluster="llama"}}"#))
}

fn refused(world: &World, reason: &str) -> f64 {
    world.metric(&format!(r#"kvway_retries_refused_total{{cluster="llama",reason="{reason}"}}"#))
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
