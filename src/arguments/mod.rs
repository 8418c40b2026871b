//! The command line: what the operator can say. Parsed by clap; every flag has an environment variable.
//!
//! Read by `main`. It says nothing about what the words do. `replay.rs` has the flags of one command.

mod replay;

pub use replay::{POLICIES, Replay};

use clap::{Args, Parser, Subcommand};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

const ENDING: &str = "\
Exit codes: 0 done, 1 failed, 64 the command line cannot be understood, 65 a trace cannot be read, 78 the configuration \
is refused, 130 interrupted while replaying.

Signals: SIGTERM drains and ends, SIGQUIT hands over to `kvway run --upgrade`, SIGINT ends at once.";

/// A KV-cache-aware gateway for fleets of LLM engines.
#[derive(Debug, Parser)]
#[command(name = "kvway", version, after_help = ENDING, disable_help_subcommand = true)]
pub struct Arguments {
    /// Check the configuration and end, as `kvway check` does.
    #[arg(short = 't', long = "test", env = "KVWAY_TEST", global = false)]
    pub test: bool,
    /// Where the configuration is.
    #[command(flatten)]
    pub config: ConfigFile,
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Where the configuration is.
#[derive(Args, Clone, Debug)]
pub struct ConfigFile {
    /// The configuration file.
    #[arg(
        short = 'c',
        long,
        value_name = "FILE",
        env = "KVWAY_CONFIG",
        help_heading = "Configuration",
        global = true
    )]
    pub config: Option<PathBuf>,
    /// A configuration of Apache dubbo-go-pixiu, in place of one of kvway.
    #[arg(long, value_name = "FILE", env = "KVWAY_PIXIU", help_heading = "Configuration", global = true)]
    pub pixiu: Option<PathBuf>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the gateway.
    Run(Run),
    /// Check a configuration: print what is in effect, or what is wrong.
    Check,
    /// What dubbo-go-pixiu understands: `gateway start -c FILE` is `run --pixiu FILE`.
    #[command(subcommand)]
    Gateway(Gateway),
    /// Run the gateway before an embedded fleet of mock engines, and show what it does.
    Demo(Demo),
    /// Send unique and repeated prompts through a running gateway, and show what its caches are worth. Exit code 0 or 1.
    Compare(Compare),
    /// Replay a trace or yesterday's access log on simulated engines, under several policies, and show what each would give.
    Replay(Replay),
    /// Ask the engines and LMCache of a configuration whether routing by caches can work. Exit code 0 or 1.
    Doctor(Doctor),
    /// Ask a running gateway whether it is ready; for containers. Exit code 0 or 1.
    Healthcheck(Healthcheck),
}

/// How to run.
#[derive(Args, Debug)]
pub struct Run {
    /// Take the listeners over from the running process; then send it SIGQUIT.
    #[arg(long, env = "KVWAY_UPGRADE", help_heading = "Upgrade")]
    pub upgrade: bool,
    /// Check the configuration and end, as `kvway check` does.
    #[arg(short = 't', long = "test", env = "KVWAY_TEST", help_heading = "Configuration")]
    pub test: bool,
}

/// The command line of dubbo-go-pixiu.
#[derive(Debug, Subcommand)]
pub enum Gateway {
    /// Run the gateway with a configuration of dubbo-go-pixiu.
    Start(Start),
}

/// What dubbo-go-pixiu is told beside its configuration. It has no effect here, and is accepted so that scripts go on.
#[derive(Args, Debug)]
pub struct Start {
    /// Without effect: there are no API configurations here.
    #[arg(
        short = 'a',
        long,
        value_name = "FILE",
        env = "KVWAY_PIXIU_API_CONFIG",
        help_heading = "Without effect"
    )]
    pub api_config: Option<PathBuf>,
    /// Without effect: the log goes to standard error.
    #[arg(
        short = 'g',
        long,
        value_name = "FILE",
        env = "KVWAY_PIXIU_LOG_CONFIG",
        help_heading = "Without effect"
    )]
    pub log_config: Option<PathBuf>,
    /// Without effect: see log.level of a configuration of kvway.
    #[arg(
        short = 'l',
        long,
        value_name = "LEVEL",
        env = "KVWAY_PIXIU_LOG_LEVEL",
        help_heading = "Without effect"
    )]
    pub log_level: Option<String>,
    /// Without effect: see server.threads of a configuration of kvway.
    #[arg(
        short = 'm',
        long,
        value_name = "COUNT",
        env = "KVWAY_PIXIU_LIMIT_CPUS",
        help_heading = "Without effect"
    )]
    pub limit_cpus: Option<String>,
    /// Without effect.
    #[arg(
        short = 'f',
        long,
        value_name = "FORMAT",
        env = "KVWAY_PIXIU_LOG_FORMAT",
        help_heading = "Without effect"
    )]
    pub log_format: Option<String>,
}

/// What to show.
#[derive(Args, Debug)]
pub struct Demo {
    /// Where the gateway of the demo listens.
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8080",
        env = "KVWAY_DEMO_LISTEN",
        help_heading = "Listeners"
    )]
    pub listen: SocketAddr,
    /// Where its admin listener listens.
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1:9090",
        env = "KVWAY_DEMO_ADMIN",
        help_heading = "Listeners"
    )]
    pub admin: SocketAddr,
    /// End after the requests instead of staying up.
    #[arg(long, env = "KVWAY_DEMO_ONCE", help_heading = "Behaviour")]
    pub once: bool,
}

/// What to send, and where.
#[derive(Args, Clone, Debug)]
pub struct Compare {
    /// The gateway, where it is not the first listener without TLS of the configuration.
    #[arg(long, value_name = "URL", env = "KVWAY_COMPARE_URL", help_heading = "Target")]
    pub url: Option<String>,
    /// Its admin listener, where it is not the configuration's.
    #[arg(long, value_name = "ADDRESS", env = "KVWAY_COMPARE_ADMIN", help_heading = "Target")]
    pub admin: Option<SocketAddr>,
    /// The model to ask; otherwise the first that the gateway lists.
    #[arg(long, value_name = "MODEL", env = "KVWAY_COMPARE_MODEL", help_heading = "Target")]
    pub model: Option<String>,
    /// The bearer key that the engines ask for.
    #[arg(
        long,
        value_name = "KEY",
        env = "KVWAY_COMPARE_API_KEY",
        hide_env_values = true,
        help_heading = "Target"
    )]
    pub api_key: Option<ApiKey>,
    /// Take a fleet of mock engines of its own, as `kvway demo` does, instead of a running gateway.
    #[arg(long, env = "KVWAY_COMPARE_DEMO", conflicts_with_all = ["url", "admin"], help_heading = "Target")]
    pub demo: bool,
    /// Requests with unique prompts, and as many with repeated ones.
    #[arg(
        long,
        value_name = "COUNT",
        default_value_t = 60,
        value_parser = within::<100_000>,
        env = "KVWAY_COMPARE_REQUESTS",
        help_heading = "Load"
    )]
    pub requests: usize,
    /// How often each repeated prompt is asked for.
    #[arg(
        long,
        value_name = "COUNT",
        default_value_t = 5,
        value_parser = within::<100_000>,
        env = "KVWAY_COMPARE_REPEATS",
        help_heading = "Load"
    )]
    pub repeats: usize,
    /// About how many tokens a prompt has.
    #[arg(
        long,
        value_name = "COUNT",
        default_value_t = 2000,
        value_parser = within::<1_000_000>,
        env = "KVWAY_COMPARE_PROMPT_TOKENS",
        help_heading = "Load"
    )]
    pub prompt_tokens: usize,
    /// Tokens of an answer.
    #[arg(
        long,
        value_name = "COUNT",
        default_value_t = 4,
        value_parser = within::<100_000>,
        env = "KVWAY_COMPARE_MAX_TOKENS",
        help_heading = "Load"
    )]
    pub max_tokens: usize,
    /// Requests at a time.
    #[arg(
        long,
        value_name = "COUNT",
        default_value_t = 4,
        value_parser = within::<1024>,
        env = "KVWAY_COMPARE_CONCURRENCY",
        help_heading = "Load"
    )]
    pub concurrency: usize,
    /// Send conversations instead of plain prompts.
    #[arg(long, env = "KVWAY_COMPARE_CHAT", help_heading = "Load")]
    pub chat: bool,
    /// How many seconds an answer may take.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 120,
        env = "KVWAY_COMPARE_TIMEOUT",
        help_heading = "Load"
    )]
    pub timeout: u64,
    /// Write the result to this file as well, as JSON.
    #[arg(long, value_name = "FILE", env = "KVWAY_COMPARE_JSON", help_heading = "Output")]
    pub json: Option<PathBuf>,
}

/// How long to try.
#[derive(Args, Clone, Debug)]
pub struct Doctor {
    /// The model to ask for; otherwise the first that each engine lists.
    #[arg(long, value_name = "MODEL", env = "KVWAY_DOCTOR_MODEL", help_heading = "Probe")]
    pub model: Option<String>,
    /// How many seconds one answer may take.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 60,
        env = "KVWAY_DOCTOR_TIMEOUT",
        help_heading = "Probe"
    )]
    pub timeout: u64,
    /// How many seconds LMCache may take to learn of a prompt.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 10,
        env = "KVWAY_DOCTOR_PATIENCE",
        help_heading = "Probe"
    )]
    pub patience: u64,
}

/// A key that is sent and never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// The key itself, for the one place that sends it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for ApiKey {
    fn from(key: String) -> Self {
        Self(key)
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A count from one to `MAX`.
fn within<const MAX: usize>(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| (1..=MAX).contains(count));
    count.ok_or_else(|| format!("a number from 1 to {MAX} is wanted"))
}

/// Whom to ask.
#[derive(Args, Debug)]
pub struct Healthcheck {
    /// The admin listener of the gateway.
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1:9090",
        env = "KVWAY_ADMIN",
        help_heading = "Target"
    )]
    pub admin: SocketAddr,
    /// How many seconds the answer may take.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 3,
        env = "KVWAY_HEALTHCHECK_TIMEOUT",
        help_heading = "Target"
    )]
    pub timeout: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_flag_has_an_environment_variable_and_a_help_text() {
        fn check(command: &clap::Command) {
            for flag in
                command.get_arguments().filter(|flag| !matches!(flag.get_id().as_str(), "help" | "version"))
            {
                assert!(
                    flag.get_env().is_some(),
                    "{}: {} has no variable",
                    command.get_name(),
                    flag.get_id()
                );
                assert!(flag.get_help().is_some(), "{}: {} has no help", command.get_name(), flag.get_id());
            }
            command.get_subcommands().for_each(check);
        }
        Arguments::command().debug_assert();
        check(&Arguments::command());
    }
}
