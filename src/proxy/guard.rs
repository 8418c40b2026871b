//! What stands between the listener and the proxy: permits for connections, and the wait for requests.
//!
//! Called by Pingora for each accepted connection. Bounded by `limits.connections_max` and
//! `limits.connections_per_client_max`; a connection beyond them is closed at once and counted. Between two requests of
//! HTTP/1 a connection waits here, in a task of its own, and not in Pingora, whose state takes five times the memory. What it may do
//! before its request is known is the business of [`super::connection`].

use super::Gateway;
use super::connection::{Connection, HeaderLimits};
use crate::config::Limits;
use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::apps::{HttpPersistentSettings, HttpServerApp, ServerApp};
use pingora::protocols::http::ServerSession;
use pingora::protocols::{ALPN, Ssl, Stream};
use pingora::server::ShutdownWatch;
use pingora_proxy::HttpProxy;
use prometheus::IntCounterVec;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// What Pingora begins a connection with; the spine sets what is configured.
const FIRST_KEEPALIVE_SECONDS: u64 = 60;

/// Lets connections through to the proxy while permits last.
pub struct Guard {
    proxy: Arc<HttpProxy<Gateway>>,
    connections: Arc<Connections>,
    header_limits: HeaderLimits,
    refused: IntCounterVec,
    /// Cancelled when connections at rest are to be closed.
    closing: CancellationToken,
}

impl Guard {
    /// A guard before `proxy`; several listeners may share `connections`. `refused` counts by reason.
    #[must_use]
    pub fn new(
        proxy: Arc<HttpProxy<Gateway>>,
        connections: Arc<Connections>,
        header_limits: HeaderLimits,
        refused: IntCounterVec,
    ) -> Self {
        Self { proxy, connections, header_limits, refused, closing: CancellationToken::new() }
    }
}

#[async_trait]
impl ServerApp for Guard {
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        let digest = stream.get_socket_digest();
        let client =
            digest.as_ref().and_then(|digest| digest.peer_addr()).and_then(|address| address.as_inet());
        match self.connections.admit(client.map(std::net::SocketAddr::ip)) {
            Ok(permit) => {
                let connection = Connection::new(stream, self.header_limits.clone());
                let (guard, shutdown) = (Arc::clone(self), shutdown.clone());
                // The task that Pingora made has room for a handshake of TLS: far more than a connection takes from here on.
                drop(Handle::current().spawn(async move {
                    guard.serve(&connection, &shutdown).await;
                    drop(permit);
                }));
            }
            Err(reason) => self.refused.with_label_values(&[reason]).inc(),
        }
        None
    }

    async fn cleanup(&self) {
        self.closing.cancel();
        self.proxy.cleanup().await;
    }
}

impl Guard {
    /// One request after the other, until the client leaves, a limit is reached or the process ends.
    async fn serve(&self, connection: &Connection, shutdown: &ShutdownWatch) {
        if self.may_speak_h2(connection).await {
            self.proxy.process_new(Box::new(connection.clone()), shutdown).await;
            return;
        }
        let mut settings = None;
        while self.request_begins(connection).await {
            let mut session = ServerSession::new_http1(Box::new(connection.clone()));
            match settings.take() {
                Some(settings) => HttpPersistentSettings::apply_to_session(settings, &mut session),
                None => session.set_keepalive((!*shutdown.borrow()).then_some(FIRST_KEEPALIVE_SECONDS)),
            }
            let Some(reused) = self.proxy.process_new_http(session, shutdown).await else { return };
            settings = reused.consume().1;
        }
    }

    /// Whether Pingora is to find out which protocol this is.
    async fn may_speak_h2(&self, connection: &Connection) -> bool {
        if let Some(protocol) = connection.selected_alpn_proto() {
            return protocol == ALPN::H2;
        }
        let h2c = self.proxy.server_options().is_some_and(|options| options.h2c);
        h2c && connection.get_ssl_digest().is_none() && self.unless_closing(connection.begins_as_h2()).await
    }

    async fn request_begins(&self, connection: &Connection) -> bool {
        self.unless_closing(connection.request_begins()).await
    }

    /// False when connections at rest are to be closed.
    async fn unless_closing(&self, waiting: impl Future<Output = bool>) -> bool {
        tokio::select! {
            biased;
            outcome = waiting => outcome,
            () = self.closing.cancelled() => false,
        }
    }
}

/// The open connections, in all and by client address; the map holds clients with open connections only.
pub struct Connections {
    open: Mutex<Open>,
    all_max: usize,
    per_client_max: usize,
}

#[derive(Default)]
struct Open {
    all: usize,
    by_client: HashMap<IpAddr, usize>,
}

/// One open connection; dropping it gives the place back.
pub struct Permit {
    connections: Arc<Connections>,
    client: Option<IpAddr>,
}

impl Connections {
    /// Places as `limits` says.
    #[must_use]
    pub fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            open: Mutex::default(),
            all_max: limits.connections_max,
            per_client_max: limits.connections_per_client_max,
        })
    }

    /// The connections open now.
    #[must_use]
    pub fn count(&self) -> usize {
        self.open.lock().all
    }

    /// A place for one more connection.
    ///
    /// # Errors
    /// The limit that is reached.
    pub fn admit(self: &Arc<Self>, client: Option<IpAddr>) -> Result<Permit, &'static str> {
        let mut open = self.open.lock();
        if open.all >= self.all_max {
            return Err("connections_max");
        }
        if let Some(address) = client {
            let count = open.by_client.entry(address).or_default();
            if *count >= self.per_client_max {
                return Err("connections_per_client_max");
            }
            *count += 1;
        }
        open.all += 1;
        Ok(Permit { connections: Arc::clone(self), client })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut open = self.connections.open.lock();
        open.all -= 1;
        if let Some(address) = self.client
            && let Some(count) = open.by_client.get_mut(&address)
        {
            *count -= 1;
            if *count == 0 {
                open.by_client.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_in_all_and_per_client_and_come_back() {
        let limits = Limits { connections_max: 3, connections_per_client_max: 2, ..Limits::default() };
        let connections = Connections::new(&limits);
        let (one, other) = (Some(IpAddr::from([10, 0, 0, 1])), Some(IpAddr::from([10, 0, 0, 2])));
        let first = connections.admit(one).unwrap();
        let second = connections.admit(one).unwrap();
        assert_eq!(connections.admit(one).err(), Some("connections_per_client_max"));
        let third = connections.admit(other).unwrap();
        assert_eq!(connections.admit(None).err(), Some("connections_max"));
        drop((first, third));
        assert!(connections.admit(one).is_ok());
        drop(second);
        assert_eq!(connections.count(), 0);
        assert!(connections.open.lock().by_client.is_empty(), "no address is remembered");
    }
}
