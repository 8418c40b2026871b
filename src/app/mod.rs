//! The composition root: the only file that knows all rooms. Configuration → running services.
//!
//! Called by `main` and `demo`, and by the integration tests, which serve connections themselves.

mod cluster;
mod status;

use crate::access_log::AccessLog;
use crate::admin::Admin;
use crate::background::capacity::CapacityService;
use crate::background::jobs::JobsService;
use crate::background::load::LoadService;
use crate::background::models::{ModelsService, Source};
use crate::background::readiness::Readiness;
use crate::config::{self, Balancing, Config, HashBy, ListenerTls};
use crate::metrics::Metrics;
use crate::proxy::Gateway;
use crate::proxy::cluster::Cluster;
use crate::proxy::connection::HeaderLimits;
use crate::proxy::decision::Decision;
use crate::proxy::guard::{Connections, Guard};
use crate::proxy::key::{Pseudonyms, Secret};
use crate::proxy::prefix;
use crate::proxy::prompt::Reading;
use crate::proxy::retry::RetryBudget;
use crate::proxy::route::Routes;
use crate::shutdown::{self, Shutdown};
use crate::state::budget::Budget;
use crate::state::lifecycle::Lifecycle;
use crate::state::models::ModelList;
use crate::state::recent::Recent;
use parking_lot::Mutex;
use pingora::apps::HttpServerOptions;
use pingora::listeners::ListenerConfig;
use pingora::listeners::tls::TlsSettings;
use pingora::protocols::http::v2::server::default_h2_options;
use pingora::protocols::l4::stream::L4BufferSettings;
use pingora::server::configuration::{Opt, ServerConf};
use pingora::server::{RunArgs, Server};
use pingora::services::ServiceHandle;
use pingora::services::background::GenBackgroundService;
use pingora::services::listening::Service;
use pingora_proxy::http_proxy;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::WebPkiClientVerifier;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// What a client may send on one HTTP/2 stream, and on one connection, before it must wait: enough for a long prompt to
/// arrive without a round trip per 64 KiB.
const H2_STREAM_WINDOW_BYTES: u32 = 1 << 20;
const H2_CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// Read ahead of a client of TLS, for as long as it is connected: enough for a record. Without TLS, [`Guard`] takes memory only
/// while something of a request is there. Pingora's own 64 KiB would be most of what a connection at rest costs.
const TLS_READ_BUFFER_BYTES: usize = 16 * 1024;
/// Connections to backends that are kept for reuse.
const UPSTREAM_POOL_CONNECTIONS: usize = 512;
/// Added to the grace period before Pingora's own, harder end, which the process does not wait for.
const GRACE_MARGIN: Duration = Duration::from_secs(10);

/// Why the process cannot start although its configuration is valid. Told with its sources, which no text repeats.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// A backend cannot be used as configured.
    #[error("cluster {cluster}")]
    Cluster {
        /// The cluster.
        cluster: String,
        /// What is wrong.
        source: Box<pingora::Error>,
    },
    /// The clients of a cluster's tokenizer or LMCache cannot be made.
    #[error("cluster {cluster}: kvcache")]
    Client {
        /// The cluster.
        cluster: String,
        /// What is wrong.
        source: reqwest::Error,
    },
    /// The access log cannot be opened.
    #[error("log.file")]
    AccessLog(#[source] std::io::Error),
    /// A listener's certificates cannot be used.
    #[error("listeners: tls: {0}")]
    Tls(String),
    /// A successor cannot wait at the upgrade socket.
    #[error("server.upgrade_socket")]
    UpgradeSocket(#[source] std::io::Error),
    /// A listener's address cannot be taken.
    #[error("{key}: {address}")]
    Address {
        /// Whose address it is.
        key: &'static str,
        /// The address.
        address: std::net::SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// There is nobody to take listeners over from.
    #[error(
        "--upgrade: nothing listens at a configured address, so nothing can be taken over: start without it"
    )]
    NoPredecessor,
    /// The metrics are at odds with each other: a mistake in the program.
    #[error("metrics")]
    Metrics(#[from] prometheus::Error),
}

/// Everything that a running gateway is made of.
pub struct App {
    config: Config,
    clusters: Vec<Arc<Cluster>>,
    secret: Secret,
    pseudonyms: Option<Pseudonyms>,
    /// See [`Lifecycle`].
    pub lifecycle: Arc<Lifecycle>,
    /// All metrics.
    pub metrics: Arc<Metrics>,
    /// The merged model list.
    pub models: Arc<ModelList>,
    /// Body bytes held.
    pub budget: Arc<Budget>,
    /// The last decisions.
    pub decisions: Arc<Recent<Decision>>,
    /// Client connections.
    pub connections: Arc<Connections>,
    access_log: AccessLog,
}

impl App {
    /// Builds all parts; starts nothing but the thread of the access log.
    ///
    /// # Errors
    /// See [`AppError`].
    pub fn new(config: Config) -> Result<Self, AppError> {
        // Fails only when a provider is installed already, which is as good.
        let _installed = rustls::crypto::ring::default_provider().install_default().is_ok();
        let metrics = Metrics::new()?;
        let metrics = if config.admin.pixiu_metrics { metrics.with_pixiu_names()? } else { metrics };
        let metrics = Arc::new(metrics);
        let (secret, log) = (Secret::new(rand::random()), &config.log);
        let clusters =
            config.clusters.iter().map(|it| cluster::build(it, &config, secret, &metrics).map(Arc::new));
        Ok(Self {
            clusters: clusters.collect::<Result<_, _>>()?,
            secret,
            pseudonyms: log.tells_blocks().then(|| Pseudonyms::new(rand::random(), log.block_keys_max)),
            lifecycle: Lifecycle::new(),
            models: ModelList::new(config.clusters.len()),
            budget: Budget::new(config.limits.buffered_bytes_max),
            decisions: Arc::new(Recent::new(config.admin.decisions_kept())),
            connections: Connections::new(&config.limits),
            access_log: AccessLog::open(log, metrics.access_log_dropped.clone())
                .map_err(AppError::AccessLog)?,
            metrics,
            config,
        })
    }

    /// The clusters in configuration order.
    #[must_use]
    pub fn clusters(&self) -> &[Arc<Cluster>] {
        &self.clusters
    }

    /// What requests share.
    fn gateway(&self) -> Gateway {
        let index = |name: &str| self.clusters.iter().position(|cluster| cluster.name() == name);
        Gateway {
            limits: self.config.limits.clone(),
            timeouts: self.config.timeouts.clone(),
            retries: self.config.retries.clone(),
            clusters: self.clusters.clone(),
            routes: Routes::new(&self.config.routes, index),
            reading: self.reading(),
            tenant_header: self.config.prefix.tenant_header.clone(),
            retry_budget: RetryBudget::new(self.config.retries.budget_ratio),
            budget: Arc::clone(&self.budget),
            models: Arc::clone(&self.models),
            decisions: Arc::clone(&self.decisions),
            lifecycle: Arc::clone(&self.lifecycle),
            metrics: Arc::clone(&self.metrics),
            access_log: self.access_log.clone(),
            pseudonyms: self.pseudonyms.clone(),
        }
    }

    /// A data plane, to be put behind a listener; `h2c`: whether it takes HTTP/2 without TLS.
    #[must_use]
    pub fn guard(&self, server_conf: &Arc<ServerConf>, h2c: bool) -> Guard {
        let mut proxy = http_proxy(server_conf, self.gateway());
        let mut options = HttpServerOptions::default();
        options.h2c = h2c;
        options.h2_idle_timeout = Some(self.config.timeouts.idle);
        proxy.server_options = Some(options);
        let mut h2_options = default_h2_options();
        h2_options
            .initial_window_size(H2_STREAM_WINDOW_BYTES)
            .initial_connection_window_size(H2_CONNECTION_WINDOW_BYTES);
        proxy.h2_options = Some(h2_options);
        let refused = self.metrics.connections_refused.clone();
        let header_limits = HeaderLimits::new(&self.config.limits, &self.config.timeouts, refused.clone());
        Guard::new(Arc::new(proxy), Arc::clone(&self.connections), header_limits, refused)
    }

    /// Prompts are keyed where a cluster or the access log makes use of keys.
    #[must_use]
    pub fn reading(&self) -> Reading {
        let on =
            || self.config.clusters.iter().map(|cluster| &cluster.kvcache).filter(|kvcache| kvcache.enabled);
        Reading {
            secret: on().next().map(|_| self.secret),
            text: on().any(pins),
            blocks: (self.config.log.tells_blocks() || self.config.clusters.iter().any(needs_blocks))
                .then(|| self.blocks()),
        }
    }

    /// How prompts are cut into blocks.
    fn blocks(&self) -> prefix::Settings {
        let config::Prefix { block_bytes, blocks_max, .. } = self.config.prefix;
        prefix::Settings::new(self.secret, block_bytes, blocks_max)
    }

    /// The service that keeps the model list.
    #[must_use]
    pub fn models_service(&self) -> ModelsService {
        let source = |(cluster, config): (&Arc<Cluster>, &config::Cluster)| Source {
            fleet: Arc::clone(&cluster.fleet),
            backends: config
                .backends
                .iter()
                .map(|backend| (base_url(backend), backend.api_key.clone()))
                .collect(),
        };
        let periods = self.config.clusters.iter().map(|cluster| cluster.models_period);
        ModelsService {
            sources: self.clusters.iter().zip(&self.config.clusters).map(source).collect(),
            list: Arc::clone(&self.models),
            bytes_max: self.config.limits.models_bytes_max,
            period: periods.min().unwrap_or(Duration::from_secs(30)),
            metrics: Arc::clone(&self.metrics),
        }
    }

    /// What works in the background for the clusters with `kvcache`.
    #[must_use]
    pub fn kvcache_services(&self) -> Vec<(JobsService, Option<LoadService>)> {
        let clusters = self.config.clusters.iter().zip(&self.clusters);
        clusters.filter_map(|(config, cluster)| cluster::services(config, cluster, &self.lifecycle)).collect()
    }

    /// What reads how much the engines hold, one service per cluster.
    #[must_use]
    pub fn capacity_services(&self) -> Vec<CapacityService> {
        let clusters = self.config.clusters.iter().zip(&self.clusters);
        clusters.map(|(config, cluster)| cluster::capacity_service(config, cluster)).collect()
    }

    /// The admin application.
    #[must_use]
    pub fn admin(self: &Arc<Self>) -> Admin {
        let gateway = Arc::new(self.gateway());
        let [for_metrics, for_state, for_decisions] = [(); 3].map(|()| Arc::clone(self));
        Admin {
            lifecycle: Arc::clone(&self.lifecycle),
            token: self.config.admin.token.clone(),
            metrics: Box::new(move || for_metrics.render_metrics()),
            state: Box::new(move || for_state.render_state()),
            decisions: Box::new(move || for_decisions.render_decisions()),
            explain: Box::new(move |session| {
                let gateway = Arc::clone(&gateway);
                Box::pin(async move { gateway.explain(session).await })
            }),
        }
    }

    /// Writes what waits of the access log, and closes it.
    pub fn close_access_log(&self) {
        self.access_log.close();
    }

    /// Runs until a signal ends the process; `upgrade`: takes the listeners over from a running process first.
    ///
    /// # Errors
    /// When something that the configuration names cannot be used; then nothing is bound.
    pub fn run(self: Arc<Self>, upgrade: bool) -> Result<(), AppError> {
        self.check_addresses(upgrade)?;
        self.prepare_upgrades(upgrade)?;
        let opt = Opt { upgrade, ..Opt::default() };
        let mut server = Server::new_with_opt_and_conf(Some(opt), self.server_conf());
        server.bootstrap();
        let conf = Arc::clone(&server.configuration);
        let balancers: Vec<ServiceHandle> = self
            .clusters
            .iter()
            .map(|cluster| {
                let name = format!("health {}", cluster.name());
                server.add_service(GenBackgroundService::new(name, Arc::clone(&cluster.balancer)))
            })
            .collect();
        let readiness = Readiness(Arc::clone(&self.lifecycle));
        let readiness =
            server.add_service(GenBackgroundService::new("readiness".to_owned(), Arc::new(readiness)));
        for service in self.proxy_services(&conf)? {
            let handle = server.add_service(service);
            for balancer in &balancers {
                handle.add_dependency(balancer);
            }
            readiness.add_dependency(&handle);
        }
        server.add_service(GenBackgroundService::new("models".to_owned(), Arc::new(self.models_service())));
        for capacity in self.capacity_services() {
            server.add_service(GenBackgroundService::new("capacity".to_owned(), Arc::new(capacity)));
        }
        for (jobs, load) in self.kvcache_services() {
            server.add_service(GenBackgroundService::new("kvcache".to_owned(), Arc::new(jobs)));
            if let Some(load) = load {
                server.add_service(GenBackgroundService::new("load".to_owned(), Arc::new(load)));
            }
        }
        if let Some(address) = self.config.admin.address {
            let mut admin = Service::new("admin".to_owned(), self.admin());
            admin.threads = Some(1);
            admin.add_tcp(&address.to_string());
            server.add_service(admin);
        }
        let shutdown = self.shutdown(&server);
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            listeners = ?self.config.listeners.iter().map(|listener| listener.address).collect::<Vec<_>>(),
            admin = self.config.admin.address.map(tracing::field::display),
            "kvway starts"
        );
        server.run(RunArgs { shutdown_signal: Box::new(shutdown) });
        self.close_access_log();
        Ok(())
    }

    fn shutdown(&self, server: &Server) -> Shutdown {
        let (connections, access_log) = (Arc::clone(&self.connections), self.access_log.clone());
        Shutdown {
            lifecycle: Arc::clone(&self.lifecycle),
            close_delay: self.config.server.close_delay,
            grace_period: self.config.server.grace_period,
            upgrade_socket: self.config.server.upgrade_socket.clone(),
            connections: Arc::new(move || connections.count()),
            last_words: Arc::new(move || access_log.close()),
            phases: Mutex::new(Some(server.watch_execution_phase())),
        }
    }

    /// Pingora panics where an address is taken, and waits in vain where nobody hands it over; so they are tried before.
    fn check_addresses(&self, upgrade: bool) -> Result<(), AppError> {
        let listeners = self.config.listeners.iter().map(|listener| ("listeners.address", listener.address));
        let admin = self.config.admin.address.map(|address| ("admin.address", address));
        let mut taken = listeners.chain(admin).filter_map(|(key, address)| {
            let source = std::net::TcpListener::bind(address).err()?;
            Some(AppError::Address { key, address, source })
        });
        match (upgrade, taken.next()) {
            (false, Some(error)) => Err(error),
            (true, None) => Err(AppError::NoPredecessor),
            (false, None) | (true, Some(_)) => Ok(()),
        }
    }

    /// Says in time what a successor would otherwise fail for later, and what one waits for now.
    fn prepare_upgrades(&self, upgrade: bool) -> Result<(), AppError> {
        let socket = &self.config.server.upgrade_socket;
        if upgrade {
            shutdown::try_upgrade_socket(socket).map_err(AppError::UpgradeSocket)?;
            tracing::info!(socket = %socket.display(), "waiting for listeners: send SIGQUIT to the running process now");
        } else if let Err(error) = shutdown::make_upgrade_folder(socket) {
            tracing::warn!(socket = %socket.display(), %error, "no folder for the upgrade socket: upgrades will not work");
        }
        Ok(())
    }

    /// Pingora's own settings. Built here and not read from a file, since its reader ignores unknown keys.
    fn server_conf(&self) -> ServerConf {
        let server = &self.config.server;
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        ServerConf {
            threads: if server.threads == 0 { cores } else { server.threads },
            grace_period_seconds: Some((server.grace_period + GRACE_MARGIN).as_secs()),
            graceful_shutdown_timeout_seconds: Some(1),
            upgrade_sock: server.upgrade_socket.to_string_lossy().into_owned(),
            upstream_keepalive_pool_size: UPSTREAM_POOL_CONNECTIONS,
            max_retries: self.config.retries.tries_max,
            ..ServerConf::default()
        }
    }

    /// One service for the listeners that take HTTP/2 without TLS and one for those that do not; usually only one of
    /// them has any, and so the connections to the backends are pooled together.
    fn proxy_services(&self, conf: &Arc<ServerConf>) -> Result<Vec<Service<Guard>>, AppError> {
        let mut services = Vec::new();
        for h2c in [true, false] {
            let mut listeners =
                self.config.listeners.iter().filter(|listener| listener.h2c == h2c).peekable();
            if listeners.peek().is_none() {
                continue;
            }
            let name = if h2c { "proxy" } else { "proxy without h2c" };
            let mut service = Service::new(name.to_owned(), self.guard(conf, h2c));
            for listener in listeners {
                let read_ahead = if listener.tls.is_some() { TLS_READ_BUFFER_BYTES } else { 0 };
                let buffers = L4BufferSettings::default().read(read_ahead);
                let mut endpoint = ListenerConfig::tcp(listener.address.to_string()).l4_buffer(buffers);
                if let Some(tls) = &listener.tls {
                    endpoint = endpoint.tls(tls_settings(tls)?);
                }
                service.add_listener(endpoint);
            }
            services.push(service);
        }
        Ok(services)
    }
}

/// Whether it matters what prompts begin with.
fn needs_blocks(cluster: &config::Cluster) -> bool {
    let hashed = cluster.balancing() == Balancing::ConsistentHash && cluster.hash_by == HashBy::Prefix;
    cluster.policy.weighs_caches() || hashed
}

/// Whether it matters which prompts are hot.
fn pins(kvcache: &config::KvCache) -> bool {
    kvcache.cache_strategy.enable_pinning && kvcache.cache_strategy.hot_content_threshold > 0
}

fn base_url(backend: &config::Backend) -> String {
    let scheme = if backend.tls.is_some() { "https" } else { "http" };
    format!("{scheme}://{}", backend.address)
}

/// TLS 1.2 and 1.3 with HTTP/2 offered, and client certificates asked for where an authority is configured.
fn tls_settings(tls: &ListenerTls) -> Result<TlsSettings, AppError> {
    let text = |error: &dyn std::fmt::Display| AppError::Tls(error.to_string());
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let mut settings =
        TlsSettings::intermediate(&path(&tls.certificate), &path(&tls.key)).map_err(|error| text(&error))?;
    settings.enable_h2();
    if let Some(authority) = &tls.client_ca {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(authority).map_err(|error| text(&error))? {
            roots.add(certificate.map_err(|error| text(&error))?).map_err(|error| text(&error))?;
        }
        let verifier =
            WebPkiClientVerifier::builder(Arc::new(roots)).build().map_err(|error| text(&error))?;
        settings.set_client_cert_verifier(verifier);
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(kvcache: &str) -> (bool, bool) {
        let text = format!(
            "log: {{access: \"off\"}}\nclusters: [{{name: a, backends: [{{id: b, address: \"127.0.0.1:1\"}}], kvcache: {kvcache}}}]"
        );
        let app = App::new(Config::parse(&text, "test.yaml", &|_| None).unwrap()).unwrap();
        let reading = app.reading();
        (reading.secret.is_some(), reading.text)
    }

    #[test]
    fn prompts_are_read_only_where_something_is_made_of_them() {
        let on = "enabled: true, vllm_endpoint: \"http://a\", lmcache_endpoint: \"http://a\"";
        let pinning = "cache_strategy: {enable_pinning: true, hot_content_threshold: 1}";
        assert_eq!(reading("{}"), (false, false));
        assert_eq!(reading(&format!("{{enabled: false, {pinning}}}")), (false, false));
        assert_eq!(reading(&format!("{{{on}}}")), (true, false));
        assert_eq!(reading(&format!("{{{on}, {pinning}}}")), (true, true));
    }
}
