//! What stands in the loadpaths: the listing, and what changes it.
//!
//! The watcher reports facts; what they mean (new, changed, gone) is decided by the core.

use std::{path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::spec::{ChildName, Spec};

/// What one name stands for at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The file; more than one when they are in conflict. Absolute, links unresolved, sorted.
    pub paths: Vec<PathBuf>,
    /// What was read from it.
    pub content: Content,
}

/// What was read from a child file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// A checked spec.
    Good(Arc<Spec>),
    /// Faults, each a whole diagnostic of several lines.
    Bad(Arc<[String]>),
    /// Several files share the name.
    Conflict,
}

/// A loadpath as it was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loadpath {
    /// As configured, absolute, links unresolved.
    pub path: PathBuf,
    /// What was found there.
    pub state: LoadpathState,
    /// Files whose names are no child names, and other faults of no child, as diagnostics.
    pub faults: Vec<String>,
}

/// What was found at a loadpath.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoadpathState {
    /// A directory that was read to its end.
    Ready {
        /// Its device.
        dev: u64,
        /// Its inode.
        ino: u64,
    },
    /// Nothing there.
    Missing,
    /// Something is there and could not be read, or is not to be trusted.
    Unreadable(String),
}

/// A change of the listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// How much of the listing was read.
    pub scope: Scope,
    /// Every configured loadpath, in the order configured.
    pub loadpaths: Vec<Loadpath>,
    /// The names that were read; `None` when there is no file of that name any more.
    ///
    /// With a whole scope, a name that is missing here has no file.
    pub entries: Vec<(ChildName, Option<Entry>)>,
}

/// How much of the listing an [`Update`] covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The names it mentions; the others are as they were.
    Touched,
    /// Everything was read.
    Whole,
    /// Everything was read because the rescan was due or a HUP came: what was seen gone by an
    /// earlier listing and is still gone now counts as confirmed.
    Confirming,
}
