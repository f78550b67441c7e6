//! Whether a run can do its work: probes until it is ready, or its own word; then for its health.
//!
//! - A run whose spec says when it is ready is `starting` until a probe succeeds, or it says so. When its time is
//!   up first it has failed: it is stopped, and its restart policy decides what follows.
//! - Then its health is looked at. When so many probes in a row have failed it is replaced, as by
//!   `restart`; what it cannot be replaced by leaves it as it is.
//! - One probe of a child is under way at most, and what an older one says changes nothing (I4). A
//!   run that is being stopped is not looked at.
//! - What was ready stays so for the servers that follow; all clocks begin anew with them.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    State, Turn,
    cause::Cause,
    child::{Child, Phase, Run},
    effect::{Effect, Level},
    event::JobId,
    job::{Job, Posthooks, Step},
    planted::{Bug, planted},
    record::Record,
    runs::Then,
    timers::Timer,
};
use crate::spec::{ChildName, Health, Mono, Probe, Pulse, Ready, Sign, Spec, Time, Verb};

/// How long a run that is not ready in time stays while an order for its child is under way, before
/// it is looked at again.
const BUSY_WAIT: Duration = Duration::from_secs(1);

/// How long a probe may take that is to show whether a run is ready.
pub const READY_PROBE_TIME_MAX: Duration = Duration::from_secs(5);

/// What probes have shown of a live run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Probed {
    /// Whether it has yet to become ready, and when its time is up.
    pub(super) awaited: Option<Mono>,
    /// The probe under way.
    pub(super) probe: Option<JobId>,
    /// How many in a row have failed.
    pub(super) failures: u32,
    /// What the last one said that failed.
    pub(super) why: Option<String>,
    /// It may have said that it is ready when no server heard it: no time is up for it.
    #[serde(default)]
    pub(super) unheard: bool,
    /// The time that it has asked for last, when it had not enough.
    #[serde(default)]
    pub(super) asked_for: Option<Duration>,
}

impl Probed {
    /// As at the start of a run, or of a server that takes one back that is not ready.
    fn from_now(ready: Option<&Ready>, now: Time) -> Self {
        Self {
            awaited: ready.map(|ready| now.mono + ready.timeout),
            ..Self::default()
        }
    }
}

impl Probed {
    /// As a server finds it that takes a run back.
    pub(super) fn unless(ready: bool, spec: &Spec) -> Self {
        Self {
            // From when on, is settled when it is looked at.
            awaited: spec.ready.as_ref().filter(|_| !ready).map(|_| Mono(0)),
            ..Self::default()
        }
    }
}

impl Run {
    /// Whether its process lives and it cannot do its work yet.
    pub(super) fn is_starting(&self) -> bool {
        self.phase == Phase::Running && self.probed.awaited.is_some()
    }
}

/// What is tried of a run now, how long that may take, and how long after it the next follows.
fn due(spec: &Spec, probed: &Probed) -> Option<(Probe, Duration, Duration)> {
    match (probed.awaited, &spec.ready, &spec.health) {
        (Some(_), Some(ready), _) => {
            let Ready {
                sign,
                timeout,
                interval,
            } = ready;
            let time = READY_PROBE_TIME_MAX.min(*timeout);
            match sign {
                Sign::Probe(probe) => Some((probe.clone(), time, *interval)),
                Sign::Notify | Sign::Fd(_) | Sign::Log(_) => None,
            }
        }
        (None, _, Some(health)) => {
            let Health {
                pulse,
                interval,
                timeout,
                ..
            } = health;
            match pulse {
                Pulse::Probe(probe) => Some((probe.clone(), *timeout, *interval)),
                Pulse::Watchdog => None,
            }
        }
        (Some(_), None, _) | (None, _, None) => None,
    }
}

impl State {
    /// Begins to look at a run that has begun.
    pub(super) fn look_for_ready(&mut self, turn: &mut Turn, name: &ChildName) {
        let Some(run) = self.live_run(name) else {
            return;
        };
        run.probed = Probed::from_now(run.spec.ready.as_ref(), turn.now);
        match run.probed.awaited {
            Some(until) => {
                self.timers.set(Timer::Ready(name.clone()), until);
                self.probe(turn, name);
            }
            None => self.look_at_health(turn, name),
        }
    }

    /// Goes on looking at a run that is ready.
    pub(super) fn look_at_health(&mut self, turn: &mut Turn, name: &ChildName) {
        let run = self.live_run(name);
        if let Some(interval) = run.and_then(|run| run.health_interval()) {
            let at = turn.now.mono + interval;
            self.timers.set(Timer::Probe(name.clone()), at);
        }
    }

    /// Looks at a run no longer: it ends.
    pub(super) fn look_away(&mut self, turn: &mut Turn, name: &ChildName) {
        self.timers.cancel(&Timer::Ready(name.clone()));
        self.timers.cancel(&Timer::Probe(name.clone()));
        let child = self.children.get_mut(name);
        let run = child.and_then(|child| child.run.as_mut());
        if let Some(job) = run.and_then(|run| run.probed.probe.take()) {
            turn.emit(Effect::EndProbe { job });
        }
    }

    /// Tries what is due.
    pub(super) fn probe(&mut self, turn: &mut Turn, name: &ChildName) {
        let job = JobId(self.number());
        let Some(run) = self.live_run(name) else {
            return;
        };
        let under_way = run.probed.probe.is_some() && !planted(Bug::ProbesPileUp);
        if run.watchdog().is_some() {
            return self.on_silence(turn, name);
        }
        let Some((probe, time, interval)) = due(&run.spec, &run.probed).filter(|_| !under_way)
        else {
            return;
        };
        run.probed.probe = Some(job);
        turn.emit(Effect::Probe {
            job,
            child: name.clone(),
            run: run.id,
            probe,
            time,
            spec: Arc::clone(&run.spec),
        });
        if planted(Bug::ProbesPileUp) {
            let at = turn.now.mono + interval;
            self.timers.set(Timer::Probe(name.clone()), at);
        }
    }

    pub(super) fn on_probed(&mut self, turn: &mut Turn, job: JobId, result: Result<(), String>) {
        let asked = |child: &Child| {
            let run = child.run.as_ref();
            run.is_some_and(|run| run.probed.probe == Some(job))
        };
        let found = self.children.iter().find(|(_, child)| asked(child));
        let Some(name) = found.map(|(name, _)| name.clone()) else {
            self.stopper_ended(turn, job, result);
            return;
        };
        let Some(run) = self.live_run(&name) else {
            return;
        };
        run.probed.probe = None;
        let Some((_, _, interval)) = due(&run.spec, &run.probed) else {
            return;
        };
        let again = turn.now.mono + interval;
        self.timers.set(Timer::Probe(name.clone()), again);
        match (run_is_starting(self, &name), result) {
            (true, Ok(())) => self.is_ready(turn, &name),
            (true, Err(why)) => self.note_failure(&name, why),
            (false, Ok(())) => self.is_healthy(turn, &name),
            (false, Err(why)) => self.is_ailing(turn, &name, why),
        }
    }

    /// A run can do its work now.
    pub(super) fn is_ready(&mut self, turn: &mut Turn, name: &ChildName) {
        self.timers.cancel(&Timer::Ready(name.clone()));
        self.timers.cancel(&Timer::Probe(name.clone()));
        let Some(run) = self.live_run(name) else {
            return;
        };
        run.probed = Probed::default();
        let (id, began) = (run.id, run.started.mono);
        if !planted(Bug::ReadinessForgotten) {
            turn.record(Record::Ready {
                child: name.clone(),
                run: id,
            });
        }
        let took = u64::try_from((turn.now.mono - began).as_millis()).unwrap_or(u64::MAX);
        let line = turn.log(Level::Info, name, "ready");
        line.run = Some(id);
        let took = humantime::format_duration(Duration::from_millis(took));
        line.detail = Some(format!("after {took}"));
        self.look_at_health(turn, name);
        self.unblock(turn, name);
    }

    fn note_failure(&mut self, name: &ChildName, why: String) {
        if let Some(run) = self.live_run(name) {
            run.probed.failures = run.probed.failures.saturating_add(1);
            run.probed.why = Some(why);
        }
    }

    pub(super) fn is_healthy(&mut self, turn: &mut Turn, name: &ChildName) {
        let Some(run) = self.live_run(name) else {
            return;
        };
        let id = run.id;
        let before = std::mem::take(&mut run.probed);
        if before.failures > 0 {
            turn.log(Level::Info, name, "healthy again").run = Some(id);
        }
    }

    /// A probe of its health has failed.
    pub(super) fn is_ailing(&mut self, turn: &mut Turn, name: &ChildName, why: String) {
        self.note_failure(name, why.clone());
        let Some(run) = self.live_run(name) else {
            return;
        };
        let most = run.spec.health.as_ref().map_or(1, |health| health.failures);
        let (id, failures) = (run.id, run.probed.failures);
        // Not each of them: there may be many.
        if failures == 1 || failures == most {
            let line = turn.log(Level::Warn, name, "a probe of its health failed");
            line.run = Some(id);
            line.detail = Some(format!("{failures} of {most}: {why}"));
        }
        if failures < most && !planted(Bug::HealthImpatient) {
            return;
        }
        if self.job_of(name).is_some() {
            // Somebody is about to replace or to stop it; if he does not, the next one tells.
            return;
        }
        if let Some(run) = self.live_run(name) {
            // What it cannot be replaced by is tried again after as many failures.
            run.probed.failures = 0;
        }
        self.order(turn, name, Verb::Restart, Cause::Unhealthy.into(), None);
    }

    /// The time is up in which a run had to become ready: it has failed.
    pub(super) fn on_ready_late(&mut self, turn: &mut Turn, name: &ChildName) {
        let busy = self.job_of(name).is_some();
        let Some(run) = self.live_run(name).filter(|run| run.is_starting()) else {
            return;
        };
        if busy {
            // The order that is under way most likely replaces or stops it.
            let at = turn.now.mono + BUSY_WAIT;
            self.timers.set(Timer::Ready(name.clone()), at);
            return;
        }
        let id = run.id;
        let why = not_ready(run);
        let line = turn.log(Level::Error, name, "not ready in time");
        line.run = Some(id);
        line.detail = Some(why.clone());
        let by = Cause::NotReady.into();
        let mut job = Job::new(name.clone(), Verb::Stop, by, None);
        job.step = Step::Stopping;
        job.posthooks = Posthooks::None;
        let by = job.by.clone();
        let number = JobId(self.number());
        self.jobs.insert(number, job);
        if let Some(child) = self.children.get_mut(name) {
            child.job = Some(number);
            child.failure = Some(why);
        }
        self.begin_ladder(turn, name, &by, Then::Rest);
    }

    /// The live run of a child that nobody has told to end.
    pub(super) fn live_run(&mut self, name: &ChildName) -> Option<&mut Run> {
        let run = self.children.get_mut(name)?.run.as_mut()?;
        (run.phase == Phase::Running).then_some(run)
    }
}

fn run_is_starting(state: &State, name: &ChildName) -> bool {
    let run = state
        .children
        .get(name)
        .and_then(|child| child.run.as_ref());
    run.is_some_and(Run::is_starting)
}

/// Why a run has failed that was not ready in time.
fn not_ready(run: &Run) -> String {
    let Some(Ready { sign, timeout, .. }) = &run.spec.ready else {
        return "not ready".to_owned();
    };
    let time = match run.probed.asked_for {
        Some(time) => format!("the {} that it asked for", humantime::format_duration(time)),
        None => humantime::format_duration(*timeout).to_string(),
    };
    match (sign, &run.probed.why) {
        (Sign::Probe(probe), Some(why)) => format!("not ready within {time}: {probe}: {why}"),
        (Sign::Probe(_), None) => format!("not ready within {time}"),
        (Sign::Notify, _) => format!("not ready within {time}: it has not said {sign}"),
        (Sign::Fd(_) | Sign::Log(_), _) => format!("not ready within {time}: not seen: {sign}"),
    }
}
