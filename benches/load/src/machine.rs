//! What a result was measured on: kernel, processor, versions of the programs.
//!
//! Asked once by `contest`. It names no host and no user.
use std::{fs, path::Path, process::Command, thread};

use serde::Serialize;

/// The machine under a measurement.
#[derive(Debug, Serialize)]
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
        let cpu_model = field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".to_owned());
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        Self {
            kernel,
            cpu_model,
            cores: thread::available_parallelism().map_or(0, usize::from),
            memory_kib: memory.and_then(|memory| memory.split(' ').next()?.parse().ok()),
        }
    }
}

/// The first line that `program` says about itself; `None` if it cannot be started.
pub(crate) fn version(program: &Path, argument: &str) -> Option<String> {
    let output = Command::new(program).arg(argument).output().ok()?;
    let text = if output.stdout.is_empty() {
        output.stderr
    } else {
        output.stdout
    };
    let line = String::from_utf8_lossy(&text)
        .lines()
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned();
    Some(line)
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
