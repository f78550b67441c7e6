//! The keys that the server knows: what stands in the directories of `pub_keys_path`, now.
//!
//! - Nothing is believed without a look at the disk: each time a key is asked for, its directories
//!   are opened with the trust check, listed again if they changed, and its files are opened with
//!   the trust check too. So a key that is dropped in works at once, and one that was deleted,
//!   renamed, replaced or made writable for others is refused at once. Only what was read under
//!   the very same identity is not read and parsed again.
//! - A key name is looked up in the listing of the directories and never joined to a path.
//! - Exactly one file may give a key its name, in all directories together; else it is not used.
//! - It fails closed: a scope file (`NAME.yml`, `NAME.yaml`, and with `.pub` before that) that is
//!   bad, not trusted, too large, being written, there twice, or not beside its key makes the key
//!   unusable. One that vanishes leaves the key unusable for the quiet second: editors, `rsync` and
//!   `git checkout` replace a file by removing it first, and the key must not be able to do
//!   everything in between. Whoever puts a scoped key there puts its scope there first.
//! - What was taken up and dropped is told once, by [`Ring::refresh`], whichever look found it.
//!
//! Every directory, file and list has a bound ([`KEY_DIRS_MAX`], [`KEY_DIR_FILES_MAX`],
//! [`UNTOLD_MAX`], [`FAULTS_TOLD_MAX`]).
//!
//! Absent on purpose: waiting and watching; whoever is told that something changed calls
//! [`Ring::refresh`], and a key is found without that too. Threads: any may ask, from where it may
//! block; they wait for each other.

mod file;
mod folder;
mod look;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

pub use self::{file::BeingWritten, folder::KEY_DIR_FILES_MAX};
use self::{file::SURE_AFTER_MS, folder::Folder, look::Known};
use super::{KeyName, PublicKey, Scope};
use crate::{
    clock,
    trust::{Owners, Shown},
};

/// The most directories that keys are taken from; others are not looked into.
pub const KEY_DIRS_MAX: usize = 64;

/// The most changes that are kept for the next [`Ring::refresh`] to tell. After so many without
/// one, no key is found until there is one.
pub const UNTOLD_MAX: usize = 16_384;

/// The most faults that are told at once; the others are counted.
pub const FAULTS_TOLD_MAX: usize = 200;

/// How long a scope must have been gone until that is believed: the quiet second.
const SCOPE_QUIET: Duration = Duration::from_secs(1);

/// What a look goes by; tests have their own.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// [`KEY_DIR_FILES_MAX`].
    files_max: usize,
    /// [`SURE_AFTER_MS`].
    sure_after_ms: i64,
    /// [`SCOPE_QUIET`].
    scope_quiet: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            files_max: KEY_DIR_FILES_MAX,
            sure_after_ms: SURE_AFTER_MS,
            scope_quiet: SCOPE_QUIET,
        }
    }
}

/// One taking up of a key. It stays the same while the key's files are moved.
#[derive(Debug, Default)]
pub struct Uptake(());

/// A key that the server knows.
#[derive(Debug)]
pub struct Key {
    uptake: Arc<Uptake>,
    name: KeyName,
    path: PathBuf,
    public: PublicKey,
    scope: Scope,
    /// The file that says so; `None` when it may be used for everything.
    scope_path: Option<PathBuf>,
}

impl Key {
    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &KeyName {
        &self.name
    }

    /// Its file, under its directory as that was configured.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What signatures are checked with.
    #[must_use]
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// What it may be used for.
    #[must_use]
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// The file that limits what it may be used for, under its directory as that was configured.
    #[must_use]
    pub fn scope_path(&self) -> Option<&Path> {
        self.scope_path.as_deref()
    }

    /// Which taking up of it this is: another once it was dropped, the same wherever its files are
    /// moved to meanwhile.
    #[must_use]
    pub fn uptake(&self) -> &Arc<Uptake> {
        &self.uptake
    }

    /// Whether it is the same key under the same name with the same scope, wherever its file is.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let of_key = |key: &Self| (key.name.clone(), key.public.fingerprint().clone());
        of_key(self) == of_key(other) && self.scope == other.scope
    }
}

impl Key {
    /// Whether the files of both are the same.
    fn is_at_home_with(&self, other: &Self) -> bool {
        (&self.path, &self.scope_path) == (&other.path, &other.scope_path)
    }
}

/// Why there is no key of a name. For the log, not for the peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// No file gives this name.
    #[error("no key file has the name `{name}`{}", out_of_sight(faults))]
    Unknown {
        /// The name.
        name: KeyName,
        /// Why it may stand in a directory that could not be looked into.
        faults: Vec<String>,
    },
    /// There is a file, but it cannot be used.
    #[error("{}", faults.join("\n"))]
    Unusable {
        /// The name.
        name: KeyName,
        /// Everything that is wrong with it.
        faults: Vec<String>,
    },
    /// Nobody asked for the changes, see [`UNTOLD_MAX`].
    #[error("key `{name}` is not looked for: more than {UNTOLD_MAX} changes were not asked for")]
    Untold {
        /// The name.
        name: KeyName,
    },
}

fn out_of_sight(faults: &[String]) -> String {
    match faults {
        [] => String::new(),
        faults => format!(" where it can be looked for:\n{}", faults.join("\n")),
    }
}

/// What is different from when it was last asked for.
#[derive(Debug, Default)]
pub struct Changes {
    /// Keys that can be used now, or could for a while.
    pub taken_up: Vec<Arc<Key>>,
    /// Keys that are gone, were replaced, or whose scope is another: what they had open is to be
    /// closed. One that was taken up and dropped since stands in both.
    pub dropped: Vec<Arc<Key>>,
    /// Everything that is wrong now, each as a whole diagnostic.
    pub faults: Vec<String>,
    /// Those of `faults` that were not there the last time.
    pub new_faults: Vec<String>,
    /// Directories that do not exist (yet), which is no fault.
    pub notes: Vec<String>,
    /// Those of `notes` that were not there the last time.
    pub new_notes: Vec<String>,
    /// That there is no key any more, or from the beginning: told once.
    pub is_newly_empty: bool,
}

/// What the last look found.
#[derive(Debug, Clone, Default)]
pub struct RingSurvey {
    /// The keys that can be used, sorted by name.
    pub keys: Vec<Arc<Key>>,
    /// Everything that is wrong, each as a whole diagnostic.
    pub faults: Vec<String>,
    /// Directories that do not exist (yet), which is no fault.
    pub notes: Vec<String>,
}

/// The keys that the server knows. See the module's head.
#[derive(Debug)]
pub struct Ring {
    inner: Mutex<Inner>,
    /// What the next look goes by, if it is another. Locked for a moment only, and never while
    /// `inner` is waited for.
    configured: Mutex<Option<Configured>>,
}

/// What [`Ring::configure`] was told.
#[derive(Debug)]
struct Configured {
    dirs: Vec<PathBuf>,
    owners: Owners,
}

#[derive(Debug)]
struct Inner {
    owners: Owners,
    being_written: Option<BeingWritten>,
    bounds: Bounds,
    folders: Vec<Folder>,
    /// That there are more directories than are looked into.
    crowded: Option<String>,
    /// What is known of each name that has, or just had, a file.
    known: BTreeMap<KeyName, Known>,
    /// What is wrong with directories, as of the last look.
    dir_faults: Vec<String>,
    dir_notes: Vec<String>,
    untold: Untold,
    /// What the last refresh told.
    told: BTreeSet<String>,
    /// Whether it told that there is no key.
    told_empty: bool,
}

/// Changes that no refresh has told yet.
#[derive(Debug, Default)]
struct Untold {
    taken_up: Vec<Arc<Key>>,
    dropped: Vec<Arc<Key>>,
}

impl Ring {
    /// A ring over these directories (absolute; they need not exist), whose files these users may
    /// own. Nothing is looked at yet.
    #[must_use]
    pub fn new(dirs: Vec<PathBuf>, owners: Owners) -> Self {
        let mut inner = Inner {
            owners,
            being_written: None,
            bounds: Bounds::default(),
            folders: Vec::new(),
            crowded: None,
            known: BTreeMap::new(),
            dir_faults: Vec::new(),
            dir_notes: Vec::new(),
            untold: Untold::default(),
            told: BTreeSet::new(),
            told_empty: false,
        };
        inner.set_folders(dirs);
        Self {
            inner: Mutex::new(inner),
            configured: Mutex::new(None),
        }
    }

    /// As it is, and files that somebody has open for writing are not used until he closes them.
    #[must_use]
    pub fn with_writers_seen(self, being_written: BeingWritten) -> Self {
        self.lock().being_written = Some(being_written);
        self
    }

    /// Other directories, other owners, or both. Takes effect with the next look. Never waits: not
    /// even for a look at a disk that does not answer.
    pub fn configure(&self, dirs: Vec<PathBuf>, owners: Owners) {
        *self.configured() = Some(Configured { dirs, owners });
    }

    /// The key of this name, as it is on disk now. Blocks.
    ///
    /// # Errors
    ///
    /// There is none, or it cannot be used.
    pub fn find(&self, name: &KeyName) -> Result<Arc<Key>, Missing> {
        let mut inner = self.lock();
        if inner.untold.taken_up.len() + inner.untold.dropped.len() >= UNTOLD_MAX {
            return Err(Missing::Untold { name: name.clone() });
        }
        let sights = inner.look_at_folders(clock::now());
        inner.look_at(name, &sights)
    }

    /// Whether this very key, with this very scope, is there now. Blocks.
    #[must_use]
    pub fn is_current(&self, key: &Key) -> bool {
        let found = self.find(&key.name);
        found.is_ok_and(|found| found.is_same(key))
    }

    /// Looks at everything, and tells what changed since the last refresh. Blocks.
    pub fn refresh(&self) -> Changes {
        let mut inner = self.lock();
        inner.look_at_everything();
        let Untold { taken_up, dropped } = std::mem::take(&mut inner.untold);
        let (faults, notes) = (inner.faults(), inner.dir_notes.clone());
        let new = |all: &[String], told: &BTreeSet<String>| -> Vec<String> {
            let new = all.iter().filter(|text| !told.contains(*text));
            new.cloned().collect()
        };
        let (new_faults, new_notes) = (new(&faults, &inner.told), new(&notes, &inner.told));
        inner.told = faults.iter().chain(&notes).cloned().collect();
        let is_empty = inner.known.values().all(|known| known.key().is_none());
        let told_empty = std::mem::replace(&mut inner.told_empty, is_empty);
        Changes {
            taken_up,
            dropped,
            faults,
            new_faults,
            notes,
            new_notes,
            is_newly_empty: is_empty && !told_empty,
        }
    }

    /// Looks at everything, and tells what there is. Blocks.
    #[must_use]
    pub fn look(&self) -> RingSurvey {
        let mut inner = self.lock();
        inner.look_at_everything();
        inner.survey()
    }

    /// What the last looks found. Looks at nothing itself.
    #[must_use]
    pub fn survey(&self) -> RingSurvey {
        self.lock().survey()
    }

    /// As it is configured now. What a panic elsewhere may have left is put right by the next
    /// look.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Configured { dirs, owners }) = self.configured().take() {
            inner.owners = owners;
            inner.set_folders(dirs);
        }
        inner
    }

    fn configured(&self) -> MutexGuard<'_, Option<Configured>> {
        let configured = self.configured.lock();
        configured.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn look_at_everything(&mut self) {
        let sights = self.look_at_folders(clock::now());
        let listed = self.folders.iter().flat_map(Folder::names);
        let names: BTreeSet<KeyName> = listed.chain(self.known.keys()).cloned().collect();
        for name in names {
            // What is wrong with it is told with all faults.
            let _ = self.look_at(&name, &sights);
        }
    }

    fn survey(&self) -> RingSurvey {
        let keys = self.known.values().filter_map(Known::key);
        RingSurvey {
            keys: keys.cloned().collect(),
            faults: self.faults(),
            notes: self.dir_notes.clone(),
        }
    }

    fn set_folders(&mut self, mut dirs: Vec<PathBuf>) {
        let left_out = dirs.get(KEY_DIRS_MAX).map(|first| {
            format!(
                "no key is taken from {} and the directories after it: at most {KEY_DIRS_MAX} \
                 are looked into",
                Shown(first)
            )
        });
        self.crowded = left_out;
        dirs.truncate(KEY_DIRS_MAX);
        let mut old = std::mem::take(&mut self.folders);
        for path in dirs {
            let known = old.iter().position(|folder| folder.path == path);
            let folder = known.map(|at| old.swap_remove(at));
            let bounds = self.bounds;
            self.folders
                .push(folder.unwrap_or_else(|| Folder::new(path, bounds)));
        }
    }

    /// Everything that is wrong, no more than is told.
    fn faults(&self) -> Vec<String> {
        let of_folders = self.folders.iter().flat_map(Folder::faults);
        let of_keys = self.known.values().flat_map(Known::faults);
        let mut all = self.dir_faults.iter().chain(of_folders).chain(of_keys);
        let mut told: Vec<String> = all.by_ref().take(FAULTS_TOLD_MAX).cloned().collect();
        match all.count() {
            0 => {}
            more => told.push(format!("{more} more faults of keys are not shown")),
        }
        told
    }
}
