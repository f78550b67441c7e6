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
//! Absent on purpose: closures between fork and exec. A step is data, so that what runs there can
//! be read in one place; a step that appends to a record before exec will be one more variant.
//!
//! Sources: clone(2), vfork(2), close_range(2), execve(2), signal-safety(7).

#![allow(unsafe_code)]

use std::{
    ffi::{CStr, CString, c_char, c_int, c_long, c_void},
    io,
    marker::PhantomData,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr,
    sync::atomic::{AtomicI32, AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::stack::Stack;

/// How often a program that is still open for writing is tried.
///
/// A build that has just written it may hold it for an instant (ETXTBSY). The tries are made in
/// the child while the server waits, so together they stay within a few milliseconds; what is
/// busy for longer is an error that says so.
const TEXT_BUSY_TRIES: u32 = 5;

/// The pause between two such tries.
const TEXT_BUSY_PAUSE: Duration = Duration::from_millis(2);

/// The highest signal number of the kernel.
const SIGNAL_MAX: c_int = 64;

/// The size of the kernel's signal set, in bytes.
const SIGNAL_SET_BYTES: usize = 8;

/// The status of a child that did not get to exec; nobody is shown it.
const NOT_EXECUTED: c_int = 127;

/// One of the three descriptors a program begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    /// Descriptor 0.
    Input,
    /// Descriptor 1.
    Output,
    /// Descriptor 2.
    Errors,
}

impl Stream {
    const fn number(self) -> RawFd {
        match self {
            Self::Input => 0,
            Self::Output => 1,
            Self::Errors => 2,
        }
    }
}

/// What the child does, one after the other, between clone and exec.
#[derive(Debug)]
pub(super) enum Step<'a> {
    /// Take a descriptor table of one's own that holds nothing above this number.
    ForgetAbove(RawFd),
    /// Lead a process group of one's own.
    OwnGroup,
    /// Give every signal its default disposition, ignored ones included.
    DefaultSignals,
    /// Let this descriptor be one of the three.
    Stdio(BorrowedFd<'a>, Stream),
    /// Close everything but the three.
    CloseRest,
    /// Set the limit of open files (soft, hard).
    FileLimit(libc::rlimit),
    /// Go to the working directory.
    WorkDir(&'a CStr),
    /// Empty the file behind one of the three.
    Truncate(Stream),
    /// Let signals through again.
    ClearMask,
    /// Become the program; does not return.
    Exec(Exec<'a>),
}

/// What execve(2) is given.
#[derive(Debug)]
pub(super) struct Exec<'a> {
    /// Tried in this order, as execvp(3) does.
    pub(super) candidates: &'a [CString],
    /// The arguments, the name of the program first.
    pub(super) arguments: Pointers<'a>,
    /// The environment.
    pub(super) environment: Pointers<'a>,
}

/// Strings as execve(2) takes them: an array of pointers that ends with null.
#[derive(Debug)]
pub(super) struct Pointers<'a> {
    array: Vec<*const c_char>,
    strings: PhantomData<&'a CStr>,
}

impl<'a> Pointers<'a> {
    /// Points at these strings.
    pub(super) fn new(strings: impl Iterator<Item = &'a CStr>) -> Self {
        let mut array: Vec<*const c_char> = strings.map(CStr::as_ptr).collect();
        array.push(ptr::null());
        Self {
            array,
            strings: PhantomData,
        }
    }
}

/// A process that has become its program.
#[derive(Debug)]
pub(super) struct Spawned {
    /// Its number.
    pub(super) pid: i32,
    /// Its descriptor.
    pub(super) pidfd: OwnedFd,
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

/// What parent and child both see. Atomics, because the child's writes are made behind the
/// compiler's back; the parent reads them when the child is gone from this memory.
struct Shared<'a> {
    steps: &'a [Step<'a>],
    errno: AtomicI32,
    step: AtomicUsize,
    candidate: AtomicUsize,
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
            candidate: AtomicUsize::new(0),
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
            return Ok(Spawned { pid, pidfd });
        }
        reap_failed(&pidfd);
        Err(SpawnError::Step {
            step: shared.step.load(Relaxed),
            error: io::Error::from_raw_os_error(errno),
            candidate: shared.candidate.load(Relaxed),
        })
    }
}

/// Waits for a child that has called `_exit`: it is about to be a zombie, or is one.
fn reap_failed(pidfd: &OwnedFd) {
    use std::os::fd::AsFd;
    let end = WaitIdOptions::EXITED;
    while let Err(rustix::io::Errno::INTR) = waitid(WaitId::PidFd(pidfd.as_fd()), end) {}
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

fn set_mask(set: &u64, before: *mut u64) {
    // SAFETY: both point to signal sets of the size given, or to nothing. It cannot fail then.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            ptr::from_ref(set),
            before,
            SIGNAL_SET_BYTES,
        );
    }
}

/// Where the child begins. Nothing in here allocates, locks, indexes or unwinds.
extern "C" fn child(shared: *mut c_void) -> c_int {
    // SAFETY: `spawn` passes a pointer to its `Shared`, which it keeps until we are gone.
    let shared = unsafe { &*shared.cast_const().cast::<Shared<'_>>() };
    for (index, step) in shared.steps.iter().enumerate() {
        if let Err(errno) = step.take(&shared.candidate) {
            shared.step.store(index, Relaxed);
            shared.errno.store(errno, Relaxed);
            break;
        }
    }
    // SAFETY: ends this process only, and runs nothing of ours.
    unsafe { libc::_exit(NOT_EXECUTED) }
}

impl Step<'_> {
    /// What it does, for the message when it fails.
    pub(super) const fn what(&self) -> &'static str {
        match self {
            Self::ForgetAbove(_) => "a descriptor table of its own",
            Self::OwnGroup => "a process group of its own",
            Self::DefaultSignals => "default signal dispositions",
            Self::Stdio(..) => "standard input and outputs",
            Self::CloseRest => "closing descriptors",
            Self::FileLimit(_) => "the limit of open files",
            Self::WorkDir(_) => "the working directory",
            Self::Truncate(_) => "emptying an output",
            Self::ClearMask => "the signal mask",
            Self::Exec(_) => "the program",
        }
    }

    /// Runs in the child. The error is an errno.
    fn take(&self, candidate: &AtomicUsize) -> Result<(), c_int> {
        // SAFETY: plain system calls on values that were prepared before the clone. Those that
        // change the descriptor table come after it is our own, or it never was shared.
        unsafe {
            match self {
                Self::ForgetAbove(last) => check(libc::syscall(
                    libc::SYS_close_range,
                    c_long::from(last.saturating_add(1)),
                    u32::MAX,
                    libc::CLOSE_RANGE_UNSHARE,
                )),
                Self::OwnGroup => check(c_long::from(libc::setpgid(0, 0))),
                Self::DefaultSignals => {
                    default_signals();
                    Ok(())
                }
                Self::Stdio(from, to) => {
                    check(c_long::from(libc::dup2(from.as_raw_fd(), to.number())))
                }
                Self::CloseRest => check(libc::syscall(
                    libc::SYS_close_range,
                    c_long::from(Stream::Errors.number() + 1),
                    u32::MAX,
                    0,
                )),
                Self::FileLimit(limit) => {
                    check(c_long::from(libc::setrlimit(libc::RLIMIT_NOFILE, limit)))
                }
                Self::WorkDir(path) => check(c_long::from(libc::chdir(path.as_ptr()))),
                Self::Truncate(stream) => check(c_long::from(libc::ftruncate(stream.number(), 0))),
                Self::ClearMask => {
                    set_mask(&0, ptr::null_mut());
                    Ok(())
                }
                Self::Exec(exec) => Err(exec.run(candidate)),
            }
        }
    }
}

impl Exec<'_> {
    /// Runs in the child; returns the errno when nothing could be executed.
    fn run(&self, tried: &AtomicUsize) -> c_int {
        let mut denied = None;
        for (index, path) in self.candidates.iter().enumerate() {
            match self.attempt(path) {
                libc::ENOENT | libc::ENOTDIR | libc::ESTALE | libc::ENODEV | libc::ETIMEDOUT => {}
                libc::EACCES if denied.is_none() => denied = Some(index),
                libc::EACCES => {}
                errno => {
                    tried.store(index, Relaxed);
                    return errno;
                }
            }
        }
        match denied {
            Some(index) => {
                tried.store(index, Relaxed);
                libc::EACCES
            }
            None => libc::ENOENT,
        }
    }

    fn attempt(&self, path: &CStr) -> c_int {
        let pause = libc::timespec {
            tv_sec: 0,
            tv_nsec: c_long::from(TEXT_BUSY_PAUSE.subsec_nanos().cast_signed()),
        };
        let mut errno = libc::ENOENT;
        for _ in 0..TEXT_BUSY_TRIES {
            // SAFETY: all three end as execve(2) wants it, and live until we are gone.
            errno = unsafe {
                libc::execve(
                    path.as_ptr(),
                    self.arguments.array.as_ptr(),
                    self.environment.array.as_ptr(),
                );
                *libc::__errno_location()
            };
            if errno != libc::ETXTBSY {
                break;
            }
            // SAFETY: `pause` is a time span; what remains of it is not asked for.
            unsafe { libc::nanosleep(&raw const pause, ptr::null_mut()) };
        }
        errno
    }
}

/// Runs in the child: every signal gets its default disposition.
///
/// By the system call itself, for the same reason as [`BlockedSignals`]. The kernel's structure
/// differs between machines in size only, and all zeros is "default, no flags, empty mask" in
/// each. KILL and STOP refuse, and that is all the same.
fn default_signals() {
    let default = [0_u64; 8];
    for signal in 1..=SIGNAL_MAX {
        // SAFETY: `default` is larger than the kernel's structure on any machine.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                ptr::null_mut::<u64>(),
                SIGNAL_SET_BYTES,
            );
        }
    }
}

/// The errno of a call that says -1 when it failed.
fn check(result: c_long) -> Result<(), c_int> {
    if result == -1 {
        // SAFETY: the location is this thread's, and always there.
        return Err(unsafe { *libc::__errno_location() });
    }
    Ok(())
}
