//! The connections there are, as the acceptor, the connections themselves and whoever drops a key
//! share them.
//!
//! A connection on which a key has signed is ended when the key is dropped, whatever it is at.
//! A key may be dropped while a token that it signed is being checked: the connection takes note
//! of the key first and then looks whether it was dropped, and who drops it does it the other way
//! round, so that one of the two sees it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{mpsc, oneshot, watch};

use super::{
    asked::ToConnection,
    connection::{End, KeysFound, MakeRoom, Standing},
    keys::{Key, KeyName, Uptake},
    roster::{Admission, Arrival, PeerKey, Roster},
};

/// What is kept of a connection.
#[derive(Debug)]
pub(super) struct Guest {
    /// Where it is asked to make room.
    pub(super) room: mpsc::Sender<MakeRoom>,
    /// Where it is told to end.
    pub(super) end: watch::Sender<Option<End>>,
    /// Where answers to it go.
    pub(super) answers: ToConnection,
    pub(super) standing: Arc<Standing>,
}

/// Whether a connection may give commands under a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SignIn {
    Welcome,
    /// The key has as many connections as it may have, and all are at work.
    TooMany,
}

/// All connections. Never locked while anything is waited for.
#[derive(Debug)]
pub(super) struct Guests {
    roster: Mutex<Roster<Guest>>,
    /// Keys that were dropped, as long as anybody has them in hand, from whichever of their files.
    dropped: Mutex<Vec<Weak<Uptake>>>,
}

impl Guests {
    pub(super) fn new(roster: Roster<Guest>) -> Self {
        Self {
            roster: Mutex::new(roster),
            dropped: Mutex::new(Vec::new()),
        }
    }

    /// The roster, for a moment.
    pub(super) fn roster(&self) -> MutexGuard<'_, Roster<Guest>> {
        // Entries are put in and taken out as a whole.
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a connection count for the key that signed on it, from the first time on.
    pub(super) fn sign_in(&self, arrival: Arrival, name: &KeyName) -> SignIn {
        let mut roster = self.roster();
        let manner = |guest: &Guest| guest.standing.manner();
        match roster.move_to(arrival, PeerKey::Key(name.clone()), manner) {
            Admission::Welcome => SignIn::Welcome,
            Admission::Refused => SignIn::TooMany,
            Admission::InPlaceOf(other) => {
                if let Some(guest) = roster.get(other) {
                    let (stays, _) = oneshot::channel();
                    // An error means that it is asked already, or is ending.
                    let _ = guest.room.try_send(MakeRoom(stays));
                }
                SignIn::Welcome
            }
        }
    }

    /// Ends every connection on which one of these keys has signed, and says how many.
    pub(super) fn drop_keys(&self, keys: &[Arc<Key>]) -> usize {
        let mut dropped = self.dropped();
        dropped.retain(|key| key.strong_count() > 0);
        dropped.extend(keys.iter().map(|key| Arc::downgrade(key.uptake())));
        drop(dropped);
        let mut ended = 0;
        for guest in self.roster().all() {
            if keys.iter().any(|key| guest.standing.has_used(key)) {
                guest.end.send_replace(Some(End::KeyDropped));
                ended += 1;
            }
        }
        ended
    }

    /// Finds the keys that have signed before an upgrade among all there are; ends the connections
    /// of those that are gone, and says how many.
    pub(super) fn find_keys(&self, all: &[Arc<Key>]) -> usize {
        let mut ended = 0;
        for guest in self.roster().all() {
            match guest.standing.find_keys(all) {
                KeysFound::All => {}
                KeysFound::NotAll => {
                    guest.end.send_replace(Some(End::KeyDropped));
                    ended += 1;
                }
            }
        }
        ended
    }

    /// Whether this very key was dropped while it was in hand.
    pub(super) fn is_dropped(&self, key: &Key) -> bool {
        let key = Arc::as_ptr(key.uptake());
        self.dropped()
            .iter()
            .any(|dropped| std::ptr::eq(dropped.as_ptr(), key))
    }

    fn dropped(&self) -> MutexGuard<'_, Vec<Weak<Uptake>>> {
        self.dropped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
