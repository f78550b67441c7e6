//! `wait`, and `start`, `restart` and `trystart` with `--wait`.

use std::{fs, thread};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    hosts::{hosts, objects},
    sandbox::{PATIENCE, SLEEPER, Sandbox, pid_of, script, wait_for},
    signing::{Which, pair},
};

/// A child that is ready once there is a file `there` in its folder.
fn slow() -> String {
    let ready = "ready: {exec: [test, -e, there], interval: 20ms}\n";
    format!("{}{ready}", script("exec sleep 300"))
}

/// Lets [`slow`] children become ready.
fn make_ready(sandbox: &Sandbox) {
    fs::write(sandbox.loadpath().join("there"), "").unwrap();
}

/// A child that says something and is never ready.
fn never(says: &str) -> String {
    let ready = "ready: {exec: [test, -e, there], interval: 20ms, timeout: 300ms}\n";
    format!("{}{ready}", script(&format!("{says}; exec sleep 300")))
}

/// Waits until a child is waited for by its probe.
fn wait_probed(sandbox: &Sandbox, name: &str) -> Value {
    let mut row = Value::Null;
    wait_for("a probe that fails", PATIENCE, || {
        row = sandbox.row(name).unwrap_or_default();
        let reason = row["reason"].as_str().unwrap_or_default();
        reason == "waits for exec test -e there: exit code 1"
    });
    row
}

#[test]
fn a_start_with_wait_returns_when_the_new_run_is_ready_and_not_before() {
    let sandbox = Sandbox::knowing(&[("web", &slow())]);
    let (output, row) = thread::scope(|scope| {
        let client = scope.spawn(|| sandbox.client(&["start", "web", "--wait"]));
        let row = wait_probed(&sandbox, "web");
        assert!(!client.is_finished());
        make_ready(&sandbox);
        (client.join().unwrap(), row)
    });
    let pid = pid_of(&row);
    assert_eq!(
        (output.stdout, output.stderr.as_str(), output.code),
        (format!("`web` is ready: run 1, pid {pid}\n"), "", 0)
    );
    // What it replaced, and what else was to be said of that, is told as without `--wait`.
    let answer = sandbox.done(&["restart", "web", "--wait", "--timeout", "30s"]);
    let new = pid_of(&answer);
    assert_eq!(
        (&answer["op"], &answer["child"], &answer["run"]),
        (&json!("restart"), &json!("web"), &json!(2))
    );
    assert_eq!(answer["exit"]["signal"], "SIGTERM");
    assert_eq!(
        answer["message"],
        format!("`web` is ready: run 2, pid {new}")
    );
    sandbox.refused(&["start", "web", "--wait"], "already_running", 1);
}

#[test]
fn a_run_that_is_never_ready_is_told_of_with_its_cause_and_its_last_lines() {
    let says = "for n in $(seq 1 20); do echo line $n >&2; done; echo out";
    let sandbox = Sandbox::knowing(&[("web", &never(says))]);
    let output = sandbox.client(&["trystart", "web", "--wait"]);
    let lines: String = (11..=20).map(|n| format!("  line {n}\n")).collect();
    assert_eq!(
        (sandbox.mask(&output.stderr), output.code),
        (
            format!(
                "error[not_ready]: run 1 of `web` has failed: not ready within 300ms: exec test -e \
                 there: exit code 1 (SIGTERM)\nlast lines of `ROOT/logs/web.err`:\n{lines}"
            ),
            1
        )
    );
    assert_eq!(output.stdout, "");
}

#[test]
fn a_run_that_ends_before_it_is_ready_is_told_of_at_once() {
    let dies = format!(
        "{}ready: {{exec: [test, -e, there], interval: 20ms}}\n",
        script("printf 'no \\033[31mport\\n'; exit 3")
    );
    let sandbox = Sandbox::knowing(&[("web", &dies)]);
    let answer = sandbox.json(&["start", "web", "--wait", "--timeout", "1h"]);
    assert_eq!(
        (&answer["op"], &answer["child"], &answer["ok"]),
        (&json!("start"), &json!("web"), &json!(false))
    );
    assert_eq!(answer["error"]["code"], "not_ready");
    assert_eq!(
        sandbox.mask(answer["error"]["message"].as_str().unwrap()),
        "run 1 of `web` has ended: exit code 3\n\
         last lines of `ROOT/logs/web.out`:\n  no \\u{1b}[31mport"
    );
    // What is no file of its own is not shown.
    sandbox.write("web.yml", &format!("{dies}output: inherit\n"));
    wait_for("the other file", PATIENCE, || {
        sandbox.row("web").unwrap()["config"]["status"] == "changed"
    });
    let told = sandbox.refused(&["start", "web", "--wait"], "not_ready", 1);
    assert_eq!(told, "run 2 of `web` has ended: exit code 3");
}

#[test]
fn a_wait_goes_on_no_longer_than_it_may_and_says_what_is_waited_for() {
    let sandbox = Sandbox::knowing(&[("web", &slow())]);
    sandbox.done(&["start", "web"]);
    wait_probed(&sandbox, "web");
    let waits = ["wait", "web", "--for", "ready", "--timeout", "50ms"];
    let told = sandbox.refused(&waits, "timeout", 7);
    let reason = "it is starting: waits for exec test -e there: exit code 1";
    assert_eq!(told, format!("`web` is not ready within 50ms: {reason}"));
    let told = sandbox.refused(&["restart", "web", "--wait", "--timeout=0s"], "timeout", 7);
    assert!(told.starts_with("run 2 of `web` is not ready within 0s: it is starting"));
    sandbox.done(&["wait", "web", "--for", "running"]);
    let waits = ["wait", "web", "--for", "exited", "--timeout", "50ms"];
    let told = sandbox.refused(&waits, "timeout", 7);
    assert!(told.starts_with("`web` has not exited within 50ms: it is starting"));
    let told = sandbox.refused(&["wait", "wbe", "--for", "ready"], "unknown_child", 5);
    assert!(told.contains("did you mean `web`?"), "{told}");
}

#[test]
fn an_exit_is_waited_for_and_told() {
    let sandbox = Sandbox::start("");
    let gate = sandbox.gate("end");
    sandbox.write("job.yml", &script(&format!("{gate}; exit 4")));
    sandbox.wait_state("job", "stopped");
    let idle = sandbox.client(&["wait", "job", "--for", "exited"]);
    assert_eq!(
        (idle.stdout.as_str(), idle.code),
        ("`job` does not run\n", 0)
    );
    let started = sandbox.done(&["start", "job"]);
    let answer = thread::scope(|scope| {
        let client = scope.spawn(|| sandbox.done(&["wait", "job", "--for", "exited"]));
        sandbox.open_gate("end");
        client.join().unwrap()
    });
    assert_eq!(
        (&answer["op"], &answer["run"], &answer["exit"]["code"]),
        (&json!("wait"), &json!(1), &json!(4))
    );
    assert_eq!(answer["pid"], started["pid"]);
    let told = answer["message"].as_str().unwrap();
    assert!(told.starts_with("`job` has exited: run 1, pid "), "{told}");
    assert!(told.ends_with(", exit code 4"), "{told}");
}

#[test]
fn the_end_of_the_server_ends_all_waits() {
    let mut sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    let mut wire = sandbox.wire();
    wire.ask(1, r#"{"op":"wait","child":"web","for":"running"}"#);
    wire.ask(2, r#"{"op":"check"}"#);
    assert_eq!(wire.answer().0, Some(2));
    sandbox.signal_server(Signal::TERM);
    let (id, answer) = wire.answer();
    assert_eq!(
        (id, &answer["error"]["code"]),
        (Some(1), &json!("shutting_down"))
    );
    assert_eq!(sandbox.wait_server(), 0);
}

#[test]
fn many_wait_on_one_connection_up_to_its_bound() {
    let sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    let mut wire = sandbox.wire();
    for id in 1..=129 {
        wire.ask(id, r#"{"op":"wait","child":"web","for":"ready"}"#);
    }
    let (id, answer) = wire.answer();
    assert_eq!((id, &answer["error"]["code"]), (Some(129), &json!("busy")));
    sandbox.done(&["start", "web"]);
    let mut ids: Vec<u64> = (0..128)
        .map(|_| {
            let (id, answer) = wire.answer();
            assert_eq!(answer["ok"]["run"], 1, "{answer}");
            id.unwrap()
        })
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, (1..=128).collect::<Vec<u64>>());
}

#[test]
fn a_key_that_may_only_start_a_child_may_wait_for_it() {
    let mut sandbox = Sandbox::new("encrypt: on\npub_keys_path: [keys]\n");
    fs::create_dir(sandbox.key_dir()).unwrap();
    sandbox.admit("deploy", &pair(Which::Deploy).public);
    let scope = sandbox.key_dir().join("deploy.yml");
    sandbox.replace(&scope, "allow: [trystart]\nchildren: [web]\n");
    sandbox.write("web.yml", &slow());
    make_ready(&sandbox);
    sandbox.start_server();
    let output = sandbox.sign(&["--json", "trystart", "web", "--wait"]);
    let answer: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(
        (&answer["ok"], output.code),
        (&json!(true), 0),
        "{output:?}"
    );
    let told = answer["message"].as_str().unwrap();
    assert!(told.starts_with("`web` is ready: run 1, pid "), "{told}");
    let output = sandbox.sign(&["wait", "web", "--for", "running"]);
    assert_eq!(output.code, 0, "{output:?}");
    let output = sandbox.sign(&["wait", "db", "--for", "running"]);
    assert_eq!(output.code, 4, "{output:?}");
    // Who waits changes nothing: the audit trail tells of the start, and of what was refused.
    let trail = || fs::read_to_string(sandbox.root().join("state/audit.jsonl")).unwrap();
    let is_wait = |line: &&str| line.contains(r#""op":"wait""#);
    wait_for("the line of the refusal", PATIENCE, || {
        trail().lines().any(|line| is_wait(&line))
    });
    let trail = trail();
    let waits: Vec<&str> = trail.lines().filter(is_wait).collect();
    assert_eq!(waits.len(), 1, "{trail}");
    assert!(waits[0].contains(r#""outcome":"forbidden""#), "{trail}");
    // The sandbox looks for what runs.
    fs::remove_file(scope).unwrap();
}

#[test]
fn several_hosts_are_waited_for_at_once() {
    let good = Sandbox::knowing(&[("web", &slow())]);
    let bad = Sandbox::knowing(&[("web", &never("echo no >&2"))]);
    make_ready(&good);
    let both = [&bad, &good].map(|sandbox| sandbox.address().to_string());
    let on = both.join(",");
    let output = good.client_as_given(&["--json", "restart", "web", "--wait", "on", &on]);
    assert_eq!(output.code, 1, "{output:?}");
    let words = good.client_as_given(&["trystart", "web", "--wait", "on", &on]);
    assert_eq!(words.code, 1, "{words:?}");
    assert!(
        words
            .stdout
            .starts_with(&format!("{}: `web` is ready: run 1", both[1])),
        "{words:?}"
    );
    assert!(
        words.stderr.contains("run 1 of `web` has failed"),
        "{words:?}"
    );
    let output = good.client_as_given(&[
        "--json",
        "wait",
        "web",
        "--for",
        "ready",
        "on",
        &on,
        "--timeout",
        "10ms",
    ]);
    assert_eq!(hosts(&output), both);
    let told = objects(&output);
    assert_eq!(
        (&told[0]["ok"], &told[1]["ok"]),
        (&json!(false), &json!(true))
    );
    assert_eq!(output.code, 7, "{output:?}");
}

#[test]
fn a_wait_goes_on_across_an_upgrade() {
    let mut sandbox = Sandbox::new("").with_own_program();
    sandbox.start_server();
    sandbox.write("web.yml", &slow());
    sandbox.wait_state("web", "stopped");
    let output = thread::scope(|scope| {
        let client = scope.spawn(|| sandbox.client(&["start", "web", "--wait"]));
        wait_probed(&sandbox, "web");
        let mut wire = sandbox.wire();
        wire.ask(
            1,
            r#"{"op":"wait","child":"web","for":"ready","timeout_ms":1}"#,
        );
        assert_eq!(wire.answer().0, Some(1));
        sandbox.done(&["upgrade"]);
        assert!(!client.is_finished());
        make_ready(&sandbox);
        client.join().unwrap()
    });
    assert_eq!(output.code, 0, "{output:?}");
    assert!(output.stdout.starts_with("`web` is ready: run 1, pid "));
}
