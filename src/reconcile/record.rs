//! What is written down, and what it means when it is read again.
//!
//! The journal stores records as they come; [`super::memory::Memory`] is the fold over them.
//! Both stores hold the same kind of record: the runtime one dies with the boot, the state one
//! does not.

use std::{path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};

use super::cause::Cause;
use crate::spec::{ChildName, Exit, Mono, Repeat, RunId, Spec, Time, Wall};

/// Where a record is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Store {
    /// `runtime_dir`: what concerns live processes.
    Runtime,
    /// `state_dir`: what survives a reboot.
    State,
}

/// One thing written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// A server began to write here; `boot` tells a reboot from a crash.
    Opened {
        /// The boot id and the start time of PID 1.
        boot: String,
    },
    /// The server ended by order: the next start is a fresh one.
    Closed,
    /// A run is about to begin.
    Begun {
        /// Whose.
        child: ChildName,
        /// Which.
        run: RunId,
        /// What.
        spec: Arc<Spec>,
    },
    /// The process of a run lives.
    Started {
        /// Whose.
        child: ChildName,
        /// Which.
        run: RunId,
        /// Its process.
        pid: i32,
        /// Field 22 of `/proc/PID/stat`, in clock ticks since boot.
        start_ticks: u64,
        /// When.
        at: Time,
    },
    /// Records were lost, and a live run that they do not know was found by its process.
    Found {
        /// Whose.
        child: ChildName,
        /// Which.
        run: RunId,
        /// What its process shows of what it was started with.
        spec: Arc<Spec>,
        /// Its process.
        pid: i32,
        /// Field 22 of `/proc/PID/stat`, in clock ticks since boot.
        start_ticks: u64,
        /// When it began.
        at: Time,
    },
    /// A run that was found by its process is taken for one of its file.
    Matched {
        /// Whose.
        child: ChildName,
        /// Which.
        run: RunId,
        /// What the file says.
        spec: Arc<Spec>,
    },
    /// Records were lost: runs that are not known may have had numbers up to this one.
    MaybeUsed {
        /// Whose.
        child: ChildName,
        /// The last of them.
        upto: RunId,
    },
    /// A run was never begun after all.
    NotStarted {
        /// Whose.
        child: ChildName,
        /// Which.
        run: RunId,
        /// Why.
        why: String,
        /// When.
        at: Time,
    },
    /// A stop of a live run began.
    Stopping {
        /// Whose.
        child: ChildName,
        /// Which.
        run: RunId,
    },
    /// The stop of a live run is the first half of its replacement: the next run is due.
    Replacing {
        /// Whose.
        child: ChildName,
        /// Which run is replaced.
        run: RunId,
    },
    /// A run ended.
    Ended {
        /// Whose.
        child: ChildName,
        /// Which.
        run: RunId,
        /// How.
        exit: Exit,
        /// When.
        at: Time,
        /// By whose order; `None` when by itself.
        by: Option<Cause>,
        /// How many restarts in a row its policy has given it.
        restarts: u64,
    },
    /// The restart policy gave up after a run.
    GivenUp {
        /// Whose.
        child: ChildName,
        /// After which.
        run: RunId,
        /// Why, for a person.
        why: String,
    },
    /// Nobody can tell whether a run lives: nothing is started in its place until an operator says
    /// so.
    Doubted {
        /// Whose.
        child: ChildName,
        /// Which.
        run: RunId,
        /// Why, for a person.
        why: String,
    },
    /// A fresh start found this child at rest: what an earlier server had in mind for it is not
    /// due any more.
    Settled {
        /// Whose.
        child: ChildName,
    },
    /// A repeat timer was armed by a run.
    Armed {
        /// Whose.
        child: ChildName,
        /// By which run.
        run: RunId,
        /// What and how often.
        repeat: Repeat,
        /// When it fires.
        due: Mono,
    },
    /// A repeat timer is no more.
    Disarmed {
        /// Whose.
        child: ChildName,
    },
    /// A loadpath was seen with files in it.
    LoadpathSeen {
        /// Which.
        path: PathBuf,
        /// Its device.
        dev: u64,
        /// Its inode.
        ino: u64,
    },
    /// An operator's `stop`.
    Held {
        /// Whom.
        child: ChildName,
        /// Since when.
        since: Wall,
    },
    /// An operator's `start` after a `stop`.
    Released {
        /// Whom.
        child: ChildName,
    },
    /// Run numbers up to this one may have been used.
    Reserved {
        /// Whose.
        child: ChildName,
        /// The last of the block.
        upto: RunId,
    },
    /// Nothing is known of this child any more.
    Forgotten {
        /// Whom.
        child: ChildName,
    },
}

impl Record {
    /// Where this record is kept.
    #[must_use]
    pub fn store(&self) -> Store {
        match self {
            Self::Held { .. } | Self::Released { .. } | Self::Reserved { .. } => Store::State,
            Self::Opened { .. }
            | Self::Closed
            | Self::Begun { .. }
            | Self::Started { .. }
            | Self::Found { .. }
            | Self::Matched { .. }
            | Self::MaybeUsed { .. }
            | Self::NotStarted { .. }
            | Self::Stopping { .. }
            | Self::Replacing { .. }
            | Self::Ended { .. }
            | Self::GivenUp { .. }
            | Self::Doubted { .. }
            | Self::Settled { .. }
            | Self::Armed { .. }
            | Self::Disarmed { .. }
            | Self::LoadpathSeen { .. }
            | Self::Forgotten { .. } => Store::Runtime,
        }
    }

    /// Whether this says that a run lives or may live.
    pub(super) fn is_about(&self, name: &ChildName, number: RunId) -> bool {
        match self {
            Self::Started { child, run, .. }
            | Self::Found { child, run, .. }
            | Self::Doubted { child, run, .. } => child == name && *run == number,
            Self::Opened { .. }
            | Self::Closed
            | Self::Begun { .. }
            | Self::Matched { .. }
            | Self::MaybeUsed { .. }
            | Self::NotStarted { .. }
            | Self::Stopping { .. }
            | Self::Replacing { .. }
            | Self::Ended { .. }
            | Self::GivenUp { .. }
            | Self::Settled { .. }
            | Self::Armed { .. }
            | Self::Disarmed { .. }
            | Self::LoadpathSeen { .. }
            | Self::Held { .. }
            | Self::Released { .. }
            | Self::Reserved { .. }
            | Self::Forgotten { .. } => false,
        }
    }
}
