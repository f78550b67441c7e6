//! Signals to a whole process group, without ever reaching a stranger's.
//!
//! A group's number may be used again once the group is empty. From Linux 6.9 on a pidfd stands
//! for its process's group as well (`PIDFD_SIGNAL_PROCESS_GROUP`), even after the leader was
//! reaped. Before, kill(2) is used, and only while somebody holds the number: our unreaped
//! leader, or for an adopted run a leader that was seen alive just before.
//!
//! Sources: pidfd_send_signal(2), kill(2), getpgid(2).

#![allow(unsafe_code)]

use std::{
    ffi::c_long,
    io,
    os::fd::{AsFd, AsRawFd},
    ptr,
};

use rustix::process::{PidfdFlags, getpid, pidfd_open};

use super::identity;

/// `PIDFD_SIGNAL_PROCESS_GROUP`.
const PROCESS_GROUP: u32 = 1 << 2;

/// How groups are signalled on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GroupSignals {
    /// Through the leader's pidfd.
    Pidfd,
    /// By number.
    Kill,
}

impl GroupSignals {
    /// Asks the kernel, by a signal that is none.
    pub(super) fn detect() -> Self {
        let Ok(own) = pidfd_open(getpid(), PidfdFlags::empty()) else {
            return Self::Kill;
        };
        match signal_group(&own, 0) {
            Ok(()) => Self::Pidfd,
            // We lead no group, but the question was understood.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Self::Pidfd,
            Err(_) => Self::Kill,
        }
    }

    /// As `info` shows it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Pidfd => "pidfd",
            Self::Kill => "kill",
        }
    }
}

/// Whether a group has members, zombies included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Members {
    /// At least one.
    Some,
    /// None.
    None,
}

/// Sends a signal to the group of a pidfd's process (6.9).
///
/// # Errors
/// What pidfd_send_signal(2) says.
pub(super) fn signal_group(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    send(pidfd, signal, PROCESS_GROUP)
}

/// Sends a signal to a pidfd's process alone; 0 asks whether it is there, be it as a zombie.
///
/// # Errors
/// What pidfd_send_signal(2) says.
pub(super) fn signal_process(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    send(pidfd, signal, 0)
}

fn send(pidfd: impl AsFd, signal: i32, flags: u32) -> io::Result<()> {
    // SAFETY: the descriptor is open for the length of the call, and no signal data is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            c_long::from(pidfd.as_fd().as_raw_fd()),
            signal,
            ptr::null::<libc::siginfo_t>(),
            flags,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sends a signal to the group of this number. Only for who knows that it is held.
///
/// # Errors
/// What kill(2) says.
pub(super) fn signal_number(group: i32, signal: i32) -> io::Result<()> {
    let unknown = || io::Error::from_raw_os_error(libc::EINVAL);
    let group = identity::number(group).ok_or_else(unknown)?;
    // SAFETY: kill(2) touches no memory of ours; the number is neither 0 nor 1, which would stand
    // for our own group and for everybody.
    let result = unsafe { libc::kill(-group.as_raw_nonzero().get(), signal) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The group that a process is in: 0 for one that is led from outside our PID namespace, for
/// which a safe wrapper's number, that is never 0, has no room.
///
/// # Errors
/// What getpgid(2) says: `ESRCH` when there is no such process.
pub(super) fn of(pid: i32) -> io::Result<i32> {
    // SAFETY: getpgid(2) takes and returns a number and touches no memory of ours.
    let group = unsafe { libc::getpgid(pid) };
    if group >= 0 {
        Ok(group)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Whether the group of a pidfd's process has members (6.9).
///
/// # Errors
/// What pidfd_send_signal(2) says: `EINVAL` on older kernels.
pub(super) fn probe_group(pidfd: impl AsFd) -> io::Result<Members> {
    members(signal_group(pidfd, 0))
}

/// Whether a group of this number has members. It may be a stranger's.
///
/// # Errors
/// What kill(2) says.
pub(super) fn probe_number(group: i32) -> io::Result<Members> {
    members(signal_number(group, 0))
}

fn members(probe: io::Result<()>) -> io::Result<Members> {
    match probe {
        Ok(()) => Ok(Members::Some),
        Err(error) => match error.raw_os_error() {
            Some(libc::ESRCH) => Ok(Members::None),
            // There, but not ours to signal.
            Some(libc::EPERM) => Ok(Members::Some),
            Some(_) | None => Err(error),
        },
    }
}
