//! The time that a simulated engine takes: a queue, one prefill after the other, then tokens at a steady pace.
//!
//! A request waits, first come first served, for one of the running places, for KV memory for its prompt and answer,
//! and for its turn at prefill; prefill takes time for every token that the prefix cache does not hold. Its prompt is
//! reusable from the end of its prefill; the tokens of its answer hold memory and are not reused. Dropping a [`Run`],
//! or the future that makes it, frees everything at once. Decoding does not slow down under load.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::cache::{BlockCache, block_keys};
use crate::chunks::Chunks;

/// What a simulated engine can do.
#[derive(Debug, Clone)]
pub struct SimulatedOptions {
    /// Tokens that the KV cache holds.
    pub capacity_tokens: usize,
    /// Tokens in a block.
    pub block_size: usize,
    /// Prefill speed.
    pub prefill_tokens_per_second: f64,
    /// Time from one token of an answer to the next.
    pub decode: Duration,
    /// Requests that run at a time.
    pub max_running: usize,
    /// Whether prompts that were computed are used again.
    pub prefix_caching: bool,
    /// Factor on all times; 0.1 makes the engine ten times as fast.
    pub time_scale: f64,
    /// Where prompts are announced after their prefill, as an engine with LMCache does.
    pub announce: Option<Chunks>,
}

impl Default for SimulatedOptions {
    fn default() -> Self {
        Self {
            capacity_tokens: 500_000,
            block_size: 16,
            prefill_tokens_per_second: 15_000.0,
            decode: Duration::from_millis(20),
            max_running: 256,
            prefix_caching: true,
            time_scale: 1.0,
            announce: None,
        }
    }
}

/// The tier that prompts are announced in.
const LOCATION: &str = "LocalCPUBackend";

#[derive(Debug)]
struct State {
    cache: BlockCache,
    counts: Counts,
}

/// What a simulation shows.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub(super) struct Counts {
    pub(super) waiting: u32,
    pub(super) running: u32,
    /// Tokens asked of the prefix cache, and those it had.
    pub(super) queries: u64,
    pub(super) hits: u64,
}

/// One engine's queue, clock and cache.
#[derive(Debug)]
pub(super) struct Simulation {
    engine: String,
    options: SimulatedOptions,
    blocks: u32,
    places: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    prefill: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

/// A request before its prefill: counts as waiting while it lives.
struct Waiting<'a>(&'a Simulation);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.state.lock().counts.waiting -= 1;
    }
}

impl Simulation {
    pub(super) fn new(engine: &str, mut options: SimulatedOptions) -> Self {
        options.block_size = options.block_size.max(1);
        let blocks = u32::try_from(options.capacity_tokens / options.block_size).unwrap_or(u32::MAX).max(1);
        Self {
            engine: engine.to_owned(),
            blocks,
            places: Arc::new(Semaphore::new(options.max_running.max(1))),
            memory: Arc::new(Semaphore::new(blocks as usize)),
            prefill: tokio::sync::Mutex::default(),
            state: Mutex::new(State { cache: BlockCache::new(blocks as usize), counts: Counts::default() }),
            options,
        }
    }

    pub(super) fn counts(&self) -> Counts {
        self.state.lock().counts
    }

    pub(super) fn block_size(&self) -> usize {
        self.options.block_size
    }

    pub(super) fn blocks(&self) -> u32 {
        self.blocks
    }

    pub(super) fn prefix_caching(&self) -> bool {
        self.options.prefix_caching
    }

    /// The part of the KV memory that running requests take.
    pub(super) fn usage(&self) -> f64 {
        let free = u32::try_from(self.memory.available_permits()).unwrap_or(self.blocks);
        1.0 - f64::from(free) / f64::from(self.blocks)
    }

    /// Forgets the cache and its counters.
    pub(super) fn forget(&self) {
        let mut state = self.state.lock();
        state.cache.forget();
        state.counts = Counts { queries: 0, hits: 0, ..state.counts };
    }

    fn time(&self, seconds: f64) -> Duration {
        Duration::try_from_secs_f64(seconds * self.options.time_scale).unwrap_or_default()
    }

    /// Queues a prompt and computes it. The answer may have up to `answer_tokens`.
    pub(super) async fn run(self: &Arc<Self>, prompt: &[u32], salt: &str, answer_tokens: usize) -> Run {
        let size = self.options.block_size;
        let caching = self.options.prefix_caching;
        let keys = if caching { block_keys(prompt, size, salt) } else { Vec::new() };
        self.state.lock().counts.waiting += 1;
        let waiting = Waiting(self);
        let place = acquire(&self.places, 1).await;
        let needed = (prompt.len() + answer_tokens).div_ceil(size);
        let memory = acquire(&self.memory, u32::try_from(needed).unwrap_or(u32::MAX).min(self.blocks)).await;
        let turn = self.prefill.lock().await;
        drop(waiting);
        let mut run = Run {
            simulation: Arc::clone(self),
            keys,
            held: 0,
            cached: 0,
            next_token: Instant::now(),
            _permits: [place, memory],
        };
        // At least one token is computed, since the first token of the answer comes from it.
        let reusable = prompt.len().saturating_sub(1) / size;
        run.cached = {
            let mut state = self.state.lock();
            state.counts.running += 1;
            let hits = state.cache.matched(run.keys.get(..reusable).unwrap_or(&run.keys)) * size;
            state.counts.queries += if caching { prompt.len() as u64 } else { 0 };
            state.counts.hits += hits as u64;
            hits
        };
        let missing = u32::try_from(prompt.len() - run.cached).unwrap_or(u32::MAX);
        tokio::time::sleep(self.time(f64::from(missing) / self.options.prefill_tokens_per_second)).await;
        run.held = self.state.lock().cache.hold(&run.keys);
        drop(turn);
        if let Some(chunks) = &self.options.announce {
            chunks.admit(&self.engine, LOCATION, prompt);
        }
        run.next_token = Instant::now();
        run
    }
}

/// Waits for permits; the semaphores of a simulation are never closed.
async fn acquire(semaphore: &Arc<Semaphore>, count: u32) -> Option<OwnedSemaphorePermit> {
    Arc::clone(semaphore).acquire_many_owned(count).await.ok()
}

/// A request that runs; its first token is there.
#[derive(Debug)]
pub(super) struct Run {
    simulation: Arc<Simulation>,
    keys: Vec<u64>,
    held: usize,
    pub(super) cached: usize,
    next_token: Instant,
    _permits: [Option<OwnedSemaphorePermit>; 2],
}

impl Run {
    /// Waits for `count` more tokens.
    pub(super) async fn tokens(&mut self, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let decode = self.simulation.options.decode.as_secs_f64();
        self.next_token += self.simulation.time(decode * f64::from(count));
        tokio::time::sleep_until(self.next_token).await;
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let mut state = self.simulation.state.lock();
        state.counts.running -= 1;
        state.cache.release(self.keys.get(..self.held).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn simulation(options: SimulatedOptions) -> Arc<Simulation> {
        Arc::new(Simulation::new("vllm-0", options))
    }

    fn prompt(tokens: u32) -> Vec<u32> {
        (0..tokens).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn an_equal_prompt_costs_what_its_last_block_does() {
        let simulation = simulation(SimulatedOptions { block_size: 128, ..SimulatedOptions::default() });
        let start = Instant::now();
        drop(simulation.run(&prompt(1500), "", 10).await);
        assert_eq!(start.elapsed().as_millis(), 100);
        let run = simulation.run(&prompt(1500), "", 10).await;
        assert_eq!(run.cached, 11 * 128);
        assert!(start.elapsed().as_millis() < 110);
        assert_eq!(simulation.counts(), Counts { waiting: 0, running: 1, queries: 3000, hits: 1408 });
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_prompt_of_full_blocks_the_last_one_is_computed_again() {
        let simulation = simulation(SimulatedOptions::default());
        drop(simulation.run(&prompt(32), "", 1).await);
        assert_eq!(simulation.run(&prompt(32), "", 1).await.cached, 16);
        assert_eq!(simulation.run(&prompt(33), "", 1).await.cached, 32);
    }

    #[tokio::test(start_paused = true)]
    async fn another_salt_shares_nothing() {
        let simulation = simulation(SimulatedOptions::default());
        drop(simulation.run(&prompt(160), "a", 1).await);
        assert_eq!(simulation.run(&prompt(160), "b", 1).await.cached, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn prefills_go_one_after_the_other_in_order() {
        let simulation = simulation(SimulatedOptions::default());
        let start = Instant::now();
        let run = async |first: u32| {
            drop(simulation.run(&(first..first + 1500).collect::<Vec<_>>(), "", 1).await);
            start.elapsed().as_millis()
        };
        assert_eq!(tokio::join!(run(0), run(10_000), run(20_000)), (100, 200, 300));
    }

    #[tokio::test(start_paused = true)]
    async fn who_finds_no_place_waits() {
        let simulation = simulation(SimulatedOptions { max_running: 1, ..SimulatedOptions::default() });
        let first = simulation.run(&prompt(16), "", 1).await;
        let other = prompt(16);
        let second = simulation.run(&other, "", 1);
        tokio::pin!(second);
        assert!(futures::poll!(&mut second).is_pending());
        assert_eq!((simulation.counts().waiting, simulation.counts().running), (1, 1));
        drop(first);
        drop(second.await);
        assert_eq!((simulation.counts().waiting, simulation.counts().running), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_finds_no_memory_waits_and_who_leaves_frees_it() {
        let simulation = simulation(SimulatedOptions { capacity_tokens: 160, ..SimulatedOptions::default() });
        let first = simulation.run(&prompt(64), "", 64).await;
        assert!((simulation.usage() - 0.8).abs() < 1e-9);
        let other = prompt(64);
        {
            let second = simulation.run(&other, "", 64);
            tokio::pin!(second);
            assert!(futures::poll!(&mut second).is_pending());
            assert_eq!(simulation.counts().waiting, 1);
        }
        assert_eq!(simulation.counts().waiting, 0);
        drop(first);
        assert!(simulation.usage().abs() < 1e-9);
    }

    #[tokio::test(start_paused = true)]
    async fn a_prefill_that_is_given_up_leaves_nothing_behind() {
        let simulation = simulation(SimulatedOptions::default());
        let tokens = prompt(1500);
        {
            let run = simulation.run(&tokens, "", 1);
            tokio::pin!(run);
            assert!(futures::poll!(&mut run).is_pending());
            assert_eq!(simulation.counts().running, 1);
        }
        assert_eq!(simulation.counts().running, 0);
        assert_eq!(simulation.run(&tokens, "", 1).await.cached, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_come_at_a_steady_pace_and_a_scale_shortens_all() {
        let simulation = simulation(SimulatedOptions { time_scale: 0.1, ..SimulatedOptions::default() });
        let start = Instant::now();
        let mut run = simulation.run(&prompt(15_000), "", 50).await;
        run.tokens(1).await;
        run.tokens(49).await;
        assert_eq!(start.elapsed().as_millis(), 200);
    }

    #[tokio::test(start_paused = true)]
    async fn without_prefix_caching_every_prompt_is_computed() {
        let simulation =
            simulation(SimulatedOptions { prefix_caching: false, ..SimulatedOptions::default() });
        for _ in 0..2 {
            assert_eq!(simulation.run(&prompt(600), "", 1).await.cached, 0);
        }
        assert_eq!((simulation.counts().queries, simulation.counts().hits), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn prompts_are_announced_after_their_prefill() {
        let chunks = Chunks::default();
        let simulation =
            simulation(SimulatedOptions { announce: Some(chunks.clone()), ..SimulatedOptions::default() });
        drop(simulation.run(&prompt(600), "", 1).await);
        let credits = chunks.look_up(&(0..600).collect::<Vec<_>>());
        assert_eq!((credits[0].instance.as_str(), credits[0].tokens), ("vllm-0", 600));
    }
}
