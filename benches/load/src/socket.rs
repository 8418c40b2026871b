//! The bytes of a connection, with or without TLS. Used by `client`.
//!
//! Certificates are checked against those of this machine (`SSL_CERT_FILE` names others). TLS costs the generator CPU time, so a
//! proxy's cost is measured without it.
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore, crypto};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Where connections go.
#[derive(Clone)]
pub(crate) struct Address {
    socket: SocketAddr,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Address {
    /// With TLS, to a server of this name.
    pub(crate) fn secure(socket: SocketAddr, host: &str) -> Result<Self> {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        // Old machines have a few that nobody can read.
        let (usable, _unusable) = roots.add_parsable_certificates(found.certs);
        ensure!(
            usable > 0,
            "there are no root certificates on this machine; SSL_CERT_FILE may name a file of them"
        );
        let provider = Arc::new(crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let config = config.with_root_certificates(roots).with_no_client_auth();
        let name =
            ServerName::try_from(host.to_owned()).with_context(|| format!("{host} has no certificate"))?;
        Ok(Self { socket, tls: Some((TlsConnector::from(Arc::new(config)), name)) })
    }
}

impl From<SocketAddr> for Address {
    fn from(socket: SocketAddr) -> Self {
        Self { socket, tls: None }
    }
}

/// An open connection.
pub(crate) enum Socket {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Socket {
    pub(crate) async fn connect(address: &Address) -> io::Result<Self> {
        let socket = TcpStream::connect(address.socket).await?;
        socket.set_nodelay(true)?;
        Ok(match &address.tls {
            None => Self::Plain(socket),
            Some((connector, name)) => Self::Tls(connector.connect(name.clone(), socket).await?.into()),
        })
    }

    pub(crate) async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.write_all(bytes).await,
            Self::Tls(socket) => {
                socket.write_all(bytes).await?;
                socket.flush().await
            }
        }
    }

    pub(crate) async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer).await,
            Self::Tls(socket) => socket.read(buffer).await,
        }
    }

    /// Whether nothing came that nobody asked for, such as the end. What came is lost: only a silent one may be used again.
    pub(crate) fn is_silent(&self) -> bool {
        let socket = match self {
            Self::Plain(socket) => socket,
            Self::Tls(socket) => socket.get_ref().0,
        };
        socket.try_read(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }
}
