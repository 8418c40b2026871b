//! The process's own log, on standard error: JSON lines where the access log is JSON, else text. Pingora's lines included.

use crate::config::{AccessLog, Level, Log};
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Unless everything is asked for: errors of single requests are in the access log, and of health and upgrades we tell ourselves.
const TOLD_ELSEWHERE: &str =
    "pingora_proxy=off,pingora_load_balancing=off,pingora_core::server::transfer_fd=off";
/// What libraries tell below a warning is for who develops them.
const LIBRARIES: &str = "pingora_core=warn,h2=warn,hyper=warn,reqwest=warn,rustls=warn";

/// Starts the log. A second call changes nothing.
pub fn start(log: &Log) {
    let level = match log.level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    };
    let filter = match log.level {
        Level::Error | Level::Warn => format!("{level},{TOLD_ELSEWHERE}"),
        Level::Info | Level::Debug => format!("{level},{LIBRARIES},{TOLD_ELSEWHERE}"),
        Level::Trace => level.to_owned(),
    };
    let terminal = std::io::stderr().is_terminal();
    let builder =
        tracing_subscriber::fmt().with_env_filter(EnvFilter::new(filter)).with_writer(std::io::stderr);
    let started = if log.access == AccessLog::Json && !terminal {
        builder.json().flatten_event(true).try_init()
    } else {
        builder.with_ansi(terminal).with_target(false).try_init()
    };
    if let Err(error) = started {
        tracing::debug!(error, "the log was started before");
    }
}
