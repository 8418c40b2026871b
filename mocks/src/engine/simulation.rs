//! The time that a simulated engine takes: waits for each iteration of its `batch`, and tells requests how far they are.
//!
//! One task per engine keeps the time, whoever reads the answers; it rests while there is nothing to do. Dropping a
//! [`Run`], or the future that makes it, frees everything at once. An iteration that is begun takes its time, also when
//! who it was for has left.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::batch::{Batch, Counts, Id, Progress};
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
    /// What every iteration takes at least; on an idle engine the time from one token of an answer to the next.
    pub decode: Duration,
    /// What each answer under way adds to that.
    pub decode_each: Duration,
    /// Tokens that one iteration computes at most; longer prompts are computed in chunks.
    pub max_batched_tokens: usize,
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
            decode_each: Duration::from_micros(50),
            max_batched_tokens: 8192,
            max_running: 256,
            prefix_caching: true,
            time_scale: 1.0,
            announce: None,
        }
    }
}

/// The tier that prompts are announced in.
const LOCATION: &str = "LocalCPUBackend";

/// One engine's batch, and the task that keeps its time for as long as this lives.
#[derive(Debug)]
pub(super) struct Simulation {
    engine: String,
    announce: Option<Chunks>,
    prefix_caching: bool,
    work: Arc<Work>,
    _clock: JoinSet<()>,
}

#[derive(Debug)]
struct Work {
    batch: Mutex<Batch>,
    arrival: Notify,
}

impl Work {
    async fn keep_time(self: Arc<Self>) {
        let mut now = Instant::now();
        loop {
            let begun = self.batch.lock().begin();
            let Some(time) = begun else {
                self.arrival.notified().await;
                now = Instant::now();
                continue;
            };
            // By the clock of the engine: a timer that fires late makes no iteration longer.
            now += time;
            tokio::time::sleep_until(now).await;
            self.batch.lock().end();
        }
    }
}

impl Simulation {
    /// Within a runtime, on which the engine's time is kept.
    pub(super) fn new(engine: &str, options: SimulatedOptions) -> Self {
        let (announce, prefix_caching) = (options.announce.clone(), options.prefix_caching);
        let work = Arc::new(Work { batch: Mutex::new(Batch::new(options)), arrival: Notify::new() });
        let mut clock = JoinSet::new();
        clock.spawn(Arc::clone(&work).keep_time());
        Self { engine: engine.to_owned(), announce, prefix_caching, work, _clock: clock }
    }

    pub(super) fn counts(&self) -> Counts {
        self.work.batch.lock().counts()
    }

    pub(super) fn block_size(&self) -> usize {
        self.work.batch.lock().block_size()
    }

    pub(super) fn blocks(&self) -> u32 {
        self.work.batch.lock().blocks()
    }

    pub(super) fn prefix_caching(&self) -> bool {
        self.prefix_caching
    }

    /// The part of the KV memory that running requests take.
    pub(super) fn usage(&self) -> f64 {
        self.work.batch.lock().usage()
    }

    /// Forgets the cache and its counters.
    pub(super) fn forget(&self) {
        self.work.batch.lock().forget();
    }

    /// Queues a prompt and waits for the first token of its answer, which will have so many.
    pub(super) async fn run(&self, prompt: &[u32], salt: &str, answer_tokens: usize) -> Run {
        let (id, progress) = self.work.batch.lock().enter(prompt, salt, answer_tokens);
        self.work.arrival.notify_one();
        let mut run = Run { work: Arc::clone(&self.work), id, progress, read: 0, cached: 0 };
        run.tokens(1).await;
        run.cached = run.progress.borrow().cached;
        if let Some(chunks) = &self.announce {
            chunks.admit(&self.engine, LOCATION, prompt);
        }
        run
    }
}

/// A request that runs; its first token is there.
#[derive(Debug)]
pub(super) struct Run {
    work: Arc<Work>,
    id: Id,
    progress: watch::Receiver<Progress>,
    /// Tokens that were waited for.
    read: usize,
    pub(super) cached: usize,
}

impl Run {
    /// Waits for `count` more tokens, at most for the last of the answer.
    pub(super) async fn tokens(&mut self, count: usize) {
        self.read += count;
        // An error says that the answer is complete.
        drop(self.progress.wait_for(|progress| progress.tokens >= self.read).await);
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.work.batch.lock().leave(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An engine whose iterations take a millisecond and what their prompts take.
    fn simulation(options: SimulatedOptions) -> Simulation {
        let (decode, decode_each) = (Duration::from_millis(1), Duration::ZERO);
        Simulation::new("vllm-0", SimulatedOptions { decode, decode_each, ..options })
    }

    fn prompt(tokens: u32) -> Vec<u32> {
        (0..tokens).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn an_equal_prompt_costs_what_its_last_block_does() {
        let simulation = simulation(SimulatedOptions { block_size: 128, ..SimulatedOptions::default() });
        let start = Instant::now();
        drop(simulation.run(&prompt(1500), "", 10).await);
        assert_eq!(start.elapsed().as_millis(), 101);
        let run = simulation.run(&prompt(1500), "", 10).await;
        assert_eq!(run.cached, 11 * 128);
        assert!(start.elapsed().as_millis() < 112);
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
    async fn who_finds_no_place_waits_and_who_leaves_frees_it() {
        let simulation = simulation(SimulatedOptions { max_running: 1, ..SimulatedOptions::default() });
        let other = prompt(16);
        let first = simulation.run(&other, "", 100).await;
        {
            let second = simulation.run(&other, "", 1);
            tokio::pin!(second);
            assert!(futures::poll!(&mut second).is_pending());
            assert_eq!((simulation.counts().waiting, simulation.counts().running), (1, 1));
        }
        assert_eq!(simulation.counts().waiting, 0);
        let second = simulation.run(&other, "", 1);
        let ((), _run) = tokio::join!(async { drop(first) }, second);
        assert_eq!((simulation.counts().waiting, simulation.counts().running), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_come_at_a_steady_pace_and_a_scale_shortens_all() {
        let options = SimulatedOptions { time_scale: 0.1, ..SimulatedOptions::default() };
        let simulation =
            Simulation::new("vllm-0", SimulatedOptions { decode_each: Duration::ZERO, ..options });
        let start = Instant::now();
        // Two iterations for the prompt, as it is longer than the budget of one.
        let mut run = simulation.run(&prompt(15_000), "", 50).await;
        assert_eq!(start.elapsed().as_millis(), 104);
        run.tokens(1).await;
        assert_eq!(start.elapsed().as_millis(), 106);
        run.tokens(48).await;
        assert_eq!(start.elapsed().as_millis(), 202);
        run.tokens(1).await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_goes_on_while_nobody_reads_it() {
        let simulation = Simulation::new("vllm-0", SimulatedOptions::default());
        let mut run = simulation.run(&prompt(16), "", 20).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(simulation.counts().running, 0);
        let start = Instant::now();
        run.tokens(19).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
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
