//! How names are written in the file: addresses, hosts, labels, paths, headers.
//!
//! Used like `values`. Syntax only: no host is resolved and no file is touched.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use http::HeaderName;
use serde::de::{Deserialize, Deserializer, Error};
use serde::ser::Serializer;

use super::values::{Scalar, Written, digits};

/// Text that `read` accepts.
pub(super) fn text<'de, D: Deserializer<'de>, T>(
    d: D,
    allowed: &str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<T, D::Error> {
    let read = |written: Written<'_>| match written {
        Written::Text(text) => read(text),
        _ => None,
    };
    d.deserialize_str(Scalar { allowed: allowed.to_owned(), read })
}

/// `T` or null, for readers that are types.
pub(super) fn optional<'de, D: Deserializer<'de>, N: Deserialize<'de> + Into<T>, T>(
    d: D,
) -> Result<Option<T>, D::Error> {
    Ok(Option::<N>::deserialize(d)?.map(Into::into))
}

/// Declares a type that exists to be read inside of an `Option`.
macro_rules! readable {
    ($name:ident, $inner:ty, $reader:path) => {
        pub(super) struct $name($inner);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                $reader(d).map(Self)
            }
        }

        impl From<$name> for $inner {
            fn from(value: $name) -> Self {
                value.0
            }
        }
    };
}

readable!(Tokens, usize, super::values::integer::<1, { super::cluster::CAPACITY_TOKENS_MAX }, _>);
readable!(ListenAddress, SocketAddr, listen_address);
readable!(FilePath, PathBuf, path);
readable!(Header, HeaderName, header_name);
readable!(Host, String, host);
readable!(ShortText, String, short_text);
readable!(ErrorStatus, u16, error_status);

/// An address to listen on. Port 0 lets the system choose.
pub(super) fn listen_address<'de, D: Deserializer<'de>>(d: D) -> Result<SocketAddr, D::Error> {
    text(d, "ip:port, such as 0.0.0.0:8080 or [::1]:8080", |text| text.parse().ok())
}

/// The address of a server: an IP address or a DNS name, and a port.
pub(super) fn server_address<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    text(d, "host:port, such as 10.0.0.10:8000, [::1]:8000 or vllm-0.example:8000", |text| {
        is_server_address(text).then(|| text.to_owned())
    })
}

fn is_server_address(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        is_host(host) && digits(port).is_some_and(|port| (1..=u64::from(u16::MAX)).contains(&port))
    })
}

/// Whether it is the base URL of a server: scheme, host, perhaps a port and a path, and nothing else.
pub(super) fn is_endpoint(text: &str) -> bool {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")).unwrap_or_default();
    let (server, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    (is_host(server) || is_server_address(server)) && (path.is_empty() || is_url_path(path))
}

/// A DNS name or an IP address without brackets, for the name in a certificate.
fn host<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    text(d, "a DNS name or an IP address", |text| {
        (is_host(text) || text.parse::<Ipv6Addr>().is_ok()).then(|| text.to_owned())
    })
}

/// A name that may become a metric label.
pub(super) fn label<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    text(d, "1 to 64 of the characters A-Z a-z 0-9 . _ -", |text| {
        let fits = (1..=64).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        fits.then(|| text.to_owned())
    })
}

/// A name in the words of another system, or nothing.
pub(super) fn short_text<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    text(d, "at most 256 bytes without control characters", |text| {
        (text.len() <= 256 && !text.chars().any(char::is_control)).then(|| text.to_owned())
    })
}

/// The status of an answer that is an error.
fn error_status<'de, D: Deserializer<'de>>(d: D) -> Result<u16, D::Error> {
    let status = super::values::integer::<400, 599, D>(d)?;
    u16::try_from(status).map_err(D::Error::custom)
}

/// The path of a URL, without query.
pub(super) fn url_path<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    text(d, "a path that begins with /, without spaces, ? and #", |text| {
        is_url_path(text).then(|| text.to_owned())
    })
}

fn is_url_path(text: &str) -> bool {
    text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'?' | b'#'))
}

/// The path of a file. Relative paths begin at the working directory.
pub(super) fn path<'de, D: Deserializer<'de>>(d: D) -> Result<PathBuf, D::Error> {
    text(d, "the path of a file", |text| {
        (!text.is_empty() && !text.contains('\0')).then(|| PathBuf::from(text))
    })
}

/// The name of an HTTP header, in any case.
fn header_name<'de, D: Deserializer<'de>>(d: D) -> Result<HeaderName, D::Error> {
    text(d, "the name of an HTTP header, such as x-user-id", |text| text.parse().ok())
}

/// Writes the name of a header, or null.
#[expect(clippy::ref_option, reason = "serde gives a reference to the field")]
pub(super) fn write_header<S: Serializer>(header: &Option<HeaderName>, s: S) -> Result<S::Ok, S::Error> {
    match header {
        Some(header) => s.serialize_some(header.as_str()),
        None => s.serialize_none(),
    }
}

fn is_host(host: &str) -> bool {
    if let Some(inside) = host.strip_prefix('[') {
        return inside.strip_suffix(']').is_some_and(|ip| ip.parse::<Ipv6Addr>().is_ok());
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    // A name whose last part is a number is a mistyped IP address.
    let numeric = name.rsplit('.').next().is_some_and(|last| digits(last).is_some());
    host.parse::<Ipv4Addr>().is_ok() || (!numeric && name.len() <= 253 && name.split('.').all(is_label))
}
