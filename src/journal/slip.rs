//! What a new process needs to write down its own start.
//!
//! It does so itself, between clone and exec, and keeps the lock until then: so whoever gets the
//! lock after a server died knows that every run that was executed is on record. The record's text
//! is laid out here, around the two numbers that only the process knows.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use super::frame::{self, EncodeError};
use crate::{
    reconcile::{program::HookId, record::Record},
    spec::{ChildName, RunId, Time},
};

/// How many bytes stand before a record's text.
pub const PREFIX_LEN: usize = frame::PREFIX_LEN;

/// Why there is no slip.
#[derive(Debug, thiserror::Error)]
pub(super) enum SlipError {
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Whose process is about to write itself down.
#[derive(Debug, Clone, Copy)]
pub enum Newborn<'a> {
    /// The main process of a run.
    Run(&'a ChildName, RunId),
    /// The program of a hook.
    Hook(&'a ChildName, HookId),
}

impl Newborn<'_> {
    /// The record of its start.
    #[must_use]
    pub fn started(self, pid: i32, start_ticks: u64, at: Time) -> Record {
        match self {
            Self::Run(child, run) => Record::Started {
                child: child.clone(),
                run,
                pid,
                start_ticks,
                at,
            },
            Self::Hook(child, hook) => Record::HookStarted {
                child: child.clone(),
                hook,
                pid,
                start_ticks,
                at,
            },
        }
    }

    /// The record that it is none after all.
    fn never(self, at: Time) -> Record {
        match self {
            Self::Run(child, run) => Record::NotStarted {
                child: child.clone(),
                run,
                why: format!(
                    "`{child}` could not be executed, and the server died before it said why"
                ),
                at,
            },
            Self::Hook(child, hook) => Record::HookEnded {
                child: child.clone(),
                hook,
            },
        }
    }
}

/// What one new process needs to write itself down. To be used before anything else is recorded.
#[derive(Debug)]
pub struct Slip<'a> {
    /// The file, open for adding.
    pub file: BorrowedFd<'a>,
    /// The lock, to be kept until exec.
    pub lock: OwnedFd,
    /// The text of the record of its start: before the pid, between it and the start time in clock
    /// ticks since boot, and after that.
    pub text: [Vec<u8>; 3],
    /// What stands before the text; safe to call between clone and exec.
    pub prefix: fn(&[u8]) -> [u8; PREFIX_LEN],
    /// The whole record of a program that could not be executed.
    pub never: Vec<u8>,
}

impl<'a> Slip<'a> {
    pub(super) fn new(
        file: BorrowedFd<'a>,
        lock: OwnedFd,
        newborn: Newborn<'_>,
        at: Time,
    ) -> Result<Self, SlipError> {
        let mut never = Vec::new();
        frame::encode(&newborn.never(at), &mut never)?;
        Ok(Self {
            file,
            lock,
            text: around_numbers(newborn, at)?,
            prefix: frame::prefix,
            never,
        })
    }
}

/// The text of a record, with the two numbers taken out.
fn around_numbers(newborn: Newborn<'_>, at: Time) -> Result<[Vec<u8>; 3], EncodeError> {
    const PID: i32 = i32::MAX;
    const TICKS: u64 = u64::MAX;
    let text = serde_json::to_string(&newborn.started(PID, TICKS, at))?;
    // No name holds a quotation mark, so that this stands there once.
    let (pid, ticks) = (
        format!(r#""pid":{PID},"#),
        format!(r#""start_ticks":{TICKS}"#),
    );
    let parts = text.split_once(&format!("{pid}{ticks}"));
    let (before, after) = parts.expect("a record's numbers stand side by side, a test shows it");
    Ok([
        [before, r#""pid":"#].concat().into_bytes(),
        br#","start_ticks":"#.to_vec(),
        after.as_bytes().to_vec(),
    ])
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::{super::samples, *};
    use crate::spec::{Mono, Wall};

    #[test]
    fn the_text_around_two_numbers_makes_the_record_of_a_start() {
        let at = Time {
            mono: Mono(5_000_001),
            wall: Wall(1_700_000_000_000),
        };
        for child in ["web", "2147483647", "pid", "start_ticks"] {
            let child = samples::name(child);
            let newborns = [
                Newborn::Run(&child, RunId(7)),
                Newborn::Hook(&child, HookId(7)),
            ];
            for newborn in newborns {
                let null = std::fs::File::open("/dev/null").unwrap();
                let lock = null.try_clone().unwrap().into();
                let slip = Slip::new(null.as_fd(), lock, newborn, at).unwrap();
                let [before, between, after] = &slip.text;
                let text = [
                    before,
                    b"4321".as_slice(),
                    between,
                    b"987654321".as_slice(),
                    after,
                ]
                .concat();
                let bytes = [(slip.prefix)(&text).as_slice(), &text].concat();
                let expected = newborn.started(4321, 987_654_321, at);
                let mut encoded = Vec::new();
                frame::encode(&expected, &mut encoded).unwrap();
                assert_eq!(bytes, encoded);
                let (never, len) = frame::added(&slip.never);
                assert_eq!(len, slip.never.len());
                match newborn {
                    Newborn::Run(..) => {
                        assert!(matches!(never.as_slice(), [Record::NotStarted { .. }]))
                    }
                    Newborn::Hook(..) => {
                        assert!(matches!(never.as_slice(), [Record::HookEnded { .. }]))
                    }
                }
            }
        }
    }
}
