//! The configuration: what a file means, and what is said about one that cannot be meant.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kvway::config::{AccessLog, Config, ModelPattern, Policy, RetryOn};
use proptest::prelude::*;

const MINIMAL: &str = "clusters: [{name: llama, backends: [{id: vllm-0, address: 127.0.0.1:8000}]}]\n";

/// The environment of the broken files. What must not be shown says so.
fn environment(name: &str) -> Option<String> {
    let value = match name {
        "HOST" => "do-not-show.example",
        "SECRET" => "do-not-show",
        "SPACED_SECRET" => "do not show",
        "LINES" => "a\nadmin: null",
        "NULL" => "null",
        "EMPTY" => "",
        _ => return None,
    };
    Some(value.to_owned())
}

fn parse(text: &str) -> Config {
    parse_with(text, &environment)
}

fn parse_with(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Config {
    Config::parse(text, "test.yaml", lookup).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn refusal(text: &str) -> String {
    Config::parse(text, "test.yaml", &environment)
        .unwrap_err()
        .to_string()
}

fn in_tree(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn yaml_files(folder: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(in_tree(folder)).unwrap();
    let mut files: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    files
}

// --- What is said about a broken file -------------------------------------------------------------------------------

#[test]
fn every_broken_file_is_told_what_is_wrong_in_one_line() {
    let files = yaml_files("tests/data/broken");
    assert!(files.len() >= 100, "only {} broken files were found", files.len());
    let mut wrong = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        let file = path.file_name().unwrap().to_str().unwrap();
        let expected = text
            .lines()
            .next()
            .unwrap()
            .strip_prefix("# expect: ")
            .unwrap()
            .replace("{file}", file);
        let said = Config::parse(&text, file, &environment)
            .map_or_else(|error| error.to_string(), |_| format!("{file} is accepted"));
        if said != expected {
            wrong.push(format!("expected {expected}\n    said {said}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_message_shows_a_secret_or_a_value_of_the_environment_or_breaks_the_line() {
    for path in yaml_files("tests/data/broken") {
        let text = std::fs::read_to_string(&path).unwrap();
        let said = Config::parse(&text, "test.yaml", &environment)
            .unwrap_err()
            .to_string();
        let secret = said.contains("do-not-show") || said.contains("do not show");
        assert!(!secret && !said.contains('\n'), "{}: {said}", path.display());
    }
}

#[test]
fn an_error_can_be_taken_apart() {
    let error = Config::parse("server: {threads: -1}", "test.yaml", &environment).unwrap_err();
    assert_eq!(error.line, Some(1));
    assert_eq!(error.key, "server.threads");
    assert_eq!(error.message, "-1 is not allowed (0 to 1024)");
}

#[test]
fn an_empty_file_says_what_is_needed() {
    for text in ["", "\n\n", "---\n", "null\n"] {
        assert!(refusal(text).contains("clusters"), "{text:?}: {}", refusal(text));
    }
}

#[test]
fn too_many_entries_are_counted() {
    let backend = |n| format!("{{id: b{n}, address: 'h:{n}'}}");
    let backends: Vec<_> = (1..=1025).map(backend).collect();
    let said = refusal(&format!(
        "clusters: [{{name: a, backends: [{}]}}]",
        backends.join(", ")
    ));
    assert_eq!(
        said,
        "test.yaml:1: clusters[0].backends: 1025 entries are not allowed (1 to 1024)"
    );
    let routes: Vec<_> = (1..=1025)
        .map(|n| format!("{{model: m{n}, cluster: llama}}"))
        .collect();
    let said = refusal(&format!("{MINIMAL}routes: [{}]", routes.join(", ")));
    assert_eq!(
        said,
        "test.yaml:2: routes: 1025 entries are not allowed (1 to 1024)"
    );
}

// --- Defaults and the shipped files ---------------------------------------------------------------------------------

#[test]
fn the_reference_file_holds_the_defaults() {
    let reference = Config::load(&in_tree("conf/kvway.yaml")).unwrap();
    assert_eq!(reference, parse(MINIMAL));
    assert_eq!(reference.limits.body_bytes_max, 16 << 20);
    assert_eq!(reference.timeouts.upstream_idle, Duration::from_secs(3));
    assert_eq!(reference.log.access, AccessLog::Json);
    assert_eq!(reference.clusters[0].policy, Policy::RoundRobin);
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
    let names: BTreeSet<_> = files
        .iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "api-keys.yaml",
            "demo.yaml",
            "kvway.yaml",
            "tls.yaml",
            "two-models.yaml"
        ]
        .into()
    );
    for path in files {
        let config = Config::load_with(&path, &lookup).unwrap_or_else(|error| panic!("{error}"));
        assert!(!config.to_yaml().contains("sk-shipped") && !format!("{config:?}").contains("sk-shipped"));
        if !config.to_yaml().contains("***") {
            assert_eq!(parse(&config.to_yaml()), config, "{}", path.display());
        }
    }
}

// --- Certificates ---------------------------------------------------------------------------------------------------

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
    std::fs::write(
        &broken,
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    let (other_key, not_pem) = (other_key.to_str().unwrap(), not_pem.to_str().unwrap());
    let broken = broken.to_str().unwrap();

    let tls = in_tree("conf/examples/tls.yaml");
    let said = |variable: &str, path: &str| {
        let lookup = |name: &str| {
            if name == variable {
                Some(path.to_owned())
            } else {
                lookup(name)
            }
        };
        let error = Config::load_with(&tls, &lookup).unwrap_err();
        assert!(
            !error.message.contains(folder.path().to_str().unwrap()),
            "{error}"
        );
        (error.line.unwrap(), error.key, error.message)
    };
    let (line, key, message) = said("KVWAY_TLS_CERTIFICATE", "/does/not/exist");
    assert_eq!((line, key.as_str()), (6, "listeners[0].tls.certificate"));
    assert!(
        message.ends_with(" cannot be read: No such file or directory (os error 2)"),
        "{message}"
    );
    let (line, key, message) = said("KVWAY_TLS_CERTIFICATE", not_pem);
    assert_eq!((line, key.as_str()), (6, "listeners[0].tls.certificate"));
    assert!(
        message.ends_with(" holds no certificate in PEM form"),
        "{message}"
    );
    let (line, key, message) = said("KVWAY_TLS_KEY", not_pem);
    assert_eq!((line, key.as_str()), (7, "listeners[0].tls.key"));
    assert!(
        message.ends_with(" holds no private key in PEM form"),
        "{message}"
    );
    let (line, key, message) = said("KVWAY_TLS_KEY", other_key);
    assert_eq!((line, key.as_str()), (7, "listeners[0].tls.key"));
    assert!(
        message.contains(" does not fit the certificate ${KVWAY_TLS_CERTIFICATE:-"),
        "{message}"
    );
    let (line, key, message) = said("KVWAY_TLS_CLIENT_CA", broken);
    assert_eq!((line, key.as_str()), (8, "listeners[0].tls.client_ca"));
    assert!(message.contains(" holds an unusable certificate: "), "{message}");
    let (line, key, _) = said("KVWAY_TLS_BACKEND_CA", not_pem);
    assert_eq!((line, key.as_str()), (16, "clusters[0].backends[0].tls.ca"));
}

// --- Files and the environment --------------------------------------------------------------------------------------

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kvway.yaml");
    let said = || {
        Config::load(&path)
            .unwrap_err()
            .to_string()
            .replace(path.to_str().unwrap(), "kvway.yaml")
    };
    assert_eq!(
        said(),
        "kvway.yaml: cannot be read: No such file or directory (os error 2)"
    );
    std::fs::write(&path, b"\xff").unwrap();
    assert_eq!(
        said(),
        "kvway.yaml: cannot be read: stream did not contain valid UTF-8"
    );
    std::fs::write(&path, " ".repeat((1 << 20) + 1)).unwrap();
    assert_eq!(
        said(),
        "kvway.yaml: is 1048577 bytes long; a configuration has at most 1048576"
    );
    assert!(Config::load(folder.path()).is_err());
}

#[test]
fn load_reads_the_environment_of_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kvway.yaml");
    // cargo sets this variable for tests.
    std::fs::write(
        &path,
        format!("log: {{file: '${{CARGO_MANIFEST_DIR}}/access.log'}}\n{MINIMAL}"),
    )
    .unwrap();
    assert_eq!(Config::load(&path).unwrap().log.file, Some(in_tree("access.log")));
}

#[test]
fn a_default_stands_in_for_a_variable_that_is_unset_or_empty() {
    let threads = |text: &str| {
        parse(&format!("server: {{threads: {text}}}\n{MINIMAL}"))
            .server
            .threads
    };
    assert_eq!(threads("${NOT_SET:-3}"), 3);
    assert_eq!(threads("${EMPTY:-3}"), 3);
    let file = |text: &str| parse(&format!("log:\n  file: {text}\n{MINIMAL}")).log.file;
    assert_eq!(file("${HOST:-other}"), Some("do-not-show.example".into()));
    assert_eq!(file("${NOT_SET:-}"), None);
    assert_eq!(file("${NOT_SET:-null}"), None);
    assert_eq!(file("'${NOT_SET:-null}'"), Some("null".into()));
    assert_eq!(file("${NOT_SET:-a # b: [c]}"), Some("a # b: [c]".into()));
}

#[test]
fn a_value_of_the_environment_is_never_null() {
    assert_eq!(
        parse(&format!("log: {{file: ${{NULL}}}}\n{MINIMAL}")).log.file,
        Some("null".into())
    );
    assert!(
        parse(&format!("admin: {{token: ${{NULL}}}}\n{MINIMAL}"))
            .admin
            .token
            .is_some()
    );
}

#[test]
fn a_number_may_come_from_the_environment_but_not_in_quotes() {
    let lookup = |_: &str| Some("7".to_owned());
    assert_eq!(
        parse_with(&format!("server: {{threads: ${{N}}}}\n{MINIMAL}"), &lookup)
            .server
            .threads,
        7
    );
    assert!(
        Config::parse(
            &format!("server: {{threads: '${{N}}'}}\n{MINIMAL}"),
            "test.yaml",
            &lookup
        )
        .is_err()
    );
}

#[test]
fn references_in_comments_are_not_looked_up_and_can_be_escaped() {
    let text =
        format!("# ${{NOT_SET}} ${{\nlog: # ${{NOT_SET}}\n  file: '# $${{NOT_SET}} $$ $' # ${{\n{MINIMAL}");
    assert_eq!(parse(&text).log.file, Some("# ${NOT_SET} $$ $".into()));
}

fn any_value() -> impl Strategy<Value = String> {
    let yaml = "[-:#{}\\[\\],&*!|>'\"%@`\\\\ \t~$a0\\.\n]{1,12}";
    let words = [
        "null",
        "true",
        "~",
        "x: y",
        "x #y",
        "- x",
        "'",
        "\"",
        "\\n",
        "${HOST}",
        "$${",
        "}",
        "\u{F0000}",
    ];
    prop_oneof![
        any::<String>(),
        yaml,
        prop::sample::select(words.to_vec()).prop_map(str::to_owned)
    ]
}

proptest! {
    #[test]
    fn a_value_of_the_environment_comes_back_verbatim_or_is_refused(value in any_value()) {
        let lookup = |name: &str| (name == "V").then(|| value.clone());
        for (file, expected) in [
            ("log:\n  file: ${V}\n", value.clone()),
            ("log:\n  file: '${V}'\n", value.clone()),
            ("log:\n  file: \"${V}\"\n", value.clone()),
            ("log: {access: text, file: ${V}}\n", value.clone()),
            ("log:\n  file: >-\n    ${V}\n", value.clone()),
            ("log:\n  file: ${NOT_SET:-a}/${V}.${V}\n", format!("a/{value}.{value}")),
            ("log: {file: \"it's \\\"${V}\\\"\"}\n", format!("it's \"{value}\"")),
            ("log: {file: 'it''s \"${V}\"'}\n", format!("it's \"{value}\"")),
        ] {
            let refusable = value.chars().any(|c| {
                c.is_control() || c == '\u{FFFD}' || ('\u{F0000}'..='\u{FFFFD}').contains(&c)
            });
            match Config::parse(&format!("{file}{MINIMAL}"), "test.yaml", &lookup) {
                Ok(config) => {
                    prop_assert!(!refusable);
                    prop_assert_eq!(config.log.file.as_deref(), Some(Path::new(&expected)));
                    let access = if file.contains("text") { AccessLog::Text } else { AccessLog::Json };
                    prop_assert_eq!(config.log.access, access);
                    let rest = Config { log: parse(MINIMAL).log, ..config };
                    prop_assert_eq!(rest, parse(MINIMAL));
                }
                Err(error) => prop_assert!(refusable || expected.is_empty(), "{}", error),
            }
        }
    }

    #[test]
    fn what_is_written_is_read_back(
        ms in 1_u64..=24 * 3_600_000,
        bytes in 1024_usize..=1 << 30,
        ratio in 0.0..=1.0,
        file in "[ -~éß☃]{1,20}",
    ) {
        let mut config = parse(MINIMAL);
        config.timeouts.body = Duration::from_millis(ms);
        config.limits.body_bytes_max = bytes;
        config.retries.budget_ratio = ratio;
        config.log.file = Some(file.into());
        config.clusters[0].hash_header = Some(http::HeaderName::from_static("x-user-id"));
        prop_assert_eq!(parse(&config.to_yaml()), config);
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "([a-z{}\\[\\]:,&*!|>'\"#$ \n-]|clusters: |name: |\\$\\{|\n  - ){0,60}") {
        let _ = Config::parse(&text, "test.yaml", &environment);
    }
}

// --- Values ---------------------------------------------------------------------------------------------------------

#[test]
fn durations_and_sizes_take_their_units() {
    for (text, ms) in [
        ("1ms", 1),
        ("1500ms", 1500),
        ("2s", 2000),
        ("10m", 600_000),
        ("1h30m", 5_400_000),
    ] {
        let config = parse(&format!("timeouts: {{body: {text}}}\n{MINIMAL}"));
        assert_eq!(config.timeouts.body, Duration::from_millis(ms), "{text}");
    }
    for (text, bytes) in [
        ("2048", 2048),
        ("64KiB", 65_536),
        ("16 MiB", 16_777_216),
        ("1GiB", 1 << 30),
    ] {
        let config = parse(&format!("limits: {{body_bytes_max: {text}}}\n{MINIMAL}"));
        assert_eq!(config.limits.body_bytes_max, bytes, "{text}");
    }
}

#[test]
fn hosts_may_be_addresses_or_names() {
    for address in [
        "10.0.0.1:1",
        "[::1]:65535",
        "vllm-0:8000",
        "vllm_0.a.svc.cluster.local.:8000",
        "0x.example:80",
    ] {
        let config = parse(&MINIMAL.replace("127.0.0.1:8000", &format!("'{address}'")));
        assert_eq!(config.clusters[0].backends[0].address, address);
    }
    for address in [
        "", ":1", "a", "a:", "a:+1", "a:65536", "a b:1", "-a:1", "a..b:1", "1.2.3:1", "[::1:1", "é:1",
    ] {
        assert!(refusal(&MINIMAL.replace("127.0.0.1:8000", &format!("'{address}'"))).contains("host:port"));
    }
}

#[test]
fn port_zero_may_be_listened_on_twice() {
    let config = parse(&format!(
        "listeners: [{{address: 127.0.0.1:0}}, {{address: 127.0.0.1:0}}]\n{MINIMAL}"
    ));
    assert_eq!(config.listeners.len(), 2);
}

#[test]
fn null_turns_the_admin_listener_off() {
    assert_eq!(
        parse(&format!("admin: {{address: null}}\n{MINIMAL}"))
            .admin
            .address,
        None
    );
}

#[test]
fn a_section_without_content_holds_its_defaults() {
    assert_eq!(
        parse(&format!("server:\ntimeouts: {{}}\nlog: # nothing\n{MINIMAL}")),
        parse(MINIMAL)
    );
}

#[test]
fn anchors_and_aliases_repeat_a_section() {
    let config = parse(
        "clusters:
  - {name: a, health: &h {period: 1s}, backends: [{id: b, address: 'h:1'}]}
  - {name: c, health: *h, backends: [{id: b, address: 'h:1'}]}
routes: [{model: a, cluster: a}, {cluster: c}]",
    );
    assert_eq!(config.clusters[0].health, config.clusters[1].health);
    assert_eq!(config.clusters[1].health.period, Duration::from_secs(1));
}

#[test]
fn a_secret_is_exposed_only_on_request() {
    let text = format!("admin: {{token: sk-do-not-show}}\n{MINIMAL}");
    let config = parse(&text);
    assert_eq!(config.admin.token.as_ref().unwrap().expose(), "sk-do-not-show");
    assert!(!format!("{config:?}{config:#?}{}", config.to_yaml()).contains("do-not-show"));
    assert!(config.to_yaml().contains("token: '***'"));
}

// --- Routes ---------------------------------------------------------------------------------------------------------

#[test]
fn a_model_pattern_matches_names_globs_and_with_a_star_also_none() {
    let matches = |pattern: &str, model| ModelPattern::new(pattern).unwrap().matches(model);
    assert!(matches("*", None) && matches("*", Some("org/model")) && matches("*", Some("")));
    assert!(matches("org/model", Some("org/model")) && !matches("org/model", Some("org/model-2")));
    assert!(matches("*-instruct", Some("org/model-instruct")) && matches("org/*", Some("org/a/b")));
    assert!(!matches("**", None) && !matches("org/*", None) && !matches("org/*", Some("Org/a")));
    assert!(matches("{a,b}/?[0-9]", Some("b/x7")));
    assert!(ModelPattern::new("").is_none() && ModelPattern::new("[a").is_none());
}

#[test]
fn a_route_takes_whole_segments_of_a_path() {
    let routes = parse(&format!(
        "{MINIMAL}routes: [{{path: /v1, model: a*, cluster: llama}}, {{cluster: llama}}]"
    ))
    .routes;
    let first = |path, model| routes.iter().position(|route| route.takes(path, model));
    assert_eq!(first("/v1", Some("a")), Some(0));
    assert_eq!(first("/v1/models", Some("ab")), Some(0));
    assert_eq!(first("/v10", Some("a")), Some(1));
    assert_eq!(first("/v1/models", None), Some(1));
    assert_eq!(first("/", Some("b")), Some(1));
}

#[test]
fn a_route_may_follow_one_that_takes_only_some_of_its_requests() {
    let routes =
        "[{model: 'a*', cluster: llama}, {path: /v1, model: '*b', cluster: llama}, {cluster: llama}]";
    assert_eq!(parse(&format!("{MINIMAL}routes: {routes}")).routes.len(), 3);
}

#[test]
fn without_routes_everything_goes_to_the_only_cluster() {
    let routes = parse(MINIMAL).routes;
    assert_eq!(routes.len(), 1);
    assert!(routes[0].takes("/anything", None) && routes[0].cluster == "llama");
}
