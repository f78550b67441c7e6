//! The history of each child: its latest runs, in a file of its own that outlives the host.
//!
//! - `state_dir/history/NAME.journal`, in the format of the other records (`frame`): each record is
//!   one run, a later one of the same run counts. A run is noted when it lives, so that one that a
//!   reboot ended is known, and once more when it is over.
//! - A thread of its own writes: neither the loop nor a hold waits for it. What waits together is
//!   written together; a run that is over is on disk before it is reported as noted, and until then
//!   the record of live runs keeps it. A disk that takes nothing is tried again every [`RETRY`].
//! - Bounds: [`HISTORY_LEN_MAX`] runs of a child wait, and as many are kept when its file is written
//!   anew, which is when it has more than [`RECORDS_MAX`]; [`NAMES_MAX`] children have a file, of
//!   more those go that were not written to for the longest time.
//! - A damaged file is kept aside and written anew with what can be read of it, one that cannot be
//!   read at all without. A child whose file cannot be written all the same is passed over and
//!   tried again later: it holds up no other.
//!
//! Absent on purpose: holding any of it in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use rustix::io::Errno;

use super::{
    folder::{Contents, Folder, Medium, Shelf},
    frame::{self, Damage},
    home::Home,
    log::passes_by_itself,
    writer::RETRY,
};
use crate::{
    clock,
    reconcile::{
        past::{HISTORY_LEN_MAX, PastRun},
        record::Record,
    },
    spec::{ChildName, Mono, RunId},
};

/// How many records a file may have before it is written anew.
const RECORDS_MAX: usize = 2 * HISTORY_LEN_MAX;

/// How many children have a file.
const NAMES_MAX: usize = if cfg!(test) { 16 } else { 16_384 };

/// How many files go at once when there are too many.
const NAMES_DROPPED: usize = NAMES_MAX / 16;

/// How many children's runs are written before the directory is synced.
const CHILDREN_PER_BATCH: usize = 64;

/// The most bytes of a file that are read.
const FILE_LEN_MAX: u64 = 16 << 20;

const DIR_NAME: &str = "history";
const FILE_END: &str = ".journal";

/// By run, the latest last.
type Runs = BTreeMap<RunId, PastRun>;

/// Reads histories; copies are one and the same.
#[derive(Debug, Clone)]
pub struct Histories {
    dir: PathBuf,
}

impl Histories {
    pub(super) fn of(state_dir: &Path) -> Self {
        let dir = state_dir.join(DIR_NAME);
        Self { dir }
    }

    /// What stands in the history of a child, the oldest run first. Blocks: reads a file.
    ///
    /// # Errors
    ///
    /// What the file system says; a file of a newer format.
    pub fn read(&self, child: &ChildName) -> io::Result<Vec<PastRun>> {
        if !self.dir.try_exists()? {
            return Ok(Vec::new());
        }
        let folder = Folder::open(&self.dir).map_err(io::Error::other)?;
        let bytes = folder.read_small(&file_of(child), FILE_LEN_MAX)?;
        let runs = read(&bytes.unwrap_or_default())?.runs;
        Ok(runs.into_values().collect())
    }
}

/// A handle on the thread that writes.
pub(super) struct History {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: BTreeMap<ChildName, Runs>,
    /// Runs of children whose files cannot be written, none of which wait.
    refused: BTreeMap<ChildName, Runs>,
    /// When those are tried again.
    retry_at: Option<Mono>,
    /// The disk takes nothing, and whatever waits is tried again.
    failing: bool,
    /// Up to which run a child's stand in its history.
    noted: BTreeMap<ChildName, RunId>,
    /// The thread is at something.
    busy: bool,
    closing: bool,
}

impl History {
    /// Starts the thread.
    pub(super) fn start(state_dir: Home) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue::default()),
            changed: Condvar::new(),
        });
        let theirs = Arc::clone(&shared);
        let mut files = Files::new(state_dir);
        let thread = thread::Builder::new()
            .name("history".to_owned())
            .spawn(move || work(&mut files, &theirs))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Hands a run over; never waits.
    pub(super) fn put(&self, child: &ChildName, past: PastRun) {
        self.shared.lock().put(child, past);
        self.shared.changed.notify_one();
    }

    /// Which runs have come to stand in the history since this was asked last.
    pub(super) fn take_noted(&self) -> BTreeMap<ChildName, RunId> {
        std::mem::take(&mut self.shared.lock().noted)
    }

    /// Has it told again that these are noted.
    pub(super) fn put_back(&self, noted: BTreeMap<ChildName, RunId>) {
        let mut queue = self.shared.lock();
        for (child, upto) in noted {
            queue.note(child, upto);
        }
    }

    /// Whether all that was handed over is written, but for what is only tried again: that stands
    /// in the record of live runs and loses nothing when this ends.
    pub(super) fn is_quiet(&self) -> bool {
        let queue = self.shared.lock();
        (queue.waiting.is_empty() || queue.failing) && !queue.busy
    }

    /// Waits until all that was handed over is written, or cannot be, and ends the thread.
    pub(super) fn finish(&mut self) {
        self.shared.lock().closing = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that writes the history has panicked");
        }
    }
}

impl Drop for History {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Queue {
    fn put(&mut self, child: &ChildName, past: PastRun) {
        if past.end.is_some() && self.noted.get(child).is_some_and(|it| *it >= past.run) {
            // Not as it is told now.
            self.noted.remove(child);
        }
        if let Some(refused) = self.refused.remove(child) {
            self.waiting.insert(child.clone(), refused);
        }
        let runs = self.waiting.entry(child.clone()).or_default();
        // That it lives is no news of a run that is over.
        if past.end.is_some() || !runs.contains_key(&past.run) {
            runs.insert(past.run, past);
        }
        keep_latest(runs);
    }

    fn note(&mut self, child: ChildName, upto: RunId) {
        let again = |runs: &Runs| runs.range(..=upto).any(|(_, past)| past.end.is_some());
        if self.waiting.get(&child).is_some_and(again)
            || self.refused.get(&child).is_some_and(again)
        {
            return;
        }
        let noted = self.noted.entry(child).or_insert(upto);
        *noted = upto.max(*noted);
    }

    /// Has runs wait again that were taken out.
    fn put_again(&mut self, child: &ChildName, runs: Runs) {
        for past in runs.into_values() {
            let newer = self.waiting.get(child).and_then(|it| it.get(&past.run));
            if newer.is_none() {
                self.put(child, past);
            }
        }
    }

    /// Puts off the runs of a child whose file cannot be written.
    fn refuse(&mut self, child: ChildName, runs: Runs) {
        if self.waiting.contains_key(&child) {
            self.put_again(&child, runs);
            return;
        }
        self.retry_at.get_or_insert_with(|| clock::mono() + RETRY);
        self.refused.insert(child, runs);
    }

    /// Has those wait again that were put off, when it is time.
    fn retry_refused(&mut self) {
        if self.retry_at.is_some_and(|at| clock::mono() >= at) {
            self.retry_at = None;
            // A child is in one of the two.
            self.waiting.append(&mut self.refused);
        }
    }

    /// Takes some children's runs out.
    fn take(&mut self) -> Vec<(ChildName, Runs)> {
        let mut taken = Vec::new();
        while taken.len() < CHILDREN_PER_BATCH
            && let Some(one) = self.waiting.pop_first()
        {
            taken.push(one);
        }
        taken
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing is left half done under this lock.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps until there is something to write; `None` at the end, when nothing is left.
    fn next(&self) -> Option<Vec<(ChildName, Runs)>> {
        let mut queue = self.lock();
        queue.busy = false;
        if queue.failing && !queue.closing {
            // Whatever comes meanwhile: a disk that is full is not tried at each run.
            let until = |queue: &mut Queue| !queue.closing;
            let waited = self.changed.wait_timeout_while(queue, RETRY, until);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        loop {
            queue.retry_refused();
            if !queue.waiting.is_empty() {
                queue.busy = true;
                return Some(queue.take());
            }
            if queue.closing {
                return None;
            }
            queue = match queue.retry_at {
                Some(at) => {
                    let waited = self.changed.wait_timeout(queue, at - clock::mono());
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => {
                    let waited = self.changed.wait(queue);
                    waited.unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
    }
}

fn work(files: &mut Files, shared: &Shared) {
    while let Some(batch) = shared.next() {
        let written = files.write(batch);
        let mut queue = shared.lock();
        if !queue.closing {
            // Else they stay in the record of live runs, and the next server hands them over again.
            for (child, runs) in written.refused {
                queue.refuse(child, runs);
            }
        }
        for (child, upto) in written.noted {
            queue.note(child, upto);
        }
        let Some(error) = written.error else {
            if std::mem::take(&mut queue.failing) {
                tracing::info!("the history is written again");
            }
            continue;
        };
        if !std::mem::replace(&mut queue.failing, true) {
            tracing::error!(%error, "the history cannot be written; it is tried again");
        }
        if queue.closing {
            // As above.
            return;
        }
        for (child, runs) in written.left {
            queue.put_again(&child, runs);
        }
    }
}

/// What became of a batch.
#[derive(Default)]
struct Written {
    noted: Vec<(ChildName, RunId)>,
    /// Those whose own file cannot be written.
    refused: Vec<(ChildName, Runs)>,
    /// Those that the error kept from being tried.
    left: Vec<(ChildName, Runs)>,
    error: Option<io::Error>,
}

/// What keeps the runs of a child from being written.
#[derive(Debug)]
enum Obstacle {
    /// The directory or its disk: no other child would fare better.
    All(io::Error),
    /// What stands in the place of its file.
    File(io::Error),
}

impl From<io::Error> for Obstacle {
    fn from(error: io::Error) -> Self {
        let errnos = [
            Errno::NOSPC,
            Errno::DQUOT,
            Errno::IO,
            Errno::ROFS,
            Errno::NODEV,
        ];
        match passes_by_itself(&error) || errnos.iter().any(|errno| is(&error, *errno)) {
            true => Self::All(error),
            false => Self::File(error),
        }
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

/// The files.
struct Files {
    state_dir: Home,
    path: PathBuf,
    folder: Option<Folder>,
    /// How many files there are, once that was counted.
    names: Option<usize>,
    /// The children whose file cannot be written, which was told.
    told: BTreeSet<ChildName>,
}

/// Whether the directory has to be synced for what was written to last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Names {
    AsBefore,
    Changed,
}

impl Files {
    fn new(state_dir: Home) -> Self {
        let path = Shelf::path(&state_dir, DIR_NAME);
        Self {
            state_dir,
            path,
            folder: None,
            names: None,
            told: BTreeSet::new(),
        }
    }

    /// Writes what was handed over of some children.
    fn write(&mut self, batch: Vec<(ChildName, Runs)>) -> Written {
        let mut written = Written::default();
        let mut names = Names::AsBefore;
        let mut done = Vec::new();
        for (child, runs) in batch {
            if written.error.is_some() {
                written.left.push((child, runs));
                continue;
            }
            match self.write_one(&child, &runs) {
                Ok(changed) => {
                    names = match changed {
                        Names::Changed => changed,
                        Names::AsBefore => names,
                    };
                    self.told.remove(&child);
                    done.push((child, runs));
                }
                Err(Obstacle::All(error)) => {
                    written.left.push((child, runs));
                    written.error = Some(error);
                }
                Err(Obstacle::File(error)) => {
                    if self.told.insert(child.clone()) {
                        let file = self.path.join(file_of(&child));
                        let file = file.display();
                        tracing::error!(
                            %child, %file, %error,
                            "a history cannot be written; it is tried again"
                        );
                    }
                    written.refused.push((child, runs));
                }
            }
        }
        if names == Names::Changed
            && let Some(folder) = &self.folder
            && let Err(error) = folder.sync()
        {
            // Which names survive the host is not known.
            written.left.append(&mut done);
            written.error = Some(error);
        }
        for (child, runs) in done {
            let over = runs.values().filter(|past| past.end.is_some());
            let upto = over.map(|past| past.run).max();
            written.noted.extend(upto.map(|upto| (child, upto)));
        }
        written
    }

    fn write_one(&mut self, child: &ChildName, runs: &Runs) -> Result<Names, Obstacle> {
        self.open().map_err(Obstacle::All)?;
        let name = file_of(child);
        let Some((contents, mut known)) = self.look(&name, child)? else {
            self.make_room()?;
            self.rewrite(&name, child, runs.clone())?;
            self.names = self.names.map(|names| names + 1);
            return Ok(Names::Changed);
        };
        let news: Vec<&PastRun> = runs
            .values()
            .filter(|past| match known.runs.get(&past.run) {
                Some(written) => past.end.is_some() && written != *past,
                None => true,
            })
            .collect();
        if known.damage == Damage::None && known.records + news.len() <= RECORDS_MAX {
            let Some(mut file) = contents.file else {
                return Err(Obstacle::All(io::ErrorKind::ReadOnlyFilesystem.into()));
            };
            append(file.as_mut(), child, &news)?;
            return Ok(Names::AsBefore);
        }
        if matches!(known.damage, Damage::Corrupt { .. }) {
            let kept = self.folder()?.set_aside(&name, &contents.bytes)?;
            tracing::warn!(%child, kept, "the history is damaged: what can be read of it is used");
        }
        let news = news.into_iter().map(|past| (past.run, past.clone()));
        known.runs.extend(news);
        self.rewrite(&name, child, known.runs)?;
        Ok(Names::Changed)
    }

    /// What stands in a file. What cannot be read is given another name, whatever it is.
    fn look(
        &mut self,
        name: &str,
        child: &ChildName,
    ) -> Result<Option<(Contents, Read)>, Obstacle> {
        let folder = self.folder()?;
        let contents = folder.read(name);
        let read = contents.and_then(|contents| {
            let known = contents.as_ref().map(|contents| read(&contents.bytes));
            Ok(contents.zip(known.transpose()?))
        });
        match read.map_err(Obstacle::from) {
            Ok(found) => Ok(found),
            // Perhaps no more than one bad spot of the disk: the others are tried.
            Err(Obstacle::All(error)) if is(&error, Errno::IO) => Err(Obstacle::File(error)),
            Err(Obstacle::All(error)) => Err(Obstacle::All(error)),
            Err(Obstacle::File(error)) => {
                let kept = folder.move_aside(name)?;
                let file = folder.path(name);
                let file = file.display();
                tracing::warn!(
                    %child, %file, %error, kept,
                    "the history cannot be read: it is kept aside and begun anew"
                );
                self.names = None;
                Ok(None)
            }
        }
    }

    fn folder(&self) -> io::Result<&Folder> {
        self.folder.as_ref().ok_or(io::ErrorKind::NotFound.into())
    }

    /// Sees to it that what is written is found by whoever looks for it by path.
    fn open(&mut self) -> io::Result<()> {
        self.state_dir.stand()?;
        if !self.folder.as_ref().is_some_and(Folder::stands) {
            self.folder = Some(Folder::open(&self.path).map_err(io::Error::other)?);
            self.names = None;
        }
        Ok(())
    }

    /// Writes a file anew with the latest of these runs.
    fn rewrite(&self, name: &str, child: &ChildName, mut runs: Runs) -> io::Result<()> {
        let folder = self.folder()?;
        keep_latest(&mut runs);
        let mut bytes = frame::header();
        for past in runs.values() {
            encode(child, past, &mut bytes)?;
        }
        let temporary = format!("{name}.new");
        let made = folder.create(&temporary).and_then(|mut file| {
            write_all(file.as_mut(), &bytes)?;
            file.sync()?;
            folder.rename(&temporary, name)
        });
        if made.is_err() {
            // It takes up space that may be what is missing.
            let _best_effort = folder.remove(&temporary);
        }
        made
    }

    /// Removes the files that were not written to for the longest time, if there are too many.
    fn make_room(&mut self) -> io::Result<()> {
        let names = match self.names {
            Some(names) => names,
            None => self.files()?.len(),
        };
        self.names = Some(names);
        if names < NAMES_MAX {
            return Ok(());
        }
        let by_age: BTreeSet<_> = self.files()?.into_iter().collect();
        let above = by_age.len().saturating_sub(NAMES_MAX);
        let Some(folder) = &self.folder else {
            return Ok(());
        };
        for (_, name) in by_age.iter().take(above + NAMES_DROPPED) {
            folder.remove(name)?;
        }
        self.names = Some(by_age.len().saturating_sub(above + NAMES_DROPPED));
        Ok(())
    }

    /// The files there are, each with when it was last written to.
    fn files(&self) -> io::Result<Vec<(std::time::SystemTime, String)>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // A directory in the place of one is not ours to remove.
            if name.ends_with(FILE_END) && !entry.file_type()?.is_dir() {
                files.push((entry.metadata()?.modified()?, name));
            }
        }
        Ok(files)
    }
}

/// A file as it was read.
struct Read {
    runs: Runs,
    records: usize,
    damage: Damage,
}

fn read(bytes: &[u8]) -> io::Result<Read> {
    let newer = |_| io::Error::other("a newer supervisor-rs has written it");
    let scan = frame::scan(bytes).map_err(newer)?;
    let records = scan.records.len();
    let mut runs = Runs::new();
    for record in scan.records {
        if let Record::Over { past, .. } = record {
            runs.insert(past.run, past);
        }
    }
    Ok(Read {
        runs,
        records,
        damage: scan.damage,
    })
}

/// Adds records to a file. Runs that are over are on disk then.
fn append(file: &mut dyn Medium, child: &ChildName, news: &[&PastRun]) -> io::Result<()> {
    let mut bytes = Vec::new();
    for past in news {
        encode(child, past, &mut bytes)?;
    }
    write_all(file, &bytes)?;
    match news.iter().any(|past| past.end.is_some()) {
        true => file.sync(),
        false => Ok(()),
    }
}

fn encode(child: &ChildName, past: &PastRun, bytes: &mut Vec<u8>) -> io::Result<()> {
    let (child, past) = (child.clone(), past.clone());
    frame::encode(&Record::Over { child, past }, bytes).map_err(io::Error::other)
}

fn write_all(file: &mut dyn Medium, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn file_of(child: &ChildName) -> String {
    format!("{child}{FILE_END}")
}

fn keep_latest(runs: &mut Runs) {
    while runs.len() > HISTORY_LEN_MAX {
        runs.pop_first();
    }
}

#[cfg(test)]
mod tests;
