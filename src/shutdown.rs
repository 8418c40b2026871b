//! Signals: how the process ends, and how it hands over to a successor.
//!
//! Given to Pingora's server as the source of its shutdown signal. Pingora closes the listeners, tells all connections,
//! and would then sleep the whole grace period; here a watch ends the process as soon as it is drained.
//!
//! | signal | what follows |
//! |---|---|
//! | SIGTERM | `/readyz` turns false; after `close_delay` the listeners close; running requests finish, at most `grace_period` |
//! | SIGQUIT | with a successor waiting (`kvway run --upgrade`): it gets the listeners, then as above; without one: ignored |
//! | SIGINT, or a second SIGTERM | the process ends at once |
//! | SIGHUP | ignored; a new configuration is taken up by an upgrade |

use crate::state::lifecycle::{Lifecycle, Phase};
use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::server::{ExecutionPhase, ShutdownSignal, ShutdownSignalWatch};
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::broadcast::Receiver;
use tokio::time::{Instant, sleep, timeout};

/// How long connections may take to pass on the last bytes once no request is running.
const SETTLE_MAX: Duration = Duration::from_secs(1);
/// How often it is looked whether they have.
const SETTLE_PERIOD: Duration = Duration::from_millis(10);

/// What ending needs to know.
pub struct Shutdown {
    /// See [`Lifecycle`].
    pub lifecycle: Arc<Lifecycle>,
    /// How long listeners stay open after `/readyz` has turned false.
    pub close_delay: Duration,
    /// The longest wait for running requests.
    pub grace_period: Duration,
    /// Where a successor waits for the listeners.
    pub upgrade_socket: PathBuf,
    /// Client connections that are open.
    pub connections: Arc<dyn Fn() -> usize + Send + Sync>,
    /// The last thing done before the process ends.
    pub last_words: Arc<dyn Fn() + Send + Sync>,
    /// Pingora's phases.
    pub phases: Mutex<Option<Receiver<ExecutionPhase>>>,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hangup: Signal,
}

impl Signals {
    fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// SIGINT or SIGTERM.
    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Makes the folder of the upgrade socket: for nobody else, since whoever reaches the socket can hand listeners over.
///
/// # Errors
/// When it is not there and cannot be made.
pub fn make_upgrade_folder(socket: &Path) -> io::Result<()> {
    let folder = socket.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.map_or(Ok(()), |folder| DirBuilder::new().recursive(true).mode(0o700).create(folder))
}

/// Whether a successor can wait at the upgrade socket, which Pingora takes for granted.
///
/// # Errors
/// Why it cannot.
pub fn try_upgrade_socket(socket: &Path) -> io::Result<()> {
    make_upgrade_folder(socket)?;
    // One that was killed has left it behind.
    let _removed = std::fs::remove_file(socket).is_ok();
    // A datagram socket, which nobody takes for a successor that waits.
    drop(UnixDatagram::bind(socket)?);
    std::fs::remove_file(socket)
}

#[async_trait]
impl ShutdownSignalWatch for Shutdown {
    async fn recv(&self) -> ShutdownSignal {
        let mut signals = match Signals::install() {
            Ok(signals) => signals,
            Err(error) => {
                tracing::error!(%error, "signals cannot be received");
                return ShutdownSignal::FastShutdown;
            }
        };
        loop {
            tokio::select! {
                _ = signals.interrupt.recv() => {
                    tracing::info!("SIGINT: ending at once");
                    return ShutdownSignal::FastShutdown;
                }
                _ = signals.terminate.recv() => {
                    self.lifecycle.enter_phase(Phase::Draining);
                    tracing::info!(in_flight = self.lifecycle.in_flight(), "SIGTERM: draining");
                    if timeout(self.close_delay, signals.end()).await.is_ok() {
                        return ShutdownSignal::FastShutdown;
                    }
                    self.end_when_drained(signals);
                    return ShutdownSignal::GracefulTerminate;
                }
                _ = signals.quit.recv() => {
                    if self.successor_waits() {
                        self.lifecycle.enter_phase(Phase::Handover);
                        tracing::info!("SIGQUIT: handing the listeners over to the successor");
                        self.end_when_drained(signals);
                        return ShutdownSignal::GracefulUpgrade;
                    }
                    tracing::error!(
                        socket = %self.upgrade_socket.display(),
                        "SIGQUIT ignored: no successor waits at the upgrade socket; start one with `kvway run --upgrade`"
                    );
                }
                _ = signals.hangup.recv() => {
                    tracing::warn!("SIGHUP ignored: to take up a new configuration, upgrade with `kvway run --upgrade`");
                }
            }
        }
    }
}

impl Shutdown {
    /// Whether a process listens at the upgrade socket. Without one, Pingora would close the listeners all the same.
    fn successor_waits(&self) -> bool {
        let path = self.upgrade_socket.as_os_str().to_string_lossy();
        let is_listening = |line: &str| {
            let mut fields = line.split_ascii_whitespace();
            // Num RefCount Protocol Flags Type St Inode Path; the flag __SO_ACCEPTCON marks a listener.
            fields.nth(3) == Some("00010000") && fields.nth(3) == Some(path.as_ref())
        };
        std::fs::read_to_string("/proc/net/unix").is_ok_and(|sockets| sockets.lines().any(is_listening))
    }

    /// Once the listeners are closed, waits for the running requests and ends the process.
    fn end_when_drained(&self, mut signals: Signals) {
        let Some(mut phases) = self.phases.lock().take() else {
            return;
        };
        let (lifecycle, grace_period) = (Arc::clone(&self.lifecycle), self.grace_period);
        let (connections, last_words) = (Arc::clone(&self.connections), Arc::clone(&self.last_words));
        let ending = async move {
            while !matches!(phases.recv().await, Ok(ExecutionPhase::ShutdownGracePeriod) | Err(_)) {}
            lifecycle.enter_phase(Phase::Draining);
            tracing::info!(in_flight = lifecycle.in_flight(), "listeners closed");
            tokio::select! {
                () = lifecycle.drained() => {
                    let settled_by = Instant::now() + SETTLE_MAX;
                    while connections() > 0 && Instant::now() < settled_by {
                        sleep(SETTLE_PERIOD).await;
                    }
                    tracing::info!("drained");
                }
                () = sleep(grace_period) => {
                    tracing::warn!(cut = lifecycle.in_flight(), "the grace period is over");
                }
                () = signals.end() => tracing::warn!(cut = lifecycle.in_flight(), "told again to end"),
            }
            last_words();
            std::process::exit(0);
        };
        // Pingora's own thread sleeps from here on; this runtime's worker goes on.
        drop(tokio::runtime::Handle::current().spawn(ending));
    }
}
