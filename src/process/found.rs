//! Looking for runs by what their processes carry: the last resort, when records were lost.
//!
//! A process tells its run by `SUPERVISOR_RS_RUN` in its environment, which anybody can forge for
//! his own processes, a program can overwrite, and the kernel may hide. So it is believed only of
//! one that leads a group and no session, as a child's main process does, that is the oldest such
//! one of its run, and that is our user in every respect: real, effective, saved and for files.
//! A set-uid program that a stranger has started with an environment of his choice is his in one
//! of these. (Whoever is our user in all of them may do to our children as he likes anyway.)
//!
//! Absent on purpose: what follows from a run that is found (`reconcile::rebuild`).
//!
//! Sources: proc_pid_status(5), proc_pid_environ(5), proc_pid_cmdline(5), credentials(7).

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    HOOK_SECONDS_MAX, Started,
    adopt::{self, Found, find},
    group::{self, GroupSignals},
    identity,
};
use crate::spec::{ChildName, RunId};

/// How much of a command line is read, in bytes.
const COMMAND_BYTES_MAX: u64 = 128 * 1024;

/// The age of which a hook's program may be: its time, and what its end may take.
const HOOK_AGE_MAX: Duration = Duration::from_secs(2 * HOOK_SECONDS_MAX);

/// How long a killed one may take to be gone before it is not waited for any more.
const KILLED_WAIT: Duration = Duration::from_secs(1);

/// A live run that was found by its processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundRun {
    /// Whose.
    pub child: ChildName,
    /// Which.
    pub run: RunId,
    /// Its main process, and what that shows of itself; `None` when it cannot be told which one
    /// it is.
    pub process: Option<FoundProcess>,
}

/// What a process shows of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundProcess {
    /// Which.
    pub started: Started,
    /// How long it has lived.
    pub age: Duration,
    /// Its program and arguments, as they are now; never empty.
    pub command: Vec<String>,
    /// Where it is now.
    pub workdir: PathBuf,
    /// The file that its standard output goes to.
    pub stdout: Option<PathBuf>,
    /// The file that its standard error goes to.
    pub stderr: Option<PathBuf>,
}

/// Finds all live runs of a server, each once, by child and number.
#[must_use]
pub fn find_runs(server_id: &str) -> Vec<FoundRun> {
    let mut by_run: BTreeMap<(ChildName, RunId), Vec<Started>> = BTreeMap::new();
    for pid in identity::pids() {
        if let Some((run, started)) = candidate(pid, server_id) {
            by_run.entry(run).or_default().push(started);
        }
    }
    let found = by_run
        .into_iter()
        .map(|((child, run), candidates)| FoundRun {
            child,
            run,
            process: oldest(candidates).and_then(process),
        });
    found.collect()
}

/// A live process that may be a child's main one and does not show whose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HiddenProcess {
    /// Which.
    pub started: Started,
    /// The file that it executes, also if that is gone or another has taken its place; the link to it
    /// in the same folder that it was called by, if it was. Where the kernel hides that too, what it is called: a name without a folder, cut to 15 bytes.
    pub program: PathBuf,
}

/// Finds processes of our user that lead a group as a child's main process does, and whose
/// environment cannot be read or was written over.
#[must_use]
pub fn find_hidden() -> Vec<HiddenProcess> {
    let hidden = |pid: i32| {
        let started = leader(pid)?;
        let program = program(pid)?;
        // As one process: the number may have been given away in between.
        let hides = !identity::shows_environment(pid) && leader(pid) == Some(started);
        hides.then_some(HiddenProcess { started, program })
    };
    identity::pids().filter_map(hidden).collect()
}

/// What a process executes, as far as that is shown. A zombie executes nothing.
fn program(pid: i32) -> Option<PathBuf> {
    match fs::read_link(format!("/proc/{pid}/exe")) {
        Ok(path) => {
            let path = as_it_was_called(path);
            let link = name(pid).and_then(|name| link_to(&path, &name));
            Some(link.unwrap_or(path))
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => name(pid),
        Err(_) => None,
    }
}

/// What a process is called: by the name it was executed by, unless it has chosen another.
fn name(pid: i32) -> Option<PathBuf> {
    let name = fs::read(format!("/proc/{pid}/comm")).ok()?;
    let name = name.strip_suffix(b"\n").unwrap_or(&name);
    Some(PathBuf::from(OsStr::from_bytes(name)))
}

/// A link of this name beside a program, if it leads to it: many a package has one program with
/// several names.
fn link_to(program: &Path, name: &Path) -> Option<PathBuf> {
    let link = program.with_file_name(name.file_name()?);
    let leads = link != program && fs::canonicalize(&link).is_ok_and(|to| to == program);
    leads.then_some(link)
}

/// The path of a program without what the kernel adds to it when its file is gone, as after an
/// update of it.
fn as_it_was_called(program: PathBuf) -> PathBuf {
    let bytes = program.as_os_str().as_bytes();
    match bytes.strip_suffix(b" (deleted)") {
        Some(before) => PathBuf::from(OsStr::from_bytes(before)),
        None => program,
    }
}

/// Kills the hooks' programs of a server that are none of `known`, each a pid and a start time in
/// clock ticks since boot, and gives them a moment to be gone; says for which children they ran.
///
/// Only what has not outlived the time of a hook by much: what is older and has the mark is
/// something else that a hook has left.
pub fn kill_unknown_hooks(server_id: &str, known: &BTreeSet<(i32, u64)>) -> Vec<ChildName> {
    let mut killed = Vec::new();
    for pid in identity::pids() {
        let Some((child, found)) = hook_candidate(pid, server_id) else {
            continue;
        };
        if known.contains(&(found.pid, found.start_ticks)) {
            continue;
        }
        let Ok(Found::Process(pidfd)) = find(found.pid, found.start_ticks) else {
            continue;
        };
        let sent = match GroupSignals::detect() {
            GroupSignals::Pidfd => group::signal_group(&pidfd, libc::SIGKILL),
            GroupSignals::Kill => group::signal_number(pid, libc::SIGKILL),
        };
        match sent {
            Ok(()) => {
                adopt::await_end(&pidfd, KILLED_WAIT);
                killed.push(child);
            }
            Err(error) => tracing::warn!(%child, pid, %error, "a hook was not killed"),
        }
    }
    killed
}

/// The child that a process says it runs a hook for.
fn hook_candidate(pid: i32, server_id: &str) -> Option<(ChildName, Started)> {
    let before = leader(pid)?;
    let mark = identity::marked(pid, identity::HOOK_VARIABLE)?;
    let child = mark.strip_prefix(server_id)?.strip_prefix('/')?;
    let young = identity::age(before.start_ticks) < HOOK_AGE_MAX;
    let same = leader(pid) == Some(before) && young;
    same.then(|| Some((child.parse().ok()?, before)))?
}

/// The run that a process says it is the main process of.
fn candidate(pid: i32, server_id: &str) -> Option<((ChildName, RunId), Started)> {
    let before = leader(pid)?;
    let tag = identity::marked(pid, identity::RUN_VARIABLE)?;
    let mut parts = tag.splitn(3, '/');
    let (id, child, run) = (parts.next()?, parts.next()?, parts.next()?);
    let run = (child.parse().ok()?, RunId(run.parse().ok()?));
    // As one process: the number may have been given away in between.
    let same = leader(pid) == Some(before) && id == server_id && run.1 != RunId(0);
    same.then_some((run, before))
}

/// A live process that may be a child's main one, whatever its environment says.
fn leader(pid: i32) -> Option<Started> {
    identity::number(pid)?;
    let stat = identity::stat(pid).ok()?;
    let leads = stat.group == pid && stat.session != pid && identity::is_own(pid);
    leads.then_some(Started {
        pid,
        start_ticks: stat.start_ticks,
    })
}

/// The one that began first; `None` when that is not one.
fn oldest(mut found: Vec<Started>) -> Option<Started> {
    found.sort_by_key(|process| process.start_ticks);
    match found.as_slice() {
        [one] => Some(*one),
        [oldest, next, ..] if oldest.start_ticks < next.start_ticks => Some(*oldest),
        [] | [_, ..] => None,
    }
}

fn process(started: Started) -> Option<FoundProcess> {
    let proc = PathBuf::from(format!("/proc/{}", started.pid));
    let mut line = Vec::new();
    let file = File::open(proc.join("cmdline")).ok()?;
    file.take(COMMAND_BYTES_MAX).read_to_end(&mut line).ok()?;
    let line = line.strip_suffix(b"\0").unwrap_or(&line);
    let words = line.split(|byte| *byte == 0);
    let command = words.map(|word| String::from_utf8_lossy(word).into_owned());
    let output = |number: u8| {
        let path = fs::read_link(proc.join("fd").join(number.to_string())).ok()?;
        (path.to_str().is_some() && path.is_file()).then_some(path)
    };
    let utf8 = |path: PathBuf| PathBuf::from(path.to_string_lossy().into_owned());
    Some(FoundProcess {
        started,
        age: identity::age(started.start_ticks),
        command: command.collect(),
        workdir: utf8(fs::read_link(proc.join("cwd")).unwrap_or_else(|_| PathBuf::from("/"))),
        stdout: output(1),
        stderr: output(2),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_program_has_the_name_of_the_link_that_it_was_called_by() {
        let dir = tempfile::tempdir().unwrap();
        let dir = fs::canonicalize(dir.path()).unwrap();
        let program = dir.join("redis-check-rdb");
        fs::write(&program, "").unwrap();
        fs::write(dir.join("other"), "").unwrap();
        symlink("redis-check-rdb", dir.join("redis-server")).unwrap();
        symlink("other", dir.join("elsewhere")).unwrap();
        let called = |name: &str| link_to(&program, Path::new(name));
        assert_eq!(called("redis-server"), Some(dir.join("redis-server")));
        for none in [
            "redis-check-rdb",
            "elsewhere",
            "other",
            "missing",
            "",
            "..",
            "a/..",
        ] {
            assert_eq!(called(none), None, "{none}");
        }
    }
}
