//! Runs that are over: what the history tells of each.

use serde::{Deserialize, Serialize};

use super::cause::{Cause, Origin};
use crate::{
    command::{GivenBy, HistoryRun, HowEnded, Stamp},
    spec::{Circumstances, Digest, Exit, RunId, Wall},
};

/// How many runs of a child its history tells.
pub const HISTORY_LEN_MAX: usize = 20;

/// A run, as it stands in the history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastRun {
    /// Which.
    pub run: RunId,
    /// What ran.
    pub digest: Digest,
    /// When it began; `None` when it never had a process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Wall>,
    /// Why, and who asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_by: Option<Origin>,
    /// How it ended; `None` as long as that was not seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<PastEnd>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PastEnd {
    /// Its process ended.
    Exited {
        /// How.
        exit: Exit,
        /// What else was seen of it.
        #[serde(default, skip_serializing_if = "Circumstances::are_none")]
        circumstances: Circumstances,
        /// When; `None` when nobody saw it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<Wall>,
        /// By whose order; `None` when by itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<Origin>,
    },
    /// It never had a process.
    NotStarted {
        /// Why.
        why: String,
        /// When that was known; `None` when the server did not live to see it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<Wall>,
    },
}

impl PastEnd {
    /// The end of what lived when the host went down.
    #[must_use]
    pub fn with_the_host() -> Self {
        Self::Exited {
            exit: Exit::Unknown,
            circumstances: Circumstances::default(),
            at: None,
            by: Some(Origin::from(Cause::Reboot)),
        }
    }
}

impl PastRun {
    /// The run as clients are shown it.
    #[must_use]
    pub fn shown(&self) -> HistoryRun {
        let mut shown = HistoryRun {
            run: self.run,
            digest: self.digest,
            started_at: self.started.map(Stamp),
            started_by: self.started_by.as_ref().map(given_by),
            ended_at: None,
            exit: None,
            circumstances: Circumstances::default(),
            ended_by: None,
            reason: None,
        };
        match &self.end {
            Some(PastEnd::Exited {
                exit,
                circumstances,
                at,
                by,
            }) => {
                shown.exit = Some(HowEnded(*exit));
                shown.circumstances = *circumstances;
                shown.ended_at = at.map(Stamp);
                shown.ended_by = by.as_ref().map(given_by);
            }
            Some(PastEnd::NotStarted { why, at }) => {
                shown.ended_at = at.map(Stamp);
                shown.reason = Some(why.clone());
            }
            None => {}
        }
        shown
    }
}

fn given_by(origin: &Origin) -> GivenBy {
    GivenBy {
        cause: origin.cause.word().to_owned(),
        asker: origin.asker.as_deref().cloned(),
    }
}
