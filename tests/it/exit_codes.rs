//! How a child ended that a server has not started itself: exact where the kernel can tell, never
//! guessed where it cannot.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
    time::Duration,
};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::{Value, json};

use crate::{
    network::for_everybody,
    sandbox::{PATIENCE, SLEEPER, Sandbox, lives, pid_of, script, skip, status_of, wait_for},
};

/// A user that no file of this machine belongs to.
const SOMEBODY: u32 = 61_234;

/// What `info` says that this machine gives.
fn capability(sandbox: &Sandbox, name: &str) -> String {
    let info = sandbox.json(&["info"]);
    let told = info["capabilities"][name].as_str();
    told.unwrap_or_else(|| panic!("{name}: {info}")).to_owned()
}

fn has(sandbox: &Sandbox, name: &str, expected: &str) -> bool {
    let told = capability(sandbox, name);
    if told != expected {
        skip(&format!("`{name}` is `{told}` here"));
    }
    told == expected
}

/// Waits until somebody has taken notice of a process's end; `false`, having said so, when those
/// without a parent stay zombies here.
fn is_reaped(pid: i32) -> bool {
    wait_for("its end", PATIENCE, || !lives(pid));
    let deadline = supervisor_rs::clock::mono() + Duration::from_secs(5);
    while supervisor_rs::clock::mono() < deadline {
        if status_of(pid, "State").is_none() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    // Not asked for by REQUIRE_ALL: within some containers nobody does.
    println!("skipped: nobody reaps orphans here");
    false
}

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

/// A child that ends like this when its gate is opened.
fn ending(sandbox: &Sandbox, name: &str, code: i32, more: &str) {
    let gate = sandbox.gate(&format!("{name}-gate"));
    // Whoever the server runs as.
    let path = sandbox.root().join(format!("{name}-gate"));
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap();
    let text = script(&format!("{gate}; exit {code}")) + more;
    sandbox.write(&format!("{name}.yml"), &text);
    wait_for(name, PATIENCE, || sandbox.row(name).is_some());
}

fn start(sandbox: &Sandbox, name: &str) -> i32 {
    pid_of(&sandbox.done(&["start", name]))
}

/// What `check NAME --json` says of its exit, but for the time.
fn exit_of(sandbox: &Sandbox, name: &str) -> Value {
    let mut answer = sandbox.json(&["check", name]);
    let mut exit = answer["children"][0]["exit"].take();
    let at = exit.as_object_mut().and_then(|exit| exit.remove("at"));
    assert!(at.is_some_and(|at| at.is_string()), "{answer} {exit}");
    exit
}

type End = fn(&mut Sandbox);

/// The two ways of a server to end while its children run on.
const ENDS: [(&str, End); 2] = [
    ("killed", |sandbox| sandbox.kill_server()),
    ("by order", |sandbox| assert_eq!(sandbox.stop_server(), 0)),
];

#[test]
fn what_ended_while_no_server_lived_is_told_exactly() {
    for (how, end) in ENDS {
        let mut sandbox = Sandbox::start("mode: quiet");
        if !has(&sandbox, "pins", "yes") {
            return;
        }
        for (name, code) in [("seven", 7), ("zero", 0), ("most", 255)] {
            ending(&sandbox, name, code, "");
        }
        sandbox.write("killed.yml", SLEEPER);
        wait_for("killed", PATIENCE, || sandbox.row("killed").is_some());
        let names = ["seven", "zero", "most", "killed"];
        let pids = names.map(|name| start(&sandbox, name));
        end(&mut sandbox);
        for name in ["seven", "zero", "most"] {
            sandbox.open_gate(&format!("{name}-gate"));
        }
        kill(pids[3]);
        if !pids.into_iter().all(is_reaped) {
            return;
        }
        sandbox.start_server();
        let exits = names.map(|name| exit_of(&sandbox, name));
        let expected = [
            json!({"code": 7}),
            json!({"code": 0}),
            json!({"code": 255}),
            json!({"signal": "SIGKILL"}),
        ];
        assert_eq!(exits, expected, "{how}");
        // It is on record, and needs no pin any more.
        sandbox.restart_server();
        let exits = names.map(|name| exit_of(&sandbox, name));
        assert_eq!(exits, expected, "{how}");
        assert_eq!(sandbox.stop_server(), 0);
        assert!(sandbox.mounts().is_empty(), "{how}");
    }
}

#[test]
fn what_was_taken_back_and_ends_is_told_exactly_and_at_once() {
    let mut sandbox = Sandbox::start("mode: quiet");
    if !has(&sandbox, "exit codes", "pidfd info") {
        return;
    }
    ending(&sandbox, "seven", 7, "");
    ending(&sandbox, "zero", 0, "");
    sandbox.write("killed.yml", SLEEPER);
    wait_for("killed", PATIENCE, || sandbox.row("killed").is_some());
    let pids = ["seven", "zero", "killed"].map(|name| start(&sandbox, name));
    sandbox.restart_server();
    sandbox.open_gate("seven-gate");
    sandbox.open_gate("zero-gate");
    kill(pids[2]);
    let exits = ["seven", "zero", "killed"].map(|name| {
        sandbox.wait_state(name, "exited");
        exit_of(&sandbox, name)
    });
    let expected = [
        json!({"code": 7}),
        json!({"code": 0}),
        json!({"signal": "SIGKILL"}),
    ];
    assert_eq!(exits, expected);
}

#[test]
fn a_child_is_told_of_exactly_after_any_number_of_servers() {
    let mut sandbox = Sandbox::start("mode: quiet");
    if !has(&sandbox, "pins", "yes") {
        return;
    }
    ending(&sandbox, "web", 7, "");
    let pid = start(&sandbox, "web");
    for _ in 0..3 {
        sandbox.restart_server();
    }
    sandbox.kill_server();
    sandbox.open_gate("web-gate");
    if !is_reaped(pid) {
        return;
    }
    sandbox.start_server();
    assert_eq!(exit_of(&sandbox, "web"), json!({"code": 7}));
}

/// Children with a restart policy that looks at codes.
const POLICIES: [(&str, i32, &str, bool); 4] = [
    ("fine", 3, "success: [0, 3]", false),
    ("final", 78, "never_on: [78]", false),
    ("clean", 0, "factor: 1", false),
    ("bad", 7, "success: [0, 3], never_on: [78]", true),
];

/// Starts these, ends them while no server lives, and says which were started again.
fn restarted(sandbox: &mut Sandbox) -> Option<Vec<(&'static str, bool)>> {
    for (name, code, rule, _) in POLICIES {
        let policy = format!("restart: {{when: on-failure, delay: 10ms, {rule}}}\n");
        ending(sandbox, name, code, &policy);
    }
    let pids = POLICIES.map(|(name, ..)| start(sandbox, name));
    sandbox.kill_server();
    for (name, ..) in POLICIES {
        sandbox.open_gate(&format!("{name}-gate"));
    }
    if !pids.into_iter().all(is_reaped) {
        return None;
    }
    sandbox.start_server();
    // Whatever is decided has been when these are decided: they are told of in one go.
    let settled = |name: &str| {
        let mut row = Value::Null;
        wait_for(name, PATIENCE, || {
            row = sandbox.row(name).unwrap();
            row["state"] != "backoff" && row["state"] != "pending" && row["state"] != "starting"
        });
        row["run"] != 1
    };
    Some(POLICIES.map(|(name, ..)| (name, settled(name))).to_vec())
}

#[test]
fn the_restart_policy_reacts_to_the_code_of_what_ended_while_no_server_lived() {
    let mut sandbox = Sandbox::start("mode: quiet");
    if !has(&sandbox, "pins", "yes") {
        return;
    }
    let Some(restarted) = restarted(&mut sandbox) else {
        return;
    };
    let expected = POLICIES.map(|(name, _, _, again)| (name, again));
    assert_eq!(restarted, expected);
}

#[test]
fn without_rights_an_exit_that_nobody_saw_is_unknown_and_counts_as_a_failure() {
    if !geteuid().is_root() {
        return skip("only root can be somebody else");
    }
    let sandbox = Sandbox::new("mode: quiet");
    let program = for_everybody(env!("CARGO_BIN_EXE_supervisor-rs-server"), sandbox.root());
    chown(sandbox.root(), Some(SOMEBODY), Some(SOMEBODY)).unwrap();
    let user = [format!("--reuid={SOMEBODY}"), format!("--regid={SOMEBODY}")];
    let program = program.display().to_string();
    let line = ["setpriv", &user[0], &user[1], "--clear-groups"];
    // The sandbox's own program may stand where only root gets.
    let as_somebody = [&line[..], &["sh", "-c", "exec \"$0\" \"$2\"", &program]].concat();
    let mut sandbox = sandbox.within(&as_somebody);
    sandbox.start_server();
    let pins = capability(&sandbox, "pins");
    let expected = "no: make a mount namespace: Operation not permitted (os error 1)";
    assert_eq!(pins, expected);
    ending(&sandbox, "plain", 7, "");
    let plain = start(&sandbox, "plain");
    let Some(restarted) = restarted(&mut sandbox) else {
        return;
    };
    assert_eq!(restarted, POLICIES.map(|(name, ..)| (name, true)));
    sandbox.kill_server();
    sandbox.open_gate("plain-gate");
    if is_reaped(plain) {
        sandbox.start_server();
        assert_eq!(exit_of(&sandbox, "plain"), json!({"unknown": true}));
    }
}

/// What is mounted in the namespace of a server's pins, as `TYPE POINT`.
fn pinned(server: i32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{server}/task")).unwrap();
    let is_keeper = |task: &Path| fs::read_to_string(task.join("comm")).unwrap() == "pins\n";
    let mut tasks = tasks.map(|task| task.unwrap().path());
    let keeper = tasks.find(|task| is_keeper(task)).unwrap();
    let table = fs::read_to_string(keeper.join("mountinfo")).unwrap();
    let line = |line: &str| {
        let (fields, kind) = line.split_once(" - ").unwrap();
        let kind = kind.split(' ').next().unwrap();
        format!("{kind} {}", fields.split(' ').nth(4).unwrap())
    };
    table.lines().map(line).collect()
}

#[test]
fn pins_cost_the_mount_table_one_line_keep_no_file_system_busy_and_leave_nothing() {
    const CHILDREN: usize = 20;
    let mut sandbox = Sandbox::start("mode: sync");
    if !has(&sandbox, "pins", "yes") {
        return;
    }
    let kept = sandbox.mounts();
    let pins = sandbox.root().join("run/pins");
    // Two where others would get a copy of it.
    assert!(matches!(kept.len(), 1 | 2), "{kept:?}");
    assert!(kept.iter().all(|path| *path == pins), "{kept:?}");
    for number in 0..CHILDREN {
        sandbox.write(&format!("c{number}.yml"), SLEEPER);
    }
    sandbox.wait_processes(CHILDREN);
    assert_eq!(sandbox.mounts(), kept);
    let expected = |rows: &[i32]| {
        let pin = |pid: &i32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            let ticks = stat.rsplit_once(')').unwrap().1.split(' ').nth(20).unwrap();
            format!("pidfs /supervisor-rs-pins-1/{pid}-{ticks}")
        };
        let mut lines: Vec<String> = rows.iter().map(pin).collect();
        lines.push("tmpfs /".to_owned());
        lines.sort();
        lines
    };
    let pids = |sandbox: &Sandbox| -> Vec<i32> {
        let answer = sandbox.json(&["check", "--all"]);
        let rows = answer["children"].as_array().unwrap().iter();
        let pids = rows.filter_map(|row| i32::try_from(row["pid"].as_i64()?).ok());
        pids.collect()
    };
    for again in [false, true] {
        if again {
            sandbox.restart_server();
        }
        let living = pids(&sandbox);
        assert_eq!(living.len(), CHILDREN);
        // None of the host's file systems is there.
        wait_for("the pins of all", PATIENCE, || {
            let mut found = pinned(sandbox.server_pid());
            found.sort();
            found == expected(&living)
        });
        assert_eq!(sandbox.mounts(), kept);
    }
    sandbox.done(&["restart", "c0"]);
    sandbox.done(&["stop", "c1"]);
    let living = pids(&sandbox);
    assert_eq!(living.len(), CHILDREN - 1);
    wait_for("no other pins", PATIENCE, || {
        let mut found = pinned(sandbox.server_pid());
        found.sort();
        found == expected(&living)
    });
    assert_eq!(sandbox.stop_server(), 0);
    assert_eq!(sandbox.mounts(), kept, "children run on");
    sandbox.start_server();
    sandbox.done(&["stop", "--all"]);
    assert_eq!(sandbox.stop_server(), 0);
    assert!(sandbox.mounts().is_empty());
    assert!(!pins.exists());
}

#[test]
fn a_server_that_pins_says_so_and_one_whose_place_is_taken_says_why_and_runs_all_the_same() {
    let mut sandbox = Sandbox::start("mode: quiet");
    if !has(&sandbox, "pins", "yes") {
        return;
    }
    assert_eq!(sandbox.stop_server(), 0);
    let pins = sandbox.root().join("run/pins");
    fs::create_dir(&pins).unwrap();
    sandbox.start_server();
    let told = capability(&sandbox, "pins");
    let why = format!("no: what stands at `{}` is none of ours", pins.display());
    assert_eq!(told, why);
    sandbox.write("web.yml", SLEEPER);
    wait_for("web", PATIENCE, || sandbox.row("web").is_some());
    start(&sandbox, "web");
}
