//! The first event: what an earlier server left, taken back (I2) before anything is started (I1).

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use super::{
    State, Turn,
    backoff::{Attempt, Streak},
    cause::{Cause, Origin},
    child::{Armed, Child, Last, Phase, Run, Rung},
    effect::Level,
    event::{Boot, JobId, StartKind},
    graph::{self, Declared},
    job::{Job, Posthooks, Step},
    listing::{Content, Update},
    memory::{Remembered, RememberedEnd, RememberedRun},
    planted::{Bug, planted},
    probes::Probed,
    record::{Record, Wanted},
    remembered::RememberedOrder,
    runs::Then,
    shutdown::Mainstay,
    timers::Timer,
    words::Said,
};
use crate::{
    command::Stamp,
    spec::{ChildName, Circumstances, Exit, Mode, Mono, Repeat, RunId, Time, Verb},
};

/// Why a server must not start at all, on a fresh start with nothing running: it is to end with a
/// child that no file declares, or, in `full` mode, one file is bad. All faults, each a whole
/// diagnostic; empty when it may start.
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
    if boot.start != StartKind::Fresh || boot.memory.children.iter().any(lives) {
        return Vec::new();
    }
    let mut all = match boot.settings.mode {
        Mode::Full => faults(&boot.listing),
        Mode::Quiet | Mode::Half | Mode::Sync => Vec::new(),
    };
    let declares = |name: &ChildName| {
        let mut entries = boot.listing.entries.iter();
        entries.any(|(declared, entry)| declared == name && entry.is_some())
    };
    if let Some(name) = boot.exit_with.as_ref().filter(|name| !declares(name)) {
        all.push(format!(
            "the server is to end with `{name}`, and no loadpath has a file of that name\n\
             hint: `--exit-with` names a child, as `{name}` of `{name}.yml`"
        ));
    }
    all
}

/// Every fault of a listing that concerns a file, each a whole diagnostic.
#[must_use]
pub fn faults(listing: &Update) -> Vec<String> {
    let mut faults: Vec<String> = listing
        .loadpaths
        .iter()
        .flat_map(|loadpath| loadpath.faults.clone())
        .collect();
    let entries = listing.entries.iter();
    let listed: BTreeMap<&ChildName, &Content> = entries
        .filter_map(|(name, entry)| Some((name, &entry.as_ref()?.content)))
        .collect();
    let lookup = |name: &ChildName| match listed.get(name) {
        Some(Content::Good(spec)) => Declared::Good(spec),
        Some(Content::Bad(_) | Content::Conflict) => Declared::Otherwise,
        None => Declared::Not,
    };
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
            Some((Content::Good(spec), _)) => faults.extend(graph::faults(name, spec, &lookup)),
            None => {}
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
            hooks,
            listing,
            seed,
            exit_with,
        } = boot;
        self.settings = settings;
        self.mainstay = exit_with.map(Mainstay::new);
        self.random = seed;
        self.seen.clone_from(&memory.loadpaths);
        self.suspects = memory.suspects.clone();
        turn.cause = Cause::Boot;
        let ended: BTreeMap<(ChildName, RunId), Exit> = ended
            .into_iter()
            .map(|(child, run, exit)| ((child, run), exit))
            .collect();
        let mut orders = BTreeMap::new();
        let renewed = memory.renewed();
        for (name, mut remembered) in memory.children {
            let last = remembered.last.as_ref().and_then(|last| last.order);
            self.number_behind(last.map(|order| order.0));
            let lives = |hook| hooks.contains(&(name.clone(), hook));
            self.take_back_hook(turn, &name, remembered.hook.as_ref(), lives);
            let asked = std::mem::take(&mut remembered.orders).into_iter();
            orders.extend(asked.map(|it| (it.order, (name.clone(), it))));
            let doubt = doubted.iter().find(|(child, ..)| *child == name);
            let doubt = doubt.map(|(_, _, why)| why.clone());
            self.take_back(turn, &name, remembered, start, doubt);
            self.tell_found(turn, &name);
        }
        self.number_behind(orders.last_key_value().map(|(order, _)| order.0));
        let lived = |(_, child): &(&ChildName, &Child)| child.is_live();
        let lived = self.children.iter().filter(lived);
        let lived: BTreeSet<ChildName> = lived.map(|(name, _)| name.clone()).collect();
        let news: BTreeSet<ChildName> = ended.keys().map(|(name, _)| name.clone()).collect();
        for ((name, run), exit) in ended {
            self.on_exited(turn, &name, run, (exit, Circumstances::default()));
        }
        self.clear_the_live(turn);
        self.on_listing(turn, listing);
        if !planted(Bug::RemovalUnwatchedNotMissed) {
            self.miss(turn, &lived);
        }
        let one_of_all = |(name, it): &(ChildName, RememberedOrder)| {
            (it.wanted == Wanted::StopAsOneOfAll).then(|| name.clone())
        };
        let held = |(name, child): (&ChildName, &Child)| child.hold.map(|_| name.clone());
        let stopped = orders.values().filter_map(one_of_all);
        let stopped = stopped
            .chain(self.children.iter().filter_map(held))
            .collect();
        let names: Vec<ChildName> = self.children.keys().cloned().collect();
        for name in names {
            let past = match renewed.contains(&name) {
                true => Past::Renewed,
                false => Past::Counts,
            };
            self.open(turn, &name, start, past, &stopped);
            self.kill_unwanted_hook(turn, &name, start);
        }
        self.take_up_orders(turn, start, orders);
        self.begin_feed(|name| news.contains(name));
    }

    /// What is numbered from now on does not have this number.
    pub(super) fn number_behind(&mut self, used: Option<u64>) {
        self.next_number = self.next_number.max(used.unwrap_or(0));
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
        let child = self.enter(name);
        child.hold = remembered.held;
        child.suspicion = remembered.suspicion;
        child.reserved = remembered.reserved.map_or(0, |run| run.0);
        child.maybe_used = remembered.maybe_used.map_or(0, |run| run.0);
        // Which numbers of a reserved block were used is known only while the records of this
        // boot last.
        child.latest = remembered
            .last
            .as_ref()
            .map_or(child.reserved, |last| last.run.0);
        let Some(last) = remembered.last else { return };
        let lives = last.end.is_none() && last.process.is_some() && doubt.is_none();
        // Whoever started a server since has not made it known.
        let doubt = doubt.or_else(|| last.doubt.clone());
        if lives {
            let by = stopped_by(&last, child.hold.is_some());
            child.run = Some(revived(&last, turn.now, by));
            child.good = Some(Arc::clone(&last.spec));
        } else {
            self.take_back_ended(turn, name, &last, start, doubt);
        }
        if lives || start == StartKind::Continued {
            self.take_back_repeat(turn, name, &last, remembered.armed);
        }
        if !lives && start == StartKind::Fresh && !last.renewed {
            let child = name.clone();
            turn.record(Record::Renewed { child });
        }
        if last.replacing && start == StartKind::Continued {
            // The second half of the replacement.
            self.is_due(turn, name);
        }
    }

    /// Arms the repeat of the latest run again. A server may have died before it could write
    /// down that the run had armed one.
    fn take_back_repeat(
        &mut self,
        turn: &mut Turn,
        name: &ChildName,
        last: &RememberedRun,
        armed: Option<(RunId, Repeat, Mono)>,
    ) {
        let Some(child) = self.children.get_mut(name) else {
            return;
        };
        let by_order = match &last.end {
            Some(RememberedEnd::Exited { by, .. }) => by.is_some(),
            Some(RememberedEnd::NotStarted { .. }) | None => false,
        };
        if child.hold.is_some() || last.stopping || by_order || last.disarmed || last.settled {
            return;
        }
        let unwritten = || {
            let repeat = last.spec.repeat?;
            Some((last.run, repeat, last.started?.mono + repeat.every))
        };
        let Some((run, repeat, due)) = armed
            .filter(|(run, ..)| *run == last.run)
            .or_else(unwritten)
        else {
            return;
        };
        child.armed = Some(Armed { run, repeat, due });
        self.timers
            .set(Timer::Repeat(name.clone()), due.max(turn.now.mono));
    }

    /// A server died before it had begun the run that was due: it is due now.
    fn is_due(&mut self, turn: &Turn, name: &ChildName) {
        let Some(child) = self.children.get_mut(name).filter(|it| it.hold.is_none()) else {
            return;
        };
        child.retry = Some(turn.now.mono);
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
        let (mut judged, mut over, mut never_ended) = (None, None, false);
        match &last.end {
            Some(RememberedEnd::Exited {
                exit,
                at,
                by,
                restarts,
                circumstances: _,
            }) => {
                ended.exit = Some(*exit);
                ended.at = *at;
                ended.by.clone_from(by);
                child.streak = Streak::resumed(*restarts);
                child.failure.clone_from(&last.given_up);
                let lived = at.mono - started.map_or(at.mono, |time| time.mono);
                let attempt = Attempt::ended(by.as_ref().map(|by| by.cause), *exit, lived);
                if attempt == Some(Attempt::NotReady) && child.failure.is_none() {
                    child.failure = Some(format!("run {} was not ready in time", last.run));
                }
                let goes_on = attempt.filter(|_| start == StartKind::Continued);
                over = goes_on.filter(|_| !last.settled).map(|_| *exit);
                judged = goes_on.filter(|_| !is_closed(last));
            }
            Some(RememberedEnd::NotStarted { why, at }) => {
                ended.at = *at;
                child.failure = Some(why.clone());
                if start == StartKind::Continued && !is_closed(last) {
                    judged = Some(Attempt::NeverRan);
                }
            }
            None => never_ended = true,
        }
        child.last = Some(ended);
        child.good = Some(Arc::clone(&last.spec));
        self.note_end(name, over);
        if never_ended {
            match doubt {
                Some(why) => self.take_back_doubted(turn, name, last, why),
                None => self.take_back_unborn(turn, name, last, start),
            }
        }
        if let Some(attempt) = judged {
            let spec = Arc::clone(&last.spec);
            self.after_attempt(turn, name, &spec, attempt);
        }
    }

    /// A run of which nobody can tell whether it lives.
    fn take_back_doubted(
        &mut self,
        turn: &mut Turn,
        name: &ChildName,
        last: &RememberedRun,
        why: String,
    ) {
        let Some(child) = self.children.get_mut(name) else {
            return;
        };
        child.failure = Some(format!(
            "{why}; whether it lives is not known\nhint: look for `{}`, then `supervisor-rs-client \
             start {name}`",
            shell_words::join(&last.spec.command),
        ));
        child.tried = Some(last.spec.digest);
        child.doubt = true;
        turn.log(Level::Error, name, "in doubt, and so not started");
        if last.doubt.as_ref() != Some(&why) {
            let (child, run) = (name.clone(), last.run);
            turn.record(Record::Doubted { child, run, why });
        }
    }

    /// A run that was about to begin when its server died, and did not: what is executed has written
    /// itself down before. So it is due until another begins, however many servers die meanwhile.
    fn take_back_unborn(
        &mut self,
        turn: &mut Turn,
        name: &ChildName,
        last: &RememberedRun,
        start: StartKind,
    ) {
        let line = turn.log(Level::Warn, name, "its server died before it was executed");
        line.run = Some(last.run);
        let due = start == StartKind::Continued && !last.settled;
        if due && !planted(Bug::UnbornForgotten) {
            self.is_due(turn, name);
        }
    }

    /// Decides what a child is to this start: new, or what it was.
    /// `stopped` are those that are being stopped, or are to be.
    fn open(
        &mut self,
        turn: &mut Turn,
        name: &ChildName,
        start: StartKind,
        past: Past,
        stopped: &BTreeSet<ChildName>,
    ) {
        let Some(child) = self.children.get_mut(name) else {
            return;
        };
        let renewed = match past {
            Past::Renewed => !planted(Bug::RenewalForgotten),
            Past::Counts => false,
        };
        child.fresh = child.run.is_none()
            && match start {
                StartKind::Fresh => true,
                StartKind::Continued => child.last.is_none() || renewed,
            };
        if start == StartKind::Fresh && child.run.is_none() {
            // What was due belongs to the life that ended by order.
            self.cancel_due(turn, name);
        }
        self.tell_hold(turn, name);
        self.go_on_with(turn, name, stopped);
        turn.unsettle(name);
    }

    /// What lived until now, or is due, and is declared no more: its file went while nobody
    /// watched, and with it those of the others.
    fn miss(&mut self, turn: &mut Turn, lived: &BTreeSet<ChildName>) {
        let due = |child: &Child| child.retry.is_some() || child.armed.is_some();
        let missed: Vec<(ChildName, PathBuf)> = self
            .children
            .iter()
            .filter(|(name, child)| child.entry.is_none() && (lived.contains(*name) || due(child)))
            .filter(|(_, child)| child.run.as_ref().is_none_or(|run| !run.found))
            .filter_map(|(name, child)| {
                let run = child.run.as_ref().map(|run| &run.spec);
                let spec = run.or_else(|| child.last.as_ref().map(|last| &last.spec))?;
                Some((name.clone(), spec.folder().to_owned()))
            })
            .collect();
        for (name, home) in missed {
            self.lose(turn, &name, home);
        }
    }

    fn tell_hold(&self, turn: &mut Turn, name: &ChildName) {
        let Some(since) = self.children.get(name).and_then(|child| child.hold) else {
            return;
        };
        let since = Stamp(since);
        turn.log(Level::Warn, name, "held: not started by itself")
            .detail = Some(format!(
            "since {since}; `supervisor-rs-client start {name}` releases it"
        ));
    }

    /// Takes a live run on as it was: running, or being stopped.
    fn go_on_with(&mut self, turn: &mut Turn, name: &ChildName, stopped: &BTreeSet<ChildName>) {
        let Some(child) = self.children.get(name) else {
            return;
        };
        let Some(run) = &child.run else { return };
        let (id, pid) = (run.id, run.pid.unwrap_or_default());
        // Of what was found by its process nobody knows.
        let run_is_ready = run.probed.awaited.is_none();
        let held = child.hold.is_some();
        let (stopping, replacing) = (child.is_stopping(), child.retry.is_some());
        let line = turn.log(Level::Info, name, "taken back");
        line.run = Some(id);
        line.detail = Some(format!("pid {pid}"));
        if (held || stopping) && !planted(Bug::StopNotTakenUp) {
            self.stop_again(turn, name, replacing, stopped);
        } else if run_is_ready {
            self.look_at_health(turn, name);
        } else {
            self.await_ready_again(turn, name);
        }
    }

    /// Goes on with a stop that a dead server had begun, or had promised with a hold. Nobody
    /// knows which signals were sent: the ladder begins anew (I8).
    fn stop_again(
        &mut self,
        turn: &mut Turn,
        name: &ChildName,
        replacing: bool,
        stopped: &BTreeSet<ChildName>,
    ) {
        let after = match self.children.get(name).is_some_and(Child::is_stopping) {
            true => BTreeMap::new(),
            false => self.to_end_before(name, stopped),
        };
        let Some(child) = self.children.get_mut(name) else {
            return;
        };
        let Some(run) = &mut child.run else { return };
        let asker = run.stop_asker.take();
        let cause = match std::mem::replace(&mut run.phase, Phase::Running) {
            Phase::Stopping { cause, .. } => cause,
            // A hold promised it.
            Phase::Spawning | Phase::Running => Cause::Command,
        };
        let stopped_by = Origin { cause, asker };
        let (verb, by, step) = if replacing {
            (Verb::Trystart, Cause::Policy.into(), Step::StoppingOld)
        } else {
            (Verb::Stop, stopped_by.clone(), Step::Stopping)
        };
        let mut job = Job::new(name.clone(), verb, by, None);
        job.step = step;
        if job.by.cause == Cause::NotReady {
            job.posthooks = Posthooks::None;
        }
        job.after = after;
        let waits = !job.after.is_empty();
        let id = JobId(self.number());
        self.jobs.insert(id, job);
        if let Some(child) = self.children.get_mut(name) {
            child.job = Some(id);
            child.retry = None;
        }
        if waits {
            return self.put_off(turn, name, id);
        }
        let then = if replacing {
            Then::Replaced
        } else {
            Then::Rest
        };
        self.begin_ladder(turn, name, &stopped_by, then);
    }
}

/// By whose order a run is being stopped that a dead server may have begun to stop.
fn stopped_by(last: &RememberedRun, held: bool) -> Origin {
    match &last.stopped_by {
        Some(by) => by.clone(),
        None if held => Cause::Command.into(),
        None => Cause::Boot.into(),
    }
}

/// What a child's last run means for the mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Past {
    /// What it did.
    Counts,
    /// Nothing: a fresh start came after it.
    Renewed,
}

/// Whether nothing follows a run that has ended any more.
fn is_closed(last: &RememberedRun) -> bool {
    last.given_up.is_some() || last.settled
}

/// A live run as it was when its server died.
fn revived(last: &RememberedRun, now: Time, by: Origin) -> Run {
    let cause = by.cause;
    let phase = if last.stopping {
        Phase::Stopping {
            cause,
            rung: Rung::Step(0),
        }
    } else {
        Phase::Running
    };
    Run {
        id: last.run,
        spec: Arc::clone(&last.spec),
        found: last.found,
        pid: last.process.map(|(pid, _)| pid),
        started: last.started.unwrap_or(now),
        begun_by: last.started_by.clone(),
        phase,
        stop_asker: by.asker,
        stopper: None,
        probed: Probed::unless(last.ready, &last.spec),
        said: Said::default(),
    }
}
