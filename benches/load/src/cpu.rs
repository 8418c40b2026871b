//! CPU time of a running process and all that it started, and who else used a core or the machine.
//!
//! Read by `window` and `routing` at both ends of a measurement. It asks for the process clock, which counts in nanoseconds and
//! includes threads that have ended; work that the kernel does for a process outside of it is not in that clock.
use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use nix::{time, unistd::Pid};
use serde::{Deserialize, Serialize};

use crate::measurement::real;

/// Clock ticks per second in /proc; part of the kernel's interface.
const TICKS_PER_SECOND: u64 = 100;

/// The CPU clocks of one process tree, and perhaps of the cores that it runs on.
pub(crate) struct CpuMeter {
    pids: Vec<i32>,
    /// A name in /proc/stat.
    cores: Option<String>,
    /// A process there that is in nobody's way.
    spared: Option<i32>,
}

/// CPU time: until now, or between two readings.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spent {
    /// By the process tree.
    pub(crate) own: Duration,
    /// By everybody on its cores who counts.
    pub(crate) all: Option<Duration>,
}

impl Spent {
    pub(crate) fn since(self, before: Self) -> Self {
        let all = self.all.zip(before.all).map(|(now, before)| now.saturating_sub(before));
        Self { own: self.own.saturating_sub(before.own), all }
    }
}

impl CpuMeter {
    /// The tree below `root` as it is now; processes started later are not seen.
    pub(crate) fn of_tree(root: i32) -> Result<Self> {
        Ok(Self { pids: tree_of(root)?, cores: None, spared: None })
    }

    /// Also measures what others do on `core`.
    pub(crate) fn watching(self, core: usize) -> Self {
        Self { cores: Some(format!("cpu{core}")), ..self }
    }

    /// Also measures what others do on all cores.
    pub(crate) fn watching_all(self) -> Self {
        Self { cores: Some("cpu".to_owned()), ..self }
    }

    /// Does not count what the process `pid` does on the cores that are watched.
    pub(crate) fn sparing(self, pid: Option<i32>) -> Self {
        Self { spared: pid, ..self }
    }

    /// CPU time spent so far.
    pub(crate) fn read(&self) -> Result<Spent> {
        let own = self.pids.iter().map(|pid| time_of(*pid)).sum::<Result<Duration>>()?;
        let spared = self.spared.map_or(Ok(Duration::ZERO), time_of)?;
        let all = self.cores.as_deref().map(all_busy).transpose()?;
        Ok(Spent { own, all: all.map(|all| all.saturating_sub(spared)) })
    }
}

/// What a process has spent with all of its threads.
fn time_of(pid: i32) -> Result<Duration> {
    let clock = time::clock_getcpuclockid(Pid::from_raw(pid));
    let spent = clock.and_then(time::clock_gettime).with_context(|| format!("process {pid} has ended"))?;
    Ok(spent.into())
}

/// CPU time of a proxy, per unit of its work.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct CpuUse {
    pub(crate) seconds: f64,
    /// 1 = one core was busy all the time.
    pub(crate) cores: f64,
    pub(crate) us_per_request: Option<f64>,
    pub(crate) us_per_event: Option<f64>,
    /// What others used of the watched cores meanwhile; 0.01 = one percent of one core's time.
    pub(crate) foreign_cores: Option<f64>,
}

impl CpuUse {
    pub(crate) fn of(spent: Spent, elapsed: Duration, requests: u64, events: u64) -> Self {
        let (own, elapsed) = (spent.own.as_secs_f64(), elapsed.as_secs_f64());
        let per = |count: u64| (count > 0).then(|| own * 1e6 / real(count));
        Self {
            seconds: own,
            cores: own / elapsed,
            us_per_request: per(requests),
            us_per_event: per(events),
            foreign_cores: spent.all.map(|all| (all.as_secs_f64() - own).max(0.0) / elapsed),
        }
    }
}

/// Time during which cores were not idle, whoever used them; counts what a hypervisor took away.
fn all_busy(cores: &str) -> Result<Duration> {
    let text = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    busy(&text, cores).with_context(|| format!("{cores} is not in /proc/stat"))
}

fn busy(stat: &str, cores: &str) -> Option<Duration> {
    let mut lines = stat.lines().map(str::split_ascii_whitespace);
    let fields = lines.find_map(|mut fields| (fields.next() == Some(cores)).then_some(fields))?;
    // user nice system idle iowait irq softirq steal; guest time is part of user.
    let fields: Vec<u64> = fields.take(8).map_while(|field| field.parse().ok()).collect();
    let idle: u64 = fields.get(3..5)?.iter().sum();
    let ticks = fields.iter().sum::<u64>() - idle;
    Some(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

/// `root` and all processes below it as they are now.
pub(crate) fn tree_of(root: i32) -> Result<Vec<i32>> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").context("/proc")?.flatten() {
        // A process may end while we look: then it has no line.
        let line = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        parents.extend(parent(&line));
    }
    ensure!(parents.iter().any(|(pid, _)| *pid == root), "there is no process {root}");
    Ok(tree(root, &parents))
}

/// Process and parent of one line of /proc/PID/stat; the command between them may hold anything.
fn parent(line: &str) -> Option<(i32, i32)> {
    let (pid, rest) = line.split_once(" (")?;
    let (_, fields) = rest.rsplit_once(") ")?;
    Some((pid.parse().ok()?, fields.split(' ').nth(1)?.parse().ok()?))
}

fn tree(root: i32, parents: &[(i32, i32)]) -> Vec<i32> {
    let mut pids = vec![root];
    let mut next = 0;
    while let Some(&parent) = pids.get(next) {
        pids.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    pids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_may_hold_spaces_and_parentheses() {
        assert_eq!(parent("42 (nginx: (w) 7 R) S 41 42 42 0 -1"), Some((42, 41)));
        assert_eq!(parent("42 (nginx) S"), None);
        assert_eq!(parent(""), None);
    }

    #[test]
    fn a_tree_holds_grandchildren_and_no_strangers() {
        assert_eq!(tree(10, &[(10, 1), (12, 11), (11, 10), (13, 1), (14, 13)]), [10, 11, 12]);
    }

    #[test]
    fn idle_and_waiting_time_is_not_busy() {
        let stat = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 1 2 3 1000 500 4 5 6 0 0\ncpu1 0 0 0 7 0 0 0 0 0 0\ncpu10 1 0 0 0 0 0 0 0 0 0\n";
        assert_eq!(busy(stat, "cpu0"), Some(Duration::from_millis(210)));
        assert_eq!(busy(stat, "cpu1"), Some(Duration::ZERO));
        assert_eq!(busy(stat, "cpu2"), None);
        assert_eq!(busy(stat, "cpu"), Some(Duration::from_millis(540)));
    }

    #[test]
    fn the_clock_of_this_process_advances_with_work() {
        let meter = CpuMeter::of_tree(Pid::this().as_raw()).unwrap();
        let before = meter.read().unwrap();
        let work: u64 = (0..2_000_000u64).fold(0, |sum, n| std::hint::black_box(sum ^ n));
        assert!(meter.read().unwrap().own > before.own, "{work}");
    }

    #[test]
    fn what_a_spared_process_does_is_nobodys() {
        let own = Pid::this().as_raw();
        let meter = || CpuMeter::of_tree(own).unwrap().watching_all();
        let before = meter().read().unwrap().own;
        let spared = meter().sparing(Some(own)).read().unwrap().all.unwrap();
        assert!(spared + before <= meter().read().unwrap().all.unwrap());
    }

    /// User and system time as the kernel shows them, in whole ticks each.
    fn ticked(pid: i32) -> Duration {
        let line = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let (_, fields) = line.rsplit_once(") ").unwrap();
        let ticks: u64 = fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND)
    }

    #[test]
    fn the_clock_tells_what_the_ticks_of_all_threads_tell_and_more_finely() {
        let pid = Pid::this().as_raw();
        let meter = CpuMeter::of_tree(pid).unwrap();
        let work = || {
            let end = meter.read().unwrap().own + Duration::from_millis(50);
            while meter.read().unwrap().own < end {}
        };
        // One of them has ended when the ticks are read.
        std::thread::scope(|scope| drop([scope.spawn(work), scope.spawn(work)]));
        let (before, ticked, after) = (meter.read().unwrap(), ticked(pid), meter.read().unwrap());
        let tick = Duration::from_millis(1000 / TICKS_PER_SECOND);
        assert!(
            ticked + 3 * tick >= before.own && ticked <= after.own + tick,
            "{before:?} {ticked:?} {after:?}"
        );
        assert!(before.own.as_nanos() % tick.as_nanos() != 0, "{before:?}");
    }

    #[test]
    fn a_process_that_is_not_there_is_named() {
        assert!(CpuMeter::of_tree(i32::MAX).is_err_and(|error| error.to_string().contains("2147483647")));
    }

    #[test]
    fn cpu_is_shared_out_over_the_work() {
        let cpu = {
            let (own, all) = (Duration::from_millis(500), Some(Duration::from_millis(600)));
            CpuUse::of(Spent { own, all }, Duration::from_secs(1), 10_000, 0)
        };
        assert!((cpu.foreign_cores.unwrap() - 0.1).abs() < 1e-9);
        assert!((cpu.us_per_request.unwrap() - 50.0).abs() < 1e-9 && (cpu.cores - 0.5).abs() < 1e-9);
        assert!(cpu.us_per_event.is_none());
    }
}
