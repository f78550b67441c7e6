//! The server's end: by `kill`, TERM, INT; what becomes of the children, and the last words.

use std::{
    fs::File,
    io::Read,
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::{
    process::Signal,
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
};
use serde_json::json;
use supervisor_rs::clock;

use crate::sandbox::{
    PATIENCE, SLEEPER, Sandbox, Wire, lives, pid_of, script, skip, wait_for, wait_lines,
};

/// Far less than the grace: what ends within this did not wait for KILL.
const SOON: Duration = Duration::from_secs(5);

/// A server in `quiet` mode, with further settings, that runs these sleepers.
fn running(settings: &str, names: &[&str]) -> (Sandbox, Vec<i32>) {
    let sandbox = Sandbox::start(&format!("mode: quiet\n{settings}"));
    let pids = names.iter().map(|name| {
        sandbox.write(&format!("{name}.yml"), SLEEPER);
        pid_of(&sandbox.done(&["start", name]))
    });
    let pids = pids.collect();
    (sandbox, pids)
}

/// A child that tells when it is up, ignores TERM, and is no trouble to kill.
fn stubborn(sandbox: &Sandbox, name: &str) -> i32 {
    let up = sandbox.root().join(format!("{name}-up"));
    let text = format!("trap '' TERM; echo up > {}; exec sleep 300", up.display());
    sandbox.write(&format!("{name}.yml"), &script(&text));
    let pid = pid_of(&sandbox.done(&["start", name]));
    wait_lines(&up, 1);
    pid
}

#[test]
fn kill_leaves_the_children_and_its_last_words_name_them() {
    let (mut sandbox, pids) = running("", &["api", "web"]);
    sandbox.write("job.yml", &script("exit 0"));
    sandbox.done(&["start", "job"]);
    sandbox.wait_state("job", "exited");
    let words = sandbox.done(&["kill"]);
    let expected = json!([
        {"name": "api", "pid": pids[0], "run": 1},
        {"name": "web", "pid": pids[1], "run": 1},
    ]);
    assert_eq!(
        (&words["op"], &words["children"]),
        (&json!("kill"), &expected)
    );
    let message = "the server ends; 2 children run on, and the next start takes them back";
    assert_eq!(words["message"], message);
    assert_eq!(sandbox.wait_server(), 0);
    assert!(pids.iter().all(|pid| lives(*pid)));
    let refused = sandbox.client(&["check"]);
    assert_eq!(refused.code, 7, "nobody is there: {refused:?}");
    sandbox.start_server();
    assert_eq!(pid_of(&sandbox.wait_state("web", "running")), pids[1]);
}

#[test]
fn people_read_which_children_run_on() {
    let (mut sandbox, pids) = running("", &["web"]);
    let output = sandbox.client(&["kill"]);
    assert_eq!((output.code, output.stderr.as_str()), (0, ""));
    let message = "the server ends; 1 child runs on, and the next start takes it back";
    assert!(output.stdout.contains(message), "{output:?}");
    assert!(output.stdout.contains("web"), "{output:?}");
    assert!(output.stdout.contains(&pids[0].to_string()), "{output:?}");
    assert_eq!(sandbox.wait_server(), 0);
    sandbox.expect_leftovers();
}

#[test]
fn term_and_int_leave_the_children_and_end_as_asked() {
    for signal in [Signal::TERM, Signal::INT] {
        let (mut sandbox, pids) = running("", &["web"]);
        sandbox.signal_server(signal);
        assert_eq!(sandbox.wait_server(), 0, "{signal:?}");
        assert!(lives(pids[0]));
        let log = sandbox.server_log();
        assert!(
            !log.contains("runs on:"),
            "nobody sits at a terminal: {log}"
        );
        let named = format!("runs on child=web pid={}\n", pids[0]);
        assert!(log.contains(&named), "{log}");
        sandbox.start_server();
        assert_eq!(pid_of(&sandbox.wait_state("web", "running")), pids[0]);
    }
}

#[test]
fn kill_stop_children_stops_them_first_and_holds_nothing() {
    let mut sandbox = Sandbox::start("mode: sync");
    for name in ["api", "web"] {
        sandbox.write(&format!("{name}.yml"), SLEEPER);
        sandbox.wait_state(name, "running");
    }
    let words = sandbox.done(&["kill", "--stop-children"]);
    assert_eq!(
        (&words["op"], &words["children"]),
        (&json!("kill"), &json!([]))
    );
    assert_eq!(
        words["message"],
        "the server ends; no child is left running"
    );
    assert_eq!(sandbox.processes(), [], "before the answer");
    assert_eq!(sandbox.wait_server(), 0);
    sandbox.start_server();
    for name in ["api", "web"] {
        let row = sandbox.wait_state(name, "running");
        assert_eq!((&row["run"], &row["hold"]), (&json!(2), &json!(false)));
    }
}

#[test]
fn on_exit_stop_stops_the_children_however_the_server_ends() {
    for signal in [Some(Signal::TERM), Some(Signal::INT), None] {
        let (mut sandbox, _pids) = running("on_exit: stop", &["api", "web"]);
        match signal {
            Some(signal) => sandbox.signal_server(signal),
            None => assert_eq!(sandbox.done(&["kill"])["children"], json!([])),
        }
        assert_eq!(sandbox.wait_server(), 0, "{signal:?}");
        assert_eq!(sandbox.processes(), [], "{signal:?}");
        sandbox.start_server();
        for name in ["api", "web"] {
            let row = sandbox.row(name).unwrap();
            assert_eq!(
                (&row["state"], &row["hold"]),
                (&json!("stopped"), &json!(false))
            );
            assert_eq!(row["exit"]["signal"], "SIGTERM");
        }
    }
}

#[test]
fn on_exit_may_be_edited_while_the_server_runs() {
    let (mut sandbox, _pids) = running("", &["web"]);
    sandbox.configure("mode: quiet\non_exit: stop");
    wait_for("the edit", PATIENCE, || {
        sandbox.json(&["info"])["on_exit"] == "stop"
    });
    assert_eq!(sandbox.stop_server(), 0);
    assert_eq!(sandbox.processes(), []);
}

#[test]
fn a_second_int_spends_no_more_grace() {
    let mut sandbox = Sandbox::start("mode: quiet\non_exit: stop");
    let pid = stubborn(&sandbox, "web");
    let begun = clock::mono();
    sandbox.signal_server(Signal::INT);
    sandbox.wait_state("web", "stopping");
    assert!(lives(pid));
    sandbox.signal_server(Signal::INT);
    assert_eq!(sandbox.wait_server(), 0);
    assert!(clock::mono() - begun < SOON);
    assert!(!lives(pid));
    sandbox.start_server();
    assert_eq!(sandbox.row("web").unwrap()["exit"]["signal"], "SIGKILL");
}

#[test]
fn a_second_int_ends_a_posthooks_program_too() {
    let mut sandbox = Sandbox::start("mode: quiet\non_exit: stop");
    let file = sandbox.root().join("hook");
    let hook = format!("run sh -c 'echo $$ > {}; exec sleep 300'", file.display());
    sandbox.write(
        "web.yml",
        &format!("{SLEEPER}hooks: [posthook: {}]\n", json!(hook)),
    );
    sandbox.done(&["start", "web"]);
    let begun = clock::mono();
    sandbox.signal_server(Signal::INT);
    let hook: i32 = wait_lines(&file, 1)[0].parse().unwrap();
    assert!(lives(hook));
    sandbox.signal_server(Signal::INT);
    assert_eq!(sandbox.wait_server(), 0);
    assert!(clock::mono() - begun < SOON);
    assert!(!lives(hook));
}

#[test]
fn the_end_waits_for_children_that_take_their_time() {
    let mut sandbox = Sandbox::start("mode: quiet\non_exit: stop");
    let up = sandbox.root().join("up");
    let log = sandbox.root().join("log");
    let text = format!(
        "trap 'sleep 0.4; echo bye > {}; exit 0' TERM; echo up > {}; while :; do sleep 0.05; done",
        log.display(),
        up.display()
    );
    sandbox.write("web.yml", &script(&text));
    sandbox.done(&["start", "web"]);
    wait_lines(&up, 1);
    assert_eq!(sandbox.stop_server(), 0);
    assert_eq!(wait_lines(&log, 1), ["bye"]);
    sandbox.start_server();
    assert_eq!(sandbox.row("web").unwrap()["exit"]["code"], 0);
}

#[test]
fn while_the_server_ends_commands_are_refused_and_check_still_answers() {
    let mut sandbox = Sandbox::start("mode: quiet\non_exit: stop");
    stubborn(&sandbox, "web");
    sandbox.write("other.yml", SLEEPER);
    sandbox.signal_server(Signal::TERM);
    sandbox.wait_state("web", "stopping");
    let refused: [&[&str]; 5] = [
        &["start", "other"],
        &["trystart", "other"],
        &["stop", "web"],
        &["stop", "--all"],
        &["start", "--all"],
    ];
    for arguments in refused {
        let message = sandbox.refused(arguments, "shutting_down", 1);
        assert_eq!(message, "the server is ending", "{arguments:?}");
    }
    assert_eq!(sandbox.json(&["info"])["ok"], true);
    sandbox.signal_server(Signal::TERM);
    assert_eq!(sandbox.wait_server(), 0);
    assert_eq!(sandbox.processes(), []);
}

#[test]
fn who_waits_for_a_start_is_answered_before_the_end() {
    let mut sandbox = Sandbox::start("mode: quiet");
    let hooks = "hooks: [prehook: run sleep 300]\n";
    sandbox.write("web.yml", &format!("{SLEEPER}{hooks}"));
    let mut wire = Wire::connect(sandbox.address());
    wire.ask(1, &json!({"op": "start", "child": "web"}).to_string());
    sandbox.wait_state("web", "pending");
    let begun = clock::mono();
    assert_eq!(sandbox.stop_server(), 0);
    assert!(
        clock::mono() - begun < SOON,
        "a hook's 60 s are not waited for"
    );
    let answer = wire.value();
    assert_eq!(
        (&answer["id"], &answer["error"]["code"]),
        (&json!(1), &json!("shutting_down"))
    );
    assert_eq!(sandbox.processes(), []);
}

#[test]
fn a_restart_that_has_ended_the_old_run_is_finished_before_the_end() {
    let mut sandbox = Sandbox::start("mode: quiet");
    let root = sandbox.root().display().to_string();
    let text = format!(
        "trap 'sleep 0.4; exit 0' TERM; echo up >> {root}/up; while :; do sleep 0.05; done"
    );
    sandbox.write("web.yml", &script(&text));
    sandbox.done(&["start", "web"]);
    wait_lines(&sandbox.root().join("up"), 1);
    let mut wire = Wire::connect(sandbox.address());
    wire.ask(1, &json!({"op": "restart", "child": "web"}).to_string());
    sandbox.wait_state("web", "stopping");
    let words = sandbox.done(&["kill"]);
    let answer = wire.value();
    assert_eq!(
        (&answer["id"], &answer["ok"]["run"]),
        (&json!(1), &json!(2))
    );
    let survivor = json!([{"name": "web", "pid": answer["ok"]["pid"], "run": 2}]);
    assert_eq!(words["children"], survivor);
    assert_eq!(sandbox.wait_server(), 0);
    sandbox.start_server();
    assert_eq!(sandbox.wait_state("web", "running")["run"], 2);
}

/// A terminal, and what is written on it.
struct Terminal {
    keys: File,
    screen: JoinHandle<String>,
    path: String,
}

impl Terminal {
    fn new() -> Option<Self> {
        let main = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).ok()?;
        grantpt(&main).ok()?;
        unlockpt(&main).ok()?;
        let path = ptsname(&main, Vec::new()).ok()?.into_string().ok()?;
        // Until a program has it open, reading fails as if all had closed it.
        let held = File::options().read(true).write(true).open(&path).ok()?;
        let keys = File::from(main);
        let mut reader = keys.try_clone().ok()?;
        let screen = thread::spawn(move || {
            let mut text = Vec::new();
            let mut piece = [0_u8; 4096];
            let mut held = Some(held);
            while let Ok(count @ 1..) = reader.read(&mut piece) {
                text.extend_from_slice(&piece[..count]);
                held = None;
            }
            drop(held);
            String::from_utf8_lossy(&text).replace("\r\n", "\n")
        });
        Some(Self { keys, screen, path })
    }
}

/// A server at a terminal of its own, as a person starts it.
fn at_a_terminal(settings: &str) -> Option<(Sandbox, Terminal)> {
    let terminal = Terminal::new()?;
    let enter = format!("exec \"$@\" <>{0} >{0} 2>&1", terminal.path);
    let outer = ["setsid", "sh", "-c", enter.as_str(), "sh"];
    let mut sandbox = Sandbox::new(settings).within(&outer);
    sandbox.start_server();
    Some((sandbox, terminal))
}

#[test]
fn int_on_a_terminal_prints_each_child_left_and_how_to_end_it() {
    use std::io::Write;
    let Some((mut sandbox, mut terminal)) = at_a_terminal("mode: sync") else {
        return skip("no terminal can be opened");
    };
    let mut lines = Vec::new();
    for name in ["api", "web"] {
        sandbox.write(&format!("{name}.yml"), SLEEPER);
        let pid = sandbox.wait_state(name, "running")["pid"].clone();
        lines.push(format!(
            "`{name}` runs on: pid {pid}; `kill -- -{pid}` ends it"
        ));
    }
    let before = sandbox.processes();
    terminal.keys.write_all(b"\x03").unwrap();
    assert_eq!(sandbox.wait_server(), 0);
    let screen = terminal.screen.join().unwrap();
    let last: Vec<&str> = screen.lines().rev().take(2).collect();
    assert_eq!(last, [&lines[1], &lines[0]], "{screen}");
    assert_eq!(
        sandbox.processes(),
        before,
        "the key reached the server alone"
    );
    // What was printed does what it says.
    for line in &lines {
        let command = line.split('`').nth(3).unwrap();
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", command]);
        assert_eq!(crate::sandbox::run(shell).code, 0, "{command}");
    }
    wait_for("their ends", PATIENCE, || sandbox.processes().is_empty());
}

#[test]
fn int_on_a_terminal_prints_nothing_when_nothing_is_left() {
    use std::io::Write;
    let Some((mut sandbox, mut terminal)) = at_a_terminal("mode: sync\non_exit: stop") else {
        return skip("no terminal can be opened");
    };
    sandbox.write("web.yml", SLEEPER);
    sandbox.wait_state("web", "running");
    terminal.keys.write_all(b"\x03").unwrap();
    assert_eq!(sandbox.wait_server(), 0);
    let screen = terminal.screen.join().unwrap();
    assert!(!screen.contains("runs on"), "{screen}");
    assert_eq!(sandbox.processes(), []);
}

#[test]
fn hup_looks_at_everything_again_and_ends_nothing() {
    let (sandbox, pids) = running("rescan: off", &["web"]);
    sandbox.signal_server(Signal::HUP);
    wait_for("the look", PATIENCE, || {
        sandbox
            .server_log()
            .contains("asked to look at everything again")
    });
    assert_eq!(pid_of(&sandbox.row("web").unwrap()), pids[0]);
}

#[test]
fn a_busy_port_is_exit_7_and_names_the_address() {
    let (sandbox, pids) = running("", &["web"]);
    let root = sandbox.root().display().to_string();
    let text = std::fs::read_to_string(sandbox.server_yml()).unwrap();
    let other = sandbox.root().join("other.yml");
    let moved = text.replace(&format!("{root}/"), &format!("{root}/other-"));
    std::fs::write(&other, moved).unwrap();
    let output = sandbox.server_to_end(&[other.to_str().unwrap()]);
    assert_eq!(output.code, 7, "{output:?}");
    let words = format!("cannot listen on {}: ", sandbox.address());
    assert!(output.stderr.contains(&words), "{output:?}");
    assert_eq!(pid_of(&sandbox.row("web").unwrap()), pids[0]);
}

#[test]
fn a_state_in_use_is_exit_7_and_names_who_uses_it() {
    let (mut sandbox, pids) = running("", &["web"]);
    let text = std::fs::read_to_string(sandbox.server_yml()).unwrap();
    let root = sandbox.root().display().to_string();
    let words = format!("is in use by the server with pid {}", sandbox.server_pid());
    let attempt = |address: &str, differs: Option<&str>| {
        let mut text = text.replace("127.0.0.1", address);
        if let Some(dir) = differs {
            text = text.replace(&format!("{root}/{dir}"), &format!("{root}/{dir}-{address}"));
        }
        let other = sandbox.root().join(format!("{address}.yml"));
        std::fs::write(&other, text).unwrap();
        let output = sandbox.server_to_end(&[other.to_str().unwrap()]);
        assert_eq!(output.code, 7, "{differs:?}: {output:?}");
        assert!(output.stderr.contains(&words), "{differs:?}: {output:?}");
    };
    // Each waits a while for the first to end, and so they are tried at once.
    thread::scope(|scope| {
        scope.spawn(|| attempt("127.0.0.2", None));
        scope.spawn(|| attempt("127.0.0.3", Some("state")));
        scope.spawn(|| attempt("127.0.0.4", Some("run")));
    });
    assert_eq!(pid_of(&sandbox.row("web").unwrap()), pids[0]);
    sandbox.done(&["restart", "web"]);
    sandbox.restart_server();
    assert_eq!(
        sandbox.wait_state("web", "running")["run"],
        2,
        "no record was lost by it"
    );
}
