//! What stands between the listener and the proxy: permits for connections, and the wait for requests.
//!
//! Called by Pingora for each accepted connection. Bounded by `limits.connections_max` and
//! `limits.connections_per_client_max`; a connection beyond them is closed at once and counted. Between two requests of
//! HTTP/1 a connection waits here, after its first second in a task of its own, and not in Pingora, whose state takes many
//! times the memory. What it may do before its request is known is the business of [`super::connection`].

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
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

/// What a connection of HTTP/1 keeps from one request to the next; none before the first.
type Settings = Option<HttpPersistentSettings>;

/// The age from which a connection at rest is worth a task of its own.
const YOUNG: Duration = Duration::from_secs(1);
/// How long after the listeners were closed the first request of a connection may still begin.
const ARRIVES_WITHIN: Duration = Duration::from_secs(1);
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
                if let Some(settings) = self.serve_young(&connection, shutdown).await {
                    let (guard, shutdown) = (Arc::clone(self), shutdown.clone());
                    drop(Handle::current().spawn(async move {
                        guard.serve(&connection, settings, &shutdown, None).await;
                        drop(permit);
                    }));
                }
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
    /// Serves a connection in the task that Pingora made for it, which has room for a handshake of TLS: far more than is
    /// needed from there on. So a connection that lives long is moved to one of its own when it rests; for one that does not,
    /// another task would cost more than it gives. How to go on, if the connection does.
    async fn serve_young(&self, connection: &Connection, shutdown: &ShutdownWatch) -> Option<Settings> {
        let young_until = Instant::now() + YOUNG;
        if self.may_speak_h2(connection).await {
            self.proxy.process_new(Box::new(connection.clone()), shutdown).await;
            return None;
        }
        self.serve(connection, None, shutdown, Some(young_until)).await
    }

    /// One request after the other, until the client leaves, a limit is reached or the process ends; or until the connection
    /// rests after `until`, and then how to go on.
    async fn serve(
        &self,
        connection: &Connection,
        mut settings: Settings,
        shutdown: &ShutdownWatch,
        until: Option<Instant>,
    ) -> Option<Settings> {
        loop {
            let begins = self.unless_closing(settings.is_none(), connection.request_begins());
            let begins = match until {
                Some(until) => match timeout_at(until, begins).await {
                    Ok(begins) => begins,
                    Err(_elapsed) => return Some(settings),
                },
                None => begins.await,
            };
            if !begins {
                return None;
            }
            let mut session = ServerSession::new_http1(Box::new(connection.clone()));
            match settings.take() {
                Some(settings) => settings.apply_to_session(&mut session),
                None => session.set_keepalive((!*shutdown.borrow()).then_some(FIRST_KEEPALIVE_SECONDS)),
            }
            settings = self.proxy.process_new_http(session, shutdown).await?.consume().1;
        }
    }

    /// Whether Pingora is to find out which protocol this is.
    async fn may_speak_h2(&self, connection: &Connection) -> bool {
        if let Some(protocol) = connection.selected_alpn_proto() {
            return protocol == ALPN::H2;
        }
        let h2c = self.proxy.server_options().is_some_and(|options| options.h2c);
        h2c && connection.get_ssl_digest().is_none()
            && self.unless_closing(true, connection.begins_as_h2()).await
    }

    /// False when connections at rest are to be closed. One that is `new` was accepted while there was still a listener, so
    /// its request gets the time to arrive.
    async fn unless_closing(&self, new: bool, waiting: impl Future<Output = bool>) -> bool {
        let mut waiting = pin!(waiting);
        tokio::select! {
            biased;
            outcome = &mut waiting => outcome,
            () = self.closing.cancelled() => new && timeout(ARRIVES_WITHIN, waiting).await.unwrap_or(false),
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
