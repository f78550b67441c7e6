//! When to look again at a file that was being written: in growing steps, so that one which is
//! held open for ever costs next to nothing.
//!
//! That its closing is told is not counted on: the kernel tells of it a little before the file
//! counts as closed (`__fput` in the kernel's `fs/file_table.c`), and the news may be lost.

use std::time::Duration;

use crate::spec::Mono;

/// The first wait: how long a closing takes after it was told, and a fork until it executes.
const WAIT_MIN: Duration = Duration::from_millis(2);

/// The longest wait.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// The next look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Again {
    at: Mono,
    /// How long it is waited for.
    wait: Duration,
}

impl Again {
    /// What follows the first look, or one that there was news for.
    pub(super) fn soon(now: Mono) -> Self {
        Self {
            at: now + WAIT_MIN,
            wait: WAIT_MIN,
        }
    }

    /// What follows this look, unless it is not due yet.
    pub(super) fn after(self, now: Mono) -> Self {
        if !self.is_due(now) {
            return self;
        }
        let wait = (self.wait * 2).min(WAIT_MAX);
        Self {
            at: now + wait,
            wait,
        }
    }

    /// When the look is due.
    pub(super) fn at(self) -> Mono {
        self.at
    }

    /// Whether it is due.
    pub(super) fn is_due(self, now: Mono) -> bool {
        now >= self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_grow_apart_up_to_a_bound_and_others_between_them_delay_nothing() {
        let mut again = Again::soon(Mono(0));
        let mut waits = vec![again.at() - Mono(0)];
        for _ in 0..16 {
            let now = again.at();
            assert!(again.is_due(now) && !again.is_due(Mono(now.0 - 1)));
            assert_eq!(again.after(Mono(now.0 - 1)), again);
            again = again.after(now);
            waits.push(again.at() - now);
        }
        assert_eq!(waits[..3], [WAIT_MIN, WAIT_MIN * 2, WAIT_MIN * 4]);
        assert_eq!(waits[16], WAIT_MAX);
    }
}
