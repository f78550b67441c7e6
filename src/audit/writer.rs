//! The thread that writes, so that nobody else waits for a disk.
//!
//! - What was handed over while it wrote is written together: one write and one sync for all that
//!   fits into a batch. Then each answer is given, in the order of the lines.
//! - An answer is given after one attempt: a disk that takes nothing makes no command untrue. The
//!   lines are kept and tried again with whatever comes next and every [`RETRY`]; while none are
//!   kept the thread sleeps.
//! - After a panic, which is a fault of ours, nothing more is written; every answer is given all
//!   the same (I5).
//! - The queue is bounded. A command is let in with a [`Room`], of which there are
//!   [`AUDIT_COMMANDS_MAX`] and which it keeps until its line was tried; where there is none the
//!   caller refuses the command before it is carried out. Refusals, which have no room of their
//!   own, are at most [`AUDIT_REFUSALS_MAX`]; those beyond are counted. Only [`Audit::flush`] adds
//!   something besides, which is for the end of a server.

use std::{
    collections::VecDeque,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::{
    AUDIT_COMMANDS_MAX, AUDIT_REFUSALS_MAX, Limits,
    entry::{Entry, Lost, What},
    error::AuditError,
    trail::{Author, Trail},
};

#[cfg(doc)]
use super::AUDIT_BEHIND_MAX;

/// How often what is kept is tried again; no time runs while nothing is.
pub(super) const RETRY: Duration = Duration::from_secs(5);

/// What is told of the trail after a panic.
const ENDED: &str = "the audit trail is not written any more: its thread has panicked; \
                     hint: start the server again, and report this";

/// What is done once a line was tried.
type Then = Box<dyn FnOnce() + Send>;

/// The right to have one command's line written.
#[derive(Debug)]
pub struct Room {
    _permit: OwnedSemaphorePermit,
}

/// The audit trail of a running server. Dropped, it first writes all that was handed over.
pub struct Audit {
    shared: Arc<Shared>,
    rooms: Arc<Semaphore>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Audit")
            .field("fault", &self.fault())
            .finish_non_exhaustive()
    }
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Why lines are kept, for a person.
    fault: Mutex<Option<String>>,
}

#[derive(Default)]
struct Queue {
    items: Vec<Item>,
    /// How many of them are refusals.
    refusals: usize,
    /// Refusals that found no place.
    lost: Option<Lost>,
    /// The thread is at something.
    busy: bool,
    closing: bool,
}

struct Item {
    entry: Option<Entry>,
    then: Option<Then>,
    room: Option<Room>,
}

impl Item {
    /// Gives its answer, once; its room is free then.
    fn finish(&mut self) {
        if let Some(then) = self.then.take() {
            then();
        }
        self.room = None;
    }
}

impl Audit {
    /// Takes up the trail in a directory, and has a line written that a server has started there.
    ///
    /// Blocks for a look at the end of the file. `version` and `server`, its id, are for that line.
    ///
    /// # Errors
    ///
    /// When something stands there that must not be used, or no thread can be had; never because
    /// of damage or a full disk.
    pub fn open(state_dir: PathBuf, version: &str, server: &str) -> Result<Self, AuditError> {
        Self::open_within(state_dir, version, server, Limits::default())
    }

    pub(super) fn open_within(
        state_dir: PathBuf,
        version: &str,
        server: &str,
        limits: Limits,
    ) -> Result<Self, AuditError> {
        let author = Author {
            version: version.to_owned(),
            server: server.to_owned(),
        };
        let trail = Trail::open(state_dir, author, limits)?;
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue::default()),
            changed: Condvar::new(),
            fault: Mutex::new(None),
        });
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || run(Keeper::new(trail, limits.behind_max), &theirs))
            .map_err(AuditError::Thread)?;
        Ok(Self {
            shared,
            rooms: Arc::new(Semaphore::new(AUDIT_COMMANDS_MAX)),
            thread: Some(thread),
        })
    }

    /// The right to carry out a command whose line will be written; `None` when too many lines
    /// are owed. Never waits.
    #[must_use]
    pub fn room(&self) -> Option<Room> {
        let permit = Arc::clone(&self.rooms).try_acquire_owned().ok()?;
        Some(Room { _permit: permit })
    }

    /// Hands a command's line over; never waits. `then`, which gives the answer, is done on
    /// another thread once the line is on disk, or was tried and is kept.
    pub fn record(&self, room: Room, entry: Entry, then: impl FnOnce() + Send + 'static) {
        self.push(Item {
            entry: Some(entry),
            then: Some(Box::new(then)),
            room: Some(room),
        });
    }

    /// Hands a refusal's line over, for which nobody waits; never waits itself.
    pub fn note(&self, entry: Entry) {
        let mut queue = self.shared.lock();
        if queue.refusals >= AUDIT_REFUSALS_MAX {
            return Lost::add(&mut queue.lost, entry.at);
        }
        queue.refusals += 1;
        drop(queue);
        self.push(Item {
            entry: Some(entry),
            then: None,
            room: None,
        });
    }

    /// Whether all that was handed over is on disk, and its answers are given.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        let queue = self.shared.lock();
        let idle = queue.items.is_empty() && queue.lost.is_none() && !queue.busy;
        drop(queue);
        idle && self.fault().is_none()
    }

    /// Returns when all that was handed over before was tried, and its answers are given.
    pub async fn flush(&self) {
        let (done, waited_for) = oneshot::channel::<()>();
        self.push(Item {
            entry: None,
            then: Some(Box::new(move || drop(done))),
            room: None,
        });
        // That it was dropped is what is waited for.
        let _dropped = waited_for.await;
    }

    /// Why lines are not on disk, if any are not; one line for a person.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        self.shared.fault().clone()
    }

    fn push(&self, item: Item) {
        self.shared.lock().items.push(item);
        self.shared.changed.notify_one();
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the audit thread panicked");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing is left half done under this lock, nor under the other.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fault(&self) -> MutexGuard<'_, Option<String>> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps until there is something to do; with lines kept, no longer than [`RETRY`].
    fn next(&self, kept: Kept) -> Next {
        let mut queue = self.lock();
        queue.busy = false;
        loop {
            if !queue.items.is_empty() || queue.lost.is_some() {
                queue.refusals = 0;
                queue.busy = true;
                return Next::Items(std::mem::take(&mut queue.items), queue.lost.take());
            }
            if queue.closing {
                return Next::Close;
            }
            match kept {
                Kept::Some => {
                    let waited = self.changed.wait_timeout(queue, RETRY);
                    let (again, waited) = waited.unwrap_or_else(PoisonError::into_inner);
                    if waited.timed_out() {
                        return Next::Retry;
                    }
                    queue = again;
                }
                Kept::Nothing => {
                    let waited = self.changed.wait(queue);
                    queue = waited.unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

/// What the thread is to do.
enum Next {
    /// Write these, and count those.
    Items(Vec<Item>, Option<Lost>),
    /// Try again what is kept.
    Retry,
    /// End: everything handed over was taken.
    Close,
}

/// Whether lines are kept that are not on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    Nothing,
    Some,
}

fn run(mut keeper: Keeper, shared: &Shared) {
    let mut batch = Vec::new();
    // Of what it borrows only the batch and the queue are used again, both whole.
    if catch_unwind(AssertUnwindSafe(|| work(&mut keeper, shared, &mut batch))).is_ok() {
        return;
    }
    tracing::error!("the audit thread has panicked: nothing more is written");
    *shared.fault() = Some(ENDED.to_owned());
    loop {
        batch.iter_mut().for_each(Item::finish);
        match shared.next(Kept::Nothing) {
            Next::Items(items, _) => batch = items,
            Next::Retry => batch.clear(),
            Next::Close => return,
        }
    }
}

/// `batch` is what it is at: after a panic, those in it are answered that are not yet.
fn work(keeper: &mut Keeper, shared: &Shared, batch: &mut Vec<Item>) {
    keeper.write(shared);
    loop {
        match shared.next(keeper.kept()) {
            Next::Items(items, lost) => {
                *batch = items;
                let entries = batch.iter_mut().filter_map(|item| item.entry.take());
                keeper.keep(entries.collect(), lost, shared);
                keeper.write(shared);
                // Not taken out meanwhile: should one of them panic, the others are still there.
                batch.iter_mut().for_each(Item::finish);
                batch.clear();
            }
            Next::Retry => keeper.write(shared),
            Next::Close => break,
        }
    }
    keeper.look();
    keeper.write(shared);
    if keeper.kept() == Kept::Some {
        let lines = keeper.kept.len();
        tracing::error!(lines, "the audit trail could not be written to its end");
    }
}

/// The trail, and the lines that are not on disk yet.
pub(super) struct Keeper {
    trail: Trail,
    kept: VecDeque<Entry>,
    kept_max: usize,
    lost: Option<Lost>,
}

impl Keeper {
    pub(super) fn new(trail: Trail, kept_max: usize) -> Self {
        Self {
            trail,
            kept: VecDeque::new(),
            kept_max,
            lost: None,
        }
    }

    pub(super) fn kept(&self) -> Kept {
        match self.kept.is_empty() && self.lost.is_none() && !self.trail.has_news() {
            true => Kept::Nothing,
            false => Kept::Some,
        }
    }

    /// Takes lines in, as far as there is room for them; before any is given up, an attempt is
    /// made to write those that are there.
    fn keep(&mut self, entries: Vec<Entry>, lost: Option<Lost>, shared: &Shared) {
        if self.kept.len() + entries.len() > self.kept_max / 2 && self.kept() == Kept::Some {
            self.write(shared);
        }
        for entry in entries {
            self.add(entry);
        }
        self.lost = Lost::join(self.lost.take(), lost);
    }

    pub(super) fn add(&mut self, entry: Entry) {
        let room = match entry.is_refusal() {
            true => self.kept_max / 2,
            false => self.kept_max,
        };
        match self.kept.len() < room {
            true => self.kept.push_back(entry),
            false => Lost::add(&mut self.lost, entry.at),
        }
    }

    /// Has it told that the file was moved or deleted since the last line: the next server could
    /// not know.
    pub(super) fn look(&mut self) {
        if let Err(error) = self.trail.look() {
            tracing::warn!(%error, "the audit trail cannot be looked at");
        }
    }

    /// Writes what is kept. What goes wrong is told, in the log once.
    fn write(&mut self, shared: &Shared) {
        let result = self.try_write();
        let mut fault = shared.fault();
        match result {
            Ok(()) => {
                if fault.take().is_some() {
                    tracing::info!("the audit trail is written again");
                }
            }
            Err(error) => {
                if fault.is_none() {
                    tracing::error!(%error, "the audit trail cannot be written: its lines are kept");
                }
                *fault = Some(format!(
                    "the audit trail cannot be written, and {} lines of it are kept: {error}",
                    self.kept.len()
                ));
            }
        }
    }

    /// Writes what is kept, and then how much was lost.
    pub(super) fn try_write(&mut self) -> Result<(), AuditError> {
        loop {
            // Each turn takes at least one line or a beginning: this ends.
            if !self.kept.is_empty() || self.trail.has_news() {
                let taken = self.trail.append(&self.kept)?;
                self.kept.drain(..taken);
            } else if let Some(lost) = self.lost {
                let at = lost.until;
                let what = What::Lost(lost);
                if self.trail.append(&VecDeque::from([Entry { at, what }]))? > 0 {
                    self.lost = None;
                }
            } else {
                return Ok(());
            }
        }
    }
}
