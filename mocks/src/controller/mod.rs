//! A mock LMCache controller: the HTTP of the real one as recorded, over chunks that a test admits.
//!
//! Tests hold a [`Controller`], which is also a [`Server`]: its counters, gates and faults come from there. It talks to
//! no workers: what an instance holds is what was admitted for it.

mod service;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::sync::Arc;

use service::Core;

use crate::chunks::Chunks;
use crate::server::{Server, Settings, Shared};

/// What a controller is.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct ControllerOptions {
    /// Whether `layout_info` holds `{"0":location,"1":tokens}` and not `[location,tokens]` as the real one does.
    pub object_shape: bool,
    /// Whether `/evict` exists, as it does not on the real one.
    pub evict: bool,
    /// Whether `GET /health` answers, which the real one refuses.
    pub health_by_get: bool,
    /// The instance that every lookup answers with all tokens; see [`Controller::prefer`].
    pub prefer: Option<String>,
    /// Whether requests are kept for [`Server::received`], with their hash.
    pub record: bool,
    /// Whether a request may ask for its fault with `x-mock-fault`.
    pub faults_by_header: bool,
}

impl Default for ControllerOptions {
    fn default() -> Self {
        Self {
            object_shape: false,
            evict: false,
            health_by_get: false,
            prefer: None,
            record: true,
            faults_by_header: false,
        }
    }
}

/// A running mock controller. Dropping it ends it.
pub struct Controller {
    server: Server,
    core: Arc<Core>,
}

impl Controller {
    /// Starts on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When no port can be bound.
    pub fn start(options: ControllerOptions) -> io::Result<Self> {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into(), options)
    }

    /// Starts at an address, also where an earlier mock has just stopped.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn start_at(address: SocketAddr, options: ControllerOptions) -> io::Result<Self> {
        Self::start_over(address, options, Chunks::default())
    }

    /// Starts at an address over chunks that others know as well.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn start_over(address: SocketAddr, options: ControllerOptions, chunks: Chunks) -> io::Result<Self> {
        let ControllerOptions { record, faults_by_header, .. } = options;
        let shared = Shared::new(Settings { record, faults_by_header, keep_alive: None });
        let core = Arc::new(Core::new(options, Arc::clone(&shared), chunks));
        let server = Server::start(address, shared, Arc::clone(&core) as _)?;
        Ok(Self { server, core })
    }

    /// Answers every lookup with this instance and all tokens, however few, and every control call with all tokens;
    /// `None` goes back to the chunks.
    pub fn prefer(&self, instance: Option<&str>) {
        self.core.prefer(instance.map(str::to_owned));
    }

    /// Registers the chunks of a prompt as held by an instance.
    pub fn admit(&self, instance: &str, location: &str, tokens: &[u32]) {
        self.core.chunks.admit(instance, location, tokens);
    }

    /// The chunks themselves, for engines that announce what they hold.
    #[must_use]
    pub fn chunks(&self) -> Chunks {
        self.core.chunks.clone()
    }

    /// Closes the listener and all connections at once, and waits until that is done.
    pub async fn stop(self) {
        self.server.stop().await;
    }
}

impl Deref for Controller {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}
