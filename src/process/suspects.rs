//! Processes that may be a child's and do not show whose: nothing is done to them, and that they are
//! gone is told.
//!
//! Absent on purpose: which ones these are (`found`), and what follows (`reconcile::suspects`).

use super::{
    Fact, Processes, Started,
    adopt::{Found, find},
    wait::Token,
};

impl Processes {
    /// Has the end of each of these told once; gives those that are gone already.
    ///
    /// One that cannot be watched is never told of by this program.
    #[must_use]
    pub fn watch_suspects(&mut self, suspects: impl Iterator<Item = (i32, u64)>) -> Vec<Fact> {
        let started = suspects.map(|(pid, start_ticks)| Started { pid, start_ticks });
        started.filter_map(|it| self.watch_suspect(it)).collect()
    }

    fn watch_suspect(&mut self, started: Started) -> Option<Fact> {
        let Started { pid, start_ticks } = started;
        let watched = find(pid, start_ticks).and_then(|found| match found {
            Found::Another | Found::Nobody => Ok(None),
            Found::Process(pidfd) => {
                let token = self.next_token();
                self.exits.watch(&pidfd, token)?;
                Ok(Some((token, pidfd)))
            }
        });
        match watched {
            Ok(Some((token, pidfd))) => {
                self.suspects.insert(token, (started, pidfd));
                None
            }
            Ok(None) => Some(Fact::SuspectGone(started)),
            Err(error) => {
                tracing::warn!(pid, %error, "that this process ends cannot be waited for");
                None
            }
        }
    }

    pub(super) fn suspect_gone(&mut self, token: Token) -> Option<Fact> {
        let (started, _pidfd) = self.suspects.remove(&token)?;
        Some(Fact::SuspectGone(started))
    }
}
