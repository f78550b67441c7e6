//! `depends_on`: starts along the graph, what lacks somebody, circles, and stops in reverse order.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::sandbox::{
    PATIENCE, SLEEPER, Sandbox, children_of, free_port, lives, pid_of, script, skip, wait_for,
    wait_lines,
};

/// A child that tells in `told` when it begins and when it ends, which takes it a while.
fn teller(sandbox: &Sandbox, name: &str, rest: &str) -> String {
    let told = sandbox.root().join("told").display().to_string();
    let text = format!(
        "trap 'sleep 0.2; echo {name} ends >> {told}; exit 0' TERM; echo {name} begins >> {told}; \
         while :; do sleep 0.02; done"
    );
    format!("{}{rest}", script(&text))
}

/// A program that ends with the code that stands in a file, and counts in another how often it ran.
fn migration(sandbox: &Sandbox, code: u8) -> String {
    let root = sandbox.root().display().to_string();
    fs::write(sandbox.root().join("code"), code.to_string()).unwrap();
    script(&format!("echo x >> {root}/count; exit $(cat {root}/code)"))
}

fn told(sandbox: &Sandbox) -> PathBuf {
    sandbox.root().join("told")
}

#[test]
fn start_brings_up_what_it_needs_and_waits_for_each_condition() {
    let sandbox = Sandbox::start("mode: quiet");
    let port = free_port();
    let gate = sandbox.gate("open");
    let serve = format!("exec python3 -m http.server --bind 127.0.0.1 {port}");
    let db = script(&format!("{gate}; {serve}"));
    sandbox.write(
        "db.yml",
        &format!("{db}ready: {{tcp: {port}, interval: 20ms}}\n"),
    );
    let migrate = migration(&sandbox, 0);
    sandbox.write(
        "migrate.yml",
        &format!("{migrate}depends_on: {{db: ready}}\n"),
    );
    let cache = "ready: {exec: [test, -e, warm], interval: 20ms}\n";
    sandbox.write("cache.yml", &format!("{SLEEPER}{cache}"));
    sandbox.write(
        "web.yml",
        &format!("{SLEEPER}depends_on: {{cache: ready, migrate: completed}}\n"),
    );
    let answer = std::thread::scope(|scope| {
        let start = scope.spawn(|| sandbox.done(&["start", "web"]));
        let waits = "waits for `cache` (ready), `migrate` (completed): ";
        wait_for("the reason", PATIENCE, || {
            let row = sandbox.row("web").unwrap();
            let reason = row["reason"].as_str().unwrap_or_default().to_owned();
            row["state"] == "pending" && reason.starts_with(waits)
        });
        sandbox.wait_state("cache", "starting");
        sandbox.wait_state("db", "starting");
        assert_eq!(sandbox.row("migrate").unwrap()["state"], "pending");
        sandbox.open_gate("open");
        sandbox.wait_state("migrate", "exited");
        let row = &sandbox.json(&["check", "web"])["children"][0];
        let shown = json!([
            {"name": "cache", "condition": "ready", "met": false},
            {"name": "migrate", "condition": "completed", "met": true},
        ]);
        assert_eq!(row["depends_on"], shown);
        let text = sandbox.client(&["check", "web"]).stdout;
        assert!(text.contains("cache ready: not yet"), "{text}");
        fs::write(sandbox.loadpath().join("warm"), "").unwrap();
        start.join().unwrap()
    });
    assert_eq!(answer["run"], 1);
    let history = &sandbox.json(&["check", "db"])["children"][0]["history"];
    assert_eq!(history[0]["started_by"]["cause"], "dependency");
    // What is completed is not done again for the next.
    sandbox.done(&["restart", "web"]);
    assert_eq!(wait_lines(&sandbox.root().join("count"), 1), ["x"]);
}

#[test]
fn a_failed_migration_leaves_it_pending_until_the_file_is_mended() {
    let mut sandbox = Sandbox::new("mode: sync");
    let migrate = migration(&sandbox, 3);
    sandbox.write("migrate.yml", &migrate);
    let needs = |who: &str| format!("{SLEEPER}depends_on: {{{who}}}\n");
    sandbox.write("db.yml", &needs("migrate: completed"));
    sandbox.write("web.yml", &needs("db: ready"));
    sandbox.start_server();
    let why = |sandbox: &Sandbox| {
        let row = sandbox.wait_state("web", "pending");
        row["reason"].as_str().unwrap_or_default().to_owned()
    };
    let reason = "waits for `db` (ready): `migrate` has ended: exit code 3";
    wait_for("the reason", PATIENCE, || why(&sandbox) == reason);
    let message = sandbox.refused(&["start", "web"], "dependency_failed", 1);
    assert!(
        message.contains("`web` -> `db` -> `migrate`: `migrate` has ended: exit code 3"),
        "{message}"
    );
    // The order stands when the server is killed, and nothing is tried in a loop.
    sandbox.restart_server();
    wait_for("the reason", PATIENCE, || why(&sandbox) == reason);
    let ran = fs::read_to_string(sandbox.root().join("count")).unwrap();
    assert!(ran.lines().count() <= 3, "{ran:?}");
    fs::write(sandbox.root().join("code"), "0").unwrap();
    sandbox.write(
        "migrate.yml",
        &format!("{migrate}x-mended: 1\nworkdir: /\n"),
    );
    sandbox.wait_state("web", "running");
    assert_eq!(sandbox.row("db").unwrap()["run"], 1);
}

#[test]
fn who_is_pending_by_a_clients_order_is_so_after_a_crash_in_every_mode() {
    let mut sandbox = Sandbox::start("mode: quiet");
    let gate = sandbox.gate("open");
    sandbox.write("job.yml", &script(&format!("{gate}; exit 0")));
    sandbox.write(
        "web.yml",
        &format!("{SLEEPER}depends_on: {{job: completed}}\n"),
    );
    let address = sandbox.address().to_string();
    let mut client = sandbox.client_command(&["start", "web", "on", &address]);
    let mut client = client.stderr(Stdio::null()).spawn().unwrap();
    sandbox.wait_state("job", "running");
    sandbox.wait_state("web", "pending");
    sandbox.kill_server();
    assert!(!client.wait().unwrap().success());
    sandbox.start_server();
    sandbox.wait_state("web", "pending");
    sandbox.open_gate("open");
    sandbox.wait_state("web", "running");
    assert_eq!(
        sandbox.row("job").unwrap()["run"],
        1,
        "it was not begun anew"
    );
}

#[test]
fn a_held_one_is_not_started_for_another_and_a_stop_harms_nobody_who_runs() {
    let sandbox = Sandbox::start("mode: quiet");
    sandbox.write("db.yml", SLEEPER);
    sandbox.write("web.yml", &format!("{SLEEPER}depends_on: {{db: ready}}\n"));
    sandbox.done(&["start", "web"]);
    let pid = pid_of(&sandbox.row("web").unwrap());
    let answer = sandbox.done(&["stop", "db"]);
    let message = answer["message"].as_str().unwrap();
    assert!(
        message.contains("`web` depends on it, and runs on"),
        "{message}"
    );
    assert!(lives(pid));
    // What runs is not replaced for it either.
    let message = sandbox.refused(&["restart", "web"], "dependency_failed", 1);
    assert!(
        message.contains("held by an operator's `stop`"),
        "{message}"
    );
    assert!(lives(pid));
    sandbox.done(&["stop", "web"]);
    sandbox.refused(&["start", "web"], "dependency_failed", 1);
    sandbox.wait_state("web", "pending");
    sandbox.done(&["start", "db"]);
    sandbox.wait_state("web", "running");
}

#[test]
fn circles_and_unknown_names_are_faults_with_their_places() {
    let sandbox = Sandbox::new("mode: full");
    let web = format!("{SLEEPER}depends_on:\n  db: ready\n  lost: started\n");
    sandbox.write("web.yml", &web);
    let db = format!("{SLEEPER}depends_on: {{web: started}}\n");
    sandbox.write("db.yml", &db);
    let config = sandbox.server_yml().display().to_string();
    let output = sandbox.server_to_end(&[&config]);
    assert_eq!(output.code, 6, "{output:?}");
    let lines = SLEEPER.lines().count();
    let load = sandbox.loadpath().display().to_string();
    for fault in [
        format!(
            "{load}/web.yml:{}:3: `web` depends on itself: web -> db -> web",
            lines + 2
        ),
        format!(
            "{load}/web.yml:{}:3: `web` depends on `lost`, and no file",
            lines + 3
        ),
        format!(
            "{load}/db.yml:{}:14: `db` depends on itself: db -> web -> db",
            lines + 1
        ),
    ] {
        assert!(output.stderr.contains(&fault), "{fault}: {}", output.stderr);
    }
    let output = sandbox.server_to_end(&["--check", &config]);
    assert_eq!(output.code, 6, "{output:?}");
    assert_eq!(sandbox.processes(), []);
}

#[test]
fn a_pushed_circle_changes_nothing_that_runs_and_is_told_until_it_is_gone() {
    let sandbox = Sandbox::start("mode: sync");
    sandbox.write("db.yml", SLEEPER);
    sandbox.write("web.yml", &format!("{SLEEPER}depends_on: {{db: ready}}\n"));
    let pid = pid_of(&sandbox.wait_state("web", "running"));
    sandbox.write("db.yml", &format!("{SLEEPER}depends_on: {{web: ready}}\n"));
    let message = wait_refusal(&sandbox);
    assert!(
        message.contains("`web` depends on itself: web -> db -> web"),
        "{message}"
    );
    let row = &sandbox.json(&["check", "web"])["children"][0];
    assert_eq!(row["faults"].as_array().map(Vec::len), Some(1), "{row}");
    let faults = sandbox.json(&["info"])["faults"].to_string();
    assert!(
        faults.contains("db.yml:") && faults.contains("web.yml:"),
        "{faults}"
    );
    assert!(lives(pid));
    sandbox.write("db.yml", SLEEPER);
    wait_for("the fault's end", PATIENCE, || {
        let faults = &sandbox.json(&["info"])["faults"];
        faults.as_array().is_none_or(Vec::is_empty)
    });
    assert!(lives(pid));
    sandbox.done(&["restart", "web"]);
}

/// What a restart of `web` is refused with.
fn wait_refusal(sandbox: &Sandbox) -> String {
    sandbox.refused(&["restart", "web"], "invalid_config", 6)
}

#[test]
fn everything_is_stopped_in_reverse_order_and_started_along_the_graph() {
    let sandbox = Sandbox::start("mode: sync");
    let needs = |who: &str| format!("depends_on: {{{who}}}\n");
    sandbox.write("db.yml", &teller(&sandbox, "db", ""));
    sandbox.write("api.yml", &teller(&sandbox, "api", &needs("db: ready")));
    sandbox.write(
        "web.yml",
        &teller(&sandbox, "web", &needs("api: ready, db: started")),
    );
    // Which of them is quicker to tell is not the server's doing.
    wait_lines(&told(&sandbox), 3);
    sandbox.done(&["stop", "--all"]);
    let down = ["web ends", "api ends", "db ends"];
    assert_eq!(wait_lines(&told(&sandbox), 6)[3..], down);
    sandbox.done(&["start", "--all"]);
    wait_lines(&told(&sandbox), 9);
    // The same when their files go together.
    for name in ["api", "db", "web"] {
        sandbox.remove(&format!("{name}.yml"));
    }
    wait_for("quiet", PATIENCE, || {
        sandbox.signal_server(Signal::HUP);
        wait_lines(&told(&sandbox), 9).len() == 12
    });
    assert_eq!(wait_lines(&told(&sandbox), 12)[9..], down);
}

#[test]
fn pid_1_stops_its_children_in_order_when_it_is_told_to_end() {
    let outer = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let mut trial = Command::new(outer[0]);
    trial.args(&outer[1..]).arg("true");
    if !trial.output().is_ok_and(|output| output.status.success()) {
        return skip("`unshare --pid` is not there or not permitted");
    }
    let mut sandbox = Sandbox::new("mode: sync").within(&outer);
    sandbox.write("zoo.yml", &teller(&sandbox, "zoo", ""));
    sandbox.write(
        "db.yml",
        &teller(&sandbox, "db", "depends_on: {zoo: started}\n"),
    );
    sandbox.write(
        "ape.yml",
        &teller(&sandbox, "ape", "depends_on: {db: ready}\n"),
    );
    sandbox.start_server();
    wait_lines(&told(&sandbox), 3);
    let inner = children_of(sandbox.server_pid());
    assert_eq!(inner.len(), 1);
    kill_process(Pid::from_raw(inner[0]).unwrap(), Signal::TERM).unwrap();
    assert_eq!(sandbox.wait_server(), 0);
    assert_eq!(
        wait_lines(&told(&sandbox), 6)[3..],
        ["ape ends", "db ends", "zoo ends"]
    );
    assert_eq!(sandbox.processes(), []);
}

#[test]
fn an_upgrade_in_the_middle_of_a_wait_loses_neither_the_child_nor_the_client() {
    let mut sandbox = Sandbox::new("mode: quiet").with_own_program();
    sandbox.start_server();
    let gate = sandbox.gate("open");
    sandbox.write("job.yml", &script(&format!("{gate}; exit 0")));
    sandbox.write(
        "web.yml",
        &format!("{SLEEPER}depends_on: {{job: completed}}\n"),
    );
    std::thread::scope(|scope| {
        let start = scope.spawn(|| sandbox.done(&["start", "web"]));
        sandbox.wait_state("web", "pending");
        sandbox.wait_state("job", "running");
        sandbox.done(&["upgrade"]);
        assert_eq!(sandbox.row("web").unwrap()["state"], "pending");
        sandbox.open_gate("open");
        assert_eq!(start.join().unwrap()["run"], 1);
    });
    assert_eq!(sandbox.row("job").unwrap()["run"], 1);
}
