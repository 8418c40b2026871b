//! What the file says → what it means. The only reader of files and environment.
//!
//! Called once at the start, by `main`, and by the tools that take a configuration; everything after works on the typed
//! [`Config`]. It names no other room. In the order in which a file is read:
//!
//! | file | step |
//! |---|---|
//! | `substitute.rs` | `${NAME}` → stand-in, and after the next step → value |
//! | `tree.rs` | YAML → a tree that knows its lines |
//! | `reader.rs` | tree → types; unknown, missing and doubled keys |
//! | `server.rs`, `limits.rs`, `prefix.rs`, `cluster.rs`, `kvcache.rs`, `route.rs` | the sections: fields, defaults, bounds |
//! | `values.rs`, `names.rs`, `secret.rs` | how single values are written |
//! | `check/`, `spot.rs` | what no single value can know: unique names, routes that lead somewhere |
//! | `pem.rs` | the certificates and keys that the file names |
//! | `pixiu/` | the same for a configuration of Apache dubbo-go-pixiu |
//! | `error.rs` | the one line that says what is wrong |
//!
//! Names of hosts are not resolved here and no port is tried.

mod check;
mod cluster;
mod error;
mod kvcache;
mod limits;
mod names;
mod pem;
mod pixiu;
mod prefix;
mod reader;
mod route;
mod secret;
mod server;
mod spot;
mod substitute;
mod tree;
mod values;

use std::path::Path;

use serde::{Deserialize, Serialize};

pub use cluster::{
    Backend, BackendTls, Balancing, CAPACITY_TOKENS, CAPACITY_TOKENS_MAX, Cluster, HashBy, Health, Policy,
};
pub use error::ConfigError;
pub use kvcache::{CacheStrategy, CircuitBreaker, EvictWith, KvCache, LmcacheApi, Retry, TokenCache};
pub use limits::{Limits, Retries, RetryOn, Timeouts};
pub use pixiu::Imported;
pub use prefix::Prefix;
pub use route::{ModelPattern, Route};
pub use secret::Secret;
pub use server::{AccessLog, Admin, Level, Listener, ListenerTls, Log, Server};

use error::Fault;
use spot::Spot;
use tree::Node;

/// The largest configuration file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The whole configuration. Every field is valid by itself and together with the others.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Threads, shutdown and upgrade.
    #[serde(default)]
    pub server: Server,
    /// Where clients are served, at least one.
    #[serde(default = "server::listeners")]
    pub listeners: Vec<Listener>,
    /// The admin listener.
    #[serde(default)]
    pub admin: Admin,
    /// What clients may use.
    #[serde(default)]
    pub limits: Limits,
    /// How long each part of a request may take.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// When a request is tried again.
    #[serde(default)]
    pub retries: Retries,
    /// How prompts are cut into blocks.
    #[serde(default)]
    pub prefix: Prefix,
    /// What is logged.
    #[serde(default)]
    pub log: Log,
    /// The backends in their clusters, at least one.
    pub clusters: Vec<Cluster>,
    /// Which cluster answers what, at least one; by default everything to the only cluster.
    #[serde(default)]
    pub routes: Vec<Route>,
}

impl Config {
    /// Reads a file, with the environment of the process, and the certificates that it names.
    ///
    /// # Errors
    /// The first thing that is wrong, as one line.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::load_with(path, &environment)
    }

    /// [`load`](Self::load) with another source of environment variables.
    ///
    /// # Errors
    /// The first thing that is wrong, as one line.
    pub fn load_with(path: &Path, lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let file = path.display().to_string();
        let read = || {
            let text = text_of(path)?;
            let (config, tree) = parse(&text, lookup)?;
            pem::check(&config, &Spot::root(&tree))?;
            Ok(config)
        };
        read().map_err(|fault: Fault| fault.into_error(&file))
    }

    /// Reads a text; `name` stands for the file in messages. Touches neither files nor the environment, so
    /// certificates are not looked at.
    ///
    /// # Errors
    /// The first thing that is wrong, as one line.
    pub fn parse(
        text: &str,
        name: &str,
        lookup: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        parse(text, lookup).map(|(config, _)| config).map_err(|fault| fault.into_error(name))
    }

    /// What is allowed but has no effect, one line each.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        check::warnings(self)
    }

    /// The effective configuration: every key, defaults included, in the order of the reference file. Secrets are
    /// `***`; read back, everything else is the same.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        match serde_yaml::to_string(self) {
            Ok(yaml) => yaml.replace("${", "$${"),
            Err(error) => {
                debug_assert!(false, "a configuration that was read can be written: {error}");
                format!("# cannot be written as YAML: {error}\n")
            }
        }
    }
}

fn parse(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<(Config, Node), Fault> {
    let tree = tree_of(text, lookup)?;
    Ok((read(&tree)?, tree))
}

/// The text with the values of the environment in their places.
fn tree_of(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<Node, Fault> {
    let (text, references) = substitute::References::take(text)?;
    let mut tree = tree::parse(&text)?;
    references.fill(&mut tree, lookup)?;
    Ok(tree)
}

fn read(tree: &Node) -> Result<Config, Fault> {
    let mut config: Config = reader::read(tree)?;
    let root = Spot::root(tree);
    if let ([cluster], false) = (config.clusters.as_slice(), root.key("routes").is_written()) {
        config.routes = vec![Route::all(&cluster.name)];
    }
    check::check(&config, &root)?;
    Ok(config)
}

fn text_of(path: &Path) -> Result<String, Fault> {
    let unreadable = |error: std::io::Error| Fault::new(format!("cannot be read: {error}"));
    let size = std::fs::metadata(path).map_err(unreadable)?.len();
    if size > FILE_BYTES_MAX {
        return Err(Fault::new(format!(
            "is {size} bytes long; a configuration has at most {FILE_BYTES_MAX}"
        )));
    }
    std::fs::read_to_string(path).map_err(unreadable)
}

/// What is not text becomes text that `substitute` refuses.
#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
fn environment(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}
