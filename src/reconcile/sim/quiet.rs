//! Liveness: when the world goes quiet, the core comes to rest, and what runs is what should run.

use std::{collections::BTreeSet, time::Duration};

use super::world::{Weather, World};
use crate::{
    reconcile::{
        child::Belief,
        job::{Step, Waiter},
        listing::{Content, Scope},
        suspects::Suspicion,
        timers::Timer,
    },
    spec::{ChildName, Hook, Mode, Verb},
};

/// How many things may happen until the core has come to rest.
const STEPS_TO_REST_MAX: usize = 30_000;
/// How long that may take.
const SPAN_TO_REST_MAX: Duration = Duration::from_secs(5_000);

impl World {
    /// Lets nothing new happen, and waits for the core to come to rest.
    pub(super) fn go_quiet(&mut self) {
        self.weather = Weather::Calm;
        self.come_up();
        for dir in self.files.dirs.values_mut() {
            dir.state = super::files::DirState::Ready;
        }
        self.look_at_all(Scope::Whole);
        self.run_for(Duration::from_secs(100));
        self.look_at_all(Scope::Confirming);
        self.run_for(Duration::from_secs(65));
        self.look_at_all(Scope::Confirming);
        self.run_for(Duration::from_secs(5));
        let until = self.now.mono + SPAN_TO_REST_MAX;
        for _ in 0..STEPS_TO_REST_MAX {
            if self.checks.fault.is_some() || self.is_at_rest() {
                break;
            }
            if self.next_at().is_none_or(|at| at > until) {
                break;
            }
            self.advance();
            self.come_up();
        }
        if self.checks.fault.is_some() {
            return;
        }
        if !self.is_at_rest() {
            self.blame(|world| {
                format!("I8: the core does not come to rest: {:#?}", world.core.jobs)
            });
        }
        if self.checks.is_awaited() {
            self.blame(|world| format!("I5: nobody answered {:?}", world.checks.open));
        }
        let core = &self.core;
        self.checks
            .taken
            .retain(|_, taken| !core.due.contains(taken.child()));
        if !self.checks.taken.is_empty() {
            self.blame(|world| {
                format!(
                    "these were taken, and are not done: {:?}",
                    world.checks.taken
                )
            });
        }
        self.check_history();
        self.check_timers();
        let names: Vec<ChildName> = self.core.children.keys().cloned().collect();
        for name in names {
            self.check_rest(&name);
        }
    }

    /// Starts the server again when its end was ordered.
    pub(super) fn come_up(&mut self) {
        while self.ended {
            self.start_again();
        }
    }

    fn run_for(&mut self, span: Duration) {
        let until = self.now.mono + span;
        for _ in 0..STEPS_TO_REST_MAX {
            if self.checks.fault.is_some() || self.next_at().is_none_or(|at| at > until) {
                break;
            }
            self.advance();
            self.come_up();
        }
        if until > self.now.mono {
            self.pass(until - self.now.mono);
        }
    }

    fn is_at_rest(&self) -> bool {
        let by_repeat = |job: &crate::reconcile::job::Job| {
            job.waiters
                .iter()
                .any(|waiter| matches!(waiter, Waiter::Repeat(_)))
        };
        let busy = self.core.jobs.values().any(|job| !by_repeat(job));
        let stopping = self
            .core
            .children
            .values()
            .any(crate::reconcile::child::Child::is_stopping);
        !busy && !stopping && !self.checks.is_awaited() && self.core.jobs.is_empty()
    }

    /// I9: each deadline has a reason.
    fn check_timers(&mut self) {
        let mut wrong = None;
        for timer in self.core.timers.armed() {
            let reason = match timer {
                Timer::Ladder(name) => self
                    .core
                    .children
                    .get(name)
                    .is_some_and(crate::reconcile::child::Child::is_stopping),
                Timer::Retry(name) => self
                    .core
                    .children
                    .get(name)
                    .is_some_and(|child| child.retry.is_some()),
                Timer::Repeat(name) => self
                    .core
                    .children
                    .get(name)
                    .is_some_and(|child| child.armed.is_some()),
                Timer::Ready(name) => {
                    let child = self.core.children.get(name);
                    let run = child.and_then(|child| child.run.as_ref());
                    run.is_some_and(crate::reconcile::child::Run::is_starting)
                }
                Timer::Probe(name) => {
                    let child = self.core.children.get(name);
                    let run = child.and_then(|child| child.run.as_ref());
                    run.is_some_and(|run| run.is_starting() || run.spec.health.is_some())
                }
                Timer::Dependencies(name) => {
                    let job = self.core.children.get(name).and_then(|child| child.job);
                    let job = job.and_then(|id| self.core.jobs.get(&id));
                    job.is_some_and(|job| job.step == Step::Depends)
                }
                Timer::Wait(id) => self.core.waits.contains_key(id),
                Timer::Quiet(home) => self.core.restless.contains_key(home),
                Timer::Confirm => self.core.children.values().any(|child| {
                    child
                        .gone
                        .as_ref()
                        .is_some_and(|gone| gone.belief == Belief::Doubted)
                }),
            };
            if !reason {
                wrong = Some(format!("I9: {timer:?} is armed for nothing"));
            }
        }
        if let Some(wrong) = wrong {
            self.blame(|_| wrong);
        }
    }

    /// What is desired of one child is what is.
    fn check_rest(&mut self, name: &ChildName) {
        let child = &self.core.children[name];
        let on_disk = self.memory.children.get(name).and_then(|it| it.held);
        if child.hold.is_some() && child.run.is_some() {
            return self.blame(|_| format!("I8: {name} is held and runs"));
        }
        if child.hold.is_some() != on_disk.is_some() && self.kind_disk() {
            return self.blame(|_| format!("I3: {name} is held {:?}, on disk {on_disk:?}", "?"));
        }
        let doubted = child.suspicion.clone();
        if let Suspicion::MayBe { program } = doubted
            && !self.hides(&program)
        {
            return self.blame(|_| format!("{name} is in doubt for the sake of nobody"));
        }
        if self.settings.mode == Mode::Sync {
            self.check_sync(name);
        }
        if matches!(self.settings.mode, Mode::Full | Mode::Half) {
            self.check_started(name);
        }
    }

    /// Whether no record has failed so far: then memory and disk agree.
    fn kind_disk(&self) -> bool {
        self.disk_failures == 0
    }

    fn listed(&self, name: &ChildName) -> Option<crate::spec::Digest> {
        match self.checks.view.get(name).map(|entry| &entry.content) {
            Some(Content::Good(spec)) => Some(spec.digest),
            Some(Content::Bad(_) | Content::Conflict) | None => None,
        }
    }

    fn check_sync(&mut self, name: &ChildName) {
        let child = &self.core.children[name];
        let excused = self.checks.excused.contains(name) || self.has_order_hook(name);
        match (&child.run, self.listed(name)) {
            (Some(run), Some(digest)) if run.spec.digest != digest && !excused => {
                self.blame(|_| format!("{name} runs what its file does not say"));
            }
            (Some(_), None) => {
                let Some(absent) = self.checks.absent.get(name) else {
                    return;
                };
                let configured = self.settings.loadpaths.contains(&absent.home);
                if !configured || self.checks.is_believable(&absent.home) {
                    self.blame(|_| format!("{name} outlives its file"));
                }
            }
            (None, Some(digest)) => {
                let last = child.last.as_ref().map(|last| last.spec.digest);
                if last != Some(digest)
                    && child.hold.is_none()
                    && !child.is_in_doubt()
                    && !excused
                    && !self.checks.stopped.contains(name)
                    && !self.checks.stop_targets.contains(name)
                {
                    self.blame(|_| format!("{name} should run and does not"));
                }
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
    }

    /// In `full` and `half`: what is new and never ran was started.
    fn check_started(&mut self, name: &ChildName) {
        let child = &self.core.children[name];
        let wanted = match self.settings.mode {
            Mode::Full => true,
            Mode::Half => self.settings.startup.contains(name),
            Mode::Sync | Mode::Quiet => false,
        };
        let never = child.run.is_none() && child.last.is_none();
        let excused = self.checks.excused.contains(name)
            || self.has_order_hook(name)
            || self.checks.ever_stopped.contains(name)
            || self.checks.stop_targets.contains(name)
            || child.is_in_doubt()
            || child.hold.is_some();
        if wanted && never && self.listed(name).is_some() && !excused {
            self.blame(|_| format!("{name} should have been started and was not"));
        }
    }

    /// Whether its start depends on another child: then that may be in the way.
    fn has_order_hook(&self, name: &ChildName) -> bool {
        match self.checks.view.get(name).map(|entry| &entry.content) {
            Some(Content::Good(spec)) => {
                let child = self.core.children.get(name);
                let waits = child.is_some_and(|it| it.due.is_some() || !it.blocked.is_empty());
                let depends = waits && !spec.depends_on.is_empty();
                depends || matches!(spec.prehook, Some(Hook::Command { .. }))
            }
            Some(Content::Bad(_) | Content::Conflict) | None => false,
        }
    }

    /// Notes whom hooks and repeats stop: that is as good a reason to be down as any.
    pub(super) fn note_hook_stops(&mut self) {
        let stopped: BTreeSet<ChildName> = self
            .core
            .jobs
            .values()
            .filter(|job| job.verb == Verb::Stop)
            .map(|job| job.child.clone())
            .collect();
        self.checks.ever_stopped.extend(stopped.iter().cloned());
        self.checks.stopped.extend(stopped);
    }
}
