//! The blocks of prompts in the access log: which are the same, and nothing else of them.

use super::*;

const ON: &str = ", block_keys: true";

async fn logging(cluster: &str, access: &'static str, log: &'static str) -> World {
    World::with(Plan { cluster: cluster.to_owned(), access, log, ..Plan::default() }).await
}

fn keys(entry: &Value) -> Vec<&str> {
    entry["block_keys"].as_array().unwrap().iter().map(|key| key.as_str().unwrap()).collect()
}

#[tokio::test]
async fn equal_beginnings_of_prompts_have_equal_keys_whatever_the_policy() {
    for policy in ["pmc", "round_robin", "lmcache_only"] {
        let world = logging(&format!("policy: {policy}"), "json", ON).await;
        let end = "x".repeat(512);
        let body = long_chat("words ", &end);
        let longer = long_chat("words ", &format!("{end}{}", "and so on ".repeat(250)));
        for body in [&body, &longer, &body, &long_chat("other ", "")] {
            send(&world, body).await;
        }
        let log = world.access_log().await;
        let [first, longer, again, other] = log.iter().map(keys).collect::<Vec<_>>().try_into().unwrap();
        assert_eq!((first.len(), longer.len()), (8, 10), "whole blocks of 1 KiB");
        assert_eq!((first.as_slice(), &first), (&longer[..8], &again));
        assert!(longer.iter().skip(8).all(|key| !first.contains(key)));
        assert!(other.iter().all(|key| !first.contains(key) && !longer.contains(key)));
        for key in first {
            assert!(key.len() == 16 && key.bytes().all(|byte| b"0123456789abcdef".contains(&byte)), "{key}");
        }
        for entry in &log {
            let tokens = count(&entry["prefix_tokens"]);
            let blocks = keys(entry).len() * count(&entry["block_tokens"]);
            assert!((blocks..blocks + 2 * count(&entry["block_tokens"])).contains(&tokens), "{entry}");
            for field in ["time", "prompt_tokens", "completion_tokens", "total_ms", "outcome", "status"] {
                assert!(!entry[field].is_null(), "{field}: {entry}");
            }
        }
    }
}

#[tokio::test]
async fn another_process_has_other_keys() {
    let mut told = Vec::new();
    for _ in 0..2 {
        let world = logging("policy: pmc", "json", ON).await;
        send(&world, &long_chat("words ", "")).await;
        told.push(world.last_entry().await);
    }
    let (one, other) = (keys(&told[0]), keys(&told[1]));
    assert!(one.len() == 8 && one.iter().all(|key| !other.contains(key)), "{told:?}");
}

#[tokio::test]
async fn a_list_of_blocks_is_bounded_and_begins_at_the_start() {
    let world = logging("policy: pmc", "json", ", block_keys: true, block_keys_max: 2").await;
    send(&world, &long_chat("words ", "")).await;
    send(&world, &long_chat("words ", "another end")).await;
    let log = world.access_log().await;
    assert_eq!((keys(&log[0]).len(), keys(&log[0])), (2, keys(&log[1])));
}

#[tokio::test]
async fn without_them_only_the_tokens_are_told() {
    let world = logging("policy: pmc", "json", "").await;
    send(&world, &long_chat("words ", "")).await;
    world.client.get(world.url("/v1/other")).send().await.unwrap();
    let log = world.access_log().await;
    assert!(log[0].get("block_keys").is_none(), "{}", log[0]);
    assert_eq!(log[0]["block_tokens"], 256);
    assert!((2048..2304).contains(&count(&log[0]["prefix_tokens"])), "{}", log[0]);
    assert!(log[1]["prefix_tokens"].is_null() && log[1]["block_tokens"].is_null(), "no prompt: {}", log[1]);
}

#[tokio::test]
async fn nothing_is_cut_into_blocks_where_nobody_asks_for_them() {
    for (access, log) in [("json", ""), ("text", ON)] {
        let world = logging("policy: round_robin", access, log).await;
        send(&world, &long_chat("words ", "")).await;
        let text = world.access_log_text().await;
        assert!(text.contains(r#""prefix_tokens":null"#) || text.contains("prefix_tokens=-"), "{text}");
    }
}

#[tokio::test]
async fn a_line_of_text_has_no_blocks() {
    let world = logging("policy: pmc", "text", ON).await;
    send(&world, &long_chat("words ", "")).await;
    let text = world.access_log_text().await;
    assert!(text.contains(" prefix_tokens=2") && !text.contains("block_"), "{text}");
}
