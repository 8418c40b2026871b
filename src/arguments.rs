//! The command line: what the operator can say. Parsed by clap; every flag has an environment variable.
//!
//! Read by `main`. It says nothing about what the words do.

use clap::{Args, Parser, Subcommand};
use std::net::SocketAddr;
use std::path::PathBuf;

const ENDING: &str = "\
Exit codes: 0 done, 1 failed, 64 the command line cannot be understood, 78 the configuration is refused.

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
