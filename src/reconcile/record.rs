//! What is written down, and what it means when it is read again.
//!
//! The journal stores records as they come; [`super::memory::Memory`] is the fold over them.
//! Both stores hold the same kind of record: the runtime one dies with the boot, the state one
//! does not.

use std::{path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    cause::{Cause, Origin},
    past::PastRun,
    program::{HookId, HookProgram},
    suspects::{Sighting, Suspicion},
};
use crate::{
    command::{Asker, ErrorCode},
    spec::{ChildName, Circumstances, Exit, Mono, Repeat, RunId, Spec, Time, Verb, Wall},
};

/// Where a record is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Store {
    /// `runtime_dir`: what concerns live processes.
    Runtime,
    /// `state_dir`: what survives a reboot.
    State,
}

/// What a client ordered, numbered in the order of arrival. Unique among those without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OrderId(pub u64);

/// What a client wants of one child.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// `start NAME`, or as a part of `start --all`.
    Start,
    /// `restart NAME`.
    Restart,
    /// `trystart NAME`.
    Trystart,
    /// `stop NAME`.
    Stop,
    /// Its part of `stop --all`: no posthook starts anything.
    StopAsOneOfAll,
    /// Its part of `start --all` while it is held: the hold goes, then the mode decides.
    Release,
}

impl Wanted {
    /// The verb that says as much, for people.
    #[must_use]
    pub fn verb(self) -> Verb {
        match self {
            Self::Start | Self::Release => Verb::Start,
            Self::Restart => Verb::Restart,
            Self::Trystart => Verb::Trystart,
            Self::Stop | Self::StopAsOneOfAll => Verb::Stop,
        }
    }
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
        /// Why, and who asked. Older records do not say.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<Origin>,
        /// The client's order that is carried out once its process lives.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        order: Option<OrderId>,
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
    /// A run can do its work.
    Ready {
        /// Whose.
        child: ChildName,
        /// Which.
        run: RunId,
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
        /// Why, and who asked. Older records do not say.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<Origin>,
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
        /// What else was seen of it.
        #[serde(default, skip_serializing_if = "Circumstances::are_none")]
        circumstances: Circumstances,
        /// When.
        at: Time,
        /// By whose order; `None` when by itself.
        by: Option<Cause>,
        /// Who asked for it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        asker: Option<Arc<Asker>>,
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
    /// Records were lost, and of the processes that do not show whose they are one was seen, or is
    /// gone.
    Suspects(Sighting),
    /// Whether a child may be one of them.
    Suspicion {
        /// Whose.
        child: ChildName,
        /// What is known of that.
        is: Suspicion,
    },
    /// A fresh start found this child at rest: it is as if it had never run. What an earlier server
    /// had in mind for it is not due any more; what the mode wants is, until a run begins, however
    /// many servers die meanwhile.
    Renewed {
        /// Whose.
        child: ChildName,
    },
    /// This child was stopped while it was at rest: what was due is not any more.
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
    /// A client's order was taken; nothing was done for it before this.
    Asked {
        /// Whom it concerns.
        child: ChildName,
        /// Which. One that stands already is replaced.
        order: OrderId,
        /// What.
        wanted: Wanted,
        /// The run that lived then.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        over: Option<RunId>,
        /// Who asked.
        asker: Arc<Asker>,
    },
    /// An order is done with: carried out, refused or overtaken.
    Answered {
        /// Whom it concerned.
        child: ChildName,
        /// Which.
        order: OrderId,
        /// Why it was not carried out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        failure: Option<ErrorCode>,
    },
    /// A run that is over and may not stand in the history yet. Written by compaction and at a
    /// reboot; else the records of the run tell the same.
    Over {
        /// Whose.
        child: ChildName,
        /// The run.
        past: PastRun,
    },
    /// The runs up to this one stand in the history.
    Noted {
        /// Whose.
        child: ChildName,
        /// The last of them.
        upto: RunId,
    },
    /// A hook's program is about to begin.
    HookBegun {
        /// Whose.
        child: ChildName,
        /// Which.
        hook: HookId,
        /// What.
        program: Arc<HookProgram>,
    },
    /// The process of a hook's program lives.
    HookStarted {
        /// Whose.
        child: ChildName,
        /// Which.
        hook: HookId,
        /// Its process.
        pid: i32,
        /// Field 22 of `/proc/PID/stat`, in clock ticks since boot.
        start_ticks: u64,
        /// When.
        at: Time,
    },
    /// A hook's program is gone, or never began.
    HookEnded {
        /// Whose.
        child: ChildName,
        /// Which.
        hook: HookId,
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
            | Self::Ready { .. }
            | Self::NotStarted { .. }
            | Self::Stopping { .. }
            | Self::Replacing { .. }
            | Self::Ended { .. }
            | Self::GivenUp { .. }
            | Self::Doubted { .. }
            | Self::Suspects(_)
            | Self::Suspicion { .. }
            | Self::Renewed { .. }
            | Self::Settled { .. }
            | Self::Armed { .. }
            | Self::Disarmed { .. }
            | Self::Asked { .. }
            | Self::Answered { .. }
            | Self::Over { .. }
            | Self::Noted { .. }
            | Self::HookBegun { .. }
            | Self::HookStarted { .. }
            | Self::HookEnded { .. }
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
            | Self::Ready { .. }
            | Self::NotStarted { .. }
            | Self::Stopping { .. }
            | Self::Replacing { .. }
            | Self::Ended { .. }
            | Self::GivenUp { .. }
            | Self::Suspects(_)
            | Self::Suspicion { .. }
            | Self::Renewed { .. }
            | Self::Settled { .. }
            | Self::Armed { .. }
            | Self::Disarmed { .. }
            | Self::Asked { .. }
            | Self::Answered { .. }
            | Self::Over { .. }
            | Self::Noted { .. }
            | Self::HookBegun { .. }
            | Self::HookStarted { .. }
            | Self::HookEnded { .. }
            | Self::LoadpathSeen { .. }
            | Self::Held { .. }
            | Self::Released { .. }
            | Self::Reserved { .. }
            | Self::Forgotten { .. } => false,
        }
    }
}
