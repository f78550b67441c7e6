//! Descriptors that one program hands to the next across `execve(2)`.
//!
//! An upgrade replaces the server under the same pid: what is open stays open, and the next
//! program is told the numbers. Each organ says which of its descriptors go over; this type stands
//! for one of them on either side, so that organs need not know how it is done.
//!
//! Absent on purpose: making them outlive exec, and believing a number (`process`).

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Turns a number that was handed over into the descriptor.
pub type Claim<'a> = &'a dyn Fn(RawFd) -> io::Result<OwnedFd>;

/// A descriptor on its way. Written down, it is its number.
#[derive(Debug)]
pub enum Passed {
    /// Still, or again, held here.
    Held(OwnedFd),
    /// Open under this number, as another program has written.
    Announced(RawFd),
}

impl Passed {
    /// The descriptor, if it is held here.
    #[must_use]
    pub fn held(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Held(fd) => Some(fd.as_fd()),
            Self::Announced(_) => None,
        }
    }

    /// Takes it up.
    ///
    /// # Errors
    ///
    /// What `claim` says of the number.
    pub fn take(self, claim: Claim<'_>) -> io::Result<OwnedFd> {
        match self {
            Self::Held(fd) => Ok(fd),
            Self::Announced(number) => claim(number),
        }
    }
}

impl Serialize for Passed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Held(fd) => fd.as_raw_fd().serialize(serializer),
            Self::Announced(number) => number.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Passed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        RawFd::deserialize(deserializer).map(Self::Announced)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_written_as_its_number_and_claimed_by_it() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let number = reader.as_raw_fd();
        let text = serde_json::to_string(&Passed::Held(reader)).unwrap();
        assert_eq!(text, number.to_string());
        let announced: Passed = serde_json::from_str(&text).unwrap();
        assert!(announced.held().is_none());
        let refuse = |asked| {
            assert_eq!(asked, number);
            Err(io::ErrorKind::NotFound.into())
        };
        assert!(announced.take(&refuse).is_err());
    }
}
