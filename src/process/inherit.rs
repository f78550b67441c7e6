//! What the server got from whoever started it, and what of that its children get.
//!
//! - Descriptors above 2 are closed by exec, whatever they are: no child gets a stray one.
//! - The soft limit of open files is raised to the hard one for the server, which holds a pidfd a
//!   child; children get the limit that the server was started with, since programs that use
//!   select(2) or close every possible descriptor suffer from a large one.
//! - The environment is passed on, less what concerns the server alone: its own notification
//!   socket, passed sockets, watchdog, and our own variables.
//! - The signal mask of the calling thread is emptied: a blocked `SIGCHLD` would hide the ends of
//!   orphans.
//! - Orphans of our children become our children (`PR_SET_CHILD_SUBREAPER`), so that they are
//!   seen and reaped.
//!
//! Sources: prctl(2), close_range(2), getrlimit(2), sd_notify(3), sd_listen_fds(3).

#![allow(unsafe_code)]

use std::{
    ffi::{CString, OsStr, OsString, c_long},
    fs, io,
    os::{
        fd::{BorrowedFd, RawFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    ptr,
    sync::OnceLock,
};

use rustix::{
    io::FdFlags,
    process::{Resource, Rlimit, getpid, getrlimit, set_child_subreaper, setrlimit},
};

use super::{handover::FileLimit, step};

/// The first descriptor that is not one of the standard three.
pub(super) const FIRST_OTHER: RawFd = 3;

/// The first descriptor that a start may be made with: those below may be asked for by a child.
pub(super) const FIRST_OWN: RawFd = 10;

/// The limit that this process was started with. Per process, like the limit itself: whoever
/// raises it first has seen the original.
static FILE_LIMIT: OnceLock<Rlimit> = OnceLock::new();

/// What children get of what the server has.
#[derive(Debug)]
pub(super) struct Inheritance {
    /// `NAME=value`, as execve(2) takes it.
    pub(super) environment: Vec<CString>,
    /// `PATH`, if there is one.
    pub(super) path: Option<OsString>,
    /// The limit of open files the server was started with.
    pub(super) file_limit: libc::rlimit,
}

impl Inheritance {
    /// Prepares this process and notes what its children get.
    ///
    /// # Errors
    /// `/proc` is not there, or the kernel lacks what Linux 5.10 has.
    pub(super) fn take() -> io::Result<Self> {
        // Somebody may have started us with signals blocked, and then no orphan's end would be
        // heard of.
        step::set_mask(&0, ptr::null_mut());
        set_child_subreaper(Some(getpid()))?;
        close_on_exec()?;
        let original = FILE_LIMIT.get_or_init(raise_file_limit);
        Ok(Self {
            environment: passed_on()
                .filter_map(|(name, value)| variable(name, &value))
                .collect(),
            path: std::env::var_os("PATH"),
            file_limit: libc::rlimit {
                rlim_cur: original.current.unwrap_or(libc::RLIM_INFINITY),
                rlim_max: original.maximum.unwrap_or(libc::RLIM_INFINITY),
            },
        })
    }
}

/// Raises the limit of open files as far as it goes, and says how many there may be. Whatever is
/// opened before is opened under the limit that the server was started with, so: first of all.
#[must_use]
pub fn open_files_max() -> u64 {
    FILE_LIMIT.get_or_init(raise_file_limit);
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// The limit that children get.
pub(super) fn file_limit() -> FileLimit {
    let original = FILE_LIMIT.get_or_init(raise_file_limit);
    FileLimit {
        current: original.current,
        maximum: original.maximum,
    }
}

/// Has children get this limit: of the program before in this process.
pub(super) fn resume_file_limit(limit: FileLimit) {
    let FileLimit { current, maximum } = limit;
    let kept = FILE_LIMIT.set(Rlimit { current, maximum });
    debug_assert!(
        kept.is_ok() || file_limit() == limit,
        "it is asked for before"
    );
}

/// The variables that children get.
pub(super) fn passed_on() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| is_passed_on(name))
}

/// Whether children get this variable of the server's.
fn is_passed_on(name: &OsStr) -> bool {
    const PREFIXES: [&[u8]; 3] = [b"LISTEN_", b"WATCHDOG_", b"SUPERVISOR_RS_"];
    let name = name.as_bytes();
    name != b"NOTIFY_SOCKET" && !PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

fn variable(name: OsString, value: &OsStr) -> Option<CString> {
    let mut text = name.into_vec();
    text.push(b'=');
    text.extend_from_slice(value.as_bytes());
    CString::new(text).ok()
}

/// Raises the soft limit to the hard one; returns what it was. Refusal leaves it as it was.
fn raise_file_limit() -> Rlimit {
    let original = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: original.maximum,
        maximum: original.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "limit of open files stays as it is");
    }
    original
}

/// Marks every descriptor above 2 as closed by exec.
fn close_on_exec() -> io::Result<()> {
    // SAFETY: changes nothing but the flag of descriptors, which nobody relies on to be absent.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            c_long::from(FIRST_OTHER),
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    // The flag is from 5.11; before, or where a sandbox forbids the call: one by one.
    if result == 0 {
        Ok(())
    } else {
        close_on_exec_each()
    }
}

fn close_on_exec_each() -> io::Result<()> {
    for entry in fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let Some(number) = name.to_str().and_then(|name| name.parse::<RawFd>().ok()) else {
            continue;
        };
        if number >= FIRST_OTHER {
            // SAFETY: borrowed for one call that fails when there is no such descriptor (any
            // more), as there is none for the one that read this directory.
            let fd = unsafe { BorrowedFd::borrow_raw(number) };
            let _ = rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_open_files_is_as_high_as_it_goes() {
        let max = open_files_max();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(Some(max), limit.maximum.or(Some(u64::MAX)));
        assert_eq!(open_files_max(), max, "asking again changes nothing");
    }

    #[test]
    fn what_concerns_the_server_alone_is_not_passed_on() {
        for name in [
            "NOTIFY_SOCKET",
            "LISTEN_FDS",
            "LISTEN_PID",
            "LISTEN_FDNAMES",
            "WATCHDOG_USEC",
            "WATCHDOG_PID",
            "SUPERVISOR_RS_RUN",
            "SUPERVISOR_RS_ON",
        ] {
            assert!(!is_passed_on(OsStr::new(name)), "{name}");
        }
        for name in [
            "PATH",
            "HOME",
            "NOTIFY_SOCKET_2",
            "LISTENER",
            "WATCHDOG",
            "",
        ] {
            assert!(is_passed_on(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn an_inherited_descriptor_is_marked_either_way() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        for mark in [close_on_exec, close_on_exec_each] {
            for fd in [&reader, &writer] {
                rustix::io::fcntl_setfd(fd, FdFlags::empty()).unwrap();
            }
            mark().unwrap();
            for fd in [&reader, &writer] {
                assert_eq!(rustix::io::fcntl_getfd(fd).unwrap(), FdFlags::CLOEXEC);
            }
        }
    }

    #[test]
    fn a_value_that_is_not_text_is_passed_on_as_it_is() {
        let value = OsStr::from_bytes(b"\xff=\n");
        assert_eq!(
            variable(OsString::from("X"), value).unwrap().as_bytes(),
            b"X=\xff=\n"
        );
    }
}
