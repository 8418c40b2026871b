//! How many instructions a stage takes.
//!
//! The program runs itself under callgrind, which counts inside of [`measured`] only and writes a file after each call of it.

use super::Stage;
use std::fmt::Write as _;
use std::hint::black_box;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// The argument under which every stage is run once, for callgrind to count.
pub(super) const ONCE: &str = "--once";

/// Calls before the one that counts, after which tables and buffers have their size.
const CALLS_BEFORE: usize = 3;

#[inline(never)]
fn measured(run: &mut dyn FnMut()) {
    run();
    // So that the call above returns here, which is where callgrind stops counting.
    black_box(());
}

pub(super) fn run_each_once(stages: Vec<Stage>) {
    for Stage { mut run, .. } in stages {
        (0..CALLS_BEFORE).for_each(|_| run());
        measured(&mut run);
    }
}

/// Prints what callgrind counts for each stage; where there is no callgrind, that.
pub(super) fn instructions(stages: &[Stage]) {
    let folder = tempfile::tempdir().expect("a folder");
    let told = if count_into(folder.path()) {
        tell(stages, folder.path())
    } else {
        "# no callgrind here\n".to_owned()
    };
    std::io::stdout().write_all(told.as_bytes()).expect("standard output takes it");
}

fn count_into(folder: &Path) -> bool {
    let program = std::env::current_exe().expect("it has a name");
    let function = "stages::count::measured";
    Command::new("valgrind")
        .args(["--tool=callgrind", "--compress-strings=no", "--compress-pos=no"])
        .arg(format!("--callgrind-out-file={}", folder.join("out").display()))
        .args([format!("--toggle-collect={function}"), format!("--dump-after={function}")])
        .arg(program)
        .arg(ONCE)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn tell(stages: &[Stage], folder: &Path) -> String {
    let mut told = String::new();
    for (number, stage) in (1..).zip(stages) {
        let counted = std::fs::read_to_string(folder.join(format!("out.{number}"))).unwrap_or_default();
        let total = counted.lines().find_map(|line| line.strip_prefix("totals: ")).unwrap_or("?");
        writeln!(told, "test {} ... instructions: {total}", stage.name).expect("a string takes all");
    }
    told
}
