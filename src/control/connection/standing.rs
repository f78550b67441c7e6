//! What others see of a connection, told by the connection itself: what it does, and which keys
//! have signed on it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{
    control::{
        keys::{Key, Uptake},
        limits::KEYS_PER_CONNECTION_MAX,
        roster::Manner,
    },
    spec::Mono,
};

/// How a connection stands, shared with the acceptor. Never locked while anything is waited for.
#[derive(Debug)]
pub(in crate::control) struct Standing(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    manner: Manner,
    keys: Vec<Arc<Uptake>>,
}

/// More keys have signed on a connection than may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooManyKeys;

impl Standing {
    /// Of one that has come in just now.
    pub(in crate::control) fn new(now: Mono) -> Self {
        Self(Mutex::new(Inner {
            manner: Manner::Silent(now),
            keys: Vec::new(),
        }))
    }

    pub(in crate::control) fn manner(&self) -> Manner {
        self.lock().manner
    }

    /// Whether this very key has signed on it, from whichever of its files.
    pub(in crate::control) fn has_used(&self, key: &Key) -> bool {
        let has_used = |used: &Arc<Uptake>| Arc::ptr_eq(used, key.uptake());
        self.lock().keys.iter().any(has_used)
    }

    /// Takes note that a key has signed.
    pub(super) fn uses(&self, key: &Key) -> Result<(), TooManyKeys> {
        if self.has_used(key) {
            return Ok(());
        }
        let mut inner = self.lock();
        if inner.keys.len() >= KEYS_PER_CONNECTION_MAX {
            return Err(TooManyKeys);
        }
        inner.keys.push(Arc::clone(key.uptake()));
        Ok(())
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
        self.lock().manner = Manner::Busy;
    }

    /// Something is under way of which it is not known yet whether it is allowed. Who has given no
    /// command stays silent.
    pub(super) fn work(&self) {
        let manner = &mut self.lock().manner;
        *manner = match *manner {
            silent @ Manner::Silent(_) => silent,
            Manner::Idle(_) | Manner::Busy => Manner::Busy,
        };
    }

    /// Everything is answered. Who has given no command stays silent, and idle stays idle.
    pub(super) fn rest(&self, now: Mono) {
        let manner = &mut self.lock().manner;
        *manner = match *manner {
            Manner::Busy => Manner::Idle(now),
            other @ (Manner::Silent(_) | Manner::Idle(_)) => other,
        };
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Values that are replaced or added as a whole are whole after any panic.
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
        standing.work();
        assert_eq!(standing.manner(), Manner::Silent(Mono(1)));
        standing.begin();
        assert_eq!(standing.manner(), Manner::Busy);
        standing.rest(Mono(3));
        standing.rest(Mono(4));
        assert_eq!(standing.manner(), Manner::Idle(Mono(3)));
        standing.work();
        assert_eq!(standing.manner(), Manner::Busy);
    }
}
