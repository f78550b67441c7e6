//! One loadpath as it was last read: each file's content, and what tells whether it changed.
//!
//! - A file whose identity is unchanged is neither opened nor parsed again (I9).
//! - A file that somebody still writes is not read; what was known of it stays, and it is looked
//!   at again (`awaited`). That holds too when it was removed and is written anew, so what was
//!   removed is remembered for a while.
//! - What is known outlives a loadpath that is away for a time; the scanner does not list it then.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    path::PathBuf,
    sync::Arc,
};

use rustix::fs::{FileType, Stat};

use super::{
    awaited::Awaited,
    name::{Meaning, diagnostic},
    reader::{Look, Print, Reader},
    settle::Writing,
};
use crate::{
    clock,
    reconcile::listing::{Content, LoadpathState},
    spec::{ChildName, Mono, Spec},
    trust::{Links, TrustedDir},
};

/// The most files that are listed in one loadpath.
pub(super) const FILES_MAX: usize = 100_000;

/// The most removed files that are remembered in one loadpath.
const GHOSTS_MAX: usize = 1024;

/// The most faulty names that are shown of one loadpath; the others are counted.
const FAULTS_MAX: usize = 100;

/// How often links are looked at in a row that are led elsewhere meanwhile. Another look follows
/// in any case, since each swap is told of.
const SWAPS_MAX: usize = 4;

/// A loadpath and what is known of its files.
pub(super) struct Loaded {
    pub(super) path: PathBuf,
    pub(super) state: LoadpathState,
    files: BTreeMap<OsString, Known>,
    /// Names that no child can have, with their diagnostics.
    odd: BTreeMap<OsString, String>,
    /// Which files are links.
    linked: BTreeSet<OsString>,
    /// Files that are being written.
    awaited: Awaited,
    /// What was last known of files that are gone.
    ghosts: BTreeMap<OsString, Content>,
}

/// What is known of a file.
struct Known {
    child: ChildName,
    print: Option<Print>,
    content: Content,
}

/// What hints that a file is being written mean to a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Respect {
    /// They are believed for a while.
    Hints,
    /// Nothing: some may have been lost.
    Nothing,
}

impl Loaded {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            state: LoadpathState::Missing,
            files: BTreeMap::new(),
            odd: BTreeMap::new(),
            linked: BTreeSet::new(),
            awaited: Awaited::default(),
            ghosts: BTreeMap::new(),
        }
    }

    /// Takes this for what stood in its file before it was first looked at.
    pub(super) fn remember(&mut self, spec: &Arc<Spec>) {
        if let Some(file) = spec.path.file_name() {
            let content = Content::Good(Arc::clone(spec));
            self.ghosts.insert(file.to_owned(), content);
        }
    }

    /// Reads the whole directory.
    pub(super) fn read_all(&mut self, reader: &Reader, dir: &TrustedDir, respect: Respect) {
        let wanted = |name: &OsStr| Meaning::of(name) != Meaning::Nothing;
        let names = match dir.names(reader.files_max, wanted) {
            Ok(Some(names)) => names,
            Ok(None) => return self.be(LoadpathState::Missing),
            Err(error) => return self.be(LoadpathState::Unreadable(error.to_string())),
        };
        let inode = dir.inode();
        self.be(LoadpathState::Ready {
            dev: inode.dev,
            ino: inode.ino,
        });
        let names: BTreeSet<OsString> = names.into_iter().collect();
        let gone: Vec<OsString> = self
            .files
            .keys()
            .chain(self.odd.keys())
            .filter(|name| !names.contains(*name))
            .cloned()
            .collect();
        for name in gone {
            self.remove(&name);
        }
        self.awaited.retain(&names);
        self.awaited.hurry(clock::mono());
        for name in names.difference(&self.linked.clone()) {
            self.look(reader, dir, name, respect);
        }
        self.look_through_links(reader, dir, respect);
    }

    /// Looks at all files that are links, and again when what they lead to changed meanwhile: links
    /// through one directory are swapped with it, as those of a ConfigMap are, and a look that is
    /// half from before the swap would tell of what never stood there.
    pub(super) fn look_through_links(
        &mut self,
        reader: &Reader,
        dir: &TrustedDir,
        respect: Respect,
    ) {
        for _ in 0..SWAPS_MAX {
            let linked = self.linked();
            let before = prints(dir, &linked);
            for file in &linked {
                self.look(reader, dir, file, respect);
            }
            if prints(dir, &linked) == before {
                return;
            }
        }
    }

    /// Notes how the directory was found. What was known to be written in another one, or in
    /// one that was away, tells nothing.
    pub(super) fn be(&mut self, state: LoadpathState) {
        if self.state != state {
            self.awaited.clear();
            self.state = state;
        }
    }

    /// Notes what hints say about a file; whether it is worth a look now.
    pub(super) fn note(&mut self, dir: &TrustedDir, file: &OsStr, writing: Writing) -> bool {
        let open = match writing {
            Writing::Done | Writing::Reopened => false,
            Writing::Open => true,
            // What came whole is not open: a link, a second name for a file, a directory.
            Writing::Begun => match dir.stat(file, Links::Keep) {
                Ok(Some(stat)) => is_regular(&stat) && stat.st_nlink == 1,
                Ok(None) | Err(_) => false,
            },
        };
        if open {
            self.note_open(file);
        } else {
            self.note_closed(file);
        }
        !open
    }

    /// Notes that a file is being written.
    pub(super) fn note_open(&mut self, file: &OsStr) {
        if matches!(Meaning::of(file), Meaning::Child(_)) {
            self.awaited.note(file, clock::mono());
        }
    }

    /// Notes that a file was closed, or replaced by one that nobody writes.
    pub(super) fn note_closed(&mut self, file: &OsStr) {
        self.awaited.forget(file);
    }

    /// Looks at one name, and reads it if it may have changed.
    pub(super) fn look(
        &mut self,
        reader: &Reader,
        dir: &TrustedDir,
        file: &OsStr,
        respect: Respect,
    ) {
        let child = match Meaning::of(file) {
            Meaning::Nothing => return,
            Meaning::Odd(oddity) => {
                if matches!(dir.stat(file, Links::Keep), Ok(None)) {
                    self.odd.remove(file);
                } else {
                    let text = diagnostic(&self.path.join(file), &oddity);
                    self.odd.insert(file.to_owned(), text);
                }
                return;
            }
            Meaning::Child(child) => child,
        };
        if respect == Respect::Nothing {
            self.awaited.forget(file);
        }
        let print = match Print::of(dir, file) {
            Ok(Some(print)) => Some(print),
            Ok(None) => return self.remove(file),
            Err(_) => None,
        };
        let link = print.is_some_and(|print| print.there.is_some());
        if link {
            self.linked.insert(file.to_owned());
        } else {
            self.linked.remove(file);
        }
        let known = self.files.get(file).and_then(|known| known.print);
        if known.is_some() && known == print {
            return self.awaited.forget(file);
        }
        let claim = self.awaited.claim(file, print, clock::mono());
        let path = self.path.join(file);
        match reader.read(dir, file, &child, &path, print, claim) {
            Look::Gone => self.remove(file),
            Look::Written(witness) => {
                self.awaited.wait(file, witness, clock::mono());
                self.keep(file, child);
            }
            Look::Read { content, sure } => {
                self.awaited.forget(file);
                let print = print.filter(|_| sure);
                self.learn(file, child, print, content);
            }
        }
    }

    fn learn(&mut self, file: &OsStr, child: ChildName, print: Option<Print>, content: Content) {
        self.ghosts.remove(file);
        match self.files.get_mut(file) {
            Some(known) => {
                known.print = print;
                // Equal content stays the same one: it is shared with whoever has it already.
                if known.content != content {
                    known.content = content;
                }
            }
            None => {
                let known = Known {
                    child,
                    print,
                    content,
                };
                self.files.insert(file.to_owned(), known);
            }
        }
    }

    /// Leaves what is known as it is, and has it looked at next time.
    fn keep(&mut self, file: &OsStr, child: ChildName) {
        if let Some(known) = self.files.get_mut(file) {
            known.print = None;
        } else if let Some(content) = self.ghosts.remove(file) {
            self.learn(file, child, None, content);
        }
    }

    fn remove(&mut self, file: &OsStr) {
        self.odd.remove(file);
        self.linked.remove(file);
        self.awaited.forget(file);
        if let Some(known) = self.files.remove(file)
            && self.ghosts.len() < GHOSTS_MAX
        {
            self.ghosts.insert(file.to_owned(), known.content);
        }
    }

    /// Has every file read again at the next look.
    pub(super) fn doubt(&mut self) {
        for known in self.files.values_mut() {
            known.print = None;
        }
    }

    /// Forgets files that are gone.
    pub(super) fn lay_ghosts(&mut self) {
        self.ghosts.clear();
    }

    /// The files that are links: what they lead to changes without a trace in themselves.
    pub(super) fn linked(&self) -> Vec<OsString> {
        self.linked.iter().cloned().collect()
    }

    /// Whether a look found, or hints say, that it is being written.
    pub(super) fn is_awaited(&self, file: &OsStr) -> bool {
        self.awaited.contains(file)
    }

    /// When to look again at a file that is being written, when the loadpath is there.
    pub(super) fn next_look(&self) -> Option<Mono> {
        self.is_ready().then(|| self.awaited.next())?
    }

    /// The files that are to be looked at again now.
    pub(super) fn due(&mut self, now: Mono) -> Vec<OsString> {
        match self.is_ready() {
            true => self.awaited.due(now),
            false => Vec::new(),
        }
    }

    /// What is known of a file, when the loadpath is there.
    pub(super) fn content(&self, file: &OsStr) -> Option<&Content> {
        self.is_ready()
            .then(|| self.files.get(file))?
            .map(|known| &known.content)
    }

    /// All files, when the loadpath is there.
    pub(super) fn files(&self) -> impl Iterator<Item = (&OsStr, &ChildName, &Content)> {
        self.files
            .iter()
            .filter(|_| self.is_ready())
            .map(|(file, known)| (file.as_os_str(), &known.child, &known.content))
    }

    fn is_ready(&self) -> bool {
        matches!(self.state, LoadpathState::Ready { .. })
    }

    /// What is wrong here and concerns no child.
    pub(super) fn faults(&self) -> Vec<String> {
        if !self.is_ready() {
            return Vec::new();
        }
        let mut faults: Vec<String> = self.odd.values().take(FAULTS_MAX).cloned().collect();
        if let Some(more) = self.odd.len().checked_sub(FAULTS_MAX).filter(|n| *n > 0) {
            faults.push(format!(
                "{more} more files here have names that no child can have"
            ));
        }
        faults
    }
}

/// What stands there under these names, as far as that can be told.
fn prints(dir: &TrustedDir, files: &[OsString]) -> Vec<Option<Print>> {
    let print = |file: &OsString| Print::of(dir, file).ok().flatten();
    files.iter().map(print).collect()
}

fn is_regular(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}
