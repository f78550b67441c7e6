//! How lines hang together: each has a number, and the hash of the line before.
//!
//! The hash is SHA-256 over the whole line as it stands in the file, without its line feed, so
//! that anybody can make it with `sha256sum`. A line does not hold its own hash: the next one
//! does, and of the last one it is told by whoever checks the chain.
//!
//! A line is printable ASCII: what JSON would let through (DEL, the controls from U+0080 on, line
//! separators, marks that turn the direction of writing) is escaped like the rest.

use std::{
    fmt,
    io::{self, Write},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use serde_json::ser::Formatter;
use sha2::{Digest as _, Sha256};

use super::entry::{Entry, What};
use crate::command::Stamp;

/// The SHA-256 of a line.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hash([u8; 32]);

/// A text is not 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a hash is 64 hexadecimal digits")]
pub struct NotAHash;

impl Hash {
    /// What stands where there is no line before.
    pub(super) const NONE: Self = Self([0; 32]);

    /// Of a line, without its line feed.
    #[must_use]
    pub fn of(line: &[u8]) -> Self {
        Self(Sha256::digest(line).into())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Hash {
    type Err = NotAHash;

    fn from_str(text: &str) -> Result<Self, NotAHash> {
        let mut hash = [0; 32];
        // Digits alone: `from_str_radix` takes a sign too.
        let is_hex = |byte: u8| byte.is_ascii_hexdigit();
        if text.len() != 64 || !text.bytes().all(is_hex) {
            return Err(NotAHash);
        }
        for (byte, at) in hash.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| NotAHash)?;
        }
        Ok(Self(hash))
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// What a line must hold that is one of a chain, and what else the chain must know of it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Link {
    pub(super) seq: u64,
    pub(super) time: Stamp,
    event: String,
    pub(super) prev: Hash,
    #[serde(default)]
    because: Option<String>,
    #[serde(default)]
    pub(super) aside: Option<String>,
}

impl Link {
    /// Reads a line without its line feed.
    ///
    /// # Errors
    ///
    /// Why it is no line of a chain, for a person.
    pub(super) fn read(line: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(line).map_err(|error| error.to_string())
    }

    /// Whether it is the first line of all.
    pub(super) fn is_first(&self) -> bool {
        self.seq == 1 && self.prev == Hash::NONE
    }

    /// Whether it says that a chain begins anew because what was there is broken.
    pub(super) fn says_broken(&self) -> bool {
        self.event == "opened" && self.because.as_deref() == Some("broken")
    }
}

/// Where a chain goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chain {
    /// The number of the last line; 0 before the first.
    pub(super) seq: u64,
    /// Its hash.
    pub(super) last: Hash,
}

impl Chain {
    /// A chain without a line.
    pub(super) const NEW: Self = Self {
        seq: 0,
        last: Hash::NONE,
    };

    /// Behind this line.
    pub(super) fn after(link: &Link, line: &[u8]) -> Self {
        Self {
            seq: link.seq,
            last: Hash::of(line),
        }
    }

    /// Adds a line: its bytes with the line feed go behind what is in `bytes`.
    pub(super) fn add(&mut self, entry: &Entry, bytes: &mut Vec<u8>) {
        #[derive(Serialize)]
        struct Line<'a> {
            seq: u64,
            time: Stamp,
            #[serde(flatten)]
            what: &'a What,
            prev: Hash,
        }
        let line = Line {
            // A number that cannot grow is a break that is found; it takes longer than the world.
            seq: self.seq.saturating_add(1),
            time: Stamp(entry.at),
            what: &entry.what,
            prev: self.last,
        };
        let begin = bytes.len();
        let mut serializer = serde_json::Serializer::with_formatter(&mut *bytes, Printable);
        line.serialize(&mut serializer)
            .expect("text, numbers and named fields, into memory");
        (self.seq, self.last) = (line.seq, Hash::of(&bytes[begin..]));
        bytes.push(b'\n');
    }
}

/// JSON in printable ASCII.
struct Printable;

impl Formatter for Printable {
    fn write_string_fragment<W>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()>
    where
        W: ?Sized + Write,
    {
        for char in fragment.chars() {
            match char {
                ' '..='~' => writer.write_all(&[u8::try_from(char).unwrap_or(b'?')])?,
                _ => {
                    for unit in char.encode_utf16(&mut [0; 2]) {
                        write!(writer, "\\u{unit:04x}")?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_what_sha256sum_says() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Hash::of(b"abc").to_string(), abc);
        assert_eq!(abc.parse(), Ok(Hash::of(b"abc")));
        assert_eq!(abc.to_uppercase().parse(), Ok(Hash::of(b"abc")));
    }

    #[test]
    fn what_is_no_hash_is_refused() {
        let long = "0".repeat(65);
        let signed = format!("+1{}", "0".repeat(62));
        let wide = "\u{e9}".repeat(32);
        for text in [
            "",
            "00",
            &long[..63],
            &long,
            &signed,
            &wide,
            &"g".repeat(64),
        ] {
            assert_eq!(text.parse::<Hash>(), Err(NotAHash), "{text}");
        }
    }

    #[test]
    fn a_line_with_a_field_twice_is_none() {
        let line = |extra: &str| {
            let zeros = Hash::NONE;
            format!(
                r#"{{"seq":1,{extra}"time":"2026-01-02T03:04:05.678Z","event":"x","prev":"{zeros}"}}"#
            )
        };
        assert!(Link::read(line("").as_bytes()).is_ok());
        assert!(Link::read(line(r#""more":[1],"#).as_bytes()).is_ok());
        assert!(Link::read(line(r#""seq":1,"#).as_bytes()).is_err());
        assert!(Link::read(line(r#""seq":2,"#).as_bytes()).is_err());
        assert!(Link::read(format!("{} x", line("")).as_bytes()).is_err());
        assert!(Link::read(b"").is_err());
    }
}
