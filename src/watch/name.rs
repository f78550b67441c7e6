//! What a file's name says: a child, nothing to us, or a mistake.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Path};

use crate::{
    spec::{ChildName, NameError},
    trust::Shown,
};

/// The endings of child files. Upper case is another ending.
pub(super) const ENDINGS: [&str; 2] = [".yml", ".yaml"];

/// What a name in a loadpath stands for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A child's file.
    Child(ChildName),
    /// It looks like a child's file, and no child can be called so.
    Odd(Oddity),
    /// Hidden, a backup, a temporary file, or not YAML.
    Nothing,
}

/// Why no child can be called so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Oddity {
    /// The rules of names.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Not even text.
    #[error("the name is not UTF-8")]
    NotText,
}

impl Meaning {
    pub(super) fn of(name: &OsStr) -> Self {
        let bytes = name.as_bytes();
        let Some(stem) = ENDINGS
            .iter()
            .find_map(|ending| bytes.strip_suffix(ending.as_bytes()))
        else {
            return Self::Nothing;
        };
        if bytes.starts_with(b".") {
            return Self::Nothing;
        }
        let Ok(stem) = std::str::from_utf8(stem) else {
            return Self::Odd(Oddity::NotText);
        };
        match stem.parse() {
            Ok(child) => Self::Child(child),
            Err(error) => Self::Odd(Oddity::Name(error)),
        }
    }
}

/// The diagnostic for a file that no child can be called after.
pub(super) fn diagnostic(path: &Path, oddity: &Oddity) -> String {
    let path = Shown(path);
    format!(
        "{path} is not used: {oddity}\nhelp: rename it; its name without the ending is the child's"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str) -> Meaning {
        Meaning::of(OsStr::new(name))
    }

    #[test]
    fn a_child_is_called_what_stands_before_the_ending() {
        for (file, child) in [
            ("web.yml", "web"),
            ("web.yaml", "web"),
            ("a.b.yml", "a.b"),
            ("x.yml.yml", "x.yml"),
            ("x.swp.yml", "x.swp"),
            ("job@1.yaml", "job@1"),
        ] {
            assert_eq!(of(file), Meaning::Child(child.parse().unwrap()), "{file}");
        }
    }

    #[test]
    fn hidden_backup_and_other_files_mean_nothing() {
        for file in [
            ".web.yml",
            ".yml",
            ".yaml",
            "..data",
            "web.yml~",
            ".web.yml.swp",
            "web.yml.tmp",
            "web.yml.swp",
            "#web.yml#",
            "web",
            "4913",
            "web.YML",
            "web.json",
            "README.md",
            "webyml",
            "web.yml ",
            "yml",
        ] {
            assert_eq!(of(file), Meaning::Nothing, "{file}");
        }
    }

    #[test]
    fn what_looks_like_a_child_and_cannot_be_one_is_odd() {
        for file in [
            "all.yml", "-x.yml", "a b.yml", "é.yml", "_x.yaml", "Stop.yml",
        ] {
            assert!(matches!(of(file), Meaning::Odd(Oddity::Name(_))), "{file}");
        }
        let long = "x".repeat(65) + ".yml";
        assert!(matches!(
            of(&long),
            Meaning::Odd(Oddity::Name(NameError::TooLong(65)))
        ));
        let bytes = OsStr::from_bytes(b"\xff.yml");
        assert_eq!(Meaning::of(bytes), Meaning::Odd(Oddity::NotText));
    }

    #[test]
    fn a_diagnostic_shows_a_hostile_name_without_obeying_it() {
        let path = Path::new("/srv/\x1b]0;x\x07\n.yml");
        let Meaning::Odd(oddity) = Meaning::of(path.file_name().unwrap()) else {
            panic!("odd");
        };
        let text = diagnostic(path, &oddity);
        assert!(!text.contains('\x1b') && !text.contains('\x07'), "{text:?}");
        assert_eq!(text.lines().count(), 2);
    }
}
