//! The history of a child: its latest runs, how they ended, why, and who asked.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::{
    sandbox::{PATIENCE, SLEEPER, Sandbox, millis, pid_of, script, wait_for},
    signing::Which,
};

/// What `check NAME` tells of the child's runs, the newest first.
fn history(sandbox: &Sandbox, name: &str) -> Vec<Value> {
    let answer = sandbox.json(&["check", name]);
    let runs = answer["children"][0]["history"].as_array().cloned();
    runs.unwrap_or_default()
}

fn causes(runs: &[Value], key: &str) -> Vec<String> {
    let cause = |run: &Value| run[key]["cause"].as_str().unwrap_or("-").to_owned();
    runs.iter().map(cause).collect()
}

fn uid() -> Value {
    json!(rustix::process::getuid().as_raw())
}

#[test]
fn the_last_twenty_runs_are_told_however_many_there_were_and_however_the_server_died() {
    let mut sandbox = Sandbox::start("mode: quiet");
    sandbox.write("job.yml", &script("exit 3"));
    for run in 1..=30 {
        sandbox.done(&["start", "job"]);
        wait_for("its end", PATIENCE, || {
            let row = sandbox.row("job").unwrap();
            row["run"] == run && row["state"] == "exited"
        });
        match run {
            14 => sandbox.restart_server(),
            15..=17 | 29 => {
                sandbox.kill_server();
                sandbox.start_server();
            }
            _ => {}
        }
    }
    sandbox.kill_server();
    sandbox.start_server();
    let runs = history(&sandbox, "job");
    let numbers: Vec<u64> = runs.iter().map(|it| it["run"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (11..=30).rev().collect::<Vec<_>>());
    for run in &runs {
        assert_eq!(run["exit"], json!({"code": 3}), "{run}");
        assert_eq!(run["started_by"]["cause"], "command");
        assert_eq!(run["started_by"]["user"], uid());
        let peer = run["started_by"]["peer"].as_str().unwrap();
        assert!(peer.starts_with("127.0.0.1:"), "{peer}");
        assert_eq!(run["ended_by"], Value::Null);
        assert!(millis(&run["started_at"]) <= millis(&run["ended_at"]));
        assert_eq!(run["digest"].as_str().unwrap().len(), 32);
    }
    // The table does not tell it.
    let table = sandbox.json(&["check", "--all"]);
    assert_eq!(table["children"][0]["history"], Value::Null);
}

#[test]
fn who_asked_is_told_by_the_name_of_the_key() {
    let sandbox = Sandbox::signed("mode: quiet");
    sandbox.write("web.yml", SLEEPER);
    sandbox.private_key("deploy", Which::Deploy);
    for command in ["start", "restart", "stop"] {
        let output = sandbox.sign(&[command, "web"]);
        assert_eq!(output.code, 0, "{output:?}");
    }
    let answer = sandbox.signed_json(&["check", "web"]);
    let runs = &answer["children"][0]["history"];
    assert_eq!(runs.as_array().unwrap().len(), 2);
    for (run, ended) in [(&runs[0], "SIGTERM"), (&runs[1], "SIGTERM")] {
        for by in ["started_by", "ended_by"] {
            assert_eq!(run[by]["cause"], "command", "{run}");
            assert_eq!(run[by]["key"], "deploy", "{run}");
            assert_eq!(run[by]["user"], Value::Null, "{run}");
        }
        assert_eq!(run["exit"], json!({"signal": ended}));
    }
    let shown = sandbox.sign(&["check", "web"]).stdout;
    let told = shown
        .lines()
        .filter(|line| line.contains("command, key deploy, 127.0.0.1:"));
    assert_eq!(told.count(), 2, "{shown}");
}

#[test]
fn each_run_tells_why_it_began_and_why_it_ended() {
    let mut sandbox = Sandbox::new("mode: sync");
    sandbox.write("web.yml", &format!("{SLEEPER}restart: always\n"));
    sandbox.start_server();
    let row = sandbox.wait_state("web", "running");
    let pid = Pid::from_raw(pid_of(&row)).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    sandbox.wait_run("web", 2);
    sandbox.write("web.yml", "command: sleep 301\nrestart: always\n");
    sandbox.wait_run("web", 3);
    sandbox.done(&["stop", "web"]);
    sandbox.write("db.yml", "command: /no/such/program\n");
    sandbox.wait_state("db", "failed");
    let runs = history(&sandbox, "web");
    assert_eq!(causes(&runs, "started_by"), ["changed", "policy", "boot"]);
    assert_eq!(causes(&runs, "ended_by"), ["command", "changed", "-"]);
    assert_eq!(runs[0]["ended_by"]["user"], uid());
    assert_eq!(runs[2]["exit"], json!({"signal": "SIGKILL"}));
    let failed = history(&sandbox, "db");
    assert_eq!(causes(&failed, "started_by"), ["new"]);
    assert_eq!(failed[0]["exit"], Value::Null);
    let reason = failed[0]["reason"].as_str().unwrap();
    assert!(reason.contains("/no/such/program"), "{reason}");
}

#[test]
fn a_live_run_is_told_without_an_end_also_by_the_next_server() {
    let mut sandbox = Sandbox::start("mode: quiet");
    sandbox.write("web.yml", SLEEPER);
    sandbox.done(&["start", "web"]);
    let before = history(&sandbox, "web");
    assert_eq!(before.len(), 1);
    assert_eq!(
        (&before[0]["exit"], &before[0]["ended_at"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(before[0]["started_by"]["cause"], "command");
    sandbox.kill_server();
    sandbox.start_server();
    assert_eq!(history(&sandbox, "web"), before);
}

#[test]
fn what_a_reboot_ended_is_told_with_an_unknown_exit() {
    // The records of live processes lie where a reboot wipes them, as in `/run`.
    let mut sandbox = Sandbox::start("mode: quiet");
    sandbox.write("web.yml", SLEEPER);
    sandbox.done(&["start", "web"]);
    sandbox.done(&["restart", "web"]);
    let pid = pid_of(&sandbox.row("web").unwrap());
    assert_eq!(sandbox.stop_server(), 0);
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    wait_for("its end", PATIENCE, || sandbox.processes().is_empty());
    sandbox.delete("run");
    sandbox.start_server();
    sandbox.done(&["start", "web"]);
    let runs = history(&sandbox, "web");
    let number = |run: &Value| run["run"].as_u64().unwrap();
    assert_eq!(
        number(&runs[0]),
        1_001,
        "numbers are reserved a thousand at a time"
    );
    assert_eq!((number(&runs[1]), number(&runs[2])), (2, 1));
    assert_eq!(runs[1]["exit"], json!({"unknown": true}));
    assert_eq!(causes(&runs, "ended_by"), ["-", "reboot", "command"]);
}

#[test]
fn a_damaged_history_is_kept_aside_and_keeps_nobody_from_anything() {
    let sandbox = Sandbox::start("mode: quiet");
    sandbox.write("web.yml", SLEEPER);
    sandbox.done(&["start", "web"]);
    sandbox.done(&["stop", "web"]);
    let path = sandbox.root().join("state/history/web.journal");
    wait_for("the history", PATIENCE, || {
        fs::read(&path).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains("\"end\""))
    });
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.len() - 20;
    bytes[at] ^= 1;
    bytes.extend_from_slice(b"garbage that is no record and long enough to be told");
    fs::write(&path, &bytes).unwrap();
    sandbox.done(&["start", "web"]);
    sandbox.done(&["stop", "web"]);
    wait_for("the damaged file", PATIENCE, || {
        let kept = sandbox.root().join("state/history/web.journal.corrupt-1");
        fs::read(kept).is_ok_and(|kept| kept == bytes)
    });
    assert_eq!(history(&sandbox, "web")[0]["run"], 2);
}
