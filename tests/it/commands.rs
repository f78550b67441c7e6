//! The table of commands, row by row, as a person at a terminal meets it.
//!
//! Whole outputs are compared: standard output, standard error, exit code. What `--json` says is
//! in `json`, states are in `states_table`, several hosts in `hosts`.

#![allow(clippy::unwrap_used, reason = "what fails here fails its test")]

use std::{
    fs,
    io::Write,
    os::unix::net::UnixStream,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::sandbox::{Output, PATIENCE, SLEEPER, Sandbox, run, skip, wait_for};

/// Runs a command and takes out of what it says what differs from run to run.
fn said(sandbox: &Sandbox, arguments: &[&str]) -> Output {
    let output = sandbox.client(arguments);
    Output {
        stdout: sandbox.mask(&output.stdout),
        stderr: sandbox.mask(&output.stderr),
        code: output.code,
    }
}

fn done(stdout: &str) -> Output {
    Output {
        stdout: stdout.to_owned(),
        stderr: String::new(),
        code: 0,
    }
}

fn refused(code: i32, stderr: &str) -> Output {
    Output {
        stdout: String::new(),
        stderr: stderr.to_owned(),
        code,
    }
}

fn unknown(name: &str) -> Output {
    let words = format!(
        "error[unknown_child]: there is no child `{name}`\nhint: a child is a file: `ROOT/load/{name}.yml`\n"
    );
    refused(5, &words)
}

fn not_running(name: &str) -> Output {
    let words = format!(
        "error[not_running]: `{name}` is not running\n\
         hint: `start {name}` starts it, `trystart {name}` does either\n"
    );
    refused(1, &words)
}

/// The cells of a table, its head first.
fn table(text: &str) -> Vec<Vec<&str>> {
    text.lines()
        .map(|line| {
            line.split("  ")
                .map(str::trim)
                .filter(|c| !c.is_empty())
                .collect()
        })
        .collect()
}

fn pid(sandbox: &Sandbox, name: &str) -> String {
    sandbox.row(name).unwrap()["pid"].to_string()
}

// start

#[test]
fn start_starts_and_says_so() {
    let sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    let expected = done("`web` started: run 1, pid PID\n");
    assert_eq!(said(&sandbox, &["start", "web"]), expected);
    let told = sandbox.wait_processes(1);
    assert_eq!(pid(&sandbox, "web"), told[0].pid.to_string());
}

#[test]
fn start_means_that_the_process_was_started_not_that_it_lives() {
    let sandbox = Sandbox::knowing(&[("job", "command: 'false'\n")]);
    let expected = done("`job` started: run 1, pid PID\n");
    assert_eq!(said(&sandbox, &["start", "job"]), expected);
    assert_eq!(sandbox.wait_state("job", "exited")["exit"]["code"], 1);
}

#[test]
fn start_of_what_runs_is_refused_with_its_run_and_process() {
    let sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    assert_eq!(sandbox.client(&["start", "web"]).code, 0);
    let words = "error[already_running]: `web` is already running: run 1, pid PID\n";
    assert_eq!(said(&sandbox, &["start", "web"]), refused(1, words));
}

#[test]
fn commands_to_a_child_that_is_not_there_say_where_it_would_be() {
    let sandbox = Sandbox::knowing(&[]);
    for verb in ["start", "restart", "trystart", "stop", "check"] {
        assert_eq!(
            said(&sandbox, &[verb, "nobody"]),
            unknown("nobody"),
            "{verb}"
        );
    }
}

#[test]
fn a_slip_of_the_finger_is_told_the_name_that_was_meant() {
    let sandbox = Sandbox::knowing(&[("web", SLEEPER), ("mail", SLEEPER)]);
    for (typed, meant) in [
        ("wbe", "web"),
        ("WEB", "web"),
        ("mails", "mail"),
        ("mial", "mail"),
        ("web.yml", "web"),
        ("mail.yaml", "mail"),
    ] {
        let words = format!(
            "error[unknown_child]: there is no child `{typed}`\nhint: did you mean `{meant}`?\n"
        );
        assert_eq!(said(&sandbox, &["start", typed]), refused(5, &words));
    }
    assert_eq!(sandbox.processes(), []);
}

#[test]
fn a_bad_file_is_refused_with_every_fault_in_it_and_what_runs_runs_on() {
    let sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    assert_eq!(sandbox.client(&["start", "web"]).code, 0);
    let before = sandbox.wait_processes(1);
    sandbox.write("web.yml", "comand: sleep 1\nrepeat: {seconds: 0}\n");
    let faults = "the file of `web` is bad:
ROOT/load/web.yml:1:1: unknown key `comand`
  |
1 | comand: sleep 1
  | ^^^^^^
help: did you mean `command`?
";
    for verb in ["restart", "trystart"] {
        let output = said(&sandbox, &[verb, "web"]);
        let words = format!("error[invalid_config]: {faults}");
        assert!(output.stderr.starts_with(&words), "{output:?}");
        assert!(output.stderr.contains("web.yml:2:19: "), "{output:?}");
        assert_eq!((output.code, output.stdout.as_str()), (6, ""));
    }
    assert_eq!(sandbox.processes(), before);
    assert_eq!(sandbox.client(&["stop", "web"]).code, 0);
    assert_eq!(sandbox.client(&["start", "web"]).code, 6);
    assert_eq!(sandbox.processes(), []);
}

#[test]
fn two_files_of_one_name_are_a_conflict_that_shows_both_and_what_runs_runs_on() {
    let sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    assert_eq!(sandbox.client(&["start", "web"]).code, 0);
    let before = sandbox.wait_processes(1);
    sandbox.write("web.yaml", SLEEPER);
    let words = "error[conflict]: several files declare `web`:
  ROOT/load/web.yaml
  ROOT/load/web.yml
hint: remove or rename all but one
";
    for verb in ["restart", "trystart"] {
        assert_eq!(said(&sandbox, &[verb, "web"]), refused(6, words), "{verb}");
    }
    assert_eq!(sandbox.processes(), before);
    assert_eq!(sandbox.client(&["stop", "web"]).code, 0);
    assert_eq!(said(&sandbox, &["start", "web"]), refused(6, words));
    sandbox.remove("web.yaml");
    assert_eq!(sandbox.client(&["start", "web"]).code, 0);
}

#[test]
fn a_circle_of_hooks_is_refused_before_anything_runs() {
    let hook = |other: &str| format!("{SLEEPER}hooks: [prehook: start {other}]\n");
    let sandbox = Sandbox::knowing(&[("a", &hook("b")), ("b", &hook("a"))]);
    let words = "error[hook_cycle]: the hooks run in a circle: a -> start b -> start a\n";
    for verb in ["start", "trystart"] {
        assert_eq!(said(&sandbox, &[verb, "a"]), refused(6, words), "{verb}");
    }
    assert_eq!(sandbox.processes(), []);
}

#[test]
fn a_failed_prehook_is_told_and_nothing_is_started() {
    let yaml = format!("{SLEEPER}hooks: [prehook: \"run sh -c 'exit 3'\"]\n");
    let sandbox = Sandbox::knowing(&[("web", &yaml)]);
    let output = said(&sandbox, &["start", "web"]);
    assert_eq!((output.code, output.stdout.as_str()), (1, ""));
    let words =
        "error[hook_failed]: the prehook `run sh -c 'exit 3'` of `web` failed: exit code 3\n";
    assert_eq!(output.stderr, words);
    assert_eq!(sandbox.processes(), []);
}

#[test]
fn a_program_that_is_not_there_cannot_be_started_and_is_named() {
    let sandbox = Sandbox::knowing(&[("web", "command: ./nothing\n")]);
    let output = said(&sandbox, &["start", "web"]);
    assert_eq!((output.code, output.stdout.as_str()), (1, ""));
    assert!(
        output.stderr.starts_with("error[spawn_failed]: "),
        "{output:?}"
    );
    assert!(
        output.stderr.contains("ROOT/load/./nothing") || output.stderr.contains("`./nothing`"),
        "{output:?}"
    );
}

#[test]
fn start_uses_what_stands_in_the_file_at_that_very_moment() {
    uses_the_newest("start", Written::Renamed);
}

#[test]
fn trystart_uses_what_stands_in_the_file_at_that_very_moment() {
    uses_the_newest("trystart", Written::InPlace);
}

#[derive(Debug, Clone, Copy)]
enum Written {
    Renamed,
    InPlace,
}

/// Writes and starts without a pause, and looks at what then runs.
fn uses_the_newest(verb: &str, written: Written) {
    const ROUNDS: usize = 50;
    let sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    for round in 0..ROUNDS {
        let seconds = 1_000 + round;
        let yaml = format!("command: [sleep, '{seconds}']\n");
        match written {
            Written::Renamed => sandbox.write("web.yml", &yaml),
            Written::InPlace => fs::write(sandbox.loadpath().join("web.yml"), yaml).unwrap(),
        }
        let output = sandbox.client(&[verb, "web"]);
        assert_eq!(output.code, 0, "round {round}: {output:?}");
        let found = sandbox.wait_processes(1);
        let command = &found[0].command;
        assert_eq!(
            command.trim_end(),
            format!("sleep {seconds}"),
            "round {round}"
        );
        if verb == "start" {
            assert_eq!(sandbox.client(&["stop", "web"]).code, 0);
        }
    }
}

#[test]
fn start_knows_a_file_that_was_written_just_now() {
    let sandbox = Sandbox::knowing(&[]);
    for round in 0..20 {
        let name = format!("new-{round}");
        sandbox.write(&format!("{name}.yml"), SLEEPER);
        let output = sandbox.client(&["start", &name]);
        assert_eq!(output.code, 0, "{output:?}");
        sandbox.remove(&format!("{name}.yml"));
        assert_eq!(sandbox.client(&["stop", &name]).code, 0);
        let gone = sandbox.client(&["start", &name]);
        assert_eq!(gone.code, 5, "{gone:?}");
    }
}

#[test]
fn start_uses_what_stands_in_the_servers_file_at_that_very_moment() {
    let mut sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    for round in 0..20 {
        let (settings, expected) = match round % 2 {
            0 => ("defaults:\n  output: inherit", "inherit".to_owned()),
            _ => ("", sandbox.log_dir().join("web.out").display().to_string()),
        };
        sandbox.configure(settings);
        let output = sandbox.client(&["trystart", "web"]);
        assert_eq!(output.code, 0, "round {round}: {output:?}");
        let row = sandbox.row("web").unwrap();
        assert_eq!(row["output"]["stdout"], expected, "round {round}");
        assert_eq!(row["config"]["status"], "current", "round {round}");
    }
}

#[test]
fn a_child_whose_file_is_gone_can_be_stopped_but_not_started() {
    let sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    assert_eq!(sandbox.client(&["start", "web"]).code, 0);
    sandbox.remove("web.yml");
    let words = "error[unknown_child]: no file declares `web` any more; what runs of it runs on\n";
    for verb in ["restart", "trystart"] {
        assert_eq!(said(&sandbox, &[verb, "web"]), refused(5, words), "{verb}");
    }
    assert_eq!(sandbox.client(&["start", "web"]).code, 1);
    let row = sandbox.row("web").unwrap();
    assert_eq!(row["config"]["status"], "removed");
    assert_eq!((&row["state"], &row["run"]), (&"running".into(), &1.into()));
    let words = "`web` stopped: run 1, pid PID, SIGTERM\n";
    assert_eq!(said(&sandbox, &["stop", "web"]), done(words));
    assert_eq!(sandbox.client(&["start", "web"]).code, 5);
    assert_eq!(sandbox.client(&["check", "web"]).code, 3);
}

// restart and trystart

#[test]
fn restart_replaces_the_run_and_says_how_the_old_one_ended() {
    let sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    assert_eq!(said(&sandbox, &["restart", "web"]), not_running("web"));
    assert_eq!(sandbox.client(&["start", "web"]).code, 0);
    let before = sandbox.wait_processes(1);
    let words = "`web` restarted: run 2, pid PID (before: run 1, pid PID, SIGTERM)\n";
    assert_eq!(said(&sandbox, &["restart", "web"]), done(words));
    let after = sandbox.wait_processes(1);
    assert_ne!(before[0].pid, after[0].pid);
}

#[test]
fn a_restart_whose_new_run_cannot_start_leaves_the_old_one() {
    let sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    assert_eq!(sandbox.client(&["start", "web"]).code, 0);
    let before = sandbox.wait_processes(1);
    for yaml in [
        "command: ./nothing\n".to_owned(),
        format!("{SLEEPER}workdir: nowhere\n"),
        format!("{SLEEPER}output: [stdout: /nowhere/web.log]\n"),
    ] {
        sandbox.write("web.yml", &yaml);
        for verb in ["restart", "trystart"] {
            let output = said(&sandbox, &[verb, "web"]);
            assert_eq!((output.code, output.stdout.as_str()), (1, ""), "{output:?}");
            let words = &output.stderr;
            assert!(
                words.starts_with("error[spawn_failed]: "),
                "{yaml}: {words}"
            );
            assert!(
                words.ends_with("\nnote: what ran runs on\n"),
                "{yaml}: {words}"
            );
            assert_eq!(sandbox.processes(), before);
        }
    }
    let row = sandbox.row("web").unwrap();
    assert_eq!((&row["state"], &row["run"]), (&"running".into(), &1.into()));
    assert_eq!(row["config"]["status"], "changed");
}

#[test]
fn trystart_is_idempotent() {
    let sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    let first = done("`web` started: run 1, pid PID\n");
    assert_eq!(said(&sandbox, &["trystart", "web"]), first);
    for run in 2..5 {
        let old = run - 1;
        let words =
            format!("`web` restarted: run {run}, pid PID (before: run {old}, pid PID, SIGTERM)\n");
        assert_eq!(said(&sandbox, &["trystart", "web"]), done(&words));
        sandbox.wait_processes(1);
    }
}

// stop and start of all

#[test]
fn stop_stops_holds_and_says_how_it_ended() {
    let sandbox = Sandbox::knowing(&[(
        "web",
        "command: [sh, -c, 'trap \"exit 7\" TERM; echo up; while :; do sleep 0.1; done']\n",
    )]);
    assert_eq!(sandbox.client(&["start", "web"]).code, 0);
    sandbox.wait_output("web", "up");
    let words = "`web` stopped: run 1, pid PID, exit code 7\n";
    assert_eq!(said(&sandbox, &["stop", "web"]), done(words));
    assert_eq!(sandbox.processes(), []);
    let words = "error[not_running]: `web` is not running\n";
    assert_eq!(said(&sandbox, &["stop", "web"]), refused(1, words));
}

#[test]
fn stop_runs_the_posthook_after_the_end_and_tells_of_its_failure() {
    let mark = "run sh -c 'echo stopped > mark'";
    let good = format!("{SLEEPER}hooks: [posthook: \"{mark}\"]\n");
    let bad = format!("{SLEEPER}hooks: [posthook: \"run sh -c 'exit 4'\"]\n");
    let sandbox = Sandbox::knowing(&[("good", &good), ("bad", &bad)]);
    for name in ["good", "bad"] {
        assert_eq!(sandbox.client(&["start", name]).code, 0);
    }
    let words = "`good` stopped: run 1, pid PID, SIGTERM\n";
    assert_eq!(said(&sandbox, &["stop", "good"]), done(words));
    assert!(sandbox.loadpath().join("mark").exists());
    let output = said(&sandbox, &["stop", "bad"]);
    let words = "`bad` stopped: run 1, pid PID, SIGTERM\nposthook failed: ";
    assert!(output.stdout.starts_with(words), "{output:?}");
    assert_eq!((output.code, output.stderr.as_str()), (0, ""));
    assert_eq!(sandbox.row("bad").unwrap()["hold"], true);
}

#[test]
fn stop_all_stops_everything_in_each_of_its_forms_and_is_never_refused() {
    let sandbox = Sandbox::knowing(&[("a", SLEEPER), ("b", SLEEPER), ("c", SLEEPER)]);
    for form in [
        &["stop", "--all"][..],
        &["stop", "-A"],
        &["stop", "all"],
        &["STOP", "All"],
    ] {
        for name in ["a", "b"] {
            assert_eq!(sandbox.client(&["trystart", name]).code, 0);
        }
        let pids = [pid(&sandbox, "a"), pid(&sandbox, "b")];
        let output = sandbox.client(form);
        assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{form:?}");
        let runs = sandbox.row("a").unwrap()["run"].to_string();
        let expected = [
            vec!["2 stopped and held"],
            vec!["NAME", "RESULT", "PID", "RUN"],
            vec!["a", "ok", &pids[0], &runs],
            vec!["b", "ok", &pids[1], &runs],
        ];
        assert_eq!(table(&output.stdout), expected, "{form:?}");
        assert_eq!(sandbox.processes(), []);
        let none = done("nothing runs and nothing is due\n");
        assert_eq!(said(&sandbox, form), none, "{form:?}");
    }
}

#[test]
fn start_all_releases_every_hold_and_starts_what_the_mode_wants() {
    for (mode, started) in [
        ("mode: quiet", &[][..]),
        ("mode: half\nstartup: [a, b]", &["a", "b"]),
        ("mode: full", &["a", "b", "c"]),
        ("mode: sync", &["a", "b", "c"]),
    ] {
        let sandbox = Sandbox::start(mode);
        for name in ["a", "b", "c"] {
            sandbox.write(&format!("{name}.yml"), SLEEPER);
            wait_for(name, PATIENCE, || sandbox.row(name).is_some());
            let _may_run_already = sandbox.client(&["start", name]);
        }
        assert_eq!(sandbox.client(&["stop", "--all"]).code, 0);
        for name in ["a", "b", "c"] {
            assert_eq!(sandbox.row(name).unwrap()["hold"], true, "{mode}");
        }
        let form = match mode {
            "mode: quiet" => &["start", "all"][..],
            "mode: full" => &["START", "-A"],
            _ => &["start", "--all"],
        };
        let output = sandbox.client(form);
        assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{mode}");
        let first = output.stdout.lines().next().unwrap();
        let expected = match started.len() {
            0 => "nothing to start in mode `quiet`; released: a, b, c".to_owned(),
            count => format!("{count} started; released: a, b, c"),
        };
        assert_eq!(first, expected, "{mode}");
        let live = sandbox.json(&["check"]);
        let rows = live["children"].as_array().unwrap().iter();
        let names: Vec<&str> = rows.map(|row| row["name"].as_str().unwrap()).collect();
        assert_eq!(names, started, "{mode}");
        for name in ["a", "b", "c"] {
            assert_eq!(sandbox.row(name).unwrap()["hold"], false, "{mode}");
        }
    }
}

// check, info, kill, help

#[test]
fn check_shows_what_lives_and_counts_the_others() {
    let sandbox = Sandbox::knowing(&[("a", SLEEPER), ("b", SLEEPER), ("c", "command: 'false'\n")]);
    let none = "no child has a live process\n3 others without a live process, `check --all` shows them too\n";
    assert_eq!(said(&sandbox, &["check"]), done(none));
    assert_eq!(sandbox.client(&["start", "a"]).code, 0);
    assert_eq!(sandbox.client(&["start", "c"]).code, 0);
    sandbox.wait_state("c", "exited");
    let output = sandbox.client(&["check"]);
    assert_eq!((output.code, output.stderr.as_str()), (0, ""));
    let lines = table(&output.stdout);
    assert_eq!(
        lines[0],
        [
            "NAME", "STATE", "PID", "RUN", "UPTIME", "RESTARTS", "CONFIG"
        ]
    );
    let a = pid(&sandbox, "a");
    assert_eq!(lines[1][..4], ["a", "running", &a, "1"]);
    assert_eq!(lines[1][5..], ["0", "current"]);
    assert_eq!(
        lines[2],
        ["2 others without a live process, `check --all` shows them too"]
    );
    assert_eq!(lines.len(), 3);

    for form in [&["check", "--all"][..], &["check", "-a"], &["check", "all"]] {
        let output = sandbox.client(form);
        assert_eq!((output.code, output.stderr.as_str()), (0, ""));
        let lines = table(&output.stdout);
        let head = [
            "NAME", "STATE", "PID", "RUN", "UPTIME", "RESTARTS", "CONFIG", "EXIT",
        ];
        assert_eq!(lines[0], head, "{form:?}");
        assert_eq!(lines[1][..4], ["a", "running", &a, "1"]);
        assert_eq!(lines[2], ["b", "stopped", "0", "current"]);
        assert_eq!(lines[3], ["c", "exited", "1", "0", "current", "code 1"]);
        assert_eq!(lines.len(), 4, "{form:?}");
    }
    let nothing = Sandbox::knowing(&[]);
    assert_eq!(said(&nothing, &["check"]), done("no children are known\n"));
}

#[test]
fn check_of_one_exits_with_3_when_it_has_no_live_process() {
    let sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    let output = sandbox.client(&["check", "web"]);
    assert_eq!((output.code, output.stderr.as_str()), (3, ""));
    assert_eq!(sandbox.client(&["start", "web"]).code, 0);
    assert_eq!(sandbox.client(&["check", "web"]).code, 0);
    assert_eq!(sandbox.client(&["stop", "web"]).code, 0);
    assert_eq!(sandbox.client(&["check", "web"]).code, 3);
}

#[test]
fn check_of_one_shows_everything_known() {
    let yaml = "command: [sleep, '300']\nworkdir: /\noutput:\n  - stdout: sub.log\n\
                hooks:\n  - posthook: stop db\nrepeat: {action: trystart, seconds: 3600}\n";
    let sandbox = Sandbox::knowing(&[("web", yaml), ("db", SLEEPER)]);
    assert_eq!(sandbox.client(&["start", "web"]).code, 0);
    let output = said(&sandbox, &["check", "web"]);
    let (keys, history) = output.stdout.split_once("\n\n").unwrap();
    let lines: Vec<(&str, &str)> = keys
        .lines()
        .map(|line| line.split_once("  ").map(|(k, v)| (k, v.trim())).unwrap())
        .collect();
    let real = pid(&sandbox, "web");
    let value = |key: &str| lines.iter().find(|(k, _)| *k == key).map(|(_, v)| *v);
    assert_eq!(value("name"), Some("web"));
    assert_eq!(value("state"), Some("running"));
    assert_eq!(value("pid"), Some(real.as_str()));
    assert_eq!(value("run"), Some("1"));
    assert!(
        value("started").unwrap().starts_with("TIME (up "),
        "{output:?}"
    );
    assert_eq!(value("restarts"), Some("0"));
    assert_eq!(value("next"), Some("trystart at TIME"));
    assert_eq!(value("config"), Some("ROOT/load/web.yml (current)"));
    assert_eq!(value("digest").map(str::len), Some(32));
    assert_eq!(value("stdout"), Some("ROOT/logs/sub.log"));
    assert_eq!(value("stderr"), Some("ROOT/logs/web.err"));
    assert_eq!(value("command"), Some("sleep 300"));
    assert_eq!(value("workdir"), Some("/"));
    assert_eq!(value("posthook"), Some("stop db"));
    assert_eq!(value("repeat"), Some("trystart every 1h"));
    assert_eq!(lines.len(), 15, "{lines:?}");
    let history: Vec<&str> = history.lines().collect();
    assert_eq!(history.len(), 2, "{history:?}");
    assert_eq!(
        history[0].split_whitespace().collect::<Vec<_>>(),
        ["RUN", "STARTED", "STARTED", "BY"]
    );
    let run = "1    TIME";
    let by = format!("command, user {}, ", rustix::process::getuid().as_raw());
    assert!(history[1].starts_with(run), "{history:?}");
    assert!(history[1].contains(&by), "{history:?}");

    assert_eq!(sandbox.client(&["stop", "web"]).code, 0);
    let output = said(&sandbox, &["check", "web"]);
    assert_eq!(output.code, 3);
    for line in ["state     stopped, held", "exit      SIGTERM at TIME"] {
        assert!(output.stdout.contains(line), "{output:?}");
    }
    let hold = "hold      since TIME, `start web` releases it";
    assert!(output.stdout.contains(hold), "{output:?}");
}

#[test]
fn info_shows_the_server() {
    let mut sandbox = Sandbox::new("mode: half\nname: front\nstartup: [web]");
    sandbox.write("web.yml", SLEEPER);
    sandbox.write("bad.yml", "x\n");
    sandbox.start_server();
    sandbox.wait_state("web", "running");
    let output = said(&sandbox, &["info"]);
    assert_eq!((output.code, output.stderr.as_str()), (0, ""));
    let server = sandbox.server_pid().to_string();
    for line in [
        "name          front".to_owned(),
        "id            SERVER".to_owned(),
        format!("version       {}", env!("CARGO_PKG_VERSION")),
        format!("pid           {server}"),
        "listens at    ADDRESS".to_owned(),
        "encrypt       off".to_owned(),
        "mode          half".to_owned(),
        "on exit       leave".to_owned(),
        "config        ROOT/server.yml".to_owned(),
        "loadpaths     ROOT/load (ok, 2 children)".to_owned(),
        "startup       web".to_owned(),
        "state dir     ROOT/state".to_owned(),
        "runtime dir   ROOT/run".to_owned(),
        "log dir       ROOT/logs".to_owned(),
        "children      1 running, 1 stopped".to_owned(),
    ] {
        assert!(
            output.stdout.lines().any(|l| l == line),
            "{line}: {output:?}"
        );
    }
    let started = "started       TIME (up ";
    assert!(output.stdout.contains(started), "{output:?}");
    assert!(output.stdout.contains("watching: inotify"), "{output:?}");
}

#[test]
fn kill_ends_the_server_and_names_who_runs_on() {
    let mut sandbox = Sandbox::knowing(&[("a", SLEEPER), ("b", SLEEPER), ("c", SLEEPER)]);
    for name in ["a", "b"] {
        assert_eq!(sandbox.client(&["start", name]).code, 0);
    }
    let pids = [pid(&sandbox, "a"), pid(&sandbox, "b")];
    let before = sandbox.wait_processes(2);
    let output = sandbox.client(&["kill"]);
    assert_eq!((output.code, output.stderr.as_str()), (0, ""));
    let expected = [
        vec!["the server ends; 2 children run on, and the next start takes them back"],
        vec!["NAME", "PID", "RUN"],
        vec!["a", &pids[0], "1"],
        vec!["b", &pids[1], "1"],
    ];
    assert_eq!(table(&output.stdout), expected);
    assert_eq!(sandbox.wait_server(), 0);
    assert_eq!(sandbox.processes(), before);
    sandbox.start_server();
    assert_eq!([pid(&sandbox, "a"), pid(&sandbox, "b")], pids);
    let output = sandbox.client(&["kill", "--stop-children"]);
    assert_eq!(output, done("the server ends; no child is left running\n"));
    assert_eq!(sandbox.processes(), []);
    assert_eq!(sandbox.wait_server(), 0);
}

#[test]
fn help_and_versions_go_to_standard_output() {
    let sandbox = Sandbox::new("");
    let help = sandbox.client_as_given(&["--help"]);
    assert_eq!((help.code, help.stderr.as_str()), (0, ""));
    assert!(
        help.stdout
            .contains("\nUsage: supervisor-rs-client COMMAND")
    );
    for form in [&["help"][..], &["HELP"], &["-h"], &["help", "start"]] {
        assert_eq!(sandbox.client_as_given(form), help, "{form:?}");
    }
    let version = concat!("supervisor-rs-client ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(sandbox.client_as_given(&["--version"]), done(version));
    let version = concat!("supervisor-rs-server ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(sandbox.server_to_end(&["--version"]), done(version));
    let help = sandbox.server_to_end(&["--help"]);
    assert_eq!((help.code, help.stderr.as_str()), (0, ""));
}

// The grammar

#[test]
fn the_grammar_is_understood_in_all_its_forms() {
    let sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    let address = sandbox.address().to_string();
    let (comma, space) = (
        format!("{address},{address}"),
        format!("{address} {address}"),
    );
    let short = format!("-o{address}");
    let long = format!("--on={address}");
    for arguments in [
        &["trystart", "web", "on", &address][..],
        &["TRYSTART", "web", "ON", &address],
        &["TryStart", "web", "oN", &address],
        &["trystart", "web", "-o", &address],
        &["trystart", "web", &short],
        &["trystart", "web", "--on", &address],
        &["trystart", "web", &long],
        &["-o", &address, "trystart", "web"],
        // A host that is named twice is asked once.
        &["trystart", "web", "on", &comma],
        &["trystart", "web", "on", &space],
        &["trystart", "web", "on", &address, "on", &address],
        &["trystart", "web", "on", &address, "-o", &address],
        &["trystart", "web", "on", &format!("{address},"), &address],
    ] {
        let output = sandbox.client_as_given(arguments);
        assert_eq!(
            (output.code, output.stderr.as_str()),
            (0, ""),
            "{arguments:?}"
        );
        assert_eq!(output.stdout.lines().count(), 1, "{output:?}");
    }
    assert_eq!(sandbox.row("web").unwrap()["run"], 13);
    // A child's name is as it is.
    assert_eq!(sandbox.client(&["start", "WEB"]).code, 5);
}

#[test]
fn a_wrong_command_line_exits_with_2_says_what_was_meant_and_asks_nobody() {
    let sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    for (arguments, says) in [
        (&[][..], "a command is missing"),
        (
            &["strat", "web"],
            "there is no command `strat`; did you mean `start`?",
        ),
        (
            &["restrat", "web"],
            "there is no command `restrat`; did you mean `restart`?",
        ),
        (
            &["status"],
            "there is no command `status`; did you mean `check`?",
        ),
        (
            &["start"],
            "`start` needs the name of a child: `start NAME`, or `start --all`",
        ),
        (
            &["restart", "all"],
            "`restart` takes one child, there is no `restart all`",
        ),
        (
            &["kill", "web"],
            "`kill` takes no name: it ends the server; did you mean `stop web`?",
        ),
        (
            &["stop", "web", "--all"],
            "`stop` takes a name or all, not both: `stop web` or `stop --all`",
        ),
        (
            &["kill", "--all"],
            "`--all` does not go with `kill`; did you mean `--stop-children`?",
        ),
        (
            &["start", "web", "with"],
            "`with` needs a key: `with KEY.pem`",
        ),
        (
            &["start", "web", "--strict"],
            "`--strict` is about signed commands, and there is no key: `with KEY.pem` is missing",
        ),
        (
            &["start", "web", "--forget", "host"],
            "`--forget` stands alone: `supervisor-rs-client --forget HOST[,HOST…]` asks no server",
        ),
        (
            &["start", "web", "with", "a", "with", "b"],
            "a command is signed with one key, not with 2: one `with KEY.pem` only",
        ),
    ] {
        let output = sandbox.client(arguments);
        let usage = "Usage: supervisor-rs-client COMMAND [NAME] [on HOST[,HOST…]]… [with KEY.pem]";
        let words = format!("error: {says}\n\n{usage}\n\nFor more information, try '--help'.\n");
        assert_eq!(output, refused(2, &words), "{arguments:?}");
    }
    for arguments in [
        &["check", "--jsn"][..],
        &["check", "on"],
        &["check", "on", "a:b"],
        &["start", "../x"],
        &["start", "a b"],
    ] {
        let output = sandbox.client_as_given(arguments);
        assert_eq!(
            (output.code, output.stdout.as_str()),
            (2, ""),
            "{arguments:?}"
        );
        assert!(output.stderr.starts_with("error: "), "{output:?}");
    }
    assert_eq!(sandbox.row("web").unwrap()["run"], Value::Null);
}

#[test]
fn the_environment_gives_the_hosts_unless_the_line_does() {
    let sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    let address = sandbox.address().to_string();
    let asked = |on: &str, arguments: &[&str]| {
        let mut command = sandbox.client_command(arguments);
        command.env("SUPERVISOR_RS_ON", on);
        run(command)
    };
    let started = asked(&address, &["start", "web"]);
    assert_eq!(
        sandbox.mask(&started.stdout),
        "`web` started: run 1, pid PID\n"
    );
    // The line's hosts take the place of the environment's, they do not join them.
    let checked = asked("127.0.0.1:1", &["check", "web", "on", &address]);
    assert_eq!((checked.code, checked.stderr.as_str()), (0, ""));
    let twice = asked(&format!("{address}, 127.0.0.1:1"), &["check", "web"]);
    assert_eq!(twice.code, 7, "{twice:?}");
    assert!(
        twice.stdout.starts_with(&format!("{address}:\n")),
        "{twice:?}"
    );
    let nonsense = asked("-x", &["check", "web"]);
    assert_eq!((nonsense.code, nonsense.stdout.as_str()), (2, ""));
}

#[test]
fn a_key_that_cannot_be_read_is_told_before_anybody_is_asked() {
    let sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    let address = sandbox.address().to_string();
    let mut command = sandbox.client_command(&["start", "web", "on", &address]);
    command.env("SUPERVISOR_RS_KEY", "key.pem");
    let output = run(command);
    assert_eq!((output.code, output.stdout.as_str()), (2, ""));
    let words = "error: there is no key file `key.pem`\n";
    assert!(output.stderr.starts_with(words), "{output:?}");
    assert_eq!(sandbox.row("web").unwrap()["run"], Value::Null);
    // One that is empty counts as not set.
    let mut command = sandbox.client_command(&["start", "web", "on", &address]);
    command
        .env("SUPERVISOR_RS_KEY", "")
        .env("SUPERVISOR_RS_ON", "");
    assert_eq!(run(command).code, 0);
}

// Streams

#[test]
fn nothing_is_coloured_that_goes_into_a_pipe_and_on_a_terminal_no_color_is_heeded() {
    let sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    assert_eq!(sandbox.client(&["start", "web"]).code, 0);
    let address = sandbox.address().to_string();
    let mut piped = sandbox.client_command(&["check", "on", &address]);
    piped.env_remove("NO_COLOR").env("TERM", "xterm");
    let piped = run(piped);
    assert!(!piped.stdout.contains('\u{1b}'), "{piped:?}");

    if Command::new("script").arg("--version").output().is_err() {
        return skip("`script` is not installed, so there is no terminal");
    }
    let on_terminal = |no_color: Option<&str>, term: &str| {
        let client = env!("CARGO_BIN_EXE_supervisor-rs-client");
        let mut command = Command::new("script");
        let line = format!("'{client}' check on {address}");
        command
            .args(["-qec", &line, "/dev/null"])
            .stdin(Stdio::null());
        command.env("TERM", term).env_remove("NO_COLOR");
        if let Some(value) = no_color {
            command.env("NO_COLOR", value);
        }
        run(command).stdout
    };
    let coloured = on_terminal(None, "xterm");
    assert!(coloured.contains("\u{1b}[1mNAME\u{1b}[0m"), "{coloured:?}");
    assert!(
        coloured.contains("\u{1b}[32mrunning\u{1b}[0m"),
        "{coloured:?}"
    );
    for (no_color, term) in [(Some("1"), "xterm"), (None, "dumb")] {
        let plain = on_terminal(no_color, term);
        assert!(plain.contains("running"), "{plain:?}");
        assert!(!plain.contains("\u{1b}["), "{plain:?}");
    }
    // https://no-color.org: an empty NO_COLOR is none.
    assert!(on_terminal(Some(""), "xterm").contains("\u{1b}["));
}

#[test]
fn a_pipe_that_nobody_reads_is_silent_and_keeps_no_command_from_the_server() {
    let sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    let address = sandbox.address().to_string();
    for arguments in [
        &["start", "web", "on", &address][..],
        &["check", "on", &address],
        &["check", "web", "--json", "on", &address],
        &["info", "on", &address],
        &["--help"],
    ] {
        let (reader, writer) = UnixStream::pair().unwrap();
        drop(reader);
        let mut command = sandbox.client_command(arguments);
        let writer: std::os::fd::OwnedFd = writer.into();
        let output = command
            .stdout(writer)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
    }
    assert_eq!(sandbox.row("web").unwrap()["state"], "running");
}

#[test]
fn a_full_disk_under_the_answer_is_told_and_fails() {
    let Ok(mut full) = fs::File::options().write(true).open("/dev/full") else {
        return skip("there is no /dev/full");
    };
    assert!(full.write_all(b"x").is_err());
    let sandbox = Sandbox::knowing(&[("web", SLEEPER)]);
    let address = sandbox.address().to_string();
    let mut command = sandbox.client_command(&["start", "web", "on", &address]);
    let output = command
        .stdout(full)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        words.starts_with("error: cannot print the answer: "),
        "{words}"
    );
    assert_eq!(sandbox.row("web").unwrap()["state"], "running");
}

#[test]
fn the_servers_log_goes_to_standard_error_and_nothing_to_standard_output() {
    let mut sandbox = Sandbox::new("mode: sync");
    sandbox.write("web.yml", SLEEPER);
    let path = sandbox.server_yml();
    let (out, err) = (sandbox.root().join("out"), sandbox.root().join("err"));
    let mut server = Command::new(env!("CARGO_BIN_EXE_supervisor-rs-server"))
        .arg(path)
        .args(["--log-format", "json"])
        .stdin(Stdio::null())
        .stdout(fs::File::create(&out).unwrap())
        .stderr(fs::File::create(&err).unwrap())
        .spawn()
        .unwrap();
    let log = || fs::read_to_string(&err).unwrap_or_default();
    wait_for("the child's start in the log", PATIENCE, || {
        log().contains("\"started\"")
    });
    let killed = sandbox.client(&["kill", "--stop-children"]);
    assert_eq!(killed.code, 0, "{killed:?}");
    assert_eq!(server.wait().unwrap().code(), Some(0));
    assert_eq!(fs::read_to_string(&out).unwrap(), "");
    for line in log().lines() {
        let line: Value = serde_json::from_str(line).expect("a JSON object a line");
        assert!(line.is_object());
    }
    sandbox.expect_leftovers();
}

#[test]
fn the_client_logs_what_it_is_asked_to_and_nothing_else_and_to_standard_error() {
    let sandbox = Sandbox::start("mode: sync");
    let quiet = sandbox.client(&["check"]);
    assert_eq!((quiet.code, quiet.stderr.as_str()), (0, ""));
    let asked = sandbox.client(&["check", "--log", "debug"]);
    assert_eq!((asked.code, &asked.stdout), (0, &quiet.stdout));
    assert!(asked.stderr.contains("DEBUG connected "), "{asked:?}");
    let json = sandbox.client(&["check", "--log", "debug", "--log-format", "json"]);
    let line: Value = serde_json::from_str(json.stderr.trim()).expect("a JSON object");
    assert_eq!(line["message"], "connected");
    let wrong = sandbox.client(&["check", "--log", "a=b=c"]);
    assert_eq!((wrong.code, wrong.stdout.as_str()), (2, ""));
    let words = "error: `a=b=c` is not a log filter: ";
    assert!(wrong.stderr.starts_with(words), "{wrong:?}");
}
