//! How a process ended, asked of its pidfd: also for one that is not our child, and long after.
//!
//! Since 6.15 the kernel keeps the status with the pidfd's inode once the process was *reaped*,
//! by whomever, for as long as somebody has that inode: a descriptor, or a mount (`pins`). Before
//! it was reaped the answer is that there is none yet; for one of another the pidfd then polls as
//! readable (it has ended) but not as hung up (it was reaped).
//!
//! Older kernels know no such question, or know it without the exit, and answer as if there were
//! none yet for ever. So it is tried out once, with a child of our own.
//!
//! Sources: `include/uapi/linux/pidfd.h`, `fs/pidfs.c`; pidfd_open(2), clone(2).

#![allow(unsafe_code)]

use std::{
    ffi::{c_int, c_void},
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    ptr,
    sync::OnceLock,
};

use rustix::{
    io::Errno,
    process::{PidfdFlags, WaitId, WaitIdOptions, getpid, pidfd_open, waitid},
};

use super::{identity, stack::Stack, step, strays};
use crate::spec::Exit;

/// `PIDFD_INFO_EXIT`: asked for, and set in the answer when the status is in it.
const INFO_EXIT: u64 = 1 << 3;

/// `PIDFD_GET_INFO`: `_IOWR(0xFF, 11, struct pidfd_info)` with the first version's 64 bytes.
const GET_INFO: libc::Ioctl = libc::_IOWR::<PidfdInfo>(0xff, 11);

/// What the child ends with that the question is tried out with.
const TRIED_CODE: c_int = 7;

/// `struct pidfd_info`, first version.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroupid: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    /// Real, effective, saved and file system's user and group.
    owners: [u32; 8],
    exit_code: i32,
}

/// How the ends of other's children are learnt on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExitSource {
    /// The pidfd tells, once the process was reaped.
    PidfdInfo,
    /// Only a zombie tells, while it is there.
    ZombieStatus,
}

impl ExitSource {
    /// Asks the kernel, once for this process.
    pub(super) fn detect() -> Self {
        static FOUND: OnceLock<ExitSource> = OnceLock::new();
        *FOUND.get_or_init(|| match try_out() {
            Ok(Some(Exit::Code(TRIED_CODE))) => Self::PidfdInfo,
            Ok(_) => Self::ZombieStatus,
            Err(error) => {
                tracing::debug!(%error, "exits are not told by pidfds");
                Self::ZombieStatus
            }
        })
    }

    /// As `info` shows it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::PidfdInfo => "pidfd info",
            Self::ZombieStatus => "zombie's status",
        }
    }
}

/// How the process of a pidfd ended, if it was reaped and the kernel keeps it.
pub(super) fn exit(pidfd: impl AsFd) -> Option<Exit> {
    match ask(pidfd) {
        Ok(info) => (info.mask & INFO_EXIT != 0).then(|| identity::exit(info.exit_code)),
        Err(_) => None,
    }
}

/// The number of the process of a pidfd, as we see it.
///
/// # Errors
/// It is no pidfd, the process was reaped before anybody could ask, or the kernel is older.
pub(super) fn pid(pidfd: impl AsFd) -> io::Result<i32> {
    Ok(ask(pidfd)?.pid.cast_signed())
}

fn ask(pidfd: impl AsFd) -> io::Result<PidfdInfo> {
    let mut info = PidfdInfo {
        mask: INFO_EXIT,
        ..PidfdInfo::default()
    };
    let fd = pidfd.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open for the length of the call; the request's number says how
    // large the structure is that the kernel may write to.
    match unsafe { libc::ioctl(fd, GET_INFO, &raw mut info) } {
        0 => Ok(info),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes a child that ends at once, reaps it, and asks how it ended.
fn try_out() -> io::Result<Option<Exit>> {
    // Kernels that do not know the question at all need no child.
    ask(pidfd_open(getpid(), PidfdFlags::empty())?)?;
    let mut stack = Stack::new()?;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    let mut pidfd: c_int = -1;
    // Nobody may take it for a stray and reap it.
    let _started = strays::started();
    let mut before = 0_u64;
    step::set_mask(&u64::MAX, &raw mut before);
    // SAFETY: the child ends at once, on a stack of its own that is used by nobody else, since
    // `CLONE_VFORK` holds this thread until it has; with all signals blocked nothing else of ours
    // runs in it.
    let cloned = unsafe {
        libc::clone(
            end_at_once,
            stack.top(),
            flags,
            ptr::null_mut(),
            &raw mut pidfd,
        )
    };
    let error = io::Error::last_os_error();
    step::set_mask(&before, ptr::null_mut());
    if cloned < 0 {
        return Err(error);
    }
    // SAFETY: clone succeeded, so the kernel put a new descriptor there that is ours.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let end = WaitIdOptions::EXITED;
    while let Err(Errno::INTR) = waitid(WaitId::PidFd(pidfd.as_fd()), end) {}
    Ok(exit(&pidfd))
}

extern "C" fn end_at_once(_nothing: *mut c_void) -> c_int {
    // SAFETY: ends this process only, and runs nothing of ours.
    unsafe { libc::_exit(TRIED_CODE) }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::process::Pid;

    use super::*;

    #[test]
    fn the_structure_is_as_large_as_the_kernels_first() {
        assert_eq!(size_of::<PidfdInfo>(), 64);
        assert_eq!(GET_INFO, 0xc040_ff0b);
    }

    #[test]
    fn a_pidfd_tells_the_number_and_after_the_reaping_the_end() {
        if ExitSource::detect() == ExitSource::ZombieStatus {
            return super::super::tests::skip("this kernel's pidfds do not tell of exits");
        }
        for (script, told) in [
            ("exit 0", Exit::Code(0)),
            ("exit 255", Exit::Code(255)),
            ("kill -ABRT $$", Exit::Signal(6)),
        ] {
            let mut child = Command::new("sh").args(["-c", script]).spawn().unwrap();
            let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
            assert_eq!(pid(&pidfd).unwrap().cast_unsigned(), child.id());
            let end = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            waitid(WaitId::PidFd(pidfd.as_fd()), end).unwrap();
            assert_eq!(exit(&pidfd), None, "a zombie's is not there yet");
            child.wait().unwrap();
            assert_eq!(exit(&pidfd), Some(told));
            assert_eq!(exit(&pidfd), Some(told), "and stays");
        }
    }

    #[test]
    fn what_is_no_pidfd_tells_nothing() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(exit(&null), None);
        assert!(pid(&null).is_err());
    }
}
