//! One child: what is known of it, and its state as one word.

use std::{
    collections::{BTreeSet, VecDeque},
    mem,
    path::PathBuf,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    backoff::Streak,
    cause::{Cause, Origin},
    depends::Due,
    event::JobId,
    followers::LastTold,
    listing::{Content, Entry},
    planted::{Bug, planted},
    probes::Probed,
    program::LiveHook,
    suspects::Suspicion,
    words::Said,
};
use crate::{
    command::{Asker, StateName},
    spec::{ChildName, Digest, Exit, Mono, Repeat, RunId, Spec, Time, Wall},
};

/// Everything known of one child.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Child {
    /// What the latest listing says; `None` when no loadpath has a file of this name.
    pub(super) entry: Option<Entry>,
    /// The last good spec that was listed.
    pub(super) good: Option<Arc<Spec>>,
    /// Since when an operator's `stop` holds it.
    pub(super) hold: Option<Wall>,
    /// It is new, or the server is: where the mode starts what is new, a run is due.
    pub(super) fresh: bool,
    /// It is that for its file alone: the file went, and came back with something else.
    #[serde(default)]
    pub(super) fresh_by_file: bool,
    /// The digest that was tried by itself without success: not again until the file changes.
    pub(super) tried: Option<Digest>,
    /// It starts as soon as what it depends on is there; what runs is looked at anew then.
    #[serde(default)]
    pub(super) due: Option<Due>,
    /// The names whose listing must change before another try makes sense.
    pub(super) blocked: BTreeSet<ChildName>,
    /// Its file is gone: since when, from where, and how much that is believed.
    pub(super) gone: Option<Gone>,
    /// The live run.
    pub(super) run: Option<Run>,
    /// The latest run that is no more.
    pub(super) last: Option<Last>,
    /// The number of the latest run; zero before the first.
    pub(super) latest: u64,
    /// Records were lost, and runs that are not known may have had numbers up to this one.
    pub(super) maybe_used: u64,
    /// The last run number that is reserved on disk.
    pub(super) reserved: u64,
    /// The repeat timer.
    pub(super) armed: Option<Armed>,
    /// A restart by policy is due then.
    pub(super) retry: Option<Mono>,
    /// Its restarts of late.
    pub(super) streak: Streak,
    /// A server died while it was starting a run, and whether that run lives is not known.
    pub(super) doubt: bool,
    /// Whether it may be a process that does not show whose it is.
    pub(super) suspicion: Suspicion,
    /// Why it is `failed`.
    pub(super) failure: Option<String>,
    /// What an operator should know, such as a repeat that ended.
    pub(super) note: Option<String>,
    /// The program of its hook, until it is gone.
    #[serde(default)]
    pub(super) hook: Option<LiveHook>,
    /// The order under way.
    pub(super) job: Option<JobId>,
    /// The orders that wait for it.
    pub(super) queue: VecDeque<JobId>,
    /// What those who follow it were last told.
    #[serde(default)]
    pub(super) told: LastTold,
}

/// A live run: from the order to spawn until its exit was told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Run {
    /// Its number.
    pub(super) id: RunId,
    /// What runs.
    pub(super) spec: Arc<Spec>,
    /// Whether that is only what its process shows: it was found by it.
    pub(super) found: bool,
    /// Its process, once known.
    pub(super) pid: Option<i32>,
    /// When it began.
    pub(super) started: Time,
    /// Why it was begun, and who asked, as far as that is known.
    #[serde(default)]
    pub(super) begun_by: Option<Origin>,
    /// How far it is.
    pub(super) phase: Phase,
    /// Who asked for its end, while it is being stopped.
    pub(super) stop_asker: Option<Arc<Asker>>,
    /// The program that was run to have it end, while that runs.
    #[serde(default)]
    pub(super) stopper: Option<JobId>,
    /// What probes have shown of it.
    #[serde(default)]
    pub(super) probed: Probed,
    /// What it has said of itself.
    #[serde(default)]
    pub(super) said: Said,
}

/// How far a live run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Phase {
    /// The order to spawn was given.
    Spawning,
    /// Its process lives.
    Running,
    /// It was told to end.
    Stopping {
        /// By whose order.
        cause: Cause,
        /// How far the ladder was climbed.
        rung: Rung,
    },
}

/// How far a stop is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Rung {
    /// This step of its policy was done.
    Step(usize),
    /// KILL was sent.
    Kill,
    /// KILL did not help in time; its end is still waited for.
    Stuck,
}

/// A run that is no more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Last {
    /// Its number.
    pub(super) id: RunId,
    /// What ran.
    pub(super) spec: Arc<Spec>,
    /// When it began; `None` when it never had a process.
    pub(super) started: Option<Time>,
    /// How it ended; `None` when it never had a process.
    pub(super) exit: Option<Exit>,
    /// When.
    pub(super) at: Time,
    /// By whose order; `None` when by itself.
    pub(super) by: Option<Origin>,
    /// Its process, if it had one: what is left of its group may live.
    pub(super) pid: Option<i32>,
}

/// An armed repeat timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Armed {
    /// The run that armed it.
    pub(super) run: RunId,
    /// What fires, and how often.
    pub(super) repeat: Repeat,
    /// When it fires.
    pub(super) due: Mono,
}

/// A file that is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Gone {
    /// Since when.
    pub(super) since: Mono,
    /// From which loadpath.
    pub(super) home: PathBuf,
    /// How much it is believed.
    pub(super) belief: Belief,
}

/// How much it is believed that a file is gone for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Belief {
    /// The quiet second has not passed, or the loadpath is not to be believed.
    Seen,
    /// Too many went at once: the next confirming listing decides.
    Doubted,
    /// Believed.
    Confirmed,
}

impl Child {
    /// Whether a process of it lives, or is being started.
    pub(super) fn is_live(&self) -> bool {
        self.run.is_some()
    }

    /// Whether anything is known that makes it worth a row.
    pub(super) fn is_known(&self) -> bool {
        let was_there = self.run.is_some() || self.last.is_some();
        self.entry.is_some() || was_there || self.hold.is_some() || self.may_be_suspect()
    }

    /// Whether it may be a process that does not show whose it is.
    pub(super) fn may_be_suspect(&self) -> bool {
        match self.suspicion {
            Suspicion::MayBe { .. } => true,
            Suspicion::Open | Suspicion::Cleared => false,
        }
    }

    /// Whether it may live although no process of it is known.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.doubt || self.may_be_suspect()
    }

    /// The highest run number that may have been used.
    pub(super) fn highest(&self) -> u64 {
        self.latest.max(self.maybe_used)
    }

    /// The spec that stands in a good file now.
    pub(super) fn listed(&self) -> Option<&Arc<Spec>> {
        match self.entry.as_ref().map(|entry| &entry.content) {
            Some(Content::Good(spec)) => Some(spec),
            Some(Content::Bad(_) | Content::Conflict) | None => None,
        }
    }

    /// The spec that automatic acts use: a bad file leaves the last good one in force.
    pub(super) fn in_force(&self) -> Option<&Arc<Spec>> {
        self.listed().or(self.good.as_ref())
    }

    /// The spec whose posthook runs when it was stopped.
    pub(super) fn posthook_spec(&self) -> Option<&Arc<Spec>> {
        let last = || self.last.as_ref().map(|last| &last.spec);
        self.listed().or_else(last).or(self.good.as_ref())
    }

    /// Takes a good file in, which may be new; says whether it is as the last good one was.
    pub(super) fn take_good(&mut self, spec: &Arc<Spec>, is_new: bool) -> bool {
        let before = self.good.replace(Arc::clone(spec)).map(|spec| spec.digest);
        let as_it_was = before == Some(spec.digest);
        if !as_it_was {
            self.tried = None;
            self.note = None;
        }
        let ran = self.ran_digest() == Some(spec.digest);
        if is_new && self.run.is_none() && !ran {
            self.fresh_by_file |= !self.fresh;
            self.fresh = true;
            self.tried = None;
        } else if ran && mem::take(&mut self.fresh_by_file) {
            // What was new did not come to a run, and is again what ran last.
            self.fresh = false;
        }
        as_it_was
    }

    /// The digest of what runs, else of what ran last.
    pub(super) fn ran_digest(&self) -> Option<Digest> {
        let live = self.run.as_ref().map(|run| run.spec.digest);
        live.or_else(|| self.last.as_ref().map(|last| last.spec.digest))
    }

    /// Whether a repeat may still fire: its run is the latest, and nobody holds the child.
    pub(super) fn counts(&self, armed: &Armed) -> bool {
        let latest = armed.run.0 == self.latest || planted(Bug::RepeatOfOlderRun);
        self.hold.is_none() && latest
    }

    /// Whether the live run was told to end.
    pub(super) fn is_stopping(&self) -> bool {
        matches!(
            self.run.as_ref().map(|run| run.phase),
            Some(Phase::Stopping { .. })
        )
    }

    /// Whether something will start it by itself: then `stop` has something to cancel.
    pub(super) fn is_due(&self, job_starts: bool) -> bool {
        let doubted = self.may_be_suspect();
        job_starts
            || doubted
            || self.retry.is_some()
            || self.due.is_some()
            || self.armed.is_some()
            || !self.blocked.is_empty()
    }

    /// Its state as DESIGN names it. `waits` says that a start is under way that has not come to
    /// the spawn yet.
    pub(super) fn state(&self, waits: bool) -> StateName {
        if self.run.as_ref().is_some_and(Run::is_starting) {
            return StateName::Starting;
        }
        match self.run.as_ref().map(|run| run.phase) {
            Some(Phase::Spawning) => return StateName::Starting,
            Some(Phase::Running) => return StateName::Running,
            Some(Phase::Stopping { .. }) => return StateName::Stopping,
            None => {}
        }
        if waits {
            StateName::Pending
        } else if self.may_be_suspect() {
            StateName::Failed
        } else if self.due.is_some() || !self.blocked.is_empty() {
            StateName::Pending
        } else if self.retry.is_some() {
            StateName::Backoff
        } else if self.failure.is_some() {
            StateName::Failed
        } else if self.last.as_ref().is_some_and(|last| last.by.is_none()) {
            StateName::Exited
        } else {
            StateName::Stopped
        }
    }
}
