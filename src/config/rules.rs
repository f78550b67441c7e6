//! What the rules of both files are made of: tables of keys, and checks of single values.
//!
//! A mapping is checked against a table of [`Rule`]s, one function a key. A check returns `None`
//! when it told a fault, and the next one is made all the same, so that all faults of a file are
//! found at once. To add a field: one line in a table, one function.
//!
//! An empty collection (`hooks:` with nothing after it) is a collection with nothing in it; an
//! empty scalar is a fault, because a line that lost its value must not quietly mean a default.
//!
//! Absent on purpose: the meaning of any one field (`child`, `restart`, `server`).

use std::{
    ops::RangeInclusive,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use super::{
    diagnostic::{Diagnostic, Source, Span},
    fault::{Fault, Quoted, Words},
    node::{self, Entry, FAULTS_MAX, Kind, Node, Quoting, Value},
    suggest::nearest,
};

/// The longest duration that any field takes.
pub(super) const DURATION_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// The longest text that is read as a duration. Longer numbers overflow, and say nothing.
const DURATION_CHARS_MAX: usize = 40;

/// The most digits in a row in a duration: a billion of anything is beyond [`DURATION_MAX`]
/// or better said in another unit.
const DURATION_DIGITS_MAX: usize = 9;

/// Keys that begin so are the user's own.
const OWN_KEY_PREFIX: &str = "x-";

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
    /// The key.
    pub(super) key: &'static str,
    /// The key as messages call it.
    pub(super) name: &'static str,
    /// Checks the value and puts it into the draft.
    pub(super) check: fn(&mut Checker<'_>, Field<'_>, &mut D),
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

    pub(super) fn fault(&mut self, span: Span, fault: Fault) {
        if self.faults.len() < FAULTS_MAX {
            self.faults.push((span, fault));
        } else {
            self.untold += 1;
        }
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
    pub(super) fn root(&mut self, what: &'static str, needs: &'static str) -> Option<Node> {
        let start = Span { start: 0, end: 0 };
        match node::parse(self.source) {
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
                self.fault(start, Fault::EmptyFile { what, needs });
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
            match rules.iter().find(|rule| rule.key == entry.key) {
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
        let known: Vec<&'static str> = rules.iter().map(|rule| rule.key).collect();
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

    /// A text, exactly as typed: a plain `010` or `yes` is text where text is asked for.
    pub(super) fn text<'n>(&mut self, field: Field<'n>) -> Option<&'n str> {
        match &field.node.value {
            Value::Scalar { text, .. } if !field.is_nothing() => {
                if let Some(c) = text.chars().find(|c| *c == '\0') {
                    self.fault(
                        field.span(),
                        Fault::Control {
                            field: field.name,
                            c,
                        },
                    );
                    return None;
                }
                Some(text)
            }
            Value::Scalar { .. } | Value::List(_) | Value::Mapping(_) => {
                self.form(field, "a text", None);
                None
            }
        }
    }

    /// A text of one line with something in it: a name, a path.
    pub(super) fn line<'n>(&mut self, field: Field<'n>) -> Option<&'n str> {
        let text = self.text(field)?;
        if let Some(c) = text.chars().find(|c| c.is_control()) {
            self.fault(
                field.span(),
                Fault::Control {
                    field: field.name,
                    c,
                },
            );
            return None;
        }
        if text.trim().is_empty() {
            self.fault(field.span(), Fault::EmptyText { field: field.name });
            return None;
        }
        Some(text)
    }

    /// One of a few words, spelled exactly so.
    pub(super) fn word(&mut self, field: Field<'_>, words: Words) -> Option<&'static str> {
        let text = self.text(field)?;
        let word = words.iter().find(|word| **word == text).copied();
        if word.is_none() {
            let found = Quoted::from(text);
            self.fault(
                field.span(),
                Fault::Word {
                    field: field.name,
                    words,
                    found,
                },
            );
        }
        word
    }

    /// `true` or `false`, as YAML 1.1 and 1.2 write them.
    pub(super) fn boolean(&mut self, field: Field<'_>) -> Option<bool> {
        let value = node::plain_boolean(field.node);
        if value.is_none() {
            let quoted = matches!(
                field.node.value,
                Value::Scalar {
                    quoting: Quoting::Text,
                    ..
                }
            );
            let help = quoted.then_some("write it without quotes");
            self.form(field, "`true` or `false`", help);
        }
        value
    }

    /// A whole number, in decimal digits alone.
    pub(super) fn whole(&mut self, field: Field<'_>, range: RangeInclusive<u64>) -> Option<u64> {
        let text = self.text(field)?;
        let quoted = matches!(
            field.node.value,
            Value::Scalar {
                quoting: Quoting::Text,
                ..
            }
        );
        let value = digits(text).then(|| text.parse().ok()).flatten();
        let value = value.filter(|value| range.contains(value));
        if value.is_none() || quoted {
            let bare = text.trim().trim_end_matches(char::is_alphabetic);
            let bare = digits(bare) && bare.parse().is_ok_and(|bare| range.contains(&bare));
            let help = bare.then(|| {
                let bare = text.trim().trim_end_matches(char::is_alphabetic);
                format!(
                    "write `{bare}`, without {}",
                    if quoted { "quotes" } else { "a unit" }
                )
            });
            let (min, max) = (*range.start(), *range.end());
            let found = Quoted::from(text);
            self.fault(
                field.span(),
                Fault::Whole {
                    field: field.name,
                    min,
                    max,
                    found,
                    help,
                },
            );
            return None;
        }
        value
    }

    /// A number with at most three decimals, in thousandths.
    pub(super) fn permille(&mut self, field: Field<'_>, range: RangeInclusive<u32>) -> Option<u32> {
        let text = self.text(field)?;
        let value = thousandths(text).filter(|value| range.contains(value));
        if value.is_none() {
            let (min, max) = (*range.start(), *range.end());
            let found = Quoted::from(text);
            self.fault(
                field.span(),
                Fault::Decimal {
                    field: field.name,
                    min,
                    max,
                    found,
                },
            );
        }
        value
    }

    /// A duration with its unit, such as `500ms` or `1h 30m`.
    pub(super) fn duration(
        &mut self,
        field: Field<'_>,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let text = self.text(field)?;
        match parse_duration(text) {
            Ok(value) if range.contains(&value) => Some(value),
            Ok(_) => {
                let (min, max) = (*range.start(), *range.end());
                let found = Quoted::from(text);
                self.fault(
                    field.span(),
                    Fault::DurationRange {
                        field: field.name,
                        found,
                        min,
                        max,
                    },
                );
                None
            }
            Err((why, help)) => {
                let found = Quoted::from(text);
                self.fault(
                    field.span(),
                    Fault::Duration {
                        field: field.name,
                        found,
                        why,
                        help,
                    },
                );
                None
            }
        }
    }

    /// A path, absolute or relative, with `.` and doubled slashes taken out.
    pub(super) fn path(&mut self, field: Field<'_>) -> Option<PathBuf> {
        // A plain `~` is YAML's "nothing", but not what somebody meant who wrote it here.
        if let Value::Scalar { text, .. } = &field.node.value
            && text == "~"
        {
            let found = Quoted::from(text.as_str());
            self.fault(
                field.span(),
                Fault::Home {
                    field: field.name,
                    found,
                },
            );
            return None;
        }
        let text = self.line(field)?;
        if let Some(found) = unexpanded(text) {
            self.fault(
                field.span(),
                Fault::Home {
                    field: field.name,
                    found: found.into(),
                },
            );
            return None;
        }
        let path = Path::new(text)
            .components()
            .filter(|part| *part != Component::CurDir);
        Some(path.collect())
    }

    /// A directory: absolute, or relative to the file's folder.
    pub(super) fn directory(&mut self, field: Field<'_>) -> Option<PathBuf> {
        self.path(field).map(|path| self.folder().join(path))
    }

    /// A list of what one check makes of each entry; entries with faults are left out.
    pub(super) fn each<T>(
        &mut self,
        field: Field<'_>,
        mut check: impl FnMut(&mut Self, Field<'_>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let items = self.list(
            field,
            Some("write each on a line of its own, with `- ` before it"),
        )?;
        Some(
            items
                .iter()
                .filter_map(|item| check(self, field.item(item)))
                .collect(),
        )
    }
}

/// What of a path a shell would have expanded, and nobody does here.
pub(super) fn unexpanded(path: &str) -> Option<&str> {
    if path.starts_with('~') {
        return path.split('/').next();
    }
    ["$HOME", "${HOME}"]
        .into_iter()
        .find(|name| path.contains(name))
}

fn digits(text: &str) -> bool {
    let leading_zero = text.len() > 1 && text.starts_with('0');
    !text.is_empty() && !leading_zero && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn thousandths(text: &str) -> Option<u32> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let plain = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !plain(whole) || !plain(decimals) || decimals.len() > 3 {
        return None;
    }
    let decimals: u32 = format!("{decimals:0<3}").parse().ok()?;
    whole
        .parse::<u32>()
        .ok()?
        .checked_mul(1000)?
        .checked_add(decimals)
}

/// A duration, or why a text is none and what to write.
pub(super) fn parse_duration(text: &str) -> Result<Duration, (String, String)> {
    let example = || "such as `500ms`, `5s`, `1h 30m`".to_owned();
    if thousandths(text).is_some() {
        return Err((
            "it has no unit".to_owned(),
            format!("write `{text}s` for seconds"),
        ));
    }
    let digits_max = text
        .split(|c: char| !c.is_ascii_digit())
        .map(str::len)
        .max()
        .unwrap_or(0);
    // The parser adds without a check in one place and would panic.
    if text.len() > DURATION_CHARS_MAX || digits_max > DURATION_DIGITS_MAX {
        return Err(("it is too long".to_owned(), example()));
    }
    humantime::parse_duration(text).map_err(|error| {
        let why = match error {
            humantime::DurationError::UnknownUnit { unit, .. } if !unit.is_empty() => {
                format!("`{unit}` is no unit of time")
            }
            humantime::DurationError::UnknownUnit { .. } => "a unit is missing".to_owned(),
            humantime::DurationError::InvalidCharacter(_)
            | humantime::DurationError::NumberExpected(_)
            | humantime::DurationError::Empty => "a number and a unit are expected".to_owned(),
            humantime::DurationError::NumberOverflow => "it is out of range".to_owned(),
        };
        (why, example())
    })
}
