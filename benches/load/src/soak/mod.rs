//! What a gateway does to memory, files and threads under load for a long time.
//!
//! Called by `main`. `routing` gives the load ([`Sustained`] is all that is used of it), `sample` looks at the gateway
//! while it runs, `growth` says how fast a figure grows, `report` is what is kept. Bounded by its duration.
mod growth;
mod report;
mod sample;

use std::io::{Write, stderr};
use std::pin::pin;
use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::sync::oneshot;
use tokio::time::{self, Instant, MissedTickBehavior};

use crate::arguments::Soak;
use crate::machine::{self, Origin};
use crate::measurement::Errors;
use crate::routing::{Sustained, Wave};

use report::Bounds;
#[cfg(test)]
pub(crate) use report::tests;
pub(crate) use report::{Report, table};
pub(crate) use sample::Sample;
use sample::Watched;

const POLICY: &str = "pmc";
/// How long one wave of load is; between two of them all requests have ended.
const WAVE: Duration = Duration::from_mins(1);
/// Of the duration, what is not judged, if nobody says otherwise.
const WARM_UP: u32 = 4;

/// Runs to the end, or to an interrupt; what was seen until then is reported.
pub(crate) async fn run(settings: &Soak, interrupt: impl Future<Output = ()>) -> Result<Report> {
    ensure!(settings.load > 0.0 && settings.load.is_finite(), "--load has to be above 0");
    ensure!(!settings.every.is_zero(), "--every has to be above 0");
    let warm_up = settings.warm_up.unwrap_or(settings.duration / WARM_UP);
    ensure!(warm_up < settings.duration, "--warm-up has to be shorter than --duration");
    let mut sustained = Sustained::start(&settings.setup, POLICY).await?;
    let gateway = sustained.gateway();
    let watched = Watched { pid: gateway.pid(), admin: gateway.admin, log: gateway.log.clone() };
    let version = machine::version(&crate::contestant::Programs::find(&settings.setup)?.kvway, "--version");
    let configuration = gateway.configuration.clone();
    let began = Instant::now();
    let (ended, end) = oneshot::channel();
    let load = async {
        let result = load(&mut sustained, settings, began, interrupt).await;
        drop(ended);
        result
    };
    writeln!(stderr(), "loading kvway, process {}", watched.pid)?;
    let both = tokio::try_join!(load, watch(&watched, settings.every, began, end));
    // A gateway that has ended says why.
    let (played, samples) = both.or_else(|error| sustained.check().and(Err(error)))?;
    let seconds = began.elapsed().as_secs_f64();
    let bounds = Bounds {
        memory_kib: settings.growth_max.as_u64() / 1024,
        files: settings.files_growth_max.into(),
        threads: settings.threads_growth_max.into(),
    };
    Ok(Report {
        origin: Origin::of(&settings.setup),
        version,
        configuration,
        policy: POLICY,
        load: settings.load,
        seed: settings.setup.seed,
        every_seconds: settings.every.as_secs_f64(),
        seconds,
        warm_up_seconds: warm_up.as_secs_f64(),
        interrupted: played.interrupted,
        answered: played.answered,
        errors: played.errors,
        samples,
        bounds,
        growth: None,
        complaints: Vec::new(),
    }
    .judged())
}

#[derive(Default)]
struct Played {
    answered: u64,
    errors: Errors,
    interrupted: bool,
}

/// One wave after the other, until the time is over.
async fn load(
    sustained: &mut Sustained,
    settings: &Soak,
    began: Instant,
    interrupt: impl Future<Output = ()>,
) -> Result<Played> {
    let mut interrupt = pin!(interrupt);
    let mut played = Played::default();
    while let Some(left) = settings.duration.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) {
        let wave = sustained.wave(left.min(WAVE), settings.load, interrupt.as_mut()).await?;
        let Some(Wave { answered, errors }) = wave else {
            played.interrupted = true;
            break;
        };
        played.answered += answered as u64;
        for (kind, count) in errors.by_kind {
            *played.errors.by_kind.entry(kind).or_default() += count;
        }
        played.errors.first = played.errors.first.or(errors.first);
        let (minutes, failed) = (began.elapsed().as_secs() / 60, played.errors.total());
        writeln!(stderr(), "{minutes} min: {} answered, {failed} failed", played.answered)?;
    }
    Ok(played)
}

/// Looks at the gateway until the load has ended, and once more.
async fn watch(
    watched: &Watched,
    every: Duration,
    began: Instant,
    end: oneshot::Receiver<()>,
) -> Result<Vec<Sample>> {
    let mut end = pin!(end);
    let mut ticks = time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut samples = Vec::new();
    loop {
        let ended = tokio::select! {
            _ = ticks.tick() => false,
            _ = &mut end => true,
        };
        samples.push(watched.look(began.elapsed()).await?);
        if ended {
            return Ok(samples);
        }
    }
}
