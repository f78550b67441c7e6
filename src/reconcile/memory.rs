//! What the records amount to: the fold over both stores, and back again for compaction.
//!
//! Pure, so that the simulator crashes the server with the very records that a disk would hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    QUEUE_LEN_MAX,
    cause::Origin,
    past::{HISTORY_LEN_MAX, PastEnd, PastRun},
    planted::{Bug, planted},
    record::{OrderId, Record, Store, Wanted},
    remembered::{RememberedHook, RememberedOrder},
    suspects::{Suspects, Suspicion},
};
use crate::spec::{ChildName, Circumstances, Exit, Mono, Repeat, RunId, Spec, Time, Wall};

pub use super::remembered::RememberedEnd;

/// How many orders of one child may be without an answer: one under way, those behind it, one that
/// waits for what the child depends on, the release of its hold, and a stop that overtakes them. Past that, as only damage can bring about,
/// the oldest go.
pub const ORDERS_KEPT_MAX: usize = QUEUE_LEN_MAX + 4;

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
    /// Processes that may be a child's and do not show whose.
    pub suspects: Suspects,
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
    /// Whether it may be a process that does not show whose it is.
    pub suspicion: Suspicion,
    /// Its last run of this boot.
    pub last: Option<RememberedRun>,
    /// Its repeat timer.
    pub armed: Option<(RunId, Repeat, Mono)>,
    /// The program of its hook, until it is gone.
    pub hook: Option<RememberedHook>,
    /// What clients ordered and had no answer to, in order of arrival.
    pub orders: Vec<RememberedOrder>,
    /// Its runs that are over and may not stand in the history, the latest [`HISTORY_LEN_MAX`]:
    /// what is older the history would not keep either.
    pub over: Vec<PastRun>,
}

/// What a reboot made void.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Voided {
    /// Orders that nobody had an answer to.
    pub orders: Vec<(ChildName, Wanted)>,
}

/// What is remembered of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RememberedRun {
    /// Which.
    pub run: RunId,
    /// What.
    pub spec: Arc<Spec>,
    /// Why it was begun, and who asked.
    pub started_by: Option<Origin>,
    /// The client's order that is carried out once its process lives.
    pub order: Option<OrderId>,
    /// Its process and that process's start time in ticks, once it was known to live.
    pub process: Option<(i32, u64)>,
    /// When it began.
    pub started: Option<Time>,
    /// Whether what it was started with is not known: the spec is what its process shows.
    pub found: bool,
    /// Whether it could do its work once.
    pub ready: bool,
    /// Whether its stop was under way.
    pub stopping: bool,
    /// Why, and who asked.
    pub stopped_by: Option<Origin>,
    /// Whether that stop was the first half of a replacement.
    pub replacing: bool,
    /// Why the restart policy gave up after it.
    pub given_up: Option<String>,
    /// Why it cannot be told whether it lives, since records were lost.
    pub doubt: Option<String>,
    /// Whether the repeat that it armed is done with.
    pub disarmed: bool,
    /// Whether nothing follows it any more, its policy and its repeat least of all.
    pub settled: bool,
    /// Whether a fresh start came after its end: for the mode it is as if it had never been.
    pub renewed: bool,
    /// How its end was, once it had one.
    pub end: Option<RememberedEnd>,
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
            Record::Begun {
                child,
                run,
                spec,
                by,
                order,
            } => {
                let mut begun = RememberedRun::begun(*run, spec);
                begun.started_by.clone_from(by);
                begun.order = *order;
                self.child(child).begin(begun);
            }
            Record::Found {
                child, run, spec, ..
            } => {
                let found = RememberedRun::found(*run, spec, record);
                self.child(child).begin(found);
            }
            Record::Started { child, run, .. }
            | Record::Matched { child, run, .. }
            | Record::Ready { child, run }
            | Record::NotStarted { child, run, .. }
            | Record::Stopping { child, run, .. }
            | Record::Replacing { child, run }
            | Record::GivenUp { child, run, .. }
            | Record::Doubted { child, run, .. }
            | Record::Ended { child, run, .. } => {
                if let Some(remembered) = self.children.get_mut(child) {
                    remembered.apply_to_run(*run, record);
                }
            }
            Record::Armed { child, .. }
            | Record::Renewed { child }
            | Record::Settled { child }
            | Record::Disarmed { child }
            | Record::Asked { child, .. }
            | Record::Answered { child, .. }
            | Record::Over { child, .. }
            | Record::Suspicion { child, .. }
            | Record::Noted { child, .. } => self.child(child).apply(record),
            Record::LoadpathSeen { path, dev, ino } => {
                self.loadpaths.insert(path.clone(), (*dev, *ino));
            }
            Record::Suspects(sighting) => self.sight(sighting),
            Record::HookBegun { child, .. }
            | Record::HookStarted { child, .. }
            | Record::HookEnded { child, .. } => {
                RememberedHook::apply(&mut self.child(child).hook, record);
            }
            Record::Held { child, since } => self.child(child).held = Some(*since),
            Record::Released { child } => self.child(child).held = None,
            Record::Reserved { child, upto } => raise(&mut self.child(child).reserved, *upto),
            Record::MaybeUsed { child, upto } => raise(&mut self.child(child).maybe_used, *upto),
            Record::Forgotten { child } => {
                let remembered = self.child(child);
                remembered.last = None;
                remembered.armed = None;
                remembered.suspicion = Suspicion::Open;
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
        all.extend(self.sightings());
        for (child, remembered) in &self.children {
            remembered.records(child, &mut all);
        }
        if self.closed {
            all.push(Record::Closed);
        }
        all.retain(|record| record.store() == store);
        all
    }

    /// Drops what does not outlive a boot. What ran is over, and waits for the history.
    pub fn forget_boot(&mut self) -> Voided {
        self.boot = None;
        self.closed = false;
        self.loadpaths.clear();
        self.suspects = Suspects::default();
        let mut voided = Voided::default();
        for (child, remembered) in &mut self.children {
            remembered.maybe_used = None;
            remembered.suspicion = Suspicion::Open;
            if let Some(last) = remembered.last.take() {
                remembered.put_unended(&last, PastEnd::with_the_host());
            }
            remembered.armed = None;
            remembered.hook = None;
            let orders = std::mem::take(&mut remembered.orders);
            let orders = orders.into_iter().map(|it| (child.clone(), it.wanted));
            voided.orders.extend(orders);
        }
        voided
    }

    /// The children that are as if they had never run.
    #[must_use]
    pub fn renewed(&self) -> BTreeSet<ChildName> {
        let renewed = |it: &Remembered| it.last.as_ref().is_some_and(|last| last.renewed);
        let children = self.children.iter().filter(|(_, it)| renewed(it));
        children.map(|(name, _)| name.clone()).collect()
    }

    /// Where a loadpath stood when it last had files in it.
    #[must_use]
    pub fn loadpath(&self, path: &Path) -> Option<(u64, u64)> {
        self.loadpaths.get(path).copied()
    }

    fn child(&mut self, child: &ChildName) -> &mut Remembered {
        self.children.entry(child.clone()).or_default()
    }
}

fn raise(number: &mut Option<RunId>, upto: RunId) {
    *number = (*number).max(Some(upto));
}

impl Remembered {
    /// Takes in what concerns no single run.
    fn apply(&mut self, record: &Record) {
        match record {
            Record::Asked {
                order,
                wanted,
                over,
                asker,
                ..
            } => {
                self.orders.retain(|it| it.order != *order);
                self.orders.push(RememberedOrder {
                    order: *order,
                    wanted: *wanted,
                    over: *over,
                    asker: Arc::clone(asker),
                });
                self.orders.sort_by_key(|it| it.order);
                let above = self.orders.len().saturating_sub(ORDERS_KEPT_MAX);
                self.orders.drain(..above);
            }
            Record::Armed {
                run, repeat, due, ..
            } => {
                self.armed = Some((*run, *repeat, *due));
                if let Some(last) = &mut self.last {
                    last.disarmed = false;
                }
            }
            Record::Renewed { .. } | Record::Settled { .. } => {
                self.armed = None;
                if let Some(last) = &mut self.last {
                    last.settled = true;
                    last.renewed = matches!(record, Record::Renewed { .. });
                }
            }
            Record::Disarmed { .. } => {
                self.armed = None;
                if let Some(last) = &mut self.last {
                    last.disarmed = true;
                }
            }
            Record::Answered { order, .. } => self.orders.retain(|it| it.order != *order),
            Record::Over { past, .. } => self.put_over(past.clone()),
            Record::Suspicion { is, .. } => self.suspicion = is.clone(),
            Record::Noted { upto, .. } => self.over.retain(|past| past.run > *upto),
            Record::Opened { .. }
            | Record::Closed
            | Record::Found { .. }
            | Record::Matched { .. }
            | Record::MaybeUsed { .. }
            | Record::Begun { .. }
            | Record::Started { .. }
            | Record::Ready { .. }
            | Record::NotStarted { .. }
            | Record::Stopping { .. }
            | Record::Replacing { .. }
            | Record::Ended { .. }
            | Record::GivenUp { .. }
            | Record::Doubted { .. }
            | Record::Suspects(_)
            | Record::HookBegun { .. }
            | Record::HookStarted { .. }
            | Record::HookEnded { .. }
            | Record::LoadpathSeen { .. }
            | Record::Held { .. }
            | Record::Released { .. }
            | Record::Reserved { .. }
            | Record::Forgotten { .. } => {}
        }
    }

    /// Another run is about to begin.
    fn begin(&mut self, begun: RememberedRun) {
        let run = begun.run;
        if let Some(last) = self.last.replace(begun).filter(|last| last.run != run) {
            // Only damage can have taken the record of its end.
            let unseen = PastEnd::Exited {
                exit: Exit::Unknown,
                circumstances: Circumstances::default(),
                at: None,
                by: None,
            };
            self.put_unended(&last, unseen);
        }
    }

    fn apply_to_run(&mut self, run: RunId, record: &Record) {
        let Some(last) = self.last.as_mut().filter(|last| last.run == run) else {
            return;
        };
        let before = last.end.clone();
        last.apply(record);
        let starts = matches!(record, Record::Started { .. });
        let carried_out = last.order.filter(|_| starts);
        // What a process said of itself may be told better by its server.
        let past = (last.end != before).then(|| last.past());
        if let Some(order) = carried_out.filter(|_| !planted(Bug::OrderDoneTwice)) {
            self.orders.retain(|it| it.order != order);
        }
        if let Some(past) = past {
            self.put_over(past);
        }
    }

    /// Keeps a run whose end was never written down; `lived` is how it ended if it began.
    fn put_unended(&mut self, last: &RememberedRun, lived: PastEnd) {
        if last.end.is_some() {
            return;
        }
        let mut past = last.past();
        past.end = Some(match last.process {
            Some(_) => lived,
            None => PastEnd::NotStarted {
                why: "the server ended before it had begun".to_owned(),
                at: None,
            },
        });
        self.put_over(past);
    }

    fn put_over(&mut self, past: PastRun) {
        if planted(Bug::RunNotKept) {
            return;
        }
        self.over.retain(|it| it.run != past.run);
        self.over.push(past);
        self.over.sort_by_key(|it| it.run);
        let above = self.over.len().saturating_sub(HISTORY_LEN_MAX);
        self.over.drain(..above);
    }

    /// The latest run as the history is to tell it, while it lives.
    #[must_use]
    pub fn live(&self) -> Option<PastRun> {
        let last = self.last.as_ref()?;
        (last.process.is_some() && last.end.is_none()).then(|| last.past())
    }

    fn records(&self, child: &ChildName, all: &mut Vec<Record>) {
        let child = child.clone();
        let last = self.last.as_ref().map(|last| last.run);
        for past in self.over.iter().filter(|past| Some(past.run) != last) {
            let (child, past) = (child.clone(), past.clone());
            all.push(Record::Over { child, past });
        }
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
        if self.suspicion != Suspicion::Open {
            let (child, is) = (child.clone(), self.suspicion.clone());
            all.push(Record::Suspicion { child, is });
        }
        if let Some(last) = &self.last {
            last.records(&child, all);
            let noted = self.over.iter().all(|past| past.run != last.run);
            if last.end.is_some() && noted {
                let (child, upto) = (child.clone(), last.run);
                all.push(Record::Noted { child, upto });
            }
        }
        for order in &self.orders {
            all.push(Record::Asked {
                child: child.clone(),
                order: order.order,
                wanted: order.wanted,
                over: order.over,
                asker: Arc::clone(&order.asker),
            });
        }
        if let Some(hook) = &self.hook {
            hook.records(&child, all);
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
            started_by: None,
            order: None,
            process: None,
            started: None,
            found: false,
            ready: false,
            stopping: false,
            stopped_by: None,
            replacing: false,
            given_up: None,
            doubt: None,
            disarmed: false,
            settled: false,
            renewed: false,
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
            }
            | Record::Found {
                pid,
                start_ticks,
                at,
                ..
            } => {
                self.live((*pid, *start_ticks), *at);
                self.found |= matches!(record, Record::Found { .. });
            }
            Record::Matched { spec, .. } => {
                self.spec = Arc::clone(spec);
                self.found = false;
            }
            Record::NotStarted { .. } | Record::Ended { .. } => self.has_ended(record),
            Record::Stopping { by, .. } => {
                (self.stopping, self.replacing) = (true, false);
                self.stopped_by.clone_from(by);
            }
            Record::Replacing { .. } => self.replacing = true,
            Record::Ready { .. } => self.ready = true,
            Record::GivenUp { why, .. } => self.given_up = Some(why.clone()),
            Record::Doubted { why, .. } => self.doubt = Some(why.clone()),
            Record::Opened { .. }
            | Record::Closed
            | Record::Begun { .. }
            | Record::Armed { .. }
            | Record::Renewed { .. }
            | Record::Settled { .. }
            | Record::Disarmed { .. }
            | Record::Asked { .. }
            | Record::Answered { .. }
            | Record::Over { .. }
            | Record::Noted { .. }
            | Record::Suspects(_)
            | Record::Suspicion { .. }
            | Record::HookBegun { .. }
            | Record::HookStarted { .. }
            | Record::HookEnded { .. }
            | Record::LoadpathSeen { .. }
            | Record::Held { .. }
            | Record::Released { .. }
            | Record::Reserved { .. }
            | Record::MaybeUsed { .. }
            | Record::Forgotten { .. } => {}
        }
    }

    fn has_ended(&mut self, record: &Record) {
        let end = RememberedEnd::of(record);
        if let Some(RememberedEnd::Exited { .. }) = end {
            // What was said of it while nobody knew whether it lived is void.
            (self.settled, self.renewed) = (false, false);
        }
        self.end = end;
    }

    /// Its process is known.
    fn live(&mut self, process: (i32, u64), at: Time) {
        self.process = Some(process);
        self.started = Some(at);
        self.doubt = None;
    }

    /// Whether it was announced and nothing more is known.
    pub(super) fn is_open(&self) -> bool {
        self.process.is_none() && self.end.is_none() && self.doubt.is_none()
    }

    /// The run as the history tells it.
    fn past(&self) -> PastRun {
        let end = self.end.as_ref().map(|end| match end {
            RememberedEnd::Exited {
                exit,
                circumstances,
                at,
                by,
                ..
            } => PastEnd::Exited {
                exit: *exit,
                circumstances: *circumstances,
                at: Some(at.wall),
                by: by.clone(),
            },
            RememberedEnd::NotStarted { why, at } => PastEnd::NotStarted {
                why: why.clone(),
                at: Some(at.wall),
            },
        });
        // A process that wrote itself down may not have become its program after all.
        let began = !matches!(end, Some(PastEnd::NotStarted { .. }));
        PastRun {
            run: self.run,
            digest: self.spec.digest,
            started: self.started.filter(|_| began).map(|time| time.wall),
            started_by: self.started_by.clone(),
            end,
        }
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
                by: self.started_by.clone(),
                order: self.order,
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
        if self.ready {
            let child = child.clone();
            all.push(Record::Ready { child, run });
        }
        if self.stopping {
            let (child, by) = (child.clone(), self.stopped_by.clone());
            all.push(Record::Stopping { child, run, by });
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
        all.extend(self.end.as_ref().map(|end| end.record(&child, run)));
        if self.renewed {
            all.push(Record::Renewed { child });
        } else if self.settled {
            all.push(Record::Settled { child });
        }
    }
}
