//! This process as the one that takes in orphans: what a killed server's children become.
//!
//! Whoever is PID 1 may reap or not, now or later. So that a drill does not depend on it, and
//! knows how each of them really ended, they are taken in here (`PR_SET_CHILD_SUBREAPER`) and
//! reaped: most at once, some only after a while, as different hosts do it.
//!
//! Only those are reaped that are in a process group of their own, as runs are; a program that a
//! test has started is in the test's group, and is waited for by the test.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Mutex, Once, PoisonError},
    thread,
    time::Duration,
};

use rustix::process::{Pid, WaitOptions, getpgrp, getpid, set_child_subreaper, waitpid};
use supervisor_rs::{clock, spec::Mono};

use crate::look::stat;

/// How often zombies are looked for.
const LOOK: Duration = Duration::from_millis(3);

/// How long some zombies stay.
const LATE: Duration = Duration::from_millis(150);

/// One in so many stays that long.
const LATE_ONE_IN: i32 = 3;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// By itself.
    Code(i32),
    /// By a signal.
    Signal(i32),
}

/// By pid and start time.
static REAPED: Mutex<BTreeMap<(i32, u64), End>> = Mutex::new(BTreeMap::new());

/// Takes orphans in from now on, where the kernel shows who they are (`CONFIG_PROC_CHILDREN`).
pub(crate) fn begin() {
    static BEGUN: Once = Once::new();
    BEGUN.call_once(|| {
        if !is_at_work() {
            return;
        }
        set_child_subreaper(Some(getpid())).expect("nothing keeps us from it");
        thread::spawn(|| {
            let mut since = BTreeMap::new();
            loop {
                turn(&mut since);
                thread::sleep(LOOK);
            }
        });
    });
}

/// Whether orphans come here.
pub(crate) fn is_at_work() -> bool {
    Path::new("/proc/thread-self/children").exists()
}

/// How a process ended that was taken in, if it was.
pub(crate) fn end_of(pid: i32, start_ticks: u64) -> Option<End> {
    let reaped = REAPED.lock().unwrap_or_else(PoisonError::into_inner);
    reaped.get(&(pid, start_ticks)).copied()
}

/// The orphans that are zombies here.
fn zombies() -> Vec<i32> {
    let own = getpgrp().as_raw_nonzero().get();
    let mut zombies = children();
    zombies.retain(|pid| stat(*pid).is_some_and(|stat| stat.is_zombie && stat.group != own));
    zombies
}

fn turn(since: &mut BTreeMap<i32, Mono>) {
    let zombies = zombies();
    since.retain(|pid, _| zombies.contains(pid));
    for pid in zombies {
        let now = clock::mono();
        let first = *since.entry(pid).or_insert(now);
        if pid % LATE_ONE_IN == 0 && now < first + LATE {
            continue;
        }
        let Some(stat) = stat(pid) else { continue };
        let Ok(Some((_, status))) = waitpid(Pid::from_raw(pid), WaitOptions::NOHANG) else {
            continue;
        };
        let end = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => End::Code(code),
            (None, Some(signal)) => End::Signal(signal),
            (None, None) => continue,
        };
        let mut reaped = REAPED.lock().unwrap_or_else(PoisonError::into_inner);
        reaped.insert((pid, stat.start_ticks), end);
    }
}

/// All children of this process, by whichever of its threads.
fn children() -> Vec<i32> {
    let mut pids = Vec::new();
    for task in fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten()
    {
        let Ok(text) = fs::read_to_string(task.path().join("children")) else {
            continue;
        };
        pids.extend(
            text.split_ascii_whitespace()
                .filter_map(|pid| pid.parse::<i32>().ok()),
        );
    }
    pids
}
