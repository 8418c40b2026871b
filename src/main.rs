//! Arguments → configuration → app → run. Exit codes: 64 usage, 65 data, 78 configuration, 130 interrupted.

use anyhow::Context;
use clap::Parser;
use clap::error::ErrorKind;
use indicatif::{ProgressBar, ProgressStyle};
use kvway::app::{App, AppError};
use kvway::arguments::{Arguments, Command, Compare, ConfigFile, Doctor, Healthcheck, Replay};
use kvway::compare::{self, Plan};
use kvway::config::{self, Config, ConfigError, Imported};
use kvway::replay::{
    chart,
    plan::{self, PlanError, Watch},
};
use kvway::{demo, doctor, healthcheck, log};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Long prompts come and go: this allocator gives their memory back to the system, the usual one keeps much of it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const USAGE: u8 = 64;
const DATA: u8 = 65;
const CONFIGURATION: u8 = 78;
const INTERRUPTED: u8 = 130;

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
            if matches!(error.downcast_ref(), Some(PlanError::Trace(_))) {
                return DATA.into();
            }
            let refused = error.is::<ConfigError>() || error.is::<AppError>();
            if refused { CONFIGURATION.into() } else { ExitCode::FAILURE }
        }
    }
}

fn act(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let as_pixiu = matches!(arguments.command, Some(Command::Gateway(_)));
    let task = match arguments.command {
        Some(Command::Demo(demo)) => return demo::run(&demo).map(|()| ExitCode::SUCCESS),
        Some(Command::Compare(flags)) if flags.demo => {
            return demo::compare(&flags).map(|()| ExitCode::SUCCESS);
        }
        Some(Command::Replay(flags)) => return replay(&flags),
        Some(Command::Healthcheck(whom)) => return check_health(&whom),
        Some(Command::Compare(flags)) => Task::Compare(flags),
        Some(Command::Doctor(flags)) => Task::Examine(flags),
        Some(Command::Run(run)) if run.test || arguments.test => Task::Check,
        Some(Command::Run(run)) => Task::Start { upgrade: run.upgrade },
        Some(Command::Gateway(_)) if !arguments.test => Task::Start { upgrade: false },
        Some(Command::Gateway(_) | Command::Check) => Task::Check,
        None if arguments.test => Task::Check,
        None => return Ok(misused("say what to do: `kvway --help` tells what there is")),
    };
    let ConfigFile { config, pixiu } = arguments.config;
    let source = match (config, pixiu) {
        (Some(file), None) if as_pixiu => Source::Pixiu(file),
        (Some(file), None) => Source::Kvway(file),
        (None, Some(file)) => Source::Pixiu(file),
        (Some(_), Some(_)) => return Ok(misused("two configuration files: give --config or --pixiu")),
        (None, None) => {
            let said = "no configuration file: give one with --config FILE (KVWAY_CONFIG) or --pixiu FILE";
            return Ok(misused(said));
        }
    };
    match task {
        Task::Check => check(&source),
        Task::Start { upgrade } => start(&source, upgrade),
        Task::Compare(flags) => compare(&flags, &source),
        Task::Examine(flags) => examine(&flags, &source),
    }
}

/// What is done with a configuration.
enum Task {
    Check,
    Start { upgrade: bool },
    Compare(Compare),
    Examine(Doctor),
}

/// A configuration file, and whose it is.
enum Source {
    Kvway(PathBuf),
    Pixiu(PathBuf),
}

impl Source {
    fn file(&self) -> &Path {
        let (Self::Kvway(file) | Self::Pixiu(file)) = self;
        file
    }

    /// The configuration, and what is to be said about it.
    fn load(&self) -> Result<(Config, Vec<String>), ConfigError> {
        let (config, mut notes) = match self {
            Self::Kvway(file) => (Config::load(file)?, Vec::new()),
            Self::Pixiu(file) => {
                let Imported { config, notes } = Config::import_pixiu(file)?;
                (config, notes)
            }
        };
        notes.extend(config.warnings());
        Ok((config, notes))
    }
}

fn start(source: &Source, upgrade: bool) -> anyhow::Result<ExitCode> {
    let (config, notes) = source.load()?;
    log::start(&config.log);
    for note in notes {
        tracing::warn!("{note}");
    }
    if let Source::Pixiu(_) = source {
        tracing::info!(configuration = config.to_yaml(), "the same as a kvway configuration");
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
fn check(source: &Source) -> anyhow::Result<ExitCode> {
    let (config, notes) = source.load()?;
    let yaml = config.to_yaml();
    let silent = config::Log { access: config::AccessLog::Off, ..config.log.clone() };
    drop(App::new(Config { log: silent, ..config })?);
    let mut out = std::io::stdout().lock();
    out.write_all(yaml.as_bytes()).context("standard output")?;
    for note in notes {
        complain(&format!("note: {note}"));
    }
    complain(&format!("{}: the configuration is valid", source.file().display()));
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

fn compare(flags: &Compare, source: &Source) -> anyhow::Result<ExitCode> {
    let (config, _) = source.load()?;
    let plan = Plan::new(flags, &config, rand::random())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(compare::run(&plan))?;
    report.write(&mut std::io::stdout(), flags.json.as_deref())?;
    Ok(ExitCode::SUCCESS)
}

fn replay(flags: &Replay) -> anyhow::Result<ExitCode> {
    let plan = match plan::Plan::new(flags) {
        Err(PlanError::Usage(what)) => return Ok(misused(&what)),
        plan => plan?,
    };
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // Whoever asks twice does not wait for the report.
        signal_hook::flag::register_conditional_shutdown(signal, INTERRUPTED.into(), Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    // It takes minutes: a file that cannot be written is better known now.
    for file in [&flags.json, &flags.chart].into_iter().flatten() {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(file)
            .with_context(|| file.display().to_string())?;
    }
    let style = ProgressStyle::with_template("replaying {wide_bar} {percent:>3} %, {eta} left")?;
    let bar = ProgressBar::new(plan.requests()).with_style(style);
    let report = plan.run(Watch { stop: &stop, bar: &bar });
    bar.finish_and_clear();
    report.write(&mut std::io::stdout(), flags.json.as_deref())?;
    if let Some(file) = &flags.chart {
        std::fs::write(file, chart::draw(&report)?).with_context(|| file.display().to_string())?;
    }
    Ok(if report.interrupted { INTERRUPTED.into() } else { ExitCode::SUCCESS })
}

fn examine(flags: &Doctor, source: &Source) -> anyhow::Result<ExitCode> {
    let (config, notes) = source.load()?;
    for note in notes {
        complain(&format!("note: {note}"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let examination = runtime.block_on(doctor::examine(flags, &config, rand::random()));
    // Colours stay where a terminal shows them and NO_COLOR does not forbid them.
    examination.write(&mut anstream::stdout()).context("standard output")?;
    Ok(if examination.is_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn misused(what: &str) -> ExitCode {
    complain(&format!("kvway: {what}"));
    USAGE.into()
}

fn complain(text: &str) {
    // Standard error may be closed; then there is nobody to tell.
    let _written = writeln!(std::io::stderr(), "{text}").is_ok();
}
