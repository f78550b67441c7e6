//! When a file's absence is believed (DESIGN 5): the removal rules of `sync`, each.
//!
//! That nothing happens is seen by looking for longer than the quiet second, and then by doing
//! something that is seen to happen.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    time::Duration,
};

use rustix::process::Signal;
use serde_json::{Value, json};
use supervisor_rs::clock;

use crate::sandbox::{PATIENCE, Sandbox, stays, wait_for};

const OLD: &str = "command: sleep 300\n";
const NEW: &str = "command: sleep 301\n";
const BAD: &str = "comand: sleep 300\n";
const SHORT: &str = "command: 'true'\n";

const QUIET: Duration = Duration::from_secs(1);
/// Longer than the quiet second.
const QUIET_PASSED: Duration = Duration::from_millis(1_500);
/// `sync` without rescans: only a HUP confirms (or a minute, which no test waits for).
const SYNC: &str = "mode: sync\nrescan: off";

fn runs(sandbox: &Sandbox, name: &str) -> i64 {
    sandbox.wait_state(name, "running")["pid"].as_i64().unwrap()
}

/// A server with these children, all running.
fn with(settings: &str, names: &[&str]) -> Sandbox {
    let mut sandbox = Sandbox::new(settings);
    for name in names {
        sandbox.write(&format!("{name}.yml"), OLD);
    }
    sandbox.start_server();
    for name in names {
        runs(&sandbox, name);
    }
    sandbox
}

fn remove_all(sandbox: &Sandbox, names: &[&str]) {
    for name in names {
        sandbox.remove(&format!("{name}.yml"));
    }
}

/// The processes of all children that are running, by name.
fn pids(sandbox: &Sandbox) -> Value {
    let answer = sandbox.json(&["check"]);
    let rows = answer["children"].as_array().unwrap().iter();
    rows.map(|row| (row["name"].as_str().unwrap().to_owned(), row["pid"].clone()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn notes(sandbox: &Sandbox) -> Vec<String> {
    let answer = sandbox.json(&["check"]);
    let notes = answer["notes"].as_array().cloned().unwrap_or_default();
    notes
        .iter()
        .map(|note| note.as_str().unwrap().to_owned())
        .collect()
}

fn wait_note(sandbox: &Sandbox, part: &str) -> String {
    let mut found = None;
    wait_for(&format!("a note of `{part}`"), PATIENCE, || {
        found = notes(sandbox).into_iter().find(|note| note.contains(part));
        found.is_some()
    });
    found.unwrap()
}

/// Nothing is stopped or restarted for longer than the quiet second.
fn assert_nothing_happens(sandbox: &Sandbox, pids_before: &Value) {
    stays("all run on", QUIET_PASSED, || pids(sandbox) == *pids_before);
}

fn wait_status(sandbox: &Sandbox, name: &str, status: &str) -> Value {
    let mut row = Value::Null;
    wait_for(&format!("`{name}` shown as {status}"), PATIENCE, || {
        row = sandbox.row(name).unwrap_or_default();
        row["config"]["status"] == status
    });
    row
}

// The quiet second.

#[test]
fn a_file_that_is_gone_and_back_within_the_quiet_second_changes_nothing() {
    let sandbox = with(SYNC, &["web"]);
    let before = pids(&sandbox);
    for _ in 0..5 {
        sandbox.remove("web.yml");
        wait_status(&sandbox, "web", "removed");
        sandbox.write("web.yml", OLD);
        wait_status(&sandbox, "web", "current");
    }
    assert_nothing_happens(&sandbox, &before);
    assert_eq!(sandbox.row("web").unwrap()["run"], 1);
    assert!(!sandbox.server_log().contains("stopping"));
}

#[test]
fn a_file_that_is_back_with_other_content_within_the_quiet_second_is_a_change() {
    let sandbox = with(SYNC, &["web"]);
    sandbox.remove("web.yml");
    wait_status(&sandbox, "web", "removed");
    sandbox.write("web.yml", NEW);
    wait_for("the second run", PATIENCE, || {
        sandbox.command_of("web") == "sleep 301"
    });
    assert_eq!(sandbox.row("web").unwrap()["run"], 2);
}

#[test]
fn a_file_that_is_gone_for_a_second_has_its_child_stopped_with_its_posthook() {
    let sandbox = Sandbox::start(SYNC);
    let mark = sandbox.root().join("posthook-ran");
    let hook = format!("hooks:\n  - posthook: run touch {}\n", mark.display());
    sandbox.write("web.yml", &format!("{OLD}{hook}"));
    let pid = runs(&sandbox, "web");
    let removed = clock::mono();
    sandbox.remove("web.yml");
    // `check` says so at once.
    let row = wait_status(&sandbox, "web", "removed");
    assert_eq!(row["pid"], pid, "{row}");
    let row = sandbox.wait_state("web", "stopped");
    let took = clock::mono() - removed;
    assert!(took >= QUIET, "{took:?}");
    assert!(took < 5 * QUIET, "{took:?}");
    assert_eq!(row["exit"]["signal"], "SIGTERM", "{row}");
    assert_eq!(row["hold"], false, "{row}");
    wait_for("the posthook", PATIENCE, || mark.exists());
    assert_eq!(sandbox.processes(), []);
}

#[test]
fn a_child_that_was_stopped_for_its_file_is_started_when_the_file_is_back() {
    let sandbox = with(SYNC, &["web"]);
    sandbox.remove("web.yml");
    sandbox.wait_state("web", "stopped");
    sandbox.write("web.yml", OLD);
    let row = sandbox.wait_state("web", "running");
    assert_eq!(row["run"], 2, "{row}");
    assert_eq!(row["config"]["status"], "current", "{row}");
}

#[test]
fn a_held_child_whose_file_goes_and_comes_back_stays_held() {
    let sandbox = with(SYNC, &["web"]);
    assert_eq!(sandbox.json(&["stop", "web"])["ok"], true);
    sandbox.remove("web.yml");
    wait_status(&sandbox, "web", "removed");
    stays("held", QUIET_PASSED, || {
        sandbox.row("web").unwrap()["hold"] == true
    });
    sandbox.write("web.yml", NEW);
    sandbox.write("control.yml", OLD);
    runs(&sandbox, "control");
    let row = sandbox.row("web").unwrap();
    assert_eq!(row["state"], "stopped", "{row}");
    assert_eq!(row["hold"], true, "{row}");
    assert_eq!(sandbox.json(&["start", "web"])["run"], 2);
}

#[test]
fn a_restart_that_was_due_is_not_done_when_the_file_is_gone() {
    let sandbox = Sandbox::start(SYNC);
    let policy = "restart: {when: always, delay: 3s, jitter: 0}\n";
    sandbox.write("job.yml", &format!("{SHORT}{policy}"));
    sandbox.wait_state("job", "backoff");
    sandbox.remove("job.yml");
    let row = sandbox.wait_state("job", "exited");
    let run = row["run"].clone();
    let three = Duration::from_millis(3_500);
    stays("not restarted", three, || {
        sandbox.row("job").unwrap()["run"] == run
    });
    sandbox.write("control.yml", OLD);
    runs(&sandbox, "control");
}

#[test]
fn a_restart_that_was_due_is_not_done_when_the_file_went_while_no_server_ran() {
    let mut sandbox = Sandbox::start(SYNC);
    let policy = "restart: {when: always, delay: 3s, jitter: 0}\n";
    sandbox.write("job.yml", &format!("{SHORT}{policy}"));
    let run = sandbox.wait_state("job", "backoff")["run"].clone();
    sandbox.kill_server();
    sandbox.remove("job.yml");
    sandbox.start_server();
    let row = sandbox.wait_state("job", "exited");
    assert_eq!(row["run"], run, "{row}");
    assert_eq!(row["config"]["status"], "removed", "{row}");
}

// A loadpath that is away.

#[test]
fn a_missing_loadpath_stops_nothing_and_check_says_so() {
    let sandbox = with(SYNC, &["web"]);
    let before = pids(&sandbox);
    let aside = sandbox.root().join("aside");
    fs::rename(sandbox.loadpath(), &aside).unwrap();
    let note = wait_note(&sandbox, "does not exist");
    let expected = format!("loadpath `{}` does not exist", sandbox.loadpath().display());
    assert_eq!(note, expected);
    assert!(sandbox.server_log().contains("loadpath cannot be read"));
    let info = sandbox.json(&["info"]);
    assert_eq!(info["loadpaths"][0]["state"], "missing", "{info}");
    assert_eq!(info["faults"], json!([note]), "{info}");
    assert_nothing_happens(&sandbox, &before);
    // Not even a HUP makes an order of it.
    sandbox.signal_server(Signal::HUP);
    assert_nothing_happens(&sandbox, &before);

    // Back as it was, nothing is different.
    fs::rename(&aside, sandbox.loadpath()).unwrap();
    sandbox.write("control.yml", OLD);
    runs(&sandbox, "control");
    let row = sandbox.row("web").unwrap();
    assert_eq!(row["pid"], before["web"], "{row}");
    assert_eq!(row["config"]["status"], "current", "{row}");
    assert_eq!(notes(&sandbox), [""; 0]);
}

#[test]
fn a_loadpath_that_is_back_without_a_file_has_its_child_stopped() {
    let sandbox = with(SYNC, &["web", "db"]);
    let db = runs(&sandbox, "db");
    let aside = sandbox.root().join("aside");
    fs::rename(sandbox.loadpath(), &aside).unwrap();
    wait_note(&sandbox, "does not exist");
    fs::remove_file(aside.join("web.yml")).unwrap();
    fs::rename(&aside, sandbox.loadpath()).unwrap();
    sandbox.wait_state("web", "stopped");
    assert_eq!(runs(&sandbox, "db"), db);
}

#[test]
fn a_loadpath_that_is_not_to_be_trusted_any_more_stops_nothing() {
    let sandbox = with(SYNC, &["web"]);
    let before = pids(&sandbox);
    let mode = |mode| {
        let permissions = fs::Permissions::from_mode(mode);
        fs::set_permissions(sandbox.loadpath(), permissions).unwrap();
    };
    mode(0o777);
    let note = wait_note(&sandbox, "cannot be read");
    assert!(note.contains("chmod"), "{note}");
    // What is in it now may be anybody's.
    fs::remove_file(sandbox.loadpath().join("web.yml")).unwrap();
    fs::write(sandbox.loadpath().join("evil.yml"), OLD).unwrap();
    assert_nothing_happens(&sandbox, &before);
    assert_eq!(sandbox.row("evil"), None);
    mode(0o755);
    runs(&sandbox, "evil");
    sandbox.wait_state("web", "stopped");
}

#[test]
fn a_loadpath_that_is_no_directory_any_more_stops_nothing() {
    let sandbox = with(SYNC, &["web"]);
    let before = pids(&sandbox);
    fs::rename(sandbox.loadpath(), sandbox.root().join("aside")).unwrap();
    fs::write(sandbox.loadpath(), "no directory").unwrap();
    wait_note(&sandbox, "cannot be read");
    assert_nothing_happens(&sandbox, &before);
    sandbox.signal_server(Signal::HUP);
    fs::remove_file(sandbox.loadpath()).unwrap();
    fs::rename(sandbox.root().join("aside"), sandbox.loadpath()).unwrap();
    sandbox.write("control.yml", OLD);
    runs(&sandbox, "control");
    assert_eq!(pids(&sandbox)["web"], before["web"]);
}

#[test]
fn an_empty_loadpath_at_another_inode_stops_nothing() {
    let sandbox = with(SYNC, &["web", "db"]);
    let before = pids(&sandbox);
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    let old = inode(&sandbox.loadpath());
    // As a mount point looks when its disk is not mounted.
    let aside = sandbox.root().join("aside");
    fs::rename(sandbox.loadpath(), &aside).unwrap();
    fs::create_dir(sandbox.loadpath()).unwrap();
    assert_ne!(inode(&sandbox.loadpath()), old);
    let note = wait_note(&sandbox, "is empty");
    assert!(
        note.contains(sandbox.loadpath().to_str().unwrap()),
        "{note}"
    );
    assert_nothing_happens(&sandbox, &before);
    sandbox.signal_server(Signal::HUP);
    assert_nothing_happens(&sandbox, &before);
    // Mounted again.
    fs::remove_dir(sandbox.loadpath()).unwrap();
    fs::rename(&aside, sandbox.loadpath()).unwrap();
    sandbox.write("control.yml", OLD);
    runs(&sandbox, "control");
    for name in ["web", "db"] {
        assert_eq!(pids(&sandbox)[name], before[name]);
    }
    assert_eq!(notes(&sandbox), [""; 0]);
}

#[test]
fn an_empty_loadpath_at_another_inode_stops_nothing_after_a_crash_either() {
    for end in [Sandbox::kill_server, |sandbox: &mut Sandbox| {
        assert_eq!(sandbox.stop_server(), 0);
    }] {
        let mut sandbox = with(SYNC, &["web"]);
        let before = pids(&sandbox);
        end(&mut sandbox);
        fs::rename(sandbox.loadpath(), sandbox.root().join("aside")).unwrap();
        fs::create_dir(sandbox.loadpath()).unwrap();
        sandbox.start_server();
        wait_note(&sandbox, "is empty");
        assert_nothing_happens(&sandbox, &before);
        sandbox.signal_server(Signal::HUP);
        // Once there is something in it, it is believed.
        sandbox.write("control.yml", OLD);
        runs(&sandbox, "control");
        sandbox.wait_state("web", "stopped");
    }
}

#[test]
fn a_loadpath_emptied_where_it_stands_is_believed() {
    let sandbox = with(SYNC, &["web", "db"]);
    remove_all(&sandbox, &["web", "db"]);
    sandbox.wait_state("web", "stopped");
    sandbox.wait_state("db", "stopped");
    assert_eq!(notes(&sandbox), [""; 0]);
}

#[test]
fn a_child_is_restarted_by_its_policy_although_its_loadpath_is_missing() {
    let sandbox = Sandbox::start(SYNC);
    let policy = "restart: {when: always, delay: 100ms, factor: 1, jitter: 0}\n";
    sandbox.write("job.yml", &format!("command: sleep 0.2\n{policy}"));
    runs(&sandbox, "job");
    let aside = sandbox.root().join("aside");
    fs::rename(sandbox.loadpath(), &aside).unwrap();
    wait_note(&sandbox, "does not exist");
    let run = || sandbox.row("job").unwrap()["run"].as_i64().unwrap();
    let first = run();
    // Before the quiet second and after it.
    stays("nothing is wrong with it", QUIET_PASSED, || {
        let row = sandbox.row("job").unwrap();
        ["running", "exited", "backoff", "pending", "starting"]
            .contains(&row["state"].as_str().unwrap())
    });
    let later = run();
    assert!(later > first, "{}", sandbox.server_log());
    wait_for("two more runs", PATIENCE, || run() >= later + 2);
    fs::rename(&aside, sandbox.loadpath()).unwrap();
    let row = wait_status(&sandbox, "job", "current");
    assert!(row["run"].as_i64().unwrap() > later);
    sandbox.json(&["stop", "job"]);
}

#[test]
fn a_repeat_goes_on_when_its_loadpath_was_missing_for_a_time() {
    let sandbox = Sandbox::start(SYNC);
    let repeat = "repeat: {action: trystart, seconds: 1}\n";
    sandbox.write("job.yml", &format!("{SHORT}{repeat}"));
    sandbox.wait_state("job", "exited");
    let aside = sandbox.root().join("aside");
    fs::rename(sandbox.loadpath(), &aside).unwrap();
    wait_note(&sandbox, "does not exist");
    let run = || sandbox.row("job").unwrap()["run"].as_i64().unwrap();
    let first = run();
    let firings = || {
        let log = sandbox.server_log();
        log.matches("repeat changed nothing").count()
    };
    wait_for("two firings in vain", PATIENCE, || firings() >= 2);
    assert_eq!(run(), first);
    fs::rename(&aside, sandbox.loadpath()).unwrap();
    wait_for("two more runs", PATIENCE, || run() >= first + 2);
    // A file that is gone for good ends it.
    sandbox.remove("job.yml");
    wait_for("no repeat any more", PATIENCE, || {
        sandbox.row("job").unwrap()["next"] == Value::Null
    });
}

// Too many at once.

#[test]
fn more_than_half_and_three_at_once_wait_for_a_hup_and_log_and_check_say_so() {
    let sandbox = with(SYNC, &["a", "b", "c", "stays"]);
    let before = pids(&sandbox);
    remove_all(&sandbox, &["a", "b", "c"]);
    let note = wait_note(&sandbox, "HUP");
    assert!(note.starts_with("3 running children"), "{note}");
    let shown = sandbox.client(&["check"]);
    assert!(
        shown.stdout.contains(&note) || shown.stderr.contains(&note),
        "{shown:?}"
    );
    assert!(sandbox.server_log().contains("many files went at once"));
    assert_nothing_happens(&sandbox, &before);
    sandbox.signal_server(Signal::HUP);
    for name in ["a", "b", "c"] {
        let row = sandbox.wait_state(name, "stopped");
        assert_eq!(row["exit"]["signal"], "SIGTERM", "{row}");
    }
    assert_eq!(pids(&sandbox), json!({"stays": before["stays"]}));
    assert_eq!(notes(&sandbox), [""; 0]);
}

#[test]
fn files_that_are_back_before_they_were_confirmed_gone_change_nothing() {
    let sandbox = with(SYNC, &["a", "b", "c"]);
    let before = pids(&sandbox);
    remove_all(&sandbox, &["a", "b", "c"]);
    wait_note(&sandbox, "HUP");
    for name in ["a", "b", "c"] {
        sandbox.write(&format!("{name}.yml"), OLD);
        wait_status(&sandbox, name, "current");
    }
    assert_eq!(notes(&sandbox), [""; 0]);
    sandbox.signal_server(Signal::HUP);
    assert_nothing_happens(&sandbox, &before);
    // What goes now goes by its own.
    sandbox.remove("a.yml");
    sandbox.wait_state("a", "stopped");
}

#[test]
fn too_many_at_once_are_confirmed_by_the_next_rescan() {
    let sandbox = with("mode: sync\nrescan: 2s", &["a", "b", "c"]);
    remove_all(&sandbox, &["a", "b", "c"]);
    for name in ["a", "b", "c"] {
        sandbox.wait_state(name, "stopped");
    }
    assert!(sandbox.server_log().contains("many files went at once"));
}

#[test]
fn half_at_once_is_not_too_many_and_neither_are_two() {
    let sandbox = with(SYNC, &["a", "b", "c", "d", "e", "f"]);
    remove_all(&sandbox, &["a", "b", "c"]);
    for name in ["a", "b", "c"] {
        sandbox.wait_state(name, "stopped");
    }
    remove_all(&sandbox, &["d", "e"]);
    for name in ["d", "e"] {
        sandbox.wait_state(name, "stopped");
    }
    assert!(!sandbox.server_log().contains("many files"));
    assert_eq!(sandbox.row("f").unwrap()["run"], 1);
}

#[test]
fn each_loadpath_counts_its_own_children() {
    let mut sandbox = Sandbox::new("mode: sync\nrescan: off\nloadpaths: [load, more]");
    let more = sandbox.root().join("more");
    fs::create_dir(&more).unwrap();
    for name in ["a", "b", "c"] {
        sandbox.write(&format!("{name}.yml"), OLD);
    }
    for name in ["m1", "m2", "m3", "m4", "m5"] {
        sandbox.replace(&more.join(format!("{name}.yml")), OLD);
    }
    sandbox.start_server();
    for name in ["a", "b", "c", "m1", "m2", "m3", "m4", "m5"] {
        runs(&sandbox, name);
    }
    // Three of eight, but all of one loadpath; and two of the other, which is not too many.
    remove_all(&sandbox, &["a", "b", "c"]);
    fs::remove_file(more.join("m1.yml")).unwrap();
    fs::remove_file(more.join("m2.yml")).unwrap();
    sandbox.wait_state("m1", "stopped");
    sandbox.wait_state("m2", "stopped");
    wait_note(&sandbox, "HUP");
    for name in ["a", "b", "c"] {
        assert_eq!(sandbox.row(name).unwrap()["state"], "running");
    }
    sandbox.signal_server(Signal::HUP);
    for name in ["a", "b", "c"] {
        sandbox.wait_state(name, "stopped");
    }
    assert_eq!(sandbox.row("m3").unwrap()["run"], 1);
}

#[test]
fn a_loadpath_taken_out_of_server_yml_stops_nothing_until_a_hup() {
    let mut sandbox = Sandbox::new("mode: sync\nrescan: off\nloadpaths: [load, more]");
    let more = sandbox.root().join("more");
    fs::create_dir(&more).unwrap();
    sandbox.replace(&more.join("db.yml"), OLD);
    sandbox.write("web.yml", OLD);
    sandbox.start_server();
    runs(&sandbox, "web");
    runs(&sandbox, "db");
    let before = pids(&sandbox);
    sandbox.configure("mode: sync\nrescan: off\nloadpaths: [load]");
    wait_status(&sandbox, "db", "removed");
    let note = wait_note(&sandbox, "HUP");
    assert!(note.starts_with('1'), "{note}");
    assert!(sandbox.server_log().contains("rescan confirms it"));
    assert_nothing_happens(&sandbox, &before);

    // Put back, nothing was lost.
    sandbox.configure("mode: sync\nrescan: off\nloadpaths: [load, more]");
    wait_status(&sandbox, "db", "current");
    sandbox.signal_server(Signal::HUP);
    assert_nothing_happens(&sandbox, &before);

    sandbox.configure("mode: sync\nrescan: off\nloadpaths: [load]");
    wait_note(&sandbox, "HUP");
    sandbox.signal_server(Signal::HUP);
    sandbox.wait_state("db", "stopped");
    assert_eq!(pids(&sandbox), json!({"web": before["web"]}));
}

#[test]
fn a_loadpath_taken_out_while_no_server_ran_stops_nothing_until_a_hup() {
    let mut sandbox = Sandbox::new("mode: sync\nrescan: off\nloadpaths: [load, more]");
    let more = sandbox.root().join("more");
    fs::create_dir(&more).unwrap();
    sandbox.replace(&more.join("db.yml"), OLD);
    sandbox.start_server();
    runs(&sandbox, "db");
    let before = pids(&sandbox);
    sandbox.kill_server();
    sandbox.configure("mode: sync\nrescan: off\nloadpaths: [load]");
    sandbox.start_server();
    wait_note(&sandbox, "HUP");
    assert_nothing_happens(&sandbox, &before);
    sandbox.signal_server(Signal::HUP);
    sandbox.wait_state("db", "stopped");
}

// Conflicts.

#[test]
fn two_files_with_one_name_are_neither_started_nor_applied_and_both_are_shown() {
    let sandbox = with(SYNC, &["web"]);
    let before = pids(&sandbox);
    sandbox.write("web.yaml", NEW);
    let row = wait_status(&sandbox, "web", "conflict");
    let path = |name| sandbox.loadpath().join(name).display().to_string();
    let paths = json!([path("web.yaml"), path("web.yml")]);
    assert_eq!(row["config"]["paths"], paths, "{row}");
    assert_eq!(row["state"], "running", "{row}");
    let shown = sandbox.client(&["check", "web"]).stdout;
    assert!(shown.contains(&path("web.yaml")), "{shown}");
    assert!(shown.contains(&path("web.yml")), "{shown}");
    let log = sandbox.server_log();
    assert!(log.contains("two files with one name"), "{log}");
    assert!(log.contains(&path("web.yaml")), "{log}");
    for verb in ["start", "restart", "trystart"] {
        let refused = sandbox.json(&[verb, "web"]);
        let code = if verb == "start" {
            "already_running"
        } else {
            "conflict"
        };
        assert_eq!(refused["error"]["code"], code, "{verb}: {refused}");
    }
    assert_nothing_happens(&sandbox, &before);

    // The one that is left is in force.
    sandbox.remove("web.yml");
    wait_for("the other file's run", PATIENCE, || {
        sandbox.command_of("web") == "sleep 301"
    });
    let row = sandbox.row("web").unwrap();
    assert_eq!(row["run"], 2, "{row}");
    assert_eq!(row["config"]["path"], path("web.yaml"), "{row}");
    assert_eq!(row["config"]["paths"], Value::Null, "{row}");
}

#[test]
fn a_new_name_with_two_files_is_not_started_until_one_is_gone() {
    for mode in ["sync", "full"] {
        let mut sandbox = Sandbox::start(&format!("mode: {mode}\nloadpaths: [none]"));
        let more = sandbox.root().join("more");
        fs::create_dir(&more).unwrap();
        sandbox.write("web.yml", OLD);
        sandbox.replace(&more.join("web.yml"), NEW);
        // Both at once.
        sandbox.configure(&format!("mode: {mode}\nloadpaths: [load, more]"));
        let row = wait_status(&sandbox, "web", "conflict");
        assert_eq!(row["run"], Value::Null, "{mode}: {row}");
        let refused = sandbox.client(&["start", "web"]);
        assert_eq!(refused.code, 6, "{mode}: {refused:?}");
        sandbox.remove("web.yml");
        let row = sandbox.wait_state("web", "running");
        assert_eq!(row["run"], 1, "{mode}: {row}");
        assert_eq!(sandbox.command_of("web"), "sleep 301", "{mode}");
    }
}

#[test]
fn a_conflict_that_is_over_with_the_old_content_restarts_nothing() {
    let sandbox = with(SYNC, &["web"]);
    let before = pids(&sandbox);
    sandbox.write("web.yaml", OLD);
    wait_status(&sandbox, "web", "conflict");
    sandbox.remove("web.yml");
    wait_status(&sandbox, "web", "current");
    assert_nothing_happens(&sandbox, &before);
    // One file renamed is the same child.
    let path = |name| sandbox.loadpath().join(name);
    fs::rename(path("web.yaml"), path("web.yml")).unwrap();
    wait_for("the new path", PATIENCE, || {
        let row = sandbox.row("web").unwrap();
        row["config"]["path"] == path("web.yml").to_str().unwrap()
    });
    assert_nothing_happens(&sandbox, &before);
}

// Bad files.

#[test]
fn a_bad_file_stops_nothing_and_the_last_good_one_stays() {
    let sandbox = with(SYNC, &["web"]);
    let before = pids(&sandbox);
    sandbox.write("web.yml", BAD);
    let row = wait_status(&sandbox, "web", "invalid");
    assert_eq!(row["state"], "running", "{row}");
    let fault = row["faults"][0].as_str().unwrap();
    assert!(fault.contains("web.yml:1:1"), "{fault}");
    assert!(fault.contains("did you mean `command`"), "{fault}");
    let shown = sandbox.client(&["check", "web"]).stdout;
    assert!(shown.contains("web.yml:1:1"), "{shown}");
    for verb in ["restart", "trystart"] {
        let refused = sandbox.json(&[verb, "web"]);
        assert_eq!(refused["error"]["code"], "invalid_config", "{refused}");
        let message = refused["error"]["message"].as_str().unwrap();
        assert!(message.contains("web.yml:1:1"), "{message}");
    }
    assert_nothing_happens(&sandbox, &before);
    sandbox.signal_server(Signal::HUP);

    // The fault goes when the file is good again.
    sandbox.write("web.yml", OLD);
    let row = wait_status(&sandbox, "web", "current");
    assert_eq!(row["faults"], Value::Null, "{row}");
    assert_nothing_happens(&sandbox, &before);
    sandbox.write("web.yml", BAD);
    wait_status(&sandbox, "web", "invalid");
    sandbox.write("web.yml", NEW);
    wait_for("the second run", PATIENCE, || {
        sandbox.command_of("web") == "sleep 301"
    });
    assert_eq!(sandbox.row("web").unwrap()["run"], 2);
}

#[test]
fn a_bad_file_blocks_no_other_child() {
    let sandbox = with(SYNC, &["web"]);
    sandbox.write("web.yml", BAD);
    sandbox.write("other.yml", OLD);
    assert_eq!(runs(&sandbox, "other"), runs(&sandbox, "other"));
    assert_eq!(sandbox.json(&["restart", "other"])["run"], 2);
}

#[test]
fn a_child_that_ended_is_restarted_by_its_policy_although_its_file_is_bad() {
    let sandbox = Sandbox::start(SYNC);
    let policy = "restart: {when: always, delay: 100ms, factor: 1, jitter: 0}\n";
    sandbox.write("job.yml", &format!("command: sleep 0.2\n{policy}"));
    runs(&sandbox, "job");
    sandbox.write("job.yml", BAD);
    let run = wait_status(&sandbox, "job", "invalid")["run"]
        .as_i64()
        .unwrap();
    wait_for("two more runs", PATIENCE, || {
        sandbox.row("job").unwrap()["run"].as_i64().unwrap() >= run + 2
    });
    sandbox.json(&["stop", "job"]);
}

#[test]
fn a_bad_file_that_goes_is_a_file_that_goes() {
    let sandbox = with(SYNC, &["web"]);
    sandbox.write("web.yml", BAD);
    wait_status(&sandbox, "web", "invalid");
    sandbox.remove("web.yml");
    sandbox.wait_state("web", "stopped");
}

// What is new.

#[test]
fn a_name_that_comes_back_with_the_digest_that_last_ran_is_not_new() {
    for mode in ["full", "sync", "half\nstartup: [job]"] {
        let sandbox = Sandbox::start(&format!("mode: {mode}"));
        sandbox.write("job.yml", SHORT);
        assert_eq!(sandbox.wait_state("job", "exited")["run"], 1, "{mode}");
        sandbox.remove("job.yml");
        wait_status(&sandbox, "job", "removed");
        stays("gone", QUIET_PASSED, || {
            sandbox.row("job").unwrap()["config"]["status"] == "removed"
        });
        sandbox.write("job.yml", SHORT);
        wait_status(&sandbox, "job", "current");
        if mode != "half\nstartup: [job]" {
            sandbox.write("control.yml", OLD);
            runs(&sandbox, "control");
        }
        let row = sandbox.row("job").unwrap();
        assert_eq!(row["state"], "exited", "{mode}: {row}");
        assert_eq!(row["run"], 1, "{mode}: {row}");

        // With another it is.
        sandbox.remove("job.yml");
        wait_status(&sandbox, "job", "removed");
        stays("gone", QUIET_PASSED, || {
            sandbox.row("job").unwrap()["config"]["status"] == "removed"
        });
        sandbox.write("job.yml", OLD);
        assert_eq!(sandbox.wait_state("job", "running")["run"], 2, "{mode}");
    }
}

#[test]
fn a_name_that_comes_back_within_the_quiet_second_is_not_new_either() {
    let sandbox = Sandbox::start("mode: full");
    sandbox.write("job.yml", SHORT);
    assert_eq!(sandbox.wait_state("job", "exited")["run"], 1);
    // The whole second must lie between these for the file to be new.
    sandbox.signal_server(Signal::STOP);
    sandbox.remove("job.yml");
    sandbox.write("job.yml", OLD);
    sandbox.signal_server(Signal::CONT);
    wait_status(&sandbox, "job", "changed");
    sandbox.write("control.yml", OLD);
    runs(&sandbox, "control");
    assert_eq!(sandbox.row("job").unwrap()["state"], "exited");
    assert_eq!(sandbox.json(&["start", "job"])["run"], 2);
}

#[test]
fn a_child_that_runs_on_without_a_file_is_not_restarted_when_the_file_is_back_in_full() {
    let sandbox = with("mode: full", &["web"]);
    let before = pids(&sandbox);
    sandbox.remove("web.yml");
    wait_status(&sandbox, "web", "removed");
    assert_nothing_happens(&sandbox, &before);
    sandbox.write("web.yml", NEW);
    wait_status(&sandbox, "web", "changed");
    sandbox.write("control.yml", OLD);
    runs(&sandbox, "control");
    assert_eq!(pids(&sandbox)["web"], before["web"]);
    sandbox.write("web.yml", OLD);
    wait_status(&sandbox, "web", "current");
}

#[test]
fn a_removal_that_a_crash_interrupts_is_made_up() {
    let mut sandbox = with(SYNC, &["a", "b", "c"]);
    remove_all(&sandbox, &["a", "b"]);
    wait_status(&sandbox, "b", "removed");
    sandbox.restart_server();
    sandbox.wait_state("a", "stopped");
    sandbox.wait_state("b", "stopped");
    assert_eq!(sandbox.row("c").unwrap()["run"], 1);
}
