//! What a server says, as a client reads it: leniently.
//!
//! Fields unknown to this client are a newer server's business and are handed on as they came,
//! in their order. A server is still not trusted: nothing here is unbounded, and no field can
//! stand in for another.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error as _, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{Hello, request::echo};
use crate::command::{ErrorCode, Failure};

/// A line from a server, as a client reads it.
#[derive(Debug)]
pub enum ServerLine {
    /// The greeting.
    Hello(Hello),
    /// What was done.
    Ok {
        /// Of which request.
        id: u64,
        /// The `ok` object.
        fields: Fields,
    },
    /// A refusal.
    Error {
        /// Of which request; `None` when the server could not tell.
        id: Option<u64>,
        /// The `error` object.
        refusal: Refusal,
    },
    /// Part of a stream, before its last line.
    Event {
        /// Of which request.
        id: u64,
        /// The `event` object as it came.
        event: Box<RawValue>,
    },
}

/// Why a line is nothing that a server says.
#[derive(Debug, thiserror::Error)]
pub enum NotAServer {
    /// It is not JSON, or not the JSON it should be.
    #[error("its line cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// It is an object without anything known in it.
    #[error("its line holds none of `hello`, `ok`, `error` and `event`")]
    Nothing,
    /// An answer that does not say to what.
    #[error("its answer has no `id`")]
    NoId,
}

/// Reads a line from a server, without its line feed.
///
/// # Errors
///
/// [`NotAServer`] when no server speaks like this.
pub fn parse_server_line(line: &[u8]) -> Result<ServerLine, NotAServer> {
    #[derive(Deserialize)]
    struct Line {
        hello: Option<Hello>,
        id: Option<u64>,
        ok: Option<Fields>,
        error: Option<Box<RawValue>>,
        event: Option<Box<RawValue>>,
    }
    let line: Line = serde_json::from_slice(line)?;
    if let Some(hello) = line.hello {
        return Ok(ServerLine::Hello(hello));
    }
    if let Some(raw) = line.error {
        let refusal = Refusal::from_raw(raw)?;
        return Ok(ServerLine::Error {
            id: line.id,
            refusal,
        });
    }
    match (line.ok, line.event, line.id) {
        (None, None, _) => Err(NotAServer::Nothing),
        (_, _, None) => Err(NotAServer::NoId),
        (Some(fields), _, Some(id)) => Ok(ServerLine::Ok { id, fields }),
        (None, Some(event), Some(id)) => Ok(ServerLine::Event { id, event }),
    }
}

/// The fields of an `ok` object as they came, in their order.
#[derive(Debug, Default)]
pub struct Fields(pub Vec<(String, Box<RawValue>)>);

impl Fields {
    /// The object again.
    #[must_use]
    pub fn object(&self) -> String {
        serde_json::to_string(self).expect("string keys and JSON that was read before")
    }
}

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor;
        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields: Vec<(String, Box<RawValue>)> = Vec::new();
                while let Some((key, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    if fields.len() == FIELDS_MAX {
                        return Err(A::Error::custom("too many fields in the answer"));
                    }
                    if fields.iter().any(|(there, _)| *there == key) {
                        return Err(A::Error::custom(format_args!(
                            "`{}` stands there twice",
                            echo(&key)
                        )));
                    }
                    fields.push((key, value));
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(FieldsVisitor)
    }
}

/// The most fields an `ok` object may have at its top.
const FIELDS_MAX: usize = 64;

/// The `error` object of an answer, from this server or a newer one.
#[derive(Debug)]
pub struct Refusal {
    /// The code as it is spelled.
    pub code: String,
    /// What failed and why.
    pub message: String,
    /// The whole object as it came.
    pub raw: Box<RawValue>,
}

impl Refusal {
    fn from_raw(raw: Box<RawValue>) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Known {
            code: String,
            #[serde(default)]
            message: String,
        }
        let Known { code, message } = serde_json::from_str(raw.get())?;
        Ok(Self { code, message, raw })
    }

    /// The code, when this version knows it.
    #[must_use]
    pub fn known_code(&self) -> Option<ErrorCode> {
        ErrorCode::ALL
            .into_iter()
            .find(|code| code.as_str() == self.code)
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        let raw = serde_json::value::to_raw_value(&failure).expect("two strings are JSON");
        Self {
            code: failure.code.as_str().to_owned(),
            message: failure.message,
            raw,
        }
    }
}
