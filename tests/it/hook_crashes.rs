//! Hooks' programs that outlive their server: never two of a child at once, none forgotten, and
//! killed when their time is up.

use std::{fs, path::PathBuf};

use serde_json::json;

use crate::{
    directories::with_small_disk,
    sandbox::{PATIENCE, SLEEPER, Sandbox, lives, processes_marked, skip, wait_for, wait_lines},
};

/// How long a hook's program may run, in microseconds.
const HOOK_MICROS: u64 = 60_000_000;

/// How many bytes stand before a record's text: its length and its checksum.
const PREFIX: usize = 8;

/// A child that sleeps, with a hook that runs this in a shell.
fn hooked(kind: &str, script: &str) -> String {
    format!("{SLEEPER}hooks:\n  - {kind}: run sh -c '{script}'\n")
}

fn log(sandbox: &Sandbox) -> PathBuf {
    sandbox.root().join("log")
}

/// A script that notes its number, waits at the gate `gate`, notes its end and ends with this.
fn gated(sandbox: &Sandbox, code: i32) -> String {
    let (log, gate) = (log(sandbox), sandbox.gate("gate"));
    let log = log.display();
    format!("echo $$ >> {log}; {gate}; echo end >> {log}; exit {code}")
}

fn hooks(sandbox: &Sandbox) -> usize {
    processes_marked(&format!("SUPERVISOR_RS_HOOK={}/", sandbox.id())).len()
}

/// Gives an order whose client does not wait, and kills the server when the hook has noted its
/// number, which is returned.
fn killed_within_hook(sandbox: &mut Sandbox, op: &str) -> i32 {
    let mut wire = sandbox.wire();
    wire.ask(1, &json!({"op": op, "child": "web"}).to_string());
    let pid = wait_lines(&log(sandbox), 1)[0].parse().unwrap();
    sandbox.kill_server();
    assert!(lives(pid), "it runs on without a server");
    pid
}

fn wait_log(sandbox: &Sandbox, words: &str) {
    wait_for(words, PATIENCE, || sandbox.server_log().contains(words));
}

/// Whether a server here can tell how a process ended that is another's. Else such a hook is run
/// again.
pub(crate) fn tells_exits(sandbox: &Sandbox) -> bool {
    let tells = sandbox.json(&["info"])["capabilities"]["exit codes"] == "pidfd info";
    if !tells {
        skip("this kernel does not tell how the children of others end");
    }
    tells
}

#[test]
fn a_prehook_runs_once_although_its_server_dies_and_how_it_ends_counts() {
    for code in [0, 3] {
        let mut sandbox = Sandbox::start("mode: quiet");
        if !tells_exits(&sandbox) {
            return;
        }
        sandbox.write("web.yml", &hooked("prehook", &gated(&sandbox, code)));
        let pid = killed_within_hook(&mut sandbox, "start");
        sandbox.start_server();
        wait_log(&sandbox, "goes on with a hook that a dead server began");
        assert_eq!(sandbox.row("web").unwrap()["state"], "pending");
        assert!(lives(pid) && hooks(&sandbox) == 1);
        sandbox.open_gate("gate");
        if code == 0 {
            sandbox.wait_run("web", 1);
        } else {
            wait_log(&sandbox, "failed: exit code 3");
            assert_eq!(sandbox.processes(), [], "the child is not started");
        }
        let noted = wait_lines(&log(&sandbox), 2);
        assert_eq!(noted, [pid.to_string(), "end".to_owned()], "it ran once");
    }
}

#[test]
fn a_posthook_runs_once_although_its_server_dies() {
    let mut sandbox = Sandbox::start("mode: quiet");
    sandbox.write("web.yml", &hooked("posthook", &gated(&sandbox, 0)));
    sandbox.done(&["start", "web"]);
    let pid = killed_within_hook(&mut sandbox, "stop");
    sandbox.start_server();
    wait_log(&sandbox, "goes on with a hook that a dead server began");
    sandbox.open_gate("gate");
    wait_log(
        &sandbox,
        "a command that a dead server had taken is carried out",
    );
    let noted = wait_lines(&log(&sandbox), 2);
    assert_eq!(noted, [pid.to_string(), "end".to_owned()], "it ran once");
    assert_eq!(sandbox.row("web").unwrap()["hold"], true);
}

#[test]
fn a_hook_that_is_another_by_now_is_gone_before_the_next_begins() {
    let mut sandbox = Sandbox::start("mode: quiet");
    let sleep = format!("echo $$ >> {}; exec sleep 300", log(&sandbox).display());
    sandbox.write("web.yml", &hooked("prehook", &sleep));
    let old = killed_within_hook(&mut sandbox, "start");
    let other = format!(
        "case $(cut -d\" \" -f3 /proc/{old}/stat) in S) echo both >> {log};; esac; echo other >> {log}",
        log = log(&sandbox).display()
    );
    sandbox.write("web.yml", &hooked("prehook", &other));
    sandbox.start_server();
    sandbox.wait_run("web", 1);
    assert_eq!(wait_lines(&log(&sandbox), 2)[1..], ["other"]);
    assert!(!lives(old));
}

#[test]
fn a_hook_whose_child_is_gone_is_killed_with_its_group() {
    let mut sandbox = Sandbox::start("mode: quiet");
    let member = sandbox.root().join("member");
    let sleep = format!(
        "sleep 300 & echo $! > {}; echo $$ >> {}; wait",
        member.display(),
        log(&sandbox).display()
    );
    sandbox.write("web.yml", &hooked("prehook", &sleep));
    let pid = killed_within_hook(&mut sandbox, "start");
    let member = wait_lines(&member, 1)[0].parse().unwrap();
    sandbox.remove("web.yml");
    sandbox.start_server();
    wait_for("its end", PATIENCE, || !lives(pid) && !lives(member));
    wait_log(&sandbox, "a hook that a dead server began is killed");
}

#[test]
fn a_stop_kills_the_prehook_that_a_dead_server_began() {
    let mut sandbox = Sandbox::start("mode: quiet");
    let sleep = format!("echo $$ >> {}; exec sleep 300", log(&sandbox).display());
    sandbox.write("web.yml", &hooked("prehook", &sleep));
    let pid = killed_within_hook(&mut sandbox, "start");
    sandbox.start_server();
    sandbox.done(&["stop", "web"]);
    wait_for("its end", PATIENCE, || !lives(pid));
    assert_eq!(sandbox.row("web").unwrap()["hold"], true);
}

/// Has the hook on record begun as long before as one may run.
fn make_old(sandbox: &Sandbox) {
    let path = sandbox.root().join("run/runtime.journal");
    let mut bytes = fs::read(&path).unwrap();
    let find = |bytes: &[u8], words: &[u8]| bytes.windows(words.len()).position(|at| at == words);
    let start = find(&bytes, br#"{"hook_started""#).unwrap();
    let len = u32::from_le_bytes(bytes[start - PREFIX..start - 4].try_into().unwrap());
    let end = start + usize::try_from(len).unwrap();
    let text = String::from_utf8(bytes[start..end].to_vec()).unwrap();
    let (before, after) = text.split_once(r#""mono":"#).unwrap();
    let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap();
    let began: u64 = after[..digits].parse().unwrap();
    let began = began.saturating_sub(HOOK_MICROS);
    // As long as before: a file that is shorter than noted has lost something.
    let text = format!(r#"{before}"mono":{began:>digits$}{}"#, &after[digits..]);
    bytes[start - 4..start].copy_from_slice(&crc32fast::hash(text.as_bytes()).to_le_bytes());
    bytes[start..end].copy_from_slice(text.as_bytes());
    fs::write(path, bytes).unwrap();
}

#[test]
fn the_time_of_a_hook_goes_on_without_a_server() {
    let mut sandbox = Sandbox::start("mode: quiet");
    let sleep = format!("echo $$ >> {}; exec sleep 300", log(&sandbox).display());
    sandbox.write("web.yml", &hooked("prehook", &sleep));
    let pid = killed_within_hook(&mut sandbox, "start");
    make_old(&sandbox);
    sandbox.start_server();
    wait_for("its end", PATIENCE, || !lives(pid));
    wait_log(&sandbox, "it took longer than 1m and was killed");
    assert_eq!(wait_lines(&log(&sandbox), 1).len(), 1, "it ran once");
    assert_eq!(sandbox.processes(), []);
}

#[test]
fn a_hook_that_ended_while_no_server_lived_is_run_again_unless_it_can_be_told_how() {
    let mut sandbox = Sandbox::start("mode: quiet");
    let note = format!("echo $$ >> {}; sleep 0.3", log(&sandbox).display());
    sandbox.write("web.yml", &hooked("prehook", &note));
    let pid = killed_within_hook(&mut sandbox, "start");
    wait_for("its end", PATIENCE, || !lives(pid));
    // A zombie that nobody reaps tells it.
    let told = PathBuf::from(format!("/proc/{pid}")).exists();
    sandbox.start_server();
    sandbox.wait_run("web", 1);
    let times = wait_lines(&log(&sandbox), 1).len();
    assert!(times == 2 || (told && times == 1), "{times}");
}

#[test]
fn a_hook_that_no_record_tells_of_any_more_is_killed() {
    let mut sandbox = Sandbox::start("mode: quiet");
    let sleep = format!("echo $$ >> {}; exec sleep 300", log(&sandbox).display());
    sandbox.write("web.yml", &hooked("prehook", &sleep));
    let pid = killed_within_hook(&mut sandbox, "start");
    fs::remove_file(sandbox.root().join("run/runtime.journal")).unwrap();
    sandbox.start_server();
    assert!(!lives(pid));
    let log = sandbox.server_log();
    assert!(
        log.contains("a hook that no record tells of any more is killed"),
        "{log}"
    );
}

#[test]
fn a_hook_that_cannot_be_recorded_is_not_run() {
    let Some((disk, mut sandbox)) = with_small_disk("run") else {
        return;
    };
    let note = format!("echo ran >> {}", log(&sandbox).display());
    sandbox.write("web.yml", &hooked("posthook", &note));
    sandbox.write("late.yml", &hooked("prehook", &note));
    sandbox.start_server();
    sandbox.done(&["start", "web"]);
    // Of a full disk it depends on pages for what there is room yet.
    sandbox.kill_server();
    disk.remount("ro");
    sandbox.start_server();
    let why = "its start cannot be recorded: cannot write `";
    let message = sandbox.refused(&["start", "late"], "hook_failed", 1);
    assert!(message.contains(why), "{message}");
    let answer = sandbox.done(&["stop", "web"]);
    let message = answer["message"].as_str().unwrap();
    let failed = format!("posthook failed: {why}");
    assert!(message.contains(&failed), "{message}");
    assert_eq!(sandbox.row("web").unwrap()["state"], "stopped");
    assert!(!log(&sandbox).exists(), "no hook has run");
    disk.remount("rw");
    sandbox.done(&["start", "late"]);
    assert_eq!(wait_lines(&log(&sandbox), 1), ["ran"]);
}
