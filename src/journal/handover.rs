//! The journal across an upgrade: nobody else can have the directories in between, and what was
//! known is known.
//!
//! The locks belong to open files and the claims to sockets, which the next program inherits. What
//! the stores amount to goes over as well, so that what could not be written yet is not lost; a
//! file that says something else is written anew.

use std::{io, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{
    Journal, RUNTIME_NAME, STATE_NAME,
    error::JournalError,
    go_on,
    history::Histories,
    home::{HandedHome, Home},
    log::{Durability, Log},
};
use crate::{
    passed::{Claim, Passed},
    reconcile::record::{Record, Store},
};

/// A journal on its way to the next program.
#[derive(Debug, Serialize, Deserialize)]
pub struct HandedJournal {
    state_dir: HandedHome,
    /// `None` when it is the same directory.
    runtime_dir: Option<HandedHome>,
    runtime: Vec<Record>,
    state: Vec<Record>,
}

impl HandedJournal {
    /// Every descriptor that goes over.
    pub fn passed(&self) -> impl Iterator<Item = &Passed> {
        let runtime_dir = self.runtime_dir.iter().flat_map(HandedHome::passed);
        self.state_dir.passed().chain(runtime_dir)
    }
}

impl Journal {
    /// Whether all that was handed over is written or refused, and told.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.writer.is_quiet() && self.history.is_quiet() && self.committed.is_empty()
    }

    /// Ends the journal without letting anybody else have the directories. To be called when it
    /// is quiet: what is owed goes over with the rest.
    ///
    /// # Errors
    ///
    /// Its thread has panicked, so that it is not known what is on disk; or the system's.
    pub fn pass_on(mut self) -> io::Result<HandedJournal> {
        let state = self.writer.finish();
        self.history.finish();
        let Self {
            runtime,
            writer: _,
            history,
            histories: _,
            answers: _,
            committed: _,
            _state_dir: state_dir,
            runtime_dir,
        } = self;
        let state = state.ok_or_else(|| {
            io::Error::other("the journal's thread has panicked: what is on disk is not known")
        })?;
        let records = (runtime.records(), state.records());
        // Each has a handle on its directory.
        drop((runtime, state, history));
        let runtime_dir = match state_dir.is_same(&runtime_dir) {
            true => {
                drop(runtime_dir);
                None
            }
            false => Some(runtime_dir.hand_over()?),
        };
        Ok(HandedJournal {
            state_dir: state_dir.hand_over()?,
            runtime_dir,
            runtime: records.0,
            state: records.1,
        })
    }
}

/// Goes on with the journal of the program before.
///
/// # Errors
///
/// The system's, when a descriptor cannot be had or no thread can.
pub fn take_over(handed: HandedJournal, claim: Claim<'_>) -> Result<Journal, JournalError> {
    let failed = |dir: PathBuf| move |source| JournalError::Dir { dir, source };
    let path = handed.state_dir.path().to_owned();
    let state_path = path.clone();
    let state_dir = Home::take_over(handed.state_dir, claim).map_err(failed(path))?;
    let runtime_dir = match handed.runtime_dir {
        Some(dir) => {
            let path = dir.path().to_owned();
            Home::take_over(dir, claim).map_err(failed(path))?
        }
        None => state_dir.clone(),
    };
    let runtime = Log::resume(
        Store::Runtime,
        Durability::Server,
        RUNTIME_NAME,
        Box::new(runtime_dir.clone()),
        &handed.runtime,
    );
    let state = Log::resume(
        Store::State,
        Durability::Host,
        STATE_NAME,
        Box::new(state_dir.clone()),
        &handed.state,
    );
    let histories = Histories::of(&state_path);
    go_on(runtime, state, (state_dir, runtime_dir), histories)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, os::fd::AsRawFd, time::Duration};

    use super::{
        super::{Dirs, LOCK_WAIT, Opened, open_waiting, samples::*},
        *,
    };
    use crate::reconcile::{event::Ticket, memory::Memory};

    fn open(dirs: &Dirs, wait: Duration) -> Result<Opened, JournalError> {
        open_waiting(dirs, None, "boot", wait)
    }

    /// Through what is written down, as another program has it.
    fn another(journal: Journal, in_between: impl FnOnce()) -> Journal {
        let handed = journal.pass_on().unwrap();
        let mut bytes = Vec::new();
        ciborium::into_writer(&handed, &mut bytes).unwrap();
        in_between();
        let read: HandedJournal = ciborium::from_reader(bytes.as_slice()).unwrap();
        let copies: BTreeMap<_, _> = handed
            .passed()
            .map(|passed| passed.held().unwrap())
            .map(|fd| (fd.as_raw_fd(), fd.try_clone_to_owned().unwrap()))
            .collect();
        drop(handed);
        take_over(read, &|number| copies[&number].try_clone()).unwrap()
    }

    fn settle(journal: &Journal) {
        while !journal.is_quiet() {
            std::thread::yield_now();
        }
    }

    fn dirs(temp: &tempfile::TempDir, runtime_dir: &str) -> Dirs {
        Dirs {
            state_dir: temp.path().join("state"),
            runtime_dir: temp.path().join(runtime_dir),
        }
    }

    #[test]
    fn nobody_else_gets_the_directories_and_all_is_written_on() {
        // Two directories, one in the other, and one for both.
        for runtime_dir in ["run", "state/run", "state"] {
            let temp = own_dir();
            let dirs = dirs(&temp, runtime_dir);
            let mut journal = open(&dirs, LOCK_WAIT).unwrap().journal;
            journal
                .append(&[begun("web", 1), started("web", 1)])
                .unwrap();
            journal.commit(None, vec![held("db")]);
            settle(&journal);
            let refused = || {
                let second = open(&dirs, Duration::ZERO).unwrap_err();
                assert!(matches!(second, JournalError::InUse { .. }), "{second}");
            };
            let lengths = || {
                let len = |dir: &PathBuf, name| fs::metadata(dir.join(name)).unwrap().len();
                (
                    len(&dirs.runtime_dir, RUNTIME_NAME),
                    len(&dirs.state_dir, STATE_NAME),
                )
            };
            let before = lengths();
            let mut journal = another(journal, refused);
            refused();
            assert!(!journal.is_behind());
            assert_eq!(lengths(), before, "nothing is written anew");
            journal.append(&[ended("web", 1)]).unwrap();
            journal.commit(None, vec![released("db"), held("cache")]);
            let journal = another(another(journal, refused), refused);
            journal.close();
            let found = open(&dirs, LOCK_WAIT).unwrap().memory;
            let mut expected = Memory::default();
            let records = [begun("web", 1), started("web", 1), ended("web", 1)];
            for record in records.iter().chain(&[held("cache")]) {
                expected.apply(record);
            }
            assert_eq!(
                found.children[&name("web")],
                expected.children[&name("web")]
            );
            assert_eq!(
                found.children[&name("cache")],
                expected.children[&name("cache")]
            );
            assert!(
                found
                    .children
                    .get(&name("db"))
                    .is_none_or(|db| db.held.is_none())
            );
        }
    }

    #[test]
    fn what_the_files_lost_meanwhile_is_written_anew() {
        let temp = own_dir();
        let dirs = dirs(&temp, "run");
        let mut journal = open(&dirs, LOCK_WAIT).unwrap().journal;
        journal
            .append(&[begun("web", 1), started("web", 1)])
            .unwrap();
        journal.commit(Some(Ticket(1)), vec![held("db")]);
        while journal.committed.is_empty() {
            std::thread::yield_now();
        }
        let vandal = || {
            fs::remove_file(dirs.runtime_dir.join(RUNTIME_NAME)).unwrap();
            fs::write(dirs.state_dir.join(STATE_NAME), "garbage").unwrap();
        };
        let mut journal = another(journal, vandal);
        assert!(journal.is_behind());
        journal.catch_up().unwrap();
        journal.close();
        let found = open(&dirs, LOCK_WAIT).unwrap().memory;
        assert!(found.children[&name("web")].last.is_some());
        assert!(found.children[&name("db")].held.is_some());
    }
}
