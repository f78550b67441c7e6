//! A value of a file and where it stands, before any field says what it should be.
//!
//! Absent on purpose: what a plain scalar "is". YAML's versions disagree whether `on` is a text
//! or a boolean and `010` ten or eight; here it is what was typed, and each field decides.

use std::fmt;

use super::diagnostic::Span;

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) span: Span,
    pub(super) value: Value,
}

/// What a value is, before any field says what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// A text as written, escapes and folding done.
    Scalar { text: String, quoting: Quoting },
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the order written; keys are unique.
    Mapping(Vec<Entry>),
}

/// A key of a mapping and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_span: Span,
    pub(super) node: Node,
}

/// Whether a scalar was written so that it can be nothing but text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quoting {
    /// `abc`: may also be a number, a boolean or nothing.
    Plain,
    /// In quotes, as a block, or tagged `!!str`.
    Text,
}

/// What a value looks like, for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Nothing,
    Boolean,
    Number,
    Text,
    List,
    Mapping,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "nothing",
            Self::Boolean => "a boolean",
            Self::Number => "a number",
            Self::Text => "a text",
            Self::List => "a list",
            Self::Mapping => "a mapping",
        })
    }
}

impl Node {
    pub(super) fn kind(&self) -> Kind {
        match &self.value {
            Value::List(_) => Kind::List,
            Value::Mapping(_) => Kind::Mapping,
            Value::Scalar {
                quoting: Quoting::Text,
                ..
            } => Kind::Text,
            Value::Scalar {
                text,
                quoting: Quoting::Plain,
            } => match text.as_str() {
                "" | "~" | "null" | "Null" | "NULL" => Kind::Nothing,
                text if boolean(text).is_some() => Kind::Boolean,
                text if text.parse::<f64>().is_ok() && !text.starts_with(char::is_alphabetic) => {
                    Kind::Number
                }
                _ => Kind::Text,
            },
        }
    }

    /// The keys and values of a mapping; none of anything else.
    pub(super) fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Mapping(entries) => entries,
            Value::Scalar { .. } | Value::List(_) => &[],
        }
    }

    /// Where what is missing in a mapping is shown: at its first key.
    pub(super) fn head(&self) -> Span {
        self.entries()
            .first()
            .map_or(self.span, |entry| entry.key_span)
    }

    /// How many values this is, itself included.
    pub(super) fn count(&self) -> usize {
        match &self.value {
            Value::Scalar { .. } => 1,
            Value::List(items) => 1 + items.iter().map(Self::count).sum::<usize>(),
            Value::Mapping(entries) => 1 + entries.iter().map(|e| e.node.count()).sum::<usize>(),
        }
    }

    /// How many bytes of text this holds.
    pub(super) fn text_len(&self) -> usize {
        match &self.value {
            Value::Scalar { text, .. } => text.len(),
            Value::List(items) => items.iter().map(Self::text_len).sum(),
            Value::Mapping(entries) => entries
                .iter()
                .map(|e| e.key.len() + e.node.text_len())
                .sum(),
        }
    }

    /// How many collections lie in one another here, itself included.
    pub(super) fn depth(&self) -> usize {
        match &self.value {
            Value::Scalar { .. } => 0,
            Value::List(items) => 1 + items.iter().map(Self::depth).max().unwrap_or(0),
            Value::Mapping(entries) => {
                1 + entries.iter().map(|e| e.node.depth()).max().unwrap_or(0)
            }
        }
    }
}

/// What YAML 1.1 and 1.2 together take for a boolean.
///
/// Not `y` and `n`, which YAML 1.1 names too but hardly a parser ever took for one.
fn boolean(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => Some(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => Some(false),
        _ => None,
    }
}

/// The boolean that a plain scalar is.
pub(super) fn plain_boolean(node: &Node) -> Option<bool> {
    match &node.value {
        Value::Scalar {
            text,
            quoting: Quoting::Plain,
        } => boolean(text),
        Value::Scalar {
            quoting: Quoting::Text,
            ..
        }
        | Value::List(_)
        | Value::Mapping(_) => None,
    }
}
