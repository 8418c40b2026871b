//! Peer → the connection and the header of one try.
//!
//! Built once per backend ([`Upstream::new`]), asked by the spine for each try. Sets what must be ours on the request
//! (framing, identity of the client, credentials) and strips from the answer what belongs to one hop.

use crate::config::{self, Timeouts};
use http::HeaderValue;
use http::header::{AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::TcpKeepalive;
use pingora::protocols::tls::CaType;
use pingora::upstreams::peer::{H1UpgradePolicy, HttpPeer};
use pingora::utils::tls::{WrappedX509, parse_x509};
use pingora::{Error, ErrorType, OrErr, Result};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// Room for two addresses.
const FORWARDED_FOR_BYTES: usize = 80;
const FORWARDED_FOR: &str = "x-forwarded-for";
const FORWARDED_PROTO: &str = "x-forwarded-proto";
const FORWARDED_HOST: &str = "x-forwarded-host";

/// Fields that concern one connection only (RFC 9110, 7.6.1), besides those that `Connection` names.
const HOP_BY_HOP: [&str; 5] = ["keep-alive", "proxy-connection", "proxy-authenticate", "te", "upgrade"];

/// How one backend is reached.
pub struct Upstream {
    template: HttpPeer,
    host: HeaderValue,
    authorization: Option<HeaderValue>,
}

/// What a request looks like from the client's side.
pub struct Client<'a> {
    /// Its address, where it has one.
    pub address: Option<IpAddr>,
    /// Whether it came over TLS.
    pub tls: bool,
    /// The request's id.
    pub request_id: &'a HeaderValue,
    /// The length of the request's body.
    pub body_bytes: usize,
}

impl Upstream {
    /// The way to `backend`.
    ///
    /// # Errors
    /// When the API key, the host or the certificate authority of the backend cannot be used.
    pub fn new(backend: &config::Backend, timeouts: &Timeouts) -> Result<Self> {
        let unresolved = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        let host_name =
            backend.address.rsplit_once(':').map_or(backend.address.as_str(), |(host, _port)| host);
        let tls = backend.tls.as_ref();
        let server_name = tls.and_then(|tls| tls.server_name.clone()).unwrap_or_else(|| host_name.to_owned());
        let sni = if tls.is_some() { server_name } else { String::new() };
        let mut template = HttpPeer::new(unresolved, tls.is_some(), sni);
        let options = &mut template.options;
        options.connection_timeout = Some(timeouts.connect);
        options.total_connection_timeout = Some(timeouts.connect);
        options.write_timeout = Some(timeouts.between_bytes);
        options.idle_timeout = Some(timeouts.upstream_idle);
        options.tcp_keepalive = Some(keepalive());
        options.http_upstream_request_policy.h1_upgrade = H1UpgradePolicy::Deny;
        if let Some(tls) = tls {
            options.verify_cert = tls.verify;
            options.verify_hostname = tls.verify;
            options.ca = tls.ca.as_deref().map(certificate_authority).transpose()?;
        }
        let bearer = |key: &config::Secret| {
            let mut value = HeaderValue::try_from(format!("Bearer {}", key.expose()))
                .or_err(ErrorType::InternalError, "api_key")?;
            value.set_sensitive(true);
            Ok::<_, Box<Error>>(value)
        };
        Ok(Self {
            template,
            host: HeaderValue::try_from(&backend.address).or_err(ErrorType::InternalError, "address")?,
            authorization: backend.api_key.as_ref().map(bearer).transpose()?,
        })
    }

    /// The connection for one try.
    #[must_use]
    pub fn peer(&self, address: SocketAddr) -> Box<HttpPeer> {
        let mut peer = self.template.clone();
        peer._address = pingora::protocols::l4::socket::SocketAddr::Inet(address);
        Box::new(peer)
    }

    /// The connection that health checks use, each step of it within `timeout`.
    #[must_use]
    pub fn probe(&self, timeout: Duration) -> HttpPeer {
        let mut peer = self.template.clone();
        peer.options.connection_timeout = Some(timeout);
        peer.options.total_connection_timeout = Some(timeout);
        peer.options.read_timeout = Some(timeout);
        peer.options.write_timeout = Some(timeout);
        peer
    }

    /// Turns the client's header into the backend's.
    ///
    /// # Errors
    /// When a value cannot be a header, which its source excludes.
    pub fn prepare(&self, request: &mut RequestHeader, client: &Client<'_>) -> Result<()> {
        request.remove_header(&EXPECT);
        request.remove_header(&TRANSFER_ENCODING);
        // A client may name a whole URL; its server is asked for the path (RFC 9112, 3.2.1).
        if !request.raw_path().starts_with(b"/") {
            request.set_uri(request.uri.clone());
        }
        let declared = request.headers.contains_key(CONTENT_LENGTH);
        if client.body_bytes > 0 || declared || request.method == http::Method::POST {
            request.insert_header(CONTENT_LENGTH, client.body_bytes)?;
        }
        if let Some(host) = request.headers.get(HOST).cloned() {
            request.insert_header(FORWARDED_HOST, host)?;
        }
        request.insert_header(HOST, self.host.clone())?;
        if let Some(address) = client.address {
            let mut chain = String::with_capacity(FORWARDED_FOR_BYTES);
            for earlier in
                request.headers.get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok())
            {
                chain.push_str(earlier);
                chain.push_str(", ");
            }
            // A string takes all that is written to it.
            let _written = write!(chain, "{address}");
            request.insert_header(FORWARDED_FOR, chain)?;
        }
        let scheme = HeaderValue::from_static(if client.tls { "https" } else { "http" });
        request.insert_header(FORWARDED_PROTO, scheme)?;
        request.insert_header(super::REQUEST_ID, client.request_id.clone())?;
        if let Some(authorization) = &self.authorization {
            request.insert_header(AUTHORIZATION, authorization.clone())?;
        }
        Ok(())
    }
}

/// Removes from an answer what concerns only the connection to the backend.
pub fn strip_hop_by_hop(answer: &mut ResponseHeader) {
    if answer.headers.contains_key(CONNECTION) {
        let named: Vec<String> = answer
            .headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(|name| name.trim().to_ascii_lowercase())
            .filter(|name| {
                !matches!(name.as_str(), "" | "close" | "keep-alive" | "transfer-encoding" | "content-length")
            })
            .collect();
        for name in named {
            answer.remove_header(name.as_str());
        }
        answer.remove_header(&CONNECTION);
    }
    if answer.headers.keys().any(|name| HOP_BY_HOP.contains(&name.as_str())) {
        for name in HOP_BY_HOP {
            answer.remove_header(name);
        }
    }
}

/// Finds out about a dead backend host within about a minute, however quiet its stream is.
fn keepalive() -> TcpKeepalive {
    TcpKeepalive {
        idle: Duration::from_secs(30),
        interval: Duration::from_secs(10),
        count: 3,
        #[cfg(target_os = "linux")]
        user_timeout: Duration::ZERO,
    }
}

fn certificate_authority(path: &std::path::Path) -> Result<Arc<CaType>> {
    let unusable = |_| Error::explain(ErrorType::InvalidCert, "tls.ca holds no usable certificate");
    let certificates = CertificateDer::pem_file_iter(path).map_err(unusable)?;
    let wrap = |certificate: CertificateDer<'_>| WrappedX509::new(certificate.to_vec(), parse_x509);
    certificates.map(|certificate| certificate.map(wrap).map_err(unusable)).collect::<Result<Arc<CaType>>>()
}
