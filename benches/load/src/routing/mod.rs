//! What policies are worth: the same requests through one policy after the other, before engines with KV caches.
//!
//! Called by `main`. Reading order: `workload` over `traffic`; `fleet`, `player` → `tally` → `report` → `table`.
//! Rounds are interleaved: in each, every policy is measured once with the requests of that round, so that what changes
//! on the machine meets all alike. Nothing is pinned to a core: the engines' time is simulated and has to be the
//! bottleneck, which the report checks by what the processes use of the machine.
mod fleet;
mod report;
mod sustained;
mod table;
mod tally;
mod workload;

use std::collections::BTreeMap;
use std::io::{Write, stderr};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use http::uri::Authority;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::task::LocalSet;
use tokio::time::Instant;

use crate::answer::SERVED_BY;
use crate::arguments::Routing;
use crate::contest::MODEL;
use crate::contestant::Programs;
use crate::cpu::{CpuMeter, CpuUse};
use crate::machine::{self, Origin};
use crate::plan::{Job, Session};
use crate::player::{self, LEAD, Player};
use crate::process;
use crate::target::CHAT_PATH;
use crate::wire::{Endpoint, Wire};
use crate::workload::BENCH_KEY;

use fleet::{ENGINES, Fleet};
pub(crate) use report::Report;
use report::{Case, Settings};
pub(crate) use sustained::{Sustained, Wave};
pub(crate) use table::report as table;
use tally::{Outcome, Tally};
pub(crate) use workload::Workload;

const ROUNDS: usize = 3;
const COUNTED: Duration = Duration::from_secs(10);
const SETTLING: Duration = Duration::from_secs(3);
const QUICK_ROUNDS: usize = 1;
const QUICK_COUNTED: Duration = Duration::from_secs(2);
const QUICK_SETTLING: Duration = Duration::from_millis(500);
/// How long one request may take.
const TIMEOUT: Duration = Duration::from_mins(1);

/// Runs the whole comparison; what was measured before an interrupt is reported.
pub(crate) async fn run(routing: &Routing, interrupt: impl Future<Output = ()>) -> Result<Report> {
    let settings = settings(routing)?;
    process::adopt_orphans()?;
    let programs = Programs::find(&routing.setup)?;
    let version = machine::version(&programs.kvway, "--version");
    let fleet = Fleet::start(programs).await?;
    let mut stage = Stage { fleet, settings, configurations: BTreeMap::new(), interrupted: false };
    let mut interrupt = pin!(interrupt);
    let mut cases = Vec::new();
    for &workload in &routing.workloads {
        if !stage.interrupted {
            cases.push(stage.case(workload, &routing.policies, interrupt.as_mut()).await?);
        }
    }
    cases.retain(|case| !case.is_empty());
    ensure!(
        !cases.is_empty(),
        "interrupted before anything was measured; everything that was started has ended"
    );
    Ok(Report {
        origin: Origin::of(&routing.setup),
        version,
        settings: stage.settings,
        configurations: stage.configurations,
        interrupted: stage.interrupted,
        cases,
    })
}

fn settings(routing: &Routing) -> Result<Settings> {
    ensure!(routing.load > 0.0 && routing.load.is_finite(), "--load has to be above 0");
    let (rounds, counted, settling) = if routing.quick {
        (QUICK_ROUNDS, QUICK_COUNTED, QUICK_SETTLING)
    } else {
        (ROUNDS, COUNTED, SETTLING)
    };
    Ok(Settings {
        rounds: routing.rounds.map_or(rounds, NonZeroUsize::get),
        seconds: routing.duration.unwrap_or(counted).as_secs_f64(),
        settling_seconds: settling.as_secs_f64(),
        load: routing.load,
        seed: routing.setup.seed,
        engines: ENGINES,
    })
}

/// What is measured on, and what is known beside the figures.
struct Stage {
    fleet: Fleet,
    settings: Settings,
    /// Of the gateway, by policy.
    configurations: BTreeMap<String, String>,
    interrupted: bool,
}

impl Stage {
    /// All rounds of one workload, or those before an interrupt.
    async fn case(
        &mut self,
        workload: Workload,
        policies: &[String],
        mut interrupt: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Case> {
        let Settings { rounds, seconds, settling_seconds, load, seed, .. } = self.settings;
        let per_second = workload.round_robin_per_second() * load;
        let length = Duration::from_secs_f64(settling_seconds + seconds);
        let mut measured: Vec<(String, Vec<Outcome>)> =
            policies.iter().map(|policy| (policy.clone(), Vec::new())).collect();
        let mut seeds = StdRng::seed_from_u64(seed);
        for number in 1..=rounds {
            let plan = workload.plan(per_second, length, &mut StdRng::seed_from_u64(seeds.random()));
            for (policy, outcomes) in &mut measured {
                if !self.interrupted {
                    writeln!(stderr(), "{workload}, round {number} of {rounds}: {policy}")?;
                    outcomes.extend(self.window(policy, plan.clone(), interrupt.as_mut()).await?);
                }
            }
        }
        Ok(Case::new(workload, per_second, measured))
    }

    /// One window; `None` if it was interrupted.
    async fn window(
        &mut self,
        policy: &str,
        plan: Vec<Session>,
        interrupt: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Option<Outcome>> {
        self.fleet.reset().await?;
        let mut gateway = self.fleet.gateway(policy).await.with_context(|| format!("policy {policy}"))?;
        self.configurations.entry(policy.to_owned()).or_insert_with(|| gateway.configuration.clone());
        let everybody = CpuMeter::of_tree(process::own_id())?.watching_all();
        let gateway_alone = CpuMeter::of_tree(gateway.pid())?;
        let (before, gateway_before) = (everybody.read()?, gateway_alone.read()?);
        let (started, planned) = (Instant::now(), plan.iter().map(|session| session.turns.len()).sum());
        let settling = Duration::from_secs_f64(self.settings.settling_seconds);
        let played = play(plan, gateway.address, settling, interrupt).await?;
        gateway.check()?;
        let Some(tally) = played else {
            self.interrupted = true;
            return Ok(None);
        };
        let (answered, first_failure) = tally.so_far();
        if answered == 0 {
            let failure = first_failure.unwrap_or("there was none: --duration or --load is too small");
            bail!("no request through policy {policy} was answered: {failure}");
        }
        let elapsed = started.elapsed();
        let used = |spent| CpuUse::of(spent, elapsed, answered as u64, 0);
        let cpu = [used(everybody.read()?.since(before)), used(gateway_alone.read()?.since(gateway_before))];
        Ok(Some(tally.outcome(planned, ENGINES.count, cpu)))
    }
}

/// Plays sessions to their end; `None` if that was interrupted.
async fn play(
    plan: Vec<Session>,
    gateway: SocketAddr,
    settling: Duration,
    interrupt: impl Future<Output = ()>,
) -> Result<Option<Tally>> {
    let wire = Wire {
        authority: Authority::from_static("engines.test"),
        path: CHAT_PATH,
        head: BENCH_KEY.to_owned(),
        endpoint: Endpoint::Chat,
        model: MODEL.to_owned(),
        stream: true,
        backend_header: SERVED_BY.into(),
    };
    let opened = Instant::now() + LEAD;
    let tally = Tally::new(opened, settling).context("histograms")?;
    let settings = player::Settings {
        address: gateway.into(),
        wire,
        timeout: TIMEOUT,
        under_way_max: usize::MAX,
        until: None,
    };
    let (player, local) = (Player::new(settings, tally), LocalSet::new());
    let jobs = plan.into_iter().map(|session| (session.start, Job::Session(session)));
    let ended = local.run_until(async {
        tokio::select! {
            () = player.play(jobs, opened) => true,
            () = interrupt => false,
        }
    });
    let ended = ended.await;
    // With it go the tasks, which hold the player.
    drop(local);
    Ok(Rc::into_inner(player).filter(|_| ended).map(|player| player.books.into_inner()))
}
