//! Ending processes: signals to groups, letting a leader go, and what is left of its group.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    thread,
    time::Duration,
};

use rustix::process::{WaitId, WaitIdOptions, waitid};

use serde::{Deserialize, Serialize};

use super::{
    Owner, Parent, Phase, Process, Processes, StraysDue,
    group::{self, GroupSignals, Members, signal_group, signal_process},
    identity, strays,
    tree::{self, Beyond},
};
use crate::{
    clock,
    reconcile::effect::{Leftovers, Remains, Signal},
    spec::{ChildName, RunId, StopScope},
};

/// How long a start waits for killed processes of the run before, which may still hold its port.
/// They end by themselves; this bounds what we wait for, not what we rely on.
const KILLED_MS_MAX: u64 = 20;

/// How often it is looked whether they are gone.
const KILLED_PAUSE: Duration = Duration::from_micros(500);

/// The rest of a group whose leader was let go.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) group: i32,
    /// The leader's; there is none when the leader was gone before we came.
    pub(super) pidfd: Option<OwnedFd>,
    pub(super) fate: Fate,
}

/// What was done to the rest of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Fate {
    /// It may live on.
    Spared,
    /// It was sent KILL and is about to be gone.
    Killed,
}

impl Process {
    /// Its number, while that is its own: until somebody has reaped it.
    fn held(&self) -> Option<i32> {
        let held = signal_process(&self.pidfd, 0).is_ok();
        held.then_some(self.pid)
    }
}

impl Processes {
    /// Sends a signal to the whole group of a run, or to its whole tree. One that asks is followed
    /// by CONT, since a stopped process would not hear of it. A run that is not there is passed
    /// over (I4).
    pub fn signal(&mut self, child: &ChildName, run: RunId, signal: Signal, scope: StopScope) {
        let Some(process) = self.processes.get(&Owner::Run(child.clone(), run)) else {
            tracing::debug!(%child, %run, ?signal, "signal for a run that is not there");
            return;
        };
        let numbers: &[i32] = match signal {
            Signal::Ask(signal) => &[signal.number(), libc::SIGCONT],
            Signal::Kill => &[libc::SIGKILL],
        };
        // Looked for before anybody is told to end: who is orphaned is below nobody any more.
        let mark = self.run_mark(child, run);
        let beyond = match (scope, self.cgroups.members(child, run)) {
            (StopScope::Group, _) => Beyond::none(),
            (StopScope::Tree, Some(members)) => Beyond::group(process.pid, members),
            (StopScope::Tree, None) => Beyond::of(process.held(), &mark),
        };
        for number in numbers {
            if let Err(error) = self.send(process, *number) {
                // An adopted run may be gone, and reaped by its parent, by the time of CONT.
                if *number != libc::SIGCONT || error.raw_os_error() != Some(libc::ESRCH) {
                    tracing::warn!(%child, %run, ?signal, %error, "signal not sent");
                }
            }
            beyond.signal(*number);
        }
        match signal {
            Signal::Ask(_) => {}
            // What began meanwhile.
            Signal::Kill => self.kill_tree(scope, child, run, process.held()),
        }
    }

    /// To the group, and to its leader by itself if that has moved to another group.
    pub(super) fn send(&self, process: &Process, signal: i32) -> io::Result<()> {
        let group = self.send_to_group(process, signal);
        if group::of(process.pid).is_ok_and(|group| group == process.pid) {
            return group;
        }
        match signal_process(&process.pidfd, signal) {
            // It is gone, which is what getpgid(2) said too.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => group,
            Err(error) => Err(error),
            Ok(()) => Ok(()),
        }
    }

    fn send_to_group(&self, process: &Process, signal: i32) -> io::Result<()> {
        match (self.group_signals, process.parent) {
            (GroupSignals::Pidfd, _) => signal_group(&process.pidfd, signal),
            // Unreaped, so the number is held.
            (GroupSignals::Kill, Parent::Us) => group::signal_number(process.pid, signal),
            (GroupSignals::Kill, Parent::Other) => {
                signal_process(&process.pidfd, 0)?;
                group::signal_number(process.pid, signal)
            }
        }
    }

    /// Lets the main process of a run go, after its exit was told and recorded. What else is in
    /// its group is killed before, or left until [`Processes::clear`].
    pub fn reap(&mut self, child: &ChildName, run: RunId, leftovers: Leftovers) {
        self.unpin(child, run);
        self.ears.close(child, run);
        self.signs.close(child, run);
        let owner = Owner::Run(child.clone(), run);
        let Some(process) = self.take_ended(&owner) else {
            match leftovers {
                // Its main process was gone before we came.
                Leftovers::Kill(scope) => self.kill_left(child, run, scope),
                Leftovers::Leave => {}
            }
            return;
        };
        let fate = match leftovers {
            Leftovers::Kill(scope) => {
                self.kill_rest(&process, &self.run_mark(child, run));
                self.kill_tree(scope, child, run, process.held());
                Fate::Killed
            }
            Leftovers::Leave => Fate::Spared,
        };
        let left = Left {
            group: process.pid,
            pidfd: Some(self.release(process)),
            fate,
        };
        self.leave(child, run, left);
    }

    /// Kills what is left of an older run. Nothing left is nothing done.
    pub fn clear(&mut self, child: &ChildName, remains: Remains) {
        let Remains { run, scope } = remains;
        self.reap(child, run, Leftovers::Kill(scope));
        self.kill_left(child, run, scope);
    }

    /// Kills the rest of a group whose leader was let go, if it was spared until now.
    fn kill_left(&mut self, child: &ChildName, run: RunId, scope: StopScope) {
        let mark = self.run_mark(child, run);
        self.kill_tree(scope, child, run, None);
        let Some(left) = self.left.get_mut(&(child.clone(), run)) else {
            return;
        };
        if left.fate == Fate::Killed {
            return;
        }
        match (self.group_signals, &left.pidfd) {
            (GroupSignals::Pidfd, Some(pidfd)) => {
                if let Err(error) = signal_group(pidfd, libc::SIGKILL) {
                    tracing::debug!(%child, %run, %error, "nothing left to kill");
                }
            }
            (GroupSignals::Pidfd, None) | (GroupSignals::Kill, _) => {
                identity::kill_members(left.group, &mark);
            }
        }
        left.fate = Fate::Killed;
        self.prune(child);
    }

    /// Kills the group of a process that has ended and is not released yet.
    pub(super) fn kill_rest(&self, process: &Process, mark: &str) {
        match (self.group_signals, process.parent) {
            (GroupSignals::Pidfd, _) | (GroupSignals::Kill, Parent::Us) => {
                if let Err(error) = self.send_to_group(process, libc::SIGKILL) {
                    tracing::debug!(pid = process.pid, %error, "nothing left to kill");
                }
            }
            // Whoever reaped it has set its number free.
            (GroupSignals::Kill, Parent::Other) => identity::kill_members(process.pid, mark),
        }
    }

    /// Kills what a run has started beyond its group, if its scope says so; `main` is its main
    /// process, if that is still there.
    fn kill_tree(&self, scope: StopScope, child: &ChildName, run: RunId, main: Option<i32>) {
        match scope {
            StopScope::Group => {}
            StopScope::Tree if self.cgroups.kill(child, run) => {}
            StopScope::Tree => tree::kill(main, &self.run_mark(child, run)),
        }
    }

    /// Takes a process out of the table whose end was told.
    pub(super) fn take_ended(&mut self, owner: &Owner) -> Option<Process> {
        match self.processes.get(owner)?.phase {
            Phase::Live => None,
            Phase::Ended => {
                let process = self.processes.remove(owner)?;
                self.owners.remove(&process.token);
                Some(process)
            }
        }
    }

    /// Reaps a process that has ended; returns its pidfd, which still stands for its group.
    pub(super) fn release(&mut self, process: Process) -> OwnedFd {
        match process.parent {
            Parent::Us => {
                // Locked for both: its number may be given to the next child at once.
                let mut started = strays::started();
                let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
                if let Err(error) = waitid(WaitId::PidFd(process.pidfd.as_fd()), options) {
                    tracing::warn!(pid = process.pid, %error, "not reaped");
                }
                started.remove(&process.pid);
            }
            Parent::Other => {}
        }
        // It may have hidden others.
        if self.strays_due.is_some() {
            self.strays_due = Some(StraysDue::Now);
        }
        process.pidfd
    }

    /// Removes the cgroups of a child in which nothing is any more.
    pub(super) fn prune_cgroups(&mut self, child: &ChildName) {
        let processes = &self.processes;
        self.cgroups.prune(child, |child, run| {
            processes.contains_key(&Owner::Run(child.clone(), run))
        });
    }

    /// Keeps what is left of a group in mind, if anything is.
    pub(super) fn leave(&mut self, child: &ChildName, run: RunId, left: Left) {
        self.prune(child);
        if self.members(&left) == Members::Some {
            self.left.insert((child.clone(), run), left);
        }
    }

    fn members(&self, left: &Left) -> Members {
        let members = match (self.group_signals, &left.pidfd) {
            (GroupSignals::Pidfd, Some(pidfd)) => group::probe_group(pidfd),
            (GroupSignals::Pidfd, None) | (GroupSignals::Kill, _) => {
                group::probe_number(left.group)
            }
        };
        members.unwrap_or(Members::None)
    }

    /// Forgets groups of a child that are empty by now.
    fn prune(&mut self, child: &ChildName) {
        let range = (child.clone(), RunId(0))..=(child.clone(), RunId(u64::MAX));
        let empty: Vec<_> = self
            .left
            .range(range)
            .filter(|(_, left)| self.members(left) == Members::None)
            .map(|(key, _)| key.clone())
            .collect();
        for key in empty {
            self.left.remove(&key);
        }
        self.prune_cgroups(child);
    }

    /// Forgets all groups that are empty by now: called when orphans were reaped.
    pub(super) fn prune_all(&mut self) {
        let left = std::mem::take(&mut self.left);
        self.left = left
            .into_iter()
            .filter(|(_, left)| self.members(left) == Members::Some)
            .collect();
        let processes = &self.processes;
        self.cgroups
            .prune_all(|child, run| processes.contains_key(&Owner::Run(child.clone(), run)));
    }

    /// Gives killed processes of a child's earlier runs a moment to be gone.
    pub(super) fn await_killed(&mut self, child: &ChildName) {
        let range = (child.clone(), RunId(0))..=(child.clone(), RunId(u64::MAX));
        let deadline = clock::mono() + Duration::from_millis(KILLED_MS_MAX);
        loop {
            let mut left = self.left.range(range.clone());
            if !left.any(|(_, left)| left.fate == Fate::Killed) {
                return;
            }
            // Ours to reap by now, most likely.
            self.reap_strays();
            self.prune(child);
            if clock::mono() >= deadline {
                break;
            }
            thread::sleep(KILLED_PAUSE);
        }
        tracing::warn!(%child, "killed processes of an earlier run are not gone yet");
    }
}
