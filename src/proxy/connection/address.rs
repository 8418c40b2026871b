//! Who a client is, as it goes into headers and the access log.

use http::HeaderValue;
use std::net::IpAddr;

/// A client's address as it is written, which is done once for all its requests.
#[derive(Clone, Debug)]
pub struct Address(HeaderValue);

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        // No address has a character that a header may not have.
        Self(HeaderValue::try_from(address.to_string()).unwrap_or_else(|_| HeaderValue::from_static("")))
    }
}

impl Address {
    /// It as a value of a header.
    #[must_use]
    pub fn value(&self) -> &HeaderValue {
        &self.0
    }

    /// It as text.
    #[must_use]
    pub fn text(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}
