//! The configuration of each proxy that has a file: one worker, keep-alive to all engines, answers passed on as they come.
//!
//! Written by `contestant`; kvway's by `routing`, too. The plainest that are fair; each is kept with the result. Pure but
//! for [`write()`].
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::{fs, iter};

use anyhow::{Context, Result};

use crate::contest::MODEL;
use crate::contestant::LOG_FILE;

/// Connections under load that a proxy has to be able to hold, to both sides together.
const CONNECTIONS_MAX: usize = 1024;
/// From one address, all of which are one client here: as many as kvway holds in all.
const PER_CLIENT_MAX: usize = 20_000;

/// What a proxy is to do.
#[derive(Clone, Copy)]
pub(crate) struct Post<'a> {
    pub(crate) listen: SocketAddr,
    pub(crate) engines: &'a [SocketAddr],
    pub(crate) directory: &'a Path,
    pub(crate) body_bytes_max: usize,
}

/// Writes a configuration.
pub(crate) fn write(directory: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = directory.join(name);
    fs::write(&path, text).with_context(|| path.display().to_string())?;
    Ok(path)
}

/// Bodies stay in memory and answers are passed on as they come; connections are never recycled by their age.
pub(crate) fn nginx(post: &Post) -> String {
    let servers: Vec<String> =
        post.engines.iter().map(|engine| format!("        server {engine};\n")).collect();
    let servers = servers.concat();
    format!(
        "daemon off;
worker_processes 1;
pid nginx.pid;
error_log nginx.log warn;
events {{
    worker_connections {CONNECTIONS_MAX};
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

/// Connections to the engines are shared by all clients, as the others do; no log; nothing is held back.
pub(crate) fn haproxy(post: &Post) -> String {
    let numbered = post.engines.iter().enumerate();
    let servers: Vec<String> =
        numbered.map(|(number, engine)| format!("    server vllm-{number} {engine}\n")).collect();
    let servers = servers.concat();
    format!(
        "global
    nbthread 1
    maxconn {CONNECTIONS_MAX}
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    option http-keep-alive
    option http-no-delay
    http-reuse always
listen engines
    bind {listen}
    balance roundrobin
{servers}",
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
limits:
  connections_per_client_max: {PER_CLIENT_MAX}
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

/// The same with LMCache asked about each prompt, however short it is, and with time for the answer where a core is shared.
pub(crate) fn kvway_with_lookups(post: &Post, admin: SocketAddr, lmcache: SocketAddr) -> String {
    let tokenizer =
        post.engines.iter().take(1).map(|engine| format!("      vllm_endpoint: http://{engine}\n"));
    let lines =
        iter::once("    kvcache:\n      enabled: true\n".to_owned()).chain(tokenizer).chain([format!(
            "      lmcache_endpoint: http://{lmcache}
      default_model: {MODEL}
      lookup_tokens_min: 1
      lookup_routing_timeout: 2s
      token_cache: {{enabled: true}}
"
        )]);
    kvway(post, admin, "policy: pmc", "") + &lines.collect::<String>()
}

/// What SGLang's router is told on its command line: plain HTTP; it writes a line for each request, as it comes and as kvway does.
pub(crate) fn sglang_router(at: &Post, metrics: SocketAddr) -> Vec<String> {
    let workers = at.engines.iter().map(|engine| format!("http://{engine}"));
    let (host, port) = (at.listen.ip().to_string(), at.listen.port().to_string());
    let metrics = metrics.port().to_string();
    let flags = [
        "--policy",
        "cache_aware",
        "--host",
        &host,
        "--port",
        &port,
        "--prometheus-port",
        &metrics,
        "--prometheus-host",
        &host,
    ];
    let flags = flags.map(str::to_owned);
    iter::once("--worker-urls".to_owned()).chain(workers).chain(flags).collect()
}
