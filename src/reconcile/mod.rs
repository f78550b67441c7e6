//! The core: one deterministic function over values, in which everything is decided.
//!
//! `State::step` is told a fact ([`Event`]) and the time, and gives orders ([`Effect`]). It reads
//! no clock, file, socket, random source or environment and uses ordered maps only, so that a
//! seed replays any history, crashes included. It cannot fail: what goes wrong in the world is an
//! event, what cannot be done is an answer.
//!
//! # States
//!
//! A child's phase is that of its live run, if it has one, else what is due:
//!
//! | state | live process | what it waits for |
//! |---|---|---|
//! | `stopped` | no | an operator; it never ran, or ended by order |
//! | `pending` | no | those it depends on, a prehook, or a child its prehook needs; then it starts |
//! | `starting` | being made | the spawn |
//! | `running` | yes | nothing |
//! | `stopping` | yes | the end of its process: TERM, grace, KILL |
//! | `exited` | no | an operator, a repeat, a changed file; it ended by itself |
//! | `backoff` | no | the time of its next restart |
//! | `failed` | no | an operator or a changed file; it could not start, or was given up |
//!
//! Orders (`job`) move a child: a start-like one goes reading, waiting for what the child depends
//! on, prehook, checking, stopping the old run, recording, spawning; a stop goes waiting for those
//! that depend on the child, stopping, posthook, closing. Each child has at most one
//! order under way and a bounded queue. A stop does not queue: it ends the start under way, which
//! is answered `superseded`.
//!
//! # Invariants
//!
//! - I1 At most one live run per child name, at every instant, across server crashes too.
//! - I2 A process once started is always in the table until its exit has been recorded.
//! - I3 A held child is never started by anything but an operator's command.
//! - I4 Facts of an older run change nothing.
//! - I5 Every request gets exactly one final answer, and an answer is sent only after what it says
//!   is true and recorded.
//! - I6 A bad file, a bad key, a bad frame or a failed hook changes nothing but the report of it.
//! - I7 Same listing, same state: no effects.
//! - I8 Every order to stop leads to TERM, grace, KILL and an answer in bounded time; every wait,
//!   queue and buffer has a named bound.
//! - I9 With nothing to do the server does nothing: no timer ticks, no wake-ups between rescans.
//! - I10 Only who holds a private key whose public half is in `pub_keys_path` commands an
//!   `encrypt: on` server, and each command works once (kept by `control`).

mod account;
mod backoff;
mod boot;
pub mod cause;
mod child;
mod commands;
mod depends;
mod desired;
pub mod effect;
pub mod event;
mod followers;
mod forget;
mod graph;
mod hooks;
mod job;
mod jobs;
pub mod listing;
pub mod memory;
mod numbers;
mod orders;
pub mod past;
mod planted;
mod probes;
pub mod program;
pub mod rebuild;
pub mod record;
pub mod remembered;
mod removal;
mod repeat;
mod runs;
mod shutdown;
#[cfg(test)]
mod sim;
mod starts;
mod stops;
pub mod survey;
pub mod suspects;
mod table;
mod timers;
mod view;
mod waits;
mod words;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use self::{
    cause::Cause,
    child::Child,
    commands::Batch,
    effect::{Effect, Level, Line},
    event::{BatchId, Event, JobId, RequestId, Settings, Ticket},
    followers::Feed,
    forget::{Missing, Removed},
    job::Job,
    listing::Loadpath,
    numbers::Numbers,
    planted::{Bug, planted},
    record::Record,
    shutdown::{Ending, Mainstay},
    suspects::Suspects,
    table::Table,
    timers::{Timer, Timers},
    waits::Wait,
};
use crate::spec::{ChildName, Mono, Spec, Time, Verb};

pub use self::{
    boot::{faults, refusal},
    depends::DEPENDENCIES_TIME,
    followers::{EVENTS_KEPT_MAX, FOLLOWERS_MAX, FOLLOWERS_PER_ASKER_MAX},
    probes::READY_PROBE_TIME_MAX,
    waits::{WAITS_MAX, WAITS_PER_ASKER_MAX},
    words::STOP_EXTENDED_MAX,
};

/// How long KILL may take before the one who asked is told that it did not help.
pub const KILL_WAIT: Duration = Duration::from_secs(10);
/// What must pass without a change before "gone" is believed.
pub const QUIET: Duration = Duration::from_secs(1);
/// However restless a loadpath is, "gone" is judged after this long.
pub const QUIET_MAX: Duration = Duration::from_secs(30);
/// When rescans are off, a doubted removal is confirmed after this long.
pub const CONFIRM_WITHOUT_RESCAN: Duration = Duration::from_secs(60);
/// How many orders may wait for one child; one more is `busy`.
pub const QUEUE_LEN_MAX: usize = 16;
/// How many children without a file are kept in the table for their exits' sake.
pub const REMOVED_KEPT_MAX: usize = 1_000;

/// Everything the server has decided and is waiting for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    settings: Settings,
    /// The settings are newer than the listing: until all was read under them, nothing is wanted.
    relisting: bool,
    /// The loadpaths have not been read since somebody watches them again: what is known of them
    /// may be old, and that a file is gone is not judged by it.
    unwatched: bool,
    children: Table,
    jobs: BTreeMap<JobId, Job>,
    batches: BTreeMap<BatchId, Batch>,
    tickets: BTreeMap<Ticket, Awaited>,
    /// Who waits for what a child is to be.
    #[serde(default)]
    waits: BTreeMap<RequestId, Wait>,
    /// What became of children of late, and who follows it.
    #[serde(default)]
    feed: Feed,
    #[serde(skip_serializing_if = "are_left_behind")]
    timers: Timers,
    /// The loadpaths as last listed.
    loadpaths: Vec<Loadpath>,
    /// Where each loadpath stood when it last had files in it: device and inode.
    seen: BTreeMap<PathBuf, (u64, u64)>,
    /// Whose files are gone, by loadpath.
    missing: Missing,
    /// Who is kept for the exit alone.
    removed: Removed,
    /// When each loadpath first lost a file since it was last quiet.
    restless: BTreeMap<PathBuf, Mono>,
    /// Processes that may be a child's and do not show whose.
    suspects: Suspects,
    /// The latest run numbers of children that are not in the table any more.
    numbers: Numbers,
    /// Children that wait for the file or the hold of another.
    blocked: BTreeSet<ChildName>,
    /// The orders that wait for children that another depends on, or that depend on it.
    #[serde(default)]
    patient: BTreeSet<JobId>,
    /// Children that start as soon as what they depend on is there.
    #[serde(default)]
    due: BTreeSet<ChildName>,
    /// The child with which the server ends.
    #[serde(default)]
    mainstay: Option<Mainstay>,
    ending: Option<Ending>,
    next_number: u64,
    random: u64,
}

fn are_left_behind(_: &Timers) -> bool {
    planted(Bug::TimersNotHandedOver)
}

/// Who waits for a ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Awaited {
    Job(JobId),
    Batch(BatchId),
}

/// What one step gathers: the time it happens at, its effects, and whom to look at again.
struct Turn {
    now: Time,
    effects: Vec<Effect>,
    unsettled: BTreeSet<ChildName>,
    /// Loadpaths in which a file is back that was gone.
    returned: BTreeSet<PathBuf>,
    /// Why a start that is found due now is due.
    cause: Cause,
}

impl Turn {
    fn begin(now: Time) -> Self {
        Self {
            now,
            effects: Vec::new(),
            unsettled: BTreeSet::new(),
            returned: BTreeSet::new(),
            cause: Cause::Changed,
        }
    }

    fn emit(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    /// Has something written down that nobody waits for.
    fn record(&mut self, record: Record) {
        self.emit(Effect::Record {
            ticket: None,
            records: vec![record],
        });
    }

    /// A line about a child; what else it says is added to it.
    fn log(&mut self, level: Level, child: &ChildName, what: &'static str) -> &mut Line {
        self.line(level, Some(child.clone()), what)
    }

    /// A line about no single child.
    fn log_of_all(&mut self, level: Level, what: &'static str) -> &mut Line {
        self.line(level, None, what)
    }

    fn line(&mut self, level: Level, child: Option<ChildName>, what: &'static str) -> &mut Line {
        self.effects.push(Effect::Log(Line {
            level,
            child,
            run: None,
            what,
            cause: None,
            exit: None,
            detail: None,
        }));
        match self.effects.last_mut() {
            Some(Effect::Log(line)) => line,
            Some(_) | None => unreachable!("it was pushed just now"),
        }
    }

    fn unsettle(&mut self, child: &ChildName) {
        self.unsettled.insert(child.clone());
    }
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    /// The state before the first event, which must be [`Event::Boot`].
    #[must_use]
    pub fn new() -> Self {
        Self {
            settings: Settings::default(),
            relisting: false,
            unwatched: false,
            children: Table::default(),
            jobs: BTreeMap::new(),
            batches: BTreeMap::new(),
            tickets: BTreeMap::new(),
            waits: BTreeMap::new(),
            feed: Feed::default(),
            timers: Timers::default(),
            loadpaths: Vec::new(),
            seen: BTreeMap::new(),
            missing: Missing::default(),
            removed: Removed::default(),
            restless: BTreeMap::new(),
            suspects: Suspects::default(),
            numbers: Numbers::default(),
            blocked: BTreeSet::new(),
            patient: BTreeSet::new(),
            due: BTreeSet::new(),
            mainstay: None,
            ending: None,
            next_number: 0,
            random: 0,
        }
    }

    /// Takes a fact into account and says what is to be done about it.
    pub fn step(&mut self, event: Event, now: Time) -> Vec<Effect> {
        let mut turn = Turn::begin(now);
        match event {
            Event::Boot(boot) => self.on_boot(&mut turn, *boot),
            Event::Listing(update) => self.on_listing(&mut turn, update),
            Event::Reread { job, update } => {
                self.on_listing(&mut turn, update);
                self.on_reread(&mut turn, job);
            }
            Event::Unwatched => self.on_unwatched(),
            Event::Settings(settings) => self.on_settings(settings),
            Event::Spawned { child, run, pid } => self.on_spawned(&mut turn, &child, run, pid),
            Event::SpawnFailed { child, run, why } => {
                self.on_spawn_failed(&mut turn, &child, run, why);
            }
            Event::Preflight { job, result } => self.on_preflight(&mut turn, job, result),
            Event::Exited {
                child,
                run,
                exit,
                circumstances,
            } => self.on_exited(&mut turn, &child, run, (exit, circumstances)),
            Event::HookFinished {
                child,
                hook,
                result,
            } => self.on_hook_finished(&mut turn, &child, hook, result),
            Event::Probed { job, result } => self.on_probed(&mut turn, job, result),
            Event::Notified { child, run, words } => {
                self.on_notified(&mut turn, &child, run, words);
            }
            Event::Recorded { ticket, result } => self.on_recorded(&mut turn, ticket, result),
            Event::Request { id, command, asker } => {
                self.on_request(&mut turn, id, command, asker);
            }
            Event::SuspectGone { pid, start_ticks } => {
                self.on_suspect_gone(&mut turn, pid, start_ticks);
            }
            Event::Forsaken { id } => self.forsake(&mut turn, id),
            Event::FellBehind { id, seq } => self.on_fell_behind(&mut turn, id, seq),
            Event::Shutdown => self.on_shutdown(&mut turn, None, None),
            Event::Upgrade => self.on_upgrade(&mut turn, None),
            Event::Deadline => {}
        }
        self.fire(&mut turn);
        self.look_at_patient(&mut turn);
        self.look_at_waits(&mut turn);
        self.end_with_mainstay(&mut turn);
        self.tell_changes(&mut turn);
        self.end_if_done(&mut turn);
        turn.effects
    }

    /// When `step` wants to be called with [`Event::Deadline`] at the latest; `None` is never.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Mono> {
        self.timers.next()
    }

    /// Does what is due by now. Bounded: what a timer arms anew lies in the future or is another's.
    fn fire(&mut self, turn: &mut Turn) {
        while let Some(timer) = self.timers.take_due(turn.now.mono) {
            match timer {
                Timer::Ladder(child) => self.climb(turn, &child),
                Timer::Retry(child) => turn.unsettle(&child),
                Timer::Ready(child) => self.on_ready_late(turn, &child),
                Timer::Probe(child) => self.probe(turn, &child),
                Timer::Repeat(child) => self.on_repeat_due(turn, &child),
                Timer::Quiet(home) => self.on_quiet(turn, &home),
                Timer::Confirm => self.confirm_removals(turn),
                Timer::Wait(id) => self.on_wait_due(turn, id),
                Timer::Dependencies(child) => self.on_dependencies_late(turn, &child),
            }
        }
    }

    /// Looks at every child that may have become due, until none is left.
    fn settle(&mut self, turn: &mut Turn) {
        while let Some(name) = turn.unsettled.pop_first() {
            self.settle_one(turn, &name);
        }
    }

    fn settle_one(&mut self, turn: &mut Turn, name: &ChildName) {
        let Some(child) = self.children.get_mut(name) else {
            return;
        };
        if child.job.is_some() {
            return;
        }
        if let Some(id) = child.queue.pop_front() {
            child.job = Some(id);
            self.begin(turn, id);
            return;
        }
        if self.ending.is_some() {
            return;
        }
        // Who is in doubt stays due.
        if child.retry.is_some_and(|at| at <= turn.now.mono) && !child.is_in_doubt() {
            self.retry_now(turn, name);
            return;
        }
        // What waits for others to be as it needs them is wanted already.
        if self.relisting || (child.due.is_some() && !child.is_live()) {
            return;
        }
        match desired::want(name, child, &self.settings, turn.cause) {
            desired::Want::Nothing => self.forget_if_idle(turn, name),
            desired::Want::Start(cause) => self.order(turn, name, Verb::Start, cause.into(), None),
            desired::Want::Replace => {
                self.order(turn, name, Verb::Restart, Cause::Changed.into(), None);
            }
            desired::Want::Stop => {
                self.stop_removed(turn, name);
            }
        }
    }

    /// Takes other settings. What they want is known with the whole listing that follows: one edit
    /// may change the mode, the loadpaths, and what the files mean (`defaults`).
    fn on_settings(&mut self, settings: Settings) {
        if settings == self.settings {
            return;
        }
        self.settings = settings;
        self.relisting = true;
    }

    /// All was read: under the settings in force, if it is of their loadpaths.
    fn on_relisted(&mut self, turn: &mut Turn) {
        let read = self.loadpaths.iter().map(|loadpath| &loadpath.path);
        if !self.relisting || !read.eq(&self.settings.loadpaths) {
            return;
        }
        self.relisting = false;
        turn.cause = Cause::Settings;
        self.expect_confirmation(turn);
        let names: Vec<ChildName> = self.children.keys().cloned().collect();
        turn.unsettled.extend(names);
    }

    /// The server is to replace itself, which an end that is under way does not wait for.
    fn on_upgrade(&self, turn: &mut Turn, asked: Option<RequestId>) {
        match (self.ending.is_some(), asked) {
            (false, asked) => turn.emit(Effect::Upgrade { asked }),
            (true, Some(id)) => self.refuse_while_ending(turn, id),
            (true, None) => {
                turn.log_of_all(Level::Warn, "the server ends and is not upgraded");
            }
        }
    }

    /// Whether the server is ending.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    /// What each child's file last said that was good, or what it ran last.
    pub fn known_specs(&self) -> impl Iterator<Item = &Arc<Spec>> {
        self.children.values().filter_map(|child| {
            let known = child.in_force();
            known.or_else(|| child.last.as_ref().map(|last| &last.spec))
        })
    }

    /// The child of this name, taken into the table if it is not there.
    fn enter(&mut self, name: &ChildName) -> &mut Child {
        self.children.enter(name, || {
            let used = self.numbers.take(name);
            Child {
                latest: used.latest,
                reserved: used.reserved,
                ..Child::default()
            }
        })
    }

    /// The order that is under way for a child.
    fn job_of(&self, name: &ChildName) -> Option<JobId> {
        self.children.get(name)?.job
    }

    /// Whether a process of this child lives, or is being started.
    fn is_live(&self, name: &ChildName) -> bool {
        self.children.get(name).is_some_and(Child::is_live)
    }

    /// A number that was never given before.
    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// The next of a row of numbers that look random (SplitMix64).
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
