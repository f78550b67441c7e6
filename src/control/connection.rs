//! One client's connection: it reads requests, hands them over, and writes their answers.
//!
//! It is one task. Requests are parsed straight from the read buffer; answers that are there are
//! written together in one call. Everything it holds is bounded: the read buffer by the length
//! of a line, the requests in flight by a count (so their answers are too), and each wait for the
//! peer by a time.
//!
//! The first line that is not a request is answered and nothing after it is looked at: what a
//! web page makes a browser send never gets further than its first line.
//!
//! It may be asked to make room for another (`farewell`). It decides that itself, since it alone
//! knows what has arrived: a command that is here is never thrown away.
//!
//! Absent on purpose: waiting for the core. A request that cannot be handed over at once is
//! answered `busy`.

use std::{io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tracing::debug;

use super::{
    asked::{Answered, Asked, Credential, Issuer, Reply},
    authority::{Unsigned, authorise},
    limits::Limits,
    nonce,
    protocol::{self, Hello, LINE_BYTES_MAX, PROTOCOL, Request},
};
use crate::{
    clock,
    command::{Command, ErrorCode, Failure},
};

mod farewell;
mod standing;

use farewell::shutting_down;
pub(super) use farewell::{Order, Stays, too_many};
pub(super) use standing::Standing;

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
    pub(super) unsigned: Unsigned,
    pub(super) limits: Limits,
    pub(super) requests: mpsc::Sender<Asked>,
}

/// What ties a connection to the acceptor.
#[derive(Debug)]
pub(super) struct Door {
    /// The orders to go.
    pub(super) orders: mpsc::Receiver<Order>,
    /// What the acceptor sees of it.
    pub(super) standing: Arc<Standing>,
}

/// How far a connection's life is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Requests are read.
    Reading,
    /// The peer will send no more; what is in flight is still answered.
    Ended,
    /// The peer was refused; what is in flight is still answered, and it is given time to read.
    Refused,
}

/// A request that is not answered yet.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    id: u64,
    size: AnswerSize,
}

/// How large an answer can get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AnswerSize {
    /// A few lines.
    Small,
    /// It grows with the number of children or of faults, and costs its sender nothing to ask for.
    Large(Kind),
}

/// Commands with large answers, as far as they wait for one another: what is answered at once
/// does not wait for what takes its time, nor a stop for a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Look,
    StartAll,
    StopAll,
    Kill,
}

impl AnswerSize {
    fn of(command: &Command) -> Self {
        match command {
            Command::Check { .. } | Command::Info => Self::Large(Kind::Look),
            Command::StartAll => Self::Large(Kind::StartAll),
            Command::StopAll => Self::Large(Kind::StopAll),
            Command::Kill(_) => Self::Large(Kind::Kill),
            Command::CheckOne(_) | Command::Child { .. } => Self::Small,
        }
    }
}

pub(super) struct Connection {
    orders: mpsc::Receiver<Order>,
    life: Life,
}

/// A connection but for its end by order.
struct Life {
    stream: TcpStream,
    peer: SocketAddr,
    shared: Arc<Shared>,
    standing: Arc<Standing>,
    stage: Stage,
    inbox: Vec<u8>,
    /// How much of the inbox is known to hold no line feed.
    scanned: usize,
    outbox: Vec<u8>,
    /// How much of the outbox is written already.
    sent: usize,
    answers_in: mpsc::Sender<Answered>,
    answers: mpsc::Receiver<Answered>,
    batch: Vec<Answered>,
    in_flight: Vec<Waiting>,
    /// What waits until the answer to another of its kind was taken away; nothing after it is read.
    held: Option<(u64, Command)>,
    last_id: Option<u64>,
    deadline: Instant,
}

impl Connection {
    pub(super) fn new(
        stream: TcpStream,
        peer: SocketAddr,
        shared: Arc<Shared>,
        door: Door,
    ) -> Self {
        let (answers_in, answers) = mpsc::channel(shared.limits.in_flight_max.max(1));
        let life = Life {
            stream,
            peer,
            deadline: Instant::now() + shared.limits.first_request_time_max,
            shared,
            standing: door.standing,
            stage: Stage::Reading,
            inbox: Vec::new(),
            scanned: 0,
            outbox: Vec::new(),
            sent: 0,
            answers_in,
            answers,
            batch: Vec::new(),
            in_flight: Vec::new(),
            held: None,
            last_id: None,
        };
        Self {
            orders: door.orders,
            life,
        }
    }

    /// From the hello to the end, or to the order to go. Everything [`Life::converse`] waits for
    /// can be given up at any time, and taken up again, without anything being lost or written
    /// twice.
    pub(super) async fn serve(mut self) {
        self.life.greet();
        let done = loop {
            let order = tokio::select! {
                biased;
                order = self.orders.recv() => order.unwrap_or(Order::Closing),
                done = self.life.converse() => break done,
            };
            match order {
                Order::Closing => break self.life.close().await,
                Order::MakeRoom(stays) if self.life.has_work() => {
                    // An error means that it is not waited for any more.
                    let _ = stays.send(Stays);
                }
                Order::MakeRoom(stays) => {
                    self.life.make_room();
                    // The socket first: with `stays` its slot is given to another.
                    drop(self.life);
                    return drop(stays);
                }
            }
        };
        if let Err(fault) = done {
            debug!(peer = %self.life.peer, %fault, "connection lost");
        }
    }
}

impl Life {
    async fn converse(&mut self) -> io::Result<()> {
        self.stream.set_nodelay(true)?;
        let mut alarm = pin!(sleep_until(self.deadline));
        loop {
            self.flush().await?;
            self.go_on();
            self.flush().await?;
            if self.stage != Stage::Reading && self.in_flight.is_empty() {
                return self.part().await;
            }
            if self.in_flight.is_empty() {
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
                read = self.stream.read_buf(&mut self.inbox),
                    if self.stage == Stage::Reading && self.held.is_none() => match read?
                {
                    0 => self.stage = Stage::Ended,
                    _ => self.take_lines(),
                },
                () = alarm.as_mut(), if self.in_flight.is_empty() => {
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
        let nonce = match nonce::fresh() {
            Ok(nonce) => nonce,
            Err(errno) => {
                let message = format!("no random bytes for a nonce: {errno}");
                return self.refuse(None, ErrorCode::Internal, message);
            }
        };
        let hello = Hello {
            protocol: PROTOCOL,
            server: self.shared.name.clone(),
            id: self.shared.id.clone(),
            version: self.shared.version.clone(),
            encrypt: self.shared.unsigned == Unsigned::Never,
            nonce,
            time: clock::wall().0.div_euclid(1_000),
        };
        protocol::write_hello(&mut self.outbox, &hello);
    }

    fn take_lines(&mut self) {
        let mut inbox = std::mem::take(&mut self.inbox);
        let mut start = 0;
        let mut scanned = std::mem::take(&mut self.scanned);
        while self.stage == Stage::Reading && self.held.is_none() {
            let rest = &inbox[start..];
            let end = rest[scanned..].iter().position(|byte| *byte == b'\n');
            let end = end.map(|offset| scanned + offset);
            if end.unwrap_or(rest.len()) > LINE_BYTES_MAX {
                let message = format!("a line has at most {LINE_BYTES_MAX} bytes");
                self.refuse(None, ErrorCode::TooLarge, message);
                break;
            }
            let Some(end) = end else {
                self.scanned = rest.len();
                break;
            };
            self.take_line(&rest[..end]);
            start += end + 1;
            scanned = 0;
        }
        inbox.drain(..start);
        if inbox.is_empty() && inbox.capacity() > KEPT_BYTES_MAX {
            inbox = Vec::new();
        }
        self.inbox = inbox;
    }

    /// Takes up what was held back, and the lines after it; to be called when the answers that
    /// were there are written.
    fn go_on(&mut self) {
        if let Some((id, command)) = self.held.take() {
            self.hand_over(id, command);
            self.take_lines();
        }
    }

    fn take_line(&mut self, line: &[u8]) {
        match protocol::parse_request(line) {
            Err(bad) => self.refuse(bad.id, ErrorCode::BadRequest, bad.message),
            Ok(request) => match self.last_id {
                Some(last) if request.id <= last => {
                    let message =
                        format!("ids increase on a connection: {} after {last}", request.id);
                    self.refuse(Some(request.id), ErrorCode::BadRequest, message);
                }
                Some(_) | None => {
                    self.last_id = Some(request.id);
                    self.take_request(request);
                }
            },
        }
    }

    fn take_request(&mut self, Request { id, body }: Request) {
        let command = match authorise(self.shared.unsigned, self.peer, body) {
            Ok(command) => command,
            Err(failure) => {
                debug!(peer = %self.peer, id, code = %failure.code, "request refused");
                return protocol::write_failure(&mut self.outbox, Some(id), &failure);
            }
        };
        self.standing.begin();
        self.rest(self.shared.limits.idle_time_max);
        self.hand_over(id, command);
    }

    /// Hands a command over, or holds it back while too many large answers of its kind are not
    /// taken away.
    fn hand_over(&mut self, id: u64, command: Command) {
        let size = AnswerSize::of(&command);
        let alike = self.in_flight.iter().filter(|waiting| waiting.size == size);
        if size != AnswerSize::Small && alike.count() >= self.shared.limits.looks_in_flight_max {
            self.held = Some((id, command));
            return;
        }
        if self.in_flight.len() >= self.shared.limits.in_flight_max {
            let message = format!(
                "more than {} requests of this connection are not answered yet",
                self.in_flight.len()
            );
            let failure = Failure::new(ErrorCode::Busy, message);
            return protocol::write_failure(&mut self.outbox, Some(id), &failure);
        }
        match self.shared.requests.try_reserve() {
            Ok(slot) => {
                self.in_flight.push(Waiting { id, size });
                slot.send(Asked {
                    command,
                    issuer: Issuer {
                        peer: self.peer,
                        credential: Credential::Reach,
                    },
                    reply: Reply::new(id, self.answers_in.clone()),
                });
            }
            Err(mpsc::error::TrySendError::Full(())) => {
                let failure = Failure::new(ErrorCode::Busy, "too many commands wait, try again");
                protocol::write_failure(&mut self.outbox, Some(id), &failure);
            }
            Err(mpsc::error::TrySendError::Closed(())) => {
                protocol::write_failure(&mut self.outbox, Some(id), &shutting_down());
            }
        }
    }

    fn take_answers(&mut self) {
        for Answered { id, answer } in self.batch.drain(..) {
            if let Some(index) = self.in_flight.iter().position(|waiting| waiting.id == id) {
                self.in_flight.swap_remove(index);
                protocol::write_answer(&mut self.outbox, id, &answer);
            }
        }
        self.rest(self.shared.limits.idle_time_max);
    }

    /// From now on it may be quiet for so long.
    fn rest(&mut self, time: Duration) {
        self.deadline = Instant::now() + time;
    }

    /// Tells the peer what was wrong; nothing after it is looked at.
    fn refuse(&mut self, id: Option<u64>, code: ErrorCode, message: impl Into<String>) {
        debug!(peer = %self.peer, %code, "connection refused");
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
