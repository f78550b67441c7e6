//! Hooks: what runs before a child starts and after it was stopped, and what a failure means.

use std::{fs, thread};

use serde_json::{Value, json};

use crate::sandbox::{PATIENCE, SLEEPER, Sandbox, Wire, lives, script, wait_for, wait_lines};

/// A child that sleeps, with these hooks.
fn with(hooks: &[(&str, &str)]) -> String {
    let mut text = format!("{SLEEPER}hooks:\n");
    for (kind, hook) in hooks {
        text.push_str(&format!("  - {kind}: {hook}\n"));
    }
    text
}

/// A server in `quiet` mode that knows these children.
fn with_children(children: &[(&str, String)]) -> Sandbox {
    let sandbox = Sandbox::start("mode: quiet");
    for (name, text) in children {
        sandbox.write(&format!("{name}.yml"), text);
    }
    let known = json!(children.len());
    wait_for("all files", PATIENCE, || {
        sandbox.json(&["check"])["others"] == known
    });
    sandbox
}

/// The children in the order in which they were started, as the server's log tells.
fn starts(sandbox: &Sandbox) -> Vec<String> {
    let log = sandbox.server_log();
    let lines = log.lines().filter(|line| line.contains("}: started "));
    let name = |line: &str| {
        let (_, rest) = line.split_once("child{child=")?;
        Some(rest.split_once(' ')?.0.to_owned())
    };
    lines.filter_map(name).collect()
}

fn state(sandbox: &Sandbox, name: &str) -> Value {
    sandbox.row(name).unwrap()["state"].clone()
}

/// A `run` hook that adds a line to the file `log` of the sandbox.
fn noting(sandbox: &Sandbox, line: &str) -> String {
    format!(
        "run sh -c 'echo {line} >> {}/log'",
        sandbox.root().display()
    )
}

fn log(sandbox: &Sandbox) -> Vec<String> {
    let text = fs::read_to_string(sandbox.root().join("log")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn chains_run_one_by_one_deepest_first() {
    let sandbox = with_children(&[
        ("web", with(&[("prehook", "start api")])),
        ("api", with(&[("prehook", "trystart db")])),
        ("db", with(&[("prehook", "start disk")])),
        ("disk", SLEEPER.to_owned()),
    ]);
    let answer = sandbox.done(&["start", "web"]);
    assert_eq!(
        (&answer["child"], &answer["run"]),
        (&json!("web"), &json!(1))
    );
    assert_eq!(starts(&sandbox), ["disk", "db", "api", "web"]);
    assert_eq!(sandbox.processes().len(), 4);
    // What runs already counts as done for `start`; `trystart` replaces it.
    sandbox.done(&["restart", "web"]);
    assert_eq!(starts(&sandbox)[4..], ["web"]);
    sandbox.done(&["restart", "api"]);
    assert_eq!(starts(&sandbox)[5..], ["db", "api"]);
}

#[test]
fn a_prehook_runs_before_each_start_and_restart() {
    let sandbox = Sandbox::start("mode: quiet");
    let pre = noting(&sandbox, "pre");
    sandbox.write("web.yml", &with(&[("prehook", &pre)]));
    for (turn, verb) in ["start", "restart", "trystart"].into_iter().enumerate() {
        sandbox.done(&[verb, "web"]);
        assert_eq!(log(&sandbox).len(), turn + 1, "{verb}");
    }
    sandbox.done(&["stop", "web"]);
    assert_eq!(log(&sandbox).len(), 3);
    sandbox.done(&["trystart", "web"]);
    assert_eq!(log(&sandbox).len(), 4);
    sandbox.refused(&["start", "web"], "already_running", 1);
    assert_eq!(log(&sandbox).len(), 4, "a refused command runs no hook");
}

#[test]
fn a_circle_is_refused_before_anything_runs_with_the_whole_chain() {
    let sandbox = with_children(&[
        ("a", with(&[("prehook", "start b")])),
        ("b", with(&[("prehook", "restart c")])),
        ("c", with(&[("prehook", "trystart a")])),
        ("me", with(&[("prehook", "start me")])),
        ("tail", with(&[("prehook", "start b")])),
        ("plain", SLEEPER.to_owned()),
    ]);
    let cases = [
        ("a", "a -> start b -> restart c -> trystart a"),
        ("b", "b -> restart c -> trystart a -> start b"),
        ("me", "me -> start me"),
        (
            "tail",
            "tail -> start b -> restart c -> trystart a -> start b",
        ),
    ];
    for (name, chain) in cases {
        for verb in ["start", "trystart"] {
            let message = sandbox.refused(&[verb, name], "hook_cycle", 6);
            assert!(message.contains(chain), "{message}");
        }
    }
    assert_eq!(sandbox.processes(), []);
    // The old run stays where a restart meets a circle.
    let pid = sandbox.done(&["start", "plain"])["pid"].clone();
    sandbox.write("plain.yml", &with(&[("prehook", "start plain")]));
    let message = sandbox.refused(&["restart", "plain"], "hook_cycle", 6);
    assert!(message.contains("plain -> start plain"), "{message}");
    assert_eq!(sandbox.row("plain").unwrap()["pid"], pid);
    assert_eq!(starts(&sandbox), ["plain"]);
}

#[test]
fn a_chain_through_an_unknown_bad_or_conflicting_child_is_refused_before_anything_runs() {
    let sandbox = Sandbox::start("mode: quiet");
    sandbox.write("bad.yml", "comand: sleep 1\n");
    sandbox.write("twice.yml", SLEEPER);
    sandbox.write("twice.yaml", SLEEPER);
    let cases = [
        ("nobody", "unknown"),
        ("bad", "bad file"),
        ("twice", "several files"),
    ];
    for (last, words) in cases {
        sandbox.write("first.yml", SLEEPER);
        sandbox.write(
            "middle.yml",
            &with(&[("prehook", &format!("start {last}"))]),
        );
        sandbox.write("web.yml", &with(&[("prehook", "start middle")]));
        let message = sandbox.refused(&["start", "web"], "hook_failed", 1);
        assert!(message.contains(words), "{message}");
        let chain = format!("web -> start middle -> start {last}");
        assert!(message.contains(&chain), "{message}");
    }
    assert_eq!(starts(&sandbox), [""; 0]);
    // Files are read again for a command: what was mended is used at once.
    sandbox.write("bad.yml", SLEEPER);
    sandbox.write("middle.yml", &with(&[("prehook", "start bad")]));
    sandbox.done(&["start", "web"]);
    assert_eq!(starts(&sandbox), ["bad", "middle", "web"]);
}

#[test]
fn a_prehook_does_not_start_a_held_child() {
    let sandbox = with_children(&[
        ("web", with(&[("prehook", "start db")])),
        ("top", with(&[("prehook", "start web")])),
        ("db", SLEEPER.to_owned()),
    ]);
    sandbox.done(&["start", "db"]);
    sandbox.done(&["stop", "db"]);
    for name in ["web", "top"] {
        let message = sandbox.refused(&["start", name], "hook_failed", 1);
        assert!(message.contains("`db` is held"), "{message}");
        assert!(
            message.contains("supervisor-rs-client start db"),
            "{message}"
        );
    }
    for verb in ["start db", "trystart db", "restart db"] {
        sandbox.write("web.yml", &with(&[("prehook", verb)]));
        sandbox.refused(&["start", "web"], "hook_failed", 1);
    }
    assert_eq!(sandbox.processes(), []);
    assert_eq!(sandbox.row("db").unwrap()["hold"], true);
    sandbox.write("web.yml", &with(&[("prehook", "start db")]));
    sandbox.done(&["start", "db"]);
    sandbox.done(&["start", "top"]);
    assert_eq!(starts(&sandbox), ["db", "db", "web", "top"]);
}

#[test]
fn a_failed_prehook_means_no_start_and_the_old_run_stays() {
    let sandbox = Sandbox::start("mode: quiet");
    sandbox.write("web.yml", &with(&[("prehook", "run sh -c 'exit 3'")]));
    for verb in ["start", "trystart"] {
        let message = sandbox.refused(&[verb, "web"], "hook_failed", 1);
        assert!(
            message.contains("the prehook `run sh -c 'exit 3'` of `web` failed"),
            "{message}"
        );
        assert!(message.contains("exit code 3"), "{message}");
    }
    assert_eq!(state(&sandbox, "web"), "stopped");
    sandbox.write("web.yml", SLEEPER);
    let old = sandbox.done(&["start", "web"]);
    let failing = [
        "run false",
        "run no-such-program",
        "run sh -c 'kill -9 $$'",
        "start missing-program",
        "restart idle",
    ];
    sandbox.write("missing-program.yml", "command: no-such-program\n");
    sandbox.write("idle.yml", SLEEPER);
    for hook in failing {
        sandbox.write("web.yml", &with(&[("prehook", hook)]));
        for verb in ["restart", "trystart"] {
            let message = sandbox.refused(&[verb, "web"], "hook_failed", 1);
            let begin = format!("the prehook `{hook}` of `web` failed: ");
            assert!(message.starts_with(&begin), "{message}");
        }
        let row = sandbox.row("web").unwrap();
        assert_eq!(
            (&row["pid"], &row["run"]),
            (&old["pid"], &old["run"]),
            "{hook}"
        );
    }
    assert_eq!(sandbox.processes().len(), 1);
}

#[test]
fn a_posthook_runs_when_its_child_was_stopped_and_stays_down() {
    let sandbox = Sandbox::start("mode: sync");
    let post = noting(&sandbox, "post");
    sandbox.write("cleaner.yml", &script("exit 0"));
    sandbox.wait_state("cleaner", "exited");
    sandbox.write("web.yml", &with(&[("posthook", &post)]));
    sandbox.wait_state("web", "running");
    sandbox.done(&["restart", "web"]);
    sandbox.done(&["trystart", "web"]);
    sandbox.write(
        "web.yml",
        &with(&[("posthook", &post)]).replace("300", "301"),
    );
    wait_for("run 4", PATIENCE, || {
        sandbox.row("web").unwrap()["run"] == 4
    });
    assert_eq!(
        log(&sandbox),
        [""; 0],
        "not between the halves of a restart"
    );
    sandbox.done(&["stop", "web"]);
    assert_eq!(log(&sandbox), ["post"], "before the answer");
    sandbox.done(&["start", "web"]);
    sandbox.remove("web.yml");
    assert_eq!(
        wait_lines(&sandbox.root().join("log"), 2),
        ["post"; 2],
        "its file went"
    );
    sandbox.wait_state("web", "stopped");
    // An end of one's own is no stop.
    sandbox.write(
        "job.yml",
        &format!(
            "{}hooks: [posthook: {}]\n",
            script("exit 0"),
            json!(noting(&sandbox, "job"))
        ),
    );
    sandbox.wait_state("job", "exited");
    sandbox.write("last.yml", &with(&[("posthook", "start cleaner")]));
    sandbox.wait_state("last", "running");
    sandbox.done(&["stop", "last"]);
    assert_eq!(
        sandbox.row("cleaner").unwrap()["run"],
        2,
        "begun before the answer"
    );
    assert_eq!(log(&sandbox), ["post"; 2]);
}

#[test]
fn a_failed_posthook_is_told_and_the_stop_stands() {
    let sandbox = Sandbox::start("mode: quiet");
    sandbox.write("missing-program.yml", "command: no-such-program\n");
    sandbox.write("web.yml", SLEEPER);
    let cases = [
        ("run sh -c 'exit 5'", "exit code 5"),
        ("start nobody", "unknown"),
        ("start web", "web -> start web"),
        ("start missing-program", "no-such-program"),
        ("restart idle", "idle` is not running"),
    ];
    sandbox.write("idle.yml", SLEEPER);
    for (hook, words) in cases {
        sandbox.write("web.yml", &with(&[("posthook", hook)]));
        sandbox.done(&["start", "web"]);
        let answer = sandbox.done(&["stop", "web"]);
        let message = answer["message"].as_str().unwrap();
        let second = message.lines().nth(1).unwrap();
        assert!(second.starts_with("posthook failed: "), "{hook}: {message}");
        assert!(message.contains(words), "{hook}: {message}");
        assert_eq!(answer["exit"]["signal"], "SIGTERM");
        let row = sandbox.row("web").unwrap();
        assert_eq!(
            (&row["state"], &row["hold"]),
            (&json!("stopped"), &json!(true))
        );
    }
}

#[test]
fn start_of_what_runs_and_stop_of_what_does_not_count_as_done() {
    let sandbox = with_children(&[
        ("db", SLEEPER.to_owned()),
        ("off", SLEEPER.to_owned()),
        ("one", with(&[("prehook", "start db")])),
        (
            "two",
            with(&[("prehook", "stop off"), ("posthook", "stop off")]),
        ),
        ("three", with(&[("posthook", "start db")])),
        ("four", with(&[("prehook", "stop db")])),
    ]);
    let pid = sandbox.done(&["start", "db"])["pid"].clone();
    for name in ["one", "two", "three"] {
        sandbox.done(&["start", name]);
    }
    for name in ["two", "three"] {
        let message = sandbox.done(&["stop", name])["message"].clone();
        assert_eq!(message.as_str().unwrap().lines().count(), 1, "{message}");
    }
    let db = sandbox.row("db").unwrap();
    assert_eq!((&db["pid"], &db["run"]), (&pid, &json!(1)));
    // A hook's stop stops and does not hold.
    sandbox.done(&["start", "four"]);
    let db = sandbox.row("db").unwrap();
    assert_eq!(
        (&db["state"], &db["hold"]),
        (&json!("stopped"), &json!(false))
    );
    sandbox.done(&["start", "db"]);
}

#[test]
fn a_restart_and_a_trystart_as_hooks_replace_what_runs() {
    let sandbox = with_children(&[
        ("db", SLEEPER.to_owned()),
        ("one", with(&[("prehook", "restart db")])),
        ("two", with(&[("prehook", "trystart db")])),
        ("three", with(&[("posthook", "restart db")])),
    ]);
    sandbox.refused(&["start", "one"], "hook_failed", 1);
    for (run, name) in ["two", "one", "three"].into_iter().enumerate() {
        sandbox.done(&["start", name]);
        if name == "three" {
            sandbox.done(&["stop", name]);
        }
        assert_eq!(sandbox.row("db").unwrap()["run"], run + 1, "{name}");
    }
}

#[test]
fn a_program_runs_to_its_end_where_its_child_would_and_into_its_outputs() {
    let sandbox = Sandbox::start("mode: quiet");
    let hook = "run sh -c 'pwd; echo oops >&2; sleep 0.2; echo end'";
    let output = "output: [{stdout: web.log, mode: create}]\n";
    sandbox.write(
        "web.yml",
        &format!("{}{output}", with(&[("prehook", hook), ("posthook", hook)])),
    );
    sandbox.done(&["start", "web"]);
    sandbox.done(&["stop", "web"]);
    let read = |name: &str| fs::read_to_string(sandbox.log_dir().join(name)).unwrap();
    let place = sandbox.loadpath().canonicalize().unwrap();
    // What the prehook wrote was emptied by the start that followed.
    assert_eq!(read("web.log"), format!("{}\nend\n", place.display()));
    assert_eq!(read("web.err"), "oops\noops\n");
}

#[test]
fn what_a_hooks_program_leaves_in_its_group_is_killed() {
    let sandbox = Sandbox::start("mode: quiet");
    let file = sandbox.root().join("left");
    let hook = format!("run sh -c 'sleep 300 & echo $! > {}'", file.display());
    sandbox.write("web.yml", &with(&[("prehook", &hook)]));
    sandbox.done(&["start", "web"]);
    let left: i32 = wait_lines(&file, 1)[0].parse().unwrap();
    wait_for("its end", PATIENCE, || !lives(left));
}

#[test]
fn a_stop_overtakes_a_prehook_and_ends_its_program() {
    let sandbox = Sandbox::start("mode: quiet");
    let file = sandbox.root().join("hook");
    let hook = format!("run sh -c 'echo $$ > {}; exec sleep 300'", file.display());
    sandbox.write("web.yml", &with(&[("prehook", &hook)]));
    thread::scope(|scope| {
        let start = scope.spawn(|| sandbox.refused(&["start", "web"], "superseded", 1));
        let pid: i32 = wait_lines(&file, 1)[0].parse().unwrap();
        let row = sandbox.wait_state("web", "pending");
        assert_eq!(row["reason"], format!("waits for prehook `{hook}`"));
        let answer = sandbox.done(&["stop", "web"]);
        assert_eq!(
            answer["message"],
            "`web` did not run; what was due is cancelled"
        );
        start.join().unwrap();
        wait_for("the program's end", PATIENCE, || !lives(pid));
    });
    let row = sandbox.row("web").unwrap();
    assert_eq!(
        (&row["state"], &row["hold"]),
        (&json!("stopped"), &json!(true))
    );
    assert_eq!(row["run"], json!(null));
}

#[test]
fn a_start_joins_the_wait_for_a_prehook_and_a_restart_is_refused() {
    let sandbox = Sandbox::start("mode: quiet");
    let root = sandbox.root().display().to_string();
    let wait = format!("echo hook >> {root}/log; while [ ! -e {root}/go ]; do sleep 0.02; done");
    sandbox.write(
        "web.yml",
        &with(&[("prehook", &format!("run sh -c '{wait}'"))]),
    );
    let mut wire = Wire::connect(sandbox.address());
    wire.ask(1, &json!({"op": "start", "child": "web"}).to_string());
    wait_lines(&sandbox.root().join("log"), 1);
    assert_eq!(state(&sandbox, "web"), "pending");
    wire.ask(2, &json!({"op": "start", "child": "web"}).to_string());
    wire.ask(3, &json!({"op": "trystart", "child": "web"}).to_string());
    wire.ask(4, &json!({"op": "restart", "child": "web"}).to_string());
    let refused = wire.value();
    assert_eq!(
        (&refused["id"], &refused["error"]["code"]),
        (&json!(4), &json!("not_running"))
    );
    fs::write(sandbox.root().join("go"), "").unwrap();
    let answers = [wire.value(), wire.value(), wire.value()];
    for id in 1..=3 {
        let answer = answers.iter().find(|answer| answer["id"] == id).unwrap();
        assert_eq!(
            (&answer["ok"]["run"], &answer["ok"]["child"]),
            (&json!(1), &json!("web"))
        );
    }
    assert_eq!(log(&sandbox), ["hook"], "once for all three");
    assert_eq!(starts(&sandbox), ["web"]);
}

#[test]
fn a_second_hook_of_one_kind_is_a_fault() {
    let sandbox = Sandbox::start("mode: quiet");
    sandbox.write("db.yml", SLEEPER);
    for kind in ["prehook", "posthook"] {
        sandbox.write("web.yml", &with(&[(kind, "start db"), (kind, "run true")]));
        let message = sandbox.refused(&["start", "web"], "invalid_config", 6);
        assert!(
            message.contains(kind) && message.contains("web.yml:4:5"),
            "{message}"
        );
    }
    assert_eq!(sandbox.processes(), []);
}

#[test]
fn stop_all_and_the_servers_end_skip_posthooks_that_start_something_and_name_them() {
    for ending in ["stop --all", "kill --stop-children", "TERM"] {
        let mut sandbox = Sandbox::start("mode: quiet\non_exit: stop");
        let note = noting(&sandbox, "ran");
        let children = [
            ("db", SLEEPER.to_owned()),
            ("starts", with(&[("posthook", "start db")])),
            ("restarts", with(&[("posthook", "trystart db")])),
            ("stops", with(&[("posthook", "stop db")])),
            ("runs", with(&[("posthook", &note)])),
        ];
        for (name, text) in &children {
            sandbox.write(&format!("{name}.yml"), text);
            if *name != "db" {
                sandbox.done(&["start", name]);
            }
        }
        let named = ["posthook `start db`", "posthook `trystart db`"];
        let told = match ending {
            "stop --all" => {
                let answer = sandbox.done(&["stop", "--all"]);
                let rows = answer["children"].as_array().unwrap();
                let skipped = |name: &str| {
                    let row = rows.iter().find(|row| row["name"] == name).unwrap();
                    row["note"].clone()
                };
                assert_eq!(
                    (skipped("stops"), skipped("runs")),
                    (json!(null), json!(null))
                );
                let people = sandbox.client(&["check", "-a"]);
                assert_eq!(people.code, 0);
                format!("{} {}", skipped("starts"), skipped("restarts"))
            }
            "TERM" => {
                assert_eq!(sandbox.stop_server(), 0);
                sandbox.server_log()
            }
            _ => {
                let answer = sandbox.done(&["kill", "--stop-children"]);
                assert_eq!(answer["children"], json!([]));
                assert_eq!(sandbox.wait_server(), 0);
                answer["message"].to_string()
            }
        };
        for words in named {
            assert!(told.contains(words), "{ending}: {told}");
        }
        assert!(!told.contains("failed"), "{ending}: {told}");
        assert_eq!(log(&sandbox), ["ran"], "{ending}");
        assert_eq!(sandbox.processes(), []);
        let started = starts(&sandbox);
        assert!(!started.contains(&"db".to_owned()), "{ending}: {started:?}");
    }
}

#[test]
fn a_posthook_that_stops_a_child_is_carried_out_at_the_servers_end() {
    let mut sandbox = with_children(&[
        (
            "slow",
            script("trap 'sleep 0.3; exit 0' TERM; sleep 300 & wait"),
        ),
        ("web", with(&[("posthook", "stop helper")])),
        ("helper", with(&[("posthook", "start db")])),
        ("db", SLEEPER.to_owned()),
    ]);
    for name in ["slow", "web", "helper"] {
        sandbox.done(&["start", name]);
    }
    // Ordered by a client, and not yet through when the server is to end.
    let slow = with(&[("posthook", "stop helper")]).replace(
        SLEEPER,
        &script("trap 'sleep 0.3; exit 0' TERM; echo up; sleep 300 & wait"),
    );
    sandbox.write("web.yml", &slow);
    sandbox.done(&["restart", "web"]);
    wait_lines(&sandbox.log_dir().join("web.out"), 1);
    let mut wire = Wire::connect(sandbox.address());
    wire.ask(1, &json!({"op": "stop", "child": "web"}).to_string());
    sandbox.wait_state("web", "stopping");
    let words = sandbox.done(&["kill"]);
    let stopped = wire.value();
    assert!(
        !stopped["ok"]["message"]
            .as_str()
            .unwrap()
            .contains("failed"),
        "{stopped}"
    );
    assert_eq!(sandbox.wait_server(), 0);
    let left: Vec<_> = words["children"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| &c["name"])
        .collect();
    assert_eq!(left, ["slow"], "{words}");
    assert!(!starts(&sandbox).contains(&"db".to_owned()));
    assert!(
        sandbox.server_log().contains("posthook `start db`"),
        "{}",
        sandbox.server_log()
    );
    sandbox.expect_leftovers();
}

#[test]
fn people_are_told_of_skipped_posthooks_too() {
    let sandbox = with_children(&[
        ("db", SLEEPER.to_owned()),
        ("web", with(&[("posthook", "start db")])),
    ]);
    sandbox.done(&["start", "web"]);
    let output = sandbox.client(&["stop", "--all"]);
    assert_eq!(output.code, 0);
    assert!(
        output.stdout.contains("posthook `start db` was skipped"),
        "{output:?}"
    );
}

#[test]
fn automatic_starts_run_prehooks_too() {
    let mut sandbox = Sandbox::new("mode: sync");
    let pre = noting(&sandbox, "pre");
    let crash = script(&format!(
        "[ -e {0}/crashed ] && exec sleep 300; echo > {0}/crashed; exit 1",
        sandbox.root().display()
    ));
    sandbox.write("db.yml", SLEEPER);
    sandbox.write("web.yml", &with(&[("prehook", "start db")]));
    sandbox.write("app.yml", &with(&[("prehook", "start web")]));
    sandbox.start_server();
    for name in ["db", "web", "app"] {
        assert_eq!(sandbox.wait_state(name, "running")["run"], 1);
    }
    let order = starts(&sandbox);
    let at = |name: &str| order.iter().position(|started| started == name).unwrap();
    assert!(at("db") < at("web") && at("web") < at("app"), "{order:?}");
    assert_eq!(order.len(), 3);
    // By the restart policy.
    let policy = format!(
        "restart: {{when: always, delay: 10ms}}\nhooks: [prehook: {}]\n",
        json!(pre)
    );
    sandbox.write("crash.yml", &format!("{crash}{policy}"));
    let lines = wait_lines(&sandbox.root().join("log"), 2);
    wait_for("run 2", PATIENCE, || {
        sandbox.row("crash").unwrap()["run"] == 2
    });
    assert_eq!(lines, ["pre"; 2]);
    // By a changed file.
    sandbox.write(
        "crash.yml",
        &format!("{crash}{policy}x-note: 1\nworkdir: /\n"),
    );
    wait_for("run 3", PATIENCE, || {
        sandbox.row("crash").unwrap()["run"] == 3
    });
    assert_eq!(log(&sandbox).len(), 3);
}

#[test]
fn an_automatic_start_waits_for_what_its_chain_lacks() {
    let sandbox = Sandbox::start("mode: sync");
    sandbox.write("web.yml", &with(&[("prehook", "start db")]));
    let row = sandbox.wait_state("web", "pending");
    let reason = row["reason"].as_str().unwrap();
    assert!(reason.starts_with("waits for db: "), "{reason}");
    sandbox.write("db.yml", SLEEPER);
    sandbox.wait_state("web", "running");
    sandbox.wait_state("db", "running");
    let order = starts(&sandbox);
    assert_eq!(order, ["db", "web"]);
}

#[test]
fn an_automatic_start_whose_prehook_meets_a_hold_waits_for_its_release() {
    let sandbox = Sandbox::start("mode: sync");
    sandbox.write("db.yml", SLEEPER);
    sandbox.wait_state("db", "running");
    sandbox.done(&["stop", "db"]);
    sandbox.write("web.yml", &with(&[("prehook", "start db")]));
    let row = sandbox.wait_state("web", "pending");
    assert!(
        row["reason"].as_str().unwrap().contains("`db` is held"),
        "{row}"
    );
    sandbox.done(&["start", "db"]);
    sandbox.wait_state("web", "running");
    assert_eq!(sandbox.row("db").unwrap()["run"], 2);
}

#[test]
fn two_children_that_need_each_other_do_not_wait_for_ever() {
    let sandbox = with_children(&[
        ("a", with(&[("posthook", "stop b")])),
        ("b", with(&[("posthook", "stop a")])),
    ]);
    sandbox.done(&["start", "a"]);
    sandbox.done(&["start", "b"]);
    let answer = sandbox.done(&["stop", "a"]);
    let message = answer["message"].as_str().unwrap();
    assert!(message.contains("a -> stop b -> stop a"), "{message}");
    thread::scope(|scope| {
        scope.spawn(|| sandbox.client(&["stop", "b"]));
        scope.spawn(|| sandbox.client(&["restart", "b"]));
    });
    sandbox.client(&["stop", "b"]);
    assert_eq!(state(&sandbox, "b"), "stopped");
}
