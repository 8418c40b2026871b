//! What the shadows of the caches promise, fact by fact, and that they are whole after many threads had them.

use super::*;
use cache::SPENT_TOKENS_MIN;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// The keys of a prompt that consists of these blocks: chained, spread.
pub(super) fn chain(symbols: impl IntoIterator<Item = u64>) -> Arc<[BlockKey]> {
    let mut key = 0_u64;
    let mut next = |symbol: u64| {
        key = (key ^ (symbol + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        key ^= key >> 29;
        key = key.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        key
    };
    BlockKey::of_prompt(symbols.into_iter().map(&mut next))
}

/// The prompt with this name, of so many blocks.
fn prompt(name: u64, blocks: u64) -> Arc<[BlockKey]> {
    chain((0..blocks).map(|block| name * 1000 + block))
}

fn one(capacity: usize) -> Arc<Blocks> {
    Arc::new(Blocks::new(&[capacity]))
}

impl Blocks {
    /// Each cache is whole, and the index says of each what it holds.
    pub(super) fn check(&self) {
        let caches = self.caches.iter().enumerate();
        let blocks = |(backend, cache): (usize, &Mutex<Cache>)| {
            let blocks = cache.lock().check();
            blocks.into_iter().map(move |(key, _)| (backend, key.0)).collect::<Vec<_>>()
        };
        let mut held: Vec<_> = caches.flat_map(blocks).collect();
        held.sort_unstable();
        assert_eq!(self.index.entries(), held);
    }
}

#[test]
fn a_prompt_is_held_from_dispatch_on_and_stays_when_it_is_confirmed() {
    let blocks = Arc::new(Blocks::new(&[1000, 1000]));
    let prompt = prompt(1, 5);
    assert_eq!(blocks.held(&prompt), [0, 0]);
    let mut expected = blocks.expect(1, &prompt, 10);
    assert_eq!(blocks.held(&prompt), [0, 5]);
    expected.confirm();
    drop(expected);
    assert_eq!((blocks.held(&prompt), blocks.tokens(1)), (vec![0, 5], 50));
    drop(blocks.expect(0, &prompt, 10));
    assert_eq!((blocks.held(&prompt), blocks.withdrawn()), (vec![0, 5], 5), "the try failed");
}

#[test]
fn what_a_failed_try_brought_stays_as_long_as_another_try_expects_it() {
    for first_fails_first in [true, false] {
        let blocks = one(1000);
        let (short, long) = (chain([1, 2]), chain([1, 2, 3, 4]));
        let mut tries = [blocks.expect(0, &short, 10), blocks.expect(0, &long, 10)].map(Some);
        let order = if first_fails_first { [0, 1] } else { [1, 0] };
        tries[order[0]] = None;
        assert_eq!(blocks.held(&long), [if first_fails_first { 4 } else { 2 }]);
        tries[order[1]] = None;
        assert_eq!((blocks.held(&long), blocks.tokens(0)), (vec![0], 0));
    }
}

#[test]
fn what_one_try_confirmed_no_other_withdraws() {
    let blocks = one(1000);
    let prompt = prompt(1, 3);
    let (mut first, second) = (blocks.expect(0, &prompt, 10), blocks.expect(0, &prompt, 10));
    first.confirm();
    drop(second);
    drop(blocks.expect(0, &prompt, 10));
    assert_eq!((blocks.held(&prompt), blocks.withdrawn()), (vec![3], 0));
}

#[test]
fn a_prompt_is_confirmed_once_and_then_all_of_it_is_there() {
    let blocks = one(50);
    let (mine, other) = (prompt(1, 4), prompt(2, 4));
    let mut expected = blocks.expect(0, &mine, 10);
    blocks.expect(0, &other, 10).confirm();
    assert_eq!(blocks.held(&mine), [1], "the other one needed room");
    expected.confirm();
    assert_eq!((blocks.held(&mine), blocks.held(&other)), (vec![4], vec![1]));
    blocks.clear(0);
    expected.confirm();
    assert_eq!(blocks.held(&mine), [0], "that it was confirmed is no news");
}

#[test]
fn the_end_of_what_was_used_least_recently_goes_first() {
    let blocks = one(100);
    let (old, young, new) = (prompt(1, 5), prompt(2, 5), prompt(3, 2));
    for prompt in [&old, &young, &old, &young] {
        blocks.expect(0, prompt, 10).confirm();
    }
    blocks.expect(0, &new, 10).confirm();
    assert_eq!([&old, &young, &new].map(|prompt| blocks.held(prompt)[0]), [3, 5, 2]);
    blocks.expect(0, &old, 10).confirm();
    assert_eq!([&old, &young, &new].map(|prompt| blocks.held(prompt)[0]), [5, 3, 2]);
    assert_eq!((blocks.blocks(0), blocks.evicted()), (10, 4));
    blocks.check();
}

#[test]
fn of_a_prompt_that_is_larger_than_the_cache_the_first_blocks_are_kept() {
    let blocks = one(75);
    let (small, large) = (prompt(1, 3), prompt(2, 100));
    blocks.expect(0, &small, 10).confirm();
    let mut expected = blocks.expect(0, &large, 10);
    assert_eq!((blocks.held(&small), blocks.held(&large), blocks.tokens(0)), (vec![0], vec![7], 70));
    expected.confirm();
    assert_eq!((blocks.held(&large), blocks.tokens(0)), (vec![7], 70));
    drop(blocks.expect(0, &prompt(3, 1), 80));
    assert_eq!(blocks.held(&large), [7], "a block without room changes nothing");
    blocks.check();
}

#[test]
fn spent_tokens_push_blocks_out_and_are_pushed_out() {
    let blocks = one(100 * SPENT_TOKENS_MIN);
    let prompt = prompt(1, 10);
    blocks.expect(0, &prompt, 10 * SPENT_TOKENS_MIN).confirm();
    blocks.spend(0, 5);
    assert_eq!((blocks.held(&prompt), blocks.tokens(0)), (vec![9], 90 * SPENT_TOKENS_MIN + 5));
    blocks.spend(0, 25 * SPENT_TOKENS_MIN);
    assert_eq!((blocks.held(&prompt), blocks.tokens(0)), (vec![7], 95 * SPENT_TOKENS_MIN + 5));
    blocks.expect(0, &prompt, 10 * SPENT_TOKENS_MIN).confirm();
    assert_eq!((blocks.held(&prompt), blocks.tokens(0)), (vec![10], blocks.capacity(0)));
    blocks.spend(0, usize::MAX);
    assert_eq!((blocks.held(&prompt), blocks.tokens(0)), (vec![0], blocks.capacity(0)));
    blocks.check();
}

#[test]
fn blocks_weigh_what_their_last_use_said() {
    let blocks = one(1000);
    blocks.expect(0, &prompt(1, 10), 10).confirm();
    blocks.expect(0, &prompt(1, 5), 20).confirm();
    assert_eq!(blocks.tokens(0), 150);
    drop(blocks.expect(0, &prompt(2, 1), 0));
    blocks.check();
}

#[test]
fn what_the_engine_side_denies_goes_unless_a_try_is_about_to_bring_it() {
    let blocks = Arc::new(Blocks::new(&[1000, 1000]));
    let (known, longer) = (chain(0..6), chain(0..8));
    for backend in 0..2 {
        blocks.expect(backend, &known, 10).confirm();
    }
    let mut expected = blocks.expect(0, &longer, 10);
    assert!(blocks.is_expected(0, longer[7]) && !blocks.is_expected(0, longer[5]));
    blocks.truncate(0, &longer, 4);
    assert_eq!((blocks.held(&longer), blocks.truncated()), (vec![8, 6], 0), "nor what is before it");
    expected.confirm();
    assert!(!blocks.is_expected(0, longer[7]));
    blocks.truncate(0, &longer, 7);
    assert_eq!((blocks.held(&longer), blocks.blocks(0), blocks.truncated()), (vec![7, 6], 7, 1));
    blocks.expect(0, &longer, 10).confirm();
    blocks.truncate(0, &longer, 8);
    blocks.truncate(0, &longer, usize::MAX);
    assert_eq!(blocks.held(&longer), [8, 6]);
    blocks.truncate(0, &longer, 0);
    assert_eq!((blocks.held(&longer), blocks.blocks(0)), (vec![0, 6], 0));
    blocks.check();
}

#[test]
fn a_backend_is_cleared_without_the_others() {
    let blocks = Arc::new(Blocks::new(&[1000, 1000]));
    let prompt = prompt(1, 5);
    let tries = [0, 1].map(|backend| blocks.expect(backend, &prompt, 10));
    blocks.spend(0, 300);
    blocks.clear(0);
    assert_eq!((blocks.held(&prompt), blocks.tokens(0), blocks.blocks(0)), (vec![0, 5], 0, 0));
    blocks.expect(0, &prompt, 10).confirm();
    drop(tries);
    assert_eq!(blocks.held(&prompt), [5, 0]);
    blocks.check();
}

#[test]
fn a_smaller_capacity_holds_at_once() {
    let blocks = one(100);
    blocks.expect(0, &prompt(1, 10), 10).confirm();
    blocks.set_capacity(0, 45);
    assert_eq!((blocks.held(&prompt(1, 10)), blocks.capacity(0), blocks.evicted()), (vec![4], 45, 6));
    blocks.set_capacity(0, 0);
    drop(blocks.expect(0, &prompt(1, 10), 10));
    blocks.spend(0, 1000);
    assert_eq!((blocks.held(&prompt(1, 10)), blocks.tokens(0)), (vec![0], 0));
    blocks.check();
}

#[test]
fn each_backend_of_a_fleet_of_any_size_is_told_apart() {
    for backends in [0, 1, 31, 32, 33, 64, 65, 100] {
        let blocks = Arc::new(Blocks::new(&vec![10_000; backends]));
        let all = prompt(1, 110);
        for backend in 0..backends {
            blocks.expect(backend, &all[..backends - backend].into(), 10).confirm();
        }
        let held: Vec<_> = (1..=backends).rev().collect();
        assert_eq!(blocks.held(&all), held);
        assert_eq!(blocks.held(&all[..1]), vec![1; backends]);
        assert_eq!(blocks.held(&[]), vec![0; backends]);
        blocks.check();
    }
}

#[test]
fn a_cache_in_use_takes_no_more_memory_as_time_goes_by() {
    let blocks = one(200_000);
    for name in 0..6000 {
        blocks.expect(0, &prompt(name, 100), 1).confirm();
    }
    let per_block = blocks.bytes() / blocks.blocks(0);
    assert!((50..=64).contains(&per_block), "{per_block} bytes per block");
}

/// One thread's part: whatever may be done, at random, with some tries in flight.
fn mix(blocks: &Arc<Blocks>, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut tries = Vec::new();
    for _ in 0..3000 {
        let backend = random.random_range(0..4);
        let symbols: Vec<_> = (0..random.random_range(0..12)).map(|_| random.random_range(0..2)).collect();
        let keys = chain(symbols);
        match random.random_range(0..100) {
            0..50 => tries.push(blocks.expect(backend, &keys, random.random_range(1..50))),
            50..70 => drop(tries.pop()),
            70..85 => tries.iter_mut().for_each(Expected::confirm),
            85..90 => blocks.spend(backend, random.random_range(0..1000)),
            90..95 => blocks.truncate(backend, &keys, random.random_range(0..4)),
            95..97 => blocks.set_capacity(backend, random.random_range(0..4000)),
            97..98 => blocks.clear(backend),
            _ => assert!(blocks.held(&keys).iter().all(|held| *held <= keys.len())),
        }
        if tries.len() > 20 {
            tries.clear();
        }
    }
}

#[test]
fn index_and_lists_agree_after_many_threads_did_what_they_liked() {
    let blocks = Arc::new(Blocks::new(&[2000; 4]));
    std::thread::scope(|scope| {
        for seed in 0..8 {
            let blocks = &blocks;
            scope.spawn(move || mix(blocks, seed));
        }
    });
    blocks.check();
    let all = |cache: &Mutex<Cache>| cache.lock().check().iter().all(|(_, confirmed)| *confirmed);
    assert!(blocks.caches.iter().all(all), "no try is in flight, so nothing is expected");
    assert!([blocks.evicted(), blocks.withdrawn(), blocks.truncated()].iter().all(|gone| *gone > 0));
}
