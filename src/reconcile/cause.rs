//! Why something is done: the word that orders, records and log lines share.
//!
//! It is written down with each run that ended, so that a name in here is part of a file format.

use serde::{Deserialize, Serialize};

/// Why something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A client asked.
    Command,
    /// Another child's hook.
    Hook,
    /// A repeat timer.
    Repeat,
    /// The restart policy.
    Policy,
    /// The server started.
    Boot,
    /// A new file.
    New,
    /// A changed file.
    Changed,
    /// A file that is gone.
    Removed,
    /// The settings in server.yml changed.
    Settings,
    /// The server ends.
    Shutdown,
}

impl Cause {
    /// The cause as a word for the log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Hook => "hook",
            Self::Repeat => "repeat",
            Self::Policy => "policy",
            Self::Boot => "boot",
            Self::New => "new file",
            Self::Changed => "file changed",
            Self::Removed => "file removed",
            Self::Settings => "settings changed",
            Self::Shutdown => "shutdown",
        }
    }
}
