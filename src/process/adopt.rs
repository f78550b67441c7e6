//! Taking back a process that an earlier server started.
//!
//! A recorded pid is believed only with its start time, which is read again when the pidfd is
//! open. A pin needs no such proof: it is made with the pidfd of the process itself. What cannot
//! be told is said to be in doubt, never gone: a second process for a child is worse than none
//! (I1).
//!
//! Absent on purpose: the boot id, without which a pid means nothing; whoever reads the record
//! compares it.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid},
};

use super::{
    Owner, Parent, Phase, PinName, Process, Processes, Started, identity,
    stop::{Fate, Left},
    wait,
};
use crate::spec::{ChildName, Exit, RunId};

/// What became of a recorded process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Adoption {
    /// It lives, and is a run like any other now: its end will be told.
    Live,
    /// It has ended. If something is left of its group, [`Processes::clear`] will find it; if it
    /// is a zombie of ours, [`Processes::reap`] or `clear` lets it go.
    Gone(Exit),
    /// That cannot be told, for the reason given. Nothing may be started in its place.
    Doubt(String),
}

impl Processes {
    /// Takes back the process of a run, known by its pid and its start time (field 22 of
    /// `/proc/PID/stat`, in clock ticks since boot).
    pub fn adopt(&mut self, child: &ChildName, run: RunId, pid: i32, start_ticks: u64) -> Adoption {
        if self.live_run(child).is_some() {
            return Adoption::Doubt(format!("another run of `{child}` lives"));
        }
        let name = PinName { pid, start_ticks };
        let found = match self.pins.find(name) {
            Some(pidfd) => {
                self.pinned.insert((child.clone(), run), name);
                Ok(Found::Process(pidfd))
            }
            None => find(pid, start_ticks),
        };
        match found {
            Ok(Found::Process(pidfd)) => self.take_back(child, run, name, pidfd),
            Ok(Found::Nobody) => {
                let left = Left {
                    group: pid,
                    pidfd: None,
                    fate: Fate::Spared,
                };
                self.leave(child, run, left);
                Adoption::Gone(Exit::Unknown)
            }
            // Its number was given away, so its group is empty.
            Ok(Found::Another) => Adoption::Gone(Exit::Unknown),
            Err(error) => Adoption::Doubt(format!(
                "process {pid} of `{child}` cannot be looked at: {error}"
            )),
        }
    }

    fn take_back(
        &mut self,
        child: &ChildName,
        run: RunId,
        name: PinName,
        pidfd: OwnedFd,
    ) -> Adoption {
        let PinName { pid, start_ticks } = name;
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        let status = waitid(WaitId::PidFd(pidfd.as_fd()), options);
        let (parent, exit) = match status {
            Ok(Some(status)) => (Parent::Us, Some(wait::exit(&status))),
            Ok(None) => (Parent::Us, None),
            Err(_) => {
                let ended = has_ended(&pidfd);
                let exit = ended.then(|| self.exit_of_other(&pidfd, pid, start_ticks));
                if let Some(exit) = exit.flatten() {
                    let left = Left {
                        group: pid,
                        pidfd: Some(pidfd),
                        fate: Fate::Spared,
                    };
                    self.leave(child, run, left);
                    return Adoption::Gone(exit);
                }
                // If it has ended, its zombie does not tell us how: that is told once it is reaped.
                (Parent::Other, None)
            }
        };
        let token = self.next_token();
        let phase = match exit {
            Some(_) => Phase::Ended,
            None => {
                if let Err(error) = self.exits.watch(&pidfd, token) {
                    let why = format!("process {pid} of `{child}` cannot be watched: {error}");
                    return Adoption::Doubt(why);
                }
                Phase::Live
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
        self.enter(Owner::Run(child.clone(), run), process);
        self.cgroups.find(&self.server_id, child, run, pid);
        // If it was not pinned before.
        self.pin(child, run, Started { pid, start_ticks });
        exit.map_or(Adoption::Live, Adoption::Gone)
    }
}

/// Whether a recorded process is there and has not ended.
#[must_use]
pub fn is_alive(pid: i32, start_ticks: u64) -> bool {
    matches!(find(pid, start_ticks), Ok(Found::Process(pidfd)) if !has_ended(&pidfd))
}

/// Who has a recorded number.
pub(super) enum Found {
    /// The one it was recorded for.
    Process(OwnedFd),
    /// Another one, which came later.
    Another,
    /// Nobody.
    Nobody,
}

/// # Errors
/// It is there, or may be, but cannot be told from others.
pub(super) fn find(pid: i32, start_ticks: u64) -> io::Result<Found> {
    let Some(number) = identity::number(pid) else {
        return Ok(Found::Another);
    };
    if number == rustix::process::getpid() {
        return Ok(Found::Another);
    }
    let pidfd = match pidfd_open(number, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(Errno::SRCH) => return Ok(Found::Nobody),
        // The number of a thread, so not of a process that led a group.
        Err(Errno::INVAL | Errno::NOENT) => return Ok(Found::Another),
        Err(error) => return Err(error.into()),
    };
    // Only now: while the descriptor is open and the process not reaped, the number is its own.
    match identity::stat(pid) {
        Ok(stat) if stat.start_ticks == start_ticks => Ok(Found::Process(pidfd)),
        Ok(_) => Ok(Found::Another),
        Err(_) if has_ended(&pidfd) => Ok(Found::Nobody),
        Err(error) => Err(error),
    }
}

/// Whether a process has ended, be it that its zombie is still there. Not the state that `/proc`
/// shows: that is a zombie's too when only the main thread has ended.
fn has_ended(pidfd: &OwnedFd) -> bool {
    await_end(pidfd, Duration::ZERO)
}

/// Waits so long until a process has ended, and says whether it has.
pub(super) fn await_end(pidfd: &OwnedFd, time: Duration) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    let time = Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    };
    matches!(poll(&mut fds, Some(&time)), Ok(ready) if ready > 0)
}
