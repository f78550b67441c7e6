//! server.yml, seen from outside: whether it may have changed. Reading it is not done here.

use std::path::PathBuf;

use super::{BeingWritten, again::Again, reader::is_racy};
use crate::{
    clock,
    spec::Mono,
    trust::{self, Identity, Owners, TrustError, Way},
};

/// What was last seen of server.yml.
pub(super) struct ServerFile {
    path: PathBuf,
    way: Way,
    seen: Option<Result<Identity, TrustError>>,
    /// When to look again, while it is being written.
    again: Option<Again>,
}

/// What a look at server.yml told.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// As before.
    Same,
    /// It may be another one.
    Changed,
}

impl ServerFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            way: Way::default(),
            seen: None,
            again: None,
        }
    }

    /// What was looked up on the way to it.
    pub(super) fn way(&self) -> &Way {
        &self.way
    }

    /// Looks up the way to it.
    pub(super) fn find(&mut self, owners: &Owners) {
        // What is wrong with it is seen by `look`, and told by whoever reads it.
        let _ = trust::open(&self.path, owners, &mut self.way);
    }

    /// When to look at it again without a hint: while it is being written.
    pub(super) fn next_look(&self) -> Option<Mono> {
        self.again.map(Again::at)
    }

    /// Looks at it. While somebody writes it, it is as before.
    pub(super) fn look(&mut self, owners: &Owners, being_written: BeingWritten) -> Told {
        let now_ms = clock::wall().0;
        let again = self.again.take();
        let seen = match trust::open(&self.path, owners, &mut self.way) {
            Ok(file) if being_written(file.file()) => return self.wait(again),
            Err(TrustError::Changing { .. }) => return self.wait(again),
            Ok(file) => Ok(file.identity()),
            Err(error) => Err(error),
        };
        if self.seen.as_ref() == Some(&seen) {
            return Told::Same;
        }
        let racy = seen
            .as_ref()
            .is_ok_and(|identity| is_racy(identity, now_ms));
        // What may change again unseen is told again at the next look.
        self.seen = (!racy).then_some(seen);
        Told::Changed
    }

    /// Leaves it as it is for now; `again` is what was planned before this look.
    fn wait(&mut self, again: Option<Again>) -> Told {
        let now = clock::mono();
        self.again = Some(match again {
            Some(again) if again.is_due(now) => again.after(now),
            // There was news, perhaps of its closing.
            Some(_) | None => Again::soon(now),
        });
        Told::Same
    }
}
