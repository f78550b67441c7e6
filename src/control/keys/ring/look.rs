//! A look at one key name: which files it has, and whether they make a key that can be used.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tracing::error;

use super::{
    Inner, Key, Missing,
    file::{Place, Reading, Remembered},
    folder::Sight,
};
use crate::{
    config::{self, KEY_SCOPE_BYTES_MAX, KeyScope},
    control::keys::{KeyName, PUBLIC_KEY_BYTES_MAX, PublicKey, PublicKeyError, Scope},
    spec::{Mono, Time},
    trust::{Inode, Shown, TrustedDir},
};

/// The most files of one name that a message names.
const PATHS_SHOWN_MAX: usize = 8;

/// What is known of one key name.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The key, while it can be used.
    key: Option<Arc<Key>>,
    /// Everything that is wrong with its files.
    faults: Vec<String>,
    key_file: Option<Remembered<PublicKey>>,
    scope_file: Option<Remembered<KeyScope>>,
    /// Whether it had a scope.
    scoped: Option<Scoped>,
}

/// A name's scope, once there was one.
#[derive(Debug, Clone, Copy)]
enum Scoped {
    /// It was there when last looked.
    There,
    /// It has been gone since it was looked for at this moment.
    GoneSince(Mono),
}

/// The directories as they were opened for one look, in the order of the configuration.
pub(super) struct Sights {
    dirs: Vec<Option<TrustedDir>>,
    /// When one of them last changed, in milliseconds since 1970; `None` when not all could be
    /// looked into.
    changed_ms: Option<i64>,
    /// When this look began.
    now: Time,
    /// How long a scope must have been gone until that is believed.
    scope_quiet: Duration,
}

/// A file in one of the directories.
struct Found<'a> {
    dir: &'a TrustedDir,
    folder: &'a Path,
    file: &'a OsString,
}

impl Found<'_> {
    fn path(&self) -> PathBuf {
        self.folder.join(self.file)
    }

    fn place(&self) -> Place<'_> {
        Place {
            dir: self.dir,
            file: OsStr::new(self.file),
            path: self.path(),
        }
    }
}

impl Known {
    pub(super) fn key(&self) -> Option<&Arc<Key>> {
        self.key.as_ref()
    }

    pub(super) fn faults(&self) -> &[String] {
        &self.faults
    }

    /// Whether there is nothing to be known of it any more.
    fn is_nothing(&self) -> bool {
        self.key.is_none() && self.faults.is_empty() && self.scoped.is_none()
    }

    /// Whether it may be believed that there is no scope.
    fn is_without_scope(&mut self, sights: &Sights) -> bool {
        let Time { mono, wall } = sights.now;
        let since = match self.scoped {
            None => return true,
            Some(Scoped::There) => mono,
            Some(Scoped::GoneSince(since)) => since,
        };
        let quiet_ms = i64::try_from(sights.scope_quiet.as_millis()).unwrap_or(i64::MAX);
        let unchanged = |ms: i64| wall.0.saturating_sub(ms) > quiet_ms;
        let believed =
            sights.changed_ms.is_some_and(unchanged) || mono - since >= sights.scope_quiet;
        self.scoped = (!believed).then_some(Scoped::GoneSince(since));
        believed
    }
}

impl Inner {
    /// Opens every directory, lists those that changed, and notes what is wrong with them.
    pub(super) fn look_at_folders(&mut self, now: Time) -> Sights {
        self.dir_faults = self.crowded.iter().cloned().collect();
        self.dir_notes.clear();
        let mut seen: Vec<(PathBuf, Inode)> = Vec::new();
        let mut dirs = Vec::new();
        let mut changed_ms = Some(i64::MIN);
        for folder in &mut self.folders {
            let sight = folder.look(&self.owners, now.wall.0);
            let inode = sight.inode();
            let same = seen.iter().find(|(_, other)| Some(*other) == inode);
            if let Some((other, _)) = same {
                self.dir_faults.push(format!(
                    "{} is the same directory as {}: its keys are taken once\n\
                     help: remove one of the two from `pub_keys_path` in server.yml",
                    Shown(&folder.path),
                    Shown(other)
                ));
                folder.forget();
                dirs.push(None);
                continue;
            }
            seen.extend(inode.map(|inode| (folder.path.clone(), inode)));
            dirs.push(match sight {
                Sight::Open {
                    dir,
                    changed_ms: this,
                } => {
                    changed_ms = changed_ms.map(|ms| ms.max(this));
                    Some(dir)
                }
                Sight::Missing(note) => {
                    changed_ms = None;
                    self.dir_notes.push(note);
                    None
                }
                Sight::Bad(fault) => {
                    changed_ms = None;
                    self.dir_faults.push(fault);
                    None
                }
            });
        }
        Sights {
            dirs,
            changed_ms,
            now,
            scope_quiet: self.bounds.scope_quiet,
        }
    }

    /// Looks at one name, and notes what that changes.
    pub(super) fn look_at(&mut self, name: &KeyName, sights: &Sights) -> Result<Arc<Key>, Missing> {
        let mut known = self.known.remove(name).unwrap_or_default();
        let before = known.key.take();
        known.faults.clear();
        let found = self.judge(name, sights, &mut known);
        let key = match (found, before) {
            (Some(new), Some(old)) if new.is_same(&old) && new.is_at_home_with(&old) => Some(old),
            (Some(new), Some(old)) if new.is_same(&old) => {
                // Who has the old one in hand loses it with this one.
                let uptake = Arc::clone(&old.uptake);
                Some(Arc::new(Key { uptake, ..new }))
            }
            (new, old) => {
                let new = new.map(Arc::new);
                self.untold.dropped.extend(old);
                self.untold.taken_up.extend(new.iter().cloned());
                new
            }
        };
        known.key.clone_from(&key);
        let faults = known.faults.clone();
        if !known.is_nothing() {
            self.known.insert(name.clone(), known);
        }
        match key {
            Some(key) => Ok(key),
            None if faults.is_empty() => Err(Missing::Unknown {
                name: name.clone(),
                faults: self.dir_faults.clone(),
            }),
            None => Err(Missing::Unusable {
                name: name.clone(),
                faults,
            }),
        }
    }

    /// The key that the files of a name make, if they make one; what is wrong goes to `known`.
    fn judge(&self, name: &KeyName, sights: &Sights, known: &mut Known) -> Option<Key> {
        let (mut keys, mut scopes) = (Vec::new(), Vec::new());
        for (folder, dir) in self.folders.iter().zip(&sights.dirs) {
            let (Some(dir), Some(files)) = (dir, folder.files(name)) else {
                continue;
            };
            let found = |file| Found {
                dir,
                folder: &folder.path,
                file,
            };
            keys.extend(files.keys.iter().map(found));
            scopes.extend(files.scopes.iter().map(found));
        }
        if scopes.is_empty() {
            known.scope_file = None;
        } else {
            known.scoped = Some(Scoped::There);
        }
        let key = match keys.as_slice() {
            [] => {
                known.key_file = None;
                if scopes.is_empty() {
                    // Until it is believed, the name is remembered as one that had a scope.
                    known.is_without_scope(sights);
                }
                let orphan = |scope: &Found<'_>| {
                    format!(
                        "{} is the scope of no key: there is no `{name}.pem` and no \
                         `{name}.pub.pem` beside it",
                        Shown(&scope.path())
                    )
                };
                known.faults.extend(scopes.iter().map(orphan));
                return None;
            }
            [key] => key,
            [_, _, ..] => {
                known.key_file = None;
                known.faults.push(format!(
                    "key `{name}` is not used: several files have its name: {}\n\
                     help: keep one of them, or give the others another name",
                    paths(&keys)
                ));
                return None;
            }
        };
        // Both are looked at in any case, so that all that is wrong is told at once.
        let public = self.public(name, key, known);
        let scope = self.scope(name, key, &scopes, known);
        let without = scopes.is_empty() && known.is_without_scope(sights);
        let (public, scope) = (public?, scope?);
        if scopes.is_empty() && !without {
            known.faults.push(format!(
                "key `{name}` is not used: its scope beside {} was there until a moment ago",
                Shown(&key.path())
            ));
            return None;
        }
        Some(Key {
            uptake: Arc::default(),
            name: name.clone(),
            path: key.path(),
            public,
            scope,
            scope_path: scopes.first().map(Found::path),
        })
    }

    /// The public key that a file holds.
    fn public(&self, name: &KeyName, key: &Found<'_>, known: &mut Known) -> Option<PublicKey> {
        let reading = Reading {
            owners: &self.owners,
            being_written: self.being_written,
            sure_after_ms: self.bounds.sure_after_ms,
            bytes_max: PUBLIC_KEY_BYTES_MAX,
            parse: parse_key,
        };
        let unused = |why: &dyn std::fmt::Display| format!("key `{name}` is not used: {why}");
        match reading.read(&key.place(), known.key_file.take()) {
            Ok(read) => {
                let read = known.key_file.insert(read);
                match &read.value {
                    Ok(public) => return Some(public.clone()),
                    Err(faults) => {
                        let faults = faults.iter().map(|fault| unused(fault));
                        known.faults.extend(faults);
                    }
                }
            }
            Err(error) => known.faults.push(unused(&error)),
        }
        None
    }

    /// The scope that stands beside a key; everything when there is none.
    fn scope(
        &self,
        name: &KeyName,
        key: &Found<'_>,
        scopes: &[Found<'_>],
        known: &mut Known,
    ) -> Option<Scope> {
        let unused = |why: &dyn std::fmt::Display| format!("key `{name}` is not used: {why}");
        let scope = match scopes {
            [] => return Some(Scope::everything()),
            [scope] if scope.folder == key.folder => scope,
            [scope] => {
                known.faults.push(unused(&format_args!(
                    "its scope {} is not beside {}\nhelp: put both into one directory",
                    Shown(&scope.path()),
                    Shown(&key.path())
                )));
                return None;
            }
            [_, _, ..] => {
                known.faults.push(unused(&format_args!(
                    "it has several scopes: {}\nhelp: keep one of them",
                    paths(scopes)
                )));
                return None;
            }
        };
        let reading = Reading {
            owners: &self.owners,
            being_written: self.being_written,
            sure_after_ms: self.bounds.sure_after_ms,
            bytes_max: u64::try_from(KEY_SCOPE_BYTES_MAX).unwrap_or(u64::MAX),
            parse: parse_scope,
        };
        match reading.read(&scope.place(), known.scope_file.take()) {
            Ok(read) => {
                let read = known.scope_file.insert(read);
                match &read.value {
                    Ok(limits) => return Some(Scope::of(name.clone(), limits.clone())),
                    Err(faults) => {
                        known.faults.push(unused(&format_args!(
                            "its scope {} has faults",
                            Shown(&scope.path())
                        )));
                        known.faults.extend(faults.iter().cloned());
                    }
                }
            }
            Err(error) => known
                .faults
                .push(unused(&format_args!("its scope: {error}"))),
        }
        None
    }
}

fn parse_key(path: &Path, bytes: &[u8]) -> Result<PublicKey, Vec<String>> {
    let parsed = PublicKey::from_pem(bytes);
    if let Err(PublicKeyError::PrivateKey) = parsed {
        // Loudly, and once for each time that it is read: whoever can read it can command.
        error!(path = %path.display(), "a private key lies where public keys belong");
    }
    parsed.map_err(|error| vec![format!("{}: {error}", Shown(path))])
}

fn parse_scope(path: &Path, bytes: &[u8]) -> Result<KeyScope, Vec<String>> {
    let parsed = config::key_scope(path, bytes);
    parsed.map_err(|faults| faults.iter().map(ToString::to_string).collect())
}

fn paths(found: &[Found<'_>]) -> String {
    let shown = found.iter().take(PATHS_SHOWN_MAX);
    let shown: Vec<String> = shown.map(|one| Shown(&one.path()).to_string()).collect();
    let more = match found.len().saturating_sub(PATHS_SHOWN_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    shown.join(", ") + &more
}
