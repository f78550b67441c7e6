//! Disks that are full or read-only: what runs runs on, `stop` works, and what cannot be recorded
//! is said (DESIGN 9).

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    process::{Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::{
    directories::{SmallDisk, with_small_disk},
    sandbox::{PATIENCE, SLEEPER, Sandbox, lives, pid_of, skip, wait_for},
};

/// The server's exit code when its state is in use.
const IN_USE: i32 = 7;

/// How a disk fails, and how it is mended.
struct Trouble {
    name: &'static str,
    begin: fn(&SmallDisk, &mut Sandbox),
    end: fn(&SmallDisk),
    /// What the reason ends with.
    why: &'static str,
}

const TROUBLES: [Trouble; 2] = [
    Trouble {
        name: "full",
        begin: |disk, _| disk.fill(),
        end: |disk| fs::remove_file(disk.file("fill")).unwrap(),
        why: "No space left on device (os error 28); \
              hint: free some space there (`df -h`, `df -i`) and try again",
    },
    Trouble {
        name: "read-only",
        // As long as a file is open for writing, the kernel makes it so for its own reasons alone.
        begin: |disk, sandbox| {
            sandbox.kill_server();
            disk.remount("ro");
            sandbox.start_server();
        },
        end: |disk| disk.remount("rw"),
        why: "Read-only file system (os error 30); hint: its file system is mounted read-only",
    },
];

/// How many records may fit into the last page of a full disk.
const RECORDS_MAX: usize = 200;

/// Uses up what room is left in the last page: the next record of an end or a beginning of a hold
/// of a child whose name is as long does not fit.
fn use_up_room(sandbox: &Sandbox, child: &str) {
    for _ in 0..RECORDS_MAX {
        for verb in ["stop", "start"] {
            if sandbox.json(&[verb, child])["ok"] == false {
                return;
            }
        }
    }
    panic!("there is no end of room");
}

/// Starts held children until one is refused; returns it and the answer. The release of a hold is
/// shorter than a hold, so that one or two may still fit.
fn refused_release<'a>(sandbox: &Sandbox, held: &[&'a str]) -> (&'a str, Value) {
    let mut starts = held
        .iter()
        .map(|name| (*name, sandbox.json(&["start", name])));
    let refused = starts.find(|(_, answer)| answer["ok"] == false);
    refused.expect("one does not fit")
}

#[test]
fn without_a_disk_for_state_stop_works_and_says_that_its_hold_is_not_recorded() {
    for trouble in TROUBLES {
        let Some((disk, mut sandbox)) = with_small_disk("state") else {
            return;
        };
        let running = ["web", "www", "pad"];
        let held = ["ha1", "ha2", "ha3", "ha4"];
        for name in running.iter().chain(&held) {
            sandbox.write(&format!("{name}.yml"), SLEEPER);
        }
        sandbox.start_server();
        for name in running.iter().chain(&held) {
            sandbox.done(&["start", name]);
        }
        for name in held {
            sandbox.done(&["stop", name]);
        }
        let [web, www] = ["web", "www"].map(|name| pid_of(&sandbox.row(name).unwrap()));
        (trouble.begin)(&disk, &mut sandbox);
        use_up_room(&sandbox, "pad");

        let told = sandbox.refused(&["stop", "web"], "internal", 1);
        let begin = "`web` is stopped, but its hold could not be recorded: cannot write `";
        assert!(
            told.starts_with(begin) && told.ends_with(trouble.why),
            "{told}"
        );
        let row = sandbox.row("web").unwrap();
        assert_eq!(row["state"], "stopped", "{row}");
        assert!(!lives(web));
        assert!(lives(www), "{}: what runs runs on", trouble.name);

        // A hold ends only when that is recorded: a start that cannot be is refused.
        let (name, refused) = refused_release(&sandbox, &held);
        assert_eq!(
            refused["error"]["code"], "internal",
            "{}: {refused}",
            trouble.name
        );
        let told = refused["error"]["message"].as_str().unwrap();
        let begin =
            format!("`{name}` was not started, for it could not be recorded: cannot write `");
        assert!(
            told.starts_with(&begin) && told.ends_with(trouble.why),
            "{told}"
        );
        assert_eq!(sandbox.row(name).unwrap()["state"], "stopped");

        // A server that is killed now takes back what runs, and starts nothing else.
        let before = sandbox.processes().len();
        sandbox.restart_server();
        assert_eq!(
            pid_of(&sandbox.wait_state("www", "running")),
            www,
            "{}",
            trouble.name
        );
        assert_eq!(sandbox.row(name).unwrap()["hold"], true);
        assert_eq!(sandbox.processes().len(), before);

        (trouble.end)(&disk);
        sandbox.done(&["start", name]);
        sandbox.done(&["stop", "www"]);
        sandbox.done(&["start", "web"]);
        sandbox.restart_server();
        let row = sandbox.row("www").unwrap();
        assert_eq!(
            (&row["state"], &row["hold"]),
            (&json!("stopped"), &json!(true))
        );
        sandbox.wait_state("web", "running");
        sandbox.wait_state(name, "running");
    }
}

/// Starts `late` until that is refused: a full disk has some room left in its last page.
fn refused_at_last(sandbox: &Sandbox) -> Value {
    for _ in 0..RECORDS_MAX {
        let answer = sandbox.json(&["start", "late"]);
        if answer["ok"] == false {
            return answer;
        }
        sandbox.done(&["stop", "late"]);
    }
    panic!("it is never refused");
}

#[test]
fn without_a_disk_for_live_runs_a_start_is_refused_and_a_stop_is_not() {
    for trouble in TROUBLES {
        let Some((disk, mut sandbox)) = with_small_disk("run") else {
            return;
        };
        for name in ["web", "db", "late"] {
            sandbox.write(&format!("{name}.yml"), SLEEPER);
        }
        sandbox.start_server();
        sandbox.done(&["start", "web"]);
        sandbox.done(&["start", "db"]);
        let [web, db] = ["web", "db"].map(|name| pid_of(&sandbox.row(name).unwrap()));
        (trouble.begin)(&disk, &mut sandbox);
        let refused = refused_at_last(&sandbox);
        assert_eq!(
            refused["error"]["code"], "internal",
            "{}: {refused}",
            trouble.name
        );
        let told = refused["error"]["message"].as_str().unwrap();
        let begin = "`late` was not started, for it could not be recorded: cannot write `";
        assert!(
            told.starts_with(begin) && told.ends_with(trouble.why),
            "{told}"
        );
        assert!(lives(web) && lives(db));

        // A replacement that cannot be recorded leaves what runs.
        let refused = sandbox.json(&["restart", "db"]);
        if refused["ok"] == false {
            assert_eq!(refused["error"]["code"], "internal", "{refused}");
        }
        sandbox.done(&["stop", "web"]);
        assert!(!lives(web), "{}", trouble.name);
        (trouble.end)(&disk);
        sandbox.done(&["start", "late"]);
        sandbox.restart_server();
        let row = sandbox.row("web").unwrap();
        assert_eq!(
            (&row["state"], &row["hold"]),
            (&json!("stopped"), &json!(true))
        );
        sandbox.wait_state("late", "running");
    }
}

#[test]
fn a_server_starts_on_a_read_only_disk_and_takes_back_what_runs() {
    for dir in ["run", "state"] {
        let Some((disk, mut sandbox)) = with_small_disk(dir) else {
            return;
        };
        sandbox.write("web.yml", SLEEPER);
        sandbox.start_server();
        sandbox.done(&["start", "web"]);
        let web = pid_of(&sandbox.row("web").unwrap());
        sandbox.kill_server();
        disk.remount("ro");
        sandbox.start_server();
        assert_eq!(pid_of(&sandbox.wait_state("web", "running")), web, "{dir}");
        // And once more, from what the first could not write.
        sandbox.restart_server();
        assert_eq!(pid_of(&sandbox.wait_state("web", "running")), web, "{dir}");
        let _hold_may_not_be_recorded = sandbox.json(&["stop", "web"]);
        assert!(!lives(web), "{dir}");
        disk.remount("rw");
        sandbox.done(&["start", "web"]);
        sandbox.restart_server();
        sandbox.wait_state("web", "running");
    }
}

/// Runs a server that has this one's directories, and a port of its own.
fn second_server(sandbox: &Sandbox) -> crate::sandbox::Output {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let text = fs::read_to_string(sandbox.server_yml()).unwrap();
    let kept = |line: &&str| !line.starts_with("listener_port") && !line.starts_with("mode");
    let mut lines: Vec<&str> = text.lines().filter(kept).collect();
    let port = format!("listener_port: {port}\nmode: quiet\n");
    lines.push(&port);
    let path = sandbox.root().join("second.yml");
    sandbox.replace(&path, &lines.join("\n"));
    sandbox.server_to_end(&[path.to_str().unwrap()])
}

#[test]
fn a_process_that_a_dead_server_left_with_its_lock_is_named() {
    let mut sandbox = Sandbox::start("mode: quiet");
    let server = sandbox.server_pid();
    sandbox.kill_server();
    // As a child that has not become its program yet: the lock of a server that is no more.
    let lock = sandbox.root().join("run/lock");
    let script = format!(
        "exec 9< {}; flock -n 9 || exit 1; exec sleep 300",
        lock.display()
    );
    let Ok(mut keeper) = Command::new("sh")
        .args(["-c", &script])
        .stderr(Stdio::null())
        .spawn()
    else {
        return skip("no shell");
    };
    let pid = i32::try_from(keeper.id()).unwrap();
    let comm = format!("/proc/{pid}/comm");
    let mut gone = false;
    wait_for("the lock", PATIENCE, || {
        gone = keeper.try_wait().unwrap().is_some();
        gone || fs::read_to_string(&comm).is_ok_and(|name| name == "sleep\n")
    });
    if gone {
        return skip("no `flock` program");
    }
    let output = second_server(&sandbox);
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    keeper.wait().unwrap();
    assert_eq!(output.code, IN_USE, "{output:?}");
    let expected = format!(
        "directory `{}` is in use by process {pid} (`sleep`), which a server that has died was \
         starting\nhint: it becomes its program or ends by itself, unless its disk hangs; \
         `kill -9 {pid}` ends it\n",
        sandbox.root().join("run").display()
    );
    assert_eq!(output.stderr, expected, "after server {server}");
    sandbox.start_server();
}

#[test]
fn a_lock_that_goes_in_time_is_waited_for() {
    let mut sandbox = Sandbox::start("mode: quiet");
    sandbox.kill_server();
    let lock = sandbox.root().join("state/lock");
    let file = fs::File::open(lock).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    sandbox.begin_server();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Well below the five seconds that it waits for.
            std::thread::sleep(Duration::from_millis(700));
            drop(file);
        });
    });
    sandbox.write("web.yml", SLEEPER);
    wait_for("the server", PATIENCE, || {
        crate::sandbox::hello(sandbox.address()).is_some()
    });
    wait_for("web", PATIENCE, || sandbox.row("web").is_some());
}
