//! A mock LMCache controller or coordinator as a process; see the `mocks` library for what they do.

use std::io::Write as _;
use std::net::SocketAddr;

use clap::Parser;
use mocks::{Controller, ControllerOptions, Coordinator, CoordinatorOptions};

/// A mock LMCache controller, or coordinator: answers as a real one was recorded to answer.
///
/// What it holds is set with POST /admit, which takes the fields of the controller's /pin; POST /prefer takes an
/// `instance_id` that all lookups name from then on, or an empty one. GET /stats shows what it was asked, POST /reset
/// makes it as it was when it started.
#[derive(Debug, Parser)]
#[command(version)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
struct Arguments {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, env = "MOCK_LMCACHE_LISTEN", default_value = "127.0.0.1:9000")]
    listen: SocketAddr,
    /// Speak the coordinator's protocol
    #[arg(long, env = "MOCK_LMCACHE_COORDINATOR", conflicts_with_all = ["object_shape", "evict", "health_by_get"])]
    coordinator: bool,
    /// Answer layouts as objects and not as arrays
    #[arg(long, env = "MOCK_LMCACHE_OBJECT_SHAPE")]
    object_shape: bool,
    /// Have /evict, which the real one has not
    #[arg(long, env = "MOCK_LMCACHE_EVICT")]
    evict: bool,
    /// Answer GET /health, which the real one refuses
    #[arg(long, env = "MOCK_LMCACHE_HEALTH_BY_GET")]
    health_by_get: bool,
    /// Instance that every lookup answers with all tokens
    #[arg(long, env = "MOCK_LMCACHE_PREFER")]
    prefer: Option<String>,
    /// Threads
    #[arg(long, env = "MOCK_LMCACHE_WORKERS", default_value_t = 1)]
    workers: usize,
    /// Keep no requests: they are only counted
    #[arg(long, env = "MOCK_LMCACHE_NO_RECORD")]
    no_record: bool,
    /// Let requests ask for faults with x-mock-fault
    #[arg(long, env = "MOCK_LMCACHE_FAULTS_BY_HEADER")]
    faults_by_header: bool,
}

async fn control(arguments: Arguments) -> anyhow::Result<()> {
    let controller = Controller::start_at(
        arguments.listen,
        ControllerOptions {
            object_shape: arguments.object_shape,
            evict: arguments.evict,
            health_by_get: arguments.health_by_get,
            prefer: arguments.prefer,
            record: !arguments.no_record,
            faults_by_header: arguments.faults_by_header,
        },
    )?;
    writeln!(std::io::stderr(), "mock-lmcache listens on {}", controller.address())?;
    mocks::process::ended().await?;
    controller.stop().await;
    Ok(())
}

async fn coordinate(arguments: Arguments) -> anyhow::Result<()> {
    let coordinator = Coordinator::start_at(
        arguments.listen,
        CoordinatorOptions {
            prefer: arguments.prefer,
            record: !arguments.no_record,
            faults_by_header: arguments.faults_by_header,
        },
    )?;
    writeln!(std::io::stderr(), "mock-lmcache (coordinator) listens on {}", coordinator.address())?;
    mocks::process::ended().await?;
    coordinator.stop().await;
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    mocks::process::run(arguments.workers, async move {
        if arguments.coordinator { coordinate(arguments).await } else { control(arguments).await }
    })
}
