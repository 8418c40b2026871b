//! Microbenchmarks of the pure stages: what a request costs before anything is sent. `make micro`; no part of the tests.

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use kvway::app::App;
use kvway::config::{self, Config};
use kvway::proxy::decision::Decision;
use kvway::proxy::demand::Demand;
use kvway::proxy::hint::{Hint, Why};
use kvway::proxy::key::{Pseudonyms, Secret};
use kvway::proxy::prefix::Settings;
use kvway::proxy::prompt::{self, Reading};
use kvway::state::blocks::BlockKey;
use kvway::state::hotness::Hotness;
use kvway::state::recent::Recent;
use kvway::state::tokens::{Counters, PromptKey, TokenCache, Tokens};
use prometheus::IntCounter;
use std::fmt::Write as _;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

const WINDOW: Duration = Duration::from_mins(5);
const THRESHOLD: usize = 10;
const KEYS_MAX: usize = 100_000;
const TOKENS: [usize; 2] = [256, 32 * 1024];
const BODY_BYTES: [usize; 5] = [1 << 10, 16 << 10, 128 << 10, 512 << 10, 1 << 20];

/// The `number`th key, spread over all keys as hashes are.
fn key(number: u64) -> PromptKey {
    PromptKey(u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))
}

/// Keys one after the other, from the first again after `distinct`.
fn keys(distinct: u64) -> impl FnMut() -> PromptKey {
    let mut number = 0;
    move || {
        number = (number + 1) % distinct;
        key(number)
    }
}

/// `record` with few prompts that are hot, and with more prompts than are kept, each as if seen for the first time.
fn hotness(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("hotness/record");
    let now = Instant::now();
    for (name, distinct) in [("hot", 64), ("distinct", 4 * KEYS_MAX as u64)] {
        let hotness = Hotness::new(WINDOW, THRESHOLD, KEYS_MAX, counter());
        let mut next = keys(distinct);
        (0..2 * distinct).for_each(|_| {
            hotness.record(next(), now);
        });
        group.bench_function(name, |bencher| bencher.iter(|| hotness.record(black_box(next()), now)));
    }
}

fn counter() -> IntCounter {
    IntCounter::new("name", "help").expect("a valid name")
}

fn cache() -> TokenCache {
    let counters = Counters { hits: counter(), misses: counter(), evictions: counter() };
    TokenCache::new(&config::TokenCache::default(), counters)
}

fn tokens(count: usize) -> Tokens {
    (0..).take(count).collect()
}

/// `get` of prompts that are remembered; `insert` into a cache that is full, so that each makes another one go.
fn token_cache(criterion: &mut Criterion) {
    let now = Instant::now();
    for count in TOKENS {
        let cache = cache();
        let mut next = keys(1000);
        (0..1000).for_each(|_| cache.insert(next(), tokens(count), now));
        criterion.bench_function(&format!("tokens/get/{count}"), |bencher| {
            bencher.iter(|| cache.get(black_box(next()), now));
        });
    }
    for count in TOKENS {
        let cache = cache();
        let mut next = keys(u64::MAX);
        (0..20_000).for_each(|_| cache.insert(next(), tokens(count), now));
        criterion.bench_function(&format!("tokens/insert/{count}"), |bencher| {
            let setup = || tokens(count);
            bencher.iter_batched(setup, |tokens| cache.insert(next(), tokens, now), BatchSize::LargeInput);
        });
    }
}

/// A chat of about `bytes` bytes, in turns of 2 KiB; with `escapes`, every line ends in one and some characters are one.
fn chat(bytes: usize, escapes: bool) -> Vec<u8> {
    let line = if escapes {
        r#"She said \"\u00e9t\u00e9 \ud83d\ude00\" and went\tback to the long text that nobody reads.\n"#
    } else {
        "He said nothing, and went back to the long text that nobody has ever read to its end. "
    };
    let turn = line.repeat(2048 / line.len());
    let mut body = String::from(r#"{"model":"meta-llama/Llama-3.1-8B-Instruct","messages":["#);
    body.push_str(r#"{"role":"system","content":"You are a helpful assistant."}"#);
    for role in ["user", "assistant"].iter().cycle() {
        let room = bytes.saturating_sub(body.len() + 128);
        let text = &turn.as_bytes()[..room.min(turn.len()) / line.len() * line.len()];
        if text.is_empty() {
            break;
        }
        let text = String::from_utf8_lossy(text);
        write!(body, r#",{{"role":"{role}","content":"{text}"}}"#).expect("a string takes all");
    }
    body.push_str(r#"],"temperature":0.7,"max_tokens":256,"stream":true}"#);
    body.into_bytes()
}

/// What a request with the filter on does before its backend is chosen, stage by stage and as a whole.
fn prompts(criterion: &mut Criterion) {
    const PATH: &str = "/v1/chat/completions";
    let key = Secret::new([1, 2, 3, 4]);
    let config::Prefix { block_bytes, blocks_max, .. } = config::Prefix::default();
    let blocks = Some(Settings::new(key, block_bytes, blocks_max));
    let secret = Some(key);
    let readings = [
        ("off", Reading::default()),
        ("blocks", Reading { secret: None, text: false, blocks: blocks.clone() }),
        ("keys", Reading { secret, text: false, blocks: None }),
        ("keys-and-text", Reading { secret, text: true, blocks: None }),
        ("all", Reading { secret, text: true, blocks }),
    ];
    let mut group = criterion.benchmark_group("prompt/parse");
    for (kind, escapes) in [("plain", false), ("escaped", true)] {
        for bytes in BODY_BYTES {
            let body = chat(bytes, escapes);
            assert!(prompt::parse(&body, PATH, &Reading::default()).stream, "the whole body is understood");
            group.throughput(Throughput::Bytes(body.len() as u64));
            for (name, reading) in &readings {
                let id = BenchmarkId::new(format!("{kind}/{name}"), format!("{}KiB", bytes >> 10));
                group.bench_function(id, |bencher| {
                    bencher.iter(|| prompt::parse(black_box(&body), PATH, reading));
                });
            }
        }
    }
    group.finish();
    let mut group = criterion.benchmark_group("filter/known-prompt");
    let (now, cache) = (Instant::now(), cache());
    let hotness = Hotness::new(Duration::from_mins(5), 3, 100_000, counter());
    let secret = Secret::new([1, 2, 3, 4]);
    for bytes in BODY_BYTES {
        let body = chat(bytes, false);
        let known = prompt::parse(&body, PATH, &readings[3].1);
        cache.insert(known.key(&secret, "m"), tokens(bytes / 4), now);
        group.bench_function(format!("{}KiB", bytes >> 10), |bencher| {
            bencher.iter(|| {
                let prompt = prompt::parse(black_box(&body), PATH, &readings[3].1);
                let hot = prompt.text_key(&secret, "m").map(|key| hotness.record(key, now));
                (hot, cache.get(prompt.key(&secret, "m"), now).expect("known"))
            });
        });
    }
}

/// A choice among backends for a prompt that none has seen, alone and with its decision kept; and what stands for the keys of
/// as many blocks as a line of the access log has by default.
fn decisions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decision");
    let keys: Arc<[BlockKey]> = (0..1024).map(|block| BlockKey(u64::MAX / (block + 1))).collect();
    let demand = Demand { tokens: 262_144, block_tokens: 256, keys: Arc::clone(&keys) };
    let (hint, now) = (Hint::none(Why::Off), Instant::now());
    let model: Arc<str> = "meta-llama/Llama-3.1-8B".into();
    for backends in [8, 64] {
        let list: Vec<String> =
            (1..=backends).map(|n| format!("{{id: b{n}, address: \"127.0.0.1:{n}\"}}")).collect();
        let text =
            format!("log: {{access: \"off\"}}\nclusters: [{{name: a, backends: [{}]}}]", list.join(", "));
        let config = Config::parse(&text, "bench", &|_| None).expect("a valid configuration");
        let app = App::new(config).expect("valid parts");
        let cluster = &app.clusters()[0];
        let choose = || {
            let candidates = cluster.candidates(&[], false, black_box(&demand), &hint, now);
            cluster.choose(candidates, &hint, &[], 7)
        };
        group.bench_function(format!("choose/{backends}"), |bencher| bencher.iter(choose));
        let recent = Recent::new(256);
        group.bench_function(format!("choose-and-keep/{backends}"), |bencher| {
            bencher.iter(|| {
                let choice = choose();
                let (cluster, model) = (Arc::clone(cluster), Some(Arc::clone(&model)));
                let time = SystemTime::now();
                recent.record(|| Decision::new(cluster, model, &demand, hint.clone(), choice, time));
            });
        });
    }
    let pseudonyms = Pseudonyms::new([7; 32], keys.len());
    group.bench_function("pseudonyms/1024", |bencher| bencher.iter(|| pseudonyms.of(black_box(&keys))));
}

fn main() {
    let times =
        Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(2));
    let mut criterion = times.configure_from_args();
    hotness(&mut criterion);
    token_cache(&mut criterion);
    prompts(&mut criterion);
    decisions(&mut criterion);
    criterion.final_summary();
}
