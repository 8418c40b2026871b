//! Microbenchmarks of what routing a request costs: what is believed of the engines' caches, at fleets and indexes of
//! several sizes. `make micro`; no part of the tests.
//!
//! Prompts are taken in turns from all those in the index, so that the larger index is not in the processor's caches.

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use kvway::app::App;
use kvway::config::Config;
use kvway::proxy::hint::{Hint, Why};
use kvway::proxy::prompt;
use kvway::state::blocks::{BlockKey, Blocks, Expected};
use serde_json::json;
use std::hint::black_box;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const BACKENDS: [usize; 2] = [8, 64];
/// Blocks in the index.
const KEPT: [usize; 2] = [10_000, 1_000_000];
/// Blocks of a prompt: 1 to 512 KiB.
const PROMPT: [usize; 4] = [1, 16, 128, 512];
/// Tokens of a block: 1 KiB at a quarter of a token per byte.
const BLOCK_TOKENS: usize = 256;

type Prompt = Arc<[BlockKey]>;

/// The prompt with this number, of so many blocks, whose keys are spread as hashes are.
fn keys(number: usize, blocks: usize) -> Prompt {
    // After SplitMix64, Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
    let spread = |block: usize| {
        let state = ((number * 512 + block) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^ (state >> 31)
    };
    BlockKey::of_prompt((0..blocks).map(spread))
}

/// Backends that hold so many blocks together, each the same number and none the same one, and have room for twice as many.
fn fleet(backends: usize, kept: usize, prompts: &[Prompt]) -> Arc<Blocks> {
    let blocks = Arc::new(Blocks::new(&vec![2 * kept * BLOCK_TOKENS; backends]));
    for (number, keys) in prompts.iter().enumerate() {
        blocks.expect(number % backends, keys, BLOCK_TOKENS).confirm();
    }
    blocks
}

/// The numbers below `count`, again and again, and not in their order.
fn turns(count: usize) -> impl FnMut() -> usize {
    let mut turn = 0;
    move || {
        turn += 1;
        turn * 7919 % count
    }
}

/// The stages of a prompt that is known, in an index of so many blocks: looked up, sent, first token back.
fn known(criterion: &mut Criterion, backends: usize, kept: usize, length: usize) {
    let prompts: Vec<_> = (0..kept / length).map(|number| keys(number, length)).collect();
    let blocks = fleet(backends, kept, &prompts);
    let mut next = turns(prompts.len());
    let mut group = criterion.benchmark_group(format!("blocks/{backends}-backends/{kept}"));
    group.bench_function(BenchmarkId::new("held", length), |bencher| {
        bencher.iter(|| blocks.held(black_box(&prompts[next()])));
    });
    let mut expect = || {
        let number = next();
        blocks.expect(number % backends, &prompts[number], BLOCK_TOKENS)
    };
    group.bench_function(BenchmarkId::new("expect", length), |bencher| {
        bencher.iter_with_large_drop(&mut expect);
    });
    group.bench_function(BenchmarkId::new("confirm", length), |bencher| {
        bencher.iter_batched_ref(&mut expect, Expected::confirm, BatchSize::SmallInput);
    });
}

/// A prompt that nobody knows, sent and confirmed where the cache is full: for each new block an old one goes.
fn unknown(criterion: &mut Criterion, backends: usize, kept: usize, length: usize) {
    let prompts: Vec<_> = (0..kept / length).map(|number| keys(number, length)).collect();
    let blocks = fleet(backends, kept, &prompts);
    for backend in 0..backends {
        blocks.set_capacity(backend, blocks.tokens(backend));
    }
    let mut number = prompts.len();
    let mut new = || {
        number += 1;
        (number % backends, keys(number, length))
    };
    let mut group = criterion.benchmark_group(format!("blocks/{backends}-backends/{kept}"));
    group.bench_function(BenchmarkId::new("expect-and-confirm-new", length), |bencher| {
        let send = |(backend, keys): (usize, Prompt)| blocks.expect(backend, &keys, BLOCK_TOKENS).confirm();
        bencher.iter_batched(&mut new, send, BatchSize::SmallInput);
    });
}

/// A prompt that every backend holds, such as one that all requests begin with.
fn held_by_all(criterion: &mut Criterion, backends: usize) {
    let all = keys(0, 128);
    let blocks = fleet(backends, 128 * backends, &vec![Arc::clone(&all); backends]);
    assert_eq!(blocks.held(&all), vec![128; backends]);
    criterion.bench_function(&format!("blocks/{backends}-backends/held-by-all/128"), |bencher| {
        bencher.iter(|| blocks.held(black_box(&all)));
    });
}

/// A chat of about `kib` KiB in turns of 1 KiB.
fn chat(kib: usize) -> Vec<u8> {
    let mut messages = vec![json!({"role": "system", "content": "You are a helpful assistant."})];
    let text = "He said nothing, and went back to the long text that nobody has read to its end. ".repeat(12);
    for turn in 0..kib {
        let role = if turn % 2 == 0 { "user" } else { "assistant" };
        messages.push(json!({"role": role, "content": format!("{turn} {text}")}));
    }
    let body = json!({"model": "meta-llama/Llama-3.1-8B-Instruct", "messages": messages, "stream": true});
    body.to_string().into_bytes()
}

/// All that a body takes until its backend is chosen, in a fleet of which one backend holds the whole prompt and another one
/// half of it, beside so many other blocks: read, cut into keyed blocks, matched, weighed.
fn routed(criterion: &mut Criterion, backends: usize, kept: usize) {
    let backend =
        |n| format!("{{id: b{n}, address: \"127.0.0.1:{n}\", capacity_tokens: {}}}", 2 * kept * BLOCK_TOKENS);
    let list: Vec<String> = (1..=backends).map(backend).collect();
    let text = format!("log: {{access: \"off\"}}\nclusters: [{{name: a, backends: [{}]}}]", list.join(", "));
    let app = App::new(Config::parse(&text, "bench", &|_| None).expect("a valid configuration"))
        .expect("valid parts");
    let (cluster, reading) = (&app.clusters()[0], app.reading());
    for number in 0..kept / 128 {
        cluster.blocks.expect(number % backends, &keys(number, 128), BLOCK_TOKENS).confirm();
    }
    let (hint, now) = (Hint::none(Why::Off), Instant::now());
    let mut group = criterion.benchmark_group(format!("route/{backends}-backends/{kept}"));
    for kib in [1, 16, 128, 512] {
        let body = chat(kib);
        let demand = |body: &[u8]| {
            let prompt = prompt::parse(body, "/v1/chat/completions", &reading);
            cluster.demand(&prompt, &hint, body.len())
        };
        let known = demand(&body);
        cluster.blocks.expect(1, &known.keys, known.block_tokens).confirm();
        let half = known.keys.iter().take(known.keys.len() / 2).copied().collect();
        cluster.blocks.expect(2, &half, known.block_tokens).confirm();
        let choose = |body: &[u8]| {
            let demand = demand(body);
            let candidates = cluster.candidates(&[], false, &demand, &hint, now);
            cluster.choose(candidates, &hint, &[], 7)
        };
        assert_eq!(
            choose(&body).peer.map(|peer| peer.index),
            Some(usize::from(!known.keys.is_empty())),
            "where the prompt is"
        );
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(format!("{kib}KiB"), |bencher| bencher.iter(|| choose(black_box(&body))));
    }
}

/// Prints what a block takes, of prompts of so many blocks: by the tables' own account, and by what the process takes more than
/// before (which says something of the first ones only: later ones use memory again). As filled once, and after everything has
/// been replaced eight times.
#[cfg(target_os = "linux")]
fn memory(length: usize) {
    let resident = || {
        let process = procfs::process::Process::myself().expect("/proc is there");
        process.statm().expect("it is readable").resident * procfs::page_size()
    };
    let (kept, backends) = (1_000_000, 8);
    let before = resident();
    let blocks = Arc::new(Blocks::new(&vec![kept / backends * BLOCK_TOKENS; backends]));
    let mut number = 0;
    for turn in [1, 8] {
        while number * length < turn * kept {
            blocks.expect(number % backends, &keys(number, length), BLOCK_TOKENS).confirm();
            number += 1;
        }
        let count: usize = (0..backends).map(|backend| blocks.blocks(backend)).sum();
        let (account, process) = (blocks.bytes() / count, resident().saturating_sub(before) / count as u64);
        let line = format!(
            "# {count} blocks of prompts of {length}, filled {turn} times: {account} bytes each by account, {process} resident"
        );
        writeln!(std::io::stdout(), "{line}").expect("standard output takes it");
    }
}

fn main() {
    let times = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(1));
    let mut criterion = times.configure_from_args();
    #[cfg(target_os = "linux")]
    [128, 4, 1].into_iter().for_each(memory);
    for backends in BACKENDS {
        for kept in KEPT {
            for length in PROMPT {
                known(&mut criterion, backends, kept, length);
            }
            unknown(&mut criterion, backends, kept, 128);
            routed(&mut criterion, backends, kept);
        }
        held_by_all(&mut criterion, backends);
    }
    criterion.final_summary();
}
