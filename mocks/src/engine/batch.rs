//! What a simulated engine works on: continuous batching with chunked prefill, as vLLM's scheduler does it.
//!
//! One iteration after the other gives every answer under way its next token and computes prompts, first come first
//! served, as far as the budget of tokens goes. A prompt is looked up in the cache when its first chunk is computed, and
//! can be found from the end of its prefill; the tokens of its answer hold memory and are not found. A request enters
//! when there is a place and memory for its prompt and its whole answer, so that nothing has to be preempted. Without
//! locks and without a clock: `simulation` waits for as long as [`Batch::begin`] says. Attention costs no more in a long
//! context than in a short one.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::watch;

use super::SimulatedOptions;
use super::cache::{BlockCache, Held, block_keys};

/// How far a request has come.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Progress {
    /// Tokens of its prompt that were in the cache.
    pub(super) cached: usize,
    /// Tokens of its answer that are there.
    pub(super) tokens: usize,
}

/// Names a request of one engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Id(u64);

/// What a simulation shows.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub(super) struct Counts {
    pub(super) waiting: u32,
    pub(super) running: u32,
    /// Tokens asked of the prefix cache, and those it had.
    pub(super) queries: u64,
    pub(super) hits: u64,
}

#[derive(Debug)]
struct Sequence {
    id: Id,
    keys: Vec<u64>,
    prompt: usize,
    answer: usize,
    /// Tokens of the prompt that were found or computed.
    computed: usize,
    /// Tokens of the prompt that this iteration computes.
    chunk: usize,
    held: Held,
    progress: watch::Sender<Progress>,
}

impl Sequence {
    fn answers(&self) -> bool {
        self.computed == self.prompt
    }

    /// Takes what it may of the budget for its prompt.
    fn plan(&mut self, budget: &mut usize) -> usize {
        self.chunk = (self.prompt - self.computed).min(*budget);
        *budget -= self.chunk;
        self.chunk
    }

    fn is_finished(&self) -> bool {
        self.progress.borrow().tokens >= self.answer
    }
}

/// The requests of one engine, and its memory.
#[derive(Debug)]
pub(super) struct Batch {
    options: SimulatedOptions,
    blocks: u32,
    cache: BlockCache,
    queue: VecDeque<Sequence>,
    running: Vec<Sequence>,
    requests: u64,
    queries: u64,
    hits: u64,
}

impl Batch {
    pub(super) fn new(mut options: SimulatedOptions) -> Self {
        options.block_size = options.block_size.max(1);
        let blocks = u32::try_from(options.capacity_tokens / options.block_size).unwrap_or(u32::MAX).max(1);
        Self {
            options,
            blocks,
            cache: BlockCache::new(blocks as usize),
            queue: VecDeque::new(),
            running: Vec::new(),
            requests: 0,
            queries: 0,
            hits: 0,
        }
    }

    pub(super) fn block_size(&self) -> usize {
        self.options.block_size
    }

    /// Blocks of the whole memory.
    pub(super) fn blocks(&self) -> u32 {
        self.blocks
    }

    /// The part of the memory that running requests hold.
    pub(super) fn usage(&self) -> f64 {
        f64::from(count(self.cache.in_use())) / f64::from(self.blocks)
    }

    pub(super) fn counts(&self) -> Counts {
        let (waiting, running) = (count(self.queue.len()), count(self.running.len()));
        Counts { waiting, running, queries: self.queries, hits: self.hits }
    }

    /// Forgets the cache and its counters; what runs goes on.
    pub(super) fn forget(&mut self) {
        self.cache.forget();
        (self.queries, self.hits) = (0, 0);
    }

    /// Queues a request. Its progress ends when it is finished or has left.
    pub(super) fn enter(
        &mut self,
        prompt: &[u32],
        salt: &str,
        answer: usize,
    ) -> (Id, watch::Receiver<Progress>) {
        let caching = self.options.prefix_caching;
        let keys = if caching { block_keys(prompt, self.options.block_size, salt) } else { Vec::new() };
        let (progress, seen) = watch::channel(Progress::default());
        self.requests += 1;
        let id = Id(self.requests);
        self.queue.push_back(Sequence {
            id,
            keys,
            // An empty prompt is one token, from which the answer begins.
            prompt: prompt.len().max(1),
            answer: answer.max(1),
            computed: 0,
            chunk: 0,
            held: Held::default(),
            progress,
        });
        (id, seen)
    }

    /// Takes a request out, wherever it is; one that is finished has left already.
    pub(super) fn leave(&mut self, id: Id) {
        self.queue.retain(|sequence| sequence.id != id);
        self.retain(|sequence| sequence.id != id);
    }

    fn retain(&mut self, stays: impl Fn(&Sequence) -> bool) {
        for gone in self.running.extract_if(.., |sequence| !stays(sequence)) {
            self.cache.release(&gone.keys, &gone.held);
        }
    }

    /// Puts an iteration together, and says how long it takes; `None` when there is nothing to do.
    pub(super) fn begin(&mut self) -> Option<Duration> {
        let answers = self.running.iter().filter(|sequence| sequence.answers()).count();
        let mut budget = self.options.max_batched_tokens.max(answers + 1) - answers;
        let mut computed = 0;
        for sequence in &mut self.running {
            computed += sequence.plan(&mut budget);
        }
        while budget > 0 && self.admit() {
            computed += self.running.last_mut().map_or(0, |sequence| sequence.plan(&mut budget));
        }
        let prefill = f64::from(count(computed)) / self.options.prefill_tokens_per_second;
        let decode = self.options.decode + self.options.decode_each * count(answers);
        let seconds = (decode.as_secs_f64() + prefill) * self.options.time_scale;
        (!self.running.is_empty()).then(|| Duration::try_from_secs_f64(seconds).unwrap_or_default())
    }

    /// Moves the first in the queue to those that run, if there is room for it.
    fn admit(&mut self) -> bool {
        let size = self.options.block_size;
        let place = self.running.len() < self.options.max_running.max(1);
        let Some(mut sequence) = self.queue.pop_front_if(|_| place) else {
            return false;
        };
        // At least one token is computed, since the first token of the answer comes from it.
        let reusable = sequence.keys.get(..(sequence.prompt - 1) / size).unwrap_or(&sequence.keys);
        let matched = self.cache.matched(reusable);
        let found = reusable.get(..matched).unwrap_or_default();
        let Some(held) = self.cache.take(found, (sequence.prompt + sequence.answer).div_ceil(size)) else {
            self.queue.push_front(sequence);
            return false;
        };
        sequence.held = held;
        sequence.computed = matched * size;
        sequence.progress.send_modify(|progress| progress.cached = matched * size);
        self.queries += if self.options.prefix_caching { sequence.prompt as u64 } else { 0 };
        self.hits += (matched * size) as u64;
        self.running.push(sequence);
        true
    }

    /// The iteration is over: prompts are further, answers have a token more.
    pub(super) fn end(&mut self) {
        for sequence in &mut self.running {
            if !sequence.answers() {
                sequence.computed += std::mem::take(&mut sequence.chunk);
                if !sequence.answers() {
                    continue;
                }
                self.cache.publish(&sequence.keys, &mut sequence.held);
            }
            sequence.progress.send_modify(|progress| progress.tokens += 1);
        }
        self.retain(|sequence| !sequence.is_finished());
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An engine with round numbers: an iteration takes 10 ms, an answer in it 1 ms more, a token of a prompt 1 ms.
    fn batch(options: SimulatedOptions) -> Batch {
        Batch::new(SimulatedOptions {
            prefill_tokens_per_second: 1000.0,
            decode: Duration::from_millis(10),
            decode_each: Duration::from_millis(1),
            ..options
        })
    }

    fn prompt(from: u32, tokens: u32) -> Vec<u32> {
        (from..from + tokens).collect()
    }

    /// One iteration; how many milliseconds it takes.
    fn iterate(batch: &mut Batch) -> u128 {
        let time = batch.begin().unwrap();
        batch.end();
        time.as_millis()
    }

    #[test]
    fn an_engine_without_requests_has_nothing_to_do() {
        let mut batch = batch(SimulatedOptions::default());
        assert_eq!(batch.begin(), None);
        let (_, seen) = batch.enter(&prompt(0, 20), "", 2);
        assert_eq!((iterate(&mut batch), seen.borrow().tokens), (30, 1));
        assert_eq!((iterate(&mut batch), seen.borrow().tokens), (11, 2));
        assert_eq!((batch.begin(), batch.usage()), (None, 0.0));
    }

    #[test]
    fn prompts_that_fit_the_budget_are_computed_together_and_the_rest_later() {
        let mut batch = batch(SimulatedOptions { max_batched_tokens: 100, ..SimulatedOptions::default() });
        let seen = [0, 1000, 2000].map(|from| batch.enter(&prompt(from, 60), "", 9).1);
        let tokens = || seen.iter().map(|seen| seen.borrow().tokens).collect::<Vec<_>>();
        assert_eq!((iterate(&mut batch), tokens()), (110, vec![1, 0, 0]));
        assert_eq!(batch.counts(), Counts { waiting: 1, running: 2, queries: 120, hits: 0 });
        // One token of the budget is that of the answer, which is there no later for it.
        assert_eq!((iterate(&mut batch), tokens()), (10 + 1 + 80, vec![2, 1, 1]));
        assert_eq!((iterate(&mut batch), tokens()), (13, vec![3, 2, 2]));
    }

    #[test]
    fn a_prompt_is_looked_up_when_it_is_its_turn() {
        let mut batch = batch(SimulatedOptions { max_batched_tokens: 64, ..SimulatedOptions::default() });
        let seen = [(); 2].map(|()| batch.enter(&prompt(0, 64), "", 1).1);
        assert_eq!((iterate(&mut batch), iterate(&mut batch)), (74, 26));
        assert_eq!(seen.map(|seen| seen.borrow().cached), [0, 48]);
    }

    #[test]
    fn two_equal_prompts_in_one_iteration_are_both_computed() {
        let mut batch = batch(SimulatedOptions::default());
        let seen = [(); 2].map(|()| batch.enter(&prompt(0, 64), "", 5).1);
        assert_eq!((iterate(&mut batch), seen.map(|seen| seen.borrow().cached)), (138, [0, 0]));
        // Four blocks are shared; each of the two has one more, for its answer.
        assert_eq!(batch.cache.in_use(), 6);
    }

    #[test]
    fn a_long_prompt_takes_several_iterations_and_holds_no_answer_up_for_longer() {
        let mut batch = batch(SimulatedOptions { max_batched_tokens: 50, ..SimulatedOptions::default() });
        let (_, answer) = batch.enter(&prompt(5000, 10), "", 100);
        iterate(&mut batch);
        let (_, long) = batch.enter(&prompt(0, 120), "", 1);
        assert_eq!([(); 3].map(|()| iterate(&mut batch)), [60, 60, 33]);
        assert_eq!((answer.borrow().tokens, long.borrow().tokens), (4, 1));
    }

    #[test]
    fn more_answers_than_the_budget_do_not_stop_a_prompt() {
        let mut batch = batch(SimulatedOptions { max_batched_tokens: 1, ..SimulatedOptions::default() });
        let seen = [1, 2].map(|first| batch.enter(&[first], "", 50).1);
        for _ in 0..5 {
            iterate(&mut batch);
        }
        assert_eq!(seen.map(|seen| seen.borrow().tokens), [5, 4]);
    }

    #[test]
    fn who_finds_no_place_or_no_memory_waits_in_turn() {
        let options =
            SimulatedOptions { capacity_tokens: 160, max_running: 2, ..SimulatedOptions::default() };
        let mut batch = batch(options);
        let (first, _) = batch.enter(&prompt(0, 64), "", 64);
        let (_, large) = batch.enter(&prompt(1000, 64), "", 16);
        let (_, small) = batch.enter(&prompt(2000, 16), "", 3);
        for _ in 0..2 {
            iterate(&mut batch);
            assert!((batch.usage() - 0.8).abs() < 1e-9);
            assert_eq!((batch.counts().running, batch.counts().waiting), (1, 2));
        }
        batch.leave(first);
        assert!(batch.usage().abs() < 1e-9);
        iterate(&mut batch);
        assert_eq!((large.borrow().tokens, small.borrow().tokens), (1, 1));
        let (_, last) = batch.enter(&prompt(3000, 1), "", 1);
        assert_eq!((iterate(&mut batch), last.borrow().tokens, batch.counts().waiting), (12, 0, 1));
    }

    #[test]
    fn a_request_larger_than_the_memory_runs_alone() {
        let mut batch = batch(SimulatedOptions { capacity_tokens: 64, ..SimulatedOptions::default() });
        let (_, small) = batch.enter(&prompt(1000, 8), "", 2);
        let (_, large) = batch.enter(&prompt(0, 200), "", 2);
        iterate(&mut batch);
        assert_eq!((batch.counts().running, batch.counts().waiting), (1, 1));
        iterate(&mut batch);
        iterate(&mut batch);
        assert_eq!((small.borrow().tokens, large.borrow().tokens), (2, 1));
    }

    #[test]
    fn a_prefill_that_is_given_up_leaves_nothing_behind() {
        let mut batch = batch(SimulatedOptions::default());
        let (id, _) = batch.enter(&prompt(0, 64), "", 1);
        assert!(batch.begin().is_some());
        batch.leave(id);
        batch.end();
        assert_eq!((batch.counts().running, batch.cache.in_use()), (0, 0));
        let (_, again) = batch.enter(&prompt(0, 64), "", 1);
        iterate(&mut batch);
        assert_eq!((again.borrow().tokens, again.borrow().cached), (1, 0));
    }
}
