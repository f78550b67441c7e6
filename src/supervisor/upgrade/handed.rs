//! What one program hands to the next: everything it knows, in memory that nobody can change.
//!
//! It is written in a self-describing format into a sealed file without a name (`memfd_create(2)`),
//! which both programs of a failed upgrade can read. Descriptors stand in it as their numbers.
//!
//! The next program is told by one variable, [`VARIABLE`]: the version of the state, so that one
//! that cannot read it finds its way back all the same, and two descriptors. No child gets it.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    ffi::OsString,
    fs::File,
    io::{self, Read, Seek, Write},
    os::fd::{AsRawFd, OwnedFd, RawFd},
    path::PathBuf,
};

use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use super::{super::server_file::HandedServerFile, check::STATE_VERSION};
use crate::{
    command::Command,
    control::{
        asked::{Issuer, ReplyAddress},
        server::HandedControl,
    },
    journal::HandedJournal,
    passed::Passed,
    probe::HandedProbes,
    process::HandedProcesses,
    reconcile::{
        State,
        event::{JobId, RequestId},
    },
    spec::{ChildName, Time},
};

/// Tells a program that it is to go on. Being the server's own, children never get it.
pub(super) const VARIABLE: &str = "SUPERVISOR_RS_TAKEOVER";

/// The most bytes of state that are read.
const STATE_BYTES_MAX: u64 = 1 << 30;

/// Everything the server knows.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Handed {
    /// Whose it is: another process has no business with it.
    pub(super) pid: u32,
    /// The version of the program that wrote it.
    pub(super) version: String,
    /// Who asked for the upgrade, if a client did.
    pub(super) asked: Option<RequestId>,
    /// What tools call the process, which exec of a descriptor makes them forget.
    pub(super) process_name: Option<String>,
    /// Where the server's program stands.
    pub(super) binary: PathBuf,
    /// The program that wrote it.
    pub(super) own: Passed,
    /// The program that is to go on.
    pub(super) next: Passed,
    pub(super) core: State,
    pub(super) server_file: HandedServerFile,
    pub(super) name: String,
    pub(super) id: String,
    pub(super) started: Time,
    pub(super) processes: HandedProcesses,
    pub(super) journal: HandedJournal,
    pub(super) control: HandedControl,
    pub(super) waiting: Vec<HandedWaiting>,
    pub(super) next_request: u64,
    pub(super) rereads: BTreeMap<JobId, BTreeSet<ChildName>>,
    #[serde(default)]
    pub(super) probes: HandedProbes,
    /// The rescan that was asked for and has not come to its end.
    #[serde(default)]
    pub(super) rescanning: Option<u64>,
    pub(super) signals: Caught,
}

/// Who waits for an answer.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::supervisor) struct HandedWaiting {
    pub(in crate::supervisor) id: RequestId,
    pub(in crate::supervisor) reply: ReplyAddress,
    /// What the audit trail will be told.
    pub(in crate::supervisor) audited: Option<(Command, Issuer)>,
}

/// Signals that came when nobody could act on them any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(in crate::supervisor) struct Caught {
    pub(in crate::supervisor) term: bool,
    pub(in crate::supervisor) interrupt: bool,
    pub(in crate::supervisor) hangup: bool,
    pub(in crate::supervisor) upgrade: bool,
}

impl Handed {
    /// Every descriptor that goes over.
    pub(super) fn passed(&self) -> impl Iterator<Item = &Passed> {
        [&self.own, &self.next]
            .into_iter()
            .chain(self.processes.passed())
            .chain(self.journal.passed())
            .chain(self.control.passed())
    }

    /// Writes all of it down.
    pub(super) fn write(&self, blank: Blank) -> io::Result<OwnedFd> {
        let mut bytes = Vec::new();
        ciborium::into_writer(self, &mut bytes).map_err(io::Error::other)?;
        blank.sealed(&bytes)
    }

    /// Reads what the program before has written.
    pub(super) fn read(file: OwnedFd) -> io::Result<Self> {
        let bytes = unsealed(file)?;
        let handed: Self = ciborium::from_reader(bytes.as_slice()).map_err(io::Error::other)?;
        match handed.pid == std::process::id() {
            true => Ok(handed),
            false => Err(io::Error::other("it is another process's")),
        }
    }
}

const SEALS: SealFlags = SealFlags::SEAL
    .union(SealFlags::SHRINK)
    .union(SealFlags::GROW)
    .union(SealFlags::WRITE);

/// Memory for the state that nothing was written to yet. Had before all is let go of, for then
/// there must be a descriptor left.
#[derive(Debug)]
pub(in crate::supervisor) struct Blank(File);

impl Blank {
    pub(super) fn new() -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let create = |flags| memfd_create("supervisor-rs-state", flags);
        // Where `vm.memfd_noexec` is 2 there is none without it; before Linux 6.3 none with it.
        let file = match create(flags | MemfdFlags::NOEXEC_SEAL) {
            Err(Errno::INVAL) => create(flags),
            made => made,
        };
        Ok(Self(File::from(file?)))
    }

    fn sealed(self, bytes: &[u8]) -> io::Result<OwnedFd> {
        let Self(mut file) = self;
        file.write_all(bytes)?;
        fcntl_add_seals(&file, SEALS)?;
        Ok(file.into())
    }
}

fn unsealed(file: OwnedFd) -> io::Result<Vec<u8>> {
    if !fcntl_get_seals(&file)?.contains(SEALS) {
        return Err(io::Error::other("it is not sealed"));
    }
    let mut file = File::from(file);
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(STATE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What a program is told of what it is to go on with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Announced {
    /// It is the next one.
    Onward {
        /// The version of the state.
        version: u32,
        /// Where the state is.
        state: RawFd,
        /// The program to go back to.
        back: RawFd,
    },
    /// It was there before, and the next one cannot go on.
    Back {
        /// Where the state is.
        state: RawFd,
        /// Why.
        why: String,
    },
}

impl Announced {
    pub(super) fn onward(state: &OwnedFd, back: RawFd) -> Self {
        Self::Onward {
            version: STATE_VERSION,
            state: state.as_raw_fd(),
            back,
        }
    }

    /// As this program was told.
    pub(super) fn of_process() -> Option<Self> {
        Self::parse(&env::var(VARIABLE).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.splitn(3, ' ');
        match words.next()? {
            "back" => Some(Self::Back {
                state: words.next()?.parse().ok()?,
                why: words.next().unwrap_or_default().to_owned(),
            }),
            version => Some(Self::Onward {
                version: version.parse().ok()?,
                state: words.next()?.parse().ok()?,
                back: words.next()?.parse().ok()?,
            }),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Onward {
                version,
                state,
                back,
            } => format!("{version} {state} {back}"),
            // No argument may hold a NUL.
            Self::Back { state, why } => format!("back {state} {}", why.replace('\0', " ")),
        }
    }

    /// The environment of this process, with this said in it.
    pub(super) fn environment(&self) -> Vec<OsString> {
        let variable = |name: OsString, value: OsString| {
            let mut text = name;
            text.push("=");
            text.push(value);
            text
        };
        let kept = env::vars_os().filter(|(name, _)| name != VARIABLE);
        let said = (OsString::from(VARIABLE), OsString::from(self.text()));
        kept.chain([said])
            .map(|(name, value)| variable(name, value))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_announced_is_read_as_it_was_said() {
        let onward = Announced::Onward {
            version: 1,
            state: 5,
            back: 9,
        };
        let back = Announced::Back {
            state: 7,
            why: "it cannot: no\nhint: none".to_owned(),
        };
        for announced in [onward, back] {
            assert_eq!(Announced::parse(&announced.text()), Some(announced));
        }
        for text in ["", "1", "1 2", "1 2 x", "x 2 3", "back", "back x y"] {
            assert_eq!(Announced::parse(text), None, "{text}");
        }
    }

    #[test]
    fn nobody_can_change_what_is_sealed_and_what_is_not_sealed_is_not_read() {
        let file = Blank::new().unwrap().sealed(b"all of it").unwrap();
        let mut again = File::from(file.try_clone().unwrap());
        assert!(again.write_all(b"x").is_err());
        assert!(again.set_len(0).is_err());
        assert_eq!(unsealed(file).unwrap(), b"all of it");
        assert!(unsealed(Blank::new().unwrap().0.into()).is_err());
        assert!(unsealed(File::open("/dev/null").unwrap().into()).is_err());
    }
}
