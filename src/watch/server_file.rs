//! server.yml, seen from outside: whether it may have changed. Reading it is not done here.

use std::path::PathBuf;

use super::{BeingWritten, reader::is_racy};
use crate::{
    clock,
    trust::{self, Identity, Owners, TrustError, Way},
};

/// What was last seen of server.yml.
pub(super) struct ServerFile {
    path: PathBuf,
    way: Way,
    seen: Option<Result<Identity, TrustError>>,
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

    /// Looks at it. While somebody writes it, it is as before.
    pub(super) fn look(&mut self, owners: &Owners, being_written: BeingWritten) -> Told {
        let now_ms = clock::wall().0;
        let seen = match trust::open(&self.path, owners, &mut self.way) {
            Ok(file) if being_written(file.file()) => return Told::Same,
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
}
