//! A request on its way to whoever carries it out, and its one answer on the way back (I5); and
//! requests that were refused, on their way to the audit trail.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{
    keys::{Fingerprint, KeyName},
    roster::Arrival,
};
use crate::command::{Answer, Command, ErrorCode, Failure};

/// A command whose sender may give it.
#[derive(Debug)]
pub struct Asked {
    /// What is to be done.
    pub command: Command,
    /// Who gave it.
    pub issuer: Issuer,
    /// Where the answer goes.
    pub reply: Reply,
}

/// Who gave a command, and why it was taken from him.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issuer {
    /// Where it came from.
    pub peer: SocketAddr,
    /// Why it was taken.
    pub credential: Credential,
}

/// What entitles a peer to give commands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Credential {
    /// A signature made with the private half of this key.
    Key {
        /// What it is called.
        name: KeyName,
        /// Which it is.
        fingerprint: Fingerprint,
    },
    /// The peer's socket belongs to this user of this host, by its number.
    User(u32),
    /// `allow_unsigned_remote`: nothing but being able to connect.
    Reach,
}

impl Credential {
    /// The key's name, if it is one.
    #[must_use]
    pub fn key_name(&self) -> Option<&KeyName> {
        match self {
            Self::Key { name, .. } => Some(name),
            Self::User(_) | Self::Reach => None,
        }
    }
}

/// A request that was refused because its sender may not give it, or did not show that he may.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Where it came from.
    pub peer: SocketAddr,
    /// What was shown: a key that is not allowed this, or a user that is not let in. `None` when
    /// nothing was shown that could be believed.
    pub credential: Option<Credential>,
    /// The key name that a token claimed, whether or not it was believed.
    pub claimed: Option<KeyName>,
    /// What was asked, if that was read.
    pub command: Option<Command>,
    /// What the peer was answered.
    pub code: ErrorCode,
    /// The reason, for the log and not for the peer.
    pub why: String,
    /// How many more refusals of this peer came just before it and are told by this number alone.
    pub more: u64,
}

/// The one answer to one request. Dropped without one, it sends `internal`.
#[derive(Debug)]
pub struct Reply {
    address: ReplyAddress,
    to: Option<mpsc::Sender<Answered>>,
}

/// Which request of which connection waits for an answer, for the next program of an upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyAddress {
    pub(super) connection: Arrival,
    pub(super) id: u64,
}

/// An answer on its way to the connection that waits for it.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) id: u64,
    pub(super) answer: Result<Answer, Failure>,
}

impl Reply {
    pub(super) fn new(connection: Arrival, id: u64, to: mpsc::Sender<Answered>) -> Self {
        Self {
            address: ReplyAddress { connection, id },
            to: Some(to),
        }
    }

    /// Of a client that is gone.
    pub(super) fn to_nobody(address: ReplyAddress) -> Self {
        Self { address, to: None }
    }

    /// Gives the duty to answer away: somebody else will, who is told the address.
    #[must_use]
    pub fn hand_over(mut self) -> ReplyAddress {
        self.to = None;
        self.address
    }

    /// Whether the client is gone.
    #[must_use]
    pub fn is_unheard(&self) -> bool {
        self.to.as_ref().is_none_or(mpsc::Sender::is_closed)
    }

    /// Answers; if the client is gone, nobody hears it. Never waits.
    pub fn send(mut self, answer: Result<Answer, Failure>) {
        self.deliver(answer);
    }

    fn deliver(&mut self, answer: Result<Answer, Failure>) {
        if let Some(to) = self.to.take() {
            // Never full: the channel holds an answer to each request in flight. Closed means
            // that the client is gone.
            let _ = to.try_send(Answered {
                id: self.address.id,
                answer,
            });
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if self.to.is_some() {
            self.deliver(Err(Failure::new(
                ErrorCode::Internal,
                "the command was given up without an answer; `check` shows what became of it",
            )));
        }
    }
}
