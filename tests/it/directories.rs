//! The server's own directories (DESIGN 3 and 9): deleted, replaced or full while it runs.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};

use crate::sandbox::{Output, PATIENCE, SLEEPER, Sandbox, lives, pid_of, script, skip, wait_for};

/// The server's exit code when its state is in use.
const IN_USE: i32 = 7;

fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// A server that runs `web` and knows `late`, held `db` and `never`.
fn running() -> Sandbox {
    let sandbox = Sandbox::start("mode: quiet\nrescan: off");
    for name in ["web", "late", "db"] {
        sandbox.write(&format!("{name}.yml"), SLEEPER);
        wait_for(name, PATIENCE, || sandbox.row(name).is_some());
    }
    sandbox.done(&["start", "web"]);
    sandbox.done(&["start", "db"]);
    sandbox.done(&["stop", "db"]);
    sandbox
}

/// What a second server says that has the same directories and another port.
fn second_server(sandbox: &Sandbox) -> Output {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let empty = sandbox.root().join("empty");
    fs::create_dir_all(&empty).unwrap();
    let text = fs::read_to_string(sandbox.server_yml()).unwrap();
    let kept = |line: &&str| !line.starts_with("listener_port") && !line.starts_with("loadpaths");
    let mut text: Vec<&str> = text.lines().filter(kept).collect();
    let own = format!("listener_port: {port}\nloadpaths: [empty]\n");
    text.push(&own);
    let path = sandbox.root().join("second.yml");
    sandbox.replace(&path, &text.join("\n"));
    sandbox.server_to_end(&[path.to_str().unwrap()])
}

/// The next server takes `web` back and `db` is held still: nothing was lost.
fn assert_continued(sandbox: &mut Sandbox, web: i32, late: i32) {
    sandbox.restart_server();
    assert_eq!(pid_of(&sandbox.wait_state("web", "running")), web);
    assert_eq!(pid_of(&sandbox.wait_state("late", "running")), late);
    assert_eq!(sandbox.row("db").unwrap()["hold"], true);
    assert_eq!(sandbox.wait_processes(2).len(), 2);
    sandbox.done(&["stop", "web"]);
    assert!(!lives(web));
}

#[test]
fn a_deleted_runtime_directory_is_made_anew_and_starts_go_on() {
    let mut sandbox = running();
    let web = pid_of(&sandbox.row("web").unwrap());
    let run = sandbox.root().join("run");
    sandbox.delete("run");
    let late = pid_of(&sandbox.done(&["start", "late"]));
    assert_eq!(mode_of(&run), 0o700);
    assert_eq!(mode_of(&run.join("lock")), 0o600);
    assert_continued(&mut sandbox, web, late);
}

/// What the server keeps its pins by is a mount, which nobody can delete.
#[test]
fn what_rm_could_delete_of_a_runtime_directory_is_made_anew_and_what_it_could_not_is_used_again() {
    let mut sandbox = running();
    let web = pid_of(&sandbox.row("web").unwrap());
    let mounts = sandbox.mounts();
    let run = sandbox.root().join("run");
    let rm = Command::new("rm").arg("-rf").arg(&run).output().unwrap();
    let words = String::from_utf8_lossy(&rm.stderr).into_owned();
    assert_eq!(rm.status.success(), mounts.is_empty(), "{words}");
    assert_eq!(run.exists(), !mounts.is_empty());
    assert!(!run.join("runtime.journal").exists());
    let late = pid_of(&sandbox.done(&["start", "late"]));
    assert_eq!(sandbox.mounts(), mounts);
    assert_continued(&mut sandbox, web, late);
    assert_eq!(sandbox.mounts(), mounts);
}

#[test]
fn all_deleted_directories_are_made_anew_and_no_second_server_comes_in_between() {
    let mut sandbox = running();
    let web = pid_of(&sandbox.row("web").unwrap());
    let names = ["run", "state", "logs"];
    for name in names {
        sandbox.delete(name);
    }
    // I1: the locks are gone with their files, and the first server has not noticed yet.
    let second = second_server(&sandbox);
    assert_eq!(second.code, IN_USE, "{second:?}");
    let told = format!("is in use by the server with pid {}", sandbox.server_pid());
    assert!(second.stderr.contains(&told), "{second:?}");

    for name in names {
        sandbox.unmount_pins();
        let _may_be_there = fs::remove_dir_all(sandbox.root().join(name));
    }
    let late = pid_of(&sandbox.done(&["start", "late"]));
    for name in names {
        assert_eq!(mode_of(&sandbox.root().join(name)), 0o700, "{name}");
    }
    assert!(sandbox.log_dir().join("late.out").exists());
    let second = second_server(&sandbox);
    assert_eq!(second.code, IN_USE, "{second:?}");
    let holds = sandbox.root().join("state/state.journal");
    wait_for("the state", PATIENCE, || holds.exists());
    assert_continued(&mut sandbox, web, late);
}

#[test]
fn a_deleted_directory_is_put_back_by_the_next_listing_though_nothing_is_started() {
    let mut sandbox = running();
    let web = pid_of(&sandbox.row("web").unwrap());
    let names = ["run/runtime.journal", "state/state.journal"];
    for name in ["run", "state"] {
        sandbox.delete(name);
    }
    sandbox.write("another.yml", SLEEPER);
    for name in names {
        let path = sandbox.root().join(name);
        wait_for(name, PATIENCE, || path.exists());
    }
    sandbox.restart_server();
    assert_eq!(pid_of(&sandbox.wait_state("web", "running")), web);
}

#[test]
fn a_directory_of_strangers_in_its_place_is_not_used_and_the_refusal_says_why() {
    let sandbox = running();
    let run = sandbox.root().join("run");
    sandbox.delete("run");
    fs::create_dir(&run).unwrap();
    fs::set_permissions(&run, fs::Permissions::from_mode(0o777)).unwrap();
    let told = sandbox.refused(&["start", "late"], "internal", 1);
    let expected = format!(
        "`late` was not started, for it could not be recorded: cannot write \
         `{0}/runtime.journal`: cannot use directory `{0}`: others can write to it (mode 0777); \
         hint: `chmod 0700 {0}`",
        run.display()
    );
    assert_eq!(told, expected);
    assert_eq!(fs::read_dir(&run).unwrap().count(), 0);
    fs::set_permissions(&run, fs::Permissions::from_mode(0o700)).unwrap();
    sandbox.done(&["start", "late"]);
}

#[test]
fn what_is_owed_is_written_as_soon_as_it_can_be_though_nothing_else_happens() {
    let mut sandbox = Sandbox::new("mode: quiet\nrescan: off");
    let gate = sandbox.gate("gate");
    sandbox.write("web.yml", &script(&format!("{gate}; exit 7")));
    sandbox.start_server();
    sandbox.done(&["start", "web"]);
    let run = sandbox.root().join("run");
    sandbox.delete("run");
    fs::write(&run, "in the way").unwrap();
    sandbox.open_gate("gate");
    let ended = sandbox.wait_state("web", "exited");
    fs::remove_file(&run).unwrap();
    let records = run.join("runtime.journal");
    wait_for("the records", PATIENCE, || records.exists());
    sandbox.restart_server();
    assert_eq!(sandbox.wait_state("web", "exited")["exit"], ended["exit"]);
}

// A disk that is full

/// What a test puts on a small disk at most, in KiB, should it be larger than believed.
const FILL_KIB_MAX: usize = 1024;
/// How many starts may fit into the last page of a full disk.
const STARTS_MAX: usize = 40;

/// A file system of 64 KiB and few files that is seen by whoever joins its mount namespace.
pub(crate) struct SmallDisk {
    holder: Child,
    at: PathBuf,
}

impl SmallDisk {
    /// `None` where that is not permitted.
    fn mount(at: &Path) -> Option<Self> {
        fs::create_dir(at).unwrap();
        let script = format!(
            "mount -t tmpfs -o size=64k,nr_inodes=32,mode=700 none {} && echo mounted && exec cat",
            at.display()
        );
        let mut holder = Command::new("unshare")
            .args(["--mount", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut line = String::new();
        let stdout = holder.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let disk = Self {
            holder,
            at: at.to_owned(),
        };
        (line == "mounted\n").then_some(disk)
    }

    /// What a server on this disk is started by.
    fn namespace(&self) -> String {
        format!("--mount=/proc/{}/ns/mnt", self.holder.id())
    }

    /// A file on it, as seen from outside.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        let inside = self.at.strip_prefix("/").unwrap();
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.id()));
        root.join(inside).join(name)
    }

    /// Mounts it anew, `ro` or `rw`.
    pub(crate) fn remount(&self, how: &str) {
        let status = Command::new("nsenter")
            .arg(self.namespace())
            .args(["mount", "-o", &format!("remount,{how}")])
            .arg(&self.at)
            .status()
            .unwrap();
        assert!(status.success(), "{:?} cannot be mounted anew", self.at);
    }

    pub(crate) fn fill(&self) {
        let mut file = fs::File::create(self.file("fill")).unwrap();
        for _ in 0..FILL_KIB_MAX {
            if file.write_all(&[0; 1024]).is_err() {
                return;
            }
        }
        panic!("{:?} does not get full", self.at);
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _reaped = self.holder.wait();
    }
}

/// How many children end while the disk is full: what is written of them is more than a page.
const ENDS: usize = 24;

/// How every child ended, once all `c…` have.
fn ends(sandbox: &Sandbox) -> Vec<Value> {
    let mut ends = Vec::new();
    wait_for("the ends of all", PATIENCE, || {
        let answer = sandbox.json(&["check", "--all"]);
        let rows = answer["children"].as_array().unwrap().iter();
        let ended = rows.filter(|row| row["state"] == "exited");
        ends = ended.map(|row| json!([row["name"], row["exit"]])).collect();
        ends.len() == ENDS
    });
    ends
}

/// A server-to-be with a small disk for one of its directories; `None` where that cannot be.
pub(crate) fn with_small_disk(dir: &str) -> Option<(SmallDisk, Sandbox)> {
    let sandbox = Sandbox::new("mode: quiet");
    let Some(disk) = SmallDisk::mount(&sandbox.root().join(dir)) else {
        skip("no right to mount, or no `unshare`");
        return None;
    };
    let namespace = disk.namespace();
    Some((disk, sandbox.within(&["nsenter", &namespace])))
}

#[test]
fn a_full_disk_says_which_file_could_not_be_written_and_loses_no_exit_code() {
    let Some((disk, mut sandbox)) = with_small_disk("run") else {
        return;
    };
    let go = sandbox.root().join("go");
    let wait = format!("until [ -e {} ]; do sleep 0.2; done; exit 7", go.display());
    for number in 0..ENDS {
        sandbox.write(&format!("c{number}.yml"), &script(&wait));
    }
    sandbox.write("late.yml", SLEEPER);
    sandbox.start_server();
    for number in 0..ENDS {
        sandbox.done(&["start", &format!("c{number}")]);
    }
    disk.fill();

    let mut refused = Value::Null;
    for _ in 0..STARTS_MAX {
        refused = sandbox.json(&["start", "late"]);
        if refused["ok"] == false {
            break;
        }
        sandbox.done(&["stop", "late"]);
    }
    let expected = format!(
        "`late` was not started, for it could not be recorded: cannot write \
         `{}/runtime.journal`: No space left on device (os error 28); \
         hint: free some space there (`df -h`, `df -i`) and try again",
        disk.at.display()
    );
    assert_eq!(refused["error"]["code"], "internal", "{refused}");
    assert_eq!(refused["error"]["message"], json!(expected));

    // None of them began without room for the record of its end.
    fs::write(&go, "").unwrap();
    let told = ends(&sandbox);
    assert!(told.iter().all(|end| end[1]["code"] == 7), "{told:?}");
    sandbox.restart_server();
    assert_eq!(ends(&sandbox), told);

    fs::remove_file(disk.file("fill")).unwrap();
    sandbox.done(&["start", "late"]);
}

#[test]
fn a_full_disk_of_outputs_says_which_one_cannot_be_opened() {
    let Some((disk, mut sandbox)) = with_small_disk("logs") else {
        return;
    };
    sandbox.write("web.yml", SLEEPER);
    sandbox.start_server();
    disk.fill();
    // A new file takes one of the inodes, of which there are few.
    let mut names = 0;
    while fs::File::create(disk.file(&format!("empty-{names}"))).is_ok() {
        names += 1;
        assert!(
            names < FILL_KIB_MAX,
            "{:?} takes any number of files",
            disk.at
        );
    }
    let told = sandbox.refused(&["start", "web"], "spawn_failed", 1);
    let expected = format!(
        "output `{}/web.out` cannot be opened: No space left on device (os error 28); \
         hint: free some space there (`df -h`, `df -i`)",
        disk.at.display()
    );
    assert!(told.ends_with(&expected), "{told}");
}
