//! When to look again at links whose files were being written: no hint tells of their closing,
//! since where a file's link leads is not watched.
//!
//! The waits grow, so that a file which is held open for ever costs next to nothing; with no such
//! link there is no timer (I9).

use std::time::Duration;

use crate::spec::Mono;

/// The first wait: a program that forks while it writes holds the file about this long.
const WAIT_MIN: Duration = Duration::from_millis(50);

/// The longest wait.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// Whether such a link was found by the last look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Links {
    /// None.
    Read,
    /// At least one leads to a file that was being written.
    Awaited,
}

/// The next look, when there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Again(Option<Next>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Next {
    at: Mono,
    /// How long it was waited for.
    wait: Duration,
}

impl Again {
    /// When the next look is due.
    pub(super) fn at(self) -> Option<Mono> {
        self.0.map(|next| next.at)
    }

    /// Whether a look is due.
    pub(super) fn is_due(self, now: Mono) -> bool {
        self.0.is_some_and(|next| now >= next.at)
    }

    /// What follows a look.
    pub(super) fn after(self, links: Links, now: Mono) -> Self {
        let wait = match (links, self.0) {
            (Links::Read, _) => return Self(None),
            (Links::Awaited, None) => WAIT_MIN,
            (Links::Awaited, Some(next)) if now < next.at => return self,
            (Links::Awaited, Some(next)) => (next.wait * 2).min(WAIT_MAX),
        };
        let at = now + wait;
        Self(Some(Next { at, wait }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_such_a_link_there_is_no_timer() {
        let again = Again::default().after(Links::Awaited, Mono(0));
        assert_eq!(again.at(), Some(Mono(0) + WAIT_MIN));
        assert_eq!(again.after(Links::Read, Mono(1)), Again::default());
        assert_eq!(Again::default().at(), None);
        assert!(!Again::default().is_due(Mono(u64::MAX)));
    }

    #[test]
    fn looks_grow_apart_up_to_a_bound_and_others_between_them_delay_nothing() {
        let mut again = Again::default();
        let mut now = Mono(0);
        let mut waits = Vec::new();
        for _ in 0..12 {
            again = again.after(Links::Awaited, now);
            assert!(!again.is_due(now));
            assert_eq!(again.after(Links::Awaited, now), again);
            let at = again.at().unwrap();
            waits.push(at - now);
            now = at;
            assert!(again.is_due(now));
        }
        assert_eq!(waits[..3], [WAIT_MIN, WAIT_MIN * 2, WAIT_MIN * 4]);
        assert_eq!(waits[11], WAIT_MAX);
    }
}
