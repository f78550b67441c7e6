//! Who waits in the fake world, and whether what he is told is true and told in time.
//!
//! No random numbers are drawn for it: what is waited for follows from the number of the request.

use std::time::Duration;

use super::{checks::Asked, files::NAMES, files::name, world::World};
use crate::{
    command::{Answer, Command, Done, ErrorCode, Failure, Goal},
    reconcile::{
        WAITS_PER_ASKER_MAX,
        child::{Child, Phase},
        event::Event,
    },
    spec::{ChildName, Mono, RunId},
};

/// After every how many requests somebody waits.
const EVERY: u64 = 6;

/// After every how many somebody who waits goes away.
const FORSAKEN_EVERY: u64 = 13;

/// For how long, in milliseconds.
const TIMES_MS: [u64; 5] = [0, 700, 4_000, 60_000, 400_000];

impl World {
    /// Somebody waits for a child, or somebody who waits goes away.
    pub(super) fn sometimes_wait(&mut self) {
        let number = self.next_request;
        let pick = |from: usize, shift: u64| {
            let from = u64::try_from(from).expect("it is short");
            // Mixed, so that no choice goes along with another.
            let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> shift;
            usize::try_from(mixed % from).expect("it is short")
        };
        if self.ended {
            return;
        }
        if number.is_multiple_of(EVERY) {
            let busy = match pick(3, 29) {
                0 => None,
                _ => self.busy_by_number(number),
            };
            let child = busy.unwrap_or_else(|| name(NAMES[pick(NAMES.len(), 31)]));
            let core = self.core.children.get(&child);
            let highest = core.map_or(0, Child::highest);
            let run = match pick(4, 37) {
                0 | 1 => None,
                2 => Some(RunId(highest.max(1))),
                _ => Some(RunId(highest + 1)),
            };
            self.request(Command::Wait {
                child,
                goal: Goal::ALL[pick(Goal::ALL.len(), 41)],
                run,
                time: Duration::from_millis(TIMES_MS[pick(TIMES_MS.len(), 43)]),
            });
        } else if number.is_multiple_of(FORSAKEN_EVERY) {
            let waits = |asked: &&Asked| matches!(asked.command, Command::Wait { .. });
            let first = self.checks.open.values().find(waits);
            if let Some(id) = first.map(|asked| asked.id) {
                self.tell(Event::Forsaken { id });
            }
        }
    }

    /// Somebody with a run or an order under way, where there is one.
    fn busy_by_number(&self, number: u64) -> Option<ChildName> {
        let busy = |it: &&Child| it.job.is_some() || it.run.is_some() || it.doubt;
        let busy = self.core.children.iter().filter(|(_, it)| busy(it));
        let names: Vec<&ChildName> = busy.map(|(name, _)| name).collect();
        let count = u64::try_from(names.len()).expect("there are few");
        let place = usize::try_from(number.checked_rem(count)?).expect("there are few");
        names.get(place).map(|name| (*name).clone())
    }

    /// Whether an answer to a wait is true.
    pub(super) fn check_waited(&mut self, asked: &Asked, answer: &Result<Answer, Failure>) {
        let Command::Wait {
            child, run, time, ..
        } = &asked.command
        else {
            self.blame(|_| format!("I5: {:?} is answered as if it waited", asked.command));
            return;
        };
        let wrong = match answer {
            Ok(Answer::Done(done)) => self.told_wrongly(asked, done),
            Ok(_) => Some("I5: a wait is answered by something else".to_owned()),
            Err(failure) => {
                let core = self.core.children.get(child);
                let lives = run.is_some_and(|run| {
                    let process = self.processes.get(&(child.clone(), run));
                    process.is_some_and(|it| it.recorded && it.exit.is_none())
                });
                let is_wrong = match failure.code {
                    ErrorCode::Timeout => {
                        self.now.mono - asked.at < *time || self.is_met(&asked.command)
                    }
                    ErrorCode::NotReady => {
                        run.is_none_or(|run| core.is_none_or(|it| run.0 > it.highest())) || lives
                    }
                    ErrorCode::UnknownChild => core.is_some_and(Child::is_known),
                    ErrorCode::ShuttingDown => self.core.ending.is_none(),
                    ErrorCode::Superseded => !self.checks.forsaken.contains(&asked.id),
                    ErrorCode::Busy => self.core.waits.len() < WAITS_PER_ASKER_MAX,
                    _other => true,
                };
                is_wrong.then(|| format!("I5: {:?} is refused wrongly: {failure}", asked.command))
            }
        };
        if let Some(wrong) = wrong {
            self.blame(|_| wrong);
        }
    }

    /// What is not true of an answer that says that what was waited for has come.
    fn told_wrongly(&self, asked: &Asked, done: &Done) -> Option<String> {
        let Command::Wait {
            child, goal, run, ..
        } = &asked.command
        else {
            return None;
        };
        if done.child != *child || (run.is_some() && done.run != *run) {
            return Some(format!("I5: {:?} is answered as {done:?}", asked.command));
        }
        let told = done.run.map(|run| (child.clone(), run));
        let process = told.as_ref().and_then(|key| self.processes.get(key));
        let true_is = match goal {
            Goal::Exited => match run {
                Some(_) => process.is_none_or(|it| it.exit.is_some()),
                None => self.processes.iter().all(|((name, _), process)| {
                    name != child || !process.recorded || process.exit.is_some()
                }),
            },
            Goal::Running => process.is_some_and(|it| it.recorded && Some(it.pid) == done.pid),
            Goal::Ready => process.is_some_and(|it| {
                // The disk knows it, and a probe has shown it.
                let last = self.memory.children.get(child);
                let last = last.and_then(|it| it.last.as_ref());
                let written = last.is_some_and(|last| Some(last.run) == done.run && last.ready);
                let shown = it.showing.ready || it.showing.told_ready;
                let due = it.spec.ready.is_some();
                it.recorded && Some(it.pid) == done.pid && (!due || (written && shown))
            }),
        };
        (!true_is).then(|| format!("I5: {:?} is told and not true: {done:?}", asked.command))
    }

    /// Whether it is as somebody waits for, as far as the core was told.
    fn is_met(&self, command: &Command) -> bool {
        let Command::Wait {
            child, goal, run, ..
        } = command
        else {
            return false;
        };
        let core = self.core.children.get(child);
        let live = core.and_then(|it| it.run.as_ref());
        let mine = live.filter(|live| run.is_none_or(|run| run == live.id));
        let lives = mine.is_some_and(|live| live.phase == Phase::Running);
        match goal {
            Goal::Exited => {
                let is_over = run.is_none_or(|run| core.is_some_and(|it| run.0 <= it.highest()));
                mine.is_none() && is_over && core.is_none_or(|it| !it.doubt)
            }
            Goal::Running => lives,
            Goal::Ready => lives && mine.is_some_and(|live| !live.is_starting()),
        }
    }

    /// Nobody waits for what has come, nor beyond his time.
    pub(super) fn after_waits(&mut self) {
        let mut wrong = None;
        for (id, asked) in &self.checks.open {
            let Command::Wait { time, .. } = &asked.command else {
                continue;
            };
            let until: Mono = asked.at + *time;
            if until <= self.now.mono {
                wrong = Some(format!("I8: wait {} goes on beyond its time", id.0));
            }
            if self.is_met(&asked.command) {
                wrong = Some(format!(
                    "I5: {:?} has come true and is not told",
                    asked.command
                ));
            }
        }
        let waits = |asked: &&Asked| matches!(asked.command, Command::Wait { .. });
        let open = self.checks.open.values().filter(waits).count();
        if open != self.core.waits.len() {
            let held = self.core.waits.len();
            wrong = Some(format!("I5: {open} wait and {held} are known"));
        }
        if let Some(wrong) = wrong {
            self.blame(|_| wrong);
        }
    }
}

#[test]
fn more_than_may_wait_are_told_so_and_who_is_gone_makes_room() {
    let mut stage = super::script::Stage::after("file web v1\nboot quiet");
    for id in 0..WAITS_PER_ASKER_MAX {
        let out = stage.then(&format!("request {id} wait web ready 1h"));
        assert!(!out.contains("answer"), "{out}");
    }
    let out = stage.then("request 5000 wait web ready 1h");
    assert!(
        out.contains("answer 5000: busy: you wait 256 times"),
        "{out}"
    );
    let out = stage.then("forsaken 7\nrequest 5001 wait web ready 1h");
    assert!(!out.contains("answer 5001"), "{out}");
}
