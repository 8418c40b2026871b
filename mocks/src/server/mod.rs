//! The HTTP/1.1 server under both mocks: it owns the listeners, the connections and the books about them.
//!
//! The connection loop is our own and not a library's, because a mock has to do what a library prevents: answer
//! before it has read a body, cut a stream short, reset a connection, write bytes that are not HTTP. The mocks plug in
//! a `Service`; tests hold the [`Server`] through [`Engine`](crate::Engine) or [`Controller`](crate::Controller).
//! Request heads are bounded at 1 MiB, bodies at 64 MiB, the list of received requests at 4096 entries.

mod answer;
mod books;
mod connection;
mod fault;
mod gate;
mod json;
mod request;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub(crate) use answer::Answer;
use books::Books;
pub use books::{Framing, PathStats, Received, Stats};
use connection::{Wire, serve};
pub use fault::Fault;
use fault::Faults;
pub use gate::Gate;
use gate::{Gates, Place};
pub(crate) use json::{detail, error_offset, quoted};
pub(crate) use request::Request;

/// How many connections may wait to be accepted.
const BACKLOG: u32 = 4096;

/// How long to wait after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// What a mock answers.
pub(crate) trait Service: Send + Sync + 'static {
    /// Answers one request that was read to its end. Dropped when the client leaves.
    fn answer<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Answer>;

    /// Whether faults and gates that name no path stand for this request.
    fn is_work(&self, method: &str, path: &str) -> bool;
}

/// What the server keeps besides the connections.
pub(crate) struct Shared {
    pub(crate) books: Books,
    faults: Faults,
    gates: Gates,
    settings: Settings,
}

/// How the server behaves whatever is asked.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Settings {
    /// Whether requests are noted and not only counted.
    pub(crate) record: bool,
    /// Whether `x-mock-fault` in a request is obeyed.
    pub(crate) faults_by_header: bool,
    /// How long a connection may be idle.
    pub(crate) keep_alive: Option<Duration>,
}

impl Shared {
    pub(crate) fn new(settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            books: Books::new(settings.record),
            faults: Faults::default(),
            gates: Gates::default(),
            settings,
        })
    }
}

/// A running mock: its books, gates and faults. Dropping it ends the server.
pub struct Server {
    shared: Arc<Shared>,
    service: Arc<dyn Service>,
    address: SocketAddr,
    stopping: watch::Sender<bool>,
    listeners: Mutex<JoinSet<()>>,
}

impl Server {
    pub(crate) fn start(
        address: SocketAddr,
        shared: Arc<Shared>,
        service: Arc<dyn Service>,
    ) -> io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        let server = Self {
            shared,
            service,
            address: listener.local_addr()?,
            stopping: watch::Sender::new(false),
            listeners: Mutex::new(JoinSet::new()),
        };
        server.accept(listener);
        Ok(server)
    }

    /// Accepts connections on a Unix socket as well.
    ///
    /// # Errors
    /// When the socket cannot be bound.
    pub fn listen_unix(&self, path: &Path) -> io::Result<()> {
        self.accept(UnixListener::bind(path)?);
        Ok(())
    }

    fn accept<L: Listen>(&self, listener: L) {
        let (shared, service) = (Arc::clone(&self.shared), Arc::clone(&self.service));
        let mut stopping = self.stopping.subscribe();
        self.listeners.lock().spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    _ = stopping.wait_for(|stop| *stop) => break,
                    Some(_) = connections.join_next() => {}
                    wire = next_wire(&listener) => {
                        connections.spawn(serve(wire, Arc::clone(&shared), Arc::clone(&service)));
                    }
                }
            }
            drop(listener);
            connections.shutdown().await;
        });
    }

    /// Where the mock listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the listeners and all connections at once.
    pub(crate) async fn stop(self) {
        self.stopping.send_replace(true);
        let mut listeners = std::mem::take(&mut *self.listeners.lock());
        while listeners.join_next().await.is_some() {}
    }

    /// The counters as they stand.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.books.stats()
    }

    /// The last 4096 requests that were read to their end, oldest first; empty when recording is off.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        self.shared.books.received()
    }

    /// Forgets the counters and the received requests. What is in flight stays counted as in flight.
    pub fn forget(&self) {
        self.shared.books.forget();
    }

    /// Waits until the counters satisfy `condition`, which must not call back into the mock.
    pub async fn until(&self, condition: impl Fn(&Stats) -> bool) {
        self.shared.books.until(condition).await;
    }

    /// Holds answers before their response headers.
    pub fn hold_headers(&self) -> Gate {
        self.shared.gates.hold(Place::Headers, None)
    }

    /// Holds streams after their headers and before their first event, other answers before their headers.
    pub fn hold_first_token(&self) -> Gate {
        self.shared.gates.hold(Place::FirstToken, None)
    }

    /// Holds answers on one path, whatever it is, before their response headers.
    pub fn hold_path(&self, path: &str) -> Gate {
        self.shared.gates.hold(Place::Headers, Some(path))
    }

    /// The next `count` requests meet `fault`: only those that do a mock's work, which are all `POST` but tokenizing
    /// and resetting.
    pub fn fail_next(&self, count: usize, fault: Fault) {
        self.shared.faults.add(None, Some(count), fault);
    }

    /// The next `count` requests on `path` meet `fault`, whatever they are.
    pub fn fail_next_on(&self, path: &str, count: usize, fault: Fault) {
        self.shared.faults.add(Some(path), Some(count), fault);
    }

    /// Every request that does a mock's work meets `fault`; `None` ends every fault, counted or not.
    pub fn fail_always(&self, fault: Option<Fault>) {
        match fault {
            Some(fault) => self.shared.faults.add(None, None, fault),
            None => self.shared.faults.clear(),
        }
    }

    /// Every request on `path` meets `fault`, until `fail_always(None)`.
    pub fn fail_always_on(&self, path: &str, fault: Fault) {
        self.shared.faults.add(Some(path), None, fault);
    }
}

/// Where connections come from.
trait Listen: Send + Sync + 'static {
    /// The connections it yields.
    type Wire: Wire;

    fn next(&self) -> impl Future<Output = io::Result<Self::Wire>> + Send;
}

/// Waits for a connection.
async fn next_wire<L: Listen>(listener: &L) -> L::Wire {
    loop {
        match listener.next().await {
            Ok(wire) => return wire,
            // Out of descriptors, as a rule: asking again at once would only burn the processor.
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

impl Listen for TcpListener {
    type Wire = TcpStream;

    async fn next(&self) -> io::Result<TcpStream> {
        let (stream, _) = self.accept().await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

impl Listen for UnixListener {
    type Wire = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        Ok(self.accept().await?.0)
    }
}
