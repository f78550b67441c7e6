//! Everything that a run has started, as far as it can be found without a cgroup of its own: what
//! is below its main process, and what was started with its mark in its environment.
//!
//! What escapes: a process that was orphaned (its parent ended) and has taken the mark out of its
//! environment, or whose environment cannot be read.
//!
//! Whoever is signalled was found while its pidfd was open: a number that was used again makes
//! nobody a victim. This server itself never is one.
//!
//! Sources: proc_pid_stat(5), proc_pid_environ(5), pidfd_open(2).

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::OwnedFd,
};

use rustix::process::{PidfdFlags, pidfd_open};

use super::{
    cgroup::Member,
    group::signal_process,
    identity::{self, Stat},
};

/// How often it is looked for processes that began while the others were killed.
const PASSES_MAX: usize = 16;

/// The processes of a run that are not in its group.
#[derive(Debug)]
pub(super) struct Beyond(Vec<OwnedFd>);

impl Beyond {
    /// None, for a scope that ends with the group.
    pub(super) fn none() -> Self {
        Self(Vec::new())
    }

    /// Those of the run with this mark; `main` is its main process while its number is held, and
    /// `None` later: whoever was below it is then below another, and is known by the mark alone.
    pub(super) fn of(main: Option<i32>, mark: &str) -> Self {
        let all: BTreeMap<i32, Stat> = identity::pids()
            .filter_map(|pid| Some((pid, identity::stat(pid).ok()?)))
            .collect();
        let own = std::process::id().cast_signed();
        let found = beyond(main, own, &all, |pid| identity::belongs(pid, mark));
        let open = |(pid, stat): (&i32, &Stat)| open(*pid, *stat);
        Self(
            all.iter()
                .filter(|(pid, _)| found.contains(pid))
                .filter_map(open)
                .collect(),
        )
    }

    /// Those of a run's cgroup.
    pub(super) fn group(main: i32, members: Vec<Member>) -> Self {
        let outside = |member: &Member| {
            let group = identity::stat(member.pid).map(|stat| stat.group);
            group.is_ok_and(|group| group != main)
        };
        let members = members.into_iter().filter(outside);
        Self(members.map(|member| member.pidfd).collect())
    }

    /// Sends a signal to each.
    pub(super) fn signal(&self, number: i32) {
        for pidfd in &self.0 {
            if let Err(error) = signal_process(pidfd, number) {
                tracing::debug!(%error, "a process of a run is gone");
            }
        }
    }
}

/// Kills what a run has left that has ended or is being killed.
pub(super) fn kill(main: Option<i32>, mark: &str) {
    for _ in 0..PASSES_MAX {
        let beyond = Beyond::of(main, mark);
        if beyond.0.is_empty() {
            return;
        }
        beyond.signal(libc::SIGKILL);
    }
}

/// Those of all processes that are of a run: below its main process or marked, and outside of its
/// group; `own`, this server, never is.
///
/// A number that no child of ours can have has nobody below it. Below 0 and 1, which a damaged record
/// may name, is everybody.
fn beyond(
    main: Option<i32>,
    own: i32,
    all: &BTreeMap<i32, Stat>,
    is_marked: impl Fn(i32) -> bool,
) -> BTreeSet<i32> {
    let main = main.filter(|main| identity::number(*main).is_some());
    let below = main.map(|main| below(main, all)).unwrap_or_default();
    let found = all.iter().filter(|(pid, stat)| {
        let outside = **pid != own && Some(**pid) != main && Some(stat.group) != main;
        outside && (below.contains(*pid) || is_marked(**pid))
    });
    found.map(|(pid, _)| *pid).collect()
}

/// All processes below one.
fn below(main: i32, all: &BTreeMap<i32, Stat>) -> BTreeSet<i32> {
    let mut by_parent: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for (pid, stat) in all {
        by_parent.entry(stat.parent).or_default().push(*pid);
    }
    let mut found = BTreeSet::new();
    let mut next = vec![main];
    while let Some(parent) = next.pop() {
        let children = by_parent.get(&parent).into_iter().flatten();
        next.extend(children.filter(|child| found.insert(**child)));
    }
    found
}

/// A descriptor of the process that was seen.
fn open(pid: i32, seen: Stat) -> Option<OwnedFd> {
    let pidfd = pidfd_open(identity::number(pid)?, PidfdFlags::empty()).ok()?;
    let same = |now: Stat| now.start_ticks == seen.start_ticks && now.parent == seen.parent;
    identity::stat(pid).is_ok_and(same).then_some(pidfd)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(parent: i32, group: i32) -> Stat {
        Stat {
            parent,
            group,
            session: 1,
            start_ticks: 1,
            status: 0,
        }
    }

    #[test]
    fn a_run_whose_main_process_is_gone_has_those_with_its_mark_and_nobody_else() {
        // A host: PID 1, a kernel thread, our server 10 with two runs, and somebody's shell.
        let all = [
            (1, 0),
            (2, 0),
            (10, 1),
            (20, 10),
            (21, 20),
            (30, 10),
            (31, 1),
            (40, 1),
        ];
        let all = all.map(|(pid, parent)| (pid, stat(parent, pid))).into();
        let is_marked = |pid| pid == 31;
        let found = |main| beyond(main, 10, &all, is_marked);
        assert_eq!(found(None), [31].into());
        assert_eq!(found(Some(20)), [21, 31].into());
        for nobody in [-1, 0, 1] {
            assert_eq!(found(Some(nobody)), [31].into(), "{nobody}");
        }
    }

    #[test]
    fn who_is_below_whom_is_told_by_parents_alone() {
        let stat = |parent| stat(parent, 1);
        let all = [(10, 1), (11, 10), (12, 11), (13, 1), (14, 13), (15, 12)];
        let all = all.map(|(pid, parent)| (pid, stat(parent))).into();
        assert_eq!(below(10, &all), [11, 12, 15].into());
        assert_eq!(below(14, &all), [].into());
        // A table that is damaged in a circle ends too.
        let circle = [(10, 11), (11, 10)].map(|(pid, parent)| (pid, stat(parent)));
        assert_eq!(below(10, &circle.into()), [10, 11].into());
    }
}
