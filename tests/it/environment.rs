//! What a child finds when it begins: directory, streams, descriptors, environment, signals.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::{
    fs::{CWD, Mode, mkfifoat},
    process::{Pid, Signal, kill_process},
};
use serde_json::json;

use crate::sandbox::{
    PATIENCE, SLEEPER, Sandbox, run, script, skip, status_of, wait_for, wait_lines,
};

/// Starts a child that sleeps; returns its process.
fn started(sandbox: &Sandbox, name: &str) -> i32 {
    let pid = sandbox.done(&["trystart", name])["pid"].as_i64().unwrap();
    i32::try_from(pid).unwrap()
}

fn link_of(pid: i32, name: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/{name}")).unwrap()
}

fn environment_of(pid: i32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).unwrap();
    let variables = bytes.split(|byte| *byte == 0).filter(|v| !v.is_empty());
    variables
        .map(|v| String::from_utf8(v.to_vec()).unwrap())
        .collect()
}

fn descriptors_of(pid: i32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn a_child_begins_in_its_files_folder_as_listed() {
    let sandbox = Sandbox::new("mode: quiet");
    // The loadpath is a link, as in a deployment that is swapped.
    fs::remove_dir(sandbox.loadpath()).unwrap();
    for release in ["one", "two"] {
        fs::create_dir(sandbox.root().join(release)).unwrap();
        fs::write(sandbox.root().join(release).join("web.yml"), SLEEPER).unwrap();
    }
    symlink("one", sandbox.loadpath()).unwrap();
    let mut sandbox = sandbox;
    sandbox.start_server();
    let pid = started(&sandbox, "web");
    let root = sandbox.root().canonicalize().unwrap();
    assert_eq!(link_of(pid, "cwd"), root.join("one"));
    let row = sandbox.json(&["check", "web"])["children"][0].clone();
    assert_eq!(
        row["details"]["workdir"],
        sandbox.loadpath().to_str().unwrap()
    );
    assert_eq!(
        row["config"]["path"],
        sandbox.loadpath().join("web.yml").to_str().unwrap()
    );

    symlink("two", sandbox.root().join("next")).unwrap();
    fs::rename(sandbox.root().join("next"), sandbox.loadpath()).unwrap();
    let pid = started(&sandbox, "web");
    assert_eq!(
        link_of(pid, "cwd"),
        root.join("two"),
        "the link is followed at each start"
    );
    let digest = sandbox.row("web").unwrap()["config"]["digest"].clone();
    assert_eq!(
        digest, row["config"]["digest"],
        "the folder is no part of the meaning"
    );
}

#[test]
fn a_working_directory_may_be_named_and_relative_to_the_file() {
    let sandbox = Sandbox::start("mode: quiet");
    let root = sandbox.root().canonicalize().unwrap();
    fs::create_dir(root.join("data")).unwrap();
    fs::write(root.join("data/here"), "#!/bin/sh\nexec sleep 300\n").unwrap();
    let mut mode = Command::new("chmod");
    mode.arg("755").arg(root.join("data/here"));
    assert_eq!(run(mode).code, 0);
    for workdir in ["../data", root.join("data").to_str().unwrap()] {
        // A program with a slash is relative to the working directory.
        sandbox.write("web.yml", &format!("command: ./here\nworkdir: {workdir}\n"));
        let pid = started(&sandbox, "web");
        assert_eq!(link_of(pid, "cwd"), root.join("data"));
    }
    // Begun and replaced by `sleep` a moment later.
    wait_for("the program", PATIENCE, || {
        sandbox
            .processes()
            .iter()
            .all(|process| process.command.starts_with("sleep"))
    });
}

#[test]
fn a_child_leads_a_group_and_has_three_descriptors_whatever_the_server_was_given() {
    let give = "exec 7</etc/passwd 8>>/dev/null 9<>/dev/zero; exec \"$@\"";
    let mut sandbox = Sandbox::new("mode: quiet").within(&["sh", "-c", give, "sh"]);
    sandbox.start_server();
    assert!(descriptors_of(sandbox.server_pid()).contains(&"7".to_owned()));
    sandbox.write("web.yml", SLEEPER);
    sandbox.write("other.yml", SLEEPER);
    for name in ["other", "web"] {
        let pid = started(&sandbox, name);
        // Its loader has a library open for a moment; what leaked would stay.
        wait_for("three descriptors", PATIENCE, || {
            descriptors_of(pid) == ["0", "1", "2"]
        });
        assert_eq!(link_of(pid, "fd/0"), Path::new("/dev/null"));
        let logs = sandbox.log_dir().canonicalize().unwrap();
        assert_eq!(link_of(pid, "fd/1"), logs.join(format!("{name}.out")));
        assert_eq!(link_of(pid, "fd/2"), logs.join(format!("{name}.err")));
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let group = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(2);
        assert_eq!(group, Some(pid.to_string().as_str()));
    }
}

#[test]
fn a_childs_environment_is_the_servers_less_what_concerns_the_server() {
    let given = [
        "env",
        "KEPT=a value",
        "LISTENER=kept",
        "NOTIFY_SOCKET=/run/notify",
        "LISTEN_FDS=1",
        "LISTEN_PID=1",
        "LISTEN_FDNAMES=x",
        "WATCHDOG_USEC=1000000",
        "WATCHDOG_PID=1",
        "SUPERVISOR_RS_RUN=11111111-1111-4111-8111-111111111111/someone/7",
        "SUPERVISOR_RS_ON=10.0.0.1",
    ];
    let mut sandbox = Sandbox::new("mode: quiet").within(&given);
    sandbox.start_server();
    sandbox.write("web.yml", SLEEPER);
    let id = sandbox.json(&["info"])["id"].as_str().unwrap().to_owned();
    for turn in 1..=2 {
        let variables = environment_of(started(&sandbox, "web"));
        let has = |text: &str| variables.iter().any(|variable| variable == text);
        assert!(has("KEPT=a value") && has("LISTENER=kept"), "{variables:?}");
        assert!(
            has(&format!("SUPERVISOR_RS_RUN={id}/web/{turn}")),
            "{variables:?}"
        );
        let foreign = ["NOTIFY_SOCKET", "LISTEN_", "WATCHDOG_", "SUPERVISOR_RS_"];
        let mut found: Vec<&String> = variables
            .iter()
            .filter(|variable| foreign.iter().any(|name| variable.starts_with(name)))
            .collect();
        found.retain(|variable| !variable.starts_with("SUPERVISOR_RS_RUN="));
        assert!(found.is_empty(), "{found:?}");
        let own = variables
            .iter()
            .filter(|v| v.starts_with("SUPERVISOR_RS_RUN="));
        assert_eq!(own.count(), 1, "{variables:?}");
    }
}

#[test]
fn a_child_has_default_signals_and_an_empty_mask_whatever_the_server_was_given() {
    let give = "trap '' INT QUIT PIPE HUP USR2 CHLD; exec env --block-signal=USR1,ALRM \"$@\"";
    let outer = ["sh", "-c", give, "sh"];
    let mut attempt = Command::new(outer[0]);
    attempt.args(&outer[1..]);
    attempt.args(["grep", "-c", "^Sig[BI].*[1-9a-f]", "/proc/self/status"]);
    if run(attempt).stdout != "2\n" {
        return skip("this `env` cannot block signals");
    }
    let mut sandbox = Sandbox::new("mode: quiet").within(&outer);
    sandbox.start_server();
    // The server empties its own mask, for it must hear of ends; what it ignores it keeps.
    assert_ne!(
        status_of(sandbox.server_pid(), "SigIgn").unwrap(),
        "0".repeat(16)
    );
    sandbox.write("web.yml", SLEEPER);
    let pid = started(&sandbox, "web");
    for field in ["SigBlk", "SigIgn", "SigCgt"] {
        assert_eq!(status_of(pid, field).unwrap(), "0".repeat(16), "{field}");
    }
    // The server reaps although it was told to ignore the ends of its children.
    kill_process(Pid::from_raw(pid).unwrap(), Signal::INT).unwrap();
    assert_eq!(
        sandbox.wait_state("web", "exited")["exit"]["signal"],
        "SIGINT"
    );
}

#[test]
fn output_is_appended_by_default_and_emptied_at_each_start_by_create() {
    let sandbox = Sandbox::start("mode: quiet");
    let logs = sandbox.log_dir();
    let text = script("echo out; echo err >&2");
    sandbox.write("plain.yml", &text);
    let both =
        "output:\n  - stdout: one.log\n    mode: create\n  - stderr: two.log\n    mode: append\n";
    sandbox.write("told.yml", &format!("{text}{both}"));
    for turn in 1..=3 {
        for name in ["plain", "told"] {
            assert_eq!(sandbox.done(&["start", name])["run"], turn);
            sandbox.wait_state(name, "exited");
        }
    }
    let read = |name: &str| fs::read_to_string(logs.join(name)).unwrap();
    assert_eq!(read("plain.out"), "out\n".repeat(3));
    assert_eq!(read("plain.err"), "err\n".repeat(3));
    assert_eq!(read("one.log"), "out\n");
    assert_eq!(read("two.log"), "err\n".repeat(3));
    let row = sandbox.row("told").unwrap();
    let path = |name: &str| logs.join(name).to_str().unwrap().to_owned();
    assert_eq!(
        row["output"],
        json!({"stdout": path("one.log"), "stderr": path("two.log")})
    );
}

#[test]
fn both_streams_may_share_a_file_and_no_line_is_lost() {
    let sandbox = Sandbox::start("mode: quiet");
    let log = sandbox.root().join("both.log");
    let text = "n=0; while [ $n -lt 200 ]; do n=$((n+1)); echo out $n; echo err $n >&2; done";
    let output = format!(
        "output:\n  - stdout: {0}\n    mode: create\n  - stderr: {0}\n    mode: create\n",
        log.display()
    );
    sandbox.write("web.yml", &format!("{}{output}", script(text)));
    for _ in 0..2 {
        sandbox.done(&["start", "web"]);
        sandbox.wait_state("web", "exited");
    }
    let expected: Vec<String> = (1..=200)
        .flat_map(|n| [format!("out {n}"), format!("err {n}")])
        .collect();
    assert_eq!(wait_lines(&log, 400), expected);
}

#[test]
fn inherited_output_is_the_servers_own() {
    let sandbox = Sandbox::start("mode: quiet");
    let text = script("echo inherited out; echo inherited err >&2");
    sandbox.write("web.yml", &format!("{text}output: inherit\n"));
    sandbox.done(&["start", "web"]);
    let row = sandbox.wait_state("web", "exited");
    assert_eq!(
        row["output"],
        json!({"stdout": "inherit", "stderr": "inherit"})
    );
    let log = sandbox.server_log();
    assert!(
        log.contains("\ninherited out\n") && log.contains("\ninherited err\n"),
        "{log}"
    );
    assert!(!sandbox.log_dir().join("web.out").exists());
}

#[test]
fn a_device_takes_output_and_a_pipe_a_link_and_a_directory_do_not() {
    let sandbox = Sandbox::start("mode: quiet");
    let root = sandbox.root().to_owned();
    mkfifoat(CWD, root.join("pipe"), Mode::from_raw_mode(0o600)).unwrap();
    fs::write(root.join("victim"), "precious\n").unwrap();
    symlink(root.join("victim"), root.join("link")).unwrap();
    fs::create_dir(root.join("folder")).unwrap();
    let with = |path: &str| format!("{SLEEPER}output: [{{stdout: {path}, mode: create}}]\n");
    let cases = [
        ("pipe", "is a named pipe"),
        ("link", "is a symbolic link"),
        ("folder", "is a directory"),
        ("absent/web.log", "absent` does not exist"),
    ];
    for (name, words) in cases {
        sandbox.write("web.yml", &with(root.join(name).to_str().unwrap()));
        let message = sandbox.refused(&["start", "web"], "spawn_failed", 1);
        assert!(message.contains(words), "{name}: {message}");
        assert_eq!(sandbox.row("web").unwrap()["state"], "failed");
    }
    assert_eq!(
        fs::read_to_string(root.join("victim")).unwrap(),
        "precious\n"
    );
    sandbox.write("web.yml", &with("/dev/null"));
    let pid = started(&sandbox, "web");
    assert_eq!(link_of(pid, "fd/1"), Path::new("/dev/null"));
    assert_eq!(sandbox.row("web").unwrap()["output"]["stdout"], "/dev/null");
}

#[test]
fn a_start_that_fails_empties_no_log() {
    let sandbox = Sandbox::start("mode: quiet");
    let log = sandbox.log_dir().join("web.log");
    let output = "output: [{stdout: web.log, mode: create}]\n";
    sandbox.write("web.yml", &format!("{}{output}", script("echo first")));
    sandbox.done(&["start", "web"]);
    sandbox.wait_state("web", "exited");
    for command in [
        "[no-such-program]",
        "[/etc/passwd]",
        "[sleep, '1']\nworkdir: /no/where",
    ] {
        sandbox.write("web.yml", &format!("command: {command}\n{output}"));
        sandbox.refused(&["start", "web"], "spawn_failed", 1);
        assert_eq!(fs::read_to_string(&log).unwrap(), "first\n", "{command}");
    }
}

#[test]
fn a_program_without_a_slash_is_searched_in_the_path() {
    let sandbox = Sandbox::start("mode: quiet");
    sandbox.write("web.yml", "command: sh -c \"exec sleep '300'\"\n");
    let pid = started(&sandbox, "web");
    wait_for("the program", PATIENCE, || {
        fs::read(format!("/proc/{pid}/cmdline")).unwrap() == b"sleep\x00300\0"
    });
    sandbox.write("bad.yml", "command: no-such-program\n");
    let message = sandbox.refused(&["start", "bad"], "spawn_failed", 1);
    assert!(message.starts_with("cannot start `bad`: "), "{message}");
    assert!(message.contains("no-such-program"), "{message}");
    let row = sandbox.row("bad").unwrap();
    assert_eq!(
        (&row["state"], &row["reason"]),
        (&json!("failed"), &json!(message))
    );
}
