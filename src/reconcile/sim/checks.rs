//! What must hold after every step, as far as the world outside the core can see it.
//!
//! Each check names the invariant it guards. The checks keep their own books (who is held, what
//! was listed, what was asked) and compare them with what the core orders and answers.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    depends::Depending,
    following::{Heard, is_without_end},
    hooks::HookKey,
    mainstay::remembered_mainstay,
    world::{Process, RunKey, Weather, World},
};
use crate::{
    command::{Command, ErrorCode, Failure, KillChildren},
    reconcile::{
        QUEUE_LEN_MAX, QUIET, STOP_EXTENDED_MAX,
        cause::Cause,
        child::{Belief, Child, Phase, Rung},
        effect::{Effect, Line, Signal},
        event::{Boot, Event, JobId, RequestId, Settings, SpawnFailure, StartKind, Ticket},
        job::{Step, Waiter},
        listing::{Content, Entry, Loadpath, LoadpathState, Scope, Update},
        memory::{Memory, Remembered, RememberedEnd},
        past::HISTORY_LEN_MAX,
        program::HookId,
        record::{OrderId, Record, Store, Wanted},
        words::MAIN_STAYS,
    },
    spec::{ChildName, Digest, Exit, Hook, Mode, Mono, OnExit, RunId, StopPolicy, Verb},
};

/// How many steps may follow each other without time passing.
const STEPS_AT_ONCE_MAX: u64 = 2_000;
/// How long a stop without a posthook may take: up to three steps, KILL, the disk, and lateness.
const STOP_SPAN_MAX: std::time::Duration = std::time::Duration::from_secs(45);
/// How long any request may take: a full queue of slow restarts with slow hooks.
const ANSWER_SPAN_MAX: std::time::Duration = std::time::Duration::from_secs(3_600);

/// How many facts are kept to be told again.
const STALE_KEPT_MAX: usize = 12;

#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) id: RequestId,
    pub(super) command: Command,
    pub(super) at: Mono,
}

/// An order that the core has taken and is not done with, as far as was written down.
#[derive(Debug, Clone)]
pub(super) struct Taken {
    child: ChildName,
    wanted: Wanted,
    over: Option<RunId>,
    at: Mono,
    /// Whether the server that took it has died.
    owed: bool,
    /// Whether that server had begun to replace the very run that is still the latest.
    admitted: bool,
}

impl Taken {
    pub(super) fn child(&self) -> &ChildName {
        &self.child
    }
}

/// A name that the listing does not show any more.
#[derive(Debug, Clone)]
pub(super) struct Absent {
    pub(super) since: Mono,
    pub(super) home: std::path::PathBuf,
    /// Whether that could be believed at some time after the quiet second.
    pub(super) believed: bool,
    /// Whether it surely counts among those that went.
    pub(super) counts: bool,
}

#[derive(Debug, Default)]
pub(super) struct Checks {
    /// What was found wrong first.
    pub(super) fault: Option<String>,
    pub(super) open: BTreeMap<RequestId, Asked>,
    answered: BTreeSet<RequestId>,
    /// Whose answers nobody hears.
    pub(super) forsaken: BTreeSet<RequestId>,
    /// The runs that are over: each is to be told.
    pub(super) over: BTreeSet<RunKey>,
    /// The orders that are to be carried out, whatever becomes of the server.
    pub(super) taken: BTreeMap<OrderId, Taken>,
    /// The orders that this server has carried out, which it may not have been told yet.
    carried_out: BTreeSet<OrderId>,
    /// By which run which order is carried out.
    begun: BTreeMap<RunKey, OrderId>,
    /// Who is held, by the core's own orders.
    held: BTreeSet<ChildName>,
    releasing: BTreeMap<Ticket, Vec<ChildName>>,
    /// The highest run number ever used.
    pub(super) used: BTreeMap<ChildName, u64>,
    /// The listing as the core was told.
    pub(super) view: BTreeMap<ChildName, Entry>,
    pub(super) absent: BTreeMap<ChildName, Absent>,
    pub(super) loadpaths: Vec<Loadpath>,
    /// Where each loadpath stood when it had files.
    pub(super) places: BTreeMap<std::path::PathBuf, u64>,
    confirmed: Mono,
    /// Nobody watches: what was believed to be gone until then.
    unwatched: Option<BTreeSet<ChildName>>,
    pub(super) settings: Settings,
    booted: Mono,
    /// Who ended by itself, running what.
    by_itself: BTreeMap<ChildName, Digest>,
    /// Who had a run before this server started.
    known_at_boot: BTreeSet<ChildName>,
    /// Whose prehook program succeeded since it was last started.
    prehook_done: BTreeSet<ChildName>,
    prehooks: BTreeSet<HookKey>,
    /// The runs whose command to stop them failed.
    pub(super) stoppers_failed: BTreeSet<RunKey>,
    /// The order of starts: for prehooks that start somebody.
    starts: BTreeMap<ChildName, u64>,
    start_count: u64,
    /// Whom the core was excused from starting: an attempt failed since its file changed.
    pub(super) excused: BTreeSet<ChildName>,
    /// The last good content of each file.
    good: BTreeMap<ChildName, Digest>,
    /// Who was stopped since its file changed.
    pub(super) stopped: BTreeSet<ChildName>,
    /// The runs of which the log was told that they name another main process.
    main_told: BTreeSet<RunKey>,
    /// Whom a hook may have stopped.
    pub(super) stop_targets: BTreeSet<ChildName>,
    /// Who was stopped by anybody since the server started.
    pub(super) ever_stopped: BTreeSet<ChildName>,
    /// Who waited for a restart before this step.
    pub(super) in_backoff: BTreeSet<ChildName>,
    /// The next step must order nothing.
    pub(super) silent: Option<&'static str>,
    /// Facts that are old by now.
    stale: Vec<Event>,
    at_once: (Mono, u64),
    pub(super) shutdowns: u64,
    stop_at_end: bool,
    /// How the child has ended by itself with which the server is to end, since it ran last.
    pub(super) mainstay: Option<Exit>,
    pub(super) ends_with_mainstay: bool,
    /// What those who follow have heard.
    pub(super) heard: Heard,
    pub(super) depending: Depending,
}

impl Checks {
    pub(super) fn blame(&mut self, what: impl FnOnce() -> String) {
        if self.fault.is_none() {
            self.fault = Some(what());
        }
    }

    pub(super) fn server_died(&mut self) {
        self.open.clear();
        self.depending.server_died();
        self.carried_out.clear();
        self.releasing.clear();
        self.prehook_done.clear();
        self.starts.clear();
        self.stale.clear();
        self.excused.clear();
        self.silent = None;
        self.unwatched = None;
        self.shutdowns = 0;
        self.stop_at_end = false;
        self.mainstay = None;
        self.ends_with_mainstay = false;
        self.heard.clear();
    }

    pub(super) fn host_died(&mut self) {
        self.taken.clear();
        self.confirmed = Mono(0);
        self.by_itself.clear();
        self.places.clear();
        self.at_once = (Mono(0), 0);
    }

    /// What lives when the host goes down is over.
    pub(super) fn over_with_host(&mut self, processes: &BTreeMap<RunKey, Process>) {
        let recorded = processes.iter().filter(|(_, process)| process.recorded);
        self.over.extend(recorded.map(|(key, _)| key.clone()));
    }

    /// A hook's program is about to begin.
    pub(super) fn hook_begins(&mut self, key: &HookKey, pre: bool) {
        if pre {
            self.prehooks.insert(key.clone());
        }
    }

    /// A run is about to begin, for an order maybe.
    pub(super) fn begin(&mut self, key: RunKey, order: Option<OrderId>) {
        if let Some(order) = order {
            self.begun.insert(key, order);
        }
    }

    /// The process of a run lives: what it was begun for is done.
    pub(super) fn started(&mut self, key: &RunKey) {
        if let Some(order) = self.begun.remove(key) {
            self.taken.remove(&order);
            self.carried_out.insert(order);
        }
    }

    /// Whether an order of this child stands that is like this.
    pub(super) fn is_taken(&self, child: &ChildName, like: impl Fn(Wanted) -> bool) -> bool {
        let mut taken = self.taken.values();
        taken.any(|it| it.child == *child && like(it.wanted))
    }

    pub(super) fn is_held(&self, child: &ChildName) -> bool {
        self.held.contains(child)
    }

    /// The records of a child are lost, but for those that outlive the host.
    pub(super) fn lose_records(&mut self, child: &ChildName) {
        self.taken.retain(|_, taken| taken.child != *child);
        self.begun.retain(|(name, _), _| name != child);
        self.by_itself.remove(child);
        self.depending.lose_records(child);
    }

    /// A request has its answer.
    pub(super) fn close(&mut self, id: RequestId) {
        self.open.remove(&id);
        self.answered.insert(id);
    }

    /// Whether anybody waits for an answer that is to come before the server's end.
    pub(super) fn is_awaited(&self) -> bool {
        let mut open = self.open.values();
        open.any(|asked| !is_without_end(&asked.command))
    }

    fn stock(&mut self, event: &Event) {
        if self.stale.len() >= STALE_KEPT_MAX {
            self.stale.remove(0);
        }
        self.stale.push(event.clone());
    }
}

impl World {
    pub(super) fn blame(&mut self, what: impl FnOnce(&Self) -> String) {
        if self.checks.fault.is_none() {
            let what = what(self);
            self.checks.blame(|| what);
        }
    }

    pub(super) fn booted(&mut self, boot: &Boot) {
        let checks = &mut self.checks;
        checks.booted = self.now.mono;
        checks.settings = boot.settings.clone();
        checks.view.clear();
        checks.main_told.clear();
        checks.absent.clear();
        checks.loadpaths.clear();
        let children = boot.memory.children.iter();
        let held = children.filter(|(_, child)| child.held.is_some());
        checks.held = held.map(|(name, _)| name.clone()).collect();
        checks.known_at_boot = remembered_runs(&boot.memory);
        // What was seen and not written down is forgotten.
        let places = boot.memory.loadpaths.iter();
        checks.places = places.map(|(path, at)| (path.clone(), at.1)).collect();
        checks.mainstay = remembered_mainstay(boot);
        let runs = |name: &ChildName| {
            let last = boot
                .memory
                .children
                .get(name)
                .and_then(|child| child.last.as_ref());
            last.is_some_and(|last| last.end.is_none())
        };
        checks
            .by_itself
            .retain(|name, _| boot.start == StartKind::Continued && !runs(name));
    }

    /// Takes note of a fact before the core is told.
    pub(super) fn before(&mut self, event: &Event) {
        let due = |child: &Child| child.retry.is_some() && child.job.is_none();
        let due = self.core.children.iter().filter(|(_, child)| due(child));
        self.checks.in_backoff = due.map(|(name, _)| name.clone()).collect();
        let now = self.now.mono;
        match event {
            Event::Boot(boot) => {
                self.see(&boot.listing, now);
                self.miss_what_runs(boot, now);
            }
            Event::Listing(update) => self.see(update, now),
            Event::Reread { update, .. } => {
                self.see(update, now);
                self.checks.stock(event);
            }
            Event::Unwatched => self.note_unwatched(),
            Event::Settings(settings) => self.checks.settings = settings.clone(),
            Event::Request { id, command, .. } => {
                let asked = Asked {
                    id: *id,
                    command: command.clone(),
                    at: now,
                };
                self.checks.open.insert(*id, asked);
                if matches!(command, Command::StopAll) {
                    self.note_stopped_all();
                }
                if let Command::Kill(children) = command {
                    self.checks.shutdowns += 1;
                    let stop = *children == KillChildren::Stop;
                    self.note_end_order(stop);
                }
            }
            Event::Forsaken { id } => {
                self.checks.forsaken.insert(*id);
            }
            Event::Shutdown => {
                self.checks.shutdowns += 1;
                self.note_end_order(false);
            }
            Event::HookFinished {
                child,
                hook,
                result,
            } => {
                let pre = self.checks.prehooks.remove(&(child.clone(), *hook));
                if pre && result.is_ok() {
                    self.checks.prehook_done.insert(child.clone());
                }
                self.checks.stock(event);
            }
            Event::Recorded { ticket, result } => {
                let released = self.checks.releasing.remove(ticket).unwrap_or_default();
                if result.is_ok() {
                    for child in released {
                        self.checks.held.remove(&child);
                    }
                }
                self.checks.stock(event);
            }
            Event::Exited { .. }
            | Event::Spawned { .. }
            | Event::SpawnFailed { .. }
            | Event::Probed { .. }
            | Event::Preflight { .. } => self.checks.stock(event),
            Event::Notified { .. } => self.checks.stock(event),
            Event::SuspectGone { .. }
            | Event::FellBehind { .. }
            | Event::Upgrade
            | Event::Deadline => {}
        }
    }

    fn note_unwatched(&mut self) {
        let gone = self.core.children.iter().filter(|(_, child)| {
            let belief = child.gone.as_ref().map(|gone| gone.belief);
            belief == Some(Belief::Confirmed)
        });
        let gone = gone.map(|(name, _)| name.clone()).collect();
        self.checks.unwatched.get_or_insert(gone);
    }

    pub(super) fn note_end_order(&mut self, stop: bool) {
        if stop || self.checks.settings.on_exit == OnExit::Stop {
            self.checks.stop_at_end = true;
            self.note_stopped_all();
        }
    }

    fn see(&mut self, update: &Update, now: Mono) {
        let checks = &mut self.checks;
        checks.loadpaths.clone_from(&update.loadpaths);
        let mut seen = BTreeSet::new();
        for (name, entry) in &update.entries {
            seen.insert(name.clone());
            match entry {
                Some(entry) => {
                    if let Content::Good(spec) = &entry.content
                        && checks.good.insert(name.clone(), spec.digest) != Some(spec.digest)
                    {
                        checks.excused.remove(name);
                        checks.stopped.remove(name);
                    }
                    checks.note_stop_hooks(name, entry);
                    checks.view.insert(name.clone(), entry.clone());
                    checks.absent.remove(name);
                }
                None => checks.lose(name, now),
            }
        }
        if update.scope != Scope::Touched {
            checks.unwatched = None;
            let names: Vec<ChildName> = checks.view.keys().cloned().collect();
            for name in names.iter().filter(|name| !seen.contains(*name)) {
                checks.lose(name, now);
            }
        }
        if update.scope == Scope::Confirming {
            checks.confirmed = now;
        }
        for loadpath in &update.loadpaths {
            if let LoadpathState::Ready { ino, .. } = loadpath.state
                && checks.has_files(&loadpath.path)
            {
                checks.places.insert(loadpath.path.clone(), ino);
            }
        }
    }

    /// What lives although no file declares it may be missed from now on.
    fn miss_what_runs(&mut self, boot: &Boot, now: Mono) {
        for (name, child) in &boot.memory.children {
            let Some(last) = &child.last else { continue };
            if !self.checks.view.contains_key(name) {
                let home = last.spec.folder().to_owned();
                // Of what is in doubt nobody knows whether it lived.
                let doubted =
                    last.doubt.is_some() || boot.doubted.iter().any(|(child, ..)| child == name);
                self.checks.absent.insert(
                    name.clone(),
                    Absent {
                        since: now,
                        home,
                        believed: false,
                        counts: last.process.is_some() && last.end.is_none() && !doubted,
                    },
                );
            }
        }
    }

    // What is ordered.

    /// Looks at all that one step orders.
    pub(super) fn check_order(&mut self, effects: &[Effect]) {
        self.check_mainstay(effects);
        self.check_waiting(effects);
        if let Some(why) = self.checks.silent.take()
            && !effects.is_empty()
        {
            self.blame(|_| format!("{why}: {}", super::world::short_effect(&effects[0])));
        }
        let mut ended: BTreeSet<RunKey> = BTreeSet::new();
        for (at, effect) in effects.iter().enumerate() {
            match effect {
                Effect::Record { records, .. } => {
                    for record in records {
                        if let Record::Ended { child, run, .. } = record {
                            ended.insert((child.clone(), *run));
                        }
                    }
                }
                Effect::Reap { child, run, .. } if !ended.contains(&(child.clone(), *run)) => {
                    self.blame(|_| {
                        format!("I2: {child} run {run} is let go before its end is recorded")
                    });
                }
                Effect::Signal {
                    child,
                    run,
                    signal: Signal::Ask(_),
                    scope: _,
                } => {
                    let cause = effects[at..]
                        .iter()
                        .find_map(|effect| stop_cause(effect, child));
                    self.check_term(&(child.clone(), *run), cause);
                }
                Effect::Reap { .. }
                | Effect::Signal { .. }
                | Effect::Reread { .. }
                | Effect::Preflight { .. }
                | Effect::Spawn { .. }
                | Effect::RunHook { .. }
                | Effect::KillHook { .. }
                | Effect::Probe { .. }
                | Effect::EndProbe { .. }
                | Effect::Tell { .. }
                | Effect::Reply { .. }
                | Effect::Account { .. }
                | Effect::Explain { .. }
                | Effect::Log(_)
                | Effect::Inform { .. }
                | Effect::Recount { .. }
                | Effect::Upgrade { .. }
                | Effect::Exit { .. } => {}
            }
        }
    }

    /// Looks at one effect just before the world performs it.
    pub(super) fn check_effect(&mut self, effect: &Effect) {
        match effect {
            Effect::Record { ticket, records } => {
                for record in records {
                    self.check_record(*ticket, record);
                }
            }
            Effect::Spawn {
                child,
                run,
                spec,
                order,
                ..
            } => {
                let key = (child.clone(), *run);
                self.check_spawn(&key, spec);
                let mine = |order: &OrderId| {
                    let taken = self.checks.taken.get(order);
                    taken.is_some_and(|it| it.child == *child)
                };
                if order.as_ref().is_some_and(|order| !mine(order)) {
                    self.blame(|_| format!("{child} run {run} is for {order:?}, which is done"));
                }
            }
            Effect::Signal {
                child, run, signal, ..
            } => {
                self.check_signal(&(child.clone(), *run), *signal);
            }
            Effect::Reap { child, run, .. } => {
                let key = (child.clone(), *run);
                if self
                    .processes
                    .get(&key)
                    .is_some_and(|process| process.exit.is_none())
                {
                    self.blame(|_| format!("I2: {child} run {run} lives and is let go"));
                }
            }
            Effect::RunHook {
                child,
                hook,
                program,
                ..
            } => self.check_hook(&(child.clone(), *hook), program),
            Effect::Tell { id, events, answer } => self.check_told(*id, events, answer.as_ref()),
            Effect::Reply { id, answer } => {
                let Some(asked) = self.checks.open.remove(id) else {
                    let twice = self.checks.answered.contains(id);
                    self.blame(|_| format!("I5: request {} answered, twice: {twice}", id.0));
                    return;
                };
                self.checks.answered.insert(*id);
                self.check_answer(&asked, answer);
            }
            Effect::Explain { id, failure, .. } => {
                let Some(asked) = self.checks.open.remove(id) else {
                    self.blame(|_| format!("I5: request {} answered twice", id.0));
                    return;
                };
                self.checks.answered.insert(*id);
                self.check_waited(&asked, &Err(failure.clone()));
            }
            Effect::Inform { id, .. } | Effect::Upgrade { asked: Some(id) } => {
                if self.checks.open.remove(id).is_none() {
                    self.blame(|_| format!("I5: request {} answered twice", id.0));
                }
                self.checks.answered.insert(*id);
            }
            Effect::Account { id, why, .. } => {
                let asked = self.checks.open.get(id).map(|asked| asked.command.clone());
                if asked != Some(Command::Why(why.child.clone())) {
                    self.blame(|_| format!("I5: {asked:?} is answered as why: {why:?}"));
                }
                self.checks.close(*id);
            }
            Effect::Recount { id, checked, .. } => {
                if self.checks.open.remove(id).is_none() {
                    self.blame(|_| format!("I5: request {} answered twice", id.0));
                }
                self.checks.answered.insert(*id);
                self.check_checked(checked);
            }
            Effect::Log(line) => self.check_line(line),
            Effect::Exit { words, with } => {
                if with.is_some() != self.checks.ends_with_mainstay {
                    self.blame(|_| format!("the server ends with {with:?}"));
                }
                let said: BTreeSet<RunKey> = words
                    .children
                    .iter()
                    .map(|child| (child.name.clone(), child.run))
                    .collect();
                self.check_last_words(&said);
            }
            Effect::Reread { .. }
            | Effect::Preflight { .. }
            | Effect::KillHook { .. }
            | Effect::Probe { .. }
            | Effect::EndProbe { .. }
            | Effect::Upgrade { asked: None } => {}
        }
    }

    pub(super) fn check_record(&mut self, ticket: Option<Ticket>, record: &Record) {
        match record {
            Record::Held { child, .. } => {
                // What is on its way to the disk is overtaken by this.
                for released in self.checks.releasing.values_mut() {
                    released.retain(|other| other != child);
                }
                self.checks
                    .releasing
                    .retain(|_, released| !released.is_empty());
                self.checks.held.insert(child.clone());
            }
            Record::Released { child } => {
                let asked = self.checks.open.values().any(|asked| match &asked.command {
                    Command::Child { verb, child: of } => *verb != Verb::Stop && of == child,
                    Command::StartAll => true,
                    Command::StopAll
                    | Command::CheckOne(_)
                    | Command::Why(_)
                    | Command::Wait { .. }
                    | Command::Events { .. }
                    | Command::Check { .. }
                    | Command::Info
                    | Command::Kill(_)
                    | Command::Upgrade => false,
                });
                let asked = asked || self.checks.is_taken(child, |it| it.verb() != Verb::Stop);
                if !asked {
                    self.blame(|_| format!("I3: {child} is released and nobody asked for it"));
                }
                if let Some(ticket) = ticket {
                    self.checks
                        .releasing
                        .entry(ticket)
                        .or_default()
                        .push(child.clone());
                }
            }
            Record::Ended {
                child,
                run,
                exit,
                by,
                ..
            } => {
                let key = (child.clone(), *run);
                self.checks.heard.run_ended(key.clone());
                self.checks.over.insert(key.clone());
                let real = self.processes.get(&key).and_then(|process| process.exit);
                if real.is_some_and(|real| real != *exit) {
                    self.blame(|_| format!("I2: {child} run {run} ended otherwise than recorded"));
                }
                if by.is_some() {
                    self.checks.by_itself.remove(child);
                } else if let Some(process) = self.processes.get(&key) {
                    self.checks
                        .by_itself
                        .insert(child.clone(), process.spec.digest);
                }
            }
            Record::Asked {
                child,
                order,
                wanted,
                over,
                ..
            } => {
                let taken = Taken {
                    child: child.clone(),
                    wanted: *wanted,
                    over: *over,
                    at: self.now.mono,
                    owed: false,
                    admitted: false,
                };
                self.checks.taken.insert(*order, taken);
            }
            Record::Answered {
                child,
                order,
                failure,
            } => self.check_done_with(child, *order, *failure),
            Record::Forgotten { .. }
            | Record::Opened { .. }
            | Record::Closed
            | Record::Begun { .. }
            | Record::Started { .. }
            | Record::NotStarted { .. }
            | Record::Stopping { .. }
            | Record::Armed { .. }
            | Record::Disarmed { .. }
            | Record::LoadpathSeen { .. }
            | Record::Reserved { .. } => {}
            #[allow(unreachable_patterns, reason = "the core may learn to record more")]
            _ => {}
        }
    }

    fn check_spawn(&mut self, key: &RunKey, spec: &crate::spec::Spec) {
        let (child, run) = key;
        let others: Vec<(RunId, bool)> = self
            .processes
            .iter()
            .filter(|((name, _), _)| name == child)
            .map(|((_, run), process)| (*run, process.recorded))
            .collect();
        let asked = self.checks.open.values().any(|asked| match &asked.command {
            Command::Child { child: of, .. } => of == child,
            Command::StopAll
            | Command::StartAll
            | Command::CheckOne(_)
            | Command::Why(_)
            | Command::Wait { .. }
            | Command::Events { .. }
            | Command::Check { .. }
            | Command::Info
            | Command::Kill(_)
            | Command::Upgrade => false,
        });
        let asked = asked || self.checks.is_taken(child, |_| true);
        for (other, recorded) in others {
            if recorded || !asked {
                self.blame(|_| format!("I1: {child} run {run} begins while run {other} is there"));
            }
        }
        let used = self.checks.used.get(child).copied().unwrap_or(0);
        if run.0 <= used {
            self.blame(|_| {
                format!("I4: {child} run {run} has a number that was used up to {used}")
            });
        }
        if self.checks.held.contains(child) {
            self.blame(|_| format!("I3: {child} is held and started"));
        }
        let before = self.checks.starts.get(child).copied().unwrap_or(0);
        match &spec.prehook {
            Some(Hook::Run(_)) if !self.checks.prehook_done.remove(child) => {
                self.blame(|_| format!("{child} is started before its prehook has succeeded"));
            }
            Some(Hook::Command { verb, child: other }) if *verb != Verb::Stop => {
                let since = self.checks.starts.get(other).copied().unwrap_or(0) > before;
                let lives = self.core.children.get(other).is_some_and(|it| {
                    // It may have lived when the hook asked.
                    let ended = it.last.as_ref().map(|last| last.at.mono);
                    it.run.is_some()
                        || ended.is_some_and(|at| self.now.mono - at < StopPolicy::WAIT * 21)
                });
                if !since && !lives {
                    self.blame(|_| {
                        format!("{child} is started before its prehook started {other}")
                    });
                }
            }
            Some(Hook::Run(_) | Hook::Command { .. }) | None => {}
        }
        self.checks.start_count += 1;
        let count = self.checks.start_count;
        self.checks.starts.insert(child.clone(), count);
    }

    fn check_term(&mut self, key: &RunKey, cause: Option<Cause>) {
        let child = &key.0;
        let Some(cause) = cause else {
            // A later step is told with the first one.
            let process = self.processes.get(key);
            if process.is_some_and(|process| process.stop_at.is_some()) {
                return;
            }
            self.blame(|_| format!("{child} is stopped without a word why"));
            return;
        };
        // A stop that a dead server had begun goes on.
        let remembered = self.memory.children.get(child);
        let begun = remembered.is_some_and(|it| it.last.as_ref().is_some_and(|it| it.stopping));
        if begun && self.checks.booted == self.now.mono {
            return;
        }
        self.check_stop_order(key, cause);
        let job = self.core.children.get(child).and_then(|it| it.job);
        let job = job.and_then(|id| self.core.jobs.get(&id));
        match cause {
            Cause::Command => {
                let asked = self.checks.open.values().any(|asked| match &asked.command {
                    Command::Child { verb, child: of } => *verb != Verb::Start && of == child,
                    Command::StopAll => true,
                    Command::StartAll
                    | Command::CheckOne(_)
                    | Command::Why(_)
                    | Command::Wait { .. }
                    | Command::Events { .. }
                    | Command::Check { .. }
                    | Command::Info
                    | Command::Kill(_)
                    | Command::Upgrade => false,
                });
                let asked = asked || self.checks.is_taken(child, |it| it != Wanted::Start);
                if !asked && self.checks.booted != self.now.mono {
                    self.blame(|_| format!("{child} is stopped and nobody asked for it"));
                }
            }
            Cause::Changed => {
                let ran = self.processes.get(key).map(|process| process.spec.digest);
                let next = job
                    .and_then(|job| job.spec.as_ref())
                    .map(|spec| spec.digest);
                if ran == next || next.is_none() {
                    self.blame(|_| format!("I6: {child} is replaced by the same or by nothing"));
                }
            }
            Cause::NotReady | Cause::Unhealthy => self.check_probed(key, cause),
            Cause::Removed => self.check_removal(child),
            Cause::Shutdown => {
                if !self.checks.stop_at_end {
                    self.blame(|_| format!("{child} is stopped by an end that leaves children"));
                }
            }
            Cause::Hook | Cause::Repeat => {}
            // Older records do not say why.
            Cause::Boot if self.checks.booted == self.now.mono => {}
            Cause::Policy
            | Cause::Dependency
            | Cause::Boot
            | Cause::New
            | Cause::Settings
            | Cause::Reboot => {
                self.blame(|_| format!("{child} is stopped for {cause:?}"));
            }
        }
    }

    fn check_signal(&mut self, key: &RunKey, signal: Signal) {
        let (child, run) = key;
        let current = self.core.children.get(child).and_then(|it| it.run.as_ref());
        if current.is_none_or(|it| it.id != *run) {
            self.blame(|_| format!("I4: {signal:?} for {child} run {run}, which is not live"));
        }
        let Some(process) = self.processes.get(key) else {
            return;
        };
        if signal == Signal::Kill && process.kill_at.is_none() && self.checks.shutdowns < 2 {
            let patience = process.spec.stop.patience();
            let asked = process.stop_at;
            let failed = self.checks.stoppers_failed.contains(key);
            let patient = failed
                || patience.is_zero()
                || asked.is_some_and(|at| self.now.mono - at >= patience);
            if !patient {
                self.blame(|_| format!("I8: {child} is killed before its grace is over"));
            }
        }
    }

    fn check_line(&mut self, line: &Line) {
        let Some(child) = &line.child else { return };
        match line.what {
            MAIN_STAYS => {
                let Some(run) = line.run else { return };
                if !self.checks.main_told.insert((child.clone(), run)) {
                    self.blame(|_| format!("{child} run {run} fills the log"));
                }
            }
            "started" => {
                let Some(run) = line.run else { return };
                let process = self.processes.get(&(child.clone(), run));
                let digest = process.map(|process| process.spec.digest);
                let again = digest.is_some() && self.checks.by_itself.get(child) == digest.as_ref();
                let cause = line.cause;
                match cause {
                    Some(Cause::New | Cause::Changed | Cause::Settings) if again => {
                        self.blame(|_| {
                            format!("{child} ended by itself and is started for {cause:?}")
                        });
                    }
                    Some(Cause::Boot)
                        if self.start == StartKind::Continued
                            && self.checks.known_at_boot.contains(child) =>
                    {
                        self.blame(|_| format!("{child} is started by a start that continues"));
                    }
                    Some(_) | None => {}
                }
                self.checks.by_itself.remove(child);
                if self.exit_with.as_ref() == Some(child) {
                    self.checks.mainstay = None;
                }
                self.checks.known_at_boot.insert(child.clone());
            }
            "not started" | "could not be started" | "given up" => {
                if line.what == "could not be started" {
                    self.checks.by_itself.remove(child);
                }
                self.checks.excused.insert(child.clone());
            }
            _other => {}
        }
    }

    /// An order is written down as done with.
    fn check_done_with(&mut self, child: &ChildName, order: OrderId, failure: Option<ErrorCode>) {
        if self.checks.carried_out.remove(&order) {
            return;
        }
        let taken = self.checks.taken.remove(&order);
        let Some(taken) = taken.filter(|taken| taken.child == *child) else {
            self.blame(|_| format!("order {} of {child} is done with twice", order.0));
            return;
        };
        if !taken.owed {
            return;
        }
        let verb = taken.wanted.verb();
        let command = Command::Child {
            verb,
            child: child.clone(),
        };
        let asked = Asked {
            id: RequestId(0),
            command,
            at: taken.at,
        };
        match failure {
            None if verb == Verb::Stop => self.check_stopped(&asked, child),
            None => {}
            Some(code) => self.check_refused(&asked, &Failure::new(code, "")),
        }
        if failure == Some(ErrorCode::NotRunning) && taken.admitted {
            self.blame(|_| format!("the restart of {child} that had begun is given up"));
        }
    }

    /// Each run that is over stands in the history or waits for it, as far as that goes back.
    pub(super) fn check_history(&mut self) {
        let mut missing = None;
        for (child, run) in &self.checks.over {
            let noted = self.noted.get(child).into_iter().flatten().copied();
            let remembered = self.memory.children.get(child);
            let over = remembered.map(|it| it.over.iter().map(|past| past.run));
            let told: BTreeSet<RunId> = noted.chain(over.into_iter().flatten()).collect();
            let later = told.range(RunId(run.0 + 1)..).count();
            if !told.contains(run) && later < HISTORY_LEN_MAX {
                missing = Some(format!("{child} run {run} is over and told nowhere"));
            }
        }
        if let Some(missing) = missing {
            self.blame(|_| missing);
        }
    }

    /// The server dies: what it has taken is owed by the next.
    pub(super) fn note_owed(&mut self) {
        self.note_due();
        for (order, taken) in &mut self.checks.taken {
            let child = self.core.children.get(&taken.child);
            let job = child.and_then(|it| self.core.jobs.get(&it.job?));
            let mine = job.filter(|job| job.order == Some(*order));
            let latest = child.map(|it| RunId(it.latest));
            taken.owed = true;
            taken.admitted = mine.is_some_and(|job| job.spec.is_some()) && taken.over == latest;
        }
    }

    fn check_last_words(&mut self, said: &BTreeSet<RunKey>) {
        if !self.checks.taken.is_empty() {
            self.blame(|world| format!("at the end these are not done: {:?}", world.checks.taken));
        }
        if !self.checks.open.is_empty() {
            self.blame(|world| format!("I5: at the end nobody answered {:?}", world.checks.open));
        }
        let lives = |process: &super::world::Process| process.recorded;
        let real: BTreeSet<RunKey> = self
            .processes
            .iter()
            .filter(|(_, process)| lives(process))
            .map(|(key, _)| key.clone())
            .collect();
        if real != *said {
            self.blame(|_| format!("I2: the last words name {said:?}, and {real:?} live"));
        }
        let spared: Vec<RunKey> = self
            .processes
            .iter()
            .filter(|(_, process)| process.recorded && process.exit.is_none())
            .filter(|(_, process)| process.kill_at.is_none())
            .map(|(key, _)| key.clone())
            .collect();
        if self.checks.stop_at_end && !spared.is_empty() {
            self.blame(|_| format!("the server was to stop its children, and left {spared:?}"));
        }
    }

    // What holds between steps.

    /// Looks at everything after a step.
    pub(super) fn after(&mut self) {
        let now = self.now.mono;
        let (at, count) = self.checks.at_once;
        self.checks.at_once = if at == now { (at, count + 1) } else { (now, 0) };
        if count > STEPS_AT_ONCE_MAX {
            self.blame(|_| "I9: the core does not come to rest".to_owned());
        }
        if self.core.next_deadline().is_some_and(|at| at <= now) {
            self.blame(|_| "I9: a deadline is armed that has passed".to_owned());
        }
        self.note_hook_stops();
        self.checks.note_belief(self.now.mono);
        self.after_processes();
        self.after_hooks();
        self.after_depends();
        self.check_readiness();
        self.after_core();
        self.after_requests();
        self.after_waits();
        self.after_events();
    }

    fn after_processes(&mut self) {
        let now = self.now.mono;
        let mut wrong = None;
        for ((child, run), process) in &self.processes {
            let current = self.core.children.get(child).and_then(|it| it.run.as_ref());
            let mine = current.filter(|it| it.id == *run);
            if process.recorded && mine.is_none() {
                wrong = Some(format!(
                    "I2: {child} run {run} lives and is not in the table"
                ));
            }
            let since = process
                .stop_at
                .max(Some(self.checks.booted))
                .filter(|_| process.stop_at.is_some());
            let put_off = match process.put_off {
                true => STOP_EXTENDED_MAX,
                false => std::time::Duration::ZERO,
            };
            let patience = process.spec.stop.patience() + put_off;
            let late =
                since.is_some_and(|at| now - at > patience + std::time::Duration::from_secs(1));
            if late && process.kill_at.is_none() && process.exit.is_none() && process.recorded {
                wrong = Some(format!(
                    "I8: {child} run {run} does not end when asked and is not killed"
                ));
            }
        }
        if let Some(wrong) = wrong {
            self.blame(|_| wrong);
        }
    }

    fn after_core(&mut self) {
        let mut wrong = None;
        for (name, child) in &self.core.children {
            if child.queue.len() > QUEUE_LEN_MAX {
                wrong = Some(format!("I8: {} orders wait for {name}", child.queue.len()));
            }
            if child.job.is_none() && !child.queue.is_empty() {
                wrong = Some(format!("I8: orders wait for {name} and none is under way"));
            }
            for id in child.job.iter().chain(&child.queue) {
                if !self.core.jobs.contains_key(id) {
                    wrong = Some(format!("{name} has a job that is none"));
                }
            }
            if let Some(run) = &child.run {
                let there = self.processes.contains_key(&(name.clone(), run.id));
                if run.phase != Phase::Spawning && !there {
                    wrong = Some(format!(
                        "I2: {name} run {} is in the table and not there",
                        run.id
                    ));
                }
                if run.phase == Phase::Spawning && child.job.is_none() {
                    wrong = Some(format!("{name} is being started by nobody"));
                }
                if matches!(
                    run.phase,
                    Phase::Stopping {
                        rung: Rung::Stuck,
                        ..
                    }
                ) && run.pid.is_none()
                {
                    wrong = Some(format!("{name} is stuck without a process"));
                }
            }
            if child.hold.is_some() != self.checks.held.contains(name)
                && self.checks.releasing.is_empty()
            {
                wrong = Some(format!("I3: whether {name} is held is not clear"));
            }
        }
        for (id, job) in &self.core.jobs {
            let child = self.core.children.get(&job.child);
            let mine = child.is_some_and(|it| it.job == Some(*id) || it.queue.contains(id));
            for waiter in &job.waiters {
                if let (Waiter::Repeat(armed), Step::Reading) = (waiter, job.step)
                    && child.is_some_and(|it| it.latest != armed.run.0)
                {
                    let (run, name) = (armed.run, &job.child);
                    wrong = Some(format!(
                        "I4: the repeat of run {run} of {name} fires too late"
                    ));
                }
            }
            if !mine {
                wrong = Some(format!("job {} for {} is lost", id.0, job.child));
            }
            if (job.step == Step::Queued) != child.is_some_and(|it| it.queue.contains(id)) {
                wrong = Some(format!(
                    "job {} for {} waits in the wrong place",
                    id.0, job.child
                ));
            }
        }
        if let Some(wrong) = wrong {
            self.blame(|_| wrong);
        }
    }

    fn after_requests(&mut self) {
        let now = self.now.mono;
        let mut wrong = None;
        for (id, asked) in &self.checks.open {
            let span = now - asked.at;
            if span > ANSWER_SPAN_MAX && !is_without_end(&asked.command) {
                wrong = Some(format!(
                    "I5: request {} is not answered: {:?}",
                    id.0, asked.command
                ));
            }
            if let Command::Child { child, .. } = &asked.command
                && !self.checks.is_taken(child, |_| true)
                // The process lives, and the core has not been told yet.
                && self.core.children.get(child).is_none_or(|it| {
                    it.run.as_ref().is_none_or(|run| run.phase != Phase::Spawning)
                })
            {
                wrong = Some(format!("{:?} is not written down", asked.command));
            }
            let Command::Child {
                verb: Verb::Stop,
                child,
            } = &asked.command
            else {
                continue;
            };
            let mut processes = self.processes.iter();
            let put_off = match processes.any(|((name, _), it)| name == child && it.put_off) {
                true => STOP_EXTENDED_MAX,
                false => std::time::Duration::ZERO,
            };
            if span > STOP_SPAN_MAX + put_off {
                let job = self.core.children.get(child).and_then(|it| it.job);
                let job = job.and_then(|id| self.core.jobs.get(&id));
                let hooked = job.is_some_and(|job| matches!(job.step, Step::Posthook(_)));
                if !hooked {
                    wrong = Some(format!("I8: `stop {child}` is not answered in time"));
                }
            }
        }
        if let Some(wrong) = wrong {
            self.blame(|_| wrong);
        }
    }

    pub(super) fn check_taken_back(&mut self) {
        if self.ended || self.weather == Weather::Kind {
            return;
        }
        self.after();
    }

    /// Whose run was about to begin when the server died, and can begin now.
    pub(super) fn unborn(&self, boot: &Boot) -> Vec<ChildName> {
        let listed: BTreeMap<_, _> = boot.listing.entries.iter().cloned().collect();
        let due = |(name, it): (&ChildName, &Remembered)| {
            let last = it.last.as_ref()?;
            let doubted = boot.doubted.iter().any(|(child, ..)| child == name);
            let doubted = doubted || last.doubt.is_some();
            let unborn = last.end.is_none() && last.process.is_none() && !doubted;
            let entry = listed.get(name)?.as_ref()?;
            let good = matches!(
                &entry.content,
                Content::Good(spec) if spec.prehook.is_none() && spec.depends_on.is_empty()
            );
            let goes_on = boot.start == StartKind::Continued && it.held.is_none();
            // Or a fresh start that died owed it a run.
            let wanted = match boot.settings.mode {
                Mode::Quiet => false,
                Mode::Half => boot.settings.startup.contains(name),
                Mode::Full | Mode::Sync => true,
            };
            let owed = last.renewed && wanted && last.doubt.is_none() && !doubted;
            let due = (unborn && !last.settled) || owed;
            (good && goes_on && due).then(|| name.clone())
        };
        boot.memory.children.iter().filter_map(due).collect()
    }

    /// What was due when the server died is due for the next one.
    pub(super) fn check_unborn(&mut self, unborn: &[ChildName]) {
        for name in unborn {
            let child = self.core.children.get(name);
            // Who may live already is due when that is known.
            let waits = |child: &Child| child.job.is_some() || child.may_be_suspect();
            let ends = self.ended || self.core.is_ending();
            if !ends && !child.is_some_and(waits) {
                self.blame(|_| format!("{name} was about to begin and is forgotten"));
            }
        }
    }

    /// The shortest list of records amounts to the same.
    pub(super) fn check_compaction(&mut self) {
        let mut again = Memory::default();
        for store in [Store::State, Store::Runtime] {
            for record in self.memory.records(store) {
                again.apply(&record);
            }
        }
        // Of whom nothing is remembered may be forgotten.
        let mut before = self.memory.clone();
        let nothing = Remembered::default();
        before.children.retain(|_, child| *child != nothing);
        if again != before {
            self.blame(|_| "compaction changes what is remembered".to_owned());
            self.told(|_| format!("{before:?}\n{again:?}"));
        }
    }

    pub(super) fn check_refusal(&mut self, boot: &Boot) {
        let lives = self.processes.values().any(|process| process.recorded);
        let declared = |name: &ChildName| boot.listing.entries.iter().any(|(it, _)| it == name);
        let unknown = self.exit_with.as_ref().is_some_and(|it| !declared(it));
        let strict = self.settings.mode == Mode::Full;
        if lives || !(strict || unknown) || self.start != StartKind::Fresh {
            self.blame(|_| "a server that must come up refuses to".to_owned());
        }
    }

    pub(super) fn check_closed(&mut self) {
        if !self.memory.closed {
            self.blame(|_| "the server's end by order is not recorded".to_owned());
        }
    }

    // Stale facts.

    /// Tells the core again what it was told, or what concerns nobody: nothing may come of it.
    pub(super) fn tell_stale(&mut self) {
        let event = match self.random.below(4) {
            0 => self.stale_listing(),
            1 => self.made_up(),
            _ if self.checks.stale.is_empty() => self.made_up(),
            _ => self.told_before(),
        };
        self.tell_again(event);
    }

    /// Tells the core what it knows already, unless somebody waits for it once more.
    pub(super) fn tell_again(&mut self, event: Event) {
        let due = self
            .core
            .next_deadline()
            .is_some_and(|at| at <= self.now.mono);
        // After an edit of server.yml a whole listing is awaited: it is news even if it is the same.
        // So it is when nobody has watched.
        let awaited =
            (self.core.relisting || self.core.unwatched) && matches!(event, Event::Listing(_));
        if self.ended || due || awaited || self.is_current(&event) {
            return;
        }
        let event = match event {
            Event::Reread { job, .. } => {
                let update = self.view_again(Scope::Touched);
                Event::Reread { job, update }
            }
            other => other,
        };
        self.checks.silent = Some(match &event {
            Event::Listing(_) => "I7: the same listing has effects",
            _other => "I4: an old fact has effects",
        });
        self.tell(event);
    }

    fn stale_listing(&mut self) -> Event {
        let scope = if self.random.percent(50) {
            Scope::Touched
        } else {
            Scope::Whole
        };
        Event::Listing(self.view_again(scope))
    }

    fn view_again(&self, scope: Scope) -> Update {
        let entries = self
            .checks
            .view
            .iter()
            .map(|(name, entry)| (name.clone(), Some(entry.clone())));
        let gone = self.checks.absent.keys().map(|name| (name.clone(), None));
        Update {
            scope,
            loadpaths: self.checks.loadpaths.clone(),
            entries: entries.chain(gone).collect(),
        }
    }

    /// What the core was told, the later the likelier.
    fn told_before(&mut self) -> Event {
        let stale = &self.checks.stale;
        let from = if self.random.percent(60) {
            stale.len().saturating_sub(2)
        } else {
            0
        };
        self.random.pick(&stale[from..]).clone()
    }

    /// A fact about a run that is not the live one.
    fn made_up(&mut self) -> Event {
        let busy = self.random.percent(75);
        let busy = busy.then(|| self.somebody_busy()).flatten();
        let child = busy.unwrap_or_else(|| self.some_name());
        let job = self.core.children.get(&child).and_then(|it| it.job);
        if let Some(job) = job.filter(|_| self.random.percent(60)) {
            return match self.random.below(3) {
                0 => Event::Reread {
                    job,
                    update: self.view_again(Scope::Touched),
                },
                1 => Event::Preflight {
                    job,
                    result: Ok(()),
                },
                _ => Event::HookFinished {
                    child,
                    hook: HookId(0),
                    result: Ok(()),
                },
            };
        }
        let live = self
            .core
            .children
            .get(&child)
            .and_then(|it| it.run.as_ref());
        let run = live.map_or(RunId(1), |run| match run.id.0 {
            1 => RunId(2),
            n => RunId(n - 1),
        });
        match self.random.below(4) {
            0 => Event::Spawned { child, run, pid: 1 },
            1 => {
                let why = SpawnFailure::Refused("late".to_owned());
                Event::SpawnFailed { child, run, why }
            }
            _ => Event::Exited {
                child,
                run,
                exit: crate::spec::Exit::Code(0),
                circumstances: crate::spec::Circumstances::default(),
            },
        }
    }

    /// Whether somebody still waits for this fact.
    fn is_current(&self, event: &Event) -> bool {
        let live = |child: &ChildName, run: &RunId| {
            let current = self.core.children.get(child).and_then(|it| it.run.as_ref());
            current.is_some_and(|it| it.id == *run)
        };
        let step = |id: &JobId| self.core.jobs.get(id).map(|job| job.step);
        match event {
            Event::Exited { child, run, .. } | Event::Notified { child, run, .. } => {
                live(child, run)
            }
            // A second word of a start is not news either.
            Event::Spawned { child, run, .. } | Event::SpawnFailed { child, run, .. } => {
                let current = self.core.children.get(child).and_then(|it| it.run.as_ref());
                current.is_some_and(|it| it.id == *run && it.pid.is_none())
            }
            // An answer that comes twice finds its order at another step.
            Event::Reread { job, .. } => step(job) == Some(Step::Reading),
            Event::Preflight { job, .. } => step(job) == Some(Step::Checking),
            Event::HookFinished { child, hook, .. } => {
                let known = self
                    .core
                    .children
                    .get(child)
                    .and_then(|it| it.hook.as_ref());
                known.is_some_and(|known| known.id == *hook)
            }
            Event::Recorded { ticket, .. } => self.core.tickets.contains_key(ticket),
            Event::Probed { job, .. } => {
                let runs = self.core.children.values();
                let mut runs = runs.filter_map(|child| child.run.as_ref());
                runs.any(|run| run.probed.probe == Some(*job))
            }
            Event::Boot(_)
            | Event::Unwatched
            | Event::Settings(_)
            | Event::Request { .. }
            | Event::Forsaken { .. }
            | Event::FellBehind { .. }
            | Event::Shutdown
            | Event::Upgrade
            | Event::Deadline => true,
            Event::SuspectGone { pid, start_ticks } => {
                let mut known = self.core.suspects.processes();
                known.any(|it| it == (*pid, *start_ticks))
            }
            Event::Listing(_) => false,
        }
    }

    /// Whether a removal may be believed by now.
    fn check_removal(&mut self, child: &ChildName) {
        let now = self.now.mono;
        let Some(absent) = self.checks.absent.get(child).cloned() else {
            self.blame(|_| format!("{child} is stopped as removed and its file is there"));
            return;
        };
        if self.checks.settings.mode != Mode::Sync {
            self.blame(|_| format!("{child} is stopped as removed outside `sync`"));
        }
        let unwatched = self.checks.unwatched.as_ref();
        if unwatched.is_some_and(|believed| !believed.contains(child)) {
            self.blame(|_| format!("{child} is stopped as removed while nobody watches"));
        }
        if now - absent.since < QUIET {
            self.blame(|_| format!("{child} is stopped before the quiet second is over"));
        }
        let configured = self.checks.settings.loadpaths.contains(&absent.home);
        if configured && !absent.believed && !self.checks.is_believable(&absent.home) {
            self.blame(|_| format!("{child} is stopped because a loadpath is not to be had"));
        }
        let together = self.checks.absent.values().filter(|other| {
            let apart = (other.since - absent.since).max(absent.since - other.since);
            other.home == absent.home && apart < QUIET && other.counts
        });
        let together = together.count();
        let stay = self.checks.count_files(&absent.home);
        let many = together >= 3 && together > stay + together - together.min(stay + together);
        let many = many && together > stay;
        let confirmed = self.checks.confirmed > absent.since;
        let waited = self.checks.settings.rescan.is_none()
            || now - absent.since >= std::time::Duration::from_secs(60);
        if (many || (!configured && !absent.believed)) && !confirmed && !waited {
            self.blame(|_| format!("{child} is stopped although many files went at once"));
        }
    }
}

impl Checks {
    /// Whoever a hook may stop has an excuse for being down.
    fn note_stop_hooks(&mut self, name: &ChildName, entry: &Entry) {
        let Content::Good(spec) = &entry.content else {
            return;
        };
        if spec
            .repeat
            .is_some_and(|repeat| repeat.action == Verb::Stop)
        {
            self.stop_targets.insert(name.clone());
        }
        for hook in [&spec.prehook, &spec.posthook].into_iter().flatten() {
            if let Hook::Command {
                verb: Verb::Stop,
                child,
            } = hook
            {
                self.stop_targets.insert(child.clone());
            }
        }
    }

    fn lose(&mut self, name: &ChildName, now: Mono) {
        if let Some(entry) = self.view.remove(name) {
            let home = entry.paths[0]
                .parent()
                .expect("files stand in folders")
                .to_owned();
            self.absent.insert(
                name.clone(),
                Absent {
                    since: now,
                    home,
                    believed: false,
                    counts: true,
                },
            );
        }
    }

    fn note_belief(&mut self, now: Mono) {
        let mut absent = std::mem::take(&mut self.absent);
        for one in absent.values_mut().filter(|one| now - one.since >= QUIET) {
            one.believed = one.believed || self.is_believable(&one.home);
        }
        self.absent = absent;
    }

    pub(super) fn has_files(&self, home: &std::path::Path) -> bool {
        self.count_files(home) > 0
    }

    fn count_files(&self, home: &std::path::Path) -> usize {
        let here = |entry: &&Entry| entry.paths.iter().any(|path| path.parent() == Some(home));
        self.view.values().filter(here).count()
    }

    pub(super) fn is_believable(&self, home: &std::path::Path) -> bool {
        let Some(loadpath) = self.loadpaths.iter().find(|it| it.path == home) else {
            return false;
        };
        match loadpath.state {
            LoadpathState::Ready { ino, .. } => {
                self.has_files(home) || self.places.get(home).is_none_or(|place| *place == ino)
            }
            LoadpathState::Missing | LoadpathState::Unreadable(_) => false,
        }
    }
}

/// Why a child is being stopped, if this line says so.
fn stop_cause(effect: &Effect, child: &ChildName) -> Option<Cause> {
    match effect {
        Effect::Log(line) if line.what == "stopping" && line.child.as_ref() == Some(child) => {
            line.cause
        }
        Effect::Log(_)
        | Effect::Record { .. }
        | Effect::Reread { .. }
        | Effect::Preflight { .. }
        | Effect::Spawn { .. }
        | Effect::Signal { .. }
        | Effect::Reap { .. }
        | Effect::RunHook { .. }
        | Effect::KillHook { .. }
        | Effect::Probe { .. }
        | Effect::EndProbe { .. }
        | Effect::Tell { .. }
        | Effect::Reply { .. }
        | Effect::Account { .. }
        | Effect::Explain { .. }
        | Effect::Inform { .. }
        | Effect::Recount { .. }
        | Effect::Upgrade { .. }
        | Effect::Exit { .. } => None,
    }
}

fn remembered_runs(memory: &Memory) -> BTreeSet<ChildName> {
    let ran = memory.children.iter().filter(|(_, child)| {
        child.last.as_ref().is_some_and(|last| {
            last.started.is_some()
                && !last.replacing
                && !last.renewed
                && !matches!(last.end, Some(RememberedEnd::NotStarted { .. }))
        })
    });
    ran.map(|(name, _)| name.clone()).collect()
}
