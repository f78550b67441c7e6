//! The audit trail (docs/AUDIT.md): each command that changes something, before its answer.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use serde_json::{Value, json};
use supervisor_rs::audit::{AUDIT_FILE_BYTES_MAX, Hash};

use crate::{
    directories::with_small_disk,
    sandbox::{Output, PATIENCE, SLEEPER, Sandbox, pid_of, script, skip, wait_for},
    signing::{ENCRYPT, Which, pair},
};

/// How many commands may fit into the last page of a full disk.
const COMMANDS_MAX: usize = 60;

fn path(sandbox: &Sandbox) -> PathBuf {
    sandbox.root().join("state/audit.jsonl")
}

/// The whole lines of the trail.
fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let lines = whole.lines();
    lines
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

/// As [`lines`], once there are so many: that a server has started is told without anybody waiting
/// for it.
fn wait_lines(sandbox: &Sandbox, count: usize) -> Vec<Value> {
    let mut found = Vec::new();
    wait_for(&format!("{count} lines"), PATIENCE, || {
        found = lines(&path(sandbox));
        found.len() >= count
    });
    assert_eq!(found.len(), count, "{found:?}");
    found
}

/// The lines of commands.
fn commands(sandbox: &Sandbox) -> Vec<Value> {
    let mut lines = lines(&path(sandbox));
    lines.retain(|line| line["event"] == "command");
    lines
}

fn verify(sandbox: &Sandbox, arguments: &[&str]) -> Output {
    let config = sandbox.server_yml();
    let config = config.to_str().unwrap();
    sandbox.server_to_end(&[&["--verify-audit", config], arguments].concat())
}

/// Checks that the trail is whole, and returns its last hash.
#[track_caller]
fn assert_whole(sandbox: &Sandbox) -> String {
    let output = verify(sandbox, &[]);
    assert_eq!(output.code, 0, "{output:?}");
    assert!(output.stdout.starts_with("audit is whole: "), "{output:?}");
    let hash = output.stdout.trim_end().rsplit_once(' ').unwrap().1;
    assert_eq!(hash.len(), 64, "{output:?}");
    hash.to_owned()
}

/// What a line says of its command, less what differs from run to run.
fn told(line: &Value) -> Value {
    let mut line = line.clone();
    let fields = line.as_object_mut().unwrap();
    for name in [
        "seq", "time", "event", "by", "user", "peer", "prev", "message",
    ] {
        fields.remove(name);
    }
    line
}

#[test]
fn every_command_that_changes_something_leaves_one_line_before_its_answer() {
    let sandbox = Sandbox::knowing(&[("web", SLEEPER), ("api", SLEEPER)]);
    let given = |arguments: &[&str]| {
        let before = commands(&sandbox).len();
        let answer = sandbox.json(arguments);
        // Without any waiting.
        let lines = commands(&sandbox);
        assert_eq!(lines.len(), before + 1, "{arguments:?}");
        (told(lines.last().unwrap()), answer)
    };
    let (line, answer) = given(&["start", "web"]);
    let pid = pid_of(&answer);
    let expected = |op: &str, run: u64, pid: i32| json!({"op": op, "child": "web", "outcome": "ok", "run": run, "pid": pid});
    assert_eq!(line, expected("start", 1, pid));
    let (line, _) = given(&["start", "web"]);
    let refused = json!({"op": "start", "child": "web", "outcome": "already_running"});
    assert_eq!(line, refused);
    let (line, answer) = given(&["restart", "web"]);
    assert_eq!(line, expected("restart", 2, pid_of(&answer)));
    let (line, answer) = given(&["trystart", "web"]);
    assert_eq!(line, expected("trystart", 3, pid_of(&answer)));
    let (line, _) = given(&["stop", "web"]);
    assert_eq!(line, expected("stop", 3, pid_of(&answer)));
    let (line, _) = given(&["start", "nobody"]);
    let unknown = json!({"op": "start", "child": "nobody", "outcome": "unknown_child"});
    assert_eq!(line, unknown);
    let (line, answer) = given(&["start", "api"]);
    assert_eq!(line["outcome"], "ok");
    let pid = pid_of(&answer);
    let (line, _) = given(&["stop", "--all"]);
    let children = json!([{"name": "api", "outcome": "ok", "run": 1, "pid": pid}]);
    let expected = json!({"op": "stop", "all": true, "outcome": "ok", "children": children});
    assert_eq!(line, expected);
    let (line, _) = given(&["start", "--all"]);
    let nothing = json!({"op": "start", "all": true, "outcome": "ok"});
    assert_eq!(
        (&line["op"], &line["all"]),
        (&nothing["op"], &nothing["all"])
    );
    assert_whole(&sandbox);
}

#[test]
fn who_gave_a_command_and_why_it_failed_is_told() {
    let sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    let mut wire = sandbox.wire();
    wire.ask(1, r#"{"op":"restart","child":"web"}"#);
    let (_, answer) = wire.answer();
    let line = &commands(&sandbox)[0];
    assert_eq!(line["message"], answer["error"]["message"]);
    let peer = line["peer"].as_str().unwrap();
    assert!(peer.starts_with("127.0.0.1:"), "{peer}");
    assert!(
        ["user", "reach"].contains(&line["by"].as_str().unwrap()),
        "{line}"
    );
    let fields: Vec<_> = line
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(fields.iter().filter(|name| **name == "seq").count(), 1);
}

// Keys

/// A server that takes only signed commands and knows the key `deploy`, and that key's file. With
/// a scope, its file.
fn signed(scope: Option<&str>) -> (Sandbox, String) {
    let mut sandbox = Sandbox::new(ENCRYPT);
    fs::create_dir(sandbox.key_dir()).unwrap();
    if let Some(scope) = scope {
        sandbox.replace(&sandbox.key_dir().join("deploy.yml"), scope);
    }
    sandbox.admit("deploy", &pair(Which::Deploy).public);
    sandbox.start_server();
    let key = sandbox.private_key("deploy", Which::Deploy);
    (sandbox, key)
}

/// The fields of a line that tell of a peer whose port nobody knows.
fn peer_of(line: &Value) -> String {
    let peer = line["peer"].as_str().unwrap().to_owned();
    peer.rsplit_once(':').unwrap().0.to_owned()
}

#[test]
fn a_signed_command_is_told_with_the_key_and_its_fingerprint() {
    let (sandbox, key) = signed(None);
    sandbox.client(&["start", "nobody", "with", &key]);
    let line = commands(&sandbox).pop().unwrap();
    assert_eq!(
        (&line["by"], &line["key"]),
        (&json!("key"), &json!("deploy"))
    );
    let fingerprint = line["fingerprint"].as_str().unwrap();
    assert_eq!(fingerprint, pair(Which::Deploy).fingerprint);
    assert_eq!(peer_of(&line), "127.0.0.1");
    assert_eq!(line["outcome"], "unknown_child");
    assert_whole(&sandbox);
}

/// Waits for the one line of a refusal; a peer is not kept waiting for it.
fn wait_refused(sandbox: &Sandbox) -> Value {
    let mut found = Vec::new();
    wait_for("a refusal", PATIENCE, || {
        found = lines(&path(sandbox));
        found.retain(|line| line["event"] == "refused");
        !found.is_empty()
    });
    found.pop().unwrap()
}

#[test]
fn an_unsigned_command_that_is_refused_is_told() {
    let (sandbox, _) = signed(None);
    let mut wire = sandbox.wire();
    wire.ask(1, r#"{"op":"stop","all":true}"#);
    assert_eq!(wire.answer().1["error"]["code"], "unauthorized");
    let line = wait_refused(&sandbox);
    assert_eq!((&line["op"], &line["all"]), (&json!("stop"), &json!(true)));
    assert_eq!(
        (&line["outcome"], &line["key"]),
        (&json!("unauthorized"), &Value::Null)
    );
    assert_eq!(peer_of(&line), "127.0.0.1");
    assert_whole(&sandbox);
}

#[test]
fn a_command_beyond_the_scope_of_its_key_is_told_with_the_key() {
    let (sandbox, key) = signed(Some("allow: [check]\n"));
    let output = sandbox.client(&["stop", "web", "with", &key]);
    assert_eq!(output.code, 4, "{output:?}");
    let line = wait_refused(&sandbox);
    assert_eq!(
        (&line["by"], &line["key"]),
        (&json!("key"), &json!("deploy"))
    );
    assert_eq!(
        (&line["op"], &line["child"]),
        (&json!("stop"), &json!("web"))
    );
    assert_eq!(line["outcome"], "forbidden");
    assert_eq!(commands(&sandbox), [] as [Value; 0]);
    assert_whole(&sandbox);
}

#[test]
fn a_flood_of_refusals_fills_no_disk_and_its_number_is_told_at_the_end() {
    const REFUSALS: u64 = 200;
    let (mut sandbox, _) = signed(None);
    let mut wire = sandbox.wire();
    for id in 1..=REFUSALS {
        wire.ask(id, r#"{"op":"info"}"#);
        assert_eq!(wire.answer().1["error"]["code"], "unauthorized");
    }
    assert_eq!(sandbox.stop_server(), 0);
    let mut refused = lines(&path(&sandbox));
    refused.retain(|line| line["event"] == "refused");
    assert!(refused.len() < 100, "{} lines", refused.len());
    let told = |line: &Value| 1 + line["more"].as_u64().unwrap_or(0);
    assert_eq!(refused.iter().map(told).sum::<u64>(), REFUSALS);
    assert_whole(&sandbox);
}

#[test]
fn what_only_asks_leaves_no_line() {
    let sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    let before = wait_lines(&sandbox, 1);
    assert_eq!(before[0]["event"], "opened");
    assert_eq!(before[0]["server"], sandbox.id());
    sandbox.done(&["info"]);
    sandbox.done(&["check", "--all"]);
    sandbox.json(&["check", "web"]);
    assert_eq!(lines(&path(&sandbox)), before);
}

#[test]
fn the_file_is_for_the_server_alone() {
    let sandbox = Sandbox::start("");
    let path = path(&sandbox);
    wait_for("the file", PATIENCE, || path.exists());
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    // Nor do children have it.
    sandbox.write("web.yml", SLEEPER);
    wait_for("web", PATIENCE, || sandbox.row("web").is_some());
    let pid = pid_of(&sandbox.done(&["start", "web"]));
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let open: Vec<_> = open
        .map(|entry| fs::read_link(entry.unwrap().path()).unwrap_or_default())
        .collect();
    assert!(!open.contains(&path), "{open:?}");
}

#[test]
fn a_server_killed_right_after_an_answer_has_lost_no_line() {
    let mut sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    for run in 1..=4 {
        sandbox.done(&["trystart", "web"]);
        sandbox.kill_server();
        let lines = commands(&sandbox);
        assert_eq!(lines.len(), run);
        assert_eq!(lines[run - 1]["run"], json!(run));
        assert_whole(&sandbox);
        sandbox.start_server();
    }
    let opened = wait_lines(&sandbox, 9);
    let opened = opened.iter().filter(|line| line["event"] == "opened");
    assert_eq!(opened.count(), 5, "each server says that it has begun");
    assert_whole(&sandbox);
}

#[test]
fn last_words_are_on_disk_before_they_are_heard() {
    let mut sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    let pid = pid_of(&sandbox.done(&["start", "web"]));
    sandbox.done(&["kill"]);
    let expected = json!({
        "op": "kill", "stop_children": false, "outcome": "ok",
        "children": [{"name": "web", "run": 1, "pid": pid}],
    });
    assert_eq!(told(commands(&sandbox).last().unwrap()), expected);
    assert_eq!(sandbox.wait_server(), 0);
    assert_whole(&sandbox);
    sandbox.start_server();
    sandbox.done(&["kill", "--stop-children"]);
    assert_eq!(commands(&sandbox).last().unwrap()["stop_children"], true);
    assert_eq!(sandbox.wait_server(), 0);
    assert_whole(&sandbox);
}

#[test]
fn what_is_under_way_when_the_server_is_told_to_end_is_told_too() {
    let mut sandbox = Sandbox::knowing(&[]);
    let gate = sandbox.gate("hook");
    let hook = format!("command: sleep 300\nhooks:\n  - prehook: run sh -c '{gate}'\n");
    sandbox.write("web.yml", &hook);
    wait_for("web", PATIENCE, || sandbox.row("web").is_some());
    let mut wire = sandbox.wire();
    wire.ask(1, r#"{"op":"start","child":"web"}"#);
    sandbox.wait_prehook("web");
    assert_eq!(sandbox.stop_server(), 0);
    let (_, answer) = wire.answer();
    let code = answer["error"]["code"].clone();
    let line = commands(&sandbox).pop().unwrap();
    assert_eq!((&line["child"], &line["outcome"]), (&json!("web"), &code));
    sandbox.expect_leftovers();
    assert_whole(&sandbox);
}

#[test]
fn lines_stand_in_the_order_in_which_commands_took_effect() {
    const CLIENTS: usize = 8;
    const COMMANDS: u64 = 10;
    let sandbox = Sandbox::knowing(&[("one", SLEEPER), ("two", SLEEPER)]);
    let answers: Vec<Value> = thread::scope(|scope| {
        let client = |number: usize| {
            let mut wire = sandbox.wire();
            let child = ["one", "two"][number % 2];
            for id in 1..=COMMANDS {
                wire.ask(id, &format!(r#"{{"op":"trystart","child":"{child}"}}"#));
            }
            let answers = (0..COMMANDS).map(|_| wire.answer().1);
            answers.collect::<Vec<_>>()
        };
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| scope.spawn(move || client(number)))
            .collect();
        let answers = clients
            .into_iter()
            .flat_map(|client| client.join().unwrap());
        answers.collect()
    });
    let lines = commands(&sandbox);
    let done = |line: &&Value| line["outcome"] == "ok";
    for child in ["one", "two"] {
        let of_child = |line: &&Value| line["child"] == child;
        let runs = lines.iter().filter(of_child).filter(done);
        let runs: Vec<_> = runs.map(|line| line["run"].as_u64().unwrap()).collect();
        assert!(runs.is_sorted_by(|one, next| one < next), "{runs:?}");
        // Exactly those that were answered so.
        let answered = answers
            .iter()
            .filter(|answer| answer["ok"]["child"] == child);
        let mut answered: Vec<_> = answered
            .map(|answer| answer["ok"]["run"].as_u64().unwrap())
            .collect();
        answered.sort_unstable();
        assert_eq!(runs, answered);
    }
    assert_eq!(answers.len(), CLIENTS * usize::try_from(COMMANDS).unwrap());
    // But for those that were refused before they were carried out.
    let busy = answers
        .iter()
        .filter(|answer| answer["error"]["code"] == "busy");
    let told_busy = lines.iter().filter(|line| line["outcome"] == "busy");
    assert_eq!(
        lines.len() - told_busy.count(),
        answers.len() - busy.count()
    );
    assert_whole(&sandbox);
}

#[test]
fn a_fresh_server_has_no_audit_yet_and_that_is_well() {
    let sandbox = Sandbox::new("");
    let output = verify(&sandbox, &[]);
    let expected = Output {
        stdout: "no audit yet\n".to_owned(),
        stderr: String::new(),
        code: 0,
    };
    assert_eq!(output, expected);
    assert!(!sandbox.root().join("state").exists());
}

#[test]
fn a_check_beside_a_running_server_says_how_far_the_trail_reaches() {
    let mut sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    sandbox.done(&["start", "web"]);
    let output = verify(&sandbox, &[]);
    let shown = sandbox.mask(&output.stdout);
    let hash = shown.trim_end().rsplit_once(' ').unwrap().1;
    let expected = "audit is whole: 2 lines from TIME to TIME in 1 file, last hash ";
    assert_eq!(shown, format!("{expected}{hash}\n"));
    assert_eq!((output.stderr.as_str(), output.code), ("", 0));
    sandbox.stop_server();
    assert_eq!(assert_whole(&sandbox), hash);

    // Half a line is no break.
    let mut file = fs::File::options()
        .append(true)
        .open(path(&sandbox))
        .unwrap();
    file.write_all(b"{\"seq\":").unwrap();
    let output = verify(&sandbox, &[]);
    assert_eq!((output.code, assert_whole(&sandbox).as_str()), (0, hash));
    assert!(
        output.stderr.starts_with("note: the last line of `"),
        "{output:?}"
    );
    sandbox.start_server();
    assert_eq!(wait_lines(&sandbox, 3)[2]["cut"], 7);
    assert_whole(&sandbox);
}

#[test]
fn tampering_is_told_with_its_place_and_a_code_of_its_own() {
    let mut sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    for _ in 0..3 {
        sandbox.done(&["trystart", "web"]);
    }
    sandbox.stop_server();
    sandbox.expect_leftovers();
    let path = path(&sandbox);
    let whole = fs::read_to_string(&path).unwrap();
    fs::write(&path, whole.replacen("\"run\":1,", "\"run\":9,", 1)).unwrap();
    let output = verify(&sandbox, &[]);
    assert_eq!(output.code, 1, "{output:?}");
    let place = format!("{}:3: expected `prev` ", path.display());
    assert!(output.stderr.starts_with(&place), "{output:?}");
    assert!(
        output.stdout.starts_with("audit is broken: 4 lines "),
        "{output:?}"
    );
}

#[test]
fn lines_missing_at_the_end_are_noticed_by_a_noted_hash() {
    let mut sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    sandbox.done(&["start", "web"]);
    let before = assert_whole(&sandbox);
    sandbox.done(&["stop", "web"]);
    let noted = assert_whole(&sandbox);
    for hash in [&before, &noted] {
        assert_eq!(verify(&sandbox, &["--audit-hash", hash]).code, 0);
    }
    sandbox.stop_server();
    let whole = fs::read_to_string(path(&sandbox)).unwrap();
    let cut = whole.trim_end().rsplit_once('\n').unwrap().0;
    fs::write(path(&sandbox), format!("{cut}\n")).unwrap();
    assert_whole(&sandbox);
    let output = verify(&sandbox, &["--audit-hash", &noted]);
    assert_eq!(output.code, 1, "{output:?}");
    let told = format!("expected a line with the noted hash {noted}, found none");
    assert!(output.stderr.contains(&told), "{output:?}");
}

#[test]
fn a_bad_server_file_and_an_unreadable_trail_have_their_codes() {
    let sandbox = Sandbox::new("mode: upside-down");
    assert_eq!(verify(&sandbox, &[]).code, 6);
    let sandbox = Sandbox::new("");
    fs::create_dir_all(path(&sandbox)).unwrap();
    let output = verify(&sandbox, &[]);
    assert_eq!((output.code, output.stdout.as_str()), (1, ""), "{output:?}");
    assert!(
        output.stderr.contains("is not a regular file"),
        "{output:?}"
    );
}

#[test]
fn a_chain_can_be_checked_by_hand() {
    let sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    sandbox.done(&["start", "web"]);
    let page = include_str!("../../docs/AUDIT.md");
    let command = "sed -n 2p audit.jsonl | tr -d '\\n' | sha256sum";
    assert!(page.contains(command));
    sandbox.done(&["stop", "web"]);
    let output = Command::new("sh")
        .args(["-c", command])
        .current_dir(sandbox.root().join("state"))
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let prev = lines(&path(&sandbox))[2]["prev"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(said.split(' ').next(), Some(prev.as_str()));
}

#[test]
fn the_example_of_the_page_is_a_whole_chain() {
    let page = include_str!("../../docs/AUDIT.md");
    let example = page.split("```json\n").nth(1).unwrap();
    let example = example.split("```").next().unwrap();
    let sandbox = Sandbox::new("");
    fs::create_dir(sandbox.root().join("state")).unwrap();
    fs::write(path(&sandbox), example).unwrap();
    assert_whole(&sandbox);
}

/// Adds lines to the trail of a server that does not run, as servers before it could have, until
/// the next one must begin another file.
fn fill(path: &Path) {
    let last = lines(path).pop().unwrap();
    let text = fs::read_to_string(path).unwrap();
    let mut prev = Hash::of(text.trim_end().rsplit('\n').next().unwrap().as_bytes());
    let mut seq = last["seq"].as_u64().unwrap();
    let mut file = fs::File::options().append(true).open(path).unwrap();
    let padding = "x".repeat(30_000);
    let mut len = fs::metadata(path).unwrap().len();
    while len + 30_300 < AUDIT_FILE_BYTES_MAX {
        seq += 1;
        let time = last["time"].as_str().unwrap();
        let line = format!(
            r#"{{"seq":{seq},"time":"{time}","event":"command","x":"{padding}","prev":"{prev}"}}"#
        );
        prev = Hash::of(line.as_bytes());
        writeln!(file, "{line}").unwrap();
        len += u64::try_from(line.len()).unwrap() + 1;
    }
}

#[test]
fn a_large_file_is_followed_by_another_and_the_chain_goes_on() {
    const COMMANDS: usize = 120;
    let mut sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    sandbox.stop_server();
    fill(&path(&sandbox));
    sandbox.start_server();
    let rotated = sandbox.root().join("state/audit.jsonl.1");
    let mut wire = sandbox.wire();
    for id in 1..=COMMANDS {
        wire.ask(u64::try_from(id).unwrap(), r#"{"op":"stop","child":"web"}"#);
        wire.answer();
    }
    assert!(rotated.exists());
    let len = fs::metadata(&rotated).unwrap().len();
    assert!(len <= AUDIT_FILE_BYTES_MAX && len > AUDIT_FILE_BYTES_MAX - 40_000);
    let output = verify(&sandbox, &[]);
    assert!(output.stdout.contains(" in 2 files, "), "{output:?}");
    assert_whole(&sandbox);
    let mode = fs::metadata(path(&sandbox)).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    sandbox.restart_server();
    sandbox.done(&["start", "web"]);
    assert_whole(&sandbox);
}

#[test]
fn a_file_deleted_while_the_server_runs_is_made_anew_and_told() {
    let sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    sandbox.done(&["start", "web"]);
    fs::remove_file(path(&sandbox)).unwrap();
    sandbox.done(&["stop", "web"]);
    let lines = lines(&path(&sandbox));
    assert_eq!(lines.len(), 2);
    assert_eq!(
        (&lines[0]["because"], &lines[0]["seq"]),
        (&json!("deleted"), &json!(3))
    );
    let output = verify(&sandbox, &[]);
    assert!(
        output
            .stderr
            .contains("the lines before number 3 are not kept"),
        "{output:?}"
    );
    fs::remove_dir_all(sandbox.root().join("state")).unwrap();
    sandbox.done(&["start", "web"]);
    assert_eq!(commands(&sandbox).len(), 1);
    assert_whole(&sandbox);
}

#[test]
fn a_broken_file_is_kept_aside_and_the_server_starts() {
    let mut sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    sandbox.done(&["start", "web"]);
    sandbox.kill_server();
    let mut file = fs::File::options()
        .append(true)
        .open(path(&sandbox))
        .unwrap();
    writeln!(file, "not a line").unwrap();
    let broken = fs::read(path(&sandbox)).unwrap();
    sandbox.start_server();
    sandbox.done(&["stop", "web"]);
    let first = &lines(&path(&sandbox))[0];
    assert_eq!(
        (&first["because"], &first["seq"]),
        (&json!("broken"), &json!(1))
    );
    let aside = sandbox
        .root()
        .join("state")
        .join(first["aside"].as_str().unwrap());
    assert_eq!(fs::read(&aside).unwrap(), broken);
    let output = verify(&sandbox, &[]);
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.stderr.contains("kept it aside"), "{output:?}");
    fs::remove_file(aside).unwrap();
    assert_whole(&sandbox);
}

#[test]
fn a_link_in_its_place_keeps_the_server_from_starting_and_is_not_followed() {
    let sandbox = Sandbox::new("");
    let target = sandbox.root().join("target");
    fs::write(&target, "").unwrap();
    let state = sandbox.root().join("state");
    fs::create_dir(&state).unwrap();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
    symlink(&target, path(&sandbox)).unwrap();
    let config = sandbox.server_yml();
    let output = sandbox.server_to_end(&[config.to_str().unwrap()]);
    assert_eq!(output.code, 1, "{output:?}");
    assert!(
        output
            .stderr
            .contains("audit.jsonl`: it is not a regular file"),
        "{output:?}"
    );
    assert_eq!(fs::read(&target).unwrap(), b"");
}

#[test]
fn a_full_disk_keeps_no_answer_back_and_its_lines_come_later_in_order() {
    let Some((disk, mut sandbox)) = with_small_disk("state") else {
        return;
    };
    sandbox.write("job.yml", &script("exit 0"));
    sandbox.start_server();
    sandbox.done(&["trystart", "job"]);
    disk.fill();
    let mut given = 1;
    let fault = |sandbox: &Sandbox| {
        let faults = sandbox.done(&["info"])["faults"].clone();
        let faults = faults.as_array().unwrap().iter();
        let mut faults = faults.filter_map(|fault| fault.as_str().map(str::to_owned));
        faults.find(|fault| fault.starts_with("the audit trail cannot be written"))
    };
    while fault(&sandbox).is_none() {
        given += 1;
        assert!(given < COMMANDS_MAX, "the disk does not get full");
        // Whatever is answered: another record may be in the way as well.
        sandbox.json(&["stop", "job"]);
    }
    let told = fault(&sandbox).unwrap();
    assert!(told.contains("No space left on device"), "{told}");
    assert!(told.contains("hint: free some space"), "{told}");
    sandbox.json(&["stop", "job"]);
    assert!(lines(&disk.file("audit.jsonl")).len() <= given);
    let logged = sandbox.server_log();
    assert_eq!(
        logged.matches("the audit trail cannot be written").count(),
        1
    );

    fs::remove_file(disk.file("fill")).unwrap();
    // By itself.
    wait_for("the lines", PATIENCE, || fault(&sandbox).is_none());
    let mut lines = lines(&disk.file("audit.jsonl"));
    let seqs: Vec<_> = lines
        .iter()
        .map(|line| line["seq"].as_u64().unwrap())
        .collect();
    assert!(seqs.is_sorted_by(|one, next| one + 1 == *next), "{seqs:?}");
    lines.retain(|line| line["event"] == "command");
    assert_eq!(lines.len(), given + 1);
    fs::copy(disk.file("audit.jsonl"), sandbox.root().join("copy")).unwrap();
    assert_eq!(sandbox.stop_server(), 0);
    // As whoever is not in the server's mount namespace sees it.
    fs::rename(sandbox.root().join("copy"), path(&sandbox)).unwrap();
    assert_whole(&sandbox);
}

#[test]
fn a_file_that_strangers_own_is_not_written_to() {
    if !rustix::process::geteuid().is_root() {
        return skip("only root can give a file away");
    }
    let sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    let theirs = sandbox.root().join("theirs");
    fs::write(&theirs, "").unwrap();
    std::os::unix::fs::chown(&theirs, Some(12345), None).unwrap();
    fs::rename(&theirs, path(&sandbox)).unwrap();
    sandbox.done(&["start", "web"]);
    let first = &lines(&path(&sandbox))[0];
    assert_eq!(first["because"], "replaced");
    let aside = sandbox
        .root()
        .join("state")
        .join(first["aside"].as_str().unwrap());
    assert_eq!(fs::read(aside).unwrap(), b"");
}
