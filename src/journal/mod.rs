//! What stands on disk: the record of live runs, and what survives a reboot.
//!
//! - Two stores of one format: `runtime_dir/runtime.journal` for what concerns live
//!   processes, `state_dir/state.journal` for holds and run numbers. [`Memory`] is the fold
//!   over both; what a record means is decided there, not here.
//! - A runtime record is with the kernel when [`Journal::append`] returns, and so outlives the
//!   server; a state record is on disk when its ticket is answered, and so outlives the host.
//! - One writer: each directory is locked for the life of the [`Journal`] (I1), and stays so when
//!   it is deleted: it is made anew, with all that is known.
//! - Damage never keeps the server from starting. What can be read is used, the damaged file
//!   is kept aside, and a warning says so. A full disk does not either: what cannot be
//!   written is owed. Only a directory that is not ours alone, a file of a newer format, another
//!   server, and what passes by itself (no descriptor free) are errors.
//! - A runtime file holds the records of one boot: those of another are forgotten before
//!   anything is added. Where damage took the name of the boot, it counts as this one: a live
//!   run that is forgotten would be started twice, a dead one is told by its start time.
//!
//! Reading order: `frame` (bytes), `log` (one file), `mark` (its length), `slip` (what a process writes
//! of itself), `folder` (directories, locks), `holder` (who has a lock), `home` and `claim` (those for
//! the server's life), `place` (where they are noted), `writer` (the thread), then this.
//!
//! What is told of runs that are over is kept by `history`; until it is there, here.

mod claim;
mod error;
mod folder;
pub mod frame;
mod handover;
mod history;
mod holder;
mod home;
mod identity;
mod log;
mod mark;
mod place;
mod slip;
mod writer;

#[cfg(test)]
mod damage;
#[cfg(test)]
mod drill;
#[cfg(test)]
mod power;
#[cfg(test)]
mod samples;
#[cfg(test)]
mod tests;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

pub use self::{
    error::{JournalError, RecordError},
    folder::LOCK_WAIT,
    handover::{HandedJournal, take_over},
    history::Histories,
    holder::Holder,
    identity::boot_identity,
    place::{Place, RecordedRun, await_end, forget_place, is_same_dir, note_place, places},
    slip::{Newborn, PREFIX_LEN, Slip},
};
use self::{
    folder::Folder,
    history::History,
    home::Home,
    identity::is_same_boot,
    log::{AppendError, Durability, Found, Log},
    slip::SlipError,
    writer::{Answer, Writer},
};
use crate::{
    reconcile::{
        event::{StartKind, Ticket},
        memory::Memory,
        past::PastRun,
        record::{Record, Store},
    },
    spec::{ChildName, RunId, Time},
};

const RUNTIME_NAME: &str = "runtime.journal";
const STATE_NAME: &str = "state.journal";

/// Where the stores are. Each is made with mode 0700 if it is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dirs {
    /// For what concerns live processes.
    pub runtime_dir: PathBuf,
    /// For what survives a reboot.
    pub state_dir: PathBuf,
}

/// What was found on disk, and the journal to go on with.
#[derive(Debug)]
pub struct Opened {
    /// To go on with.
    pub journal: Journal,
    /// What both stores amount to. What another boot left of live runs is forgotten already.
    pub memory: Memory,
    /// How this start is to be understood.
    pub start: StartKind,
    /// Whether records of live processes are lost: what lives is not all known, and must be looked
    /// for before anything is written to this journal ([`Journal::rebuild`]).
    pub records_lost: bool,
    /// Whether holds, or their ends, may be lost.
    pub holds_lost: bool,
    /// Who this server is: a UUID.
    pub server_id: String,
    /// What an operator should know, each a line for the log.
    pub warnings: Vec<String>,
}

/// The one writer of both stores.
pub struct Journal {
    runtime: Log,
    writer: Writer,
    history: History,
    histories: Histories,
    answers: UnboundedSender<Answer>,
    committed: UnboundedReceiver<Answer>,
    // Last: dropped, and the locks with them, when the thread has ended and nothing more is written.
    runtime_dir: Home,
    _state_dir: Home,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal")
            .field("behind", &self.is_behind())
            .finish_non_exhaustive()
    }
}

/// Opens both stores, reads them, and writes down that this server began.
///
/// Blocks: reads files, and waits up to [`LOCK_WAIT`] for the end of another server. `boot` is
/// [`boot_identity`]; `fixed_id` is the `id` of server.yml, which wins over the one on disk.
///
/// # Errors
///
/// [`JournalError`]; never because of damage or a full disk.
pub fn open(dirs: &Dirs, fixed_id: Option<&str>, boot: &str) -> Result<Opened, JournalError> {
    open_waiting(dirs, fixed_id, boot, LOCK_WAIT)
}

/// Makes a directory of the server's own, such as the one for logs, if it is missing.
///
/// # Errors
///
/// [`JournalError`] when it cannot be made, is somebody else's or others can write to it.
pub fn own_dir(path: &Path) -> Result<(), JournalError> {
    Folder::open(path).map(drop)
}

fn open_waiting(
    dirs: &Dirs,
    fixed_id: Option<&str>,
    boot: &str,
    wait: Duration,
) -> Result<Opened, JournalError> {
    // This order, because by default the one lies in the other.
    let state_dir = Folder::open(&dirs.state_dir)?;
    let runtime_dir = Folder::open(&dirs.runtime_dir)?;
    let (state_dir, runtime_dir) = own(state_dir, runtime_dir, wait)?;
    let mut warnings = Vec::new();
    let noted = || {
        let here = |place: &Place| place.state_dir == dirs.state_dir;
        let place = places(dirs, None).into_iter().find(here)?;
        Some(place.id)
    };
    let server_id = identity::server_id(&state_dir.folder(), fixed_id, noted, &mut warnings)?;
    if fixed_id.is_none() {
        state_dir.keep_id(&server_id);
    }

    let mut runtime = Log::open(
        Store::Runtime,
        Durability::Server,
        RUNTIME_NAME,
        Box::new(runtime_dir.clone()),
    )?;
    let state = Log::open(
        Store::State,
        Durability::Host,
        STATE_NAME,
        Box::new(state_dir.clone()),
    )?;
    if !runtime.records_lost && lacks_records(&runtime.log, dirs, boot) {
        let path = dirs.runtime_dir.join(RUNTIME_NAME);
        runtime.lost(format!(
            "`{}` is missing, and a server of this boot left something running",
            path.display()
        ));
    }
    let (runtime, start) = begin(runtime, boot, &mut warnings);
    let mut memory = runtime.memory;
    for record in state.log.memory().records(Store::State) {
        memory.apply(&record);
    }
    warnings.extend(state.warning);
    let mut log = state.log;
    if let Err(error) = log.catch_up() {
        warnings.push(format!("cannot write to `{STATE_NAME}`: {error}"));
    }

    let histories = Histories::of(&dirs.state_dir);
    Ok(Opened {
        journal: go_on(runtime.log, log, (state_dir, runtime_dir), histories)?,
        memory,
        start,
        records_lost: runtime.records_lost,
        holds_lost: state.records_lost,
        server_id,
        warnings,
    })
}

/// Starts the threads that write, and hands the history what it may not tell yet.
fn go_on(
    runtime: Log,
    state: Log,
    (state_dir, runtime_dir): (Home, Home),
    histories: Histories,
) -> Result<Journal, JournalError> {
    let (answers, committed) = mpsc::unbounded_channel();
    let writer = Writer::start(state, answers.clone()).map_err(JournalError::Thread)?;
    let history = History::start(state_dir.clone()).map_err(JournalError::Thread)?;
    let journal = Journal {
        runtime,
        writer,
        history,
        histories,
        answers,
        committed,
        runtime_dir,
        _state_dir: state_dir,
    };
    for child in journal.runtime.memory().children.keys() {
        journal.hand_over(child);
    }
    Ok(journal)
}

/// Whether a server of this boot has noted these directories, and the record is not there at all.
fn lacks_records(runtime: &Log, dirs: &Dirs, boot: &str) -> bool {
    let here = |place: &Place| place.dirs() == *dirs && is_same_boot(&place.boot, boot);
    runtime.is_behind()
        && *runtime.memory() == Memory::default()
        && places(dirs, None).iter().any(here)
}

/// Becomes the one server of both directories, which may be one.
fn own(state: Folder, runtime: Folder, wait: Duration) -> Result<(Home, Home), JournalError> {
    let same = state.is_same(&runtime);
    let state = Home::own(state, wait)?;
    let runtime = match same {
        true => state.clone(),
        false => Home::own(runtime, wait)?,
    };
    Ok((state, runtime))
}

/// The runtime store at the beginning of a server.
struct Begun {
    log: Log,
    /// As it was found, less what another boot left.
    memory: Memory,
    records_lost: bool,
}

fn begin(found: Found, boot: &str, warnings: &mut Vec<String>) -> (Begun, StartKind) {
    let mut log = found.log;
    warnings.extend(found.warning);
    let this_boot = match &log.memory().boot {
        Some(recorded) => is_same_boot(recorded, boot),
        None => found.records_lost,
    };
    let start = if this_boot && !log.memory().closed {
        StartKind::Continued
    } else {
        StartKind::Fresh
    };
    if !this_boot {
        let dropped = log.forget_boot().orders;
        warnings.extend(dropped.iter().map(|(child, wanted)| {
            let verb = wanted.verb();
            format!("`{verb} {child}` is dropped: the host went down before it was answered")
        }));
    }
    let memory = log.memory().clone();
    let records_lost = found.records_lost && this_boot;
    let opened = [Record::Opened {
        boot: boot.to_owned(),
    }];
    if records_lost {
        // A server that dies before it has found what lives must leave the loss to be seen.
        log.owe(&opened);
    } else if let Err(error) = log.append(&opened) {
        log.owe(&opened);
        warnings.push(format!("cannot write to `{RUNTIME_NAME}`: {error}"));
    }
    let begun = Begun {
        log,
        memory,
        records_lost,
    };
    (begun, start)
}

impl Journal {
    /// Writes runtime records, all or none, before it returns; does not wait for a disk.
    ///
    /// On an error nothing of a batch with a [`Record::Begun`] or a [`Record::HookBegun`] stands:
    /// that run or hook must not be begun. Any other batch says what has happened, so that it is kept in mind and written as
    /// soon as something can be: with the next records, or by [`Journal::catch_up`].
    ///
    /// # Errors
    ///
    /// What the file system says; [`RecordError::Never`] for records that can never be written
    /// or belong into the other store.
    pub fn append(&mut self, records: &[Record]) -> Result<(), RecordError> {
        // By the thread: the state directory's disk may hang, and keeps no run from being recorded.
        self.writer.look();
        let noted = self.history.take_noted();
        let upto = |(child, upto): (&ChildName, &RunId)| Record::Noted {
            child: child.clone(),
            upto: *upto,
        };
        let mut all: Vec<Record> = noted.iter().map(upto).collect();
        all.extend_from_slice(records);
        let appended = self.runtime.append(&all);
        if let Err(error) = &appended {
            let announces =
                |it: &Record| matches!(it, Record::Begun { .. } | Record::HookBegun { .. });
            if matches!(error, AppendError::Io(_)) && !records.iter().any(announces) {
                self.runtime.owe(&all);
            } else {
                self.history.put_back(noted);
            }
        }
        self.hand_over_all(records);
        appended.map_err(|error| self.runtime.told(error))
    }

    /// Hands what is new of these runs to the history.
    fn hand_over_all(&self, records: &[Record]) {
        for record in records {
            if let Record::Begun { child, .. }
            | Record::Started { child, .. }
            | Record::NotStarted { child, .. }
            | Record::Ended { child, .. } = record
            {
                self.hand_over(child);
            }
        }
    }

    fn hand_over(&self, child: &ChildName) {
        for past in self.unnoted(child) {
            self.history.put(child, past);
        }
    }

    /// The runs of a child that its history may not tell yet, a live one last.
    #[must_use]
    pub fn unnoted(&self, child: &ChildName) -> Vec<PastRun> {
        let Some(remembered) = self.runtime.memory().children.get(child) else {
            return Vec::new();
        };
        let over = remembered.over.iter().cloned();
        over.chain(remembered.live()).collect()
    }

    /// What reads the histories of children, on whatever thread.
    #[must_use]
    pub fn histories(&self) -> Histories {
        self.histories.clone()
    }

    /// What the process of a run or a hook needs to write down its own start, after its
    /// [`Record::Begun`] or [`Record::HookBegun`] and before anything else is recorded; then [`Journal::take_in`]. `at`: when it begins.
    ///
    /// # Errors
    ///
    /// No descriptor is left, or the file could not be written anew.
    pub fn slip(&self, newborn: Newborn<'_>, at: Time) -> Result<Slip<'_>, RecordError> {
        let none = || io::Error::other("there is no file");
        let file = self.runtime.descriptor().ok_or_else(none);
        let slip = file.map_err(SlipError::from).and_then(|file| {
            let lock = self.runtime_dir.share_lock()?;
            Slip::new(file, lock, newborn, at)
        });
        slip.map_err(|error| {
            self.runtime.told(match error {
                SlipError::Encode(error) => AppendError::Encode(error),
                SlipError::Io(error) => AppendError::Io(error),
            })
        })
    }

    /// Takes in what a process has written down by itself: its start, and perhaps that
    /// it could not be executed.
    ///
    /// # Errors
    ///
    /// The file cannot be read; nothing of it is believed then.
    pub fn take_in(&mut self) -> Result<Vec<Record>, RecordError> {
        let taken = self.runtime.take_in();
        if let Ok(records) = &taken {
            self.hand_over_all(records);
        }
        taken.map_err(|error| self.runtime.told(AppendError::Io(error)))
    }

    /// Keeps records in mind of what was found to live after records were lost, until they are
    /// written by [`Journal::rebuild`].
    pub fn owe(&mut self, records: &[Record]) {
        self.runtime.owe(records);
    }

    /// Writes the runtime store anew in one step, with these records of what was found to live
    /// after records were lost. Until then a server that dies leaves the loss as it was.
    ///
    /// # Errors
    ///
    /// What the file system says; the records are kept in mind and stay owed.
    pub fn rebuild(&mut self, records: &[Record]) -> Result<(), RecordError> {
        self.runtime.owe(records);
        self.catch_up()
    }

    /// Hands state records to the thread that writes them; never waits.
    ///
    /// The ticket is answered by [`Journal::committed`] once they are on disk or cannot be had
    /// there. Records without a ticket are tried again until they can be written.
    pub fn commit(&mut self, ticket: Option<Ticket>, records: Vec<Record>) {
        self.writer.commit(ticket, records);
    }

    /// Writes records of either store: those of the runtime store before it returns.
    ///
    /// With a ticket, the answer of [`Journal::committed`] is about all of them; when the
    /// runtime ones fail, the others are not written.
    ///
    /// # Errors
    ///
    /// As [`Journal::append`]; a ticket is answered all the same.
    pub fn record(
        &mut self,
        ticket: Option<Ticket>,
        records: Vec<Record>,
    ) -> Result<(), RecordError> {
        let (runtime, state): (Vec<_>, Vec<_>) = records
            .into_iter()
            .partition(|record| record.store() == Store::Runtime);
        let appended = match runtime.is_empty() {
            true => Ok(()),
            false => self.append(&runtime),
        };
        match (ticket, &appended) {
            (Some(ticket), Err(error)) => self.answer(ticket, Err(error.to_string())),
            (Some(ticket), Ok(())) if state.is_empty() => self.answer(ticket, Ok(())),
            (ticket, Ok(()) | Err(_)) => {
                if !state.is_empty() {
                    self.commit(ticket, state);
                }
            }
        }
        appended
    }

    /// Which tickets were answered and how. Bounded by the tickets given out.
    pub fn committed(&mut self) -> &mut UnboundedReceiver<(Ticket, Result<(), String>)> {
        &mut self.committed
    }

    /// Whether runtime records are owed that could not be written.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.runtime.is_behind()
    }

    /// Tries to write the runtime records that are owed, and sees to it that both directories are
    /// where they were: one that was deleted is made anew, with all that is known. Looks at the
    /// two and does nothing more when all is well. Of the state directory it is not waited for;
    /// what goes wrong there stands in the log.
    ///
    /// # Errors
    ///
    /// What the file system says of the runtime directory; the records stay owed.
    pub fn catch_up(&mut self) -> Result<(), RecordError> {
        self.writer.look();
        let runtime = self.runtime.catch_up();
        runtime.map_err(|error| self.runtime.told(AppendError::Io(error)))
    }

    /// Ends the journal: what was handed over is written and synced, then the locks go.
    ///
    /// An end by order is told by a [`Record::Closed`] that the caller appends before. Blocks
    /// as long as the disk does.
    pub fn close(mut self) {
        if let Err(error) = self.catch_up() {
            tracing::error!(%error, "the record of live runs could not be written to its end");
        }
        drop(self);
    }

    fn answer(&self, ticket: Ticket, result: Result<(), String>) {
        // The receiving end is ours and lives as long.
        let _delivered = self.answers.send((ticket, result));
    }
}
