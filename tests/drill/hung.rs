//! A loadpath that does not answer, as one on a network may, keeps an upgraded server from nothing
//! but the loadpath: the opening of one child's file is held back for as long as the test wants.

use serde_json::{Value, json};

use crate::{
    hold::{Deed, Holder},
    reaper,
    sandbox::{PATIENCE, SLEEPER, Sandbox, wait_for},
};

/// Another program for a child than [`SLEEPER`].
const OTHER: &str = "command: [sleep, '301']\n";

/// What `info` says of a watch that has not looked at everything yet.
const NOT_YET: &str = "not yet: the loadpaths are being read for the first time";

/// A server that was upgraded just now and whose look at `hung.yml`, which comes after those at
/// `api.yml` and `db.yml` and before that at `web.yml`, is held; and what `check` said before.
fn upgraded() -> Option<(Sandbox, Holder, Value)> {
    reaper::begin();
    let mut sandbox = Sandbox::new("mode: sync").with_own_program();
    let children = ["api", "db", "hung", "web"];
    for child in children {
        sandbox.write(&format!("{child}.yml"), SLEEPER);
    }
    sandbox.start_server();
    for child in children {
        sandbox.wait_state(child, "running");
    }
    let mut holder = Holder::new(&sandbox, Deed::Open, &sandbox.loadpath().join("hung.yml"))?;
    let before = rows(&sandbox);
    let pid = sandbox.server_pid();
    let upgraded = sandbox.done(&["upgrade"]);
    assert_eq!(upgraded["pid"], pid);
    assert_eq!(holder.held(), pid);
    Some((sandbox, holder, before))
}

/// What `check --all` says, but for how long ago things were.
fn rows(sandbox: &Sandbox) -> Value {
    let rows = sandbox.json(&["check", "--all"])["children"].take();
    let rows = rows.as_array().unwrap().iter().map(|row| {
        let told = ["name", "state", "run", "pid", "config", "hold"];
        told.map(|field| row[field].clone())
    });
    json!(rows.collect::<Vec<_>>())
}

fn watching(sandbox: &Sandbox) -> String {
    let info = sandbox.json(&["info"]);
    info["capabilities"]["watching"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[test]
fn an_upgraded_server_answers_while_a_loadpath_does_not() {
    let Some((sandbox, holder, before)) = upgraded() else {
        return;
    };
    assert_eq!(rows(&sandbox), before);
    assert_eq!(watching(&sandbox), NOT_YET);
    assert_eq!(sandbox.done(&["stop", "db"])["run"], 1);
    // A start has its file read first, and waits for that; a stop of the same does not, nor
    // does anybody else.
    let mut wire = sandbox.wire();
    wire.ask(1, r#"{"op":"start","child":"db"}"#);
    sandbox.wait_state("db", "pending");
    assert_eq!(sandbox.done(&["stop", "hung"])["run"], 1);
    sandbox.done(&["stop", "db"]);
    let (id, answer) = wire.answer();
    assert_eq!(
        (id, &answer["error"]["code"]),
        (Some(1), &json!("superseded")),
        "{answer}"
    );
    // Whether it was read already or not: what changes now is seen.
    sandbox.write("db.yml", OTHER);
    sandbox.write("web.yml", OTHER);
    sandbox.write("new.yml", SLEEPER);
    sandbox.remove("api.yml");
    wire.ask(2, r#"{"op":"start","child":"db"}"#);
    sandbox.wait_state("db", "pending");
    assert_eq!(sandbox.row("api").unwrap()["state"], "running");
    assert_eq!(sandbox.row("new"), None);
    drop(holder);
    let (id, answer) = wire.answer();
    assert_eq!((id, &answer["ok"]["run"]), (Some(2), &json!(2)), "{answer}");
    sandbox.wait_run("web", 2);
    for child in ["db", "web"] {
        sandbox.wait_state(child, "running");
        assert_eq!(sandbox.command_of(child), "sleep 301");
    }
    sandbox.wait_state("new", "running");
    wait_for("what is removed is stopped", PATIENCE, || {
        let api = sandbox.row("api");
        api.is_none_or(|row| row["pid"].is_null())
    });
    assert_eq!(sandbox.row("hung").unwrap()["run"], 1);
    wait_for("the watch", PATIENCE, || watching(&sandbox) == "inotify");
}

#[test]
fn a_server_that_cannot_leave_for_a_loadpath_that_does_not_answer_goes_on() {
    let Some((sandbox, holder, before)) = upgraded() else {
        return;
    };
    let why = sandbox.refused(&["upgrade"], "internal", 1);
    assert!(
        why.contains("a look at the loadpaths did not come to an end"),
        "{why}"
    );
    assert_eq!(rows(&sandbox), before);
    sandbox.write("web.yml", OTHER);
    drop(holder);
    sandbox.wait_run("web", 2);
    wait_for("the watch", PATIENCE, || watching(&sandbox) == "inotify");
    sandbox.remove("api.yml");
    wait_for("what is removed is stopped", PATIENCE, || {
        let api = sandbox.row("api");
        api.is_none_or(|row| row["pid"].is_null())
    });
    let log = sandbox.server_log();
    assert!(!log.contains("has ended and is put up again"), "{log}");
    sandbox.done(&["upgrade"]);
}
