//! The proxies that are compared, and how each is started: one worker, keep-alive to two engines, round robin.
//!
//! Used by `contest`; `routing` finds the programs and configures kvway as it does. The configurations are the plainest that are fair; each is kept with the result.
use std::path::{Path, PathBuf};
use std::{fmt, fs, net::SocketAddr, process::Command};

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::Serialize;

use crate::arguments::Setup;
use crate::{machine, process};

/// What kvway writes its access log to, in its directory.
pub(crate) const LOG_FILE: &str = "kvway.log";

/// One target of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Contestant {
    /// No proxy: connections go straight to the engines.
    Direct,
    /// nginx as a reverse proxy, unbuffered answers, no access log.
    Nginx,
    /// A balancer that is nothing but Pingora.
    BarePingora,
    /// kvway with its access log on.
    Kvway,
}

impl fmt::Display for Contestant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Direct => "direct",
            Self::Nginx => "nginx",
            Self::BarePingora => "bare Pingora",
            Self::Kvway => "kvway",
        })
    }
}

/// Where the programs are.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) mock_vllm: PathBuf,
    pub(crate) nginx: PathBuf,
    pub(crate) bare_pingora: PathBuf,
    pub(crate) kvway: PathBuf,
}

impl Programs {
    /// What is not told is beside this program; nginx is in the search path.
    pub(crate) fn find(setup: &Setup) -> Result<Self> {
        let own = std::env::current_exe().context("where this program is")?;
        let directory = match &setup.programs {
            Some(directory) => directory.as_path(),
            None => own.parent().context("this program is in no directory")?,
        };
        Ok(Self {
            mock_vllm: setup.mock_vllm.clone().unwrap_or_else(|| directory.join("mock-vllm")),
            nginx: "nginx".into(),
            bare_pingora: directory.join("bare-pingora"),
            kvway: setup.kvway.clone().unwrap_or_else(|| directory.join("kvway")),
        })
    }
}

/// What a proxy is to do.
pub(crate) struct Post<'a> {
    pub(crate) listen: SocketAddr,
    pub(crate) engines: &'a [SocketAddr],
    pub(crate) directory: &'a Path,
    pub(crate) body_bytes_max: usize,
}

/// A program with its arguments, and the configuration file behind them.
pub(crate) struct Launch {
    pub(crate) command: Command,
    pub(crate) configuration: Option<String>,
}

impl Contestant {
    /// The program with its version; `None` if it cannot be started here. Direct needs none.
    pub(crate) fn find(self, programs: &Programs) -> Option<(PathBuf, String)> {
        let (candidates, argument) = match self {
            Self::Direct => return None,
            Self::Nginx => (vec![programs.nginx.clone(), "/usr/sbin/nginx".into()], "-v"),
            Self::BarePingora => (vec![programs.bare_pingora.clone()], "--version"),
            Self::Kvway => (vec![programs.kvway.clone()], "--version"),
        };
        candidates
            .into_iter()
            .find_map(|program| machine::version(&program, argument).map(|version| (program, version)))
    }

    /// How `program` is started to serve `post`.
    pub(crate) fn launch(self, program: &Path, post: &Post) -> Result<Launch> {
        let mut command = Command::new(program);
        let configuration = match self {
            Self::Direct => None,
            Self::BarePingora => {
                command.arg("--listen").arg(post.listen.to_string());
                for engine in post.engines {
                    command.arg("--backend").arg(engine.to_string());
                }
                None
            }
            Self::Nginx => {
                let text = nginx(post);
                let file = write(post.directory, "nginx.conf", &text)?;
                command.arg("-p").arg(post.directory).arg("-c").arg(file);
                Some(text)
            }
            Self::Kvway => {
                let text = kvway(post, process::free_address()?, "policy: round_robin", "");
                command.args(["run", "-c"]).arg(write(post.directory, "kvway.yaml", &text)?);
                Some(text)
            }
        };
        Ok(Launch { command, configuration })
    }
}

/// How a mock engine is started.
pub(crate) fn engine(
    program: &Path,
    id: &str,
    listen: SocketAddr,
    sse_events: u32,
    sse_gap_ms: u32,
) -> Command {
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
    command.arg("--sse-events").arg(sse_events.to_string()).arg("--sse-gap-ms").arg(sse_gap_ms.to_string());
    command
}

/// Writes a configuration.
pub(crate) fn write(directory: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = directory.join(name);
    fs::write(&path, text).with_context(|| path.display().to_string())?;
    Ok(path)
}

/// Bodies stay in memory and answers are passed on as they come; connections are never recycled by their age.
fn nginx(post: &Post) -> String {
    let servers: Vec<String> =
        post.engines.iter().map(|engine| format!("        server {engine};\n")).collect();
    let servers = servers.concat();
    format!(
        "daemon off;
worker_processes 1;
pid nginx.pid;
error_log nginx.log warn;
events {{
    worker_connections 1024;
}}
http {{
    access_log off;
    client_body_temp_path body_temp;
    proxy_temp_path proxy_temp;
    fastcgi_temp_path fastcgi_temp;
    uwsgi_temp_path uwsgi_temp;
    scgi_temp_path scgi_temp;
    client_body_buffer_size {body_bytes};
    client_max_body_size {body_bytes};
    keepalive_requests 1000000000;
    tcp_nodelay on;
    upstream engines {{
{servers}        keepalive 128;
        keepalive_requests 1000000000;
    }}
    server {{
        listen {listen};
        location / {{
            proxy_pass http://engines;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_buffering off;
        }}
    }}
}}
",
        body_bytes = post.body_bytes_max * 2,
        listen = post.listen,
    )
}

/// Production's defaults but for one worker, these keys of the cluster, and these of each backend.
pub(crate) fn kvway(post: &Post, admin: SocketAddr, cluster: &str, backend: &str) -> String {
    let numbered = post.engines.iter().enumerate();
    let backends: Vec<String> = numbered
        .map(|(number, engine)| format!("      - {{id: vllm-{number}, address: \"{engine}\"{backend}}}\n"))
        .collect();
    let backends = backends.concat();
    format!(
        "server:
  threads: 1
  grace_period: 1s
  upgrade_socket: {directory}/upgrade.sock
listeners:
  - address: {listen}
admin:
  address: {admin}
log:
  access: json
  file: {directory}/{LOG_FILE}
clusters:
  - name: engines
    {cluster}
    backends:
{backends}",
        directory = post.directory.display(),
        listen = post.listen,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn post(engines: &[SocketAddr]) -> Post<'_> {
        let listen = "127.0.0.1:8080".parse().unwrap();
        Post { listen, engines, directory: Path::new("/tmp/bench"), body_bytes_max: 1000 }
    }

    #[test]
    fn every_engine_is_in_every_configuration() {
        let engines: [SocketAddr; 2] = ["127.0.0.1:1001".parse().unwrap(), "127.0.0.1:1002".parse().unwrap()];
        let nginx = nginx(&post(&engines));
        assert!(nginx.contains("server 127.0.0.1:1001;") && nginx.contains("server 127.0.0.1:1002;"));
        assert!(nginx.contains("listen 127.0.0.1:8080;") && nginx.contains("client_max_body_size 2000;"));
        let kvway = kvway(&post(&engines), "127.0.0.1:9090".parse().unwrap(), "policy: pmc", ", weight: 2");
        assert!(kvway.contains("{id: vllm-0, address: \"127.0.0.1:1001\", weight: 2}"));
        assert!(kvway.contains("\n    policy: pmc\n"));
        assert!(kvway.contains("{id: vllm-1, address: \"127.0.0.1:1002\", weight: 2}"));
    }
}
