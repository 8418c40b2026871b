//! A place in the file, found by its key path, for messages about values that have long been read.
//!
//! Used by `check`, `pem` and `pixiu`. It always has a line: that of the nearest parent if the file leaves a key to its default.

use super::error::{Fault, join, key_shown};
use super::tree::{Data, Node};

/// A place in the file: the path of a key, and the node there if the file has one.
#[derive(Clone, Debug)]
pub(super) struct Spot<'a> {
    node: Option<&'a Node>,
    line: usize,
    key: String,
}

impl<'a> Spot<'a> {
    pub(super) fn root(node: &'a Node) -> Self {
        Self { node: Some(node), line: node.line, key: String::new() }
    }

    pub(super) fn key(&self, key: &str) -> Self {
        let node = self.node.and_then(|node| match &node.data {
            Data::Map(entries) => entries.iter().find(|(k, _)| k.text == key).map(|(_, node)| node),
            _ => None,
        });
        self.step(node, &key_shown(key))
    }

    pub(super) fn index(&self, index: usize) -> Self {
        let node = self.node.and_then(|node| match &node.data {
            Data::List(items) => items.get(index),
            _ => None,
        });
        self.step(node, &format!("[{index}]"))
    }

    /// What the file has here, if anything.
    pub(super) fn data(&self) -> Option<&'a Data> {
        self.node.map(|node| &node.data)
    }

    /// The path of its key.
    pub(super) fn path(&self) -> &str {
        &self.key
    }

    /// Whether the file says something here, rather than leaving it to the default.
    pub(super) fn is_written(&self) -> bool {
        self.node.is_some()
    }

    /// The line of this place; of the nearest parent if the file leaves it to the default.
    pub(super) fn line(&self) -> usize {
        self.line
    }

    /// This place in words, for messages about another one.
    pub(super) fn named(&self) -> String {
        match self.node {
            Some(_) => format!("{} on line {}", self.key, self.line),
            None => format!("the default of {}", self.key),
        }
    }

    /// The last key of its path.
    pub(super) fn name(&self) -> &str {
        self.key.rsplit('.').next().unwrap_or_default()
    }

    /// The value as written; nothing if the file leaves it to the default.
    pub(super) fn shown(&self) -> String {
        self.shown_or("")
    }

    /// The value as written, or the default that the file leaves it to.
    pub(super) fn shown_or(&self, default: &str) -> String {
        self.node.map_or_else(|| default.to_owned(), Node::shown)
    }

    pub(super) fn fault(&self, message: impl Into<String>) -> Fault {
        Fault::new(message).at(self.line).under_path(&self.key)
    }

    fn step(&self, node: Option<&'a Node>, child: &str) -> Self {
        Self { node, line: node.map_or(self.line, |node| node.line), key: join(&self.key, child) }
    }
}
