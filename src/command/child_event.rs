//! What becomes of children, as clients that follow it are told.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Asker, ConfigStatus, HowEnded, Op, Stamp, StateName};
use crate::spec::{ChildName, RunId};

/// Whether `events` goes on with what is yet to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Follow {
    /// It ends with what has happened.
    No,
    /// Until its client goes.
    Yes,
}

/// One change of a child, as the `event` object of a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildEvent {
    /// Its number: each is greater than those before. A server that begins anew begins with 1.
    pub seq: u64,
    /// When.
    pub at: Stamp,
    /// Whose.
    pub child: ChildName,
    /// What the child is now.
    pub state: StateName,
    /// The live run, else the one that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// The run's process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// Why, as a word such as `command` or `policy`; there may come more of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// Who asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asker: Option<Arc<Asker>>,
    /// How the run ended, if that is what has happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<HowEnded>,
    /// How its file stands to what runs, if that is what has changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<ConfigStatus>,
    /// What else is to be said, on one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// The answer to `events`, after all of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Always `events`.
    pub op: Op,
    /// The child asked for, when one was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub child: Option<ChildName>,
    /// How many were told.
    pub count: usize,
    /// One line for a person.
    pub message: String,
}
