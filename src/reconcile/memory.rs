//! What the records amount to: the fold over both stores, and back again for compaction.
//!
//! Pure, so that the simulator crashes the server with the very records that a disk would hold.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    cause::Cause,
    record::{Record, Store},
};
use crate::spec::{ChildName, Exit, Mono, Repeat, RunId, Spec, Time, Wall};

/// What the records of both stores amount to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Memory {
    /// The boot of the last server that wrote here.
    pub boot: Option<String>,
    /// Whether the last server ended by order.
    pub closed: bool,
    /// By child.
    pub children: BTreeMap<ChildName, Remembered>,
    /// Loadpaths that were seen with files in them: device and inode.
    pub loadpaths: BTreeMap<PathBuf, (u64, u64)>,
}

/// What is remembered of one child.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Remembered {
    /// Since when it is held.
    pub held: Option<Wall>,
    /// The last reserved run number.
    pub reserved: Option<RunId>,
    /// Runs that are not known may have had numbers up to this one.
    pub maybe_used: Option<RunId>,
    /// Its last run of this boot.
    pub last: Option<RememberedRun>,
    /// Its repeat timer.
    pub armed: Option<(RunId, Repeat, Mono)>,
}

/// What is remembered of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RememberedRun {
    /// Which.
    pub run: RunId,
    /// What.
    pub spec: Arc<Spec>,
    /// Its process and that process's start time in ticks, once it was known to live.
    pub process: Option<(i32, u64)>,
    /// When it began.
    pub started: Option<Time>,
    /// Whether what it was started with is not known: the spec is what its process shows.
    pub found: bool,
    /// Whether its stop was under way.
    pub stopping: bool,
    /// Whether that stop was the first half of a replacement.
    pub replacing: bool,
    /// Why the restart policy gave up after it.
    pub given_up: Option<String>,
    /// Why it cannot be told whether it lives, since records were lost.
    pub doubt: Option<String>,
    /// Whether the repeat that it armed is done with.
    pub disarmed: bool,
    /// Whether a fresh start came after its end: its policy and its repeat are no longer asked.
    pub settled: bool,
    /// How its end was, once it had one.
    pub end: Option<RememberedEnd>,
}

/// How a remembered run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RememberedEnd {
    /// Its process ended.
    Exited {
        /// How.
        exit: Exit,
        /// When.
        at: Time,
        /// By whose order; `None` when by itself.
        by: Option<Cause>,
        /// Restarts in a row.
        restarts: u64,
    },
    /// It never had a process.
    NotStarted {
        /// Why.
        why: String,
        /// When.
        at: Time,
    },
}

impl Memory {
    /// Takes one more record into account. Records that make no sense are passed over: a
    /// damaged store must never keep a server from starting.
    pub fn apply(&mut self, record: &Record) {
        match record {
            Record::Opened { boot } => {
                self.boot = Some(boot.clone());
                self.closed = false;
            }
            Record::Closed => self.closed = true,
            Record::Begun { child, run, spec } => {
                self.child(child).last = Some(RememberedRun::begun(*run, spec));
            }
            Record::Found {
                child, run, spec, ..
            } => {
                self.child(child).last = Some(RememberedRun::found(*run, spec, record));
            }
            Record::Started { child, run, .. }
            | Record::Matched { child, run, .. }
            | Record::NotStarted { child, run, .. }
            | Record::Stopping { child, run }
            | Record::Replacing { child, run }
            | Record::GivenUp { child, run, .. }
            | Record::Doubted { child, run, .. }
            | Record::Ended { child, run, .. } => {
                if let Some(last) = self.run(child, *run) {
                    last.apply(record);
                }
            }
            Record::Armed {
                child,
                run,
                repeat,
                due,
            } => {
                let remembered = self.child(child);
                remembered.armed = Some((*run, *repeat, *due));
                if let Some(last) = &mut remembered.last {
                    last.disarmed = false;
                }
            }
            Record::Settled { child } => {
                let remembered = self.child(child);
                remembered.armed = None;
                if let Some(last) = &mut remembered.last {
                    last.settled = true;
                }
            }
            Record::Disarmed { child } => {
                let remembered = self.child(child);
                remembered.armed = None;
                if let Some(last) = &mut remembered.last {
                    last.disarmed = true;
                }
            }
            Record::LoadpathSeen { path, dev, ino } => {
                self.loadpaths.insert(path.clone(), (*dev, *ino));
            }
            Record::Held { child, since } => self.child(child).held = Some(*since),
            Record::Released { child } => self.child(child).held = None,
            Record::Reserved { child, upto } => raise(&mut self.child(child).reserved, *upto),
            Record::MaybeUsed { child, upto } => raise(&mut self.child(child).maybe_used, *upto),
            Record::Forgotten { child } => {
                let remembered = self.child(child);
                remembered.last = None;
                remembered.armed = None;
            }
        }
    }

    /// The shortest list of records that amounts to this memory: what compaction writes.
    #[must_use]
    pub fn records(&self, store: Store) -> Vec<Record> {
        let mut all = Vec::new();
        if let Some(boot) = &self.boot {
            all.push(Record::Opened { boot: boot.clone() });
        }
        for (path, (dev, ino)) in &self.loadpaths {
            all.push(Record::LoadpathSeen {
                path: path.clone(),
                dev: *dev,
                ino: *ino,
            });
        }
        for (child, remembered) in &self.children {
            remembered.records(child, &mut all);
        }
        if self.closed {
            all.push(Record::Closed);
        }
        all.retain(|record| record.store() == store);
        all
    }

    /// Drops what does not outlive a boot.
    pub fn forget_boot(&mut self) {
        self.boot = None;
        self.closed = false;
        self.loadpaths.clear();
        for remembered in self.children.values_mut() {
            remembered.maybe_used = None;
            remembered.last = None;
            remembered.armed = None;
        }
    }

    /// The children whose live run began after the hold that is remembered of them: its end is
    /// what was lost, for a held child is not started.
    #[must_use]
    pub fn overtaken_holds(&self) -> Vec<ChildName> {
        let overtaken = |remembered: &Remembered| {
            let last = remembered.last.as_ref().filter(|last| last.end.is_none());
            let started = last.and_then(|last| last.started);
            let since = remembered.held;
            started
                .zip(since)
                .is_some_and(|(at, since)| at.wall > since)
        };
        let children = self.children.iter();
        let overtaken = children.filter(|(_, remembered)| overtaken(remembered));
        overtaken.map(|(name, _)| name.clone()).collect()
    }

    /// Where a loadpath stood when it last had files in it.
    #[must_use]
    pub fn loadpath(&self, path: &Path) -> Option<(u64, u64)> {
        self.loadpaths.get(path).copied()
    }

    fn child(&mut self, child: &ChildName) -> &mut Remembered {
        self.children.entry(child.clone()).or_default()
    }

    fn run(&mut self, child: &ChildName, run: RunId) -> Option<&mut RememberedRun> {
        let last = self.children.get_mut(child)?.last.as_mut()?;
        (last.run == run).then_some(last)
    }
}

fn raise(number: &mut Option<RunId>, upto: RunId) {
    *number = (*number).max(Some(upto));
}

impl Remembered {
    fn records(&self, child: &ChildName, all: &mut Vec<Record>) {
        let child = child.clone();
        if let Some(since) = self.held {
            all.push(Record::Held {
                child: child.clone(),
                since,
            });
        }
        if let Some(upto) = self.reserved {
            all.push(Record::Reserved {
                child: child.clone(),
                upto,
            });
        }
        // Without a last run they go on behind the reserved ones anyway.
        if let (Some(upto), Some(last)) = (self.maybe_used, &self.last)
            && last.run < upto
        {
            all.push(Record::MaybeUsed {
                child: child.clone(),
                upto,
            });
        }
        if let Some(last) = &self.last {
            last.records(&child, all);
        }
        if let Some((run, repeat, due)) = self.armed {
            all.push(Record::Armed {
                child,
                run,
                repeat,
                due,
            });
        }
    }
}

impl RememberedRun {
    /// A run that is about to begin.
    fn begun(run: RunId, spec: &Arc<Spec>) -> Self {
        Self {
            run,
            spec: Arc::clone(spec),
            process: None,
            started: None,
            found: false,
            stopping: false,
            replacing: false,
            given_up: None,
            doubt: None,
            disarmed: false,
            settled: false,
            end: None,
        }
    }

    /// A run that was found by its process.
    fn found(run: RunId, spec: &Arc<Spec>, record: &Record) -> Self {
        let mut found = Self::begun(run, spec);
        found.apply(record);
        found
    }

    /// Takes a record about this run into account.
    fn apply(&mut self, record: &Record) {
        match record {
            Record::Started {
                pid,
                start_ticks,
                at,
                ..
            } => {
                self.process = Some((*pid, *start_ticks));
                self.started = Some(*at);
                self.doubt = None;
            }
            Record::Found {
                pid,
                start_ticks,
                at,
                ..
            } => {
                self.process = Some((*pid, *start_ticks));
                self.started = Some(*at);
                self.found = true;
            }
            Record::Matched { spec, .. } => {
                self.spec = Arc::clone(spec);
                self.found = false;
            }
            Record::NotStarted { why, at, .. } => {
                let why = why.clone();
                self.end = Some(RememberedEnd::NotStarted { why, at: *at });
            }
            Record::Stopping { .. } => {
                self.stopping = true;
                self.replacing = false;
            }
            Record::Replacing { .. } => self.replacing = true,
            Record::GivenUp { why, .. } => self.given_up = Some(why.clone()),
            Record::Doubted { why, .. } => self.doubt = Some(why.clone()),
            Record::Ended {
                exit,
                at,
                by,
                restarts,
                ..
            } => {
                self.end = Some(RememberedEnd::Exited {
                    exit: *exit,
                    at: *at,
                    by: *by,
                    restarts: *restarts,
                });
            }
            Record::Opened { .. }
            | Record::Closed
            | Record::Begun { .. }
            | Record::Armed { .. }
            | Record::Settled { .. }
            | Record::Disarmed { .. }
            | Record::LoadpathSeen { .. }
            | Record::Held { .. }
            | Record::Released { .. }
            | Record::Reserved { .. }
            | Record::MaybeUsed { .. }
            | Record::Forgotten { .. } => {}
        }
    }

    /// Whether it was announced and nothing more is known.
    pub(super) fn is_open(&self) -> bool {
        self.process.is_none() && self.end.is_none() && self.doubt.is_none()
    }

    /// How it began, as far as that is known.
    fn beginning(&self, child: &ChildName, all: &mut Vec<Record>) {
        let (child, run) = (child.clone(), self.run);
        let process = self.process.zip(self.started);
        if let (true, Some(((pid, start_ticks), at))) = (self.found, process) {
            all.push(Record::Found {
                child: child.clone(),
                run,
                spec: Arc::clone(&self.spec),
                pid,
                start_ticks,
                at,
            });
        } else {
            all.push(Record::Begun {
                child: child.clone(),
                run,
                spec: Arc::clone(&self.spec),
            });
            if let Some(((pid, start_ticks), at)) = process {
                all.push(Record::Started {
                    child: child.clone(),
                    run,
                    pid,
                    start_ticks,
                    at,
                });
            }
        }
    }

    fn records(&self, child: &ChildName, all: &mut Vec<Record>) {
        self.beginning(child, all);
        let (child, run) = (child.clone(), self.run);
        if self.stopping {
            let child = child.clone();
            all.push(Record::Stopping { child, run });
        }
        if self.replacing {
            let child = child.clone();
            all.push(Record::Replacing { child, run });
        }
        if self.disarmed {
            let child = child.clone();
            all.push(Record::Disarmed { child });
        }
        if let Some(why) = &self.given_up {
            let (child, why) = (child.clone(), why.clone());
            all.push(Record::GivenUp { child, run, why });
        }
        if let Some(why) = &self.doubt {
            let (child, why) = (child.clone(), why.clone());
            all.push(Record::Doubted { child, run, why });
        }
        if self.settled {
            let child = child.clone();
            all.push(Record::Settled { child });
        }
        match &self.end {
            Some(RememberedEnd::Exited {
                exit,
                at,
                by,
                restarts,
            }) => all.push(Record::Ended {
                child,
                run,
                exit: *exit,
                at: *at,
                by: *by,
                restarts: *restarts,
            }),
            Some(RememberedEnd::NotStarted { why, at }) => {
                all.push(Record::NotStarted {
                    child,
                    run,
                    why: why.clone(),
                    at: *at,
                });
            }
            None => {}
        }
    }
}
