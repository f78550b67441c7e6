//! Orders: given, queued, joined, overtaken, ended, told.

use std::mem;

use super::{
    QUEUE_LEN_MAX, State, Turn,
    cause::{Cause, Origin},
    event::JobId,
    job::{HookWait, Job, Outcome, Posthooks, Step, Success, Waiter},
    orders::{log_taken_up, note_answered},
    planted::{Bug, planted},
    record::Record,
    timers::Timer,
};
use crate::{
    command::{ErrorCode, Failure},
    spec::{ChildName, Verb},
};

impl State {
    /// Takes an order for one child: carries it out, queues it, joins it to what is under way, or
    /// refuses it.
    pub(super) fn order(
        &mut self,
        turn: &mut Turn,
        name: &ChildName,
        verb: Verb,
        by: Origin,
        waiter: Option<Waiter>,
    ) {
        // A stop that is under way when the server is to end may have a child to stop after it.
        let ends = verb == Verb::Stop && by.cause == Cause::Hook;
        if self.ending.is_some() && !ends {
            self.tell(turn, waiter, name, verb, Err(server_ends()));
            return;
        }
        if verb == Verb::Stop {
            self.stop(turn, name, by, Posthooks::All, waiter);
            return;
        }
        self.place(turn, Job::new(name.clone(), verb, by, waiter));
    }

    /// Begins a start-like job, or puts it where its turn will come.
    pub(super) fn place(&mut self, turn: &mut Turn, mut job: Job) {
        let name = job.child.clone();
        let child = self.enter(&name);
        job.despite_doubt = job.by.cause == Cause::Command && child.is_in_doubt();
        if let Some(active) = child.job {
            self.place_beside(turn, job, active);
            return;
        }
        self.note_asked(turn, &mut job);
        let id = JobId(self.number());
        self.jobs.insert(id, job);
        if let Some(child) = self.children.get_mut(&name) {
            child.job = Some(id);
        }
        self.begin(turn, id);
    }

    /// A start-like job while another one for the same child is under way.
    fn place_beside(&mut self, turn: &mut Turn, mut job: Job, active: JobId) {
        let name = &job.child.clone();
        if self.is_pending(active) {
            if job.verb == Verb::Restart {
                self.refuse(turn, &job, not_running(name));
            } else if !planted(Bug::JoinedNotAnswered) {
                self.join(turn, active, job);
            }
            return;
        }
        let Some(child) = self.children.get_mut(name) else {
            return;
        };
        if child.queue.len() >= QUEUE_LEN_MAX && !planted(Bug::QueueUnbounded) {
            if planted(Bug::BusyNotAnswered) {
                return;
            }
            let message = format!("{QUEUE_LEN_MAX} commands wait for `{name}` already; try again");
            self.refuse(turn, &job, Failure::new(ErrorCode::Busy, message));
            return;
        }
        self.note_asked(turn, &mut job);
        let id = JobId(self.number());
        if let Some(child) = self.children.get_mut(name) {
            child.queue.push_back(id);
        }
        self.jobs.insert(id, job);
    }

    /// Has those who wait for one job wait for another that does the same.
    pub(super) fn join(&mut self, turn: &mut Turn, active: JobId, mut job: Job) {
        let Some(order) = self.jobs.get(&active).map(|active| active.order) else {
            return;
        };
        match (order, job.order) {
            // A server that dies now must do for the client what it had in mind anyway.
            (None, _) => self.note_asked(turn, &mut job),
            // What is written down for the one is done for both.
            (Some(_), Some(joined)) => {
                let failure = Some(ErrorCode::Superseded);
                note_answered(turn, &job.child, joined, failure);
            }
            (Some(_), None) => {}
        }
        if let Some(active) = self.jobs.get_mut(&active) {
            active.order = active.order.or(job.order);
            active.waiters.append(&mut job.waiters);
        }
    }

    /// Tells everybody who waits that a job which was never begun is refused.
    pub(super) fn refuse(&mut self, turn: &mut Turn, job: &Job, failure: Failure) {
        if let Some(order) = job.order {
            note_answered(turn, &job.child, order, Some(failure.code));
        }
        for waiter in job.waiters.clone() {
            self.tell_of(turn, waiter, job, Err(failure.clone()));
        }
    }

    /// Whether this job is a start that waits for others or its prehook while nothing runs.
    fn is_pending(&self, id: JobId) -> bool {
        self.jobs.get(&id).is_some_and(|job| {
            let live = self.is_live(&job.child);
            let waits = matches!(job.step, Step::Depends | Step::Prehook(_));
            job.starts() && !live && waits
        })
    }

    /// Whether a start-like order is under way for this child.
    pub(super) fn start_under_way(&self, name: &ChildName) -> bool {
        let job = self.job_of(name);
        job.and_then(|id| self.jobs.get(&id))
            .is_some_and(Job::starts)
    }

    /// Ends a job and tells everybody who waits for it.
    pub(super) fn finish(&mut self, turn: &mut Turn, id: JobId, outcome: Outcome) {
        let Some(job) = self.jobs.remove(&id) else {
            return;
        };
        if let Some(ticket) = job.ticket {
            self.tickets.remove(&ticket);
        }
        if job.step == Step::Depends {
            self.timers.cancel(&Timer::Dependencies(job.child.clone()));
        }
        self.patient.remove(&id);
        if let Some(child) = self.children.get_mut(&job.child) {
            if child.job == Some(id) {
                child.job = None;
            }
            child.queue.retain(|queued| *queued != id);
        }
        turn.unsettle(&job.child);
        if job.by.cause == Cause::Shutdown {
            self.end_saw(&job);
        }
        match (job.order, &outcome) {
            // The record of the process says as much.
            (Some(_), Ok(Success::Started { .. })) | (None, _) => {}
            (Some(order), Ok(Success::Stopped)) => note_answered(turn, &job.child, order, None),
            (Some(order), Err(failure)) => {
                note_answered(turn, &job.child, order, Some(failure.code));
            }
        }
        for waiter in &job.waiters {
            self.tell_of(turn, waiter.clone(), &job, outcome.clone());
        }
    }

    /// Ends the start under way and all that is queued: a stop overtakes them.
    pub(super) fn supersede(&mut self, turn: &mut Turn, name: &ChildName, by: Overtaken) {
        self.supersede_queue(turn, name, by);
        let active = self.job_of(name);
        let Some(id) = active.filter(|id| self.jobs.get(id).is_some_and(Job::starts)) else {
            return;
        };
        self.leave_hook(turn, id);
        self.hold_again(turn, name, id);
        if planted(Bug::SupersededNotAnswered)
            && let Some(job) = self.jobs.get_mut(&id)
        {
            job.waiters.clear();
        }
        self.finish(turn, id, Err(superseded(name, by)));
    }

    /// A release that is on its way to the disk is taken back with the start it was for.
    fn hold_again(&mut self, turn: &mut Turn, name: &ChildName, id: JobId) {
        let releasing = self.jobs.get(&id).is_some_and(|job| job.ticket.is_some());
        let held = self.children.get(name).and_then(|child| child.hold);
        if let (true, Some(since)) = (releasing, held) {
            self.keep_from_release(turn, name);
            let child = name.clone();
            turn.record(Record::Held { child, since });
        }
    }

    pub(super) fn supersede_queue(&mut self, turn: &mut Turn, name: &ChildName, by: Overtaken) {
        let Some(child) = self.children.get_mut(name) else {
            return;
        };
        for id in mem::take(&mut child.queue) {
            self.finish(turn, id, Err(superseded(name, by)));
        }
    }

    /// Stops waiting for a hook. What nobody else waits for and has not begun is given up.
    fn leave_hook(&mut self, turn: &mut Turn, id: JobId) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        match job.step {
            Step::Prehook(HookWait::Program) | Step::Posthook(HookWait::Program) => {
                let name = job.child.clone();
                self.kill_program(turn, &name);
            }
            Step::Prehook(HookWait::Job(sub)) | Step::Posthook(HookWait::Job(sub)) => {
                self.desert(turn, sub, id);
            }
            Step::Prehook(HookWait::Gone)
            | Step::Posthook(HookWait::Gone)
            | Step::Queued
            | Step::Reading
            | Step::Depends
            | Step::Checking
            | Step::StoppingOld
            | Step::Recording
            | Step::Spawning
            | Step::Dependents
            | Step::Stopping
            | Step::Closing => {}
        }
    }

    fn desert(&mut self, turn: &mut Turn, sub: JobId, parent: JobId) {
        let Some(job) = self.jobs.get_mut(&sub).filter(|_| sub != parent) else {
            return;
        };
        job.waiters.retain(|waiter| *waiter != Waiter::Hook(parent));
        let begun = match job.step {
            Step::Queued | Step::Reading | Step::Depends | Step::Prehook(_) | Step::Checking => {
                false
            }
            Step::StoppingOld
            | Step::Recording
            | Step::Spawning
            | Step::Dependents
            | Step::Stopping
            | Step::Posthook(_)
            | Step::Closing => true,
        };
        if job.waiters.is_empty() && job.by.cause == Cause::Hook && !begun {
            let name = job.child.clone();
            self.leave_hook(turn, sub);
            self.finish(turn, sub, Err(superseded(&name, Overtaken::ByStop)));
        }
    }

    pub(super) fn set_step(&mut self, id: JobId, step: Step) {
        if let Some(job) = self.jobs.get_mut(&id) {
            job.step = step;
        }
    }

    pub(super) fn note(&mut self, id: JobId, note: String) {
        if let Some(job) = self.jobs.get_mut(&id) {
            job.notes.push(note);
        }
    }

    /// Tells a waiter of an order that was refused before it became a job.
    pub(super) fn tell(
        &mut self,
        turn: &mut Turn,
        waiter: Option<Waiter>,
        name: &ChildName,
        verb: Verb,
        outcome: Outcome,
    ) {
        if let Some(waiter) = waiter {
            let job = Job::new(name.clone(), verb, Cause::Command.into(), None);
            self.tell_of(turn, waiter, &job, outcome);
        }
    }

    fn tell_of(&mut self, turn: &mut Turn, waiter: Waiter, job: &Job, outcome: Outcome) {
        match waiter {
            Waiter::Request(id, asked) => self.answer(turn, id, asked, job, outcome),
            Waiter::Batch(id) => self.batch_saw(turn, id, job, outcome),
            Waiter::Hook(parent) => {
                let result = match (outcome, job.verb) {
                    (Ok(_), Verb::Start | Verb::Restart | Verb::Trystart | Verb::Stop) => Ok(()),
                    (Err(failure), Verb::Start) if failure.code == ErrorCode::AlreadyRunning => {
                        Ok(())
                    }
                    (Err(failure), Verb::Stop) if failure.code == ErrorCode::NotRunning => Ok(()),
                    (Err(failure), Verb::Start | Verb::Restart | Verb::Trystart | Verb::Stop) => {
                        // What keeps the hook from it keeps the whole chain from it.
                        if let Some(parent) = self.jobs.get_mut(&parent) {
                            parent.blocked_by.extend(job.blocked_by.iter().cloned());
                        }
                        Err(failure)
                    }
                };
                self.hook_done(turn, parent, result);
            }
            Waiter::Repeat(armed) => self.repeat_saw(turn, &job.child, armed, outcome),
            Waiter::Log(asked) => log_taken_up(turn, asked, &job.child, &outcome),
        }
    }
}

/// What overtakes an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overtaken {
    /// A stop of its child.
    ByStop,
    /// The server's end.
    ByTheEnd,
}

/// The refusal of what is asked of a server that ends.
pub(super) fn server_ends() -> Failure {
    Failure::new(ErrorCode::ShuttingDown, "the server is ending")
}

/// The refusal of what needs a running child.
pub(super) fn not_running(name: &ChildName) -> Failure {
    let message = format!(
        "`{name}` is not running\nhint: `start {name}` starts it, `trystart {name}` does either"
    );
    Failure::new(ErrorCode::NotRunning, message)
}

/// What those are told whose order was overtaken.
fn superseded(name: &ChildName, by: Overtaken) -> Failure {
    match by {
        Overtaken::ByStop => {
            let message = format!("a `stop` of `{name}` overtook this command");
            Failure::new(ErrorCode::Superseded, message)
        }
        Overtaken::ByTheEnd => server_ends(),
    }
}
