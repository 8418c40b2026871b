//! The command line of `run`. Read by `settings`; it decides nothing.
use std::{num::NonZeroUsize, path::PathBuf, time::Duration};

use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use http::Uri;

use crate::traffic::span::{Pause, Span};
use crate::wire::Endpoint;

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Workload {
    /// Bodies of an exact size that have not even their beginning in common.
    Unique,
    /// Single questions under a few long system prompts, some much more popular than others.
    SharedSystemPrompt,
    /// Conversations: every turn sends all that was said before.
    MultiTurn,
    /// Agents in a loop: every step sends all steps before it, with the results of tools.
    Agents,
    /// The requests of a trace, with prompts that have in common what it says.
    Trace,
}

/// What is sent where, and when.
#[derive(Args)]
pub(crate) struct Run {
    /// Where to send requests; without a path to that of the endpoint.
    #[arg(long, value_name = "URL")]
    pub(crate) target: Uri,
    /// What is sent; `unique` by default.
    #[arg(long, value_enum)]
    pub(crate) workload: Option<Workload>,
    /// Open loop: requests, or sessions of more than one, that begin per second, as Poisson has it.
    #[arg(long, value_name = "PER_SECOND", conflicts_with = "connections")]
    pub(crate) rate: Option<f64>,
    /// Closed loop: connections, each with one request at a time; 16 by default.
    #[arg(long)]
    pub(crate) connections: Option<NonZeroUsize>,
    /// How long to measure: 5 s by default, or as long as the trace is.
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) duration: Option<Duration>,
    /// Send load for this long before measuring.
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration)]
    pub(crate) warm_up: Duration,
    /// Measure this many requests instead of a time; of a trace the first ones.
    #[arg(long, visible_alias = "limit", conflicts_with_all = ["duration", "warm_up"])]
    pub(crate) requests: Option<usize>,
    /// What is asked for; by default what the target's path says, else chats.
    #[arg(long, value_enum)]
    pub(crate) endpoint: Option<Endpoint>,
    /// Ask for event streams.
    #[arg(long)]
    pub(crate) stream: bool,
    /// Model name in the requests.
    #[arg(long, default_value = "tiny")]
    pub(crate) model: String,
    /// Seed of all that is sent, and when.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// How long one request may take.
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Duration,
    /// Open loop: requests under way at a time; more than these wait, and the result says so.
    #[arg(long, value_name = "REQUESTS", default_value = "4096")]
    pub(crate) in_flight: NonZeroUsize,
    #[command(flatten)]
    pub(crate) sizes: Sizes,
    #[command(flatten)]
    pub(crate) access: Access,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// What the workloads are like.
#[derive(Args)]
#[command(next_help_heading = "Workload")]
pub(crate) struct Sizes {
    /// unique: size of a request body, exactly; 16 KiB by default.
    #[arg(long)]
    pub(crate) body_bytes: Option<ByteSize>,
    /// unique: send so many different bodies in turn; by default none is sent twice.
    #[arg(long)]
    pub(crate) distinct: Option<NonZeroUsize>,
    /// shared-system-prompt: how many there are, 12 by default; agents: how many types of them, 4 by default.
    #[arg(long)]
    pub(crate) system_prompts: Option<NonZeroUsize>,
    /// Tokens of a system prompt; 3000..5000 by default, of conversations 512.
    #[arg(long, value_name = "TOKENS")]
    pub(crate) system_tokens: Option<Span<usize>>,
    /// Tokens of a question, or of what an agent is to do; 20..320 by default.
    #[arg(long, value_name = "TOKENS")]
    pub(crate) question_tokens: Option<Span<usize>>,
    /// multi-turn: tokens of the first question; 128..4096 by default.
    #[arg(long, value_name = "TOKENS")]
    pub(crate) first_question_tokens: Option<Span<usize>>,
    /// agents: tokens of what a tool answers; 50..2000 by default.
    #[arg(long, value_name = "TOKENS")]
    pub(crate) result_tokens: Option<Span<usize>>,
    /// Tokens of an answer that are asked for; 64 by default with unique, else 32..256.
    #[arg(long, value_name = "TOKENS")]
    pub(crate) answer_tokens: Option<Span<usize>>,
    /// Turns of a conversation, 4..8 by default, or steps of an agent, 5..20 by default.
    #[arg(long)]
    pub(crate) turns: Option<Span<usize>>,
    /// From an answer to the next turn: 2s..20s by default, of agents 50ms..1s.
    #[arg(long, value_name = "TIME")]
    pub(crate) think_time: Option<Pause>,
    /// The trace, in the format of Mooncake or an access log of kvway with block keys.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["rate", "connections"])]
    pub(crate) trace: Option<PathBuf>,
    /// trace: 2 plays an hour in half an hour; 1 by default.
    #[arg(long)]
    pub(crate) speed: Option<f64>,
    /// How many bytes of text make a token; not with unique.
    #[arg(long, value_name = "BYTES", default_value = "4")]
    pub(crate) bytes_per_token: NonZeroUsize,
}

/// What the target wants to see, and shows.
#[derive(Args)]
#[command(next_help_heading = "Target")]
pub(crate) struct Access {
    /// A header of every request; never shown or kept.
    #[arg(long, value_name = "NAME: VALUE")]
    pub(crate) header: Vec<String>,
    /// Send the value of this environment variable as bearer token.
    #[arg(long, value_name = "VARIABLE")]
    pub(crate) api_key_env: Option<String>,
    /// The header by which an answer tells who served it, up to a semicolon.
    #[arg(long, value_name = "NAME", default_value = crate::answer::SERVED_BY)]
    pub(crate) backend_header: String,
}

/// What becomes of the result.
#[derive(Args)]
#[command(next_help_heading = "Result")]
pub(crate) struct Output {
    /// Account CPU time of this process and all below it.
    #[arg(long)]
    pub(crate) pid: Option<i32>,
    /// Also write the result to this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Also draw the result in this file, a page of HTML that needs no network.
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// What the run is called in reports; the target by default.
    #[arg(long, value_name = "NAME")]
    pub(crate) label: Option<String>,
    /// Kept with the result: the revision of the target.
    #[arg(long, default_value = "unknown")]
    pub(crate) revision: String,
}
