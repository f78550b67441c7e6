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
//! The longest and not the silent first: among a crowd of idle ones the last to come would be the
//! only silent one, and be pushed out by the next before it can speak.
//!
//! Pure: no socket here; the acceptor (`server`) does what is decided.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use super::authority::is_this_host;
use crate::spec::Mono;

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

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// It has not given a command yet that it may give; since it came.
    Silent(Mono),
    /// All its commands are answered and the answers written; since then.
    Idle(Mono),
    /// A command of it is under way, or an answer not written.
    Busy,
}

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

    /// Whether a connection of this peer may come in; `manner` says what a connection is doing.
    pub(super) fn admission(
        &self,
        peer: PeerKey,
        manner: impl Fn(Arrival, &C) -> Manner,
    ) -> Admission {
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
        let is_greedier =
            |key: PeerKey| own < self.peer_max && counts.get(&key).copied().unwrap_or(0) > own;
        let quiet_since = |arrival: Arrival, key: PeerKey, connection: &C| {
            let (own, greedier) = (key == peer, is_greedier(key));
            match manner(arrival, connection) {
                Manner::Silent(since) => (own || greedier).then_some(since),
                Manner::Idle(since) => own.then_some(since),
                Manner::Busy => None,
            }
        };
        self.entries
            .iter()
            .filter_map(|(arrival, (key, connection))| {
                let since = quiet_since(*arrival, *key, connection)?;
                Some((Reverse(counts.get(key).copied()), since, *arrival))
            })
            .min()
            .map_or(Admission::Refused, |(_, _, arrival)| {
                Admission::InPlaceOf(arrival)
            })
    }

    pub(super) fn enter(&mut self, peer: PeerKey, connection: C) -> Arrival {
        let arrival = Arrival(self.next);
        self.next += 1;
        self.entries.insert(arrival, (peer, connection));
        arrival
    }

    pub(super) fn get(&self, arrival: Arrival) -> Option<&C> {
        self.entries.get(&arrival).map(|(_, connection)| connection)
    }

    pub(super) fn leave(&mut self, arrival: Arrival) -> Option<C> {
        self.entries
            .remove(&arrival)
            .map(|(_, connection)| connection)
    }

    /// Keeps those of which `is_there` says so.
    pub(super) fn retain(&mut self, is_there: impl Fn(&C) -> bool) {
        self.entries
            .retain(|_, (_, connection)| is_there(connection));
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

    /// Quiet since ever, so that the order of arrival decides.
    const SILENT: Manner = Manner::Silent(Mono(0));
    const IDLE: Manner = Manner::Idle(Mono(0));

    fn peer(last: u8) -> PeerKey {
        PeerKey::V4(Ipv4Addr::new(192, 0, 2, last))
    }

    fn ask(roster: &Roster<Manner>, key: PeerKey) -> Admission {
        roster.admission(key, |_, manner| *manner)
    }

    #[test]
    fn a_newcomer_is_welcome_while_there_is_room() {
        let mut roster = Roster::new(4, 2);
        assert_eq!(ask(&roster, peer(1)), Admission::Welcome);
        roster.enter(peer(1), Manner::Busy);
        assert_eq!(ask(&roster, peer(1)), Admission::Welcome);
        roster.enter(peer(1), Manner::Busy);
        assert_eq!(ask(&roster, peer(1)), Admission::Refused);
        assert_eq!(ask(&roster, peer(2)), Admission::Welcome);
    }

    #[test]
    fn the_oldest_silent_connection_of_a_peer_at_its_limit_makes_room() {
        let mut roster = Roster::new(10, 3);
        roster.enter(peer(2), SILENT);
        roster.enter(peer(1), Manner::Busy);
        let oldest = roster.enter(peer(1), SILENT);
        let newer = roster.enter(peer(1), SILENT);
        assert_eq!(ask(&roster, peer(1)), Admission::InPlaceOf(oldest));
        roster.leave(oldest);
        roster.enter(peer(1), Manner::Busy);
        assert_eq!(ask(&roster, peer(1)), Admission::InPlaceOf(newer));
    }

    #[test]
    fn a_slot_is_in_reserve_for_who_has_none() {
        let mut roster = Roster::new(3, 3);
        roster.enter(peer(1), Manner::Busy);
        roster.enter(peer(1), Manner::Busy);
        assert_eq!(ask(&roster, peer(1)), Admission::Refused);
        assert_eq!(ask(&roster, peer(2)), Admission::Welcome);
        roster.enter(peer(2), Manner::Busy);
        assert_eq!(ask(&roster, peer(3)), Admission::Refused);
    }

    #[test]
    fn when_all_is_full_the_greediest_silent_peer_makes_room() {
        let mut roster = Roster::new(6, 4);
        roster.enter(peer(1), SILENT);
        let greedy = roster.enter(peer(2), SILENT);
        for _ in 0..3 {
            roster.enter(peer(2), SILENT);
        }
        roster.enter(peer(3), Manner::Busy);
        assert_eq!(ask(&roster, peer(4)), Admission::InPlaceOf(greedy));
    }

    #[test]
    fn a_crowd_of_silent_peers_keeps_nobody_out() {
        let mut roster = Roster::new(3, 2);
        let oldest = roster.enter(peer(1), SILENT);
        for last in 2..=3 {
            roster.enter(peer(last), SILENT);
        }
        assert_eq!(ask(&roster, peer(4)), Admission::InPlaceOf(oldest));
        // Who has one already pushes out his own, not somebody else's.
        let own = Admission::InPlaceOf(Arrival(1));
        assert_eq!(ask(&roster, peer(2)), own);
    }

    #[test]
    fn the_own_connection_that_has_been_quiet_longest_makes_room() {
        let mut roster = Roster::new(10, 4);
        roster.enter(peer(2), Manner::Idle(Mono(1)));
        roster.enter(peer(1), Manner::Idle(Mono(7)));
        roster.enter(peer(1), Manner::Busy);
        let longest = roster.enter(peer(1), Manner::Idle(Mono(5)));
        let silent = roster.enter(peer(1), Manner::Silent(Mono(6)));
        assert_eq!(ask(&roster, peer(1)), Admission::InPlaceOf(longest));
        roster.leave(longest);
        roster.enter(peer(1), Manner::Busy);
        assert_eq!(ask(&roster, peer(1)), Admission::InPlaceOf(silent));
    }

    #[test]
    fn the_last_to_come_is_not_the_first_to_go_among_idle_ones() {
        let mut roster = Roster::new(10, 3);
        let oldest = roster.enter(peer(1), Manner::Idle(Mono(1)));
        roster.enter(peer(1), Manner::Idle(Mono(2)));
        roster.enter(peer(1), Manner::Silent(Mono(3)));
        assert_eq!(ask(&roster, peer(1)), Admission::InPlaceOf(oldest));
    }

    #[test]
    fn when_all_is_full_only_the_newcomers_own_idle_one_makes_room() {
        let mut roster = Roster::new(4, 4);
        for _ in 0..3 {
            roster.enter(peer(1), IDLE);
        }
        let own = roster.enter(peer(2), IDLE);
        assert_eq!(ask(&roster, peer(2)), Admission::InPlaceOf(own));
        assert_eq!(ask(&roster, peer(3)), Admission::Refused);
    }

    #[test]
    fn who_is_gone_without_a_word_is_counted_no_more() {
        let mut roster = Roster::new(4, 2);
        roster.enter(peer(1), Manner::Busy);
        roster.enter(peer(1), IDLE);
        roster.retain(|manner| *manner == IDLE);
        assert_eq!(ask(&roster, peer(1)), Admission::Welcome);
    }

    #[test]
    fn who_is_at_work_is_never_pushed_out() {
        let mut roster = Roster::new(4, 4);
        for _ in 0..4 {
            roster.enter(peer(1), Manner::Busy);
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
