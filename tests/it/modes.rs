//! Modes (DESIGN 5): four modes by four columns, a test a cell; fresh and continued starts.
//!
//! A run's number tells whether anything was started before it: the first run of a child is 1.

use std::{fs, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::sandbox::{PATIENCE, Sandbox, stays, wait_for};

const OLD: &str = "command: sleep 300\n";
const NEW: &str = "command: sleep 301\n";
const BAD: &str = "comand: sleep 300\n";
/// Ends by itself at once.
const SHORT: &str = "command: 'true'\n";

/// Longer than the quiet second.
const QUIET_PASSED: Duration = Duration::from_millis(1_500);

/// A child that was listed and never ran.
fn assert_never_ran(sandbox: &Sandbox, name: &str) {
    let row = sandbox.row(name).unwrap();
    assert_eq!(row["state"], "stopped", "{row}");
    assert_eq!(row["run"], Value::Null, "{row}");
    assert_eq!(row["pid"], Value::Null, "{row}");
}

/// Starts a child that must never have run.
fn start_first(sandbox: &Sandbox, name: &str) {
    let answer = sandbox.json(&["start", name]);
    assert_eq!(answer["ok"], true, "{answer}");
    assert_eq!(answer["run"], 1, "{answer}");
}

fn wait_status(sandbox: &Sandbox, name: &str, status: &str) -> Value {
    let mut row = Value::Null;
    wait_for(&format!("`{name}` shown as {status}"), PATIENCE, || {
        row = sandbox.row(name).unwrap_or_default();
        row["config"]["status"] == status
    });
    row
}

/// Waits until a child runs and returns its process.
fn runs(sandbox: &Sandbox, name: &str) -> i64 {
    sandbox.wait_state(name, "running")["pid"].as_i64().unwrap()
}

// The server starts.

#[test]
fn quiet_starts_nothing_when_the_server_starts() {
    let mut sandbox = Sandbox::new("mode: quiet");
    sandbox.write("web.yml", OLD);
    sandbox.start_server();
    assert_never_ran(&sandbox, "web");
    start_first(&sandbox, "web");
}

#[test]
fn half_starts_the_children_in_startup_when_the_server_starts() {
    let mut sandbox = Sandbox::new("mode: half\nstartup: [web, ghost, broken]");
    sandbox.write("web.yml", OLD);
    sandbox.write("other.yml", OLD);
    sandbox.write("broken.yml", BAD);
    sandbox.start_server();
    assert_eq!(sandbox.wait_state("web", "running")["run"], 1);
    assert_never_ran(&sandbox, "other");
    start_first(&sandbox, "other");
    // A missing one is skipped,
    let ghost = sandbox.client(&["check", "ghost"]);
    assert_eq!(ghost.code, 5, "{ghost:?}");
    // a bad one is a fault.
    let broken = sandbox.row("broken").unwrap();
    assert_eq!(broken["config"]["status"], "invalid", "{broken}");
    assert_eq!(broken["run"], Value::Null, "{broken}");
    let fault = broken["faults"][0].as_str().unwrap();
    assert!(fault.contains("broken.yml:1:1"), "{fault}");
    assert!(sandbox.server_log().contains("broken.yml:1:1"));
    // Good again, it is started: it is in the list.
    sandbox.write("broken.yml", OLD);
    assert_eq!(sandbox.wait_state("broken", "running")["run"], 1);
}

#[test]
fn full_starts_every_child_when_the_server_starts() {
    let mut sandbox = Sandbox::new("mode: full");
    sandbox.write("web.yml", OLD);
    sandbox.write("db.yaml", NEW);
    sandbox.start_server();
    assert_eq!(sandbox.wait_state("web", "running")["run"], 1);
    assert_eq!(sandbox.wait_state("db", "running")["run"], 1);
}

#[test]
fn sync_starts_every_valid_child_when_the_server_starts() {
    let mut sandbox = Sandbox::new("mode: sync");
    sandbox.write("web.yml", OLD);
    sandbox.write("db.yml", NEW);
    sandbox.write("broken.yml", BAD);
    sandbox.start_server();
    runs(&sandbox, "web");
    runs(&sandbox, "db");
    let broken = sandbox.row("broken").unwrap();
    assert_eq!(broken["config"]["status"], "invalid", "{broken}");
    assert_eq!(broken["run"], Value::Null, "{broken}");
}

// A new file appears.

#[test]
fn a_new_file_in_quiet_is_known_and_waits_and_the_log_names_the_command() {
    let sandbox = Sandbox::start("mode: quiet");
    sandbox.write("web.yml", OLD);
    wait_for("the new child", PATIENCE, || sandbox.row("web").is_some());
    assert_never_ran(&sandbox, "web");
    let log = sandbox.server_log();
    let line = log.lines().find(|line| line.contains("waits for `start`"));
    let line = line.unwrap();
    assert!(line.contains("supervisor-rs-client start web"), "{line}");
    start_first(&sandbox, "web");
}

#[test]
fn a_new_file_in_half_is_started_if_it_is_in_startup() {
    let sandbox = Sandbox::start("mode: half\nstartup: [web]");
    sandbox.write("other.yml", OLD);
    sandbox.write("web.yml", OLD);
    assert_eq!(sandbox.wait_state("web", "running")["run"], 1);
    assert_never_ran(&sandbox, "other");
    start_first(&sandbox, "other");
}

#[test]
fn a_new_file_in_full_is_started() {
    let sandbox = Sandbox::start("mode: full");
    sandbox.write("web.yml", OLD);
    assert_eq!(sandbox.wait_state("web", "running")["run"], 1);
}

#[test]
fn a_new_file_in_sync_is_started() {
    let sandbox = Sandbox::start("mode: sync");
    sandbox.write("web.yml", OLD);
    assert_eq!(sandbox.wait_state("web", "running")["run"], 1);
}

#[test]
fn a_new_bad_file_is_started_once_it_is_good() {
    for mode in ["half\nstartup: [web]", "full", "sync"] {
        let sandbox = Sandbox::start(&format!("mode: {mode}"));
        sandbox.write("web.yml", BAD);
        let row = wait_status(&sandbox, "web", "invalid");
        assert_eq!(row["run"], Value::Null, "{mode}: {row}");
        sandbox.write("web.yml", OLD);
        let row = sandbox.wait_state("web", "running");
        assert_eq!(row["run"], 1, "{mode}");
        assert_eq!(row["config"]["status"], "current", "{mode}");
    }
}

// A file changes.

/// In all modes but `sync` a change is only shown, and the next start uses it.
fn a_change_waits_for_the_next_start(mode: &str) {
    let mut sandbox = Sandbox::new(&format!("mode: {mode}\nstartup: [web, idle]"));
    sandbox.write("web.yml", OLD);
    sandbox.start_server();
    if mode == "quiet" {
        start_first(&sandbox, "web");
    }
    let before = sandbox.wait_state("web", "running");
    assert_eq!(before["config"]["status"], "current");
    sandbox.write("web.yml", NEW);
    let changed = wait_status(&sandbox, "web", "changed");
    for field in ["pid", "run", "started_at", "state"] {
        assert_eq!(changed[field], before[field], "{mode}: {field}");
    }
    // What is shown is the digest of what runs.
    assert_eq!(changed["config"]["digest"], before["config"]["digest"]);
    assert_eq!(sandbox.command_of("web"), "sleep 300");

    let restarted = sandbox.json(&["restart", "web"]);
    assert_eq!(restarted["run"], 2, "{mode}: {restarted}");
    assert_eq!(sandbox.command_of("web"), "sleep 301");
    let after = sandbox.row("web").unwrap();
    assert_eq!(after["config"]["status"], "current", "{mode}: {after}");

    // One that ended by itself is not started by a change either.
    sandbox.write("idle.yml", SHORT);
    if mode == "quiet" {
        wait_for("the new child", PATIENCE, || sandbox.row("idle").is_some());
        start_first(&sandbox, "idle");
    }
    sandbox.wait_state("idle", "exited");
    sandbox.write("idle.yml", OLD);
    let row = wait_status(&sandbox, "idle", "changed");
    assert_eq!(row["state"], "exited", "{mode}: {row}");
    assert_eq!(sandbox.json(&["start", "idle"])["run"], 2, "{mode}");
    assert_eq!(sandbox.command_of("idle"), "sleep 300");
}

#[test]
fn a_change_in_quiet_is_shown_and_the_next_start_uses_it() {
    a_change_waits_for_the_next_start("quiet");
}

#[test]
fn a_change_in_half_is_shown_and_the_next_start_uses_it() {
    a_change_waits_for_the_next_start("half");
}

#[test]
fn a_change_in_full_is_shown_and_the_next_start_uses_it() {
    a_change_waits_for_the_next_start("full");
}

#[test]
fn a_change_in_sync_restarts_the_child_if_its_digest_changed() {
    let sandbox = Sandbox::start("mode: sync");
    sandbox.write("web.yml", OLD);
    let first = sandbox.wait_state("web", "running");
    sandbox.write("web.yml", NEW);
    wait_for("the second run", PATIENCE, || {
        sandbox.command_of("web") == "sleep 301"
    });
    let second = sandbox.wait_state("web", "running");
    assert_eq!(second["run"], 2);
    assert_ne!(second["config"]["digest"], first["config"]["digest"]);
    assert_eq!(second["config"]["status"], "current");

    // Other words for the same are no change.
    sandbox.write("web.yml", "# the same\ncommand: [sleep, '301']\nx-by: me\n");
    sandbox.write("later.yml", OLD);
    runs(&sandbox, "later");
    assert_eq!(sandbox.row("web").unwrap()["pid"], second["pid"]);
    assert_eq!(
        sandbox.row("web").unwrap()["config"],
        second["config"],
        "equal meaning, equal digest"
    );
    assert_eq!(sandbox.processes().len(), 2);
}

#[test]
fn a_change_in_sync_starts_again_what_had_ended_by_itself() {
    let sandbox = Sandbox::start("mode: sync");
    sandbox.write("job.yml", SHORT);
    assert_eq!(sandbox.wait_state("job", "exited")["run"], 1);
    // The same again is no reason.
    sandbox.write("job.yml", &format!("# again\n{SHORT}"));
    sandbox.write("web.yml", OLD);
    runs(&sandbox, "web");
    assert_eq!(sandbox.row("job").unwrap()["run"], 1);
    sandbox.write("job.yml", OLD);
    assert_eq!(sandbox.wait_state("job", "running")["run"], 2);
}

#[test]
fn a_change_in_sync_does_not_start_what_is_held() {
    let sandbox = Sandbox::start("mode: sync");
    sandbox.write("web.yml", OLD);
    runs(&sandbox, "web");
    assert_eq!(sandbox.json(&["stop", "web"])["ok"], true);
    sandbox.write("web.yml", NEW);
    let row = wait_status(&sandbox, "web", "changed");
    assert_eq!(row["state"], "stopped", "{row}");
    assert_eq!(row["hold"], true, "{row}");
    sandbox.write("later.yml", OLD);
    runs(&sandbox, "later");
    assert_eq!(sandbox.row("web").unwrap()["state"], "stopped");
    assert_eq!(sandbox.json(&["start", "web"])["run"], 2);
    assert_eq!(sandbox.command_of("web"), "sleep 301");
}

// A file goes.

fn what_is_gone_runs_on(mode: &str) {
    let mut sandbox = Sandbox::new(&format!("mode: {mode}\nstartup: [web]"));
    let posthook = format!("touch {}", sandbox.root().join("posthook-ran").display());
    sandbox.write(
        "web.yml",
        &format!("{OLD}hooks:\n  - posthook: run {posthook}\n"),
    );
    sandbox.start_server();
    if mode == "quiet" {
        start_first(&sandbox, "web");
    }
    let before = sandbox.wait_state("web", "running");
    sandbox.remove("web.yml");
    wait_status(&sandbox, "web", "removed");
    stays("it runs on", QUIET_PASSED, || {
        let row = sandbox.row("web").unwrap();
        row["state"] == "running" && row["pid"] == before["pid"]
    });
    sandbox.signal_server(Signal::HUP);
    // It can still be stopped, with the posthook it was started with.
    let stopped = sandbox.json(&["stop", "web"]);
    assert_eq!(stopped["ok"], true, "{mode}: {stopped}");
    assert_eq!(stopped["pid"], before["pid"], "{mode}: {stopped}");
    assert!(sandbox.root().join("posthook-ran").exists(), "{mode}");
    // And not be started: nothing says how.
    let start = sandbox.client(&["start", "web"]);
    assert_eq!(start.code, 5, "{mode}: {start:?}");
}

#[test]
fn a_child_whose_file_goes_in_quiet_runs_on_and_is_shown_as_removed() {
    what_is_gone_runs_on("quiet");
}

#[test]
fn a_child_whose_file_goes_in_half_runs_on_and_is_shown_as_removed() {
    what_is_gone_runs_on("half");
}

#[test]
fn a_child_whose_file_goes_in_full_runs_on_and_is_shown_as_removed() {
    what_is_gone_runs_on("full");
}

#[test]
fn a_child_whose_file_goes_in_sync_is_stopped_with_its_posthook() {
    let sandbox = Sandbox::start("mode: sync");
    let mark = sandbox.root().join("posthook-ran");
    let posthook = format!("hooks:\n  - posthook: run touch {}\n", mark.display());
    sandbox.write("web.yml", &format!("{OLD}{posthook}"));
    runs(&sandbox, "web");
    sandbox.remove("web.yml");
    let row = sandbox.wait_state("web", "stopped");
    assert_eq!(row["exit"]["signal"], "SIGTERM", "{row}");
    assert_eq!(row["config"]["status"], "removed", "{row}");
    assert_eq!(row["hold"], false, "{row}");
    wait_for("the posthook", PATIENCE, || mark.exists());
    assert_eq!(sandbox.processes(), []);
}

// Fresh and continued starts.

/// One child of each kind, made in a server of this mode, which then dies or is ended.
struct Kinds {
    sandbox: Sandbox,
    web: i64,
}

/// `web` runs, `ended` ended by itself, `due` waits for its restart, `held` is held.
fn kinds(mode: &str) -> Kinds {
    let sandbox = Sandbox::start(&format!(
        "mode: {mode}\nstartup: [web, ended, due, held, late]"
    ));
    sandbox.write("web.yml", OLD);
    sandbox.write("ended.yml", SHORT);
    sandbox.write("held.yml", OLD);
    sandbox.write(
        "due.yml",
        "command: 'true'\nrestart: {when: always, delay: 2s, jitter: 0}\n",
    );
    let all = ["web", "ended", "held", "due"];
    if mode == "quiet" {
        for name in all {
            wait_for(name, PATIENCE, || sandbox.row(name).is_some());
            start_first(&sandbox, name);
        }
    }
    let web = runs(&sandbox, "web");
    runs(&sandbox, "held");
    assert_eq!(sandbox.json(&["stop", "held"])["ok"], true);
    sandbox.wait_state("ended", "exited");
    sandbox.wait_state("due", "backoff");
    Kinds { sandbox, web }
}

/// After a crash: what ran is taken back, what had ended stays ended, what was due is done.
fn a_crash_is_continued(mode: &str) {
    let Kinds { mut sandbox, web } = kinds(mode);
    sandbox.kill_server();
    sandbox.write("late.yml", OLD);
    sandbox.start_server();
    let due = sandbox.row("due").unwrap();
    assert_eq!(runs(&sandbox, "web"), web, "{mode}");
    assert_eq!(sandbox.row("web").unwrap()["run"], 1, "{mode}");
    if mode == "quiet" {
        assert_never_ran(&sandbox, "late");
        start_first(&sandbox, "late");
    } else {
        // It never ran.
        assert_eq!(sandbox.wait_state("late", "running")["run"], 1, "{mode}");
    }
    let before = due["run"].as_i64().unwrap();
    wait_for("the restart that was due", PATIENCE, || {
        sandbox.row("due").unwrap()["run"].as_i64().unwrap() > before
    });
    let ended = sandbox.row("ended").unwrap();
    assert_eq!(ended["state"], "exited", "{mode}: {ended}");
    assert_eq!(ended["run"], 1, "{mode}: {ended}");
    assert_eq!(ended["exit"]["code"], 0, "{mode}: {ended}");
    let held = sandbox.row("held").unwrap();
    assert_eq!(held["state"], "stopped", "{mode}: {held}");
    assert_eq!(held["hold"], true, "{mode}: {held}");
    sandbox.json(&["stop", "due"]);
}

#[test]
fn a_start_after_a_crash_continues_in_quiet() {
    a_crash_is_continued("quiet");
}

#[test]
fn a_start_after_a_crash_continues_in_half() {
    a_crash_is_continued("half");
}

#[test]
fn a_start_after_a_crash_continues_in_full() {
    a_crash_is_continued("full");
}

#[test]
fn a_start_after_a_crash_continues_in_sync() {
    a_crash_is_continued("sync");
}

#[test]
fn what_ended_while_no_server_ran_stays_ended_after_a_crash() {
    let mut sandbox = Sandbox::start("mode: sync");
    sandbox.write("web.yml", OLD);
    let pid = i32::try_from(runs(&sandbox, "web")).unwrap();
    sandbox.kill_server();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    wait_for("its end", PATIENCE, || sandbox.processes().is_empty());
    sandbox.write("later.yml", OLD);
    sandbox.start_server();
    runs(&sandbox, "later");
    let row = sandbox.row("web").unwrap();
    assert_eq!(row["state"], "exited", "{row}");
    assert_eq!(row["run"], 1, "{row}");
    assert_eq!(row["pid"], Value::Null, "{row}");
    assert!(row["exit"]["at"].is_string(), "{row}");
}

#[test]
fn what_changed_in_sync_while_no_server_ran_is_made_up_after_a_crash() {
    let mut sandbox = Sandbox::start("mode: sync");
    for name in ["same", "changed", "gone", "ended"] {
        let yaml = if name == "ended" { SHORT } else { OLD };
        sandbox.write(&format!("{name}.yml"), yaml);
    }
    let same = runs(&sandbox, "same");
    runs(&sandbox, "changed");
    runs(&sandbox, "gone");
    sandbox.wait_state("ended", "exited");
    sandbox.kill_server();
    sandbox.write("changed.yml", NEW);
    sandbox.write("ended.yml", NEW);
    sandbox.remove("gone.yml");
    sandbox.start_server();
    wait_for("the changed one", PATIENCE, || {
        sandbox.command_of("changed") == "sleep 301"
    });
    assert_eq!(sandbox.wait_state("ended", "running")["run"], 2);
    let gone = sandbox.wait_state("gone", "stopped");
    assert_eq!(gone["config"]["status"], "removed", "{gone}");
    assert_eq!(runs(&sandbox, "same"), same);
}

/// After an end by order everything is wanted that neither runs nor is held.
fn an_end_by_order_is_followed_by_a_fresh_start(mode: &str) {
    let Kinds { mut sandbox, web } = kinds(mode);
    assert_eq!(sandbox.stop_server(), 0);
    sandbox.write("late.yml", OLD);
    sandbox.start_server();
    assert_eq!(runs(&sandbox, "web"), web, "{mode}");
    if mode == "quiet" {
        for (name, run) in [("late", Value::Null), ("ended", json!(1))] {
            let row = sandbox.row(name).unwrap();
            assert_eq!(row["run"], run, "{mode}: {row}");
        }
        start_first(&sandbox, "late");
    } else {
        assert_eq!(sandbox.wait_state("late", "running")["run"], 1, "{mode}");
        wait_for("the second run of `ended`", PATIENCE, || {
            let row = sandbox.row("ended").unwrap();
            row["state"] == "exited" && row["run"] == 2
        });
    }
    let held = sandbox.row("held").unwrap();
    assert_eq!(held["state"], "stopped", "{mode}: {held}");
    assert_eq!(held["hold"], true, "{mode}: {held}");
    assert_eq!(held["run"], 1, "{mode}: {held}");
    sandbox.json(&["stop", "due"]);
}

#[test]
fn a_start_after_an_end_by_order_is_fresh_in_quiet() {
    an_end_by_order_is_followed_by_a_fresh_start("quiet");
}

#[test]
fn a_start_after_an_end_by_order_is_fresh_in_half() {
    an_end_by_order_is_followed_by_a_fresh_start("half");
}

#[test]
fn a_start_after_an_end_by_order_is_fresh_in_full() {
    an_end_by_order_is_followed_by_a_fresh_start("full");
}

#[test]
fn a_start_after_an_end_by_order_is_fresh_in_sync() {
    an_end_by_order_is_followed_by_a_fresh_start("sync");
}

#[test]
fn each_held_child_gets_a_line_at_the_start_since_when_and_which_command_releases_it() {
    for end in [Sandbox::kill_server, |sandbox: &mut Sandbox| {
        assert_eq!(sandbox.stop_server(), 0);
    }] {
        let mut sandbox = Sandbox::start("mode: sync");
        sandbox.write("web.yml", OLD);
        runs(&sandbox, "web");
        assert_eq!(sandbox.json(&["stop", "web"])["ok"], true);
        let since = sandbox.row("web").unwrap()["held_since"].clone();
        end(&mut sandbox);
        let lived = sandbox.server_log().len();
        sandbox.start_server();
        let log = sandbox.server_log().split_off(lived);
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("held")).collect();
        assert_eq!(lines.len(), 1, "{log}");
        assert!(lines[0].contains(since.as_str().unwrap()), "{log}");
        let command = "`supervisor-rs-client start web`";
        assert!(lines[0].contains(command), "{log}");
        assert_eq!(sandbox.row("web").unwrap()["held_since"], since);
    }
}

// A bad file at the start.

#[test]
fn full_does_not_start_with_a_bad_file_and_prints_every_fault() {
    let mut sandbox = Sandbox::new("mode: full");
    sandbox.write("web.yml", OLD);
    sandbox.write("one.yml", &format!("{BAD}restart: sometimes\n"));
    sandbox.write("two.yml", "command: [sleep\n");
    sandbox.write("twin.yml", OLD);
    sandbox.write("twin.yaml", OLD);
    sandbox.write("stop.yml", OLD);
    let path = sandbox.server_yml();
    let output = sandbox.server_to_end(&[path.to_str().unwrap()]);
    assert_eq!(output.code, 6, "{output:?}");
    assert_eq!(output.stdout, "", "{output:?}");
    for fault in [
        "one.yml:1:1:",
        "one.yml:2:10:",
        "two.yml:",
        "twin.yml",
        "twin.yaml",
        "stop.yml",
    ] {
        assert!(output.stderr.contains(fault), "{fault}: {output:?}");
    }
    assert_eq!(sandbox.processes(), []);

    // Mended, it is still the first start.
    for name in ["one.yml", "two.yml", "twin.yaml", "stop.yml"] {
        sandbox.remove(name);
    }
    sandbox.start_server();
    assert_eq!(sandbox.wait_state("web", "running")["run"], 1);
    assert_eq!(sandbox.wait_state("twin", "running")["run"], 1);
}

#[test]
fn a_refused_start_of_full_does_not_make_the_next_one_a_continuation() {
    let mut sandbox = Sandbox::start("mode: full");
    sandbox.write("job.yml", SHORT);
    assert_eq!(sandbox.wait_state("job", "exited")["run"], 1);
    assert_eq!(sandbox.stop_server(), 0);
    sandbox.write("bad.yml", BAD);
    let path = sandbox.server_yml();
    let output = sandbox.server_to_end(&[path.to_str().unwrap()]);
    assert_eq!(output.code, 6, "{output:?}");
    sandbox.remove("bad.yml");
    sandbox.start_server();
    wait_for("the second run", PATIENCE, || {
        sandbox.row("job").unwrap()["run"] == 2
    });
}

#[test]
fn full_with_live_runs_of_its_own_comes_up_whatever_file_is_bad() {
    for end in [Sandbox::kill_server, |sandbox: &mut Sandbox| {
        assert_eq!(sandbox.stop_server(), 0);
    }] {
        let mut sandbox = Sandbox::start("mode: full");
        sandbox.write("web.yml", OLD);
        let web = runs(&sandbox, "web");
        end(&mut sandbox);
        sandbox.write("bad.yml", BAD);
        sandbox.write("web.yml", BAD);
        sandbox.write("good.yml", OLD);
        sandbox.start_server();
        assert_eq!(runs(&sandbox, "web"), web);
        assert_eq!(sandbox.wait_state("good", "running")["run"], 1);
        for name in ["bad", "web"] {
            let row = sandbox.row(name).unwrap();
            assert_eq!(row["config"]["status"], "invalid", "{row}");
            assert_eq!(row["faults"].as_array().unwrap().len(), 1, "{row}");
        }
    }
}

#[test]
fn full_continues_after_a_crash_although_a_file_is_bad_and_nothing_runs() {
    let mut sandbox = Sandbox::start("mode: full");
    sandbox.write("job.yml", SHORT);
    sandbox.wait_state("job", "exited");
    sandbox.kill_server();
    sandbox.write("bad.yml", BAD);
    sandbox.start_server();
    let row = sandbox.row("bad").unwrap();
    assert_eq!(row["config"]["status"], "invalid", "{row}");
}

#[test]
fn a_missing_loadpath_keeps_no_server_from_starting() {
    for mode in ["quiet", "half", "full", "sync"] {
        let mut sandbox = Sandbox::new(&format!(
            "mode: {mode}\nstartup: [web]\nloadpaths: [not/there/yet]"
        ));
        sandbox.start_server();
        let missing = sandbox.root().join("not/there/yet");
        let expected = json!([{
            "path": missing.to_str(), "state": "missing", "children": 0
        }]);
        let info = sandbox.json(&["info"]);
        assert_eq!(info["mode"], mode);
        assert_eq!(info["loadpaths"], expected);
        let notes = sandbox.json(&["check"])["notes"].clone();
        let note = format!("loadpath `{}` does not exist", missing.display());
        assert_eq!(notes, json!([note]));
        fs::create_dir_all(&missing).unwrap();
        sandbox.replace(&missing.join("web.yml"), OLD);
        if mode == "quiet" {
            wait_for("the new child", PATIENCE, || sandbox.row("web").is_some());
            start_first(&sandbox, "web");
        } else {
            assert_eq!(sandbox.wait_state("web", "running")["run"], 1, "{mode}");
        }
    }
}
