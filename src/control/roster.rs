//! Who may be connected: a count of connections that keeps a flood from keeping others out.
//!
//! Two limits: of all connections, and of those of one peer. The last slot of all is in reserve
//! for a peer that has none. When a limit is met, a connection makes room for the newcomer: of the
//! newcomer's peer, the one that has been quiet longest, be it that it has not yet given a command
//! it may give, or that all its commands are answered. When the peer is below its own limit, those
//! of greedier peers that have not given a command make room first. When there is none, the
//! newcomer is refused. So whoever connects and is quiet only ever costs himself, and nobody is
//! disturbed at work.
//!
//! A connection that was given a signed command counts for its key from then on, and no more for
//! its address: who shares an address with a flood gets in, be it one connection at a time. A
//! key has the limit of a peer. Its idle connections make room for its own, and also for anybody
//! who has fewer than it: who signs is no better than others for holding slots.
//!
//! The longest and not the silent first: among a crowd of idle ones the last to come would be the
//! only silent one, and be pushed out by the next before it can speak.
//!
//! Pure: no socket here; the acceptor (`server`) does what is decided.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use serde::{Deserialize, Serialize};

use super::{
    keys::KeyName,
    peer::{Origin, is_loopback},
};
use crate::spec::Mono;

/// Whom connections are counted for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum PeerKey {
    /// A user of this host, under whatever address.
    User(u32),
    /// Those of this host whose user cannot be told, together.
    UnknownUser,
    /// Another host.
    V4(Ipv4Addr),
    /// A network of /64: one subscriber has as many addresses in it as it likes.
    V6([u8; 8]),
    /// Who holds the private half of this key, wherever he is.
    Key(KeyName),
}

impl PeerKey {
    /// Whom a connection counts for as long as nothing in it was signed.
    pub(super) fn of(origin: Origin, address: IpAddr) -> Self {
        match origin {
            Origin::User(uid) => return Self::User(uid),
            Origin::UnknownUser if is_loopback(address) => return Self::UnknownUser,
            // Its address tells it from others.
            Origin::UnknownUser | Origin::Remote => {}
        }
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => {
                let [a, b, c, d, e, f, g, h, ..] = address.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }

    /// Whether it has shown who it is by signing.
    pub(super) fn is_key(&self) -> bool {
        match self {
            Self::Key(_) => true,
            Self::User(_) | Self::UnknownUser | Self::V4(_) | Self::V6(_) => false,
        }
    }
}

/// A connection's number: in order of arrival, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Arrival(u64);

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Manner {
    /// It has not given a command yet that it may give; since it came.
    Silent(Mono),
    /// All its commands are answered and the answers written; since then.
    Idle(Mono),
    /// A command of it is under way, or an answer not written.
    Busy,
}

/// What is to be done with a newcomer, or with one that wants to count for another peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// There is room.
    Welcome,
    /// This connection makes room.
    InPlaceOf(Arrival),
    /// No room.
    Refused,
}

/// How many slots of all are kept for peers that have none.
const RESERVE: usize = 1;

/// A connection in the roster.
#[derive(Debug)]
struct Entry<C> {
    peer: PeerKey,
    /// It was asked to make room for another of its key, and is not counted for it.
    asked: bool,
    connection: C,
}

/// The connections there are. `C` is what is kept of each.
#[derive(Debug)]
pub(super) struct Roster<C> {
    all_max: usize,
    peer_max: usize,
    next: u64,
    entries: BTreeMap<Arrival, Entry<C>>,
}

impl<C> Roster<C> {
    pub(super) fn new(all_max: usize, peer_max: usize) -> Self {
        Self {
            all_max,
            peer_max,
            next: 0,
            entries: BTreeMap::new(),
        }
    }

    /// Whether a connection of this peer may come in; `manner` says what a connection is doing.
    pub(super) fn admission(
        &self,
        peer: &PeerKey,
        manner: impl Fn(Arrival, &C) -> Manner,
    ) -> Admission {
        let mut counts: BTreeMap<&PeerKey, usize> = BTreeMap::new();
        for entry in self.entries.values() {
            *counts.entry(&entry.peer).or_default() += 1;
        }
        let count = |key: &PeerKey| counts.get(key).copied().unwrap_or(0);
        let own = count(peer);
        let room = match own {
            0 => self.all_max,
            _ => self.all_max.saturating_sub(RESERVE),
        };
        if own < self.peer_max && self.entries.len() < room {
            return Admission::Welcome;
        }
        // A peer at its limit makes room itself; else the one that has most does, if it has more
        // than the newcomer's.
        let is_greedier = |key: &PeerKey| own < self.peer_max && count(key) > own;
        let quiet_since = |arrival: Arrival, entry: &Entry<C>| {
            let (is_own, greedier) = (entry.peer == *peer, is_greedier(&entry.peer));
            match manner(arrival, &entry.connection) {
                Manner::Silent(since) => (is_own || greedier).then_some(since),
                Manner::Idle(since) => (is_own || greedier && entry.peer.is_key()).then_some(since),
                Manner::Busy => None,
            }
        };
        self.entries
            .iter()
            .filter_map(|(arrival, entry)| {
                let since = quiet_since(*arrival, entry)?;
                Some((Reverse(count(&entry.peer)), since, *arrival))
            })
            .min()
            .map_or(Admission::Refused, |(_, _, arrival)| {
                Admission::InPlaceOf(arrival)
            })
    }

    /// Has a connection count for this key from now on, unless it is refused or counts for one
    /// already. One that makes room is not waited for: it takes up no more of the limit.
    pub(super) fn move_to(
        &mut self,
        arrival: Arrival,
        peer: PeerKey,
        manner: impl Fn(&C) -> Manner,
    ) -> Admission {
        let known = self.entries.get(&arrival);
        if known.is_some_and(|entry| entry.peer.is_key()) {
            return Admission::Welcome;
        }
        let of_peer = |entry: &&Entry<C>| entry.peer == peer && !entry.asked;
        let admission = if self.entries.values().filter(of_peer).count() < self.peer_max {
            Admission::Welcome
        } else {
            let of_peer = self.entries.iter().filter(|(_, entry)| of_peer(entry));
            let idle_since =
                |(arrival, entry): (&Arrival, &Entry<C>)| match manner(&entry.connection) {
                    Manner::Silent(since) | Manner::Idle(since) => Some((since, *arrival)),
                    Manner::Busy => None,
                };
            match of_peer.filter_map(idle_since).min() {
                Some((_, arrival)) => Admission::InPlaceOf(arrival),
                None => return Admission::Refused,
            }
        };
        if let Admission::InPlaceOf(other) = admission
            && let Some(entry) = self.entries.get_mut(&other)
        {
            entry.asked = true;
        }
        if let Some(entry) = self.entries.get_mut(&arrival) {
            entry.peer = peer;
        }
        admission
    }

    /// The number that the next to come will have.
    pub(super) fn next(&self) -> Arrival {
        Arrival(self.next)
    }

    /// Numbers before this one were given away by the program before, and may still be answered.
    pub(super) fn go_on_at(&mut self, next: Arrival) {
        self.next = self.next.max(next.0);
    }

    pub(super) fn enter(&mut self, peer: PeerKey, connection: C) -> Arrival {
        let arrival = Arrival(self.next);
        self.next += 1;
        let entry = Entry {
            peer,
            asked: false,
            connection,
        };
        self.entries.insert(arrival, entry);
        arrival
    }

    /// Takes up one that has come in to the program before this, under its number and in its place.
    pub(super) fn enter_again(&mut self, arrival: Arrival, peer: PeerKey, connection: C) {
        self.next = self.next.max(arrival.0 + 1);
        let entry = Entry {
            peer,
            asked: false,
            connection,
        };
        self.entries.insert(arrival, entry);
    }

    /// For whom a connection counts.
    pub(super) fn peer(&self, arrival: Arrival) -> Option<&PeerKey> {
        self.entries.get(&arrival).map(|entry| &entry.peer)
    }

    pub(super) fn get(&self, arrival: Arrival) -> Option<&C> {
        self.entries.get(&arrival).map(|entry| &entry.connection)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &C> {
        self.entries.values().map(|entry| &entry.connection)
    }

    pub(super) fn leave(&mut self, arrival: Arrival) -> Option<C> {
        self.entries.remove(&arrival).map(|entry| entry.connection)
    }

    /// Keeps those of which `is_there` says so.
    pub(super) fn retain(&mut self, is_there: impl Fn(&C) -> bool) {
        self.entries.retain(|_, entry| is_there(&entry.connection));
    }

    pub(super) fn leave_all(&mut self) -> impl Iterator<Item = C> + use<C> {
        std::mem::take(&mut self.entries)
            .into_values()
            .map(|entry| entry.connection)
    }
}

#[cfg(test)]
mod tests;
