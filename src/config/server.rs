//! The process: threads and shutdown, where it listens, the admin listener, what it logs.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::names;
use super::secret::Secret;
use super::values::{self, DAY_MS, SECOND_MS};

/// Threads, shutdown and upgrade.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// Threads that serve requests; 0 = one per core.
    #[serde(deserialize_with = "values::integer::<0, 1024, _>")]
    pub threads: usize,
    /// The longest drain; the process ends as soon as it is drained.
    #[serde(
        deserialize_with = "values::duration::<0, DAY_MS, _>",
        serialize_with = "values::write_duration"
    )]
    pub grace_period: Duration,
    /// How long listeners stay open on SIGTERM after `/readyz` turned false.
    #[serde(
        deserialize_with = "values::duration::<0, { 600 * SECOND_MS }, _>",
        serialize_with = "values::write_duration"
    )]
    pub close_delay: Duration,
    /// Where a successor takes over the listening sockets.
    #[serde(deserialize_with = "names::path")]
    pub upgrade_socket: PathBuf,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            threads: 0,
            grace_period: Duration::from_mins(10),
            close_delay: Duration::from_secs(1),
            upgrade_socket: PathBuf::from("/run/kvway/upgrade.sock"),
        }
    }
}

/// One address on which clients are served.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// IP address and port; port 0 lets the system choose.
    #[serde(deserialize_with = "names::listen_address")]
    pub address: SocketAddr,
    /// Whether HTTP/2 without TLS is spoken beside HTTP/1.1.
    #[serde(default = "yes")]
    pub h2c: bool,
    /// TLS for this listener; `None` = plain text.
    #[serde(default)]
    pub tls: Option<ListenerTls>,
}

/// The certificate of a listener, and whose clients it accepts. Files are PEM.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ListenerTls {
    /// The certificate chain, own certificate first.
    #[serde(deserialize_with = "names::path")]
    pub certificate: PathBuf,
    /// The private key of the certificate.
    #[serde(deserialize_with = "names::path")]
    pub key: PathBuf,
    /// Clients must present a certificate signed by one of these; `None` = no client certificates.
    #[serde(default, deserialize_with = "names::optional::<_, names::FilePath, _>")]
    pub client_ca: Option<PathBuf>,
}

/// The listeners of a file that names none.
pub(super) fn listeners() -> Vec<Listener> {
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8080));
    vec![Listener { address, h2c: true, tls: None }]
}

/// The admin listener: metrics, health, state, decisions.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// IP address and port; `None` = no admin listener.
    #[serde(deserialize_with = "names::optional::<_, names::ListenAddress, _>")]
    pub address: Option<SocketAddr>,
    /// The bearer token that admin requests must carry; `None` = none.
    pub token: Option<Secret>,
    /// Whether tries are counted as dubbo-go-pixiu counts them, too: `pixiu_llm_upstream_requests_total`.
    pub pixiu_metrics: bool,
    /// Decisions that `/decisions` tells, of all clusters; 0 = none.
    #[serde(deserialize_with = "values::integer::<0, 4096, _>")]
    pub decisions_max: usize,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            address: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 9090))),
            token: None,
            pixiu_metrics: false,
            decisions_max: 256,
        }
    }
}

impl Admin {
    /// Decisions that are kept: none where nobody can ask for them.
    #[must_use]
    pub fn decisions_kept(&self) -> usize {
        self.address.map_or(0, |_| self.decisions_max)
    }
}

/// What is logged, and where.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// The form of the access log.
    pub access: AccessLog,
    /// The least important event that is logged.
    pub level: Level,
    /// The file of the access log; `None` = standard output.
    #[serde(deserialize_with = "names::optional::<_, names::FilePath, _>")]
    pub file: Option<PathBuf>,
    /// Whether the access log, as JSON, tells the blocks of each prompt by pseudonyms: equal ones stand for equal beginnings of
    /// prompts, in the lines of one process.
    pub block_keys: bool,
    /// The blocks of one prompt that are told, from its start.
    #[serde(deserialize_with = "values::integer::<1, 65536, _>")]
    pub block_keys_max: usize,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            access: AccessLog::default(),
            level: Level::default(),
            file: None,
            block_keys: false,
            block_keys_max: 1024,
        }
    }
}

impl Log {
    /// Whether the blocks of prompts are told: they are wanted, and the form of the access log has room for them.
    #[must_use]
    pub fn tells_blocks(&self) -> bool {
        self.block_keys && self.access == AccessLog::Json
    }
}

/// The form of the access log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessLog {
    /// One JSON object per request.
    #[default]
    Json,
    /// One line of text per request.
    Text,
    /// No access log.
    Off,
}

/// The importance of an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Something failed that the process cannot mend.
    Error,
    /// Something is not as it should be.
    Warn,
    /// A change of state that an operator wants to know of.
    #[default]
    Info,
    /// Decisions, for whoever looks for the reason of one.
    Debug,
    /// Everything.
    Trace,
}

fn yes() -> bool {
    true
}
