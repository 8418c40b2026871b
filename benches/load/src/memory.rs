//! Resident memory of a process and all below it. Read by `contest` and `idle`, never inside a window.
//!
//! It is the kernel's exact sum over all mappings; the quick counter in /proc/PID/status lags behind by some pages for each
//! thread. Pages that processes of one tree share count once for each of them.
use std::fs;

use anyhow::{Context, Result};

use crate::cpu;
use crate::measurement::real;

/// Resident memory of the tree below `root`, in KiB.
pub(crate) fn resident_kib(root: i32) -> Result<u64> {
    let resident = |pid: i32| {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        resident(&text).with_context(|| format!("{path} tells no resident memory"))
    };
    cpu::tree_of(root)?.into_iter().map(resident).sum()
}

/// KiB as MiB.
pub(crate) fn mib(kib: u64) -> f64 {
    real(kib) / 1024.0
}

fn resident(rollup: &str) -> Option<u64> {
    let value = rollup.lines().find_map(|line| line.strip_prefix("Rss:"))?;
    value.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process;

    #[test]
    fn resident_memory_is_the_sum_over_all_mappings() {
        let text = "55d0-7ffc ---p 00000000 00:00 0 [rollup]\nRss:               92584 kB\nPss:               90000 kB\n";
        assert_eq!(resident(text), Some(92_584));
        assert_eq!(resident("Pss: 1 kB\n"), None);
    }

    #[test]
    fn memory_that_is_written_becomes_resident() {
        let before = resident_kib(process::own_id()).unwrap();
        let written = std::hint::black_box(vec![1u8; 64 << 20]);
        let after = resident_kib(process::own_id()).unwrap();
        // Other tests of this process may let go of a little meanwhile.
        assert!(after > before + (48 << 10), "{before} KiB, then {after} KiB, with {}", written.len());
    }
}
