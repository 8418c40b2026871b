//! `run`: loads one target, in an open or in a closed loop, and tells what it answered with.
//!
//! Called by `main`. Reading order: `arguments` → `settings` → `source` over `traffic`; `player` fills `books` with `series`,
//! while `progress` shows how far it is; the result is `crate::result`, shown by `markdown`. One thread: a generator that uses up
//! its core says so in the result.
mod arguments;
mod books;
mod progress;
mod series;
mod settings;
mod source;

use std::cell::Cell;
use std::io::{Write, stderr};
use std::rc::Rc;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::task::LocalSet;
use tokio::time::{self, Instant};

use crate::client::{Connection, check};
use crate::cpu::{CpuMeter, CpuUse, Spent};
use crate::machine::Machine;
use crate::measurement::real;
use crate::plan::{Said, Text};
use crate::player::{self, LEAD, Player};
use crate::result::{FORMAT, RunResult};
use crate::socket::Address;
use crate::{html, markdown, process, reply};

pub(crate) use arguments::Run;
use books::{Books, Closing};
use progress::Progress;
use settings::{Pace, Settings};
use source::{Jobs, Source};

/// Up to this share of the requests, and so many in any case, may be late before it is told.
const LATE_PERCENT_MAX: f64 = 1.0;
const LATE_COUNT_MAX: u64 = 4;
/// Above this share of its one thread, the generator is a part of what it measures.
const BUSY_CORES_MAX: f64 = 0.9;
/// Files that are open beside connections.
const OTHER_FILES: u64 = 64;

/// Runs it; an error is one of the command line, of the target, or that nothing was answered.
pub(crate) async fn run(run: &Run, interrupt: impl Future<Output = ()>) -> Result<()> {
    let mut settings = Settings::of(run)?;
    let jobs = Jobs::of(&settings)?;
    for note in &jobs.notes {
        writeln!(stderr(), "{}: {note}", settings.sizes.trace.display())?;
    }
    make_room(&mut settings)?;
    let meters = Meters::of(run.output.pid)?;
    tokio::pin!(interrupt);
    let address = settings.target.resolve().await?;
    tokio::select! {
        tried = try_out(&settings, address.clone()) => tried.with_context(|| format!("{} does not serve", settings.target))?,
        () = &mut interrupt => bail!("interrupted before the first answer"),
    }
    let measured = measure(&settings, jobs, address, meters, interrupt).await?;
    let retry_after_max = measured.closing.retry_after_max;
    let result = result(run, &settings, measured);
    crate::print(&markdown::summary(&result, retry_after_max)?)?;
    if let Some(behind) = &result.behind {
        writeln!(stderr(), "kvway-bench: warning: the generator fell behind: {behind}")?;
    }
    if let Some(file) = &run.output.json {
        crate::keep(file, &result)?;
    }
    if let Some(file) = &run.output.html {
        crate::write_html(file, &html::page(std::slice::from_ref(&result))?)?;
    }
    check_answered(&result, &settings)
}

/// A run without an answer is a failure, unless somebody ended it.
fn check_answered(result: &RunResult, settings: &Settings) -> Result<()> {
    let target = &settings.target;
    match &result.first_error {
        _ if result.requests > 0 || result.interrupted => Ok(()),
        Some(error) => bail!("no request to {target} succeeded: {error}"),
        None if result.shed > 0 => bail!("{target} turned all requests away"),
        None => bail!("no request to {target} was measured: the run is too short"),
    }
}

/// One small request, so that a target that is not there, or refuses what all requests have in common, is known at once.
async fn try_out(settings: &Settings, address: Address) -> Result<()> {
    let hello = Said::user(Text::Given("Say yes.".into())).message();
    let request = settings.wire.request(u64::MAX, None, &[hello], 1);
    let mut connection = Connection::to(address);
    let answer = connection.exchange(&request, settings.wire.answer(false), settings.timeout, |_| {}).await?;
    // One that is busy may not be later.
    if matches!(answer.status(), 429 | 503) {
        return Ok(());
    }
    match (check(&answer, settings.wire.stream), reply::complaint(answer.tail())) {
        (Err(failure), Some(said)) if !settings.wire.tells_secrets(&said) => bail!("{failure}: {said}"),
        (checked, _) => Ok(checked?),
    }
}

/// What a run came to.
struct Measured {
    closing: Closing,
    /// When it began, RFC 3339.
    started: String,
    interrupted: bool,
    /// Requests waited because as many were under way as may be.
    crowded: bool,
    spent: Option<Readings>,
}

async fn measure(
    settings: &Settings,
    jobs: Jobs,
    address: Address,
    meters: Meters,
    interrupt: impl Future<Output = ()>,
) -> Result<Measured> {
    let open_loop = matches!(jobs.source, Source::Open(_));
    let started = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let opened = if open_loop { Instant::now() + LEAD } else { Instant::now() };
    let counted_from = opened + settings.warm_up;
    let end = settings.counted.map(|counted| counted_from + counted);
    let how = player::Settings {
        address,
        wire: settings.wire.clone(),
        timeout: settings.timeout,
        under_way_max: settings.in_flight,
        until: end,
    };
    let player = Player::new(how, Books::new(open_loop, counted_from).context("histograms")?);
    let progress = Progress::new(opened, jobs.length, jobs.requests.map(|requests| requests as u64));
    let (stop, readings) = (Rc::new(Cell::new(false)), Cell::new([None; 2]));
    let work = async {
        match (jobs.source, settings.pace) {
            (Source::Closed(jobs), Pace::Closed { connections }) => {
                let stop = Rc::clone(&stop);
                player.keep_busy(jobs.take_while(move |_| !stop.get()), connections).await;
            }
            (Source::Open(jobs), _) => player.play(jobs, opened).await,
            // A closed loop always has its connections.
            (Source::Closed(_), _) => {}
        }
    };
    let clock = async {
        time::sleep_until(counted_from).await;
        readings.set([meters.read(), None]);
        if let (false, Some(end)) = (open_loop, end) {
            time::sleep_until(end).await;
            // What was started may end, so that a proxy keeps its connections and a request that hangs is noticed.
            stop.set(true);
            player.books.borrow_mut().close(Instant::now());
            readings.set([readings.get()[0], meters.read()]);
        }
        std::future::pending::<()>().await;
    };
    let local = LocalSet::new();
    let interrupted = local.run_until(async {
        tokio::select! {
            () = work => false,
            () = clock => false,
            () = progress.watch(|| player.books.borrow().so_far()) => false,
            () = interrupt => true,
        }
    });
    let interrupted = interrupted.await;
    let [before, after] = readings.get();
    let spent = after.or_else(|| meters.read()).zip(before).map(|(after, before)| after.since(before));
    let closing = player.books.borrow_mut().finish(Instant::now());
    Ok(Measured { closing, started, interrupted, crowded: player.was_crowded(), spent })
}

/// CPU time of the process that was named, and of this one.
struct Meters {
    target: Option<CpuMeter>,
    own: CpuMeter,
}

#[derive(Clone, Copy)]
struct Readings {
    target: Option<Spent>,
    own: Spent,
}

impl Meters {
    fn of(target: Option<i32>) -> Result<Self> {
        Ok(Self {
            target: target.map(CpuMeter::of_tree).transpose()?,
            own: CpuMeter::of_tree(process::own_id())?,
        })
    }

    /// `None` when a process has ended.
    fn read(&self) -> Option<Readings> {
        let target = self.target.as_ref().map(CpuMeter::read).transpose().ok()?;
        Some(Readings { target, own: self.own.read().ok()? })
    }
}

impl Readings {
    fn since(self, before: Self) -> Self {
        let target = self.target.zip(before.target).map(|(now, before)| now.since(before));
        Self { target, own: self.own.since(before.own) }
    }
}

/// Raises the number of files that may be open, as far as that goes, and lowers the requests under way to it.
fn make_room(settings: &mut Settings) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("the limit of open files")?;
    let wanted = OTHER_FILES.saturating_add(settings.in_flight as u64);
    if soft < wanted {
        setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard)
            .context("raising the limit of open files")?;
    }
    let room = soft.max(wanted.min(hard)).saturating_sub(OTHER_FILES).max(1);
    settings.in_flight = settings.in_flight.min(usize::try_from(room).unwrap_or(usize::MAX));
    Ok(())
}

/// Whether the figures tell of the generator and not of the target, and what to do about it.
fn behind(measured: &Measured, in_flight: usize) -> Option<String> {
    let Measured { closing, crowded, spent, .. } = measured;
    let late =
        closing.lag.as_ref().map(|lag| (100.0 * real(closing.late) / real(lag.count), lag.max_us / 1e3));
    let late = late.filter(|(percent, _)| *percent > LATE_PERCENT_MAX && closing.late > LATE_COUNT_MAX);
    let elapsed = closing.elapsed.as_secs_f64().max(1e-9);
    let busy =
        spent.map(|spent| spent.own.own.as_secs_f64() / elapsed).filter(|cores| *cores > BUSY_CORES_MAX);
    let mut told = Vec::new();
    if let Some((percent, most_ms)) = late {
        let bound = books::LATE.as_millis();
        told.push(format!(
            "{percent:.1} % of the requests were sent over {bound} ms late, at most {most_ms:.0} ms"
        ));
    }
    if let Some(cores) = busy {
        told.push(format!("this program used {:.0} % of its one thread", 100.0 * cores));
    }
    let advice = match (told.is_empty(), *crowded) {
        (true, _) => return None,
        (false, true) => format!(
            "{in_flight} requests were under way and others waited here: the target is slower than the rate; raise --in-flight \
             or lower --rate"
        ),
        (false, false) => {
            "run it on a quiet machine, ask for less at a time, or share the load among several".to_owned()
        }
    };
    Some(format!("{}; {advice}", told.join(", ")))
}

fn result(run: &Run, settings: &Settings, measured: Measured) -> RunResult {
    let behind = behind(&measured, settings.in_flight);
    let Measured { closing, started, interrupted, spent, .. } = measured;
    let Closing { requests, events, elapsed, .. } = closing;
    let seconds = elapsed.as_secs_f64();
    let cpu = spent.and_then(|spent| spent.target).map(|cpu| CpuUse::of(cpu, elapsed, requests, events));
    RunResult {
        format: FORMAT,
        label: run.output.label.clone().unwrap_or_else(|| settings.target.to_string()),
        revision: run.output.revision.clone(),
        started,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        machine: Machine::here(),
        configuration: settings.configuration.clone(),
        seconds,
        interrupted,
        requests,
        requests_per_second: if seconds > 0.0 { real(requests) / seconds } else { 0.0 },
        events,
        shed: closing.shed,
        errors: closing.errors,
        first_error: closing.first_error,
        latency: closing.latency,
        ttft: closing.ttft,
        gap: closing.gap,
        lag: closing.lag,
        behind,
        tokens: closing.tokens,
        backends: closing.backends,
        imbalance: closing.imbalance,
        cpu,
        series: closing.series,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::player::Books as _;

    /// A second in which this program worked so long, and so many of a thousand requests were sent as late as that.
    fn measured(own_ms: u64, late: u64, by_ms: u64) -> Measured {
        let opened = Instant::now();
        let mut books = Books::new(true, opened).unwrap();
        for number in 0..1000 {
            let lag = Duration::from_millis(if number < late { by_ms } else { 1 });
            books.sent(opened, opened + lag);
        }
        let closing = books.finish(opened + Duration::from_secs(1));
        let own = Spent { own: Duration::from_millis(own_ms), all: None };
        let spent = Some(Readings { target: None, own });
        Measured { closing, started: String::new(), interrupted: false, crowded: false, spent }
    }

    #[test]
    fn a_generator_is_behind_when_many_requests_are_late_or_its_thread_is_busy() {
        assert_eq!(behind(&measured(500, 0, 0), 9), None);
        assert_eq!(behind(&measured(500, 10, 1000), 9), None, "a hundredth may be");
        assert_eq!(behind(&measured(500, 1000, 15), 9), None, "a little late");
        let late = behind(&measured(500, 11, 1000), 9).unwrap();
        assert!(
            late.starts_with("1.1 % of the requests were sent over 20 ms late, at most 1000 ms; run it on"),
            "{late}"
        );
        let busy = behind(&measured(950, 0, 0), 9).unwrap();
        assert!(busy.starts_with("this program used 95 % of its one thread; run it on"), "{busy}");
        let crowded = Measured { crowded: true, ..measured(500, 20, 30) };
        assert!(behind(&crowded, 9).unwrap().contains("9 requests were under way and others waited here"));
    }
}
