//! Orders to stop: begun at once, never queued, answered in bounded time (I8).

use super::{
    Awaited, State, Turn,
    cause::{Cause, Origin},
    child::Phase,
    desired,
    effect::{Effect, Level},
    event::JobId,
    hooks::Chain,
    job::{EndedRun, HookWait, Job, Posthooks, Step, Success, Waiter},
    jobs::Overtaken,
    planted::{Bug, planted},
    program::HookKind,
    record::{Record, Wanted},
    runs::Then,
    timers::Timer,
};
use crate::{
    command::{ErrorCode, Failure},
    spec::{ChildName, Hook, Verb},
};

impl State {
    /// An order to stop this child. Ends a start under way, joins a stop under way.
    pub(super) fn stop(
        &mut self,
        turn: &mut Turn,
        name: &ChildName,
        by: Origin,
        posthooks: Posthooks,
        waiter: Option<Waiter>,
    ) {
        let mut job = Job::new(name.clone(), Verb::Stop, by, waiter);
        job.posthooks = posthooks;
        self.place_stop(turn, job);
    }

    /// Stops a child whose file is gone, after those that depend on it and go with it.
    pub(super) fn stop_removed(&mut self, turn: &mut Turn, name: &ChildName) {
        let by = Cause::Removed.into();
        let mut job = Job::new(name.clone(), Verb::Stop, by, None);
        job.after = self.dependents(name, &|_, child| desired::is_gone_for_good(child));
        self.place_stop(turn, job);
    }

    /// Begins an order to stop, unless there is nothing to stop or one is under way.
    pub(super) fn place_stop(&mut self, turn: &mut Turn, mut job: Job) {
        let name = &job.child.clone();
        self.kill_unclaimed_prehook(turn, name);
        let starts = self.start_under_way(name);
        let Some(child) = self.children.get(name) else {
            self.refuse(turn, &job, self.unknown(name));
            return;
        };
        if let Some(id) = child.job.filter(|id| self.is_stop(*id)) {
            self.join_stop(turn, id, job);
            return;
        }
        if !child.is_known() {
            // A start may be looking for its file: it is overtaken, but nobody is there to hold.
            self.supersede(turn, name, Overtaken::ByStop);
            self.refuse(turn, &job, self.unknown(name));
            return;
        }
        // A dead server may have stopped it already, and held nobody yet.
        let taken_up = job.waiters.contains(&Waiter::Log(Verb::Stop));
        if !child.is_live() && !child.is_due(starts) && !taken_up {
            let failure = Failure::new(ErrorCode::NotRunning, format!("`{name}` is not running"));
            self.refuse(turn, &job, failure);
            return;
        }
        if job.posthooks == Posthooks::All && job.by.cause == Cause::Command {
            let dependents = self.direct_dependents(name).into_iter();
            let note = |it: &ChildName| format!("`{it}` depends on it, and runs on");
            job.notes.extend(dependents.map(note));
        }
        self.note_asked(turn, &mut job);
        self.supersede(turn, name, Overtaken::ByStop);
        let id = JobId(self.number());
        let by = job.by.clone();
        job.step = Step::Stopping;
        self.jobs.insert(id, job);
        if let Some(child) = self.children.get_mut(name) {
            child.job = Some(id);
        }
        if by.cause == Cause::Command {
            self.hold(turn, name, id);
        }
        let live = self.is_live(name);
        let waits = self.jobs.get(&id).is_some_and(|job| !job.after.is_empty());
        if live && waits {
            self.put_off(turn, name, id);
        } else if live {
            self.begin_ladder(turn, name, &by, Then::Rest);
        } else {
            self.rest(turn, name, by);
        }
        // After the records of the stop: a server killed in between must not lose a repeat.
        self.cancel_due(turn, name);
        self.give_up_what_is_new(name);
        if !live {
            self.run_posthook(turn, id);
        }
    }

    /// What was to start by itself was told not to: only another content of its file is new.
    fn give_up_what_is_new(&mut self, name: &ChildName) {
        if let Some(child) = self.children.get_mut(name) {
            child.fresh = false;
            child.tried = child.listed().map(|spec| spec.digest);
        }
    }

    fn join_stop(&mut self, turn: &mut Turn, id: JobId, job: Job) {
        let name = &job.child.clone();
        let (by, posthooks) = (job.by.clone(), job.posthooks);
        let cause = by.cause;
        let at_once = job.after.is_empty();
        self.join(turn, id, job);
        if at_once {
            // Who stops it alone does not wait for others.
            self.begin_stop(turn, id);
        }
        self.take_over_failed(turn, id, &by, posthooks);
        if posthooks == Posthooks::StartingNothing {
            self.let_posthook_start_nothing(turn, id);
        }
        let held = self
            .children
            .get(name)
            .is_some_and(|child| child.hold.is_some());
        if cause == Cause::Command && (!held || self.is_being_released(name)) {
            self.hold(turn, name, id);
        }
        // What waits behind the stop was ordered before this one.
        self.supersede_queue(turn, name, Overtaken::ByStop);
    }

    /// A run that was being ended because it failed is stopped now, and stays down.
    fn take_over_failed(&mut self, turn: &mut Turn, id: JobId, by: &Origin, posthooks: Posthooks) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        if job.posthooks != Posthooks::None {
            return;
        }
        job.posthooks = posthooks;
        job.by = by.clone();
        let name = job.child.clone();
        if let Some(child) = self.children.get_mut(&name) {
            child.failure = None;
        }
        self.begin_ladder(turn, &name, by, Then::Rest);
    }

    /// What is stopped with all others starts nothing, also when another server goes on with it.
    fn let_posthook_start_nothing(&mut self, turn: &mut Turn, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let before = std::mem::replace(&mut job.posthooks, Posthooks::StartingNothing);
        if let (Posthooks::All, Some(order), Some(asker)) = (before, job.order, &job.by.asker) {
            let run = self.children.get(&job.child).and_then(|it| it.run.as_ref());
            turn.record(Record::Asked {
                child: job.child.clone(),
                order,
                wanted: Wanted::StopAsOneOfAll,
                over: run.map(|run| run.id),
                asker: asker.clone(),
            });
        }
    }

    /// Holds a child, and lets the job's answer wait until that is on disk.
    fn hold(&mut self, turn: &mut Turn, name: &ChildName, id: JobId) {
        self.keep_from_release(turn, name);
        let ticket = self.ticket(Awaited::Job(id));
        let mut since = turn.now.wall;
        if let Some(child) = self.children.get_mut(name) {
            since = *child.hold.get_or_insert(since);
        }
        if let Some(job) = self.jobs.get_mut(&id) {
            job.ticket = Some(ticket);
        }
        let records = vec![Record::Held {
            child: name.clone(),
            since,
        }];
        turn.emit(Effect::Record {
            ticket: Some(ticket),
            records,
        });
    }

    /// Cancels everything that would start the child by itself.
    pub(super) fn cancel_due(&mut self, turn: &mut Turn, name: &ChildName) {
        self.disarm(turn, name);
        self.timers.cancel(&Timer::Retry(name.clone()));
        if let Some(child) = self.children.get_mut(name) {
            child.retry = None;
            child.blocked.clear();
        }
        self.forget_due(turn, name, None);
    }

    /// A child at rest that was told to stop is `stopped`, whatever it was before.
    fn rest(&mut self, turn: &mut Turn, name: &ChildName, by: Origin) {
        let Some(child) = self.children.get_mut(name) else {
            return;
        };
        if child.last.is_some() {
            // Not due any more for a later server either, when the hold is gone.
            let child = name.clone();
            turn.record(Record::Settled { child });
        }
        child.failure = None;
        if let Some(last) = child.last.as_mut().filter(|last| last.by.is_none()) {
            last.by = Some(by);
        }
        self.note_end(name, None);
    }

    /// The run that a stop waits for has ended.
    pub(super) fn stop_saw_end(&mut self, turn: &mut Turn, id: JobId, ended: EndedRun) {
        if let Some(job) = self.jobs.get_mut(&id) {
            job.ended = Some(ended);
        }
        self.run_posthook(turn, id);
    }

    pub(super) fn run_posthook(&mut self, turn: &mut Turn, id: JobId) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        let Some(child) = self.children.get(&job.child) else {
            return;
        };
        let name = job.child.clone();
        if job.posthooks == Posthooks::None {
            self.close(turn, id);
            return;
        }
        let spec = child.posthook_spec().cloned();
        let hook = spec.and_then(|spec| Some((spec.posthook.clone()?, spec)));
        let Some((hook, spec)) = hook else {
            self.kill_unclaimed(turn, &name);
            self.close(turn, id);
            return;
        };
        let all = job.posthooks == Posthooks::All && self.ending.is_none();
        if let Hook::Command { .. } = &hook {
            self.kill_unclaimed(turn, &name);
        }
        match &hook {
            Hook::Command { verb, .. } if !all && *verb != Verb::Stop => {
                let why = if self.ending.is_some() {
                    "the server ends"
                } else {
                    "everything is stopped"
                };
                // Who ends a server by a signal gets no answer.
                turn.log(Level::Info, &name, "posthook skipped").detail =
                    Some(format!("posthook `{hook}`: {why}"));
                self.note(id, format!("posthook `{hook}` was skipped: {why}"));
                self.close(turn, id);
            }
            Hook::Command { verb, child } => match self.chain(&name, Some(&hook)) {
                Chain::Good(_) => {
                    self.set_step(id, Step::Posthook(HookWait::Job(id)));
                    let (verb, child) = (*verb, child.clone());
                    self.order_hook(turn, id, verb, &child);
                }
                Chain::Bad(failure, _) => self.posthook_failed(turn, id, &failure.message),
            },
            Hook::Run(_) => self.run_program(turn, id, HookKind::Posthook, &spec),
        }
    }

    /// A failed posthook is told; the stop stands.
    pub(super) fn posthook_failed(&mut self, turn: &mut Turn, id: JobId, why: &str) {
        if let Some(job) = self.jobs.get(&id) {
            let name = job.child.clone();
            turn.log(Level::Warn, &name, "posthook failed").detail = Some(why.to_owned());
        }
        self.note(id, format!("posthook failed: {why}"));
        self.close(turn, id);
    }

    /// All is done but, maybe, the hold's way to the disk.
    pub(super) fn close(&mut self, turn: &mut Turn, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        job.step = Step::Closing;
        if job.ticket.is_some() && !planted(Bug::AnswerBeforeRecord) {
            return;
        }
        let name = &job.child;
        let outcome = match &job.not_recorded {
            Some(why) => {
                let message =
                    format!("`{name}` is stopped, but its hold could not be recorded: {why}");
                Err(Failure::new(ErrorCode::Internal, message))
            }
            None => Ok(Success::Stopped),
        };
        self.finish(turn, id, outcome);
    }

    /// KILL did not help in time.
    pub(super) fn job_saw_stuck(&mut self, turn: &mut Turn, name: &ChildName, pid: i32) {
        let Some(id) = self.job_of(name) else {
            return;
        };
        let waits = self
            .jobs
            .get(&id)
            .is_some_and(|job| matches!(job.step, Step::Stopping | Step::StoppingOld));
        if waits {
            self.finish(turn, id, Err(stuck(name, pid)));
        }
    }

    /// Whether a run is being ended by nobody's job any more and does not end.
    pub(super) fn is_stuck(&self, name: &ChildName) -> Option<Failure> {
        let run = self.children.get(name)?.run.as_ref()?;
        match run.phase {
            Phase::Stopping { .. } => Some(stuck(name, run.pid.unwrap_or_default())),
            Phase::Spawning | Phase::Running => None,
        }
    }

    fn is_stop(&self, id: JobId) -> bool {
        self.jobs.get(&id).is_some_and(|job| !job.starts())
    }
}

fn stuck(name: &ChildName, pid: i32) -> Failure {
    let message = format!(
        "`{name}` is still stopping: process {pid} has not ended although it was killed; nothing \
         new is started until it is gone\nhint: a process in uninterruptible sleep waits for a \
         device or a network file system; see `ps -o stat,wchan {pid}`"
    );
    Failure::new(ErrorCode::Timeout, message)
}
