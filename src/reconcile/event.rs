//! Facts: everything the core can be told. Closed; an event of an older run or job is inert (I4).

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{listing::Update, memory::Memory, program::HookId};
use crate::{
    command::{Asker, Command},
    spec::{ChildName, Circumstances, Exit, Mode, OnExit, RunId, Word},
};

/// A client's request; the shell knows which connection waits for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId(pub u64);

/// One order under way. Numbered within the life of a server, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JobId(pub u64);

/// A client's order to all children. Numbered within the life of a server, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BatchId(pub u64);

/// Something written down whose being on disk is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ticket(pub u64);

/// A fact.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The first event: what was found when the server started. Nothing precedes it.
    Boot(Box<Boot>),
    /// The loadpaths were read, in whole or in part.
    Listing(Update),
    /// The answer to `Effect::Reread`: the names were read just now.
    Reread {
        /// Who asked.
        job: JobId,
        /// What was found; an [`Update`] with scope `Touched`.
        update: Update,
    },
    /// Nobody watches the loadpaths, and what changes there is not told. When they are watched again,
    /// a whole listing tells what has become of them.
    Unwatched,
    /// server.yml was edited and the edit is good. A whole listing of its loadpaths follows.
    Settings(Settings),
    /// The process of this run lives, and that was recorded.
    Spawned {
        /// Whose.
        child: ChildName,
        /// Which.
        run: RunId,
        /// Its process, which leads a process group of its own.
        pid: i32,
    },
    /// There is no process, and there was none.
    SpawnFailed {
        /// Whose.
        child: ChildName,
        /// Which.
        run: RunId,
        /// Why, for a person.
        why: SpawnFailure,
    },
    /// The answer to `Effect::Preflight`.
    Preflight {
        /// Who asked.
        job: JobId,
        /// `Err` says for a person why it could not start.
        result: Result<(), String>,
    },
    /// The main process ended; it is not reaped yet (`Effect::Reap` does that).
    Exited {
        /// Whose.
        child: ChildName,
        /// Which.
        run: RunId,
        /// How.
        exit: Exit,
        /// What else was seen of it.
        circumstances: Circumstances,
    },
    /// A hook's program ended and was reaped, or could not be run, or does not end.
    HookFinished {
        /// Whose.
        child: ChildName,
        /// Which.
        hook: HookId,
        /// What came of it.
        result: Result<(), HookFailure>,
    },
    /// The answer to `Effect::Probe`.
    Probed {
        /// Which.
        job: JobId,
        /// `Err` says for a person how it failed.
        result: Result<(), String>,
    },
    /// A run has said something of itself.
    Notified {
        /// Whose.
        child: ChildName,
        /// Which.
        run: RunId,
        /// What, in the order in which it was said.
        words: Vec<Word>,
    },
    /// The answer to `Effect::Record` with a ticket.
    Recorded {
        /// Which.
        ticket: Ticket,
        /// `Err` says for a person why it is not on disk.
        result: Result<(), String>,
    },
    /// A client asks.
    Request {
        /// For the answer.
        id: RequestId,
        /// What.
        command: Command,
        /// Who.
        asker: Arc<Asker>,
    },
    /// The process of a suspect is gone.
    SuspectGone {
        /// Its number.
        pid: i32,
        /// When it began: field 22 of `/proc/PID/stat`.
        start_ticks: u64,
    },
    /// Nobody hears the answer to this request any more.
    Forsaken {
        /// Which.
        id: RequestId,
    },
    /// Whoever asked for a stream does not read it: this event and later ones were not taken.
    FellBehind {
        /// Which request.
        id: RequestId,
        /// The number of the first that was not.
        seq: u64,
    },
    /// TERM, INT, or the end of what the server was made for.
    Shutdown,
    /// USR2: the server is to replace itself.
    Upgrade,
    /// `next_deadline` has passed.
    Deadline,
}

/// Why there is no process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SpawnFailure {
    /// The run could not be written down, so it was not begun.
    NotRecorded(String),
    /// The program, its directory or its outputs are not to be had.
    Refused(String),
}

/// Why a hook's program has not done its work, for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HookFailure {
    /// It never ran: it could not be written down or executed.
    NotRun(String),
    /// It ended otherwise than well.
    Failed(String),
    /// It was another server's, and how it ended cannot be told.
    Unknown,
    /// It was killed and does not end; its end is still told when it comes.
    NotGone(String),
}

/// What the core needs of server.yml.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Settings {
    /// What the watcher does by itself.
    pub mode: Mode,
    /// Whom `half` starts.
    pub startup: BTreeSet<ChildName>,
    /// What the server's end means for children.
    pub on_exit: OnExit,
    /// The configured loadpaths, absolute.
    pub loadpaths: Vec<PathBuf>,
    /// How often the loadpaths are read again; `None` is never.
    pub rescan: Option<Duration>,
}

/// What was found when the server started.
#[derive(Debug, Clone, PartialEq)]
pub struct Boot {
    /// Whether this is a beginning or a continuation.
    pub start: StartKind,
    /// From server.yml.
    pub settings: Settings,
    /// What the records say.
    pub memory: Memory,
    /// Of the runs that the records call live: those that are not, and how they ended.
    pub ended: Vec<(ChildName, RunId, Exit)>,
    /// Of the runs that the records call live: those of which nobody can tell, and why.
    pub doubted: Vec<(ChildName, RunId, String)>,
    /// Of the hooks' programs that the records call live: those that are.
    pub hooks: Vec<(ChildName, HookId)>,
    /// The first listing, whole.
    pub listing: Update,
    /// Seeds the jitter of restart delays.
    pub seed: u64,
    /// The child whose end for good is the server's end too (`--exit-with`).
    pub exit_with: Option<ChildName>,
}

/// How a server's start is to be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartKind {
    /// After a reboot, or after an end by order.
    Fresh,
    /// After a crash or an upgrade.
    Continued,
}
