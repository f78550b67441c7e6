//! What is known of an end besides its status.

use serde::{Deserialize, Serialize};

/// What was seen when a process ended, besides its status. What is not said was not seen: it may be so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Circumstances {
    /// The kernel has written its memory to a file, or given it to a program: core(5).
    #[serde(default, skip_serializing_if = "is_unseen")]
    pub core_dumped: bool,
    /// The kernel has killed it, or another of its cgroup at that time, for want of memory.
    #[serde(default, skip_serializing_if = "is_unseen")]
    pub out_of_memory: bool,
}

impl Circumstances {
    /// It in a few words; `None` when nothing was seen.
    #[must_use]
    pub fn words(self) -> Option<&'static str> {
        match (self.out_of_memory, self.core_dumped) {
            (true, _) => Some("out of memory"),
            (false, true) => Some("core dumped"),
            (false, false) => None,
        }
    }

    /// Whether nothing was seen.
    #[must_use]
    pub fn are_none(&self) -> bool {
        *self == Self::default()
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's way to ask")]
fn is_unseen(sign: &bool) -> bool {
    !*sign
}
