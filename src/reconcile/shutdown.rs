//! The server's end: what is under way is ended in order, then the last words are said.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    State, Turn,
    cause::{Cause, Origin},
    child::{Armed, Child, Phase, Rung},
    effect::{Effect, Level},
    event::{JobId, RequestId},
    job::{HookWait, Job, Posthooks, Step},
    jobs::Overtaken,
    planted::{Bug, planted},
    record::Record,
};
use crate::{
    command::{Answer, Asker, KillChildren, Killed, Op, Survivor},
    spec::{ChildName, Exit, OnExit, Verb},
};

/// An end under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ending {
    /// Whom the last words are said to.
    pub(super) waiters: Vec<RequestId>,
    /// What was skipped on the way.
    pub(super) notes: Vec<String>,
    /// Whether the end was said.
    pub(super) said: bool,
    /// The exit of the child with which the server ends, if that is why.
    #[serde(default)]
    pub(super) with: Option<Exit>,
}

/// The child with which the server ends: as soon as it has ended by itself and nothing will start
/// it again, not its restart policy, a repeat, a changed file, nor somebody whom its hook waits for.
/// What an operator stops, and what goes with its file, has not ended by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mainstay {
    child: ChildName,
    /// How it ended by itself, while it has not begun again.
    ended: Option<Exit>,
}

impl Mainstay {
    pub(super) fn new(child: ChildName) -> Self {
        let ended = None;
        Self { child, ended }
    }

    /// This child could not be started when that was due. It may have run before.
    pub(super) fn never_ran(&mut self, child: &ChildName) {
        if self.child == *child {
            self.ended.get_or_insert(Exit::Unknown);
        }
    }
}

/// How patiently the end is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    AsEachChildSays,
    None,
}

impl State {
    /// The server is to end. A second order to end spends no more grace on anybody.
    pub(super) fn on_shutdown(
        &mut self,
        turn: &mut Turn,
        request: Option<(RequestId, KillChildren)>,
        asker: Option<Arc<Asker>>,
    ) {
        if let (Some((id, _)), true) = (request, self.ending.as_ref().is_some_and(|e| e.said)) {
            self.refuse_while_ending(turn, id);
            return;
        }
        let patience = match (&self.ending, request) {
            (Some(_), None) => Patience::None,
            (Some(_), Some(_)) | (None, _) => Patience::AsEachChildSays,
        };
        let ending = self.ending.get_or_insert_with(|| Ending {
            waiters: Vec::new(),
            notes: Vec::new(),
            said: false,
            with: None,
        });
        ending.waiters.extend(request.map(|(id, _)| id));
        let children = request.map_or(KillChildren::AsConfigured, |(_, children)| children);
        self.end_all(turn, children, patience, asker);
    }

    /// Has everything end that is under way, and children if that is wanted.
    fn end_all(
        &mut self,
        turn: &mut Turn,
        children: KillChildren,
        patience: Patience,
        asker: Option<Arc<Asker>>,
    ) {
        self.end_waits(turn);
        self.forget_all_due(turn);
        let stop = children == KillChildren::Stop || self.settings.on_exit == OnExit::Stop;
        for job in self.jobs.values_mut() {
            job.posthooks = Posthooks::StartingNothing;
        }
        let names: Vec<ChildName> = self.children.keys().cloned().collect();
        for name in &names {
            self.supersede_queue(turn, name, Overtaken::ByTheEnd);
            self.kill_unclaimed(turn, name);
            if self.may_be_dropped(name, stop) {
                self.supersede(turn, name, Overtaken::ByTheEnd);
            }
            if patience == Patience::None {
                self.spend_no_grace(turn, name);
            }
        }
        if stop {
            let live = names.iter().filter(|name| self.is_live(name));
            let live: BTreeSet<ChildName> = live.cloned().collect();
            for name in &live {
                let by = Origin::new(Cause::Shutdown, asker.clone());
                let mut job = Job::new(name.clone(), Verb::Stop, by, None);
                job.posthooks = Posthooks::StartingNothing;
                job.after = match patience {
                    Patience::AsEachChildSays => self.to_end_before(name, &live),
                    Patience::None => BTreeMap::new(),
                };
                self.place_stop(turn, job);
            }
        }
    }

    /// A run of this child has ended by itself, so; or another has begun, or was told to end.
    pub(super) fn note_end(&mut self, name: &ChildName, ended: Option<Exit>) {
        if let Some(mainstay) = self.mainstay.as_mut().filter(|it| it.child == *name) {
            mainstay.ended = ended;
        }
    }

    /// The server ends when the child has with which it is to end.
    pub(super) fn end_with_mainstay(&mut self, turn: &mut Turn) {
        if self.ending.is_some() || planted(Bug::MainstayMissed) {
            return;
        }
        let Some((name, exit)) = self.ended_mainstay() else {
            return;
        };
        let line = turn.log(
            Level::Info,
            &name,
            "has ended for good, and the server with it",
        );
        line.exit = Some(exit);
        self.ending = Some(Ending {
            waiters: Vec::new(),
            notes: Vec::new(),
            said: false,
            with: Some(exit),
        });
        let patience = Patience::AsEachChildSays;
        self.end_all(turn, KillChildren::Stop, patience, None);
    }

    /// The child with which the server is to end, if it has ended for good, and how.
    fn ended_mainstay(&mut self) -> Option<(ChildName, Exit)> {
        let mainstay = self.mainstay.as_mut()?;
        let child = self.children.get(&mainstay.child)?;
        if child.hold.is_some() {
            mainstay.ended = None;
        }
        let exit = mainstay.ended?;
        // Files and settings that are not known yet may want it.
        let waits = child.job.is_some() || child.doubt || self.relisting;
        let fires = |armed: &Armed| child.counts(armed) && armed.repeat.action != Verb::Stop;
        let due = (child.retry.is_some() && !planted(Bug::MainstayTooSoon))
            || child.due.is_some()
            || !child.blocked.is_empty()
            || child.armed.as_ref().is_some_and(fires);
        (!child.is_live() && !waits && !due).then(|| (mainstay.child.clone(), exit))
    }

    /// Whether a start is under way that has harmed nobody yet. One that has stopped the old run
    /// goes on: a restart cut in two would leave the child down.
    fn may_be_dropped(&self, name: &ChildName, everything_stops: bool) -> bool {
        let job = self.job_of(name);
        job.and_then(|id| self.jobs.get(&id))
            .is_some_and(|job| match job.step {
                Step::Queued
                | Step::Reading
                | Step::Depends
                | Step::Prehook(_)
                | Step::Checking => job.starts(),
                Step::Recording => everything_stops,
                Step::StoppingOld
                | Step::Spawning
                | Step::Dependents
                | Step::Stopping
                | Step::Posthook(_)
                | Step::Closing => false,
            })
    }

    /// KILL now instead of when the grace, or a posthook's time, is over.
    fn spend_no_grace(&mut self, turn: &mut Turn, name: &ChildName) {
        let job = self.job_of(name);
        if let Some(id) = job {
            self.kill_put_off(turn, id);
        }
        if job.is_some_and(|id| self.runs_posthook(id)) {
            self.cut_program_short(turn, name);
        }
        let run = self.children.get(name).and_then(|child| child.run.as_ref());
        if let Some(Phase::Stopping {
            cause,
            rung: Rung::Step(_),
        }) = run.map(|run| run.phase)
        {
            self.kill(turn, name, cause);
        }
    }

    fn runs_posthook(&self, id: JobId) -> bool {
        let step = self.jobs.get(&id).map(|job| job.step);
        step == Some(Step::Posthook(HookWait::Program))
    }

    /// Says the last words once nothing is under way any more.
    pub(super) fn end_if_done(&mut self, turn: &mut Turn) {
        let Some(ending) = &self.ending else { return };
        let busy = self.children.values().any(|child| {
            child.run.as_ref().is_some_and(|run| match run.phase {
                Phase::Spawning
                | Phase::Stopping {
                    rung: Rung::Step(_) | Rung::Kill,
                    ..
                } => true,
                Phase::Running
                | Phase::Stopping {
                    rung: Rung::Stuck, ..
                } => false,
            })
        });
        if ending.said || busy || !self.jobs.is_empty() || !self.batches.is_empty() {
            return;
        }
        self.end_feed(turn);
        let words = self.last_words();
        let mut with = None;
        if let Some(ending) = &mut self.ending {
            ending.said = true;
            with = ending.with;
            turn.record(Record::Closed);
            for id in std::mem::take(&mut ending.waiters) {
                let answer = Ok(Answer::Killed(words.clone()));
                turn.emit(Effect::Reply { id, answer });
            }
        }
        turn.emit(Effect::Exit { words, with });
    }

    fn last_words(&self) -> Killed {
        let survivor = |(name, child): (&ChildName, &Child)| {
            let run = child.run.as_ref()?;
            Some(Survivor {
                name: name.clone(),
                pid: run.pid?,
                run: run.id,
            })
        };
        let children: Vec<Survivor> = self.children.iter().filter_map(survivor).collect();
        let mut message = match children.len() {
            0 => "the server ends; no child is left running".to_owned(),
            1 => "the server ends; 1 child runs on, and the next start takes it back".to_owned(),
            n => {
                format!("the server ends; {n} children run on, and the next start takes them back")
            }
        };
        if let Some(ending) = &self.ending {
            for note in &ending.notes {
                message.push('\n');
                message.push_str(note);
            }
        }
        Killed {
            op: Op::Kill,
            children,
            message,
        }
    }

    /// Keeps what a stop for the server's end has to tell.
    pub(super) fn end_saw(&mut self, job: &Job) {
        if let Some(ending) = &mut self.ending {
            let named = |note: &String| format!("{}: {note}", job.child);
            ending.notes.extend(job.notes.iter().map(named));
        }
    }
}
