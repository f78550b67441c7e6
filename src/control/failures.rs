//! How often each peer may be refused, and how much of it is told.
//!
//! Two token buckets a peer. One is its patience: a peer that uses it up is answered `busy` when
//! it fails again, and its connection is closed. That concerns failing requests alone: who
//! signs rightly is obeyed, however many others fail from his address. The other bounds what the
//! log and the audit trail are made to hold: a refusal beyond it is counted, and told later by
//! that number, with the last of them.
//!
//! A third bucket is for all peers together, but for keys: a flood from a whole network of addresses
//! is told at a pace at which it pushes nothing out of the audit trail.
//!
//! A refusal is never lost: it is told by itself, or stands in the `more` of another one (of its
//! peer, or for those who were forgotten and those for whom there is no room, of another such).
//!
//! Pure: time comes in, and what is to be told goes out. So many peers are remembered and no
//! more; who is forgotten begins anew.
//!
//! Source: DESIGN, section 8.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    asked::Refused,
    limits::{
        AUDITED_REFUSALS_INTERVAL, AUDITED_REFUSALS_MAX, AUDITED_REFUSALS_PER_PEER_MAX,
        AUDITED_REFUSALS_REFILL_PER_S, FAILING_PEERS_MAX, FAILURES_REFILL_PER_S,
    },
    roster::PeerKey,
};
use crate::spec::Mono;

/// How much a peer may do at once, and how long it takes until it may do one more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Allowance {
    burst: u32,
    interval: Duration,
}

impl Allowance {
    const fn new(burst: u32, refill_per_s: u32) -> Self {
        Self {
            burst,
            interval: Duration::from_micros(1_000_000 / refill_per_s as u64),
        }
    }
}

const AUDIT: Allowance =
    Allowance::new(AUDITED_REFUSALS_PER_PEER_MAX, AUDITED_REFUSALS_REFILL_PER_S);

const AUDIT_OF_ALL: Allowance = Allowance {
    burst: AUDITED_REFUSALS_MAX,
    interval: AUDITED_REFUSALS_INTERVAL,
};

/// A token bucket, as the time at which it will be full again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Bucket(Mono);

impl Bucket {
    /// Takes one out, if there is one.
    fn take(&mut self, now: Mono, allowance: Allowance) -> Taken {
        let full = self.0.max(now) + allowance.interval;
        if full > now + allowance.interval * allowance.burst {
            return Taken::Nothing;
        }
        self.0 = full;
        Taken::One
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    One,
    Nothing,
}

/// What to do with a peer that has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// It is told what was wrong, and may go on.
    Left,
    /// It is told `busy`, and is done with.
    Exhausted,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Peer {
    patience: Bucket,
    audit: Bucket,
    seen: Mono,
    /// The last refusal that was not told, with how many before it were not.
    left_out: Option<Refused>,
}

/// The peers that have failed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Failures {
    patience: Allowance,
    peers: BTreeMap<PeerKey, Peer>,
    /// Of all peers that are no keys.
    audit: Bucket,
    /// What was left out of the refusals of those who were forgotten: their last, and how many.
    forgotten: Option<Refused>,
}

impl Failures {
    /// `failures_max`: [`Limits::failures_per_peer_max`](super::limits::Limits).
    pub(super) fn new(failures_max: u32) -> Self {
        Self {
            patience: Allowance::new(failures_max, FAILURES_REFILL_PER_S),
            peers: BTreeMap::new(),
            audit: Bucket(Mono(0)),
            forgotten: None,
        }
    }

    /// Counts a request of this peer that has failed.
    pub(super) fn fail(&mut self, peer: &PeerKey, now: Mono) -> Patience {
        let allowance = self.patience;
        match self.peer(peer, now).patience.take(now, allowance) {
            Taken::One => Patience::Left,
            Taken::Nothing => Patience::Exhausted,
        }
    }

    /// Takes note of a refusal, and gives what is to be told now, in this order. When that is
    /// nothing, this one was left out, and [`Failures::left_out`] is to be called in some time.
    pub(super) fn refuse(&mut self, peer: &PeerKey, refused: Refused, now: Mono) -> Vec<Refused> {
        let mut of_all = self.audit;
        let known = self.peer(peer, now);
        let taken = match (known.audit.take(now, AUDIT), peer.is_key()) {
            (Taken::One, false) => of_all.take(now, AUDIT_OF_ALL),
            (taken @ (Taken::One | Taken::Nothing), _) => taken,
        };
        let told = match taken {
            Taken::One => known.left_out.take().into_iter().chain([refused]).collect(),
            Taken::Nothing => {
                leave_out(&mut known.left_out, refused);
                Vec::new()
            }
        };
        self.audit = of_all;
        told
    }

    /// What was left out, to be told now: one a peer, as far as there is room for them, and one for
    /// the others.
    pub(super) fn left_out(&mut self, now: Mono) -> Vec<Refused> {
        let mut others = std::mem::take(&mut self.forgotten);
        let mut told = Vec::new();
        for (key, peer) in &mut self.peers {
            let Some(refused) = peer.left_out.take() else {
                continue;
            };
            match key.is_key() || self.audit.take(now, AUDIT_OF_ALL) == Taken::One {
                true => told.push(refused),
                false => leave_out(&mut others, refused),
            }
        }
        others.into_iter().chain(told).collect()
    }

    fn peer(&mut self, peer: &PeerKey, now: Mono) -> &mut Peer {
        if self.peers.len() >= FAILING_PEERS_MAX && !self.peers.contains_key(peer) {
            self.forget_one();
        }
        let known = self.peers.entry(peer.clone()).or_insert(Peer {
            patience: Bucket(now),
            audit: Bucket(now),
            seen: now,
            left_out: None,
        });
        known.seen = now;
        known
    }

    /// Forgets whom it has not seen for longest. What was left out of its refusals joins that of
    /// others who were forgotten.
    fn forget_one(&mut self) {
        let oldest = self.peers.iter().min_by_key(|(_, peer)| peer.seen);
        let Some(oldest) = oldest.map(|(peer, _)| peer.clone()) else {
            return;
        };
        if let Some(refused) = self.peers.remove(&oldest).and_then(|peer| peer.left_out) {
            leave_out(&mut self.forgotten, refused);
        }
    }
}

/// Counts what is there already into the `more` of this one.
fn leave_out(there: &mut Option<Refused>, mut refused: Refused) {
    if let Some(before) = there {
        refused.more = refused.more.saturating_add(before.more).saturating_add(1);
    }
    *there = Some(refused);
}

#[cfg(test)]
mod tests;
