//! Starts and restarts, step by step: reading, prehook, checking, stopping the old run, recording,
//! spawning; and what follows when a step fails.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    Awaited, State, Turn,
    backoff::Attempt,
    cause::Cause,
    child::Child,
    desired::{self, Want},
    effect::{Effect, Level},
    event::{JobId, Ticket},
    hooks::Chain,
    job::{EndedRun, HookWait, Job, Step, Success, Waiter},
    jobs::not_running,
    listing::Content,
    planted::{Bug, planted},
    program::HookKind,
    record::Record,
    runs::Then,
};
use crate::{
    command::{ErrorCode, Failure},
    spec::{ChildName, Hook, RunId, Spec, Verb},
};

/// How many run numbers are reserved on disk at once: after a reboot numbering goes on behind
/// them, so that none is used twice.
pub(super) const RUNS_RESERVED: u64 = 1_000;

impl State {
    /// Begins an order whose turn has come.
    pub(super) fn begin(&mut self, turn: &mut Turn, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let name = job.child.clone();
        let Some(child) = self.children.get(&name) else {
            return;
        };
        let stale = |waiter: &Waiter| match waiter {
            Waiter::Repeat(armed) => !child.counts(armed),
            Waiter::Request(..) | Waiter::Batch(_) | Waiter::Hook(_) | Waiter::Log(_) => false,
        };
        if job.waiters.iter().any(stale) {
            let failure = Failure::new(ErrorCode::Superseded, "another run began meanwhile");
            self.finish(turn, id, Err(failure));
            return;
        }
        let held = child.hold.is_some() && !planted(Bug::HookStartsHeld);
        if self.is_refused_in_doubt(turn, id) {
            return;
        }
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        if job.by.cause == Cause::Hook && held {
            let message = format!(
                "`{name}` is held by an operator's `stop`, and a hook does not start a held child\n\
                 hint: `supervisor-rs-client start {name}` releases it"
            );
            self.block_parents(id);
            self.finish(turn, id, Err(Failure::new(ErrorCode::HookFailed, message)));
            return;
        }
        if job.by.cause == Cause::Dependency && held {
            let message = format!("`{name}` is held by an operator's `stop`");
            let failure = Failure::new(ErrorCode::DependencyFailed, message);
            self.finish(turn, id, Err(failure));
            return;
        }
        job.step = Step::Reading;
        job.read.insert(name.clone());
        if job.follows_listing() {
            self.on_reread(turn, id);
            return;
        }
        turn.emit(Effect::Reread {
            job: id,
            names: BTreeSet::from([name]),
        });
    }

    /// What keeps a hook from its child keeps those who wait for the hook, until that is over.
    pub(super) fn block_parents(&mut self, id: JobId) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        let name = job.child.clone();
        let parents: Vec<JobId> = job.waiters.iter().filter_map(Waiter::hook).collect();
        for parent in parents {
            if let Some(parent) = self.jobs.get_mut(&parent) {
                parent.read.insert(name.clone());
                parent.blocked_by.insert(name.clone());
            }
        }
    }

    /// The files were read again for a job: is the order to be refused, or where does it begin?
    pub(super) fn on_reread(&mut self, turn: &mut Turn, id: JobId) {
        let reading = |job: &Job| job.step == Step::Reading;
        // What was read just now may have brought the doubt about.
        if !self.jobs.get(&id).is_some_and(reading) || self.is_refused_in_doubt(turn, id) {
            return;
        }
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        let name = job.child.clone();
        let verb = job.verb;
        // What was stopped for it is not left down for a bad file.
        let cause = match job.ended {
            Some(_) => Cause::Policy,
            None => job.by.cause,
        };
        let spec = match self.admit(&name, verb, cause) {
            Ok(spec) => spec,
            Err(failure) => {
                self.finish(turn, id, Err(failure));
                return;
            }
        };
        let (mut names, mut failure) = match self.chain(&name, spec.prehook.as_ref()) {
            Chain::Good(names) => (names, None),
            Chain::Bad(failure, names) => (names, Some(failure)),
        };
        names.extend(self.needed_by(&spec));
        let faults = self.graph_faults(&name, &spec);
        let in_graph = !faults.is_empty() && !planted(Bug::CircleNotRefused);
        if in_graph {
            failure = Some(Failure::new(ErrorCode::InvalidConfig, faults.join("\n")));
        }
        let live = self.is_live(&name);
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        job.spec = Some(Arc::clone(&spec));
        let unread: BTreeSet<ChildName> = names.difference(&job.read).cloned().collect();
        if !unread.is_empty() && !job.follows_listing() {
            job.read.extend(unread.iter().cloned());
            turn.emit(Effect::Reread {
                job: id,
                names: unread,
            });
            return;
        }
        if let Some(failure) = failure {
            job.blocked_by = names;
            self.forget_due(turn, &name, None);
            // What files do not bring about again stays due until they are mended.
            let again = matches!(cause, Cause::Policy | Cause::Dependency);
            if in_graph && again && !live {
                self.stay_due(turn, id);
                self.finish(turn, id, Err(failure));
                return;
            }
            self.fail_start(turn, id, failure);
            return;
        }
        self.await_dependencies(turn, id, &name, &spec);
    }

    /// Whether this order makes sense in the state the child is in, and with which spec.
    fn admit(&self, name: &ChildName, verb: Verb, cause: Cause) -> Result<Arc<Spec>, Failure> {
        let Some(child) = self.children.get(name).filter(|child| child.is_known()) else {
            return Err(self.unknown(name));
        };
        match (&child.run, verb) {
            (Some(_), Verb::Start) if child.is_stopping() => {
                if let Some(failure) = self.is_stuck(name) {
                    return Err(failure);
                }
            }
            (Some(run), Verb::Start) => {
                let pid = run.pid.map_or(String::new(), |pid| format!(", pid {pid}"));
                let message = format!("`{name}` is already running: run {}{pid}", run.id);
                return Err(Failure::new(ErrorCode::AlreadyRunning, message));
            }
            (None, Verb::Restart) if child.retry.is_none() => return Err(not_running(name)),
            (Some(_) | None, Verb::Start | Verb::Restart | Verb::Trystart | Verb::Stop) => {}
        }
        // What the core does by itself goes on with the last good spec.
        if matches!(cause, Cause::Policy | Cause::Unhealthy)
            && let Some(spec) = child.in_force()
        {
            return Ok(Arc::clone(spec));
        }
        match child
            .entry
            .as_ref()
            .map(|entry| (&entry.content, &entry.paths))
        {
            Some((Content::Good(spec), _)) => Ok(Arc::clone(spec)),
            Some((Content::Bad(faults), _)) => {
                let message = format!("the file of `{name}` is bad:\n{}", faults.join("\n"));
                Err(Failure::new(ErrorCode::InvalidConfig, message))
            }
            Some((Content::Conflict, paths)) => {
                let paths: Vec<String> = paths
                    .iter()
                    .map(|path| format!("  {}", path.display()))
                    .collect();
                let message = format!(
                    "several files declare `{name}`:\n{}\nhint: remove or rename all but one",
                    paths.join("\n")
                );
                Err(Failure::new(ErrorCode::Conflict, message))
            }
            None => Err(self.unknown(name)),
        }
    }

    pub(super) fn run_prehook(
        &mut self,
        turn: &mut Turn,
        id: JobId,
        name: &ChildName,
        spec: &Arc<Spec>,
    ) {
        match spec.prehook.clone() {
            None => {
                self.kill_unclaimed(turn, name);
                self.after_prehook(turn, id);
            }
            Some(Hook::Command { verb, child }) => {
                self.kill_unclaimed(turn, name);
                self.set_step(id, Step::Prehook(HookWait::Job(id)));
                if planted(Bug::HookChainOutOfOrder) {
                    self.after_prehook(turn, id);
                }
                self.order_hook(turn, id, verb, &child);
            }
            Some(Hook::Run(_)) => self.run_program(turn, id, HookKind::Prehook, spec),
        }
    }

    pub(super) fn after_prehook(&mut self, turn: &mut Turn, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let Some(spec) = job.spec.clone() else { return };
        if self.children.get(&job.child).is_some_and(Child::is_live) {
            job.step = Step::Checking;
            turn.emit(Effect::Preflight { job: id, spec });
        } else {
            self.record_then_spawn(turn, id);
        }
    }

    pub(super) fn on_preflight(&mut self, turn: &mut Turn, id: JobId, result: Result<(), String>) {
        let Some(job) = self
            .jobs
            .get_mut(&id)
            .filter(|job| job.step == Step::Checking)
        else {
            return;
        };
        let (name, by) = (job.child.clone(), job.by.clone());
        if let Err(why) = result {
            let message = format!("{why}\nnote: what ran runs on");
            self.fail_start(turn, id, Failure::new(ErrorCode::SpawnFailed, message));
        } else if self.children.get(&name).is_some_and(Child::is_live) {
            job.step = Step::StoppingOld;
            self.begin_ladder(turn, &name, &by, Then::Replaced);
            if planted(Bug::RestartBeforeEnd) {
                self.record_then_spawn(turn, id);
            }
        } else {
            self.record_then_spawn(turn, id);
        }
    }

    /// Writes down what must be on disk before the run begins, then begins it.
    fn record_then_spawn(&mut self, turn: &mut Turn, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let (name, by_operator) = (job.child.clone(), job.by.cause == Cause::Command);
        job.step = Step::Recording;
        let Some(child) = self.children.get(&name) else {
            return;
        };
        let mut records = Vec::new();
        if child.hold.is_some() && by_operator {
            records.push(Record::Released {
                child: name.clone(),
            });
        }
        if child.highest() >= child.reserved {
            let upto = RunId(child.highest() + RUNS_RESERVED);
            records.push(Record::Reserved {
                child: name.clone(),
                upto,
            });
        }
        if records.is_empty() || planted(Bug::ReleaseNotAwaited) {
            self.spawn_now(turn, id);
            return;
        }
        let ticket = self.ticket(Awaited::Job(id));
        if let Some(job) = self.jobs.get_mut(&id) {
            job.ticket = Some(ticket);
        }
        turn.emit(Effect::Record {
            ticket: Some(ticket),
            records,
        });
    }

    fn spawn_now(&mut self, turn: &mut Turn, id: JobId) {
        if self.is_refused_in_doubt(turn, id) {
            return;
        }
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let Some(spec) = job.spec.clone() else { return };
        job.step = Step::Spawning;
        let (name, by, order) = (job.child.clone(), job.by.clone(), job.order);
        self.spawn(turn, &name, &spec, by, order);
    }

    /// A number to wait for, and who waits.
    pub(super) fn ticket(&mut self, awaited: Awaited) -> Ticket {
        let ticket = Ticket(self.number());
        self.tickets.insert(ticket, awaited);
        ticket
    }

    pub(super) fn on_recorded(
        &mut self,
        turn: &mut Turn,
        ticket: Ticket,
        result: Result<(), String>,
    ) {
        match self.tickets.remove(&ticket) {
            Some(Awaited::Job(id)) => self.job_saw_record(turn, id, ticket, result),
            Some(Awaited::Batch(id)) => self.batch_saw_record(turn, id, result),
            None => {}
        }
    }

    fn job_saw_record(
        &mut self,
        turn: &mut Turn,
        id: JobId,
        ticket: Ticket,
        result: Result<(), String>,
    ) {
        let Some(job) = self
            .jobs
            .get_mut(&id)
            .filter(|job| job.ticket == Some(ticket))
        else {
            return;
        };
        job.ticket = None;
        let name = job.child.clone();
        if job.step != Step::Recording {
            job.not_recorded = result.err();
            if job.step == Step::Closing {
                self.close(turn, id);
            }
            return;
        }
        if let Err(why) = result {
            let message = format!("`{name}` was not started, for it could not be recorded: {why}");
            self.fail_start(turn, id, Failure::new(ErrorCode::Internal, message));
            return;
        }
        let by_operator = job.by.cause == Cause::Command;
        if let Some(child) = self.children.get_mut(&name) {
            if by_operator {
                child.hold = None;
            }
            child.reserved = child.reserved.max(child.highest() + RUNS_RESERVED);
        }
        self.unblock(turn, &name);
        self.spawn_now(turn, id);
    }

    /// The run that a job ordered has begun.
    pub(super) fn job_saw_spawn(
        &mut self,
        turn: &mut Turn,
        name: &ChildName,
        run: RunId,
        pid: i32,
    ) {
        let Some(id) = self.job_of(name) else {
            return;
        };
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        if job.step == Step::Spawning {
            self.finish(turn, id, Ok(Success::Started { run, pid }));
        } else if job.step == Step::Stopping {
            let by = job.by.clone();
            self.begin_ladder(turn, name, &by, Then::Rest);
        }
    }

    /// The run that a job ordered could not begin.
    pub(super) fn job_saw_no_spawn(&mut self, turn: &mut Turn, name: &ChildName, why: Failure) {
        let Some(id) = self.job_of(name) else {
            turn.unsettle(name);
            return;
        };
        match self.jobs.get(&id).map(|job| job.step) {
            Some(Step::Spawning) => self.fail_start(turn, id, why),
            Some(Step::Stopping | Step::Dependents) => {
                // Its stop overtook it: there is nothing to stop any more, and nothing failed.
                if let Some(child) = self.children.get_mut(name) {
                    child.failure = None;
                }
                self.close(turn, id);
            }
            Some(
                Step::Queued
                | Step::Reading
                | Step::Depends
                | Step::Prehook(_)
                | Step::Checking
                | Step::StoppingOld
                | Step::Recording
                | Step::Posthook(_)
                | Step::Closing,
            )
            | None => turn.unsettle(name),
        }
    }

    /// A run has ended that a job may wait for.
    pub(super) fn job_saw_end(&mut self, turn: &mut Turn, name: &ChildName, ended: EndedRun) {
        let Some(id) = self.job_of(name) else {
            return;
        };
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        match job.step {
            Step::Stopping | Step::Dependents => self.stop_saw_end(turn, id, ended),
            Step::StoppingOld if job.spec.is_none() => {
                // A dead server's replacement: its hooks are run anew, by the files of today.
                job.ended = Some(ended);
                job.step = Step::Reading;
                job.read.insert(name.clone());
                self.on_reread(turn, id);
            }
            Step::StoppingOld => {
                job.ended = Some(ended);
                if planted(Bug::PosthookBetweenHalves) {
                    self.run_posthook(turn, id);
                    return;
                }
                self.record_then_spawn(turn, id);
            }
            Step::Spawning => {
                // It began and ended before the shell said that it had begun.
                let message = format!("`{name}` ended while it was being started: {}", ended.exit);
                self.fail_start(turn, id, Failure::new(ErrorCode::SpawnFailed, message));
            }
            Step::Queued
            | Step::Reading
            | Step::Depends
            | Step::Prehook(_)
            | Step::Checking
            | Step::Recording
            | Step::Posthook(_)
            | Step::Closing => {}
        }
    }

    /// A start-like order cannot be carried out. What it was ordered by decides what follows.
    pub(super) fn fail_start(&mut self, turn: &mut Turn, id: JobId, failure: Failure) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        let (name, cause, automatic) = (job.child.clone(), job.by.cause, job.is_automatic());
        let blocked_by = job.blocked_by.clone();
        let spec = job.spec.clone();
        let restarts = self.has_restart_policy(&name);
        let Some(child) = self.children.get_mut(&name) else {
            return;
        };
        // What was ordered may be what the core would try by itself next: that it failed counts.
        let want = desired::want(&name, child, &self.settings, Cause::New);
        if automatic || matches!(want, Want::Start(_) | Want::Replace) {
            let line = turn.log(Level::Warn, &name, "not started");
            line.cause = Some(cause);
            line.detail = Some(failure.message.clone());
            // What was tried, which need not be what the file says by now.
            child.tried = spec.as_ref().map(|spec| spec.digest);
            if child.is_live() {
                child.note = Some(failure.message.clone());
            } else {
                child.failure = Some(failure.message.clone());
                if let Some(mainstay) = &mut self.mainstay {
                    mainstay.never_ran(&name);
                }
            }
            if !blocked_by.is_empty() && cause != Cause::Policy {
                child.blocked = blocked_by;
                self.blocked.insert(name.clone());
            } else if restarts
                && !child.is_live()
                && let Some(spec) = spec
            {
                self.after_attempt(turn, &name, &spec, Attempt::NeverRan);
            }
        }
        self.finish(turn, id, Err(failure));
    }

    /// Those who waited for this name's file or hold may try again.
    pub(super) fn unblock(&mut self, turn: &mut Turn, changed: &ChildName) {
        let waiting: Vec<ChildName> = self.blocked.iter().cloned().collect();
        for name in waiting {
            let Some(child) = self.children.get_mut(&name) else {
                self.blocked.remove(&name);
                continue;
            };
            if child.blocked.contains(changed) {
                child.blocked.clear();
                child.tried = None;
                child.failure = None;
                turn.unsettle(&name);
            }
            if child.blocked.is_empty() {
                self.blocked.remove(&name);
            }
        }
    }
}
