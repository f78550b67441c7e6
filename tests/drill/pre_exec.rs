//! A server is killed while a child is not yet its program, for as long as the test wants.
//!
//! The child is held back in execve(2) by fanotify(7): the kernel asks the test whether one file
//! may be executed, and waits for the answer. Until then the child holds the lock on the
//! directories of the server that has made it, so a new server knows when all are recorded.

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use serde_json::json;

use crate::{
    hold::{Deed, Holder, end},
    look::stat,
    reaper,
    sandbox::{PATIENCE, Sandbox, lives, stays, wait_for},
};

/// Far less than the five seconds for which a server waits for the lock.
const WAITS_AT_LEAST: Duration = Duration::from_secs(1);

/// The server's exit code when its state is in use.
const IN_USE: i32 = 7;

/// A server in `quiet` mode that knows `slow`, whose program is held back, and was killed when it
/// was about to start it; who is held.
fn killed_before_exec() -> Option<(Sandbox, Holder, i32)> {
    reaper::begin();
    let mut sandbox = Sandbox::new("mode: quiet");
    let program = sandbox.root().join("slow");
    sandbox.replace(&program, "#!/bin/sh\nexec sleep 300\n");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let mut holder = Holder::new(&sandbox, Deed::Execute, &program)?;
    sandbox.start_server();
    sandbox.write("slow.yml", &format!("command: [{}]\n", program.display()));
    sandbox.wait_state("slow", "stopped");
    let mut wire = sandbox.wire();
    wire.ask(1, r#"{"op":"start","child":"slow"}"#);
    let pid = holder.held();
    sandbox.kill_server();
    assert!(lives(pid), "what is held back outlives its server");
    Some((sandbox, holder, pid))
}

/// `slow` runs, as this process and no other, in its first run.
fn assert_runs(sandbox: &Sandbox, pid: i32) {
    let row = sandbox.wait_state("slow", "running");
    assert_eq!((&row["pid"], &row["run"]), (&json!(pid), &json!(1)));
    wait_for("its program", PATIENCE, || {
        sandbox
            .processes()
            .iter()
            .any(|process| process.command.starts_with("sleep 300"))
    });
    let processes = sandbox.processes();
    assert_eq!(processes.len(), 1, "{processes:?}");
    assert_eq!((processes[0].pid, processes[0].group), (pid, pid));
}

#[test]
fn a_new_server_waits_for_a_child_that_is_not_yet_its_program_and_takes_it_back() {
    let Some((mut sandbox, mut holder, pid)) = killed_before_exec() else {
        return;
    };
    sandbox.begin_server();
    let server = sandbox.server_pid();
    let servers = || sandbox.server_log().matches("the server runs").count();
    stays("it waits for the lock", WAITS_AT_LEAST, || {
        lives(server) && servers() == 1
    });
    holder.let_go();
    assert_eq!(sandbox.wait_for_hello(), Ok(()));
    assert_runs(&sandbox, pid);
    let answer = sandbox.done(&["stop", "slow"]);
    assert_eq!(answer["run"], 1);
    wait_for("its end", PATIENCE, || sandbox.processes().is_empty());
}

#[test]
fn a_new_server_gives_up_after_five_seconds_and_names_who_holds_the_lock() {
    let Some((mut sandbox, mut holder, pid)) = killed_before_exec() else {
        return;
    };
    sandbox.begin_server();
    assert_eq!(sandbox.wait_server(), IN_USE);
    let log = sandbox.server_log();
    let words = format!("is in use by process {pid} (");
    assert!(log.contains(&words), "{words}: {log}");
    assert!(lives(pid), "nothing was done to it");
    holder.let_go();
    sandbox.start_server();
    assert_runs(&sandbox, pid);
}

#[test]
fn a_child_that_was_killed_before_it_was_its_program_is_not_in_doubt() {
    let Some((mut sandbox, mut holder, pid)) = killed_before_exec() else {
        return;
    };
    end(pid, stat(pid).unwrap().start_ticks);
    wait_for("its end", PATIENCE, || !lives(pid));
    sandbox.start_server();
    let row = sandbox.wait_state("slow", "exited");
    assert_eq!((&row["run"], &row["pid"]), (&json!(1), &json!(null)));
    // Who wants to execute it now is held again.
    let mut wire = sandbox.wire();
    wire.ask(1, r#"{"op":"start","child":"slow"}"#);
    let second = holder.held();
    holder.let_go();
    let (_, answer) = wire.answer();
    assert_eq!(
        (&answer["ok"]["pid"], &answer["ok"]["run"]),
        (&json!(second), &json!(2))
    );
}
