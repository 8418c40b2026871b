//! What a result was measured on: kernel, processor, versions of the programs.
//!
//! Asked once by `contest`. It names no host and no user.
use std::{fs, path::Path, process::Command};

use serde::{Deserialize, Serialize};

use crate::arguments::Setup;

/// The machine under a measurement.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Machine {
    pub(crate) kernel: String,
    pub(crate) cpu_model: String,
    pub(crate) cores: usize,
    pub(crate) memory_kib: Option<u64>,
}

impl Machine {
    pub(crate) fn here() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let kernel = read("/proc/sys/kernel/osrelease").trim().to_owned();
        let cpus = read("/proc/cpuinfo");
        let cpu_model = field(&cpus, "model name").unwrap_or_else(|| "unknown".to_owned());
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        Self {
            kernel,
            cpu_model,
            cores: cpus.lines().filter(|line| line.starts_with("processor")).count(),
            memory_kib: memory.and_then(|memory| memory.split(' ').next()?.parse().ok()),
        }
    }
}

/// What every comparison keeps beside its figures.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Origin {
    pub(crate) revision: String,
    pub(crate) date: String,
    pub(crate) machine: Machine,
}

impl Origin {
    pub(crate) fn of(setup: &Setup) -> Self {
        Self { revision: setup.revision.clone(), date: setup.date.clone(), machine: Machine::here() }
    }

    #[cfg(test)]
    pub(crate) fn example() -> Self {
        let machine =
            Machine { kernel: "6".to_owned(), cpu_model: "CPU".to_owned(), cores: 2, memory_kib: None };
        Self { revision: "abc".to_owned(), date: "today".to_owned(), machine }
    }
}

/// What `program` says that it is; `None` if it cannot be started.
pub(crate) fn version(program: &Path, argument: &str) -> Option<String> {
    let output = Command::new(program).arg(argument).output().ok()?;
    if !output.status.success() {
        return Some("unknown".to_owned());
    }
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().next().unwrap_or_default();
    // nginx introduces itself as "nginx version: nginx/1".
    Some(line.rsplit(": ").next().unwrap_or(line).trim().to_owned())
}

/// The value after `name` and a colon, in the lists that the kernel writes.
fn field(text: &str, name: &str) -> Option<String> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = lines.into_iter().find(|(key, _)| key.trim() == name)?;
    Some(value.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_of_the_kernel_is_found_by_its_whole_name() {
        let text = "model\t\t: 207\nmodel name\t: Some CPU @ 2.0\nMemTotal:   24 kB\n";
        assert_eq!(field(text, "model name").as_deref(), Some("Some CPU @ 2.0"));
        assert_eq!(field(text, "MemTotal").as_deref(), Some("24 kB"));
        assert_eq!(field(text, "name"), None);
    }

    #[test]
    fn a_program_that_is_not_there_has_no_version() {
        assert_eq!(version(Path::new("/nonexistent/program"), "--version"), None);
    }
}
