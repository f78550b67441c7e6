//! From a spec to a running process, and from a process to the fact of its end.
//!
//! [`Processes`] is owned by one task and holds every process that the server has started or
//! taken back. It decides nothing: it is told to start, signal and let go, and it tells what
//! ended.
//!
//! - At most one live run a child (I1): a second start is refused here too.
//! - An exit is *peeked*: told once, while the process stays a zombie that holds its number and
//!   its status, until [`Processes::reap`] says that it is on record (I2).
//! - What concerns a run that is not there does nothing (I4).
//! - A process is known by its pidfd; a number is never signalled unless somebody we know holds
//!   it. All pidfds hang on one epoll instance, so that a child costs a descriptor and no task.
//! - How a run ended is told exactly or as unknown, never guessed: by its zombie, by its pidfd once
//!   another has reaped it, by a pin when it ended while no server lived.
//! - Nothing wakes us but an end, a reaping, a `SIGCHLD`, the time of a hook, orphans that stand
//!   hidden and zombies that another keeps from us (I9).
//!
//! The parts: `spawn`, `step`, `birth` and `stack` (clone to exec), `program` and `output` (what is executed,
//! where it writes), `inherit` (what we got and pass on), `group` (signals), `identity` (`/proc`),
//! `found` (runs by their marks), `suspects` (processes without), `cgroup` and `tree` (what a run has
//! started), `info` and `pins` (exits), `memory_kills` (why some end), `strays` (orphans),
//! `notify` and `signs` (what runs say and show), [`open_for_writing`] (leases); `start`, `stop`, `adopt`, `hooks` and `wait` are what
//! [`Processes`] does with them.
//!
//! Absent on purpose: policy of any kind; signals by plain pid; waiting for "any child", which
//! would take statuses that are not on record yet; tasks, and threads but the one that keeps pins.
//!
//! Sources: pidfd_open(2), waitid(2), clone(2), credentials(7); s6 and dinit for the order of
//! things.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};

use crate::{
    reconcile::{
        event::{HookFailure, JobId},
        program::HookId,
    },
    spec::{ChildName, Circumstances, Exit, Mono, RunId, Word},
};

mod adopt;
mod birth;
mod cgroup;
mod exec;
mod found;
mod group;
mod handover;
mod hooks;
mod identity;
mod info;
mod inherit;
mod lease;
mod memory_kills;
mod notify;
mod output;
mod pins;
mod probe;
mod probing;
mod program;
mod signs;
mod spawn;
mod stack;
mod start;
mod step;
mod stop;
mod strays;
mod suspects;
#[cfg(test)]
mod tests;
mod tree;
mod wait;

pub use adopt::{Adoption, is_alive};
pub use birth::{Birth, PREFIX_BYTES};
pub use exec::{
    SignalsBlocked, become_program, call_self, hear_no_signals, inherited, inherited_itself,
    is_open, others_hear_signals, own_name, own_program,
};
pub use found::{
    FoundProcess, FoundRun, HiddenProcess, find_hidden, find_runs, kill_unknown_hooks,
};
pub use handover::{FileLimit, HandedProcesses, resume_file_limit};
pub use hooks::HOOK_SECONDS_MAX;
pub use inherit::open_files_max;
pub use lease::open_for_writing;
pub use probe::{NoAnswer, ask};
pub use probing::end_stray_probes;
pub use start::NotStarted;

use cgroup::Cgroups;
use group::GroupSignals;
use hooks::{Hook, HookKey};
use info::ExitSource;
use inherit::Inheritance;
use memory_kills::MemoryKills;
use notify::Ears;
use pins::{PinName, Pins};
use probing::ProbeProgram;
use signs::Signs;
use spawn::Spawner;
use stop::Left;
use strays::Strays;
use wait::{Exits, Token};

/// Every process that the server has started or taken back.
///
/// Dropping it ends nothing: what runs runs on.
#[derive(Debug)]
pub struct Processes {
    server_id: String,
    inheritance: Inheritance,
    spawner: Spawner,
    /// Whether a start copies a few descriptors or all of them.
    descriptors: Descriptors,
    standard: Standard,
    group_signals: GroupSignals,
    exit_source: ExitSource,
    exits: Exits,
    children_changed: SignalStream,
    strays: Strays,
    /// Whether strays may be waiting; `None` when they are not.
    strays_due: Option<StraysDue>,
    processes: BTreeMap<Owner, Process>,
    owners: BTreeMap<Token, Owner>,
    /// Processes that have ended as far as their pidfd knows, but whose status cannot be had
    /// yet: a tracer holds it.
    unsettled: BTreeSet<Token>,
    /// Processes of others that have ended, but cannot be told of before they are reaped; until
    /// when that is waited for.
    unreaped: BTreeMap<Token, Mono>,
    cgroups: Cgroups,
    memory_kills: MemoryKills,
    pins: Pins,
    /// Runs that may be pinned.
    pinned: BTreeMap<(ChildName, RunId), PinName>,
    /// Pins of runs that are let go and whose end is not on record yet.
    pins_kept: BTreeSet<PinName>,
    hooks: BTreeMap<HookKey, Hook>,
    probes: BTreeMap<JobId, ProbeProgram>,
    hook_time: Duration,
    /// Processes that may be a child's and do not show whose.
    suspects: BTreeMap<Token, (Started, OwnedFd)>,
    /// Runs whose leader is gone while others of its group are not.
    left: BTreeMap<(ChildName, RunId), Left>,
    /// Where runs say what they do.
    ears: Ears,
    /// Where they show that they are ready.
    signs: Signs,
    tokens_given: u64,
}

/// A process that lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// Its number, which is that of its process group as well.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`, in clock ticks since boot.
    pub start_ticks: u64,
}

/// What [`Processes::wait`] tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// The main process of a run ended; it is kept until [`Processes::reap`].
    Exited {
        /// Whose.
        child: ChildName,
        /// Which.
        run: RunId,
        /// How.
        exit: Exit,
        /// What else was seen of it.
        circumstances: Circumstances,
    },
    /// A probe's program ended, or its time was up.
    Probed {
        /// Who asked.
        job: JobId,
        /// `Err` says for a person how it failed.
        result: Result<(), String>,
    },
    /// A run has said something of itself.
    Notified {
        /// Whose.
        child: ChildName,
        /// Which.
        run: RunId,
        /// What, in the order in which it was said; never empty.
        words: Vec<Word>,
    },
    /// A hook's program ended and was reaped, or was killed and does not end.
    HookFinished {
        /// Whose.
        child: ChildName,
        /// Which.
        hook: HookId,
        /// What came of it.
        result: Result<(), HookFailure>,
    },
    /// A process of [`Processes::watch_suspects`] is gone.
    SuspectGone(Started),
}

/// On whose behalf a process runs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Owner {
    Run(ChildName, RunId),
    Hook(ChildName, HookId),
    Probe(JobId),
}

/// The leader of a process group.
#[derive(Debug)]
struct Process {
    pid: i32,
    start_ticks: u64,
    pidfd: OwnedFd,
    token: Token,
    parent: Parent,
    phase: Phase,
}

/// Who can wait for a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Parent {
    /// We.
    Us,
    /// Another: its server died, and we took it back.
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    Live,
    /// Its end was told. If it is our child, it is a zombie.
    Ended,
}

/// How a start treats the server's descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Descriptors {
    /// The child takes the few it needs (close_range(2)).
    Few,
    /// It gets a copy of all; exec closes them.
    All,
}

/// Why strays are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StraysDue {
    /// Something changed.
    Now,
    /// They may stand behind a zombie that is kept; until when that is put up with.
    Hidden(Mono),
}

/// The descriptors a start is made with. They are opened first, so that their numbers are low
/// and a child has few to copy.
#[derive(Debug)]
struct Standard {
    /// `/dev/null`, for reading.
    null: OwnedFd,
    /// Where an output file is put for the time of a start; `/dev/null` in between, so that
    /// nobody's log is held open.
    slots: [OwnedFd; 2],
    /// Where the record of live runs is put likewise, for the child to write itself down.
    record: OwnedFd,
    /// Where the lock on it is put likewise, for the child to keep until exec.
    lock: OwnedFd,
    /// Where the list of its cgroup's processes is put likewise, for the child to join it.
    cgroup: OwnedFd,
    /// Where the descriptor is put likewise on which it shows that it is ready.
    shown: OwnedFd,
}

impl Standard {
    fn open() -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let null = rustix::fs::open("/dev/null", flags, Mode::empty())?;
        let low = || rustix::io::fcntl_dupfd_cloexec(&null, inherit::FIRST_OWN);
        Ok(Self {
            slots: [low()?, low()?],
            record: low()?,
            lock: low()?,
            cgroup: low()?,
            shown: low()?,
            null: low()?,
        })
    }

    /// Goes over to lower numbers where there are any now; they may all be taken.
    fn lower(&mut self) {
        let Self {
            null,
            slots: [one, other],
            record,
            lock,
            cgroup,
            shown,
        } = self;
        for fd in [one, other, record, lock, cgroup, shown, null] {
            let low = rustix::io::fcntl_dupfd_cloexec(&*fd, inherit::FIRST_OWN);
            if let Ok(low) = low
                && low.as_raw_fd() < fd.as_raw_fd()
            {
                *fd = low;
            }
        }
    }
}

impl Processes {
    /// Prepares this process for having children: makes it the one that orphans go to, closes
    /// every inherited descriptor above 2 at exec, raises the limit of open files. Call it once,
    /// early, inside a Tokio runtime.
    ///
    /// # Errors
    /// The kernel is older than 5.10, `/proc` is not mounted, no descriptors are left, or
    /// `server_id` holds a NUL byte.
    pub fn new(server_id: &str) -> io::Result<Self> {
        Self::with_strays(server_id, Strays::Reap)
    }

    /// As [`Processes::new`], for tests that run in one process with others: children that were
    /// not started here are left alone.
    #[cfg(test)]
    pub(crate) fn beside_others(server_id: &str) -> io::Result<Self> {
        Self::with_strays(server_id, Strays::LeaveAlone)
    }

    fn with_strays(server_id: &str, strays: Strays) -> io::Result<Self> {
        if server_id.contains('\0') {
            let error = "the server id holds a NUL byte";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, error));
        }
        let inheritance = Inheritance::take()?;
        identity::stat(std::process::id().cast_signed()).map_err(|error| {
            io::Error::new(error.kind(), format!("`/proc` is not there: {error}"))
        })?;
        Ok(Self {
            server_id: server_id.to_owned(),
            inheritance,
            standard: Standard::open()?,
            spawner: Spawner::new()?,
            descriptors: match Spawner::can_forget() {
                true => Descriptors::Few,
                false => Descriptors::All,
            },
            group_signals: GroupSignals::detect(),
            exit_source: ExitSource::detect(),
            exits: Exits::new()?,
            children_changed: signal(SignalKind::child())?,
            strays,
            // Whoever became this server may have left children behind.
            strays_due: Some(StraysDue::Now),
            processes: BTreeMap::new(),
            owners: BTreeMap::new(),
            unsettled: BTreeSet::new(),
            unreaped: BTreeMap::new(),
            cgroups: Cgroups::none("not asked for"),
            memory_kills: MemoryKills::default(),
            pins: Pins::none("not asked for"),
            pinned: BTreeMap::new(),
            pins_kept: BTreeSet::new(),
            hooks: BTreeMap::new(),
            probes: BTreeMap::new(),
            hook_time: Duration::from_secs(HOOK_SECONDS_MAX),
            suspects: BTreeMap::new(),
            left: BTreeMap::new(),
            ears: Ears::default(),
            signs: Signs::default(),
            tokens_given: 0,
        })
    }

    /// What this machine gives, by name, as `info` shows it.
    #[must_use]
    pub fn capabilities(&self) -> BTreeMap<String, String> {
        let descriptors = match self.descriptors {
            Descriptors::Few => "close_range",
            Descriptors::All => "close-on-exec",
        };
        let subreaper = match rustix::process::child_subreaper() {
            Ok(Some(_)) => "yes",
            Ok(None) | Err(_) => "no",
        };
        let pins = self.pins.describe();
        let cgroups = self.cgroups.describe();
        let memory = self.memory_kills.describe();
        [
            ("cgroups", cgroups.as_str()),
            ("descriptors", descriptors),
            ("exit codes", self.exit_source.as_str()),
            ("out of memory", memory.as_str()),
            ("group signals", self.group_signals.as_str()),
            ("pins", pins.as_str()),
            ("subreaper", subreaper),
            ("waiting", "pidfd"),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
    }

    /// Gives each new run a cgroup of its own, if this machine lets us. Before anything is
    /// started or taken back.
    pub fn use_cgroups(&mut self) {
        self.cgroups = Cgroups::of_server(&self.server_id);
        self.memory_kills = MemoryKills::counted_for(self.cgroups.base());
    }

    /// How many runs live.
    #[must_use]
    pub fn live_count(&self) -> usize {
        self.processes
            .iter()
            .filter(|(owner, process)| match (owner, process.phase) {
                (Owner::Run(..), Phase::Live) => true,
                (Owner::Run(..), Phase::Ended) | (Owner::Hook(..) | Owner::Probe(_), _) => false,
            })
            .count()
    }

    /// The run of a child that lives, if one does.
    fn live_run(&self, child: &ChildName) -> Option<RunId> {
        let first = Owner::Run(child.clone(), RunId(0));
        let last = Owner::Run(child.clone(), RunId(u64::MAX));
        self.processes
            .range(first..=last)
            .find_map(|(owner, process)| match (owner, process.phase) {
                (Owner::Run(_, run), Phase::Live) => Some(*run),
                (Owner::Run(..), Phase::Ended) | (Owner::Hook(..) | Owner::Probe(_), _) => None,
            })
    }

    /// What stands in the environment of a run.
    fn run_mark(&self, child: &ChildName, run: RunId) -> String {
        identity::run_mark(&self.server_id, child, run)
    }

    /// What stands in the environment of a child's hooks.
    fn hook_mark(&self, child: &ChildName) -> String {
        identity::hook_mark(&self.server_id, child)
    }

    /// Enters a process that is being watched; one of ours is no stray.
    fn enter(&mut self, owner: Owner, process: Process) {
        if process.parent == Parent::Us {
            strays::started().insert(process.pid);
        }
        self.owners.insert(process.token, owner.clone());
        self.processes.insert(owner, process);
    }

    fn next_token(&mut self) -> Token {
        self.tokens_given += 1;
        Token(self.tokens_given)
    }
}
