//! A Python process of `tests/real` that takes JSON lines and says what happens on lines of its own.
//!
//! It ends when its input does, so no process outlives the test binary, however that ends; dropping it kills it with all
//! that it has started.

use crate::world;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use parking_lot::Mutex;
use serde_json::Value;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::Duration;
use tokio::sync::watch;

/// The lines of its log that a failure shows.
const LINES_SHOWN: usize = 40;

/// How often is looked for what no event tells of.
const LOOK_PERIOD: Duration = Duration::from_millis(10);

/// A script of `tests/real` that runs.
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    input: Mutex<ChildStdin>,
    lines: watch::Receiver<Vec<String>>,
}

/// The folder of the project.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A program of a virtual environment that a target of the Makefile prepares.
pub(crate) fn program(environment: &str, name: &str, target: &str) -> PathBuf {
    let program = root().join(environment).join("bin").join(name);
    assert!(program.exists(), "{} is missing: `make {target}` prepares it", program.display());
    program
}

/// Looks until `condition` holds; fails when it does not come to hold.
pub(crate) async fn look_until(condition: impl AsyncFnMut() -> bool) {
    world::within(look_for_ever(condition)).await;
}

/// As [`look_until`], for something that takes its time.
pub(crate) async fn look_as_long_as(patience: Duration, condition: impl AsyncFnMut() -> bool) {
    let looking = tokio::time::timeout(patience, look_for_ever(condition));
    looking.await.expect("a state that did not come");
}

async fn look_for_ever(mut condition: impl AsyncFnMut() -> bool) {
    while !condition().await {
        tokio::time::sleep(LOOK_PERIOD).await;
    }
}

impl Process {
    /// Starts `script` with `arguments`; `seed` is its `PYTHONHASHSEED`.
    pub(crate) fn start<A: AsRef<OsStr>>(
        script: &'static str,
        seed: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        let mut command = Command::new(program(".venv-lmcache", "python", "test"));
        command.arg(root().join("tests/real/lmcache").join(script)).args(arguments);
        command.env("PYTHONHASHSEED", seed).env("PYTHONUNBUFFERED", "1").env("PYTHONDONTWRITEBYTECODE", "1");
        command.env("LMCACHE_LOG_LEVEL", "WARNING");
        Self::spawn(script, command)
    }

    /// Runs `command` with its output followed.
    pub(crate) fn spawn(name: &'static str, mut command: Command) -> Self {
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (sender, lines) = watch::channel(Vec::new());
        follow(child.stdout.take().unwrap(), sender.clone());
        follow(child.stderr.take().unwrap(), sender);
        let input = Mutex::new(child.stdin.take().unwrap());
        Self { name, child, input, lines }
    }

    /// Gives it a line.
    pub(crate) fn tell(&self, line: &Value) {
        writeln!(self.input.lock(), "{line}").unwrap();
    }

    /// Waits until it has said `count` things that are `wanted`, counted from its start.
    pub(crate) async fn says(&self, count: usize, wanted: impl Fn(&Value) -> bool) {
        let mut lines = self.lines.clone();
        let is_said = |lines: &Vec<String>| wanted_of(lines, &wanted).count() >= count;
        let said = world::within(async { lines.wait_for(is_said).await.is_ok() }).await;
        assert!(said, "{} ended\n{}", self.name, self.log());
    }

    /// All that it has said so far and that is `wanted`.
    pub(crate) fn said(&self, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
        wanted_of(&self.lines.borrow(), &wanted).collect()
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.lines.has_changed().is_err()
    }

    /// The end of its output, for the message of a failure.
    pub(crate) fn log(&self) -> String {
        let lines = self.lines.borrow();
        let from = lines.len().saturating_sub(LINES_SHOWN);
        lines[from..].iter().fold(String::new(), |mut text, line| {
            let _written = writeln!(text, "{}: {line}", self.name);
            text
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let group = Pid::from_raw(self.child.id().cast_signed());
        let _ended_already = killpg(group, Signal::SIGKILL);
        let _status = self.child.wait();
    }
}

fn wanted_of<'a>(
    lines: &'a [String],
    wanted: &'a impl Fn(&Value) -> bool,
) -> impl Iterator<Item = Value> + 'a {
    lines.iter().filter_map(|line| serde_json::from_str(line).ok()).filter(wanted)
}

/// Collects the lines of `output` until it ends.
fn follow(output: impl Read + Send + 'static, lines: watch::Sender<Vec<String>>) {
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            lines.send_modify(|all| all.push(line));
        }
    });
}
