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
        // Joined to `.`, a folder would end in a slash: the same directory, but not the same text.
        let path = self.path(field)?;
        Some(self.folder().join(path).components().collect())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_that_would_overflow_is_a_fault_and_no_panic() {
        for text in [
            "18446744073709551615s 1000ms",
            "18446744073709551615s 999999999ns 1ns",
            "99999999999999999999999999999999999s",
            "18446744073709551615y",
            "999999999y 999999999y",
            &"9".repeat(1 << 16),
            &"1s ".repeat(1 << 14),
            "0.999999999999999999999s",
        ] {
            let parsed = parse_duration(text);
            assert!(
                parsed.is_err() || parsed.is_ok_and(|span| span > DURATION_MAX),
                "{text}"
            );
        }
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, millis) in [
            ("500ms", 500),
            ("5s", 5_000),
            ("5 s", 5_000),
            ("5sec", 5_000),
            ("1m", 60_000),
            ("1h 30m", 5_400_000),
            ("1h30m", 5_400_000),
            ("0.5s", 500),
            ("0s", 0),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(millis)),
                "{text}"
            );
        }
        for text in [
            "",
            " ",
            "s",
            "5",
            "5.0",
            "-5s",
            "5x",
            "five s",
            "5s!",
            "\u{1f980}",
            "5é",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_help_for_a_bare_number_is_the_number_with_its_unit() {
        let (_, help) = parse_duration("5").expect_err("no unit");
        assert_eq!(help, "write `5s` for seconds");
    }

    #[test]
    fn numbers_with_decimals_are_exact() {
        for (text, value) in [
            ("2", Some(2_000)),
            ("0.2", Some(200)),
            ("1.5", Some(1_500)),
            ("1.005", Some(1_005)),
            ("0", Some(0)),
            ("4294967.295", Some(u32::MAX)),
            ("4294967.296", None),
            ("99999999999", None),
            ("1.0005", None),
            ("1.", None),
            (".5", None),
            ("-1", None),
            ("+1", None),
            ("1e3", None),
            ("1,5", None),
            ("", None),
        ] {
            assert_eq!(thousandths(text), value, "{text}");
        }
    }

    #[test]
    fn whole_numbers_are_decimal_digits_and_nothing_else() {
        for good in ["0", "1", "10", "255"] {
            assert!(digits(good), "{good}");
        }
        for bad in [
            "", "00", "010", "0x10", "+1", "-1", "1.0", "1_0", "1e3", "١",
        ] {
            assert!(!digits(bad), "{bad}");
        }
    }

    #[test]
    fn what_only_a_shell_expands_is_found() {
        assert_eq!(unexpanded("~/x"), Some("~"));
        assert_eq!(unexpanded("~bob/x"), Some("~bob"));
        assert_eq!(unexpanded("/a/$HOME/x"), Some("$HOME"));
        assert_eq!(unexpanded("${HOME}/x"), Some("${HOME}"));
        for fine in ["/a", "./~x", "a~", "/a/~/b", "$USER", "HOME"] {
            assert_eq!(unexpanded(fine), None, "{fine}");
        }
    }
}
