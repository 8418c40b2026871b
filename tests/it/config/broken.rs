//! What is said about a file that is refused. The files and their messages are in `tests/data/broken`.

use kvway::config::Config;

use super::{MINIMAL, assert_refused, environment, refusal, yaml_files};

#[test]
fn every_broken_file_is_told_what_is_wrong_in_one_line() {
    let files = yaml_files("tests/data/broken");
    assert!(files.len() >= 100, "only {} broken files were found", files.len());
    assert_refused(files, |text, file| Config::parse(text, file, &environment).map(drop));
}

#[test]
fn no_message_shows_a_secret_or_a_value_of_the_environment_or_breaks_the_line() {
    for path in yaml_files("tests/data/broken") {
        let text = std::fs::read_to_string(&path).unwrap();
        let said = Config::parse(&text, "test.yaml", &environment).unwrap_err().to_string();
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
    let said = refusal(&format!("clusters: [{{name: a, backends: [{}]}}]", backends.join(", ")));
    assert_eq!(said, "test.yaml:1: clusters[0].backends: 1025 entries are not allowed (1 to 1024)");
    let routes: Vec<_> = (1..=1025).map(|n| format!("{{model: m{n}, cluster: llama}}")).collect();
    let said = refusal(&format!("{MINIMAL}routes: [{}]", routes.join(", ")));
    assert_eq!(said, "test.yaml:2: routes: 1025 entries are not allowed (1 to 1024)");
}
