//! A cgroup for each run, where the machine lets us make one: what is in it is the run's, whatever
//! it has forked, renamed or disowned, and one write kills all of it.
//!
//! - They lie below the cgroup that the server was started in (it may sit in a leaf of that:
//!   [`own`]), in a folder that carries the server's id: `supervisor-rs-ID/CHILD.RUN`. A run joins its
//!   own between clone and exec, before it can have children. One that cannot runs without: then its
//!   tree is looked for ([`super::tree`]).
//! - No controller is switched on, so that nothing is limited and any cgroup may hold processes.
//! - They outlive the server, as runs do; the next one finds those of its runs by their processes,
//!   and all others by their names. One that is empty is removed when its run was let go.
//!
//! Absent on purpose: limits; version 1, whose hierarchies cannot kill.
//!
//! Sources: cgroups(7), the kernel's cgroup-v2 document (`cgroup.kill` from 5.14, `cgroup.events`).

mod own;
mod place;

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags},
    process::{PidfdFlags, pidfd_open},
};

use self::place::{Mount, mount, path_of};
use super::{group::signal_process, identity, memory_kills};
use crate::spec::{ChildName, RunId};

/// What the folder of a server's runs is called before its id.
const HOME_PREFIX: &str = "supervisor-rs-";

/// How many cgroups below a run's own are looked at: programs may make their own.
const NESTED_MAX: usize = 1_024;

/// How often what began meanwhile is killed, where the kernel cannot kill a cgroup.
const PASSES_MAX: usize = 64;

/// The cgroups of all runs.
#[derive(Debug)]
pub(super) struct Cgroups {
    /// Where new ones are made, or why none are.
    home: Result<PathBuf, String>,
    /// Where the hierarchy stands.
    mount: Option<Mount>,
    /// Those that there are.
    places: BTreeMap<(ChildName, RunId), PathBuf>,
}

impl Cgroups {
    /// None are made.
    pub(super) fn none(why: &str) -> Self {
        Self {
            home: Err(why.to_owned()),
            mount: None,
            places: BTreeMap::new(),
        }
    }

    /// As the machine lets us; finds those of this server's earlier runs.
    pub(super) fn of_server(server_id: &str) -> Self {
        let mount = mount();
        let home = own::settle(mount.as_ref())
            .map(|base| base.join(format!("{HOME_PREFIX}{server_id}")))
            .and_then(|home| match fs::create_dir(&home) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    Err(format!("none can be made: {error}"))
                }
                Ok(()) | Err(_) => Ok(home),
            });
        let mut places = BTreeMap::new();
        if let Ok(home) = &home {
            for entry in fs::read_dir(home).into_iter().flatten().flatten() {
                if let Some(run) = run_of(&entry.file_name().to_string_lossy()) {
                    places.insert(run, entry.path());
                }
            }
        }
        Self {
            home,
            mount,
            places,
        }
    }

    /// As `info` shows it.
    pub(super) fn describe(&self) -> String {
        match &self.home {
            Ok(home) if home.join("cgroup.kill").exists() => "v2".to_owned(),
            Ok(_) => "v2 without cgroup.kill".to_owned(),
            Err(why) => format!("no: {why}"),
        }
    }

    /// Makes one for a new run; gives what the run joins it by.
    pub(super) fn make(&mut self, child: &ChildName, run: RunId) -> Option<OwnedFd> {
        let home = self.home.as_ref().ok()?;
        let place = home.join(format!("{child}.{run}"));
        let made = match fs::create_dir(&place) {
            // Somebody has removed the folder: it was empty.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir(home).and_then(|()| fs::create_dir(&place))
            }
            made => made,
        };
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let procs = made.and_then(|()| {
            let procs = rustix::fs::open(place.join("cgroup.procs"), flags, Mode::empty());
            procs.map_err(io::Error::from)
        });
        match procs {
            Ok(procs) => {
                self.places.insert((child.clone(), run), place);
                Some(procs)
            }
            Err(error) => {
                tracing::warn!(%child, %run, %error, "no cgroup for a run: it goes without");
                let _may_not_be_there = fs::remove_dir(&place);
                None
            }
        }
    }

    /// Finds the one of a run that an earlier server has started, wherever that was.
    pub(super) fn find(&mut self, server_id: &str, child: &ChildName, run: RunId, pid: i32) {
        let named = format!("/{HOME_PREFIX}{server_id}/{child}.{run}");
        let Some(mount) = &self.mount else { return };
        let place = path_of(pid).and_then(|path| {
            let end = path.find(&named)? + named.len();
            mount.place(path.get(..end)?)
        });
        if let Some(place) = place {
            self.places.insert((child.clone(), run), place);
        }
    }

    /// Below which those of runs are made, if they are.
    pub(super) fn base(&self) -> Option<&Path> {
        self.home.as_ref().ok()?.parent()
    }

    /// How many processes of a run the kernel has killed for want of memory; `None` where that is not
    /// counted for it alone.
    pub(super) fn memory_kills(&self, child: &ChildName, run: RunId) -> Option<u64> {
        let place = self.places.get(&(child.clone(), run))?;
        memory_kills::count(&place.join(memory_kills::EVENTS))
    }

    /// Kills everything in a run's cgroup. `false` when it has none that could be killed.
    pub(super) fn kill(&self, child: &ChildName, run: RunId) -> bool {
        let Some(place) = self.places.get(&(child.clone(), run)) else {
            return false;
        };
        match fs::write(place.join("cgroup.kill"), "1") {
            Ok(()) => true,
            Err(error) if !place.exists() => {
                tracing::debug!(%child, %run, %error, "its cgroup is gone");
                true
            }
            Err(_) => {
                kill_one_by_one(place);
                true
            }
        }
    }

    /// The processes in a run's cgroup; `None` when it has none of its own.
    pub(super) fn members(&self, child: &ChildName, run: RunId) -> Option<Vec<Member>> {
        let place = self.places.get(&(child.clone(), run))?;
        Some(members(place))
    }

    /// Forgets the one of a run that could not join it.
    pub(super) fn confirm(&mut self, child: &ChildName, run: RunId, pid: i32) {
        let key = (child.clone(), run);
        let Some(place) = self.places.get(&key) else {
            return;
        };
        let named = format!("/{child}.{run}");
        if path_of(pid).is_some_and(|path| !path.ends_with(&named)) {
            tracing::warn!(%child, %run, "a run could not join its cgroup: it goes without");
            remove(place);
            self.places.remove(&key);
        }
    }

    /// Removes those of a child that are empty and whose run does not live.
    pub(super) fn prune(&mut self, child: &ChildName, lives: impl Fn(&ChildName, RunId) -> bool) {
        let range = (child.clone(), RunId(0))..=(child.clone(), RunId(u64::MAX));
        let gone: Vec<_> = self
            .places
            .range(range)
            .filter(|((child, run), place)| !lives(child, *run) && is_gone(place))
            .map(|(key, _)| key.clone())
            .collect();
        for key in gone {
            self.places.remove(&key);
        }
        self.leave_home();
    }

    /// The same, of all children.
    pub(super) fn prune_all(&mut self, lives: impl Fn(&ChildName, RunId) -> bool) {
        self.places
            .retain(|(child, run), place| lives(child, *run) || !is_gone(place));
        self.leave_home();
    }

    /// Removes the folder when nothing is in it; whoever needs it makes it again.
    fn leave_home(&self) {
        if let (Ok(home), true) = (&self.home, self.places.is_empty()) {
            let _may_not_be_empty = fs::remove_dir(home);
        }
    }
}

/// A process in a run's cgroup.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
}

/// All processes in a cgroup and below it: each was in it while its pidfd was open.
fn members(place: &Path) -> Vec<Member> {
    let seen = pids(place);
    let open = |pid: i32| {
        let pidfd = pidfd_open(identity::number(pid)?, PidfdFlags::empty()).ok()?;
        Some(Member { pid, pidfd })
    };
    let opened: Vec<Member> = seen.into_iter().filter_map(open).collect();
    let still = pids(place);
    let is_still = |member: &Member| still.contains(&member.pid);
    opened.into_iter().filter(is_still).collect()
}

fn pids(place: &Path) -> Vec<i32> {
    let mut pids = Vec::new();
    for place in with_nested(place) {
        let text = fs::read_to_string(place.join("cgroup.procs")).unwrap_or_default();
        pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    }
    pids
}

/// A cgroup and those below it, each before its own.
fn with_nested(place: &Path) -> Vec<PathBuf> {
    let mut all = vec![place.to_owned()];
    let mut next = 0;
    while let Some(folder) = all.get(next).cloned() {
        next += 1;
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if all.len() < NESTED_MAX && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                all.push(entry.path());
            }
        }
    }
    all
}

fn kill_one_by_one(place: &Path) {
    for _ in 0..PASSES_MAX {
        let members = members(place);
        if members.is_empty() {
            return;
        }
        for member in members {
            let _may_be_gone = signal_process(&member.pidfd, libc::SIGKILL);
        }
    }
}

fn is_populated(place: &Path) -> bool {
    let events = fs::read_to_string(place.join("cgroup.events")).unwrap_or_default();
    events.lines().any(|line| line == "populated 1")
}

/// Whether a cgroup is gone: it is removed when it is empty.
fn is_gone(place: &Path) -> bool {
    !is_populated(place) && remove(place)
}

/// Removes a cgroup with those below it; whether it is gone.
fn remove(place: &Path) -> bool {
    for place in with_nested(place).iter().rev() {
        let _told_below = fs::remove_dir(place);
    }
    !place.exists()
}

/// The run that a cgroup is called after.
fn run_of(name: &str) -> Option<(ChildName, RunId)> {
    let (child, run) = name.rsplit_once('.')?;
    Some((child.parse().ok()?, RunId(run.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_called_after_its_run() {
        let run = |name: &str, run| Some((name.parse().unwrap(), RunId(run)));
        assert_eq!(run_of("web.7"), run("web", 7));
        assert_eq!(run_of("web.v2.10"), run("web.v2", 10));
        for other in ["web", "web.", ".7", "web.x", "cgroup.procs", "web.-1"] {
            assert_eq!(run_of(other), None, "{other}");
        }
    }
}
