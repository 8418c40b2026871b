//! The process's own log, on standard error: JSON lines where the access log is JSON, else text. Pingora's lines included.

use crate::config::{AccessLog, Level, Log};
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// What Pingora tells at `info` we tell ourselves; its errors of single requests are in the access log.
const QUIET: &str = "pingora_core=warn,pingora_proxy=off,h2=warn,hyper=warn,reqwest=warn,rustls=warn";

/// Starts the log. A second call changes nothing.
pub fn start(log: &Log) {
    let level = match log.level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    };
    let quiet = matches!(log.level, Level::Info | Level::Debug);
    let filter = if quiet {
        format!("{level},{QUIET}")
    } else {
        level.to_owned()
    };
    let terminal = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(std::io::stderr);
    let started = if log.access == AccessLog::Json && !terminal {
        builder.json().flatten_event(true).try_init()
    } else {
        builder.with_ansi(terminal).with_target(false).try_init()
    };
    if let Err(error) = started {
        tracing::debug!(error, "the log was started before");
    }
}
