//! What is remembered of a child beside its runs: the program of its hook, and orders without an
//! answer.

use std::sync::Arc;

use super::{
    program::{HookId, HookProgram},
    record::{OrderId, Record, Wanted},
};
use crate::{
    command::Asker,
    spec::{ChildName, RunId, Time},
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
