//! One client's connection: it reads requests, hands them over, and writes their answers.
//!
//! It is one task. Requests are parsed straight from the read buffer; answers that are there are
//! written together in one call. Everything it holds is bounded: the read buffer by the length
//! of a line, the requests in flight by a count (so their answers are too), parts of streams by their
//! length, and each wait for the peer by a time.
//!
//! The first line that is not a request is answered and nothing after it is looked at: what a
//! web page makes a browser send never gets further than its first line.
//!
//! Signed requests that are there together are checked together, off this thread (`signed`); while
//! they are, nothing more is read, and what came after them waits its turn.
//!
//! It may be asked to make room for another (`farewell`). It decides that itself, since it alone
//! knows what has arrived: a command that is here is never thrown away.
//!
//! Absent on purpose: waiting for the core. A request that cannot be handed over at once is
//! answered `busy`.

use std::{io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::TcpStream,
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tracing::debug;

use super::{
    alive::keep_alive,
    asked::{Answered, Asked, Refused, ToConnection},
    authority::{Authorised, Authority, Denial, Refusal, Refusals, Tokens},
    failures::Patience,
    guests::Guests,
    limits::Limits,
    nonce,
    peer::Origin,
    protocol::{self, BadRequest, Body, Hello, LINE_BYTES_MAX, PROTOCOL, Request},
    roster::{Arrival, PeerKey},
};
use crate::{
    clock,
    command::{Command, ErrorCode, Failure},
};

mod farewell;
mod in_flight;
mod parked;
mod signed;
mod standing;

use farewell::key_dropped;
pub(super) use farewell::{End, MakeRoom, Stays, shutting_down, too_many};
use in_flight::{Held, Waiting};
pub(super) use parked::{HandedConnection, Parked};
use signed::Signed;
pub(super) use standing::{KeysFound, Standing};

/// How much room for reading there is at least.
const READ_BYTES_MIN: usize = 4 * 1024;

/// What a buffer may keep while there is nothing in it.
const KEPT_BYTES_MAX: usize = 16 * 1024;

/// What a peer must read within the write time.
const WRITE_CHUNK_BYTES: usize = 64 * 1024;

/// How many answers are written together at most.
const BATCH_MAX: usize = 64;

/// What all connections share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) name: String,
    pub(super) id: String,
    pub(super) version: String,
    pub(super) limits: Limits,
    pub(super) authority: Authority,
    pub(super) tokens: Arc<Tokens>,
    pub(super) refusals: Arc<Refusals>,
    pub(super) guests: Guests,
    pub(super) requests: mpsc::Sender<Asked>,
}

/// What ties a connection to the acceptor.
#[derive(Debug)]
pub(super) struct Door {
    /// Whom it counts for as long as nothing was signed.
    pub(super) key: PeerKey,
    /// Its number in the roster.
    pub(super) arrival: Arrival,
    /// Where it is asked to make room.
    pub(super) room: mpsc::Receiver<MakeRoom>,
    /// Where it is told to end.
    pub(super) end: watch::Receiver<Option<End>>,
    /// What others see of it.
    pub(super) standing: Arc<Standing>,
}

/// Both ends of a connection's answers.
pub(super) type Answers = (ToConnection, mpsc::UnboundedReceiver<Answered>);

/// Who is at the other end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    pub(super) origin: Origin,
}

/// How far a connection's life is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Stage {
    /// Requests are read.
    Reading,
    /// The peer will send no more; what is in flight is still answered.
    Ended,
    /// The peer was refused; what is in flight is still answered, and it is given time to read.
    Refused,
}

/// What became of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    /// It is dealt with.
    Taken,
    /// It waits for those before it.
    Left,
}

pub(super) struct Connection {
    room: mpsc::Receiver<MakeRoom>,
    end: watch::Receiver<Option<End>>,
    life: Life,
}

/// A connection but for its end by order.
struct Life {
    stream: TcpStream,
    peer: Peer,
    key: PeerKey,
    arrival: Arrival,
    shared: Arc<Shared>,
    standing: Arc<Standing>,
    stage: Stage,
    /// The hello's nonce.
    nonce: Arc<str>,
    inbox: Vec<u8>,
    /// How much of the inbox is known to hold no line feed.
    scanned: usize,
    outbox: Vec<u8>,
    /// How much of the outbox is written already.
    sent: usize,
    answers_in: ToConnection,
    answers: mpsc::UnboundedReceiver<Answered>,
    batch: Vec<Answered>,
    in_flight: Vec<Waiting>,
    /// Nothing after it is read.
    held: Option<Held>,
    /// Signed requests that were read and are not handed over. Nothing after them is read.
    signed: Signed,
    last_id: Option<u64>,
    deadline: Instant,
}

impl Connection {
    pub(super) fn new(
        stream: TcpStream,
        peer: Peer,
        shared: Arc<Shared>,
        door: Door,
        (answers_in, answers): Answers,
    ) -> Self {
        let life = Life {
            stream,
            peer,
            key: door.key,
            arrival: door.arrival,
            deadline: Instant::now() + shared.limits.first_request_time_max,
            shared,
            standing: door.standing,
            stage: Stage::Reading,
            nonce: Arc::from(""),
            inbox: Vec::new(),
            scanned: 0,
            outbox: Vec::new(),
            sent: 0,
            answers_in,
            answers,
            batch: Vec::new(),
            in_flight: Vec::new(),
            held: None,
            signed: Signed::default(),
            last_id: None,
        };
        Self {
            room: door.room,
            end: door.end,
            life,
        }
    }

    pub(super) fn arrival(&self) -> Arrival {
        self.life.arrival
    }

    /// From the hello to the end, or to the order to go or to park.
    pub(super) async fn serve(mut self) -> Option<Parked> {
        self.life.greet();
        self.go_on().await
    }

    /// Everything [`Life::converse`] waits for can be given up at any time, and taken up again,
    /// without anything being lost or written twice.
    pub(super) async fn go_on(mut self) -> Option<Parked> {
        let done = loop {
            let MakeRoom(stays) = tokio::select! {
                biased;
                changed = self.end.changed() => {
                    let end = changed.ok().and_then(|()| *self.end.borrow());
                    break match end.unwrap_or(End::Closing) {
                        End::Closing => self.life.close().await,
                        End::KeyDropped => {
                            debug!(peer = %self.life.peer.address, "connection ended with its key");
                            self.life.hang_up(&key_dropped());
                            return None;
                        }
                        End::Parking => return Some(Parked(Box::new(self.life))),
                    };
                }
                Some(asked) = self.room.recv() => asked,
                done = self.life.converse() => break done,
            };
            if self.life.has_work() {
                // An error means that it is not waited for any more.
                let _ = stays.send(Stays);
            } else {
                self.life.hang_up(&too_many());
                // The socket first: with `stays` its slot is given to another.
                drop(self.life);
                drop(stays);
                return None;
            }
        };
        if let Err(fault) = done {
            debug!(peer = %self.life.peer.address, %fault, "connection lost");
        }
        None
    }
}

/// What the peer sends next, until it says that it will send no more; from then on, that it is gone.
/// Who has closed only his half hears the rest of his answers, and is not told apart by anything
/// else from one that has died.
async fn hear(stream: &mut TcpStream, inbox: &mut Vec<u8>, stage: Stage) -> io::Result<usize> {
    if stage == Stage::Reading {
        return stream.read_buf(inbox).await;
    }
    stream.ready(Interest::ERROR).await?;
    Err(stream
        .take_error()?
        .unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()))
}

impl Life {
    async fn converse(&mut self) -> io::Result<()> {
        self.stream.set_nodelay(true)?;
        keep_alive(&self.stream);
        let mut alarm = pin!(sleep_until(self.deadline));
        loop {
            self.flush().await?;
            self.go_on();
            self.flush().await?;
            let is_quiet = self.in_flight.is_empty() && self.signed.is_empty();
            if self.stage != Stage::Reading && is_quiet {
                return self.part().await;
            }
            if is_quiet {
                self.standing.rest(clock::mono());
            }
            self.inbox.reserve(READ_BYTES_MIN);
            // A deadline that was put off is looked at when the alarm goes: most are.
            if self.deadline < alarm.deadline() {
                alarm.as_mut().reset(self.deadline);
            }
            tokio::select! {
                biased;
                _ = self.answers.recv_many(&mut self.batch, BATCH_MAX) => self.take_answers(),
                read = hear(&mut self.stream, &mut self.inbox, self.stage),
                    if self.is_reading() || self.stage == Stage::Ended => match read?
                {
                    0 => self.stage = Stage::Ended,
                    _ => self.take_lines(),
                },
                verified = self.signed.checked() => self.take_verified(verified),
                () = alarm.as_mut(), if is_quiet => {
                    if Instant::now() < self.deadline {
                        alarm.as_mut().reset(self.deadline);
                    } else {
                        self.refuse(None, ErrorCode::Timeout, "no request for too long");
                    }
                }
            }
        }
    }

    fn greet(&mut self) {
        let fresh = match nonce::fresh() {
            Ok(fresh) => fresh,
            Err(errno) => {
                let message = format!("no random bytes for a nonce: {errno}");
                return self.refuse(None, ErrorCode::Internal, message);
            }
        };
        self.nonce = Arc::from(fresh.as_str());
        let hello = Hello {
            protocol: PROTOCOL,
            server: self.shared.name.clone(),
            id: self.shared.id.clone(),
            version: self.shared.version.clone(),
            encrypt: self.shared.authority.encrypt(),
            nonce: fresh,
            time: clock::wall().0.div_euclid(1_000),
        };
        protocol::write_hello(&mut self.outbox, &hello);
    }

    /// Whether what comes next may be taken up: nothing waits that came before it.
    fn is_reading(&self) -> bool {
        self.stage == Stage::Reading
            && self.held.is_none()
            && self.signed.takes_more(self.batch_max())
    }

    fn take_lines(&mut self) {
        let mut inbox = std::mem::take(&mut self.inbox);
        let mut start = 0;
        let mut scanned = std::mem::take(&mut self.scanned);
        while self.is_reading() {
            let rest = &inbox[start..];
            let end = rest[scanned..].iter().position(|byte| *byte == b'\n');
            let end = end.map(|offset| scanned + offset);
            if end.unwrap_or(rest.len()) > LINE_BYTES_MAX {
                if self.signed.is_empty() {
                    let message = format!("a line has at most {LINE_BYTES_MAX} bytes");
                    self.refuse(None, ErrorCode::TooLarge, message);
                }
                break;
            }
            let Some(end) = end else {
                self.scanned = rest.len();
                break;
            };
            match self.take_line(&rest[..end]) {
                Line::Taken => start += end + 1,
                Line::Left => break,
            }
            scanned = 0;
        }
        inbox.drain(..start);
        if inbox.is_empty() && inbox.capacity() > KEPT_BYTES_MAX {
            inbox = Vec::new();
        }
        self.inbox = inbox;
        self.check_signed();
    }

    /// Takes up what was held back, and the lines after it; to be called when the answers that
    /// were there are written.
    fn go_on(&mut self) {
        if let Some(Held { id, authorised }) = self.held.take() {
            self.hand_over(id, authorised);
        }
        self.hand_over_signed();
        if self.is_reading() {
            self.take_lines();
        }
    }

    /// What is no further signed request waits for those before it.
    fn take_line(&mut self, line: &[u8]) -> Line {
        let parsed = protocol::parse_request(line).and_then(|request| match self.last_id {
            Some(last) if request.id <= last => Err(BadRequest {
                id: Some(request.id),
                message: format!("ids increase on a connection: {} after {last}", request.id),
            }),
            Some(_) | None => Ok(request),
        });
        match parsed {
            Ok(Request {
                id,
                body: Body::Token(token),
            }) => {
                self.last_id = Some(id);
                self.signed.gather(id, token);
            }
            Ok(_) | Err(_) if !self.signed.is_empty() => return Line::Left,
            Ok(Request {
                id,
                body: Body::Command(command),
            }) => {
                self.last_id = Some(id);
                self.take_unsigned(id, command);
            }
            Err(bad) => self.refuse(bad.id, ErrorCode::BadRequest, bad.message),
        }
        Line::Taken
    }

    fn take_unsigned(&mut self, id: u64, command: Command) {
        match self.shared.authority.unsigned(self.peer.origin, command) {
            Ok(authorised) => self.take_command(id, authorised),
            Err(denial) => self.deny(id, *denial),
        }
    }

    /// Takes a command that its sender may give.
    fn take_command(&mut self, id: u64, authorised: Authorised) {
        self.standing.begin();
        self.rest(self.shared.limits.idle_time_max);
        self.hand_over(id, authorised);
    }

    /// Refuses a command because of who gives it.
    fn deny(&mut self, id: u64, denial: Denial) {
        let refused = Refused {
            peer: self.peer.address,
            credential: denial.credential,
            claimed: denial.claimed,
            command: denial.command,
            code: denial.failure.code,
            why: denial.why,
            more: 0,
        };
        let peer = &self.key;
        match self.shared.refusals.take(Refusal { peer, refused }) {
            Patience::Left => {
                protocol::write_failure(&mut self.outbox, Some(id), &denial.failure);
            }
            Patience::Exhausted => {
                let message = "too many requests were refused, try again later";
                self.refuse(Some(id), ErrorCode::Busy, message);
            }
        }
    }

    /// From now on it may be quiet for so long.
    fn rest(&mut self, time: Duration) {
        self.deadline = Instant::now() + time;
    }

    /// Tells the peer what was wrong; nothing after it is looked at.
    fn refuse(&mut self, id: Option<u64>, code: ErrorCode, message: impl Into<String>) {
        debug!(peer = %self.peer.address, %code, "connection refused");
        self.stage = Stage::Refused;
        protocol::write_failure(&mut self.outbox, id, &Failure::new(code, message));
    }

    /// Writes the outbox, each part of it within the write time. May be given up and taken up
    /// again.
    async fn flush(&mut self) -> io::Result<()> {
        while self.sent < self.outbox.len() {
            let end = self.outbox.len().min(self.sent + WRITE_CHUNK_BYTES);
            let (stream, sent, outbox) = (&mut self.stream, &mut self.sent, &self.outbox);
            let write = async {
                while *sent < end {
                    match stream.write(&outbox[*sent..end]).await? {
                        0 => return Err(io::Error::from(io::ErrorKind::WriteZero)),
                        count => *sent += count,
                    }
                }
                Ok(())
            };
            timeout(self.shared.limits.write_time_max, write)
                .await
                .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "answers are not read"))??;
        }
        self.sent = 0;
        self.outbox.clear();
        if self.outbox.capacity() > KEPT_BYTES_MAX {
            self.outbox = Vec::new();
        }
        Ok(())
    }
}
