//! The first event: what an earlier server left, taken back (I2) before anything is started (I1).

use std::{collections::BTreeMap, sync::Arc};

use super::{
    State, Turn,
    backoff::{Attempt, Streak},
    child::{Armed, Last, Phase, Run, Rung},
    effect::{Cause, Level},
    event::{Boot, StartKind},
    listing::{Content, Update},
    record::{Remembered, RememberedEnd, RememberedRun},
    timers::Timer,
};
use crate::spec::{ChildName, Exit, Mode, RunId, Time};

/// Why a server must not start at all: in `full` mode, on a fresh start with nothing running, one
/// bad file is enough. All faults, each a whole diagnostic; empty when it may start.
#[must_use]
pub fn refusal(boot: &Boot) -> Vec<String> {
    let lives = |(name, remembered): (&ChildName, &Remembered)| {
        let Some(last) = &remembered.last else {
            return false;
        };
        let ended = boot
            .ended
            .iter()
            .any(|(child, run, _)| child == name && *run == last.run);
        last.process.is_some() && last.end.is_none() && !ended
    };
    let strict = boot.settings.mode == Mode::Full && boot.start == StartKind::Fresh;
    if !strict || boot.memory.children.iter().any(lives) {
        return Vec::new();
    }
    faults(&boot.listing)
}

/// Every fault of a listing that concerns a file, each a whole diagnostic.
#[must_use]
pub fn faults(listing: &Update) -> Vec<String> {
    let mut faults: Vec<String> = listing
        .loadpaths
        .iter()
        .flat_map(|loadpath| loadpath.faults.clone())
        .collect();
    for (name, entry) in &listing.entries {
        match entry.as_ref().map(|entry| (&entry.content, &entry.paths)) {
            Some((Content::Bad(found), _)) => faults.extend(found.iter().cloned()),
            Some((Content::Conflict, paths)) => {
                let mut text = format!("several files declare `{name}`:");
                for path in paths {
                    text.push_str(&format!("\n  {}", path.display()));
                }
                text.push_str("\nhelp: remove or rename all but one");
                faults.push(text);
            }
            Some((Content::Good(_), _)) | None => {}
        }
    }
    faults
}

impl State {
    pub(super) fn on_boot(&mut self, turn: &mut Turn, boot: Boot) {
        let Boot {
            start,
            settings,
            memory,
            ended,
            doubted,
            listing,
            seed,
        } = boot;
        self.settings = settings;
        self.random = seed;
        self.seen.clone_from(&memory.loadpaths);
        turn.cause = Cause::Boot;
        let ended: BTreeMap<(ChildName, RunId), Exit> = ended
            .into_iter()
            .map(|(child, run, exit)| ((child, run), exit))
            .collect();
        for (name, remembered) in memory.children {
            let doubt = doubted.iter().find(|(child, ..)| *child == name);
            let doubt = doubt.map(|(_, _, why)| why.clone());
            self.take_back(turn, &name, remembered, start, doubt);
        }
        for ((name, run), exit) in ended {
            self.on_exited(turn, &name, run, exit);
        }
        self.on_listing(turn, listing);
        let names: Vec<ChildName> = self.children.keys().cloned().collect();
        for name in names {
            self.open(turn, &name, start);
        }
        // What is listed is not new because this server has not seen it before.
        turn.effects.retain(|effect| !is_news(effect));
    }

    /// Takes one child's records in.
    fn take_back(
        &mut self,
        turn: &mut Turn,
        name: &ChildName,
        remembered: Remembered,
        start: StartKind,
        doubt: Option<String>,
    ) {
        let child = self.children.entry(name.clone()).or_default();
        child.hold = remembered.held;
        child.reserved = remembered.reserved.map_or(0, |run| run.0);
        // Which numbers of a reserved block were used is known only while the records of this
        // boot last.
        child.latest = remembered
            .last
            .as_ref()
            .map_or(child.reserved, |last| last.run.0);
        let Some(last) = remembered.last else { return };
        let lives = last.end.is_none() && last.process.is_some() && doubt.is_none();
        if lives {
            child.run = Some(revived(&last, turn.now));
            child.good = Some(Arc::clone(&last.spec));
            if last.stopping {
                let rung = Timer::Ladder(name.clone());
                self.timers.set(rung, turn.now.mono + super::GRACE);
            }
        } else {
            self.take_back_ended(turn, name, &last, start, doubt);
        }
        let Some(child) = self.children.get_mut(name) else {
            return;
        };
        let latest = |run: RunId| run.0 == child.latest;
        if let Some((run, repeat, due)) = remembered.armed.filter(|(run, ..)| latest(*run))
            && (lives || start == StartKind::Continued)
            && child.hold.is_none()
        {
            child.armed = Some(Armed { run, repeat, due });
            self.timers
                .set(Timer::Repeat(name.clone()), due.max(turn.now.mono));
        }
    }

    fn take_back_ended(
        &mut self,
        turn: &mut Turn,
        name: &ChildName,
        last: &RememberedRun,
        start: StartKind,
        doubt: Option<String>,
    ) {
        let Some(child) = self.children.get_mut(name) else {
            return;
        };
        let started = last.started;
        let mut ended = Last {
            id: last.run,
            spec: Arc::clone(&last.spec),
            started,
            exit: None,
            at: turn.now,
            by: None,
            pid: last.process.map(|(pid, _)| pid),
        };
        let mut judged = None;
        match &last.end {
            Some(RememberedEnd::Exited {
                exit,
                at,
                by,
                restarts,
            }) => {
                ended.exit = Some(*exit);
                ended.at = *at;
                ended.by = *by;
                child.streak = Streak::resumed(*restarts);
                if by.is_none() && start == StartKind::Continued {
                    let lived = at.mono - started.map_or(at.mono, |time| time.mono);
                    judged = Some(Attempt::Ran(*exit, lived));
                }
            }
            Some(RememberedEnd::NotStarted { why, at }) => {
                ended.at = *at;
                child.failure = Some(why.clone());
            }
            None => {
                let died = || format!("the server died while it was starting run {}", last.run);
                let why = format!(
                    "{}; whether it lives is not known\nhint: look for `{}`, then `supervisor-rs-client \
                     start {name}`",
                    doubt.unwrap_or_else(died),
                    shell_words::join(&last.spec.command),
                );
                child.failure = Some(why);
                child.tried = Some(last.spec.digest);
                turn.log(Level::Error, name, "in doubt, and so not started");
            }
        }
        let in_doubt = last.end.is_none();
        child.doubt = in_doubt;
        child.last = Some(ended);
        child.good = Some(Arc::clone(&last.spec));
        if let Some(attempt) = judged {
            let spec = Arc::clone(&last.spec);
            self.after_attempt(turn, name, &spec, attempt);
        }
    }

    /// Decides what a child is to this start: new, or what it was.
    fn open(&mut self, turn: &mut Turn, name: &ChildName, start: StartKind) {
        let Some(child) = self.children.get_mut(name) else {
            return;
        };
        child.fresh = child.run.is_none()
            && match start {
                StartKind::Fresh => true,
                StartKind::Continued => child.last.is_none(),
            };
        if let Some(since) = child.hold {
            let since = crate::command::Stamp(since);
            turn.log(Level::Warn, name, "held: not started by itself")
                .detail = Some(format!(
                "since {since}; `supervisor-rs-client start {name}` releases it"
            ));
        }
        if let Some(run) = &child.run {
            let (id, pid) = (run.id, run.pid.unwrap_or_default());
            let home = run.spec.folder().to_owned();
            let line = turn.log(Level::Info, name, "taken back");
            line.run = Some(id);
            line.detail = Some(format!("pid {pid}"));
            if self
                .children
                .get(name)
                .is_some_and(|child| child.entry.is_none())
            {
                self.lose(turn, name, home);
            }
        }
        turn.unsettle(name);
    }
}

/// A live run as it was when its server died.
fn revived(last: &RememberedRun, now: Time) -> Run {
    let phase = if last.stopping {
        Phase::Stopping {
            cause: Cause::Command,
            rung: Rung::Term,
        }
    } else {
        Phase::Running
    };
    Run {
        id: last.run,
        spec: Arc::clone(&last.spec),
        pid: last.process.map(|(pid, _)| pid),
        started: last.started.unwrap_or(now),
        phase,
    }
}

/// Whether an effect tells of a file as if it had just appeared.
fn is_news(effect: &super::effect::Effect) -> bool {
    match effect {
        super::effect::Effect::Log(line) => {
            let news = ["file changed", "new file", "new file; it waits for `start`"];
            line.level == Level::Info && news.contains(&line.what)
        }
        super::effect::Effect::Record { .. }
        | super::effect::Effect::Reread { .. }
        | super::effect::Effect::Preflight { .. }
        | super::effect::Effect::Spawn { .. }
        | super::effect::Effect::Signal { .. }
        | super::effect::Effect::Reap { .. }
        | super::effect::Effect::RunHook { .. }
        | super::effect::Effect::KillHook { .. }
        | super::effect::Effect::Reply { .. }
        | super::effect::Effect::Inform { .. }
        | super::effect::Effect::Exit(_) => false,
    }
}
