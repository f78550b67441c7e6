//! Repeat: a timer armed whenever a run begins, whose action is done as a command.

use super::{
    State, Turn,
    cause::Cause,
    child::{Armed, Belief},
    effect::Level,
    job::{Outcome, Waiter},
    record::Record,
    timers::Timer,
};
use crate::{
    command::ErrorCode,
    spec::{ChildName, Repeat, RunId, Verb},
};

impl State {
    /// Arms the timer of a run that began, or disarms an older one.
    pub(super) fn arm(
        &mut self,
        turn: &mut Turn,
        name: &ChildName,
        run: RunId,
        repeat: Option<Repeat>,
    ) {
        let Some(repeat) = repeat else {
            self.disarm(turn, name);
            return;
        };
        let due = turn.now.mono + repeat.every;
        if let Some(child) = self.children.get_mut(name) {
            child.armed = Some(Armed { run, repeat, due });
            self.timers.set(Timer::Repeat(name.clone()), due);
            turn.record(Record::Armed {
                child: name.clone(),
                run,
                repeat,
                due,
            });
        }
    }

    pub(super) fn disarm(&mut self, turn: &mut Turn, name: &ChildName) {
        self.timers.cancel(&Timer::Repeat(name.clone()));
        let armed = self
            .children
            .get_mut(name)
            .and_then(|child| child.armed.take());
        if armed.is_some() {
            note_disarmed(turn, name);
        }
    }

    /// A timer fires, while the run that armed it is the latest and the child is not held.
    pub(super) fn on_repeat_due(&mut self, turn: &mut Turn, name: &ChildName) {
        let Some(child) = self.children.get_mut(name) else {
            return;
        };
        let Some(armed) = child.armed else { return };
        if self.ending.is_some() {
            // It stays armed on disk: the next server lets it fire.
            return;
        }
        let fires = child.counts(&armed);
        if !fires {
            self.disarm(turn, name);
            return;
        }
        // The record stays until it is known what came of it: a server killed meanwhile must not
        // end the chain.
        child.armed = None;
        let waiter = Some(Waiter::Repeat(armed));
        let by = Cause::Repeat.into();
        self.order(turn, name, armed.repeat.action, by, waiter);
    }

    /// A timer that has fired is not armed anew: the record of it is taken back.
    fn end_chain(&self, turn: &mut Turn, name: &ChildName) {
        let child = self.children.get(name);
        if child.is_none_or(|child| child.armed.is_none()) {
            note_disarmed(turn, name);
        }
    }

    /// What a firing came to: does another follow?
    pub(super) fn repeat_saw(
        &mut self,
        turn: &mut Turn,
        name: &ChildName,
        armed: Armed,
        outcome: Outcome,
    ) {
        let verb = armed.repeat.action;
        // A run that began has armed its own timer already; a stop arms none.
        let Err(failure) = outcome else {
            self.end_chain(turn, name);
            return;
        };
        // That it runs is what `start` wants: a line at each firing would be noise.
        if failure.code != ErrorCode::AlreadyRunning {
            let line = turn.log(Level::Warn, name, "repeat changed nothing");
            line.detail = Some(failure.message.clone());
        }
        match failure.code {
            ErrorCode::Superseded => return self.end_chain(turn, name),
            // It stays armed on disk: the next server lets it fire.
            ErrorCode::ShuttingDown => return,
            // Its loadpath may be away for a time only.
            ErrorCode::UnknownChild if self.may_be_back(name) => {}
            ErrorCode::NotRunning | ErrorCode::UnknownChild => {
                let hint = if verb == Verb::Restart {
                    "; `trystart` runs it again whether or not it still runs"
                } else {
                    ""
                };
                if let Some(child) = self.children.get_mut(name) {
                    let why = failure.message.lines().next().unwrap_or_default();
                    child.note = Some(format!("repeat `{verb}` has ended: {why}{hint}"));
                }
                return self.end_chain(turn, name);
            }
            ErrorCode::AlreadyRunning
            | ErrorCode::HookFailed
            | ErrorCode::DependencyFailed
            | ErrorCode::SpawnFailed
            | ErrorCode::NotReady
            | ErrorCode::TooLarge
            | ErrorCode::Internal
            | ErrorCode::BadRequest
            | ErrorCode::Unauthorized
            | ErrorCode::Forbidden
            | ErrorCode::ProtectedMode
            | ErrorCode::ServerChanged
            | ErrorCode::InvalidConfig
            | ErrorCode::Conflict
            | ErrorCode::HookCycle
            | ErrorCode::Unreachable
            | ErrorCode::Timeout
            | ErrorCode::Busy => {}
        }
        let Some(child) = self.children.get(name) else {
            return;
        };
        let in_force = child.in_force().map(|spec| spec.repeat);
        let repeat = in_force.unwrap_or(Some(armed.repeat));
        // A failed spawn used up a number: the chain goes on from there.
        let run = RunId(child.latest.max(armed.run.0));
        let armed_anew = child.armed.is_some() || child.hold.is_some();
        if !armed_anew {
            self.arm(turn, name, run, repeat);
        }
        self.end_chain(turn, name);
    }

    /// Whether a child's file is gone and that is not believed yet.
    fn may_be_back(&self, name: &ChildName) -> bool {
        let gone = self
            .children
            .get(name)
            .and_then(|child| child.gone.as_ref());
        gone.is_some_and(|gone| gone.belief != Belief::Confirmed)
    }
}

fn note_disarmed(turn: &mut Turn, name: &ChildName) {
    let child = name.clone();
    turn.record(Record::Disarmed { child });
}
