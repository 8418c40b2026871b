//! A mock LMCache controller as a process; see the `mocks` library for what it does.

use std::io::Write as _;
use std::net::SocketAddr;

use clap::Parser;
use mocks::{Controller, ControllerOptions};

/// A mock LMCache controller: answers as a real one was recorded to answer.
///
/// What it holds is set with POST /admit, which takes the fields of /pin.
#[derive(Debug, Parser)]
#[command(version)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
struct Arguments {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, env = "MOCK_LMCACHE_LISTEN", default_value = "127.0.0.1:9000")]
    listen: SocketAddr,
    /// Answer layouts as objects and not as arrays
    #[arg(long, env = "MOCK_LMCACHE_OBJECT_SHAPE")]
    object_shape: bool,
    /// Have /evict, which the real one has not
    #[arg(long, env = "MOCK_LMCACHE_EVICT")]
    evict: bool,
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

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    mocks::process::run(arguments.workers, async move {
        let controller = Controller::start_at(
            arguments.listen,
            ControllerOptions {
                object_shape: arguments.object_shape,
                evict: arguments.evict,
                prefer: arguments.prefer,
                record: !arguments.no_record,
                faults_by_header: arguments.faults_by_header,
            },
        )?;
        writeln!(std::io::stderr(), "mock-lmcache listens on {}", controller.address())?;
        mocks::process::ended().await?;
        controller.stop().await;
        Ok(())
    })
}
