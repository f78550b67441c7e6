//! What programs read: each object of `--json` and of the wire whole, its fields in their order.

#![allow(clippy::unwrap_used, reason = "what fails here fails its test")]

use std::collections::BTreeSet;

use crate::sandbox::{PATIENCE, SLEEPER, Sandbox, dead_address, wait_for};

/// The line that `--json` prints, without what differs from run to run.
fn line(sandbox: &Sandbox, arguments: &[&str]) -> String {
    let output = sandbox.client(&[arguments, &["--json"]].concat());
    assert_eq!(output.stderr, "", "{output:?}");
    let (line, end) = output.stdout.split_at(output.stdout.len() - 1);
    assert_eq!(end, "\n");
    assert!(!line.contains('\n'), "{output:?}");
    sandbox.mask(line)
}

/// The one row of `check NAME`, less its history.
fn row(sandbox: &Sandbox, name: &str) -> String {
    let whole = whole_row(sandbox, name);
    let row = whole.split_once(r#","history":["#);
    row.map_or(whole.clone(), |(row, _)| format!("{row}}}"))
}

/// The one row of `check NAME`.
fn whole_row(sandbox: &Sandbox, name: &str) -> String {
    let line = line(sandbox, &["check", name]);
    let head =
        format!(r#"{{"host":"ADDRESS","ok":true,"op":"check","child":"{name}","children":["#);
    let row = line.strip_prefix(&head).unwrap_or_else(|| panic!("{line}"));
    let row = row.strip_suffix(r#"],"others":0}"#);
    row.unwrap_or_else(|| panic!("{line}")).to_owned()
}

/// The part of a row that says of an ordinary child where its file and its output are.
fn places(name: &str, status: &str) -> String {
    format!(
        r#""config":{{"path":"ROOT/load/{name}.yml","digest":"DIGEST","status":"{status}"}},"output":{{"stdout":"ROOT/logs/{name}.out","stderr":"ROOT/logs/{name}.err"}}"#
    )
}

const DETAILS: &str = r#""details":{"command":"sleep 300","workdir":"ROOT/load"}"#;

#[test]
fn a_row_of_a_child_that_never_ran() {
    let sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    let places = places("web", "current");
    let expected = format!(
        r#"{{"name":"web","state":"stopped","pid":null,"run":null,"started_at":null,"uptime_ms":null,"restarts":0,"hold":false,{places},"exit":null,{DETAILS}}}"#
    );
    assert_eq!(row(&sandbox, "web"), expected);
}

#[test]
fn a_row_of_a_child_that_runs_and_of_one_whose_file_changed_since() {
    let sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    assert_eq!(sandbox.client(&["start", "web"]).code, 0);
    let expected = |status: &str| {
        let places = places("web", status);
        format!(
            r#"{{"name":"web","state":"running","pid":PID,"run":1,"started_at":"TIME","uptime_ms":MS,"restarts":0,"hold":false,{places},"exit":null,{DETAILS}}}"#
        )
    };
    assert_eq!(row(&sandbox, "web"), expected("current"));
    // Equal meaning is no change.
    sandbox.write("web.yml", "# a comment\ncommand: sleep 300\nx-note: 1\n");
    sandbox.write("other.yml", SLEEPER);
    wait_for("the other file", PATIENCE, || {
        sandbox.row("other").is_some()
    });
    assert_eq!(row(&sandbox, "web"), expected("current"));
    sandbox.write("web.yml", "command: sleep 301\n");
    wait_for("the change", PATIENCE, || {
        sandbox.row("web").unwrap()["config"]["status"] == "changed"
    });
    assert_eq!(row(&sandbox, "web"), expected("changed"));
    sandbox.remove("web.yml");
    wait_for("the removal", PATIENCE, || {
        sandbox.row("web").unwrap()["config"]["status"] == "removed"
    });
    assert_eq!(row(&sandbox, "web"), expected("removed"));
}

#[test]
fn a_row_of_a_child_that_was_stopped_is_held_and_says_since_when() {
    let sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    assert_eq!(sandbox.client(&["start", "web"]).code, 0);
    assert_eq!(sandbox.client(&["stop", "web"]).code, 0);
    let places = places("web", "current");
    let expected = format!(
        r#"{{"name":"web","state":"stopped","pid":null,"run":1,"started_at":"TIME","uptime_ms":null,"restarts":0,"hold":true,{places},"exit":{{"signal":"SIGTERM","at":"TIME"}},"held_since":"TIME",{DETAILS}}}"#
    );
    assert_eq!(row(&sandbox, "web"), expected);
}

#[test]
fn a_row_of_a_child_that_ended_by_itself_has_its_code_or_its_signal() {
    let sandbox = Sandbox::knowing(&[
        ("code", "command: sh -c 'exit 9'\n"),
        ("signal", "command: sh -c 'kill -9 $$'\n"),
    ]);
    for (name, exit, command) in [
        ("code", r#"{"code":9,"at":"TIME"}"#, "sh -c 'exit 9'"),
        (
            "signal",
            r#"{"signal":"SIGKILL","at":"TIME"}"#,
            "sh -c 'kill -9 $$'",
        ),
    ] {
        assert_eq!(sandbox.client(&["start", name]).code, 0);
        sandbox.wait_state(name, "exited");
        let places = places(name, "current");
        let expected = format!(
            r#"{{"name":"{name}","state":"exited","pid":null,"run":1,"started_at":"TIME","uptime_ms":null,"restarts":0,"hold":false,{places},"exit":{exit},"details":{{"command":"{command}","workdir":"ROOT/load"}}}}"#
        );
        assert_eq!(row(&sandbox, name), expected);
    }
}

#[test]
fn a_row_of_a_child_in_backoff_says_what_is_next() {
    let yaml =
        "command: 'false'\nrestart: {when: always, delay: 1h, max_delay: 1h, reset_after: 1h}\n";
    let sandbox = Sandbox::knowing(&[("web", yaml)]);
    assert_eq!(sandbox.client(&["start", "web"]).code, 0);
    sandbox.wait_state("web", "backoff");
    let places = places("web", "current");
    let expected = format!(
        r#"{{"name":"web","state":"backoff","pid":null,"run":1,"started_at":"TIME","uptime_ms":null,"restarts":0,"hold":false,{places},"exit":{{"code":1,"at":"TIME"}},"next":{{"action":"restart","at":"TIME"}},"details":{{"command":"false","workdir":"ROOT/load"}}}}"#
    );
    assert_eq!(row(&sandbox, "web"), expected);
}

#[test]
fn a_row_of_a_child_that_failed_says_why() {
    let sandbox = Sandbox::knowing(&[("web", "command: /nowhere/web\n")]);
    let refused = line(&sandbox, &["start", "web"]);
    let head = r#"{"host":"ADDRESS","ok":false,"op":"start","child":"web","error":{"code":"spawn_failed","message":""#;
    let message = refused
        .strip_prefix(head)
        .unwrap_or_else(|| panic!("{refused}"));
    let message = message.strip_suffix(r#""}}"#).unwrap();
    assert!(message.contains("/nowhere/web"), "{message}");
    let places = places("web", "current");
    let expected = format!(
        r#"{{"name":"web","state":"failed","pid":null,"run":1,"started_at":null,"uptime_ms":null,"restarts":0,"hold":false,{places},"exit":null,"reason":"{message}","details":{{"command":"/nowhere/web","workdir":"ROOT/load"}}}}"#
    );
    assert_eq!(row(&sandbox, "web"), expected);
}

#[test]
fn a_row_of_a_child_that_waits_for_its_prehook_says_so() {
    let sandbox = Sandbox::start("");
    let wait = sandbox.gate("hook");
    let hook = format!("run sh -c '{wait}'");
    sandbox.write(
        "web.yml",
        &format!("{SLEEPER}hooks: [prehook: \"{hook}\"]\n"),
    );
    sandbox.wait_state("web", "stopped");
    let mut wire = sandbox.wire();
    wire.ask(1, r#"{"op":"start","child":"web"}"#);
    sandbox.wait_prehook("web");
    let (places, hook) = (places("web", "current"), sandbox.mask(&hook));
    let expected = format!(
        r#"{{"name":"web","state":"pending","pid":null,"run":null,"started_at":null,"uptime_ms":null,"restarts":0,"hold":false,{places},"exit":null,"reason":"waits for prehook `{hook}`","details":{{"command":"sleep 300","prehook":"{hook}","workdir":"ROOT/load"}}}}"#
    );
    assert_eq!(row(&sandbox, "web"), expected);
    sandbox.open_gate("hook");
    assert_eq!(wire.answer().1["ok"]["run"], 1);
}

#[test]
fn a_row_of_a_child_that_is_stopping_says_what_was_sent() {
    let sandbox = Sandbox::start("");
    sandbox.write("web.yml", &sandbox.slow_to_stop("end"));
    sandbox.wait_state("web", "stopped");
    assert_eq!(sandbox.client(&["start", "web"]).code, 0);
    sandbox.wait_output("web", "up");
    let mut wire = sandbox.wire();
    wire.ask(1, r#"{"op":"stop","child":"web"}"#);
    sandbox.wait_state("web", "stopping");
    let row = row(&sandbox, "web");
    let places = places("web", "current");
    let expected = format!(
        r#"{{"name":"web","state":"stopping","pid":PID,"run":1,"started_at":"TIME","uptime_ms":MS,"restarts":0,"hold":true,{places},"exit":null,"reason":"TERM was sent to process PID","held_since":"TIME","details":{{"#
    );
    assert!(row.starts_with(&expected), "{row}");
    sandbox.open_gate("end");
    assert_eq!(wire.answer().1["ok"]["op"], "stop");
}

#[test]
fn a_row_of_a_bad_file_has_its_faults_and_the_last_good_run() {
    let sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    assert_eq!(sandbox.client(&["start", "web"]).code, 0);
    sandbox.write("web.yml", "commnd: x\n");
    wait_for("the fault", PATIENCE, || {
        sandbox.row("web").unwrap()["config"]["status"] == "invalid"
    });
    let places = places("web", "invalid");
    let fault = r"ROOT/load/web.yml:1:1: unknown key `commnd`\n  |\n1 | commnd: x\n  | ^^^^^^\nhelp: did you mean `command`?";
    let row = row(&sandbox, "web");
    let expected = format!(
        r#"{{"name":"web","state":"running","pid":PID,"run":1,"started_at":"TIME","uptime_ms":MS,"restarts":0,"hold":false,{places},"exit":null,"faults":["{fault}""#
    );
    assert!(row.starts_with(&expected), "{row}\n{expected}");
    assert!(row.ends_with(&format!("],{DETAILS}}}")), "{row}");
}

#[test]
fn a_row_of_a_conflict_has_all_paths() {
    let sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    sandbox.write("web.yaml", SLEEPER);
    wait_for("the conflict", PATIENCE, || {
        sandbox.row("web").unwrap()["config"]["status"] == "conflict"
    });
    let row = row(&sandbox, "web");
    let config = r#""config":{"path":"ROOT/load/web.yaml","digest":null,"status":"conflict","paths":["ROOT/load/web.yaml","ROOT/load/web.yml"]}"#;
    assert!(row.contains(config), "{row}");
}

#[test]
fn a_row_of_a_child_with_a_repeat_says_what_is_next_and_inherited_output_is_named() {
    let yaml = format!("{SLEEPER}output: inherit\nrepeat: {{action: trystart, seconds: 3600}}\n");
    let sandbox = Sandbox::knowing(&[("web", &yaml)]);
    assert_eq!(sandbox.client(&["start", "web"]).code, 0);
    let row = row(&sandbox, "web");
    let output = r#""output":{"stdout":"inherit","stderr":"inherit"},"exit":null,"next":{"action":"trystart","at":"TIME"},"details":{"command":"sleep 300","repeat":"trystart every 1h","workdir":"ROOT/load"}}"#;
    assert!(row.ends_with(output), "{row}");
}

#[test]
fn a_row_tells_of_each_run_why_it_began_how_it_ended_and_who_asked() {
    let sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    for command in ["start", "restart", "stop"] {
        assert_eq!(sandbox.client(&[command, "web"]).code, 0);
    }
    sandbox.write("web.yml", "command: /no/such\n");
    wait_for("the change", PATIENCE, || {
        sandbox.row("web").unwrap()["config"]["status"] == "changed"
    });
    assert_eq!(sandbox.client(&["start", "web"]).code, 1);
    let row = whole_row(&sandbox, "web");
    let (_, history) = row.split_once(r#""history":["#).unwrap();
    // The port of the client is another each time.
    let mut parts = history.split("127.0.0.1:");
    let mut masked = parts.next().unwrap().to_owned();
    for part in parts {
        masked += "PEER";
        masked += part.trim_start_matches(|c: char| c.is_ascii_digit());
    }
    let uid = rustix::process::getuid().as_raw();
    let by = format!(r#"{{"cause":"command","user":{uid},"peer":"PEER"}}"#);
    let ended = format!(
        r#""digest":"DIGEST","started_at":"TIME","started_by":{by},"ended_at":"TIME","exit":{{"signal":"SIGTERM"}},"ended_by":{by}"#
    );
    let why = "cannot start `web`: program `/no/such` not found in `ROOT/load`";
    let expected = format!(
        r#"{{"run":3,"digest":"DIGEST","started_by":{by},"ended_at":"TIME","reason":"{why}"}},{{"run":2,{ended}}},{{"run":1,{ended}}}]}}"#
    );
    assert_eq!(masked, expected);
}

#[test]
fn check_lists_who_lives_counts_the_others_and_with_all_lists_them() {
    let sandbox = Sandbox::knowing(&[("a", SLEEPER), ("b", SLEEPER)]);
    assert_eq!(sandbox.client(&["start", "a"]).code, 0);
    let a = format!(
        r#"{{"name":"a","state":"running","pid":PID,"run":1,"started_at":"TIME","uptime_ms":MS,"restarts":0,"hold":false,{},"exit":null}}"#,
        places("a", "current")
    );
    let b = format!(
        r#"{{"name":"b","state":"stopped","pid":null,"run":null,"started_at":null,"uptime_ms":null,"restarts":0,"hold":false,{},"exit":null}}"#,
        places("b", "current")
    );
    let head = r#"{"host":"ADDRESS","ok":true,"op":"check","children":["#;
    assert_eq!(
        line(&sandbox, &["check"]),
        format!(r#"{head}{a}],"others":1}}"#)
    );
    let all = format!(r#"{head}{a},{b}],"others":0}}"#);
    for form in [
        &["check", "--all"][..],
        &["check", "-a"],
        &["check", "-A"],
        &["check", "all"],
    ] {
        assert_eq!(line(&sandbox, form), all, "{form:?}");
    }
}

#[test]
fn a_missing_loadpath_is_a_note() {
    let sandbox = Sandbox::start("loadpaths: [load, missing]");
    let line = line(&sandbox, &["check"]);
    let head = r#"{"host":"ADDRESS","ok":true,"op":"check","children":[],"others":0,"notes":["#;
    assert!(line.starts_with(head), "{line}");
    assert!(line[head.len()..].contains("ROOT/missing"), "{line}");
}

#[test]
fn stop_all_and_start_all_have_an_object_a_child() {
    let posthook = format!("{SLEEPER}hooks: [posthook: start c]\n");
    let sandbox = Sandbox::knowing(&[("a", SLEEPER), ("b", &posthook), ("c", SLEEPER)]);
    for name in ["a", "b"] {
        assert_eq!(sandbox.client(&["start", name]).code, 0);
    }
    let stopped = r#"{"host":"ADDRESS","ok":true,"op":"stop","children":[{"name":"a","ok":true,"pid":PID,"run":1},{"name":"b","ok":true,"pid":PID,"run":1,"note":"posthook `start c` was skipped: everything is stopped"}],"message":"2 stopped and held"}"#;
    assert_eq!(line(&sandbox, &["stop", "--all"]), stopped);
    let none = r#"{"host":"ADDRESS","ok":true,"op":"stop","children":[],"message":"nothing runs and nothing is due"}"#;
    assert_eq!(line(&sandbox, &["stop", "--all"]), none);
    let released = r#"{"host":"ADDRESS","ok":true,"op":"start","children":[],"message":"nothing to start in mode `quiet`; released: a, b"}"#;
    assert_eq!(line(&sandbox, &["start", "--all"]), released);
}

#[test]
fn a_child_that_start_all_cannot_start_has_its_error_which_is_the_exit_code() {
    let mut sandbox = Sandbox::new("mode: full");
    sandbox.write("a.yml", SLEEPER);
    sandbox.write("b.yml", SLEEPER);
    sandbox.start_server();
    sandbox.wait_state("b", "running");
    assert_eq!(sandbox.client(&["stop", "--all"]).code, 0);
    sandbox.write("b.yml", "command: ./nothing\n");
    let output = sandbox.client(&["start", "--all", "--json"]);
    assert_eq!((output.code, output.stderr.as_str()), (1, ""));
    let line = sandbox.mask(&output.stdout);
    let head = r#"{"host":"ADDRESS","ok":true,"op":"start","children":[{"name":"a","ok":true,"pid":PID,"run":2},{"name":"b","ok":false,"error":{"code":"spawn_failed","message":""#;
    assert!(line.starts_with(head), "{line}");
    let tail = "\"}}],\"message\":\"1 started, 1 not; released: a, b\"}\n";
    assert!(line.ends_with(tail), "{line}");
}

#[test]
fn kill_has_an_object_for_each_child_that_runs_on() {
    let mut sandbox = Sandbox::knowing(&[("a", SLEEPER), ("b", SLEEPER)]);
    assert_eq!(sandbox.client(&["start", "a"]).code, 0);
    let words = r#"{"host":"ADDRESS","ok":true,"op":"kill","children":[{"name":"a","pid":PID,"run":1}],"message":"the server ends; 1 child runs on, and the next start takes it back"}"#;
    assert_eq!(line(&sandbox, &["kill"]), words);
    assert_eq!(sandbox.wait_server(), 0);
    sandbox.start_server();
    let words = r#"{"host":"ADDRESS","ok":true,"op":"kill","children":[],"message":"the server ends; no child is left running"}"#;
    assert_eq!(line(&sandbox, &["kill", "--stop-children"]), words);
    assert_eq!(sandbox.wait_server(), 0);
    assert_eq!(sandbox.processes(), []);
}

#[test]
fn info_has_all_its_fields_in_their_order() {
    let mut sandbox =
        Sandbox::new("name: front\nmode: half\nstartup: [web]\nloadpaths: [load, missing]");
    sandbox.write("web.yml", SLEEPER);
    sandbox.write("all.yml", SLEEPER);
    sandbox.start_server();
    sandbox.wait_state("web", "running");
    let line = line(&sandbox, &["info"]);
    let version = env!("CARGO_PKG_VERSION");
    let head = format!(
        r#"{{"host":"ADDRESS","ok":true,"op":"info","name":"front","id":"SERVER","version":"{version}","pid":PID,"mode":"half","on_exit":"leave","encrypt":false,"keys":[],"listener":"ADDRESS","config":"ROOT/server.yml","loadpaths":[{{"path":"ROOT/load","state":"ok","children":1}},{{"path":"ROOT/missing","state":""#
    );
    let rest = line.strip_prefix(&head).unwrap_or_else(|| panic!("{line}"));
    let middle = r#"","children":0}],"startup":["web"],"state_dir":"ROOT/state","runtime_dir":"ROOT/run","log_dir":"ROOT/logs","faults":["#;
    let (state, rest) = rest.split_once(middle).unwrap_or_else(|| panic!("{line}"));
    assert!(state.contains("missing"), "{state}");
    let (faults, rest) = rest
        .split_once(r#"],"needs_restart":[],"capabilities":{"#)
        .unwrap();
    assert!(faults.contains("ROOT/load/all.yml"), "{faults}");
    let tail = r#"},"started_at":"TIME","uptime_ms":MS,"counts":{"running":1}}"#;
    let capabilities = rest.strip_suffix(tail).unwrap_or_else(|| panic!("{line}"));
    assert!(
        capabilities.contains(r#""watching":"inotify""#),
        "{capabilities}"
    );
    let pid = sandbox.json(&["info"])["pid"].clone();
    assert_eq!(pid, sandbox.server_pid());
}

#[test]
fn every_refusal_has_its_code_its_message_and_its_exit_code() {
    let hook = |other: &str| format!("{SLEEPER}hooks: [prehook: start {other}]\n");
    let failing = format!("{SLEEPER}hooks: [prehook: run false]\n");
    let sandbox = Sandbox::knowing(&[
        ("web", SLEEPER),
        ("bad", "command: 7: 8\n"),
        ("a", &hook("b")),
        ("b", &hook("a")),
        ("hooked", &failing),
        ("lost", &hook("nobody")),
        ("missing", "command: ./nothing\n"),
        ("twice", SLEEPER),
    ]);
    sandbox.write("twice.yaml", SLEEPER);
    assert_eq!(sandbox.client(&["start", "web"]).code, 0);
    let mut met = BTreeSet::new();
    for (verb, child, code, exit) in [
        ("start", "web", "already_running", 1),
        ("restart", "twice", "not_running", 1),
        ("stop", "bad", "not_running", 1),
        ("start", "hooked", "hook_failed", 1),
        ("start", "lost", "hook_failed", 1),
        ("start", "missing", "spawn_failed", 1),
        ("start", "nobody", "unknown_child", 5),
        ("check", "nobody", "unknown_child", 5),
        ("start", "bad", "invalid_config", 6),
        ("trystart", "bad", "invalid_config", 6),
        ("start", "twice", "conflict", 6),
        ("start", "a", "hook_cycle", 6),
    ] {
        let output = sandbox.client(&["--json", verb, child]);
        let head = format!(
            r#"{{"host":"ADDRESS","ok":false,"op":"{verb}","child":"{child}","error":{{"code":"{code}","message":""#
        );
        let line = sandbox.mask(&output.stdout);
        assert!(line.starts_with(&head), "{line}");
        assert_eq!((output.code, output.stderr.as_str()), (exit, ""), "{line}");
        met.insert(code);
    }
    assert_eq!(met.len(), 8);
    assert_eq!(sandbox.processes().len(), 1);
}

#[test]
fn a_refusal_without_a_child_has_none() {
    let sandbox = Sandbox::new("");
    let (_kept, address) = dead_address();
    let on = address.to_string();
    let output = sandbox.client_as_given(&["--json", "stop", "--all", "on", &on]);
    assert_eq!((output.code, output.stderr.as_str()), (7, ""));
    let words = format!(
        "{{\"host\":\"{address}\",\"ok\":false,\"op\":\"stop\",\"error\":{{\"code\":\"unreachable\",\"message\":\"cannot connect to `{address}`: {address}: Connection refused (os error 111)\\nhint: does supervisor-rs-server run there, and on that port?\"}}}}\n"
    );
    assert_eq!(output.stdout, words);
}

#[test]
fn an_answer_may_be_much_longer_than_a_request() {
    const CHILDREN: usize = 1_000;
    let mut sandbox = Sandbox::new("");
    for n in 0..CHILDREN {
        let path = sandbox.loadpath().join(format!("child-{n:04}.yml"));
        std::fs::write(path, SLEEPER).unwrap();
    }
    sandbox.start_server();
    wait_for("all children", PATIENCE, || {
        sandbox.json(&["check"])["others"] == CHILDREN
    });
    let output = sandbox.client(&["check", "--all", "--json"]);
    assert!(output.stdout.len() > 4 * 65_536, "{}", output.stdout.len());
    let answer = sandbox.json(&["check", "--all"]);
    let rows = answer["children"].as_array().unwrap();
    assert_eq!((rows.len(), &answer["others"]), (CHILDREN, &0.into()));
    let names = rows.iter().map(|row| row["name"].as_str().unwrap());
    assert!(names.is_sorted());
}
