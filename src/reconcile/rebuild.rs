//! Records were lost: what is made of the runs that were found by their processes.
//!
//! - What is recorded wins over what was found: a run whose recorded process lives stays the
//!   child's run, and one whose end is recorded has ended.
//! - A run that the records do not know, or only as begun, is taken for the child's run. What it
//!   was started with is not known: until a good file of that name is seen it is described by what
//!   its process shows, and nothing is started, restarted or stopped by that. The first good file
//!   then counts as what it was started with, so that only a later change restarts it (`sync`).
//! - A run that lives, or may, and of which nobody can tell the process is in doubt (I1), and
//!   stays so for the servers that follow.
//! - An order without an answer is given up: its answer may be among what is lost.
//! - A process that hides whose it is may be a child that is not found (`suspects`).
//! - Run numbers go on behind all that may have been used.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    State, Turn,
    child::Child,
    effect::Level,
    memory::{Memory, Remembered, RememberedRun},
    record::Record,
};
use crate::{
    command::ErrorCode,
    spec::{ChildName, RunId, Spec, Time},
};

/// A live run that was found by its processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Whose.
    pub child: ChildName,
    /// Which.
    pub run: RunId,
    /// What its process shows of what it was started with.
    pub spec: Arc<Spec>,
    /// Its process and that one's start time in ticks, if it can be told which one it is.
    pub process: Option<(i32, u64)>,
    /// When it began.
    pub at: Time,
}

/// What is to be recorded of the runs that were found. `alive` are the children whose recorded
/// process lives.
#[must_use]
pub fn records(memory: &Memory, found: &[Found], alive: &BTreeSet<ChildName>) -> Vec<Record> {
    let mut records = Vec::new();
    let names: BTreeSet<&ChildName> = found.iter().map(|found| &found.child).collect();
    for name in names {
        let own = found.iter().filter(|found| found.child == *name);
        // Of an older run only what it has left can live: a new one begins when it has ended.
        let Some(latest) = own.max_by_key(|found| found.run) else {
            continue;
        };
        let remembered = memory.children.get(name);
        let last = remembered.and_then(|remembered| remembered.last.as_ref());
        if !alive.contains(name) {
            found_run(&mut records, last, latest);
        }
    }
    for (name, remembered) in &memory.children {
        records.extend(orders_given_up(name, remembered));
        if let Some(upto) = remembered.reserved {
            // Of a reserved block it is not known any more which numbers were used.
            let child = name.clone();
            records.push(Record::MaybeUsed { child, upto });
        }
        let Some(last) = &remembered.last else {
            continue;
        };
        let told = |record: &Record| record.is_about(name, last.run);
        let newer = |found: &Found| found.child == *name && found.run > last.run;
        if last.is_open() && !records.iter().any(told) && !found.iter().any(newer) {
            records.push(Record::Doubted {
                child: name.clone(),
                run: last.run,
                why: format!(
                    "records were lost, and run {} may have been started",
                    last.run
                ),
            });
        }
    }
    records
}

/// The orders of a child that are not taken up: whether they were carried out is among what is
/// lost, and a second time nothing is stopped or restarted.
fn orders_given_up(name: &ChildName, remembered: &Remembered) -> Vec<Record> {
    let orders = remembered.orders.iter();
    let given_up = orders.map(|asked| Record::Answered {
        child: name.clone(),
        order: asked.order,
        failure: Some(ErrorCode::Internal),
    });
    given_up.collect()
}

fn found_run(records: &mut Vec<Record>, last: Option<&RememberedRun>, found: &Found) {
    let (child, run) = (found.child.clone(), found.run);
    let known = last.filter(|last| last.run >= run);
    match (known, found.process) {
        (Some(last), _) if last.run > run || !last.is_open() => {}
        (Some(_), Some((pid, start_ticks))) => records.push(Record::Started {
            child,
            run,
            pid,
            start_ticks,
            at: found.at,
        }),
        (None, Some((pid, start_ticks))) => records.push(Record::Found {
            child,
            run,
            spec: Arc::clone(&found.spec),
            pid,
            start_ticks,
            at: found.at,
        }),
        (known, None) => {
            if known.is_none() {
                records.push(Record::Begun {
                    child: child.clone(),
                    run,
                    spec: Arc::clone(&found.spec),
                    by: None,
                    order: None,
                });
            }
            let why = format!("records were lost, and which process is run {run} cannot be told");
            records.push(Record::Doubted { child, run, why });
        }
    }
}

impl Memory {
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
}

impl State {
    /// Tells of a run that was taken back as what its process shows.
    pub(super) fn tell_found(&mut self, turn: &mut Turn, name: &ChildName) {
        let Some(child) = self.children.get_mut(name) else {
            return;
        };
        let Some(run) = child.run.as_ref().filter(|run| run.found) else {
            return;
        };
        child.good = None;
        child.note = Some(format!(
            "records were lost: run {} was found by its process, and is shown as that shows itself",
            run.id
        ));
        let line = turn.log(Level::Warn, name, "found by its process");
        line.run = child.run.as_ref().map(|run| run.id);
    }

    /// A good file is seen: if its child's run was found by its process, this is what it was
    /// started with, as far as anybody knows.
    pub(super) fn match_found(turn: &mut Turn, name: &ChildName, child: &mut Child) {
        let Some(listed) = child.listed().map(Arc::clone) else {
            return;
        };
        let Some(run) = child.run.as_mut().filter(|run| run.found) else {
            return;
        };
        run.found = false;
        run.spec = Arc::clone(&listed);
        child.note = Some(format!(
            "records were lost: run {} was found by its process, and its file is taken for what \
             it was started with",
            run.id
        ));
        turn.record(Record::Matched {
            child: name.clone(),
            run: run.id,
            spec: listed,
        });
    }
}

#[cfg(test)]
mod tests;
