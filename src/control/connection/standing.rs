//! What the acceptor sees of a connection, told by the connection itself.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{control::roster::Manner, spec::Mono};

/// How a connection stands, shared with the acceptor. Never locked while anything is waited for.
#[derive(Debug)]
pub(in crate::control) struct Standing(Mutex<Manner>);

impl Standing {
    /// Of one that has come in just now.
    pub(in crate::control) fn new(now: Mono) -> Self {
        Self(Mutex::new(Manner::Silent(now)))
    }

    pub(in crate::control) fn manner(&self) -> Manner {
        *self.lock()
    }

    /// Whether it has not given a command yet that it may give.
    pub(super) fn is_silent(&self) -> bool {
        match self.manner() {
            Manner::Silent(_) => true,
            Manner::Idle(_) | Manner::Busy => false,
        }
    }

    /// A command was given that is allowed.
    pub(super) fn begin(&self) {
        *self.lock() = Manner::Busy;
    }

    /// Everything is answered. Who has given no command stays silent, and idle stays idle.
    pub(super) fn rest(&self, now: Mono) {
        let mut manner = self.lock();
        *manner = match *manner {
            Manner::Busy => Manner::Idle(now),
            other @ (Manner::Silent(_) | Manner::Idle(_)) => other,
        };
    }

    fn lock(&self) -> MutexGuard<'_, Manner> {
        // A value that is copied in and out is whole after any panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_says_nothing_or_idles_is_quiet_since_the_beginning_of_it() {
        let standing = Standing::new(Mono(1));
        standing.rest(Mono(2));
        assert_eq!(standing.manner(), Manner::Silent(Mono(1)));
        standing.begin();
        assert_eq!(standing.manner(), Manner::Busy);
        standing.rest(Mono(3));
        standing.rest(Mono(4));
        assert_eq!(standing.manner(), Manner::Idle(Mono(3)));
    }
}
