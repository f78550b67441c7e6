//! `ready` and `health`: when a child counts as running, and what follows when it does not do its
//! work.

use std::fs;

use serde_json::json;

use crate::sandbox::{
    PATIENCE, Process, SLEEPER, Sandbox, free_port, lives, pid_of, processes_marked, script,
    wait_for,
};

/// The processes of a sandbox's probes.
fn probes(sandbox: &Sandbox) -> Vec<Process> {
    processes_marked(&format!("SUPERVISOR_RS_PROBE={}/", sandbox.id()))
}

/// A child that answers HTTP on a port, once it was let through its gate.
fn web(sandbox: &Sandbox, port: u16) -> String {
    let gate = sandbox.gate("open");
    let serve = format!("exec python3 -m http.server --bind 127.0.0.1 {port}");
    script(&format!("{gate}; {serve}"))
}

#[test]
fn a_child_is_starting_until_its_port_answers() {
    let sandbox = Sandbox::start("mode: quiet");
    let port = free_port();
    let child = web(&sandbox, port);
    let ready = format!("ready: {{tcp: {port}, interval: 20ms}}\n");
    sandbox.write("web.yml", &format!("{child}{ready}"));
    let answer = sandbox.done(&["start", "web"]);
    let row = sandbox.row("web").unwrap();
    assert_eq!(
        (&row["state"], &row["pid"]),
        (&json!("starting"), &answer["pid"])
    );
    wait_for("a word of what it waits for", PATIENCE, || {
        let row = sandbox.row("web").unwrap();
        let reason = row["reason"].as_str().unwrap_or_default().to_owned();
        reason == format!("waits for tcp localhost:{port}: connection refused")
    });
    sandbox.open_gate("open");
    let row = sandbox.wait_state("web", "running");
    assert_eq!(row["pid"], answer["pid"]);
    assert_eq!(row["reason"], json!(null));
}

#[test]
fn a_good_answer_to_a_get_makes_a_child_ready_and_another_does_not() {
    let sandbox = Sandbox::start("mode: quiet");
    let port = free_port();
    let child = web(&sandbox, port);
    let path = format!("http://127.0.0.1:{port}/healthz.txt");
    let ready = format!("ready: {{http: '{path}', interval: 20ms}}\n");
    sandbox.write(
        "web.yml",
        &format!("{child}workdir: {}\n{ready}", sandbox.root().display()),
    );
    sandbox.done(&["start", "web"]);
    sandbox.open_gate("open");
    wait_for("the status", PATIENCE, || {
        let row = sandbox.row("web").unwrap();
        row["reason"] == json!(format!("waits for {path}: status 404"))
    });
    assert_eq!(sandbox.row("web").unwrap()["state"], "starting");
    fs::write(sandbox.root().join("healthz.txt"), "fine").unwrap();
    sandbox.wait_state("web", "running");
}

#[test]
fn a_run_that_is_not_ready_in_time_has_failed_and_its_policy_decides() {
    let sandbox = Sandbox::start("mode: quiet");
    let ready = "ready: {exec: [test, -e, there], interval: 20ms, timeout: 300ms}\n";
    let child = script("exec sleep 300");
    sandbox.write("never.yml", &format!("{child}{ready}"));
    sandbox.done(&["start", "never"]);
    let row = sandbox.wait_state("never", "failed");
    let why = "not ready within 300ms: exec test -e there: exit code 1";
    assert_eq!(row["reason"], why);
    assert_eq!(row["exit"]["signal"], "SIGTERM");
    let restart = "restart: {when: on-failure, delay: 10ms, max: 2 in 1h}\n";
    sandbox.write("often.yml", &format!("{child}{ready}{restart}"));
    sandbox.done(&["start", "often"]);
    let row = sandbox.wait_state("often", "failed");
    assert_eq!((&row["run"], &row["restarts"]), (&json!(3), &json!(2)));
    // What an operator starts anew has its time again, and may be ready this time.
    let there = sandbox.loadpath().join("there");
    sandbox.done(&["start", "never"]);
    fs::write(there, "").unwrap();
    sandbox.wait_state("never", "running");
}

#[test]
fn a_stop_ends_what_is_starting() {
    let sandbox = Sandbox::start("mode: quiet");
    let ready = "ready: {exec: 'sleep 300', timeout: 1h}\n";
    sandbox.write("web.yml", &format!("{}{ready}", script("exec sleep 300")));
    sandbox.done(&["start", "web"]);
    wait_for("the probe", PATIENCE, || probes(&sandbox).len() == 1);
    sandbox.done(&["stop", "web"]);
    assert_eq!(sandbox.row("web").unwrap()["state"], "stopped");
    wait_for("the probe's end", PATIENCE, || {
        sandbox.processes().is_empty()
    });
}

#[test]
fn readiness_and_its_clock_survive_a_server_that_dies() {
    let mut sandbox = Sandbox::start("mode: quiet");
    let ready = "ready: {exec: [test, -e, there], interval: 20ms, timeout: 1h}\n";
    sandbox.write("web.yml", &format!("{}{ready}", script("exec sleep 300")));
    sandbox.write(
        "done.yml",
        &format!("{}ready: {{exec: 'true'}}\n", script("exec sleep 300")),
    );
    sandbox.done(&["start", "web"]);
    sandbox.done(&["start", "done"]);
    sandbox.wait_state("done", "running");
    sandbox.restart_server();
    assert_eq!(sandbox.row("done").unwrap()["state"], "running");
    assert_eq!(sandbox.row("web").unwrap()["state"], "starting");
    fs::write(sandbox.loadpath().join("there"), "").unwrap();
    let row = sandbox.wait_state("web", "running");
    assert_eq!(row["run"], 1);
}

#[test]
fn an_unhealthy_child_is_replaced_after_so_many_failures() {
    let sandbox = Sandbox::start("mode: quiet");
    let health = "health: {exec: [test, '!', -e, ill], interval: 50ms, failures: 3}\n";
    sandbox.write("web.yml", &format!("{}{health}", script("exec sleep 300")));
    sandbox.done(&["start", "web"]);
    let first = pid_of(&sandbox.wait_state("web", "running"));
    let ill = sandbox.loadpath().join("ill");
    fs::write(&ill, "").unwrap();
    wait_for("another run", PATIENCE, || {
        sandbox.row("web").unwrap()["run"] == json!(2)
    });
    fs::remove_file(&ill).unwrap();
    assert!(!lives(first));
    let row = sandbox.wait_state("web", "running");
    let history = &sandbox.json(&["check", "web"])["children"][0]["history"];
    assert_eq!(history[1]["ended_by"]["cause"], "unhealthy");
    assert_eq!(row["restarts"].as_u64().map(|count| count >= 1), Some(true));
}

#[test]
fn probes_never_pile_up_and_leave_nothing_behind() {
    let mut sandbox = Sandbox::start("mode: quiet");
    let health = "health: {exec: [sh, -c, 'sleep 300 & sleep 300'], interval: 20ms, \
                  timeout: 200ms, failures: 1000}\n";
    sandbox.write("web.yml", &format!("{}{health}", script("exec sleep 300")));
    sandbox.done(&["start", "web"]);
    for _ in 0..5 {
        wait_for("a probe", PATIENCE, || !probes(&sandbox).is_empty());
        let processes = probes(&sandbox);
        assert!(processes.len() <= 3, "one probe of three: {processes:?}");
    }
    // The server dies, and the next one leaves nothing of its probes.
    wait_for("a probe", PATIENCE, || probes(&sandbox).len() == 3);
    sandbox.kill_server();
    let left: Vec<i32> = probes(&sandbox).iter().map(|it| it.pid).collect();
    sandbox.write("web.yml", SLEEPER);
    sandbox.start_server();
    wait_for("their end", PATIENCE, || {
        !left.iter().any(|pid| lives(*pid))
    });
    sandbox.done(&["stop", "web"]);
    wait_for("no probe", PATIENCE, || probes(&sandbox).is_empty());
}

#[test]
fn a_probe_goes_on_across_an_upgrade() {
    let mut sandbox = Sandbox::new("mode: quiet").with_own_program();
    sandbox.start_server();
    let ready =
        "ready: {exec: [sh, -c, 'while ! test -e there; do sleep 0.02; done'], timeout: 1h}\n";
    sandbox.write("web.yml", &format!("{}{ready}", script("exec sleep 300")));
    sandbox.done(&["start", "web"]);
    wait_for("the probe", PATIENCE, || !probes(&sandbox).is_empty());
    sandbox.done(&["upgrade"]);
    assert_eq!(sandbox.row("web").unwrap()["state"], "starting");
    fs::write(sandbox.loadpath().join("there"), "").unwrap();
    sandbox.wait_state("web", "running");
}
