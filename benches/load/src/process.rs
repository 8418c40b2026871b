//! Processes that a comparison starts: on one core or on any, in a group of their own, gone when their owner is dropped.
//!
//! Used by `contest` and `routing`. Dropping kills the whole group and waits for it, so that workers of a proxy go with it, on every
//! way out. It ends nothing gently: there is no state to save.
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::{fs, fs::File, net::SocketAddr, path::Path, path::PathBuf};

use anyhow::{Context, Result, bail};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

/// How much of a log is shown when its process ends too early.
const LOG_LINES_SHOWN: usize = 10;

/// A running child.
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, on `core` if there is one; what it writes goes to a file in `directory`.
    pub(crate) fn spawn(
        name: &str,
        mut command: Command,
        core: Option<usize>,
        directory: &Path,
    ) -> Result<Self> {
        let log = directory.join(format!("{name}.out"));
        let output = File::create(&log).with_context(|| log.display().to_string())?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).process_group(0);
        // A child starts on the cores of the thread that starts it.
        let own = sched_getaffinity(Pid::from_raw(0)).context("reading the CPU affinity")?;
        core.map_or(Ok(()), pin)?;
        let child = command.spawn();
        sched_setaffinity(Pid::from_raw(0), &own).context("restoring the CPU affinity")?;
        let child = child.with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// An error with the end of its log if it does not run any more.
    pub(crate) fn check(&mut self) -> Result<()> {
        let Some(status) = self.child.try_wait()? else {
            return Ok(());
        };
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let end = lines.get(lines.len().saturating_sub(LOG_LINES_SHOWN)..).unwrap_or_default();
        bail!("{} ended early ({status}):\n{}", self.name, end.join("\n"));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let group = Pid::from_raw(self.pid());
        // These fail only if there is nothing left to end.
        let _gone = killpg(group, Signal::SIGKILL);
        let _gone = self.child.wait();
        while waitpid(Pid::from_raw(-group.as_raw()), None).is_ok() {}
    }
}

/// From now on, what the children leave behind becomes ours to wait for.
pub(crate) fn adopt_orphans() -> Result<()> {
    set_child_subreaper(true).context("adopting orphans")
}

/// Keeps the calling thread, and what it starts, on one core.
pub(crate) fn pin(core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    let pinned = cores.set(core).and_then(|()| sched_setaffinity(Pid::from_raw(0), &cores));
    pinned.with_context(|| format!("cannot use core {core}"))
}

/// Lets this process, and what it starts, have as many files as the system allows it; how many that is.
pub(crate) fn raise_file_limit() -> Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("reading the limit of open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raising the limit of open files")?;
    Ok(hard)
}

/// The cores that this process may use.
pub(crate) fn cores() -> Result<Vec<usize>> {
    let own = sched_getaffinity(Pid::from_raw(0)).context("reading the CPU affinity")?;
    Ok((0..CpuSet::count()).filter(|core| own.is_set(*core).unwrap_or(false)).collect())
}

/// The id of this process.
pub(crate) fn own_id() -> i32 {
    Pid::this().as_raw()
}

/// A loopback address that nobody listened on a moment ago.
pub(crate) fn free_address() -> Result<SocketAddr> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("looking for a free port")?;
    Ok(listener.local_addr()?)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_child_runs_on_its_core_and_the_parent_stays() {
        let directory = tempfile::tempdir().unwrap();
        let before = cores().unwrap();
        let core = *before.last().unwrap();
        let command = shell("grep Cpus_allowed_list /proc/self/status");
        let mut process = Process::spawn("shell", command, Some(core), directory.path()).unwrap();
        process.child.wait().unwrap();
        let output = fs::read_to_string(directory.path().join("shell.out")).unwrap();
        assert_eq!(output.trim(), format!("Cpus_allowed_list:\t{core}"));
        assert_eq!(cores().unwrap(), before);
    }

    #[test]
    fn an_early_end_shows_the_log() {
        let directory = tempfile::tempdir().unwrap();
        let mut process =
            Process::spawn("shell", shell("echo no such key; exit 78"), None, directory.path()).unwrap();
        process.child.wait().unwrap();
        let error = process.check().unwrap_err().to_string();
        assert!(error.contains("78") && error.contains("no such key"), "{error}");
    }

    #[test]
    fn grandchildren_go_with_the_process() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        // The shell and its child hold the pipe open; reading it ends when the last of them is gone.
        let script = format!("exec 3>{}; echo up >&3; sleep 1000 & wait", pipe.display());
        let process = Process::spawn("shell", shell(&script), None, directory.path()).unwrap();
        let pipe = File::open(&pipe).unwrap();
        let mut lines = BufReader::new(pipe).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "up");
        drop(process);
        assert!(lines.next().is_none());
    }
}
