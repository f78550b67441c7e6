//! The restart policy: what follows an end that nobody ordered, and when.

use std::{fs, time::Duration};

use serde_json::{Value, json};

use crate::sandbox::{PATIENCE, Sandbox, millis, millis_of, script, wait_for, wait_lines};

/// A child of this script with this policy.
fn child(text: &str, policy: &str) -> String {
    format!("{}restart: {policy}\n", script(text))
}

/// The delays that the server announced, as its log tells them.
fn delays(sandbox: &Sandbox) -> Vec<String> {
    let log = sandbox.server_log();
    let lines = log
        .lines()
        .filter(|line| line.contains("will be restarted"));
    let delay = |line: &str| {
        Some(
            line.split("detail=\"in ")
                .nth(1)?
                .trim_end_matches('"')
                .to_owned(),
        )
    };
    lines.filter_map(delay).collect()
}

/// When the log says that this run began or ended, in milliseconds.
fn logged_at(sandbox: &Sandbox, name: &str, run: u64, what: &str) -> i64 {
    let text = format!("child{{child={name} run={run}}}: {what} ");
    let log = sandbox.server_log();
    let line = log.lines().find(|line| line.contains(&text));
    let line = line.unwrap_or_else(|| panic!("no `{text}` in {log}"));
    millis_of(line.split(' ').next().unwrap())
}

#[test]
fn what_ended_by_itself_is_not_started_again_unless_its_policy_says_so() {
    let sandbox = Sandbox::start("mode: sync");
    let quick = "delay: 10ms, factor: 1, max: 2 in 1m";
    // The policy, the end, whether a restart follows.
    let cases = [
        ("default", None, "exit 1", false),
        ("never", Some("never"), "exit 1", false),
        ("failure-0", Some("on-failure"), "exit 0", false),
        ("failure-1", Some("on-failure"), "exit 1", true),
        ("failure-kill", Some("on-failure"), "kill -9 $$", true),
        ("always-0", Some("always"), "exit 0", true),
        ("always-1", Some("always"), "exit 1", true),
    ];
    for (name, when, text, _) in cases {
        let policy = when.map(|when| format!("restart: {{when: {when}, {quick}}}\n"));
        sandbox.write(
            &format!("{name}.yml"),
            &format!("{}{}", script(text), policy.unwrap_or_default()),
        );
    }
    for (name, _, _, follows) in cases {
        let (state, run) = if follows {
            ("failed", 3)
        } else {
            ("exited", 1)
        };
        let row = sandbox.wait_state(name, state);
        assert_eq!(row["run"], run, "{name}");
        assert_eq!(row["restarts"], run - 1, "{name}");
    }
    // A second look, after all the others have run thrice.
    for (name, ..) in cases.into_iter().filter(|(.., follows)| !follows) {
        let row = sandbox.row(name).unwrap();
        assert_eq!(
            (&row["state"], &row["run"], &row["next"]),
            (&json!("exited"), &json!(1), &json!(null))
        );
    }
}

#[test]
fn the_policy_may_be_one_word() {
    let sandbox = Sandbox::start("mode: sync");
    sandbox.write("web.yml", &child("exit 1", "on-failure"));
    let row = sandbox.wait_run("web", 2);
    assert_eq!(row["restarts"], 1);
    sandbox.done(&["stop", "web"]);
    let first = &delays(&sandbox)[0];
    let first = humantime::parse_duration(first).unwrap();
    let spread = Duration::from_millis(400)..=Duration::from_millis(600);
    assert!(
        spread.contains(&first),
        "500 ms, a fifth to both sides: {first:?}"
    );
}

#[test]
fn the_delay_grows_to_its_cap() {
    let sandbox = Sandbox::start("mode: sync");
    let policy = "{when: always, delay: 20ms, factor: 2, max_delay: 100ms, jitter: 0}";
    sandbox.write("web.yml", &child("exit 1", policy));
    sandbox.wait_run("web", 7);
    sandbox.done(&["stop", "web"]);
    assert_eq!(
        delays(&sandbox)[..6],
        ["20ms", "40ms", "80ms", "100ms", "100ms", "100ms"]
    );
    for (run, delay) in [(1, 20), (2, 40), (3, 80), (4, 100)] {
        let before = logged_at(&sandbox, "web", run, "started");
        let begun = logged_at(&sandbox, "web", run + 1, "started");
        assert!(begun - before >= delay, "run {run}: {before} to {begun}");
    }
}

#[test]
fn a_run_that_lived_long_is_restarted_at_once_and_forgives() {
    let sandbox = Sandbox::start("mode: sync");
    let count = sandbox.root().join("count");
    // Run 2 lives long, all others fail at once.
    let text = format!(
        "echo >> {0}; case $(wc -l < {0}) in 2) sleep 1.2; esac; exit 1",
        count.display()
    );
    let policy =
        "{when: always, delay: 100ms, factor: 100, max_delay: 1h, jitter: 0, reset_after: 1s}";
    sandbox.write("web.yml", &child(&text, policy));
    sandbox.wait_run("web", 4);
    let ended = logged_at(&sandbox, "web", 2, "ended");
    let begun = logged_at(&sandbox, "web", 3, "started");
    assert!(
        begun - ended < 1_000,
        "{} ms instead of ten seconds",
        begun - ended
    );
    // None was announced for the end of the long one, and the next was the first again.
    assert_eq!(delays(&sandbox)[..2], ["100ms", "100ms"]);
    let row = sandbox.wait_state("web", "backoff");
    assert_eq!(row["restarts"], 3, "counted all the same");
    assert_eq!(delays(&sandbox), ["100ms", "100ms", "10s"]);
}

#[test]
fn giving_up_is_failed_and_says_why() {
    let sandbox = Sandbox::start("mode: sync");
    let policy = "{when: on-failure, delay: 10ms, factor: 1, max: 3 in 1m}";
    sandbox.write("web.yml", &child("exit 5", policy));
    let row = sandbox.wait_state("web", "failed");
    assert_eq!(row["reason"], "given up after 3 restarts in 1m");
    assert_eq!((&row["run"], &row["restarts"]), (&json!(4), &json!(3)));
    assert_eq!(
        (&row["exit"]["code"], &row["next"]),
        (&json!(5), &json!(null))
    );
    assert_eq!(row["hold"], false);
    let people = sandbox.client(&["check", "web"]);
    assert_eq!(people.code, 3);
    assert!(
        people.stdout.contains("given up after 3 restarts in 1m"),
        "{people:?}"
    );
    // An order begins anew.
    assert_eq!(sandbox.done(&["start", "web"])["run"], 5);
    let row = sandbox.wait_run("web", 8);
    assert!(row["restarts"].as_u64().unwrap() <= 3);
    assert_eq!(sandbox.wait_state("web", "failed")["run"], 8);
    // So does another file.
    sandbox.write("web.yml", &child("exec sleep 300", policy));
    let row = sandbox.wait_state("web", "running");
    assert_eq!(
        (&row["run"], &row["reason"], &row["restarts"]),
        (&json!(9), &json!(null), &json!(0))
    );
}

#[test]
fn more_restarts_than_max_over_a_longer_time_are_no_reason_to_give_up() {
    let sandbox = Sandbox::start("mode: sync");
    let policy = "{when: always, delay: 200ms, factor: 1, jitter: 0, max: 2 in 150ms}";
    sandbox.write("web.yml", &child("exit 1", policy));
    let row = sandbox.wait_run("web", 6);
    assert_ne!(row["state"], "failed");
    sandbox.done(&["stop", "web"]);
}

#[test]
fn exit_codes_may_be_called_success_or_final() {
    let sandbox = Sandbox::start("mode: sync");
    let lists = "delay: 10ms, factor: 1, max: 1 in 1m, success: [0, 3], never_on: [78]";
    let cases = [
        ("on-failure", 0, false),
        ("on-failure", 3, false),
        ("on-failure", 4, true),
        ("on-failure", 78, false),
        ("always", 3, true),
        ("always", 78, false),
    ];
    let name = |when: &str, code: i32| format!("{when}-{code}");
    for (when, code, _) in cases {
        let text = child(
            &format!("exit {code}"),
            &format!("{{when: {when}, {lists}}}"),
        );
        sandbox.write(&format!("{}.yml", name(when, code)), &text);
    }
    for (when, code, follows) in cases {
        let (state, run) = if follows {
            ("failed", 2)
        } else {
            ("exited", 1)
        };
        let row = sandbox.wait_state(&name(when, code), state);
        assert_eq!(
            (&row["run"], &row["exit"]["code"]),
            (&json!(run), &json!(code))
        );
    }
}

/// A child that fails once and then waits an hour for its restart.
fn waiting(sandbox: &Sandbox, name: &str) -> Value {
    let flag = sandbox.root().join(format!("{name}-failed"));
    let text = format!(
        "[ -e {0} ] && exec sleep 300; echo > {0}; exit 1",
        flag.display()
    );
    let policy = "{when: always, delay: 1h, max_delay: 1h, jitter: 0}";
    sandbox.write(&format!("{name}.yml"), &child(&text, policy));
    sandbox.wait_state(name, "backoff")
}

#[test]
fn backoff_is_shown_with_the_time_of_the_next_run() {
    let sandbox = Sandbox::start("mode: sync");
    let row = waiting(&sandbox, "web");
    assert_eq!(
        (&row["pid"], &row["exit"]["code"]),
        (&json!(null), &json!(1))
    );
    assert_eq!(row["next"]["action"], "restart");
    let ahead = millis(&row["next"]["at"]) - millis(&row["exit"]["at"]);
    assert!((3_599_000..=3_601_000).contains(&ahead), "{ahead}");
    let people = sandbox.client(&["check", "web"]);
    assert_eq!(people.code, 3);
    assert!(people.stdout.contains("backoff"), "{people:?}");
    assert_eq!(
        sandbox.json(&["check"])["children"],
        json!([]),
        "no live process"
    );
}

#[test]
fn each_start_like_command_ends_a_backoff_at_once() {
    let sandbox = Sandbox::start("mode: sync");
    for verb in ["start", "restart", "trystart"] {
        waiting(&sandbox, verb_name(verb));
        let answer = sandbox.done(&[verb, verb_name(verb)]);
        assert_eq!(answer["run"], 2, "{verb}");
        let row = sandbox.row(verb_name(verb)).unwrap();
        assert_eq!(
            (&row["state"], &row["restarts"]),
            (&json!("running"), &json!(0))
        );
        assert_eq!(row["next"], json!(null));
    }
}

/// A command's word cannot name a child.
fn verb_name(verb: &str) -> &'static str {
    match verb {
        "start" => "by-start",
        "restart" => "by-restart",
        _ => "by-trystart",
    }
}

#[test]
fn a_stop_cancels_a_backoff_and_holds() {
    let sandbox = Sandbox::start("mode: sync");
    let policy = "{when: always, delay: 300ms, factor: 1, jitter: 0}";
    sandbox.write("web.yml", &child("exit 1", policy));
    sandbox.wait_state("web", "backoff");
    sandbox.done(&["stop", "web"]);
    let row = sandbox.row("web").unwrap();
    assert_eq!(
        (&row["state"], &row["hold"]),
        (&json!("stopped"), &json!(true))
    );
    assert_eq!(row["next"], json!(null));
    // Another one with the same delay comes and goes meanwhile.
    sandbox.write("other.yml", &child("exit 1", policy));
    sandbox.wait_run("other", 3);
    assert_eq!(sandbox.row("web").unwrap()["run"], row["run"]);
    sandbox.done(&["stop", "other"]);
}

#[test]
fn a_stop_is_no_failure_and_nothing_follows_it() {
    let sandbox = Sandbox::start("mode: sync");
    let policy = "{when: always, delay: 10ms, factor: 1}";
    sandbox.write("web.yml", &child("exec sleep 300", policy));
    sandbox.wait_state("web", "running");
    sandbox.done(&["stop", "web"]);
    sandbox.write("other.yml", &child("exit 1", policy));
    sandbox.wait_run("other", 4);
    sandbox.done(&["stop", "other"]);
    let row = sandbox.row("web").unwrap();
    assert_eq!((&row["state"], &row["run"]), (&json!("stopped"), &json!(1)));
    assert_eq!((&row["hold"], &row["restarts"]), (&json!(true), &json!(0)));
}

#[test]
fn a_file_that_goes_ends_the_restarts_in_sync_and_not_in_quiet() {
    for (mode, goes_on) in [("sync", false), ("quiet", true)] {
        let sandbox = Sandbox::start(&format!("mode: {mode}"));
        let policy = "{when: always, delay: 100ms, factor: 1, jitter: 0}";
        sandbox.write("web.yml", &child("exit 1", policy));
        sandbox.client(&["start", "web"]);
        let run = sandbox.wait_run("web", 2)["run"].as_u64().unwrap();
        sandbox.remove("web.yml");
        if goes_on {
            sandbox.wait_run("web", run + 12);
            sandbox.done(&["stop", "web"]);
        } else {
            // It may be met while it runs, and then is `stopped`.
            wait_for("the end of the restarts", PATIENCE, || {
                let row = sandbox.row("web").unwrap();
                let state = row["state"].as_str().unwrap();
                ["exited", "stopped"].contains(&state) && row["next"] == json!(null)
            });
            let row = sandbox.row("web").unwrap();
            assert_eq!(
                (&row["hold"], &row["config"]["status"]),
                (&json!(false), &json!("removed"))
            );
        }
    }
}

#[test]
fn a_bad_file_does_not_end_the_restarts() {
    let sandbox = Sandbox::start("mode: sync");
    let good = child("exit 1", "{when: always, delay: 50ms, factor: 1}");
    sandbox.write("web.yml", &good);
    let run = sandbox.wait_run("web", 2)["run"].as_u64().unwrap();
    sandbox.write("web.yml", "comand: exit\n");
    wait_for("the fault", PATIENCE, || {
        sandbox.row("web").unwrap()["config"]["status"] == "invalid"
    });
    sandbox.wait_run("web", run + 5);
    sandbox.done(&["stop", "web"]);
}

#[test]
fn a_restart_that_comes_to_no_run_is_tried_again() {
    let sandbox = Sandbox::start("mode: sync");
    let program = sandbox.root().join("program");
    let install = |text: &str| {
        fs::copy("/bin/sh", sandbox.root().join("sh")).unwrap();
        let new = sandbox.root().join("new-program");
        fs::write(&new, format!("#!/bin/sh\n{text}\n")).unwrap();
        let mut mode = std::process::Command::new("chmod");
        mode.arg("755").arg(&new);
        assert_eq!(crate::sandbox::run(mode).code, 0);
        fs::rename(&new, &program).unwrap();
    };
    install("rm \"$0\"; exit 1");
    let policy = "{when: on-failure, delay: 20ms, factor: 1}";
    sandbox.write(
        "web.yml",
        &format!("command: {}\nrestart: {policy}\n", program.display()),
    );
    let mut row = Value::Null;
    wait_for("a reason", PATIENCE, || {
        row = sandbox.row("web").unwrap_or_default();
        row["state"] == "backoff" && row["reason"].is_string()
    });
    assert!(row["reason"].as_str().unwrap().contains("program"), "{row}");
    install("exec sleep 300");
    let row = sandbox.wait_state("web", "running");
    assert_eq!(row["reason"], json!(null));
}

#[test]
fn a_restart_whose_prehook_fails_is_tried_again() {
    let sandbox = Sandbox::start("mode: sync");
    let root = sandbox.root().display().to_string();
    fs::write(sandbox.root().join("ok"), "").unwrap();
    let text = format!(
        "[ -e {root}/second ] && exec sleep 300; echo > {root}/second; rm {root}/ok; exit 1"
    );
    let hooks = format!(
        "hooks: [prehook: {}]\n",
        json!(format!(
            "run sh -c 'echo >> {root}/tries; test -e {root}/ok'"
        ))
    );
    let policy = "{when: on-failure, delay: 20ms, factor: 1}";
    sandbox.write("web.yml", &format!("{}{hooks}", child(&text, policy)));
    wait_lines(&sandbox.root().join("tries"), 4);
    let row = sandbox.row("web").unwrap();
    assert_eq!(row["run"], 1, "{row}");
    fs::write(sandbox.root().join("ok"), "").unwrap();
    assert_eq!(sandbox.wait_state("web", "running")["run"], 2);
}

#[test]
fn a_backoff_outlives_a_crash_of_the_server() {
    let mut sandbox = Sandbox::start("mode: quiet");
    let text = format!("echo >> {}/log; exit 1", sandbox.root().display());
    sandbox.write(
        "web.yml",
        &child(&text, "{when: always, delay: 500ms, factor: 1}"),
    );
    sandbox.done(&["start", "web"]);
    sandbox.wait_state("web", "backoff");
    sandbox.restart_server();
    let row = sandbox.wait_run("web", 2);
    assert!(row["restarts"].as_u64().unwrap() >= 1);
    // An end that came while no server was there is followed by a restart too.
    sandbox.write(
        "late.yml",
        &child(
            &format!("sleep 0.3; {text}"),
            "{when: always, delay: 20ms, factor: 1}",
        ),
    );
    sandbox.done(&["start", "late"]);
    sandbox.kill_server();
    wait_for("its end", PATIENCE, || sandbox.processes().is_empty());
    sandbox.start_server();
    let row = sandbox.wait_run("late", 2);
    assert!(row["restarts"].as_u64().unwrap() >= 1, "{row}");
    sandbox.done(&["stop", "--all"]);
}
