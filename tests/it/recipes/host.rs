//! The host that a page is followed on: a sandbox, and no process left behind even of programs
//! that hide their environment, as those do that write a title over it (nginx, redis, PostgreSQL).

use std::{
    collections::BTreeMap,
    fs,
    ops::{Deref, DerefMut},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::Value;

use super::page::{Page, Step};
use crate::sandbox::{
    Output, PATIENCE, Sandbox, children_of, free_port, lives, pid_of, skip, status_of, wait_for,
};

/// Where the pages have the server's files.
const CONFIGURATION: &str = "/etc/supervisor-rs";
/// Where programs of Debian's packages are that are in nobody's `PATH`.
const PACKAGED: &str = "/usr/lib/postgresql/";
/// What the pages say to run a program as another user. Who is not root leaves it out.
const AS_POSTGRES: &str = "setpriv --reuid postgres --regid postgres --init-groups";
const TO_POSTGRES: &str = "-o postgres -g postgres ";

/// A host, on which a server runs.
pub(super) struct Host {
    sandbox: Sandbox,
    /// What stands in place of what a page says, the longest first.
    replaced: Vec<(String, String)>,
    /// The processes that were seen here: their begin tells them from later ones of the number.
    seen: BTreeMap<i32, String>,
}

impl Deref for Host {
    type Target = Sandbox;

    fn deref(&self) -> &Sandbox {
        &self.sandbox
    }
}

impl DerefMut for Host {
    fn deref_mut(&mut self) -> &mut Sandbox {
        &mut self.sandbox
    }
}

/// The programs in `PATH`, where root's belong too.
pub(super) fn path() -> std::ffi::OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let root = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::join_paths(std::env::split_paths(&path).chain(root)).expect("no colon in them")
}

/// Says that a page cannot be followed here, if it cannot.
pub(super) fn lacks(programs: &[&str]) -> bool {
    let path = path();
    let dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let missing = |name: &&&str| match name.starts_with('/') {
        true => newest(name).is_none(),
        false => !dirs.iter().any(|dir| dir.join(name).exists()),
    };
    match programs.iter().find(missing) {
        Some(name) => {
            skip(&format!("`{name}` is missing"));
            true
        }
        None => false,
    }
}

/// The newest version that is installed of what a page has in a folder by its version.
fn newest(of: &str) -> Option<PathBuf> {
    let folder = PathBuf::from(of).parent()?.to_owned();
    let versions = fs::read_dir(folder).ok()?.flatten();
    versions.map(|entry| entry.path()).max_by_key(|path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.and_then(|name| name.parse::<u32>().ok())
    })
}

impl Host {
    /// A host with the server that a page wants, and nothing of the page done.
    pub(super) fn of(page: &Page) -> Self {
        let path = path().into_string().expect("UTF-8");
        let mut host = Self::before(page, |sandbox| {
            sandbox.within(&["env", &format!("PATH={path}")])
        });
        host.start_server();
        host
    }

    /// A host on which no server was started yet; its sandbox is changed before.
    pub(super) fn before(page: &Page, change: impl FnOnce(Sandbox) -> Sandbox) -> Self {
        let sandbox = change(Sandbox::new(""));
        // Other users have their files below it.
        fs::set_permissions(sandbox.root(), fs::Permissions::from_mode(0o755)).expect("it is ours");
        let mut host = Self {
            replaced: replacements(page, &sandbox),
            sandbox,
            seen: BTreeMap::new(),
        };
        let server_yml = format!("{CONFIGURATION}/server.yml");
        let own = page.steps.iter().any(|step| match step {
            Step::Write { path, .. } => *path == server_yml,
            Step::Type(_) => false,
        });
        let settings = match own {
            true => page.file(&server_yml).to_owned(),
            false => Page::read("README").file(&server_yml).to_owned(),
        };
        let settings = host.here(&settings);
        host.configure(&settings);
        fs::create_dir(host.root().join("children")).expect("a writable sandbox");
        host
    }

    /// Follows a page from its beginning to its end.
    pub(super) fn follow(page: &Page) -> Self {
        let host = Self::of(page);
        for step in &page.steps {
            host.take(step);
        }
        host
    }

    /// Does what a step says; returns what was printed.
    pub(super) fn take(&self, step: &Step) -> String {
        match step {
            // It is there already, with a line more or less.
            Step::Write { path, .. } if path.ends_with("/server.yml") => String::new(),
            Step::Write { path, text } => {
                self.put(path, text);
                String::new()
            }
            Step::Type(lines) => {
                let output = self.types(&patiently(lines));
                assert_eq!(
                    output.code,
                    0,
                    "{lines:#?}: {output:?}\n{}",
                    self.server_log()
                );
                output.stdout
            }
        }
    }

    /// Writes a file where it belongs here.
    pub(super) fn put(&self, path: &str, text: &str) {
        let path = self.place(path);
        assert!(
            path.starts_with(self.root()),
            "undeclared: {}",
            path.display()
        );
        fs::create_dir_all(path.parent().expect("a folder")).expect("a writable sandbox");
        self.replace(&path, &self.here(text));
    }

    /// Types lines; they end at the first that fails.
    pub(super) fn types(&self, lines: &str) -> Output {
        self.shell(&format!("set -eu\n{}\n", self.here(lines)))
    }

    /// A text of a page as it is for this host.
    pub(super) fn here(&self, text: &str) -> String {
        let replace = |text: String, (from, to): &(String, String)| whole_words(&text, from, to);
        let text = self.replaced.iter().fold(text.to_owned(), replace);
        match geteuid().is_root() {
            true => text,
            false => text.replace(AS_POSTGRES, "env").replace(TO_POSTGRES, ""),
        }
    }

    /// Where a file of the page is here.
    pub(super) fn place(&self, path: &str) -> PathBuf {
        self.here(path).into()
    }

    /// Waits until a child is ready, and returns its process; it and all below it are ended with
    /// the host, whatever happens.
    pub(super) fn ready(&mut self, name: &str) -> i32 {
        let pid = pid_of(&self.wait_state(name, "running"));
        self.note(name);
        pid
    }

    /// Takes note of a child's processes, and returns them: they are ended with the host. Only what
    /// descends from our server is, or from what was noted before.
    pub(super) fn note(&mut self, name: &str) -> Vec<i32> {
        let pid = self.row(name).and_then(|row| row["pid"].as_i64());
        let pid = pid.and_then(|pid| i32::try_from(pid).ok());
        let Some(pid) = pid.filter(|pid| self.is_ours(*pid)) else {
            return Vec::new();
        };
        let all = tree(pid);
        for pid in &all {
            self.seen.extend(begin(*pid).map(|begin| (*pid, begin)));
        }
        all
    }

    /// Whether a process is known here or has our server for its parent.
    fn is_ours(&self, pid: i32) -> bool {
        let parent = status_of(pid, "PPid");
        let known = self.seen.get(&pid);
        let is_known = known.is_some() && begin(pid).as_ref() == known;
        is_known || parent == Some(self.server_pid().to_string())
    }

    /// Stops a child as an operator does, and waits until none of its processes lives; returns the
    /// answer.
    pub(super) fn stop_whole(&mut self, name: &str) -> Value {
        let processes = self.note(name);
        assert!(!processes.is_empty(), "`{name}` does not run");
        let answer = self.done(&["stop", name]);
        wait_for("the end of all its processes", PATIENCE, || {
            !processes.iter().any(|pid| lives(*pid))
        });
        answer
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // A process is found by its environment, which some programs write their title over.
        for (pid, began) in &self.seen {
            if begin(*pid).as_ref() == Some(began)
                && let Some(pid) = Pid::from_raw(*pid)
            {
                let _may_have_ended = kill_process(pid, Signal::KILL);
            }
        }
    }
}

/// When a process began, in ticks since the boot.
fn begin(pid: i32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name
        .split_ascii_whitespace()
        .nth(19)
        .map(str::to_owned)
}

/// A process and all below it that live.
pub(super) fn tree(pid: i32) -> Vec<i32> {
    let mut all = vec![pid];
    let mut at = 0;
    while let Some(parent) = all.get(at) {
        all.extend(children_of(*parent));
        at += 1;
    }
    all.retain(|pid| lives(*pid));
    all
}

/// The processes of a tree with this in their name or title.
pub(super) fn titled(pid: i32, title: &str) -> Vec<i32> {
    let mut found = tree(pid);
    found.retain(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let name = status_of(*pid, "Name").unwrap_or_default();
        name.contains(title) || String::from_utf8_lossy(&line).contains(title)
    });
    found
}

/// What stands for what a page declares, the longest first.
fn replacements(page: &Page, sandbox: &Sandbox) -> Vec<(String, String)> {
    let root = sandbox.root().display().to_string();
    let other = |word: &String| {
        let from = word.split_once('=').map_or(word.as_str(), |(from, _)| from);
        assert!(page.text.matches(from).count() > 1, "unused: {word}");
        let (from, to) = match word.split_once('=') {
            Some((from, to)) => (from.to_owned(), to.to_owned()),
            None if word == CONFIGURATION => (word.clone(), root.clone()),
            None if word.starts_with(PACKAGED) => {
                let newest = newest(word).expect("looked for before");
                (word.clone(), newest.display().to_string())
            }
            None if word.starts_with('/') => (word.clone(), format!("{root}{word}")),
            None => (word.clone(), free_port().to_string()),
        };
        (from, to)
    };
    let mut all: Vec<_> = page.declared.iter().map(other).collect();
    all.sort_by_key(|(from, _)| std::cmp::Reverse(from.len()));
    all
}

/// The lines as a person types them, who has needed a moment: what was just written is known by then.
fn patiently(lines: &[String]) -> String {
    let mut typed = String::new();
    for line in lines {
        let waits = line.strip_prefix("supervisor-rs-client wait ");
        if let Some(name) = waits.and_then(|rest| rest.split(' ').next()) {
            let known = format!("supervisor-rs-client check {name} >/dev/null 2>&1 || [ $? != 5 ]");
            typed += &format!("until {known}; do sleep 0.02; done\n");
        }
        typed += line;
        typed.push('\n');
    }
    typed
}

/// Replaces a word where it is no part of another: `80` not in `8080`, `/srv/web` in `/srv/web/a`.
fn whole_words(text: &str, from: &str, to: &str) -> String {
    let outside = |byte: Option<&u8>| byte.is_none_or(|byte| !byte.is_ascii_alphanumeric());
    let mut replaced = String::new();
    let mut done = 0;
    for (at, _) in text.match_indices(from) {
        let (before, after) = (&text[..at], &text[at + from.len()..]);
        if outside(before.as_bytes().last()) && outside(after.as_bytes().first()) {
            replaced.push_str(&text[done..at]);
            replaced.push_str(to);
            done = at + from.len();
        }
    }
    replaced + &text[done..]
}

#[test]
fn only_whole_words_are_replaced() {
    let text = "80 8080 :80/ /srv/web/a /srv/webs";
    let text = whole_words(text, "80", "1");
    assert_eq!(
        whole_words(&text, "/srv/web", "/x"),
        "1 8080 :1/ /x/a /srv/webs"
    );
}
