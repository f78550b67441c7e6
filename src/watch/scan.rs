//! Reads the loadpaths: all of them, or the names that something happened to.
//!
//! What a name stands for is put together from what is known of its files, so two files of one
//! name are a conflict wherever they stand. A partial read that finds a loadpath elsewhere than
//! before says so and reads nothing: then everything is to be read.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map},
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use rustix::fs::FileType;

use super::{
    BeingWritten, WatchConfig,
    loaded::{FILES_MAX, Loaded, Respect},
    name::{ENDINGS, Meaning},
    reader::Reader,
    settle::{Found, Writing},
};
use crate::{
    reconcile::listing::{Content, Entry, Loadpath, LoadpathState, Scope, Update},
    spec::{ChildName, Mono, Spec},
    trust::{self, Links, Owners, TrustError, TrustedDir, Way},
};

/// How long an order waits between its looks at a file that is being written: as long as a
/// closing takes after the writer saw it done, or another program's fork until it executes.
const REREAD_PAUSES: [Duration; 3] = [
    Duration::from_millis(1),
    Duration::from_millis(2),
    Duration::from_millis(4),
];

/// How a partial read ended.
#[derive(Debug)]
pub(super) enum Partial {
    /// This is what changed.
    Read(Update),
    /// Nothing changed.
    Same,
    /// A loadpath is not where or what it was: everything is to be read.
    Elsewhere,
}

/// All loadpaths and what is known of their files.
pub(super) struct Scanner {
    loadpaths: Vec<Loaded>,
    reader: Reader,
}

impl Scanner {
    pub(super) fn new(config: &WatchConfig, being_written: BeingWritten) -> Self {
        let paths = config.loadpaths.iter().cloned();
        Self {
            loadpaths: paths.map(Loaded::new).collect(),
            reader: Reader {
                parse: Arc::clone(&config.parse),
                owners: config.owners.clone(),
                being_written,
                files_max: FILES_MAX,
            },
        }
    }

    /// Reads other loadpaths, or the same in another way, from now on.
    pub(super) fn configure(&mut self, config: &WatchConfig) {
        let mut old: BTreeMap<PathBuf, Loaded> = std::mem::take(&mut self.loadpaths)
            .into_iter()
            .map(|loaded| (loaded.path.clone(), loaded))
            .collect();
        let same =
            Arc::ptr_eq(&self.reader.parse, &config.parse) && self.reader.owners == config.owners;
        for path in &config.loadpaths {
            let loaded = old.remove(path);
            let mut loaded = loaded.unwrap_or_else(|| Loaded::new(path.clone()));
            if !same {
                loaded.doubt();
            }
            self.loadpaths.push(loaded);
        }
        self.reader.parse = Arc::clone(&config.parse);
        self.reader.owners = config.owners.clone();
    }

    /// Takes what ran last for what stood in its file.
    pub(super) fn remember(&mut self, ran: &[Arc<Spec>]) {
        for spec in ran {
            let loadpaths = self.loadpaths.iter_mut();
            for loaded in loadpaths.filter(|loaded| loaded.path == spec.folder()) {
                loaded.remember(spec);
            }
        }
    }

    /// Forgets files that are gone.
    pub(super) fn forget(&mut self) {
        self.loadpaths.iter_mut().for_each(Loaded::lay_ghosts);
    }

    /// Where each loadpath is now.
    pub(super) fn find(&self) -> Vec<Found> {
        let paths = self.loadpaths.iter().map(|loaded| &loaded.path);
        paths.map(|path| find(path, &self.reader.owners)).collect()
    }

    fn open(&self, index: usize, way: &mut Way) -> Result<TrustedDir, TrustError> {
        trust::open_dir_along(&self.loadpaths[index].path, &self.reader.owners, way)
    }

    /// The directory of a loadpath, when it is still the one that was read.
    fn open_same(&self, index: usize) -> Result<Option<TrustedDir>, Partial> {
        let opened = self.open(index, &mut Way::default());
        let (state, dir) = match opened {
            Ok(dir) => {
                let inode = dir.inode();
                let (dev, ino) = (inode.dev, inode.ino);
                (LoadpathState::Ready { dev, ino }, Some(dir))
            }
            Err(error) => (state_of(&error), None),
        };
        if state == self.loadpaths[index].state {
            Ok(dir)
        } else {
            Err(Partial::Elsewhere)
        }
    }

    /// Reads everything. Hints are respected unless some may have been lost.
    pub(super) fn whole(&mut self, scope: Scope, respect: Respect) -> Update {
        for index in 0..self.loadpaths.len() {
            match self.open(index, &mut Way::default()) {
                Ok(dir) => self.loadpaths[index].read_all(&self.reader, &dir, respect),
                Err(error) => self.loadpaths[index].be(state_of(&error)),
            }
            match scope {
                Scope::Confirming => self.loadpaths[index].lay_ghosts(),
                Scope::Whole | Scope::Touched => {}
            }
        }
        Update {
            scope,
            loadpaths: self.states(),
            entries: self.all(),
        }
    }

    /// Reads what hints speak of.
    pub(super) fn touch(&mut self, hints: BTreeMap<(usize, OsString), Option<Writing>>) -> Partial {
        let mut dirs: BTreeMap<usize, Option<TrustedDir>> = BTreeMap::new();
        let mut files = BTreeSet::new();
        let mut swapped = BTreeSet::new();
        for ((index, file), writing) in hints {
            let Some(loaded) = self.loadpaths.get_mut(index) else {
                continue;
            };
            // There should be another hint when it is closed.
            if writing == Some(Writing::Open) {
                loaded.note_open(&file);
                continue;
            }
            let dir = match dirs.entry(index) {
                btree_map::Entry::Occupied(opened) => opened.into_mut(),
                btree_map::Entry::Vacant(first) => match self.open_same(index) {
                    Ok(dir) => first.insert(dir),
                    Err(partial) => return partial,
                },
            };
            let Some(dir) = dir else {
                continue;
            };
            match Meaning::of(&file) {
                Meaning::Nothing if leads_further(dir, &file) => {
                    swapped.insert(index);
                }
                Meaning::Nothing => {}
                Meaning::Child(_) | Meaning::Odd(_) => {
                    let noted = writing
                        .is_none_or(|writing| self.loadpaths[index].note(dir, &file, writing));
                    if noted {
                        files.insert((index, file));
                    }
                }
            }
        }
        let dirs = dirs
            .into_iter()
            .filter_map(|(index, dir)| Some((index, dir?)))
            .collect();
        self.read(&dirs, &files, &swapped)
    }

    /// Reads these files, and all links of the loadpaths in which links may have been swapped.
    fn read(
        &mut self,
        dirs: &BTreeMap<usize, TrustedDir>,
        files: &BTreeSet<(usize, OsString)>,
        swapped: &BTreeSet<usize>,
    ) -> Partial {
        let child_of = |file: &OsString| match Meaning::of(file) {
            Meaning::Child(child) => Some(child),
            Meaning::Odd(_) | Meaning::Nothing => None,
        };
        let linked = swapped.iter().map(|index| self.loadpaths[*index].linked());
        let linked: BTreeSet<OsString> = linked.flatten().collect();
        let files_read = files.iter().map(|(_, file)| file);
        let names: BTreeSet<ChildName> = files_read.chain(&linked).filter_map(child_of).collect();
        let before = (self.entries(&names), self.states());
        for (index, file) in files {
            if let Some(dir) = dirs.get(index) {
                self.loadpaths[*index].look(&self.reader, dir, file, Respect::Hints);
            }
        }
        for index in swapped {
            if let Some(dir) = dirs.get(index) {
                self.loadpaths[*index].look_through_links(&self.reader, dir, Respect::Hints);
            }
        }
        let (mut entries, loadpaths) = (self.entries(&names), self.states());
        let mut old = before.0.into_iter();
        entries.retain(|entry| old.next().as_ref() != Some(entry));
        if entries.is_empty() && loadpaths == before.1 {
            return Partial::Same;
        }
        Partial::Read(Update {
            scope: Scope::Touched,
            loadpaths,
            entries,
        })
    }

    /// Heeds what hints say of files that are to be read anyway: which were closed, and which are
    /// being written.
    pub(super) fn heed(&mut self, hints: &BTreeMap<(usize, OsString), Option<Writing>>) {
        for ((index, file), writing) in hints {
            let Some(loaded) = self.loadpaths.get_mut(*index) else {
                continue;
            };
            match writing {
                Some(Writing::Done | Writing::Reopened) => loaded.note_closed(file),
                Some(Writing::Open) => loaded.note_open(file),
                // Whether it is a link or came whole is to be seen.
                Some(Writing::Begun) | None => {}
            }
        }
    }

    /// When to look again at files that are being written.
    pub(super) fn next_look(&self) -> Option<Mono> {
        self.loadpaths.iter().filter_map(Loaded::next_look).min()
    }

    /// The files that are to be looked at again now.
    pub(super) fn due(&mut self, now: Mono) -> BTreeMap<(usize, OsString), Option<Writing>> {
        let loadpaths = self.loadpaths.iter_mut().enumerate();
        loadpaths
            .flat_map(|(index, loaded)| {
                let due = loaded.due(now).into_iter();
                due.map(move |file| ((index, file), None))
            })
            .collect()
    }

    /// Reads these names wherever they may stand, and tells about each. One that is being written
    /// is waited for a few milliseconds: whoever writes a file and gives an order right after it
    /// means the new one, and the file may not count as closed yet.
    pub(super) fn reread(&mut self, names: &BTreeSet<ChildName>) -> Partial {
        for pause in REREAD_PAUSES {
            match self.look_at(names) {
                Err(partial) => return partial,
                Ok(()) if !self.is_any_awaited(names) => return Partial::Read(self.recall(names)),
                Ok(()) => thread::sleep(pause),
            }
        }
        match self.look_at(names) {
            Err(partial) => partial,
            Ok(()) => Partial::Read(self.recall(names)),
        }
    }

    fn look_at(&mut self, names: &BTreeSet<ChildName>) -> Result<(), Partial> {
        for index in 0..self.loadpaths.len() {
            let Some(dir) = self.open_same(index)? else {
                continue;
            };
            for file in names.iter().flat_map(files_of) {
                self.loadpaths[index].look(&self.reader, &dir, &file, Respect::Nothing);
            }
        }
        Ok(())
    }

    fn is_any_awaited(&self, names: &BTreeSet<ChildName>) -> bool {
        let mut files = names.iter().flat_map(files_of);
        files.any(|file| {
            let mut loadpaths = self.loadpaths.iter();
            loadpaths.any(|loaded| loaded.is_awaited(&file))
        })
    }

    /// What is known of these names.
    pub(super) fn recall(&self, names: &BTreeSet<ChildName>) -> Update {
        Update {
            scope: Scope::Touched,
            loadpaths: self.states(),
            entries: self.entries(names),
        }
    }

    fn states(&self) -> Vec<Loadpath> {
        let state = |loaded: &Loaded| Loadpath {
            path: loaded.path.clone(),
            state: loaded.state.clone(),
            faults: loaded.faults(),
        };
        self.loadpaths.iter().map(state).collect()
    }

    fn entries(&self, names: &BTreeSet<ChildName>) -> Vec<(ChildName, Option<Entry>)> {
        let entry = |name: &ChildName| {
            let mut found = Vec::new();
            for loaded in &self.loadpaths {
                for file in files_of(name) {
                    if let Some(content) = loaded.content(&file) {
                        found.push((loaded.path.join(file), content));
                    }
                }
            }
            (name.clone(), entry_of(found))
        };
        names.iter().map(entry).collect()
    }

    fn all(&self) -> Vec<(ChildName, Option<Entry>)> {
        let mut found: BTreeMap<&ChildName, Vec<(PathBuf, &Content)>> = BTreeMap::new();
        for loaded in &self.loadpaths {
            for (file, child, content) in loaded.files() {
                let files = found.entry(child).or_default();
                files.push((loaded.path.join(file), content));
            }
        }
        let entry = |(name, found): (&ChildName, _)| (name.clone(), entry_of(found));
        found.into_iter().map(entry).collect()
    }

    #[cfg(test)]
    pub(super) fn set_files_max(&mut self, files_max: usize) {
        self.reader.files_max = files_max;
    }
}

/// Where a directory is now.
pub(super) fn find(path: &Path, owners: &Owners) -> Found {
    let mut way = Way::default();
    // What is wrong with it is told by whoever reads it.
    let dir = trust::open_dir_along(path, owners, &mut way).ok();
    let dir = dir.map(|dir| (dir.path().to_owned(), dir.inode()));
    Found { way, dir }
}

/// What these files of one name amount to.
fn entry_of(mut found: Vec<(PathBuf, &Content)>) -> Option<Entry> {
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    let content = match found.as_slice() {
        [] => return None,
        [(_, content)] => (*content).clone(),
        [_, _, ..] => Content::Conflict,
    };
    let paths = found.into_iter().map(|(path, _)| path).collect();
    Some(Entry { paths, content })
}

/// The files that a child may have in a loadpath.
fn files_of(name: &ChildName) -> [OsString; 2] {
    ENDINGS.map(|ending| format!("{name}{ending}").into())
}

/// Whether links may lead through this name, as they do through `..data` of a ConfigMap. One
/// that is gone may have been one of these.
fn leads_further(dir: &TrustedDir, file: &OsStr) -> bool {
    match dir.stat(file, Links::Keep) {
        Ok(Some(stat)) => match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory | FileType::Symlink => true,
            FileType::RegularFile
            | FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => false,
        },
        Ok(None) | Err(_) => true,
    }
}

fn state_of(error: &TrustError) -> LoadpathState {
    if error.is_missing() {
        LoadpathState::Missing
    } else {
        LoadpathState::Unreadable(error.to_string())
    }
}
