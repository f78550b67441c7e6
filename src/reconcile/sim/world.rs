//! The fake world: performs effects as the shell would, and reports what they come to.
//!
//! Time is a number that jumps to whatever is next. Everything the world does is drawn from one
//! seed. The order within one source is kept, as the shell keeps it (what a watcher read earlier
//! is told earlier, the disk is written in order, an exit is told after the start); between
//! sources anything goes.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use super::{
    checks::Checks,
    coverage::Coverage,
    files::{DirState, File, Files, HOMES, NAMES, name, spec},
    hooks::{HookKey, HookProcess},
    probing::Showing,
    random::Random,
};
use crate::{
    reconcile::{
        State,
        boot::refusal,
        cause::Origin,
        effect::{Effect, Leftovers, Signal},
        event::{Boot, Event, JobId, Settings, SpawnFailure, StartKind, Ticket},
        listing::{Scope, Update},
        memory::Memory,
        record::{OrderId, Record, Store},
    },
    spec::{
        ChildName, Circumstances, Exit, Mode, Mono, RunId, SignalNumber, Spec, Time, Wall, Word,
    },
};

/// The longest the disk takes.
pub(super) const DISK_SPAN_MAX: Duration = Duration::from_secs(3);
/// How often the loadpaths are read again when the settings say so.
pub(super) const RESCAN: Duration = Duration::from_secs(60);

/// Every how many seeds the server is to end with a child.
const MAINSTAY_EVERY: u64 = 6;

pub(super) type RunKey = (ChildName, RunId);
/// Why a run is begun, and the client's order that is carried out by it.
pub(super) type Why = (Origin, Option<OrderId>);

/// A process of a run.
#[derive(Debug, Clone)]
pub(super) struct Process {
    pub(super) pid: i32,
    /// What it does when it is told to end.
    pub(super) temper: Temper,
    pub(super) spec: Arc<Spec>,
    pub(super) exit: Option<Exit>,
    /// Whether the record of its start is on disk.
    pub(super) recorded: bool,
    /// When it was first asked to end.
    pub(super) stop_at: Option<Mono>,
    /// Whether it has asked for more time since.
    pub(super) put_off: bool,
    /// What it shows when it is looked at.
    pub(super) showing: Showing,
    pub(super) kill_at: Option<Mono>,
    /// When it ends, as far as that is settled.
    pub(super) ends_at: Option<Mono>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Temper {
    /// How long TERM takes; `None` when it is ignored.
    pub(super) term: Option<Duration>,
    /// How long KILL takes: more than nothing in uninterruptible sleep.
    pub(super) kill: Duration,
}

/// Something that will happen.
#[derive(Debug, Clone)]
pub(super) enum Occurrence {
    /// The core is told.
    Tell(Event),
    /// A process ends, if it is still to end then.
    Ends(RunKey, Exit),
    /// The watcher looks at these names for a job.
    Look(JobId, BTreeSet<ChildName>),
    /// The watcher saw that these names changed.
    Notice(BTreeSet<ChildName>),
    /// The watcher reads everything, because that is due.
    Rescan,
    /// The watcher reads everything.
    LookAtAll(Scope),
    /// The disk has taken the oldest records.
    Written,
    /// A hook's program ends, if it lives then.
    HookEnds(HookKey, Result<(), String>),
    /// A hook's program that was killed is not gone.
    HookStaysOn(HookKey),
    /// A probe is answered.
    Probed(JobId, Result<(), String>),
    /// A run says something of itself.
    Says(RunKey, Word),
}

/// How often things go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weather {
    /// Whatever is asked of the world succeeds, and nobody crashes the server.
    Kind,
    /// Anything may fail.
    Rough,
    /// What fails is over: the core has to come to rest.
    Calm,
}

pub(super) struct World {
    pub(super) random: Random,
    pub(super) weather: Weather,
    pub(super) now: Time,
    pub(super) core: State,
    pub(super) start: StartKind,
    pub(super) files: Files,
    pub(super) settings: Settings,
    /// With whom each server is to end.
    pub(super) exit_with: Option<ChildName>,
    pub(super) memory: Memory,
    /// What waits for the disk.
    pub(super) journal: VecDeque<(Option<Ticket>, Vec<Record>)>,
    pub(super) processes: BTreeMap<RunKey, Process>,
    pub(super) hooks: BTreeMap<HookKey, HookProcess>,
    /// The probes that somebody waits for.
    pub(super) probes: BTreeMap<JobId, RunKey>,
    /// The runs that stand in the history, by child.
    pub(super) noted: BTreeMap<ChildName, BTreeSet<RunId>>,
    agenda: BTreeMap<(Mono, u64), Occurrence>,
    sequence: u64,
    /// How many events the core was told.
    pub(super) told_events: u64,
    watch_at: Mono,
    /// Until when nobody watches the loadpaths.
    pub(super) unwatched_until: Mono,
    disk_at: Mono,
    pub(super) next_pid: i32,
    pub(super) next_request: u64,
    /// Runs whose record of a start is lost.
    lost: BTreeSet<RunKey>,
    /// How many effects were ordered.
    pub(super) effects: u64,
    /// A crash will happen at this effect of the whole life.
    pub(super) crash_on: Option<u64>,
    /// A crash will happen at this effect of the next step that has one.
    crash_at: Option<u64>,
    pub(super) ended: bool,
    /// How often the disk failed.
    pub(super) disk_failures: u64,
    pub(super) checks: Checks,
    pub(super) coverage: Coverage,
    /// What happened, when somebody wants to read it.
    pub(super) history: Option<Vec<String>>,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let weather = if random.percent(35) {
            Weather::Kind
        } else {
            Weather::Rough
        };
        let mode = *random.pick(&[Mode::Sync, Mode::Sync, Mode::Full, Mode::Half, Mode::Quiet]);
        let startup = NAMES
            .iter()
            .filter(|_| random.percent(50))
            .map(|text| name(text));
        let startup = startup.collect();
        let settings = Settings {
            mode,
            startup,
            on_exit: crate::spec::OnExit::Leave,
            loadpaths: HOMES.iter().map(std::path::PathBuf::from).collect(),
            rescan: random.percent(70).then_some(RESCAN),
        };
        let mut world = Self {
            random,
            weather,
            now: Time {
                mono: Mono(1_000_000),
                wall: Wall(1_700_000_000_000),
            },
            core: State::new(),
            start: StartKind::Fresh,
            files: Files::new(),
            settings,
            exit_with: mainstay(seed),
            memory: Memory::default(),
            journal: VecDeque::new(),
            processes: BTreeMap::new(),
            hooks: BTreeMap::new(),
            probes: BTreeMap::new(),
            noted: BTreeMap::new(),
            agenda: BTreeMap::new(),
            sequence: 0,
            told_events: 0,
            watch_at: Mono(0),
            unwatched_until: Mono(0),
            disk_at: Mono(0),
            next_pid: 100,
            next_request: 1,
            lost: BTreeSet::new(),
            effects: 0,
            crash_on: None,
            crash_at: None,
            ended: false,
            disk_failures: 0,
            checks: Checks::default(),
            coverage: Coverage::default(),
            history: None,
        };
        for text in NAMES {
            if world.random.percent(60) {
                let home = HOMES[usize::from(world.random.percent(40))];
                world.write(home, &name(text));
            }
        }
        world
    }

    /// Writes some good file.
    pub(super) fn write(&mut self, home: &str, name: &ChildName) {
        let version = self.files.version();
        let spec = spec(&mut self.random, home, name, version);
        if let Some(dir) = self.files.dirs.get_mut(std::path::Path::new(home)) {
            dir.files.insert(name.clone(), File::Good(spec));
        }
    }

    pub(super) fn told(&mut self, line: impl FnOnce(&Self) -> String) {
        if self.history.is_some() {
            let line = line(self);
            self.history.get_or_insert_default().push(line);
        }
    }

    // Time.

    pub(super) fn plan(&mut self, at: Mono, what: Occurrence) {
        self.sequence += 1;
        self.agenda.insert((at, self.sequence), what);
    }

    pub(super) fn plan_in(&mut self, span: Duration, what: Occurrence) {
        self.plan(self.now.mono + span, what);
    }

    /// Tells the core what the watcher has just read, after what it read before.
    pub(super) fn report(&mut self, event: Event) {
        self.watch_at = self.watch_at.max(self.now.mono + self.random.delay());
        self.plan(self.watch_at, Occurrence::Tell(event));
    }

    pub(super) fn pass(&mut self, span: Duration) {
        self.now.mono = self.now.mono + span;
        let millis = i64::try_from(span.as_millis()).expect("spans are short");
        self.now.wall = Wall(self.now.wall.0 + millis);
    }

    /// Whether anything will happen before this.
    pub(super) fn next_at(&self) -> Option<Mono> {
        let planned = self.agenda.first_key_value().map(|((at, _), _)| *at);
        let deadline = self.core.next_deadline().filter(|_| !self.ended);
        match (planned, deadline) {
            (Some(planned), Some(deadline)) => Some(planned.min(deadline)),
            (planned, deadline) => planned.or(deadline),
        }
    }

    /// Lets the next thing happen.
    pub(super) fn advance(&mut self) {
        let Some(at) = self.next_at() else { return };
        if self.random.percent(5) {
            self.note_runs();
        }
        let planned = self.agenda.first_key_value().map(|((at, _), _)| *at);
        self.pass(at - self.now.mono);
        if planned == Some(at) {
            if let Some((_, what)) = self.agenda.pop_first() {
                self.happens(what);
            }
        } else {
            // A timer is never early and seldom on time.
            let late = self.random.delay();
            self.pass(late);
            self.tell(Event::Deadline);
        }
    }

    /// What is over and waits for the history is written there, for one child.
    fn note_runs(&mut self) {
        let waits = self.memory.children.iter();
        let mut waits = waits.filter(|(_, child)| !child.over.is_empty());
        let Some((child, remembered)) = waits.next() else {
            return;
        };
        let (child, over) = (child.clone(), remembered.over.clone());
        let Some(last) = over.last() else { return };
        let upto = last.run;
        let noted = self.noted.entry(child.clone()).or_default();
        noted.extend(over.iter().map(|past| past.run));
        // The record of it waits for the next one, and goes with a server that is killed.
        if self.random.percent(70) {
            self.memory.apply(&Record::Noted { child, upto });
        }
    }

    pub(super) fn happens(&mut self, what: Occurrence) {
        match what {
            Occurrence::Tell(event) if self.random.percent(8) => {
                self.tell(event.clone());
                // A listing may be told again by `tell_stale`, which knows whether it is the last.
                if !matches!(event, Event::Listing(_)) {
                    self.tell_again(event);
                }
            }
            Occurrence::Tell(event) => self.tell(event),
            Occurrence::LookAtAll(scope) => self.look_at_all(scope),
            Occurrence::Look(..) | Occurrence::Notice(_) | Occurrence::Rescan
                if self.is_unwatched() =>
            {
                self.miss_out_on(what);
            }
            Occurrence::Ends(key, exit) => self.process_ends(key, exit),
            Occurrence::Look(job, names) => {
                let update = self
                    .files
                    .snapshot(&self.settings, Scope::Touched, Some(&names));
                self.report(Event::Reread { job, update });
            }
            Occurrence::Notice(names) => {
                let update = self
                    .files
                    .snapshot(&self.settings, Scope::Touched, Some(&names));
                self.report(Event::Listing(update));
            }
            Occurrence::Rescan => {
                self.look_at_all(Scope::Confirming);
                if let Some(every) = self.settings.rescan {
                    self.plan_in(every, Occurrence::Rescan);
                }
            }
            Occurrence::Written => self.written(),
            Occurrence::HookEnds(key, result) => self.hook_ends(key, result),
            Occurrence::HookStaysOn(key) => self.hook_stays_on(key),
            Occurrence::Probed(job, result) => self.probe_ends(job, result),
            Occurrence::Says(key, word) => self.says(key, word),
        }
    }

    pub(super) fn look_at_all(&mut self, scope: Scope) {
        if self.is_unwatched() {
            return self.miss_out_on(Occurrence::LookAtAll(scope));
        }
        let update = self.files.snapshot(&self.settings, scope, None);
        self.report(Event::Listing(update));
    }

    // The core.

    /// Gives the core a fact, performs what it orders, and looks whether that was right.
    pub(super) fn tell(&mut self, event: Event) {
        if self.ended {
            return;
        }
        self.told(|world| format!("{:>11} {}", world.clock(), short(&event)));
        self.sometimes_hand_over_core();
        self.before(&event);
        self.coverage.note(&self.core, &event);
        let effects = self.core.step(event, self.now);
        for effect in &effects {
            if !matches!(effect, Effect::Log(_)) {
                self.told(|_| format!("{:>15} {}", "->", short_effect(effect)));
            } else {
                self.told(|_| format!("{:>15} {}", "#", short_effect(effect)));
            }
        }
        self.check_order(&effects);
        for effect in effects {
            self.effects += 1;
            if self.crash_on == Some(self.effects) {
                self.crash(Some(effect));
                return;
            }
            if let Some(left) = self.crash_at.take() {
                if left == 0 {
                    self.crash(Some(effect));
                    return;
                }
                self.crash_at = Some(left - 1);
            }
            self.check_effect(&effect);
            self.perform(effect);
            if self.ended {
                return;
            }
        }
        self.after();
    }

    pub(super) fn clock(&self) -> String {
        let micros = self.now.mono.0;
        format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000)
    }

    /// The server will be killed at some effect from now on.
    pub(super) fn plan_crash(&mut self) {
        self.crash_at = Some(self.random.below(12));
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Record { ticket, records } => self.record(ticket, records),
            Effect::Reread { job, names } => {
                let span = self.random.delay() + self.random.delay();
                self.plan_in(span, Occurrence::Look(job, names));
            }
            Effect::Preflight { job, .. } => {
                let fails = self.weather == Weather::Rough && self.random.percent(10);
                let result = if fails {
                    Err("it is not there".to_owned())
                } else {
                    Ok(())
                };
                let span = self.random.delay();
                self.plan_in(span, Occurrence::Tell(Event::Preflight { job, result }));
            }
            Effect::Spawn {
                child,
                run,
                spec,
                clear: _,
                by,
                order,
            } => self.spawn(child, run, spec, (by, order)),
            Effect::Signal {
                child, run, signal, ..
            } => self.signal((child, run), signal),
            Effect::Reap {
                child,
                run,
                leftovers: Leftovers::Kill(_) | Leftovers::Leave,
            } => {
                self.processes.remove(&(child, run));
            }
            Effect::RunHook {
                child,
                hook,
                program,
                ..
            } => self.run_hook((child, hook), &program),
            Effect::KillHook { child, hook } => self.kill_hook((child, hook)),
            Effect::Probe {
                job,
                child,
                run,
                probe,
                time,
                ..
            } => self.begin_probe(job, (child, run), &probe, time),
            Effect::EndProbe { job } => {
                self.probes.remove(&job);
            }
            Effect::Tell { .. }
            | Effect::Reply { .. }
            | Effect::Account { .. }
            | Effect::Explain { .. }
            | Effect::Inform { .. }
            | Effect::Recount { .. }
            | Effect::Log(_) => {}
            Effect::Upgrade { .. } => self.upgrade(),
            Effect::Exit { .. } => self.ended = true,
        }
    }

    /// A run is about to begin: its number is used from now on.
    fn begin_run(&mut self, child: &ChildName, run: RunId, spec: &Arc<Spec>, why: Why) {
        self.checks.used.insert(child.clone(), run.0);
        // An operator who starts a child in doubt has been told to look for the old run first.
        let ended = |(name, _): &RunKey, process: &mut Process| name == child && !process.recorded;
        for (_, process) in self.processes.extract_if(.., ended).collect::<Vec<_>>() {
            self.tell_unhidden(process.pid);
        }
        let (by, order) = why;
        self.checks.begin((child.clone(), run), order);
        self.memory.apply(&Record::Begun {
            child: child.clone(),
            run,
            spec: Arc::clone(spec),
            by: Some(by),
            order,
        });
    }

    fn record(&mut self, ticket: Option<Ticket>, records: Vec<Record>) {
        let (state, runtime): (Vec<_>, Vec<_>) = records
            .into_iter()
            .partition(|record| record.store() == Store::State);
        for record in &runtime {
            self.memory.apply(record);
        }
        if ticket.is_none() && state.is_empty() {
            return;
        }
        self.journal.push_back((ticket, state));
        let most = u64::try_from(DISK_SPAN_MAX.as_millis()).expect("it is short");
        let span = if self.random.percent(90) {
            self.random.delay()
        } else {
            self.random.millis(0, most)
        };
        self.disk_at = self.disk_at.max(self.now.mono + span);
        self.plan(self.disk_at, Occurrence::Written);
    }

    fn written(&mut self) {
        let Some((ticket, records)) = self.journal.pop_front() else {
            return;
        };
        let fails = self.weather == Weather::Rough && self.random.percent(4);
        self.disk_failures += u64::from(fails);
        if !fails {
            for record in &records {
                self.memory.apply(record);
            }
        }
        if let Some(ticket) = ticket {
            let result = if fails {
                Err("the disk is full".to_owned())
            } else {
                Ok(())
            };
            self.tell(Event::Recorded { ticket, result });
        }
    }

    // Processes.

    fn spawn(&mut self, child: ChildName, run: RunId, spec: Arc<Spec>, why: Why) {
        let refused = self.weather == Weather::Rough && self.random.percent(8);
        let span = self.random.delay();
        if refused && self.random.percent(20) {
            let why = SpawnFailure::NotRecorded("the disk is full".to_owned());
            self.plan_in(
                span,
                Occurrence::Tell(Event::SpawnFailed { child, run, why }),
            );
            return;
        }
        self.begin_run(&child, run, &spec, why);
        if refused {
            let why = "no such program".to_owned();
            let (at, child_too) = (self.now, child.clone());
            self.memory.apply(&Record::NotStarted {
                child: child_too,
                run,
                why: why.clone(),
                at,
            });
            let why = SpawnFailure::Refused(why);
            self.plan_in(
                span,
                Occurrence::Tell(Event::SpawnFailed { child, run, why }),
            );
            return;
        }
        let pid = self.fork(child.clone(), run, spec);
        self.note_started(&child, run, pid);
        self.plan_in(span, Occurrence::Tell(Event::Spawned { child, run, pid }));
    }

    fn note_started(&mut self, child: &ChildName, run: RunId, pid: i32) {
        let (child, at) = (child.clone(), self.now);
        if let Some(process) = self.processes.get_mut(&(child.clone(), run)) {
            process.recorded = true;
        }
        self.checks.started(&(child.clone(), run));
        self.memory.apply(&Record::Started {
            child,
            run,
            pid,
            start_ticks: 1,
            at,
        });
    }

    fn fork(&mut self, child: ChildName, run: RunId, spec: Arc<Spec>) -> i32 {
        self.next_pid += 1;
        let pid = self.next_pid;
        let calm = self.weather == Weather::Calm;
        let term = match self.random.below(10) {
            0..=5 => Some(self.random.delay()),
            6..=7 => Some(self.random.millis(100, 9_900)),
            _ => None,
        };
        // What ignores TERM is often what sleeps where no signal reaches it.
        let slow = if term.is_none() { 45 } else { 10 };
        let kill = if !calm && self.random.percent(slow) {
            self.random.millis(0, 40_000)
        } else {
            self.random.delay()
        };
        let process = Process {
            pid,
            temper: Temper { term, kill },
            spec,
            exit: None,
            recorded: false,
            stop_at: None,
            put_off: false,
            showing: Showing {
                ill: self.random.percent(20),
                since: self.now.mono,
                ..Showing::default()
            },
            kill_at: None,
            ends_at: None,
        };
        let key = (child, run);
        self.processes.insert(key.clone(), process);
        self.plan_words(&key);
        if !calm && self.random.percent(50) {
            let span = match self.random.below(4) {
                0 => self.random.delay(),
                1 => self.random.millis(1, 1_000),
                _ => self.random.millis(1, 90_000),
            };
            let exit = *self.random.pick(&[
                Exit::Code(0),
                Exit::Code(0),
                Exit::Code(1),
                Exit::Code(78),
                Exit::Signal(11),
            ]);
            self.end_in(key, span, exit);
        }
        pid
    }

    /// Settles that a process ends then, if not before.
    pub(super) fn end_in(&mut self, key: RunKey, span: Duration, exit: Exit) {
        let at = self.now.mono + span;
        let Some(process) = self.processes.get_mut(&key) else {
            return;
        };
        if process.exit.is_some() || process.ends_at.is_some_and(|ends| ends <= at) {
            return;
        }
        process.ends_at = Some(at);
        self.plan(at, Occurrence::Ends(key, exit));
    }

    fn process_ends(&mut self, key: RunKey, exit: Exit) {
        let now = self.now.mono;
        let Some(process) = self.processes.get_mut(&key) else {
            return;
        };
        if process.exit.is_some() || process.ends_at.is_none_or(|at| at > now) {
            return;
        }
        process.exit = Some(exit);
        let (pid, recorded) = (process.pid, process.recorded);
        self.told(|world| {
            format!(
                "{:>11} ({} run {} ends: {exit})",
                world.clock(),
                key.0,
                key.1
            )
        });
        if !recorded && self.is_suspect(pid) {
            self.processes.remove(&key);
            return self.tell_unhidden(pid);
        }
        // An exit is told after the start, and the start may still be on its way.
        let start = self.told_to_start(&key).unwrap_or(now);
        let at = start.max(now) + self.random.delay();
        let (child, run) = key;
        let exited = Event::Exited {
            child,
            run,
            exit,
            circumstances: Circumstances::default(),
        };
        self.plan(at, Occurrence::Tell(exited));
    }

    /// When the core will be told that a run has begun, if it was not told yet.
    pub(super) fn told_to_start(&self, key: &RunKey) -> Option<Mono> {
        let told = |(at, what): (&(Mono, u64), &Occurrence)| match what {
            Occurrence::Tell(Event::Spawned { child, run, .. })
                if (child, run) == (&key.0, &key.1) =>
            {
                Some(at.0)
            }
            _other => None,
        };
        self.agenda.iter().find_map(told)
    }

    fn signal(&mut self, key: RunKey, signal: Signal) {
        if let Signal::Ask(_) = signal {
            self.plan_delays(&key);
        }
        let now = self.now.mono;
        let Some(process) = self.processes.get_mut(&key) else {
            return;
        };
        let temper = process.temper;
        match signal {
            Signal::Ask(signal) => {
                process.stop_at.get_or_insert(now);
                let understood = signal == SignalNumber::TERM || self.random.percent(50);
                if let Some(span) = temper.term.filter(|_| understood) {
                    let exit = if self.random.percent(50) {
                        Exit::Code(0)
                    } else {
                        Exit::Signal(15)
                    };
                    self.end_in(key, span, exit);
                }
            }
            Signal::Kill => {
                process.kill_at = process.kill_at.or(Some(now));
                self.end_in(key, temper.kill, Exit::Signal(9));
            }
        }
    }

    // The server's life.

    /// Starts a server on what the disk holds.
    pub(super) fn boot(&mut self, start: StartKind) {
        self.core = State::new();
        self.start = start;
        self.ended = false;
        self.memory.apply(&Record::Opened {
            boot: "b".to_owned(),
        });
        self.check_compaction();
        self.look_anew();
        let (mut ended, mut doubted) = (Vec::new(), Vec::new());
        for (name, remembered) in &self.memory.children {
            let Some(last) = &remembered.last else {
                continue;
            };
            if self.lost.contains(&(name.clone(), last.run)) {
                doubted.push((name.clone(), last.run, "records were lost".to_owned()));
                continue;
            }
            if last.process.is_none() || last.end.is_some() {
                continue;
            }
            match self.processes.get_mut(&(name.clone(), last.run)) {
                None => ended.push((name.clone(), last.run, Exit::Unknown)),
                Some(process) if self.weather == Weather::Rough && self.random.percent(2) => {
                    process.recorded = false;
                    doubted.push((name.clone(), last.run, "nobody can tell".to_owned()));
                }
                Some(process) => process.recorded = true,
            }
        }
        self.lost.clear();
        let make = |world: &mut Self| Boot {
            start,
            settings: world.settings.clone(),
            memory: world.memory.clone(),
            ended: ended.clone(),
            doubted: doubted.clone(),
            hooks: world.hooks.keys().cloned().collect(),
            listing: world.files.snapshot(&world.settings, Scope::Whole, None),
            seed: world.random.next(),
            exit_with: world.exit_with.clone(),
        };
        let mut boot = make(self);
        if !refusal(&boot).is_empty() {
            // Somebody reads the faults, mends the files and starts the server again.
            self.check_refusal(&boot);
            self.mend();
            boot = make(self);
        }
        self.watch_at = self.now.mono;
        self.unwatched_until = self.now.mono;
        self.disk_at = self.now.mono;
        if let Some(every) = self.settings.rescan {
            self.plan_in(every, Occurrence::Rescan);
        }
        self.booted(&boot);
        let unborn = self.unborn(&boot);
        self.tell(Event::Boot(Box::new(boot)));
        self.tell_gone_suspects();
        self.find_what_lasts();
        self.check_unborn(&unborn);
        self.check_due_kept();
        self.check_taken_back();
    }

    /// Makes every bad file good, and one for whom the server is to end with.
    pub(super) fn mend(&mut self) {
        if let Some(name) = self.exit_with.clone() {
            if let Some(dir) = self.files.dirs.values_mut().next() {
                dir.state = DirState::Ready;
            }
            self.write(HOMES[0], &name);
        }
        let dirs = self.files.dirs.clone();
        for (home, dir) in &dirs {
            for (name, file) in &dir.files {
                if let File::Bad(_) = file {
                    self.write(&home.display().to_string(), name);
                }
            }
        }
        let first: BTreeSet<ChildName> = dirs
            .values()
            .next()
            .map(|dir| dir.files.keys().cloned().collect())
            .unwrap_or_default();
        if let Some(last) = self.files.dirs.values_mut().last() {
            last.files.retain(|name, _| !first.contains(name));
        }
    }

    /// The server is killed: what it had in mind is gone, what lives lives on.
    fn crash(&mut self, at: Option<Effect>) {
        self.told(|world| format!("{:>11} ===== the server is killed", world.clock()));
        match at {
            Some(Effect::Spawn {
                child,
                run,
                spec,
                by,
                order,
                ..
            }) => self.crash_within_spawn(child, run, spec, (by, order)),
            Some(Effect::RunHook {
                child,
                hook,
                program,
                ..
            }) => self.crash_within_hook((child, hook), &program),
            Some(Effect::Record { records, .. }) => self.tear(records),
            Some(_) | None => {}
        }
        // Some of what was on its way to the disk got there, the oldest first, and of the last
        // perhaps a part.
        let arrived = self
            .random
            .below(3)
            .min(u64::try_from(self.journal.len()).unwrap_or(0));
        for _ in 0..arrived {
            if let Some((_, records)) = self.journal.pop_front() {
                for record in &records {
                    self.memory.apply(record);
                }
            }
        }
        if let Some((_, records)) = self.journal.pop_front() {
            self.tear(records);
        }
        self.die();
        let down = self.random.millis(0, 3_000);
        self.sleep(down);
        self.sometimes_lose_records();
        self.boot(StartKind::Continued);
    }

    /// Records are written in one go; of a torn tail those count that are whole.
    fn tear(&mut self, records: Vec<Record>) {
        let all = u64::try_from(records.len()).unwrap_or(0);
        let whole = usize::try_from(self.random.below(all + 1)).unwrap_or(0);
        let stores = [Store::Runtime, Store::State];
        let of = |store| records.iter().filter(move |record| record.store() == store);
        // What is for the other store is handed to its thread, and lost with it.
        let store = stores.into_iter().find(|store| of(*store).next().is_some());
        if let Some(store) = store {
            for record in of(store).take(whole) {
                // What the next server knows by it.
                let counts = matches!(
                    record,
                    Record::Asked { .. } | Record::Answered { .. } | Record::Ended { .. }
                );
                if counts {
                    self.check_record(None, record);
                }
                self.memory.apply(record);
            }
        }
    }

    /// Killed in the middle of a start.
    fn crash_within_spawn(&mut self, child: ChildName, run: RunId, spec: Arc<Spec>, why: Why) {
        match self.random.below(5) {
            0 => self.begin_run(&child, run, &spec, why),
            // Its record was written and is lost.
            1 => {
                self.begin_run(&child, run, &spec, why);
                self.fork(child.clone(), run, spec);
                self.lost.insert((child, run));
            }
            2 => {
                self.begin_run(&child, run, &spec, why);
                let pid = self.fork(child.clone(), run, spec);
                self.note_started(&child, run, pid);
            }
            // It wrote itself down, and could not be executed.
            3 => {
                self.begin_run(&child, run, &spec, why);
                self.next_pid += 1;
                self.note_started(&child, run, self.next_pid);
                self.memory.apply(&Record::NotStarted {
                    child,
                    run,
                    why: "no such program".to_owned(),
                    at: self.now,
                });
            }
            _ => {}
        }
    }

    /// Forgets what only the server knew.
    fn die(&mut self) {
        self.note_owed();
        self.ended = true;
        self.journal.clear();
        self.orphan_hooks();
        self.crash_at = None;
        self.agenda.retain(|_, what| outlives_the_server(what));
        self.checks.server_died();
        self.probes.clear();
    }

    /// Time passes without a server.
    fn sleep(&mut self, span: Duration) {
        let until = self.now.mono + span;
        while let Some(at) = self.next_planned().filter(|at| *at <= until) {
            self.pass(at - self.now.mono);
            match self.agenda.pop_first() {
                Some((_, Occurrence::Ends(key, exit))) => self.process_ends(key, exit),
                Some((_, Occurrence::Says(key, word))) => self.says_unheard(&key, &word),
                // Nobody is told.
                Some((_, Occurrence::HookEnds(key, _))) => drop(self.hooks.remove(&key)),
                Some(_) | None => {}
            }
            self.agenda.retain(|_, what| outlives_the_server(what));
        }
        self.pass(until - self.now.mono);
        if self.random.percent(30) {
            self.edit_files();
            self.agenda.retain(|_, what| outlives_the_server(what));
        }
        // Nobody holds what ended meanwhile.
        self.processes.retain(|_, process| process.exit.is_none());
    }

    fn next_planned(&self) -> Option<Mono> {
        self.agenda.first_key_value().map(|((at, _), _)| *at)
    }

    /// The server is killed between two steps.
    pub(super) fn crash_now(&mut self) {
        self.crash(None);
    }

    /// After its end by order the server is started again.
    pub(super) fn start_again(&mut self) {
        self.told(|world| format!("{:>11} ===== the server has ended by order", world.clock()));
        while let Some((_, records)) = self.journal.pop_front() {
            for record in &records {
                self.memory.apply(record);
            }
        }
        self.check_closed();
        self.die();
        let down = self.random.millis(0, 5_000);
        self.sleep(down);
        self.boot(StartKind::Fresh);
    }

    /// The host is switched off and on.
    pub(super) fn reboot(&mut self) {
        self.told(|world| format!("{:>11} ===== the host reboots", world.clock()));
        self.checks.over_with_host(&self.processes);
        self.processes.clear();
        self.hooks.clear();
        self.agenda.clear();
        self.die();
        self.memory.forget_boot();
        self.now.mono = Mono(1_000_000);
        self.now.wall = Wall(self.now.wall.0 + 30_000);
        self.checks.host_died();
        self.boot(StartKind::Fresh);
    }
}

/// Whether it happens whatever becomes of the server.
fn outlives_the_server(what: &Occurrence) -> bool {
    matches!(
        what,
        Occurrence::Ends(..) | Occurrence::HookEnds(..) | Occurrence::Says(..)
    )
}

/// With whom the server ends in the life of this seed. No number is drawn for it, so that the lives
/// of the others stay the same.
fn mainstay(seed: u64) -> Option<ChildName> {
    let which = usize::try_from(seed / MAINSTAY_EVERY).unwrap_or(0) % NAMES.len();
    seed.is_multiple_of(MAINSTAY_EVERY)
        .then(|| name(NAMES[which]))
}

/// An event on one line.
pub(super) fn short(event: &Event) -> String {
    let listing = |update: &Update| {
        let entries = update.entries.iter().map(|(name, entry)| {
            use crate::reconcile::listing::Content;
            match entry.as_ref().map(|entry| &entry.content) {
                Some(Content::Good(spec)) => format!("{name}={}", spec.command[1]),
                Some(Content::Bad(_)) => format!("{name}=bad"),
                Some(Content::Conflict) => format!("{name}=conflict"),
                None => format!("{name}=gone"),
            }
        });
        let entries: Vec<String> = entries.collect();
        let states = update
            .loadpaths
            .iter()
            .map(|loadpath| format!("{:?}", loadpath.state));
        let states: Vec<String> = states.collect();
        format!(
            "{:?} [{}] {}",
            update.scope,
            states.join(", "),
            entries.join(" ")
        )
    };
    match event {
        Event::Boot(boot) => format!(
            "Boot {:?} {:?} ended {:?} {}\n{:?}",
            boot.start,
            boot.settings,
            boot.ended,
            listing(&boot.listing),
            boot.memory
        ),
        Event::Listing(update) => format!("Listing {}", listing(update)),
        Event::Reread { job, update } => format!("Reread {} {}", job.0, listing(update)),
        Event::Unwatched
        | Event::Settings(_)
        | Event::Spawned { .. }
        | Event::SpawnFailed { .. }
        | Event::Preflight { .. }
        | Event::Exited { .. }
        | Event::HookFinished { .. }
        | Event::Recorded { .. }
        | Event::SuspectGone { .. }
        | Event::Probed { .. }
        | Event::Notified { .. }
        | Event::Request { .. }
        | Event::Forsaken { .. }
        | Event::FellBehind { .. }
        | Event::Shutdown
        | Event::Upgrade
        | Event::Deadline => format!("{event:?}"),
    }
}

/// An effect on one line.
pub(super) fn short_effect(effect: &Effect) -> String {
    match effect {
        Effect::Spawn {
            child,
            run,
            spec,
            clear,
            by,
            order,
        } => format!(
            "Spawn {child} run {run} for {:?} {order:?} v{} clear {clear:?} pre {:?} post {:?} repeat {:?} restart {:?}",
            by.cause, spec.command[1], spec.prehook, spec.posthook, spec.repeat, spec.restart.when
        ),
        Effect::Preflight { job, spec } => format!("Preflight {} v{}", job.0, spec.command[1]),
        Effect::RunHook {
            child,
            hook,
            program,
            ..
        } => format!("RunHook {} {child} {program:?}", hook.0),
        Effect::Probe {
            job,
            child,
            run,
            probe,
            ..
        } => format!("Probe {} {child} run {run}: {probe}", job.0),
        Effect::Log(line) => format!(
            "{:?} {} run {:?}: {} ({:?}) {}",
            line.level,
            line.child.as_ref().map_or("", |child| child.as_str()),
            line.run,
            line.what,
            line.cause,
            line.detail.as_deref().unwrap_or_default()
        ),
        Effect::Record { .. }
        | Effect::Reread { .. }
        | Effect::Signal { .. }
        | Effect::Reap { .. }
        | Effect::KillHook { .. }
        | Effect::EndProbe { .. }
        | Effect::Tell { .. }
        | Effect::Reply { .. }
        | Effect::Account { .. }
        | Effect::Explain { .. }
        | Effect::Inform { .. }
        | Effect::Recount { .. }
        | Effect::Upgrade { .. }
        | Effect::Exit { .. } => format!("{effect:?}"),
    }
}
