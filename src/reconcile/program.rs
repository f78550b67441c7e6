//! Hooks' programs: at most one a child at a time, and none is forgotten, servers' deaths included.
//!
//! - A program is on record before it is executed, as a run is. One that lives when its server dies
//!   is taken back by the next, which kills it when its time is up.
//! - An order that is begun anew and comes to want the very same program (the same kind, words and
//!   directory) waits for the one that lives, or has what came of it if it ended while the order was
//!   on its way there. A program that is not wanted any more is killed, and another begins only when
//!   it is gone.
//! - What ended while no server lived, or as nobody can tell how, may have done its work or not: it
//!   is run again. So a hook runs at least once.

use std::{path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    State, Turn,
    effect::{Effect, Level},
    event::{HookFailure, JobId, StartKind},
    job::{HookWait, Step},
    planted::{Bug, planted},
    record::Record,
    remembered::RememberedHook,
};
use crate::{
    command::{ErrorCode, Failure},
    spec::{ChildName, Hook, Spec},
};

/// One running of a hook's program. Unique among those that live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HookId(pub u64);

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HookKind {
    /// Before a start.
    Prehook,
    /// After a stop.
    Posthook,
}

/// What a hook runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookProgram {
    /// When.
    pub kind: HookKind,
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Where.
    pub workdir: PathBuf,
}

/// A hook's program that lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LiveHook {
    /// Which.
    pub(super) id: HookId,
    /// What it is.
    pub(super) program: Arc<HookProgram>,
    /// How it stands.
    pub(super) phase: HookPhase,
}

/// How a hook's program stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum HookPhase {
    /// It runs for this order.
    For(JobId),
    /// It runs, and its order went with the server that began it.
    Unclaimed,
    /// It is killed, and nobody waits for what it comes to.
    Killed,
    /// It was killed and does not end.
    Stuck,
}

/// A program that ended before the order came to it that is under way for its child.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct EndedHook {
    program: Arc<HookProgram>,
    result: Result<(), String>,
}

/// What comes of an order that wants a program.
enum Begin {
    /// It has ended already.
    Ended(Result<(), String>),
    /// It is begun.
    Now,
    /// It lives.
    Lives,
    /// Another is to be gone first.
    Later,
    /// Another does not go.
    Never,
}

impl HookKind {
    fn step(self, wait: HookWait) -> Step {
        match self {
            Self::Prehook => Step::Prehook(wait),
            Self::Posthook => Step::Posthook(wait),
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Prehook => "prehook",
            Self::Posthook => "posthook",
        }
    }
}

impl HookProgram {
    /// The program that this hook of this child is, if it is one.
    fn of(kind: HookKind, spec: &Spec) -> Option<Self> {
        let hook = match kind {
            HookKind::Prehook => &spec.prehook,
            HookKind::Posthook => &spec.posthook,
        };
        match hook {
            Some(Hook::Run(argv)) => Some(Self {
                kind,
                argv: argv.clone(),
                workdir: spec.workdir.clone(),
            }),
            Some(Hook::Command { .. }) | None => None,
        }
    }

    /// For the log.
    fn told(&self) -> String {
        let command = shell_words::join(&self.argv);
        format!("{} `run {command}`", self.kind.as_str())
    }
}

impl State {
    /// Runs the program of a hook for an order, or goes on with the one that lives.
    pub(super) fn run_program(
        &mut self,
        turn: &mut Turn,
        id: JobId,
        kind: HookKind,
        spec: &Arc<Spec>,
    ) {
        let Some(program) = HookProgram::of(kind, spec) else {
            return;
        };
        let Some(name) = self.jobs.get(&id).map(|job| job.child.clone()) else {
            return;
        };
        match self.how_to_begin(id, &name, &program) {
            Begin::Ended(result) => {
                self.set_step(id, kind.step(HookWait::Program));
                let result = result.map_err(|why| Failure::new(ErrorCode::HookFailed, why));
                self.hook_done(turn, id, result);
            }
            Begin::Now => self.begin_program(turn, id, &name, program, spec),
            Begin::Lives => {
                self.set_step(id, kind.step(HookWait::Program));
                if let Some(live) = self.hook_of(&name) {
                    live.phase = HookPhase::For(id);
                }
                turn.log(
                    Level::Info,
                    &name,
                    "goes on with a hook that a dead server began",
                )
                .detail = Some(program.told());
            }
            Begin::Later => {
                self.set_step(id, kind.step(HookWait::Gone));
                self.kill_program(turn, &name);
            }
            Begin::Never => {
                self.set_step(id, kind.step(HookWait::Program));
                let failure = Failure::new(
                    ErrorCode::HookFailed,
                    "an earlier hook of it was killed, and is not gone yet",
                );
                self.hook_done(turn, id, Err(failure));
            }
        }
    }

    fn how_to_begin(&mut self, id: JobId, name: &ChildName, program: &HookProgram) -> Begin {
        let ended = self.jobs.get_mut(&id).and_then(|job| job.ended_hook.take());
        if let Some(ended) = ended.filter(|ended| *ended.program == *program) {
            return Begin::Ended(ended.result);
        }
        let Some(live) = self.hook_of(name) else {
            return Begin::Now;
        };
        match live.phase {
            HookPhase::Unclaimed if *live.program == *program => Begin::Lives,
            HookPhase::Unclaimed | HookPhase::For(_) | HookPhase::Killed => Begin::Later,
            HookPhase::Stuck => Begin::Never,
        }
    }

    fn begin_program(
        &mut self,
        turn: &mut Turn,
        id: JobId,
        name: &ChildName,
        program: HookProgram,
        spec: &Arc<Spec>,
    ) {
        self.set_step(id, program.kind.step(HookWait::Program));
        let hook = HookId(self.number());
        let program = Arc::new(program);
        if let Some(child) = self.children.get_mut(name) {
            child.hook = Some(LiveHook {
                id: hook,
                program: Arc::clone(&program),
                phase: HookPhase::For(id),
            });
        }
        turn.emit(Effect::RunHook {
            child: name.clone(),
            hook,
            program,
            spec: Arc::clone(spec),
        });
    }

    /// The program of a hook has ended, never began, or does not end.
    pub(super) fn on_hook_finished(
        &mut self,
        turn: &mut Turn,
        name: &ChildName,
        hook: HookId,
        result: Result<(), HookFailure>,
    ) {
        let Some(live) = self.hook_of(name).filter(|live| live.id == hook) else {
            return;
        };
        if let Err(HookFailure::NotGone(why)) = result {
            let phase = std::mem::replace(&mut live.phase, HookPhase::Stuck);
            self.hook_is_stuck(turn, name, phase, why);
            return;
        }
        let Some(live) = self.children.get_mut(name).and_then(|it| it.hook.take()) else {
            return;
        };
        match result {
            // Its end is on record already.
            Err(HookFailure::NotRun(_)) => {}
            Ok(()) | Err(_) => {
                let child = name.clone();
                turn.record(Record::HookEnded { child, hook });
            }
        }
        match result {
            Ok(()) => self.program_ended(turn, name, live, Ok(())),
            Err(
                HookFailure::NotRun(why) | HookFailure::Failed(why) | HookFailure::NotGone(why),
            ) => self.program_ended(turn, name, live, Err(why)),
            Err(HookFailure::Unknown) => self.program_ended_somehow(turn, name, live),
        }
        self.hook_is_gone(turn, name);
        turn.unsettle(name);
    }

    fn program_ended(
        &mut self,
        turn: &mut Turn,
        name: &ChildName,
        live: LiveHook,
        result: Result<(), String>,
    ) {
        match live.phase {
            HookPhase::For(job) => {
                let result = result.map_err(|why| Failure::new(ErrorCode::HookFailed, why));
                self.hook_done(turn, job, result);
            }
            HookPhase::Unclaimed => self.unclaimed_ended(turn, name, live, result),
            HookPhase::Killed | HookPhase::Stuck => {}
        }
    }

    /// Whether a program of a dead server has done its work is not known: whoever waits for it has it
    /// run again.
    fn program_ended_somehow(&mut self, turn: &mut Turn, name: &ChildName, live: LiveHook) {
        turn.log(
            Level::Warn,
            name,
            "how a hook that a dead server began ended is not known",
        )
        .detail = Some(live.program.told());
        match live.phase {
            HookPhase::For(job) => self.set_step(job, live.program.kind.step(HookWait::Gone)),
            HookPhase::Unclaimed | HookPhase::Killed | HookPhase::Stuck => {}
        }
    }

    /// Nobody has come to a program of a dead server yet: the order under way may.
    fn unclaimed_ended(
        &mut self,
        turn: &mut Turn,
        name: &ChildName,
        live: LiveHook,
        result: Result<(), String>,
    ) {
        let how = match &result {
            Ok(()) => "done",
            Err(why) => why,
        };
        turn.log(
            Level::Info,
            name,
            "a hook that a dead server began has ended",
        )
        .detail = Some(format!("{}: {how}", live.program.told()));
        let job = self.job_of(name).and_then(|id| self.jobs.get_mut(&id));
        if let Some(job) = job {
            let program = live.program;
            job.ended_hook = Some(EndedHook { program, result });
        }
    }

    /// Nobody waits for what was killed and does not end (I8).
    fn hook_is_stuck(&mut self, turn: &mut Turn, name: &ChildName, phase: HookPhase, why: String) {
        turn.log(
            Level::Error,
            name,
            "a hook does not end although it was killed",
        )
        .detail = Some(why.clone());
        let failure = Failure::new(ErrorCode::HookFailed, why);
        match (phase, self.waits_for_room(name)) {
            (HookPhase::For(id), _) | (_, Some(id)) => self.hook_done(turn, id, Err(failure)),
            (HookPhase::Unclaimed | HookPhase::Killed | HookPhase::Stuck, None) => {}
        }
    }

    /// Whoever waited for another program to be gone goes on.
    fn hook_is_gone(&mut self, turn: &mut Turn, name: &ChildName) {
        let Some(id) = self.waits_for_room(name) else {
            return;
        };
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        match (job.step, job.spec.clone()) {
            (Step::Prehook(_), Some(spec)) => self.run_prehook(turn, id, name, &spec),
            (_, _) => self.run_posthook(turn, id),
        }
    }

    /// The order that waits for another program to be gone.
    fn waits_for_room(&self, name: &ChildName) -> Option<JobId> {
        let id = self.job_of(name)?;
        let step = self.jobs.get(&id)?.step;
        matches!(
            step,
            Step::Prehook(HookWait::Gone) | Step::Posthook(HookWait::Gone)
        )
        .then_some(id)
    }

    fn hook_of(&mut self, name: &ChildName) -> Option<&mut LiveHook> {
        self.children.get_mut(name)?.hook.as_mut()
    }

    /// Kills a child's program, whoever it runs for: nobody waits for it any more.
    pub(super) fn kill_program(&mut self, turn: &mut Turn, name: &ChildName) {
        let Some(live) = self.hook_of(name) else {
            return;
        };
        match live.phase {
            HookPhase::For(_) | HookPhase::Unclaimed => {
                live.phase = HookPhase::Killed;
                let (child, hook) = (name.clone(), live.id);
                turn.emit(Effect::KillHook { child, hook });
            }
            HookPhase::Killed | HookPhase::Stuck => {}
        }
    }

    /// Kills a program that a dead server began and nobody has come to.
    pub(super) fn kill_unclaimed(&mut self, turn: &mut Turn, name: &ChildName) {
        let Some(live) = self.hook_of(name) else {
            return;
        };
        if live.phase == HookPhase::Unclaimed {
            let program = Arc::clone(&live.program);
            turn.log(
                Level::Warn,
                name,
                "a hook that a dead server began is killed",
            )
            .detail = Some(program.told());
            self.kill_program(turn, name);
        }
    }

    /// As [`State::kill_unclaimed`], of what would run before a start.
    pub(super) fn kill_unclaimed_prehook(&mut self, turn: &mut Turn, name: &ChildName) {
        let kind = self.hook_of(name).map(|live| live.program.kind);
        if kind == Some(HookKind::Prehook) {
            self.kill_unclaimed(turn, name);
        }
    }

    /// Hastens the end of the program that an order waits for, whose failure that is.
    pub(super) fn cut_program_short(&self, turn: &mut Turn, name: &ChildName) {
        let live = self.children.get(name).and_then(|it| it.hook.as_ref());
        if let Some(LiveHook {
            id,
            phase: HookPhase::For(_),
            ..
        }) = live
        {
            let (child, hook) = (name.clone(), *id);
            turn.emit(Effect::KillHook { child, hook });
        }
    }

    // After a server's death.

    /// Takes back a program that an earlier server began, if it lives.
    pub(super) fn take_back_hook(
        &mut self,
        turn: &mut Turn,
        name: &ChildName,
        remembered: Option<&RememberedHook>,
        lives: impl Fn(HookId) -> bool,
    ) {
        let Some(remembered) = remembered else { return };
        let id = remembered.hook;
        self.number_behind(Some(id.0));
        if !lives(id) {
            let child = name.clone();
            turn.record(Record::HookEnded { child, hook: id });
            return;
        }
        if planted(Bug::LiveHookForgotten) {
            return;
        }
        self.enter(name).hook = Some(LiveHook {
            id,
            program: Arc::clone(&remembered.program),
            phase: HookPhase::Unclaimed,
        });
    }

    /// Kills what nobody can come to any more: its order ended with its server, or its child's file
    /// says something else by now. The rest has its time.
    pub(super) fn kill_unwanted_hook(
        &mut self,
        turn: &mut Turn,
        name: &ChildName,
        start: StartKind,
    ) {
        let Some(child) = self.children.get(name) else {
            return;
        };
        let Some(live) = &child.hook else { return };
        let spec = match live.program.kind {
            HookKind::Prehook => child.in_force(),
            HookKind::Posthook => child.posthook_spec(),
        };
        let program = spec.and_then(|spec| HookProgram::of(live.program.kind, spec));
        let wanted = program.is_some_and(|program| program == *live.program);
        match start {
            StartKind::Continued if wanted => {
                turn.log(
                    Level::Info,
                    name,
                    "a hook that a dead server began is taken back",
                )
                .detail = Some(live.program.told());
            }
            StartKind::Continued | StartKind::Fresh => self.kill_unclaimed(turn, name),
        }
    }
}
