//! Arguments → configuration → app → run. Exit codes: 64 usage, 78 configuration.

use anyhow::Context;
use clap::Parser;
use clap::error::ErrorKind;
use kvway::app::{App, AppError};
use kvway::arguments::{Arguments, Command, Healthcheck};
use kvway::config::{self, Config, ConfigError};
use kvway::{demo, healthcheck, log};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// Long prompts come and go: this allocator gives their memory back to the system, the usual one keeps much of it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const USAGE: u8 = 64;
const CONFIGURATION: u8 = 78;

fn main() -> ExitCode {
    // Fails only when a provider is installed already, which is as good.
    let _installed = rustls::crypto::ring::default_provider().install_default().is_ok();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // The terminal may be gone; then there is nobody to tell.
            let _printed = error.print().is_ok();
            let asked_for = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return if asked_for { ExitCode::SUCCESS } else { USAGE.into() };
        }
    };
    match act(arguments) {
        Ok(code) => code,
        Err(error) => {
            complain(&format!("kvway: {error:#}"));
            let refused = error.is::<ConfigError>() || error.is::<AppError>();
            if refused { CONFIGURATION.into() } else { ExitCode::FAILURE }
        }
    }
}

fn act(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let file = arguments.config.config.as_deref();
    match arguments.command {
        Some(Command::Demo(demo)) => demo::run(&demo).map(|()| ExitCode::SUCCESS),
        Some(Command::Healthcheck(whom)) => check_health(&whom),
        Some(Command::Run(run)) if !run.test && !arguments.test => match file {
            Some(file) => start(file, run.upgrade),
            None => Ok(no_file()),
        },
        Some(Command::Run(_) | Command::Check) => file.map_or_else(|| Ok(no_file()), check),
        None if arguments.test => file.map_or_else(|| Ok(no_file()), check),
        None => {
            complain("kvway: say what to do: `kvway --help` tells what there is");
            Ok(USAGE.into())
        }
    }
}

fn start(file: &Path, upgrade: bool) -> anyhow::Result<ExitCode> {
    let config = Config::load(file)?;
    log::start(&config.log);
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    raise_file_limit(config.limits.connections_max);
    Arc::new(App::new(config)?).run(upgrade)?;
    Ok(ExitCode::SUCCESS)
}

/// Takes as many open files as the system allows, and says so when they are fewer than the connections could need.
fn raise_file_limit(connections_max: usize) {
    // A client's connection and one to a backend.
    let needed = 2 * connections_max as u64;
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(allowed) if allowed < needed => tracing::warn!(
            allowed,
            needed,
            "fewer open files are allowed than limits.connections_max could need: raise the hard limit (ulimit -Hn)"
        ),
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "the limit of open files cannot be raised"),
    }
}

/// Prints the configuration in effect; builds everything that can be built without binding an address.
fn check(file: &Path) -> anyhow::Result<ExitCode> {
    let config = Config::load(file)?;
    let (yaml, warnings) = (config.to_yaml(), config.warnings());
    let silent = config::Log { access: config::AccessLog::Off, ..config.log.clone() };
    drop(App::new(Config { log: silent, ..config })?);
    let mut out = std::io::stdout().lock();
    out.write_all(yaml.as_bytes()).context("standard output")?;
    for warning in warnings {
        complain(&format!("warning: {warning}"));
    }
    complain(&format!("{}: the configuration is valid", file.display()));
    Ok(ExitCode::SUCCESS)
}

fn check_health(whom: &Healthcheck) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let timeout = Duration::from_secs(whom.timeout);
    let ready = runtime.block_on(healthcheck::is_ready(whom.admin, timeout)).context("not reachable")?;
    if !ready {
        complain("kvway: the gateway is not ready");
    }
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn no_file() -> ExitCode {
    complain("kvway: no configuration file: give one with -c FILE or KVWAY_CONFIG");
    USAGE.into()
}

fn complain(text: &str) {
    // Standard error may be closed; then there is nobody to tell.
    let _written = writeln!(std::io::stderr(), "{text}").is_ok();
}
