//! Why a configuration is refused: one line that names the file, the line, the key and what is allowed instead.
//!
//! [`Fault`] travels inside the room and gathers its place on the way up; [`ConfigError`] is what leaves it. Neither
//! ever holds the value of an environment variable or of a secret.

use std::fmt;

/// Why a configuration file is refused. Its `Display` is one line: `kvway.yaml:12: clusters[0].name: …`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// The file, as it was named by the caller.
    pub file: String,
    /// The line, counted from 1; `None` if the file could not be read at all.
    pub line: Option<usize>,
    /// The path of the key, such as `clusters[0].backends[1].weight`; empty for the file as a whole.
    pub key: String,
    /// What is wrong and what is allowed.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// A problem on its way up, before the file is named.
#[derive(Debug)]
pub(super) struct Fault {
    line: Option<usize>,
    key: String,
    what: What,
}

#[derive(Debug)]
enum What {
    /// A complete message.
    Message(String),
    /// The value is refused, and this is allowed; the value is put in front by whoever knows how it was written.
    Refused { allowed: String },
}

impl Fault {
    /// A problem whose message is complete.
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { line: None, key: String::new(), what: What::Message(message.into()) }
    }

    /// A value that is not among what is allowed.
    pub(super) fn refused(allowed: impl Into<String>) -> Self {
        Self { line: None, key: String::new(), what: What::Refused { allowed: allowed.into() } }
    }

    /// Sets the line, unless a more precise one is known.
    pub(super) fn at(mut self, line: usize) -> Self {
        self.line.get_or_insert(line);
        self
    }

    /// Names the refused value, as it was written, unless that was done deeper in the file.
    pub(super) fn about(mut self, value: &str) -> Self {
        if let What::Refused { allowed } = self.what {
            self.what = What::Message(format!("{value} is not allowed ({allowed})"));
        }
        self
    }

    /// Puts a key of the file in front of the path.
    pub(super) fn under_key(self, key: &str) -> Self {
        self.under_path(&key_shown(key))
    }

    /// Puts a list index in front of the path.
    pub(super) fn under_index(self, index: usize) -> Self {
        self.under_path(&format!("[{index}]"))
    }

    /// Puts the path of a known key in front of the path.
    pub(super) fn under_path(mut self, parent: &str) -> Self {
        self.key = join(parent, &self.key);
        self
    }

    /// Names the file, which makes the fault complete.
    pub(super) fn into_error(self, file: &str) -> ConfigError {
        let message = match self.what {
            What::Message(message) => message,
            What::Refused { allowed } => format!("the value is not allowed ({allowed})"),
        };
        ConfigError { file: file.to_owned(), line: self.line, key: self.key, message }
    }
}

/// `clusters` + `[0]` is `clusters[0]`, `clusters[0]` + `name` is `clusters[0].name`.
pub(super) fn join(parent: &str, child: &str) -> String {
    let dot = if parent.is_empty() || child.is_empty() || child.starts_with('[') { "" } else { "." };
    format!("{parent}{dot}{child}")
}

/// Shows a key without what follows a colon in it: with a forgotten space that may be a secret.
pub(super) fn key_shown(key: &str) -> String {
    let word = |c: &char| c.is_ascii_alphanumeric() || "_-.$<>".contains(*c);
    let shown: String = key.chars().take_while(word).take(40).collect();
    if shown.len() == key.len() { shown } else { format!("{shown}…") }
}
