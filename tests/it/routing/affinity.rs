//! Prompts go where they are cached.

use super::*;
use crate::clients::Http2;
use crate::streams::h2_chat;
use mocks::Fault;

/// Conversations that grow by a question and an answer with each turn.
struct Conversation(Vec<Value>);

impl Conversation {
    fn new(seed: u64) -> Self {
        Self(vec![json!({"role": "system", "content": text(seed, 3 * KIB)})])
    }

    fn turn(&mut self, number: u64) -> Value {
        for role in ["user", "assistant", "user"].into_iter().skip(usize::from(self.0.len() == 1)) {
            self.0.push(json!({"role": role, "content": text(1000 + number, 2 * KIB)}));
        }
        json!({"model": "tiny", "messages": self.0, "max_tokens": 3})
    }
}

/// One conversation per engine, each begun while the others are in work, then in turn.
async fn conversations(engine: EngineOptions, stream: bool, http2: bool) -> World {
    let world = world(vec![engine; 3], "policy: pmc").await;
    let mut all: Vec<_> = (0..3).map(Conversation::new).collect();
    let gates = hold_all(&world);
    let mut begun = Waiting::default();
    for (conversation, gate) in all.iter_mut().zip(&gates) {
        begun.send(&world, CHAT, &conversation.turn(0), gate, 1).await;
    }
    drop(gates);
    assert_eq!(begun.join().await, [0, 1, 2]);
    let mut client = Http2::connect(world.address).await;
    for number in 1..4 {
        for (at, conversation) in all.iter_mut().enumerate() {
            let turn = conversation.turn(number);
            let turn = if stream { streamed(turn) } else { turn };
            if http2 {
                let response = h2_chat(&mut client, &turn).await.unwrap();
                assert_eq!(response.headers()["x-served-by"], format!("vllm-{at}"));
                let mut body = response.into_body();
                while let Some(data) = body.data().await {
                    body.flow_control().release_capacity(data.unwrap().len()).unwrap();
                }
            } else {
                assert_eq!(chat(&world, &turn).await, at, "turn {number}");
            }
            world.idle().await;
        }
    }
    world
}

#[tokio::test]
async fn a_conversation_goes_back_to_its_engine_turn_by_turn() {
    for (stream, http2) in [(false, false), (true, false), (false, true), (true, true)] {
        conversations(engine(), stream, http2).await;
    }
}

#[tokio::test]
async fn what_is_predicted_of_a_conversation_is_what_the_engine_finds() {
    for stream in [false, true] {
        let world = conversations(caching(), stream, false).await;
        let turns = world.access_log().await;
        assert_eq!(turns.len(), 12);
        for turn in turns.iter().skip(3) {
            let [matched, cached, prompt] =
                ["matched_tokens", "cached_tokens", "prompt_tokens"].map(|key| turn[key].as_u64().unwrap());
            assert!(matched.abs_diff(cached) < 512 && cached > prompt / 3, "{turn}");
            assert_eq!(turn["reason"], "pmc");
        }
        for at in 0..3 {
            let weight = cluster(&world).trust.weight(at, kvway::state::trust::Source::Shadow);
            assert!(weight > 0.9, "{weight}");
        }
    }
}

#[tokio::test]
async fn requests_with_a_common_beginning_meet_before_it_is_computed() {
    let world = pmc(2).await;
    // One that is generated at each engine: a prompt costs more than its tokens wherever it goes. Too short to teach how fast
    // the engines are, which would let what waits there leave the books.
    for engine in &world.engines {
        engine.fail_next(1, Fault::StallAfter(2));
    }
    let mut generating = Vec::new();
    for seed in [1, 2] {
        let mut response = post(&world, CHAT, &streamed(about(&text(seed, 200)))).await;
        response.chunk().await.unwrap().unwrap();
        generating.push(response);
    }
    assert_eq!(
        [load(&world, 0), load(&world, 1)].map(|load| (load.requests, load.pending_tokens)),
        [(1, 0); 2]
    );
    let gates = hold_all(&world);
    let document = text(3, 40 * KIB);
    let mut waiting = Waiting::default();
    for (at, question) in ["who?", "when?", "where?"].into_iter().enumerate() {
        waiting.send(&world, CHAT, &about(&format!("{document} {question}")), &gates[0], at + 1).await;
    }
    let pending = pending_tokens(&world, 0);
    assert!((10_000..11_500).contains(&pending), "{pending}: its blocks are to be computed once");
    drop(gates);
    assert_eq!(waiting.join().await, [0, 0, 0]);
}

#[tokio::test]
async fn after_a_try_that_failed_the_prompt_is_where_it_was_answered() {
    for fault in [Fault::Status { code: 503, retry_after: None }, Fault::CloseIdle] {
        let world = pmc(2).await;
        world.engines[0].fail_next(1, fault.clone());
        if fault == Fault::CloseIdle {
            // On a connection that the engine closes when the next request comes.
            assert_eq!(chat(&world, &about("hello")).await, 0);
        }
        let question = about(&text(1, 8 * KIB));
        let engine = chat(&world, &question).await;
        world.idle().await;
        assert_eq!(engine, 1, "{fault:?}");
        assert_eq!(blocks(&world), [0, 8], "{fault:?}");
        assert_eq!(chat(&world, &question).await, 1, "{fault:?}");
    }
}
