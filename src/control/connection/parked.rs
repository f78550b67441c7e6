//! A connection that has stopped where it was: it goes on here, or in the next program of an
//! upgrade, and its peer sees nothing of it.
//!
//! Whatever it was at can be given up: what was read and not taken up, what was written and not
//! sent, and what waits for an answer goes over. Tokens go over as they came and are checked anew,
//! since a check changes nothing. Answers that came while it was parked are written first.

use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, TcpStream as StdStream},
    os::fd::OwnedFd,
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{net::TcpStream, time::Instant};

use super::{
    Answers, Arrival, Connection, Door, Held, Life, Origin, Peer, PeerKey, Shared, Stage, Standing,
    Waiting, signed::Signed, standing::Signer,
};
use crate::{
    clock,
    control::{asked::ToConnection, roster::Manner},
    passed::{Claim, Passed},
    spec::Mono,
};

/// A connection whose task has ended.
pub(in crate::control) struct Parked(pub(super) Box<Life>);

/// A connection on its way to the next program.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::control) struct HandedConnection {
    stream: Passed,
    peer: SocketAddr,
    origin: Origin,
    key: PeerKey,
    /// Whom it counts for, which is a key once one has signed.
    counts_for: PeerKey,
    arrival: Arrival,
    manner: Manner,
    signers: Vec<Signer>,
    stage: Stage,
    nonce: String,
    /// What was read and is not taken up.
    unread: Vec<u8>,
    /// What was written and is not sent.
    unsent: Vec<u8>,
    in_flight: Vec<Waiting>,
    held: Option<Held>,
    tokens: BTreeMap<u64, String>,
    last_id: Option<u64>,
    deadline: Mono,
}

impl HandedConnection {
    pub(in crate::control) fn arrival(&self) -> Arrival {
        self.arrival
    }

    pub(in crate::control) fn key(&self) -> &PeerKey {
        &self.key
    }

    pub(in crate::control) fn counts_for(&self) -> &PeerKey {
        &self.counts_for
    }

    /// Its descriptor.
    pub(in crate::control) fn passed(&self) -> &Passed {
        &self.stream
    }

    /// How it stands, for the others.
    pub(in crate::control) fn standing(&self) -> Standing {
        Standing::taken_over(self.manner, self.signers.clone())
    }
}

impl Parked {
    pub(in crate::control) fn arrival(&self) -> Arrival {
        self.0.arrival
    }

    pub(in crate::control) fn key(&self) -> &PeerKey {
        &self.0.key
    }

    pub(in crate::control) fn standing(&self) -> &Arc<Standing> {
        &self.0.standing
    }

    pub(in crate::control) fn answers_in(&self) -> &ToConnection {
        &self.0.answers_in
    }

    /// Goes on here.
    pub(in crate::control) fn unpark(self, door: Door) -> Connection {
        Connection {
            room: door.room,
            end: door.end,
            life: *self.0,
        }
    }

    /// Lets go of it.
    ///
    /// # Errors
    ///
    /// The system's, when its socket cannot be had back.
    pub(in crate::control) fn hand_over(self, counts_for: PeerKey) -> io::Result<HandedConnection> {
        let mut life = *self.0;
        while let Ok(answered) = life.answers.try_recv() {
            life.batch.push(answered);
        }
        if !life.batch.is_empty() {
            life.take_answers();
        }
        let left = life.deadline.saturating_duration_since(Instant::now());
        let stream = life.stream.into_std()?;
        Ok(HandedConnection {
            stream: Passed::Held(OwnedFd::from(stream)),
            peer: life.peer.address,
            origin: life.peer.origin,
            key: life.key,
            counts_for,
            arrival: life.arrival,
            manner: life.standing.manner(),
            signers: life.standing.signers(),
            stage: life.stage,
            nonce: life.nonce.to_string(),
            unread: life.inbox,
            unsent: life.outbox.split_off(life.sent),
            in_flight: life.in_flight,
            held: life.held,
            tokens: life.signed.into_tokens(),
            last_id: life.last_id,
            deadline: clock::mono() + left,
        })
    }
}

impl Connection {
    /// Goes on with a connection of the program before. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// Its socket cannot be had or waited for.
    pub(in crate::control) fn take_over(
        handed: HandedConnection,
        shared: Arc<Shared>,
        door: Door,
        (answers_in, answers): Answers,
        claim: Claim<'_>,
    ) -> io::Result<Self> {
        let stream = StdStream::from(handed.stream.take(claim)?);
        stream.set_nonblocking(true)?;
        let left: Duration = handed.deadline - clock::mono();
        let mut life = Life {
            stream: TcpStream::from_std(stream)?,
            peer: Peer {
                address: handed.peer,
                origin: handed.origin,
            },
            key: handed.key,
            arrival: handed.arrival,
            shared,
            standing: Arc::clone(&door.standing),
            stage: handed.stage,
            nonce: Arc::from(handed.nonce),
            inbox: handed.unread,
            scanned: 0,
            outbox: handed.unsent,
            sent: 0,
            answers_in,
            answers,
            batch: Vec::new(),
            in_flight: handed.in_flight,
            held: handed.held,
            signed: Signed::taken_over(handed.tokens),
            last_id: handed.last_id,
            deadline: Instant::now() + left,
        };
        life.check_signed();
        Ok(Self {
            room: door.room,
            end: door.end,
            life,
        })
    }
}
