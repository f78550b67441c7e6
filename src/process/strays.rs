//! Orphans that became our children: reaped without a word, and nobody else's status taken.
//!
//! A process that outlives its parent below us is given to us (`PR_SET_CHILD_SUBREAPER`, or as
//! PID 1), and stays a zombie until we reap it. `waitid(P_ALL)` shows the first zombie of all
//! our children; when that is one we started it must stay, since its status is kept until it is
//! recorded, and it hides the others. Then we look again when it was reaped; when that takes
//! longer than [`HIDDEN_MAX`] we go through `/proc` instead.
//!
//! Which children were started by us stands in one set for the whole process, whoever in it
//! starts processes: tests run several [`Processes`](super::Processes) side by side.
//!
//! Sources: waitid(2), prctl(2) `PR_SET_CHILD_SUBREAPER`.

#![allow(unsafe_code)]

use std::{
    collections::BTreeSet,
    mem::MaybeUninit,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use super::identity;

/// How many strays are reaped before others get their turn.
pub(super) const STRAYS_PER_TURN_MAX: usize = 256;

/// For how long strays may stand hidden behind a zombie that is kept.
pub(super) const HIDDEN_MAX: Duration = Duration::from_millis(250);

/// Whether orphans are reaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Strays {
    /// All of them: in a server, every child we did not start is one.
    Reap,
    /// None: in a test, a child we did not start is another test's.
    #[cfg(test)]
    LeaveAlone,
}

/// What a turn came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// There is no stray zombie.
    Clear,
    /// There may be more.
    More,
    /// A zombie that is kept stands before whatever else there is.
    Hidden,
}

static STARTED: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// The children of this process that were started by it and are not reaped. Locked while one is
/// being started, so that it is never taken for a stray.
pub(super) fn started() -> MutexGuard<'static, BTreeSet<i32>> {
    // The set is whole after any panic: each change is one call.
    STARTED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Somebody starts a child off the loop, and its number is not known yet: until this goes, none is
/// taken for a stray. Not a lock: the disk that its program stands on may hang.
#[derive(Debug)]
pub(super) struct BeingStarted(());

static BEING_STARTED: AtomicUsize = AtomicUsize::new(0);

impl BeingStarted {
    pub(super) fn begin() -> Self {
        let _started = started();
        BEING_STARTED.fetch_add(1, SeqCst);
        Self(())
    }
}

impl Drop for BeingStarted {
    fn drop(&mut self) {
        BEING_STARTED.fetch_sub(1, SeqCst);
    }
}

/// Reaps strays until one of our own stands first.
pub(super) fn reap_first() -> Outcome {
    let started = started();
    if BEING_STARTED.load(SeqCst) > 0 {
        return Outcome::Hidden;
    }
    for _ in 0..STRAYS_PER_TURN_MAX {
        let Some(pid) = first_zombie() else {
            return Outcome::Clear;
        };
        if started.contains(&pid) {
            return Outcome::Hidden;
        }
        reap(pid);
    }
    Outcome::More
}

/// Reaps strays wherever they stand: looks at every process there is.
pub(super) fn reap_all() -> Outcome {
    let started = started();
    if BEING_STARTED.load(SeqCst) > 0 {
        return Outcome::Hidden;
    }
    let own = std::process::id();
    let mut reaped = 0;
    for pid in identity::pids() {
        let is_child =
            || identity::stat(pid).is_ok_and(|stat| u32::try_from(stat.parent).ok() == Some(own));
        if !started.contains(&pid) && is_child() && reap(pid) {
            reaped += 1;
            if reaped == STRAYS_PER_TURN_MAX {
                return Outcome::More;
            }
        }
    }
    Outcome::Clear
}

/// The first zombie among our children; it stays one.
fn first_zombie() -> Option<i32> {
    let options = libc::WEXITED | libc::WNOWAIT | libc::WNOHANG | libc::__WALL;
    let pid = wait(libc::P_ALL, 0, options)?;
    (pid > 0).then_some(pid)
}

/// Reaps a child if it is a zombie; says whether it was.
fn reap(pid: i32) -> bool {
    let Ok(id) = libc::id_t::try_from(pid) else {
        return false;
    };
    let options = libc::WEXITED | libc::WNOHANG | libc::__WALL;
    let reaped = wait(libc::P_PID, id, options) == Some(pid);
    if reaped {
        tracing::debug!(pid, "reaped an orphan");
    }
    reaped
}

/// The process a status is about; 0 when there is none yet, `None` when there are no children.
fn wait(kind: libc::idtype_t, id: libc::id_t, options: libc::c_int) -> Option<i32> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: `info` is where the kernel may put what it has to say; all zeros is a valid value
    // of it, and what a call without a result leaves; field `si_pid` is there for a child's end.
    unsafe {
        if libc::waitid(kind, id, info.as_mut_ptr(), options) == -1 {
            return None;
        }
        Some(info.assume_init().si_pid())
    }
}
