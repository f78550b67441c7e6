//! A request on its way to whoever carries it out, and its one answer on the way back (I5), after the
//! parts of a stream if it has any; and requests that were refused, on their way to the audit trail.
//!
//! Nobody waits for a client that does not read: what is on its way to a connection is bounded, its
//! answers by their number, the parts of streams by their length.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{
    keys::{Fingerprint, KeyName},
    limits::EVENT_BYTES_WAITING_MAX,
    protocol,
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
    to: Option<ToConnection>,
    stream: Stream,
}

/// Whether parts of a stream are still taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    Open,
    /// One was not, so none after it is.
    CutOff,
}

/// Why a part of a stream was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotTaken {
    /// The client does not read what there is for it.
    Behind,
    /// One before was not taken, and whoever gave it was told.
    CutOff,
    /// The client is gone.
    Gone,
}

/// What leads to a connection.
#[derive(Debug, Clone)]
pub(super) struct ToConnection {
    answers: mpsc::UnboundedSender<Answered>,
    /// How many bytes of streams are on the way.
    waiting: Arc<AtomicUsize>,
}

impl ToConnection {
    /// The way to a connection, and its end there.
    pub(super) fn new() -> (Self, mpsc::UnboundedReceiver<Answered>) {
        let (answers, received) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        (Self { answers, waiting }, received)
    }
}

/// Which request of which connection waits for an answer, for the next program of an upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyAddress {
    pub(super) connection: Arrival,
    pub(super) id: u64,
}

/// What is on its way to the connection that waits for it.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) id: u64,
    pub(super) said: Said,
}

/// What is said of a request.
#[derive(Debug)]
pub(super) enum Said {
    /// Part of a stream: a whole line.
    Event(Line),
    /// The last that is.
    Final(Result<Answer, Failure>),
}

/// A line of a stream, which counts until it is dropped.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) bytes: Vec<u8>,
    waiting: Arc<AtomicUsize>,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.waiting.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

impl Reply {
    pub(super) fn new(connection: Arrival, id: u64, to: ToConnection) -> Self {
        Self {
            address: ReplyAddress { connection, id },
            to: Some(to),
            stream: Stream::Open,
        }
    }

    /// Of a client that is gone.
    pub(super) fn to_nobody(address: ReplyAddress) -> Self {
        Self {
            address,
            to: None,
            stream: Stream::Open,
        }
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
        self.to.as_ref().is_none_or(|to| to.answers.is_closed())
    }

    /// Says a part of a stream before the answer. Never waits.
    ///
    /// # Errors
    ///
    /// It is not taken, and none after it will be.
    pub fn tell(&mut self, event: &impl Serialize) -> Result<(), NotTaken> {
        let to = self.to.as_ref().ok_or(NotTaken::Gone)?;
        if self.stream == Stream::CutOff {
            return Err(NotTaken::CutOff);
        }
        let mut bytes = Vec::new();
        protocol::write_event(&mut bytes, self.address.id, event);
        // Only this thread adds.
        if to.waiting.load(Ordering::Relaxed) + bytes.len() > EVENT_BYTES_WAITING_MAX {
            self.stream = Stream::CutOff;
            return Err(NotTaken::Behind);
        }
        to.waiting.fetch_add(bytes.len(), Ordering::Relaxed);
        let waiting = Arc::clone(&to.waiting);
        let line = Line { bytes, waiting };
        let answered = Answered {
            id: self.address.id,
            said: Said::Event(line),
        };
        to.answers.send(answered).map_err(|_| {
            self.stream = Stream::CutOff;
            NotTaken::Gone
        })
    }

    /// Answers; if the client is gone, nobody hears it. Never waits.
    pub fn send(mut self, answer: Result<Answer, Failure>) {
        self.deliver(answer);
    }

    fn deliver(&mut self, answer: Result<Answer, Failure>) {
        if let Some(to) = self.to.take() {
            // Closed means that the client is gone.
            let _ = to.answers.send(Answered {
                id: self.address.id,
                said: Said::Final(answer),
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
