//! Checks of single values: texts, words, numbers, durations, paths.
//!
//! Each tells its fault and returns `None`, or returns the value. A plain `010` or `yes` is text
//! where a text is asked for, and a number or boolean only where one is.
//!
//! Absent on purpose: the meaning of any one field.

use std::{
    ops::RangeInclusive,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use super::{
    fault::{Fault, Quoted, Words},
    node::{self, Quoting, Value},
    rules::{Checker, Field},
};

/// The longest duration that any field takes: ten years as `humantime` reckons them.
pub(super) const DURATION_MAX: Duration = Duration::from_secs(10 * 31_557_600);

/// The longest text that is read as a duration. Longer numbers overflow, and say nothing.
const DURATION_CHARS_MAX: usize = 40;

/// The most digits in a row in a duration: a billion of anything is beyond [`DURATION_MAX`]
/// or better said in another unit.
const DURATION_DIGITS_MAX: usize = 9;

impl Checker<'_> {
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
