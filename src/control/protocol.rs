//! Frames and JSON of the control protocol: lines in, values out, and back.
//!
//! Pure: no socket, no clock, no task. What a line means is decided here and nowhere else, for
//! the server and for the client. `docs/PROTOCOL.md` tells the same to a stranger.
//!
//! Absent on purpose: who may command what (`authority`); tokens are only told apart from
//! commands here.
//!
//! Source: DESIGN, sections 6 and 8; RFC 8259.

mod answer;
mod request;

use serde::{Deserialize, Serialize, Serializer, ser::SerializeMap};

pub(crate) use self::request::{CommandSeed, Word, bounded, echo, once};
pub use self::{
    answer::{Fields, NotAServer, Refusal, ServerLine, parse_server_line},
    request::{BadRequest, Body, Request, parse_request},
};
use crate::command::{Answer, CheckScope, Command, Failure, Follow, KillChildren};

/// The version of the protocol, as the hello tells it.
pub const PROTOCOL: u32 = 1;

/// The most bytes a request line may have, its line feed not counted.
pub const LINE_BYTES_MAX: usize = 64 * 1024;

/// The first line of a connection, from the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// What the server calls itself.
    pub server: String,
    /// Its id, a UUID.
    pub id: String,
    /// Its version.
    pub version: String,
    /// Whether it accepts only signed commands.
    pub encrypt: bool,
    /// 32 random bytes in base64url without padding; another for each connection.
    pub nonce: String,
    /// The server's wall clock, in seconds since 1970-01-01 UTC.
    pub time: i64,
}

/// A command as the object that stands on the wire.
#[derive(Debug, Clone, Copy)]
pub struct WireCommand<'a>(pub &'a Command);

impl Serialize for WireCommand<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("op", self.0.op().as_str())?;
        match self.0 {
            Command::Child { child, .. } | Command::CheckOne(child) | Command::Why(child) => {
                map.serialize_entry("child", child)?;
            }
            Command::Wait {
                child,
                goal,
                run,
                time,
            } => {
                map.serialize_entry("child", child)?;
                map.serialize_entry("for", goal.as_str())?;
                if let Some(run) = run {
                    map.serialize_entry("run", run)?;
                }
                let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
                map.serialize_entry("timeout_ms", &millis)?;
            }
            Command::Events {
                child,
                follow,
                last,
            } => {
                if let Some(child) = child {
                    map.serialize_entry("child", child)?;
                }
                if *follow == Follow::Yes {
                    map.serialize_entry("follow", &true)?;
                }
                if let Some(last) = last {
                    map.serialize_entry("last", last)?;
                }
            }
            Command::StopAll
            | Command::StartAll
            | Command::Check {
                scope: CheckScope::All,
            } => map.serialize_entry("all", &true)?,
            Command::Kill(KillChildren::Stop) => map.serialize_entry("stop_children", &true)?,
            Command::Check {
                scope: CheckScope::Live,
            }
            | Command::Info
            | Command::Upgrade
            | Command::Kill(KillChildren::AsConfigured) => {}
        }
        map.end()
    }
}

/// Adds a line that greets a client.
pub fn write_hello(out: &mut Vec<u8>, hello: &Hello) {
    #[derive(Serialize)]
    struct Line<'a> {
        hello: &'a Hello,
    }
    write_line(out, &Line { hello });
}

/// Adds a line that asks for a command.
pub fn write_request(out: &mut Vec<u8>, id: u64, command: &Command) {
    #[derive(Serialize)]
    struct Line<'a> {
        id: u64,
        command: WireCommand<'a>,
    }
    let command = WireCommand(command);
    write_line(out, &Line { id, command });
}

/// Adds a line that answers a request.
pub fn write_answer(out: &mut Vec<u8>, id: u64, answer: &Result<Answer, Failure>) {
    #[derive(Serialize)]
    struct Line<'a> {
        id: u64,
        ok: &'a Answer,
    }
    match answer {
        Ok(ok) => write_line(out, &Line { id, ok }),
        Err(error) => write_failure(out, Some(id), error),
    }
}

/// Adds a line that is part of a stream, before the answer.
pub fn write_event(out: &mut Vec<u8>, id: u64, event: &impl Serialize) {
    #[derive(Serialize)]
    struct Line<'a, T> {
        id: u64,
        event: &'a T,
    }
    write_line(out, &Line { id, event });
}

/// Adds a line that refuses a request, or a line whose id could not be made out (`"id":null`).
pub fn write_failure(out: &mut Vec<u8>, id: Option<u64>, error: &Failure) {
    #[derive(Serialize)]
    struct Line<'a> {
        id: Option<u64>,
        error: &'a Failure,
    }
    write_line(out, &Line { id, error });
}

fn write_line<T: Serialize>(out: &mut Vec<u8>, line: &T) {
    serde_json::to_writer(&mut *out, line)
        .expect("frames have string keys and a `Vec` takes every byte");
    out.push(b'\n');
}

#[cfg(test)]
mod tests;
