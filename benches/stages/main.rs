//! Microbenchmarks of every pure stage of a request, each by itself, and of all of them one after the other. `make micro`; no
//! part of the tests.
//!
//! `--instructions` counts instead of timing: each stage runs once under callgrind, which tells its instructions and how
//! often it allocates, whatever else the machine does (`count.rs`).

mod after;
mod choice;
mod count;
mod reading;

use criterion::Criterion;
use std::time::Duration;

/// One stage, ready to run as often as wanted.
struct Stage {
    name: String,
    run: Box<dyn FnMut()>,
}

impl Stage {
    fn new<T>(name: impl Into<String>, mut stage: impl FnMut() -> T + 'static) -> Self {
        let run = move || {
            std::hint::black_box(stage());
        };
        Self { name: name.into(), run: Box::new(run) }
    }
}

/// In the order of a request.
fn stages() -> Vec<Stage> {
    let groups = [reading::stages(), choice::stages(), after::stages()];
    groups.into_iter().flatten().collect()
}

fn main() {
    if std::env::args().any(|argument| argument == count::ONCE) {
        return count::run_each_once(stages());
    }
    if std::env::args().any(|argument| argument == "--instructions") {
        return count::instructions(&stages());
    }
    let times = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(700));
    let mut criterion = times.configure_from_args();
    for Stage { name, mut run } in stages() {
        criterion.bench_function(&name, |bencher| bencher.iter(&mut run));
    }
    criterion.final_summary();
}
