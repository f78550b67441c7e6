//! What a child waits for before it starts.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::ChildName;

/// How another child has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// A process of it lives, and nobody has told it to end.
    Started,
    /// It runs: it is ready, where its file says when that is.
    Ready,
    /// Its latest run has ended by itself with success, and it does not run.
    Completed,
}

/// One child that another waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    /// How it has to be.
    pub condition: Condition,
    /// The file in which that is written: the child's own, or server.yml. Not part of the digest,
    /// nor is the place in it.
    pub path: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// The column, from 1, in characters.
    pub column: usize,
}

/// Whom a child waits for, by name.
pub type Dependencies = BTreeMap<ChildName, Dependency>;

impl Condition {
    /// Every condition.
    pub const ALL: [Self; 3] = [Self::Started, Self::Ready, Self::Completed];

    /// The word, as it stands in a file and on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Ready => "ready",
            Self::Completed => "completed",
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
