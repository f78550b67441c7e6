//! Repeat: a timer armed whenever a run begins, whose action is done as a command.

use super::{
    State, Turn,
    child::Armed,
    effect::{Cause, Effect, Level},
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
            let armed = Record::Armed {
                child: name.clone(),
                run,
                repeat,
                due,
            };
            turn.emit(Effect::Record {
                ticket: None,
                records: vec![armed],
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
            let disarmed = Record::Disarmed {
                child: name.clone(),
            };
            turn.emit(Effect::Record {
                ticket: None,
                records: vec![disarmed],
            });
        }
    }

    /// A timer fires, while the run that armed it is the latest and the child is not held.
    pub(super) fn on_repeat_due(&mut self, turn: &mut Turn, name: &ChildName) {
        let Some(child) = self.children.get_mut(name) else {
            return;
        };
        let Some(armed) = child.armed else { return };
        let fires = child.hold.is_none() && armed.run.0 == child.latest;
        self.disarm(turn, name);
        if fires && self.ending.is_none() {
            let waiter = Some(Waiter::Repeat(armed));
            self.order(turn, name, armed.repeat.action, Cause::Repeat, waiter);
        }
    }

    /// What a firing came to: does another follow?
    pub(super) fn repeat_saw(
        &mut self,
        turn: &mut Turn,
        name: &ChildName,
        armed: Armed,
        verb: Verb,
        outcome: Outcome,
    ) {
        // A run that began has armed its own timer already; a stop arms none.
        let Err(failure) = outcome else { return };
        // That it runs is what `start` wants: a line at each firing would be noise.
        if failure.code != ErrorCode::AlreadyRunning {
            let line = turn.log(Level::Warn, name, "repeat changed nothing");
            line.detail = Some(failure.message.clone());
        }
        match failure.code {
            ErrorCode::Superseded | ErrorCode::ShuttingDown => return,
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
                return;
            }
            ErrorCode::AlreadyRunning
            | ErrorCode::HookFailed
            | ErrorCode::SpawnFailed
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
    }
}
