//! The server as PID 1 of a container: it ends with a child (`--exit-with`), in time, and leaves nothing.

use std::{fs, process::Command, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use supervisor_rs::clock;

use crate::sandbox::{
    PATIENCE, SLEEPER, Sandbox, children_of, script, skip, status_of, wait_for, wait_lines,
};

/// How a shell becomes the server that ends with `web`.
const WITH_WEB: &str = "exec \"$0\" --exit-with web \"$@\"";

/// A server that ends with `web`; whatever started it becomes it.
fn with_web(settings: &str) -> Sandbox {
    Sandbox::new(settings).within(&["sh", "-c", WITH_WEB])
}

/// The same as PID 1 of a PID namespace of its own; `None` where there can be none.
fn with_web_as_pid_1(settings: &str) -> Option<Sandbox> {
    let outer = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let mut trial = Command::new(outer[0]);
    trial.args(&outer[1..]).arg("true");
    let made = trial.output().is_ok_and(|output| output.status.success());
    let within = [&outer[..], &["sh", "-c", WITH_WEB]].concat();
    made.then(|| Sandbox::new(settings).within(&within))
}

/// The server itself, which is the one child of `unshare`.
fn inner(sandbox: &Sandbox) -> i32 {
    let inner = children_of(sandbox.server_pid());
    assert_eq!(inner.len(), 1);
    let numbers = status_of(inner[0], "NSpid").unwrap();
    assert!(numbers.ends_with("\t1"), "it is PID 1 there: {numbers}");
    inner[0]
}

#[test]
fn a_container_ends_with_its_child_with_that_ones_code_and_all_others_stopped() {
    let Some(mut sandbox) = with_web_as_pid_1("mode: sync") else {
        return skip("`unshare --pid` is not there or not permitted");
    };
    let gate = sandbox.gate("gate");
    sandbox.write("web.yml", &script(&format!("{gate}; exit 42")));
    let bye = sandbox.root().join("bye");
    // A daemon of its own, whose parent ends at once, and a child that takes leave.
    let text = format!(
        "(setsid sleep 300 &); trap 'echo bye > {}; exit 0' TERM; echo up; sleep 300 & wait",
        bye.display()
    );
    sandbox.write("db.yml", &script(&text));
    sandbox.start_server();
    sandbox.wait_state("web", "running");
    sandbox.wait_state("db", "running");
    let server = inner(&sandbox);
    sandbox.open_gate("gate");
    assert_eq!(sandbox.wait_server(), 42);
    assert_eq!(
        fs::read_to_string(bye).unwrap(),
        "bye\n",
        "it was asked to end"
    );
    assert_eq!(sandbox.processes(), [], "the namespace went with its PID 1");
    assert!(status_of(server, "State").is_none());
    let log = sandbox.server_log();
    assert!(
        log.contains("has ended for good, and the server with it"),
        "{log}"
    );
}

#[test]
fn a_container_that_is_told_to_end_does_so_in_time_and_well() {
    let Some(mut sandbox) = with_web_as_pid_1("mode: sync") else {
        return skip("`unshare --pid` is not there or not permitted");
    };
    let (root, said) = (
        sandbox.root().display().to_string(),
        sandbox.root().join("said"),
    );
    let daemon = format!("setsid sh -c \"echo up > {root}/daemon; sleep 0.3\"");
    let text = format!(
        "({daemon} &); trap 'echo bye >> {root}/said; exit 3' TERM; echo up >> {root}/said; sleep 300 & wait"
    );
    sandbox.write("web.yml", &script(&text));
    // One that ignores TERM, and has three hundred milliseconds for it.
    let deaf = "trap '' TERM; while :; do sleep 0.1; done";
    sandbox.write(
        "deaf.yml",
        &format!("{}stop: {{grace: 300ms}}\n", script(deaf)),
    );
    sandbox.start_server();
    sandbox.wait_state("deaf", "running");
    wait_lines(&said, 1);
    wait_lines(&sandbox.root().join("daemon"), 1);
    let server = inner(&sandbox);
    wait_for("the daemon's reaping", PATIENCE, || {
        children_of(server).len() == 2
    });
    let begun = clock::mono();
    kill_process(Pid::from_raw(server).unwrap(), Signal::TERM).unwrap();
    assert_eq!(
        sandbox.wait_server(),
        0,
        "it ended as asked, not with its child"
    );
    let took = clock::mono() - begun;
    assert!(
        took < Duration::from_secs(8),
        "both were stopped at once: {took:?}"
    );
    assert_eq!(wait_lines(&said, 2), ["up", "bye"]);
    assert_eq!(sandbox.processes(), []);
}

#[test]
fn a_signal_that_ends_the_child_is_told_as_shells_do() {
    let mut sandbox = with_web("mode: sync");
    sandbox.write("web.yml", SLEEPER);
    sandbox.start_server();
    let pid = sandbox.wait_state("web", "running")["pid"]
        .as_i64()
        .unwrap();
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    assert_eq!(sandbox.wait_server(), 128 + 9);
    assert_eq!(sandbox.processes(), []);
}

#[test]
fn only_an_end_for_good_is_the_servers_and_an_upgrade_or_a_crash_forgets_nothing_of_it() {
    let mut sandbox = with_web("mode: sync").with_own_program();
    let (count, root) = (
        sandbox.root().join("count"),
        sandbox.root().display().to_string(),
    );
    let gates = [sandbox.gate("first"), sandbox.gate("second")];
    let text = format!(
        "echo x >> {root}/count; case $(wc -l < {root}/count) in 1) {};; *) {};; esac; exit 5",
        gates[0], gates[1]
    );
    let policy = "restart: {when: on-failure, delay: 10ms, max: 1 in 1m}\n";
    sandbox.write("web.yml", &format!("{}{policy}", script(&text)));
    sandbox.write("db.yml", SLEEPER);
    sandbox.start_server();
    wait_lines(&count, 1);
    sandbox.open_gate("first");
    wait_lines(&count, 2);
    // Held, it is down and has not ended by itself.
    sandbox.done(&["upgrade"]);
    sandbox.done(&["stop", "web"]);
    assert_eq!(sandbox.json(&["check"])["ok"], true);
    sandbox.restart_server();
    assert_eq!(sandbox.row("web").unwrap()["state"], "stopped");
    sandbox.done(&["start", "web"]);
    wait_lines(&count, 3);
    sandbox.open_gate("second");
    // It fails once more, and then for good.
    wait_lines(&count, 4);
    sandbox.done(&["upgrade"]);
    sandbox.open_gate("second");
    assert_eq!(sandbox.wait_server(), 5);
    assert_eq!(sandbox.processes(), []);
    assert!(sandbox.server_log().contains("given up"));
}

#[test]
fn a_child_that_ended_while_no_server_lived_ends_the_next_one() {
    let mut sandbox = with_web("mode: quiet");
    let gate = sandbox.gate("gate");
    sandbox.write("web.yml", &script(&format!("{gate}; exit 4")));
    sandbox.write("db.yml", SLEEPER);
    sandbox.start_server();
    sandbox.done(&["start", "db"]);
    let pid = sandbox.done(&["start", "web"])["pid"].as_i64().unwrap();
    sandbox.kill_server();
    sandbox.open_gate("gate");
    let pid = i32::try_from(pid).unwrap();
    wait_for("its end", PATIENCE, || {
        status_of(pid, "State").is_none_or(|state| state.starts_with('Z'))
    });
    sandbox.begin_server();
    // How it ended is known where kernel and rights allow it; else it counts as 1.
    let code = sandbox.wait_server();
    assert!([4, 1].contains(&code), "{code}");
    assert_eq!(sandbox.processes(), []);
}

#[test]
fn a_name_that_no_file_has_is_refused_at_the_start_and_one_that_is_none_at_once() {
    let sandbox = with_web("mode: sync");
    sandbox.write("wbe.yml", SLEEPER);
    let config = sandbox.server_yml().display().to_string();
    let output = sandbox.server_to_end(&["--exit-with", "web", &config]);
    assert_eq!((output.code, output.stdout.as_str()), (6, ""));
    assert!(
        output
            .stderr
            .contains("the server is to end with `web`, and no loadpath has a file of that name"),
        "{output:?}"
    );
    assert_eq!(sandbox.processes(), [], "nothing was started");
    for wrong in ["all", "a/b", ""] {
        let output = sandbox.server_to_end(&["--exit-with", wrong, &config]);
        assert_eq!(output.code, 2, "{output:?}");
    }
    let output = sandbox.server_to_end(&["--exit-with", "web", "--check", &config]);
    assert_eq!(output.code, 2, "{output:?}");
}
