//! The life of a run: begun, ended, and the ladder of its stop.

use std::{sync::Arc, time::Duration};

use super::{
    KILL_WAIT, State, Turn,
    backoff::{Attempt, Streak, Verdict},
    cause::{Cause, Origin},
    child::{Child, Last, Phase, Run, Rung},
    effect::{Effect, Leftovers, Level, Remains, Signal},
    event::{JobId, SpawnFailure},
    job::{EndedRun, Job},
    planted::{Bug, planted},
    probes::Probed,
    record::{OrderId, Record},
    timers::Timer,
    words::Said,
};
use crate::{
    command::{ErrorCode, Failure},
    spec::{
        ChildName, Circumstances, Exit, Probe, RestartWhen, RunId, Spec, StopAct, StopPolicy,
        StopStep, Verb,
    },
};

/// What follows the end of a run that is told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// Nothing.
    Rest,
    /// The next run: a server that dies between the halves must not leave the child down.
    Replaced,
}

impl State {
    /// Begins the child's next run. The caller has seen to it that none lives (I1).
    pub(super) fn spawn(
        &mut self,
        turn: &mut Turn,
        name: &ChildName,
        spec: &Arc<Spec>,
        by: Origin,
        order: Option<OrderId>,
    ) {
        let Some(child) = self.children.get_mut(name) else {
            return;
        };
        assert!(child.run.is_none(), "I1: `{name}` has a live run already");
        child.latest = child.highest() + 1;
        let id = RunId(child.latest);
        let clear = child
            .last
            .as_ref()
            .filter(|last| last.pid.is_some())
            .map(|last| Remains {
                run: last.id,
                scope: last.spec.stop.scope,
            });
        child.run = Some(Run {
            id,
            spec: Arc::clone(spec),
            found: false,
            pid: None,
            started: turn.now,
            begun_by: Some(by.clone()),
            phase: Phase::Spawning,
            stop_asker: None,
            stopper: None,
            probed: Probed::default(),
            said: Said::default(),
        });
        child.retry = None;
        child.blocked.clear();
        self.forget_due(turn, name, order);
        self.timers.cancel(&Timer::Retry(name.clone()));
        let spec = Arc::clone(spec);
        turn.emit(Effect::Spawn {
            child: name.clone(),
            run: id,
            spec,
            clear,
            by,
            order,
        });
    }

    pub(super) fn on_spawned(&mut self, turn: &mut Turn, name: &ChildName, id: RunId, pid: i32) {
        let Some(child) = self.children.get_mut(name) else {
            return;
        };
        let Some(run) = child
            .run
            .as_mut()
            .filter(|run| run.id == id && run.pid.is_none())
        else {
            return;
        };
        run.pid = Some(pid);
        run.started = turn.now;
        let job = child.job.and_then(|id| self.jobs.get(&id));
        let cause = job.map(|job| job.by.cause);
        // A stop may have overtaken the start meanwhile.
        let starts = job.is_some_and(Job::starts);
        if run.phase == Phase::Spawning {
            run.phase = Phase::Running;
        }
        child.fresh = planted(Bug::FreshKept);
        child.doubt = false;
        child.tried = None;
        child.failure = None;
        child.note = None;
        if matches!(cause, Some(Cause::Policy | Cause::Unhealthy)) {
            child.streak.restarted();
        } else {
            child.streak = Streak::default();
        }
        let repeat = run.spec.repeat;
        let line = turn.log(Level::Info, name, "started");
        line.run = Some(id);
        line.cause = cause;
        line.detail = Some(format!("pid {pid}"));
        self.clear(turn, name);
        self.note_end(name, None);
        if starts {
            self.arm(turn, name, id, repeat);
        }
        self.look_for_ready(turn, name);
        self.unblock(turn, name);
        self.job_saw_spawn(turn, name, id, pid);
    }

    pub(super) fn on_spawn_failed(
        &mut self,
        turn: &mut Turn,
        name: &ChildName,
        id: RunId,
        why: SpawnFailure,
    ) {
        let Some(child) = self.children.get_mut(name) else {
            return;
        };
        let Some(run) = child.run.take_if(|run| run.id == id && run.pid.is_none()) else {
            return;
        };
        let (code, why) = match why {
            SpawnFailure::NotRecorded(why) => (ErrorCode::Internal, why),
            SpawnFailure::Refused(why) => (ErrorCode::SpawnFailed, why),
        };
        child.tried = Some(run.spec.digest);
        child.failure = Some(why.clone());
        child.last = Some(Last {
            id,
            spec: run.spec,
            started: None,
            exit: None,
            at: turn.now,
            by: None,
            pid: None,
        });
        let line = turn.log(Level::Error, name, "could not be started");
        line.run = Some(id);
        line.detail = Some(why.clone());
        self.timers.cancel(&Timer::Ladder(name.clone()));
        self.job_saw_no_spawn(turn, name, Failure::new(code, why));
    }

    pub(super) fn on_exited(
        &mut self,
        turn: &mut Turn,
        name: &ChildName,
        id: RunId,
        (exit, circumstances): (Exit, Circumstances),
    ) {
        self.look_away_from(turn, name, id);
        let Some(child) = self.children.get_mut(name) else {
            return;
        };
        let mine = |run: &mut Run| run.id == id || planted(Bug::RunIdUnchecked);
        let Some(run) = child.run.take_if(mine) else {
            return;
        };
        let job = child.job.and_then(|id| self.jobs.get(&id));
        let by = ordered_by(&run, job);
        // An order that waits for this very run to begin is told that it did not live.
        let awaited = run.phase == Phase::Spawning;
        let scope = run.spec.stop.scope;
        self.timers.cancel(&Timer::Ladder(name.clone()));
        let reap = |leftovers| Effect::Reap {
            child: name.clone(),
            run: id,
            leftovers,
        };
        if planted(Bug::ReapBeforeRecord) {
            turn.emit(reap(Leftovers::Kill(scope)));
        }
        turn.record(Record::Ended {
            child: name.clone(),
            run: id,
            exit,
            circumstances,
            at: turn.now,
            by: by.as_ref().map(|by| by.cause),
            asker: by.as_ref().and_then(|by| by.asker.clone()),
            restarts: child.streak.restarts,
        });
        let kill = by.as_ref().map(|_| Leftovers::Kill(scope));
        turn.emit(reap(kill.unwrap_or(Leftovers::Leave)));
        let line = turn.log(Level::Info, name, "ended");
        line.run = Some(id);
        line.exit = Some(exit);
        line.detail = circumstances.words().map(str::to_owned);
        line.cause = by.as_ref().map(|by| by.cause);
        let ended = EndedRun {
            id,
            pid: run.pid,
            exit,
            at: turn.now,
        };
        let lived = turn.now.mono - run.started.mono;
        let attempt = Attempt::ended(by.as_ref().map(|by| by.cause), exit, lived);
        child.last = Some(Last {
            id,
            spec: Arc::clone(&run.spec),
            started: Some(run.started),
            exit: Some(exit),
            at: turn.now,
            by,
            pid: run.pid,
        });
        self.note_end(name, attempt.map(|_| exit));
        if let Some(attempt) = attempt.filter(|_| !awaited) {
            self.after_attempt(turn, name, &run.spec, attempt);
        }
        turn.unsettle(name);
        self.job_saw_end(turn, name, ended);
    }

    /// Nothing is to be learned from this run any more, nor is it to be told anything.
    fn look_away_from(&mut self, turn: &mut Turn, name: &ChildName, id: RunId) {
        let run = self.children.get(name).and_then(|child| child.run.as_ref());
        if run.is_some_and(|run| run.id == id) {
            self.look_away(turn, name);
            self.end_stopper(turn, name);
        }
    }

    /// Lets the restart policy decide what follows an attempt that nobody ordered to end.
    pub(super) fn after_attempt(
        &mut self,
        turn: &mut Turn,
        name: &ChildName,
        ran: &Spec,
        attempt: Attempt,
    ) {
        let random = self.next_random();
        if self.ending.is_some() {
            return;
        }
        let Some(child) = self.children.get_mut(name) else {
            return;
        };
        if child.hold.is_some() {
            return;
        }
        // The file in force decides: a policy that was edited counts from the next end on.
        let policy = child
            .in_force()
            .map_or(&ran.restart, |spec| &spec.restart)
            .clone();
        match child.streak.judge(&policy, attempt, turn.now.mono, random) {
            Verdict::Rest => {}
            Verdict::After(delay) => {
                let at = turn.now.mono + delay;
                child.retry = Some(at);
                if delay.is_zero() {
                    turn.unsettle(name);
                } else {
                    self.timers.set(Timer::Retry(name.clone()), at);
                    // People need no microseconds of jitter.
                    let millis = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
                    let shown = humantime::format_duration(Duration::from_millis(millis));
                    let line = turn.log(Level::Info, name, "will be restarted");
                    line.detail = Some(format!("in {shown}"));
                }
            }
            Verdict::GiveUp(why) => {
                child.failure = Some(why.clone());
                child.tried = child.in_force().map(|spec| spec.digest);
                turn.log(Level::Error, name, "given up").detail = Some(why.clone());
                if let Some(last) = self
                    .children
                    .get(name)
                    .and_then(|child| child.last.as_ref())
                {
                    let (child, run) = (name.clone(), last.id);
                    turn.record(Record::GivenUp { child, run, why });
                }
            }
        }
    }

    /// A restart whose delay has passed.
    pub(super) fn retry_now(&mut self, turn: &mut Turn, name: &ChildName) {
        if let Some(child) = self.children.get_mut(name) {
            child.retry = None;
            if let Some(policy) = child.in_force().map(|spec| spec.restart.clone()) {
                child.streak.attempted(&policy, turn.now.mono);
            }
        }
        self.timers.cancel(&Timer::Retry(name.clone()));
        self.order(turn, name, Verb::Start, Cause::Policy.into(), None);
    }

    /// Whether the policy of the file in force restarts at all.
    pub(super) fn has_restart_policy(&self, name: &ChildName) -> bool {
        let spec = self.children.get(name).and_then(|child| child.in_force());
        spec.is_some_and(|spec| spec.restart.when != RestartWhen::Never)
    }

    /// Tells a live run to end, or goes on with what was begun (I8).
    pub(super) fn begin_ladder(
        &mut self,
        turn: &mut Turn,
        name: &ChildName,
        by: &Origin,
        then: Then,
    ) {
        let cause = by.cause;
        self.look_away(turn, name);
        let Some(run) = self
            .children
            .get_mut(name)
            .and_then(|child| child.run.as_mut())
        else {
            return;
        };
        match run.phase {
            // The stop begins when it is known whom to signal.
            Phase::Spawning => return,
            Phase::Running | Phase::Stopping { .. } => run.stop_asker.clone_from(&by.asker),
        }
        match run.phase {
            Phase::Spawning => return,
            // A later order takes the stop over as far as it is.
            Phase::Stopping {
                rung: rung @ (Rung::Step(_) | Rung::Kill),
                ..
            } => {
                run.phase = Phase::Stopping { cause, rung };
                self.note_stopping(turn, name, by, then);
                return;
            }
            Phase::Running => {
                self.note_stopping(turn, name, by, then);
                self.take_step(turn, name, cause, 0);
            }
            Phase::Stopping {
                rung: Rung::Stuck, ..
            } => {
                self.note_stopping(turn, name, by, then);
                self.kill(turn, name, cause);
            }
        }
        let line = turn.log(Level::Info, name, "stopping");
        line.cause = Some(cause);
    }

    /// A step of its policy, and the time it has to help; KILL when there is none left.
    fn take_step(&mut self, turn: &mut Turn, name: &ChildName, cause: Cause, index: usize) {
        self.end_stopper(turn, name);
        let run = self.children.get(name).and_then(|child| child.run.as_ref());
        let Some(spec) = run.map(|run| Arc::clone(&run.spec)) else {
            return;
        };
        let StopPolicy { steps, scope } = &spec.stop;
        let Some(StopStep { act, wait }) = steps.get(index) else {
            self.kill(turn, name, cause);
            return;
        };
        let stopper = match act {
            StopAct::Run(_) => Some(JobId(self.number())),
            StopAct::Signal(_) => None,
        };
        let child = self.children.get_mut(name);
        let Some(run) = child.and_then(|child| child.run.as_mut()) else {
            return;
        };
        let rung = Rung::Step(index);
        run.phase = Phase::Stopping { cause, rung };
        run.stopper = stopper;
        match (act, stopper) {
            (StopAct::Run(argv), Some(job)) => turn.emit(Effect::Probe {
                job,
                child: name.clone(),
                run: run.id,
                probe: Probe::Exec(argv.clone()),
                time: *wait,
                spec: Arc::clone(&spec),
            }),
            (StopAct::Signal(signal), _) => turn.emit(Effect::Signal {
                child: name.clone(),
                run: run.id,
                signal: Signal::Ask(*signal),
                scope: *scope,
            }),
            (StopAct::Run(_), None) => {}
        }
        let wait = match planted(Bug::GraceCut) {
            true => *wait / 2,
            false => *wait,
        };
        if !planted(Bug::KillTimerLost) {
            let timer = Timer::Ladder(name.clone());
            self.timers.set(timer, turn.now.mono + wait);
        }
    }

    /// The last rung: KILL, and the time it has to help.
    pub(super) fn kill(&mut self, turn: &mut Turn, name: &ChildName, cause: Cause) {
        self.end_stopper(turn, name);
        let child = self.children.get_mut(name);
        let Some(run) = child.and_then(|child| child.run.as_mut()) else {
            return;
        };
        let rung = Rung::Kill;
        run.phase = Phase::Stopping { cause, rung };
        turn.emit(Effect::Signal {
            child: name.clone(),
            run: run.id,
            signal: Signal::Kill,
            scope: run.spec.stop.scope,
        });
        let timer = Timer::Ladder(name.clone());
        self.timers.set(timer, turn.now.mono + KILL_WAIT);
    }

    /// Nobody waits any more for the program that was to have a run end.
    fn end_stopper(&mut self, turn: &mut Turn, name: &ChildName) {
        let child = self.children.get_mut(name);
        let run = child.and_then(|child| child.run.as_mut());
        if let Some(job) = run.and_then(|run| run.stopper.take()) {
            turn.emit(Effect::EndProbe { job });
        }
    }

    /// The program that was to have a run end has ended itself: if it failed, the next step is
    /// due; else the run has the rest of the step's time.
    pub(super) fn stopper_ended(
        &mut self,
        turn: &mut Turn,
        job: JobId,
        result: Result<(), String>,
    ) {
        let stops = |child: &Child| child.run.as_ref().and_then(|run| run.stopper) == Some(job);
        let found = self.children.iter().find(|(_, child)| stops(child));
        let Some(name) = found.map(|(name, _)| name.clone()) else {
            return;
        };
        let child = self.children.get_mut(&name);
        let Some(run) = child.and_then(|child| child.run.as_mut()) else {
            return;
        };
        run.stopper = None;
        if let Err(why) = result {
            let line = turn.log(Level::Warn, &name, "the command that stops it failed");
            line.run = Some(run.id);
            line.detail = Some(why);
            self.climb(turn, &name);
        }
    }

    /// Writes down that a stop begins and what follows it, all at once.
    pub(super) fn note_stopping(&self, turn: &mut Turn, name: &ChildName, by: &Origin, then: Then) {
        let Some(run) = self.children.get(name).and_then(|child| child.run.as_ref()) else {
            return;
        };
        let (child, run) = (name.clone(), run.id);
        let mut records = vec![Record::Stopping {
            child: child.clone(),
            run,
            by: Some(by.clone()),
        }];
        if then == Then::Replaced {
            records.push(Record::Replacing { child, run });
        }
        turn.emit(Effect::Record {
            ticket: None,
            records,
        });
    }

    /// The time of one rung of a stop has passed.
    pub(super) fn climb(&mut self, turn: &mut Turn, name: &ChildName) {
        let Some(run) = self
            .children
            .get_mut(name)
            .and_then(|child| child.run.as_mut())
        else {
            return;
        };
        let Phase::Stopping { cause, rung } = run.phase else {
            return;
        };
        let id = run.id;
        match rung {
            Rung::Step(step) => {
                let next = step + 1;
                if next >= run.spec.stop.steps.len() {
                    let line = turn.log(Level::Warn, name, "did not end in time and is killed");
                    line.run = Some(id);
                }
                self.take_step(turn, name, cause, next);
            }
            Rung::Kill => {
                run.phase = Phase::Stopping {
                    cause,
                    rung: Rung::Stuck,
                };
                let pid = run.pid.unwrap_or_default();
                let line = turn.log(Level::Error, name, "does not end although it was killed");
                line.run = Some(id);
                self.job_saw_stuck(turn, name, pid);
            }
            Rung::Stuck => {}
        }
    }
}

/// Who ordered a run to end, if anybody did.
fn ordered_by(run: &Run, job: Option<&Job>) -> Option<Origin> {
    match run.phase {
        Phase::Stopping { cause, .. } => Some(Origin {
            cause,
            asker: run.stop_asker.clone(),
        }),
        // A stop that overtook the start waits to know whom to signal, and another for the end of
        // those that depend on the child.
        Phase::Spawning | Phase::Running => {
            job.filter(|job| !job.starts()).map(|job| job.by.clone())
        }
    }
}
