//! Files that cannot be read, and values from the environment.

use std::path::Path;

use kvway::config::{AccessLog, Config};
use proptest::prelude::*;

use super::{MINIMAL, in_tree, parse, parse_with};

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kvway.yaml");
    let said = || Config::load(&path).unwrap_err().to_string().replace(path.to_str().unwrap(), "kvway.yaml");
    assert_eq!(said(), "kvway.yaml: cannot be read: No such file or directory (os error 2)");
    std::fs::write(&path, b"\xff").unwrap();
    assert_eq!(said(), "kvway.yaml: cannot be read: stream did not contain valid UTF-8");
    std::fs::write(&path, " ".repeat((1 << 20) + 1)).unwrap();
    assert_eq!(said(), "kvway.yaml: is 1048577 bytes long; a configuration has at most 1048576");
    assert!(Config::load(folder.path()).is_err());
}

#[test]
fn load_reads_the_environment_of_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kvway.yaml");
    // cargo sets this variable for tests.
    std::fs::write(&path, format!("log: {{file: '${{CARGO_MANIFEST_DIR}}/access.log'}}\n{MINIMAL}")).unwrap();
    assert_eq!(Config::load(&path).unwrap().log.file, Some(in_tree("access.log")));
}

#[test]
fn a_default_stands_in_for_a_variable_that_is_unset_or_empty() {
    let threads = |text: &str| parse(&format!("server: {{threads: {text}}}\n{MINIMAL}")).server.threads;
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
    assert_eq!(parse(&format!("log: {{file: ${{NULL}}}}\n{MINIMAL}")).log.file, Some("null".into()));
    assert!(parse(&format!("admin: {{token: ${{NULL}}}}\n{MINIMAL}")).admin.token.is_some());
}

#[test]
fn a_number_may_come_from_the_environment_but_not_in_quotes() {
    let lookup = |_: &str| Some("7".to_owned());
    assert_eq!(parse_with(&format!("server: {{threads: ${{N}}}}\n{MINIMAL}"), &lookup).server.threads, 7);
    assert!(
        Config::parse(&format!("server: {{threads: '${{N}}'}}\n{MINIMAL}"), "test.yaml", &lookup).is_err()
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
    let words =
        ["null", "true", "~", "x: y", "x #y", "- x", "'", "\"", "\\n", "${HOST}", "$${", "}", "\u{F0000}"];
    prop_oneof![any::<String>(), yaml, prop::sample::select(words.to_vec()).prop_map(str::to_owned)]
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
}
