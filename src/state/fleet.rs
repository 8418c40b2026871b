//! The backends of a cluster: their addresses, their health, and exact books of what was sent to each.
//!
//! Written by `proxy` (a [`Lease`] per try) and by `background::probe` (health and resolved addresses, which mirror
//! Pingora's own view, so that there is one truth); read by `proxy::peer` and `admin`. It decides nothing.

use arc_swap::ArcSwapOption;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// One engine that we know.
#[derive(Debug)]
pub struct Backend {
    /// The name by which configuration, metrics and logs know it.
    pub id: String,
    /// `host:port` as configured.
    pub address: String,
    /// Its share of traffic under the weighted policies.
    pub weight: usize,
    /// Its place in [`Fleet::backends`].
    pub index: usize,
    resolved: ArcSwapOption<SocketAddr>,
    healthy: AtomicBool,
    requests: AtomicUsize,
    pending_prompt_bytes: AtomicUsize,
}

/// Where a backend stands in its fleet; carried by Pingora's view of the backend, never changed.
#[derive(Clone, Copy, Debug)]
pub struct Index(pub usize);

/// What is in flight at a backend, at one moment.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Load {
    /// Tries that were sent and have not ended.
    pub requests: usize,
    /// Prompt bytes sent whose first token has not come back.
    pub pending_prompt_bytes: usize,
}

impl Backend {
    /// The socket address it resolved to last; none before the first resolution of a name.
    #[must_use]
    pub fn resolved(&self) -> Option<SocketAddr> {
        self.resolved.load().as_deref().copied()
    }

    /// Records the socket address that the configured name stands for now.
    pub fn set_resolved(&self, address: SocketAddr) {
        if self.resolved() != Some(address) {
            self.resolved.store(Some(Arc::new(address)));
        }
    }

    /// Whether the last health checks found it well. A backend starts healthy.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed)
    }

    /// Records the verdict of the health checks.
    pub fn set_healthy(&self, healthy: bool) {
        self.healthy.store(healthy, Ordering::Relaxed);
    }

    /// What is in flight at this backend now.
    #[must_use]
    pub fn load(&self) -> Load {
        Load {
            requests: self.requests.load(Ordering::Relaxed),
            pending_prompt_bytes: self.pending_prompt_bytes.load(Ordering::Relaxed),
        }
    }

    /// Books one try of `prompt_bytes` at this backend until the lease is dropped.
    #[must_use]
    pub fn lease(self: &Arc<Self>, prompt_bytes: usize) -> Lease {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.pending_prompt_bytes.fetch_add(prompt_bytes, Ordering::Relaxed);
        Lease { backend: Arc::clone(self), pending_prompt_bytes: prompt_bytes }
    }
}

/// One try in the books of a backend; dropping it, for whatever reason, takes it out again.
#[derive(Debug)]
pub struct Lease {
    backend: Arc<Backend>,
    pending_prompt_bytes: usize,
}

impl Lease {
    /// The backend that this try went to.
    #[must_use]
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// The first token is back: the prompt is no longer pending. Further calls change nothing.
    pub fn first_token(&mut self) {
        let bytes = std::mem::take(&mut self.pending_prompt_bytes);
        self.backend.pending_prompt_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.first_token();
        self.backend.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The backends of one cluster, in configuration order.
#[derive(Debug)]
pub struct Fleet {
    /// The cluster's name.
    pub cluster: String,
    backends: Vec<Arc<Backend>>,
}

impl Fleet {
    /// A fleet of `(id, address, weight)`, each healthy until a check says otherwise.
    #[must_use]
    pub fn new(cluster: &str, backends: impl IntoIterator<Item = (String, String, usize)>) -> Arc<Self> {
        let backends = backends.into_iter().enumerate().map(|(index, (id, address, weight))| {
            let resolved = ArcSwapOption::from_pointee(address.parse::<SocketAddr>().ok());
            Arc::new(Backend {
                id,
                address,
                weight,
                index,
                resolved,
                healthy: AtomicBool::new(true),
                requests: AtomicUsize::new(0),
                pending_prompt_bytes: AtomicUsize::new(0),
            })
        });
        Arc::new(Self { cluster: cluster.to_owned(), backends: backends.collect() })
    }

    /// The backends in configuration order.
    #[must_use]
    pub fn backends(&self) -> &[Arc<Backend>] {
        &self.backends
    }
}
