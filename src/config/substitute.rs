//! `${NAME}` and `${NAME:-default}` → the value of an environment variable; `$${` → a literal `${`.
//!
//! The file is read in two steps, so that a value can never become structure: [`References::take`] puts one inert
//! private-use character in place of each reference, the YAML parser then decides what is a comment, a key or a value
//! (plain or quoted, inside `{ }` or not), and [`References::fill`] puts the values into the scalars of the finished
//! tree. A value is therefore always all of one scalar's text or a part of it, exactly as the environment has it. What
//! stands in a comment is never looked up. A value in a plain scalar may be a number or a truth value, but never null.
//!
//! As in a shell, `:-` gives the default when the variable is unset or empty. A default reaches to the first `}` on
//! its line and is taken as it stands.

use super::error::Fault;
use super::tree::{Data, Node, Scalar};

/// First stand-in; the n-th reference of the file becomes the n-th character from here.
const FIRST: char = '\u{F0000}';
const REFERENCES_MAX: usize = 0xFFFE;

/// The references of a file, in order.
pub(super) struct References(Vec<Reference>);

struct Reference {
    line: usize,
    written: String,
    kind: Kind,
}

enum Kind {
    Variable { name: String, default: Option<String> },
    Escape,
}

impl References {
    /// Puts stand-ins into the text.
    pub(super) fn take(text: &str) -> Result<(String, Self), Fault> {
        let mut references = Vec::new();
        let mut out = String::with_capacity(text.len());
        for (n, line) in text.split_inclusive('\n').enumerate() {
            let mut rest = line;
            while let Some(c) = rest.chars().next() {
                if stands_in(c) {
                    let message = format!("the character U+{:X} is not allowed", u32::from(c));
                    return Err(Fault::new(message).at(n + 1));
                }
                if let Some((written, after, kind)) = reference(rest) {
                    out.push(stand_in(references.len()).ok_or_else(|| {
                        Fault::new(format!("more than {REFERENCES_MAX} references")).at(n + 1)
                    })?);
                    references.push(Reference { line: n + 1, written: written.to_owned(), kind });
                    rest = after;
                } else {
                    out.push(c);
                    rest = rest.get(c.len_utf8()..).unwrap_or_default();
                }
            }
        }
        Ok((out, Self(references)))
    }

    /// Puts values in place of the stand-ins.
    pub(super) fn fill(&self, node: &mut Node, lookup: &dyn Fn(&str) -> Option<String>) -> Result<(), Fault> {
        match &mut node.data {
            Data::Scalar(scalar) => self.fill_scalar(scalar, lookup).map_err(|fault| fault.at(node.line)),
            Data::List(items) => items
                .iter_mut()
                .enumerate()
                .try_for_each(|(n, item)| self.fill(item, lookup).map_err(|fault| fault.under_index(n))),
            Data::Map(entries) => entries.iter_mut().try_for_each(|(key, value)| {
                if key.text.contains(stands_in) || key.text.contains("${") {
                    return Err(Fault::new("a key cannot hold a reference such as ${NAME}").at(key.line));
                }
                self.fill(value, lookup).map_err(|fault| fault.under_key(&key.text))
            }),
        }
    }

    fn fill_scalar(&self, scalar: &mut Scalar, lookup: &dyn Fn(&str) -> Option<String>) -> Result<(), Fault> {
        if scalar.text.contains("${") {
            return Err(Fault::new(
                "${ begins a reference, ${NAME} or ${NAME:-default}; for the characters write $${",
            ));
        }
        let (mut text, mut written) = (String::new(), String::new());
        for c in scalar.text.chars() {
            let Some(reference) = index(c).and_then(|n| self.0.get(n)) else {
                text.push(c);
                written.push(c);
                continue;
            };
            written.push_str(&reference.written);
            match &reference.kind {
                Kind::Escape => text.push_str("${"),
                Kind::Variable { name, default } => {
                    let (value, from_environment) =
                        value(name, default.as_deref(), lookup).map_err(|fault| fault.at(reference.line))?;
                    text.push_str(&value);
                    scalar.from_environment |= from_environment;
                }
            }
        }
        (scalar.text, scalar.written) = (text, written);
        Ok(())
    }
}

/// The value of a variable, and whether it is from the environment rather than the default.
fn value(
    name: &str,
    default: Option<&str>,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<(String, bool), Fault> {
    match (lookup(name), default) {
        (Some(value), default) if default.is_none() || !value.is_empty() => {
            if value.chars().any(|c| c.is_control() || c == char::REPLACEMENT_CHARACTER || stands_in(c)) {
                return Err(Fault::new(format!(
                    "the environment variable {name} holds a line break, another control character or bytes that are not UTF-8"
                )));
            }
            Ok((value, true))
        }
        (_, Some(default)) => Ok((default.to_owned(), false)),
        _ => Err(Fault::new(format!(
            "the environment variable {name} is not set; set it, or give a default: ${{{name}:-…}}"
        ))),
    }
}

/// The reference that `text` begins with, if any: as written, what follows it, and its parts.
fn reference(text: &str) -> Option<(&str, &str, Kind)> {
    if let Some(after) = text.strip_prefix("$${") {
        return Some(("$${", after, Kind::Escape));
    }
    let (inside, after) = text.strip_prefix("${")?.split_once('}')?;
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default.to_owned())),
        None => (inside, None),
    };
    let named = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && name.chars().next().is_some_and(|c| !c.is_ascii_digit());
    let written = text.get(..text.len() - after.len())?;
    (named && !written.contains(stands_in))
        .then(|| (written, after, Kind::Variable { name: name.to_owned(), default }))
}

fn stand_in(n: usize) -> Option<char> {
    let n = u32::try_from(n).ok().filter(|_| n < REFERENCES_MAX)?;
    char::from_u32(u32::from(FIRST) + n)
}

fn index(c: char) -> Option<usize> {
    let n = usize::try_from(u32::from(c).checked_sub(u32::from(FIRST))?).ok()?;
    (n < REFERENCES_MAX).then_some(n)
}

fn stands_in(c: char) -> bool {
    index(c).is_some()
}
