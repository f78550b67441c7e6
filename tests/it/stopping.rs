//! Stopping: TERM to the group, ten seconds, KILL; and nothing new before the old run is gone.

use std::{fs, thread, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use supervisor_rs::clock;

use crate::sandbox::{PATIENCE, SLEEPER, Sandbox, lives, script, status_of, wait_for, wait_lines};

/// How long a child has between TERM and KILL.
const GRACE: Duration = Duration::from_secs(10);

/// Far less than the grace: what ends within this did not wait for KILL.
const SOON: Duration = Duration::from_secs(5);

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

fn number(line: &str) -> i32 {
    line.trim().parse().unwrap()
}

#[test]
fn a_child_that_obeys_term_is_stopped_at_once_and_held() {
    let sandbox = Sandbox::start("mode: sync");
    sandbox.write("web.yml", SLEEPER);
    let pid = sandbox.wait_state("web", "running")["pid"].clone();
    let begun = clock::mono();
    let answer = sandbox.done(&["stop", "web"]);
    assert!(clock::mono() - begun < SOON);
    assert_eq!(answer["op"], "stop");
    assert_eq!(answer["child"], "web");
    assert_eq!(answer["pid"], pid);
    assert_eq!(answer["run"], 1);
    assert_eq!(answer["exit"]["signal"], "SIGTERM");
    let message = format!("`web` stopped: run 1, pid {pid}, SIGTERM");
    assert_eq!(answer["message"], message);
    assert_eq!(sandbox.processes(), []);
    let row = sandbox.row("web").unwrap();
    assert_eq!(
        (&row["state"], &row["hold"]),
        (&json!("stopped"), &json!(true))
    );
    assert_eq!(row["exit"], answer["exit"]);
    assert_eq!(row["pid"], json!(null));
}

#[test]
fn a_child_that_ends_in_its_own_way_on_term_is_told_with_its_code() {
    let sandbox = Sandbox::start("mode: quiet");
    let up = sandbox.root().join("up");
    let text = format!(
        "trap 'exit 7' TERM; echo up > {}; sleep 300 & wait",
        up.display()
    );
    sandbox.write("web.yml", &script(&text));
    sandbox.done(&["start", "web"]);
    wait_lines(&up, 1);
    assert_eq!(sandbox.done(&["stop", "web"])["exit"]["code"], 7);
    assert_eq!(sandbox.row("web").unwrap()["exit"]["code"], 7);
    assert_eq!(sandbox.processes(), []);
}

#[test]
fn children_that_ignore_term_are_killed_after_ten_seconds_with_their_grandchildren() {
    let sandbox = Sandbox::start("mode: quiet");
    let up = sandbox.root().join("up");
    let text = format!(
        "trap '' TERM; sleep 300 & sleep 300 & echo up >> {}; wait",
        up.display()
    );
    for name in ["one", "two"] {
        sandbox.write(&format!("{name}.yml"), &script(&text));
        sandbox.done(&["start", name]);
    }
    wait_lines(&up, 2);
    assert_eq!(sandbox.processes().len(), 6);
    let begun = clock::mono();
    let answer = thread::scope(|scope| {
        let stop = scope.spawn(|| sandbox.done(&["stop", "--all"]));
        let row = sandbox.wait_state("one", "stopping");
        let reason = format!("TERM was sent to process {}", row["pid"]);
        assert_eq!(row["reason"], reason);
        stop.join().unwrap()
    });
    let took = clock::mono() - begun;
    assert!(
        GRACE <= took && took < GRACE + SOON,
        "both at once: {took:?}"
    );
    let outcomes = answer["children"].as_array().unwrap();
    let names: Vec<_> = outcomes.iter().map(|outcome| &outcome["name"]).collect();
    assert_eq!(names, ["one", "two"]);
    assert!(outcomes.iter().all(|outcome| outcome["ok"] == true));
    assert_eq!(answer["message"], "2 stopped and held");
    assert_eq!(sandbox.processes(), []);
    for name in ["one", "two"] {
        let row = sandbox.row(name).unwrap();
        assert_eq!(row["state"], "stopped");
        assert_eq!(row["exit"]["signal"], "SIGKILL");
    }
}

#[test]
fn a_grandchild_that_ignores_term_ends_with_its_group() {
    let sandbox = Sandbox::start("mode: quiet");
    let up = sandbox.root().join("up");
    let text = format!(
        "(trap '' TERM; echo up > {}; exec sleep 300) & exec sleep 300",
        up.display()
    );
    sandbox.write("web.yml", &script(&text));
    sandbox.done(&["start", "web"]);
    wait_lines(&up, 1);
    wait_for("both", PATIENCE, || sandbox.processes().len() == 2);
    let begun = clock::mono();
    assert_eq!(sandbox.done(&["stop", "web"])["exit"]["signal"], "SIGTERM");
    assert!(clock::mono() - begun < SOON);
    wait_for("the grandchild's end", SOON, || {
        sandbox.processes().is_empty()
    });
}

#[test]
fn a_daemon_that_left_its_group_survives_a_stop_and_is_reaped_when_it_ends() {
    let sandbox = Sandbox::start("mode: quiet");
    let file = sandbox.root().join("daemon");
    let daemon = format!("echo $$ > {}; exec sleep 300", file.display());
    let text = format!("(setsid sh -c '{daemon}' &); exec sleep 300");
    sandbox.write("web.yml", &script(&text));
    sandbox.done(&["start", "web"]);
    let daemon = number(&wait_lines(&file, 1)[0]);
    let server = sandbox.server_pid().to_string();
    wait_for("adoption by the server", PATIENCE, || {
        status_of(daemon, "PPid").as_deref() == Some(&server)
    });
    sandbox.done(&["stop", "web"]);
    assert!(lives(daemon), "it escaped, as the documentation says");
    assert_eq!(sandbox.processes().len(), 1);
    signal(daemon, Signal::TERM);
    wait_for("the daemon's reaping", PATIENCE, || {
        status_of(daemon, "State").is_none()
    });
}

#[test]
fn a_suspended_child_gets_the_order_to_end() {
    let sandbox = Sandbox::start("mode: quiet");
    sandbox.write("web.yml", SLEEPER);
    let pid = sandbox.done(&["start", "web"])["pid"].as_i64().unwrap();
    let pid = i32::try_from(pid).unwrap();
    signal(pid, Signal::STOP);
    wait_for("the suspension", PATIENCE, || {
        status_of(pid, "State").is_some_and(|state| state.starts_with('T'))
    });
    assert_eq!(sandbox.row("web").unwrap()["state"], "running");
    let begun = clock::mono();
    assert_eq!(sandbox.done(&["stop", "web"])["exit"]["signal"], "SIGTERM");
    assert!(clock::mono() - begun < SOON);
}

/// A child that takes a lock while it lives, is slow to let it go, and logs it when another
/// holds it.
fn jealous(sandbox: &Sandbox) -> String {
    let root = sandbox.root().display();
    script(&format!(
        "mkdir {root}/lock || echo overlap >> {root}/log\n\
         trap 'sleep 0.2; rmdir {root}/lock; echo down >> {root}/log; exit 0' TERM\n\
         echo up >> {root}/log\n\
         while :; do sleep 0.1; done"
    ))
}

#[test]
fn restart_and_trystart_wait_for_the_old_runs_end() {
    let sandbox = Sandbox::start("mode: quiet");
    let log = sandbox.root().join("log");
    sandbox.write("web.yml", &jealous(&sandbox));
    let mut pid = sandbox.done(&["trystart", "web"])["pid"].clone();
    for (turn, verb) in ["restart", "trystart", "restart"].into_iter().enumerate() {
        wait_lines(&log, 2 * turn + 1);
        let answer = sandbox.done(&[verb, "web"]);
        assert_eq!(
            (&answer["op"], &answer["run"]),
            (&json!(verb), &json!(turn + 2))
        );
        assert_ne!(answer["pid"], pid);
        let message = format!(
            "`web` restarted: run {}, pid {} (before: run {}, pid {pid}, exit code 0)",
            turn + 2,
            answer["pid"],
            turn + 1
        );
        assert_eq!(answer["message"], message);
        pid = answer["pid"].clone();
    }
    wait_lines(&log, 7);
    sandbox.done(&["stop", "web"]);
    let lines = wait_lines(&log, 8);
    assert_eq!(lines, ["up", "down"].repeat(4), "never two at once");
}

#[test]
fn a_changed_file_waits_for_the_old_runs_end_too() {
    let sandbox = Sandbox::start("mode: sync");
    let log = sandbox.root().join("log");
    let text = jealous(&sandbox);
    sandbox.write("web.yml", &text);
    wait_lines(&log, 1);
    for turn in 1..=3 {
        let changed = text.replace("sleep 0.1", &format!("sleep 0.1{turn}"));
        sandbox.write("web.yml", &changed);
        wait_lines(&log, 2 * turn + 1);
    }
    wait_for("run 4", PATIENCE, || {
        sandbox.row("web").unwrap()["run"] == 4
    });
    sandbox.done(&["stop", "web"]);
    assert_eq!(wait_lines(&log, 8), ["up", "down"].repeat(4));
}

#[test]
fn a_restart_that_ignores_term_is_answered_after_the_kill() {
    let sandbox = Sandbox::start("mode: quiet");
    let root = sandbox.root().display().to_string();
    let text = script(&format!(
        "trap '' TERM\n\
         [ -e {root}/first ] && exec sleep 300\n\
         echo up > {root}/first; while :; do sleep 1; done"
    ));
    sandbox.write("web.yml", &text);
    let old = sandbox.done(&["start", "web"])["pid"].clone();
    wait_lines(&sandbox.root().join("first"), 1);
    let begun = clock::mono();
    let answer = sandbox.done(&["restart", "web"]);
    let took = clock::mono() - begun;
    assert!(GRACE <= took && took < GRACE + SOON, "{took:?}");
    let message = answer["message"].as_str().unwrap();
    let before = format!("(before: run 1, pid {old}, SIGKILL)");
    assert!(message.ends_with(&before), "{message}");
    let groups: Vec<_> = sandbox.processes().iter().map(|p| p.group).collect();
    assert_eq!(
        json!(groups),
        json!([answer["pid"]]),
        "one run, and it is the new one"
    );
    signal(groups[0], Signal::KILL);
    sandbox.wait_state("web", "exited");
}

#[test]
fn a_new_run_that_cannot_start_leaves_the_old_one() {
    let sandbox = Sandbox::start("mode: quiet");
    let root = sandbox.root().display().to_string();
    fs::create_dir(sandbox.root().join("link-here")).unwrap();
    std::os::unix::fs::symlink("nowhere", sandbox.root().join("link")).unwrap();
    sandbox.write("web.yml", SLEEPER);
    let before = sandbox.done(&["start", "web"]);
    let cases = [
        (
            "command: [no-such-program]",
            "spawn_failed",
            1,
            "no-such-program",
        ),
        ("command: [/etc/passwd]", "spawn_failed", 1, "/etc/passwd"),
        (
            &format!("command: [sleep, '300']\nworkdir: {root}/missing"),
            "spawn_failed",
            1,
            "missing` does not exist",
        ),
        (
            &format!("command: [sleep, '300']\noutput: [{{stdout: {root}/missing/web.log}}]"),
            "spawn_failed",
            1,
            "missing` does not exist",
        ),
        (
            &format!("command: [sleep, '300']\noutput: [{{stderr: {root}/link}}]"),
            "spawn_failed",
            1,
            "is a symbolic link",
        ),
        (
            &format!("command: [sleep, '300']\noutput: [{{stderr: {root}/link-here}}]"),
            "spawn_failed",
            1,
            "is a directory",
        ),
        (
            "comand: [sleep, '300']",
            "invalid_config",
            6,
            "did you mean `command`?",
        ),
        ("command: [sleep", "invalid_config", 6, "web.yml:"),
    ];
    for (text, code, exit, words) in cases {
        sandbox.write("web.yml", text);
        for verb in ["restart", "trystart"] {
            let message = sandbox.refused(&[verb, "web"], code, exit);
            assert!(message.contains(words), "{verb}, {text}: {message}");
            let row = sandbox.row("web").unwrap();
            assert_eq!(row["state"], "running", "{text}");
            assert_eq!((&row["pid"], &row["run"]), (&before["pid"], &before["run"]));
        }
    }
    assert_eq!(sandbox.processes().len(), 1);
    sandbox.write("web.yml", SLEEPER);
    assert_eq!(
        sandbox.done(&["restart", "web"])["run"],
        2,
        "nothing used a number up"
    );
}

#[test]
fn a_changed_file_that_cannot_start_leaves_the_old_run_and_says_so() {
    let sandbox = Sandbox::start("mode: sync");
    sandbox.write("web.yml", SLEEPER);
    let before = sandbox.wait_state("web", "running");
    sandbox.write("web.yml", "command: [no-such-program]\n");
    let mut row = before.clone();
    wait_for("the reason", PATIENCE, || {
        row = sandbox.row("web").unwrap();
        row["reason"].is_string()
    });
    let reason = row["reason"].as_str().unwrap();
    assert!(reason.contains("no-such-program"), "{reason}");
    assert!(reason.contains("what ran runs on"), "{reason}");
    assert_eq!(
        (&row["state"], &row["pid"]),
        (&json!("running"), &before["pid"])
    );
    assert_eq!(row["config"]["status"], "changed");
    sandbox.write("web.yml", "command: [sleep, '301']\n");
    wait_for("run 2", PATIENCE, || {
        sandbox.row("web").unwrap()["run"] == 2
    });
    assert_eq!(sandbox.row("web").unwrap()["reason"], json!(null));
}

#[test]
fn what_a_run_left_behind_is_killed_before_the_next_begins() {
    let sandbox = Sandbox::start("mode: quiet");
    let root = sandbox.root().display().to_string();
    let text = script(&format!(
        "if [ -e {root}/left ]; then\n\
           grep State /proc/$(cat {root}/left)/status > {root}/seen 2> {root}/errors\n\
           echo done >> {root}/seen; exec sleep 300\n\
         fi\n\
         trap '' TERM; sleep 300 & echo $! > {root}/left"
    ));
    sandbox.write("web.yml", &text);
    sandbox.done(&["start", "web"]);
    assert_eq!(sandbox.wait_state("web", "exited")["exit"]["code"], 0);
    let left = number(&wait_lines(&sandbox.root().join("left"), 1)[0]);
    assert!(
        lives(left),
        "what a run leaves may live until the next begins"
    );
    sandbox.done(&["start", "web"]);
    let seen = wait_lines(&sandbox.root().join("seen"), 1).join("\n");
    assert!(
        !seen.contains("(sleeping)"),
        "it lived beside the next run: {seen}"
    );
    wait_for("its reaping", PATIENCE, || {
        status_of(left, "State").is_none()
    });
    assert_eq!(sandbox.processes().len(), 1);
}

#[test]
fn what_a_crashing_run_left_behind_is_killed_before_its_policy_restarts_it() {
    let sandbox = Sandbox::start("mode: quiet");
    let root = sandbox.root().display().to_string();
    let text = script(&format!(
        "[ $(wc -l < {root}/pids) -ge 4 ] && exec sleep 300\n\
         trap '' TERM; sleep 300 & echo $! >> {root}/pids; exit 1"
    ));
    fs::write(sandbox.root().join("pids"), "").unwrap();
    sandbox.write(
        "web.yml",
        &format!("{text}restart: {{when: always, delay: 20ms, factor: 1}}\n"),
    );
    sandbox.done(&["start", "web"]);
    let pids = wait_lines(&sandbox.root().join("pids"), 4);
    wait_for("run 5", PATIENCE, || {
        let row = sandbox.row("web").unwrap();
        (&row["run"], &row["state"]) == (&json!(5), &json!("running"))
    });
    assert!(pids.iter().all(|pid| !lives(number(pid))));
    // Its shell asks another one how many there were, and becomes `sleep`.
    wait_for("one process", PATIENCE, || sandbox.processes().len() == 1);
    assert_eq!(sandbox.row("web").unwrap()["restarts"], 4);
}
