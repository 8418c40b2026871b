//! From the first byte of an answer to the line in the access log.

use super::Stage;
use bytes::Bytes;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use kvway::access_log::{AccessLog, Entry, Hex, Milliseconds};
use kvway::config;
use kvway::proxy::response::Observer;
use kvway::proxy::retry::{Cause, RetryBudget};
use kvway::proxy::sse::Events;
use kvway::state::ratio::Ratios;
use kvway::state::trust::{Source, Trust};
use pingora::http::ResponseHeader;
use prometheus::IntCounter;
use std::hint::black_box;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// A token of a stream as vLLM sends it.
const CHUNK: &[u8] = b"data: {\"id\":\"chatcmpl-6f0f1f3c9d2b4d3d8c2a\",\"object\":\"chat.completion.chunk\",\"created\":1763800000,\
    \"model\":\"meta-llama/Llama-3.1-8B-Instruct\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" token\"},\
    \"logprobs\":null,\"finish_reason\":null}]}\n\n";
const USAGE: &[u8] = b"data: {\"id\":\"chatcmpl-6f0f1f3c9d2b4d3d8c2a\",\"object\":\"chat.completion.chunk\",\"created\":1763800000,\
    \"model\":\"meta-llama/Llama-3.1-8B-Instruct\",\"choices\":[],\"usage\":{\"prompt_tokens\":4096,\"total_tokens\":4224,\
    \"completion_tokens\":128,\"prompt_tokens_details\":{\"cached_tokens\":3840}}}\n\ndata: [DONE]\n\n";

fn counter() -> IntCounter {
    IntCounter::new("name", "help").expect("a valid name")
}

fn stream() -> Observer {
    let mut header = ResponseHeader::build(StatusCode::OK, None).expect("a status");
    header.insert_header(CONTENT_TYPE, "text/event-stream; charset=utf-8").expect("a header");
    let mut observer = Observer::default();
    observer.header(&header);
    observer
}

pub(super) fn stages() -> Vec<Stage> {
    let now = Instant::now();
    let mut later = stream();
    later.first_token = Some(now);
    let (token, usage) = (Bytes::from_static(CHUNK), Bytes::from_static(USAGE));
    let mut stages = vec![
        Stage::new("stage/sse-first-token", || Events::default().brings_token(black_box(CHUNK))),
        Stage::new("stage/first-chunk", {
            let token = token.clone();
            move || {
                let mut observer = stream();
                observer.chunk(black_box(&token));
                (observer.brings_first_token(&token), observer.chunk_of_stream(now))
            }
        }),
        Stage::new("stage/later-chunk", move || {
            later.chunk(black_box(&token));
            (later.brings_first_token(&token), later.chunk_of_stream(now))
        }),
        Stage::new("stage/usage", {
            let mut observer = stream();
            move || {
                observer.chunk(black_box(&usage));
                observer.usage()
            }
        }),
        Stage::new("stage/learn", {
            let (ratios, trust) = (Ratios::new(counter()), Trust::new(8));
            move || {
                ratios.learn(black_box("meta-llama/Llama-3.1-8B-Instruct"), 16_000, 4_000);
                trust.learn(3, Source::Shadow, 3_900, 3_840);
                ratios.get("meta-llama/Llama-3.1-8B-Instruct")
            }
        }),
        retry(),
    ];
    for (name, access, blocks) in [
        ("json", config::AccessLog::Json, 0),
        ("json-16-blocks", config::AccessLog::Json, 16),
        ("text", config::AccessLog::Text, 0),
    ] {
        stages.push(line(name, access, blocks));
    }
    stages
}

/// What is asked after a try that failed.
fn retry() -> Stage {
    let (budget, on) = (RetryBudget::new(0.2), config::Retries::default().on);
    Stage::new("stage/retry", move || {
        budget.pay_in();
        let cause = Cause::of_status(black_box(StatusCode::SERVICE_UNAVAILABLE)).expect("a cause");
        cause.is_among(&on) && budget.allows(cause)
    })
}

/// A line of the access log; as long as its buffer is full it is written all the same, and then dropped.
fn line(name: &str, access: config::AccessLog, blocks: usize) -> Stage {
    let settings = config::Log { access, file: Some("/dev/null".into()), ..config::Log::default() };
    let log = AccessLog::open(&settings, counter()).expect("a log");
    let blocks = vec![Hex(0x0123_4567_89ab_cdef); blocks];
    Stage::new(format!("stage/access-log/{name}"), move || {
        log.write(&Entry {
            time: SystemTime::now(),
            request_id: "0193e2a0-0000-7000-8000-000000000000",
            client: Some("192.0.2.1"),
            protocol: "HTTP/1.1",
            method: "POST",
            path: "/v1/chat/completions",
            status: 200,
            outcome: "complete",
            cluster: Some("llama"),
            model: Some("meta-llama/Llama-3.1-8B-Instruct"),
            backend: Some("b1"),
            reason: Some("pmc"),
            matched_tokens: Some(3840),
            tries: 1,
            body_bytes: 16_384,
            answer_bytes: 20_000,
            body_ms: Milliseconds(Duration::from_micros(123)),
            first_token_ms: Some(Milliseconds(Duration::from_micros(123_456))),
            total_ms: Milliseconds(Duration::from_micros(4_567_891)),
            prompt_tokens: Some(4096),
            cached_tokens: Some(3840),
            completion_tokens: Some(128),
            prefix_tokens: Some(4000),
            block_tokens: Some(256),
            block_keys: Some(blocks.as_slice()).filter(|blocks| !blocks.is_empty()),
            hint: None,
            retried: black_box(&[]),
        });
    })
}
