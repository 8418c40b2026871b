//! The certificates and keys that the file names: whether they can be used, before a listener depends on it.
//!
//! Called by [`Config::load`](super::Config::load) only, since it reads files. It keeps nothing: whoever terminates TLS
//! reads the files again.

use std::path::Path;

use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::error::Fault;
use super::spot::Spot;
use super::{Config, ListenerTls};

pub(super) fn check(config: &Config, root: &Spot<'_>) -> Result<(), Fault> {
    for (n, listener) in config.listeners.iter().enumerate() {
        if let Some(tls) = &listener.tls {
            check_listener(tls, &root.key("listeners").index(n).key("tls"))?;
        }
    }
    for (n, cluster) in config.clusters.iter().enumerate() {
        for (m, backend) in cluster.backends.iter().enumerate() {
            if let Some(ca) = backend.tls.as_ref().and_then(|tls| tls.ca.as_deref()) {
                let backend = root.key("clusters").index(n).key("backends").index(m);
                check_authorities(ca, &backend.key("tls").key("ca"))?;
            }
        }
    }
    Ok(())
}

fn check_listener(tls: &ListenerTls, spot: &Spot<'_>) -> Result<(), Fault> {
    let chain = certificates(&tls.certificate, &spot.key("certificate"))?;
    let spot_key = spot.key("key");
    let key = PrivateKeyDer::from_pem_file(&tls.key)
        .map_err(|error| refused(&spot_key, "a private key", &error))?;
    CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|error| {
        let shown = spot_key.shown();
        spot_key.fault(format!(
            "{shown} does not fit the certificate {}: {error}",
            spot.key("certificate").shown()
        ))
    })?;
    match &tls.client_ca {
        Some(ca) => check_authorities(ca, &spot.key("client_ca")),
        None => Ok(()),
    }
}

fn check_authorities(path: &Path, spot: &Spot<'_>) -> Result<(), Fault> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(path, spot)? {
        store.add(certificate).map_err(|error| {
            spot.fault(format!("{} holds an unusable certificate: {error}", spot.shown()))
        })?;
    }
    Ok(())
}

/// The certificates of a PEM file, at least one.
fn certificates(path: &Path, spot: &Spot<'_>) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let refused = |error| refused(spot, "a certificate", &error);
    let chain = CertificateDer::pem_file_iter(path).map_err(refused)?.collect::<Result<Vec<_>, _>>();
    match chain {
        Ok(chain) if chain.is_empty() => Err(refused(pem::Error::NoItemsFound)),
        Ok(chain) => Ok(chain),
        Err(error) => Err(refused(error)),
    }
}

/// A file without what it should hold. The content is not shown.
fn refused(spot: &Spot<'_>, what: &str, error: &pem::Error) -> Fault {
    let shown = spot.shown();
    spot.fault(match error {
        pem::Error::Io(error) => format!("{shown} cannot be read: {error}"),
        pem::Error::NoItemsFound => format!("{shown} holds no {} in PEM form", what.trim_start_matches("a ")),
        _ => format!("{shown} is not a PEM file"),
    })
}
