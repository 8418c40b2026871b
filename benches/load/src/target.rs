//! Where requests go: a URL resolved to addresses. Used by `run`; pure but for the resolving.
use std::{fmt, io};

use anyhow::{Context, Result, ensure};
use http::uri::{Authority, PathAndQuery, Uri};
use tokio::net::lookup_host;

use crate::socket::Address;
use crate::wire::Endpoint;

/// Where engines take chats.
pub(crate) const CHAT_PATH: PathAndQuery = PathAndQuery::from_static("/v1/chat/completions");

/// A target of requests.
#[derive(Debug)]
pub(crate) struct Target {
    secure: bool,
    pub(crate) authority: Authority,
    pub(crate) path: PathAndQuery,
}

/// Without the query, which may hold a key.
impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.secure { "https" } else { "http" };
        write!(formatter, "{scheme}://{}{}", self.authority, self.path.path())
    }
}

impl Target {
    /// The target of a URL, and its endpoint: what the path says, else what is wanted, else chats.
    pub(crate) fn parse(uri: &Uri, wanted: Option<Endpoint>) -> Result<(Self, Endpoint)> {
        let authority =
            uri.authority().context("the target has to begin with http:// or https:// and name a host")?;
        let secure = uri.scheme_str() == Some("https");
        ensure!(
            secure || uri.scheme_str() == Some("http"),
            "the target has to begin with http:// or https://"
        );
        ensure!(
            !authority.as_str().contains('@'),
            "credentials belong in --header or --api-key-env, not in the target"
        );
        let path = uri.path().trim_end_matches('/');
        let said = match path {
            _ if path.ends_with("/chat/completions") => Some(Endpoint::Chat),
            _ if path.ends_with("/completions") => Some(Endpoint::Completions),
            _ => None,
        };
        if let (Some(said), Some(wanted)) = (said, wanted) {
            ensure!(said == wanted, "the path of the target is that of the other --endpoint");
        }
        let endpoint = said.or(wanted).unwrap_or(Endpoint::Chat);
        let own = match endpoint {
            Endpoint::Chat => CHAT_PATH,
            Endpoint::Completions => PathAndQuery::from_static("/v1/completions"),
        };
        let given = uri.path_and_query().cloned();
        let path = match path {
            "" => own,
            // The base URL of a client library.
            _ if path.ends_with("/v1") => {
                let base = path.strip_suffix("/v1").unwrap_or_default();
                format!("{base}{own}").parse().context("the path of the target")?
            }
            _ => given.unwrap_or(own),
        };
        Ok((Self { secure, authority: authority.clone(), path }, endpoint))
    }

    /// The first address of the host.
    pub(crate) async fn resolve(&self) -> Result<Address> {
        let port = self.authority.port_u16().unwrap_or(if self.secure { 443 } else { 80 });
        let host = self.authority.host().trim_matches(['[', ']']);
        let mut found = lookup_host((host, port)).await.with_context(|| format!("cannot resolve {host}"))?;
        let first = found.next().ok_or(io::Error::from(io::ErrorKind::AddrNotAvailable))?;
        if self.secure { Address::secure(first, host) } else { Ok(first.into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_without_a_path_is_asked_for_what_is_wanted() {
        let target = |text: &str, wanted| {
            Target::parse(&text.parse().unwrap(), wanted)
                .map(|(target, endpoint)| (target.path.to_string(), endpoint))
        };
        let (chat, completions) = (Endpoint::Chat, Endpoint::Completions);
        for (text, wanted, path, endpoint) in [
            ("http://a:1", None, "/v1/chat/completions", chat),
            ("http://a:1/", Some(completions), "/v1/completions", completions),
            ("http://a:1/v1/", None, "/v1/chat/completions", chat),
            ("http://a:1/llm/v1", Some(completions), "/llm/v1/completions", completions),
            ("http://a:1/v1/completions?x=1", None, "/v1/completions?x=1", completions),
            ("http://a:1/ask", None, "/ask", chat),
        ] {
            assert_eq!(target(text, wanted).unwrap(), (path.to_owned(), endpoint), "{text}");
        }
        assert!(target("ftp://a:1", None).is_err());
        assert!(
            target("http://me:secret@a:1", None).is_err_and(|error| !error.to_string().contains("secret"))
        );
        assert!(target("http://a:1/v1/completions", Some(chat)).is_err());
        assert!(target("a:1", None).is_err() && target("/v1", None).is_err());
    }

    #[test]
    fn a_query_is_not_shown() {
        let (target, _) =
            Target::parse(&"http://a:1/v1/completions?key=secret".parse().unwrap(), None).unwrap();
        assert_eq!(target.to_string(), "http://a:1/v1/completions");
        let (target, _) = Target::parse(&"https://a/v1".parse().unwrap(), None).unwrap();
        assert_eq!(target.to_string(), "https://a/v1/chat/completions");
    }
}
