//! A file's bytes as a tree of values, each with the span it came from.
//!
//! Invariants: the text is bounded by who calls; a tree is at most [`DEPTH_MAX`] deep, has
//! at most [`NODES_MAX`] values and [`TEXT_MAX`] bytes of text however often its aliases repeat
//! something; no key stands twice in a mapping; every collection's faults are found in one pass.
//! Building is a loop over events with a stack of its own, so that no input can exhaust the
//! thread's stack.
//!
//! The tree is built from the parser's events and not through `serde`, although the crate offers
//! both: by the time a visitor sees a plain `010`, `1.10`, `yes` or `0x1F` it has become a number
//! or a boolean, and a command's argument must stay as it was typed; and a visitor is stopped by
//! the first duplicate key, while a person wants to see them all.
//!
//! Absent on purpose: merge keys (`<<` is a key like any other, and unknown), tags but for
//! `!!str`, and any notion of what a field means (`rules`).

use std::{collections::BTreeMap, mem};

use serde_yaml::granit_parser::{self as yaml, ErrorKind, Event, Parser, ScalarStyle};

use super::{
    diagnostic::{Source, Span},
    fault::Fault,
    node::{Entry, Node, Quoting, Value},
};

/// How deeply values may nest; the documented fields need four levels.
pub(super) const DEPTH_MAX: usize = 32;

/// How many values a file may have, what aliases repeat included.
pub(super) const NODES_MAX: usize = 100_000;

/// How many bytes of text a file may have, what aliases repeat included.
pub(super) const TEXT_MAX: usize = 4 << 20;

/// How many faults of one file are told, so that a file of nothing but faults is told of in
/// bounded time and length.
pub(super) const FAULTS_MAX: usize = 50;

/// The longest key that is looked for in one line, in characters (YAML 1.2, section 7.4.2).
const KEY_CHARS_MAX: usize = 1024;

/// Faults of a text's form, and where; never empty.
pub(super) type Faults = Vec<(Span, Fault)>;

/// Parses a text into its one document; `None` when there is nothing but comments.
pub(super) fn parse(source: Source<'_>) -> Result<Option<Node>, Faults> {
    let options = yaml::options! {
        emit_comments: false,
        flow_nesting_limit: DEPTH_MAX,
        block_nesting_limit: DEPTH_MAX,
        simple_key_max_lookahead: KEY_CHARS_MAX,
    };
    let mut builder = Builder::new(source);
    for event in Parser::new_from_str_with_options(source.text, options) {
        let step = match event {
            Ok((event, span)) => builder.take(event, span),
            Err(error) => Err(syntax_fault(source, &error)),
        };
        if let Err(fault) = step {
            // What follows cannot be understood any more.
            builder.faults.push(fault);
            break;
        }
        if builder.faults.len() > FAULTS_MAX {
            break;
        }
    }
    if builder.faults.is_empty() {
        Ok(builder.root)
    } else {
        Err(builder.faults)
    }
}

/// A collection that is not yet at its end.
#[derive(Debug)]
struct Open {
    span: Span,
    anchor: usize,
    content: OpenContent,
}

#[derive(Debug)]
enum OpenContent {
    List(Vec<Node>),
    Mapping {
        entries: Vec<Entry>,
        /// The line each key stands on.
        seen: BTreeMap<String, usize>,
        key: Option<Key>,
    },
}

/// A key whose value has not come yet.
#[derive(Debug)]
enum Key {
    Word(String, Span),
    /// A fault that was reported: its value is read and dropped.
    Refused,
}

struct Builder<'a> {
    source: Source<'a>,
    open: Vec<Open>,
    root: Option<Node>,
    /// What each anchor names; `None` while it is still open.
    anchors: BTreeMap<usize, Option<Node>>,
    documents: usize,
    nodes: usize,
    text_len: usize,
    faults: Faults,
}

impl<'a> Builder<'a> {
    fn new(source: Source<'a>) -> Self {
        Self {
            source,
            open: Vec::new(),
            root: None,
            anchors: BTreeMap::new(),
            documents: 0,
            nodes: 0,
            text_len: 0,
            faults: Vec::new(),
        }
    }

    /// Takes one event; an error is one after which nothing can be understood.
    fn take(&mut self, event: Event<'_>, at: yaml::Span) -> Result<(), (Span, Fault)> {
        let span = bytes_of(at);
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err((span, Fault::SeveralDocuments));
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                let text_tag = self.tag(tag.as_deref(), at);
                let quoting = match style {
                    ScalarStyle::Plain if !text_tag => Quoting::Plain,
                    _ => Quoting::Text,
                };
                // A value that was left out comes as a `~` of no length.
                let left_out = quoting == Quoting::Plain && span.start == span.end;
                let text = if left_out {
                    String::new()
                } else {
                    text.into_owned()
                };
                self.charge(span, 1, text.len())?;
                let node = Node {
                    span,
                    value: Value::Scalar { text, quoting },
                };
                self.name(anchor, &node);
                self.put(node);
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.tag(tag.as_deref(), at);
                self.begin(span, anchor, OpenContent::List(Vec::new()))?;
            }
            Event::MappingStart(_, anchor, tag) => {
                self.tag(tag.as_deref(), at);
                let (entries, seen, key) = (Vec::new(), BTreeMap::new(), None);
                self.begin(span, anchor, OpenContent::Mapping { entries, seen, key })?;
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(anchor) => self.repeat(anchor, span)?,
            // The parser's enum may grow; events that carry no value change nothing.
            _ => {}
        }
        Ok(())
    }

    /// Puts what an anchor names once more.
    fn repeat(&mut self, anchor: usize, span: Span) -> Result<(), (Span, Fault)> {
        let Some(Some(node)) = self.anchors.get(&anchor) else {
            return Err((span, Fault::AliasInItself));
        };
        let (depth, nodes, text_len) = (node.depth(), node.count(), node.text_len());
        if self.open.len() + depth > DEPTH_MAX {
            return Err((span, Fault::TooDeep { max: DEPTH_MAX }));
        }
        self.charge(span, nodes, text_len)?;
        if let Some(Some(node)) = self.anchors.get(&anchor).cloned() {
            self.put(node);
        }
        Ok(())
    }

    /// Whether a tag says "text"; every other tag is a fault.
    fn tag(&mut self, tag: Option<&yaml::Tag>, at: yaml::Span) -> bool {
        let Some(tag) = tag else { return false };
        let text = tag.is_yaml_core_schema_tag("str") || tag.original() == "!";
        if !text {
            let span = bytes_of(at.tag_span().unwrap_or(at));
            self.faults.push((span, Fault::Tag));
        }
        text
    }

    /// Counts values against the limits, before they are made or repeated.
    fn charge(&mut self, span: Span, nodes: usize, text_len: usize) -> Result<(), (Span, Fault)> {
        self.nodes += nodes;
        self.text_len += text_len;
        if self.nodes > NODES_MAX {
            return Err((span, Fault::TooManyNodes { max: NODES_MAX }));
        }
        if self.text_len > TEXT_MAX {
            return Err((span, Fault::TooMuchText { max: TEXT_MAX }));
        }
        Ok(())
    }

    fn begin(
        &mut self,
        span: Span,
        anchor: usize,
        content: OpenContent,
    ) -> Result<(), (Span, Fault)> {
        if self.open.len() == DEPTH_MAX {
            return Err((span, Fault::TooDeep { max: DEPTH_MAX }));
        }
        if anchor != 0 {
            self.anchors.insert(anchor, None);
        }
        self.charge(span, 1, 0)?;
        self.open.push(Open {
            span,
            anchor,
            content,
        });
        Ok(())
    }

    fn end(&mut self) {
        let Some(open) = self.open.pop() else { return };
        let value = match open.content {
            OpenContent::List(items) => Value::List(items),
            OpenContent::Mapping { entries, .. } => Value::Mapping(entries),
        };
        let node = Node {
            span: open.span,
            value,
        };
        self.name(open.anchor, &node);
        self.put(node);
    }

    /// Remembers what an anchor names; 0 is the parser's "none".
    fn name(&mut self, anchor: usize, node: &Node) {
        if anchor != 0 {
            self.anchors.insert(anchor, Some(node.clone()));
        }
    }

    /// Puts a finished value where it belongs: into the open collection, or at the root.
    fn put(&mut self, node: Node) {
        let source = self.source;
        match self.open.last_mut().map(|open| &mut open.content) {
            None => self.root = Some(node),
            Some(OpenContent::List(items)) => items.push(node),
            Some(OpenContent::Mapping { entries, seen, key }) => match mem::take(key) {
                None => match key_of(node, seen, source) {
                    Ok(word) => *key = Some(word),
                    Err(fault) => {
                        self.faults.push(fault);
                        *key = Some(Key::Refused);
                    }
                },
                Some(Key::Word(word, key_span)) => entries.push(Entry {
                    key: word,
                    key_span,
                    node,
                }),
                Some(Key::Refused) => {}
            },
        }
    }
}

/// A mapping's key, checked against those before it.
fn key_of(
    node: Node,
    seen: &mut BTreeMap<String, usize>,
    source: Source<'_>,
) -> Result<Key, (Span, Fault)> {
    let span = node.span;
    let Value::Scalar { text, .. } = node.value else {
        return Err((span, Fault::KeyNotText));
    };
    if let Some(first) = seen.get(&text) {
        let first_line = source.line_number(*first);
        return Err((
            span,
            Fault::DuplicateKey {
                key: text.as_str().into(),
                first_line,
            },
        ));
    }
    seen.insert(text.clone(), span.start);
    Ok(Key::Word(text, span))
}

fn bytes_of(span: yaml::Span) -> Span {
    // A parser over a `str` knows every byte offset.
    let start = span.start.byte_offset().unwrap_or(0);
    let end = span.end.byte_offset().unwrap_or(start);
    Span { start, end }
}

/// What the parser could not read, with help for what people run into.
fn syntax_fault(source: Source<'_>, error: &yaml::ScanError) -> (Span, Fault) {
    let at = error.marker().byte_offset().unwrap_or_else(|| {
        let chars = source.text.char_indices().nth(error.marker().index());
        chars.map_or(source.text.len(), |(at, _)| at)
    });
    // An end that came too early is shown where the text ends, not on the empty line after it.
    let at = match source.text.get(at..) {
        Some(rest) if rest.trim().is_empty() => source.text.trim_end().len(),
        Some(_) | None => at,
    };
    let span = Span {
        start: at,
        end: at + 1,
    };
    if matches!(error.kind(), ErrorKind::RecursionLimitExceeded) {
        return (span, Fault::TooDeep { max: DEPTH_MAX });
    }
    let help = syntax_help(error.kind());
    let why = match error.kind() {
        ErrorKind::UnexpectedCharacter { character } => {
            format!("unexpected character `{character}`")
        }
        _ => error.info(),
    };
    (span, Fault::Yaml { why, help })
}

/// Help for what people run into. The parser's enum is open: for the rest its text must do.
fn syntax_help(kind: &ErrorKind) -> Option<&'static str> {
    Some(match kind {
        ErrorKind::TabNotAllowed
        | ErrorKind::TabInBlockIndentation
        | ErrorKind::TabInIndentation
        | ErrorKind::TabAtBlockScalarStart
        | ErrorKind::TabInPlainScalar => "indent with spaces, not with tabs",
        ErrorKind::MappingValueNotAllowed | ErrorKind::SimpleKeyExpected => {
            "indent the line as its neighbours are; put a value that holds `: ` in quotes"
        }
        ErrorKind::InvalidColonPlacement => "close the `[` or `{` that is open above",
        ErrorKind::ExpectedDocumentStart => {
            "indent the line as its neighbours are; a list needs a line with its key above it"
        }
        ErrorKind::UnknownAnchor | ErrorKind::MissingAnchorOrAliasName => {
            "put a value that begins with `*` or `&` in quotes"
        }
        ErrorKind::UnexpectedCharacter {
            character: '@' | '%' | '`',
        } => "put a value that begins with `@`, `%` or a backtick in quotes",
        ErrorKind::UnclosedQuotedScalar => "close the quote",
        ErrorKind::UnknownQuotedScalarEscape => {
            "write `\\\\` for a backslash, or use single quotes"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::node::Kind;

    fn tree(text: &str) -> Result<Option<Node>, Faults> {
        parse(source(text))
    }

    fn source(text: &str) -> Source<'_> {
        Source {
            path: Path::new("/x.yml"),
            text,
        }
    }

    /// Each scalar of a tree with the text its span covers, in order.
    fn scalars(text: &str) -> Vec<(String, String)> {
        fn walk(node: &Node, text: &str, all: &mut Vec<(String, String)>) {
            match &node.value {
                Value::Scalar { text: value, .. } => {
                    let spanned = &text[node.span.start..node.span.end];
                    all.push((value.clone(), spanned.to_owned()));
                }
                Value::List(items) => items.iter().for_each(|item| walk(item, text, all)),
                Value::Mapping(entries) => entries.iter().for_each(|e| walk(&e.node, text, all)),
            }
        }
        let mut all = Vec::new();
        let root = tree(text).expect("good").expect("something");
        walk(&root, text, &mut all);
        all
    }

    fn faults(text: &str) -> Vec<Fault> {
        let faults = tree(text).expect_err("bad");
        faults.into_iter().map(|(_, fault)| fault).collect()
    }

    fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
        all.iter().map(owned).collect()
    }

    #[test]
    fn a_span_covers_its_value_as_written() {
        let text = "a: plain\nb: 'it''s'\nc: \"é\\n\"\nd: [x, 名]\n";
        let expected = [
            ("plain", "plain"),
            ("it's", "'it''s'"),
            ("é\n", "\"é\\n\""),
            ("x", "x"),
            ("名", "名"),
        ];
        assert_eq!(scalars(text), pairs(&expected));
    }

    #[test]
    fn plain_scalars_stay_as_typed() {
        for typed in [
            "010", "1.10", "0x1F", "yes", "on", "True", "1_000", "1e3", "null",
        ] {
            assert_eq!(scalars(&format!("a: {typed}\n")), pairs(&[(typed, typed)]));
        }
    }

    #[test]
    fn a_value_left_out_is_nothing_and_a_quoted_one_is_text() {
        for (text, kind) in [
            ("a:\n", Kind::Nothing),
            ("a: ~\n", Kind::Nothing),
            ("a: null\n", Kind::Nothing),
            ("a: ''\n", Kind::Text),
            ("a: \"~\"\n", Kind::Text),
            ("a: !!str\n", Kind::Text),
            ("a: !!str null\n", Kind::Text),
            ("a: on\n", Kind::Boolean),
            ("a: \"on\"\n", Kind::Text),
            ("a: 5\n", Kind::Number),
            ("a: -0.5\n", Kind::Number),
            ("a: nan\n", Kind::Text),
            ("a: y\n", Kind::Text),
            ("a: []\n", Kind::List),
            ("a: {}\n", Kind::Mapping),
        ] {
            let root = tree(text).expect("good").expect("something");
            assert_eq!(root.entries()[0].node.kind(), kind, "{text}");
        }
    }

    #[test]
    fn nothing_but_comments_is_nothing() {
        for text in ["", "\n", "# a\n", "  \n\n"] {
            assert_eq!(tree(text), Ok(None), "{text:?}");
        }
    }

    #[test]
    fn an_alias_repeats_what_its_anchor_names() {
        let all = scalars("a: &x [1, 2]\nb: *x\nc: &y z\nd: *y\n");
        let values: Vec<&str> = all.iter().map(|(value, _)| value.as_str()).collect();
        assert_eq!(values, ["1", "2", "1", "2", "z", "z"]);
    }

    #[test]
    fn a_name_may_be_given_to_another_value_later() {
        let all = scalars("a: &x 1\nb: *x\nc: &x 2\nd: *x\n");
        let values: Vec<&str> = all.iter().map(|(value, _)| value.as_str()).collect();
        assert_eq!(values, ["1", "1", "2", "2"]);
    }

    #[test]
    fn an_alias_cannot_hold_itself() {
        assert_eq!(faults("a: &x [1, *x]\n"), [Fault::AliasInItself]);
        assert_eq!(faults("a: &x {b: [*x]}\n"), [Fault::AliasInItself]);
    }

    #[test]
    fn aliases_cannot_multiply_beyond_the_limits() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for i in 1..30 {
            let aliases = vec![format!("*a{}", i - 1); 9].join(", ");
            bomb += &format!("a{i}: &a{i} [{aliases}]\n");
        }
        assert_eq!(faults(&bomb), [Fault::TooManyNodes { max: NODES_MAX }]);
        let text = "x".repeat(60_000);
        let mut bomb = format!("a: &a {text}\nb:\n");
        bomb += &"- *a\n".repeat(500);
        assert_eq!(faults(&bomb), [Fault::TooMuchText { max: TEXT_MAX }]);
    }

    #[test]
    fn aliases_cannot_nest_beyond_the_limit() {
        let mut deep = "a0: &a0 [[[[[[[[x]]]]]]]]\n".to_owned();
        for i in 1..9 {
            deep += &format!("a{i}: &a{i} [[[[[[[[*a{}]]]]]]]]\n", i - 1);
        }
        assert_eq!(faults(&deep), [Fault::TooDeep { max: DEPTH_MAX }]);
    }

    #[test]
    fn a_tree_may_be_as_deep_as_the_limit_and_no_deeper() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(tree(&nested(DEPTH_MAX)).is_ok());
        assert_eq!(
            faults(&nested(DEPTH_MAX + 1)),
            [Fault::TooDeep { max: DEPTH_MAX }]
        );
        let blocks = |depth: usize| "- ".repeat(depth) + "x\n";
        assert!(tree(&blocks(DEPTH_MAX)).is_ok());
        assert_eq!(
            faults(&blocks(DEPTH_MAX + 1)),
            [Fault::TooDeep { max: DEPTH_MAX }]
        );
    }

    #[test]
    fn all_duplicate_keys_are_told_at_once_in_every_mapping() {
        let told = faults("a: 1\na: 2\nb: {c: 1, c: 2}\nx-own: {d: 1, \"d\": 2}\n");
        let key = |key: &str, first_line| Fault::DuplicateKey {
            key: key.into(),
            first_line,
        };
        assert_eq!(told, [key("a", 1), key("c", 3), key("d", 4)]);
    }

    #[test]
    fn a_refused_key_takes_its_value_with_it() {
        let told = faults("? {a: 1}\n: {b: 1, b: 2}\nc: 1\nc: 2\n");
        assert_eq!(told.len(), 3, "{told:?}");
        assert_eq!(told[0], Fault::KeyNotText);
    }

    #[test]
    fn only_the_first_document_is_taken_and_markers_around_it_are_fine() {
        assert!(tree("---\na: 1\n...\n").is_ok());
        assert!(tree("%YAML 1.2\n---\na: 1\n").is_ok());
        assert_eq!(faults("a: 1\n---\nb: 2\n"), [Fault::SeveralDocuments]);
        assert_eq!(faults("a: 1\n---\n"), [Fault::SeveralDocuments]);
    }

    #[test]
    fn tags_are_refused_whatever_they_name() {
        for text in [
            "!!int 5",
            "!x y",
            "!!binary aGk=",
            "!<tag:x,2000:y> z",
            "!!map {}",
            "!!seq []",
        ] {
            assert_eq!(faults(&format!("a: {text}\n")), [Fault::Tag], "{text}");
        }
        assert!(tree("a: !!str 5\nb: ! 5\n").is_ok());
    }

    #[test]
    fn no_more_faults_are_collected_than_are_told() {
        let many = (0..5_000).map(|_| "a: 1\n").collect::<String>();
        assert_eq!(faults(&many).len(), FAULTS_MAX + 1);
    }
}
