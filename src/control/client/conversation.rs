//! One conversation with one server: hello, request, answer.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::Duration,
};

use super::{
    super::{
        host::Host,
        protocol::{self, Fields, LINE_BYTES_MAX, PROTOCOL, Refusal, ServerLine},
    },
    ANSWER_BYTES_MAX, Waits, failure,
};
use crate::{
    clock,
    command::{Command, ErrorCode},
    spec::Mono,
};

/// How much is read at once.
const READ_BYTES: usize = 64 * 1024;

/// The one request of a connection.
const REQUEST_ID: u64 = 1;

/// What is added to a failure after the command was sent.
const UNSURE: &str = "\nhint: the command may have been carried out, `check` tells";

/// Why there is no line.
#[derive(Debug, thiserror::Error)]
enum NoLine {
    #[error("nothing within {0:?}")]
    Timeout(Duration),
    #[error("the connection was closed")]
    Closed,
    #[error("the connection was closed in the middle of a line")]
    Cut,
    #[error("its line is longer than {0} bytes")]
    TooLong(usize),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A connection to one server.
pub(super) struct Conversation<'a> {
    stream: TcpStream,
    host: &'a Host,
    inbox: Vec<u8>,
}

impl<'a> Conversation<'a> {
    pub(super) fn new(stream: TcpStream, host: &'a Host) -> Self {
        Self {
            stream,
            host,
            inbox: Vec::new(),
        }
    }

    pub(super) fn run(mut self, command: &Command, waits: Waits) -> Result<Fields, Refusal> {
        self.meet(waits.hello)?;
        let mut request = Vec::new();
        protocol::write_request(&mut request, REQUEST_ID, command);
        self.stream
            .set_write_timeout(Some(waits.hello))
            .and_then(|()| self.stream.write_all(&request))
            .map_err(|fault| {
                let message = format!("cannot send to `{}`: {fault}", self.host);
                failure(ErrorCode::Unreachable, message)
            })?;
        let time = match command {
            Command::Check { .. } | Command::CheckOne(_) | Command::Info => waits.look,
            Command::Child { .. } | Command::StopAll | Command::StartAll | Command::Kill(_) => {
                waits.act
            }
        };
        self.hear(time)
    }

    /// Reads the hello and sees whether this client can go on.
    fn meet(&mut self, time: Duration) -> Result<(), Refusal> {
        let line = self
            .line(clock::mono() + time, time, LINE_BYTES_MAX)
            .map_err(|no_line| match no_line {
                NoLine::Timeout(_) => failure(
                    ErrorCode::Timeout,
                    format!(
                        "`{}` takes connections but does not greet: {no_line}",
                        self.host
                    ),
                ),
                NoLine::Closed | NoLine::Cut | NoLine::TooLong(_) | NoLine::Io(_) => {
                    self.stranger(&no_line)
                }
            })?;
        match protocol::parse_server_line(&line) {
            Ok(ServerLine::Hello(hello)) if hello.protocol != PROTOCOL => Err(failure(
                ErrorCode::Unreachable,
                format!(
                    "`{}` speaks protocol {}, this client {PROTOCOL}",
                    self.host, hello.protocol
                ),
            )),
            Ok(ServerLine::Hello(hello)) if hello.encrypt => Err(failure(
                ErrorCode::Unauthorized,
                format!(
                    "`{}` takes only signed commands (`encrypt: on`): `with KEY.pem` is missing\n\
                     hint: this version cannot sign commands yet",
                    self.host
                ),
            )),
            Ok(ServerLine::Hello(_)) => Ok(()),
            Ok(ServerLine::Error { refusal, .. }) => Err(refusal),
            Ok(ServerLine::Ok { .. } | ServerLine::Event { .. }) => {
                Err(self.stranger(&"it answers before it was asked"))
            }
            Err(fault) => Err(self.stranger(&fault)),
        }
    }

    /// Reads until the answer.
    fn hear(&mut self, time: Duration) -> Result<Fields, Refusal> {
        let deadline = clock::mono() + time;
        loop {
            let line = self
                .line(deadline, time, ANSWER_BYTES_MAX)
                .map_err(|no_line| {
                    let code = match no_line {
                        NoLine::Timeout(_) => ErrorCode::Timeout,
                        NoLine::Closed | NoLine::Cut | NoLine::TooLong(_) | NoLine::Io(_) => {
                            ErrorCode::Unreachable
                        }
                    };
                    failure(
                        code,
                        format!("no answer from `{}`: {no_line}{UNSURE}", self.host),
                    )
                })?;
            match protocol::parse_server_line(&line) {
                Ok(ServerLine::Ok {
                    id: REQUEST_ID,
                    fields,
                }) => return Ok(fields),
                Ok(ServerLine::Error {
                    id: Some(REQUEST_ID) | None,
                    refusal,
                }) => return Err(refusal),
                Ok(ServerLine::Event { id: REQUEST_ID }) => {}
                Ok(
                    ServerLine::Hello(_)
                    | ServerLine::Ok { .. }
                    | ServerLine::Error { .. }
                    | ServerLine::Event { .. },
                ) => {
                    let message = format!(
                        "`{}` answers something that was not asked{UNSURE}",
                        self.host
                    );
                    return Err(failure(ErrorCode::Unreachable, message));
                }
                Err(fault) => {
                    let message = format!("no answer from `{}`: {fault}{UNSURE}", self.host);
                    return Err(failure(ErrorCode::Unreachable, message));
                }
            }
        }
    }

    fn stranger(&self, why: &dyn std::fmt::Display) -> Refusal {
        failure(
            ErrorCode::Unreachable,
            format!(
                "what listens at `{}` is no supervisor-rs-server: {why}",
                self.host
            ),
        )
    }

    /// The next line, without its line feed.
    fn line(
        &mut self,
        deadline: Mono,
        time: Duration,
        bytes_max: usize,
    ) -> Result<Vec<u8>, NoLine> {
        let mut scanned = 0;
        let mut chunk = vec![0; READ_BYTES];
        loop {
            if let Some(offset) = self.inbox[scanned..].iter().position(|byte| *byte == b'\n') {
                let rest = self.inbox.split_off(scanned + offset + 1);
                let mut line = std::mem::replace(&mut self.inbox, rest);
                line.pop();
                return Ok(line);
            }
            scanned = self.inbox.len();
            if scanned > bytes_max {
                return Err(NoLine::TooLong(bytes_max));
            }
            let left = deadline - clock::mono();
            if left.is_zero() {
                return Err(NoLine::Timeout(time));
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut chunk) {
                Ok(0) if self.inbox.is_empty() => return Err(NoLine::Closed),
                Ok(0) => return Err(NoLine::Cut),
                Ok(count) => self.inbox.extend_from_slice(&chunk[..count]),
                Err(fault) => match fault.kind() {
                    io::ErrorKind::Interrupted => {}
                    // Looked at again above: a timeout may be early by a tick.
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                        if !(deadline - clock::mono()).is_zero() => {}
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                        return Err(NoLine::Timeout(time));
                    }
                    _ => return Err(NoLine::Io(fault)),
                },
            }
        }
    }
}
