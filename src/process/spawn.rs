//! From a list of steps to a process: clone, the steps in the child, the first failure back.
//!
//! The child shares our memory and runs on a stack of its own while this thread waits
//! (`CLONE_VM | CLONE_VFORK`, as posix_spawn(3) does it), so a start costs the same however much
//! memory the server has. Its pidfd comes with it (`CLONE_PIDFD`): there is no moment in which
//! the pid stands for something else.
//!
//! - Everything a step needs is prepared before. The child allocates nothing, takes no lock,
//!   cannot panic, and makes only calls that signal-safety(7) allows.
//! - All signals are blocked around it, the two of the C library included, so that no handler of
//!   ours runs in the child; it empties the mask when all dispositions are the default again.
//! - When the list begins with [`Step::ForgetAbove`] the descriptor table is shared until that
//!   step has copied the few low descriptors: a start then costs the same however many pidfds
//!   the server holds. The table is never written to while it is shared.
//!
//! Absent on purpose: what the steps are (`step`), and in which order they are taken (`start`).
//!
//! Sources: clone(2), vfork(2), close_range(2), signal-safety(7).

#![allow(unsafe_code)]

use std::{
    ffi::{c_int, c_long, c_void},
    io,
    os::fd::{AsFd, FromRawFd, OwnedFd},
    ptr,
    sync::atomic::{AtomicI32, AtomicUsize, Ordering::Relaxed},
};

use rustix::{
    io::Errno,
    process::{WaitId, WaitIdOptions, waitid},
};

use super::{
    stack::Stack,
    step::{Report, Step, set_mask},
};

/// The status of a child that did not get to exec; nobody is shown it.
const NOT_EXECUTED: c_int = 127;

/// A process that has become its program.
#[derive(Debug)]
pub(super) struct Spawned {
    /// Its number.
    pub(super) pid: i32,
    /// Its descriptor.
    pub(super) pidfd: OwnedFd,
    /// When it was started, in clock ticks since boot, if [`Step::Identify`] was among the steps.
    pub(super) start_ticks: u64,
}

/// Why there is no process. What had been cloned was reaped.
#[derive(Debug, thiserror::Error)]
pub(super) enum SpawnError {
    /// There was never one.
    #[error("no new process: {0}")]
    Clone(io::Error),
    /// It did not get past a step.
    #[error("step {step} failed: {error}")]
    Step {
        /// The index of the step.
        step: usize,
        /// Why.
        error: io::Error,
        /// For [`Step::Exec`]: the index of the candidate it is about.
        candidate: usize,
    },
}

/// Starts processes, one at a time.
#[derive(Debug)]
pub(super) struct Spawner {
    stack: Stack,
}

/// What parent and child both see; for the atomics see [`Report`].
struct Shared<'a> {
    steps: &'a [Step<'a>],
    errno: AtomicI32,
    step: AtomicUsize,
    report: Report,
}

impl Spawner {
    /// # Errors
    /// No memory for the stack.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            stack: Stack::new()?,
        })
    }

    /// Whether [`Step::ForgetAbove`] works here: close_range(2) is there (5.9) and no sandbox
    /// forbids it.
    pub(super) fn can_forget() -> bool {
        // SAFETY: closes a descriptor that cannot exist.
        unsafe { libc::syscall(libc::SYS_close_range, c_long::from(i32::MAX), i32::MAX, 0) == 0 }
    }

    /// Clones, lets the child take the steps, and returns when it has become its program.
    ///
    /// # Errors
    /// [`SpawnError`]; there is no process then.
    pub(super) fn spawn(&mut self, steps: &[Step<'_>]) -> Result<Spawned, SpawnError> {
        let shared = Shared {
            steps,
            errno: AtomicI32::new(0),
            step: AtomicUsize::new(0),
            report: Report::default(),
        };
        let mut flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
        if let Some(Step::ForgetAbove(_)) = steps.first() {
            flags |= libc::CLONE_FILES;
        }
        let mut pidfd: c_int = -1;
        let blocked = BlockedSignals::new();
        // SAFETY: `child` follows the rules at the head of this module. The stack is large
        // enough for it and used by nobody else, since `CLONE_VFORK` holds this thread until the
        // child has called execve or _exit; `shared` and what it points to live longer than that.
        let pid = unsafe {
            libc::clone(
                child,
                self.stack.top(),
                flags,
                (&raw const shared).cast_mut().cast::<c_void>(),
                &raw mut pidfd,
            )
        };
        let cloned = if pid < 0 {
            Err(SpawnError::Clone(io::Error::last_os_error()))
        } else {
            // SAFETY: clone succeeded, so the kernel put a new descriptor there that is ours.
            Ok(unsafe { OwnedFd::from_raw_fd(pidfd) })
        };
        drop(blocked);
        let pidfd = cloned?;
        let errno = shared.errno.load(Relaxed);
        if errno == 0 {
            let start_ticks = shared.report.start_ticks.load(Relaxed);
            return Ok(Spawned {
                pid,
                pidfd,
                start_ticks,
            });
        }
        reap_failed(&pidfd);
        Err(SpawnError::Step {
            step: shared.step.load(Relaxed),
            error: io::Error::from_raw_os_error(errno),
            candidate: shared.report.candidate.load(Relaxed),
        })
    }
}

/// Waits for a child that has called `_exit`: it is about to be a zombie, or is one.
fn reap_failed(pidfd: &OwnedFd) {
    let end = WaitIdOptions::EXITED;
    while let Err(Errno::INTR) = waitid(WaitId::PidFd(pidfd.as_fd()), end) {}
}

/// All signals blocked on this thread, until dropped.
///
/// By the system call itself: the C library's functions leave its own two signals out.
struct BlockedSignals {
    before: u64,
}

impl BlockedSignals {
    fn new() -> Self {
        let all = u64::MAX;
        let mut before = 0_u64;
        set_mask(&all, &raw mut before);
        Self { before }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        set_mask(&self.before, ptr::null_mut());
    }
}

/// Where the child begins. Nothing in here allocates, locks, indexes or unwinds.
extern "C" fn child(shared: *mut c_void) -> c_int {
    // SAFETY: `spawn` passes a pointer to its `Shared`, which it keeps until we are gone.
    let shared = unsafe { &*shared.cast_const().cast::<Shared<'_>>() };
    let mut entered = None;
    for (index, step) in shared.steps.iter().enumerate() {
        if let Err(errno) = step.take(&shared.report) {
            shared.step.store(index, Relaxed);
            shared.errno.store(errno, Relaxed);
            break;
        }
        if let Step::Enter(entry) = step {
            entered = Some(entry);
        }
    }
    // Only who could not be executed comes here.
    if let Some(entry) = entered {
        entry.withdraw();
    }
    // SAFETY: ends this process only, and runs nothing of ours.
    unsafe { libc::_exit(NOT_EXECUTED) }
}
