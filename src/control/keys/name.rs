//! A key's name: its file's, without `.pem` and a `.pub` before it.
//!
//! It comes over the wire, so it is a plain name: nothing that could lead out of a directory,
//! break a line of a log or be mistaken for an option. It is never joined to a path all the same.

use std::{ffi::OsStr, fmt, path::Path, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// The most characters of a key name.
pub const KEY_NAME_CHARS_MAX: usize = 64;

/// 1 to 64 of `A-Z a-z 0-9 _ . @ -`, the first a letter or a digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyName(Arc<str>);

/// Why a text is no key name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyNameError {
    /// Nothing at all.
    #[error("a key name must not be empty")]
    Empty,
    /// Too long.
    #[error("a key name has at most {KEY_NAME_CHARS_MAX} characters, this one has {0}")]
    TooLong(usize),
    /// Its first character is neither a letter nor a digit.
    #[error("a key name begins with a letter or digit, not with `{}`", .0.escape_debug())]
    BadStart(char),
    /// It holds what no name has.
    #[error(
        "`{}` cannot stand in a key name, which is made of letters, digits and `_ . @ -`",
        .0.escape_debug()
    )]
    BadChar(char),
}

impl KeyName {
    /// As it is shown and sent.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name that a key file has by its own name; `None` when it is not called `*.pem`.
    ///
    /// # Errors
    ///
    /// What is left of the file's name is no key name.
    pub fn of_file(file: &Path) -> Option<Result<Self, KeyNameError>> {
        let name = file.file_name().map_or("".into(), OsStr::to_string_lossy);
        let stem = name.strip_suffix(".pem")?;
        Some(stem.strip_suffix(".pub").unwrap_or(stem).parse())
    }
}

impl std::str::FromStr for KeyName {
    type Err = KeyNameError;

    fn from_str(text: &str) -> Result<Self, KeyNameError> {
        let first = text.chars().next().ok_or(KeyNameError::Empty)?;
        let count = text.chars().count();
        if count > KEY_NAME_CHARS_MAX {
            return Err(KeyNameError::TooLong(count));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '@' | '-');
        if let Some(bad) = text.chars().find(|c| !allowed(*c)) {
            return Err(KeyNameError::BadChar(bad));
        }
        if !first.is_ascii_alphanumeric() {
            return Err(KeyNameError::BadStart(first));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for KeyName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for KeyName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_file(path: &str) -> Option<Result<String, KeyNameError>> {
        KeyName::of_file(Path::new(path)).map(|name| name.map(|name| name.to_string()))
    }

    #[test]
    fn a_file_gives_its_key_a_name() {
        let is = |name: &str| Some(Ok(name.to_owned()));
        assert_eq!(of_file("/keys/deploy.pem"), is("deploy"));
        assert_eq!(of_file("deploy.pub.pem"), is("deploy"));
        assert_eq!(of_file("deploy.pub.pub.pem"), is("deploy.pub"));
        assert_eq!(of_file("a@b-1_2.c.pem"), is("a@b-1_2.c"));
        assert_eq!(of_file("7.pem"), is("7"));
        assert_eq!(of_file("pub.pem"), is("pub"));
    }

    #[test]
    fn a_file_of_another_kind_gives_none() {
        for path in [
            "",
            "/",
            "..",
            "pem",
            "deploy",
            "deploy.yml",
            "deploy.pem~",
            "a.PEM",
            "a.pem/b",
        ] {
            assert_eq!(of_file(path), None, "{path}");
        }
    }

    #[test]
    fn what_is_no_plain_name_is_refused() {
        assert_eq!(of_file(".pem"), Some(Err(KeyNameError::Empty)));
        assert_eq!(of_file(".pub.pem"), Some(Err(KeyNameError::Empty)));
        for (text, fault) in [
            ("", KeyNameError::Empty),
            ("../deploy", KeyNameError::BadChar('/')),
            ("/etc/deploy", KeyNameError::BadChar('/')),
            ("deploy\0", KeyNameError::BadChar('\0')),
            ("a b", KeyNameError::BadChar(' ')),
            ("a\n", KeyNameError::BadChar('\n')),
            ("schl\u{fc}ssel", KeyNameError::BadChar('\u{fc}')),
            (".deploy", KeyNameError::BadStart('.')),
            ("..", KeyNameError::BadStart('.')),
            ("-k", KeyNameError::BadStart('-')),
            ("@a", KeyNameError::BadStart('@')),
        ] {
            assert_eq!(text.parse::<KeyName>(), Err(fault), "{text:?}");
        }
        assert!("x".repeat(64).parse::<KeyName>().is_ok());
        assert_eq!(
            "x".repeat(65).parse::<KeyName>(),
            Err(KeyNameError::TooLong(65))
        );
    }
}
