//! The files in `conf/` are correct, and the certificates that a file names are tried.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use kvway::config::{AccessLog, Config, Policy, RetryOn};

use super::{MINIMAL, in_tree, parse, yaml_files};

#[test]
fn the_reference_file_holds_the_defaults() {
    let reference = Config::load(&in_tree("conf/kvway.yaml")).unwrap();
    assert_eq!(reference, parse(MINIMAL));
    assert_eq!(reference.limits.body_bytes_max, 16 << 20);
    assert_eq!(reference.timeouts.upstream_idle, Duration::from_secs(3));
    assert_eq!(reference.log.access, AccessLog::Json);
    assert_eq!(reference.clusters[0].policy, Policy::Pmc);
    assert!(!reference.retries.on.contains(&RetryOn::Reset));
}

#[test]
fn the_reference_file_names_every_key_in_the_order_of_the_code() {
    let reference = std::fs::read_to_string(in_tree("conf/kvway.yaml")).unwrap();
    assert_eq!(keys_of(&reference), keys_of(&parse(MINIMAL).to_yaml()));
    // Keys of mappings that are null by default stand in its comments.
    let with_tls = MINIMAL.replace("8000}", "8000, tls: {}}");
    let listener = "listeners: [{address: '0.0.0.0:1', tls: {certificate: a, key: b}}]\n";
    for key in keys_of(&parse(&format!("{listener}{with_tls}")).to_yaml()) {
        let name = key.rsplit('.').next().unwrap();
        assert!(reference.contains(&format!("{name}:")), "{key} is missing");
    }
}

/// The paths of all keys, in order.
fn keys_of(yaml: &str) -> Vec<String> {
    fn walk(value: &serde_yaml::Value, path: &str, keys: &mut Vec<String>) {
        if let Some(entries) = value.as_mapping() {
            for (key, value) in entries {
                let path = format!("{path}.{}", key.as_str().unwrap());
                keys.push(path.clone());
                walk(value, &path, keys);
            }
        }
        for item in value.as_sequence().into_iter().flatten() {
            walk(item, path, keys);
        }
    }
    let mut keys = Vec::new();
    walk(&serde_yaml::from_str(yaml).unwrap(), "", &mut keys);
    keys
}

/// Lets the shipped files see the variables that they name; the certificates are real files.
fn shipped_environment(folder: &Path) -> impl Fn(&str) -> Option<String> + use<> {
    let certified = rcgen::generate_simple_self_signed(vec!["kvway.example".to_owned()]).unwrap();
    let (certificate, key) = (folder.join("tls.crt"), folder.join("tls.key"));
    std::fs::write(&certificate, certified.cert.pem()).unwrap();
    std::fs::write(&key, certified.signing_key.serialize_pem()).unwrap();
    move |name| match name {
        "KVWAY_TLS_KEY" => Some(key.to_str()?.to_owned()),
        name if name.starts_with("KVWAY_TLS_") => Some(certificate.to_str()?.to_owned()),
        "KVWAY_ADMIN_TOKEN" | "VLLM_API_KEY" => Some("sk-shipped".to_owned()),
        _ => None,
    }
}

#[test]
fn every_shipped_file_can_be_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let lookup = shipped_environment(folder.path());
    let mut files = yaml_files("conf");
    files.extend(yaml_files("conf/examples"));
    let names: BTreeSet<_> = files.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(
        names,
        ["api-keys.yaml", "demo.yaml", "kvway.yaml", "lmcache.yaml", "tls.yaml", "two-models.yaml"].into()
    );
    for path in files {
        let config = Config::load_with(&path, &lookup).unwrap_or_else(|error| panic!("{error}"));
        assert!(config.warnings().is_empty(), "{}: {:?}", path.display(), config.warnings());
        assert!(!config.to_yaml().contains("sk-shipped") && !format!("{config:?}").contains("sk-shipped"));
        if !config.to_yaml().contains("***") {
            assert_eq!(parse(&config.to_yaml()), config, "{}", path.display());
        }
    }
}

#[test]
fn certificates_and_keys_are_tried_before_a_listener_needs_them() {
    let folder = tempfile::tempdir().unwrap();
    let lookup = shipped_environment(folder.path());
    let other = rcgen::generate_simple_self_signed(vec!["other.example".to_owned()]).unwrap();
    let other_key = folder.path().join("other.key");
    std::fs::write(&other_key, other.signing_key.serialize_pem()).unwrap();
    let not_pem = folder.path().join("not.pem");
    std::fs::write(&not_pem, "not PEM").unwrap();
    let broken = folder.path().join("broken.pem");
    std::fs::write(&broken, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    let (other_key, not_pem) = (other_key.to_str().unwrap(), not_pem.to_str().unwrap());
    let broken = broken.to_str().unwrap();

    let tls = in_tree("conf/examples/tls.yaml");
    let said = |variable: &str, path: &str| {
        let lookup = |name: &str| {
            if name == variable { Some(path.to_owned()) } else { lookup(name) }
        };
        let error = Config::load_with(&tls, &lookup).unwrap_err();
        assert!(!error.message.contains(folder.path().to_str().unwrap()), "{error}");
        (error.line.unwrap(), error.key, error.message)
    };
    let (line, key, message) = said("KVWAY_TLS_CERTIFICATE", "/does/not/exist");
    assert_eq!((line, key.as_str()), (6, "listeners[0].tls.certificate"));
    assert!(message.ends_with(" cannot be read: No such file or directory (os error 2)"), "{message}");
    let (line, key, message) = said("KVWAY_TLS_CERTIFICATE", not_pem);
    assert_eq!((line, key.as_str()), (6, "listeners[0].tls.certificate"));
    assert!(message.ends_with(" holds no certificate in PEM form"), "{message}");
    let (line, key, message) = said("KVWAY_TLS_KEY", not_pem);
    assert_eq!((line, key.as_str()), (7, "listeners[0].tls.key"));
    assert!(message.ends_with(" holds no private key in PEM form"), "{message}");
    let (line, key, message) = said("KVWAY_TLS_KEY", other_key);
    assert_eq!((line, key.as_str()), (7, "listeners[0].tls.key"));
    assert!(message.contains(" does not fit the certificate ${KVWAY_TLS_CERTIFICATE:-"), "{message}");
    let (line, key, message) = said("KVWAY_TLS_CLIENT_CA", broken);
    assert_eq!((line, key.as_str()), (8, "listeners[0].tls.client_ca"));
    assert!(message.contains(" holds an unusable certificate: "), "{message}");
    let (line, key, _) = said("KVWAY_TLS_BACKEND_CA", not_pem);
    assert_eq!((line, key.as_str()), (16, "clusters[0].backends[0].tls.ca"));
}
