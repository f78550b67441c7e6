//! Probes in the fake world: what runs do when they are looked at, and what follows from it.

use std::time::Duration;

use super::world::{Occurrence, RunKey, Weather, World};
use crate::{
    reconcile::{cause::Cause, event::JobId},
    spec::{Mono, Probe, Sign},
};

/// What a process shows when it is looked at.
#[derive(Debug, Clone, Default)]
pub(super) struct Showing {
    /// It never gets well, as far as the weather lets it.
    pub(super) ill: bool,
    /// Since when this server has looked at it.
    pub(super) since: Mono,
    /// Whether a probe has succeeded, and all that the core did about it was done.
    pub(super) ready: bool,
    /// Whether the core was told just now that one has.
    pub(super) told_ready: bool,
    /// How many in a row have failed.
    pub(super) failures: u32,
    /// It may have said that it is ready when no server heard it.
    pub(super) unheard: bool,
    /// Until when it has asked for time to become ready.
    pub(super) asked_until: Option<Mono>,
    /// What has shown it ready stays where it is written.
    pub(super) lasts: bool,
    /// Within which time it is to say so, if it has chosen one.
    pub(super) pace: Option<Duration>,
    /// When it has said last that it does its work, or may begin to.
    pub(super) alive_at: Option<Mono>,
    /// Whether there were so many once that it is replaced, whatever it shows until then.
    pub(super) given_up: bool,
}

impl World {
    /// Performs a probe.
    pub(super) fn begin_probe(&mut self, job: JobId, key: RunKey, probe: &Probe, time: Duration) {
        if self.probes.values().any(|(child, _)| *child == key.0) {
            self.blame(|_| format!("two probes of {} at once", key.0));
        }
        if is_stop(probe) {
            self.check_stopper(job, &key);
        }
        let rough = self.weather == Weather::Rough;
        let ill = self.processes.get(&key).is_some_and(|it| it.showing.ill);
        let fails = rough && (self.random.percent(20) || ill);
        let late = fails && self.random.percent(30);
        let result = match fails {
            true => Err("connection refused".to_owned()),
            false => Ok(()),
        };
        let span = match late {
            true => time,
            false => self.random.delay().min(time),
        };
        self.probes.insert(job, key);
        self.plan_in(span, Occurrence::Probed(job, result));
    }

    /// A probe is answered, if somebody waits for it.
    pub(super) fn probe_ends(&mut self, job: JobId, result: Result<(), String>) {
        let Some(key) = self.probes.remove(&job) else {
            return;
        };
        let run = self
            .core
            .children
            .get(&key.0)
            .and_then(|it| it.run.as_ref());
        let stops = run.is_some_and(|run| run.stopper == Some(job));
        if stops && result.is_err() {
            self.checks.stoppers_failed.insert(key.clone());
        }
        if let Some(process) = self.processes.get_mut(&key).filter(|_| !stops) {
            let showing = &mut process.showing;
            match result {
                Ok(()) => {
                    showing.failures = 0;
                    showing.told_ready = true;
                }
                Err(_) => {
                    showing.failures += 1;
                    let health = process.spec.health.as_ref();
                    let most = health.map_or(u32::MAX, |health| health.failures);
                    showing.given_up |= showing.failures >= most;
                }
            }
        }
        self.tell(crate::reconcile::event::Event::Probed { job, result });
    }

    /// A program is to have a run end.
    fn check_stopper(&mut self, job: JobId, key: &RunKey) {
        let current = self.core.children.get(&key.0);
        let current = current.and_then(|it| it.run.as_ref());
        if current.is_none_or(|run| run.id != key.1 || run.stopper != Some(job)) {
            self.blame(|_| format!("a program is to end {}, which is not stopped", key.0));
        }
        let now = self.now.mono;
        if let Some(process) = self.processes.get_mut(key) {
            process.stop_at.get_or_insert(now);
        }
    }

    /// Another server looks now.
    pub(super) fn look_anew(&mut self) {
        self.probes.clear();
        let now = self.now.mono;
        for ((child, run), process) in &mut self.processes {
            // The last word of a server may be that it was ready.
            let last = self.memory.children.get(child);
            let last = last.and_then(|child| child.last.as_ref());
            let written = last.is_some_and(|last| last.run == *run && last.ready);
            process.showing.ready |= written;
            process.showing.failures = 0;
            process.showing.told_ready = false;
            process.showing.since = now;
            process.showing.asked_until = None;
            process.showing.alive_at = None;
            process.showing.pace = None;
            let ready = process.spec.ready.as_ref();
            let says = ready.is_some_and(|ready| ready.sign == Sign::Notify);
            process.showing.unheard = says && !process.showing.ready;
        }
    }

    /// Whether a run may be ended for this reason by now.
    pub(super) fn check_probed(&mut self, key: &RunKey, cause: Cause) {
        let Some(process) = self.processes.get(key) else {
            return;
        };
        let showing = &process.showing;
        let (ready, health) = (&process.spec.ready, &process.spec.health);
        let wrong = if cause == Cause::Unhealthy {
            let silent = self.is_silent(key);
            let counts = health.is_some() && (showing.given_up || silent);
            (!counts).then_some("ill after too few failures")
        } else {
            let time = ready.as_ref().map_or(Duration::MAX, |ready| ready.timeout);
            let early = !self.is_late(key, time);
            (showing.ready || early).then_some("late before its time is up")
        };
        if let Some(wrong) = wrong {
            self.blame(|_| format!("{} is taken for {wrong}", key.0));
        }
    }

    /// What the core makes of runs is what they have shown.
    pub(super) fn check_readiness(&mut self) {
        let mut wrong = None;
        for (key, process) in &mut self.processes {
            let showing = &mut process.showing;
            let child = self.core.children.get(&key.0);
            let run = child.and_then(|child| child.run.as_ref());
            let Some(run) = run.filter(|run| run.id == key.1 && run.pid.is_some()) else {
                continue;
            };
            showing.ready |= showing.told_ready;
            let lives = run.phase == crate::reconcile::child::Phase::Running;
            let awaited = process.spec.ready.is_some() && run.spec.ready.is_some();
            if awaited && lives && run.is_starting() == showing.ready {
                wrong = Some(format!(
                    "{} run {} has shown itself ready: {}, and is taken for the contrary",
                    key.0, key.1, showing.ready
                ));
            }
        }
        if let Some(wrong) = wrong {
            self.blame(|_| wrong);
        }
    }
}

/// Whether it is the command of a stop.
fn is_stop(probe: &Probe) -> bool {
    match probe {
        Probe::Exec(argv) => argv.first().is_some_and(|word| word == "stop"),
        Probe::Tcp(_) | Probe::Http { .. } => false,
    }
}
