//! Who has the lock of a directory, for people: a server, or a process that a dead one left.
//!
//! - The number in the lock file is the server's that took it. Between its clone and its exec a
//!   child of that server keeps the lock as well, and outlives it for that moment: the number in
//!   the file may be a dead one's. So whoever really has it is looked for.
//! - A descriptor of the file is not the lock: others that wait for it have one too. The kernel
//!   tells in `fdinfo` on which open file a lock is.
//! - Nothing is decided by what is found here.
//!
//! Sources: flock(2), proc_pid_fdinfo(5).

use std::{
    fmt, fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Who uses a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A server.
    Server {
        /// Its process.
        pid: i32,
    },
    /// A process that has not become its program yet, and whose server has died.
    Unborn {
        /// Its number.
        pid: i32,
        /// What the kernel calls it.
        name: String,
    },
    /// Nobody that can be named.
    Unknown,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server { pid } => write!(f, "the server with pid {pid}"),
            Self::Unborn { pid, name } => write!(
                f,
                "process {pid} (`{name}`), which a server that has died was starting"
            ),
            Self::Unknown => f.write_str("another server"),
        }
    }
}

impl Holder {
    /// What to do about it.
    pub(super) fn hint(&self) -> String {
        match self {
            Self::Server { .. } | Self::Unknown => {
                "each server needs a `state_dir` and a `runtime_dir` of its own".to_owned()
            }
            Self::Unborn { pid, .. } => format!(
                "it becomes its program or ends by itself, unless its disk hangs; \
                 `kill -9 {pid}` ends it"
            ),
        }
    }

    /// Who has the lock on this file, known by device and inode; `noted` is the number in it, or
    /// what else tells of a server.
    pub(super) fn of(lock: (u64, u64), noted: Option<i32>) -> Self {
        let holders: Vec<i32> = own_pids().filter(|pid| has_lock(*pid, lock)).collect();
        let is_server = |pid: &&i32| Some(**pid) == noted || threads(**pid) > 1;
        if let Some(pid) = holders.iter().find(is_server) {
            return Self::Server { pid: *pid };
        }
        match (holders.first(), noted) {
            (Some(pid), _) => Self::Unborn {
                pid: *pid,
                name: name_of(*pid),
            },
            (None, Some(pid)) if proc(pid).exists() => Self::Server { pid },
            (None, Some(_) | None) => Self::Unknown,
        }
    }
}

fn proc(pid: i32) -> PathBuf {
    Path::new("/proc").join(pid.to_string())
}

/// The processes of our own user.
fn own_pids() -> impl Iterator<Item = i32> {
    let euid = rustix::process::geteuid().as_raw();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(move |entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        (entry.metadata().ok()?.uid() == euid).then_some(pid)
    })
}

fn has_lock(pid: i32, lock: (u64, u64)) -> bool {
    let proc = proc(pid);
    let descriptors = fs::read_dir(proc.join("fd")).into_iter().flatten();
    descriptors.flatten().any(|descriptor| {
        // By its name first: to look at a file itself may take as long as its disk does.
        let path = descriptor.path();
        let may_be = fs::read_link(&path).is_ok_and(|to| to.to_string_lossy().contains("/lock"));
        let is_it = || fs::metadata(&path).is_ok_and(|open| (open.dev(), open.ino()) == lock);
        may_be
            && is_it()
            && fs::read_to_string(proc.join("fdinfo").join(descriptor.file_name()))
                .is_ok_and(|info| info.lines().any(is_lock))
    })
}

fn is_lock(line: &str) -> bool {
    line.starts_with("lock:") && line.contains("FLOCK")
}

fn threads(pid: i32) -> usize {
    fs::read_dir(proc(pid).join("task")).map_or(0, Iterator::count)
}

fn name_of(pid: i32) -> String {
    let name = fs::read_to_string(proc(pid).join("comm")).unwrap_or_default();
    name.trim_end().escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        process::{Child, Command, Stdio},
    };

    use rustix::fs::{FlockOperation, flock};

    use super::*;

    /// A process that has been given this open file, and does nothing with it.
    struct Keeper(Child);

    impl Keeper {
        fn of(file: &File) -> Self {
            let copy = file.try_clone().unwrap();
            let child = Command::new("sleep").arg("300").stdin(copy).spawn();
            Self(child.unwrap())
        }

        fn pid(&self) -> i32 {
            self.0.id().try_into().unwrap()
        }
    }

    impl Drop for Keeper {
        fn drop(&mut self) {
            let _may_have_ended = self.0.kill();
            let _reaped = self.0.wait();
        }
    }

    fn locked() -> (tempfile::TempDir, File, (u64, u64)) {
        let temp = tempfile::tempdir().unwrap();
        let file = File::create(temp.path().join("lock")).unwrap();
        flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        let metadata = file.metadata().unwrap();
        (temp, file, (metadata.dev(), metadata.ino()))
    }

    #[test]
    fn a_process_that_keeps_the_lock_of_a_dead_server_is_named() {
        let (temp, file, lock) = locked();
        let keeper = Keeper::of(&file);
        // It waits for the lock as well, and does not have it.
        let other = File::open(temp.path().join("lock")).unwrap();
        let _waiting = Keeper::of(&other);
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(Holder::of(lock, Some(own)), Holder::Server { pid: own });
        drop((file, other));
        let mut dead = Command::new("true").stdin(Stdio::null()).spawn().unwrap();
        let noted = i32::try_from(dead.id()).unwrap();
        dead.wait().unwrap();
        let holder = Holder::of(lock, Some(noted));
        let pid = keeper.pid();
        let name = "sleep".to_owned();
        assert_eq!(holder, Holder::Unborn { pid, name });
        let expected =
            format!("process {pid} (`sleep`), which a server that has died was starting");
        assert_eq!(holder.to_string(), expected);
        assert!(holder.hint().contains(&format!("`kill -9 {pid}`")));
        drop(keeper);
        assert_eq!(Holder::of(lock, None), Holder::Unknown);
    }

    #[test]
    fn a_server_is_told_by_its_threads_where_its_number_is_missing() {
        let (_temp, file, lock) = locked();
        let own = i32::try_from(std::process::id()).unwrap();
        // The test's own thread and the one that waits for it.
        assert_eq!(Holder::of(lock, None), Holder::Server { pid: own });
        drop(file);
    }
}
