//! One store: a file that records are added to, and what they amount to.
//!
//! - Adding is all or nothing: after a write that failed half way the file is cut back to
//!   its last good length. Where even that fails, or a sync failed (after which the kernel
//!   may call lost pages clean), or the file lost its name, the file is not added to again:
//!   the next record first has it written anew, from memory.
//! - Writing anew is also how a file is kept short: the shortest list of records that
//!   amounts to the same goes into a new file, which then takes the name. Whoever dies on
//!   the way leaves the old file or the new one, and a leftover that the next start removes.
//! - A damaged file is kept aside and written anew, never added to.
//! - [`Durability::Host`] syncs before it reports success. [`Durability::Server`] never
//!   waits for a disk: its records concern processes, which a host's end takes with it.
//!
//! - A run begins only when there is room for its end as well: of a disk that is full later, the
//!   records of what has happened take up what was kept free (`fallocate(2)`), and an exit code
//!   outlives the server all the same. Where the file system cannot promise that, or where the
//!   file was cut back since, what cannot be written is owed.
//!
//! - What cannot be read gets another name, whatever it is. Only what passes by itself (no
//!   descriptor free, no memory) is an error: to take it for damage would forget live runs.
//!
//! Absent on purpose: what is in a file (`frame`), how a cut is noticed (`mark`), directories and
//! locks (`folder`).

use std::{io, os::fd::BorrowedFd};

use rustix::io::Errno;

use super::{
    error::{JournalError, RecordError},
    folder::{Contents, Medium, Shelf, Standing},
    frame::{self, Damage, EncodeError},
    mark::Mark,
};
use crate::reconcile::{
    memory::{Memory, Remembered, Voided},
    record::{Record, Store},
};

/// A file shorter than this, in bytes, is not worth writing anew; tests want to see it.
const REWRITE_LEN_MIN: u64 = if cfg!(test) { 4 << 10 } else { 1 << 20 };

/// How many times longer than just after it was written anew a file may get.
const REWRITE_FACTOR: u64 = 4;

/// How many times in a row a write may be interrupted or write nothing.
const WRITE_RETRIES_MAX: u32 = 100;

/// How many bytes are kept free for each run and hook that has begun: for the records of its start, of its
/// stop and of its end, which are some two hundred bytes each.
const ROOM_PER_RUN: u64 = 1 << 10;

/// What a record outlives once it was reported as written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Durability {
    /// The server.
    Server,
    /// The host.
    Host,
}

/// Why records were not added.
#[derive(Debug, thiserror::Error)]
pub(super) enum AppendError {
    /// They can never be.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// They belong into the other store.
    #[error("the record does not belong into the store of kind {0:?}")]
    WrongStore(Store),
    /// They could not be written now.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A store.
pub(super) struct Log {
    store: Store,
    durability: Durability,
    name: &'static str,
    shelf: Box<dyn Shelf>,
    mark: Mark,
    /// `None`: written anew before anything is added.
    file: Option<Box<dyn Medium>>,
    /// The good length of the file, in bytes.
    len: u64,
    /// Beyond this length, in bytes, the file is written anew.
    rewrite_at: u64,
    memory: Memory,
}

/// A store as it was found.
pub(super) struct Found {
    pub(super) log: Log,
    /// What was wrong with it, for the log.
    pub(super) warning: Option<String>,
    /// Whether something that was written could not be read.
    pub(super) records_lost: bool,
}

impl Log {
    /// A store of which nothing was read.
    fn empty(
        store: Store,
        durability: Durability,
        name: &'static str,
        shelf: Box<dyn Shelf>,
    ) -> Self {
        Self {
            store,
            durability,
            name,
            shelf,
            mark: Mark::of(name),
            file: None,
            len: 0,
            rewrite_at: REWRITE_LEN_MIN,
            memory: Memory::default(),
        }
    }

    /// Reads a store; one that does not exist is empty.
    pub(super) fn open(
        store: Store,
        durability: Durability,
        name: &'static str,
        shelf: Box<dyn Shelf>,
    ) -> Result<Found, JournalError> {
        let mut found = Found {
            log: Self::empty(store, durability, name, shelf),
            warning: None,
            records_lost: false,
        };
        let log = &found.log;
        // A server that died while it wrote the file anew.
        let _best_effort = log.shelf.remove(&temporary_of(name));
        let marked = log.mark.read(&*log.shelf).filter(|len| *len > 0);
        match log.shelf.read(name) {
            Ok(Some(contents)) => found.take(contents, marked)?,
            Ok(None) => {
                if let Some(marked) = marked {
                    found.lost(format!(
                        "`{}` is missing, and {marked} bytes had been written to it",
                        found.log.shelf.path(name).display()
                    ));
                }
            }
            Err(error) if passes_by_itself(&error) => {
                return Err(JournalError::of_file(log.shelf.path(name), error));
            }
            Err(error) => found.give_up(error),
        }
        Ok(found)
    }

    /// Goes on with a store of which it is known what it amounts to: the program before has handed
    /// that over. A file that does not say exactly that is written anew, as one is that could not
    /// be written to.
    pub(super) fn resume(
        store: Store,
        durability: Durability,
        name: &'static str,
        shelf: Box<dyn Shelf>,
        records: &[Record],
    ) -> Self {
        let mut log = Self::empty(store, durability, name, shelf);
        for record in records {
            log.memory.apply(record);
        }
        let read = log.shelf.read(name);
        if let Ok(Some(Contents { file, bytes })) = read
            && let Ok(scan) = frame::scan(&bytes)
            && scan.damage == Damage::None
        {
            let mut written = Memory::default();
            scan.records.iter().for_each(|record| written.apply(record));
            if written == log.memory {
                log.len = scan.sound_len;
                log.file = file.filter(|_| scan.sound_len > 0);
            }
        }
        log
    }

    /// All that is known, to go on from.
    pub(super) fn records(&self) -> Vec<Record> {
        self.memory.records(self.store)
    }

    /// What the store amounts to.
    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Forgets what does not outlive a boot; the file follows with the next record.
    pub(super) fn forget_boot(&mut self) -> Voided {
        self.file = None;
        self.memory.forget_boot()
    }

    /// Whether something is known that the file does not say.
    pub(super) fn is_behind(&self) -> bool {
        self.file.is_none()
    }

    /// What to say of records that were not added.
    pub(super) fn told(&self, error: AppendError) -> RecordError {
        let path = self.shelf.path(self.name);
        match error {
            AppendError::Io(source) => RecordError::File { path, source },
            AppendError::Encode(_) | AppendError::WrongStore(_) => RecordError::Never {
                path,
                why: error.to_string(),
            },
        }
    }

    /// Brings the file up to what is known, also where it or its directory was taken away.
    pub(super) fn catch_up(&mut self) -> io::Result<()> {
        self.stand()?;
        if self.is_behind() {
            self.rewrite()?;
        }
        Ok(())
    }

    /// Adds records, all or none. The store stays usable on failure.
    pub(super) fn append(&mut self, records: &[Record]) -> Result<(), AppendError> {
        let mut bytes = Vec::new();
        for record in records {
            if record.store() != self.store {
                return Err(AppendError::WrongStore(self.store));
            }
            frame::encode(record, &mut bytes)?;
        }
        self.write(&bytes, self.room_to_begin(records))?;
        for record in records {
            self.memory.apply(record);
        }
        if self.len > self.rewrite_at && self.rewrite().is_err() {
            // The records are written; the file is merely long. Not tried at each record.
            self.rewrite_at = self.len.saturating_mul(2);
        }
        Ok(())
    }

    /// Where a process adds a record of itself, after [`Log::append`] and before
    /// [`Log::take_in`], with nothing else in between.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(|file| file.descriptor())
    }

    /// Takes in what a process has added, and cuts off what it did not write to its end.
    pub(super) fn take_in(&mut self) -> io::Result<Vec<Record>> {
        let Some(file) = self.file.take() else {
            return Ok(Vec::new());
        };
        // On an error not cut, for what is there may be the only word of a process that lives (I2): it
        // is given up, and written anew with the next record.
        let bytes = file.read_from(self.len)?;
        let (records, sound) = frame::added(&bytes);
        for record in &records {
            self.memory.apply(record);
        }
        self.len += sound as u64;
        self.mark.note(&*self.shelf, self.len);
        if sound < bytes.len() {
            self.cut(file);
        } else {
            self.file = Some(file);
        }
        Ok(records)
    }

    /// Keeps records in mind that [`AppendError::Io`] kept out of the file, because what
    /// they say has happened: they are written as soon as something can be.
    pub(super) fn owe(&mut self, records: &[Record]) {
        for record in records {
            self.memory.apply(record);
        }
        self.file = None;
    }

    /// Sees to it that the file will stand where the next server looks for it.
    fn stand(&mut self) -> io::Result<()> {
        match self.shelf.stand()? {
            Standing::AsBefore => {}
            Standing::Anew => self.file = None,
        }
        Ok(())
    }

    /// How many bytes must stay free behind records that are to be written; `None` when they begin
    /// nothing.
    fn room_to_begin(&self, records: &[Record]) -> Option<u64> {
        let begins = |it: &&Record| matches!(it, Record::Begun { .. } | Record::HookBegun { .. });
        let more = records.iter().filter(begins).count() as u64;
        (more > 0).then(|| self.room_for_ends() + ROOM_PER_RUN * more)
    }

    /// How many bytes must stay free behind what is written, so that whatever becomes of the disk
    /// the end of each run and hook that has begun can be written down.
    fn room_for_ends(&self) -> u64 {
        let runs = |child: &Remembered| child.last.as_ref().is_some_and(|run| run.end.is_none());
        let live = |child: &Remembered| u64::from(runs(child)) + u64::from(child.hook.is_some());
        ROOM_PER_RUN * self.memory.children.values().map(live).sum::<u64>()
    }

    fn write(&mut self, bytes: &[u8], room: Option<u64>) -> io::Result<()> {
        self.stand()?;
        let linked = match &self.file {
            Some(file) => file.is_linked()?,
            None => false,
        };
        if !linked {
            self.file = None;
            self.rewrite()?;
        }
        let Some(mut file) = self.file.take() else {
            return Err(io::Error::other("the file could not be written anew"));
        };
        if let Some(room) = room
            && let Err(error) = file.reserve(self.len, bytes.len() as u64 + room)
        {
            // Nothing was written: the file is as good as before.
            self.file = Some(file);
            return Err(error);
        }
        match write_all(file.as_mut(), bytes) {
            Ok(()) => {}
            Err(error) => {
                self.cut(file);
                return Err(error);
            }
        }
        if self.durability == Durability::Host
            && let Err(error) = file.sync()
        {
            // Cut as well as given up: whoever reads it next must not find what was refused.
            self.cut(file);
            self.file = None;
            return Err(error);
        }
        self.len += bytes.len() as u64;
        self.file = Some(file);
        self.mark.note(&*self.shelf, self.len);
        Ok(())
    }

    /// Cuts the file to its good length, or gives it up.
    fn cut(&mut self, mut file: Box<dyn Medium>) {
        let sound = self.len > 0 && file.truncate(self.len).is_ok();
        self.file = sound.then_some(file);
    }

    /// Writes the file anew. The old one stays in use on failure, if it was.
    fn rewrite(&mut self) -> io::Result<()> {
        let mut bytes = frame::header();
        for record in self.memory.records(self.store) {
            frame::encode(&record, &mut bytes).map_err(io::Error::other)?;
        }
        let temporary = temporary_of(self.name);
        let made = self.make(&temporary, &bytes);
        let file = match made {
            Ok(file) => file,
            Err(error) => {
                // It takes up space that may be what is missing.
                let _best_effort = self.shelf.remove(&temporary);
                return Err(error);
            }
        };
        if self.durability == Durability::Host
            && let Err(error) = self.shelf.sync()
        {
            // Which of the two files has the name after a power cut is not known.
            self.file = None;
            return Err(error);
        }
        self.file = Some(file);
        self.len = bytes.len() as u64;
        self.mark.note(&*self.shelf, self.len);
        self.rewrite_at = REWRITE_LEN_MIN.max(self.len.saturating_mul(REWRITE_FACTOR));
        Ok(())
    }

    fn make(&mut self, temporary: &str, bytes: &[u8]) -> io::Result<Box<dyn Medium>> {
        let mut file = self.shelf.create(temporary)?;
        write_all(file.as_mut(), bytes)?;
        let room = self.room_for_ends();
        if room > 0
            && let Err(error) = file.reserve(bytes.len() as u64, room)
            && self.file.is_some()
        {
            // The file in use has this room; without one, to be written at all comes first.
            return Err(error);
        }
        if self.durability == Durability::Host {
            file.sync()?;
        }
        self.mark.clear(&*self.shelf, self.durability)?;
        self.shelf.rename(temporary, self.name)?;
        Ok(file)
    }
}

impl Found {
    /// Takes in what stands in the file, which once had a length of at least `marked`.
    fn take(&mut self, contents: Contents, marked: Option<u64>) -> Result<(), JournalError> {
        let Contents { file, bytes } = contents;
        let path = self.log.shelf.path(self.log.name);
        let scan = frame::scan(&bytes).map_err(|newer| JournalError::NewerFormat {
            path: path.clone(),
            found: newer.found,
            known: frame::FORMAT,
        })?;
        for record in &scan.records {
            self.log.memory.apply(record);
        }
        self.log.len = scan.sound_len;
        let shown = path.display();
        let read = scan.records.len();
        let cut = marked.filter(|marked| scan.sound_len < *marked);
        match (scan.damage, cut) {
            (Damage::None, None) => self.log.file = file.filter(|_| scan.sound_len > 0),
            (Damage::TornTail { bytes }, None) => {
                if let Some(file) = file {
                    self.log.cut(file);
                }
                self.warning = Some(format!(
                    "the last record of `{shown}` was not written to its end: \
                     its {bytes} bytes were cut off"
                ));
            }
            (Damage::None | Damage::TornTail { .. }, Some(marked)) => {
                let kept = self.keep(&bytes);
                self.lost(format!(
                    "`{shown}` was cut: of the {marked} bytes that had been written, \
                     {} are left whole: the {read} records that can be read are used; {kept}",
                    scan.sound_len
                ));
            }
            (Damage::Corrupt { at, spots }, _) => {
                let kept = self.keep(&bytes);
                self.lost(format!(
                    "`{shown}` is damaged in {spots} place(s), first at byte {at}: \
                     the {read} records that can be read are used; {kept}"
                ));
            }
        }
        Ok(())
    }

    /// Goes on without the file: what has its name cannot be read.
    fn give_up(&mut self, error: io::Error) {
        // Without its name and without a mark there would be nothing to tell of the loss, should
        // this server die before it has found what lives.
        if self
            .log
            .mark
            .read(&*self.log.shelf)
            .is_none_or(|len| len == 0)
        {
            self.log.mark.note(&*self.log.shelf, 1);
        }
        let (shelf, name) = (&self.log.shelf, self.log.name);
        let error = JournalError::of_file(shelf.path(name), error);
        let moved = match shelf.move_aside(name) {
            Ok(kept) => format!("it is kept as `{kept}`"),
            Err(error) => format!("it could not be moved away: {error}"),
        };
        let error = error.to_string();
        let why = error.lines().next().unwrap_or_default();
        self.lost(format!("{why}: {moved}"));
    }

    fn keep(&self, bytes: &[u8]) -> String {
        match self.log.shelf.set_aside(self.log.name, bytes) {
            Ok(kept) => format!("the damaged file is kept as `{kept}`"),
            Err(error) => format!("the damaged file could not be kept: {error}"),
        }
    }

    pub(super) fn lost(&mut self, warning: String) {
        self.records_lost = true;
        self.warning = Some(warning);
    }
}

/// Whether an error says nothing of the file: the next start may read it.
pub(super) fn passes_by_itself(error: &io::Error) -> bool {
    let errnos = [
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOMEM,
        Errno::INTR,
        Errno::AGAIN,
    ];
    let is = |errno: &Errno| error.raw_os_error() == Some(errno.raw_os_error());
    errnos.iter().any(is)
}

/// The name of a file that is being written anew.
fn temporary_of(name: &str) -> String {
    format!("{name}.new")
}

fn write_all(file: &mut dyn Medium, mut bytes: &[u8]) -> io::Result<()> {
    let mut retries = 0;
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => retries += 1,
            Ok(written) => {
                bytes = &bytes[written..];
                retries = 0;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => retries += 1,
            Err(error) => return Err(error),
        }
        if retries > WRITE_RETRIES_MAX {
            return Err(io::ErrorKind::WriteZero.into());
        }
    }
    Ok(())
}
