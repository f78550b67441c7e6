//! One order under way: who gave it, who waits for it, and how far it is.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    cause::{Cause, Origin},
    child::Armed,
    event::{BatchId, JobId, RequestId, Ticket},
    program::EndedHook,
    record::{OrderId, Wanted},
};
use crate::{
    command::Failure,
    spec::{ChildName, Exit, RunId, Spec, Time, Verb},
};

/// An order for one child.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Job {
    /// Whom it concerns.
    pub(super) child: ChildName,
    /// What is to be done.
    pub(super) verb: Verb,
    /// Why, and who asked.
    pub(super) by: Origin,
    /// The client's order that it carries out, as it is written down.
    pub(super) order: Option<OrderId>,
    /// Who is told of its end.
    pub(super) waiters: Vec<Waiter>,
    /// How far it is.
    pub(super) step: Step,
    /// The names that were read again for it.
    pub(super) read: BTreeSet<ChildName>,
    /// The names whose files or holds keep it from starting.
    pub(super) blocked_by: BTreeSet<ChildName>,
    /// Those on whom its child depends that were started for it, or were on their way.
    #[serde(default)]
    pub(super) brought: BTreeSet<ChildName>,
    /// The runs that are to end before a stop begins.
    #[serde(default)]
    pub(super) after: BTreeMap<ChildName, RunId>,
    /// What will be started.
    pub(super) spec: Option<Arc<Spec>>,
    /// A program of a dead server that may be its hook's, and ended before it came to that.
    #[serde(default)]
    pub(super) ended_hook: Option<EndedHook>,
    /// The run that was ended for it.
    pub(super) ended: Option<EndedRun>,
    /// A hold or a reservation that must be on disk first.
    pub(super) ticket: Option<Ticket>,
    /// Why that did not come to be.
    pub(super) not_recorded: Option<String>,
    /// Whether an operator ordered it who could know that its child is in doubt.
    pub(super) despite_doubt: bool,
    /// What else its answer says.
    pub(super) notes: Vec<String>,
    /// Posthooks are run, or only those that start nothing.
    pub(super) posthooks: Posthooks,
}

/// Which posthooks a stop runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Posthooks {
    /// Whatever they are.
    All,
    /// None that starts a child: everything is being stopped.
    StartingNothing,
    /// None: the child does not stay down.
    None,
}

/// Who is told of a job's end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Waiter {
    /// A client, and what it asked: what it joined may have been asked in other words.
    Request(RequestId, Verb),
    /// One part of a client's `--all`.
    Batch(BatchId),
    /// A client of a server that died, and what it asked: nobody waits any more, and the log is told.
    Log(Verb),
    /// The job whose hook this is.
    Hook(JobId),
    /// The repeat that fired.
    Repeat(Armed),
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Step {
    /// Another job for the same child is first.
    Queued,
    /// The files are being read again.
    Reading,
    /// It is waited for what the child depends on.
    Depends,
    /// A prehook runs.
    Prehook(HookWait),
    /// It is being seen whether the new run could start.
    Checking,
    /// The old run is being stopped.
    StoppingOld,
    /// A reservation or a release is on its way to the disk.
    Recording,
    /// The order to spawn was given.
    Spawning,
    /// It is waited for the end of those that depend on the child.
    Dependents,
    /// The run is being stopped.
    Stopping,
    /// The posthook runs.
    Posthook(HookWait),
    /// All is done but the hold's way to the disk.
    Closing,
}

/// What a hook waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum HookWait {
    /// Another job.
    Job(JobId),
    /// A program.
    Program,
    /// That the program of an earlier hook is gone.
    Gone,
}

/// A run that a job ended, for the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct EndedRun {
    pub(super) id: RunId,
    pub(super) pid: Option<i32>,
    pub(super) exit: Exit,
    pub(super) at: Time,
}

/// How a job ended well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Success {
    /// A run began.
    Started { run: RunId, pid: i32 },
    /// What ran was stopped, or what was due was cancelled.
    Stopped,
}

/// How a job ended.
pub(super) type Outcome = Result<Success, Failure>;

impl Job {
    pub(super) fn new(child: ChildName, verb: Verb, by: Origin, waiter: Option<Waiter>) -> Self {
        Self {
            child,
            verb,
            by,
            order: None,
            waiters: waiter.into_iter().collect(),
            step: Step::Queued,
            read: BTreeSet::new(),
            blocked_by: BTreeSet::new(),
            brought: BTreeSet::new(),
            after: BTreeMap::new(),
            spec: None,
            ended_hook: None,
            ended: None,
            ticket: None,
            not_recorded: None,
            despite_doubt: false,
            notes: Vec::new(),
            posthooks: Posthooks::All,
        }
    }

    /// What the client wants whose order this is.
    pub(super) fn wanted(&self) -> Wanted {
        match (self.verb, self.posthooks) {
            (Verb::Start, _) => Wanted::Start,
            (Verb::Restart, _) => Wanted::Restart,
            (Verb::Trystart, _) => Wanted::Trystart,
            (Verb::Stop, Posthooks::All | Posthooks::None) => Wanted::Stop,
            (Verb::Stop, Posthooks::StartingNothing) => Wanted::StopAsOneOfAll,
        }
    }

    /// Whether it means to end with a new run.
    pub(super) fn starts(&self) -> bool {
        match self.verb {
            Verb::Start | Verb::Restart | Verb::Trystart => true,
            Verb::Stop => false,
        }
    }

    /// Whether a listing that was read just now brought it about: nothing is read again for it.
    pub(super) fn follows_listing(&self) -> bool {
        match self.by.cause {
            Cause::Boot | Cause::New | Cause::Changed | Cause::Settings => true,
            Cause::Command
            | Cause::Hook
            | Cause::Repeat
            | Cause::Policy
            | Cause::NotReady
            | Cause::Unhealthy
            | Cause::Dependency
            | Cause::Removed
            | Cause::Shutdown
            | Cause::Reboot => false,
        }
    }

    /// Whether it was given by the core itself rather than by anybody.
    pub(super) fn is_automatic(&self) -> bool {
        match self.by.cause {
            Cause::Policy
            | Cause::Unhealthy
            | Cause::Dependency
            | Cause::Boot
            | Cause::New
            | Cause::Changed
            | Cause::Settings => true,
            Cause::Command
            | Cause::NotReady
            | Cause::Hook
            | Cause::Repeat
            | Cause::Removed
            | Cause::Shutdown
            | Cause::Reboot => false,
        }
    }
}

impl Waiter {
    /// The job that waits here, if it is one.
    pub(super) fn hook(&self) -> Option<JobId> {
        match self {
            Self::Hook(id) => Some(*id),
            Self::Request(..) | Self::Batch(_) | Self::Repeat(_) | Self::Log(_) => None,
        }
    }
}
