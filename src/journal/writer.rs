//! The thread that writes what must survive the host, so that nobody else waits for a disk.
//!
//! - What was handed over while it wrote is written together: one write and one sync for all.
//! - A ticket is answered once, after its records are on disk or were refused. Refused
//!   records with a ticket are given up; those without one are already true and are owed:
//!   tried again by themselves, every [`RETRY`], and with whatever comes next.
//! - After a panic, which is a fault of ours, nothing more is written: what it was at and all
//!   that comes later is refused, so that nobody waits for ever (I5).
//! - The queue is bounded: by the tickets its user gives out, and, for records without one,
//!   by dropping those that a later one of the same child has overtaken.
//!
//! Absent on purpose: what is written how (`log`).

use std::{
    collections::BTreeSet,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::sync::mpsc::UnboundedSender;

use super::log::{AppendError, Log};
use crate::{
    reconcile::{
        event::Ticket,
        record::{Record, Store},
    },
    spec::ChildName,
};

/// How often what is owed is tried again; while nothing is owed the thread sleeps.
pub(super) const RETRY: Duration = Duration::from_secs(5);

/// From how many waiting entries on overtaken ones are dropped.
const CROWDED: usize = 1024;

/// What is said of records after a panic.
const ENDED: &str = "the journal's thread has ended";

/// A ticket and what became of its records.
pub(super) type Answer = (Ticket, Result<(), String>);

/// A handle on the thread.
pub(super) struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Option<Log>>>,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug)]
struct Queue {
    entries: Vec<Entry>,
    /// The thread is at something.
    busy: bool,
    /// It has panicked, and writes nothing any more.
    panicked: bool,
    look: bool,
    crowded_at: usize,
    closing: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    ticket: Option<Ticket>,
    records: Vec<Record>,
}

impl Writer {
    /// Starts the thread.
    pub(super) fn start(log: Log, answers: UnboundedSender<Answer>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue {
                entries: Vec::new(),
                busy: false,
                panicked: false,
                look: false,
                crowded_at: CROWDED,
                closing: false,
            }),
            changed: Condvar::new(),
        });
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || {
                let mut batch = Vec::new();
                let work = || work(log, &theirs, &mut batch, &answers);
                // Of what it borrows only the batch and the queue are used again, both whole.
                let log = catch_unwind(AssertUnwindSafe(work));
                if log.is_err() {
                    tracing::error!(
                        "the journal's thread has panicked: it refuses all from now on"
                    );
                    theirs.lock().panicked = true;
                    refuse_all(&theirs, batch, &answers);
                }
                log.ok()
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Hands records over; never waits.
    pub(super) fn commit(&self, ticket: Option<Ticket>, records: Vec<Record>) {
        self.shared.lock().push(Entry { ticket, records });
        self.shared.changed.notify_one();
    }

    /// Has the thread see to it that the file is where the next server looks for it; never waits.
    pub(super) fn look(&self) {
        self.shared.lock().look = true;
        self.shared.changed.notify_one();
    }

    /// Whether all that was handed over is written or refused. What is owed may still be owed.
    pub(super) fn is_quiet(&self) -> bool {
        let queue = self.shared.lock();
        queue.entries.is_empty() && !queue.look && !queue.busy && !queue.panicked
    }

    /// Waits until all that was handed over is written or refused, and ends the thread. Gives back
    /// what it wrote to, unless it has panicked.
    pub(super) fn finish(&mut self) -> Option<Log> {
        self.shared.lock().closing = true;
        self.shared.changed.notify_one();
        match self.thread.take()?.join() {
            Ok(log) => log,
            Err(_) => {
                tracing::error!("the journal thread panicked");
                None
            }
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing is left half done under this lock.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps until there is something to do; with something owed, no longer than [`RETRY`].
    fn next(&self, behind: bool) -> Next {
        let mut queue = self.lock();
        queue.busy = false;
        loop {
            let look = std::mem::take(&mut queue.look);
            if !queue.entries.is_empty() {
                // Before it is written anything, the file is looked at anyway.
                queue.crowded_at = CROWDED;
                queue.busy = true;
                return Next::Entries(std::mem::take(&mut queue.entries));
            }
            if queue.closing {
                return Next::Close;
            }
            if look {
                queue.busy = true;
                return Next::Look;
            }
            if behind {
                let waited = self.changed.wait_timeout(queue, RETRY);
                let (again, waited) = waited.unwrap_or_else(PoisonError::into_inner);
                if waited.timed_out() {
                    return Next::Retry;
                }
                queue = again;
            } else {
                let waited = self.changed.wait(queue);
                queue = waited.unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

/// What the thread is to do.
enum Next {
    /// Write these.
    Entries(Vec<Entry>),
    /// Try again what is owed.
    Retry,
    /// See to it that the file is where it should be.
    Look,
    /// End: everything handed over was taken.
    Close,
}

impl Queue {
    fn push(&mut self, entry: Entry) {
        self.entries.push(entry);
        if self.entries.len() >= self.crowded_at {
            self.drop_overtaken();
            self.crowded_at = CROWDED.max(self.entries.len().saturating_mul(2));
        }
    }

    /// Drops records without a ticket that a later one without a ticket makes pointless: each
    /// says how something stands with a child, and the last word counts.
    fn drop_overtaken(&mut self) {
        let mut seen = BTreeSet::new();
        for entry in self.entries.iter_mut().rev() {
            if entry.ticket.is_some() {
                continue;
            }
            let mut kept: Vec<Record> = std::mem::take(&mut entry.records);
            kept.reverse();
            kept.retain(|record| match subject(record) {
                Some(subject) => seen.insert(subject),
                None => true,
            });
            kept.reverse();
            entry.records = kept;
        }
        let needed = |entry: &Entry| entry.ticket.is_some() || !entry.records.is_empty();
        self.entries.retain(needed);
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Aspect {
    Hold,
    Numbers,
}

/// About whom and what a record of the state store has the last word.
fn subject(record: &Record) -> Option<(ChildName, Aspect)> {
    match record {
        Record::Held { child, .. } | Record::Released { child } => {
            Some((child.clone(), Aspect::Hold))
        }
        // Reserved blocks only ever grow, so that the last one is the largest.
        Record::Reserved { child, .. } => Some((child.clone(), Aspect::Numbers)),
        Record::Opened { .. }
        | Record::Closed
        | Record::Begun { .. }
        | Record::Started { .. }
        | Record::Found { .. }
        | Record::Matched { .. }
        | Record::MaybeUsed { .. }
        | Record::Ready { .. }
        | Record::NotStarted { .. }
        | Record::Stopping { .. }
        | Record::Replacing { .. }
        | Record::Ended { .. }
        | Record::GivenUp { .. }
        | Record::Doubted { .. }
        | Record::Suspects(_)
        | Record::Suspicion { .. }
        | Record::Renewed { .. }
        | Record::Settled { .. }
        | Record::Armed { .. }
        | Record::Disarmed { .. }
        | Record::Asked { .. }
        | Record::Answered { .. }
        | Record::Over { .. }
        | Record::Noted { .. }
        | Record::HookBegun { .. }
        | Record::HookStarted { .. }
        | Record::HookEnded { .. }
        | Record::LoadpathSeen { .. }
        | Record::Forgotten { .. } => {
            debug_assert_eq!(record.store(), Store::Runtime);
            None
        }
    }
}

/// `batch` is what it is at: after a panic, those in it that have a ticket are not answered.
fn work(
    mut log: Log,
    shared: &Shared,
    batch: &mut Vec<Entry>,
    answers: &UnboundedSender<Answer>,
) -> Log {
    loop {
        match shared.next(log.is_behind()) {
            Next::Entries(entries) => {
                *batch = entries;
                write(&mut log, batch, answers);
            }
            Next::Retry => {
                if log.catch_up().is_ok() {
                    tracing::info!("the state is written again");
                }
            }
            Next::Look => {
                if let Err(error) = log.catch_up() {
                    let error = log.told(AppendError::Io(error));
                    tracing::error!(%error, "the state is not where it should be");
                }
            }
            Next::Close => break,
        }
    }
    if let Err(error) = log.catch_up() {
        tracing::error!(%error, "the state could not be written to its end");
    }
    log
}

/// Refuses what was under way and whatever comes, until nothing more does.
fn refuse_all(shared: &Shared, mut batch: Vec<Entry>, answers: &UnboundedSender<Answer>) {
    loop {
        for entry in &mut batch {
            answer(entry, Err(ENDED.to_owned()), answers);
        }
        match shared.next(false) {
            Next::Entries(entries) => batch = entries,
            Next::Retry | Next::Look => batch.clear(),
            Next::Close => return,
        }
    }
}

/// Writes all entries together; where one of them can never be written, each by itself.
fn write(log: &mut Log, entries: &mut [Entry], answers: &UnboundedSender<Answer>) {
    let all: Vec<Record> = entries
        .iter()
        .flat_map(|entry| entry.records.iter().cloned())
        .collect();
    match log.append(&all) {
        Ok(()) => {
            for entry in entries {
                answer(entry, Ok(()), answers);
            }
        }
        Err(AppendError::Io(error)) => {
            for entry in entries {
                refuse(log, entry, AppendError::Io(copy(&error)), answers);
            }
            let error = log.told(AppendError::Io(error));
            tracing::error!(%error, "the state could not be written");
        }
        Err(AppendError::Encode(_) | AppendError::WrongStore(_)) => {
            for entry in entries {
                match log.append(&entry.records) {
                    Ok(()) => answer(entry, Ok(()), answers),
                    Err(error) => {
                        tracing::error!(%error, "the state could not be written");
                        refuse(log, entry, error, answers);
                    }
                }
            }
        }
    }
}

fn refuse(log: &mut Log, entry: &mut Entry, error: AppendError, answers: &UnboundedSender<Answer>) {
    match (entry.ticket, &error) {
        (None, AppendError::Io(_)) => log.owe(&entry.records),
        (None, AppendError::Encode(_) | AppendError::WrongStore(_)) => {}
        (Some(_), _) => answer(entry, Err(log.told(error).to_string()), answers),
    }
}

/// Answers an entry's ticket, which it has no more then.
fn answer(entry: &mut Entry, result: Result<(), String>, answers: &UnboundedSender<Answer>) {
    if let Some(ticket) = entry.ticket.take() {
        // Nobody listens any more when the server is on its way out.
        let _delivered = answers.send((ticket, result));
    }
}

/// The same error once more.
fn copy(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::{
        super::{
            drill::{FaultyShelf, NAME, Shared as Faults},
            log::Durability,
            samples::{self, begun, held, name, released, reserved},
        },
        *,
    };
    use crate::{reconcile::memory::Memory, spec::RunId};

    fn log(path: &Path) -> (Log, Faults) {
        let (shelf, faults) = FaultyShelf::new(path);
        let found = Log::open(Store::State, Durability::Host, NAME, Box::new(shelf)).unwrap();
        (found.log, faults)
    }

    fn on_disk(path: &Path) -> Memory {
        log(path).0.memory().clone()
    }

    fn received(mut answers: UnboundedReceiver<Answer>) -> Vec<(u64, bool)> {
        let mut all = Vec::new();
        while let Ok((ticket, result)) = answers.try_recv() {
            all.push((ticket.0, result.is_ok()));
        }
        all
    }

    fn entry(ticket: Option<u64>, records: Vec<Record>) -> Entry {
        let ticket = ticket.map(Ticket);
        Entry { ticket, records }
    }

    #[test]
    fn every_ticket_is_answered_once_and_in_order() {
        let temp = samples::own_dir();
        let (answers, received_answers) = unbounded_channel();
        let mut writer = Writer::start(log(temp.path()).0, answers).unwrap();
        for ticket in 1..=200 {
            writer.commit(Some(Ticket(ticket)), vec![reserved("web", ticket)]);
        }
        writer.finish();
        let expected: Vec<_> = (1..=200).map(|ticket| (ticket, true)).collect();
        assert_eq!(received(received_answers), expected);
        let web = &on_disk(temp.path()).children[&name("web")];
        assert_eq!(web.reserved, Some(RunId(200)));
    }

    #[test]
    fn what_waits_together_is_written_together() {
        let temp = samples::own_dir();
        let (mut log, faults) = log(temp.path());
        log.catch_up().unwrap();
        let before = faults.lock().unwrap().operations;
        let entries = (1..=50).map(|n| entry(Some(n), vec![reserved("web", n)]));
        let mut entries: Vec<_> = entries.collect();
        let (answers, received_answers) = unbounded_channel();
        write(&mut log, &mut entries, &answers);
        assert_eq!(received(received_answers).len(), 50);
        // One write, one sync, and the mark, which is opened for it.
        assert_eq!(faults.lock().unwrap().operations - before, 4);
    }

    #[test]
    fn a_full_disk_refuses_tickets_and_owes_what_has_none() {
        let temp = samples::own_dir();
        let (mut log, faults) = log(temp.path());
        log.catch_up().unwrap();
        faults.lock().unwrap().space = Some(0);
        let (answers, received_answers) = unbounded_channel();
        let mut entries = vec![
            entry(Some(1), vec![held("refused")]),
            entry(None, vec![held("owed")]),
        ];
        write(&mut log, &mut entries, &answers);
        assert_eq!(received(received_answers), [(1, false)]);
        assert!(log.is_behind());
        faults.lock().unwrap().space = None;
        log.catch_up().unwrap();
        let found = on_disk(temp.path());
        assert!(found.children.contains_key(&name("owed")));
        assert!(!found.children.contains_key(&name("refused")));
    }

    #[test]
    fn one_record_that_cannot_be_written_refuses_no_other() {
        let temp = samples::own_dir();
        let (mut log, _) = log(temp.path());
        let (answers, received_answers) = unbounded_channel();
        let mut entries = vec![
            entry(Some(1), vec![held("a")]),
            entry(Some(2), vec![begun("b", 1)]),
            entry(None, vec![begun("b", 2)]),
            entry(Some(3), vec![held("c")]),
        ];
        write(&mut log, &mut entries, &answers);
        let answered = received(received_answers);
        assert_eq!(answered, [(1, true), (2, false), (3, true)]);
        assert_eq!(on_disk(temp.path()).children.len(), 2);
    }

    #[test]
    fn what_is_owed_is_written_at_the_end_at_the_latest() {
        let temp = samples::own_dir();
        let (mut log, _) = log(temp.path());
        log.owe(&[held("owed")]);
        let (answers, _received) = unbounded_channel();
        drop(Writer::start(log, answers).unwrap());
        assert_eq!(on_disk(temp.path()).children.len(), 1);
    }

    #[test]
    fn after_a_panic_every_ticket_is_refused_once_the_one_under_way_and_all_later_ones() {
        let temp = samples::own_dir();
        let (log, faults) = log(temp.path());
        let held_and_panicked = thread::spawn(move || {
            let _held = faults.lock().unwrap();
            panic!("planted, so that the disk panics whoever writes");
        });
        assert!(held_and_panicked.join().is_err());
        let (answers, mut received) = unbounded_channel();
        let mut writer = Writer::start(log, answers).unwrap();
        for ticket in 1..=3 {
            writer.commit(Some(Ticket(ticket)), vec![held("web")]);
            writer.commit(None, vec![held("db")]);
            let refused = (Ticket(ticket), Err(ENDED.to_owned()));
            assert_eq!(received.blocking_recv(), Some(refused));
        }
        writer.commit(Some(Ticket(4)), vec![held("web")]);
        writer.finish();
        assert_eq!(received.blocking_recv().unwrap().0, Ticket(4));
        drop(writer);
        assert_eq!(received.blocking_recv(), None, "each once");
    }

    #[test]
    fn what_was_answered_before_a_panic_is_not_answered_again() {
        let temp = samples::own_dir();
        let (mut log, _) = log(temp.path());
        let (answers, received_answers) = unbounded_channel();
        let mut entries = [entry(Some(1), vec![held("a")]), entry(None, vec![])];
        write(&mut log, &mut entries, &answers);
        assert!(entries.iter().all(|entry| entry.ticket.is_none()));
        assert_eq!(received(received_answers), [(1, true)]);
    }

    #[test]
    fn a_crowded_queue_keeps_every_ticket_and_each_childs_last_word() {
        let mut queue = Queue {
            look: false,
            busy: false,
            panicked: false,
            entries: Vec::new(),
            crowded_at: CROWDED,
            closing: false,
        };
        let mut given = Vec::new();
        for n in 0..20_000u64 {
            let child = format!("c{}", n % 10);
            let record = match n % 3 {
                0 => held(&child),
                1 => released(&child),
                _ => reserved(&child, n),
            };
            let ticket = n.is_multiple_of(1_000).then_some(n);
            given.push(record.clone());
            queue.push(entry(ticket, vec![record]));
            assert!(queue.entries.len() <= CROWDED);
        }
        let tickets = queue.entries.iter().filter_map(|entry| entry.ticket);
        assert_eq!(tickets.count(), 20);
        let fold = |records: &mut dyn Iterator<Item = &Record>| {
            let mut memory = Memory::default();
            records.for_each(|record| memory.apply(record));
            memory.records(Store::State)
        };
        let kept = fold(&mut queue.entries.iter().flat_map(|entry| &entry.records));
        assert_eq!(kept, fold(&mut given.iter()));
    }
}
