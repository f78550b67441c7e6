//! `depends_on`: who waits for others before it starts, brings them up, and what follows when they
//! fail.
//!
//! - A start-like order waits before its prehook until all is as its spec says. Whoever is at rest
//!   is started for it, once an order. Whatever ran runs on meanwhile.
//! - When one of them fails, or [`DEPENDENCIES_TIME`] is up, whoever asked is told. A child that does
//!   not run stays due: nothing is tried again, but as soon as all is as it has to be it starts. What a
//!   client ordered stays written down until then (`orders`), the rest follows from files and records
//!   as it did the first time; so a server that dies changes nothing of it.
//! - What a child waits for is looked at in every step while anybody waits. Nobody has to remember
//!   to wake them, and while nobody waits it costs nothing.
//! - That one ends later on which a child depends is no business of that child's run.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    State, Turn,
    cause::{Cause, Origin},
    child::{Child, Phase, Run, Rung},
    effect::Level,
    event::JobId,
    job::{Job, Step},
    listing::Content,
    orders::note_answered,
    planted::{Bug, planted},
    record::OrderId,
    runs::Then,
    timers::Timer,
};
use crate::{
    command::{ErrorCode, Failure, RowDependency},
    spec::{ChildName, Condition, Digest, Exit, RunId, Spec, Verb},
};

/// For how long an order waits for what its child depends on.
pub const DEPENDENCIES_TIME: Duration = Duration::from_secs(60);

/// A start that is due once what the child depends on is there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Due {
    /// Why it is to start, and who asked.
    pub(super) by: Origin,
    /// The client's order that it will carry out, as it is written down.
    order: Option<OrderId>,
    /// What was to be started: another content of the file is tried anew.
    digest: Digest,
}

/// How one stands on whom another depends.
enum Standing {
    /// As it has to be.
    Met,
    /// On its way there.
    Coming,
    /// Nothing keeps it from being started.
    AtRest,
    /// It does not come, as things are.
    Failed,
}

impl Child {
    /// Whether its latest run ended by itself with success, in this life of the server.
    fn has_completed(&self) -> bool {
        let ended_well = self.last.as_ref().is_some_and(|last| match last.exit {
            Some(Exit::Code(code)) => {
                last.by.is_none() && last.spec.restart.success.contains(&code)
            }
            Some(Exit::Signal(_) | Exit::Unknown) | None => false,
        });
        self.run.is_none() && ended_well && !self.fresh && !self.is_in_doubt()
    }
}

/// Whether a live run does what this condition asks for.
fn is_as_wanted(run: &Run, condition: Condition) -> Standing {
    match (condition, run.is_starting()) {
        (Condition::Started, _) | (Condition::Ready, false) => Standing::Met,
        (Condition::Ready, true) | (Condition::Completed, _) => Standing::Coming,
    }
}

impl State {
    /// Whether a start-like order for this child is under way, or waits for its turn.
    fn start_is_coming(&self, child: &Child) -> bool {
        let jobs = child.job.iter().chain(&child.queue);
        let mut jobs = jobs.filter_map(|id| self.jobs.get(id));
        jobs.any(Job::starts)
    }

    fn standing(&self, name: &ChildName, condition: Condition) -> Standing {
        let Some(child) = self.children.get(name) else {
            return Standing::Failed;
        };
        if self.start_is_coming(child) {
            return Standing::Coming;
        }
        match child.run.as_ref().map(|run| (run.phase, run)) {
            Some((Phase::Spawning, _)) => return Standing::Coming,
            // A stop that is under way waits for something.
            Some((Phase::Running, _)) if child.job.is_some() => return Standing::Failed,
            Some((Phase::Running, run)) => return is_as_wanted(run, condition),
            Some((Phase::Stopping { .. }, _)) => return Standing::Failed,
            None => {}
        }
        let comes = child.due.is_some() || child.retry.is_some() || !child.blocked.is_empty();
        if child.job.is_some() {
            Standing::Failed
        } else if condition == Condition::Completed && child.has_completed() {
            Standing::Met
        } else if comes || child.hold.is_some() || child.is_in_doubt() || child.listed().is_none() {
            Standing::Failed
        } else {
            Standing::AtRest
        }
    }

    /// The orders for those that this one's child depends on, which come to a start.
    pub(super) fn starts_awaited_by(&self, job: &Job) -> Vec<JobId> {
        let spec = job.spec.as_ref();
        let needs = spec.into_iter().flat_map(|spec| spec.depends_on.keys());
        let children = needs.filter_map(|name| self.children.get(name));
        let coming = children.filter(|child| self.start_is_coming(child));
        let jobs = coming.flat_map(|child| child.job.iter().chain(&child.queue));
        jobs.copied().collect()
    }

    fn is_met(&self, name: &ChildName, condition: Condition) -> bool {
        matches!(self.standing(name, condition), Standing::Met)
    }

    fn all_are_met(&self, spec: &Spec) -> bool {
        let mut needs = spec.depends_on.iter();
        needs.all(|(name, it)| self.is_met(name, it.condition))
    }

    /// What a child depends on, as it is shown.
    pub(super) fn rows_of_dependencies(&self, spec: &Spec) -> Vec<RowDependency> {
        let row = |(name, it): (&ChildName, &crate::spec::Dependency)| RowDependency {
            name: name.clone(),
            condition: it.condition,
            met: self.is_met(name, it.condition),
        };
        spec.depends_on.iter().map(row).collect()
    }

    /// An order has come to the point where its child may have to wait for others.
    pub(super) fn await_dependencies(
        &mut self,
        turn: &mut Turn,
        id: JobId,
        name: &ChildName,
        spec: &Arc<Spec>,
    ) {
        if spec.depends_on.is_empty() || planted(Bug::DependenciesIgnored) {
            self.forget_due(turn, name, None);
            self.run_prehook(turn, id, name, spec);
            return;
        }
        self.set_step(id, Step::Depends);
        self.patient.insert(id);
        if !planted(Bug::DependenciesWithoutEnd) {
            let until = turn.now.mono + DEPENDENCIES_TIME;
            self.timers.set(Timer::Dependencies(name.clone()), until);
        }
        let circle = |(other, it): &(&ChildName, &crate::spec::Dependency)| {
            !self.is_met(other, it.condition) && self.would_wait_for_itself(id, other)
        };
        let other = spec
            .depends_on
            .iter()
            .find(circle)
            .map(|(it, _)| it.clone());
        if let Some(other) = other {
            let why = format!("`{other}` waits for `{name}` itself");
            self.lack(turn, id, ErrorCode::DependencyFailed, Some(why));
        }
    }

    /// Lets those go on that wait for nothing any more, until nothing changes by that.
    pub(super) fn look_at_patient(&mut self, turn: &mut Turn) {
        loop {
            self.settle(turn);
            let jobs: Vec<JobId> = self.patient.iter().copied().collect();
            let mut moved = false;
            for id in jobs {
                moved |= match self.jobs.get(&id).map(|job| job.step) {
                    Some(Step::Depends) => self.look_at_needs(turn, id),
                    Some(Step::Dependents) => self.look_at_dependents(turn, id),
                    Some(
                        Step::Queued
                        | Step::Reading
                        | Step::Prehook(_)
                        | Step::Checking
                        | Step::StoppingOld
                        | Step::Recording
                        | Step::Spawning
                        | Step::Stopping
                        | Step::Posthook(_)
                        | Step::Closing,
                    )
                    | None => {
                        self.patient.remove(&id);
                        false
                    }
                };
            }
            let due: Vec<ChildName> = self.due.iter().cloned().collect();
            for name in due {
                moved |= self.look_at_due(turn, &name);
            }
            if !moved {
                return;
            }
        }
    }

    /// Looks whether an order may go on; says whether anything came of it.
    fn look_at_needs(&mut self, turn: &mut Turn, id: JobId) -> bool {
        let Some(job) = self.jobs.get(&id) else {
            return false;
        };
        let Some(spec) = job.spec.clone() else {
            return false;
        };
        let (name, by) = (job.child.clone(), job.by.clone());
        let (mut at_rest, mut coming, mut failed) = (Vec::new(), Vec::new(), false);
        for (other, it) in &spec.depends_on {
            match self.standing(other, it.condition) {
                Standing::Met => {}
                Standing::Coming => coming.push(other.clone()),
                Standing::AtRest if !job.brought.contains(other) => at_rest.push(other.clone()),
                Standing::AtRest | Standing::Failed => failed = true,
            }
        }
        if failed {
            self.lack(turn, id, ErrorCode::DependencyFailed, None);
            return true;
        }
        let (brings, waits) = (!at_rest.is_empty(), !coming.is_empty());
        if let Some(job) = self.jobs.get_mut(&id) {
            // What was on its way and fails is not tried once more either.
            job.brought.extend(coming);
            job.brought.extend(at_rest.iter().cloned());
        }
        for other in at_rest {
            let by = Origin::new(Cause::Dependency, by.asker.clone());
            self.order(turn, &other, Verb::Start, by, None);
        }
        if !waits && !brings {
            self.timers.cancel(&Timer::Dependencies(name.clone()));
            self.patient.remove(&id);
            self.forget_due(turn, &name, None);
            self.run_prehook(turn, id, &name, &spec);
        }
        brings || !waits
    }

    /// The time is up in which what a child depends on had to be there.
    pub(super) fn on_dependencies_late(&mut self, turn: &mut Turn, name: &ChildName) {
        let Some(id) = self.job_of(name) else { return };
        if self
            .jobs
            .get(&id)
            .is_some_and(|job| job.step == Step::Depends)
        {
            self.lack(turn, id, ErrorCode::Timeout, None);
        }
    }

    /// An order ends because its child lacks somebody. What does not run is due from now on.
    fn lack(&mut self, turn: &mut Turn, id: JobId, code: ErrorCode, why: Option<String>) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        let Some(spec) = job.spec.clone() else { return };
        let (name, by) = (job.child.clone(), job.by.clone());
        let (automatic, replaces) = (job.is_automatic(), job.follows_listing());
        let live = self.is_live(&name);
        let stays_due = by.cause != Cause::Hook && (!live || replaces);
        let message = self.what_lacks(&name, &spec, code, why);
        let note = match (live, stays_due) {
            (true, _) => "\nnote: what ran runs on",
            (false, true) => "\nnote: it starts by itself as soon as that is over",
            (false, false) => "",
        };
        let failure = Failure::new(code, format!("{message}{note}"));
        if by.cause == Cause::Hook {
            let needed = self.needed_by(&spec);
            if let Some(job) = self.jobs.get_mut(&id) {
                job.blocked_by = needed;
            }
            self.fail_start(turn, id, failure);
            return;
        }
        if stays_due {
            self.stay_due(turn, id);
        }
        if live && automatic {
            self.fail_start(turn, id, failure);
            return;
        }
        if !live {
            let line = turn.log(Level::Warn, &name, "waits for what it depends on");
            line.cause = self.jobs.get(&id).map(|job| job.by.cause);
            line.detail = Some(failure.message.clone());
        }
        self.finish(turn, id, Err(failure));
    }

    /// What an order was to start is due from now on, whatever becomes of the order.
    pub(super) fn stay_due(&mut self, turn: &mut Turn, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let (name, by) = (job.child.clone(), job.by.clone());
        let Some(digest) = job.spec.as_ref().map(|spec| spec.digest) else {
            return;
        };
        let order = match planted(Bug::DueNotKept) {
            true => None,
            false => job.order.take(),
        };
        self.forget_due(turn, &name, order);
        if let Some(child) = self.children.get_mut(&name) {
            child.due = Some(Due { by, order, digest });
            self.due.insert(name);
        }
    }

    /// Looks whether a child that is due may start; says whether anything came of it.
    fn look_at_due(&mut self, turn: &mut Turn, name: &ChildName) -> bool {
        let Some(child) = self.children.get(name) else {
            self.due.remove(name);
            return false;
        };
        let Some(due) = &child.due else {
            self.due.remove(name);
            return false;
        };
        let by_command = due.by.cause == Cause::Command;
        let held = child.hold.is_some() && !by_command;
        if self.ending.is_some() || child.job.is_some() || held || child.is_in_doubt() {
            return false;
        }
        // What the core does by itself goes on with the last good spec.
        let spec = match due.by.cause {
            Cause::Policy => child.in_force(),
            Cause::Command
            | Cause::Hook
            | Cause::Repeat
            | Cause::NotReady
            | Cause::Unhealthy
            | Cause::Dependency
            | Cause::Boot
            | Cause::New
            | Cause::Changed
            | Cause::Removed
            | Cause::Settings
            | Cause::Shutdown
            | Cause::Reboot => child.listed(),
        };
        let Some(spec) = spec.cloned() else {
            return false;
        };
        let changed = spec.digest != due.digest;
        if !self.graph_faults(name, &spec).is_empty() {
            return false;
        }
        if !(changed || self.all_are_met(&spec)) || planted(Bug::DueForgotten) {
            return false;
        }
        let Some(child) = self.children.get_mut(name) else {
            return false;
        };
        let Some(due) = child.due.take() else {
            return false;
        };
        self.due.remove(name);
        if child.is_live() {
            // Whether it is still to be replaced, its file says.
            child.tried = None;
            turn.unsettle(name);
            return true;
        }
        let mut job = Job::new(name.clone(), Verb::Start, due.by, None);
        job.order = due.order;
        self.place(turn, job);
        true
    }

    /// A start that was due is not any more, for the sake of an order or of nothing.
    pub(super) fn forget_due(
        &mut self,
        turn: &mut Turn,
        name: &ChildName,
        instead: Option<OrderId>,
    ) {
        let child = self.children.get_mut(name);
        let Some(due) = child.and_then(|child| child.due.take()) else {
            return;
        };
        self.due.remove(name);
        if let Some(order) = due.order.filter(|order| Some(*order) != instead) {
            note_answered(turn, name, order, Some(ErrorCode::Superseded));
        }
    }

    /// The server ends, and starts nobody any more.
    pub(super) fn forget_all_due(&mut self, turn: &mut Turn) {
        for name in std::mem::take(&mut self.due) {
            let child = self.children.get_mut(&name);
            let due = child.and_then(|child| child.due.take());
            if let Some(order) = due.and_then(|due| due.order) {
                note_answered(turn, &name, order, Some(ErrorCode::ShuttingDown));
            }
        }
    }

    /// What a child waits for, in one line or with a hint.
    pub(super) fn awaited(&self, name: &ChildName) -> String {
        let child = self.children.get(name);
        let job = child.and_then(|child| self.jobs.get(&child.job?));
        let spec = job.and_then(|job| job.spec.as_ref());
        let spec = spec.or_else(|| child.and_then(Child::in_force));
        let Some(spec) = spec else {
            return "waits for its file".to_owned();
        };
        if let Some(fault) = self.graph_faults(name, spec).first() {
            return format!("waits for a file to be mended: {fault}");
        }
        let unmet = spec.depends_on.iter();
        let unmet = unmet.filter(|(other, it)| !self.is_met(other, it.condition));
        let unmet: Vec<String> = unmet
            .map(|(other, it)| format!("`{other}` ({})", it.condition))
            .collect();
        match self.blame(name, spec) {
            Some((_, why)) => format!("waits for {}: {why}", unmet.join(", ")),
            None => "is about to start".to_owned(),
        }
    }

    /// What whoever waits for a start is told.
    fn what_lacks(
        &self,
        name: &ChildName,
        spec: &Spec,
        code: ErrorCode,
        why: Option<String>,
    ) -> String {
        let found = self.blame(name, spec);
        let (way, found) = found.unwrap_or_else(|| (vec![name.clone()], String::new()));
        let way: Vec<String> = way.iter().map(|name| format!("`{name}`")).collect();
        let way = way.join(" -> ");
        let why = why.unwrap_or(found);
        let late = match code {
            ErrorCode::Timeout => {
                let time = humantime::format_duration(DEPENDENCIES_TIME);
                format!(" within {time}")
            }
            _other => String::new(),
        };
        format!("what `{name}` depends on is not there{late}: {way}: {why}")
    }

    /// Who keeps a child from starting: the way to him, and why.
    fn blame(&self, name: &ChildName, spec: &Spec) -> Option<(Vec<ChildName>, String)> {
        let mut way = vec![name.clone()];
        let mut spec = spec;
        loop {
            let (other, condition) = self.worst(spec)?;
            let seen = way.contains(other);
            way.push(other.clone());
            let child = self.children.get(other);
            let further = child.filter(|child| child.due.is_some() && !child.is_live());
            match further.and_then(Child::in_force) {
                Some(next) if !seen && self.worst(next).is_some() => spec = next,
                Some(_) | None => return Some((way, self.why_not(other, condition))),
            }
        }
    }

    /// The one that fails, else one that is not there yet.
    fn worst<'a>(&self, spec: &'a Spec) -> Option<(&'a ChildName, Condition)> {
        let rank =
            |(other, condition): &(&ChildName, Condition)| match self.standing(other, *condition) {
                Standing::Failed => 0,
                Standing::AtRest => 1,
                Standing::Coming => 2,
                Standing::Met => 3,
            };
        let all = spec
            .depends_on
            .iter()
            .map(|(it, need)| (it, need.condition));
        all.filter(|it| rank(it) < 3).min_by_key(rank)
    }

    /// Why one is not as it has to be.
    fn why_not(&self, name: &ChildName, condition: Condition) -> String {
        let Some(child) = self.children.get(name) else {
            return format!("no file declares `{name}`");
        };
        if self.start_is_coming(child) || child.run.is_some() {
            return self.why_not_yet(name, child, condition);
        }
        let client = "supervisor-rs-client";
        let failure = child.failure.as_deref();
        let exit = child.last.as_ref().and_then(|last| last.exit);
        if child.job.is_some() {
            return format!("`{name}` is being stopped");
        }
        if child.is_in_doubt() {
            return format!("whether `{name}` lives is not known");
        }
        match child.entry.as_ref().map(|entry| &entry.content) {
            None => return format!("no file declares `{name}`"),
            Some(Content::Conflict) => return format!("several files declare `{name}`"),
            Some(Content::Bad(_)) => {
                let hint = format!("hint: `{client} check {name}` shows what is wrong with it");
                return format!("the file of `{name}` is bad\n{hint}");
            }
            Some(Content::Good(_)) => {}
        }
        if child.hold.is_some() {
            let hint = format!("hint: `{client} start {name}` releases it");
            return format!("`{name}` is held by an operator's `stop`\n{hint}");
        }
        let again = match child.retry {
            Some(_) => ", and is to be restarted",
            None => "",
        };
        match (failure, exit) {
            (Some(failure), _) => format!("`{name}` failed{again}: {failure}"),
            (None, Some(exit)) => format!("`{name}` has ended{again}: {exit}"),
            (None, None) => format!("`{name}` does not run"),
        }
    }

    fn why_not_yet(&self, name: &ChildName, child: &Child, condition: Condition) -> String {
        let stopping = child.is_stopping() || child.job.is_some();
        match (&child.failure, condition) {
            (Some(failure), _) if child.is_stopping() => format!("`{name}` failed: {failure}"),
            (Some(_) | None, _) if stopping && !self.start_is_coming(child) => {
                format!("`{name}` is being stopped")
            }
            (Some(_) | None, Condition::Started) => format!("`{name}` has not started yet"),
            (Some(_) | None, Condition::Ready) => format!("`{name}` is not ready yet"),
            (Some(_) | None, Condition::Completed) => format!("`{name}` has not completed yet"),
        }
    }

    // Stops.

    /// Looks whether those have ended that are to end before a child is stopped.
    fn look_at_dependents(&mut self, turn: &mut Turn, id: JobId) -> bool {
        let Some(job) = self.jobs.get(&id) else {
            return false;
        };
        let lives = |(name, id): (&ChildName, &RunId)| {
            let run = self.children.get(name).and_then(|child| child.run.as_ref());
            run.filter(|run| run.id == *id)
                .is_some_and(|run| match run.phase {
                    Phase::Spawning | Phase::Running => true,
                    Phase::Stopping { rung, .. } => match rung {
                        Rung::Step(_) | Rung::Kill => true,
                        Rung::Stuck => false,
                    },
                })
        };
        if job.after.iter().any(lives) && !planted(Bug::StopsOutOfOrder) {
            return false;
        }
        self.begin_stop(turn, id);
        true
    }

    /// Begins a stop that has waited for others to end.
    pub(super) fn begin_stop(&mut self, turn: &mut Turn, id: JobId) {
        if let Some((name, by)) = self.end_putting_off(id) {
            self.begin_ladder(turn, &name, &by, Then::Rest);
        }
    }

    /// A stop that was put off is so no longer; gives whose it is and who ordered it.
    fn end_putting_off(&mut self, id: JobId) -> Option<(ChildName, Origin)> {
        let job = self.jobs.get_mut(&id)?;
        if job.step != Step::Dependents {
            return None;
        }
        job.step = Step::Stopping;
        self.patient.remove(&id);
        Some((job.child.clone(), job.by.clone()))
    }

    /// Kills who waits for his turn to be stopped: no more time is spent on anybody.
    pub(super) fn kill_put_off(&mut self, turn: &mut Turn, id: JobId) {
        let Some((name, by)) = self.end_putting_off(id) else {
            return;
        };
        let run = self.children.get_mut(&name);
        let Some(run) = run.and_then(|child| child.run.as_mut()) else {
            return;
        };
        // Of one that is being made it is not known yet whom to kill.
        if run.phase == Phase::Running {
            run.stop_asker.clone_from(&by.asker);
            self.look_away(turn, &name);
            self.note_stopping(turn, &name, &by, Then::Rest);
            self.kill(turn, &name, by.cause);
            turn.log(Level::Info, &name, "stopping").cause = Some(by.cause);
        }
    }

    /// The live children of a batch that are to end before this one.
    pub(super) fn to_end_before(
        &self,
        name: &ChildName,
        batch: &BTreeSet<ChildName>,
    ) -> BTreeMap<ChildName, RunId> {
        self.dependents(name, &|other, _| batch.contains(other))
    }

    /// Puts a stop off until others have ended.
    pub(super) fn put_off(&mut self, turn: &mut Turn, name: &ChildName, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        job.step = Step::Dependents;
        let others: Vec<String> = job.after.keys().map(|it| format!("`{it}`")).collect();
        self.patient.insert(id);
        let line = turn.log(
            Level::Info,
            name,
            "is stopped after those that depend on it",
        );
        line.detail = Some(others.join(", "));
    }
}
