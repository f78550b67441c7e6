//! What a child does between clone and exec: one step after the other, each a value.
//!
//! Everything in here that runs in the child keeps to the rules of `spawn`: it allocates nothing,
//! takes no lock, indexes nothing and cannot panic. Everything it needs was prepared before.
//!
//! Absent on purpose: closures. A step is data, so that what runs there can be read in one place.
//!
//! Sources: execve(2), execvp(3), close_range(2), rt_sigaction(2), signal-safety(7).

#![allow(unsafe_code)]

use std::{
    ffi::{CStr, CString, c_char, c_int, c_long},
    marker::PhantomData,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    ptr,
    sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use super::birth::{self, Entry};

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
    /// Join the cgroup whose `cgroup.procs` this is. One that cannot goes without.
    Join(BorrowedFd<'a>),
    /// Be killed when the thread that started it is gone; its process has this number.
    DieWith(i32),
    /// Lead a process group of one's own.
    OwnGroup,
    /// Give every signal its default disposition, ignored ones included.
    DefaultSignals,
    /// Let this descriptor be one of the three.
    Stdio(BorrowedFd<'a>, Stream),
    /// Let this descriptor have this number too, in the program as well.
    Descriptor(BorrowedFd<'a>, RawFd),
    /// Close these descriptors, given as ranges from first to last: all but the three and those
    /// that exec closes.
    CloseRest(Vec<(u32, u32)>),
    /// See when one was started oneself.
    Identify,
    /// Set the limit of open files (soft, hard).
    FileLimit(libc::rlimit),
    /// Go to the working directory.
    WorkDir(&'a CStr),
    /// Empty the file behind one of the three.
    Truncate(Stream),
    /// Put one's number into a variable.
    Number(&'a PidVariable),
    /// Write oneself down.
    Enter(Entry<'a>),
    /// Let signals through again.
    ClearMask,
    /// Become the program; does not return.
    Exec(Exec<'a>),
}

/// What the child tells whoever cloned it. Atomics, because its writes are made behind the
/// compiler's back; they are read when the child is gone from this memory.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// Which candidate of [`Step::Exec`] an error is about.
    pub(super) candidate: AtomicUsize,
    /// When it was started, in clock ticks since boot; from [`Step::Identify`] on.
    pub(super) start_ticks: AtomicU64,
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
        Self::with(strings, None)
    }

    /// Points at these strings, and at one that the child will fill in.
    pub(super) fn with(
        strings: impl Iterator<Item = &'a CStr>,
        variable: Option<&'a PidVariable>,
    ) -> Self {
        let last = variable.map(PidVariable::as_ptr);
        let mut array: Vec<*const c_char> = strings.map(CStr::as_ptr).chain(last).collect();
        array.push(ptr::null());
        Self {
            array,
            strings: PhantomData,
        }
    }
}

/// How many digits a process's number has at most.
const PID_DIGITS_MAX: usize = 10;

/// `NAME=PID`, where the number is the child's own, who puts it in. Atomics for the reason that
/// [`Report`] has them.
#[derive(Debug)]
pub(super) struct PidVariable {
    text: Vec<AtomicU8>,
    /// Where the number begins; as many bytes as it may have follow, and a NUL.
    digits: usize,
}

impl PidVariable {
    pub(super) fn new(name: &str) -> Self {
        let name = name.bytes().chain([b'=']).map(AtomicU8::new);
        let mut text: Vec<AtomicU8> = name.collect();
        let digits = text.len();
        text.extend((0..=PID_DIGITS_MAX).map(|_| AtomicU8::new(0)));
        Self { text, digits }
    }

    fn as_ptr(&self) -> *const c_char {
        self.text.as_ptr().cast()
    }

    /// Runs in the child.
    fn fill(&self, pid: c_int) {
        let mut rest = pid.unsigned_abs();
        let mut reversed = [0_u8; PID_DIGITS_MAX];
        let mut len = 0;
        for digit in &mut reversed {
            *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
            rest /= 10;
            len += 1;
            if rest == 0 {
                break;
            }
        }
        let digits = reversed.iter().take(len).rev();
        for (to, from) in self.text.iter().skip(self.digits).zip(digits) {
            to.store(*from, Relaxed);
        }
    }
}

impl Step<'_> {
    /// What it does, for the message when it fails.
    pub(super) const fn what(&self) -> &'static str {
        match self {
            Self::ForgetAbove(_) => "a descriptor table of its own",
            Self::Join(_) => "a cgroup of its own",
            Self::DieWith(_) => "an end with the server's",
            Self::OwnGroup => "a process group of its own",
            Self::DefaultSignals => "default signal dispositions",
            Self::Stdio(..) => "standard input and outputs",
            Self::Descriptor(..) => "the descriptor on which it shows that it is ready",
            Self::CloseRest(_) => "closing descriptors",
            Self::Identify => "its start time in `/proc`",
            Self::FileLimit(_) => "the limit of open files",
            Self::WorkDir(_) => "the working directory",
            Self::Truncate(_) => "emptying an output",
            Self::Number(_) => "its number in a variable",
            Self::Enter(_) => "the record of its start",
            Self::ClearMask => "the signal mask",
            Self::Exec(_) => "the program",
        }
    }

    /// Runs in the child. The error is an errno.
    pub(super) fn take(&self, report: &Report) -> Result<(), c_int> {
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
                Self::Join(procs) => {
                    let own = b"0";
                    libc::write(procs.as_raw_fd(), own.as_ptr().cast(), own.len());
                    Ok(())
                }
                Self::DieWith(parent) => {
                    let signal = libc::SIGKILL;
                    check(c_long::from(libc::prctl(libc::PR_SET_PDEATHSIG, signal)))?;
                    // It may have died before.
                    match libc::getppid() == *parent {
                        true => Ok(()),
                        false => Err(libc::ESRCH),
                    }
                }
                Self::OwnGroup => check(c_long::from(libc::setpgid(0, 0))),
                Self::DefaultSignals => {
                    default_signals();
                    Ok(())
                }
                Self::Stdio(from, to) => {
                    check(c_long::from(libc::dup2(from.as_raw_fd(), to.number())))
                }
                Self::Descriptor(from, to) => {
                    check(c_long::from(libc::dup2(from.as_raw_fd(), *to)))
                }
                Self::CloseRest(ranges) => ranges.iter().try_for_each(|(first, last)| {
                    check(libc::syscall(
                        libc::SYS_close_range,
                        c_long::from(*first),
                        *last,
                        0,
                    ))
                }),
                Self::Identify => {
                    let start_ticks = birth::own_start_ticks()?;
                    report.start_ticks.store(start_ticks, Relaxed);
                    Ok(())
                }
                Self::FileLimit(limit) => {
                    check(c_long::from(libc::setrlimit(libc::RLIMIT_NOFILE, limit)))
                }
                Self::WorkDir(path) => check(c_long::from(libc::chdir(path.as_ptr()))),
                Self::Truncate(stream) => check(c_long::from(libc::ftruncate(stream.number(), 0))),
                Self::Number(variable) => {
                    variable.fill(libc::getpid());
                    Ok(())
                }
                Self::Enter(entry) => entry.write(report.start_ticks.load(Relaxed)),
                Self::ClearMask => {
                    set_mask(&0, ptr::null_mut());
                    Ok(())
                }
                Self::Exec(exec) => Err(exec.run(&report.candidate)),
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
/// By the system call itself, since the C library's function keeps two signals for itself. The
/// kernel's structure differs between machines in size only, and all zeros is "default, no flags,
/// empty mask" in each. KILL and STOP refuse, and that is all the same.
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

/// Sets the signal mask of this thread; cannot fail.
pub(super) fn set_mask(set: &u64, before: *mut u64) {
    // SAFETY: both point to signal sets of the size given, or to nothing.
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
