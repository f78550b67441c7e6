//! Repeat: a timer armed whenever a run begins, whose action is done as a command.

use std::{fs, time::Duration};

use serde_json::{Value, json};

use crate::sandbox::{PATIENCE, SLEEPER, Sandbox, millis, script, wait_for, wait_lines};

/// A child with a repeat of this action; nothing at all for the action leaves it out.
fn repeating(command: &str, action: &str, seconds: u32) -> String {
    let action = match action {
        "" => String::new(),
        action => format!("  action: {action}\n"),
    };
    format!("{command}repeat:\n{action}  seconds: {seconds}\n")
}

/// Waits until the log holds a text so often.
fn wait_logged(sandbox: &Sandbox, text: &str, count: usize) {
    wait_for(&format!("{count} times `{text}`"), PATIENCE, || {
        sandbox.server_log().matches(text).count() >= count
    });
}

/// Waits until a repeat of another child that is armed now has fired so often. What was armed
/// before it with the same interval would have fired by then.
fn let_fire(sandbox: &Sandbox, times: u64) {
    sandbox.write("clock.yml", &repeating(&script("exit 0"), "trystart", 1));
    sandbox.done(&["trystart", "clock"]);
    let first = sandbox.row("clock").unwrap()["run"].as_u64().unwrap();
    sandbox.wait_run("clock", first + times);
    sandbox.done(&["stop", "clock"]);
}

#[test]
fn a_periodic_job_is_run_again_though_it_ended_by_itself() {
    let sandbox = Sandbox::start("mode: quiet");
    let log = sandbox.root().join("log");
    let job = script(&format!("date +%s%3N >> {}", log.display()));
    sandbox.write("job.yml", &repeating(&job, "trystart", 1));
    let before = supervisor_rs::clock::wall().0;
    sandbox.done(&["start", "job"]);
    // On a busy machine a job may be late with the time that it writes, but never early.
    for (line, seconds) in wait_lines(&log, 3).iter().zip(0..) {
        let after = line.parse::<i64>().unwrap() - before;
        let due = seconds * 1_000;
        assert!(
            (due..due + 5_000).contains(&after),
            "{after} ms: {seconds} s"
        );
    }
    let row = sandbox.row("job").unwrap();
    assert_eq!(
        (&row["next"]["action"], &row["hold"]),
        (&json!("trystart"), &json!(false))
    );
    assert_eq!(row["restarts"], 0, "a repeat is no restart by policy");
    let details = sandbox.json(&["check", "job"])["children"][0]["details"].clone();
    assert_eq!(details["repeat"], "trystart every 1s");
    assert_eq!(
        sandbox.done(&["stop", "job"])["message"],
        "`job` did not run; what was due is cancelled"
    );
}

#[test]
fn the_action_is_restart_when_it_is_not_said() {
    let sandbox = Sandbox::start("mode: quiet");
    sandbox.write("one.yml", &repeating(SLEEPER, "", 1));
    sandbox.write(
        "two.yml",
        &format!("{SLEEPER}repeat:\n  action:\n  seconds: 1\n"),
    );
    for name in ["one", "two"] {
        sandbox.done(&["start", name]);
        assert_eq!(sandbox.row(name).unwrap()["next"]["action"], "restart");
    }
    for name in ["one", "two"] {
        let row = sandbox.wait_run(name, 3);
        assert_eq!(row["next"]["action"], "restart");
    }
    assert_eq!(sandbox.processes().len(), 2);
    sandbox.done(&["stop", "--all"]);
}

#[test]
fn a_timer_is_armed_whatever_began_the_run() {
    let sandbox = Sandbox::start("mode: sync");
    sandbox.write("file.yml", &repeating(SLEEPER, "start", 60));
    sandbox.wait_state("file", "running");
    let next = |name: &str| sandbox.row(name).unwrap()["next"].clone();
    assert_eq!(next("file")["action"], "start");
    // By a hook, by the restart policy, by each command.
    sandbox.write("hooked.yml", &repeating(SLEEPER, "stop", 60));
    sandbox.wait_state("hooked", "running");
    sandbox.write(
        "hooking.yml",
        &format!("{SLEEPER}hooks: [prehook: restart hooked]\n"),
    );
    sandbox.wait_run("hooked", 2);
    assert_eq!(next("hooked")["action"], "stop");
    let crash = format!(
        "{}restart: {{when: always, delay: 10ms}}\n",
        script(&format!(
            "[ -e {0}/crashed ] && exec sleep 300; echo > {0}/crashed; exit 1",
            sandbox.root().display()
        ))
    );
    sandbox.write("crash.yml", &repeating(&crash, "trystart", 60));
    let row = sandbox.wait_run("crash", 2);
    assert_eq!(row["restarts"], 1);
    assert_eq!(next("crash")["action"], "trystart");
    let mut before = millis(&next("file")["at"]);
    for verb in ["restart", "trystart"] {
        sandbox.done(&[verb, "file"]);
        let now = millis(&next("file")["at"]);
        assert!(now > before, "{verb} arms anew");
        before = now;
    }
}

#[test]
fn restart_of_a_run_that_ended_is_refused_ends_the_chain_and_check_names_trystart() {
    let sandbox = Sandbox::start("mode: quiet");
    sandbox.write("job.yml", &repeating(&script("exit 0"), "restart", 1));
    sandbox.done(&["start", "job"]);
    assert_eq!(
        sandbox.wait_state("job", "exited")["next"]["action"],
        "restart"
    );
    let mut row = Value::Null;
    wait_for("the end of the chain", PATIENCE, || {
        row = sandbox.row("job").unwrap();
        row["state"] == "exited" && row["reason"].is_string()
    });
    let reason = "repeat `restart` has ended: `job` is not running; \
                  `trystart` runs it again whether or not it still runs";
    assert_eq!(row["reason"], reason);
    assert_eq!(row["next"], json!(null));
    assert_eq!((&row["state"], &row["run"]), (&json!("exited"), &json!(1)));
    let people = sandbox.client(&["check", "job"]);
    assert!(people.stdout.contains("trystart"), "{people:?}");
    let_fire(&sandbox, 1);
    assert_eq!(sandbox.row("job").unwrap()["run"], 1);
    // A run that begins arms again.
    sandbox.done(&["start", "job"]);
    let row = sandbox.wait_state("job", "exited");
    assert_eq!(
        (&row["next"]["action"], &row["reason"]),
        (&json!("restart"), &json!(null))
    );
}

#[test]
fn start_that_finds_the_child_running_is_skipped_and_armed_again() {
    let sandbox = Sandbox::start("mode: quiet");
    sandbox.write("web.yml", &repeating(SLEEPER, "start", 1));
    let pid = sandbox.done(&["start", "web"])["pid"].clone();
    let first = millis(&sandbox.row("web").unwrap()["next"]["at"]);
    wait_for("two firings", PATIENCE, || {
        let next = sandbox.row("web").unwrap()["next"].clone();
        next.is_object() && millis(&next["at"]) >= first + 1_900
    });
    let row = sandbox.row("web").unwrap();
    assert_eq!((&row["pid"], &row["run"]), (&pid, &json!(1)));
    assert_eq!(row["reason"], json!(null));
    let log = sandbox.server_log();
    assert!(
        !log.contains("repeat"),
        "nothing is wrong, and nothing is logged: {log}"
    );
}

#[test]
fn start_runs_a_child_again_that_ended_meanwhile() {
    let sandbox = Sandbox::start("mode: quiet");
    sandbox.write("job.yml", &repeating(&script("sleep 1.2"), "start", 1));
    sandbox.done(&["start", "job"]);
    sandbox.wait_run("job", 2);
    sandbox.done(&["stop", "job"]);
}

#[test]
fn stop_as_an_action_ends_the_run_holds_nothing_and_arms_nothing() {
    let sandbox = Sandbox::start("mode: sync");
    let post = format!("run sh -c 'echo post >> {}/log'", sandbox.root().display());
    let hooks = format!("hooks: [posthook: {}]\n", json!(post));
    sandbox.write(
        "web.yml",
        &repeating(&format!("{SLEEPER}{hooks}"), "stop", 1),
    );
    sandbox.wait_state("web", "running");
    let row = sandbox.wait_state("web", "stopped");
    assert_eq!((&row["hold"], &row["next"]), (&json!(false), &json!(null)));
    assert_eq!(row["exit"]["signal"], "SIGTERM");
    assert_eq!(wait_lines(&sandbox.root().join("log"), 1), ["post"]);
    let_fire(&sandbox, 1);
    let row = sandbox.row("web").unwrap();
    assert_eq!((&row["state"], &row["run"]), (&json!("stopped"), &json!(1)));
    assert_eq!(sandbox.done(&["start", "web"])["run"], 2, "nothing held it");
    sandbox.wait_state("web", "stopped");
}

#[test]
fn it_fires_only_while_the_run_that_armed_it_is_the_latest() {
    let sandbox = Sandbox::start("mode: quiet");
    sandbox.write("web.yml", &repeating(SLEEPER, "restart", 2));
    sandbox.done(&["start", "web"]);
    // Replaced again and again before its time, by runs that arm their own.
    let first = millis(&sandbox.row("web").unwrap()["next"]["at"]);
    for run in 2..=4 {
        assert_eq!(sandbox.done(&["restart", "web"])["run"], run);
    }
    let at = millis(&sandbox.row("web").unwrap()["next"]["at"]);
    assert!(at >= first);
    // A run that declares none: the timer of the one before is gone.
    sandbox.write("web.yml", SLEEPER);
    assert_eq!(sandbox.done(&["restart", "web"])["run"], 5);
    assert_eq!(sandbox.row("web").unwrap()["next"], json!(null));
    let_fire(&sandbox, 2);
    assert_eq!(sandbox.row("web").unwrap()["run"], 5);
}

#[test]
fn a_held_child_is_not_fired_and_stop_cancels_what_is_armed() {
    let sandbox = Sandbox::start("mode: quiet");
    for action in ["start", "trystart"] {
        sandbox.write("job.yml", &repeating(&script("exit 0"), action, 1));
        let run = sandbox.done(&["start", "job"])["run"].clone();
        sandbox.wait_state("job", "exited");
        sandbox.done(&["stop", "job"]);
        let row = sandbox.row("job").unwrap();
        assert_eq!(
            (&row["state"], &row["hold"]),
            (&json!("stopped"), &json!(true))
        );
        assert_eq!(row["next"], json!(null));
        assert_eq!(row["exit"]["code"], 0, "how it ended stays known");
        let_fire(&sandbox, 1);
        assert_eq!(sandbox.row("job").unwrap()["run"], run);
        sandbox.refused(&["stop", "job"], "not_running", 1);
    }
}

#[test]
fn a_repeat_that_was_deleted_fires_once_more_and_is_not_armed_again() {
    let sandbox = Sandbox::start("mode: quiet");
    sandbox.write("web.yml", &repeating(SLEEPER, "restart", 1));
    sandbox.write("up.yml", &repeating(SLEEPER, "start", 1));
    sandbox.done(&["start", "web"]);
    sandbox.done(&["start", "up"]);
    sandbox.write("web.yml", SLEEPER);
    sandbox.write("up.yml", SLEEPER);
    let row = sandbox.wait_run("web", 2);
    assert_eq!(row["next"], json!(null));
    assert_eq!(
        row["config"]["status"], "current",
        "the firing used the new file"
    );
    wait_for("the last firing", PATIENCE, || {
        sandbox.row("up").unwrap()["next"] == json!(null)
    });
    let_fire(&sandbox, 1);
    assert_eq!(sandbox.row("web").unwrap()["run"], 2);
    let row = sandbox.row("up").unwrap();
    assert_eq!((&row["run"], &row["next"]), (&json!(1), &json!(null)));
}

#[test]
fn a_changed_interval_counts_from_the_next_arming() {
    let sandbox = Sandbox::start("mode: quiet");
    sandbox.write("web.yml", &repeating(SLEEPER, "restart", 1));
    sandbox.done(&["start", "web"]);
    let armed = sandbox.row("web").unwrap()["next"]["at"].clone();
    sandbox.write("web.yml", &repeating(SLEEPER, "trystart", 100));
    wait_for("the edit", PATIENCE, || {
        sandbox.row("web").unwrap()["config"]["status"] == "changed"
            || sandbox.row("web").unwrap()["run"] == 2
    });
    let row = sandbox.wait_run("web", 2);
    assert!(
        millis(&row["started_at"]) >= millis(&armed) - 100,
        "not before its time"
    );
    assert!(
        millis(&row["started_at"]) < millis(&armed) + 2_000,
        "and not after 100 s"
    );
    assert_eq!(row["next"]["action"], "trystart");
    let ahead = millis(&row["next"]["at"]) - millis(&row["started_at"]);
    assert!((99_000..101_000).contains(&ahead), "{ahead}");
}

#[test]
fn a_firing_that_meets_a_fault_changes_nothing_and_arms_again() {
    let sandbox = Sandbox::start("mode: quiet");
    let good = repeating(SLEEPER, "restart", 1);
    let faults = [
        (
            "bad",
            "comand: sleep\n".to_owned(),
            "the file of `bad` is bad",
        ),
        ("twice", good.clone(), "several files declare `twice`"),
        (
            "hook",
            format!("{good}hooks: [prehook: run false]\n"),
            "the prehook `run false` of `hook` failed",
        ),
        (
            "gone",
            good.replace("sleep", "no-such-program"),
            "cannot start `gone`",
        ),
    ];
    for (name, ..) in &faults {
        sandbox.write(&format!("{name}.yml"), &good);
        sandbox.done(&["start", name]);
    }
    let twin = sandbox.loadpath().join("twice.yaml");
    fs::write(&twin, SLEEPER).unwrap();
    for (name, text, _) in &faults {
        sandbox.write(&format!("{name}.yml"), text);
    }
    for (name, _, words) in &faults {
        wait_logged(&sandbox, words, 2);
        let row = sandbox.row(name).unwrap();
        assert_eq!(row["state"], "running", "{name}");
        // One firing may have come before the fault.
        assert!(row["run"].as_u64().unwrap() <= 2, "{name}: {row}");
        assert_eq!(row["next"]["action"], "restart", "{name}: armed again");
    }
    fs::remove_file(&twin).unwrap();
    for (name, ..) in &faults {
        sandbox.write(&format!("{name}.yml"), &good);
    }
    for (name, ..) in &faults {
        let run = sandbox.row(name).unwrap()["run"].as_u64().unwrap();
        sandbox.wait_run(name, run + 1);
    }
    sandbox.done(&["stop", "--all"]);
}

#[test]
fn a_file_that_is_gone_ends_the_chain_and_the_child_runs_on() {
    let sandbox = Sandbox::start("mode: quiet");
    sandbox.write("web.yml", &repeating(SLEEPER, "restart", 1));
    let pid = sandbox.done(&["start", "web"])["pid"].clone();
    sandbox.remove("web.yml");
    wait_for("the end of the chain", PATIENCE, || {
        let row = sandbox.row("web").unwrap();
        row["next"] == json!(null) && row["reason"].is_string()
    });
    let row = sandbox.row("web").unwrap();
    assert_eq!((&row["state"], &row["pid"]), (&json!("running"), &pid));
    assert_eq!(row["config"]["status"], "removed");
}

#[test]
fn an_armed_timer_survives_a_crash_of_the_server() {
    let mut sandbox = Sandbox::start("mode: quiet");
    sandbox.write("web.yml", &repeating(SLEEPER, "restart", 2));
    sandbox.write("job.yml", &repeating(&script("exit 0"), "trystart", 2));
    for name in ["web", "job"] {
        sandbox.done(&["start", name]);
    }
    sandbox.wait_state("job", "exited");
    let due = |sandbox: &Sandbox, name: &str| millis(&sandbox.row(name).unwrap()["next"]["at"]);
    let before = [due(&sandbox, "web"), due(&sandbox, "job")];
    sandbox.restart_server();
    let after = [due(&sandbox, "web"), due(&sandbox, "job")];
    let moved = |(before, after): (&i64, &i64)| (after - before).abs() > 200;
    assert!(
        !before.iter().zip(&after).any(moved),
        "{before:?} became {after:?}"
    );
    for (name, before) in ["web", "job"].into_iter().zip(before) {
        let row = sandbox.wait_run(name, 2);
        let late = Duration::from_millis((millis(&row["started_at"]) - before).unsigned_abs());
        assert!(late < Duration::from_secs(1), "{name}: {late:?}");
    }
    sandbox.done(&["stop", "--all"]);
}
