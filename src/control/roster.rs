//! Who may be connected: a count of connections that keeps a flood from keeping others out.
//!
//! Two limits: of all connections, and of those of one peer. The last slot of all is in reserve
//! for a peer that has none. When a limit is met, the oldest connection that has not yet given a
//! command it may give makes room for the newcomer; when there is none, the newcomer is refused.
//! So whoever connects and says nothing only ever costs himself.
//!
//! Pure: no socket here; the acceptor (`server`) does what is decided.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use super::authority::is_this_host;

/// Whom connections are counted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PeerKey {
    /// This host, under whatever address. (By user, once the socket's user is asked for.)
    ThisHost,
    /// Another host.
    V4(Ipv4Addr),
    /// A network of /64: one subscriber has as many addresses in it as it likes.
    V6([u8; 8]),
}

impl PeerKey {
    pub(super) fn of(address: IpAddr) -> Self {
        if is_this_host(address) {
            return Self::ThisHost;
        }
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => {
                let [a, b, c, d, e, f, g, h, ..] = address.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

/// A connection's number: in order of arrival, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Arrival(u64);

/// What is to be done with a newcomer.
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

/// The connections there are. `C` is what is kept of each.
#[derive(Debug)]
pub(super) struct Roster<C> {
    all_max: usize,
    peer_max: usize,
    next: u64,
    entries: BTreeMap<Arrival, (PeerKey, C)>,
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

    /// Whether a connection of this peer may come in; `is_silent` says of a connection that it
    /// has not given a command yet.
    pub(super) fn admission(&self, peer: PeerKey, is_silent: impl Fn(&C) -> bool) -> Admission {
        let own = self.count(peer);
        let room = match own {
            0 => self.all_max,
            _ => self.all_max.saturating_sub(RESERVE),
        };
        if own < self.peer_max && self.entries.len() < room {
            return Admission::Welcome;
        }
        let mut counts: BTreeMap<PeerKey, usize> = BTreeMap::new();
        for (key, _) in self.entries.values() {
            *counts.entry(*key).or_default() += 1;
        }
        // A peer at its limit makes room itself; else the one that has most does, if it has more
        // than the newcomer's.
        let gives_way = |key: PeerKey| {
            key == peer || own < self.peer_max && counts.get(&key).copied().unwrap_or(0) > own
        };
        self.entries
            .iter()
            .filter(|(_, (key, connection))| gives_way(*key) && is_silent(connection))
            // The first of the greatest, so the oldest: `max_by_key` would give the last.
            .min_by_key(|(_, (key, _))| std::cmp::Reverse(counts.get(key).copied()))
            .map_or(Admission::Refused, |(arrival, _)| {
                Admission::InPlaceOf(*arrival)
            })
    }

    pub(super) fn enter(&mut self, peer: PeerKey, connection: C) -> Arrival {
        let arrival = Arrival(self.next);
        self.next += 1;
        self.entries.insert(arrival, (peer, connection));
        arrival
    }

    pub(super) fn leave(&mut self, arrival: Arrival) -> Option<C> {
        self.entries
            .remove(&arrival)
            .map(|(_, connection)| connection)
    }

    pub(super) fn leave_all(&mut self) -> impl Iterator<Item = C> + use<C> {
        std::mem::take(&mut self.entries)
            .into_values()
            .map(|(_, connection)| connection)
    }

    fn count(&self, peer: PeerKey) -> usize {
        let of_peer = |entry: &&(PeerKey, C)| entry.0 == peer;
        self.entries.values().filter(of_peer).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Manner {
        Silent,
        Active,
    }

    fn peer(last: u8) -> PeerKey {
        PeerKey::V4(Ipv4Addr::new(192, 0, 2, last))
    }

    fn ask(roster: &Roster<Manner>, key: PeerKey) -> Admission {
        roster.admission(key, |manner| *manner == Manner::Silent)
    }

    #[test]
    fn a_newcomer_is_welcome_while_there_is_room() {
        let mut roster = Roster::new(4, 2);
        assert_eq!(ask(&roster, peer(1)), Admission::Welcome);
        roster.enter(peer(1), Manner::Active);
        assert_eq!(ask(&roster, peer(1)), Admission::Welcome);
        roster.enter(peer(1), Manner::Active);
        assert_eq!(ask(&roster, peer(1)), Admission::Refused);
        assert_eq!(ask(&roster, peer(2)), Admission::Welcome);
    }

    #[test]
    fn the_oldest_silent_connection_of_a_peer_at_its_limit_makes_room() {
        let mut roster = Roster::new(10, 3);
        roster.enter(peer(2), Manner::Silent);
        roster.enter(peer(1), Manner::Active);
        let oldest = roster.enter(peer(1), Manner::Silent);
        let newer = roster.enter(peer(1), Manner::Silent);
        assert_eq!(ask(&roster, peer(1)), Admission::InPlaceOf(oldest));
        roster.leave(oldest);
        roster.enter(peer(1), Manner::Active);
        assert_eq!(ask(&roster, peer(1)), Admission::InPlaceOf(newer));
    }

    #[test]
    fn a_slot_is_in_reserve_for_who_has_none() {
        let mut roster = Roster::new(3, 3);
        roster.enter(peer(1), Manner::Active);
        roster.enter(peer(1), Manner::Active);
        assert_eq!(ask(&roster, peer(1)), Admission::Refused);
        assert_eq!(ask(&roster, peer(2)), Admission::Welcome);
        roster.enter(peer(2), Manner::Active);
        assert_eq!(ask(&roster, peer(3)), Admission::Refused);
    }

    #[test]
    fn when_all_is_full_the_greediest_silent_peer_makes_room() {
        let mut roster = Roster::new(6, 4);
        roster.enter(peer(1), Manner::Silent);
        let greedy = roster.enter(peer(2), Manner::Silent);
        for _ in 0..3 {
            roster.enter(peer(2), Manner::Silent);
        }
        roster.enter(peer(3), Manner::Active);
        assert_eq!(ask(&roster, peer(4)), Admission::InPlaceOf(greedy));
    }

    #[test]
    fn a_crowd_of_silent_peers_keeps_nobody_out() {
        let mut roster = Roster::new(3, 2);
        let oldest = roster.enter(peer(1), Manner::Silent);
        for last in 2..=3 {
            roster.enter(peer(last), Manner::Silent);
        }
        assert_eq!(ask(&roster, peer(4)), Admission::InPlaceOf(oldest));
        // Who has one already pushes out his own, not somebody else's.
        let own = Admission::InPlaceOf(Arrival(1));
        assert_eq!(ask(&roster, peer(2)), own);
    }

    #[test]
    fn who_has_given_a_command_is_never_pushed_out() {
        let mut roster = Roster::new(4, 4);
        for _ in 0..4 {
            roster.enter(peer(1), Manner::Active);
        }
        assert_eq!(ask(&roster, peer(1)), Admission::Refused);
        assert_eq!(ask(&roster, peer(2)), Admission::Refused);
    }

    #[test]
    fn a_peer_cannot_multiply_by_its_addresses() {
        let key = |text: &str| PeerKey::of(text.parse().unwrap());
        assert_eq!(key("127.0.0.1"), key("127.1.2.3"));
        assert_eq!(key("127.0.0.1"), key("::1"));
        assert_eq!(key("127.0.0.1"), key("::ffff:127.0.0.1"));
        assert_eq!(key("2001:db8:0:1::1"), key("2001:db8:0:1:ffff::2"));
        assert_ne!(key("2001:db8:0:1::1"), key("2001:db8:0:2::1"));
        assert_eq!(key("192.0.2.1"), key("::ffff:192.0.2.1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
    }
}
