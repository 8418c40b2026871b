//! The world of a test: mock engines, and a gateway in this process in front of them, on ports of their own.
//!
//! `World::new().await` has two engines and the default configuration; `World::with` changes both. Nothing is checked or
//! resolved in the background unless a test calls [`World::check_health`].

use kvway::app::App;
use kvway::config::Config;
use kvway::state::lifecycle::Phase;
use mocks::{Engine, EngineOptions};
use pingora::apps::ServerApp;
use pingora::protocols::l4::stream::Stream;
use pingora::server::configuration::ServerConf;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What a test wants of its world.
pub struct Plan {
    /// One engine each; their ids are replaced by `vllm-0`, `vllm-1` and so on.
    pub engines: Vec<EngineOptions>,
    /// Top-level sections of the configuration beside `clusters` and `log`, as YAML.
    pub sections: String,
    /// Keys of the one cluster beside `name` and `backends`, as YAML lines without indentation.
    pub cluster: String,
    /// Keys of every backend beside `id` and `address`, as in `, weight: 2`.
    pub backend: String,
    /// Where further backends are that are no mock engines; their ids are `other-0`, `other-1` and so on.
    pub others: Vec<SocketAddr>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            engines: vec![EngineOptions::default(), EngineOptions::default()],
            sections: String::new(),
            cluster: String::new(),
            backend: String::new(),
            others: Vec::new(),
        }
    }
}

/// A gateway and its engines.
pub struct World {
    /// `vllm-0`, `vllm-1` and so on.
    pub engines: Vec<Engine>,
    /// The gateway's parts.
    pub app: Arc<App>,
    /// Where the gateway listens: HTTP/1.1 and HTTP/2 without TLS.
    pub address: SocketAddr,
    /// For requests of no special kind.
    pub client: reqwest::Client,
    folder: TempDir,
    _shutdown: watch::Sender<bool>,
    _serving: JoinSet<()>,
}

/// A configuration for these backends (`id`, `address`), with its access log in `folder`.
pub fn configuration(plan: &Plan, backends: &[(String, String)], folder: &Path) -> Config {
    let backend = |(id, address): &(String, String)| {
        format!("      - {{id: {id}, address: \"{address}\"{}}}", plan.backend)
    };
    let backends = backends.iter().map(backend).collect::<Vec<_>>().join("\n");
    let cluster = plan
        .cluster
        .lines()
        .map(|line| format!("    {line}"))
        .collect::<Vec<_>>()
        .join("\n");
    let log = folder.join("access.log");
    let text = format!(
        "{}\nlog: {{access: json, file: \"{}\"}}\nclusters:\n  - name: llama\n{cluster}\n    backends:\n{backends}\n",
        plan.sections,
        log.display(),
    );
    Config::parse(&text, "test.yaml", &|_| None).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

impl World {
    /// Two engines and the defaults.
    pub async fn new() -> Self {
        Self::with(Plan::default()).await
    }

    /// The world that `plan` describes.
    pub async fn with(plan: Plan) -> Self {
        let start = |(index, options): (usize, &EngineOptions)| {
            Engine::start(EngineOptions {
                id: format!("vllm-{index}"),
                ..options.clone()
            })
            .unwrap()
        };
        let engines: Vec<Engine> = plan.engines.iter().enumerate().map(start).collect();
        let others = plan.others.iter().enumerate();
        let others = others.map(|(index, address)| (format!("other-{index}"), address.to_string()));
        let backends: Vec<_> = engines
            .iter()
            .map(|engine| (engine.id().to_owned(), engine.address().to_string()))
            .chain(others)
            .collect();
        let folder = tempfile::tempdir().unwrap();
        let config = configuration(&plan, &backends, folder.path());
        let app = Arc::new(App::new(config).unwrap());
        for cluster in app.clusters() {
            cluster.balancer.resolve().await;
        }
        let (shutdown, watch) = watch::channel(false);
        let (address, serving) = serve(&app, watch).await;
        Self {
            engines,
            app,
            address,
            client: client(),
            folder,
            _shutdown: shutdown,
            _serving: serving,
        }
    }

    /// The gateway's URL for `path`.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// One round of health checks of all clusters.
    pub async fn check_health(&self) {
        for cluster in self.app.clusters() {
            cluster.balancer.check_health().await;
        }
    }

    /// Answers an ordinary chat request through the gateway.
    pub async fn chat(&self) -> reqwest::Response {
        self.client
            .post(self.url("/v1/chat/completions"))
            .json(&chat("hello"))
            .send()
            .await
            .unwrap()
    }

    /// Waits until no request is running and the books are closed.
    pub async fn idle(&self) {
        self.app.lifecycle.drained().await;
    }

    /// As [`World::idle`], woken by the last request. From here on no connection is kept alive.
    pub(crate) async fn drained(&self) {
        self.app.lifecycle.enter_phase(Phase::Handover);
        within(self.app.lifecycle.drained()).await;
    }

    /// The metrics as Prometheus would read them.
    pub fn metrics(&self) -> String {
        let admin = self.app.admin();
        String::from_utf8(admin.respond(&http::Method::GET, "/metrics", None).into_body()).unwrap()
    }

    /// The value of the series that begins with `series`, such as `kvway_retries_total{cause="stale",cluster="llama"}`.
    pub fn metric(&self, series: &str) -> f64 {
        let text = self.metrics();
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().unwrap())
    }

    /// The access log so far, one value per request; closes it, so later requests are not in it.
    pub async fn access_log(&self) -> Vec<serde_json::Value> {
        self.idle().await;
        self.app.close_access_log();
        let text = std::fs::read_to_string(self.folder.path().join("access.log")).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// The last of [`World::access_log`].
    pub async fn last_entry(&self) -> serde_json::Value {
        self.access_log().await.pop().unwrap()
    }
}

/// Serves `app` on a port of its own until the set is dropped.
pub async fn serve(app: &Arc<App>, shutdown: watch::Receiver<bool>) -> (SocketAddr, JoinSet<()>) {
    let guard = Arc::new(app.guard(
        &Arc::new(ServerConf {
            max_retries: 10,
            ..ServerConf::default()
        }),
        true,
    ));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (socket, peer) = listener.accept().await.unwrap();
            socket.set_nodelay(true).unwrap();
            let (guard, shutdown) = (Arc::clone(&guard), shutdown.clone());
            connections.spawn(async move { guard.process_new(stream(socket, peer), &shutdown).await });
        }
    });
    (address, serving)
}

fn stream(socket: TcpStream, peer: SocketAddr) -> pingora::protocols::Stream {
    use pingora::protocols::{GetSocketDigest, SocketDigest};
    use std::os::fd::AsRawFd;
    let digest = SocketDigest::from_raw_fd(socket.as_raw_fd());
    assert!(digest.peer_addr.set(Some(peer.into())).is_ok());
    let mut stream = Stream::from(socket);
    stream.set_socket_digest(digest);
    Box::new(stream)
}

/// Waits for `event`, which is a failure when it takes longer than a test may.
pub(crate) async fn within<F: Future>(event: F) -> F::Output {
    let waiting = tokio::time::timeout(Duration::from_mins(1), event);
    waiting.await.expect("an event that did not come")
}

/// A client that keeps connections and waits for nothing longer than a test may take.
pub fn client() -> reqwest::Client {
    let _installed = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_mins(1))
        .build()
        .unwrap()
}

/// A chat request that is not streamed.
pub fn chat(text: &str) -> serde_json::Value {
    serde_json::json!({"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 3})
}

/// A chat request that is streamed.
pub fn stream_of(events: usize) -> serde_json::Value {
    serde_json::json!({
        "model": "tiny",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": events,
        "stream": true,
        "stream_options": {"include_usage": true},
    })
}
