//! What a drill counts, and the table of it.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write,
    sync::{Mutex, MutexGuard, PoisonError},
};

use supervisor_rs::{clock, spec::Mono};

/// What must not happen; each row of the table is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// Alive and not in `check`.
    Lost,
    /// Two of one child at one moment, or one run number twice.
    Doubled,
    /// `failed`, because the server does not know what became of a run.
    InDoubt,
    /// Pid, start time, or the exit of one run is another than before.
    Changed,
    /// Still there when all is at rest.
    Zombie,
    /// Of a run that was stopped.
    LeftBehind,
    /// Open in a child, or more of them in the server than before.
    Descriptor,
    /// Still mounted at the end.
    Mount,
    /// Another exit than the child's own.
    WrongExit,
    /// No exit, where this machine could tell.
    UnknownExit,
    /// Answered and not so.
    CommandLost,
    /// Written and not there.
    LineLost,
    /// There twice, or out of order.
    LineDoubled,
    /// A child could not write.
    Blocked,
}

/// Each with the words that the table has for it.
const FAULTS: [(Fault, &str); 14] = [
    (Fault::Lost, "processes lost (alive, not in check)"),
    (Fault::Doubled, "processes doubled"),
    (Fault::InDoubt, "children in doubt"),
    (Fault::Changed, "runs that became another"),
    (Fault::Zombie, "zombies left"),
    (Fault::LeftBehind, "processes left behind"),
    (Fault::Descriptor, "descriptors leaked"),
    (Fault::Mount, "mounts left"),
    (Fault::WrongExit, "wrong exits"),
    (Fault::UnknownExit, "unknown exits that could be known"),
    (Fault::CommandLost, "acknowledged commands lost"),
    (Fault::LineLost, "log lines lost"),
    (Fault::LineDoubled, "log lines doubled"),
    (Fault::Blocked, "writes that failed"),
];

/// How many of a kind are told in full.
const TOLD_MAX: usize = 5;

/// How many of the latest actions are kept.
const ACTIONS_MAX: usize = 80;

/// What was done and what was found.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    counts: BTreeMap<&'static str, u64>,
    faults: BTreeMap<Fault, Vec<String>>,
    actions: VecDeque<(Mono, String)>,
    /// The latest actions before the first fault.
    before_first: Option<String>,
}

impl Tally {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts what is no fault.
    pub(crate) fn count(&self, what: &'static str) {
        self.add(what, 1);
    }

    /// Counts several.
    pub(crate) fn add(&self, what: &'static str, several: u64) {
        *self.inner().counts.entry(what).or_insert(0) += several;
    }

    /// How many there were.
    pub(crate) fn counted(&self, what: &str) -> u64 {
        self.inner().counts.get(what).copied().unwrap_or(0)
    }

    /// Notes what was done, for whoever has to find out what led to a fault.
    pub(crate) fn action(&self, what: String) {
        let mut inner = self.inner();
        inner.actions.push_back((clock::mono(), what));
        if inner.actions.len() > ACTIONS_MAX {
            inner.actions.pop_front();
        }
    }

    /// Notes a fault.
    pub(crate) fn fault(&self, kind: Fault, what: String) {
        let mut inner = self.inner();
        if inner.before_first.is_none() {
            let mut text = String::new();
            for (at, action) in &inner.actions {
                let _infallible = writeln!(
                    text,
                    "  {}.{:06} {action}",
                    at.0 / 1_000_000,
                    at.0 % 1_000_000
                );
            }
            inner.before_first = Some(text);
        }
        inner.faults.entry(kind).or_default().push(what);
    }

    /// The table: what was done, and how much of what must not be.
    pub(crate) fn table(&self) -> String {
        let inner = self.inner();
        let mut text = String::new();
        let mut row = |what: &str, count: u64| {
            let _infallible = writeln!(text, "{what:<42}{count:>9}");
        };
        for (what, count) in &inner.counts {
            row(what, *count);
        }
        for (fault, words) in FAULTS {
            let count = inner.faults.get(&fault).map_or(0, Vec::len);
            row(words, u64::try_from(count).expect("few"));
        }
        text
    }

    /// What is wrong, in full; empty when nothing is.
    pub(crate) fn complaint(&self) -> String {
        let inner = self.inner();
        let mut text = String::new();
        for (kind, faults) in &inner.faults {
            for fault in faults.iter().take(TOLD_MAX) {
                let _infallible = writeln!(text, "{kind:?}: {fault}");
            }
        }
        if let Some(actions) = &inner.before_first {
            let _infallible = writeln!(
                text,
                "the last actions before the first of them:\n{actions}"
            );
        }
        text
    }
}
