//! Orders: everything the core can ask for. The shell performs them one after the other.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::{
    cause::{Cause, Origin},
    event::{JobId, RequestId, Ticket},
    program::{HookId, HookProgram},
    record::{OrderId, Record},
    survey::Survey,
};
use crate::{
    command::{Answer, Checked, ChildEvent, Failure, Killed, Why},
    spec::{ChildName, Exit, Probe, RunId, SignalNumber, Spec, StopScope},
};

/// An order.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Write these down. With a ticket: say by `Event::Recorded` when they are on disk for good.
    Record {
        /// Who waits.
        ticket: Option<Ticket>,
        /// What, in order.
        records: Vec<Record>,
    },
    /// Read these names again now, and server.yml before them; answered by `Event::Reread`.
    Reread {
        /// Who waits.
        job: JobId,
        /// Which.
        names: BTreeSet<ChildName>,
    },
    /// See whether this could be started, without starting it; answered by `Event::Preflight`.
    Preflight {
        /// Who waits.
        job: JobId,
        /// What.
        spec: Arc<Spec>,
    },
    /// Record the run, kill what is left of an older run's group, start the process, record its
    /// pid; answered by `Event::Spawned` or `Event::SpawnFailed`.
    Spawn {
        /// Whose.
        child: ChildName,
        /// Which.
        run: RunId,
        /// What.
        spec: Arc<Spec>,
        /// Of which older run something may be left.
        clear: Option<Remains>,
        /// Why, and who asked; written down with the beginning.
        by: Origin,
        /// The client's order that is carried out by it; written down likewise.
        order: Option<OrderId>,
    },
    /// Send a signal to a run.
    Signal {
        /// Whose.
        child: ChildName,
        /// Which.
        run: RunId,
        /// What.
        signal: Signal,
        /// To how much of it.
        scope: StopScope,
    },
    /// The exit is recorded: let the process go.
    Reap {
        /// Whose.
        child: ChildName,
        /// Which.
        run: RunId,
        /// What happens to the rest of its group.
        leftovers: Leftovers,
    },
    /// Record a hook's program and run it to its end, within its time; answered by
    /// `Event::HookFinished`.
    RunHook {
        /// For whom: its environment names this child.
        child: ChildName,
        /// Which.
        hook: HookId,
        /// What.
        program: Arc<HookProgram>,
        /// Whose outputs it writes to.
        spec: Arc<Spec>,
    },
    /// Kill a hook's program. `Event::HookFinished` still comes.
    KillHook {
        /// Whose.
        child: ChildName,
        /// Which.
        hook: HookId,
    },
    /// See whether a run can do its work, or run the command that is to stop it; answered by
    /// `Event::Probed`.
    Probe {
        /// Who waits.
        job: JobId,
        /// Whose.
        child: ChildName,
        /// Which run.
        run: RunId,
        /// What is tried.
        probe: Probe,
        /// How long that may take: what takes longer has failed.
        time: Duration,
        /// Whose directory and environment a program uses.
        spec: Arc<Spec>,
    },
    /// Nobody waits for a probe any more: what it runs is killed. No event follows.
    EndProbe {
        /// Which.
        job: JobId,
    },
    /// Parts of a stream, in order; and then, if all of them were taken, its one final answer. Of what
    /// is not taken nothing later is either, and `Event::FellBehind` or `Event::Forsaken` follows.
    Tell {
        /// To which request.
        id: RequestId,
        /// What.
        events: Vec<Arc<ChildEvent>>,
        /// The end of it.
        answer: Option<Answer>,
    },
    /// The one final answer to a request.
    Reply {
        /// To which.
        id: RequestId,
        /// What.
        answer: Result<Answer, Failure>,
    },
    /// A line for the server's log.
    Log(Line),
    /// The answer to `info`: what the core knows; the shell adds what it knows.
    Inform {
        /// To which request.
        id: RequestId,
        /// The core's part.
        survey: Box<Survey>,
    },
    /// The answer to `check` of one child: the shell adds its history.
    Recount {
        /// To which request.
        id: RequestId,
        /// Of whom.
        child: ChildName,
        /// Its latest run: later ones have begun since and are not part of the answer.
        latest: RunId,
        /// The core's part: one row.
        checked: Box<Checked>,
    },
    /// The answer to `why`: the shell adds what ended the child's last run.
    Account {
        /// To which request.
        id: RequestId,
        /// Its latest run: later ones have begun since and are not part of the answer.
        latest: RunId,
        /// The core's part.
        why: Box<Why>,
    },
    /// The one final answer to a wait for a run that has ended: the shell adds to it what that has
    /// said last.
    Explain {
        /// To which request.
        id: RequestId,
        /// The core's part.
        failure: Failure,
        /// What ran.
        spec: Arc<Spec>,
    },
    /// Replace the server by the program that stands at its path; whoever asked is answered by
    /// whichever program runs then.
    Upgrade {
        /// Who asked, if a client did.
        asked: Option<RequestId>,
    },
    /// Everything is done: the server ends.
    Exit {
        /// What it says last.
        words: Killed,
        /// With the exit of the child whose end was its own, if that is why.
        with: Option<Exit>,
    },
}

/// A signal that the core sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Asks it to end.
    Ask(SignalNumber),
    /// Ends it.
    Kill,
}

/// What may be left of a run that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remains {
    /// Which.
    pub run: RunId,
    /// What counts as its own.
    pub scope: StopScope,
}

/// What happens to the rest of a run when its main process is let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leftovers {
    /// So much of it is killed: the child was told to stop.
    Kill(StopScope),
    /// It may live until the next run begins.
    Leave,
}

/// What the log is told. `what` is a constant; the data stands in the other fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// How much it matters.
    pub level: Level,
    /// Whom it is about.
    pub child: Option<ChildName>,
    /// Which of its runs.
    pub run: Option<RunId>,
    /// What happened, a constant lowercase text.
    pub what: &'static str,
    /// Why it happened.
    pub cause: Option<Cause>,
    /// How a run ended.
    pub exit: Option<Exit>,
    /// What else is to be said.
    pub detail: Option<String>,
}

/// How much a log line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Good to know.
    Info,
    /// Somebody should look.
    Warn,
    /// Something was not done.
    Error,
}
