//! The tree of a kvway file, made rather than read: every value has the line of the Pixiu file that it came from.

use crate::config::tree::{Data, Key, Node, Scalar};

/// A mapping that is being made.
#[derive(Clone, Debug)]
pub(super) struct Map {
    line: usize,
    entries: Vec<(Key, Node)>,
}

impl Map {
    /// An empty mapping that came from this line.
    pub(super) fn at(line: usize) -> Self {
        Self { line, entries: Vec::new() }
    }

    pub(super) fn set(&mut self, key: &str, value: impl Into<Node>) {
        let value = value.into();
        self.entries.push((Key { line: value.line, text: key.to_owned() }, value));
    }

    pub(super) fn with(mut self, key: &str, value: impl Into<Node>) -> Self {
        self.set(key, value);
        self
    }

    /// The line that it came from.
    pub(super) fn line(&self) -> usize {
        self.line
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl From<Map> for Node {
    fn from(map: Map) -> Self {
        Self { line: map.line, data: Data::Map(map.entries) }
    }
}

pub(super) fn list(line: usize, items: impl IntoIterator<Item = impl Into<Node>>) -> Node {
    Node { line, data: Data::List(items.into_iter().map(Into::into).collect()) }
}

/// A value that this room writes: a number, a truth value, null or a plain word.
pub(super) fn scalar(line: usize, text: impl Into<String>) -> Node {
    let text = text.into();
    let data = Scalar { written: text.clone(), text, plain: true, from_environment: false };
    Node { line, data: Data::Scalar(data) }
}

/// A text of the file, perhaps changed, which is never null or a number.
pub(super) fn text(line: usize, text: impl Into<String>, written: impl Into<String>) -> Node {
    let data = Scalar { text: text.into(), written: written.into(), plain: false, from_environment: false };
    Node { line, data: Data::Scalar(data) }
}
