//! Becoming another program under the same pid: what an upgrade needs of execve(2).
//!
//! - The program is a descriptor: what was checked is what is executed.
//! - Signals are blocked before, and stay so across exec: one that comes in between waits until
//!   the next program listens to it ([`Inheritance::take`](super::inherit) empties the mask).
//! - Only the descriptors named go over; every other one is closed by exec.
//! - exec ends all other threads, and waits for one that hangs in the kernel: see to it before that
//!   there is none.
//!
//! Sources: execveat(2), fcntl(2), sigprocmask(2), `pthreads(7)`.

#![allow(unsafe_code)]

use std::{
    ffi::{CString, OsString, c_char},
    fs, io,
    os::{
        fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStringExt,
    },
    ptr,
};

use rustix::{
    fs::{Mode, OFlags},
    io::FdFlags,
};

use super::{inherit::FIRST_OTHER, step};

/// Signals are blocked for this thread until this goes.
#[derive(Debug)]
pub struct SignalsBlocked {
    before: u64,
}

impl SignalsBlocked {
    /// Blocks all that can be. Threads that were started before still hear of them.
    #[must_use]
    pub fn now() -> Self {
        let mut before = 0;
        step::set_mask(&u64::MAX, &raw mut before);
        Self { before }
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        step::set_mask(&self.before, ptr::null_mut());
    }
}

/// Blocks all signals for this thread for good: for threads that only wait for disks, so that the
/// thread that listens to signals hears of all of them.
pub fn hear_no_signals() {
    step::set_mask(&u64::MAX, ptr::null_mut());
}

/// Whether another thread of this process would hear of a TERM.
#[must_use]
pub fn others_hear_signals() -> bool {
    let own = rustix::thread::gettid().as_raw_nonzero().get().to_string();
    let hears = |thread: &fs::DirEntry| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
        let blocked = blocked.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        blocked.is_some_and(|mask| mask & (1 << (libc::SIGTERM - 1)) == 0)
    };
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten();
    threads
        .flatten()
        .any(|thread| thread.file_name() != *own && hears(&thread))
}

/// The program that runs here, whatever became of its file.
///
/// # Errors
///
/// `/proc` is not there, or no descriptor is left.
pub fn own_program() -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    Ok(rustix::fs::open("/proc/self/exe", flags, Mode::empty())?)
}

/// Becomes this program, with these arguments and this environment. `kept` stay open under their
/// numbers, `program` too: an interpreter reads its script through it.
///
/// Returns only on failure, and then all is as before.
pub fn become_program(
    program: RawFd,
    arguments: Vec<OsString>,
    environment: Vec<OsString>,
    kept: &[RawFd],
) -> io::Error {
    let strings = |all: Vec<OsString>| -> io::Result<Vec<CString>> {
        let string = |text: OsString| CString::new(text.into_vec()).map_err(io::Error::other);
        all.into_iter().map(string).collect()
    };
    let (arguments, environment) = match (strings(arguments), strings(environment)) {
        (Ok(arguments), Ok(environment)) => (arguments, environment),
        (Err(error), _) | (_, Err(error)) => return error,
    };
    let pointers = |strings: &[CString]| -> Vec<*const c_char> {
        let all = strings.iter().map(|string| string.as_ptr());
        all.chain([ptr::null()]).collect()
    };
    let (argv, envp) = (pointers(&arguments), pointers(&environment));
    let mark = |flags: FdFlags| -> io::Result<()> {
        for number in kept.iter().chain([&program]) {
            // SAFETY: borrowed for one call, which fails when there is no such descriptor.
            let fd = unsafe { BorrowedFd::borrow_raw(*number) };
            rustix::io::fcntl_setfd(fd, flags)?;
        }
        Ok(())
    };
    let error = match mark(FdFlags::empty()) {
        // SAFETY: both arrays end with a null pointer, and they and the strings they point to live
        // until the call returns, if it does; the path is an empty string.
        Ok(()) => unsafe {
            libc::syscall(
                libc::SYS_execveat,
                program,
                c"".as_ptr(),
                argv.as_ptr(),
                envp.as_ptr(),
                libc::AT_EMPTY_PATH,
            );
            io::Error::last_os_error()
        },
        Err(error) => error,
    };
    if let Err(error) = mark(FdFlags::CLOEXEC) {
        tracing::error!(%error, "descriptors may be left to children");
    }
    error
}

/// Whether there is a descriptor of this number.
#[must_use]
pub fn is_open(number: RawFd) -> bool {
    if number < FIRST_OTHER {
        return false;
    }
    // SAFETY: borrowed for one call, which fails when there is no such descriptor.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_getfd(fd).is_ok()
}

/// A descriptor that the program before has left open under this number, once more.
///
/// # Errors
///
/// There is none, or no descriptor is left.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number < FIRST_OTHER {
        return Err(io::Error::other(format!(
            "descriptor {number} is no such one"
        )));
    }
    // SAFETY: borrowed for one call, which fails when there is no such descriptor.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, FIRST_OTHER)?)
}

/// Becomes the owner of a descriptor that the program before has left open for us.
///
/// # Errors
///
/// There is none.
pub fn inherited_itself(number: RawFd) -> io::Result<OwnedFd> {
    if number < FIRST_OTHER {
        return Err(io::Error::other(format!(
            "descriptor {number} is no such one"
        )));
    }
    // SAFETY: borrowed for one call, which fails when there is no such descriptor.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC)?;
    // SAFETY: it is open, and nothing in this program has it: whoever left it open has said which
    // numbers are its own, and they are taken up once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// What tools call this process: exec by a descriptor leaves its number there.
pub fn own_name() -> Option<String> {
    let name = fs::read_to_string("/proc/self/comm").ok()?;
    Some(name.trim_end().to_owned())
}

/// Has tools call this process so.
pub fn call_self(name: &str) {
    if let Ok(name) = CString::new(name)
        && let Err(error) = rustix::thread::set_name(&name)
    {
        tracing::debug!(%error, "the process has no name");
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn what_cannot_be_executed_changes_nothing() {
        let file = fs::File::open("/proc/self/status").unwrap();
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let error = become_program(
            file.as_raw_fd(),
            vec!["x".into()],
            Vec::new(),
            &[reader.as_raw_fd()],
        );
        assert_eq!(error.raw_os_error(), Some(libc::EACCES), "{error}");
        let flags = rustix::io::fcntl_getfd(&reader).unwrap();
        assert_eq!(flags, FdFlags::CLOEXEC);
        let nul = OsString::from("a\0b");
        become_program(file.as_raw_fd(), vec![nul], Vec::new(), &[]);
    }

    #[test]
    fn a_number_that_is_not_open_is_no_descriptor_and_the_standard_three_are_not_given_away() {
        for number in [0, 1, 2, -1, 1_000_000] {
            assert!(inherited(number).is_err(), "{number}");
            assert!(inherited_itself(number).is_err(), "{number}");
        }
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let again = inherited(reader.as_raw_fd()).unwrap();
        assert_ne!(again.as_raw_fd(), reader.as_raw_fd());
    }

    #[test]
    fn a_blocked_signal_waits() {
        let mask = || {
            let status = fs::read_to_string("/proc/thread-self/status").unwrap();
            let line = status.lines().find(|line| line.starts_with("SigBlk:"));
            u64::from_str_radix(line.unwrap().rsplit('\t').next().unwrap(), 16).unwrap()
        };
        let before = mask();
        let blocked = SignalsBlocked::now();
        let term = 1 << (libc::SIGTERM - 1);
        assert_ne!(mask() & term, 0);
        drop(blocked);
        assert_eq!(mask(), before);
    }
}
