//! How a child says that it is to be stopped: other signals, ladders, commands, the whole tree.

use std::{process::Command, time::Duration};

use serde_json::json;
use supervisor_rs::clock;

use crate::sandbox::{
    PATIENCE, SLEEPER, Sandbox, cgroups_of, lives, pass_over, processes_marked, script, skip,
    wait_for, wait_lines,
};

/// A child that writes down the signals it gets and obeys none of these.
fn deaf(sandbox: &Sandbox, signals: &[&str]) -> String {
    let heard = sandbox.root().join("heard");
    let traps: Vec<String> = signals
        .iter()
        .map(|signal| format!("trap 'echo {signal} >> {}' {signal}", heard.display()))
        .collect();
    let traps = traps.join("; ");
    script(&format!(
        "{traps}; echo up >> {}; while :; do sleep 0.02; done",
        heard.display()
    ))
}

#[test]
fn a_ladder_is_climbed_in_its_order_and_told() {
    let sandbox = Sandbox::start("mode: quiet");
    let ladder = "stop: [{signal: INT, wait: 600ms}, {signal: QUIT, wait: 300ms}, KILL]\n";
    let child = deaf(&sandbox, &["INT", "QUIT", "TERM"]);
    sandbox.write("web.yml", &format!("{child}{ladder}"));
    sandbox.done(&["start", "web"]);
    let heard = sandbox.root().join("heard");
    wait_lines(&heard, 1);
    let begun = clock::mono();
    let answer = std::thread::scope(|scope| {
        let stop = scope.spawn(|| sandbox.done(&["stop", "web"]));
        let row = sandbox.wait_state("web", "stopping");
        let reason = row["reason"].as_str().unwrap().to_owned();
        assert!(reason.contains("was sent to process"), "{reason}");
        stop.join().unwrap()
    });
    let took = clock::mono() - begun;
    assert!(took >= Duration::from_millis(900), "{took:?}");
    assert!(took < Duration::from_secs(8), "no built-in grace: {took:?}");
    assert_eq!(answer["exit"]["signal"], "SIGKILL");
    assert_eq!(wait_lines(&heard, 3), ["up", "INT", "QUIT"]);
}

#[test]
fn a_child_that_ends_on_its_own_signal_is_not_told_more() {
    let sandbox = Sandbox::start("mode: quiet\ndefaults: {stop: {signal: INT, grace: 20s}}");
    let heard = sandbox.root().join("heard");
    let text = format!(
        "trap 'echo INT >> {0}; exit 3' INT; trap 'echo TERM >> {0}' TERM; echo up >> {0}; \
         while :; do sleep 0.02; done",
        heard.display()
    );
    sandbox.write("web.yml", &script(&text));
    sandbox.done(&["start", "web"]);
    wait_lines(&heard, 1);
    // The old run ends in its own way before the new one begins.
    assert_eq!(sandbox.done(&["restart", "web"])["run"], 2);
    wait_lines(&heard, 3);
    assert_eq!(sandbox.done(&["stop", "web"])["exit"]["code"], 3);
    assert_eq!(wait_lines(&heard, 4), ["up", "INT", "up", "INT"]);
}

#[test]
fn kill_alone_waits_for_nobody() {
    let sandbox = Sandbox::start("mode: quiet");
    let child = deaf(&sandbox, &["TERM"]);
    sandbox.write("web.yml", &format!("{child}stop: KILL\n"));
    sandbox.done(&["start", "web"]);
    let heard = sandbox.root().join("heard");
    wait_lines(&heard, 1);
    let begun = clock::mono();
    let answer = sandbox.done(&["stop", "web"]);
    assert!(clock::mono() - begun < Duration::from_secs(5));
    assert_eq!(answer["exit"]["signal"], "SIGKILL");
    assert_eq!(wait_lines(&heard, 1), ["up"]);
}

/// A child that starts a daemon, forked twice, in a session of its own, its environment empty; and
/// what it does then.
fn with_daemon(sandbox: &Sandbox, then: &str, scope: &str) -> String {
    let file = sandbox.root().join("daemon");
    let daemon = format!("echo $$ >> {}; exec sleep 300", file.display());
    let text = format!("(setsid env -i /bin/sh -c '{daemon}' &); {then}");
    format!("{}stop: {{scope: {scope}}}\n", script(&text))
}

fn daemon_of(sandbox: &Sandbox) -> i32 {
    let lines = wait_lines(&sandbox.root().join("daemon"), 1);
    lines[0].parse().unwrap()
}

#[test]
fn nothing_of_a_tree_escapes_a_cgroup() {
    let mut sandbox = Sandbox::new("mode: quiet");
    sandbox.start_server();
    if sandbox.json(&["info"])["capabilities"]["cgroups"] != json!("v2") {
        pass_over("no cgroup can be made here");
        return;
    }
    sandbox.write("web.yml", &with_daemon(&sandbox, "exec sleep 300", "tree"));
    sandbox.done(&["start", "web"]);
    let daemon = daemon_of(&sandbox);
    let home = cgroups_of(sandbox.id()).unwrap();
    assert!(home.join("web.1").is_dir());
    // A server that was killed meanwhile changes nothing.
    sandbox.kill_server();
    sandbox.start_server();
    assert!(lives(daemon));
    sandbox.done(&["stop", "web"]);
    wait_for("the daemon's end", PATIENCE, || !lives(daemon));
    wait_for("the cgroup's end", PATIENCE, || !home.exists());
}

#[test]
fn what_a_run_has_left_in_its_cgroup_is_gone_before_the_next_begins() {
    let sandbox = Sandbox::start("mode: quiet");
    if sandbox.json(&["info"])["capabilities"]["cgroups"] != json!("v2") {
        pass_over("no cgroup can be made here");
        return;
    }
    sandbox.write("web.yml", &with_daemon(&sandbox, "exit 0", "tree"));
    sandbox.done(&["start", "web"]);
    let daemon = daemon_of(&sandbox);
    sandbox.wait_state("web", "exited");
    assert!(lives(daemon), "nobody has ordered its end");
    sandbox.write("web.yml", SLEEPER);
    sandbox.done(&["start", "web"]);
    wait_for("the daemon's end", PATIENCE, || !lives(daemon));
}

/// In a PID namespace, whatever is killed by mistake is of that namespace.
#[test]
fn what_begins_after_a_tree_has_ended_costs_nobody_else_his_life() {
    let outer = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let mut trial = Command::new(outer[0]);
    trial.args(&outer[1..]).arg("true");
    if !trial.output().is_ok_and(|output| output.status.success()) {
        return skip("`unshare --pid` is not there or not permitted");
    }
    for hide in ["", "mount -t tmpfs none /sys/fs/cgroup; "] {
        let text = format!("{hide}exec \"$0\" \"$@\"");
        let within = [&outer[..], &["sh", "-c", &text]].concat();
        let mut sandbox = Sandbox::new("mode: quiet").within(&within);
        sandbox.write("db.yml", SLEEPER);
        let tree = "stop: {scope: tree}\n";
        sandbox.write("web.yml", &format!("{}{tree}", script("sleep 300 & wait")));
        sandbox.write("done.yml", &format!("{}{tree}", script("exit 0")));
        sandbox.start_server();
        let db = sandbox.done(&["start", "db"])["pid"].clone();
        sandbox.done(&["start", "web"]);
        sandbox.done(&["start", "done"]);
        sandbox.wait_state("done", "exited");
        for verb in ["restart", "stop", "start", "trystart"] {
            sandbox.done(&[verb, "web"]);
        }
        sandbox.done(&["start", "done"]);
        let row = sandbox.row("db").unwrap();
        assert_eq!(
            (&row["state"], &row["pid"]),
            (&json!("running"), &db),
            "{row}"
        );
        sandbox.expect_leftovers();
        sandbox.done(&["kill", "--stop-children"]);
        sandbox.wait_server();
    }
}

#[test]
fn a_run_without_a_tree_leaves_its_daemon_alone() {
    let sandbox = Sandbox::start("mode: quiet");
    sandbox.write("web.yml", &with_daemon(&sandbox, "exec sleep 300", "group"));
    sandbox.done(&["start", "web"]);
    let daemon = daemon_of(&sandbox);
    sandbox.done(&["stop", "web"]);
    assert!(lives(daemon), "as the documentation says");
    let pid = rustix::process::Pid::from_raw(daemon).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    wait_for("the daemon's end", PATIENCE, || !lives(daemon));
}

#[test]
fn a_command_has_a_run_end_and_one_that_fails_is_not_waited_for() {
    let sandbox = Sandbox::start("mode: quiet");
    let child = deaf(&sandbox, &["TERM"]);
    let quit = "stop: {command: [sh, -c, 'kill -INT $MAINPID'], grace: 1h}\n";
    sandbox.write("web.yml", &format!("{}{quit}", script("exec sleep 300")));
    sandbox.done(&["start", "web"]);
    let answer = sandbox.done(&["stop", "web"]);
    assert_eq!(answer["exit"]["signal"], "SIGINT");
    let fails =
        "stop: [{command: [sh, -c, 'exit 7'], wait: 1h}, {signal: TERM, wait: 1ms}, KILL]\n";
    sandbox.write("deaf.yml", &format!("{child}{fails}"));
    sandbox.done(&["start", "deaf"]);
    wait_lines(&sandbox.root().join("heard"), 1);
    let answer = sandbox.done(&["stop", "deaf"]);
    assert_eq!(answer["exit"]["signal"], "SIGKILL");
    let log = sandbox.server_log();
    assert!(log.contains("the command that stops it failed"), "{log}");
    // One that does not end is ended with its step.
    let hangs = "stop: [{command: 'sleep 300', wait: 100ms}, KILL]\n";
    sandbox.write("hangs.yml", &format!("{}{hangs}", script("exec sleep 300")));
    sandbox.done(&["start", "hangs"]);
    sandbox.done(&["stop", "hangs"]);
    let mark = format!("SUPERVISOR_RS_PROBE={}/", sandbox.id());
    wait_for("its end", PATIENCE, || processes_marked(&mark).is_empty());
}
