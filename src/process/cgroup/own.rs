//! The server's own cgroup: it moves itself into a leaf of the one that it was started in.
//!
//! A cgroup that holds processes can pass no controller on to those below it. So that the cgroups
//! of runs may be given some, the server must not sit beside them: it goes to
//! `supervisor-rs-server`, and they stay where they would have been without that. It does so
//! only where the cgroup is its own to arrange:
//!
//! - Nobody else is in it. In a login's scope, or where a script starts several things, there is.
//! - It was handed over: systemd has marked it (`Delegate=yes`), or it is the root of our cgroup
//!   namespace, as in a container. That of the whole host is nobody's.
//!
//! A server that is started again after a crash is put where the first one was, and goes the same
//! way. After an upgrade it is in the leaf already.
//!
//! Absent on purpose: switching controllers on.
//! Sources: the kernel's cgroup-v2 document ("no internal process"), systemd's on delegation.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::place::{Mount, path_of};

/// What the leaf is called. No server's id is like that.
const LEAF: &str = "supervisor-rs-server";

/// How systemd marks what it hands over: from version 251 on, and what root alone can read.
const MARKS: [&str; 2] = ["user.delegate", "trusted.delegate"];

/// Moves the server into its leaf, if it may; gives the cgroup that it was started in.
pub(super) fn settle(mount: Option<&Mount>) -> Result<PathBuf, String> {
    let mount = mount.ok_or("no cgroup2 is mounted")?;
    let path = path_of(std::process::id().cast_signed());
    let path = path.ok_or("the server is in none of version 2")?;
    let base = base_of(&path);
    let place = mount
        .place(base)
        .filter(|place| place.is_dir())
        .ok_or_else(|| "the server's own is not in sight".to_owned())?;
    if base == path && is_alone(&place) && (is_marked(&place) || is_root_of_namespace(base, &place))
    {
        match enter_leaf(&place) {
            Ok(()) => {
                tracing::info!(cgroup = %place.display(), "the server sits in a leaf of its cgroup")
            }
            Err(error) => tracing::debug!(%error, "the server stays in its cgroup"),
        }
    }
    Ok(place)
}

/// The cgroup that a server in this one was started in.
fn base_of(path: &str) -> &str {
    match path.strip_suffix(LEAF).and_then(|it| it.strip_suffix('/')) {
        Some("") => "/",
        Some(base) => base,
        None => path,
    }
}

fn is_alone(place: &Path) -> bool {
    let procs = fs::read_to_string(place.join("cgroup.procs")).unwrap_or_default();
    // Whoever is in none of our PID namespaces stands there as 0.
    procs.trim_end() == std::process::id().to_string()
}

fn is_marked(place: &Path) -> bool {
    MARKS.iter().any(|mark| {
        let mut value = [0_u8; 8];
        let got = rustix::fs::getxattr(place, *mark, &mut value);
        got.is_ok_and(|len| value.get(..len) == Some(b"1"))
    })
}

/// Whether it is the topmost that we can see, and not the topmost of all, which has no type.
fn is_root_of_namespace(path: &str, place: &Path) -> bool {
    path == "/" && place.join("cgroup.type").exists()
}

fn enter_leaf(place: &Path) -> io::Result<()> {
    let leaf = place.join(LEAF);
    match fs::create_dir(&leaf) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    // 0 is whoever writes, with all threads.
    fs::write(leaf.join("cgroup.procs"), "0").inspect_err(|_| {
        let _unless_somebody_is_in_it = fs::remove_dir(&leaf);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_leads_to_where_its_server_was_started() {
        for (path, base) in [
            ("/system.slice/s.service", "/system.slice/s.service"),
            (
                "/system.slice/s.service/supervisor-rs-server",
                "/system.slice/s.service",
            ),
            ("/supervisor-rs-server", "/"),
            ("/", "/"),
            ("/my-supervisor-rs-server", "/my-supervisor-rs-server"),
        ] {
            assert_eq!(base_of(path), base, "{path}");
        }
    }

    #[test]
    fn the_root_of_all_is_nobodys_and_what_bears_no_mark_neither() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_root_of_namespace("/", dir.path()));
        assert!(!is_marked(dir.path()));
        assert!(!is_alone(dir.path()));
        fs::write(dir.path().join("cgroup.type"), "domain\n").unwrap();
        assert!(is_root_of_namespace("/", dir.path()));
        assert!(!is_root_of_namespace("/unit", dir.path()));
        let procs = dir.path().join("cgroup.procs");
        let own = std::process::id();
        for (text, alone) in [
            (format!("{own}\n"), true),
            (format!("{own}\n1\n"), false),
            (format!("0\n{own}\n"), false),
            (String::new(), false),
        ] {
            fs::write(&procs, &text).unwrap();
            assert_eq!(is_alone(dir.path()), alone, "{text}");
        }
    }
}
