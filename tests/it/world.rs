//! The world of a test: mock engines, and a gateway in this process in front of them, on ports of their own.
//!
//! `World::new().await` has two engines and the default configuration; `World::with` changes both. Nothing is checked or
//! resolved in the background unless a test calls [`World::check_health`].

use kvway::app::App;
use kvway::config::Config;
use kvway::state::fleet::Backend;
use kvway::state::lifecycle::Phase;
use mocks::{Engine, EngineOptions};
use pingora::apps::ServerApp;
use pingora::protocols::l4::stream::Stream;
use pingora::server::configuration::ServerConf;
use pingora::services::background::BackgroundService;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What a test wants of its world.
pub struct Plan {
    /// One engine each; their ids are replaced by `vllm-0`, `vllm-1` and so on.
    pub engines: Vec<EngineOptions>,
    /// Top-level sections of the configuration beside `clusters` and `log`, as YAML.
    pub sections: String,
    /// Keys of the one cluster beside `name` and `backends`, as YAML lines without indentation. Without a `policy` it is
    /// `round_robin`, so that a test knows which engine is next.
    pub cluster: String,
    /// Keys of every backend beside `id` and `address`, as in `, weight: 2`.
    pub backend: String,
    /// Backends beside the engines, each as YAML such as `id: a, address: "localhost:1", weight: 2`.
    pub more: Vec<String>,
    /// Further clusters, as YAML items without indentation.
    pub clusters: String,
    /// The form of the access log.
    pub access: &'static str,
    /// Keys of `log` beside `access` and `file`, as in `, level: debug`.
    pub log: &'static str,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            engines: vec![EngineOptions::default(), EngineOptions::default()],
            sections: String::new(),
            cluster: String::new(),
            backend: String::new(),
            more: Vec::new(),
            clusters: String::new(),
            access: "json",
            log: "",
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
    let backend =
        |(id, address): &(String, String)| format!("id: {id}, address: \"{address}\"{}", plan.backend);
    let backends = backends.iter().map(backend).chain(plan.more.iter().cloned());
    let backends = backends.map(|backend| format!("      - {{{backend}}}")).collect::<Vec<_>>().join("\n");
    let policy = (!plan.cluster.contains("policy:")).then_some("policy: round_robin");
    let cluster = plan.cluster.lines().chain(policy).map(|line| format!("    {line}"));
    let cluster = cluster.collect::<Vec<_>>().join("\n");
    let clusters = plan.clusters.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n");
    let log = folder.join("access.log");
    let text = format!(
        "{}\nlog: {{access: {}, file: \"{}\"{}}}\nclusters:\n  - name: llama\n{cluster}\n    backends:\n{backends}\n{clusters}\n",
        plan.sections,
        plan.access,
        log.display(),
        plan.log,
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
            Engine::start(EngineOptions { id: format!("vllm-{index}"), ..options.clone() }).unwrap()
        };
        let engines: Vec<Engine> = plan.engines.iter().enumerate().map(start).collect();
        let backends: Vec<_> =
            engines.iter().map(|engine| (engine.id().to_owned(), engine.address().to_string())).collect();
        let folder = tempfile::tempdir().unwrap();
        let config = configuration(&plan, &backends, folder.path());
        let app = Arc::new(App::new(config).unwrap());
        for cluster in app.clusters() {
            cluster.balancer.resolve().await;
        }
        let (shutdown, watch) = watch::channel(false);
        let (address, mut serving) = serve(&app, watch.clone()).await;
        for (jobs, load) in app.kvcache_services() {
            let watch = (watch.clone(), watch.clone());
            serving.spawn(async move { jobs.start(watch.0).await });
            if let Some(load) = load {
                serving.spawn(async move { load.start(watch.1).await });
            }
        }
        Self { engines, app, address, client: client(), folder, _shutdown: shutdown, _serving: serving }
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
        self.client.post(self.url("/v1/chat/completions")).json(&chat("hello")).send().await.unwrap()
    }

    /// How many requests on `path` each engine has met.
    pub fn received(&self, path: &str) -> Vec<u64> {
        let count = |engine: &Engine| engine.stats().path(path).received;
        self.engines.iter().map(count).collect()
    }

    /// The backend `id` in the gateway's books.
    pub fn backend(&self, id: &str) -> &Backend {
        let all = self.app.clusters()[0].fleet.backends();
        all.iter().find(|backend| backend.id == id).unwrap()
    }

    /// Waits until no request is running and the books are closed.
    pub async fn idle(&self) {
        until(|| self.app.lifecycle.in_flight() == 0).await;
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
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().unwrap())
    }

    /// The access log so far as it is written; closes it, so later requests are not in it.
    pub async fn access_log_text(&self) -> String {
        self.idle().await;
        self.app.close_access_log();
        std::fs::read_to_string(self.folder.path().join("access.log")).unwrap()
    }

    /// The access log so far, one value per request; closes it, so later requests are not in it.
    pub async fn access_log(&self) -> Vec<serde_json::Value> {
        let text = self.access_log_text().await;
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The last of [`World::access_log`].
    pub async fn last_entry(&self) -> serde_json::Value {
        self.access_log().await.pop().unwrap()
    }
}

/// Serves `app` on a port of its own until the set is dropped.
pub async fn serve(app: &Arc<App>, shutdown: watch::Receiver<bool>) -> (SocketAddr, JoinSet<()>) {
    let conf = ServerConf { max_retries: 10, ..ServerConf::default() };
    listen(Arc::new(app.guard(&Arc::new(conf), true)), shutdown).await
}

/// Serves the admin listener of `app` on a port of its own until the set is dropped.
pub async fn serve_admin(app: &Arc<App>) -> (SocketAddr, JoinSet<()>) {
    listen(Arc::new(app.admin()), watch::channel(false).1).await
}

async fn listen<A: ServerApp + Send + Sync + 'static>(
    server: Arc<A>,
    shutdown: watch::Receiver<bool>,
) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (socket, peer) = listener.accept().await.unwrap();
            socket.set_nodelay(true).unwrap(); // as Pingora's listeners do
            let (server, shutdown) = (Arc::clone(&server), shutdown.clone());
            connections.spawn(async move { server.process_new(stream(socket, peer), &shutdown).await });
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

/// An address at which nothing listens and that nobody else is given as long as the socket lives; an engine can start there.
pub fn reserve() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// Waits for a state of the gateway that no event tells of; fails when it does not come.
pub async fn until(condition: impl Fn() -> bool) {
    within(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

/// Waits for `event`, which is a failure when it takes longer than a test may.
pub(crate) async fn within<F: Future>(event: F) -> F::Output {
    let waiting = tokio::time::timeout(Duration::from_mins(1), event);
    waiting.await.expect("an event that did not come")
}

/// A client that keeps connections and waits for nothing longer than a test may take.
pub fn client() -> reqwest::Client {
    let _installed = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().timeout(Duration::from_mins(1)).build().unwrap()
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
