//! What clients ordered, written down until it has an answer, so that the next server goes on with
//! it when this one is killed.
//!
//! - An order is written down before anything is done for it, and done with once its end is: the
//!   record of the process that it began, or [`Record::Answered`].
//! - One that was under way is begun anew, from what is true then; those behind it follow in order
//!   of arrival. Nobody waits for their answers any more: the log is told.
//! - What hooks, repeats and the core itself order is not written down: it is decided again.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    State, Turn,
    cause::{Cause, Origin},
    commands::Batch,
    effect::{Effect, Level},
    event::StartKind,
    job::{Job, Outcome, Posthooks, Step, Waiter},
    planted::{Bug, planted},
    record::{OrderId, Record, Wanted},
    remembered::RememberedOrder,
};
use crate::{
    command::{ErrorCode, Failure},
    spec::{ChildName, RunId, Verb},
};

impl State {
    /// Writes a client's order down before anything is done for it.
    pub(super) fn note_asked(&mut self, turn: &mut Turn, job: &mut Job) {
        self.note_all_asked(turn, std::slice::from_mut(job));
    }

    /// Writes down what a client orders of several children, all at once.
    pub(super) fn note_all_asked(&mut self, turn: &mut Turn, jobs: &mut [Job]) {
        let mut records = Vec::new();
        for job in jobs {
            let asker = job.by.asker.as_ref();
            // What joins a stop is written down already.
            let active = self.job_of(&job.child).and_then(|id| self.jobs.get(&id));
            let stops = active.is_some_and(|it| !it.starts() && it.order.is_some());
            let joins = stops && job.verb == Verb::Stop;
            let asked = job.by.cause == Cause::Command && job.order.is_none() && !joins;
            let Some(asker) = asker.filter(|_| asked) else {
                continue;
            };
            let order = OrderId(self.number());
            job.order = Some(order);
            let run = self.children.get(&job.child).and_then(|it| it.run.as_ref());
            records.push(Record::Asked {
                child: job.child.clone(),
                order,
                wanted: job.wanted(),
                over: run.map(|run| run.id),
                asker: asker.clone(),
            });
        }
        if !records.is_empty() && !planted(Bug::OrderNotRecorded) {
            turn.emit(Effect::Record {
                ticket: None,
                records,
            });
        }
    }

    /// Goes on with what clients ordered of a server that died; after an end by order or a reboot
    /// nothing of it is meant any more.
    pub(super) fn take_up_orders(
        &mut self,
        turn: &mut Turn,
        start: StartKind,
        orders: BTreeMap<OrderId, (ChildName, RememberedOrder)>,
    ) {
        let stopped = orders.values();
        let stopped = stopped.filter(|(_, asked)| asked.wanted == Wanted::StopAsOneOfAll);
        let stopped = stopped.map(|(name, _)| name);
        // Of some the order is done with, and the end has yet to come.
        let held = self.children.iter().filter(|(_, it)| it.hold.is_some());
        let held = held.map(|(name, _)| name);
        let stopped: BTreeSet<ChildName> = stopped.chain(held).cloned().collect();
        for (name, asked) in orders.into_values() {
            let command = format!("`{} {name}`", asked.wanted.verb());
            match start {
                StartKind::Continued if planted(Bug::OrderForgotten) => {}
                StartKind::Continued => {
                    let what = "a command that a dead server had taken is taken up";
                    turn.log(Level::Info, &name, what).detail = Some(command);
                    self.take_up(turn, &name, asked, &stopped);
                }
                StartKind::Fresh => {
                    let what = "a command without an answer is dropped: the server had ended";
                    turn.log(Level::Warn, &name, what).detail = Some(command);
                    let failure = Some(ErrorCode::ShuttingDown);
                    note_answered(turn, &name, asked.order, failure);
                }
            }
        }
    }

    /// Goes on with one of them; `stopped` are those that are stopped with all others.
    fn take_up(
        &mut self,
        turn: &mut Turn,
        name: &ChildName,
        asked: RememberedOrder,
        stopped: &BTreeSet<ChildName>,
    ) {
        let verb = match asked.wanted {
            Wanted::Release => return self.release_again(turn, name, asked),
            // The run that it was to replace may have been stopped for it.
            Wanted::Restart if self.is_latest(name, asked.over) => Verb::Trystart,
            Wanted::Start
            | Wanted::Restart
            | Wanted::Trystart
            | Wanted::Stop
            | Wanted::StopAsOneOfAll => asked.wanted.verb(),
        };
        let by = Origin::command(asked.asker);
        let waiter = Some(Waiter::Log(asked.wanted.verb()));
        let mut job = Job::new(name.clone(), verb, by, waiter);
        job.order = Some(asked.order);
        if asked.wanted == Wanted::StopAsOneOfAll {
            job.posthooks = Posthooks::StartingNothing;
            job.after = self.to_end_before(name, stopped);
        }
        if verb == Verb::Stop {
            self.place_stop(turn, job);
            return;
        }
        if let Some(why) = self.doubt_of(name) {
            self.refuse(turn, &job, Failure::new(ErrorCode::SpawnFailed, why));
            return;
        }
        let active = self.enter(name).job;
        let active = active.and_then(|id| self.jobs.get_mut(&id));
        match active.filter(|it| it.step == Step::StoppingOld && it.order.is_none()) {
            // The stop of the old run goes on already; what follows it is this.
            Some(active) => {
                active.by = job.by;
                active.order = job.order;
                active.waiters.append(&mut job.waiters);
            }
            None => self.place(turn, job),
        }
    }

    fn is_latest(&self, name: &ChildName, run: Option<RunId>) -> bool {
        let latest = self.children.get(name).map(|child| RunId(child.latest));
        run.is_some() && run == latest && !planted(Bug::RestartCutInTwo)
    }

    /// Releases a hold that a `start --all` was to release.
    fn release_again(&mut self, turn: &mut Turn, name: &ChildName, asked: RememberedOrder) {
        let releasing = BTreeMap::from([(name.clone(), Some(asked.order))]);
        self.release(turn, Batch::starting(None, asked.asker), releasing);
    }
}

/// Writes down that an order is done with.
pub(super) fn note_answered(
    turn: &mut Turn,
    child: &ChildName,
    order: OrderId,
    failure: Option<ErrorCode>,
) {
    turn.record(Record::Answered {
        child: child.clone(),
        order,
        failure,
    });
}

/// Tells what became of a command whose client went with the server that it had asked.
pub(super) fn log_taken_up(turn: &mut Turn, asked: Verb, child: &ChildName, outcome: &Outcome) {
    let command = format!("`{asked} {child}`");
    match outcome {
        Ok(_) => {
            let what = "a command that a dead server had taken is carried out";
            turn.log(Level::Info, child, what).detail = Some(command);
        }
        Err(failure) => {
            let what = "a command that a dead server had taken is not carried out";
            turn.log(Level::Warn, child, what).detail = Some(format!("{command}: {failure}"));
        }
    }
}
