//! One directory of `pub_keys_path`: opened, checked and, if it changed, listed at each look.
//!
//! - It is opened by its whole way each time, so whoever can no longer be trusted on that way, and
//!   a link that leads elsewhere now, are noticed at the next look.
//! - What stands in it is listed again unless its identity is the same and old enough to be told
//!   from a later one.
//! - A name is only ever looked up in the listing. What is opened is a name that the directory
//!   itself gave.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use super::{Bounds, file::is_sure};
use crate::{
    control::keys::{KeyName, KeyNameError},
    trust::{self, Identity, Inode, Links, Owners, Shown, TrustError, TrustedDir},
};

/// The most files in a directory of keys, whatever they are called. Of one with more, no key is
/// taken: somebody named the wrong directory.
pub const KEY_DIR_FILES_MAX: usize = 8192;

/// How often a directory that changes meanwhile is listed in a row.
const LIST_ATTEMPTS_MAX: usize = 4;

/// How scopes end, in any case: one that is overlooked would limit nothing.
const SCOPE_ENDINGS: [&str; 2] = [".yml", ".yaml"];

/// A directory and what was last seen in it.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) path: PathBuf,
    bounds: Bounds,
    listed: Option<Listed>,
}

#[derive(Debug)]
struct Listed {
    identity: Identity,
    /// Whether an equal identity means an equal listing.
    sure: bool,
    files: BTreeMap<KeyName, Files>,
    /// What is wrong with other names.
    faults: Vec<String>,
}

/// The files of one key name in one directory.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) keys: Vec<OsString>,
    pub(super) scopes: Vec<OsString>,
}

/// How a directory was found.
#[derive(Debug)]
pub(super) enum Sight {
    /// It can be used.
    Open {
        dir: TrustedDir,
        /// When it last changed, in milliseconds since 1970.
        changed_ms: i64,
    },
    /// It is not there; the text says so.
    Missing(String),
    /// It cannot be used; the text says why.
    Bad(String),
}

impl Sight {
    /// Which directory it is.
    pub(super) fn inode(&self) -> Option<Inode> {
        match self {
            Self::Open { dir, .. } => Some(dir.inode()),
            Self::Missing(_) | Self::Bad(_) => None,
        }
    }
}

/// What a file's name makes of it.
enum Meaning {
    Key(Result<KeyName, KeyNameError>),
    Scope(Result<KeyName, KeyNameError>),
    Nothing,
}

impl Meaning {
    fn of(file: &OsStr) -> Self {
        let bytes = file.as_bytes();
        if bytes.starts_with(b".") || bytes.ends_with(b"~") {
            return Self::Nothing;
        }
        if let Some(name) = KeyName::of_file(Path::new(file)) {
            return Self::Key(name);
        }
        let text = file.to_string_lossy();
        let stem = SCOPE_ENDINGS.iter().find_map(|ending| {
            let (stem, end) = text.split_at_checked(text.len().checked_sub(ending.len())?)?;
            end.eq_ignore_ascii_case(ending).then_some(stem)
        });
        match stem {
            Some(stem) => Self::Scope(stem.strip_suffix(".pub").unwrap_or(stem).parse()),
            None => Self::Nothing,
        }
    }
}

impl Folder {
    pub(super) fn new(path: PathBuf, bounds: Bounds) -> Self {
        Self {
            path,
            bounds,
            listed: None,
        }
    }

    /// Opens it, and lists it if it may have changed. `now_ms` is what the wall clock showed
    /// before.
    pub(super) fn look(&mut self, owners: &Owners, now_ms: i64) -> Sight {
        match self.open(owners, now_ms) {
            Ok(sight) => sight,
            Err(error) => {
                self.listed = None;
                let text = format!("no key is taken from {}: {error}", Shown(&self.path));
                match error.is_missing() {
                    true => Sight::Missing(text),
                    false => Sight::Bad(text),
                }
            }
        }
    }

    fn open(&mut self, owners: &Owners, now_ms: i64) -> Result<Sight, TrustError> {
        let dir = trust::open_dir(&self.path, owners)?;
        let mut identity = identity_of(&dir)?;
        let known = self.listed.as_ref();
        if !known.is_some_and(|listed| listed.sure && listed.identity == identity) {
            let mut attempts = 0..LIST_ATTEMPTS_MAX;
            loop {
                let missing = || TrustError::Missing {
                    path: dir.path().to_owned(),
                };
                let changing = || TrustError::Changing {
                    path: dir.path().to_owned(),
                };
                attempts.next().ok_or_else(changing)?;
                let names = dir
                    .names(self.bounds.files_max, |_| true)?
                    .ok_or_else(missing)?;
                let after = identity_of(&dir)?;
                // Else a file that was renamed meanwhile may stand nowhere in the list.
                if after == identity {
                    self.listed = Some(self.list(names, identity, now_ms));
                    break;
                }
                identity = after;
            }
        }
        let changed_ms = i64::try_from(identity.ctime_ns / 1_000_000).unwrap_or(i64::MAX);
        Ok(Sight::Open { dir, changed_ms })
    }

    fn list(&self, names: Vec<OsString>, identity: Identity, now_ms: i64) -> Listed {
        let mut files: BTreeMap<KeyName, Files> = BTreeMap::new();
        let mut faults = Vec::new();
        for file in names {
            let wrong = match Meaning::of(&file) {
                Meaning::Nothing => continue,
                Meaning::Key(Ok(name)) => {
                    files.entry(name).or_default().keys.push(file);
                    continue;
                }
                Meaning::Scope(Ok(name)) => {
                    files.entry(name).or_default().scopes.push(file);
                    continue;
                }
                Meaning::Key(Err(wrong)) | Meaning::Scope(Err(wrong)) => wrong,
            };
            let path = self.path.join(file);
            faults.push(format!(
                "{} is not used: {wrong}\nhelp: give it another name, or move it elsewhere",
                Shown(&path)
            ));
        }
        faults.sort();
        for files in files.values_mut() {
            files.keys.sort();
            files.scopes.sort();
        }
        Listed {
            identity,
            sure: is_sure(&identity, now_ms, self.bounds.sure_after_ms),
            files,
            faults,
        }
    }

    /// Forgets what stands in it.
    pub(super) fn forget(&mut self) {
        self.listed = None;
    }

    #[cfg(test)]
    pub(super) fn is_sure(&self) -> bool {
        self.listed.as_ref().is_some_and(|listed| listed.sure)
    }

    /// The files of a key name, as of the last look.
    pub(super) fn files(&self, name: &KeyName) -> Option<&Files> {
        self.listed.as_ref()?.files.get(name)
    }

    /// The key names, as of the last look.
    pub(super) fn names(&self) -> impl Iterator<Item = &KeyName> {
        self.listed.iter().flat_map(|listed| listed.files.keys())
    }

    /// What is wrong with names of files, as of the last look.
    pub(super) fn faults(&self) -> &[String] {
        self.listed.as_ref().map_or(&[], |listed| &listed.faults)
    }
}

fn identity_of(dir: &TrustedDir) -> Result<Identity, TrustError> {
    let system = |errno| TrustError::System {
        path: dir.path().to_owned(),
        action: "look at",
        errno,
    };
    let stat = dir.stat(OsStr::new("."), Links::Keep).map_err(system)?;
    let missing = || TrustError::Missing {
        path: dir.path().to_owned(),
    };
    stat.as_ref().map(Identity::from).ok_or_else(missing)
}
