//! Scoped keys: a key does what the file beside it lets it do, and no more.

use std::fs;

use serde_json::{Value, json};

use crate::{
    keys::is_closed,
    sandbox::{PATIENCE, SLEEPER, Sandbox, wait_for},
    signing::{Forge, Which, pair},
};

/// A server with the key `deploy`, which may do all, the key `ci` with this scope, and three
/// children.
fn scoped(scope: &str) -> Sandbox {
    let mut sandbox = Sandbox::new("encrypt: on\npub_keys_path: [keys]\n");
    fs::create_dir(sandbox.key_dir()).unwrap();
    sandbox.admit("deploy", &pair(Which::Deploy).public);
    sandbox.admit("ci", &pair(Which::Other).public);
    limit(&sandbox, scope);
    for name in ["web-1", "web-2", "db"] {
        sandbox.write(&format!("{name}.yml"), SLEEPER);
    }
    sandbox.start_server();
    sandbox
}

fn limit(sandbox: &Sandbox, scope: &str) {
    sandbox.replace(&sandbox.key_dir().join("ci.yml"), scope);
}

/// What the key `ci` is answered.
fn ci(sandbox: &Sandbox, command: &str) -> Value {
    let mut wire = sandbox.wire();
    let forge = Forge::new(&wire.hello, 1, command);
    wire.send_token(1, &forge.signed_as("ci", Which::Other).token());
    wire.answer().1
}

fn may(sandbox: &Sandbox, command: &str) {
    let answer = ci(sandbox, command);
    assert!(answer.get("ok").is_some(), "{command}: {answer}");
}

fn may_not(sandbox: &Sandbox, command: &str, says: &str) {
    let answer = ci(sandbox, command);
    assert_eq!(answer["error"]["code"], "forbidden", "{command}: {answer}");
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("`ci`") && message.contains(says),
        "{command}: {message}"
    );
}

#[test]
fn a_key_may_do_what_its_scope_allows_and_nothing_else() {
    let sandbox = scoped("allow: [check, trystart]\nchildren: [\"web-*\"]\n");
    may(&sandbox, r#"{"op":"trystart","child":"web-1"}"#);
    may(&sandbox, r#"{"op":"check","child":"web-2"}"#);
    may_not(&sandbox, r#"{"op":"trystart","child":"db"}"#, "trystart db");
    may_not(&sandbox, r#"{"op":"check","child":"db"}"#, "check db");
    for op in ["start", "restart", "stop"] {
        may_not(&sandbox, &format!(r#"{{"op":"{op}","child":"web-1"}}"#), op);
    }
    for command in [
        r#"{"op":"stop","all":true}"#,
        r#"{"op":"start","all":true}"#,
        r#"{"op":"kill"}"#,
        r#"{"op":"kill","stop_children":true}"#,
        r#"{"op":"info"}"#,
        r#"{"op":"check"}"#,
        r#"{"op":"check","all":true}"#,
    ] {
        may_not(&sandbox, command, "");
    }
    // A name it may not know is no way to learn which children there are.
    may_not(&sandbox, r#"{"op":"check","child":"nothing"}"#, "nothing");
    let rows = sandbox.signed_json(&["check"]);
    let names: Vec<&Value> = rows["children"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| &row["name"])
        .collect();
    assert_eq!(names, [&json!("web-1")]);
    assert_eq!(sandbox.sign(&["stop", "--all"]).code, 0);
}

#[test]
fn the_client_says_forbidden_with_exit_code_4() {
    let sandbox = scoped("allow: [check]\n");
    let key = sandbox.private_key("ci", Which::Other);
    assert_eq!(sandbox.client(&["check", "with", &key]).code, 0);
    let output = sandbox.client(&["start", "db", "with", &key]);
    assert_eq!(output.code, 4, "{output:?}");
    assert!(output.stderr.contains("forbidden"), "{output:?}");
    assert_eq!(sandbox.processes(), []);
}

#[test]
fn without_a_file_a_key_may_do_all() {
    let sandbox = scoped("allow: [check]\n");
    may(&sandbox, r#"{"op":"check"}"#);
    fs::remove_file(sandbox.key_dir().join("ci.yml")).unwrap();
    // It may be on its way back: until the quiet second is over, the key may do nothing.
    let answer = ci(&sandbox, r#"{"op":"start","child":"db"}"#);
    assert_eq!(answer["error"]["code"], "unauthorized", "{answer}");
    wait_for("the quiet second", PATIENCE, || {
        ci(&sandbox, r#"{"op":"info"}"#).get("ok").is_some()
    });
    may(&sandbox, r#"{"op":"start","child":"db"}"#);
    may(&sandbox, r#"{"op":"stop","all":true}"#);
    may(&sandbox, r#"{"op":"info"}"#);
}

#[test]
fn a_scope_counts_from_the_next_command_when_it_is_edited() {
    let sandbox = scoped("allow: [check]\n");
    for _ in 0..3 {
        may_not(&sandbox, r#"{"op":"info"}"#, "info");
        limit(&sandbox, "allow: [check, info]\n");
        may(&sandbox, r#"{"op":"info"}"#);
        limit(&sandbox, "allow: [check]\n");
    }
}

#[test]
fn what_a_key_had_open_is_closed_when_its_scope_changes() {
    let sandbox = scoped("allow: [check, info]\n");
    let mut wire = sandbox.wire();
    let forge = Forge::new(&wire.hello, 1, r#"{"op":"info"}"#);
    wire.send_token(1, &forge.signed_as("ci", Which::Other).token());
    assert_eq!(wire.answer().1["ok"]["op"], "info");
    limit(&sandbox, "allow: [check]\n");
    is_closed(&mut wire);
}

#[test]
fn a_key_counts_only_from_where_its_scope_says() {
    let sandbox = scoped("from: [\"10.0.0.0/8\", \"192.0.2.7\"]\n");
    may_not(&sandbox, r#"{"op":"info"}"#, "127.0.0.1");
    limit(&sandbox, "from: [127.0.0.0/8]\n");
    may(&sandbox, r#"{"op":"info"}"#);
}

#[test]
fn an_empty_list_allows_nothing() {
    let sandbox = scoped("allow: []\n");
    may_not(&sandbox, r#"{"op":"info"}"#, "");
    limit(&sandbox, "children: []\n");
    may_not(&sandbox, r#"{"op":"check","child":"db"}"#, "");
    limit(&sandbox, "from: []\n");
    may_not(&sandbox, r#"{"op":"check","child":"db"}"#, "");
}

#[test]
fn a_bad_scope_makes_its_key_useless_and_is_shown() {
    let sandbox = scoped("");
    for (scope, says) in [
        ("allow: [check, explode]\n", "explode"),
        ("alow: [check]\n", "allow"),
        ("allow: check\n", "ci.yml:1"),
        ("children: [\"../*\"]\n", "ci.yml:1"),
        ("from: [10.0.0.1/8]\n", "10.0.0.0/8"),
        ("from: [somewhere]\n", "somewhere"),
        ("allow: [check\n", "ci.yml"),
        ("- allow\n", "ci.yml:1"),
    ] {
        limit(&sandbox, scope);
        let answer = ci(&sandbox, r#"{"op":"check"}"#);
        assert_eq!(answer["error"]["code"], "unauthorized", "{scope}: {answer}");
        let info = sandbox.signed_json(&["info"]);
        let faults = info["faults"].to_string();
        assert!(faults.contains(says), "{scope}: {faults}");
        assert_eq!(info["keys"].as_array().unwrap().len(), 1, "{info}");
    }
}

#[test]
fn a_scope_under_another_extension_is_not_passed_over() {
    for name in ["ci.yaml", "ci.pub.yml", "ci.pub.yaml"] {
        let sandbox = scoped("");
        let dir = sandbox.key_dir();
        fs::rename(dir.join("ci.yml"), dir.join(name)).unwrap();
        sandbox.replace(&dir.join(name), "allow: [check]\n");
        let answer = ci(&sandbox, r#"{"op":"kill"}"#);
        assert!(answer.get("error").is_some(), "{name}: {answer}");
    }
}

#[test]
fn info_names_the_file_that_limits_a_key() {
    let sandbox = scoped("allow: [check]\n");
    let info = sandbox.signed_json(&["info"]);
    let file = sandbox.key_dir().join("ci.yml").display().to_string();
    assert_eq!(
        (&info["keys"][0]["name"], &info["keys"][0]["scope"]),
        (&json!("ci"), &json!(file))
    );
    assert_eq!(
        (&info["keys"][1]["name"], info["keys"][1].get("scope")),
        (&json!("deploy"), None)
    );
}

#[test]
fn a_child_started_by_a_hook_is_no_command_of_the_key() {
    let sandbox = scoped("allow: [start]\nchildren: [front]\n");
    sandbox.write(
        "front.yml",
        &format!("{SLEEPER}hooks: [prehook: start db]\n"),
    );
    may(&sandbox, r#"{"op":"start","child":"front"}"#);
    sandbox.wait_processes(2);
}
