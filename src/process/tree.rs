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

    /// Those of the run with this mark whose main process this is, or was.
    pub(super) fn of(main: i32, mark: &str) -> Self {
        let all: BTreeMap<i32, Stat> = identity::pids()
            .filter_map(|pid| Some((pid, identity::stat(pid).ok()?)))
            .collect();
        let below = below(main, &all);
        let own = std::process::id().cast_signed();
        let found = all.iter().filter(|(pid, stat)| {
            let pid = **pid;
            let outside = pid != main && pid != own && stat.group != main;
            outside && (below.contains(&pid) || identity::belongs(pid, mark))
        });
        Self(found.filter_map(|(pid, stat)| open(*pid, *stat)).collect())
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
pub(super) fn kill(main: i32, mark: &str) {
    for _ in 0..PASSES_MAX {
        let beyond = Beyond::of(main, mark);
        if beyond.0.is_empty() {
            return;
        }
        beyond.signal(libc::SIGKILL);
    }
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

    #[test]
    fn who_is_below_whom_is_told_by_parents_alone() {
        let stat = |parent| Stat {
            parent,
            group: 1,
            session: 1,
            start_ticks: 1,
            status: 0,
        };
        let all = [(10, 1), (11, 10), (12, 11), (13, 1), (14, 13), (15, 12)];
        let all = all.map(|(pid, parent)| (pid, stat(parent))).into();
        assert_eq!(below(10, &all), [11, 12, 15].into());
        assert_eq!(below(14, &all), [].into());
        // A table that is damaged in a circle ends too.
        let circle = [(10, 11), (11, 10)].map(|(pid, parent)| (pid, stat(parent)));
        assert_eq!(below(10, &circle.into()), [10, 11].into());
    }
}
