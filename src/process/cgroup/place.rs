//! Where the hierarchy of version 2 stands in the file system, and a process in it.
//!
//! Sources: cgroups(7), cgroup_namespaces(7), proc_pid_mountinfo(5).

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where the hierarchy of version 2 is mounted, and which part of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mount {
    root: String,
    point: PathBuf,
}

impl Mount {
    /// Where a path of the hierarchy stands in the file system.
    pub(super) fn place(&self, path: &str) -> Option<PathBuf> {
        let below = Path::new(path).strip_prefix(&self.root).ok()?;
        Some(self.point.join(below))
    }
}

/// The cgroup of a process, as a path of the hierarchy.
pub(super) fn path_of(pid: i32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    // One that leads out of what this namespace sees.
    (!path.contains("/..")).then(|| path.to_owned())
}

/// Where this process sees it.
pub(super) fn mount() -> Option<Mount> {
    let text = fs::read_to_string("/proc/self/mountinfo").ok()?;
    text.lines().find_map(mount_of)
}

/// A line of mountinfo: proc_pid_mountinfo(5).
fn mount_of(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    if after.split(' ').next() != Some("cgroup2") {
        return None;
    }
    let mut fields = before.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    // Spaces and the like are escaped; such a place is left alone.
    let plain = !root.contains('\\') && !point.contains('\\');
    plain.then(|| Mount {
        root: root.to_owned(),
        point: PathBuf::from(point),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_is_found_where_it_is_mounted() {
        let line = "36 35 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate";
        let mount = mount_of(line).unwrap();
        assert_eq!(mount.place("/").unwrap(), Path::new("/sys/fs/cgroup/"));
        let unit = mount.place("/system.slice/supervisor-rs.service").unwrap();
        assert_eq!(
            unit,
            Path::new("/sys/fs/cgroup/system.slice/supervisor-rs.service")
        );
        // A container that sees a part of it.
        let line = "36 35 0:30 /docker/7 /sys/fs/cgroup ro - cgroup2 cgroup rw";
        let mount = mount_of(line).unwrap();
        assert_eq!(
            mount.place("/docker/7/x").unwrap(),
            Path::new("/sys/fs/cgroup/x")
        );
        assert_eq!(mount.place("/elsewhere"), None);
        for other in [
            "36 35 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu",
            "36 35 0:30 / /a\\040b rw - cgroup2 cgroup2 rw",
            "",
        ] {
            assert_eq!(mount_of(other), None);
        }
    }
}
