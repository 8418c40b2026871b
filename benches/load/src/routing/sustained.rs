//! One gateway under a mixture of all workloads, for as long as somebody wants it: what `soak` sees of this module.
//!
//! Load comes in waves, each with requests of its own, so that never more than one of them is in memory.
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::fleet::{Fleet, Gateway};
use super::play;
use super::workload::Workload;
use crate::arguments::Setup;
use crate::contestant::Programs;
use crate::measurement::Errors;
use crate::process;

/// A gateway before its engines.
pub(crate) struct Sustained {
    fleet: Fleet,
    gateway: Gateway,
    seeds: StdRng,
}

/// What became of the requests of one wave.
pub(crate) struct Wave {
    pub(crate) answered: usize,
    pub(crate) errors: Errors,
}

impl Sustained {
    /// Starts the engines and the gateway.
    pub(crate) async fn start(setup: &Setup, policy: &str) -> Result<Self> {
        process::adopt_orphans()?;
        let mut fleet = Fleet::start(Programs::find(setup)?).await?;
        fleet.reset().await?;
        let gateway = fleet.gateway(policy).await.with_context(|| format!("policy {policy}"))?;
        Ok(Self { fleet, gateway, seeds: StdRng::seed_from_u64(setup.seed) })
    }

    pub(crate) fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    /// An error if the gateway or an engine does not run any more.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.gateway.check()?;
        self.fleet.check()
    }

    /// Sends what is due within `length`, and waits for its answers; `load` is shared by the workloads. None if it was
    /// interrupted before its end.
    pub(crate) async fn wave(
        &mut self,
        length: Duration,
        load: f64,
        interrupt: impl Future<Output = ()>,
    ) -> Result<Option<Wave>> {
        let mut random = StdRng::seed_from_u64(self.seeds.random());
        let workloads = Workload::value_variants();
        let mut sessions = Vec::new();
        for workload in workloads {
            let shares = f64::from(u32::try_from(workloads.len())?);
            let per_second = workload.round_robin_per_second() * load / shares;
            sessions.extend(workload.plan(per_second, length, &mut random));
        }
        sessions.sort_by_key(|session| session.start);
        let played = play(sessions, self.gateway.address, Duration::ZERO, interrupt).await?;
        self.check()?;
        Ok(played.map(|tally| Wave { answered: tally.so_far().0, errors: tally.errors().clone() }))
    }
}
