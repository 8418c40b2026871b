//! Peer → the connection and the header of one try.
//!
//! Built once per backend ([`Upstream::new`]), asked by the spine for each try. Sets what must be ours on the request
//! (framing, identity of the client, credentials) and strips from the answer what belongs to one hop.

use crate::config::{self, Timeouts};
use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderName, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderValue};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::TcpKeepalive;
use pingora::protocols::tls::CaType;
use pingora::upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy};
use pingora::utils::tls::{WrappedX509, parse_x509};
use pingora::{Error, ErrorType, OrErr, Result};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

static FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static REQUEST_ID: HeaderName = HeaderName::from_static(super::REQUEST_ID);
static DECISION: HeaderName = HeaderName::from_static(super::DECISION);
/// The fields that a request gets here.
const ADDED_TO_REQUEST: usize = 7;
/// The fields that an answer gets here and from Pingora.
const ADDED_TO_ANSWER: usize = 5;

/// How one backend is reached.
pub struct Upstream {
    template: HttpPeer,
    host: HeaderValue,
    authorization: Option<HeaderValue>,
}

/// What a request looks like from the client's side.
pub struct Client<'a> {
    /// Its address, where it has one.
    pub address: Option<&'a HeaderValue>,
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
        options.http_upstream_request_policy = HttpUpstreamRequestPolicy::deny_upgrades();
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

    /// The connection for one try of `request`.
    #[must_use]
    pub fn peer(&self, address: SocketAddr, request: &RequestHeader) -> Box<HttpPeer> {
        let mut peer = self.template.clone();
        peer._address = pingora::protocols::l4::socket::SocketAddr::Inet(address);
        if names_no_fields(&request.headers) {
            // Pingora would look for what `prepare` leaves out anyway.
            peer.options.http_upstream_request_policy = HttpUpstreamRequestPolicy::preserve();
        }
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

    /// Turns the client's header into the backend's. It is made anew, with room for what is added: a map of fields that grows
    /// is filled twice, and Pingora keeps a second one of how clients write the names.
    ///
    /// # Errors
    /// When a value cannot be a header, which its source excludes.
    pub fn prepare(&self, request: &mut RequestHeader, client: &Client<'_>) -> Result<()> {
        let theirs = &request.headers;
        let mut headers = HeaderMap::with_capacity(theirs.len() + ADDED_TO_REQUEST);
        for (name, value) in theirs.iter().filter(|(name, _)| !self.is_ours(name)) {
            headers
                .try_append(name, value.clone())
                .or_err(ErrorType::InvalidHTTPHeader, "too many fields")?;
        }
        headers.insert(HOST, self.host.clone());
        let declared = theirs.contains_key(CONTENT_LENGTH);
        if client.body_bytes > 0 || declared || request.method == http::Method::POST {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(client.body_bytes));
        }
        if let Some(host) = theirs.get(HOST) {
            headers.insert(&FORWARDED_HOST, host.clone());
        }
        if let Some(address) = client.address {
            headers.insert(&FORWARDED_FOR, forwarded_for(theirs, address)?);
        }
        let scheme = HeaderValue::from_static(if client.tls { "https" } else { "http" });
        headers.insert(&FORWARDED_PROTO, scheme);
        headers.insert(&REQUEST_ID, client.request_id.clone());
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        // A client may name a whole URL; its server is asked for the path (RFC 9112, 3.2.1). The URI has it; what is no UTF-8
        // it has not.
        let raw =
            Some(request.raw_path()).filter(|path| !request.raw_path_is_utf8() && path.starts_with(b"/"));
        let raw = raw.map(<[u8]>::to_vec);
        let (mut parts, ()) = http::Request::new(()).into_parts();
        (parts.method, parts.uri) = (request.method.clone(), request.uri.clone());
        (parts.version, parts.headers) = (request.version, headers);
        parts.extensions = request.extensions.clone();
        *request = RequestHeader::from(parts);
        raw.map_or(Ok(()), |path| request.set_raw_path(&path))
    }

    /// Whether what the client says in this field is not for the backend: its connection ends here (RFC 9110, 7.6.1), or there
    /// is something else to be said.
    fn is_ours(&self, name: &HeaderName) -> bool {
        match *name {
            HOST | CONTENT_LENGTH | EXPECT | CONNECTION | TRANSFER_ENCODING | TE | TRAILER | UPGRADE
            | PROXY_AUTHENTICATE | PROXY_AUTHORIZATION => true,
            AUTHORIZATION => self.authorization.is_some(),
            _ => matches!(
                name.as_str(),
                "keep-alive"
                    | "proxy-connection"
                    | "http2-settings"
                    | "x-forwarded-for"
                    | "x-forwarded-proto"
                    | "x-forwarded-host"
                    | super::REQUEST_ID
            ),
        }
    }
}

/// The addresses that a request came by: those that are told, and the client's.
fn forwarded_for(headers: &HeaderMap, client: &HeaderValue) -> Result<HeaderValue> {
    let mut told = headers.get_all(&FORWARDED_FOR).iter().filter(|value| value.to_str().is_ok()).peekable();
    if told.peek().is_none() {
        return Ok(client.clone());
    }
    let chain: Vec<_> = told.chain([client]).map(HeaderValue::as_bytes).collect();
    HeaderValue::from_maybe_shared(Bytes::from(chain.join(&b", "[..])))
        .or_err(ErrorType::InvalidHTTPHeader, "forwarded addresses")
}

/// Whether `Connection` says no more than whether to keep it.
fn names_no_fields(headers: &HeaderMap) -> bool {
    headers.get_all(CONNECTION).iter().all(|value| {
        let value = value.as_bytes();
        value.eq_ignore_ascii_case(b"keep-alive") || value.eq_ignore_ascii_case(b"close")
    })
}

/// Turns the backend's header into that of the answer, made anew with room for what is added: without what concerns only the
/// connection to the backend, with the request's id and, where it is told, the decision.
///
/// # Errors
/// When there are more fields than a map can have, which the limits of an answer's header exclude.
pub fn prepare_answer(
    answer: &mut ResponseHeader,
    request_id: &HeaderValue,
    decision: Option<HeaderValue>,
) -> Result<()> {
    let theirs = &answer.headers;
    let named: Vec<String> = theirs
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .filter(|name| {
            !matches!(name.as_str(), "" | "close" | "keep-alive" | "transfer-encoding" | "content-length")
        })
        .collect();
    let is_hop_by_hop = |name: &HeaderName| match *name {
        CONNECTION | PROXY_AUTHENTICATE | TE | UPGRADE => true,
        _ => {
            let name = name.as_str();
            matches!(name, "keep-alive" | "proxy-connection") || named.iter().any(|named| named == name)
        }
    };
    let is_replaced = |name: &HeaderName| name == REQUEST_ID || (name == DECISION && decision.is_some());
    let mut headers = HeaderMap::with_capacity(theirs.len() + ADDED_TO_ANSWER);
    for (name, value) in theirs.iter().filter(|(name, _)| !is_hop_by_hop(name) && !is_replaced(name)) {
        headers.try_append(name, value.clone()).or_err(ErrorType::InvalidHTTPHeader, "too many fields")?;
    }
    headers.insert(&REQUEST_ID, request_id.clone());
    if let Some(decision) = decision {
        headers.insert(&DECISION, decision);
    }
    let (mut parts, ()) = http::Response::new(()).into_parts();
    (parts.status, parts.version, parts.headers) = (answer.status, answer.version, headers);
    let reason = answer.get_reason_phrase().filter(|told| Some(*told) != answer.status.canonical_reason());
    let reason = reason.map(str::to_owned);
    parts.extensions = answer.extensions.clone();
    *answer = ResponseHeader::from(parts);
    reason.map_or(Ok(()), |reason| answer.set_reason_phrase(Some(&reason)))
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
