//! The client's side of a signature: whose key it takes, which server it signs for, and what it
//! says when it does not.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    sandbox::{Output, SLEEPER, Sandbox, run},
    signing::{Which, pair},
};

const STRANGER: &str = "0191d9a5-7c3e-4b1d-9a3f-00000000ffff";

fn known(sandbox: &Sandbox) -> PathBuf {
    sandbox
        .root()
        .join(".local/state/supervisor-rs/known_servers")
}

fn known_text(sandbox: &Sandbox) -> String {
    fs::read_to_string(known(sandbox)).unwrap_or_default()
}

/// A server that takes only signed commands, with a child that nothing else starts.
fn quiet() -> Sandbox {
    let sandbox = Sandbox::signed("");
    sandbox.write("web.yml", SLEEPER);
    sandbox
}

fn code_of(output: &Output) -> (i32, Value) {
    let answer: Value = serde_json::from_str(&output.stdout).unwrap_or_default();
    (output.code, answer["error"]["code"].clone())
}

fn message_of(output: &Output) -> String {
    let answer: Value = serde_json::from_str(&output.stdout).unwrap_or_default();
    answer["error"]["message"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// `start web` with `--json` as the key `deploy`, and these further arguments.
fn start(sandbox: &Sandbox, more: &[&str]) -> Output {
    sandbox.sign(&[&["--json", "start", "web"], more].concat())
}

#[test]
fn a_key_file_that_others_can_read_is_refused_before_anybody_is_asked() {
    let sandbox = quiet();
    let key = sandbox.private_key("deploy", Which::Deploy);
    for mode in [0o640, 0o604, 0o644, 0o620, 0o660, 0o611] {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        let output = sandbox.sign(&["start", "web"]);
        assert_eq!((output.code, output.stdout.as_str()), (2, ""), "{mode:o}");
        let says = &output.stderr;
        assert!(says.contains(&format!("chmod 600 {key}")), "{says}");
    }
    assert_eq!(
        (sandbox.processes(), known_text(&sandbox)),
        (vec![], String::new())
    );
    for mode in [0o600, 0o400] {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(sandbox.sign(&["info"]).code, 0, "{mode:o}");
    }
}

#[test]
fn what_is_no_private_key_is_told_as_what_it_is() {
    let sandbox = quiet();
    let file = |name: &str, text: &str| {
        let path = sandbox.root().join(name);
        crate::signing::write_secret(&path, text);
        path.display().to_string()
    };
    let folder = sandbox.root().join("folder.pem");
    fs::create_dir(&folder).unwrap();
    for (key, says) in [
        (
            file("public.pem", &pair(Which::Deploy).public),
            "public key",
        ),
        (file("empty.pem", ""), "empty.pem"),
        (file("deploy.key", &pair(Which::Deploy).private), ".pem"),
        (file("a b.pem", &pair(Which::Deploy).private), "key name"),
        (
            sandbox.root().join("none.pem").display().to_string(),
            "none.pem",
        ),
        (folder.display().to_string(), "directory"),
    ] {
        let output = sandbox.client(&["info", "with", &key]);
        assert_eq!(output.code, 2, "{key}: {output:?}");
        assert!(output.stderr.contains(says), "{key}: {output:?}");
    }
}

#[test]
fn without_a_key_the_client_says_what_is_missing_and_the_environment_may_give_it() {
    let sandbox = quiet();
    let output = sandbox.client(&["start", "web"]);
    assert_eq!(output.code, 4, "{output:?}");
    assert!(output.stderr.contains("with KEY.pem"), "{output:?}");
    let address = sandbox.address().to_string();
    let mut command = sandbox.client_command(&["start", "web", "on", &address]);
    command.env(
        "SUPERVISOR_RS_KEY",
        sandbox.private_key("deploy", Which::Deploy),
    );
    assert_eq!(run(command).code, 0);
    assert_eq!(sandbox.sign(&["stop", "web"]).code, 0);
}

#[test]
fn when_it_is_refused_the_client_says_all_that_helps_to_mend_it() {
    let sandbox = quiet();
    let key = sandbox.private_key("mine", Which::Other);
    let output = sandbox.client(&["--json", "start", "web", "with", &key]);
    assert_eq!(code_of(&output), (4, json!("unauthorized")));
    let says = message_of(&output);
    for part in [
        "`mine`",
        &key,
        "SHA256:",
        "mine.pem",
        "pub_keys_path",
        "log",
    ] {
        assert!(says.contains(part), "`{part}` is not in {says}");
    }
    assert_eq!(sandbox.processes(), []);
}

#[test]
fn a_server_that_claims_not_to_want_signatures_gets_no_command_of_who_gave_a_key() {
    let sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    let key = sandbox.private_key("deploy", Which::Deploy);
    let output = sandbox.client(&["--json", "start", "web", "with", &key]);
    assert_eq!(code_of(&output), (4, json!("unauthorized")));
    assert!(
        message_of(&output).contains("--allow-unsigned"),
        "{output:?}"
    );
    assert_eq!(sandbox.processes(), []);
    let output = sandbox.client(&["start", "web", "with", &key, "--allow-unsigned"]);
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(sandbox.processes().len(), 1);
}

#[test]
fn the_first_contact_is_written_down_and_another_server_in_its_place_gets_nothing() {
    let sandbox = quiet();
    let (place, id) = (sandbox.address().to_string(), sandbox.id().to_owned());
    assert_eq!(sandbox.sign(&["info"]).code, 0);
    assert_eq!(known_text(&sandbox), format!("{place} {id}\n"));
    let mode = fs::metadata(known(&sandbox)).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    // Once is enough.
    assert_eq!(sandbox.sign(&["info"]).code, 0);
    assert_eq!(known_text(&sandbox), format!("{place} {id}\n"));
    // The one that was known here had another id.
    let others = format!("# mine\n{place} {STRANGER}\n192.0.2.1:33889 {id}\n");
    fs::write(known(&sandbox), &others).unwrap();
    let output = start(&sandbox, &[]);
    assert_eq!(code_of(&output), (4, json!("server_changed")));
    let says = message_of(&output);
    for part in [STRANGER, &id, &format!("--forget {place}")] {
        assert!(says.contains(part), "`{part}` is not in {says}");
    }
    assert_eq!(
        (sandbox.processes(), known_text(&sandbox)),
        (vec![], others)
    );
    // The way out, which leaves all else as it was.
    assert_eq!(sandbox.client_as_given(&["--forget", &place]).code, 0);
    assert_eq!(
        known_text(&sandbox),
        format!("# mine\n192.0.2.1:33889 {id}\n")
    );
    assert_eq!(sandbox.client_as_given(&["--forget", &place]).code, 1);
    assert_eq!(start(&sandbox, &[]).code, 0);
    assert!(known_text(&sandbox).ends_with(&format!("{place} {id}\n")));
    assert_eq!(sandbox.sign(&["stop", "web"]).code, 0);
}

#[test]
fn a_pinned_server_id_must_be_the_servers() {
    let sandbox = quiet();
    let output = start(&sandbox, &["--server-id", STRANGER]);
    assert_eq!(code_of(&output), (4, json!("server_changed")));
    assert_eq!(
        (sandbox.processes(), known_text(&sandbox)),
        (vec![], String::new())
    );
    let id = sandbox.id().to_owned();
    assert_eq!(start(&sandbox, &["--server-id", &id]).code, 0);
    let output = start(&sandbox, &["--server-id", "no uuid"]);
    assert_eq!(output.code, 2, "{output:?}");
    assert_eq!(sandbox.sign(&["stop", "web"]).code, 0);
}

#[test]
fn strict_refuses_a_first_contact_and_writes_nothing() {
    let sandbox = quiet();
    let output = start(&sandbox, &["--strict"]);
    assert_eq!(code_of(&output), (4, json!("server_changed")));
    assert_eq!(
        (sandbox.processes(), known_text(&sandbox)),
        (vec![], String::new())
    );
    assert_eq!(sandbox.sign(&["info"]).code, 0);
    assert_eq!(start(&sandbox, &["--strict"]).code, 0);
    assert_eq!(sandbox.sign(&["stop", "web"]).code, 0);
}

#[test]
fn a_file_that_cannot_be_written_is_a_warning_and_with_strict_a_refusal() {
    let sandbox = quiet();
    fs::create_dir_all(known(&sandbox)).unwrap();
    let output = start(&sandbox, &[]);
    assert_eq!(output.code, 0, "{output:?}");
    assert!(output.stderr.contains("known_servers"), "{output:?}");
    let output = sandbox.sign(&["--json", "stop", "web", "--strict"]);
    assert_eq!(output.code, 4, "{output:?}");
    assert_eq!(sandbox.processes().len(), 1);
    assert_eq!(sandbox.sign(&["stop", "web"]).code, 0);
}

#[test]
fn unsigned_commands_write_nothing_down() {
    let sandbox = Sandbox::start("");
    assert_eq!(sandbox.client(&["info"]).code, 0);
    assert!(!known(&sandbox).exists());
}

#[test]
fn several_servers_are_signed_for_at_once_and_answer_in_order() {
    let (one, two) = (quiet(), quiet());
    let key = one.private_key("deploy", Which::Deploy);
    let hosts = format!("{},{}", two.address(), one.address());
    let output = one.client_as_given(&["--json", "start", "web", "on", &hosts, "with", &key]);
    assert_eq!(output.code, 0, "{output:?}");
    let lines: Vec<Value> = output
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let places: Vec<&str> = lines
        .iter()
        .map(|line| line["host"].as_str().unwrap())
        .collect();
    assert_eq!(
        places,
        [two.address().to_string(), one.address().to_string()]
    );
    assert_eq!(known_text(&one).lines().count(), 2);
    for sandbox in [&one, &two] {
        assert_eq!(sandbox.processes().len(), 1);
        assert_eq!(sandbox.sign(&["stop", "web"]).code, 0);
    }
}
