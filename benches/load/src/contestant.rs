//! The proxies that are compared, and how each is started: one worker, keep-alive to two engines.
//!
//! Used by `contest` and `idle`; `routing` finds the programs as it does. What is in their files is in `configurations`.
use std::path::{Path, PathBuf};
use std::{fmt, net::SocketAddr, process::Command};

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::Serialize;

use crate::arguments::Setup;
pub(crate) use crate::configurations::{Post, kvway, write};
use crate::configurations::{haproxy, kvway_with_lookups, nginx, sglang_router};
use crate::readiness::Readiness;
use crate::{machine, process};

/// What kvway writes its access log to, in its directory.
pub(crate) const LOG_FILE: &str = "kvway.log";

/// One target of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Contestant {
    /// No proxy: connections go straight to the engines.
    Direct,
    /// nginx as a reverse proxy, unbuffered answers, no access log.
    Nginx,
    /// HAProxy, one thread, no log.
    Haproxy,
    /// A balancer that is nothing but Pingora.
    BarePingora,
    /// kvway that looks at no prompt: round robin; access log and metrics on.
    KvwayOff,
    /// kvway as it comes, routing by what it sent where; access log and metrics on.
    Kvway,
    /// The same, and LMCache is asked about each prompt.
    KvwayLookup,
    /// SGLang's router with its policy `cache_aware`.
    SglangRouter,
}

impl Contestant {
    /// Its name in files.
    pub(crate) fn key(self) -> String {
        self.to_string().to_lowercase().replace(' ', "-")
    }

    /// Whether it asks LMCache.
    pub(crate) fn looks_up(self) -> bool {
        self == Self::KvwayLookup
    }
}

impl fmt::Display for Contestant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Direct => "direct",
            Self::Nginx => "nginx",
            Self::Haproxy => "HAProxy",
            Self::BarePingora => "bare Pingora",
            Self::KvwayOff => "kvway-off",
            Self::Kvway => "kvway",
            Self::KvwayLookup => "kvway-lookup",
            Self::SglangRouter => "sglang-router",
        })
    }
}

/// Where the programs are.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) mock_vllm: PathBuf,
    pub(crate) mock_lmcache: PathBuf,
    pub(crate) nginx: PathBuf,
    pub(crate) haproxy: PathBuf,
    pub(crate) bare_pingora: PathBuf,
    pub(crate) kvway: PathBuf,
    pub(crate) sglang_router: PathBuf,
}

impl Programs {
    /// What is not told is beside this program; programs of others are in the search path.
    pub(crate) fn find(setup: &Setup) -> Result<Self> {
        let own = std::env::current_exe().context("where this program is")?;
        let directory = match &setup.programs {
            Some(directory) => directory.as_path(),
            None => own.parent().context("this program is in no directory")?,
        };
        Ok(Self {
            mock_vllm: setup.mock_vllm.clone().unwrap_or_else(|| directory.join("mock-vllm")),
            mock_lmcache: directory.join("mock-lmcache"),
            nginx: "nginx".into(),
            haproxy: "haproxy".into(),
            bare_pingora: directory.join("bare-pingora"),
            kvway: setup.kvway.clone().unwrap_or_else(|| directory.join("kvway")),
            sglang_router: "sglang-router".into(),
        })
    }
}

/// A program with its arguments, and the configuration behind them.
pub(crate) struct Launch {
    pub(crate) command: Command,
    /// A file, or else the command line.
    pub(crate) configuration: String,
    pub(crate) readiness: Readiness,
    /// Where it tells its metrics, if it does.
    pub(crate) admin: Option<SocketAddr>,
}

impl Contestant {
    /// The program with its version; `None` if it cannot be started here. Direct needs none.
    pub(crate) fn find(self, programs: &Programs) -> Option<(PathBuf, String)> {
        let (candidates, argument) = match self {
            Self::Direct => return None,
            Self::Nginx => (vec![programs.nginx.clone(), "/usr/sbin/nginx".into()], "-v"),
            Self::Haproxy => (vec![programs.haproxy.clone(), "/usr/sbin/haproxy".into()], "-v"),
            Self::BarePingora => (vec![programs.bare_pingora.clone()], "--version"),
            Self::KvwayOff | Self::Kvway | Self::KvwayLookup => (vec![programs.kvway.clone()], "--version"),
            Self::SglangRouter => (vec![programs.sglang_router.clone()], "--version"),
        };
        candidates
            .into_iter()
            .find_map(|program| machine::version(&program, argument).map(|version| (program, version)))
    }

    /// How `program` is started to serve `post`; `lmcache` is for who asks it.
    pub(crate) fn launch(
        self,
        program: &Path,
        post: &Post,
        lmcache: Option<SocketAddr>,
    ) -> Result<Option<Launch>> {
        let mut command = Command::new(program);
        let mut readiness = Readiness::Listens(post.listen);
        let mut admin = None;
        let mut file = None;
        match self {
            Self::Direct => return Ok(None),
            Self::BarePingora => {
                command.arg("--listen").arg(post.listen.to_string());
                for engine in post.engines {
                    command.arg("--backend").arg(engine.to_string());
                }
            }
            Self::Nginx => {
                let text = nginx(post);
                let path = write(post.directory, "nginx.conf", &text)?;
                command.arg("-p").arg(post.directory).arg("-c").arg(path);
                file = Some(text);
            }
            Self::Haproxy => {
                let text = haproxy(post);
                // Not in the background.
                command.args(["-db", "-f"]).arg(write(post.directory, "haproxy.cfg", &text)?);
                file = Some(text);
            }
            Self::KvwayOff | Self::Kvway | Self::KvwayLookup => {
                let tells = process::free_address()?;
                let text = match (self, lmcache) {
                    (Self::KvwayOff, _) => kvway(post, tells, "policy: round_robin", ""),
                    (Self::KvwayLookup, Some(lmcache)) => kvway_with_lookups(post, tells, lmcache),
                    _ => kvway(post, tells, "policy: pmc", ""),
                };
                command.args(["run", "-c"]).arg(write(post.directory, "kvway.yaml", &text)?);
                (file, admin) = (Some(text), Some(tells));
                readiness = Readiness::Tells(tells, "/readyz");
            }
            Self::SglangRouter => {
                command.arg("launch").args(sglang_router(post, process::free_address()?));
                command.env(SGLANG_THREADS.0, SGLANG_THREADS.1);
                readiness = Readiness::Tells(post.listen, "/readiness");
            }
        }
        let configuration = file.unwrap_or_else(|| command_line(&command));
        Ok(Some(Launch { command, configuration, readiness, admin }))
    }
}

/// It has no flag for its threads; this variable is that of the runtime which it is built on.
const SGLANG_THREADS: (&str, &str) = ("TOKIO_WORKER_THREADS", "1");

fn command_line(command: &Command) -> String {
    let variables = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
    let variables = variables.map(|(name, value)| format!("{}={} ", name.display(), value.display()));
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let arguments = command.get_args().map(|argument| format!(" {}", argument.display()));
    format!("{}{}{}", variables.collect::<String>(), program.display(), arguments.collect::<String>())
}

/// How a mock engine is started.
pub(crate) fn engine(program: &Path, id: &str, listen: SocketAddr, sse_gap_ms: u32) -> Command {
    let mut command = Command::new(program);
    command.args([
        "--id",
        id,
        "--model",
        crate::contest::MODEL,
        "--mode",
        "canned",
        "--no-record",
        "--workers",
        "1",
    ]);
    command.arg("--listen").arg(listen.to_string());
    command.arg("--sse-gap-ms").arg(sse_gap_ms.to_string());
    command
}

/// How a mock LMCache is started, for which the first engine has everything.
pub(crate) fn lmcache(program: &Path, listen: SocketAddr) -> Command {
    let mut command = Command::new(program);
    command.args(["--no-record", "--workers", "1", "--prefer", "vllm-0", "--listen"]).arg(listen.to_string());
    command
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const ENGINES: [&str; 2] = ["127.0.0.1:1001", "127.0.0.1:1002"];

    fn launch(contestant: Contestant, lmcache: Option<SocketAddr>) -> Launch {
        let directory = tempfile::tempdir().unwrap();
        let engines = ENGINES.map(|engine| engine.parse().unwrap());
        let listen = "127.0.0.1:8080".parse().unwrap();
        let post = Post { listen, engines: &engines, directory: directory.path(), body_bytes_max: 1000 };
        let launch = contestant.launch(Path::new("/opt/proxy"), &post, lmcache).unwrap().unwrap();
        // What is kept is what the program reads.
        let files: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
        for file in files {
            assert_eq!(fs::read_to_string(file.unwrap().path()).unwrap(), launch.configuration);
        }
        launch
    }

    fn proxies() -> impl Iterator<Item = Contestant> {
        Contestant::value_variants().iter().copied().filter(|it| *it != Contestant::Direct)
    }

    #[test]
    fn every_engine_and_the_address_are_in_every_configuration() {
        for contestant in proxies() {
            let text = launch(contestant, None).configuration;
            for engine in ENGINES {
                assert!(text.contains(engine), "{contestant}: {text}");
            }
            assert!(text.contains("8080"), "{contestant}: {text}");
        }
    }

    #[test]
    fn every_proxy_has_one_worker() {
        use Contestant as It;
        for (contestant, told) in [
            (It::Nginx, "worker_processes 1;"),
            (It::Haproxy, "nbthread 1\n"),
            (It::KvwayOff, "threads: 1\n"),
            (It::Kvway, "threads: 1\n"),
            (It::KvwayLookup, "threads: 1\n"),
            (It::SglangRouter, "TOKIO_WORKER_THREADS=1 proxy launch --worker-urls http://127.0.0.1:1001"),
        ] {
            let text = launch(contestant, None).configuration;
            assert!(text.contains(told), "{contestant}: {text}");
        }
    }

    #[test]
    fn kvway_differs_in_its_policy_and_its_lookups_only() {
        let text = |contestant| {
            let lmcache = Some("127.0.0.1:9000".parse().unwrap());
            let text = launch(contestant, lmcache).configuration;
            // Its folder and the port that tells its metrics are its own.
            let own =
                |line: &&str| ["upgrade_socket:", "  file:", "admin:"].iter().any(|key| line.contains(key));
            let mut lines: Vec<_> = text.lines().filter(|line| !own(line)).map(str::to_owned).collect();
            lines.remove(lines.iter().rposition(|line| line.starts_with("  address:")).unwrap());
            lines
        };
        let (off, on) = (text(Contestant::KvwayOff), text(Contestant::Kvway));
        let as_on = off.iter().map(|line| line.replace("policy: round_robin", "policy: pmc"));
        assert!(as_on.eq(on.iter().cloned()), "{off:?}");
        let lookup = text(Contestant::KvwayLookup);
        assert!(lookup.starts_with(&on), "{lookup:?}");
        let rest = lookup[on.len()..].concat();
        for told in ["enabled: true", "http://127.0.0.1:9000", "vllm_endpoint: http://127.0.0.1:1001"] {
            assert!(rest.contains(told), "{rest}");
        }
        for lines in [off, on, lookup] {
            assert!(lines.concat().contains("access: json"), "{lines:?}");
        }
    }
}
