//! Processes across an upgrade: they stay children of this process, which becomes another program.
//!
//! Nothing is done to them and nothing is forgotten of them: a pidfd goes over as it is, and an end
//! that nobody has been told of is told by the next program, with its exact exit.
//!
//! A descriptor that did not come through, which only a program that failed half way can bring
//! about, is made anew by pid and start time, as after a crash.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

use serde::{Deserialize, Serialize};

use super::{
    Fact, Owner, Parent, Phase, Process, Processes,
    adopt::{Found, find},
    hooks::{Hook, HookKey, NOT_KNOWN},
    inherit,
    notify::HandedEar,
    pins::PinName,
    probing::ProbeProgram,
    signs::HandedSign,
    stop::{Fate, Left},
};
use crate::{
    passed::{Claim, Passed},
    reconcile::event::{HookFailure, JobId},
    spec::{ChildName, Circumstances, Exit, RunId},
};

/// All processes, on their way to the next program.
#[derive(Debug, Serialize, Deserialize)]
pub struct HandedProcesses {
    file_limit: FileLimit,
    processes: Vec<HandedProcess>,
    hooks: Vec<(HookKey, Hook)>,
    #[serde(default)]
    probes: Vec<(JobId, ProbeProgram)>,
    left: Vec<HandedLeft>,
    /// Pins themselves outlive any program.
    pinned: Vec<((ChildName, RunId), PinName)>,
    #[serde(default)]
    pins_kept: Vec<PinName>,
    #[serde(default)]
    ears: Vec<HandedEar>,
    #[serde(default)]
    signs: Vec<HandedSign>,
}

/// The limit of open files that the server was started with; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileLimit {
    pub(super) current: Option<u64>,
    pub(super) maximum: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct HandedProcess {
    owner: Owner,
    pid: i32,
    start_ticks: u64,
    pidfd: Passed,
    parent: Parent,
    phase: Phase,
}

#[derive(Debug, Serialize, Deserialize)]
struct HandedLeft {
    child: ChildName,
    run: RunId,
    group: i32,
    pidfd: Option<Passed>,
    fate: Fate,
}

impl HandedProcesses {
    /// Every descriptor that goes over.
    pub fn passed(&self) -> impl Iterator<Item = &Passed> {
        let left = self.left.iter().filter_map(|left| left.pidfd.as_ref());
        self.processes
            .iter()
            .map(|process| &process.pidfd)
            .chain(left)
            .chain(self.ears.iter().map(HandedEar::passed))
    }

    /// The limit of open files that children get.
    #[must_use]
    pub fn file_limit(&self) -> FileLimit {
        self.file_limit
    }
}

/// Has children get the limit of open files that the first program of this process was started
/// with. First of all: before [`open_files_max`](super::open_files_max).
pub fn resume_file_limit(limit: FileLimit) {
    inherit::resume_file_limit(limit);
}

impl Processes {
    /// Lets go of all of them: no end is told any more.
    #[must_use]
    pub fn hand_over(self) -> HandedProcesses {
        let handed = |(owner, process): (Owner, Process)| HandedProcess {
            owner,
            pid: process.pid,
            start_ticks: process.start_ticks,
            pidfd: Passed::Held(process.pidfd),
            parent: process.parent,
            phase: process.phase,
        };
        let left = |((child, run), left): ((ChildName, RunId), Left)| HandedLeft {
            child,
            run,
            group: left.group,
            pidfd: left.pidfd.map(Passed::Held),
            fate: left.fate,
        };
        HandedProcesses {
            file_limit: inherit::file_limit(),
            processes: self.processes.into_iter().map(handed).collect(),
            hooks: self.hooks.into_iter().collect(),
            probes: self.probes.into_iter().collect(),
            left: self.left.into_iter().map(left).collect(),
            pinned: self.pinned.into_iter().collect(),
            pins_kept: self.pins_kept.into_iter().collect(),
            ears: Self::hand_over_ears(self.ears),
            signs: Self::hand_over_signs(self.signs),
        }
    }

    /// Goes on with those of the program before. Never fails: gives what is to be told at once,
    /// since it could not be told by a descriptor. `self` is as [`Processes::new`] and
    /// [`Processes::keep_pins_in`] made it.
    ///
    /// Takes the descriptors themselves and not copies, of which there may be too many.
    #[must_use]
    pub fn take_over(&mut self, handed: HandedProcesses, claim: Claim<'_>) -> Vec<Fact> {
        let mut facts = Vec::new();
        self.hooks.extend(handed.hooks);
        self.probes.extend(handed.probes);
        self.pinned.extend(handed.pinned);
        self.pins_kept.extend(handed.pins_kept);
        for process in handed.processes {
            facts.extend(self.take_over_one(process, claim));
        }
        for sign in handed.signs {
            self.follow_again(sign);
        }
        for ear in handed.ears {
            self.take_over_ear(ear, claim);
        }
        for left in handed.left {
            let pidfd = left.pidfd.map(|pidfd| pidfd.take(claim));
            let pidfd = pidfd.and_then(Result::ok).filter(|fd| is_pidfd(fd, None));
            let (group, fate) = (left.group, left.fate);
            let rest = Left { group, pidfd, fate };
            self.left.insert((left.child, left.run), rest);
        }
        facts
    }

    /// Has children copy few descriptors again: while all that the program before had open was
    /// still open under its numbers, there were only high ones.
    pub fn take_low_numbers(&mut self) {
        self.standard.lower();
    }

    fn take_over_one(&mut self, handed: HandedProcess, claim: Claim<'_>) -> Option<Fact> {
        let HandedProcess {
            owner,
            pid,
            start_ticks,
            pidfd,
            parent,
            phase,
        } = handed;
        let passed = pidfd.take(claim);
        let pidfd = match passed {
            Ok(pidfd) if is_pidfd(&pidfd, Some(pid)) => Ok(pidfd),
            Ok(_) | Err(_) => find_again(pid, start_ticks),
        };
        let watched = pidfd.and_then(|pidfd| {
            let token = self.next_token();
            match phase {
                Phase::Live => self.exits.watch(&pidfd, token)?,
                Phase::Ended => {}
            }
            Ok((pidfd, token))
        });
        let (pidfd, token) = match watched {
            Ok(watched) => watched,
            Err(error) => {
                tracing::error!(pid, %error, "a process is lost on the way to another program");
                if let Owner::Hook(child, hook) = &owner {
                    self.hooks.remove(&(child.clone(), *hook));
                }
                return lost(owner, phase);
            }
        };
        let process = Process {
            pid,
            start_ticks,
            pidfd,
            token,
            parent,
            phase,
        };
        if let Owner::Run(child, run) = &owner {
            self.cgroups.find(&self.server_id, child, *run, pid);
        }
        self.enter(owner, process);
        None
    }
}

/// What is told of a process that cannot be waited for any more.
fn lost(owner: Owner, phase: Phase) -> Option<Fact> {
    match (owner, phase) {
        (_, Phase::Ended) => None,
        (Owner::Run(child, run), Phase::Live) => Some(Fact::Exited {
            child,
            run,
            exit: Exit::Unknown,
            circumstances: Circumstances::default(),
        }),
        (Owner::Probe(job), Phase::Live) => Some(Fact::Probed {
            job,
            result: Err(NOT_KNOWN.to_owned()),
        }),
        (Owner::Hook(child, hook), Phase::Live) => Some(Fact::HookFinished {
            child,
            hook,
            result: Err(HookFailure::Failed(NOT_KNOWN.to_owned())),
        }),
    }
}

fn find_again(pid: i32, start_ticks: u64) -> io::Result<OwnedFd> {
    match find(pid, start_ticks)? {
        Found::Process(pidfd) => Ok(pidfd),
        Found::Another | Found::Nobody => Err(io::ErrorKind::NotFound.into()),
    }
}

/// Whether it is a descriptor of this process, or of one that is gone.
fn is_pidfd(fd: &OwnedFd, pid: Option<i32>) -> bool {
    let number: RawFd = fd.as_raw_fd();
    let Ok(text) = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")) else {
        return false;
    };
    let of = text.lines().find_map(|line| line.strip_prefix("Pid:"));
    let of = of.and_then(|pid| pid.trim().parse::<i32>().ok());
    match (of, pid) {
        (Some(of), Some(pid)) => of == pid || of == -1,
        (Some(_), None) => true,
        (None, _) => false,
    }
}
