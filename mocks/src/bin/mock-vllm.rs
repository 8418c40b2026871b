//! A mock vLLM engine as a process; see the `mocks` library for what it does.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use mocks::{Engine, EngineOptions, Mode, SimulatedOptions, SseOptions};

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ModeName {
    /// Recorded answers, at once.
    Canned,
    /// A queue, a KV cache, and the time they take.
    Simulated,
}

/// A mock vLLM engine: answers as a real one was recorded to answer.
///
/// GET /stats shows what it was asked, POST /reset forgets that and what it has cached.
#[derive(Debug, Parser)]
#[command(version)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
struct Arguments {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, env = "MOCK_VLLM_LISTEN", default_value = "127.0.0.1:8001")]
    listen: SocketAddr,
    /// Unix socket to listen on as well
    #[arg(long, env = "MOCK_VLLM_UNIX")]
    unix: Option<PathBuf>,
    /// Name of the engine, sent as x-served-by
    #[arg(long, env = "MOCK_VLLM_ID", default_value = "vllm-0")]
    id: String,
    /// The model it serves
    #[arg(long, env = "MOCK_VLLM_MODEL", default_value = "tiny")]
    model: String,
    /// How it comes to its answers
    #[arg(long, env = "MOCK_VLLM_MODE", value_enum, default_value = "canned")]
    mode: ModeName,
    /// Seed of ids and of generated text
    #[arg(long, env = "MOCK_VLLM_SEED", default_value_t = 0)]
    seed: u64,
    /// Longest answer that may be asked for, in tokens
    #[arg(long, env = "MOCK_VLLM_MAX_MODEL_LEN", default_value_t = 131_072)]
    max_model_len: u64,
    /// Tokens of an answer whose request has no bound
    #[arg(long, env = "MOCK_VLLM_SSE_EVENTS", default_value_t = 16)]
    sse_events: usize,
    /// Time between the tokens of a canned stream, in milliseconds
    #[arg(long, env = "MOCK_VLLM_SSE_GAP_MS", default_value_t = 0)]
    sse_gap_ms: u64,
    /// Bytes by which the text of every token is made longer
    #[arg(long, env = "MOCK_VLLM_SSE_PADDING_BYTES", default_value_t = 0)]
    sse_padding_bytes: usize,
    /// Simulated: tokens that the KV cache holds
    #[arg(long, env = "MOCK_VLLM_CAPACITY_TOKENS", default_value_t = 500_000)]
    capacity_tokens: usize,
    /// Simulated: tokens in a block
    #[arg(long, env = "MOCK_VLLM_BLOCK_SIZE", default_value_t = 16)]
    block_size: usize,
    /// Simulated: prefill speed
    #[arg(long, env = "MOCK_VLLM_PREFILL_TOKENS_PER_SECOND", default_value_t = 15_000.0)]
    prefill_tokens_per_second: f64,
    /// Simulated: what an iteration takes by itself, the time from one token to the next, in milliseconds
    #[arg(long, env = "MOCK_VLLM_DECODE_MS", default_value_t = 20)]
    decode_ms: u64,
    /// Simulated: what each answer under way adds to an iteration, in microseconds
    #[arg(long, env = "MOCK_VLLM_DECODE_EACH_US", default_value_t = 50)]
    decode_each_us: u64,
    /// Simulated: tokens that one iteration computes at most
    #[arg(long, env = "MOCK_VLLM_MAX_BATCHED_TOKENS", default_value_t = 8192)]
    max_batched_tokens: usize,
    /// Simulated: requests that run at a time
    #[arg(long, env = "MOCK_VLLM_MAX_RUNNING", default_value_t = 256)]
    max_running: usize,
    /// Simulated: compute every prompt anew
    #[arg(long, env = "MOCK_VLLM_NO_PREFIX_CACHING")]
    no_prefix_caching: bool,
    /// Simulated: factor on all times; 0.1 is ten times as fast
    #[arg(long, env = "MOCK_VLLM_TIME_SCALE", default_value_t = 1.0)]
    time_scale: f64,
    /// How long a connection may be idle, in milliseconds; 0 is for ever, a real engine gives 5000
    #[arg(long, env = "MOCK_VLLM_KEEP_ALIVE_MS", default_value_t = 0)]
    keep_alive_ms: u64,
    /// Threads
    #[arg(long, env = "MOCK_VLLM_WORKERS", default_value_t = 1)]
    workers: usize,
    /// Bearer key that guards /v1
    #[arg(long, env = "MOCK_VLLM_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Keep no requests: they are only counted
    #[arg(long, env = "MOCK_VLLM_NO_RECORD")]
    no_record: bool,
    /// Let requests ask for faults with x-mock-fault
    #[arg(long, env = "MOCK_VLLM_FAULTS_BY_HEADER")]
    faults_by_header: bool,
    /// Have no /tokenize
    #[arg(long, env = "MOCK_VLLM_NO_TOKENIZE")]
    no_tokenize: bool,
    /// Report cached tokens in the usage
    #[arg(long, env = "MOCK_VLLM_CACHED_TOKENS")]
    cached_tokens: bool,
    /// Send x-served-by, and `served_by` in generated JSON
    #[arg(long, env = "MOCK_VLLM_SERVED_BY")]
    served_by: bool,
}

impl Arguments {
    fn options(&self) -> EngineOptions {
        let mode = match self.mode {
            ModeName::Canned => Mode::Canned,
            ModeName::Simulated => Mode::Simulated(SimulatedOptions {
                capacity_tokens: self.capacity_tokens,
                block_size: self.block_size,
                prefill_tokens_per_second: self.prefill_tokens_per_second,
                decode: Duration::from_millis(self.decode_ms),
                decode_each: Duration::from_micros(self.decode_each_us),
                max_batched_tokens: self.max_batched_tokens,
                max_running: self.max_running,
                prefix_caching: !self.no_prefix_caching,
                time_scale: self.time_scale,
                announce: None,
            }),
        };
        EngineOptions {
            id: self.id.clone(),
            model: self.model.clone(),
            mode,
            seed: self.seed,
            tokenize: !self.no_tokenize,
            max_model_len: self.max_model_len,
            sse: SseOptions {
                events: self.sse_events,
                gap: Duration::from_millis(self.sse_gap_ms),
                event_padding_bytes: self.sse_padding_bytes,
            },
            api_key: self.api_key.clone(),
            record: !self.no_record,
            keep_alive: (self.keep_alive_ms > 0).then(|| Duration::from_millis(self.keep_alive_ms)),
            faults_by_header: self.faults_by_header,
            served_by: self.served_by,
            served_by_in_body: self.served_by,
            cached_tokens: self.cached_tokens,
            ..EngineOptions::default()
        }
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    mocks::process::run(arguments.workers, async move {
        let engine = Engine::start_at(arguments.listen, arguments.options())?;
        if let Some(path) = &arguments.unix {
            engine.listen_unix(path)?;
        }
        writeln!(std::io::stderr(), "mock-vllm {} listens on {}", engine.id(), engine.address())?;
        mocks::process::ended().await?;
        engine.stop().await;
        Ok(())
    })
}
