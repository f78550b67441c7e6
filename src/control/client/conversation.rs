//! One conversation with one server: hello, request, answer.

use std::{io, time::Duration};

use serde_json::value::to_raw_value;

use super::{
    super::protocol::{self, Fields, Hello, LINE_BYTES_MAX, PROTOCOL, Refusal, ServerLine},
    ANSWER_BYTES_MAX, HostEvent, Manner, failure,
    proof::{Met, Signed},
    stream::Stream,
};
use crate::{
    clock,
    command::{Command, ErrorCode, Follow, Goal},
    spec::{Mono, RunId},
};

/// How much is read at once.
const READ_BYTES: usize = 64 * 1024;

/// The request that gives the command.
const COMMAND_ID: u64 = 1;

/// The request that waits for what the command has started.
const WAIT_ID: u64 = 2;

/// What is added to a failure after the command was sent.
const UNSURE: &str = "\nhint: the command may have been carried out, `check` tells";

/// What is added to a failure after the command was answered.
const STARTED: &str = "\nhint: the command itself was carried out, `check` tells what became of it";

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

/// How long a line is waited for.
#[derive(Debug, Clone, Copy)]
enum Until {
    /// So long, until then.
    Then(Duration, Mono),
    /// Until it comes, or the connection ends.
    Never,
}

/// How long one read may take of a line that is waited for without end.
const READ_TIME_MAX: Duration = Duration::from_secs(3_600);

impl Until {
    fn in_time(time: Duration) -> Self {
        Self::Then(time, clock::mono() + time)
    }

    /// How much of the time is left.
    fn left(self) -> Result<Duration, NoLine> {
        match self {
            Self::Never => Ok(READ_TIME_MAX),
            Self::Then(time, at) => match at - clock::mono() {
                Duration::ZERO => Err(NoLine::Timeout(time)),
                left => Ok(left),
            },
        }
    }
}

/// A connection to one server.
pub(super) struct Conversation<'a> {
    stream: Stream,
    /// The host as it was given.
    host: &'a str,
    /// What it is known as.
    place: &'a str,
    manner: &'a Manner,
    inbox: Vec<u8>,
    /// What is known of the command when the connection fails.
    hint: &'static str,
}

impl<'a> Conversation<'a> {
    pub(super) fn new(stream: Stream, host: &'a str, place: &'a str, manner: &'a Manner) -> Self {
        Self {
            stream,
            host,
            place,
            manner,
            inbox: Vec::new(),
            hint: UNSURE,
        }
    }

    /// Gives the command and returns the answer. What a person should hear besides is added to
    /// the warnings; `event` takes what comes before the answer, and says whether anybody wants to
    /// hear more.
    pub(super) fn run(
        mut self,
        command: &Command,
        warnings: &mut Vec<String>,
        event: &dyn Fn(HostEvent) -> bool,
    ) -> Result<Fields, Refusal> {
        if let Command::Events { .. } = command {
            self.hint = "";
        }
        let waits = self.manner.waits;
        let hello_wait = match self.stream {
            Stream::Tcp(_) => waits.hello,
            Stream::Ssh(_) => self.manner.ssh.hello_wait(waits),
        };
        let mut hello = self.meet(hello_wait)?;
        let met_at = clock::mono();
        let done = self.ask(&hello, COMMAND_ID, command, warnings, event)?;
        let (Some(time), Command::Child { child, .. }) = (self.manner.ready_within, command) else {
            return Ok(done);
        };
        self.hint = STARTED;
        // By the server's clock, as it is by now: the first answer may have taken its time.
        let took = i64::try_from((clock::mono() - met_at).as_secs()).unwrap_or(i64::MAX);
        hello.time = hello.time.saturating_add(took);
        let wait = Command::Wait {
            child: child.clone(),
            goal: Goal::Ready,
            run: Some(self.run_of(&done)?),
            time,
        };
        let ready = self.ask(&hello, WAIT_ID, &wait, warnings, event);
        ready
            .map(|ready| joined(done, &ready))
            .map_err(about_the_wait)
    }

    /// Makes a request and hears its answer.
    fn ask(
        &mut self,
        hello: &Hello,
        id: u64,
        command: &Command,
        warnings: &mut Vec<String>,
        event: &dyn Fn(HostEvent) -> bool,
    ) -> Result<Fields, Refusal> {
        let waits = self.manner.waits;
        let met = Met {
            host: self.host,
            place: self.place,
            hello,
        };
        let proof = &self.manner.proof;
        let (request, signed) = proof.request(met, id, command, warnings)?;
        self.stream
            .send(&request, waits.hello)
            .map_err(|fault| self.cut_off(&format!("cannot send to `{}`: {fault}", self.host)))?;
        let time = match command {
            Command::Events {
                follow: Follow::Yes,
                ..
            } => None,
            Command::Check { .. }
            | Command::CheckOne(_)
            | Command::Why(_)
            | Command::Events {
                follow: Follow::No, ..
            }
            | Command::Info => Some(waits.look),
            Command::Wait { time, .. } => Some(time.saturating_add(waits.look)),
            Command::Child { .. }
            | Command::StopAll
            | Command::StartAll
            | Command::Kill(_)
            | Command::Upgrade => Some(waits.act),
        };
        self.hear(id, time, signed, event)
    }

    /// The run that a command has started, by the answer to it.
    fn run_of(&self, done: &Fields) -> Result<RunId, Refusal> {
        let run = done.0.iter().find(|(key, _)| key == "run");
        let run = run.and_then(|(_, value)| serde_json::from_str(value.get()).ok());
        run.ok_or_else(|| {
            let (host, hint) = (self.host, self.hint);
            let message = format!("the answer of `{host}` names no run to wait for{hint}");
            failure(ErrorCode::Unreachable, message)
        })
    }

    /// Reads the hello and sees whether this client can go on.
    fn meet(&mut self, time: Duration) -> Result<Hello, Refusal> {
        let line = match self.line(Until::in_time(time), LINE_BYTES_MAX) {
            Ok(line) => line,
            Err(no_line) => return Err(self.no_hello(&no_line)),
        };
        match protocol::parse_server_line(&line) {
            Ok(ServerLine::Hello(hello)) if hello.protocol != PROTOCOL => Err(failure(
                ErrorCode::Unreachable,
                format!(
                    "`{}` speaks protocol {}, this client {PROTOCOL}",
                    self.host, hello.protocol
                ),
            )),
            Ok(ServerLine::Hello(hello)) => Ok(hello),
            Ok(ServerLine::Error { refusal, .. }) => Err(refusal),
            Ok(ServerLine::Ok { .. } | ServerLine::Event { .. }) => {
                Err(self.stranger(&"it answers before it was asked"))
            }
            Err(fault) => Err(self.stranger(&fault)),
        }
    }

    fn no_hello(&mut self, no_line: &NoLine) -> Refusal {
        let host = self.host;
        match (no_line, &mut self.stream) {
            (NoLine::Timeout(_), Stream::Tcp(_)) => failure(
                ErrorCode::Timeout,
                format!("`{host}` takes connections but does not greet: {no_line}"),
            ),
            (NoLine::Timeout(_), Stream::Ssh(tunnel)) => failure(
                ErrorCode::Timeout,
                format!(
                    "`{host}` does not greet through ssh: {no_line}{}\n\
                     hint: does `{}` get through by hand?",
                    following(&tunnel.said()),
                    tunnel.by_hand()
                ),
            ),
            (NoLine::Closed | NoLine::Cut | NoLine::Io(_), Stream::Ssh(tunnel)) => {
                match tunnel.fault() {
                    Some(fault) => failure(
                        ErrorCode::Unreachable,
                        format!(
                            "cannot reach `{host}` through ssh: {fault}\n\
                             hint: does `{}` get through by hand, and does \
                             supervisor-rs-server run there, on that port?",
                            tunnel.by_hand()
                        ),
                    ),
                    None => self.stranger(no_line),
                }
            }
            (NoLine::TooLong(_), Stream::Ssh(_))
            | (NoLine::Closed | NoLine::Cut | NoLine::TooLong(_) | NoLine::Io(_), Stream::Tcp(_)) => {
                self.stranger(no_line)
            }
        }
    }

    /// Reads until the answer, which may take this time; without, for ever.
    fn hear(
        &mut self,
        asked: u64,
        time: Option<Duration>,
        signed: Signed,
        event: &dyn Fn(HostEvent) -> bool,
    ) -> Result<Fields, Refusal> {
        let until = time.map_or(Until::Never, Until::in_time);
        loop {
            let line = match self.line(until, ANSWER_BYTES_MAX) {
                Ok(line) => line,
                Err(no_line) => return Err(self.no_answer(&no_line)),
            };
            match protocol::parse_server_line(&line) {
                Ok(ServerLine::Ok { id, fields }) if id == asked => return Ok(fields),
                Ok(ServerLine::Error { id, refusal }) if id.is_none_or(|id| id == asked) => {
                    return Err(self.manner.proof.explain(refusal, signed));
                }
                Ok(ServerLine::Event { id, event: said }) if id == asked => {
                    let host = self.host.to_owned();
                    if !event(HostEvent { host, event: said }) {
                        return Err(failure(ErrorCode::Unreachable, "nobody wants to hear more"));
                    }
                }
                Ok(
                    ServerLine::Hello(_)
                    | ServerLine::Ok { .. }
                    | ServerLine::Error { .. }
                    | ServerLine::Event { .. },
                ) => {
                    let message = format!(
                        "`{}` answers something that was not asked{}",
                        self.host, self.hint
                    );
                    return Err(failure(ErrorCode::Unreachable, message));
                }
                Err(fault) => {
                    let message = format!("no answer from `{}`: {fault}{}", self.host, self.hint);
                    return Err(failure(ErrorCode::Unreachable, message));
                }
            }
        }
    }

    fn no_answer(&mut self, no_line: &NoLine) -> Refusal {
        let what = format!("no answer from `{}`: {no_line}", self.host);
        match no_line {
            NoLine::Timeout(_) => failure(ErrorCode::Timeout, what + self.hint),
            NoLine::TooLong(_) => failure(ErrorCode::Unreachable, what + self.hint),
            NoLine::Closed | NoLine::Cut | NoLine::Io(_) => self.cut_off(&what),
        }
    }

    /// The connection ended while or after the command was sent: who did that, ssh may know.
    fn cut_off(&mut self, what: &str) -> Refusal {
        let fault = match &mut self.stream {
            Stream::Tcp(_) => None,
            Stream::Ssh(tunnel) => tunnel.fault(),
        };
        let words = following(&fault.unwrap_or_default());
        failure(
            ErrorCode::Unreachable,
            format!("{what}{words}{}", self.hint),
        )
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
    fn line(&mut self, until: Until, bytes_max: usize) -> Result<Vec<u8>, NoLine> {
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
            let left = until.left()?;
            match self.stream.read(&mut chunk, left) {
                Ok(0) if self.inbox.is_empty() => return Err(NoLine::Closed),
                Ok(0) => return Err(NoLine::Cut),
                Ok(count) => self.inbox.extend_from_slice(&chunk[..count]),
                Err(fault) => match fault.kind() {
                    io::ErrorKind::Interrupted => {}
                    // Looked at again above: a timeout may be early by a tick.
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {}
                    _ => return Err(NoLine::Io(fault)),
                },
            }
        }
    }
}

/// The answer to a command whose run is ready by now: what it said first is said anew, and what else
/// it had to say stays.
fn joined(mut done: Fields, ready: &Fields) -> Fields {
    let text = |fields: &Fields| -> Option<String> {
        let message = fields.0.iter().find(|(key, _)| key == "message");
        serde_json::from_str(message?.1.get()).ok()
    };
    if let (Some(before), Some(now)) = (text(&done), text(ready)) {
        let rest = before.split_once('\n').map(|(_, rest)| rest);
        let message = rest.map_or_else(|| now.clone(), |rest| format!("{now}\n{rest}"));
        let message = to_raw_value(&message).expect("a string is JSON");
        let there = done.0.iter_mut().find(|(key, _)| key == "message");
        if let Some((_, value)) = there {
            *value = message;
        }
    }
    done
}

/// A refusal of a wait that says nothing of the run: that the command was carried out is added.
fn about_the_wait(refusal: Refusal) -> Refusal {
    match refusal.known_code() {
        None | Some(ErrorCode::NotReady | ErrorCode::Timeout | ErrorCode::Unreachable) => refusal,
        Some(code) => failure(code, refusal.message + STARTED),
    }
}

/// ssh's words as an addition to a message; nothing when there are none.
fn following(words: &str) -> String {
    match words.is_empty() {
        true => String::new(),
        false => format!("; ssh says: {words}"),
    }
}
