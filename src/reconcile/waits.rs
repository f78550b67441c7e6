//! Clients that wait until a child runs, is ready, or has exited.
//!
//! - A wait changes nothing. It is answered in the very step in which what it waits for comes true,
//!   or cannot come true any more, or its time is up (I5), and with `shutting_down` when the server
//!   ends. A server that dies takes it along, with the connection that it came by.
//! - Who waits for one run is told when that has ended; without a run it goes on across them.
//! - All of them are looked at in every step: there are [`WAITS_MAX`] at most, each a look into the
//!   table. Nobody has to remember to wake them, and while there are none it costs nothing.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    State, Turn,
    cause::Cause,
    child::{Child, Last, Phase, Run},
    effect::Effect,
    event::RequestId,
    planted::{Bug, planted},
    timers::Timer,
};
use crate::{
    command::{Answer, Asker, Done, ErrorCode, ExitAt, Failure, Goal, Op, Stamp},
    spec::{ChildName, RunId, Spec},
};

/// How many may wait at one time; one more is `busy`.
pub const WAITS_MAX: usize = 1_024;
/// How many of them may be one asker's: who leaves his behind is not to keep others from waiting.
pub const WAITS_PER_ASKER_MAX: usize = 256;

/// How many may wait, and what they are told who may not.
const ROOM: Room = Room {
    all: WAITS_MAX,
    per_asker: WAITS_PER_ASKER_MAX,
    do_so: "wait",
};

/// For how many there is room who stay until something comes.
pub(super) struct Room {
    pub(super) all: usize,
    pub(super) per_asker: usize,
    /// What they do, as a word.
    pub(super) do_so: &'static str,
}

impl Room {
    /// Whether there is room for one more, who is this asker's.
    pub(super) fn admit<'a>(
        &self,
        others: impl ExactSizeIterator<Item = &'a Arc<Asker>>,
        asker: &Asker,
    ) -> Result<(), Failure> {
        let Self {
            all,
            per_asker,
            do_so,
        } = self;
        let message = if others.len() >= *all {
            format!("{all} clients {do_so} already, try again later")
        } else if others.filter(|other| is_same_asker(other, asker)).count() >= *per_asker {
            format!("you {do_so} {per_asker} times already, try again later")
        } else {
            return Ok(());
        };
        Err(Failure::new(ErrorCode::Busy, message))
    }
}

/// Somebody who waits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Wait {
    pub(super) child: ChildName,
    pub(super) goal: Goal,
    /// The run that is waited for; without, whichever comes.
    pub(super) run: Option<RunId>,
    pub(super) time: Duration,
    pub(super) asker: Arc<Asker>,
    /// Why that run has failed, from when that is known until it has ended.
    pub(super) why: Option<String>,
}

/// What ends a wait.
enum Met {
    /// It is as it was waited for.
    Yes(Done),
    /// It never will be. What ran may have said why.
    Never(Failure, Option<Arc<Spec>>),
}

impl State {
    pub(super) fn begin_wait(&mut self, turn: &mut Turn, id: RequestId, wait: Wait) {
        if self.ending.is_some() {
            return self.refuse_while_ending(turn, id);
        }
        let known = self.children.get(&wait.child).is_some_and(Child::is_known);
        let askers = self.waits.values().map(|other| &other.asker);
        let admitted = match known {
            true => ROOM.admit(askers, &wait.asker),
            false => Err(self.unknown(&wait.child)),
        };
        if let Err(failure) = admitted {
            let answer = Err(failure);
            turn.emit(Effect::Reply { id, answer });
            return;
        }
        if !planted(Bug::WaitWithoutEnd) {
            let until = turn.now.mono + wait.time;
            self.timers.set(Timer::Wait(id), until);
        }
        self.waits.insert(id, wait);
    }

    /// Answers whoever has waited long enough, at the end of a step.
    pub(super) fn look_at_waits(&mut self, turn: &mut Turn) {
        for wait in self.waits.values_mut() {
            let child = self.children.get(&wait.child);
            if let Some(why) = child.and_then(|child| failing(child, wait.run)) {
                wait.why = Some(why);
            }
        }
        let met = |(id, wait): (&RequestId, &Wait)| Some((*id, self.met(wait)?));
        let over: Vec<(RequestId, Met)> = self.waits.iter().filter_map(met).collect();
        for (id, met) in over {
            self.end_wait(turn, id, met);
        }
    }

    /// The time of a wait is up.
    pub(super) fn on_wait_due(&mut self, turn: &mut Turn, id: RequestId) {
        let Some(wait) = self.waits.get(&id) else {
            return;
        };
        let met = self
            .met(wait)
            .unwrap_or_else(|| Met::Never(self.too_late(turn, wait), None));
        self.end_wait(turn, id, met);
    }

    /// Who waited is gone.
    pub(super) fn forsake(&mut self, turn: &mut Turn, id: RequestId) {
        self.stop_following(turn, id);
        if self.waits.contains_key(&id) {
            let failure = Failure::new(ErrorCode::Superseded, "nobody waits for it any more");
            self.end_wait(turn, id, Met::Never(failure, None));
        }
    }

    /// The server ends, and waits for nobody who waits.
    pub(super) fn end_waits(&mut self, turn: &mut Turn) {
        while let Some((id, _)) = self.waits.pop_first() {
            self.timers.cancel(&Timer::Wait(id));
            self.refuse_while_ending(turn, id);
        }
    }

    fn end_wait(&mut self, turn: &mut Turn, id: RequestId, met: Met) {
        self.waits.remove(&id);
        self.timers.cancel(&Timer::Wait(id));
        turn.emit(match met {
            Met::Yes(done) => Effect::Reply {
                id,
                answer: Ok(Answer::Done(done)),
            },
            Met::Never(failure, None) => Effect::Reply {
                id,
                answer: Err(failure),
            },
            Met::Never(failure, Some(spec)) => Effect::Explain { id, failure, spec },
        });
    }

    /// Whether a wait is over, and how.
    fn met(&self, wait: &Wait) -> Option<Met> {
        let Some(child) = self.children.get(&wait.child) else {
            // A process that lives is in the table (I2).
            return Some(match wait.goal {
                Goal::Exited => Met::Yes(exited(wait, None)),
                Goal::Running | Goal::Ready => Met::Never(self.unknown(&wait.child), None),
            });
        };
        let live = child.run.as_ref();
        let mine = live.filter(|run| wait.run.is_none_or(|id| id == run.id));
        let began = wait.run.is_none_or(|id| id.0 <= child.highest());
        let is_over = mine.is_none() && began && !child.doubt;
        let last = child.last.as_ref();
        let last = last.filter(|last| wait.run.is_none_or(|id| id == last.id));
        match (wait.goal, mine) {
            (Goal::Exited, _) => is_over.then(|| Met::Yes(exited(wait, last))),
            (goal, Some(run)) => is_reached(goal, run).then(|| Met::Yes(reached(wait, run))),
            (Goal::Running | Goal::Ready, None) if is_over && wait.run.is_some() => {
                let failure = Failure::new(ErrorCode::NotReady, not_ready(wait, child, last));
                let spec = last.map(|last| Arc::clone(&last.spec));
                Some(Met::Never(failure, spec))
            }
            (Goal::Running | Goal::Ready, None) => None,
        }
    }

    /// What somebody is told who has waited in vain.
    fn too_late(&self, turn: &Turn, wait: &Wait) -> Failure {
        let what = match wait.goal {
            Goal::Running => "does not run",
            Goal::Ready => "is not ready",
            Goal::Exited => "has not exited",
        };
        let time = humantime::format_duration(wait.time);
        let row = self
            .children
            .get(&wait.child)
            .map(|child| self.row(&wait.child, child, turn.now));
        let now = row.map_or_else(String::new, |row| {
            let run = row.run.filter(|run| wait.run.is_some_and(|id| id != *run));
            let run = run.map_or_else(String::new, |run| format!(", run {run}"));
            let why = row.reason.filter(|why| !why.is_empty());
            let why = why.map_or_else(String::new, |why| format!(": {why}"));
            format!(": it is {}{run}{why}", row.state.as_str())
        });
        let message = format!("{} {what} within {time}{now}", whom(wait));
        Failure::new(ErrorCode::Timeout, message)
    }
}

/// Whether two commands were given by the same: a key, a user of this host, else an address.
fn is_same_asker(one: &Asker, other: &Asker) -> bool {
    let known = one.key.is_some() || one.user.is_some();
    (&one.key, one.user) == (&other.key, other.user) && (known || one.peer.ip() == other.peer.ip())
}

fn is_reached(goal: Goal, run: &Run) -> bool {
    let ready = match goal {
        Goal::Ready => !run.is_starting() || planted(Bug::StartingIsReady),
        Goal::Running => true,
        Goal::Exited => false,
    };
    ready && run.phase == Phase::Running
}

/// Why a run is being stopped that has failed.
fn failing(child: &Child, awaited: Option<RunId>) -> Option<String> {
    let run = child.run.as_ref().filter(|run| Some(run.id) == awaited)?;
    match run.phase {
        Phase::Stopping {
            cause: Cause::NotReady,
            ..
        } => child.failure.clone(),
        Phase::Spawning | Phase::Running | Phase::Stopping { .. } => None,
    }
}

fn whom(wait: &Wait) -> String {
    match wait.run {
        Some(run) => format!("run {run} of `{}`", wait.child),
        None => format!("`{}`", wait.child),
    }
}

fn reached(wait: &Wait, run: &Run) -> Done {
    let (child, id) = (&wait.child, run.id);
    let pid = run.pid.map_or(String::new(), |pid| format!(", pid {pid}"));
    let message = match wait.goal {
        Goal::Running | Goal::Exited => format!("`{child}` runs: run {id}{pid}"),
        Goal::Ready => format!("`{child}` is ready: run {id}{pid}"),
    };
    Done {
        op: Op::Wait,
        child: child.clone(),
        pid: run.pid,
        run: Some(id),
        exit: None,
        message,
    }
}

fn exited(wait: &Wait, last: Option<&Last>) -> Done {
    let child = &wait.child;
    let message = match last.map(|last| (last, last.exit)) {
        Some((last, Some(exit))) => {
            let pid = last.pid.map_or(String::new(), |pid| format!(", pid {pid}"));
            format!("`{child}` has exited: run {}{pid}, {exit}", last.id)
        }
        Some((last, None)) => format!("`{child}` does not run: run {} was not started", last.id),
        None => match wait.run {
            Some(run) => format!("run {run} of `{child}` has ended"),
            None => format!("`{child}` does not run"),
        },
    };
    Done {
        op: Op::Wait,
        child: child.clone(),
        pid: last.and_then(|last| last.pid),
        run: last.map(|last| last.id).or(wait.run),
        exit: last.and_then(|last| {
            Some(ExitAt {
                exit: last.exit?,
                at: Stamp(last.at.wall),
            })
        }),
        message,
    }
}

/// Why the run that is waited for will never be what it was to be.
fn not_ready(wait: &Wait, child: &Child, last: Option<&Last>) -> String {
    let whom = whom(wait);
    let Some(last) = last else {
        return format!("{whom} has ended");
    };
    let why = wait.why.clone().or_else(|| child.failure.clone());
    let cause = last.by.as_ref().map(|by| by.cause);
    match (last.exit, cause) {
        (None, _) => {
            let why = why.map_or(String::new(), |why| format!(": {why}"));
            format!("{whom} was not started{why}")
        }
        (Some(exit), Some(Cause::NotReady)) => {
            let why = why.unwrap_or_else(|| "not ready in time".to_owned());
            format!("{whom} has failed: {why} ({exit})")
        }
        (Some(exit), Some(cause)) => {
            format!("{whom} was stopped ({}): {exit}", cause.as_str())
        }
        (Some(exit), None) => format!("{whom} has ended: {exit}"),
    }
}
