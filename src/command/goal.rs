//! What `wait` waits for, and for how long.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long `wait` waits unless it is told.
pub const WAIT_TIME: Duration = Duration::from_secs(60);

/// The longest that `wait` waits.
pub const WAIT_TIME_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// What `wait` waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Goal {
    /// Its process lives, and nobody has told it to end.
    Running,
    /// It lives and can do its work.
    Ready,
    /// No process of it lives.
    Exited,
}

impl Goal {
    /// Everything that can be waited for.
    pub const ALL: [Self; 3] = [Self::Running, Self::Ready, Self::Exited];

    /// The word on the wire and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Ready => "ready",
            Self::Exited => "exited",
        }
    }
}
