//! Commands that had no answer when the server was killed: the next one carries them out.

use std::fs;

use serde_json::json;

use crate::{
    hook_crashes::tells_exits,
    sandbox::{PATIENCE, SLEEPER, Sandbox, Wire, wait_for, wait_lines},
};

/// How many commands of a dead server the log says were carried out.
fn carried_out(sandbox: &Sandbox) -> usize {
    let log = sandbox.server_log();
    let words = "a command that a dead server had taken is carried out";
    log.matches(words).count()
}

fn ask(wire: &mut Wire, id: u64, op: &str) {
    wire.ask(id, &format!(r#"{{"op":"{op}","child":"web"}}"#));
}

/// Waits until a command waits behind another one.
fn wait_queued(sandbox: &Sandbox) {
    wait_for("the second command", PATIENCE, || {
        let answer = sandbox.json(&["check", "web"]);
        let details = &answer["children"][0]["details"];
        details["queue"] == json!("1 commands wait for `web`")
    });
}

#[test]
fn what_waits_for_a_slow_prehook_and_behind_it_is_carried_out_by_the_next_server() {
    let mut sandbox = Sandbox::start("mode: quiet");
    if !tells_exits(&sandbox) {
        return;
    }
    let (begun, go) = (sandbox.root().join("begun"), sandbox.root().join("go"));
    let hook = format!(
        "run sh -c 'echo begun >> {}; until test -e {}; do sleep 0.02; done'",
        begun.display(),
        go.display()
    );
    fs::write(&go, "").unwrap();
    sandbox.write(
        "web.yml",
        &format!("{SLEEPER}hooks:\n  - prehook: {hook}\n"),
    );
    sandbox.done(&["start", "web"]);
    fs::remove_file(&go).unwrap();
    let mut wire = sandbox.wire();
    ask(&mut wire, 1, "restart");
    wait_lines(&begun, 2);
    ask(&mut wire, 2, "trystart");
    wait_queued(&sandbox);
    sandbox.kill_server();
    sandbox.start_server();
    // It goes on, and so does the run until its successor can begin.
    wait_for("the order", PATIENCE, || {
        sandbox.server_log().contains("goes on with a hook")
    });
    assert_eq!(sandbox.row("web").unwrap()["run"], 1);
    fs::write(&go, "").unwrap();
    sandbox.wait_run("web", 3);
    wait_for("both", PATIENCE, || carried_out(&sandbox) == 2);
    // Once is enough.
    sandbox.restart_server();
    let row = sandbox.row("web").unwrap();
    assert_eq!((&row["run"], &row["state"]), (&json!(3), &json!("running")));
    assert_eq!(wait_lines(&begun, 3).len(), 3);
    assert_eq!(carried_out(&sandbox), 2);
}

#[test]
fn a_stop_under_way_and_the_start_behind_it_are_carried_out_by_the_next_server() {
    let mut sandbox = Sandbox::start("mode: quiet");
    let child = sandbox.slow_to_stop("gate");
    sandbox.write("web.yml", &child);
    sandbox.done(&["start", "web"]);
    sandbox.wait_output("web", "up");
    let mut wire = sandbox.wire();
    ask(&mut wire, 1, "stop");
    sandbox.wait_state("web", "stopping");
    ask(&mut wire, 2, "start");
    wait_queued(&sandbox);
    sandbox.kill_server();
    sandbox.start_server();
    let row = sandbox.row("web").unwrap();
    assert_eq!(
        (&row["state"], &row["run"]),
        (&json!("stopping"), &json!(1))
    );
    sandbox.open_gate("gate");
    let row = sandbox.wait_run("web", 2);
    assert_eq!(row["hold"], false);
    wait_for("both", PATIENCE, || carried_out(&sandbox) == 2);
    sandbox.expect_leftovers();
}

#[test]
fn a_stop_of_all_is_carried_out_for_each_by_the_next_server() {
    let mut sandbox = Sandbox::start("mode: quiet");
    let slow = sandbox.slow_to_stop("gate");
    sandbox.write("db.yml", SLEEPER);
    sandbox.write("web.yml", &slow);
    for name in ["db", "web"] {
        sandbox.done(&["start", name]);
    }
    sandbox.wait_output("web", "up");
    let mut wire = sandbox.wire();
    wire.ask(1, r#"{"op":"stop","all":true}"#);
    sandbox.wait_state("db", "stopped");
    sandbox.wait_state("web", "stopping");
    sandbox.kill_server();
    sandbox.start_server();
    sandbox.open_gate("gate");
    for name in ["db", "web"] {
        let row = sandbox.wait_state(name, "stopped");
        assert_eq!((&row["hold"], &row["run"]), (&json!(true), &json!(1)));
    }
    assert_eq!(carried_out(&sandbox), 1);
}
