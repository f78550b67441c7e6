//! What is written down, and what it means when it is read again.
//!
//! The journal stores records as they come; `Memory` is the fold over them. Both stores hold
//! the same kind of record: the runtime one dies with the boot, the state one does not.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::effect::Cause;
use crate::spec::{ChildName, Exit, Mono, Repeat, RunId, Spec, Time, Wall};

/// Where a record is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Store {
    /// `runtime_dir`: what concerns live processes.
    Runtime,
    /// `state_dir`: what survives a reboot.
    State,
}

/// One thing written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// A server began to write here; `boot` tells a reboot from a crash.
    Opened {
        /// The boot id and the start time of PID 1.
        boot: String,
    },
    /// The server ended by order: the next start is a fresh one.
    Closed,
    /// A run is about to begin.
    Begun {
        /// Whose.
        child: ChildName,
        /// Which.
        run: RunId,
        /// What.
        spec: Arc<Spec>,
    },
    /// The process of a run lives.
    Started {
        /// Whose.
        child: ChildName,
        /// Which.
        run: RunId,
        /// Its process.
        pid: i32,
        /// Field 22 of `/proc/PID/stat`, in clock ticks since boot.
        start_ticks: u64,
        /// When.
        at: Time,
    },
    /// A run was never begun after all.
    NotStarted {
        /// Whose.
        child: ChildName,
        /// Which.
        run: RunId,
        /// Why.
        why: String,
        /// When.
        at: Time,
    },
    /// A stop of a live run began.
    Stopping {
        /// Whose.
        child: ChildName,
        /// Which.
        run: RunId,
    },
    /// The stop of a live run is the first half of its replacement: the next run is due.
    Replacing {
        /// Whose.
        child: ChildName,
        /// Which run is replaced.
        run: RunId,
    },
    /// A run ended.
    Ended {
        /// Whose.
        child: ChildName,
        /// Which.
        run: RunId,
        /// How.
        exit: Exit,
        /// When.
        at: Time,
        /// By whose order; `None` when by itself.
        by: Option<Cause>,
        /// How many restarts in a row its policy has given it.
        restarts: u64,
    },
    /// The restart policy gave up after a run.
    GivenUp {
        /// Whose.
        child: ChildName,
        /// After which.
        run: RunId,
        /// Why, for a person.
        why: String,
    },
    /// A fresh start found this child at rest: what an earlier server had in mind for it is not
    /// due any more.
    Settled {
        /// Whose.
        child: ChildName,
    },
    /// A repeat timer was armed by a run.
    Armed {
        /// Whose.
        child: ChildName,
        /// By which run.
        run: RunId,
        /// What and how often.
        repeat: Repeat,
        /// When it fires.
        due: Mono,
    },
    /// A repeat timer is no more.
    Disarmed {
        /// Whose.
        child: ChildName,
    },
    /// A loadpath was seen with files in it.
    LoadpathSeen {
        /// Which.
        path: PathBuf,
        /// Its device.
        dev: u64,
        /// Its inode.
        ino: u64,
    },
    /// An operator's `stop`.
    Held {
        /// Whom.
        child: ChildName,
        /// Since when.
        since: Wall,
    },
    /// An operator's `start` after a `stop`.
    Released {
        /// Whom.
        child: ChildName,
    },
    /// Run numbers up to this one may have been used.
    Reserved {
        /// Whose.
        child: ChildName,
        /// The last of the block.
        upto: RunId,
    },
    /// Nothing is known of this child any more.
    Forgotten {
        /// Whom.
        child: ChildName,
    },
}

impl Record {
    /// Where this record is kept.
    #[must_use]
    pub fn store(&self) -> Store {
        match self {
            Self::Held { .. } | Self::Released { .. } | Self::Reserved { .. } => Store::State,
            Self::Opened { .. }
            | Self::Closed
            | Self::Begun { .. }
            | Self::Started { .. }
            | Self::NotStarted { .. }
            | Self::Stopping { .. }
            | Self::Replacing { .. }
            | Self::Ended { .. }
            | Self::GivenUp { .. }
            | Self::Settled { .. }
            | Self::Armed { .. }
            | Self::Disarmed { .. }
            | Self::LoadpathSeen { .. }
            | Self::Forgotten { .. } => Store::Runtime,
        }
    }
}

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
    /// Whether its stop was under way.
    pub stopping: bool,
    /// Whether that stop was the first half of a replacement.
    pub replacing: bool,
    /// Why the restart policy gave up after it.
    pub given_up: Option<String>,
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
                self.child(child).last = Some(RememberedRun {
                    run: *run,
                    spec: Arc::clone(spec),
                    process: None,
                    started: None,
                    stopping: false,
                    replacing: false,
                    given_up: None,
                    disarmed: false,
                    settled: false,
                    end: None,
                });
            }
            Record::Started {
                child,
                run,
                pid,
                start_ticks,
                at,
            } => {
                if let Some(last) = self.run(child, *run) {
                    last.process = Some((*pid, *start_ticks));
                    last.started = Some(*at);
                }
            }
            Record::NotStarted {
                child,
                run,
                why,
                at,
            } => {
                if let Some(last) = self.run(child, *run) {
                    last.end = Some(RememberedEnd::NotStarted {
                        why: why.clone(),
                        at: *at,
                    });
                }
            }
            Record::Stopping { child, run } => {
                if let Some(last) = self.run(child, *run) {
                    last.stopping = true;
                    last.replacing = false;
                }
            }
            Record::Replacing { child, run } => {
                if let Some(last) = self.run(child, *run) {
                    last.replacing = true;
                }
            }
            Record::GivenUp { child, run, why } => {
                if let Some(last) = self.run(child, *run) {
                    last.given_up = Some(why.clone());
                }
            }
            Record::Ended {
                child,
                run,
                exit,
                at,
                by,
                restarts,
            } => {
                if let Some(last) = self.run(child, *run) {
                    last.end = Some(RememberedEnd::Exited {
                        exit: *exit,
                        at: *at,
                        by: *by,
                        restarts: *restarts,
                    });
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
            Record::Reserved { child, upto } => {
                let reserved = &mut self.child(child).reserved;
                *reserved = (*reserved).max(Some(*upto));
            }
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
            remembered.last = None;
            remembered.armed = None;
        }
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
    fn records(&self, child: &ChildName, all: &mut Vec<Record>) {
        let (child, run) = (child.clone(), self.run);
        all.push(Record::Begun {
            child: child.clone(),
            run,
            spec: Arc::clone(&self.spec),
        });
        if let (Some((pid, start_ticks)), Some(at)) = (self.process, self.started) {
            all.push(Record::Started {
                child: child.clone(),
                run,
                pid,
                start_ticks,
                at,
            });
        }
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
