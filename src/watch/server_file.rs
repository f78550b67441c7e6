//! server.yml, seen from outside: where it is, and whether it may be read now. Reading it is not
//! done here.
//!
//! That it may be read is told after every look, and not only when it looks changed: whoever reads
//! it does so later, and may have found something that had come and is gone again.

use std::path::PathBuf;

use super::{BeingWritten, again::Again};
use crate::{
    clock,
    spec::Mono,
    trust::{self, Owners, TrustError, Way},
};

/// The file, and when to look at it.
pub(super) struct ServerFile {
    path: PathBuf,
    way: Way,
    /// When to look again, while it is being written.
    again: Option<Again>,
}

/// What a look at server.yml found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// Nobody writes it: it may be read, be it that it is not there.
    Whole,
    /// Somebody does: it is looked at again.
    BeingWritten,
}

impl ServerFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            way: Way::default(),
            again: None,
        }
    }

    /// What was looked up on the way to it.
    pub(super) fn way(&self) -> &Way {
        &self.way
    }

    /// Looks up the way to it.
    pub(super) fn find(&mut self, owners: &Owners) {
        // What is wrong with it is told by whoever reads it.
        let _ = trust::open(&self.path, owners, &mut self.way);
    }

    /// When to look at it again without a hint: while it is being written.
    pub(super) fn next_look(&self) -> Option<Mono> {
        self.again.map(Again::at)
    }

    /// Looks at it.
    pub(super) fn look(&mut self, owners: &Owners, being_written: BeingWritten) -> Look {
        let again = self.again.take();
        match trust::open(&self.path, owners, &mut self.way) {
            Ok(file) if being_written(file.file()) => self.wait(again),
            Err(TrustError::Changing { .. }) => self.wait(again),
            Ok(_) | Err(_) => Look::Whole,
        }
    }

    /// Leaves it as it is for now; `again` is what was planned before this look.
    fn wait(&mut self, again: Option<Again>) -> Look {
        let now = clock::mono();
        self.again = Some(match again {
            Some(again) if again.is_due(now) => again.after(now),
            // There was news, perhaps of its closing.
            Some(_) | None => Again::soon(now),
        });
        Look::BeingWritten
    }
}
