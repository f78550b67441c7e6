//! Hooks' programs in the fake world: processes that outlive the server, one a child at a time.

use std::{sync::Arc, time::Duration};

use super::world::{Occurrence, Weather, World};
use crate::{
    reconcile::{
        event::{Event, HookFailure},
        program::{HookId, HookKind, HookPhase, HookProgram},
        record::Record,
    },
    spec::{ChildName, Mono},
};

/// The longest a hook's program runs before the shell kills it.
pub(super) const HOOK_SPAN_MAX: Duration = Duration::from_secs(60);
/// How long the shell waits for the end of a killed one before it says so.
const HOOK_END_SPAN: Duration = Duration::from_secs(10);

pub(super) type HookKey = (ChildName, HookId);

/// A hook's program that lives.
#[derive(Debug, Clone)]
pub(super) struct HookProcess {
    began: Mono,
    /// Whether the server that began it has died.
    orphaned: bool,
}

impl World {
    pub(super) fn run_hook(&mut self, key: HookKey, program: &Arc<HookProgram>) {
        let rough = self.weather == Weather::Rough;
        let most = u64::try_from(HOOK_SPAN_MAX.as_millis()).expect("it is short");
        let (span, result) = match self.random.below(10) {
            0 if rough => (HOOK_SPAN_MAX, Err("it took too long".to_owned())),
            1 if rough => (self.random.millis(0, 100), Err("exit code 1".to_owned())),
            2..=3 => (self.random.millis(0, most), Ok(())),
            _ => (self.random.millis(0, 500), Ok(())),
        };
        if rough && self.random.percent(5) {
            let (child, hook) = key;
            let why = HookFailure::NotRun("the disk is full".to_owned());
            self.plan_in(span, hook_finished((child, hook), Err(why)));
            return;
        }
        self.begin_hook(&key, program);
        self.fork_hook(&key);
        self.plan_in(span, Occurrence::HookEnds(key, result));
    }

    fn begin_hook(&mut self, (child, hook): &HookKey, program: &Arc<HookProgram>) {
        self.memory.apply(&Record::HookBegun {
            child: child.clone(),
            hook: *hook,
            program: Arc::clone(program),
        });
    }

    fn fork_hook(&mut self, key: &HookKey) {
        self.next_pid += 1;
        let (child, hook) = key.clone();
        self.memory.apply(&Record::HookStarted {
            child,
            hook,
            pid: self.next_pid,
            start_ticks: 1,
            at: self.now,
        });
        let began = self.now.mono;
        self.hooks.insert(
            key.clone(),
            HookProcess {
                began,
                orphaned: false,
            },
        );
    }

    /// What is killed is mostly gone at once.
    pub(super) fn kill_hook(&mut self, key: HookKey) {
        let failed = Err("it was killed".to_owned());
        let slow = self.weather == Weather::Rough && self.random.percent(10);
        if !slow {
            let span = self.random.delay();
            self.plan_in(span, Occurrence::HookEnds(key, failed));
            return;
        }
        let span = self.random.millis(10_000, 40_000);
        self.plan_in(HOOK_END_SPAN, Occurrence::HookStaysOn(key.clone()));
        self.plan_in(span, Occurrence::HookEnds(key, failed));
    }

    /// A hook's program ends, if it is there.
    pub(super) fn hook_ends(&mut self, key: HookKey, result: Result<(), String>) {
        let Some(process) = self.hooks.remove(&key) else {
            return;
        };
        self.told(|world| format!("{:>11} (a hook of {} ends)", world.clock(), key.0));
        let result = if process.orphaned && self.random.percent(30) {
            Err(HookFailure::Unknown)
        } else {
            result.map_err(HookFailure::Failed)
        };
        self.happens(hook_finished(key, result));
    }

    /// A killed one is still there after all the time it was given.
    pub(super) fn hook_stays_on(&mut self, key: HookKey) {
        if self.hooks.contains_key(&key) {
            let why = HookFailure::NotGone("it was killed, and is not gone yet".to_owned());
            self.happens(hook_finished(key, Err(why)));
        }
    }

    /// They live on without their server.
    pub(super) fn orphan_hooks(&mut self) {
        for process in self.hooks.values_mut() {
            process.orphaned = true;
        }
    }

    /// The server is killed in the middle of beginning one.
    pub(super) fn crash_within_hook(&mut self, key: HookKey, program: &Arc<HookProgram>) {
        match self.random.below(4) {
            0 => self.begin_hook(&key, program),
            1..=2 => {
                self.begin_hook(&key, program);
                self.checks
                    .hook_begins(&key, program.kind == HookKind::Prehook);
                self.fork_hook(&key);
                let span = self.random.millis(0, 5_000);
                self.plan_in(span, Occurrence::HookEnds(key, Ok(())));
            }
            _ => {}
        }
    }

    // Checks.

    /// A hook's program is about to begin.
    pub(super) fn check_hook(&mut self, key: &HookKey, program: &HookProgram) {
        let (child, hook) = key;
        if self.hooks.keys().any(|(other, _)| other == child) {
            self.blame(|_| format!("a hook of {child} begins while another lives"));
        }
        let pre = program.kind == HookKind::Prehook;
        self.checks.hook_begins(key, pre);
        let core = self.core.children.get(child);
        let job = core.and_then(|it| match it.hook.as_ref()?.phase {
            HookPhase::For(job) if it.hook.as_ref()?.id == *hook => Some(job),
            HookPhase::For(_) | HookPhase::Unclaimed | HookPhase::Killed | HookPhase::Stuck => None,
        });
        let starts = job.and_then(|job| Some(self.core.jobs.get(&job)?.starts()));
        let lives = core.is_some_and(|it| it.run.is_some());
        if starts.is_some_and(|starts| starts != pre) {
            self.blame(|_| format!("a hook of {child} runs at the wrong time: {program:?}"));
        }
        if !pre && lives {
            self.blame(|_| format!("the posthook of {child} runs while it lives"));
        }
    }

    /// Each program that lives is known, to the core and to the disk, and none is known for ever.
    pub(super) fn after_hooks(&mut self) {
        let mut wrong = None;
        for ((child, hook), process) in &self.hooks {
            let known = self
                .core
                .children
                .get(child)
                .and_then(|it| it.hook.as_ref());
            if known.is_none_or(|known| known.id != *hook) {
                wrong = Some(format!("a hook of {child} lives and is not known"));
            }
            let recorded = self.memory.children.get(child);
            let recorded = recorded.and_then(|it| it.hook.as_ref());
            if recorded.is_none_or(|it| it.hook != *hook || it.process.is_none()) {
                wrong = Some(format!("a hook of {child} lives and is not on record"));
            }
            if self.now.mono - process.began > HOOK_SPAN_MAX * 2 {
                wrong = Some(format!("a hook of {child} lives too long"));
            }
        }
        for (name, child) in &self.core.children {
            let Some(live) = &child.hook else { continue };
            match live.phase {
                HookPhase::For(job) if !self.core.jobs.contains_key(&job) => {
                    wrong = Some(format!("a hook of {name} runs for an order that is none"));
                }
                HookPhase::For(_) | HookPhase::Unclaimed | HookPhase::Killed | HookPhase::Stuck => {
                }
            }
        }
        if let Some(wrong) = wrong {
            self.blame(|_| wrong);
        }
    }
}

fn hook_finished((child, hook): HookKey, result: Result<(), HookFailure>) -> Occurrence {
    Occurrence::Tell(Event::HookFinished {
        child,
        hook,
        result,
    })
}
