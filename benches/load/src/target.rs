//! Where requests go: a URL resolved to addresses. Used by `main` for a single target.
use std::{io, net::SocketAddr};

use anyhow::{Context, Result, ensure};
use http::uri::{Authority, PathAndQuery, Uri};
use tokio::net::lookup_host;

/// Where engines take chats.
pub(crate) const CHAT_PATH: PathAndQuery = PathAndQuery::from_static("/v1/chat/completions");

/// A target of requests.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) authority: Authority,
    pub(crate) path: PathAndQuery,
}

impl Target {
    /// Only plain HTTP: a proxy is measured without the cost of TLS on the side of the load.
    pub(crate) fn parse(uri: &Uri) -> Result<Self> {
        ensure!(uri.scheme_str() == Some("http"), "the target {uri} has to begin with http://");
        let authority = uri.authority().with_context(|| format!("the target {uri} names no host"))?;
        let path = uri.path_and_query().filter(|path| path.as_str() != "/");
        Ok(Self { authority: authority.clone(), path: path.cloned().unwrap_or(CHAT_PATH) })
    }

    /// The first address of the host.
    pub(crate) async fn resolve(&self) -> Result<SocketAddr> {
        let port = self.authority.port_u16().unwrap_or(80);
        let host = self.authority.host().trim_matches(['[', ']']);
        let mut found = lookup_host((host, port)).await.with_context(|| format!("cannot resolve {host}"))?;
        found.next().ok_or(io::ErrorKind::AddrNotAvailable.into()).map_err(io::Error::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_without_a_path_is_asked_for_a_chat() {
        let target = |text: &str| Target::parse(&text.parse().unwrap());
        assert_eq!(target("http://a:1").unwrap().path, "/v1/chat/completions");
        assert_eq!(target("http://a:1/v1/completions?x=1").unwrap().path, "/v1/completions?x=1");
        assert!(target("https://a:1").is_err());
        assert!(target("a:1").is_err());
    }
}
