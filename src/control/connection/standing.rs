//! What others see of a connection, told by the connection itself: what it does, and which keys
//! have signed on it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::{
    control::{
        keys::{Fingerprint, Key, KeyName, Uptake},
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
    keys: Vec<Used>,
}

/// A key that has signed.
#[derive(Debug)]
struct Used {
    signer: Signer,
    /// Which taking up of it; `None` while a program that went on with the connection has not
    /// looked for it.
    uptake: Option<Arc<Uptake>>,
}

/// Which key has signed, for the next program of an upgrade.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::control) struct Signer {
    name: KeyName,
    fingerprint: Fingerprint,
}

impl Signer {
    fn of(key: &Key) -> Self {
        Self {
            name: key.name().clone(),
            fingerprint: key.public().fingerprint().clone(),
        }
    }
}

/// Whether the keys that have signed on a connection are still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::control) enum KeysFound {
    All,
    NotAll,
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

    /// Of one that came in to the program before this. Its keys are looked for with the next look
    /// at the ring.
    pub(in crate::control) fn taken_over(manner: Manner, signers: Vec<Signer>) -> Self {
        let used = |signer| Used {
            signer,
            uptake: None,
        };
        Self(Mutex::new(Inner {
            manner,
            keys: signers.into_iter().map(used).collect(),
        }))
    }

    /// The keys that have signed on it.
    pub(in crate::control) fn signers(&self) -> Vec<Signer> {
        let inner = self.lock();
        inner.keys.iter().map(|used| used.signer.clone()).collect()
    }

    /// Finds the keys that have signed before an upgrade among all that there are. Says whether
    /// one of them is not there any more.
    pub(in crate::control) fn find_keys(&self, all: &[Arc<Key>]) -> KeysFound {
        let mut inner = self.lock();
        let unknown = inner.keys.iter_mut().filter(|used| used.uptake.is_none());
        let mut found = KeysFound::All;
        for used in unknown {
            match all.iter().find(|key| Signer::of(key) == used.signer) {
                Some(key) => used.uptake = Some(Arc::clone(key.uptake())),
                None => found = KeysFound::NotAll,
            }
        }
        found
    }

    pub(in crate::control) fn manner(&self) -> Manner {
        self.lock().manner
    }

    /// Whether this very key has signed on it, from whichever of its files.
    pub(in crate::control) fn has_used(&self, key: &Key) -> bool {
        let is_it = |uptake: &Arc<Uptake>| Arc::ptr_eq(uptake, key.uptake());
        let has_used = |used: &Used| used.uptake.as_ref().is_some_and(is_it);
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
        inner.keys.push(Used {
            signer: Signer::of(key),
            uptake: Some(Arc::clone(key.uptake())),
        });
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
