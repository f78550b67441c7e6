//! Floods, one failure at a time.

use std::net::Ipv4Addr;

use super::*;
use crate::{command::ErrorCode, control::limits::FAILURES_PER_PEER_MAX};

fn peer(number: u32) -> PeerKey {
    PeerKey::V4(Ipv4Addr::from(number))
}

fn refused(number: u64) -> Refused {
    Refused {
        peer: "192.0.2.1:5".parse().unwrap(),
        credential: None,
        claimed: None,
        command: None,
        code: ErrorCode::Unauthorized,
        why: number.to_string(),
        more: 0,
    }
}

/// More than are remembered.
const PEERS: u32 = 1_100;

fn seconds(seconds: u64) -> Mono {
    Mono(seconds * 1_000_000)
}

/// Of so many failures at one time, how many were met with patience.
fn patience(failures: &mut Failures, peer: &PeerKey, count: u32, now: Mono) -> u32 {
    let met = (0..count).map(|_| match failures.fail(peer, now) {
        Patience::Left => 1,
        Patience::Exhausted => 0,
    });
    met.sum()
}

#[test]
fn so_many_failures_are_met_with_patience_and_then_as_many_as_are_refilled() {
    let mut failures = Failures::new(FAILURES_PER_PEER_MAX);
    let now = seconds(100);
    assert_eq!(
        patience(&mut failures, &peer(1), 1_000, now),
        FAILURES_PER_PEER_MAX
    );
    let later = now + Duration::from_secs(3);
    assert_eq!(
        patience(&mut failures, &peer(1), 1_000, later),
        3 * FAILURES_REFILL_PER_S
    );
    let much_later = now + Duration::from_secs(1_000_000);
    assert_eq!(
        patience(&mut failures, &peer(1), 1_000, much_later),
        FAILURES_PER_PEER_MAX
    );
}

#[test]
fn one_peer_s_failures_are_not_another_s() {
    let mut failures = Failures::new(4);
    assert_eq!(patience(&mut failures, &peer(1), 9, seconds(1)), 4);
    assert_eq!(patience(&mut failures, &peer(2), 9, seconds(1)), 4);
}

#[test]
fn a_clock_that_begins_at_nothing_or_stands_still_is_fine() {
    let mut failures = Failures::new(2);
    for expected in [2, 0] {
        assert_eq!(patience(&mut failures, &peer(1), 9, Mono(0)), expected);
    }
    let end_of_time = Mono(u64::MAX);
    assert_eq!(patience(&mut Failures::new(2), &peer(1), 9, end_of_time), 9);
}

/// All that is told of a flood while it lasts.
fn flood(failures: &mut Failures, count: u64, now: Mono) -> Vec<Refused> {
    let refuse = |number| failures.refuse(&peer(1), refused(number), now);
    (0..count).flat_map(refuse).collect()
}

fn more(told: &[Refused]) -> Vec<u64> {
    told.iter().map(|refused| refused.more).collect()
}

#[test]
fn the_first_refusals_are_told_and_then_their_number() {
    let mut failures = Failures::new(1);
    let told = flood(&mut failures, 876, seconds(1));
    assert_eq!(more(&told), [0; 64]);
    let left_out = failures.left_out(seconds(300));
    assert_eq!(more(&left_out), [811]);
    assert_eq!(left_out[0].why, "875");
    assert!(failures.left_out(seconds(300)).is_empty());
}

#[test]
fn what_was_left_out_is_told_before_the_next_that_is_told() {
    let mut failures = Failures::new(1);
    flood(&mut failures, 70, seconds(1));
    assert_eq!(more(&flood(&mut failures, 1, seconds(2))), [5, 0]);
    assert!(failures.left_out(seconds(300)).is_empty());
}

#[test]
fn every_refusal_is_told_or_counted() {
    let mut failures = Failures::new(1);
    let mut told = Vec::new();
    for second in 0..200 {
        told.extend(flood(&mut failures, second % 7, seconds(second / 3)));
    }
    told.extend(failures.left_out(seconds(300)));
    let count: u64 = more(&told).iter().map(|more| more + 1).sum();
    assert_eq!(count, (0..200).map(|second| second % 7).sum::<u64>());
}

/// Who has a network of addresses has as many peers in it as he likes; what he makes the audit trail
/// hold pushes older files out of it.
#[test]
fn a_flood_from_everywhere_is_told_at_a_pace_and_counted() {
    let mut failures = Failures::new(1);
    let mut told = Vec::new();
    const MINUTES: u64 = 20;
    for minute in 0..MINUTES {
        for number in 0..PEERS {
            let now = seconds(minute * 60);
            told.extend(failures.refuse(&peer(number), refused(0), now));
        }
        told.extend(failures.left_out(seconds(minute * 60 + 59)));
    }
    let count: u64 = more(&told).iter().map(|more| more + 1).sum();
    assert_eq!(count, MINUTES * u64::from(PEERS));
    let paced = MINUTES * 60 / AUDITED_REFUSALS_INTERVAL.as_secs();
    let most = u64::from(AUDITED_REFUSALS_MAX) + 2 * paced + MINUTES;
    assert!(told.len() as u64 <= most, "{} of {most}", told.len());
}

#[test]
fn who_has_shown_a_key_is_told_of_whatever_flood_there_is() {
    let mut failures = Failures::new(1);
    let now = seconds(1);
    for number in 0..PEERS {
        failures.refuse(&peer(number), refused(0), now);
    }
    let key = PeerKey::Key("deploy".parse().unwrap());
    assert_eq!(failures.refuse(&key, refused(7), now).len(), 1);
}

#[test]
fn so_many_peers_are_remembered_and_what_the_oldest_leave_is_told() {
    let mut failures = Failures::new(1);
    flood(&mut failures, 66, seconds(1));
    let max = u32::try_from(FAILING_PEERS_MAX).unwrap();
    for number in 2..3 * max {
        failures.fail(&peer(number), seconds(2));
    }
    assert_eq!(failures.peers.len(), FAILING_PEERS_MAX);
    assert!(!failures.peers.contains_key(&peer(1)));
    assert_eq!(more(&failures.left_out(seconds(300))), [1]);
    // Who was forgotten begins anew.
    assert_eq!(flood(&mut failures, 1, seconds(2)).len(), 1);
}
