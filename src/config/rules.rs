//! What the rules of both files are made of: tables of keys, and the faults that were found.
//!
//! A mapping is checked against a table of [`Rule`]s, one function a key. A check returns `None`
//! when it told a fault, and the next one is made all the same, so that all faults of a file are
//! found at once. To add a field: one line in a table, one function.
//!
//! An empty collection (`hooks:` with nothing after it) is a collection with nothing in it; an
//! empty scalar is a fault, because a line that lost its value must not quietly mean a default.
//!
//! Absent on purpose: the meaning of any one field (`child`, `restart`, `server`), and checks of
//! single values (`values`).

use std::path::Path;

use super::{
    diagnostic::{Diagnostic, Place, Source, Span},
    fault::Fault,
    node::{Entry, Kind, Node, Value},
    suggest::nearest,
    tree::{self, FAULTS_MAX},
};

/// Keys that begin so are the user's own.
const OWN_KEY_PREFIX: &str = "x-";

/// What YAML 1.1 takes for "what stands there, stands here too".
const MERGE_KEY: &str = "<<";

/// A file that is being checked, and what was found so far.
#[derive(Debug)]
pub(super) struct Checker<'a> {
    source: Source<'a>,
    faults: Vec<(Span, Fault)>,
    /// How many faults came after the first [`FAULTS_MAX`].
    untold: usize,
}

/// A value at its place: what a rule is given.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field<'n> {
    /// As messages call it: `seconds` of `repeat` is `repeat.seconds`.
    pub(super) name: &'static str,
    /// Where its key stands; in a list, the entry itself.
    at: Span,
    pub(super) node: &'n Node,
}

/// One key of a mapping and what is done with its value.
pub(super) struct Rule<D> {
    /// The key as messages call it: `seconds` of `repeat` is `repeat.seconds`.
    name: &'static str,
    /// Checks the value and puts it into the draft.
    check: Check<D>,
}

impl<D> Rule<D> {
    /// The key.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }
}

/// Checks a value and puts it into a draft.
type Check<D> = fn(&mut Checker<'_>, Field<'_>, &mut D);

/// The rule for one key.
pub(super) const fn rule<D>(name: &'static str, check: Check<D>) -> Rule<D> {
    Rule { name, check }
}

impl<D> Rule<D> {
    /// The key as it stands in the file.
    pub(super) fn key(&self) -> &'static str {
        self.name.rsplit('.').next().unwrap_or(self.name)
    }
}

/// A mapping's place in the whole, for messages about its keys.
pub(super) struct Shape<'k> {
    /// The field it belongs to; `None` at the root.
    pub(super) inside: Option<&'static str>,
    /// Keys that stand elsewhere, and where: shown to those who write them here.
    pub(super) elsewhere: &'k [(&'k [&'static str], &'static str)],
}

impl Shape<'static> {
    /// A mapping that is the value of a field.
    pub(super) const fn of(field: &'static str) -> Self {
        Self {
            inside: Some(field),
            elsewhere: &[],
        }
    }
}

impl<'n> Field<'n> {
    /// Where a fault of the value is shown: at the value, or at the key when there is none.
    pub(super) fn span(&self) -> Span {
        if self.node.span.start < self.node.span.end {
            self.node.span
        } else {
            self.at
        }
    }

    /// Where the key stands.
    pub(super) fn key_span(&self) -> Span {
        self.at
    }

    /// Where a fault of a mapping as a whole is shown: at its first key.
    pub(super) fn head(&self) -> Span {
        self.node
            .entries()
            .first()
            .map_or(self.span(), |entry| entry.key_span)
    }

    pub(super) fn is_nothing(&self) -> bool {
        self.node.kind() == Kind::Nothing
    }

    /// Whether it is `""`.
    pub(super) fn is_empty_text(&self) -> bool {
        matches!(&self.node.value, Value::Scalar { text, .. } if text.is_empty())
    }

    /// Where one of the value's own keys stands.
    pub(super) fn span_of(&self, key: &str) -> Option<Span> {
        let entry = self.node.entries().iter().find(|entry| entry.key == key);
        entry.map(|entry| entry.key_span)
    }

    /// The value of one key of a mapping of names, called as the mapping.
    pub(super) fn entry(self, entry: &'n Entry) -> Self {
        Self {
            name: self.name,
            at: entry.key_span,
            node: &entry.node,
        }
    }

    /// The entry of a list, called as the list.
    pub(super) fn item(self, node: &'n Node) -> Self {
        Self {
            name: self.name,
            at: node.span,
            node,
        }
    }
}

impl<'a> Checker<'a> {
    pub(super) fn new(source: Source<'a>) -> Self {
        Self {
            source,
            faults: Vec::new(),
            untold: 0,
        }
    }

    /// The folder the file stands in, as given: relative paths begin here.
    pub(super) fn folder(&self) -> &'a Path {
        self.source.path.parent().unwrap_or(Path::new("/"))
    }

    pub(super) fn fault(&mut self, span: Span, fault: impl Into<Fault>) {
        if self.faults.len() < FAULTS_MAX {
            self.faults.push((span, fault.into()));
        } else {
            self.untold += 1;
        }
    }

    /// The place of a byte of a value's text, if the text stands in the file as it is.
    pub(super) fn place_within(&self, field: Field<'_>, text: &str, byte: usize) -> Option<Span> {
        let span = field.span();
        let written = self.source.text.get(span.start..span.end)?;
        let start = span.start + written.find(text)? + byte;
        let c = self.source.text.get(start..)?.chars().next()?;
        Some(Span {
            start,
            end: start + c.len_utf8(),
        })
    }

    /// The file, and the place of this in it.
    pub(super) fn place(&self, span: Span) -> (&'a Path, Place) {
        (self.source.path, self.source.place(span))
    }

    pub(super) fn has_faults(&self) -> bool {
        !self.faults.is_empty()
    }

    /// All faults in the order of the file; empty when there are none.
    pub(super) fn diagnostics(mut self) -> Vec<Diagnostic> {
        self.faults.sort_by_key(|(span, _)| span.start);
        let mut all: Vec<Diagnostic> = self
            .faults
            .iter()
            .map(|(span, fault)| self.source.diagnostic(*span, fault))
            .collect();
        if self.untold > 0 {
            let more = Fault::More { count: self.untold };
            all.push(Diagnostic::of_file(
                self.source.path,
                more.to_string(),
                more.help(),
            ));
        }
        all
    }

    /// Reads the root of a file: a mapping with something in it.
    pub(super) fn root(&mut self, what: &'static str, help: &'static str) -> Option<Node> {
        let start = Span { start: 0, end: 0 };
        match tree::parse(self.source) {
            Err(faults) => {
                for (span, fault) in faults {
                    self.fault(span, fault);
                }
                None
            }
            Ok(Some(root)) if root.kind() == Kind::Mapping => Some(root),
            Ok(Some(root)) if root.kind() != Kind::Nothing => {
                self.fault(
                    root.span,
                    Fault::NotAMapping {
                        what,
                        found: root.kind(),
                    },
                );
                None
            }
            Ok(Some(_) | None) => {
                self.fault(start, Fault::EmptyFile { what, help });
                None
            }
        }
    }

    /// Checks each key of a mapping by its rule.
    pub(super) fn mapping<D>(
        &mut self,
        entries: &[Entry],
        rules: &[Rule<D>],
        shape: &Shape<'_>,
        draft: &mut D,
    ) {
        for entry in entries {
            let own = entry.key.starts_with(OWN_KEY_PREFIX);
            match rules.iter().find(|rule| rule.key() == entry.key) {
                Some(rule) => {
                    let field = Field {
                        name: rule.name,
                        at: entry.key_span,
                        node: &entry.node,
                    };
                    (rule.check)(self, field, draft);
                }
                None if own => {}
                None => self.unknown_key(entry, rules, shape),
            }
        }
    }

    fn unknown_key<D>(&mut self, entry: &Entry, rules: &[Rule<D>], shape: &Shape<'_>) {
        if entry.key == MERGE_KEY {
            self.fault(entry.key_span, Fault::MergeKey);
            return;
        }
        let known: Vec<&'static str> = rules.iter().map(Rule::key).collect();
        let belongs = shape
            .elsewhere
            .iter()
            .find(|(keys, _)| keys.contains(&entry.key.as_str()));
        let fault = Fault::UnknownKey {
            key: entry.key.as_str().into(),
            inside: shape.inside,
            near: nearest(&entry.key, &known),
            known,
            belongs: belongs.map(|(_, place)| *place),
        };
        self.fault(entry.key_span, fault);
    }

    /// Tells that a mapping lacks a key, unless a key that resembles it was told of already.
    pub(super) fn require(&mut self, root: &Node, field: &'static str, help: &'static str) {
        // Whose own keys are passed over, such as `x-command`, were not told of.
        let own = |entry: &Entry| entry.key.starts_with(OWN_KEY_PREFIX);
        let meant = |entry: &Entry| !own(entry) && nearest(&entry.key, &[field]).is_some();
        if !root.entries().iter().any(meant) {
            self.fault(root.head(), Fault::Missing { field, help });
        }
    }

    /// A value of the wrong form.
    pub(super) fn form(
        &mut self,
        field: Field<'_>,
        wanted: &'static str,
        help: Option<&'static str>,
    ) {
        let found = field.node.kind();
        let fault = match found {
            Kind::Nothing => Fault::NoValue { field: field.name },
            Kind::Boolean | Kind::Number | Kind::Text | Kind::List | Kind::Mapping => Fault::Form {
                field: field.name,
                wanted,
                found,
                help,
            },
        };
        self.fault(field.span(), fault);
    }

    /// The entries of a mapping; none when there is nothing.
    pub(super) fn entries<'n>(
        &mut self,
        field: Field<'n>,
        help: Option<&'static str>,
    ) -> Option<&'n [Entry]> {
        match &field.node.value {
            Value::Mapping(entries) => Some(entries),
            Value::Scalar { .. } if field.is_nothing() => Some(&[]),
            Value::Scalar { .. } | Value::List(_) => {
                self.form(field, "a mapping", help);
                None
            }
        }
    }

    /// The entries of a list; none when there is nothing.
    pub(super) fn list<'n>(
        &mut self,
        field: Field<'n>,
        help: Option<&'static str>,
    ) -> Option<&'n [Node]> {
        match &field.node.value {
            Value::List(items) => Some(items),
            Value::Scalar { .. } if field.is_nothing() => Some(&[]),
            Value::Scalar { .. } | Value::Mapping(_) => {
                self.form(field, "a list", help);
                None
            }
        }
    }
}
