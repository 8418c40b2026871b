//! YAML text → a tree that knows the line of everything, because every message names one.
//!
//! Called by [`Config::parse`](super::Config::parse). Bounded in depth and in nodes (aliases are copied, so a small
//! file could otherwise grow without limit). Types are not decided here: a scalar keeps its text and whether it was
//! written plain or in quotes.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

use super::error::Fault;

const DEPTH_MAX: usize = 32;
const NODES_MAX: usize = 100_000;
const SHOWN_CHARS_MAX: usize = 60;

/// A value of the file and the line where it begins; behind a key, the line of the key.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) line: usize,
    pub(super) data: Data,
}

#[derive(Clone, Debug)]
pub(super) enum Data {
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

#[derive(Clone, Debug)]
pub(super) struct Key {
    pub(super) line: usize,
    pub(super) text: String,
}

#[derive(Clone, Debug)]
pub(super) struct Scalar {
    /// What it means, with references to the environment replaced.
    pub(super) text: String,
    /// What the file says, with references as they were written.
    pub(super) written: String,
    /// Written without quotes: may be a number, a truth value or null.
    pub(super) plain: bool,
    /// Holds a value of the environment, which is never null and never shown.
    pub(super) from_environment: bool,
}

impl Scalar {
    /// `null`, `~` or nothing at all, as the file says it: an environment variable cannot unset a key.
    pub(super) fn is_null(&self) -> bool {
        self.plain
            && !self.from_environment
            && matches!(self.text.as_str(), "" | "~" | "null" | "Null" | "NULL")
    }
}

impl Node {
    /// The value as a message shows it: as written, on one line and not too long.
    pub(super) fn shown(&self) -> String {
        match &self.data {
            Data::Scalar(scalar) if scalar.is_null() => "null".to_owned(),
            Data::Scalar(scalar) => {
                let mut chars = scalar.written.chars();
                let mut shown: String = chars.by_ref().take(SHOWN_CHARS_MAX).collect();
                if chars.next().is_some() {
                    shown.push('…');
                }
                if scalar.plain {
                    shown.replace(char::is_control, " ")
                } else if shown.parse::<f64>().is_ok() || matches!(shown.as_str(), "true" | "false") {
                    format!("the text {shown:?}")
                } else {
                    format!("{shown:?}")
                }
            }
            Data::List(_) => "a list".to_owned(),
            Data::Map(_) => "a mapping".to_owned(),
        }
    }

    fn nodes(&self) -> usize {
        1 + match &self.data {
            Data::Scalar(_) => 0,
            Data::List(items) => items.iter().map(Node::nodes).sum(),
            Data::Map(entries) => entries.iter().map(|(_, node)| node.nodes()).sum(),
        }
    }
}

/// Reads one document.
pub(super) fn parse(text: &str) -> Result<Node, Fault> {
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let (event, span) =
            event.map_err(|e| Fault::new(format!("not valid YAML: {}", e.info())).at(e.marker().line()))?;
        builder.take(event, span).map_err(|fault| fault.at(span.start.line()))?;
    }
    builder.root.ok_or_else(|| Fault::new("the file is empty; at least the key clusters is needed").at(1))
}

#[derive(Default)]
struct Builder {
    root: Option<Node>,
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
}

/// A list or mapping whose end has not come yet.
struct Open {
    anchor: usize,
    line: usize,
    inside: Inside,
}

enum Inside {
    List(Vec<Node>),
    Map(Vec<(Key, Node)>, Option<Key>),
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Fault> {
        let line = span.start.line();
        self.count(1)?;
        match event {
            Event::Scalar(_, _, _, Some(_))
            | Event::SequenceStart(_, Some(_))
            | Event::MappingStart(_, Some(_)) => {
                Err(Fault::new("YAML tags (words that begin with !) have no meaning here"))
            }
            Event::Scalar(text, style, anchor, None) => {
                let text = text.into_owned();
                let plain = style == ScalarStyle::Plain;
                let scalar = Scalar { written: text.clone(), text, plain, from_environment: false };
                self.close(anchor, Node { line, data: Data::Scalar(scalar) })
            }
            Event::SequenceStart(anchor, None) => self.open(anchor, line, Inside::List(Vec::new())),
            Event::MappingStart(anchor, None) => self.open(anchor, line, Inside::Map(Vec::new(), None)),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open { anchor, line, inside: Inside::List(items) }) => {
                    self.close(anchor, Node { line, data: Data::List(items) })
                }
                Some(Open { anchor, line, inside: Inside::Map(entries, _) }) => {
                    self.close(anchor, Node { line, data: Data::Map(entries) })
                }
                None => Ok(()),
            },
            Event::Alias(anchor) => {
                let mut node = self.anchors.get(&anchor).cloned().ok_or_else(|| {
                    Fault::new("an alias (a word that begins with *) must not stand inside of what it names")
                })?;
                node.line = line;
                self.count(node.nodes())?;
                self.close(0, node)
            }
            Event::DocumentStart(_) if self.root.is_some() => {
                Err(Fault::new("a second YAML document begins here; a configuration is one document"))
            }
            Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::StreamStart
            | Event::StreamEnd
            | Event::Nothing => Ok(()),
        }
    }

    fn count(&mut self, nodes: usize) -> Result<(), Fault> {
        self.nodes += nodes;
        if self.nodes > NODES_MAX {
            return Err(Fault::new(format!("more than {NODES_MAX} values, aliases counted in full")));
        }
        Ok(())
    }

    fn open(&mut self, anchor: usize, line: usize, inside: Inside) -> Result<(), Fault> {
        if self.open.len() == DEPTH_MAX {
            return Err(Fault::new(format!("nested more than {DEPTH_MAX} levels deep")));
        }
        self.open.push(Open { anchor, line, inside });
        Ok(())
    }

    /// Puts a finished node where it belongs.
    fn close(&mut self, anchor: usize, mut node: Node) -> Result<(), Fault> {
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut().map(|open| &mut open.inside) {
            None => self.root = Some(node),
            Some(Inside::List(items)) => items.push(node),
            Some(Inside::Map(entries, pending)) => match pending.take() {
                Some(key) => {
                    node.line = key.line;
                    entries.push((key, node));
                }
                None => match node.data {
                    Data::Scalar(scalar) => {
                        *pending = Some(Key { line: node.line, text: scalar.text });
                    }
                    _ => return Err(Fault::new(format!("{} cannot be a key", node.shown()))),
                },
            },
        }
        Ok(())
    }
}
