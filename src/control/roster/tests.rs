//! Who comes in, who makes room, and for whom.

use super::*;

/// Quiet since ever, so that the order of arrival decides.
const SILENT: Manner = Manner::Silent(Mono(0));
const IDLE: Manner = Manner::Idle(Mono(0));

fn peer(last: u8) -> PeerKey {
    PeerKey::V4(Ipv4Addr::new(192, 0, 2, last))
}

fn ask(roster: &Roster<Manner>, key: PeerKey) -> Admission {
    roster.admission(&key, |_, manner| *manner)
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
    let key = |text: &str| PeerKey::of(Origin::Remote, text.parse().unwrap());
    assert_eq!(key("2001:db8:0:1::1"), key("2001:db8:0:1:ffff::2"));
    assert_ne!(key("2001:db8:0:1::1"), key("2001:db8:0:2::1"));
    assert_eq!(key("192.0.2.1"), key("::ffff:192.0.2.1"));
    assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
    for origin in [Origin::User(7), Origin::UnknownUser] {
        let key = |text: &str| PeerKey::of(origin, text.parse().unwrap());
        assert_eq!(key("127.0.0.1"), key("127.1.2.3"));
        assert_eq!(key("127.0.0.1"), key("::1"));
        assert_eq!(key("127.0.0.1"), key("::ffff:127.0.0.1"));
    }
}

#[test]
fn users_of_this_host_are_peers_of_their_own() {
    let key = |origin, text: &str| PeerKey::of(origin, text.parse().unwrap());
    let user = |uid| key(Origin::User(uid), "127.0.0.1");
    assert_ne!(user(1), user(2));
    assert_ne!(user(0), key(Origin::UnknownUser, "127.0.0.1"));
    assert_eq!(user(1), key(Origin::User(1), "192.0.2.1"));
    // Who cannot be told and may be another host is not counted for this one.
    let remote = key(Origin::Remote, "192.0.2.1");
    assert_eq!(key(Origin::UnknownUser, "192.0.2.1"), remote);
}

fn key(name: &str) -> PeerKey {
    PeerKey::Key(name.parse().unwrap())
}

fn move_to(roster: &mut Roster<Manner>, arrival: Arrival, peer: PeerKey) -> Admission {
    roster.move_to(arrival, peer, |manner| *manner)
}

#[test]
fn a_connection_that_signs_costs_its_address_nothing() {
    let mut roster = Roster::new(10, 2);
    for _ in 0..2 {
        let arrival = roster.enter(peer(1), Manner::Busy);
        assert_eq!(move_to(&mut roster, arrival, key("k")), Admission::Welcome);
    }
    roster.enter(peer(1), Manner::Busy);
    assert_eq!(ask(&roster, peer(1)), Admission::Welcome);
    roster.enter(peer(1), Manner::Busy);
    assert_eq!(ask(&roster, peer(1)), Admission::Refused);
}

#[test]
fn a_key_has_the_limit_of_a_peer_and_its_longest_idle_one_makes_room() {
    let mut roster = Roster::new(10, 2);
    let mut idle = Vec::new();
    for (last, since) in [(1, 9), (2, 5)] {
        let arrival = roster.enter(peer(last), Manner::Idle(Mono(since)));
        assert_eq!(move_to(&mut roster, arrival, key("k")), Admission::Welcome);
        idle.push(arrival);
    }
    let third = roster.enter(peer(3), Manner::Busy);
    let admission = move_to(&mut roster, third, key("k"));
    assert_eq!(admission, Admission::InPlaceOf(idle[1]));
    // Who was asked already is not asked again for the next one.
    let fourth = roster.enter(peer(3), Manner::Busy);
    let admission = move_to(&mut roster, fourth, key("k"));
    assert_eq!(admission, Admission::InPlaceOf(idle[0]));
    // Both others are at work.
    let fifth = roster.enter(peer(3), Manner::Busy);
    assert_eq!(move_to(&mut roster, fifth, key("k")), Admission::Refused);
    assert_eq!(
        move_to(&mut roster, fifth, key("other")),
        Admission::Welcome
    );
}

#[test]
fn who_is_refused_under_a_key_counts_for_its_address_as_before() {
    let mut roster = Roster::new(10, 1);
    let first = roster.enter(peer(1), Manner::Busy);
    assert_eq!(move_to(&mut roster, first, key("k")), Admission::Welcome);
    let second = roster.enter(peer(1), Manner::Busy);
    assert_eq!(move_to(&mut roster, second, key("k")), Admission::Refused);
    assert_eq!(ask(&roster, peer(1)), Admission::Refused);
}

#[test]
fn when_all_is_full_idle_ones_of_a_greedy_key_make_room_and_busy_ones_do_not() {
    let mut roster = Roster::new(3, 3);
    let mut oldest = None;
    for since in [8, 7] {
        let arrival = roster.enter(peer(1), Manner::Idle(Mono(since)));
        move_to(&mut roster, arrival, key("k"));
        oldest = Some(arrival);
    }
    roster.enter(peer(2), IDLE);
    assert_eq!(ask(&roster, peer(3)), Admission::InPlaceOf(oldest.unwrap()));
    assert_eq!(
        ask(&roster, key("k")),
        Admission::InPlaceOf(oldest.unwrap())
    );
    let mut roster = Roster::new(2, 2);
    for _ in 0..2 {
        let arrival = roster.enter(peer(1), Manner::Busy);
        move_to(&mut roster, arrival, key("k"));
    }
    assert_eq!(ask(&roster, peer(3)), Admission::Refused);
}

/// The newcomer of an address whose connections all sign has none, as far as is known yet.
#[test]
fn the_slot_in_reserve_is_there_for_who_signs_on_every_connection() {
    let mut roster = Roster::new(3, 2);
    roster.enter(peer(1), Manner::Busy);
    let signed = roster.enter(peer(2), Manner::Busy);
    assert_eq!(ask(&roster, peer(2)), Admission::Refused);
    move_to(&mut roster, signed, key("k"));
    assert_eq!(ask(&roster, peer(2)), Admission::Welcome);
}

/// Who left before an upgrade may still be owed an answer by the program after it.
#[test]
fn a_number_is_not_given_away_again_by_the_program_that_goes_on() {
    let mut before = Roster::new(3, 3);
    let stays = before.enter(peer(1), IDLE);
    let left = before.enter(peer(1), IDLE);
    before.leave(left);
    let mut after = Roster::new(3, 3);
    after.go_on_at(before.next());
    after.enter_again(stays, peer(1), IDLE);
    let comes = after.enter(peer(1), IDLE);
    assert!(comes > left, "{comes:?} {left:?}");
}
