//! Processes that the kernel has killed for want of memory, as far as it counts them where we can see.
//!
//! - The nearest cgroup of version 2 above the runs that has the memory controller counts those below
//!   it, a service's own where systemd accounts for memory; where version 1 has the controller, the
//!   cgroup that server and runs share does.
//! - The count is of all runs together. It has risen when a run's end by KILL is seen: then that run is
//!   taken to be one of them. A run whose own cgroup has the controller is asked for itself.
//!
//! Absent on purpose: switching the controller on, which forbids processes beside those of runs
//! ([`super::cgroup`]); the kernel's log, which is text.
//!
//! Sources: the kernel's documents on memory in cgroup-v2 (`memory.events`) and cgroup-v1
//! (`memory.oom_control`).

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where version 2 counts.
pub(super) const EVENTS: &str = "memory.events";

/// Where version 1 does.
const CONTROL: &str = "memory.oom_control";

/// The count of all runs.
#[derive(Debug, Default)]
pub(super) struct MemoryKills {
    /// Where it stands; `None` where nobody counts.
    place: Option<PathBuf>,
    /// What it was when it was looked at last.
    seen: u64,
}

impl MemoryKills {
    /// The count of runs whose cgroups lie below this one, or that have none.
    pub(super) fn counted_for(base: Option<&Path>) -> Self {
        let ours = || {
            let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
            let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
            Some(place_in_v1(&groups, &mounts)?.join(CONTROL))
        };
        let above = base.and_then(nearest).or_else(ours);
        let place = above.filter(|place| count(place).is_some());
        let seen = place.as_deref().and_then(count).unwrap_or_default();
        Self { place, seen }
    }

    /// As `info` shows it.
    pub(super) fn describe(&self) -> String {
        match &self.place {
            Some(place) if place.ends_with(EVENTS) => "counted (v2)".to_owned(),
            Some(_) => "counted (v1)".to_owned(),
            None => "no: no memory controller counts for the server".to_owned(),
        }
    }

    /// Whether somebody was killed since this was asked last.
    pub(super) fn rose(&mut self) -> bool {
        let Some(count) = self.place.as_deref().and_then(count) else {
            return false;
        };
        let before = std::mem::replace(&mut self.seen, count);
        count > before
    }
}

/// What a file of the kernel's says of kills.
pub(super) fn count(place: &Path) -> Option<u64> {
    count_in(&fs::read_to_string(place).ok()?)
}

fn count_in(text: &str) -> Option<u64> {
    let mut lines = text.lines();
    lines.find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// The nearest that counts, from this cgroup up.
fn nearest(base: &Path) -> Option<PathBuf> {
    let mut above = base.ancestors().map(|place| place.join(EVENTS));
    above.find(|place| place.exists())
}

/// The cgroup of this process in version 1's hierarchy of memory: cgroups(7), proc_pid_mountinfo(5).
fn place_in_v1(groups: &str, mounts: &str) -> Option<PathBuf> {
    let has_memory = |list: &str| list.split(',').any(|it| it == "memory");
    let path = groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        has_memory(controllers).then_some(path)
    })?;
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut kind = after.split(' ');
        let is_memory = kind.next() == Some("cgroup") && kind.next_back().is_some_and(has_memory);
        let mut fields = before.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let below = Path::new(path).strip_prefix(root).ok()?;
        is_memory.then(|| Path::new(point).join(below))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_count_in_a_line_of_their_file() {
        let v2 = "low 0\nhigh 0\nmax 41\noom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(count_in(v2), Some(2));
        assert_eq!(
            count_in("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"),
            Some(7)
        );
        // Before 4.13 nobody counted.
        assert_eq!(count_in("oom_kill_disable 0\nunder_oom 0\n"), None);
    }

    #[test]
    fn a_count_that_has_risen_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("unit/server");
        fs::create_dir_all(&base).unwrap();
        let file = dir.path().join("unit").join(EVENTS);
        fs::write(&file, "oom_kill 1\n").unwrap();
        let mut kills = MemoryKills::counted_for(Some(&base));
        assert_eq!(kills.describe(), "counted (v2)");
        assert!(!kills.rose(), "what was before is not news");
        fs::write(&file, "oom_kill 3\n").unwrap();
        assert!(kills.rose());
        assert!(!kills.rose());
        fs::remove_file(&file).unwrap();
        assert!(!kills.rose(), "nobody counts any more");
    }

    #[test]
    fn the_cgroup_of_version_1_is_where_the_controller_is_mounted() {
        let groups = "4:cpu,memory:/app/7\n1:name=systemd:/\n0::/\n";
        let mount = "36 35 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,cpu,memory";
        let place = |mounts: &str| place_in_v1(groups, mounts);
        assert_eq!(
            place(mount).unwrap(),
            Path::new("/sys/fs/cgroup/memory/app/7")
        );
        let part = "36 35 0:30 /app /m rw - cgroup cgroup rw,cpu,memory";
        assert_eq!(place(part).unwrap(), Path::new("/m/7"));
        for other in [
            "36 35 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,memory_recursiveprot",
            "36 35 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu",
            "36 35 0:30 /other /m rw - cgroup cgroup rw,memory",
        ] {
            assert_eq!(place(other), None);
        }
        assert_eq!(place_in_v1("0::/\n", mount), None);
    }
}
