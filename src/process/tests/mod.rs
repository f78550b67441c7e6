//! Real processes, started and ended.
//!
//! Tests share one process, so theirs use [`Processes::beside_others`]; what concerns the whole
//! process (orphans, counts of descriptors) runs [`alone`], in a process of its own. A [`World`]
//! ends all that it started when it is dropped.

use std::{
    fs,
    future::Future,
    os::fd::{AsFd, AsRawFd},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use rustix::process::{WaitId, WaitIdOptions, waitid};
use tempfile::TempDir;

use super::*;
use crate::{
    clock,
    reconcile::effect::{Leftovers, Remains, Signal},
    spec::{Digest, OpenMode, RestartPolicy, SignalNumber, Sink, Spec, StopScope},
};

mod adopting;
mod births;
mod handing_over;
mod hooking;
mod notifying;
mod orphans;
mod pinning;
mod showing;
mod starting;
mod stopping;

/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often it is looked.
const PAUSE: Duration = Duration::from_millis(2);

const ONE: RunId = RunId(1);

const TERM: Signal = Signal::Ask(SignalNumber::TERM);

const GROUP: StopScope = StopScope::Group;

/// What is left of a run, with its group alone.
fn remains(run: RunId) -> Remains {
    Remains { run, scope: GROUP }
}

/// Set in a test's own process.
const ALONE: &str = "PROCESS_TEST_ALONE";

/// Tells the test binary to be an actor.
const ACTOR: &str = "PROCESS_TEST_ACTOR";

struct World {
    folder: TempDir,
    processes: Processes,
}

impl World {
    fn new() -> Self {
        Self::of(Processes::beside_others("server").unwrap())
    }

    fn of(processes: Processes) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder, processes }
    }

    /// One that signals groups as older kernels do.
    fn old() -> Self {
        let mut world = Self::new();
        world.processes.group_signals = GroupSignals::Kill;
        world
    }

    /// One that pins its runs; `None` where that cannot be.
    fn pinning() -> Option<Self> {
        let mut world = Self::new();
        world.pin_in(&world.path("run"));
        let pins = world.processes.capabilities()["pins"].clone();
        if pins != "yes" {
            skip(&format!("exits cannot be pinned here: {pins}"));
            return None;
        }
        Some(world)
    }

    fn pin_in(&mut self, runtime_dir: &std::path::Path) {
        use std::os::unix::fs::DirBuilderExt;
        let private = fs::DirBuilder::new().mode(0o700).create(runtime_dir);
        assert!(private.is_ok() || runtime_dir.is_dir());
        self.processes.keep_pins_in(runtime_dir);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.path(name)).unwrap_or_default()).into_owned()
    }

    fn spec(&self, command: &[&str]) -> Spec {
        let sink = |name| Sink::File {
            path: self.path(name),
            mode: OpenMode::Append,
        };
        Spec {
            path: self.path("web.yml"),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            workdir: self.folder.path().to_owned(),
            stdout: sink("out"),
            stderr: sink("err"),
            repeat: None,
            prehook: None,
            posthook: None,
            restart: RestartPolicy::default(),
            stop: crate::spec::StopPolicy::default(),
            ready: None,
            health: None,
            depends_on: crate::spec::Dependencies::new(),
            digest: Digest([0; 16]),
        }
    }

    fn shell(&self, script: &str) -> Spec {
        self.spec(&["/bin/sh", "-c", script])
    }

    fn start(&mut self, script: &str) -> Started {
        let spec = self.shell(script);
        self.processes.start(&web(), ONE, &spec, None).unwrap()
    }

    fn process(&self) -> &Process {
        &self.processes.processes[&Owner::Run(web(), ONE)]
    }

    /// Waits for the end of `web`'s first run, during which nothing else may end.
    async fn exit(&mut self) -> Exit {
        match self.facts().await.as_slice() {
            [
                Fact::Exited {
                    child, run, exit, ..
                },
            ] if *child == web() && *run == ONE => *exit,
            other => panic!("{other:?}"),
        }
    }

    async fn facts(&mut self) -> Vec<Fact> {
        tokio::time::timeout(PATIENCE, self.processes.wait())
            .await
            .expect("something ends")
    }

    /// Waits until a file says this.
    async fn says(&self, name: &str, text: &str) {
        until(&format!("`{name}` says `{text}`"), || {
            self.read(name).contains(text)
        })
        .await;
    }

    /// Waits until a file has a line, and takes it for a pid.
    async fn pid(&self, name: &str) -> i32 {
        until(&format!("`{name}` has a line"), || {
            self.read(name).ends_with('\n')
        })
        .await;
        self.read(name).trim().parse().unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for process in self.processes.processes.values() {
            let _ = self.processes.send(process, libc::SIGKILL);
            let _ = waitid(WaitId::PidFd(process.pidfd.as_fd()), WaitIdOptions::EXITED);
            strays::started().remove(&process.pid);
            reap_group(process.pid);
        }
        for left in self.processes.left.values() {
            if let Some(pidfd) = &left.pidfd {
                let _ = group::signal_group(pidfd, libc::SIGKILL);
                reap_group(left.group);
            }
        }
        reap_members();
        self.processes.pins.keep_only(BTreeSet::new());
        // Before the folder, in which it is mounted.
        self.processes.pins = Pins::none("gone");
    }
}

/// Says that a test cannot run here and why; with `REQUIRE_ALL=1` that is a failure.
pub(super) fn skip(reason: &str) {
    eprintln!("skipped: {reason}");
    let required = std::env::var_os("REQUIRE_ALL").is_some_and(|value| value == "1");
    assert!(!required, "skipped although REQUIRE_ALL=1: {reason}");
}

/// Reaps what became our child of a group that was killed.
fn reap_group(group: i32) {
    let group = identity::number(group);
    assert!(group.is_some(), "not our own group");
    while waitid(WaitId::Pgid(group), WaitIdOptions::EXITED).is_ok() {}
}

/// Reaps zombies that nobody waits for: members of a group who do not lead it. What other tests
/// start is in the group of the tests or leads its own.
fn reap_members() {
    let own = std::process::id().cast_signed();
    let tests = group::of(own).unwrap();
    let end = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    for pid in identity::pids() {
        let is_member =
            |stat: identity::Stat| stat.parent == own && stat.group != tests && stat.group != pid;
        // One that a test has started may have left the group that it led.
        let is_waited_for = || strays::started().contains(&pid);
        if let (Ok(stat), Some(number)) = (identity::stat(pid), identity::number(pid))
            && is_member(stat)
            && !is_waited_for()
        {
            let _ = waitid(WaitId::Pid(number), end);
        }
    }
}

fn web() -> ChildName {
    "web".parse().unwrap()
}

fn named(name: &str) -> ChildName {
    name.parse().unwrap()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = clock::mono() + PATIENCE;
    while !holds() {
        assert!(clock::mono() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Field 3 of `/proc/PID/stat`; `None` when there is no such process.
fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// Whether a process is there and no zombie.
fn lives(pid: i32) -> bool {
    !matches!(state(pid), None | Some('Z' | 'X'))
}

/// Runs a test's body in a process of its own, where it is the only one.
fn alone(test: &str, variables: &[(&str, &str)], body: impl Future<Output = ()>) {
    if std::env::var_os(ALONE).is_some() {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(body);
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(ALONE, "yes")
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    assert!(text.contains("1 passed"), "no such test: {text}");
}

/// Runs a body without root's rights, as the owner of this folder (not of what is in it).
pub(super) fn as_nobody(folder: &std::path::Path, body: impl FnOnce() + Send) {
    use rustix::{
        fs::{Gid, Uid},
        thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
    };
    const NOBODY: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        return body();
    }
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    rustix::fs::chown(folder, Some(user), Some(group)).unwrap();
    // Of one thread alone, unlike the C library's functions.
    let thread = || {
        set_thread_groups(&[]).unwrap();
        set_thread_res_gid(group, group, group).unwrap();
        set_thread_res_uid(user, user, user).unwrap();
        body();
    };
    std::thread::scope(|scope| scope.spawn(thread).join().unwrap());
}

/// The command that makes the test binary do what a shell cannot.
fn actor(name: &str) -> String {
    let binary = std::env::current_exe().unwrap();
    let binary = binary.to_str().unwrap();
    format!(
        "{ACTOR}={name} exec '{binary}' process::tests::act --exact --nocapture --test-threads=1"
    )
}

#[test]
#[expect(
    clippy::zombie_processes,
    reason = "the `parent` leaves one on purpose"
)]
fn act() {
    use std::os::unix::process::CommandExt;
    match std::env::var(ACTOR).as_deref() {
        // Leaves its process group for that of a child, which ends with it.
        Ok("deserter") => {
            let child = Command::new("cat")
                .stdin(std::process::Stdio::piped())
                .process_group(0)
                .spawn()
                .unwrap();
            let group = rustix::process::Pid::from_child(&child);
            rustix::process::setpgid(None, Some(group)).unwrap();
            fs::write("deserted", "yes").unwrap();
            std::thread::sleep(PATIENCE);
        }
        // Has a child that leads a group, which it reaps when it is told to.
        Ok("parent") => {
            let script = fs::read_to_string("script").unwrap();
            let mut child = Command::new("/bin/sh")
                .args(["-c", &script])
                .process_group(0)
                .spawn()
                .unwrap();
            fs::write("pid", format!("{}\n", child.id())).unwrap();
            let until = clock::mono() + PATIENCE;
            while clock::mono() < until {
                if fs::exists("reap").unwrap() {
                    child.wait().unwrap();
                    fs::write("reaped", "yes").unwrap();
                }
                std::thread::sleep(PAUSE);
            }
        }
        _ => {}
    }
}

#[tokio::test]
async fn capabilities_are_told_by_name() {
    let world = World::new();
    let capabilities = world.processes.capabilities();
    let names: Vec<_> = capabilities.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "cgroups",
            "descriptors",
            "exit codes",
            "group signals",
            "out of memory",
            "pins",
            "subreaper",
            "waiting"
        ]
    );
    assert!(["pidfd info", "zombie's status"].contains(&capabilities["exit codes"].as_str()));
    assert_eq!(capabilities["pins"], "no: not asked for");
    assert_eq!(capabilities["cgroups"], "no: not asked for");
    assert_eq!(capabilities["subreaper"], "yes");
    assert_eq!(capabilities["waiting"], "pidfd");
    assert_eq!(
        World::old().processes.capabilities()["group signals"],
        "kill"
    );
}

#[tokio::test]
async fn a_server_id_with_a_nul_byte_is_refused() {
    assert!(Processes::beside_others("a\0b").is_err());
}

#[tokio::test]
async fn processes_can_move_to_another_thread() {
    fn is_send(_: &impl Send) {}
    let mut world = World::new();
    is_send(&world.processes);
    is_send(&world.processes.wait());
}
