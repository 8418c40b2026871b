//! The rules of the house that a compiler does not know: which room may name which, how long a file may be.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const LINES_MAX: usize = 500;

/// What each room may name of the crate. Rooms that all may name: `config`, `metrics`.
const ARROWS: &[(&str, &[&str])] = &[
    ("config", &[]),
    ("metrics", &[]),
    ("state", &[]),
    ("clients", &[]),
    ("access_log", &[]),
    ("log", &[]),
    ("arguments", &[]),
    ("healthcheck", &[]),
    ("shutdown", &["state"]),
    ("admin", &["state"]),
    ("background", &["state", "clients"]),
    ("proxy", &["state", "access_log", "clients"]),
    ("app", &["proxy", "background", "clients", "admin", "state", "access_log", "shutdown"]),
    ("compare", &["arguments"]),
    ("doctor", &["arguments", "clients"]),
    ("replay", &["arguments", "proxy", "state"]),
    ("demo", &["app", "arguments", "compare", "log"]),
];

/// Names that say nothing about what is behind them.
const EMPTY_NAMES: &[&str] = &["utils", "util", "common", "helpers", "manager", "handler", "types", "misc"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &Path, found: &mut BTreeMap<PathBuf, String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            found.insert(path.strip_prefix(root()).unwrap().to_owned(), text);
        }
    }
}

fn all() -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    sources(&root(), &mut found);
    assert!(found.len() > 40, "the tree was not found");
    found
}

/// The room of a file below `src`, without its unit tests.
fn room(path: &Path) -> Option<String> {
    let inside = path.strip_prefix("src").ok()?;
    let first = inside.components().next()?.as_os_str().to_str()?;
    let room = first.trim_end_matches(".rs");
    (!matches!(room, "lib" | "main")).then(|| room.to_owned())
}

#[test]
fn rooms_name_only_the_rooms_below_them() {
    for (path, text) in all() {
        let Some(room) = room(&path) else { continue };
        let (_, allowed) =
            ARROWS.iter().find(|(name, _)| *name == room).unwrap_or_else(|| panic!("{room} has no arrows"));
        let code = text.split("#[cfg(test)]").next().unwrap();
        for named in code.split("crate::").skip(1) {
            let named = named.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap();
            let fine = named == room || ["config", "metrics"].contains(&named) || allowed.contains(&named);
            assert!(fine || named.is_empty(), "{}: {room} may not name {named}", path.display());
        }
    }
}

#[test]
fn only_the_awaited_lookup_calls_others_on_the_request_path() {
    for (path, text) in all() {
        let awaited = path.ends_with("proxy/hint.rs") || !path.starts_with("src/proxy");
        assert!(awaited || !text.contains("crate::clients"), "{}", path.display());
    }
}

#[test]
fn only_the_demo_names_the_mocks_and_the_mocks_name_nobody() {
    for (path, text) in all() {
        let in_product = path.starts_with("src") && !path.ends_with("demo.rs");
        assert!(!in_product || !text.contains("mocks::"), "{}", path.display());
        assert!(!path.starts_with("mocks") || !text.contains("kvway::"), "{}", path.display());
    }
}

#[test]
fn files_are_rooms_and_not_halls() {
    for (path, text) in all() {
        assert!(text.lines().count() <= LINES_MAX, "{}: more than {LINES_MAX} lines", path.display());
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(!EMPTY_NAMES.contains(&name), "{}: the name says nothing", path.display());
        assert!(text.starts_with("//!"), "{}: no head that says what it is", path.display());
    }
}

#[test]
fn the_map_names_every_file_of_the_product() {
    let map = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    for path in all().keys().filter(|path| path.starts_with("src")) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let name = if name == "mod.rs" {
            path.parent().unwrap().file_name().unwrap().to_str().unwrap()
        } else {
            name
        };
        assert!(map.contains(name), "ARCHITECTURE.md does not name {}", path.display());
    }
}
