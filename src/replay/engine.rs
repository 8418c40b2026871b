//! The model of one engine: continuous batching with chunked prefill over a prefix cache, in steps of simulated time.
//!
//! Driven by `simulation`, which tells it the time; `memory.rs` is its KV memory. It is bounded by what was sent to it. It does
//! not model preemption, speculation, parallelism inside an engine, or a batch whose prefills run beside its decodes.
//!
//! One iteration computes up to [`ITERATION_TOKENS_MAX`] tokens: first one for each running decode, then prompts in the order of
//! arrival, the last of them in part. It takes
//!
//! ```text
//! 12 ms + Σ chunk / 15,000 tok/s · (1 + context / 53,400) + 50 µs · decodes + 35 ns · KV tokens read
//!       + tokens loaded from the slower tier / 300,000 tok/s
//! ```
//!
//! What the formula leaves open is read as follows, because this is what the published numbers of the same model agree with:
//!
//! - `context` of a chunk is what precedes its middle: attention looks at half of the chunk's own tokens on average.
//! - KV tokens are read by each decode (its prompt and output so far) and by each chunk (what precedes it).
//! - A request is admitted when an iteration has tokens left for it, and not earlier. What is cached of its prompt is looked up
//!   then. Its whole prompt takes room from then on, its output as it grows.
//! - Admission stops before what is pinned would exceed the memory, or with [`SEQUENCES_MAX`] running. An engine without any other
//!   request takes whatever comes.
//! - The first token comes with the end of the iteration that completes the prompt, and counts as output.
//! - The last block of a prompt is reusable like any other, with the tokens that it has.
//! - A block was last used when the last request that used it ended.
//! - With a slower tier, fast memory is for what is in use. What nobody used any more is loaded in the iteration that admits a
//!   request for it.

use super::memory::{Memory, Prompt, Share};
use super::trace::Trace;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Tokens of one iteration.
pub(super) const ITERATION_TOKENS_MAX: usize = 8192;
/// Requests that are in prefill or decode at a time.
pub(super) const SEQUENCES_MAX: usize = 256;

const ITERATION_S: f64 = 12e-3;
const PREFILL_TOKENS_PER_S: f64 = 15_000.0;
/// The context at which attention takes as long as everything else of a prefill.
const CONTEXT_TOKENS: f64 = 53_400.0;
const DECODE_S: f64 = 50e-6;
const KV_TOKEN_S: f64 = 35e-9;
const LOADED_TOKENS_PER_S: f64 = 300_000.0;

/// All of them, by name.
pub(super) fn constants() -> [(&'static str, f64); 8] {
    [
        ("iteration_tokens_max", tokens(ITERATION_TOKENS_MAX)),
        ("sequences_max", tokens(SEQUENCES_MAX)),
        ("iteration_s", ITERATION_S),
        ("prefill_tokens_per_s", PREFILL_TOKENS_PER_S),
        ("context_tokens", CONTEXT_TOKENS),
        ("decode_s", DECODE_S),
        ("kv_token_s", KV_TOKEN_S),
        ("loaded_tokens_per_s", LOADED_TOKENS_PER_S),
    ]
}

/// What a request has come to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Progress {
    /// Its first token is out; so many of its prompt's tokens were cached.
    FirstToken { request: usize, cached_tokens: usize },
    /// It has ended.
    Completed { request: usize },
}

/// A request whose prompt is being computed.
#[derive(Debug)]
struct Prefill {
    request: usize,
    share: Share,
    cached_tokens: usize,
    done_tokens: usize,
}

/// See the head of this file. Requests are known by their place in the trace.
#[derive(Debug, Default)]
pub(super) struct Engine {
    waiting: VecDeque<usize>,
    /// The prompt that the last iteration began and did not complete.
    begun: Option<Prefill>,
    /// The prompts that the running iteration completes.
    completing: Vec<Prefill>,
    /// By the iteration with which they end.
    decodes: BTreeMap<(usize, usize), Share>,
    /// Prompt and output so far of all decodes.
    decode_tokens: usize,
    iterations: usize,
    busy: Duration,
}

impl Engine {
    /// A request has arrived.
    pub(super) fn enqueue(&mut self, request: usize) {
        self.waiting.push_back(request);
    }

    /// How long it has worked.
    pub(super) fn busy(&self) -> Duration {
        self.busy
    }

    /// Begins an iteration and tells how long it takes; `None` when there is nothing to do.
    pub(super) fn begin(&mut self, trace: &Trace, memory: &mut Memory) -> Option<Duration> {
        let decodes = self.decodes.len();
        let mut budget = ITERATION_TOKENS_MAX.saturating_sub(decodes);
        let mut loaded_tokens = 0;
        let mut read_tokens = self.decode_tokens;
        let mut prefill_s = 0.0;
        while budget > 0 {
            let begun = self.begun.take().or_else(|| self.admit(trace, memory, &mut loaded_tokens));
            let Some(mut prefill) = begun else { break };
            let left = trace.prompt(prefill.request).tokens - prefill.done_tokens;
            let chunk = left.min(budget);
            let context = tokens(prefill.done_tokens) + tokens(chunk) / 2.0;
            prefill_s += tokens(chunk) / PREFILL_TOKENS_PER_S * (1.0 + context / CONTEXT_TOKENS);
            read_tokens += prefill.done_tokens;
            prefill.done_tokens += chunk;
            budget -= chunk;
            if chunk == left {
                self.completing.push(prefill);
            } else {
                self.begun = Some(prefill);
            }
        }
        if decodes == 0 && self.completing.is_empty() && self.begun.is_none() {
            return None;
        }
        let memory_s = KV_TOKEN_S * tokens(read_tokens) + tokens(loaded_tokens) / LOADED_TOKENS_PER_S;
        let took_s = ITERATION_S + prefill_s + DECODE_S * tokens(decodes) + memory_s;
        let took = Duration::from_secs_f64(took_s);
        self.busy += took;
        Some(took)
    }

    /// The next request that waits, if there is room for it.
    fn admit(&mut self, trace: &Trace, memory: &mut Memory, loaded_tokens: &mut usize) -> Option<Prefill> {
        let running = self.completing.len() + self.decodes.len();
        if running >= SEQUENCES_MAX {
            return None;
        }
        let request = *self.waiting.front()?;
        let admitted = memory.admit(&trace.prompt(request), running == 0)?;
        self.waiting.pop_front();
        *loaded_tokens += admitted.loaded_tokens;
        let cached_tokens = admitted.cached_tokens;
        Some(Prefill { request, share: admitted.share, cached_tokens, done_tokens: cached_tokens })
    }

    /// Ends the iteration that was begun: what comes of it goes to `progress`.
    pub(super) fn end(&mut self, trace: &Trace, memory: &mut Memory, progress: &mut Vec<Progress>) {
        self.iterations += 1;
        memory.take(self.decodes.len());
        self.decode_tokens += self.decodes.len();
        for mut prefill in self.completing.drain(..) {
            let Prefill { request, cached_tokens, .. } = prefill;
            let prompt = trace.prompt(request);
            memory.publish(&prompt, &mut prefill.share);
            memory.take(1);
            progress.push(Progress::FirstToken { request, cached_tokens });
            let more_tokens = trace.requests[request].output_tokens.saturating_sub(1);
            self.decode_tokens += prompt.tokens + 1;
            self.decodes.insert((self.iterations + more_tokens, request), prefill.share);
        }
        while let Some(entry) = self.decodes.first_entry().filter(|entry| entry.key().0 <= self.iterations) {
            let ((_, request), share) = entry.remove_entry();
            let (prompt, output_tokens) =
                (trace.prompt(request), trace.requests[request].output_tokens.max(1));
            memory.release(&prompt, &share, output_tokens);
            self.decode_tokens -= prompt.tokens + output_tokens;
            progress.push(Progress::Completed { request });
        }
    }
}

/// Counts of tokens are far below 2^32.
fn tokens(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

impl Trace {
    /// The prompt of a request, as engines see it.
    pub(super) fn prompt(&self, request: usize) -> Prompt<'_> {
        let request = &self.requests[request];
        Prompt { keys: &request.keys, block_tokens: self.block_tokens, tokens: request.input_tokens }
    }
}

#[cfg(test)]
mod tests {
    use super::super::trace::{BlockKey, Request};
    use super::*;

    /// Requests of (input, output) tokens; each prompt has blocks of its own.
    fn trace(requests: &[(usize, usize)]) -> Trace {
        let request = |(number, &(input_tokens, output_tokens)): (u64, &(usize, usize))| Request {
            at: Duration::ZERO,
            input_tokens,
            output_tokens,
            keys: (0..input_tokens.div_ceil(100) as u64)
                .map(|block| BlockKey(number << 32 | block))
                .collect(),
            session: None,
            gap: None,
        };
        Trace {
            name: "t".to_owned(),
            block_tokens: 100,
            requests: (0..).zip(requests).map(request).collect(),
        }
    }

    /// The seconds of each iteration until all is done, and what came of it.
    fn run(trace: &Trace, memory: &mut Memory) -> (Vec<f64>, Vec<Vec<Progress>>) {
        let mut engine = Engine::default();
        (0..trace.requests.len()).for_each(|request| engine.enqueue(request));
        let (mut seconds, mut progress) = (Vec::new(), Vec::new());
        while let Some(took) = engine.begin(trace, memory) {
            seconds.push(took.as_secs_f64());
            progress.push(Vec::new());
            engine.end(trace, memory, progress.last_mut().unwrap());
        }
        assert!(memory.is_unused() && engine.decode_tokens == 0);
        assert!((engine.busy().as_secs_f64() - seconds.iter().sum::<f64>()).abs() < 1e-9);
        (seconds, progress)
    }

    fn assert_close(seconds: &[f64], expected: &[f64]) {
        assert_eq!(seconds.len(), expected.len(), "{seconds:?}");
        for (is, should) in seconds.iter().zip(expected) {
            assert!((is - should).abs() < 2e-9, "{seconds:?} instead of {expected:?}");
        }
    }

    fn first(request: usize, cached_tokens: usize) -> Progress {
        Progress::FirstToken { request, cached_tokens }
    }

    fn completed(request: usize) -> Progress {
        Progress::Completed { request }
    }

    #[test]
    fn one_request_takes_what_the_formula_says() {
        let (seconds, progress) = run(&trace(&[(1000, 3)]), &mut Memory::new(5000, None));
        let prefill = 0.012 + 1000.0 / 15_000.0 * (1.0 + 500.0 / 53_400.0);
        assert_close(&seconds, &[prefill, 0.01205 + 35e-9 * 1001.0, 0.01205 + 35e-9 * 1002.0]);
        assert_eq!(progress, [vec![first(0, 0)], vec![], vec![completed(0)]]);
    }

    #[test]
    fn the_only_token_of_an_answer_comes_with_the_prompt() {
        let (_, progress) = run(&trace(&[(10, 1), (10, 0)]), &mut Memory::new(5000, None));
        assert_eq!(progress, [[first(0, 0), first(1, 0), completed(0), completed(1)]]);
    }

    #[test]
    fn a_long_prompt_is_computed_in_chunks_and_the_next_one_follows_it() {
        let (seconds, progress) = run(&trace(&[(10_000, 1), (500, 1)]), &mut Memory::new(50_000, None));
        let whole = 0.012 + 8192.0 / 15_000.0 * (1.0 + 4096.0 / 53_400.0);
        let rest = 1808.0 / 15_000.0 * (1.0 + (8192.0 + 904.0) / 53_400.0) + 35e-9 * 8192.0;
        let next = 500.0 / 15_000.0 * (1.0 + 250.0 / 53_400.0);
        assert_close(&seconds, &[whole, 0.012 + rest + next]);
        assert_eq!(progress, [vec![], vec![first(0, 0), first(1, 0), completed(0), completed(1)]]);
    }

    #[test]
    fn decodes_take_their_tokens_of_an_iteration_first() {
        let (seconds, _) = run(&trace(&[(100, 2), (100, 2), (16_183, 1)]), &mut Memory::new(50_000, None));
        // 7,992 tokens of the long prompt beside the two others, 8,190 beside their decodes, and one is left.
        let chunk = |tokens: f64, before: f64| {
            tokens / 15_000.0 * (1.0 + (before + tokens / 2.0) / 53_400.0) + 35e-9 * before
        };
        let decodes = 2.0 * (50e-6 + 35e-9 * 101.0);
        let beside = 0.012 + 2.0 * chunk(100.0, 0.0) + chunk(7992.0, 0.0);
        assert_close(
            &seconds,
            &[beside, 0.012 + decodes + chunk(8190.0, 7992.0), 0.012 + chunk(1.0, 16_182.0)],
        );
    }

    #[test]
    fn a_prompt_is_reusable_from_the_end_of_its_prefill() {
        let mut trace = trace(&[(8000, 1), (8000, 1)]);
        trace.requests[1].keys = std::sync::Arc::clone(&trace.requests[0].keys);
        let mut memory = Memory::new(50_000, None);
        let (_, progress) = run(&trace, &mut memory);
        let together = [vec![first(0, 0), completed(0)], vec![first(1, 0), completed(1)]];
        assert_eq!(progress, together, "the second one had begun before the first one was done");
        let (seconds, progress) = run(&trace, &mut memory);
        assert_close(&seconds, &[0.012 + 2.0 / 15_000.0 * (1.0 + 7999.5 / 53_400.0) + 35e-9 * 15_998.0]);
        assert_eq!(progress, [[first(0, 7999), first(1, 7999), completed(0), completed(1)]]);
    }

    #[test]
    fn a_request_waits_until_there_is_memory_for_it() {
        let (_, progress) = run(&trace(&[(600, 2), (500, 1)]), &mut Memory::new(1000, None));
        let expected = [vec![first(0, 0)], vec![completed(0)], vec![first(1, 0), completed(1)]];
        assert_eq!(progress, expected);
        let (_, progress) = run(&trace(&[(5000, 1)]), &mut Memory::new(1000, None));
        assert_eq!(progress, [[first(0, 0), completed(0)]], "there is no better engine for it");
    }

    #[test]
    fn no_more_requests_run_than_an_engine_takes() {
        let requests = [(10, 2); SEQUENCES_MAX + 1];
        let (_, progress) = run(&trace(&requests), &mut Memory::new(50_000, None));
        let lengths: Vec<usize> = progress.iter().map(Vec::len).collect();
        assert_eq!(lengths, [SEQUENCES_MAX, SEQUENCES_MAX, 1, 1]);
    }

    #[test]
    fn loading_from_the_slower_tier_takes_its_time() {
        let trace = trace(&[(1000, 1)]);
        let mut memory = Memory::new(1000, Some(9000));
        run(&trace, &mut memory);
        let (seconds, progress) = run(&trace, &mut memory);
        let last_token = 1.0 / 15_000.0 * (1.0 + 999.5 / 53_400.0) + 35e-9 * 999.0;
        assert_close(&seconds, &[0.012 + 1000.0 / 300_000.0 + last_token]);
        assert_eq!(progress, [[first(0, 999), completed(0)]]);
    }
}
