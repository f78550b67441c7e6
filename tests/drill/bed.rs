//! A server for drills, its children's files, and whose it is.

use std::{
    fs::{self, File},
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use supervisor_rs::process::open_for_writing;

use crate::{
    children,
    look::mounts,
    sandbox::{Output, PATIENCE, Sandbox, skip, wait_for},
};

/// A user of this machine that nobody is.
pub(crate) const STRANGER: u32 = 54_100;

/// How much of a server's log is kept for whoever has to read it.
const LOG_KEPT: usize = 200_000;

/// Whose server it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum User {
    /// Whoever runs the tests.
    Own,
    /// This one, whom root becomes.
    Other(u32),
}

/// A sandbox with the children's program in it.
pub(crate) struct Bed {
    pub(crate) sandbox: Sandbox,
}

impl Sandbox {
    /// What a server that asks for signatures would be asked with; no drill's server does.
    pub(crate) fn sign(&self, arguments: &[&str]) -> Output {
        panic!("a drill's server asks for a signature: {arguments:?}")
    }
}

impl Bed {
    /// Directories and a `server.yml`; nothing runs yet.
    pub(crate) fn new(settings: &str, user: User) -> Self {
        let mut sandbox = Sandbox::new(settings);
        children::prepare(sandbox.root());
        if let User::Other(uid) = user {
            sandbox = belonging(sandbox, uid);
        }
        Self { sandbox }
    }

    /// Writes a child's file.
    pub(crate) fn declare(&self, name: &str, edition: u64) {
        let yaml = children::Child::named(name).yaml(self.sandbox.root(), edition);
        self.sandbox.write(&format!("{name}.yml"), &yaml);
    }

    /// Whether a child has a file.
    pub(crate) fn is_declared(&self, name: &str) -> bool {
        self.sandbox.loadpath().join(format!("{name}.yml")).exists()
    }

    /// Cuts the server's log down to its last part: it is shown when a test fails.
    pub(crate) fn shorten_log(&self) {
        let path = self.sandbox.root().join("server.log");
        let log = fs::read(&path).unwrap_or_default();
        if log.len() > LOG_KEPT {
            let tail = log.get(log.len() - LOG_KEPT..).unwrap_or_default();
            // It is about a failure already: without the cut it is told at length.
            let _long = fs::write(&path, tail);
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shorten_log();
        }
        // What a failure may have left; the directory could not be removed.
        for point in mounts(self.sandbox.root()) {
            let mut umount = Command::new("umount");
            umount.args(["--lazy", &point]).stdin(Stdio::null());
            let _told_by_the_sandbox = umount.status();
        }
    }
}

/// The sandbox's server and all it makes belong to this user.
fn belonging(sandbox: Sandbox, uid: u32) -> Sandbox {
    let program = for_everybody(env!("CARGO_BIN_EXE_supervisor-rs-server"), sandbox.root());
    give(sandbox.root(), uid);
    let notes = children::notes(sandbox.root());
    for entry in fs::read_dir(&notes).expect("our own").flatten() {
        give(&entry.path(), uid);
    }
    give(&notes, uid);
    let user = [format!("--reuid={uid}"), format!("--regid={uid}")];
    let program = program.display().to_string();
    // The sandbox's own program may stand where only root gets.
    let script = ["sh", "-c", "exec \"$0\" \"$2\"", &program];
    let mut line = vec!["setpriv", &user[0], &user[1], "--clear-groups"];
    line.extend(script);
    sandbox.within(&line)
}

fn give(path: &Path, uid: u32) {
    chown(path, Some(uid), Some(uid)).expect("root may");
}

/// A program of ours where every user of this host can run it.
fn for_everybody(program: &str, dir: &Path) -> PathBuf {
    let copy = dir.join(Path::new(program).file_name().expect("a program"));
    // A link, unlike a copy, is never open for writing, which it must not be when it is executed.
    if fs::hard_link(program, &copy).is_err() {
        fs::copy(program, &copy).expect("room for a program");
        let written = File::open(&copy).expect("our own");
        wait_for("the copy to be closed", PATIENCE, || {
            !open_for_writing(&written)
        });
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(0o711)).expect("our own");
    copy
}

/// Whether these programs are there; says so when one is not.
pub(crate) fn have(programs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |program: &str| std::env::split_paths(&path).any(|dir| dir.join(program).exists());
    let missing = programs.iter().find(|program| !there(program));
    if let Some(program) = missing {
        skip(&format!("`{program}` is not installed"));
    }
    missing.is_none()
}
