//! Lookups and pins at a coordinator.

use super::{Cache, raw, recorded, soon, tokens};
use kvway::clients::breaker::State;
use kvway::clients::call::Reason;
use kvway::clients::lmcache::{Acted, Action, Placement};

const LOOKUP: &str = "/directory/lookup";
const PINS: &str = "/cache/pins";
const FILE: &str = "lmcache-0.5.6-coordinator.txt";

fn placements(expected: &[(&str, &str, usize)]) -> Vec<Placement> {
    let one = |(instance, location, tokens): &(&str, &str, usize)| Placement {
        instance: (*instance).to_owned(),
        location: (*location).to_owned(),
        tokens: *tokens,
    };
    expected.iter().map(one).collect()
}

async fn read(body: &str, count: u32) -> Result<Vec<Placement>, Reason> {
    let cache = Cache::coordinator();
    cache.server.fail_always_on(LOOKUP, raw(200, body));
    cache.client.look_up("tiny", None, &tokens(count), soon()).await.map_err(|error| error.reason)
}

/// A recorded body, without the status behind it.
fn body(title: &str) -> String {
    recorded(FILE, title).split("  [").next().unwrap().to_owned()
}

/// The recorded answer of a directory that knows the prompt, with the tokens that the record leaves out.
fn warm() -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden").join(FILE);
    let text = std::fs::read_to_string(path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("### warm lookup ")).unwrap();
    let all = |from: u32| format!("{:?}", (from..from + 256).collect::<Vec<u32>>());
    line.replace(r#"[0, 1, "..256"]"#, &all(0)).replace(r#"[256, 257, "..256"]"#, &all(256))
}

/// A directory of chunks, each with the instances that hold it.
fn directory(chunks: &[&[&str]]) -> String {
    let holder = |instance: &&str| format!(r#"{{"instance_id":"{instance}","tier":"l1","shared":false}}"#);
    let chunk = |holders: &&[&str]| {
        format!(r#"{{"placements":[{}]}}"#, holders.iter().map(holder).collect::<Vec<_>>().join(","))
    };
    let results = chunks.iter().map(chunk).collect::<Vec<_>>().join(",");
    format!(r#"{{"chunks":{},"results":[{results}]}}"#, chunks.len())
}

#[tokio::test]
async fn a_lookup_names_the_model_and_the_salt() {
    let cache = Cache::coordinator();
    for (salt, sent) in [(None, ""), (Some("tenant"), "tenant")] {
        let _not_there = cache.client.look_up("tiny", salt, &tokens(2), soon()).await;
        let expected =
            format!(r#"{{"token_ids":[0,1],"model_name":"tiny","world_size":1,"cache_salt":"{sent}"}}"#);
        assert_eq!(cache.sent(LOOKUP), expected);
    }
}

#[tokio::test]
async fn recorded_answers_are_read() {
    assert_eq!(read(&body("lookup cold"), 600).await, Ok(vec![]));
    assert_eq!(read(&warm(), 600).await, Ok(placements(&[("mp-0", "l1", 512)])));
    assert_eq!(
        read(&warm(), 300).await,
        Ok(placements(&[("mp-0", "l1", 300)])),
        "never more than the prompt"
    );
}

#[tokio::test]
async fn an_instance_holds_the_chunks_up_to_its_first_gap() {
    let chunks: &[&[&str]] = &[&["a", "b"], &["b", "c"], &["a", "b"], &["a"]];
    let expected = placements(&[("a", "l1", 256), ("b", "l1", 768)]);
    assert_eq!(read(&directory(chunks), 4 * 256).await, Ok(expected));
}

#[tokio::test]
async fn an_instance_that_holds_a_chunk_twice_holds_it_once() {
    let answer = r#"{"chunks":1,"results":[{"placements":[
        {"instance_id":"a","tier":"l1","backend":"dram"},{"instance_id":"a","tier":"l2","backend":"disk"}]}]}"#;
    assert_eq!(read(answer, 300).await, Ok(placements(&[("a", "l1", 256)])));
}

#[tokio::test]
async fn a_shared_pool_is_nobodys() {
    let answer = r#"{"chunks":1,"results":[{"placements":[{"instance_id":"a","tier":"l2","shared":true}]}]}"#;
    assert_eq!(read(answer, 300).await, Ok(vec![]));
}

#[tokio::test]
async fn a_chunk_whose_tokens_are_not_listed_is_as_long_as_it_can_be() {
    // Tokens of the prompt, whole chunks in it, tokens in the first of them.
    for (count, chunks, expected) in [(300, 1, 256), (100, 3, 33), (1000, 3, 256), (2000, 3, 501), (2, 3, 0)]
    {
        let mut holders: Vec<&[&str]> = vec![&[]; chunks];
        holders[0] = &["a"];
        let placed = read(&directory(&holders), count).await.unwrap();
        assert_eq!(
            placed.first().map_or(0, |placed| placed.tokens),
            expected,
            "{count} tokens, {chunks} chunks"
        );
    }
    let listed = r#"{"chunks":2,"results":[{"placements":[{"instance_id":"a","tier":"l1"}]},
        {"placements":[{"instance_id":"a","tier":"l1"}],"token_ids":[1,2,3]}]}"#;
    assert_eq!(read(listed, 7).await, Ok(placements(&[("a", "l1", 6)])), "as long as one that is listed");
}

#[tokio::test]
async fn an_answer_that_says_something_else_is_not_understood() {
    for body in ["", "{}", r#"{"chunks":1}"#, r#"{"chunks":1,"results":[{}]}"#, r#"{"layout_info":{}}"#] {
        assert!(matches!(read(body, 9).await, Err(Reason::Undecodable(_))), "{body}");
    }
}

#[tokio::test]
async fn a_pin_is_for_the_fleet_and_counts_in_tokens() {
    let cache = Cache::coordinator();
    let pin = Action::Pin { instance: "mp-0".to_owned(), location: "l1".to_owned() };
    cache.server.fail_next_on(PINS, 1, raw(200, &body("pins")));
    let acted = cache.client.act(&pin, "tiny", &tokens(600)).await;
    assert_eq!(acted, Ok(Acted { tokens: 512 }));
    assert!(cache.sent(PINS).ends_with(r#"599],"model_name":"tiny","world_size":1,"cache_salt":""}"#));
    cache.server.fail_next_on(PINS, 1, raw(200, r#"{"requested":2,"affected":0,"status":"pinned"}"#));
    assert_eq!(cache.client.act(&pin, "tiny", &tokens(600)).await, Ok(Acted { tokens: 0 }));
}

#[tokio::test]
async fn what_it_does_not_offer_is_not_asked_for() {
    let (instance, location) = ("a".to_owned(), "l1".to_owned());
    let actions = [
        Action::Compress {
            instance: instance.clone(),
            location: location.clone(),
            method: "cachegen".to_owned(),
        },
        Action::Evict { instance: instance.clone() },
        Action::Clear { instance, location },
    ];
    let cache = Cache::coordinator();
    for action in actions {
        let error = cache.client.act(&action, "tiny", &tokens(600)).await.unwrap_err();
        assert_eq!((error.operation, error.kind()), (action.name(), "unsupported"));
    }
    assert!(cache.server.stats().paths.is_empty());
    assert_eq!(cache.state(), State::Closed);
}
