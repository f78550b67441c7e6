//! What is remembered of a child beside its runs: how they ended, the program of its hook, and
//! orders without an answer.

use std::sync::Arc;

use super::{
    cause::Origin,
    program::{HookId, HookProgram},
    record::{OrderId, Record, Wanted},
};
use crate::{
    command::Asker,
    spec::{ChildName, Circumstances, Exit, RunId, Time},
};

/// An order without an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RememberedOrder {
    /// Which.
    pub order: OrderId,
    /// What.
    pub wanted: Wanted,
    /// The run that lived when it was taken.
    pub over: Option<RunId>,
    /// Who asked.
    pub asker: Arc<Asker>,
}

/// How a remembered run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RememberedEnd {
    /// Its process ended.
    Exited {
        /// How.
        exit: Exit,
        /// What else was seen of it.
        circumstances: Circumstances,
        /// When.
        at: Time,
        /// By whose order; `None` when by itself.
        by: Option<Origin>,
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

impl RememberedEnd {
    /// What this record says of an end.
    pub(super) fn of(record: &Record) -> Option<Self> {
        if let Record::Ended {
            exit,
            circumstances,
            at,
            by,
            asker,
            restarts,
            ..
        } = record
        {
            return Some(Self::Exited {
                exit: *exit,
                circumstances: *circumstances,
                at: *at,
                by: by.map(|cause| Origin::new(cause, asker.clone())),
                restarts: *restarts,
            });
        }
        let Record::NotStarted { why, at, .. } = record else {
            return None;
        };
        let why = why.clone();
        Some(Self::NotStarted { why, at: *at })
    }

    /// The record that says so of a run.
    pub(super) fn record(&self, child: &ChildName, run: RunId) -> Record {
        let child = child.clone();
        match self {
            Self::Exited {
                exit,
                circumstances,
                at,
                by,
                restarts,
            } => Record::Ended {
                child,
                run,
                exit: *exit,
                circumstances: *circumstances,
                at: *at,
                by: by.as_ref().map(|by| by.cause),
                asker: by.as_ref().and_then(|by| by.asker.clone()),
                restarts: *restarts,
            },
            Self::NotStarted { why, at } => Record::NotStarted {
                child,
                run,
                why: why.clone(),
                at: *at,
            },
        }
    }
}

/// What is remembered of a hook's program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RememberedHook {
    /// Which.
    pub hook: HookId,
    /// What.
    pub program: Arc<HookProgram>,
    /// Its process, that process's start time in ticks, and when it began, once it was known to live.
    pub process: Option<(i32, u64, Time)>,
}

impl RememberedHook {
    /// Takes a record about the hook of a child into account.
    pub(super) fn apply(remembered: &mut Option<Self>, record: &Record) {
        if let Record::HookBegun { hook, program, .. } = record {
            *remembered = Some(Self {
                hook: *hook,
                program: Arc::clone(program),
                process: None,
            });
        } else if let Record::HookStarted {
            hook,
            pid,
            start_ticks,
            at,
            ..
        } = record
        {
            if let Some(begun) = remembered.as_mut().filter(|it| it.hook == *hook) {
                begun.process = Some((*pid, *start_ticks, *at));
            }
        } else if let Record::HookEnded { hook, .. } = record {
            remembered.take_if(|it| it.hook == *hook);
        }
    }

    pub(super) fn records(&self, child: &ChildName, all: &mut Vec<Record>) {
        let (child, hook) = (child.clone(), self.hook);
        all.push(Record::HookBegun {
            child: child.clone(),
            hook,
            program: Arc::clone(&self.program),
        });
        if let Some((pid, start_ticks, at)) = self.process {
            all.push(Record::HookStarted {
                child,
                hook,
                pid,
                start_ticks,
                at,
            });
        }
    }
}
